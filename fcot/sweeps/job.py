"""Run one job of a sweep in this process, and record how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from fcot.base.console import published, say
from fcot.base.errors import FcotError
from fcot.base.files import exclusive, read_json, write_json
from fcot.base.ranks import started_first
from fcot.base.stopping import stop_requested
from fcot.llm.budget import SharedBudget
from fcot.sweeps.plan import GENERATION, JobName, PlannedJob, Sweep, composer, display_path, resolve_job

if TYPE_CHECKING:
    from fcot.runs.run import Run


@dataclass
class Attempt:
    """One start of a job.

    Attributes:
        started: Seconds since 1970.
        host: The machine's name.
        process: The process id on that machine.
        slurm: SLURM's id of the job, None without SLURM.
        ended: Seconds since 1970; None while the job runs, and forever if it was killed.
        outcome: done, failed, interrupted, requeued (by itself, after a warning) or stopped (by a signal, without a requeue).
        failed: Of a generation job: error messages by the number of the job whose completions could not all be generated.
    """

    started: float
    host: str
    process: int
    slurm: str | None
    ended: float | None = None
    outcome: str | None = None
    failed: dict[str, str] = field(default_factory=dict)


@dataclass
class JobRecord:
    """The content of ``jobs/<number>.json``, written by the process that runs the job.

    Attributes:
        job: The job's number, or ``generation``.
        overrides: The planned overrides; empty for the generation job.
        run_id: The id of the planned run; None for the generation job, and for a job whose configuration has a fault.
        run: The run's folder, relative to the sweep's; None as for ``run_id``.
        status: ``running``, or the outcome of the last attempt.
        error: The error message; None if the job has not failed.
        traceback: Of an unexpected exception; None for an error with a message for the user.
        attempts: All starts, oldest first.
    """

    job: JobName
    overrides: list[str]
    run_id: str | None
    run: str | None
    status: str = "running"
    error: str | None = None
    traceback: str | None = None
    attempts: list[Attempt] = field(default_factory=list)


def read_record(path: Path) -> JobRecord | None:
    """Read a job's record; None if the job never started or the record is damaged."""
    try:
        row = read_json(path)
        return JobRecord(**row | {"attempts": [Attempt(**attempt) for attempt in row["attempts"]]})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        say(f"warning: {path} is damaged and is left out ({error})")
        return None


def run_job(sweep: Sweep, number: int, after: str | None = None) -> None:
    """Execute a job's run and record the outcome.

    Args:
        sweep: The job's sweep.
        number: The job's number.
        after: SLURM's id of the generation job that this job depends on; None if there is none.

    Raises:
        FcotError: The job cannot be run. It is recorded as failed, and so is a job with any other exception.
        KeyboardInterrupt: Ctrl-C or a signal (see :func:`fcot.base.stopping.stop_requested`). It is recorded too.
    """
    job = sweep.jobs[number]
    if started_first():
        with _recorded(sweep, number, JobRecord(number, job.overrides, job.run_id, job.run)):
            if after is not None:
                _check_generation(sweep, number, after)
            _run(sweep, job)
    else:
        _run(sweep, job)


def run_generation(sweep: Sweep, numbers: Sequence[int]) -> None:
    """Generate the completions of the given jobs, one job after another. If one job fails, the others continue.

    Raises:
        FcotError: The completions of some jobs are incomplete.
    """
    from fcot.runs.pipeline import execute
    from fcot.runs.run import config_yaml

    record = JobRecord(GENERATION, [], None, None)
    with _recorded(sweep, GENERATION, record):
        failed = record.attempts[-1].failed
        for number in numbers:
            job = sweep.jobs[number]
            say(f"generation for job {number}: {sweep.label(job)}")
            try:
                run, composed = _resolved(sweep, job, ["until=generate"])
                execute(run, config_yaml(composed, run, job.overrides, sweep.searchpath))
            except FcotError as error:
                failed[str(number)] = str(error)
                say(f"generation for job {number} failed: {error}")
        if failed:
            raise FcotError("\n".join(dict.fromkeys(failed.values())))


