"""A sweep on SLURM: submission with submitit, and the task that SLURM runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
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
from fcot.sweeps import hold_signals
from fcot.sweeps.controller import array_of, cancel, longest_array, states
from fcot.sweeps.job import give_up, run_generation, run_job, slurm_id
from fcot.sweeps.plan import GENERATION, JobName, Sweep, display_path, format_jobs, read_plan

# Parameters that submitit knows on every cluster; it expects the prefix ``slurm_`` before the others.
_COMMON = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name", "stderr_to_stdout")
_OF_NODES = (  # parameters that choose the nodes and GPUs of the array's jobs
    "gpus_per_node", "gpus_per_task", "gpus", "cpus_per_gpu", "mem_per_gpu", "gres", "constraint", "exclude", "nodelist", "exclusive",
)  # fmt: skip
_NOT_FOR_SUBMITIT = ("kind", "budget_usd", "generation", "submitit_folder", "max_num_timeout")


# --- the task that SLURM runs ----------------------------------------------------------------------------------------


class SlurmTask(submitit.helpers.Checkpointable):
    """The task that submitit pickles and runs: a job of a sweep, or its generation job. It is requeued with the same arguments."""

    def __call__(self, folder: str, name: JobName, generates: Sequence[int], after: str | None) -> None:
        """Run the job.

        Args:
            folder: The sweep's folder.
            name: The job's number, or ``generation``.
            generates: Of the generation job: the jobs for which it buys completions.
            after: SLURM's id of the generation job that this job depends on; None if there is none.

        Raises:
            Exception: Any error of the job, so that SLURM marks it as failed too.
        """
        sweep = read_plan(Path(folder))
        os.chdir(sweep.cwd)
        if not started_first():
            _follow(sweep, name, after)
            return
        _record_own_submission(sweep, name)
        requeue = signal.getsignal(WARNING)  # submitit's handler; called once everything is saved
        listen()
        try:
            if isinstance(name, int):
                run_job(sweep, name, after)
            else:
                run_generation(sweep, generates)
        except KeyboardInterrupt:
            _leave(sweep, name, requeue)


def _follow(sweep: Sweep, name: JobName, after: str | None) -> None:
    """Run the job on another rank than the first: it records nothing, and after a warning ends together with the first rank."""
    listen()
    try:
        run_job(sweep, int(name), after)
    except (Exception, KeyboardInterrupt):
        if (warned := stop_requested()) is not None:
            sys.exit(f"stopped together with the first rank after {warned.name}")
        raise


def _leave(sweep: Sweep, name: JobName, requeue: Any) -> None:
    """Have submitit requeue an interrupted job, unless SLURM has cancelled it or its time is over. Everything is saved already.

    A partition that preempts with SIGTERM alone would let the job run until its grace time is over, and requeue it only then.

    Args:
        sweep: The job's sweep.
        name: The job's number, or ``generation``.
        requeue: submitit's signal handler, which requeues the job.
    """
    known = states([slurm_id() or ""]).states
    may_continue = stop_requested() == WARNING if known is None else any(job.state == "RUNNING" for job in known.values())
    if not may_continue:
        say("stopped by a signal; all progress is saved")
        sys.exit(128 + signal.SIGTERM)
    say("warned of a time limit or a preemption: progress is saved, and the job is requeued")
    try:
        requeue(WARNING, None)
    except (UncompletedJobError, subprocess.SubprocessError) as error:
        give_up(sweep, name, f"not requeued: {error}. All progress is saved; to continue: `python -m fcot.sweep rerun {sweep.folder}`")
        raise


# --- submission ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Submission:
    """Jobs that were submitted together: a row of ``submissions.jsonl``.

    Attributes:
        time: Seconds since 1970.
        host: The machine that submitted them.
        generation: SLURM's id of the generation job; None if this row has none.
        jobs: SLURM's ids by job number (as text).
    """

    time: float
    host: str
    generation: str | None
    jobs: dict[str, str]


def submissions(sweep: Sweep) -> list[Submission]:
    """All submissions of a sweep, oldest first."""
    path = sweep.folder / "submissions.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(Submission(**json.loads(line)))
        except (ValueError, TypeError):
            say(f"warning: a line of {path} is damaged and is left out")
    return rows


def _record_submission(sweep: Sweep, generation: str | None, jobs: dict[str, str]) -> None:
    """Record at once the jobs that SLURM accepted: only recorded jobs can be cancelled."""
    path = sweep.folder / "submissions.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(Submission(time.time(), socket.gethostname(), generation, jobs))) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _record_own_submission(sweep: Sweep, name: JobName) -> None:
    """Record this job if the command that submitted it could not: sbatch timed out, or the command was killed."""
    job = slurm_id()
    recorded = {slurm for submission in submissions(sweep) for slurm in (submission.generation, *submission.jobs.values())}
    if job is not None and job not in recorded:
        _record_submission(sweep, *((job, {}) if name == GENERATION else (None, {str(name): job})))


def submit_sweep(sweep: Sweep, numbers: Sequence[int], generation: Sequence[int], generation_on_gpu: bool) -> None:
    """Submit jobs as arrays. If completions are to be bought, the arrays wait for one generation job.

    If SLURM limits the number of submitted jobs per user, as many as it accepts are submitted, and they stay submitted.

    Args:
        sweep: The sweep.
        numbers: The jobs to submit.
        generation: The jobs whose completions are bought first; empty if nothing is to be bought.
        generation_on_gpu: Whether the generation job needs a GPU, for a local teacher.

    Raises:
        FcotError: SLURM accepts no job, or this machine has no SLURM. The generation job is cancelled again.
        SystemExit: SLURM accepted some jobs only. The others were listed.
    """
    if not numbers:
        say("nothing to submit")
        return
    accepted = list[str]()
    generation_id, parameters = None, sweep.launcher
    try:
        if generation:
            stop_if_requested()
            parameters = _generation_parameters(sweep.launcher, generation_on_gpu)
            generation_id = _submitted(sweep, parameters, [(str(sweep.folder), GENERATION, list(generation), None)])[0]
            accepted.append(generation_id)
            _record_submission(sweep, generation_id, {})
        parameters = sweep.launcher | ({"dependency": f"afterany:{generation_id}"} if generation_id else {})
        rest, refusal = _submit_arrays(sweep, parameters, numbers, generation_id, accepted)
    except BaseException as error:
        not_cancelled = _cancel_submitted(accepted)
        if isinstance(error, FailedJobError | FailedSubmissionError | RuntimeError | ValueError | AssertionError):
            raise FcotError("\n".join([_refusal(error, sweep, parameters), *not_cancelled])) from error
        for line in not_cancelled:
            say(line)
        raise
    before_jobs = f"generation job {accepted[0]}, then " if generation_id else ""
    n = len(numbers) - len(rest)
    arrays = ", ".join(accepted[bool(generation_id) :])
    say(f"submitted: {before_jobs}{n} job{'s' if n != 1 else ''} ({arrays}). You can close this terminal")
    say(f"logs: {display_path(_logs(sweep))}\nstatus: python -m fcot.sweep status {display_path(sweep.folder)}")
    if rest:
        say(f"SLURM accepts no more of your jobs ({refusal}): jobs {format_jobs(rest)} ({len(rest)} of {len(numbers)}) are not submitted")
        for hint in _hints(refusal, parameters, sweep):
            say(hint)
        say(f"to submit the rest later: python -m fcot.sweep rerun {display_path(sweep.folder)}")
        sys.exit(1)


def _submit_arrays(
    sweep: Sweep, parameters: dict[str, Any], numbers: Sequence[int], generation_id: str | None, accepted: list[str]
) -> tuple[list[int], str]:
    """Submit jobs in arrays of the maximum length that the site allows.

    SLURM accepts or rejects an array as a whole. An array that is too long, or exceeds the limit on submitted jobs, is retried at half its
    length. ``array_parallelism`` is divided among the arrays in proportion to their jobs, at least one each.

    Args:
        sweep: The sweep.
        parameters: The launcher's parameters.
        numbers: The jobs to submit.
        generation_id: SLURM's id of the generation job, None if there is none.
        accepted: SLURM's ids of all accepted jobs; the ids of these arrays are appended.

    Returns:
        The jobs that SLURM did not accept, and its error message.

    Raises:
        FailedJobError: SLURM accepts none of the jobs.
    """
    rest, length, refusal = list(numbers), longest_array(), ""
    most, parallelism = len(numbers), parameters["array_parallelism"]  # for the rest: how many jobs fit, and how many run at a time
    while rest and most:
        stop_if_requested()
        chunk = rest[: min(length, most)]
        at_once = max(1, parallelism * len(chunk) // most)
        try:
            ids = _submitted(
                sweep, parameters | {"array_parallelism": at_once}, [(str(sweep.folder), number, [], generation_id) for number in chunk]
            )
        except FailedJobError as error:
            refusal, limited = _complaint(error), re.search(_LIMIT, str(error))
            if len(chunk) > 1 and (limited or re.search(_TOO_LONG, str(error))):
                length, most = len(chunk) // 2, len(chunk) - 1 if limited else most
                continue
            if len(rest) == len(numbers):
                raise
            break
        accepted.append(array_of(ids[0]))
        _record_submission(sweep, None, dict(zip(map(str, chunk), ids, strict=True)))
        rest, most, parallelism = rest[len(chunk) :], most - len(chunk), parallelism - at_once
    return rest, refusal


def _cancel_submitted(accepted: Sequence[str]) -> list[str]:
    """Cancel submitted jobs; return lines about those that SLURM did not cancel."""
    errors = cancel(accepted)
    return [f"submitted, and not cancelled: {', '.join(errors)} ({next(iter(errors.values()))})"] if errors else []


def _submitted(sweep: Sweep, parameters: dict[str, Any], arguments: Sequence[tuple[Any, ...]]) -> list[str]:
    """Submit tasks with these arguments as one array; return their SLURM ids."""
    try:
        with _environment(), contextlib.redirect_stderr(io.StringIO()):  # submitit also prints the errors that it raises
            jobs = _executor(sweep, parameters).map_array(SlurmTask(), *zip(*arguments, strict=True))
    except FailedJobError:
        for path in _logs(sweep).iterdir():  # files that submitit wrote for jobs that SLURM rejected
            if re.fullmatch(r"[0-9a-f]{32}\.pkl|\.submission_file_[0-9a-f]{32}\.sh", path.name) and not path.is_symlink():
                path.unlink()
        raise
    return [job.job_id for job in jobs]


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Hide the SLURM job that this process may belong to: submitted jobs would inherit its array id."""
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
    """The log of a SLURM job's first task: its stderr, or its stdout if stderr is empty or missing."""
    error, output = (_logs(sweep) / f"{slurm}_0_log.{end}" for end in ("err", "out"))
    return output if _size(output) and not _size(error) else error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _executor(sweep: Sweep, parameters: dict[str, Any]) -> Any:
    python = shlex.join([sys.executable, "-S", "-I", hold_signals.__file__, sys.executable])
    timeouts = parameters.get("max_num_timeout", 0)
    executor = submitit.AutoExecutor(_logs(sweep), cluster="slurm", slurm_max_num_timeout=timeouts, slurm_python=python)
    chosen = {name: value for name, value in parameters.items() if value is not None and name not in _NOT_FOR_SUBMITIT}
    additional = {"requeue": True} | (chosen.get("additional_parameters") or {})
    dependencies = (chosen.pop("dependency", None), additional.pop("dependency", None))
    if required := [str(dependency) for dependency in dependencies if dependency]:
        additional["dependency"] = ",".join(required)  # the job waits for all of them
    chosen["additional_parameters"] = additional
    # Python reads the number of threads when it starts. A site's own lines come later and may change it.
    threads = [f"export OMP_NUM_THREADS={chosen['cpus_per_task']}"] if chosen.get("cpus_per_task") else []
    chosen["setup"] = ["export OMP_WAIT_POLICY=PASSIVE", *threads, *(chosen.get("setup") or [])]
    chosen["srun_args"] = ["--kill-on-bad-exit=1"]  # if one rank ends with an error, the others do not wait for it
    executor.update_parameters(**{name if name in _COMMON else f"slurm_{name}": value for name, value in chosen.items()})
    return executor


