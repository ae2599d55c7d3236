"""A sweep's plan: every job with its overrides and its run, made before the first one starts, kept as ``plan.json``."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from fcot.base.errors import ConfigFaults, FcotError
from fcot.base.files import read_json, write_json
from fcot.base.resources import CONF
from fcot.base.run_folder import RunDirectory
from fcot.base.stopping import stop_if_requested
from fcot.config.schema import register_schemas

if TYPE_CHECKING:
    from fcot.runs.run import Run

GENERATION = "generation"  # the job that buys what several jobs share, in the place of a number
JobName = int | str


@dataclass(frozen=True)
class PlannedJob:
    """One job of a sweep.

    Attributes:
        number: From 0, in the order of the sweep.
        overrides: As on the command line, this job's values in the place of lists.
        run_id: None where its configuration has a fault.
        run: The run's folder, relative to the sweep's: both move together.
        until: The stage it goes to.
        same_as: An earlier job that is the same run.
        fault: Why it cannot be run.
    """

    number: int
    overrides: list[str]
    run_id: str | None
    run: str | None
    until: str
    same_as: int | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder and what was planned in it.

    Attributes:
        folder: ``outputs/sweeps/<id>``.
        created: When.
        cwd: Where the command was given: relative paths of its overrides start there.
        searchpath: Folders of configuration that the command added (``--config-dir``).
        launcher: The launcher's parameters, ``kind`` among them: serial, local or slurm.
        jobs: By number.
    """

    folder: Path
    created: str
    cwd: str
    searchpath: list[str]
    launcher: dict[str, Any]
    jobs: list[PlannedJob]

    def directory(self, job: PlannedJob) -> RunDirectory:
        """The run's files; only for jobs without a fault."""
        assert job.run is not None
        return RunDirectory(Path(os.path.normpath(self.folder / job.run)))

    def record(self, name: JobName) -> Path:
        """What a job has left: ``jobs/<number>.json``."""
        return self.folder / "jobs" / f"{name}.json"

    def progress(self, name: JobName) -> Path:
        """How far a job is, written every two seconds."""
        return self.folder / "running" / f"{name}.json"

    def lock(self, name: JobName) -> Path:
        """Held by the process that does a job, and by nobody else."""
        return self.folder / "running" / f"{name}.lock"

    @property
    def launch_lock(self) -> Path:
        """Held by whoever launches jobs of this sweep, or runs them in its own process."""
        return self.folder / "launch.lock"

    @cached_property
    def distinct(self) -> list[PlannedJob]:
        """The jobs that are runs of their own and have no fault."""
        return [job for job in self.jobs if job.run_id is not None and job.same_as is None]

    @cached_property
    def _common(self) -> set[str]:
        return set.intersection(*(set(job.overrides) for job in self.jobs))

    def label(self, job: PlannedJob) -> str:
        """A job in a few words: the overrides in which it differs from others."""
        return " ".join(override for override in job.overrides if override not in self._common) or "the only job"

    def is_complete(self, job: PlannedJob) -> bool:
        """Whether there is nothing left to do for a job's run, whoever did it."""
        return job.run is not None and job.until == "evaluate" and self.directory(job).done.exists()


def display_path(path: Path) -> Path:
    """A path as a person would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def format_jobs(names: Iterable[JobName]) -> str:
    """Jobs in few words: ``generation, 0, 4-999``."""
    numbers = sorted(name for name in names if isinstance(name, int))
    words = [name for name in names if isinstance(name, str)]
    # Of consecutive numbers, the number less its position is the same.
    for _, group in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        consecutive = [number for _, number in group]
        words += [f"{consecutive[0]}-{consecutive[-1]}"] if len(consecutive) > 3 else map(str, consecutive)
    return ", ".join(words)


def plan_path(folder: Path) -> Path:
    """Where a sweep's plan is."""
    return folder / "plan.json"


def write_plan(sweep: Sweep) -> None:
    """Write it, unless the folder holds the same one.

    Raises:
        FcotError: It holds another sweep.
    """
    path = plan_path(sweep.folder)
    if path.exists():
        before = read_plan(sweep.folder)
        if [job.overrides for job in before.jobs] != [job.overrides for job in sweep.jobs]:
            raise FcotError(f"{sweep.folder} holds another sweep, of {before.created}: hydra.sweep.dir=ANOTHER, or start again in a second")
    write_json(path, {name: value for name, value in asdict(sweep).items() if name != "folder"})


