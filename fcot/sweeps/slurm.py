"""A sweep on SLURM: submission through submitit, and the task that runs there."""

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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

from fcot.base.console import say
from fcot.base.errors import FcotError
from fcot.base.ranks import started_first
from fcot.base.stopping import WARNING, listen, stop_if_requested, stop_requested
from fcot.sweeps.controller import array_of, cancel, longest_array, states
from fcot.sweeps.job import give_up, run_generation, run_job, slurm_id
from fcot.sweeps.plan import GENERATION, JobName, Sweep, display_path, format_jobs, read_plan

_COMMON = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name", "stderr_to_stdout")
_OF_NODES = (  # what says on which nodes, and with which GPUs, the array's jobs run
    "gpus_per_node", "gpus_per_task", "gpus", "cpus_per_gpu", "mem_per_gpu", "gres", "constraint", "exclude", "nodelist", "exclusive",
)  # fmt: skip
_NOT_SUBMITIT_S = ("kind", "budget_usd", "generation", "submitit_folder", "max_num_timeout")


# --- what runs there -------------------------------------------------------------------------------------------------


class SlurmTask(submitit.helpers.Checkpointable):
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
        _enter_itself(sweep, name)
        requeue = signal.getsignal(WARNING)  # submitit's handler, to be called where it is safe
        listen()
        try:
            if isinstance(name, int):
                run_job(sweep, name, after)
            else:
                run_generation(sweep, generates)
        except KeyboardInterrupt:
            _leave(sweep, name, requeue)


def _follow(sweep: Sweep, name: JobName, after: str | None) -> None:
    """Another rank: it goes where the first one leads, and after a warning breaks off with it, without a word of its own."""
    listen()
    try:
        run_job(sweep, int(name), after)
    except (Exception, KeyboardInterrupt):
        if (warned := stop_requested()) is not None:
            sys.exit(f"stopped together with the first rank after {warned.name}")
        raise


def _leave(sweep: Sweep, name: JobName, requeue: Any) -> None:
    """Everything is saved: have submitit requeue the job, unless it was cancelled, meanwhile too, or its time is over.

    A partition that preempts with SIGTERM alone leaves the job running until its grace time is over, and would requeue only then.
    """
    known = states([slurm_id() or ""]).states
    goes_on = stop_requested() == WARNING if known is None else any(one.state == "RUNNING" for one in known.values())
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


def _enter_itself(sweep: Sweep, name: JobName) -> None:
    """Write down this job, where the command that submitted it could not: sbatch had no answer in time, or the command was killed."""
    job = slurm_id()
    entered = {known for one in submissions(sweep) for known in (one.generation, *one.jobs.values())}
    if job is not None and job not in entered:
        _enter(sweep, *((job, {}) if name == GENERATION else (None, {str(name): job})))


def submit_sweep(sweep: Sweep, numbers: Sequence[int], generation: Sequence[int], generation_on_gpu: bool) -> None:
    """Submit jobs as arrays, behind one job that buys what they share where something is to be bought.

    Where SLURM limits how many jobs a user may have submitted, as many as it takes are submitted. What it has taken stays.

    Raises:
        FcotError: SLURM takes no job of the array, or is not here. The generation job is cancelled again.
        SystemExit: SLURM took some jobs and not the others; they were named.
    """
    if not numbers:
        say("nothing to submit")
        return
    taken = list[str]()
    first, parameters = None, sweep.launcher
    try:
        if generation:
            stop_if_requested()
            parameters = _generation_parameters(sweep.launcher, generation_on_gpu)
            first = _submitted(sweep, parameters, [(str(sweep.folder), GENERATION, list(generation), None)])[0]
            taken.append(first)
            _enter(sweep, first, {})
        parameters = sweep.launcher | ({"dependency": f"afterany:{first}"} if first else {})
        rest, refusal = _submit_arrays(sweep, parameters, numbers, first, taken)
    except BaseException as error:
        stays = _take_back(taken)
        if isinstance(error, FailedJobError | FailedSubmissionError | RuntimeError | ValueError | AssertionError):
            raise FcotError("\n".join([_refusal(error, sweep, parameters), *stays])) from error
        for line in stays:
            say(line)
        raise
    said = f"generation job {taken[0]}, then " if first else ""
    n = len(numbers) - len(rest)
    say(f"submitted: {said}{n} job{'s' if n != 1 else ''} ({', '.join(taken[bool(first) :])}). Nothing here has to stay open")
    say(f"logs: {display_path(_logs(sweep))}\nhow it goes: python -m fcot.sweep status {display_path(sweep.folder)}")
    if rest:
        say(
            f"SLURM takes no more of your jobs now ({refusal}): jobs {format_jobs(rest)} ({len(rest)} of {len(numbers)}) are not submitted."
        )
        for hint in _hints(refusal, parameters, sweep):
            say(hint)
        say(f"later, this submits the rest: python -m fcot.sweep rerun {display_path(sweep.folder)}")
        sys.exit(1)


