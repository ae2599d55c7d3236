"""The plan of a sweep: every job with its overrides and its run. It is made before the first job starts and kept as ``plan.json``."""

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

GENERATION = "generation"  # name of the job that buys the completions of several jobs; the others are named by number
JobName = int | str


@dataclass(frozen=True)
class PlannedJob:
    """One job of a sweep.

    Attributes:
        number: From 0, in the order of the sweep.
        overrides: As on the command line, with this job's values instead of lists.
        run_id: None if the configuration has a fault.
        run: The run's folder, relative to the sweep's, so that both can be moved together; None if the configuration has a fault.
        until: The last stage to run.
        same_as: The number of an earlier job with the same run; None if there is none.
        fault: Why the job cannot be run; None if it can.
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
    """A sweep's folder and plan.

    Attributes:
        folder: ``outputs/sweeps/<id>``.
        created: Date and time of the plan, in ISO 8601.
        cwd: The folder in which the command was run: relative paths in overrides start there.
        searchpath: Configuration folders that the command added (``--config-dir``).
        launcher: The launcher's parameters, among them ``kind``: serial, local or slurm.
        jobs: All jobs, by number.
    """

    folder: Path
    created: str
    cwd: str
    searchpath: list[str]
    launcher: dict[str, Any]
    jobs: list[PlannedJob]

    def directory(self, job: PlannedJob) -> RunDirectory:
        """The files of the job's run. The job must not have a fault."""
        assert job.run is not None
        return RunDirectory(Path(os.path.normpath(self.folder / job.run)))

    def record(self, name: JobName) -> Path:
        """The job's record: ``jobs/<number>.json``."""
        return self.folder / "jobs" / f"{name}.json"

    def progress(self, name: JobName) -> Path:
        """The job's progress file, written every two seconds."""
        return self.folder / "running" / f"{name}.json"

    def lock(self, name: JobName) -> Path:
        """The lock of the process that runs the job."""
        return self.folder / "running" / f"{name}.lock"

    @property
    def launch_lock(self) -> Path:
        """The lock of the process that launches this sweep's jobs or runs them itself."""
        return self.folder / "launch.lock"

    @cached_property
    def distinct(self) -> list[PlannedJob]:
        """The jobs without a fault whose run is not that of an earlier job."""
        return [job for job in self.jobs if job.run_id is not None and job.same_as is None]

    @cached_property
    def _common(self) -> set[str]:
        return set.intersection(*(set(job.overrides) for job in self.jobs))

    def label(self, job: PlannedJob) -> str:
        """A short name for a job: the overrides that not all jobs have."""
        return " ".join(override for override in job.overrides if override not in self._common) or "the only job"

    def is_complete(self, job: PlannedJob) -> bool:
        """Whether the job's run is complete as far as the job goes, even if another sweep ran it."""
        if job.run is None:
            return False
        directory = self.directory(job)
        return directory.done.exists() or (job.until != "evaluate" and directory.reached(job.until))


def display_path(path: Path) -> Path:
    """A path relative to the working directory, if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def format_jobs(names: Iterable[JobName]) -> str:
    """A compact list of jobs: ``generation, 0, 4-999``."""
    numbers = sorted(name for name in names if isinstance(name, int))
    words = [name for name in names if isinstance(name, str)]
    # In a range of consecutive numbers, number minus position is constant.
    for _, group in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        consecutive = [number for _, number in group]
        words += [f"{consecutive[0]}-{consecutive[-1]}"] if len(consecutive) > 3 else map(str, consecutive)
    return ", ".join(words)


def plan_path(folder: Path) -> Path:
    """The plan's path in a sweep's folder."""
    return folder / "plan.json"


def write_plan(sweep: Sweep) -> None:
    """Write the plan into the sweep's folder, where it may replace an earlier one of the same jobs.

    Raises:
        FcotError: The folder holds a sweep of other jobs.
    """
    path = plan_path(sweep.folder)
    if path.exists():
        earlier = read_plan(sweep.folder)
        if [job.overrides for job in earlier.jobs] != [job.overrides for job in sweep.jobs]:
            raise FcotError(
                f"{sweep.folder} holds another sweep, planned at {earlier.created}: set hydra.sweep.dir=FOLDER, "
                "or run the command again in a second"
            )
    write_json(path, {name: value for name, value in asdict(sweep).items() if name != "folder"})


def read_plan(folder: Path) -> Sweep:
    """Read the plan in a sweep's folder.

    Raises:
        FcotError: There is no plan, or it is damaged.
    """
    path = plan_path(folder)
    try:
        plan = read_json(path)
        plan["launcher"] = {"budget_usd": None} | plan["launcher"]  # older versions had no budget
        swept = plan.pop("swept_diversity", False)
        for job in plan["jobs"]:
            job["overrides"] = _upgraded_overrides(job["overrides"], swept)
        return Sweep(folder.absolute(), **plan | {"jobs": [PlannedJob(**job) for job in plan["jobs"]]})
    except FileNotFoundError as error:
        what = "no such folder" if not folder.exists() else "not a sweep's folder: it has no plan.json"
        raise FcotError(f"{folder}: {what}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FcotError(f"{path} is damaged ({error}); to make it again, run the sweep's command with hydra.sweep.dir={folder}") from error


def _upgraded_overrides(overrides: Sequence[str], swept: bool) -> list[str]:
    """Convert the overrides of an older version, which sampled the teacher even at D = 1 if the sweep varied D.

    Args:
        overrides: They may hold the older version's mark, ``diversity_is_swept``.
        swept: Whether the sweep varied D, for jobs without the mark.
    """
    marks = [override.partition("=")[2].lower() == "true" for override in overrides if override.startswith("diversity_is_swept=")]
    kept = [override for override in overrides if not override.startswith("diversity_is_swept=")]
    sampled = any(marks) if marks else swept
    return [*kept, "teacher.temperature=0.7"] if sampled and not any(word.startswith("teacher.temperature=") for word in kept) else kept


@contextlib.contextmanager
def composer(searchpath: Sequence[str]) -> Iterator[Callable[..., DictConfig]]:
    """Yield a function that composes a configuration from overrides; it passes further arguments to Hydra's ``compose``."""
    register_schemas()
    added = [f"hydra.searchpath=[{','.join(searchpath)}]"] if searchpath else []
    hydra = GlobalHydra.instance()
    outer, hydra.hydra = hydra.hydra, None  # the Hydra instance of the command that launches the sweep
    try:
        with initialize_config_dir(str(CONF), version_base="1.3", job_name="fcot"):
            yield lambda overrides, **options: compose("config", [*overrides, *added], **options)
    finally:
        hydra.hydra = outer


