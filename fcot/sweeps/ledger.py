"""The ledger: what became of each job, read from the files it left, its lock, and SLURM where there is one to ask.

Nothing depends on the process that launched the sweep: a job that runs holds a lock, which the kernel drops when it dies.
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
# What `rerun` runs again. A job is "unknown" while SLURM, which alone can tell, is silent: it may run, and is not run again.
TO_RERUN = ("failed", "cancelled", "interrupted", "missing")
ENDED = ("done", *TO_RERUN)
ACTIVE = ("running", "starting", "queued")


@dataclass(frozen=True)
class Status:
    """What became of a job.

    Attributes:
        name: Its number, or ``generation``.
        state: ``done``, ``running``, ``starting``, ``queued``, ``failed``, ``cancelled``, ``interrupted``, ``missing`` (never
            submitted, not reached, or gone without a trace), ``same`` (as another job) or ``unknown`` (SLURM would know, and is silent).
        details: One line: progress, reason, accuracy.
        error: A few lines of what a failed one said; why nothing is known of an unknown one, and what helps.
        log: Where all of it is.
        preempted: How often it was stopped and started again.
        slurm: SLURM's id, None without.
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
    """What is known beside the files.

    Attributes:
        ids: SLURM's ids of jobs, of each one's newest submission.
        states: SLURM's states of these by id, None where it is silent.
        answer: SLURM's answer in full; None for other launchers.
        launching: Whether a process holds the sweep: what it has not reached yet it will.
    """

    ids: Mapping[str, str]
    states: Mapping[str, Any] | None
    answer: SlurmAnswer | None
    launching: bool


def statuses(sweep: Sweep, launching: bool | None = None, slurm: SlurmAnswer | None = None) -> list[Status]:
    """All jobs, by number; before them the generation, where there was one.

    Args:
        sweep: The sweep.
        launching: Whether a process holds the sweep's launch lock; None looks. The holder itself must say so: looking would release it.
        slurm: An answer of :func:`query_slurm` that is recent enough; None asks.
    """
    known = _known(sweep, launching, slurm)
    found = [_status(sweep, job, known) for job in sweep.jobs]
    if GENERATION in known.ids or sweep.record(GENERATION).exists():
        return [_own_status(sweep, GENERATION, known), *found]
    return found


def query_slurm(sweep: Sweep) -> SlurmAnswer | None:
    """What SLURM says of the jobs' newest submissions; None for a sweep of another launcher."""
    return states(_newest(sweep).values()) if sweep.launcher["kind"] == "slurm" else None


def _newest(sweep: Sweep) -> dict[str, str]:
    """SLURM's ids of the newest submission of each job."""
    from fcot.sweeps.slurm import submissions

    newest: dict[str, str] = {}
    for submission in submissions(sweep):
        newest |= submission.jobs | ({GENERATION: submission.generation} if submission.generation else {})
    return newest


def _known(sweep: Sweep, launching: bool | None, slurm: SlurmAnswer | None) -> _LauncherState:
    launching = holder(sweep.launch_lock) is not None if launching is None else launching
    if sweep.launcher["kind"] != "slurm":
        return _LauncherState({}, None, None, launching)
    ids = _newest(sweep)
    answer = states(ids.values()) if slurm is None else slurm
    known = answer.states
    if known is not None:
        known = {job: SlurmState("PENDING", "submitted since") for job in ids.values() if job not in answer.ids} | dict(known)
    return _LauncherState(ids, known, answer, launching)


def _status(sweep: Sweep, job: PlannedJob, known: _LauncherState) -> Status:
    if job.fault is not None:
        return Status(job.number, "failed", "cannot be run", job.fault.splitlines())
    if job.same_as is not None:
        return Status(job.number, "same", f"as job {job.same_as}")
    return _own_status(sweep, job.number, known, job)