def _submit_arrays(
    sweep: Sweep, parameters: dict[str, Any], numbers: Sequence[int], first: str | None, taken: list[str]
) -> tuple[list[int], str]:
    """Submit jobs in arrays as long as the site allows.

    An array is taken or refused as a whole: one that is too long, or exceeds the limit on submitted jobs, is tried at half its length.
    ``array_parallelism`` is divided among the arrays in proportion to their jobs, at least one each.

    Args:
        sweep: The sweep.
        parameters: The launcher's.
        numbers: The jobs.
        first: SLURM's id of the generation job.
        taken: SLURM's ids of all arrays it has taken, added to here.

    Returns:
        The jobs that SLURM did not take, and its words for it.

    Raises:
        FailedJobError: It takes none.
    """
    rest, length, refusal = list(numbers), longest_array(), ""
    most, parallelism = len(numbers), parameters["array_parallelism"]  # for the rest: the most jobs that fit, and that run at once
    while rest and most:
        stop_if_requested()
        chunk = rest[: min(length, most)]
        at_once = max(1, parallelism * len(chunk) // most)
        try:
            ids = _submitted(
                sweep, parameters | {"array_parallelism": at_once}, [(str(sweep.folder), number, [], first) for number in chunk]
            )
        except FailedJobError as error:
            refusal, limited = _complaint(error), re.search(_LIMIT, str(error))
            if len(chunk) > 1 and (limited or re.search(_TOO_LONG, str(error))):
                length, most = len(chunk) // 2, len(chunk) - 1 if limited else most
                continue
            if len(rest) == len(numbers):
                raise
            break
        taken.append(array_of(ids[0]))
        _enter(sweep, None, dict(zip(map(str, chunk), ids, strict=True)))
        rest, most, parallelism = rest[len(chunk) :], most - len(chunk), parallelism - at_once
    return rest, refusal


def _take_back(taken: Sequence[str]) -> list[str]:
    """Cancel what was submitted; what is to be said of jobs that SLURM did not cancel."""
    refused = cancel(taken)
    return [f"submitted before, and not cancelled: {', '.join(refused)} ({next(iter(refused.values()))})"] if refused else []


def _submitted(sweep: Sweep, parameters: dict[str, Any], arguments: Sequence[tuple[Any, ...]]) -> list[str]:
    """SLURM's ids of tasks with these arguments, submitted as one array."""
    try:
        with _environment(), contextlib.redirect_stderr(io.StringIO()):  # submitit repeats there what it raises
            jobs = _executor(sweep, parameters).map_array(SlurmTask(), *zip(*arguments, strict=True))
    except FailedJobError:
        for path in _logs(sweep).iterdir():  # what submitit wrote for jobs that do not exist
            if re.fullmatch(r"[0-9a-f]{32}\.pkl|\.submission_file_[0-9a-f]{32}\.sh", path.name) and not path.is_symlink():
                path.unlink()
        raise
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
    """Where the first task of a SLURM job wrote: stderr, or where that is empty or absent, stdout."""
    error, output = (_logs(sweep) / f"{slurm}_0_log.{end}" for end in ("err", "out"))
    return output if _size(output) and not _size(error) else error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


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


_LIMIT = r"\w*Submit\w*(Limit|PerUser|PerAccount)"  # QOSMaxSubmitJobPerUserLimit, AssocMaxSubmitJobLimit, AssocGrpSubmitJobsLimit
_TOO_LONG = "Invalid job array specification"
_WITHOUT_GPU = "hydra.launcher.gpus_per_node=null is for nodes without GPUs"
_HINTS = {  # of SLURM's complaints: what helps
    "partition": "hydra.launcher.partition=NAME, as `sinfo` lists them",
    "gres|generic resource": _WITHOUT_GPU,
    "node configuration": f"{_WITHOUT_GPU}; or fewer processors, less memory",
    "processors": "hydra.launcher.cpus_per_task=1, or as many as a node has",
    "account(?!ing)": "hydra.launcher.account=NAME, as `sacctmgr show associations user=$USER` lists them",
    "time limit is invalid|WallDuration": "hydra.launcher.timeout_min=...: `sinfo --format='%P %l'` lists the partitions' limits",
    _LIMIT: "jobs that have ended make room; the limit: `sacctmgr show qos format=Name,MaxSubmitJobsPU`, "
    "`sacctmgr show associations user=$USER format=Account,MaxSubmitJobs`",
    "contact|connect|configuration file|SLURM_CONF": "is SLURM_CONF set, and the controller up? `scontrol ping`",
    "timed out": "it may have taken the jobs all the same: `squeue --me` lists them, `scancel ID` before another try",
}
_OF_GENERATION = (
    "this is the generation job, which asks for no GPU: hydra.launcher.generation.partition=NAME of one without GPUs, "
    "or hydra.launcher.generation.gpus_per_node=1"
)
_ASKED = ("partition", "account", "qos", "constraint", "nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "mem_gb", "timeout_min")


def _complaint(error: BaseException) -> str:
    """The words of sbatch itself."""
    said = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip().removeprefix("sbatch: error: ") for line in said if "sbatch:" in line) or said[-1]


def _hints(complaint: str, parameters: dict[str, Any], sweep: Sweep) -> list[str]:
    """What helps against a complaint about jobs with the given parameters."""
    hints = [hint for pattern, hint in _HINTS.items() if re.search(pattern, complaint, re.IGNORECASE)]
    if parameters["name"] == sweep.launcher["name"] or parameters.get("gpus_per_node"):
        return hints
    return [_OF_GENERATION if hint.startswith(_WITHOUT_GPU) else hint for hint in hints]


def _refusal(error: BaseException, sweep: Sweep, parameters: dict[str, Any]) -> str:
    """The message for jobs with the given parameters that SLURM refuses."""
    if "Could not detect" in str(error):
        return "hydra/launcher=slurm: there is no SLURM on this machine (no srun); hydra/launcher=local runs the sweep here"
    complaint = _complaint(error)
    asked_for = ", ".join(f"{name}={parameters[name]}" for name in _ASKED if parameters.get(name) is not None)
    return "\n".join([
        f"SLURM refuses the jobs: {complaint}", f"asked for: {asked_for}", *_hints(complaint, parameters, sweep),
        f"python -m fcot.sweep rerun {display_path(sweep.folder)} KEY=VALUE   submits them with other parameters of the launcher",
    ])  # fmt: skip