def _generation_parameters(launcher: dict[str, Any], on_gpu: bool) -> dict[str, Any]:
    """The parameters of the generation job: the array's, but for one process without a GPU, with those that ``generation`` sets.

    Args:
        launcher: The launcher's parameters.
        on_gpu: Whether the job gets one GPU, for a local teacher.
    """
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
_HINTS = {  # by a pattern in SLURM's error message: what helps
    "partition": "hydra.launcher.partition=NAME, as `sinfo` lists them",
    "gres|generic resource": _WITHOUT_GPU,
    "node configuration": f"{_WITHOUT_GPU}; or fewer processors, less memory",
    "processors": "hydra.launcher.cpus_per_task=1, or as many as a node has",
    "account(?!ing)": "hydra.launcher.account=NAME, as `sacctmgr show associations user=$USER` lists them",
    "time limit is invalid|WallDuration": "hydra.launcher.timeout_min=...: `sinfo --format='%P %l'` lists the partitions' limits",
    _LIMIT: "wait until some of your jobs have ended; the limit: `sacctmgr show qos format=Name,MaxSubmitJobsPU`, "
    "`sacctmgr show associations user=$USER format=Account,MaxSubmitJobs`",
    "contact|connect|configuration file|SLURM_CONF": "check SLURM_CONF, and whether the controller is up: `scontrol ping`",
    "timed out": "SLURM may have accepted the jobs nevertheless: `squeue --me` lists them; run `scancel ID` before you try again",
}
_OF_GENERATION = (
    "this is the generation job, which requests no GPU: hydra.launcher.generation.partition=NAME of one without GPUs, "
    "or hydra.launcher.generation.gpus_per_node=1"
)
_REQUESTED = (
    "partition",
    "account",
    "qos",
    "constraint",
    "nodes",
    "tasks_per_node",
    "gpus_per_node",
    "cpus_per_task",
    "mem_gb",
    "timeout_min",
)


