"""How Lightning's trainer is run: Ctrl-C, memory, rounding of products, and what it is not to say."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import signal
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from fcot.base.files import disk_error
from fcot.student.data import ReasoningData
from fcot.student.module import StudentModule


def fit(trainer: pl.Trainer, module: StudentModule, data: ReasoningData, tf32: bool, log_folder: Path | None) -> None:
    """Run the trainer.

    Raises:
        KeyboardInterrupt: Ctrl-C, which Lightning turns into an exit.
        FcotError: The disk is full.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with _keeping_freed_memory():
            trainer.fit(module, datamodule=data)
    except SystemExit as error:  # Lightning's answer to Ctrl-C; it also ignores further ones from then on
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from error
    except OSError as error:
        raise disk_error(error, log_folder or Path("the training log")) from error
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def _keeping_freed_memory() -> Iterator[None]:
    """Within, glibc keeps what is freed: it would give gradients back to the system and fault them in again, step after step.

    A tenth of a small student's time on a CPU. Blocks of 32 MiB and more are given back: kept ones of many sizes, as batches of
    different lengths leave them, fit nothing that comes later, and memory only grows. Without effect where there is a GPU or no glibc.
    """
    libc = ctypes.CDLL(None)
    if torch.cuda.is_available() or not hasattr(libc, "mallopt"):
        yield
        return
    trim, pad, given_back = -1, -2, -3  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
    for option, value in ((given_back, 2**25), (trim, 2**31 - 1), (pad, 2**26)):
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in ((given_back, 2**17), (trim, 2**17), (pad, 0)):
            libc.mallopt(option, value)
        libc.malloc_trim(0)


def cpu_has_bf16() -> bool:
    """Whether the CPU computes in bfloat16 itself, or torch is too old to know."""
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return not known or any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "avx10_2", "bf16"))


def quiet() -> None:
    """Silence Lightning's advice on matters that are decided here (workers, devices, optional packages)."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*Experiment logs directory.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*FSDP2-wrapped module.*returned a view.*")
