"""Several processes at one run: who they are, how they start, how they share work.

The first rank runs the pipeline; the others follow it into the stages that are shared (training, evaluation) and wait
meanwhile. They are spawned by the first one, or were started from outside, one a device: ``srun`` or ``torchrun``.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from fcot.base.console import be_silent, say
from fcot.base.errors import FcotError
from fcot.base.lifeline import Lifeline
from fcot.base.stopping import WARNING, end_with_parent, note, stop_requested

T = TypeVar("T")
_PATIENCE = timedelta(days=14)  # the other ranks wait while the first one buys
_PATIENCE_AT_WORK = timedelta(hours=6)  # one rank's share of an evaluation may take longer than another's
_LOST_CONNECTION = r"connection (?:closed|reset|refused)|closed by peer|broken pipe|timed? ?out|socket|nccl|gloo"
_RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK")


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank: Of this one.
        size: How many there are.
        nodes: Machines they are on, as many on each.
        slurm: Whether SLURM started them.
    """

    rank: int = 0
    size: int = 1
    nodes: int = 1
    slurm: bool = False

    def placement(self, strategy: str) -> dict[str, Any]:
        """The arguments of Lightning's trainer that put it into this world; it starts no process of its own."""
        from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
        from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy

        environment = SLURMEnvironment(auto_requeue=False) if self.slurm else LightningEnvironment()
        place: dict[str, Any] = {"devices": self.size // self.nodes, "num_nodes": self.nodes, "plugins": [environment]}
        if self.size == 1:
            return place
        if strategy == "fsdp":
            whole = ModelParallelStrategy(data_parallel_size=self.size, tensor_parallel_size=1, save_distributed_checkpoint=False)
            return place | {"strategy": whole}
        return place | {"strategy": DDPStrategy(gradient_as_bucket_view=True)}

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's part of some work: every ``size``-th item."""
        return list(items[self.rank :: self.size])

    def gather(self, share: list[T], n: int) -> list[T]:
        """All ``n`` results, on every rank, in the order of the items, from each rank's results of its :meth:`share`."""
        if self.size == 1:
            return share
        import torch.distributed

        parts: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(parts, share)
        return [parts[index % self.size][index // self.size] for index in range(n)]

    def together(self, work: Callable[[], T]) -> T:
        """This rank's result of a share of some work.

        Raises:
            FcotError: Any rank's work raised it: then all of them do, and none waits for another.
        """
        if self.size == 1:
            return work()
        import torch.distributed

        fault: FcotError | None = None
        try:
            result = work()
        except FcotError as error:
            fault = error
        faults: list[FcotError | None] = [None] * self.size
        torch.distributed.all_gather_object(faults, fault)
        for known in faults:
            if known is not None:
                raise known
        return result


def warned_together(size: int) -> bool:
    """Whether a signal has requested any of ``size`` ranks to stop. All of them get the same answer, and call it at the same place."""
    number = int(stop_requested() or 0)
    if size > 1:
        import torch.distributed

        together = torch.tensor(number)
        torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MAX)
        number = int(together)
        if number and stop_requested() is None:
            note(number)
    return number > 0


def least_together(numbers: list[int], size: int) -> list[int]:
    """The least of each number over ``size`` ranks; all of them call it at the same place."""
    if size == 1:
        return numbers
    import torch.distributed

    together = torch.tensor(numbers)
    torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MIN)
    return [int(number) for number in together]


def check_devices(wanted: int) -> None:
    """Refuse more processes than this machine has GPUs or, without any, processors.

    Raises:
        FcotError: There are fewer.
    """
    import torch

    if not torch.cuda.is_available() and wanted > (os.cpu_count() or 1):
        raise FcotError(f"trainer.devices={wanted}: this machine has {os.cpu_count()} processors and no GPU")
    if torch.cuda.is_available() and wanted > torch.cuda.device_count() and "SLURM_STEP_ID" not in os.environ:
        raise FcotError(f"trainer.devices={wanted}: this machine has {torch.cuda.device_count()} GPUs")


def native_bf16() -> bool:
    """Whether this machine has a GPU that computes in bfloat16 itself; others emulate it, more slowly than float32."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def started_first() -> bool:
    """Whether this process is the first of those that ``srun`` or ``torchrun`` started together, or alone."""
    return int(os.environ.get("SLURM_PROCID" if "SLURM_STEP_ID" in os.environ else "RANK", "0")) == 0


def started_outside(devices: int, nodes: int) -> World | None:
    """The world that ``srun`` or ``torchrun`` made, None where this process was started alone.

    Raises:
        FcotError: It has another size than the configuration says.
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
            "one process a device"
        )
    return World(rank, size, nodes, slurm) if size > 1 else None


