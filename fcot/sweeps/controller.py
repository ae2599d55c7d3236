"""SLURM's answers about jobs, and its cancelling them.

Three situations look alike and are kept apart: this machine has no SLURM; SLURM does not answer (its controller is busy or
down); SLURM answers and has forgotten the job (where accounting is off, ``MinJobAge`` after its end, five minutes by default).
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

_PATIENCE_S = 30  # with one command
_CANCELLED_TOGETHER = 100  # ids in one scancel
_SHOWN_LINES = 3  # of a complaint

# What a word of SLURM's means. A word that is not here is one of a newer SLURM: such a job is taken to be alive.
MEANING: Mapping[str, Literal["waits", "lives", "ended"]] = {
    "PENDING": "waits",
    "REQUEUED": "waits",
    "REQUEUE_FED": "waits",
    "REQUEUE_HOLD": "waits",  # held, as the next two
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
    """A job's state: SLURM's word for it (``PENDING``), and SLURM's reason."""

    state: str
    reason: str = ""

    @property
    def waits(self) -> bool:
        """Whether it is still to start."""
        return MEANING.get(self.state) == "waits"

    @property
    def lives(self) -> bool:
        """Whether it may be running."""
        return MEANING.get(self.state, "lives") == "lives"

    def explanation(self, job: str) -> str:
        """The reason in a few words: SLURM's own, the word itself where it is a rare one, for a held job the remedy."""
        if self.state in _HELD:
            return f"{self.state}: held; `scontrol release {job}` lets it start"
        if self.state == "REVOKED":
            return "REVOKED: another cluster of the federation has it"
        return self.reason if self.state in _USUAL else ", ".join(filter(None, [self.state, self.reason]))


@dataclass(frozen=True)
class SlurmAnswer:
    """SLURM's answer about jobs.

    Attributes:
        ids: The jobs that were asked about.
        states: By id; a job that SLURM has forgotten is absent. None where SLURM is silent: then nothing is known of any job.
        silence: Why it is silent, and what helps; empty where it is not.
        may_answer_later: Whether the same question can have an answer here in a minute.
        accounting: sacct's complaint, where the queue did not know all jobs and sacct did not answer either.
    """

    ids: frozenset[str]
    states: Mapping[str, SlurmState] | None
    silence: str = ""
    may_answer_later: bool = True
    accounting: str = ""


@dataclass(frozen=True)
class _Reply:
    """What a command printed, and its complaint, such as ``squeue: ...``, where it failed or did not come to an end."""

    output: str
    complaint: str = ""
    installed: bool = True


def _run(command: Sequence[str]) -> _Reply:
    program = command[0]
    whole = os.environ | {"SLURM_BITSTR_LEN": "0"}  # an array's tasks are cut to 64 characters otherwise
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE_S, check=False, env=whole)
    except FileNotFoundError:
        return _Reply("", f"no {program}", installed=False)
    except subprocess.TimeoutExpired:
        return _Reply("", f"{program}: nothing within {_PATIENCE_S} s")
    except OSError as error:
        return _Reply("", f"{program}: {error.strerror}")
    if not done.returncode:
        return _Reply(done.stdout)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    said = "; ".join(lines[:_SHOWN_LINES])
    return _Reply(done.stdout, said if said.startswith(f"{program}: ") else f"{program}: {said}")


def states(ids: Iterable[str]) -> SlurmAnswer:
    """What SLURM knows of jobs: its queue, and of those that have left the queue its accounting.

    Args:
        ids: SLURM's, such as ``7`` and ``7_3``.
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
    """The ids of the arrays that jobs belong to, comma-separated."""
    return ",".join(sorted({array_of(job) for job in ids}, key=int))


def array_of(job: str) -> str:
    """The id of the array that a job belongs to; the job's own where it is alone."""
    return job.partition("_")[0]


def _parse(output: str, wanted: frozenset[str]) -> dict[str, SlurmState]:
    """States by id from lines of ``id|state|reason``; a state may be ``CANCELLED by 1000``."""
    rows = [line.split("|", 2) for line in output.splitlines() if line.count("|") >= 2]
    return {
        job: SlurmState(state.split()[0], "" if reason == "None" else reason)
        for ids, state, reason in rows
        if state.strip()
        for job in _tasks(ids)
        if job in wanted
    }


def _tasks(ids: str) -> list[str]:
    """The ids that one of SLURM's lines is about: tasks that never started share one, such as ``7_[0-2,5%2]``."""
    parts = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", ids)
    if parts is None:
        return [ids]
    ranges = [one.split("-") for one in parts[2].split(",")]
    return [f"{parts[1]}_{task}" for limits in ranges for task in range(int(limits[0]), int(limits[-1]) + 1)]


def cancel(arrays: Sequence[str]) -> dict[str, str]:
    """Cancel jobs, waiting and running ones.

    Args:
        arrays: SLURM's ids; an array's id stands for all its jobs.

    Returns:
        scancel's complaint by id, of those that may not be cancelled.
    """
    refused: dict[str, str] = {}
    for start in range(0, len(arrays), _CANCELLED_TOGETHER):
        together = arrays[start : start + _CANCELLED_TOGETHER]
        if complaint := _run(["scancel", *together]).complaint:
            refused |= dict.fromkeys(together, complaint)
    return refused


def longest_array() -> int:
    """The most jobs an array of this site may have; a guess where SLURM does not say."""
    size = re.search(r"MaxArraySize\s*=\s*(\d+)", _run(["scontrol", "show", "config"]).output)
    return max(1, int(size[1]) - 1) if size else 1000
