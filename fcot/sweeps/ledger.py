"""The ledger: what became of each job, read from the files it left, its lock, and SLURM where there is one to ask.

Nothing depends on the process that launched the sweep: a job that runs holds a lock, which the kernel drops when it dies.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from fcot.artifacts import holder, read_json, replacing
from fcot.errors import FcotError
from fcot.sweeps.job import Attempt, Record, read_record
from fcot.sweeps.plan import GENERATION, JobName, Planned, Sweep
from fcot.sweeps.pool import log_of

_REQUEUE_S = 60  # until a job that had itself requeued is pending again
_TAIL_LINES = 3
_TAIL_BYTES = 8192
# What `rerun` runs again; of a job that SLURM alone could tell about, and cannot be asked, nothing is known.
AGAIN = ("failed", "cancelled", "interrupted", "missing")
OVER = ("done", *AGAIN)
LIVE = ("running", "starting", "queued")


@dataclass(frozen=True)
class Status:
    """What became of a job.

    Attributes:
        name: Its number, or ``generation``.
        state: ``done``, ``running``, ``starting``, ``queued``, ``failed``, ``cancelled``, ``interrupted``, ``missing`` (never
            submitted, or not reached), ``same`` (as another job) or ``unknown`` (SLURM would know, and is not here).
        told: One line: progress, reason, accuracy.
        error: A few lines of what a failed one said.
        log: Where all of it is.
        preempted: How often it was stopped and started again.
        slurm: SLURM's id, None without.
    """

    name: JobName
    state: str
    told: str = ""
    error: list[str] = field(default_factory=list)
    log: Path | None = None
    preempted: int = 0
    slurm: str | None = None


@dataclass(frozen=True)
class _Known:
    """What is known beside the files: SLURM's ids of jobs and their states (None where SLURM cannot be asked)."""

    ids: Mapping[str, str]  # of the newest submission of each job
    states: Mapping[str, Any] | None  # of all submissions
    launching: bool  # a process holds the sweep: what it has not reached yet it will


def statuses(sweep: Sweep, launching: bool | None = None) -> list[Status]:
    """All jobs, by number; before them the generation, where there was one.

    Args:
        sweep: Whose.
        launching: Whether a process holds the sweep's launch lock; None looks. The holder itself must say so: looking would release it.
    """
    known = _known(sweep, launching)
    found = [_status(sweep, job, known) for job in sweep.jobs]
    if GENERATION in known.ids or sweep.record(GENERATION).exists():
        return [_own_status(sweep, GENERATION, known), *found]
    return found


def _known(sweep: Sweep, launching: bool | None) -> _Known:
    launching = holder(sweep.launch_lock) is not None if launching is None else launching
    if sweep.launcher["kind"] != "slurm":
        return _Known({}, None, launching)
    from fcot.sweeps.slurm import states, submissions

    found = [one.jobs | ({GENERATION: one.generation} if one.generation else {}) for one in submissions(sweep)]
    newest = {name: slurm for ids in found for name, slurm in ids.items()}
    return _Known(newest, states([slurm for ids in found for slurm in ids.values()]), launching)


def _status(sweep: Sweep, job: Planned, known: _Known) -> Status:
    if job.fault is not None:
        return Status(job.number, "failed", "cannot be run", job.fault.splitlines())
    if job.same_as is not None:
        return Status(job.number, "same", f"as job {job.same_as}")
    return _own_status(sweep, job.number, known, job)


def _own_status(sweep: Sweep, name: JobName, known: _Known, job: Planned | None = None) -> Status:
    """Of a job that is a run of its own, or of the generation."""
    record = read_record(sweep.record(name))
    slurm = known.ids.get(str(name))
    state, why = _state(sweep, name, record, known, slurm)
    if job is not None and state not in ("running", "done") and sweep.whole(job):
        state, why = "done", ""  # another sweep's doing
    log = _log(sweep, name, slurm) if state in ("failed", "interrupted", "running") else None
    error = _error(record, log) if state == "failed" else []
    told = {"running": _progress(sweep, name), "done": _result(sweep, job)}.get(state, why)
    return Status(name, state, told, error, log, _preempted(record), slurm)


