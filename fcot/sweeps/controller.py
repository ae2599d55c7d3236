"""Query the states of jobs from SLURM, and cancel jobs.

Three situations look alike and are kept apart:

- This machine has no SLURM.
- SLURM does not answer: its controller is busy or down.
- SLURM answers and has forgotten the job. Without accounting this happens ``MinJobAge`` after the job's end (default: five minutes).
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

_PATIENCE_S = 30  # time limit of one command
_CANCELLED_TOGETHER = 100  # ids in one scancel
_SHOWN_LINES = 3  # of a command's error output

# The meaning of each SLURM state. A state that is missing here comes from a newer SLURM; such a job counts as alive.
MEANING: Mapping[str, Literal["waits", "lives", "ended"]] = {
    "PENDING": "waits",
    "REQUEUED": "waits",
    "REQUEUE_FED": "waits",
    "REQUEUE_HOLD": "waits",  # held, like the next two
    "RESV_DEL_HOLD": "waits",
    "SPECIAL_EXIT": "waits",
    "CONFIGURING": "lives",
    "RUNNING": "lives",
    "COMPLETING": "lives",
    "RESIZING": "lives",
    "SIGNALING": "lives",
    "STAGE_OUT": "lives",  # a burst buffer is still written back
    "STOPPED": "lives",
    "SUSPENDED": "lives",
    "REVOKED": "lives",  # another cluster of the federation has started it
    "COMPLETED": "ended",
    "FAILED": "ended",
    "CANCELLED": "ended",
    "TIMEOUT": "ended",
    "DEADLINE": "ended",
    "PREEMPTED": "ended",  # a preempted job that will run again is PENDING
    "NODE_FAIL": "ended",
    "BOOT_FAIL": "ended",
    "OUT_OF_MEMORY": "ended",
    "LAUNCH_FAILED": "ended",
    "RECONFIG_FAIL": "ended",
}
_HELD = ("REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
_USUAL = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")


@dataclass(frozen=True)
class SlurmState:
    """A job's state as SLURM names it (``PENDING``), and SLURM's reason."""

    state: str
    reason: str = ""

    @property
    def waits(self) -> bool:
        """Whether the job has not started yet."""
        return MEANING.get(self.state) == "waits"

    @property
    def lives(self) -> bool:
        """Whether the job may be running."""
        return MEANING.get(self.state, "lives") == "lives"

    def explanation(self, job: str) -> str:
        """SLURM's reason. A rare state is named before it; a held job gets the command that releases it."""
        if self.state in _HELD:
            return f"{self.state}: held; `scontrol release {job}` lets it start"
        if self.state == "REVOKED":
            return "REVOKED: another cluster of the federation has it"
        return self.reason if self.state in _USUAL else ", ".join(filter(None, [self.state, self.reason]))


@dataclass(frozen=True)
class SlurmAnswer:
    """SLURM's answer to a query about jobs.

    Attributes:
        ids: The jobs of the query.
        states: By id; a job that SLURM has forgotten is absent. None if SLURM does not answer: then no job's state is known.
        silence: Why SLURM does not answer, and what helps; empty if it answers.
        may_answer_later: Whether it is worth repeating the query in a minute.
        accounting: sacct's error message, if the queue did not know all jobs and sacct failed.
    """

    ids: frozenset[str]
    states: Mapping[str, SlurmState] | None
    silence: str = ""
    may_answer_later: bool = True
    accounting: str = ""


@dataclass(frozen=True)
class _Reply:
    """The output of a command, and its error message (``squeue: ...``) if it failed or timed out."""

    output: str
    complaint: str = ""
    installed: bool = True


def _run(command: Sequence[str]) -> _Reply:
    program = command[0]
    environment = os.environ | {"SLURM_BITSTR_LEN": "0"}  # otherwise SLURM cuts the list of an array's tasks to 64 characters
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE_S, check=False, env=environment)
    except FileNotFoundError:
        return _Reply("", f"no {program}", installed=False)
    except subprocess.TimeoutExpired:
        return _Reply("", f"{program}: no answer within {_PATIENCE_S} s")
    except OSError as error:
        return _Reply("", f"{program}: {error.strerror}")
    if not done.returncode:
        return _Reply(done.stdout)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    message = "; ".join(lines[:_SHOWN_LINES])
    return _Reply(done.stdout, message if message.startswith(f"{program}: ") else f"{program}: {message}")


