"""Shared fixtures: the folder of real data, a way to run the program in an empty folder, and resolved runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import zygote

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test contacts the hub; the test of the message about it sets its own value
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several tests run at the same time, with small models
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as fcot.run does

REPOSITORY = Path(__file__).parent.parent
SHARED = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("real data folder is absent")
    return SHARED


@pytest.fixture
def run_fcot(tmp_path):
    """``run_fcot("diversity=1", ...) -> CompletedProcess``: runs the program in the test's own empty folder."""

    def run(*arguments: str, module: str = "fcot.run", timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        return zygote.run(["-m", module, *arguments], cwd=tmp_path, env={**os.environ, **environment}, timeout=timeout)

    return run


@pytest.fixture
def make_run():
    """``make_run(output folder, *overrides) -> resolved run``, in this process."""
    from hydra import compose, initialize_config_dir

    from fcot.base.resources import CONF
    from fcot.config.checks import to_config
    from fcot.config.schema import register_schemas
    from fcot.runs.run import resolve

    def make(output: Path, *overrides: str):
        register_schemas()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return resolve(to_config(compose("config", [f"output_dir={output}", *overrides])))

    return make
