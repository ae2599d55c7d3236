"""The state of each job of a sweep, from the job's files, its lock and, on SLURM, from the queue and accounting.

Nothing depends on the process that launched the sweep: a running job holds a lock, which the kernel releases when the job dies.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from fcot.base.errors import FcotError
from fcot.base.files import holder, read_json
from fcot.sweeps.controller import SlurmAnswer, SlurmState, array_of, cancel, states
from fcot.sweeps.job import Attempt, JobRecord, read_record
from fcot.sweeps.plan import GENERATION, JobName, PlannedJob, Sweep, format_jobs
from fcot.sweeps.pool import log_of

_TAIL_LINES = 3
_TAIL_BYTES = 8192
# The states that `rerun` runs again. A job is "unknown" if SLURM does not answer: it may be running, so it is not run again.
TO_RERUN = ("failed", "cancelled", "interrupted", "missing")
ENDED = ("done", *TO_RERUN)
ACTIVE = ("running", "starting", "queued")


@dataclass(frozen=True)
class Status:
    """The state of a job.

    Attributes:
        name: The job's number, or ``generation``.
        state: ``done``, ``running``, ``starting``, ``queued``, ``failed``, ``cancelled``, ``interrupted``, ``missing`` (never
            started, gone without a trace, or its run was removed), ``same`` (the same run as another job) or ``unknown`` (SLURM does
            not answer).
        details: One line: progress, reason or accuracy.
        error: Of a failed job, a few lines of its error; of an unknown one, why SLURM does not answer and what helps.
        log: The file with the job's whole output, None if there is none.
        preempted: How often the job was stopped and started again.
        slurm: SLURM's id, None for other launchers.
    """

    name: JobName
    state: str
    details: str = ""
    error: list[str] = field(default_factory=list)
    log: Path | None = None
    preempted: int = 0
    slurm: str | None = None


@dataclass(frozen=True)
class _LauncherState:
    """What is known about the jobs in addition to their files.

    Attributes:
        ids: SLURM's id of each job's newest submission.
        states: SLURM's states by id; None if SLURM does not answer.
        answer: SLURM's answer in full; None for other launchers.
        launching: Whether a process holds the launch lock: it will still start the jobs that have not started.
    """

    ids: Mapping[str, str]
    states: Mapping[str, Any] | None
    answer: SlurmAnswer | None
    launching: bool


def statuses(sweep: Sweep, launching: bool | None = None, slurm: SlurmAnswer | None = None) -> list[Status]:
    """The states of all jobs by number, after that of the generation job if there was one.

    Args:
        sweep: The sweep.
        launching: Whether a process holds the sweep's launch lock; None checks. The holder itself must pass it: checking would release
            its lock.
        slurm: A recent answer of :func:`query_slurm`; None queries SLURM.
    """
    launcher_state = _launcher_state(sweep, launching, slurm)
    jobs = [_status(sweep, job, launcher_state) for job in sweep.jobs]
    if GENERATION in launcher_state.ids or sweep.record(GENERATION).exists():
        return [_own_status(sweep, GENERATION, launcher_state), *jobs]
    return jobs


def query_slurm(sweep: Sweep) -> SlurmAnswer | None:
    """SLURM's answer about each job's newest submission; None for other launchers."""
    return states(_newest(sweep).values()) if sweep.launcher["kind"] == "slurm" else None


def _newest(sweep: Sweep) -> dict[str, str]:
    """SLURM's id of each job's newest submission."""
    from fcot.sweeps.slurm import submissions

    newest: dict[str, str] = {}
    for submission in submissions(sweep):
        newest |= submission.jobs | ({GENERATION: submission.generation} if submission.generation else {})
    return newest


def _launcher_state(sweep: Sweep, launching: bool | None, slurm: SlurmAnswer | None) -> _LauncherState:
    launching = holder(sweep.launch_lock) is not None if launching is None else launching
    if sweep.launcher["kind"] != "slurm":
        return _LauncherState({}, None, None, launching)
    ids = _newest(sweep)
    answer = states(ids.values()) if slurm is None else slurm
    by_id = answer.states
    if by_id is not None:
        by_id = {job: SlurmState("PENDING", "submitted since") for job in ids.values() if job not in answer.ids} | dict(by_id)
    return _LauncherState(ids, by_id, answer, launching)


def _status(sweep: Sweep, job: PlannedJob, launcher_state: _LauncherState) -> Status:
    if job.fault is not None:
        return Status(job.number, "failed", "cannot be run", job.fault.splitlines())
    if job.same_as is not None:
        return Status(job.number, "same", f"as job {job.same_as}")  # its run is that job's
    return _own_status(sweep, job.number, launcher_state, job)


def _own_status(sweep: Sweep, name: JobName, launcher_state: _LauncherState, job: PlannedJob | None = None) -> Status:
    """The state of a job with its own run, or of the generation job."""
    record = read_record(sweep.record(name))
    slurm = launcher_state.ids.get(str(name))
    state, why = _state(sweep, name, record, launcher_state, slurm)
    if job is not None and state not in ("running", "done") and sweep.is_complete(job):
        state, why = "done", ""  # another sweep finished this run
    elif job is not None and state == "done" and not sweep.is_complete(job):
        state, why = "missing", f"its run was removed: {job.run_id}"
    log = _log(sweep, name, slurm) if state in ("failed", "interrupted", "running") else None
    is_outdated = slurm is not None and record is not None and record.attempts[-1].slurm != slurm  # of an earlier submission
    error = _error(None if is_outdated else record, log) if state == "failed" else []
    if launcher_state.answer is not None:
        if state == "unknown":
            error = [launcher_state.answer.silence]
        elif state == "missing" and slurm is not None and launcher_state.answer.accounting:
            why += f" ({launcher_state.answer.accounting})"
    progress = _progress(sweep, name) or why
    details = {"running": progress, "unknown": progress, "done": _result(sweep, job)}.get(state, why)
    return Status(name, state, details, error, log, _preempted(record), slurm)


def _state(sweep: Sweep, name: JobName, record: JobRecord | None, launcher_state: _LauncherState, slurm: str | None) -> tuple[str, str]:
    """A job's state and the reason for it."""
    if record and record.status == "running":
        if holder(sweep.lock(name)) is not None:
            return "running", ""
        record = read_record(sweep.record(name))  # the job may have ended since the record was read
    last = record.attempts[-1] if record else None
    if record and last and record.status == "done" and (name != GENERATION or slurm is None or last.slurm == slurm):
        return "done", ""
    if slurm is not None:
        return _state_on_slurm(record, last, slurm, launcher_state.states, _log_of_slurm(sweep, slurm).exists())
    if record is None:
        return ("queued", "") if launcher_state.launching else ("missing", "never started, or its run was removed")
    if record.status == "running":
        return "failed", "it was killed"
    return ("failed", "") if record.status == "failed" else ("interrupted", "")


