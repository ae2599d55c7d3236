"""The sweeps of an output folder, and which runs they and other runs need."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcot.base.console import say
from fcot.base.errors import FcotError
from fcot.base.files import holder
from fcot.runs.inventory import RunEntry, run_config, usage_of
from fcot.sweeps.plan import Sweep, read_plan


@dataclass(frozen=True)
class SweepEntry:
    """A sweep in the output folder.

    Attributes:
        name: Name of its folder.
        folder: Its folder.
        state: ``finished``, ``running`` (as far as this machine sees its locks) or ``unfinished``.
        n_jobs: Number of jobs, without those that are the same run as another.
        n_done: Number of jobs whose run is complete.
        varies: The options that the sweep varies.
        n_bytes: Size of its own files, without the runs.
        changed: Time of the last change, in seconds since 1970.
    """

    name: str
    folder: Path
    state: str
    n_jobs: int
    n_done: int
    varies: list[str]
    n_bytes: int
    changed: float


def plans_in(outputs: Path) -> Iterator[Sweep]:
    """The sweeps of an output folder; a damaged one is named and left out."""
    for path in sorted((*outputs.glob("sweeps/*/plan.json"), *outputs.glob("*/plan.json"))):
        try:
            yield read_plan(path.parent)
        except FcotError as error:
            say(f"warning: {error}")


def sweep_entry(sweep: Sweep) -> SweepEntry:
    """Read a sweep's files."""
    n_jobs = len(sweep.distinct) + sum(job.fault is not None for job in sweep.jobs)
    n_done = sum(sweep.is_complete(job) for job in sweep.distinct)
    state = "running" if is_running(sweep) else "finished" if n_done == n_jobs else "unfinished"
    keys = dict.fromkeys(word.lstrip("+").partition("=")[0] for job in sweep.jobs for word in sweep.label(job).split() if "=" in word)
    return SweepEntry(sweep.folder.name, sweep.folder, state, n_jobs, n_done, list(keys), *usage_of(sweep.folder))


def is_running(sweep: Sweep) -> bool:
    """Whether a process launches the sweep or runs one of its jobs, as far as this machine sees its locks."""
    locks = (sweep.launch_lock, *(sweep.folder / "running").glob("*.lock"))
    return any(holder(lock) is not None for lock in locks)


def needed_by(runs: Collection[RunEntry], outputs: Path, removed: Collection[Path], weights_only: bool) -> dict[str, list[str]]:
    """Who needs which runs: sweeps by their plans, sweeps and runs by options with a path in the run.

    Args:
        runs: The runs that may be needed.
        outputs: The output folder.
        removed: Folders of runs and sweeps that are removed too, which therefore need nothing.
        weights_only: Whether only the students' weights are removed, which a sweep's plan does not need.

    Returns:
        By name of a run, who needs it, in words; runs that nobody needs are absent.
    """
    needs: dict[str, list[str]] = {}
    names, gone = {run.name for run in runs}, {path.resolve() for path in removed}
    for sweep in plans_in(outputs):
        if sweep.folder.resolve() in gone:
            continue
        for job in sweep.jobs:
            if job.run_id in names and not weights_only:
                needs.setdefault(str(job.run_id), []).append(f"job {job.number} of sweep {sweep.folder.name}")
            for word in job.overrides:
                key, _, value = word.partition("=")
                for name in names & set(Path(value.strip("'\"")).parts):
                    needs.setdefault(name, []).append(f"{key} of job {job.number} of sweep {sweep.folder.name}")
    for config in (outputs / "runs").glob("*/config.yaml"):
        if config.parent.resolve() in gone:
            continue
        text = config.read_text(encoding="utf-8", errors="replace")
        if mentioned := {name for name in names if name in text and name != config.parent.name}:
            for key, value in _texts(run_config(config)):
                for name in mentioned & set(Path(value).parts):
                    needs.setdefault(name, []).append(f"{key} of run {config.parent.name}")
    return needs


def _texts(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The texts of a configuration by dotted key."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _texts(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            yield f"{prefix}{key}", value
