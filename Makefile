# Each target makes the environment first if there is none; a second call does not install again.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ARGS ?= -n auto --dist loadgroup

.PHONY: demo test test-slow test-slurm lint docs clean

demo: $(INSTALLED)
	$(BIN)/python -m fcot.run -m experiment=quickstart

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow $(ARGS)

test-slurm: $(INSTALLED)
	$(BIN)/python -m pytest -m slow $(ARGS) tests/test_slurm.py tests/test_vllm.py tests/test_sweeps.py

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