def split_searchpath(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The configuration folders that overrides add (``hydra.searchpath=[...]``), and the other overrides."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    paths = [override for override in overrides if override.startswith("hydra.searchpath=")]
    values = [OverridesParser.create().parse_override(override).value() for override in paths]
    return [str(path) for value in values if isinstance(value, list) for path in value], [
        override for override in overrides if override not in paths
    ]


def expand(overrides: Sequence[str], compose: Callable[..., DictConfig]) -> tuple[DictConfig, list[list[str]]]:
    """The jobs of a sweep, as Hydra's command line makes them from the overrides and the experiment's own axes.

    Args:
        overrides: As on the command line, some with several values.
        compose: The function of :func:`composer`.

    Returns:
        The configuration without the command's axes, ``hydra`` included, and the overrides of each job.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    parsed = parser.parse_overrides(list(overrides))
    plain = [text for text, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]
    config = compose(plain, return_hydra_config=True)
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    of_jobs = [override for override in overrides if not override.lstrip("+~").startswith(("hydra.", "hydra/"))]
    batches = BasicSweeper.split_arguments(parser.parse_overrides([*params, *of_jobs]), None)
    return config, [list(job) for batch in batches for job in batch]


def added_searchpath(runtime: Any) -> list[str]:
    """The configuration folders that the command added, as URLs.

    Args:
        runtime: ``hydra.runtime`` of the composed configuration.
    """
    return [f"file://{source.path}" for source in runtime.config_sources if source.provider.startswith(("command", "hydra.searchpath"))]


def make_plan(
    folder: Path, job_overrides: Sequence[Sequence[str]], searchpath: Sequence[str], launcher: dict[str, Any]
) -> tuple[Sweep, dict[int, Run]]:
    """Compose and resolve every job.

    Returns:
        The sweep, whose plan is not written yet, and the resolved runs of its distinct jobs by number.

    Raises:
        FcotError: A required value is missing in every job.
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
    """The faults that every job of the sweep has: a required value is missing, and no override concerns its part of the configuration.

    A missing prompt is left to its job: whether it is required depends on the method.
    """
    swept = {override.partition("=")[0].partition(".")[0].replace("-", "_") for override in overrides}
    unset = [fault for fault in faults if " is not set: " in fault and fault.partition(".")[0] not in swept | {"prompt"}]
    return "\n".join(unset) or None


def resolve_job(composed: DictConfig) -> Run:
    """Resolve the run of a composed configuration."""
    from fcot.config.checks import to_config
    from fcot.runs.run import resolve

    return resolve(to_config(composed))


def _check_ranks(run: Run, launcher: dict[str, Any]) -> None:
    """Check before the start that the launcher gives a job the processes and GPUs that it needs.

    Raises:
        FcotError: The job needs another number of processes, or more GPUs.
    """
    trainer = run.config.trainer
    ranks, gpus = trainer.devices * trainer.nodes, launcher.get("gpus_per_node")
    if launcher["kind"] == "slurm":
        tasks = (launcher.get("nodes") or 1) * (launcher.get("tasks_per_node") or 1)
        if ranks != tasks and (tasks > 1 or trainer.nodes > 1):
            processes = f"trainer.devices={trainer.devices} times trainer.nodes={trainer.nodes} is {ranks} processes"
            raise FcotError(f"{processes}, and a job of this launcher has {tasks} tasks: use hydra/launcher=slurm_ddp")
        if gpus is not None and trainer.devices > gpus:
            raise FcotError(
                f"trainer.devices={trainer.devices}, and a job of this launcher has {gpus} GPUs per node: set hydra.launcher.gpus_per_node"
            )
    if launcher["kind"] == "local" and launcher["gpus_per_job"] and trainer.devices > launcher["gpus_per_job"] and _gpus():
        raise FcotError(
            f"trainer.devices={trainer.devices}, and a job has {launcher['gpus_per_job']} GPUs: set hydra.launcher.gpus_per_job"
        )


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