def _state(sweep: Sweep, name: JobName, record: Record | None, known: _Known, slurm: str | None) -> tuple[str, str]:
    """A job's state and the reason."""
    if record and record.status == "running":
        if holder(sweep.lock(name)) is not None:
            return "running", ""
        record = read_record(sweep.record(name))  # it may have ended between the two looks
    last = record.attempts[-1] if record else None
    if record and last and record.status == "done" and (name != GENERATION or slurm is None or last.slurm == slurm):
        return "done", ""
    if slurm is not None:
        return _state_on_slurm(record, last, slurm, known.states)
    if record is None:
        return ("queued", "") if known.launching else ("missing", "never started")
    if record.status == "running":
        return "failed", "it was killed"
    return ("failed", "") if record.status == "failed" else ("interrupted", "")


def _state_on_slurm(record: Record | None, last: Attempt | None, slurm: str, states: Mapping[str, Any] | None) -> tuple[str, str]:
    """The same of a job that was submitted, is not running as far as its lock tells, and not done."""
    state = states.get(slurm) if states is not None else None
    began = last is not None and last.slurm == slurm  # this submission, not an earlier one
    if state is not None and state.waits:
        return "queued", state.reason
    status = record.status if began and record is not None else None
    if status == "failed":
        return "failed", ""
    if state is not None and state.state == "COMPLETING" and status is not None:
        return ("queued", "being requeued") if status == "requeued" else ("running", "ending")
    if state is not None and state.lives:
        return ("running" if status == "running" else "starting"), ""
    if status == "requeued" and state is not None and state.state != "CANCELLED":
        assert last is not None
        if time.time() - (last.ended or 0) < _REQUEUE_S:
            return "queued", "being requeued"
        return "failed", f"requeued, and did not start again: {state.state}"
    if states is None and status != "running":
        return "unknown", "submitted; there is no SLURM here to ask"
    if (state is not None and state.state == "CANCELLED") or (state is None and status in (None, "requeued")):
        return "cancelled", "while it ran" if began else "before it started"
    if status in ("stopped", "interrupted"):
        return "interrupted", "by a signal"
    if began:
        return "failed", "it was killed" + (f": {state.state}" if state is not None and state.state not in ("FAILED", "COMPLETED") else "")
    assert state is not None
    return "failed", f"it did not start: {state.state}"


def _preempted(record: Record | None) -> int:
    """Attempts that another one of the same submission followed: requeued by the job itself, or by SLURM."""
    attempts = record.attempts if record else []
    return sum(one.slurm == then.slurm is not None for one, then in pairwise(attempts)) + (
        record is not None and record.status == "requeued"
    )


def _log(sweep: Sweep, name: JobName, slurm: str | None) -> Path | None:
    if slurm is not None:
        from fcot.sweeps.slurm import log_of as slurm_log_of

        return slurm_log_of(sweep, slurm)
    return log_of(sweep, name) if log_of(sweep, name).exists() else None


def _error(record: Record | None, log: Path | None) -> list[str]:
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


def _result(sweep: Sweep, job: Planned | None) -> str:
    if job is None:
        return ""
    if job.until != "evaluate":
        return f"as far as {job.until}"
    metrics = _metrics(sweep, job)
    return f"accuracy {100 * metrics['accuracy']:.2f} %" if "accuracy" in metrics else "its run is not there any more"


def _metrics(sweep: Sweep, job: Planned) -> dict[str, Any]:
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


def again(sweep: Sweep) -> list[Planned]:
    """The jobs to be run again: failed and missing ones, and where a configuration has a fault, those too; under the launch lock.

    Raises:
        FcotError: SLURM would know of jobs, and is not here.
    """
    found = [one for one in statuses(sweep, launching=False) if one.name != GENERATION]
    if lost := [str(one.name) for one in found if one.state == "unknown"]:
        raise FcotError(f"jobs {', '.join(lost)} were submitted to SLURM, which cannot be asked from here: use a machine of the cluster")
    return [job for job, one in zip(sweep.jobs, found, strict=True) if one.state in AGAIN]


