"""A sweep on SLURM: submission through submitit, the task that runs there, and what SLURM says of jobs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

from fcot.errors import FcotError
from fcot.progress import say
from fcot.ranks import started_first
from fcot.stopping import WARNING, asked, listen, stop_if_asked
from fcot.sweeps.job import do_generation, do_job, give_up, slurm_id
from fcot.sweeps.plan import GENERATION, JobName, Sweep, read_plan, shown

_COMMON = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name", "stderr_to_stdout")
_OF_NODES = (  # what says on which nodes, and with which GPUs, the array's jobs run
    "gpus_per_node", "gpus_per_task", "gpus", "cpus_per_gpu", "mem_per_gpu", "gres", "constraint", "exclude", "nodelist", "exclusive",
)  # fmt: skip
_NOT_SUBMITIT_S = ("kind", "budget_usd", "generation", "submitit_folder", "max_num_timeout")
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
        sweep = read_plan(Path(folder))
        os.chdir(sweep.cwd)
        if not started_first():
            _follow(sweep, name, after)
            return
        requeue = signal.getsignal(WARNING)  # submitit's handler, to be called where it is safe
        listen()
        try:
            if isinstance(name, int):
                do_job(sweep, name, after)
            else:
                do_generation(sweep, generates)
        except KeyboardInterrupt:
            _leave(sweep, name, requeue)


def _follow(sweep: Sweep, name: JobName, after: str | None) -> None:
    """Another rank: it goes where the first one leads, and after a warning breaks off with it, without a word of its own."""
    warned: list[int] = []
    for number in (WARNING, signal.SIGTERM):
        signal.signal(number, lambda number, _: warned.append(number))
    try:
        do_job(sweep, int(name), after)
    except Exception:
        if warned:
            sys.exit(f"left with the first rank after {signal.Signals(warned[0]).name}")
        raise


def _leave(sweep: Sweep, name: JobName, requeue: Any) -> None:
    """Everything is saved: have submitit requeue the job, unless it was cancelled, meanwhile too, or its time is over.

    A partition that preempts with SIGTERM alone leaves the job running until its grace time is over, and would requeue only then.
    """
    known = states([slurm_id() or ""])
    goes_on = asked() == WARNING if known is None else any(one.state == "RUNNING" for one in known.values())
    if not goes_on:
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
    path = sweep.folder / "submissions.jsonl"
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(Submission(**json.loads(line)))
        except (ValueError, TypeError):
            say(f"warning: a line of {path} is damaged and is left out")
    return found


def _enter(sweep: Sweep, generation: str | None, jobs: dict[str, str]) -> None:
    """Write down what SLURM has taken, at once: what is not written down nobody cancels."""
    path = sweep.folder / "submissions.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(Submission(time.time(), socket.gethostname(), generation, jobs))) + "\n")
        file.flush()
        os.fsync(file.fileno())


def submit_sweep(sweep: Sweep, numbers: Sequence[int], generation: Sequence[int], generation_on_gpu: bool) -> None:
    """Submit jobs as an array, behind one job that buys what they share where something is to be bought.

    Raises:
        FcotError: SLURM refuses, or is not here. What it had taken before is cancelled.
    """
    if not numbers:
        say("nothing to submit")
        return
    folder, taken = str(sweep.folder), list[str]()
    first = None
    longest = _longest_array()
    chunks = [list(numbers[start : start + longest]) for start in range(0, len(numbers), longest)]
    at_once = {"array_parallelism": max(1, sweep.launcher["array_parallelism"] // len(chunks))}
    try:
        if generation:
            stop_if_asked()
            parameters = _generation_parameters(sweep.launcher, generation_on_gpu)
            first = _submitted(sweep, parameters, [(folder, GENERATION, list(generation), None)])[0]
            taken.append(first)
            _enter(sweep, first, {})
        parameters = sweep.launcher | at_once | ({"dependency": f"afterany:{first}"} if first else {})
        for chunk in chunks:
            stop_if_asked()
            ids = _submitted(sweep, parameters, [(folder, number, [], first) for number in chunk])
            taken.append(ids[0].partition("_")[0])
            _enter(sweep, None, dict(zip(map(str, chunk), ids, strict=True)))
    except BaseException as error:
        cancel(taken)
        if isinstance(error, FailedJobError | FailedSubmissionError | RuntimeError | ValueError | AssertionError):
            raise FcotError(_refusal(error, sweep)) from error
        raise
    said = f"generation job {taken[0]}, then " if first else ""
    jobs = f"{len(numbers)} job{'s' if len(numbers) != 1 else ''}"
    say(f"submitted: {said}{jobs} ({', '.join(taken[bool(first) :])}). Nothing here has to stay open")
    say(f"logs: {shown(_logs(sweep))}\nhow it goes: python -m fcot.sweep status {shown(sweep.folder)}")


def _submitted(sweep: Sweep, parameters: dict[str, Any], arguments: Sequence[tuple[Any, ...]]) -> list[str]:
    """SLURM's ids of tasks with these arguments, submitted as one array."""
    with _environment(), contextlib.redirect_stderr(io.StringIO()):  # submitit repeats there what it raises
        jobs = _executor(sweep, parameters).map_array(Task(), *zip(*arguments, strict=True))
    return [job.job_id for job in jobs]


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Within, nothing tells of a SLURM job that this process may itself be: its array's number would be taken for theirs."""
    outer = {name: value for name, value in os.environ.items() if name.startswith(("SLURM_", "SUBMITIT_")) and name != "SLURM_CONF"}
    for name in outer:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(outer)


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
    # Threads are counted when Python starts; a site's own lines come after, and may change it.
    threads = [f"export OMP_NUM_THREADS={given['cpus_per_task']}"] if given.get("cpus_per_task") else []
    given["setup"] = ["export OMP_WAIT_POLICY=PASSIVE", *threads, *(given.get("setup") or [])]
    given["srun_args"] = ["--kill-on-bad-exit=1"]  # of several ranks none waits for one that has gone
    executor.update_parameters(**{name if name in _COMMON else f"slurm_{name}": value for name, value in given.items()})
    return executor