class Team:
    """All ranks of a run, as a context.

    Args:
        world: This process's place; a size above what was started outside means that the first rank spawns the others.
        follow: Module-level function that a spawned process calls with ``arguments``; it ends in :meth:`follow`.
        arguments: Can be pickled.
    """

    def __init__(self, world: World, outside: bool, follow: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.world = world
        self._outside = outside
        self._follow = follow
        self._arguments = arguments
        self._context: Any = None
        self._joined = self._leaving = False
        self._waiting: Any = None  # the group in which the others wait for the first one
        self._lifeline: Lifeline | None = None
        self._before = {name: os.environ.get(name) for name in _RENDEZVOUS}

    def __enter__(self) -> Team:
        return self

    def lead(self, task: Any, work: Callable[[], T]) -> T:
        """Do a shared task together with the other ranks, which are sent ``task``: any value but None that can be pickled."""
        if self.world.size == 1:
            return work()
        self._join()
        try:
            self._broadcast(task)
            return work()
        except RuntimeError as error:
            time.sleep(1.0)  # a connection breaks before its process has ended
            if lost := self._lost():
                raise FcotError(lost) from error
            self._stop_if_lost(error)
            raise

    def _stop_if_lost(self, error: RuntimeError) -> None:
        """End where an error says that another rank has gone: after a warning quietly, else with a message.

        Raises:
            KeyboardInterrupt: All ranks were warned, and the other one was first to leave.
            FcotError: It was lost.
        """
        if not self._outside or not re.search(_LOST_CONNECTION, str(error), re.IGNORECASE):
            return
        if stop_requested() is not None:
            raise KeyboardInterrupt from error
        reason = str(error).strip().splitlines()[0][-200:]
        raise FcotError(
            f"rank {self.world.rank} of {self.world.size} has lost another one ({reason}); the same command continues"
        ) from error

    def _broadcast(self, value: Any) -> Any:
        """The first rank's value, on all of them; they may wait for it for days."""
        import torch.distributed

        holder = [value]
        torch.distributed.broadcast_object_list(holder, 0, group=self._waiting)
        return holder[0]

    def _lost(self) -> str | None:
        """What to say where a spawned rank has ended before its time, None where all are there."""
        for rank, process in enumerate(self._context.processes if self._context else (), 1):
            if process.exitcode is not None:
                return f"rank {rank} of {self.world.size} ended with code {process.exitcode}; the same command continues"
        return None

    def _watch(self) -> None:
        """End the run when a spawned rank dies while the first one waits for it inside a call that nothing interrupts."""
        while not self._leaving:
            if self._lost():
                time.sleep(3.0)  # most calls fail by themselves, with a better message
                if not self._leaving and (lost := self._lost()):
                    say(lost)
                    os._exit(1)
            time.sleep(0.5)

    def follow(self, tasks: Callable[[Any], object]) -> None:
        """Do what the first rank leads to, silently, until it has nothing more."""
        be_silent()
        self._join()
        try:
            while (task := self._broadcast(None)) is not None:
                tasks(task)
        except RuntimeError as error:
            try:
                self._stop_if_lost(error)
            except FcotError as lost:  # whoever is silent says this all the same
                print(lost, file=sys.stderr, flush=True)
                sys.exit(1)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None and self._outside and self.world.rank == 0 and self.world.size > 1:
            self._join()  # the others wait to be told that there is nothing for them to do
        if not self._joined:
            return
        import torch.distributed

        if self._lifeline is not None and kind is not None:
            self._lifeline.leave()
        if kind is None and self.world.rank == 0:
            self._broadcast(None)
        self._leaving = True
        if self._lifeline is not None:
            self._lifeline.leave()
        torch.distributed.destroy_process_group()
        if self._lifeline is not None:
            self._lifeline.close()
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        for process in self._context.processes if self._context else ():
            if kind is not None:
                process.kill()
            process.join()  # their work is done: how they end does not matter

    def _join(self) -> None:
        """Meet the other ranks; the first one starts them where nobody did."""
        import torch

        if self._joined:
            return
        self._joined = True
        if not self._outside and self.world.rank == 0:
            port = _free_port()
            _set_rendezvous(0, self.world.size, port)
            say(f"training and evaluating with {self.world.size} processes")
            self._context = torch.multiprocessing.start_processes(
                _spawned,
                (self.world.size, port, self._follow, self._arguments),
                nprocs=self.world.size - 1,
                join=False,
                start_method="spawn",
            )
            threading.Thread(target=self._watch, daemon=True).start()
        elif self.world.slurm:
            from lightning_fabric.plugins.environments import SLURMEnvironment

            slurm = SLURMEnvironment(auto_requeue=False)
            os.environ.update(
                MASTER_ADDR=slurm.main_address, MASTER_PORT=str(slurm.main_port), RANK=str(self.world.rank), WORLD_SIZE=str(self.world.size)
            )
        if torch.cuda.is_available():
            local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
            torch.cuda.set_device(local % torch.cuda.device_count())  # SLURM may show each task only its own
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, timeout=_PATIENCE_AT_WORK)
        self._waiting = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
        if self._outside:
            host = os.environ["MASTER_ADDR"] if self.world.nodes > 1 else None
            self._lifeline = Lifeline(self.world.rank, self.world.size, host, self._broadcast)


def _spawned(index: int, size: int, port: int, follow: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    end_with_parent(signal.SIGKILL)  # a killed run leaves nothing behind
    for number in (signal.SIGTERM, WARNING):  # SLURM signals every process of a job; the first rank ends this one
        signal.signal(number, signal.SIG_IGN)
    if os.getppid() == 1:  # it had gone before
        os._exit(1)
    rank = index + 1
    _set_rendezvous(rank, size, port)
    follow(World(rank, size), *arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # taking down a process group's threads one by one can abort


def _set_rendezvous(rank: int, size: int, port: int) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), NODE_RANK="0"
    )


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
