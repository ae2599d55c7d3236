"""A pool of processes on this machine: each runs one job on its own GPU or its own share of the CPU cores."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from fcot.base.console import say
from fcot.base.errors import FcotError
from fcot.base.stopping import stop_if_requested
from fcot.sweeps.job import read_record
from fcot.sweeps.plan import GENERATION, JobName, Sweep, display_path

_POLL_S = 0.5
Device = dict[str, str]  # environment variables of a process


def run_in_pool(sweep: Sweep, numbers: Sequence[int], generation: Sequence[int]) -> None:
    """Run several jobs at a time, after a generation job that buys the completions they need.

    Args:
        sweep: The sweep.
        numbers: The jobs to run.
        generation: The jobs whose completions are bought first; empty if nothing is to be bought.

    Raises:
        KeyboardInterrupt: The running jobs were interrupted; they save and end by themselves.
    """
    places = _places(sweep.launcher["processes"], sweep.launcher["gpus_per_job"])
    running: set[subprocess.Popen[bytes]] = set()
    stopping = threading.Event()
    say(f"jobs at a time: {places.qsize()}; logs: {display_path(log_of(sweep, 0).parent)}")
    say(f"status: python -m fcot.sweep status {display_path(sweep.folder)}")

    def work(name: JobName, jobs: Sequence[int]) -> JobName:
        place = places.get()
        numbers_text = ",".join(map(str, jobs))
        command = [sys.executable, "-m", "fcot.sweep", "job", str(sweep.folder), numbers_text, "--parent", str(os.getpid())]
        log_of(sweep, name).parent.mkdir(exist_ok=True)
        with log_of(sweep, name).open("ab") as log:
            process = subprocess.Popen(
                command if isinstance(name, int) else [*command, "--generation"], env=os.environ | place, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        running.add(process)
        if stopping.is_set():  # set while this job was starting
            process.send_signal(signal.SIGINT)
        process.wait()
        running.discard(process)
        places.put(place)
        return name

    with ThreadPoolExecutor(places.qsize()) as pool:
        try:
            if generation:
                say(f"generating the teacher's completions for {len(generation)} jobs; log: {display_path(log_of(sweep, GENERATION))}")
                list(_finished({pool.submit(work, GENERATION, generation)}))
            for name in _finished({pool.submit(work, number, [number]) for number in numbers}):
                say(_outcome(sweep, int(name)))
        except KeyboardInterrupt:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.send_signal(signal.SIGINT)
            raise


def _finished(futures: set[Future[JobName]]) -> Iterator[JobName]:
    """Yield the names of jobs as they finish; check for a requested stop meanwhile."""
    while futures:
        done, futures = wait(futures, timeout=_POLL_S, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()
        stop_if_requested()


def log_of(sweep: Sweep, name: JobName) -> Path:
    """The output file of a job's process."""
    return sweep.folder / "logs" / f"{name}.log"


def _places(processes: int | None, gpus_per_job: int) -> queue.Queue[Device]:
    """The environment variables for each process that can run at a time.

    Args:
        processes: Maximum number of processes; None takes one per GPU, or one per CPU core without GPUs.
        gpus_per_job: 0 ignores the machine's GPUs.

    Raises:
        FcotError: The machine has GPUs, but fewer than ``gpus_per_job``.
    """
    import torch

    cores, n_gpus = len(os.sched_getaffinity(0)), torch.cuda.device_count() if gpus_per_job else 0
    if 0 < n_gpus < gpus_per_job:
        raise FcotError(f"hydra.launcher.gpus_per_job={gpus_per_job}: this machine has {n_gpus} GPUs")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",")[:n_gpus] if visible else [str(index) for index in range(n_gpus)]
    groups = [names[first : first + gpus_per_job] for first in range(0, n_gpus - gpus_per_job + 1, gpus_per_job)] if n_gpus else []
    n = min(processes or cores, len(groups) or cores)
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // n)))
    places: queue.Queue[Device] = queue.Queue()
    for index in range(n):
        gpus = {"CUDA_VISIBLE_DEVICES": ",".join(groups[index])} if groups else {}
        places.put({"OMP_NUM_THREADS": threads} | gpus)
    return places


def _outcome(sweep: Sweep, number: int) -> str:
    record = read_record(sweep.record(number))
    status = record.status if record and record.status != "running" else "was killed"
    why = f": {record.error.splitlines()[0]}" if record and record.error else ""
    return f"job {number} ({sweep.label(sweep.jobs[number])}) {status}{why}; log: {display_path(log_of(sweep, number))}"