def _generation_parameters(launcher: dict[str, Any], on_gpu: bool) -> dict[str, Any]:
    """The array's, for one process without a GPU (a local teacher has one), and what ``generation`` sets of its own."""
    kept = {name: value for name, value in launcher.items() if name not in _OF_NODES}
    kept["additional_parameters"] = {
        name: value for name, value in (launcher.get("additional_parameters") or {}).items() if name.replace("-", "_") not in _OF_NODES
    }
    if on_gpu and launcher.get("gpus_per_node"):
        kept |= {name: launcher.get(name) for name in ("constraint", "mem_per_gpu")} | {"gpus_per_node": 1}
    own = {name: value for name, value in launcher["generation"].items() if value is not None}
    return kept | {"nodes": 1, "tasks_per_node": 1} | own | {"name": f"{launcher['name']}-{GENERATION}"}


def _longest_array() -> int:
    """How many tasks the site's arrays may have."""
    said = _ask(["scontrol", "show", "config"]) or ""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", said)
    return max(1, int(found[1]) - 1) if found else 1000


_HINTS = {  # of SLURM's complaints: what helps
    "partition": "hydra.launcher.partition=NAME, as `sinfo` lists them",
    "gres|generic resource": "hydra.launcher.gpus_per_node=null is for nodes without GPUs",
    "node configuration": "hydra.launcher.gpus_per_node=null is for nodes without GPUs; or fewer processors, less memory",
    "processors": "hydra.launcher.cpus_per_task=1, or as many as a node has",
    "account": "hydra.launcher.account=NAME, as `sacctmgr show associations user=$USER` lists them",
    "contact|connect|configuration file|SLURM_CONF": "is SLURM_CONF set, and the controller up? `scontrol ping`",
}
_ASKED = ("partition", "account", "qos", "constraint", "nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "mem_gb", "timeout_min")


def _refusal(error: BaseException, sweep: Sweep) -> str:
    said = (str(error).strip() or type(error).__name__).splitlines()
    if "Could not detect" in said[0]:
        return "hydra/launcher=slurm: there is no SLURM on this machine (no srun); hydra/launcher=local runs the sweep here"
    told = " ".join(line.strip() for line in said if "sbatch:" in line) or said[-1]
    hints = [hint for pattern, hint in _HINTS.items() if re.search(pattern, told, re.IGNORECASE)]
    asked_for = ", ".join(f"{name}={sweep.launcher[name]}" for name in _ASKED if sweep.launcher.get(name) is not None)
    return "\n".join([
        f"SLURM refuses the jobs: {told}", f"asked for: {asked_for}", *hints,
        f"python -m fcot.sweep rerun {shown(sweep.folder)} KEY=VALUE   submits them with other parameters of the launcher",
    ])  # fmt: skip


# --- what SLURM says -------------------------------------------------------------------------------------------------


def _ask(command: Sequence[str]) -> str | None:
    """A SLURM command's output, None where there is no SLURM, or it does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except (FileNotFoundError, subprocess.SubprocessError):
        return None
    if done.returncode:
        return "" if "Invalid job id" in done.stderr else None  # of jobs that SLURM has forgotten
    return done.stdout


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
    found: dict[str, State] = {}
    accounted = _ask(["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,Reason", f"--jobs={','.join(bases)}"])
    queued = _ask(["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={','.join(bases)}"])
    if queued is None:
        return None
    for line in [*(accounted or "").splitlines(), *queued.splitlines()]:  # the queue knows better
        name, state, reason = line.split("|", 2)
        if name in wanted:
            found[name] = State(state.split()[0], reason if reason != "None" else "")
    return found


def cancel(ids: Sequence[str]) -> None:
    """Cancel SLURM jobs, pending and running ones."""
    if ids:
        _ask(["scancel", *ids])