def _state_on_slurm(
    record: JobRecord | None, last: Attempt | None, slurm: str, states: Mapping[str, SlurmState] | None, logged: bool = False
) -> tuple[str, str]:
    """State of a submitted job that is neither running (its lock is free) nor finished, and the reason.

    This machine may not see the locks of another one, and clocks differ: SLURM decides what the files leave open.

    Args:
        record: The job's record, None if it never started.
        last: The last attempt in the record.
        slurm: SLURM's id of the job's newest submission.
        states: SLURM's states by id, None if SLURM does not answer.
        logged: Whether this submission has a log.
    """
    is_current = last is not None and last.slurm == slurm  # not of an earlier submission
    status = record.status if record is not None and is_current else None
    if states is None:
        return ("failed", "") if status == "failed" else ("unknown", "submitted")
    state = states.get(slurm)
    if state is None:
        siblings = any(array_of(job) == array_of(slurm) for job in states)
        return _state_of_forgotten(status, logged, siblings)
    if state.waits:
        return "queued", state.explanation(slurm)
    if status == "failed":
        return "failed", ""
    if state.state == "COMPLETING" and status is not None:
        return ("queued", "being requeued") if status == "requeued" else ("running", "ending")
    if state.lives:
        return ("running" if status == "running" else "starting"), state.explanation(slurm)
    if state.state == "CANCELLED":
        return "cancelled", "before it started" if status is None else "while it ran"
    if status == "requeued":
        return "failed", f"requeued, and did not start again: {state.state}"
    if status in ("stopped", "interrupted"):
        return "interrupted", "by a signal"
    if status is None:
        return "failed", f"it did not start: {state.state}"
    return "failed", "it was killed" + (f": {state.state}" if state.state not in ("FAILED", "COMPLETED") else "")


