"""The processes (ranks) of one run: how they start, and how they share work.

The first rank runs the pipeline. The others join it in the shared stages (training, evaluation) and wait in between. The first rank spawns
them, or ``srun`` or ``torchrun`` started them, one process per device.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from fcot.base.console import be_silent, say
from fcot.base.errors import FcotError
from fcot.base.lifeline import Lifeline
from fcot.base.stopping import WARNING, end_with_parent, note, stop_requested

T = TypeVar("T")
_WAITING_TIMEOUT = timedelta(days=14)  # the other ranks wait while the first one buys completions
_WORKING_TIMEOUT = timedelta(hours=6)  # one rank's share of an evaluation may take longer than another's
_LOST_CONNECTION = r"connection (?:closed|reset|refused)|closed by peer|broken pipe|timed? ?out|socket|nccl|gloo"
_RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK")


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank: Rank of this process.
        size: Number of processes.
        nodes: Number of machines; each has the same number of processes.
        slurm: Whether SLURM started the processes.
    """

    rank: int = 0
    size: int = 1
    nodes: int = 1
    slurm: bool = False

    def placement(self, strategy: str) -> dict[str, Any]:
        """Arguments of Lightning's trainer for these processes, so that it starts none of its own.

        Args:
            strategy: ``fsdp`` shards the model; any other value is data-parallel training (DDP). Not read for a single process.
        """
        from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
        from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy

        environment = SLURMEnvironment(auto_requeue=False) if self.slurm else LightningEnvironment()
        arguments: dict[str, Any] = {"devices": self.size // self.nodes, "num_nodes": self.nodes, "plugins": [environment]}
        if self.size == 1:
            return arguments
        if strategy == "fsdp":
            sharded = ModelParallelStrategy(data_parallel_size=self.size, tensor_parallel_size=1, save_distributed_checkpoint=False)
            return arguments | {"strategy": sharded}
        return arguments | {"strategy": DDPStrategy(gradient_as_bucket_view=True)}

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's share of the items: every ``size``-th one."""
        return list(items[self.rank :: self.size])

    def gather(self, share: list[T], n: int) -> list[T]:
        """Collect the results of all ranks' shares (:meth:`share`): on every rank all ``n`` results, in the order of the items."""
        if self.size == 1:
            return share
        import torch.distributed

        parts: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(parts, share)
        return [parts[index % self.size][index // self.size] for index in range(n)]

    def together(self, work: Callable[[], T]) -> T:
        """Do this rank's share of some work and return its result.

        Raises:
            FcotError: The work of any rank raised it. Then every rank raises it, so that none waits for another.
        """
        if self.size == 1:
            return work()
        import torch.distributed

        own_error: FcotError | None = None
        try:
            result = work()
        except FcotError as error:
            own_error = error
        errors: list[FcotError | None] = [None] * self.size
        torch.distributed.all_gather_object(errors, own_error)
        for rank_error in errors:
            if rank_error is not None:
                raise rank_error
        return result

    def first(self, work: Callable[[], T]) -> T:
        """Let the first rank do some work; every rank returns its result, or raises its ``FcotError``. The result must be picklable."""
        values: list[Any] = [self.together(lambda: work() if self.rank == 0 else None)]
        if self.size > 1:
            import torch.distributed

            torch.distributed.broadcast_object_list(values, 0)
        return values[0]  # type: ignore[no-any-return]


def warned_together(size: int) -> bool:
    """Whether any of ``size`` ranks has received a signal to stop. Every rank must call this at the same point."""
    number = int(stop_requested() or 0)
    if size > 1:
        import torch.distributed

        largest = torch.tensor(number)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        number = int(largest)
        if number and stop_requested() is None:
            note(number)
    return number > 0


def least_together(numbers: list[int], size: int) -> list[int]:
    """The minimum of each number over ``size`` ranks. Every rank must call this at the same point."""
    if size == 1:
        return numbers
    import torch.distributed

    minima = torch.tensor(numbers)
    torch.distributed.all_reduce(minima, torch.distributed.ReduceOp.MIN)
    return [int(number) for number in minima]


def check_devices(devices: int) -> None:
    """Check that this machine has a GPU per process or, without GPUs, a CPU core per process.

    Args:
        devices: Number of processes on this machine (``trainer.devices``).

    Raises:
        FcotError: The machine has fewer GPUs or CPU cores.
    """
    import torch

    if not torch.cuda.is_available() and devices > (os.cpu_count() or 1):
        raise FcotError(f"trainer.devices={devices}: this machine has {os.cpu_count()} CPU cores and no GPU; set fewer devices")
    if torch.cuda.is_available() and devices > torch.cuda.device_count() and "SLURM_STEP_ID" not in os.environ:
        raise FcotError(f"trainer.devices={devices}: this machine has {torch.cuda.device_count()} GPUs; set fewer devices")


def native_bf16() -> bool:
    """Whether this machine has a GPU with native bfloat16. Other GPUs emulate it, which is slower than float32."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def started_first() -> bool:
    """Whether this process was started alone, or is the first of those that ``srun`` or ``torchrun`` started together."""
    return int(os.environ.get("SLURM_PROCID" if "SLURM_STEP_ID" in os.environ else "RANK", "0")) == 0


def started_outside(devices: int, nodes: int) -> World | None:
    """The processes that ``srun`` or ``torchrun`` started; None if this process was started alone.

    Raises:
        FcotError: Their number is not ``devices`` times ``nodes``.
    """
    environment = os.environ
    slurm = "SLURM_STEP_ID" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1
    if slurm:
        rank, size = int(environment["SLURM_PROCID"]), int(environment["SLURM_NTASKS"])
    elif "TORCHELASTIC_RUN_ID" in environment:
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    else:
        return None
    if size != devices * nodes:
        raise FcotError(
            f"{size} processes were started, and trainer.devices={devices} times trainer.nodes={nodes} is {devices * nodes}: "
            "start one process per device"
        )
    return World(rank, size, nodes, slurm) if size > 1 else None


class Team:
    """All ranks of a run, as a context manager.

    Args:
        world: The processes, and this one's rank.
        outside: Whether ``srun`` or ``torchrun`` started the other ranks; otherwise the first rank spawns them.
        follow: Module-level function that a spawned process calls with its :class:`World` and ``arguments``; it ends in :meth:`follow`.
        arguments: Passed to ``follow`` after the world; must be picklable.
    """

    def __init__(self, world: World, outside: bool, follow: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.world = world
        self._outside = outside
        self._follow = follow
        self._arguments = arguments
        self._context: Any = None
        self._joined = self._leaving = False
        self._waiting_group: Any = None  # the process group in which the others wait for the first rank
        self._lifeline: Lifeline | None = None
        self._environment_before = {name: os.environ.get(name) for name in _RENDEZVOUS}

    def __enter__(self) -> Team:
        return self

    def lead(self, task: Any, work: Callable[[], T]) -> T:
        """Do shared work on all ranks: send ``task`` to the others, and call ``work`` here.

        Args:
            task: Any picklable value except None; the other ranks get it in :meth:`follow`.
            work: The first rank's part of the work.
        """
        if self.world.size == 1:
            return work()
        self._join()
        try:
            self._broadcast(task)
            return work()
        except RuntimeError as error:
            time.sleep(1.0)  # a connection breaks before its process has ended
            if message := self._dead_rank_message():
                raise FcotError(message) from error
            self._stop_if_lost(error)
            raise

    def _stop_if_lost(self, error: RuntimeError) -> None:
        """End this rank if an error means that another rank has ended: quietly after a signal to stop, else with a message.

        Raises:
            KeyboardInterrupt: A signal has requested a stop, and the other rank ended first.
            FcotError: The other rank died.
        """
        if not self._outside or not re.search(_LOST_CONNECTION, str(error), re.IGNORECASE):
            return
        if stop_requested() is not None:
            raise KeyboardInterrupt from error
        reason = str(error).strip().splitlines()[0][-200:]
        raise FcotError(
            f"rank {self.world.rank} of {self.world.size} has lost another rank ({reason}); the same command continues"
        ) from error

    def _broadcast(self, value: Any) -> Any:
        """Return the first rank's value on all ranks. The others may wait for it for days."""
        import torch.distributed

        values = [value]
        torch.distributed.broadcast_object_list(values, 0, group=self._waiting_group)
        return values[0]

    def _dead_rank_message(self) -> str | None:
        """The message about a spawned rank that has ended too early; None while all are alive."""
        for rank, process in enumerate(self._context.processes if self._context else (), 1):
            if process.exitcode is not None:
                return f"rank {rank} of {self.world.size} ended with code {process.exitcode}; the same command continues"
        return None

    def _watch(self) -> None:
        """End the run when a spawned rank dies while the first rank waits for it in a call that cannot be interrupted."""
        while not self._leaving:
            if self._dead_rank_message():
                time.sleep(3.0)  # in which most calls fail by themselves, with a better message
                if not self._leaving and (message := self._dead_rank_message()):
                    say(message)
                    os._exit(1)
            time.sleep(0.5)

    def follow(self, work: Callable[[Any], object]) -> None:
        """Call ``work`` with each task that the first rank sends (:meth:`lead`), without output, until the first rank is done."""
        be_silent()
        with _errors_printed():
            self._join()
        try:
            while (task := self._broadcast(None)) is not None:
                work(task)
        except RuntimeError as error:
            with _errors_printed():
                self._stop_if_lost(error)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None and self._outside and self.world.rank == 0 and self.world.size > 1:
            self._join()  # the others wait for a task, or for the end
        if self._joined:
            self._leave(failed=kind is not None)
        for name, value in self._environment_before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        for process in self._context.processes if self._context else ():
            if kind is not None:
                process.kill()
            process.join()  # its work is done: the exit code does not matter

    def _leave(self, failed: bool) -> None:
        import torch.distributed

        if self._lifeline is not None and failed:
            self._lifeline.leave()
        if not failed and self.world.rank == 0:
            self._broadcast(None)
        self._leaving = True
        if self._lifeline is not None:
            self._lifeline.leave()
        torch.distributed.destroy_process_group()
        if self._lifeline is not None:
            self._lifeline.close()

    def _join(self) -> None:
        """Connect to the other ranks. The first rank spawns them if nothing else has started them.

        Raises:
            FcotError: The connection failed.
        """
        import torch

        if self._joined:
            return
        store = None
        if not self._outside:
            store = self._spawn() if self.world.rank == 0 else _store(self.world.size, int(os.environ["MASTER_PORT"]))
        if self._outside and self.world.slurm:
            from lightning_fabric.plugins.environments import SLURMEnvironment

            slurm = SLURMEnvironment(auto_requeue=False)
            os.environ.update(
                MASTER_ADDR=slurm.main_address, MASTER_PORT=str(slurm.main_port), RANK=str(self.world.rank), WORLD_SIZE=str(self.world.size)
            )
        if torch.cuda.is_available():
            local_rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
            torch.cuda.set_device(local_rank % torch.cuda.device_count())  # SLURM may show each task only its own GPU
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            place: dict[str, Any] = {} if store is None else {"store": store, "rank": self.world.rank, "world_size": self.world.size}
            torch.distributed.init_process_group(backend, timeout=_WORKING_TIMEOUT, **place)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0][:200]
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            ranks = f"rank {self.world.rank} of {self.world.size}"
            raise FcotError(f"{ranks} cannot connect to the others at {where} ({reason}); the same command continues") from error
        self._joined = True
        self._waiting_group = torch.distributed.new_group(backend="gloo", timeout=_WAITING_TIMEOUT)
        if self._outside:
            host = os.environ["MASTER_ADDR"] if self.world.nodes > 1 else None
            self._lifeline = Lifeline(self.world.rank, self.world.size, host, self._broadcast)

    def _spawn(self) -> Any:
        """Start the other ranks, and return the store in which all ranks find each other."""
        import torch.multiprocessing

        store = _store(self.world.size, None)
        _set_rendezvous(0, self.world.size, store.port)
        say(f"training and evaluating with {self.world.size} processes")
        self._context = torch.multiprocessing.start_processes(
            _spawned,
            (self.world.size, store.port, self._follow, self._arguments),
            nprocs=self.world.size - 1,
            join=False,
            start_method="spawn",
        )
        threading.Thread(target=self._watch, daemon=True).start()
        return store


@contextmanager
def _errors_printed() -> Iterator[None]:
    """End this rank with the message of an FcotError, although the rank is silent."""
    try:
        yield
    except FcotError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(1)


def _store(size: int, port: int | None) -> Any:
    """The store at ``port``; without one, a new store at a free port, which no other process can take in between."""
    import torch.distributed

    return torch.distributed.TCPStore("127.0.0.1", port or 0, size, port is None, _WORKING_TIMEOUT, wait_for_workers=False)


def _spawned(index: int, size: int, port: int, follow: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    end_with_parent(signal.SIGKILL)  # so that a killed run leaves no processes
    for number in (signal.SIGTERM, WARNING):  # SLURM signals every process of a job; the first rank ends this one
        signal.signal(number, signal.SIG_IGN)
    if os.getppid() == 1:  # the parent had ended before
        os._exit(1)
    rank = index + 1
    _set_rendezvous(rank, size, port)
    follow(World(rank, size), *arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a normal exit can abort while a process group's threads end


def _set_rendezvous(rank: int, size: int, port: int) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), NODE_RANK="0"
    )
