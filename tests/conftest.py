"""Shared fixtures: the folder of real data, a way to run the program in an empty folder, and resolved runs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zygote

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test contacts the hub; the test of the message about it sets its own value
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several tests run at the same time, with small models
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as fcot.run does

REPOSITORY = Path(__file__).parent.parent
SHARED = REPOSITORY.parent / "shared" / "data"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """The workers of ``-n auto``: one more than processors, because many tests wait for a server, a signal or another process."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ or not hasattr(os, "sched_getaffinity"):
        return None  # xdist decides
    return len(os.sched_getaffinity(0)) + 1


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("real data folder is absent")
    return SHARED


@pytest.fixture
def run_fcot(tmp_path):
    """``run_fcot("diversity=1", ...) -> CompletedProcess``: runs the program in the test's own empty folder."""

    def run(*arguments: str, module: str = "fcot.run", timeout: float = 900, **environment: str) -> subprocess.CompletedProcess[str]:
        return zygote.run(["-m", module, *arguments], cwd=tmp_path, env={**os.environ, **environment}, timeout=timeout)

    return run


@pytest.fixture(name="make_run")
def run_maker():
    """``make_run(output folder, *overrides) -> resolved run``, in this process."""
    from configurations import make_run

    return make_run


def rank_environments(port: int) -> list[dict[str, str]]:
    """Each rank's environment, as torchrun sets it."""
    return [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        | {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1"}
        for rank in range(2)
    ]


@pytest.fixture
def start_ranks() -> Callable[..., list]:
    """Start two ranks in a folder, as torchrun does: it holds the store in which they find each other."""
    from torch.distributed import TCPStore

    stores = []

    def start(folder: Path, *arguments: str) -> list:
        stores.append(TCPStore("127.0.0.1", 0, 2, True, wait_for_workers=False))
        return [zygote.start(arguments, cwd=folder, env=os.environ | rank) for rank in rank_environments(stores[-1].port)]

    return start