def states(ids: Iterable[str]) -> SlurmAnswer:
    """Query jobs in SLURM's queue, and in its accounting those that have left the queue.

    Args:
        ids: SLURM's job ids, such as ``7`` and ``7_3``; empty ones are ignored.
    """
    wanted = frozenset(filter(None, ids))
    if not wanted:
        return SlurmAnswer(wanted, {})
    queue = _run(["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={_arrays(wanted)}"])
    if queue.complaint and "Invalid job id" not in queue.complaint:
        return _silent(wanted, queue)
    known = _parse(queue.output, wanted)
    if not (forgotten := wanted - set(known)):
        return SlurmAnswer(wanted, known)
    fields = ["--noheader", "--parsable2", "--allocations", "--format=JobID,State,Reason"]
    accounting = _run(["sacct", *fields, f"--jobs={_arrays(forgotten)}"])
    return SlurmAnswer(wanted, known | _parse(accounting.output, forgotten), accounting=accounting.complaint)


def _silent(ids: frozenset[str], reply: _Reply) -> SlurmAnswer:
    if not reply.installed:
        why = f"there is no SLURM on this machine ({reply.complaint}): use a machine of the cluster"
        return SlurmAnswer(ids, None, why, may_answer_later=False)
    if re.search("configuration|SLURM_CONF", reply.complaint):
        why = f"SLURM is not set up on this machine ({reply.complaint}): set SLURM_CONF, or use a machine of the cluster"
        return SlurmAnswer(ids, None, why, may_answer_later=False)
    return SlurmAnswer(ids, None, f"the controller does not answer ({reply.complaint}): try again in a minute")


def _arrays(ids: Iterable[str]) -> str:
    """The distinct array ids of the jobs, comma-separated."""
    return ",".join(sorted({array_of(job) for job in ids}, key=int))


def array_of(job: str) -> str:
    """The id of a job's array, or the job's own id if it belongs to none."""
    return job.partition("_")[0]


def _parse(output: str, wanted: frozenset[str]) -> dict[str, SlurmState]:
    """Parse lines of ``id|state|reason`` into states by id; a state may be ``CANCELLED by 1000``."""
    rows = [line.split("|", 2) for line in output.splitlines() if line.count("|") >= 2]
    return {
        job: SlurmState(state.split()[0], "" if reason == "None" else reason)
        for ids, state, reason in rows
        if state.strip()
        for job in _tasks(ids)
        if job in wanted
    }


def _tasks(ids: str) -> list[str]:
    """Expand the id field of a line: tasks that never started share one line, such as ``7_[0-2,5%2]``."""
    parts = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", ids)
    if parts is None:
        return [ids]
    ranges = [text.split("-") for text in parts[2].split(",")]
    return [f"{parts[1]}_{task}" for limits in ranges for task in range(int(limits[0]), int(limits[-1]) + 1)]


def cancel(arrays: Sequence[str]) -> dict[str, str]:
    """Cancel waiting and running jobs.

    Args:
        arrays: SLURM's ids; an array's id cancels all its jobs.

    Returns:
        scancel's error message by id, for the ids of calls that failed: some of these jobs may not be cancelled.
    """
    errors: dict[str, str] = {}
    for start in range(0, len(arrays), _CANCELLED_TOGETHER):
        chunk = arrays[start : start + _CANCELLED_TOGETHER]
        if complaint := _run(["scancel", *chunk]).complaint:
            errors |= dict.fromkeys(chunk, complaint)
    return errors


def longest_array() -> int:
    """The maximum number of jobs in an array (``MaxArraySize``); 1000, a guess, if SLURM does not report it."""
    size = re.search(r"MaxArraySize\s*=\s*(\d+)", _run(["scontrol", "show", "config"]).output)
    return max(1, int(size[1]) - 1) if size else 1000
