# Each target makes the environment first if there is none; a second call does not install again.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ARGS ?= -n auto --dist worksteal

.PHONY: demo test test-slow test-slurm test-oldest test-second lint docs clean

demo: $(INSTALLED)
	$(BIN)/python -m fcot.run -m experiment=quickstart

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow $(ARGS)

test-slurm: $(INSTALLED)
	$(BIN)/python -m pytest -m slow -n auto --dist loadfile tests/test_slurm.py tests/test_vllm.py tests/test_sweeps.py

# The oldest versions that pyproject.toml allows (of torch the one of constraints.txt), and tests of what uses them most.
OLDEST := build/oldest
VERSIONS := test_config test_run test_training test_students test_decoding test_losses test_openai test_hf_teacher test_loaders test_reporting test_wandb test_packaging
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	grep '^torch==' constraints.txt > $(OLDEST)/torch.txt
	$(OLDEST)/bin/uv pip compile --quiet --resolution lowest-direct --constraints $(OLDEST)/torch.txt --extra lora --extra wandb-report -o $(OLDEST)/all.txt pyproject.toml
	grep -Ev '^(nvidia|triton|cuda)' $(OLDEST)/all.txt > $(OLDEST)/versions.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(OLDEST)/versions.txt hatchling hypothesis pytest pytest-xdist
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	$(OLDEST)/bin/python -m pytest -m "not slow" $(ARGS) $(VERSIONS:%=tests/%.py)

# The same tests under another Python: make test-second PYTHON=python3.12
test-second:
	$(MAKE) VENV=build/second build/second/.installed
	build/second/bin/python -m pytest -m "not slow" $(ARGS) $(VERSIONS:%=tests/%.py)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)
	test -x $(BIN)/mkdocs || $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
