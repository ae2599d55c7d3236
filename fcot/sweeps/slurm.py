"""A sweep on SLURM: submission through submitit, the task that runs there, and what SLURM says of jobs.

Nothing here imports torch or numpy: a task sets their number of threads first.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

from fcot.artifacts import read_jsonl, write_jsonl
from fcot.errors import FcotError
from fcot.progress import say
from fcot.ranks import started_first
from fcot.stopping import WARNING, asked, listen
from fcot.sweeps.job import do_generation, do_job, give_up, slurm_id
from fcot.sweeps.plan import GENERATION, JobName, Sweep, read_plan

_COMMON = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name", "stderr_to_stdout")
_OF_GPUS = ("gpus_per_node", "gpus_per_task", "cpus_per_gpu", "mem_per_gpu", "gres")
_NOT_SUBMITIT_S = ("kind", "generation", "submitit_folder", "max_num_timeout")
_PATIENCE_S = 30  # with squeue and sacct


# --- what runs there -------------------------------------------------------------------------------------------------


class Task(submitit.helpers.Checkpointable):
    """What submitit keeps and runs: a job of a sweep, or its generation. Requeued with the same arguments."""

    def __call__(self, folder: str, name: JobName, generates: Sequence[int], after: str | None) -> None:
        """Do it.

        Args:
            folder: The sweep's.
            name: The job's number, or ``generation``.
            generates: Of the generation: the jobs it buys for.
            after: SLURM's id of the generation this job waited for.

        Raises:
            Exception: Whatever the job failed with: SLURM then calls it failed too.
        """
        _settle()
        sweep = read_plan(Path(folder))
        os.chdir(sweep.cwd)
        requeue = signal.getsignal(WARNING)  # submitit's handler, to be called where it is safe
        if started_first():
            listen()
        else:  # the other ranks go where the first one leads
            for number in (WARNING, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        try:
            if isinstance(name, int):
                do_job(sweep, name, after)
            else:
                do_generation(sweep, generates)
        except KeyboardInterrupt:
            _leave(sweep, name, requeue)


def _settle() -> None:
    """The process as SLURM meant it: as many threads as it was given processors."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if processors := os.environ.get("SLURM_CPUS_PER_TASK"):
        os.environ.setdefault("OMP_NUM_THREADS", processors)


def _leave(sweep: Sweep, name: JobName, requeue: Any) -> None:
    """Everything is saved: have submitit requeue the job, unless it was cancelled or its time is over.

    A partition that preempts with SIGTERM alone leaves the job running until its grace time is over, and would requeue only then.
    """
    state = states([slurm_id() or ""]) or {}
    if asked() != WARNING and not any(one.state == "RUNNING" for one in state.values()):
        say("stopped by a signal; what was done is saved")
        sys.exit(128 + signal.SIGTERM)
    say("warned of a time limit or a preemption: saved, and to be requeued")
    try:
        requeue(WARNING, None)
    except (UncompletedJobError, subprocess.SubprocessError) as error:
        give_up(sweep, name, f"not requeued: {error}. What was done is saved; `python -m fcot.sweep rerun {sweep.folder}` goes on")
        raise


# --- submission ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Submission:
    """What was submitted together.

    Attributes:
        time: Seconds since 1970.
        host: From where.
        generation: SLURM's id of the generation job, None where nothing was to be bought.
        jobs: SLURM's ids by job number (as text).
    """

    time: float
    host: str
    generation: str | None
    jobs: dict[str, str]


def submissions(sweep: Sweep) -> list[Submission]:
    """All submissions of a sweep, the oldest first."""
    path = _submissions_path(sweep)
    return [Submission(**row) for row in read_jsonl(path)] if path.exists() else []


def _submissions_path(sweep: Sweep) -> Path:
    return sweep.folder / "submissions.jsonl"


def submit_sweep(sweep: Sweep, numbers: Sequence[int], generation: Sequence[int], generation_on_gpu: bool) -> None:
    """Submit jobs as an array, behind one job that buys what they share where something is to be bought.

    Raises:
        FcotError: SLURM refuses, or is not here. What it had taken before is cancelled.
    """
    if not numbers:
        say("nothing to submit")
        return
    folder, taken = str(sweep.folder), []
    first, ids = None, dict[str, str]()
    try:
        if generation:
            parameters = _generation_parameters(sweep.launcher, generation_on_gpu)
            first = _executor(sweep, parameters).submit(Task(), folder, GENERATION, list(generation), None).job_id
            taken.append(first)
        parameters = {**sweep.launcher, **({"dependency": f"afterany:{first}"} if first else {})}
        left = iter(numbers)
        while chunk := list(islice(left, _longest_array())):
            n = len(chunk)
            jobs = _executor(sweep, parameters).map_array(Task(), [folder] * n, chunk, [[]] * n, [first] * n)
            ids |= {str(number): job.job_id for number, job in zip(chunk, jobs, strict=True)}
            taken.append(jobs[0].job_id.partition("_")[0])
    except (FailedJobError, FailedSubmissionError, RuntimeError, ValueError) as error:
        cancel(taken)
        raise FcotError(_refusal(error)) from error
    before = [asdict(one) for one in submissions(sweep)]
    write_jsonl(_submissions_path(sweep), [*before, asdict(Submission(time.time(), socket.gethostname(), first, ids))])
    said = f"generation job {first}, then " if first else ""
    arrays = ", ".join(dict.fromkeys(one.partition("_")[0] for one in ids.values()))
    say(f"submitted: {said}{len(numbers)} jobs ({arrays}). Nothing here has to stay open")
    say(f"logs: {_logs(sweep)}\nhow it goes: python -m fcot.sweep status {sweep.folder}")


