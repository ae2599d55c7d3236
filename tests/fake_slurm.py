"""A SLURM made of small programs that come first in PATH: squeue, sacct, sbatch, scancel, scontrol, srun. It runs no job."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fcot.base.files import write_json
from fcot.sweeps.job import Attempt, JobRecord
from fcot.sweeps.plan import PlannedJob, Sweep, write_plan

_SCRIPT = Path(__file__).with_name("fake_slurm_programs.py")
PROGRAMS = ("squeue", "sacct", "sbatch", "scancel", "scontrol", "srun")
UNREACHABLE = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
LAUNCHER = {
    "kind": "slurm", "name": "fcot", "array_parallelism": 16, "timeout_min": 60, "cpus_per_task": 1, "gpus_per_node": 1,
    "partition": "gpu", "generation": {"partition": None},
}  # fmt: skip


class FakeSlurm:
    """The cluster's state, which a test may change at any time.

    ``queue`` and ``accounting``: SLURM's state words by job id (``accounting`` None: disabled). ``fail``: error messages by program;
    such a program exits with 1. ``hang``: programs that do not answer. ``submit_limit``: the most jobs that may be queued or running.
    ``max_array_size``: the limit that scontrol states. ``longest_array``: the limit that sbatch applies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "bin"
        self.programs.mkdir(parents=True)
        for name in PROGRAMS:
            program = self.programs / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{_SCRIPT}" "{folder}" {name} "$@"\n')
            program.chmod(0o755)
        self._write({
            "queue": {}, "accounting": None, "fail": {}, "hang": [], "submit_limit": None, "max_array_size": 1001,
            "longest_array": 1001, "next": 7,
        })  # fmt: skip

    def _write(self, state: dict[str, Any]) -> None:
        (self.folder / "state.json").write_text(json.dumps(state))

    @property
    def state(self) -> dict[str, Any]:
        return json.loads((self.folder / "state.json").read_text())

    def set(self, **changed: Any) -> None:
        assert set(changed) <= set(self.state)
        self._write(self.state | changed)

    def calls(self, program: str) -> list[list[str]]:
        """The arguments of every call of a program, the oldest first."""
        path = self.folder / "calls.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [row[1:] for row in rows if row[0] == program]

    def script(self, job: str) -> str:
        """The batch script of a submitted job."""
        return (self.folder / f"{job}.sh").read_text()

    def environment(self, job: str) -> dict[str, str]:
        """The environment in which a job was submitted."""
        return json.loads((self.folder / f"{job}.env").read_text())


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    cluster = FakeSlurm(tmp_path / "fake_slurm")
    monkeypatch.setenv("PATH", f"{cluster.programs}:{os.environ['PATH']}")
    return cluster


def a_sweep(folder: Path, n_jobs: int = 1, submitted: dict[str, str] | None = None, **launcher: Any) -> Sweep:
    """Write the plan of a sweep and, if ``submitted`` has SLURM ids by job, one submission."""
    jobs = [PlannedJob(number, [f"seed={number}"], f"run{number}", f"../run{number}", "evaluate") for number in range(n_jobs)]
    sweep = Sweep(folder / "sweep", "2026-01-31", str(folder), [], LAUNCHER | launcher, jobs)
    sweep.folder.mkdir(parents=True)
    write_plan(sweep)
    if submitted is not None:
        row = {"time": 1.0, "host": "login", "generation": None, "jobs": submitted}
        (sweep.folder / "submissions.jsonl").write_text(json.dumps(row) + "\n")
    return sweep


def write_record(sweep: Sweep, number: int, status: str, slurm: str | None, host: str = "node") -> None:
    """Write the record that the process of a job leaves and, if the job is done, the file that ends its run."""
    attempt = Attempt(1.0, host, 1, slurm, None if status == "running" else 2.0, None if status == "running" else status)
    record = JobRecord(number, [], f"run{number}", f"../run{number}", status, "it broke" if status == "failed" else None, None, [attempt])
    write_json(sweep.record(number), asdict(record))
    if status == "done":
        run = sweep.directory(sweep.jobs[number])
        run.path.mkdir(parents=True, exist_ok=True)
        write_json(run.done, {"run_id": f"run{number}"})
