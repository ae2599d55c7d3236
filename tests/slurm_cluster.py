"""A real one-node SLURM. Tests of one file share it."""

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
    """Environment variables with which commands find the cluster. Skips where Debian's packages are missing."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if missing:
        pytest.skip(f"no SLURM here ({', '.join(missing)} not found): apt-get install slurm-wlm munge slurmdbd mariadb-server")
    with tempfile.TemporaryDirectory(prefix="fcot-slurm-") as folder:
        try:
            for _ in range(2):  # another process may take one of the ports between the choice and the start
                started = subprocess.run([ROOT / "launch/local_slurm", "up", folder], check=False, capture_output=True, text=True)
                if started.returncode == 0:
                    break
            assert started.returncode == 0, started.stdout + started.stderr
            yield {"SLURM_CONF": f"{folder}/slurm.conf", "OMP_NUM_THREADS": "1"}
        finally:
            subprocess.run([ROOT / "launch/local_slurm", "down", folder], check=False, capture_output=True)


def call(folder: Path, environment: dict[str, str], *command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder and check its exit code."""
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def fcot(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"fcot.{module}", *arguments]


def the_sweep(folder: Path) -> Sweep:
    (plan,) = folder.glob("outputs/sweeps/*/plan.json")
    return read_plan(plan.parent)


def wait(sweep: Sweep, environment: dict[str, str], until, seconds: float = 300) -> dict[int | str, Status]:
    """Wait until ``until(statuses by name)`` is true; returns these statuses. Fails if no status changes for ``seconds``.

    A training on a slow machine does not fail, since its status changes with every step that it reports.
    """
    before = dict(os.environ)
    os.environ |= environment
    try:
        previous, changed = None, time.monotonic()
        while True:
            by_name = {status.name: status for status in statuses(sweep)}
            if until(by_name):
                return by_name
            current = {name: (status.state, status.details, status.error) for name, status in by_name.items()}
            if current != previous:
                previous, changed = current, time.monotonic()
            assert time.monotonic() < changed + seconds, current
            time.sleep(0.5)
    finally:
        os.environ.clear()
        os.environ |= before


def all_ended(by_name: dict[int | str, Status]) -> bool:
    return not any(status.state in ("queued", "starting", "running", "unknown") for status in by_name.values())
