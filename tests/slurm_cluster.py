"""A real one-node SLURM for tests, which tests that need it start in one worker."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcot.sweeps.ledger import Status, statuses
from fcot.sweeps.plan import Sweep, read_plan

ROOT = Path(__file__).parent.parent
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "mariadbd", "munged", "sbatch")


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """The environment in which commands find the cluster; skips where Debian's packages are absent."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if absent:
        pytest.skip(f"no SLURM here ({', '.join(absent)} not found): apt-get install slurm-wlm munge slurmdbd mariadb-server")
    with tempfile.TemporaryDirectory(prefix="fcot-slurm-") as folder:
        try:
            subprocess.run([ROOT / "launch/local_slurm", "up", folder], check=True, capture_output=True, text=True)
            yield {"SLURM_CONF": f"{folder}/slurm.conf", "OMP_NUM_THREADS": "1"}
        finally:
            subprocess.run([ROOT / "launch/local_slurm", "down", folder], check=False, capture_output=True)


def call(folder: Path, environment: dict[str, str], *command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A command in a folder, with the exit code that is expected of it."""
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def fcot(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"fcot.{module}", *arguments]


def the_sweep(folder: Path) -> Sweep:
    (plan,) = folder.glob("outputs/sweeps/*/plan.json")
    return read_plan(plan.parent)


def wait(sweep: Sweep, environment: dict[str, str], until, seconds: float = 300) -> dict[int | str, Status]:
    """Look at the ledger until ``until`` (of statuses by name) holds. A sweep in which nothing changes for ``seconds`` hangs; a slow
    machine's training reports another step."""
    before = dict(os.environ)
    os.environ |= environment
    try:
        last, changed = None, time.monotonic()
        while True:
            found = {status.name: status for status in statuses(sweep)}
            if until(found):
                return found
            shown = {name: (status.state, status.details, status.error) for name, status in found.items()}
            if shown != last:
                last, changed = shown, time.monotonic()
            assert time.monotonic() < changed + seconds, shown
            time.sleep(0.5)
    finally:
        os.environ.clear()
        os.environ |= before


def over(found: dict[int | str, Status]) -> bool:
    return not any(one.state in ("queued", "starting", "running", "unknown") for one in found.values())