def _logs(sweep: Sweep) -> Path:
    return sweep.folder / "slurm"


def log_of(sweep: Sweep, slurm: str) -> Path:
    """What a SLURM job's first task wrote to stderr."""
    return _logs(sweep) / f"{slurm}_0_log.err"


def _executor(sweep: Sweep, parameters: dict[str, Any]) -> Any:
    executor = submitit.AutoExecutor(_logs(sweep), cluster="slurm", slurm_max_num_timeout=parameters.get("max_num_timeout", 0))
    given = {name: value for name, value in parameters.items() if value is not None and name not in _NOT_SUBMITIT_S}
    more = {"requeue": True} | (given.get("additional_parameters") or {})
    if waits := [str(one) for one in (given.pop("dependency", None), more.pop("dependency", None)) if one]:
        more["dependency"] = ",".join(waits)  # on all of them
    given["additional_parameters"] = more
    given["srun_args"] = ["--kill-on-bad-exit=1"]  # of several ranks none waits for one that has gone
    executor.update_parameters(**{name if name in _COMMON else f"slurm_{name}": value for name, value in given.items()})
    return executor


def _generation_parameters(launcher: dict[str, Any], on_gpu: bool) -> dict[str, Any]:
    """The array's, for one process without a GPU (a local teacher has one), and what ``generation`` sets of its own."""
    kept = {name: value for name, value in launcher.items() if on_gpu or name not in _OF_GPUS}
    own = {name: value for name, value in launcher["generation"].items() if value is not None}
    return kept | {"nodes": 1, "tasks_per_node": 1} | own | {"name": f"{launcher['name']}-{GENERATION}"}


def _longest_array() -> int:
    """How many tasks the site's arrays may have."""
    said = _ask(["scontrol", "show", "config"]) or ""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", said)
    return max(1, int(found[1]) - 1) if found else 1000


def _refusal(error: Exception) -> str:
    said = (str(error).strip() or type(error).__name__).splitlines()
    if "Could not detect" in said[0]:
        return "hydra/launcher=slurm: there is no SLURM on this machine (no srun); hydra/launcher=local runs the sweep here"
    told = " ".join(line.strip() for line in said if "sbatch:" in line) or said[-1]
    hint = (
        "; hydra.launcher.gpus_per_node=null is for jobs without a GPU" if re.search("gres|generic resource", told, re.IGNORECASE) else ""
    )
    return f"SLURM refuses the jobs: {told}{hint}. hydra.launcher.KEY=VALUE changes what is asked for: --cfg hydra --package hydra.launcher"


# --- what SLURM says -------------------------------------------------------------------------------------------------


def _ask(command: Sequence[str]) -> str | None:
    """A SLURM command's output, None where there is no SLURM, it does not answer, or it knows nothing of the kind."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=True).stdout
    except (FileNotFoundError, subprocess.SubprocessError):
        return None


@dataclass(frozen=True)
class State:
    """Of one job: SLURM's word for it (``PENDING``), and why."""

    state: str
    reason: str = ""

    @property
    def waits(self) -> bool:
        """Whether it is still to start."""
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD")

    @property
    def lives(self) -> bool:
        """Whether it may be running."""
        return self.state in ("RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING")


def states(ids: Iterable[str]) -> dict[str, State] | None:
    """What SLURM knows of jobs, by id; None where there is no SLURM to ask. Jobs it has forgotten are absent."""
    wanted = set(ids)
    bases = sorted({one.partition("_")[0] for one in wanted}, key=int)
    if not bases:
        return {}
    if _ask(["squeue", "--noheader", "--me"]) is None:
        return None
    found: dict[str, State] = {}
    accounted = _ask(["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,Reason", f"--jobs={','.join(bases)}"])
    queued = _ask(["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={','.join(bases)}"])
    for line in [*(accounted or "").splitlines(), *(queued or "").splitlines()]:  # the queue knows better
        name, state, reason = line.split("|", 2)
        if name in wanted:
            found[name] = State(state.split()[0], reason if reason != "None" else "")
    return found


def cancel(ids: Sequence[str]) -> None:
    """Cancel SLURM jobs, pending and running ones."""
    if ids:
        _ask(["scancel", *ids])