def _complaint(error: BaseException) -> str:
    """The error message of sbatch without submitit's text around it."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip().removeprefix("sbatch: error: ") for line in lines if "sbatch:" in line) or lines[-1]


def _hints(complaint: str, parameters: dict[str, Any], sweep: Sweep) -> list[str]:
    """Lines that say what helps against SLURM's error message.

    Args:
        complaint: The error message.
        parameters: The parameters of the rejected jobs.
        sweep: The sweep.
    """
    hints = [hint for pattern, hint in _HINTS.items() if re.search(pattern, complaint, re.IGNORECASE)]
    if parameters["name"] == sweep.launcher["name"] or parameters.get("gpus_per_node"):
        return hints
    return [_OF_GENERATION if hint.startswith(_WITHOUT_GPU) else hint for hint in hints]


def _refusal(error: BaseException, sweep: Sweep, parameters: dict[str, Any]) -> str:
    """The error message for jobs with these parameters that SLURM rejects."""
    if "Could not detect" in str(error):
        return "hydra/launcher=slurm: there is no SLURM on this machine (no srun); hydra/launcher=local runs the sweep here"
    complaint = _complaint(error)
    requested = ", ".join(f"{name}={parameters[name]}" for name in _REQUESTED if parameters.get(name) is not None)
    return "\n".join([
        f"SLURM rejects the jobs: {complaint}", f"requested: {requested}", *_hints(complaint, parameters, sweep),
        f"python -m fcot.sweep rerun {display_path(sweep.folder)} KEY=VALUE   submits them with other parameters of the launcher",
    ])  # fmt: skip