def _own_status(sweep: Sweep, name: JobName, known: _LauncherState, job: PlannedJob | None = None) -> Status:
    """Of a job that is a run of its own, or of the generation."""
    record = read_record(sweep.record(name))
    slurm = known.ids.get(str(name))
    state, why = _state(sweep, name, record, known, slurm)
    if job is not None and state not in ("running", "done") and sweep.is_complete(job):
        state, why = "done", ""  # another sweep's doing
    log = _log(sweep, name, slurm) if state in ("failed", "interrupted", "running") else None
    earlier = slurm is not None and record is not None and record.attempts[-1].slurm != slurm  # it is of an earlier submission
    error = _error(None if earlier else record, log) if state == "failed" else []
    if known.answer is not None:
        if state == "unknown":
            error = [known.answer.silence]
        elif state == "missing" and slurm is not None and known.answer.accounting:
            why += f" ({known.answer.accounting})"
    told = {"running": _progress(sweep, name) or why, "unknown": _progress(sweep, name) or why, "done": _result(sweep, job)}.get(state, why)
    return Status(name, state, told, error, log, _preempted(record), slurm)


def _state(sweep: Sweep, name: JobName, record: JobRecord | None, known: _LauncherState, slurm: str | None) -> tuple[str, str]:
    """A job's state and the reason."""
    if record and record.status == "running":
        if holder(sweep.lock(name)) is not None:
            return "running", ""
        record = read_record(sweep.record(name))  # it may have ended between the two looks
    last = record.attempts[-1] if record else None
    if record and last and record.status == "done" and (name != GENERATION or slurm is None or last.slurm == slurm):
        return "done", ""
    if slurm is not None:
        return _state_on_slurm(record, last, slurm, known.states, _log_of_slurm(sweep, slurm).exists())
    if record is None:
        return ("queued", "") if known.launching else ("missing", "never started")
    if record.status == "running":
        return "failed", "it was killed"
    return ("failed", "") if record.status == "failed" else ("interrupted", "")


def _state_on_slurm(
    record: JobRecord | None, last: Attempt | None, slurm: str, states: Mapping[str, SlurmState] | None, logged: bool = False
) -> tuple[str, str]:
    """State and reason of a job that was submitted, and that its own files show neither done nor, by its lock, running.

    A lock may be invisible on this machine, and clocks of machines differ: what the files leave open SLURM's state decides.

    Args:
        record: What the job left.
        last: Its last attempt.
        slurm: SLURM's id of its newest submission.
        states: SLURM's states by id, None where it is silent.
        logged: Whether this submission has a log.
    """
    status = record.status if record is not None and last is not None and last.slurm == slurm else None  # not an earlier submission's
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
    """The same for a job that SLURM does not know: it is over, and how it ended only its files tell.

    Args:
        status: The job's last status of this submission, None where it never started.
        logged: Whether this submission has a log.
        siblings: Whether SLURM knows other tasks of its array. A task that is cancelled before it starts leaves the array without a
            trace in queue and accounting (seen with SLURM 22.05).
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
    return "missing", "not known: SLURM has forgotten it and it left nothing"


def _preempted(record: JobRecord | None) -> int:
    """Attempts that another one of the same submission followed: requeued by the job itself, or by SLURM."""
    attempts = record.attempts if record else []
    return sum(one.slurm == then.slurm is not None for one, then in pairwise(attempts)) + (
        record is not None and record.status == "requeued"
    )


def _log(sweep: Sweep, name: JobName, slurm: str | None) -> Path | None:
    if slurm is not None:
        return _log_of_slurm(sweep, slurm)
    return log_of(sweep, name) if log_of(sweep, name).exists() else None


def _log_of_slurm(sweep: Sweep, slurm: str) -> Path:
    from fcot.sweeps.slurm import log_of as slurm_log_of  # here: of other launchers nobody needs submitit

    return slurm_log_of(sweep, slurm)


def _error(record: JobRecord | None, log: Path | None) -> list[str]:
    """What a failed job said, as far as a few lines go: its message's beginning, or where it was killed the end of its log."""
    if record is not None and record.error:
        return [line for line in record.error.splitlines() if line.strip()][:_TAIL_LINES]
    if log is None or not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-_TAIL_LINES:]


def _progress(sweep: Sweep, name: JobName) -> str:
    """Such as ``training: 340 of 800 optimizer steps, 12 s left``."""
    try:
        state = read_json(sweep.progress(name))
        left = "" if state["seconds_left"] is None else f", {_span(state['seconds_left'])} left"
        return f"{state['what']}: {state['done']:,} of {state['total']:,} {state['unit']}{left}"
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
        return f"as far as {job.until}"
    metrics = metrics_of(sweep, job)
    return f"accuracy {100 * metrics['accuracy']:.2f} %" if "accuracy" in metrics else "its run is not there any more"