def _check_generation(sweep: Sweep, number: int, slurm: str) -> None:
    """Check that the generation job finished for this job.

    Args:
        sweep: The job's sweep.
        number: The job's number.
        slurm: SLURM's id of the generation job.

    Raises:
        FcotError: The generation job never started, was killed, or could not generate all completions of this job.
    """
    record = read_record(sweep.record(GENERATION))
    attempts = [attempt for attempt in record.attempts if attempt.slurm == slurm] if record else []
    if not attempts:
        raise FcotError(f"the generation job {slurm} never started; to submit it again: `python -m fcot.sweep rerun {sweep.folder}`")
    last = attempts[-1]
    if last.outcome == "done" or (last.outcome == "failed" and last.failed and str(number) not in last.failed):
        return
    why = last.failed.get(str(number)) or f"the generation job {slurm} {last.outcome or 'was killed'}"
    raise FcotError(f"the teacher's completions are incomplete: {why}")


def give_up(sweep: Sweep, name: JobName, why: str) -> None:
    """Record a job as failed that ended without an error and will not be requeued.

    Args:
        sweep: The job's sweep.
        name: The job's number, or ``generation``.
        why: The error message to record.
    """
    path = sweep.record(name)
    with exclusive(sweep.lock(name), say):
        record = read_record(path)
        assert record is not None
        record.status, record.error = "failed", why
        write_json(path, asdict(record))


def slurm_id() -> str | None:
    """SLURM's id of the job that this process belongs to; None outside SLURM."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


@contextlib.contextmanager
def _recorded(sweep: Sweep, name: JobName, record: JobRecord) -> Iterator[None]:
    """Hold the job's lock; record that the job runs and how it ends."""
    path, progress = sweep.record(name), sweep.progress(name)
    with exclusive(sweep.lock(name), say):
        previous = read_record(path)
        record.attempts = previous.attempts if previous else []
        record.attempts.append(Attempt(time.time(), socket.gethostname(), os.getpid(), slurm_id()))
        progress.unlink(missing_ok=True)
        write_json(path, asdict(record))
        try:
            with published(lambda state: write_json(progress, state)):
                yield
            record.status = "done"
        except BaseException as error:
            record.status = _outcome(error)
            if record.status == "failed":
                is_expected = isinstance(error, FcotError)
                record.error = str(error) if is_expected else traceback.format_exception_only(error)[-1].strip()
                record.traceback = None if is_expected else traceback.format_exc()
            raise
        finally:
            record.attempts[-1].ended, record.attempts[-1].outcome = time.time(), record.status
            write_json(path, asdict(record))
            progress.unlink(missing_ok=True)


def _outcome(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return {None: "interrupted", signal.SIGTERM: "stopped"}.get(stop_requested(), "requeued")
    return "failed"


def _run(sweep: Sweep, job: PlannedJob) -> None:
    from fcot.runs.pipeline import execute
    from fcot.runs.run import config_yaml

    if job.fault is not None:
        raise FcotError(job.fault)
    run, composed = _resolved(sweep, job, [])
    say(f"run {run.directory.path}")
    execute(run, config_yaml(composed, run, job.overrides, sweep.searchpath), sweep.folder.name)


def _resolved(sweep: Sweep, job: PlannedJob, added: list[str]) -> tuple[Run, DictConfig]:
    """Resolve the job's run from the present configuration and check that it is the planned one.

    Args:
        sweep: The job's sweep.
        job: The job.
        added: Overrides in addition to the job's own.

    Raises:
        FcotError: The job's overrides now lead to another run than planned.
    """
    with composer(sweep.searchpath) as compose:
        composed = compose([*job.overrides, *added])
    run = resolve_job(composed)
    if run.run_id != job.run_id:
        raise FcotError(
            f"this job was planned at {sweep.created} as {job.run_id}, and is {run.run_id} now: code, configuration or data have changed "
            f"since. To run it as it is now: `python -m fcot.sweep rerun {display_path(sweep.folder)}`; stored completions are reused"
        )
    return replace(run, shared_budget=budget_of(sweep)), composed


def budget_of(sweep: Sweep) -> SharedBudget | None:
    """The budget that the sweep's jobs share; None if ``hydra.launcher.budget_usd`` is not set."""
    usd = sweep.launcher.get("budget_usd")
    command = f"`python -m fcot.sweep rerun {display_path(sweep.folder)} budget_usd=MORE`"  # increases the budget
    return None if usd is None else SharedBudget(sweep.folder / "budget", usd, "hydra.launcher.budget_usd", command)