def read_plan(folder: Path) -> Sweep:
    """The plan of a sweep's folder.

    Raises:
        FcotError: There is none, or it is damaged.
    """
    path = plan_path(folder)
    try:
        plan = read_json(path)
        plan["launcher"] = {"budget_usd": None} | plan["launcher"]  # older versions had none
        swept = plan.pop("swept_diversity", False)
        for job in plan["jobs"]:
            job["overrides"] = _without_mark(job["overrides"], swept)
        return Sweep(folder.absolute(), **plan | {"jobs": [PlannedJob(**job) for job in plan["jobs"]]})
    except FileNotFoundError as error:
        what = "no such folder" if not folder.exists() else "not a sweep's folder: it has no plan.json"
        raise FcotError(f"{folder}: {what}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FcotError(f"{path} is damaged ({error}); the sweep's own command with hydra.sweep.dir={folder} makes it again") from error


def _without_mark(overrides: Sequence[str], swept: bool) -> list[str]:
    """Overrides of an older version, which sampled the teacher at D = 1 where a sweep varied D, as today's."""
    marks = [override.partition("=")[2].lower() == "true" for override in overrides if override.startswith("diversity_is_swept=")]
    kept = [override for override in overrides if not override.startswith("diversity_is_swept=")]
    sampled = any(marks) if marks else swept
    return [*kept, "teacher.temperature=0.7"] if sampled and not any(word.startswith("teacher.temperature=") for word in kept) else kept


@contextlib.contextmanager
def composer(searchpath: Sequence[str]) -> Iterator[Callable[..., DictConfig]]:
    """Within, a function that composes the configuration of a job's overrides; further arguments are Hydra's ``compose``'s."""
    register_schemas()
    added = [f"hydra.searchpath=[{','.join(searchpath)}]"] if searchpath else []
    hydra = GlobalHydra.instance()
    outer, hydra.hydra = hydra.hydra, None  # of the command that launches the sweep
    try:
        with initialize_config_dir(str(CONF), version_base="1.3", job_name="fcot"):
            yield lambda overrides, **options: compose("config", [*overrides, *added], **options)
    finally:
        hydra.hydra = outer


def added_searchpath(runtime: Any) -> list[str]:
    """Folders of further configuration that the command of Hydra's ``runtime`` named, as URLs."""
    return [f"file://{source.path}" for source in runtime.config_sources if source.provider.startswith(("command", "hydra.searchpath"))]


def make_plan(
    folder: Path, job_overrides: Sequence[Sequence[str]], searchpath: Sequence[str], launcher: dict[str, Any]
) -> tuple[Sweep, dict[int, Run]]:
    """Compose and resolve every job.

    Returns:
        The sweep, not yet written, and the resolved runs of its distinct jobs by number.

    Raises:
        FcotError: A value is not set that no job sets.
    """
    jobs: list[PlannedJob] = []
    runs: dict[int, Run] = {}
    first: dict[str, int] = {}
    with composer(searchpath) as composed:
        for number, overrides in enumerate(job_overrides):
            stop_if_requested()
            job = PlannedJob(number, list(overrides), None, None, "evaluate")
            try:
                run = resolve_job(composed(overrides))
                _check_ranks(run, launcher)
            except FcotError as error:
                if isinstance(error, ConfigFaults) and (common := _common(error.faults, job.overrides)):
                    raise FcotError(f"{common}\nthis holds for every job of the sweep") from error
                jobs.append(replace(job, fault=str(error)))
                continue
            path = os.path.relpath(run.directory.path, folder)
            job = replace(job, run_id=run.run_id, run=path, until=run.config.until, same_as=first.get(run.run_id))
            if job.same_as is None:
                first[run.run_id], runs[number] = number, run
            jobs.append(job)
    created = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return Sweep(folder.absolute(), created, os.getcwd(), list(searchpath), launcher, jobs), runs


def _common(faults: Sequence[str], overrides: Sequence[str]) -> str | None:
    """A missing value that no axis of the sweep has to do with: no job can have it. What a prompt lacks is the method's affair."""
    swept = {override.partition("=")[0].partition(".")[0].replace("-", "_") for override in overrides}
    unset = [fault for fault in faults if " is not set: " in fault and fault.partition(".")[0] not in swept | {"prompt"}]
    return "\n".join(unset) or None


def resolve_job(composed: DictConfig) -> Run:
    """The run of a composed configuration."""
    from fcot.config.checks import to_config
    from fcot.runs.run import resolve

    return resolve(to_config(composed))


def _check_ranks(run: Run, launcher: dict[str, Any]) -> None:
    """A job whose processes or GPUs are not what the launcher gives it would fail when its turn has come."""
    trainer = run.config.trainer
    ranks, gpus = trainer.devices * trainer.nodes, launcher.get("gpus_per_node")
    if launcher["kind"] == "slurm":
        tasks = (launcher.get("nodes") or 1) * (launcher.get("tasks_per_node") or 1)
        if ranks != tasks and (tasks > 1 or trainer.nodes > 1):
            asked = f"trainer.devices={trainer.devices} times trainer.nodes={trainer.nodes} is {ranks} processes"
            raise FcotError(f"{asked}, and a job of this launcher has {tasks} tasks: hydra/launcher=slurm_ddp makes one for each")
        if gpus is not None and trainer.devices > gpus:
            raise FcotError(f"trainer.devices={trainer.devices}: a job of this launcher has {gpus} GPUs: hydra.launcher.gpus_per_node=...")
    if launcher["kind"] == "local" and launcher["gpus_per_job"] and trainer.devices > launcher["gpus_per_job"] and _gpus():
        raise FcotError(f"trainer.devices={trainer.devices}: a job has {launcher['gpus_per_job']} GPUs: hydra.launcher.gpus_per_job=...")


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
