"""Runs Lightning's trainer, and handles Ctrl-C, freed memory, the precision of matrix products, and unneeded warnings."""

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
from transformers.utils import logging as transformers_logging

from fcot.base.files import disk_error
from fcot.student.data import ReasoningData
from fcot.student.module import StudentModule


def fit(trainer: pl.Trainer, module: StudentModule, data: ReasoningData, tf32: bool, log_folder: Path | None) -> None:
    """Run the trainer over all micro-batches.

    Args:
        trainer: Lightning's trainer.
        module: The student.
        data: The micro-batches.
        tf32: Whether a GPU may round the inputs of float32 matrix products to TF32.
        log_folder: Folder of the training log, for the message about a full disk; None if there is no log.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; Lightning itself would raise SystemExit.
        FcotError: The disk is full.
    """
    former_precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with _keeping_freed_memory():
            trainer.fit(module, datamodule=data)
    except SystemExit as error:  # Lightning raises it on Ctrl-C, and ignores further Ctrl-C from then on
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from error
    except OSError as error:
        raise disk_error(error, log_folder or Path("the training log")) from error
    finally:
        torch.set_float32_matmul_precision(former_precision)


@contextlib.contextmanager
def _keeping_freed_memory() -> Iterator[None]:
    """Make glibc keep freed memory while the context is open; no effect with a GPU or without glibc.

    By default glibc returns the memory of gradients to the system after each step and requests it again in the next one. On a CPU this
    costs a small student a tenth of its time. Blocks of 32 MiB and more are still returned: batches of different lengths leave blocks of
    many sizes, which no later block fits into, so memory would only grow.
    """
    libc = ctypes.CDLL(None)
    if torch.cuda.is_available() or not hasattr(libc, "mallopt"):
        yield
        return
    trim, pad, mmap = -1, -2, -3  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
    for option, value in ((mmap, 2**25), (trim, 2**31 - 1), (pad, 2**26)):
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in ((mmap, 2**17), (trim, 2**17), (pad, 0)):
            libc.mallopt(option, value)
        libc.malloc_trim(0)


def cpu_has_bf16() -> bool:
    """Whether the CPU has bfloat16 instructions; also True if this version of torch does not report them."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return not capabilities or any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "avx10_2", "bf16"))


def quiet() -> None:
    """Silence warnings of Lightning about choices that fcot makes itself (workers, devices, optional packages), and transformers' bars."""
    transformers_logging.disable_progress_bar()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*Experiment logs directory.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*FSDP2-wrapped module.*returned a view.*")
