"""Checkpoints of a training: written whole or not at all; the last two are kept, and damaged ones are detected."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)  # fmt: skip
from torch.distributed.fsdp import FSDPModule

from fcot.base.console import say
from fcot.base.files import file_fingerprint, replacing
from fcot.decoding.models import not_finite

_N_KEPT = 2  # the last one, and the one before it in case the last one is damaged
_SHARE = 0.05  # largest share of the time that writing may take
_ASSUMED_PACE = 1e8  # bytes per second, until the first checkpoint is written
_ASSEMBLED = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Checkpoints:
    """The checkpoints of one training in a folder of their own: ``step_<k>.<digest>.ckpt``.

    Args:
        folder: A folder that holds nothing else.
        every_s: Least seconds between two checkpoints. The time is longer if writing would take more than a twentieth of it.
        n_bytes: Approximate size of a checkpoint. It decides how long to wait for the first one.
    """

    def __init__(self, folder: Path, every_s: float, n_bytes: float = 0.0) -> None:
        self.folder = folder
        self._every_s = every_s
        self._wait_s = max(every_s, n_bytes / _ASSUMED_PACE / _SHARE)
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        return time.monotonic() - self._last >= self._wait_s

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint, then remove those that are no longer needed.

        Args:
            state: The content of the checkpoint. It has ``step``, the number of optimizer steps done, and ``weights``.

        Raises:
            FcotError: The disk is full or the folder is not writable; the older checkpoints stay.
        """
        started = time.monotonic()
        unnamed = self.folder / "step"
        with replacing(unnamed) as temporary, temporary.open("wb") as file:
            hashed = _Hashed(file)
            try:
                torch.save(dict(state), hashed)  # type: ignore[arg-type]
            except RuntimeError as error:  # a full disk, as torch's writer reports it
                raise OSError(None, str(error)) from error
        os.replace(unnamed, self.folder / f"step_{state['step']}.{hashed.sha256.hexdigest()[:16]}.ckpt")
        for old in self._newest_first()[_N_KEPT:]:
            old.unlink(missing_ok=True)
        self._last = time.monotonic()
        self._wait_s = max(self._every_s, (self._last - started) / _SHARE)

    def load(self) -> dict[str, Any] | None:
        """Load the newest undamaged checkpoint with finite weights; None if there is none."""
        for path in self._newest_first():
            if file_fingerprint(path)[:16] != path.name.split(".")[1]:
                say(f"warning: {path} is damaged and is left out")
                continue
            state = dict(torch.load(path, map_location="cpu", weights_only=True))
            if (broken := not_finite(state["weights"])) is None:
                return state
            say(f"warning: {path} is left out: its weight {broken} is not finite (inf or nan)")
        return None

    def set_aside(self, student: Path) -> None:
        """Remove the student that an unfinished training wrote; keep it for :meth:`take_back` if there is a checkpoint."""
        aside = self.folder / student.name
        shutil.rmtree(aside, ignore_errors=True)
        if student.exists() and self._newest_first():
            os.replace(student, aside)
        else:
            shutil.rmtree(student, ignore_errors=True)

    def take_back(self, student: Path) -> None:
        """Move the student that :meth:`set_aside` kept back to its place, unless there is one already."""
        aside = self.folder / student.name
        if aside.exists() and not student.exists():
            os.replace(aside, student)

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step_*.*.ckpt"), key=_age)


class _Hashed:
    """A file that hashes what is written to it: hashing gigabytes afterwards would take as long as writing them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write data to the file."""
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Flush the file."""
        self._file.flush()


def _age(path: Path) -> tuple[int, int]:
    return -int(path.name.split(".")[0].removeprefix("step_")), -path.stat().st_mtime_ns


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether the parameters are sharded over the ranks."""
    return isinstance(model, FSDPModule)


@contextlib.contextmanager
def gathered(model: torch.nn.Module) -> Iterator[None]:
    """Give every rank all parameters within the context. Ranks that decode take different numbers of steps, so no step can gather them."""
    if not isinstance(model, FSDPModule):
        yield
        return
    gather_weights(model)
    yield
    model.set_reshard_after_forward(True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gather_weights(model: torch.nn.Module) -> None:
    """Give every rank all parameters; they stay gathered until they are sharded again explicitly."""
    if isinstance(model, FSDPModule):
        model.set_reshard_after_forward(False)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.unshard()


def trained_weights(model: torch.nn.Module) -> dict[str, Any]:
    """The trainable parameters by name. If the model is sharded, the first rank gets whole tensors, and the others get nothing."""
    if is_sharded(model):
        return get_model_state_dict(model, options=_ASSEMBLED)
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def checkpoint_bytes(model: torch.nn.Module) -> float:
    """Approximate size of a checkpoint in bytes: the trainable parameters, and AdamW's two moments of each."""
    return 3.0 * sum(weight.numel() * weight.element_size() for weight in model.parameters() if weight.requires_grad)


def optimizer_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state by parameter name, so that a training can continue under another strategy.

    If the model is sharded, the first rank gets whole tensors, and the others get nothing.
    """
    if is_sharded(model):
        return dict(get_optimizer_state_dict(model, optimizer, options=_ASSEMBLED))
    state = optimizer.state_dict()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    (group,) = state["param_groups"]
    return {"state": {names[index]: moments for index, moments in state["state"].items()}, "param_groups": [group | {"params": names}]}


def restore_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state of :func:`optimizer_state` into the optimizer; every rank passes the whole state."""
    if is_sharded(model):
        set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))
    else:
        optimizer.load_state_dict(state)