def _state_of_forgotten(status: str | None, logged: bool, siblings: bool) -> tuple[str, str]:
    """State of a job that SLURM has forgotten: it has ended, and only its files say how.

    Args:
        status: The job's last status of this submission, None if it never started.
        logged: Whether this submission has a log.
        siblings: Whether SLURM knows other tasks of the job's array. A task that is cancelled before it starts leaves no trace in queue
            and accounting (observed with SLURM 22.05).
    """
    if status == "requeued":
        return "interrupted", "requeued; SLURM has forgotten it"
    if status in ("stopped", "interrupted"):
        return "interrupted", "by a signal"
    if status is not None:
        return "failed", "it was killed" if status == "running" else ""
    if logged:
        return "failed", "it did not start; SLURM has forgotten it"
    if siblings:
        return "cancelled", "before it started"
    return "missing", "SLURM has forgotten it, and it left no files"


def _preempted(record: JobRecord | None) -> int:
    """How often the job was requeued, by itself or by SLURM: the number of attempts followed by another one of the same submission."""
    attempts = record.attempts if record else []
    return sum(first.slurm == second.slurm is not None for first, second in pairwise(attempts)) + (
        record is not None and record.status == "requeued"
    )


def _log(sweep: Sweep, name: JobName, slurm: str | None) -> Path | None:
    if slurm is not None:
        return _log_of_slurm(sweep, slurm)
    return log_of(sweep, name) if log_of(sweep, name).exists() else None


def _log_of_slurm(sweep: Sweep, slurm: str) -> Path:
    from fcot.sweeps.slurm import log_of as slurm_log_of  # imported here: other launchers do not need submitit

    return slurm_log_of(sweep, slurm)


def _error(record: JobRecord | None, log: Path | None) -> list[str]:
    """A few lines about a failure: the first of the error message or, if the job was killed, the last of its log."""
    if record is not None and record.error:
        return [line for line in record.error.splitlines() if line.strip()][:_TAIL_LINES]
    if log is None or not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-_TAIL_LINES:]


def _progress(sweep: Sweep, name: JobName) -> str:
    """The job's progress, such as ``training: 340 of 800 optimizer steps, 12 s left``; empty if it is not known."""
    try:
        state = read_json(sweep.progress(name))
        remaining = "" if state["seconds_left"] is None else f", {_span(state['seconds_left'])} left"
        return f"{state['what']}: {state['done']:,} of {state['total']:,} {state['unit']}{remaining}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def _result(sweep: Sweep, job: PlannedJob | None) -> str:
    if job is None:
        return ""
    if job.until != "evaluate":
        return f"stopped after {job.until}"
    metrics = metrics_of(sweep, job)
    return f"accuracy {100 * metrics['accuracy']:.2f} %" if "accuracy" in metrics else "its metrics.json was removed"


def metrics_of(sweep: Sweep, job: PlannedJob) -> dict[str, Any]:
    """The metrics of a job's run; empty if there are none."""
    try:
        return dict(read_json(sweep.directory(job).metrics))
    except (OSError, ValueError):
        return {}


def counts(jobs: Sequence[Status]) -> str:
    """The number of jobs in each state, such as ``5 done, 2 running, 1 failed``; the generation job does not count."""
    order = ("done", "running", "starting", "queued", "failed", "cancelled", "interrupted", "missing", "unknown", "same")
    n = Counter(job.state for job in jobs if job.name != GENERATION)
    return ", ".join(f"{n[state]} {state}" for state in order if n[state])


# --- rerunning and cancelling ----------------------------------------------------------------------------------------