def metrics_of(sweep: Sweep, job: PlannedJob) -> dict[str, Any]:
    """A run's metrics; empty where it has none."""
    try:
        return dict(read_json(sweep.directory(job).metrics))
    except (OSError, ValueError):
        return {}


def counts(found: Sequence[Status]) -> str:
    """Such as ``5 done, 2 running, 1 failed``; of jobs, without the generation."""
    order = ("done", "running", "starting", "queued", "failed", "cancelled", "interrupted", "missing", "unknown", "same")
    n = Counter(one.state for one in found if one.name != GENERATION)
    return ", ".join(f"{n[state]} {state}" for state in order if n[state])


# --- what can be done about it ---------------------------------------------------------------------------------------


def jobs_to_rerun(sweep: Sweep) -> list[PlannedJob]:
    """The jobs to be run again: failed and missing ones, and where a configuration has a fault, those too; under the launch lock.

    Raises:
        FcotError: SLURM, which would know of some jobs, is silent.
    """
    found = [one for one in statuses(sweep, launching=False) if one.name != GENERATION]
    refuse_unknown(found)
    return [job for job, one in zip(sweep.jobs, found, strict=True) if one.state in TO_RERUN]


def refuse_unknown(jobs: Sequence[Status]) -> None:
    """Start nothing while it is not known what runs already.

    Raises:
        FcotError: Of some jobs nothing is known.
    """
    if unknown := [job for job in jobs if job.state == "unknown"]:
        names = format_jobs(job.name for job in unknown)
        raise FcotError(f"jobs {names} were submitted and may be running; {' '.join(unknown[0].error)}")


def cancel_sweep(sweep: Sweep) -> list[JobName]:
    """Cancel whatever waits or runs; the jobs that were cancelled, or of a pool told to stop.

    Raises:
        FcotError: They run where this machine cannot reach them, or SLURM did not cancel some.
    """
    if sweep.launcher["kind"] == "slurm":
        return _cancel_on_slurm(sweep)
    process = holder(sweep.launch_lock)
    if process is None:
        return []
    if process == 0:
        raise FcotError(f"{sweep.folder} is being run by {describe_holder(process)}: cancel it there")
    running = [one.name for one in statuses(sweep) if one.state in ACTIVE]
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
        raise FcotError(f"nothing is cancelled: {answer.silence}")
    alive = [job for job, state in answer.states.items() if state.waits or state.lives]
    refused = cancel(sorted({array_of(job) for job in alive}, key=int))  # every job of an array is this sweep's
    kept = [job for job in alive if array_of(job) in refused]
    if kept and (now := states(kept).states) is not None:  # they may have ended by themselves meanwhile
        kept = [job for job in kept if job in now and (now[job].waits or (now[job].lives and now[job].state != "COMPLETING"))]
    cancelled = [names[job] for job in names if job in alive and job not in kept]
    if kept:
        why = "; ".join(dict.fromkeys(refused[array_of(job)] for job in kept))
        done = f"\ncancelled: {format_jobs(cancelled)}" if cancelled else ""
        raise FcotError(f"not cancelled: {format_jobs(names[job] for job in kept)} ({why}); give the command again in a minute{done}")
    return cancelled


def describe_holder(process: int) -> str:
    """Whoever holds a lock, in words."""
    return f"process {process} on this machine" if process else "a process on another machine"


# --- showing ---------------------------------------------------------------------------------------------------------


def wait_for_end(
    sweep: Sweep, show: Callable[[Sequence[Status]], object], every_s: float, slurm_every_s: float
) -> tuple[list[Status], SlurmAnswer | None]:
    """Show the jobs again and again until none of them waits or runs. While SLURM does not answer, they may.

    Args:
        sweep: The sweep.
        show: Called with all jobs' states.
        every_s: Seconds between two looks at the files.
        slurm_every_s: Seconds between two questions to SLURM, at least.

    Returns:
        The last states, and SLURM's answer they come from.
    """
    asked_at, answer = -math.inf, None
    while True:
        if time.monotonic() - asked_at >= slurm_every_s:
            answer, asked_at = query_slurm(sweep), time.monotonic()
        jobs = statuses(sweep, slurm=answer)
        show(jobs)
        silent = answer is not None and answer.may_answer_later and any(job.state == "unknown" for job in jobs)
        if not silent and not any(job.state in ACTIVE for job in jobs):
            return jobs, answer
        time.sleep(every_s)