def stop(sweep: Sweep) -> list[JobName]:
    """Cancel whatever waits or runs; the jobs that were told.

    Raises:
        FcotError: They run where this machine cannot reach them.
    """
    if sweep.launcher["kind"] == "slurm":
        from fcot.sweeps.slurm import cancel, states, submissions

        every = [(name, slurm) for one in submissions(sweep) for name, slurm in (one.jobs | {GENERATION: one.generation or ""}).items()]
        known = states([slurm for _, slurm in every if slurm])
        if known is None:
            raise FcotError("SLURM cannot be asked from here: use a machine of the cluster")
        live = {slurm: name for name, slurm in every if slurm in known and (known[slurm].waits or known[slurm].lives)}
        cancel(list(live))
        return [name if name == GENERATION else int(name) for name in live.values()]
    process = holder(sweep.launch_lock)
    if process is None:
        return []
    if process == 0:
        raise FcotError(f"{sweep.folder} is being run by {who(process)}: cancel it there")
    running = [one.name for one in statuses(sweep) if one.state in LIVE]
    os.kill(process, signal.SIGINT)
    return running


def who(process: int) -> str:
    """Whoever holds a lock, in words."""
    return f"process {process} on this machine" if process else "a process on another machine"


# --- collecting ------------------------------------------------------------------------------------------------------


def collect(sweep: Sweep, folder: Path) -> list[Path]:
    """One row a job: what was varied, its state, and its metrics. As ``jobs.parquet`` and ``jobs.csv``."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import yaml

    rows = []
    found = {one.name: one for one in statuses(sweep)}
    for job in sweep.jobs:
        one = found[job.number]
        source = sweep.jobs[job.same_as] if job.same_as is not None else job
        metrics = _metrics(sweep, source) if source.run is not None else {}
        seconds = _seconds(read_record(sweep.record(job.number)))
        row = {
            "job": job.number, "state": one.state, "same_as": job.same_as, "run_id": job.run_id, "slurm": one.slurm,
            "requeued": one.preempted,
            "job_seconds": seconds, "device_hours": None if seconds is None else seconds / 3600 * (metrics.get("devices") or 1),
            "error": "\n".join(one.error) or None, "log": str(one.log) if one.log else None,
        }  # fmt: skip
        overrides = {f"override.{key}": yaml.safe_load(value) for key, _, value in (word.partition("=") for word in job.shown)}
        rows.append(row | overrides | _flat(metrics))
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    parquet, text = folder / "jobs.parquet", folder / "jobs.csv"
    with replacing(parquet) as temporary:
        pq.write_table(
            pa.table(
                {
                    name: pa.array(_column(values), pa.string() if not any(one is not None for one in values) else None)
                    for name, values in columns.items()
                }
            ),
            temporary,
        )
    with replacing(text) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return [parquet, text]


def _seconds(record: Record | None) -> float | None:
    """Of all attempts that ended by themselves."""
    known = [one.ended - one.started for one in (record.attempts if record else []) if one.ended is not None]
    return sum(known) if known else None


def _flat(metrics: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Numbers and words by dotted name; an interval as its two ends, other lists as JSON."""
    found: dict[str, Any] = {}
    for key, value in metrics.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            found |= _flat(value, f"{name}.")
        elif key.endswith("_ci95") and value:
            found |= {f"{name}.low": value[0], f"{name}.high": value[1]}
        elif key not in ("run_id",):
            found[name] = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
    return found


def _column(values: Sequence[Any]) -> list[Any]:
    """Values of one type: whole numbers beside others as floats, any mixture with words as text."""
    values = [json.dumps(value) if isinstance(value, list | dict) else value for value in values]
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and float in kinds:
        return [None if value is None else float(value) for value in values]
    if len(kinds) > 1:
        return [None if value is None else str(value) for value in values]
    return list(values)


# --- showing ---------------------------------------------------------------------------------------------------------


def wait_for_end(sweep: Sweep, show: Callable[[Sequence[Status]], object], every_s: float) -> None:
    """Show the jobs again and again until none of them waits or runs."""
    while True:
        found = statuses(sweep)
        show(found)
        if not any(one.state in LIVE for one in found):
            return
        time.sleep(every_s)