def jobs_to_rerun(sweep: Sweep) -> list[PlannedJob]:
    """The jobs to run again: failed and missing ones, and those whose configuration has a fault. Called under the launch lock.

    Raises:
        FcotError: Some jobs may be running, and SLURM does not answer.
    """
    job_statuses = [status for status in statuses(sweep, launching=False) if status.name != GENERATION]
    refuse_unknown(job_statuses)
    return [job for job, status in zip(sweep.jobs, job_statuses, strict=True) if status.state in TO_RERUN]


def refuse_unknown(jobs: Sequence[Status]) -> None:
    """Start nothing while it is not known which jobs are running.

    Raises:
        FcotError: The state of some jobs is unknown.
    """
    if unknown := [job for job in jobs if job.state == "unknown"]:
        names = format_jobs(job.name for job in unknown)
        raise FcotError(f"jobs {names} were submitted and may be running; {' '.join(unknown[0].error)}")


def cancel_sweep(sweep: Sweep) -> list[JobName]:
    """Cancel all waiting and running jobs. The jobs of a pool are interrupted: they save and end by themselves.

    Returns:
        The cancelled or interrupted jobs.

    Raises:
        FcotError: The jobs run on another machine, or SLURM did not cancel some of them.
    """
    if sweep.launcher["kind"] == "slurm":
        return _cancel_on_slurm(sweep)
    process = holder(sweep.launch_lock)
    if process is None:
        return []
    if process == 0:
        raise FcotError(f"{sweep.folder} is being run by {describe_holder(process)}: cancel it there")
    running = [job.name for job in statuses(sweep) if job.state in ACTIVE]
    os.kill(process, signal.SIGINT)
    return running


def _cancel_on_slurm(sweep: Sweep) -> list[JobName]:
    from fcot.sweeps.slurm import submissions

    names: dict[str, JobName] = {}
    for submission in submissions(sweep):
        names |= {slurm: int(name) for name, slurm in submission.jobs.items()}
        names |= {submission.generation: GENERATION} if submission.generation else {}
    answer = states(names)
    if answer.states is None:
        raise FcotError(f"nothing was cancelled: {answer.silence}")
    alive = [job for job, state in answer.states.items() if state.waits or state.lives]
    errors = cancel(sorted({array_of(job) for job in alive}, key=int))  # an array has jobs of one sweep only
    remaining = [job for job in alive if array_of(job) in errors]
    if remaining and (now := states(remaining).states) is not None:  # they may have ended by themselves meanwhile
        remaining = [job for job in remaining if job in now and (now[job].waits or (now[job].lives and now[job].state != "COMPLETING"))]
    cancelled = [names[job] for job in names if job in alive and job not in remaining]
    if remaining:
        why = "; ".join(dict.fromkeys(errors[array_of(job)] for job in remaining))
        done = f"\ncancelled: {format_jobs(cancelled)}" if cancelled else ""
        raise FcotError(f"not cancelled: {format_jobs(names[job] for job in remaining)} ({why}); run the command again in a minute{done}")
    return cancelled


def describe_holder(process: int) -> str:
    """The holder of a lock in words.

    Args:
        process: Its id; 0 for a process on another machine.
    """
    return f"process {process} on this machine" if process else "a process on another machine"


# --- watching --------------------------------------------------------------------------------------------------------


def wait_for_end(
    sweep: Sweep, show: Callable[[Sequence[Status]], object], every_s: float, slurm_every_s: float
) -> tuple[list[Status], SlurmAnswer | None]:
    """Show the jobs repeatedly until none of them waits or runs. While SLURM does not answer, jobs count as running.

    Args:
        sweep: The sweep.
        show: Called with the states of all jobs.
        every_s: Seconds between two reads of the files.
        slurm_every_s: Minimum number of seconds between two queries to SLURM.

    Returns:
        The last states, and the answer of SLURM that they are based on.
    """
    queried_at, answer = -math.inf, None
    while True:
        if time.monotonic() - queried_at >= slurm_every_s:
            answer, queried_at = query_slurm(sweep), time.monotonic()
        jobs = statuses(sweep, slurm=answer)
        show(jobs)
        silent = answer is not None and answer.may_answer_later and any(job.state == "unknown" for job in jobs)
        if not silent and not any(job.state in ACTIVE for job in jobs):
            return jobs, answer
        time.sleep(every_s)
