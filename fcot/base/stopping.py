"""A stop that a signal asks for: the signal only leaves a note, and work ends at its next safe place.

SLURM warns before a time limit or a preemption (``SIGUSR2``, as submitit asks for it; ``SIGTERM`` where a partition sends
nothing else). What a handler may do at such a moment is next to nothing, so it does nothing: training looks at the note after
an optimizer step and writes a checkpoint, a purchase sends nothing more and waits for what it has paid for, and then
:func:`stop_if_requested` raises ``KeyboardInterrupt``, which everything else knows from Ctrl-C.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from types import FrameType

WARNING = signal.SIGUSR2
_SLICE_S = 0.5  # between two looks at the note while waiting
_ONE_REQUEST_S = 2.0  # the kernel sends one signal for each thread of a parent that was killed
_SIGNAL_AT_END_OF_PARENT = 1  # PR_SET_PDEATHSIG of Linux
_asked: signal.Signals | None = None
_terminated: float | None = None


def listen() -> None:
    """Take ``SIGUSR2`` and ``SIGTERM`` as requests to stop; another ``SIGTERM`` two seconds later or more ends the process."""
    signal.signal(WARNING, _note)
    signal.signal(signal.SIGTERM, _note)


def note(number: int) -> None:
    """Leave the note that a signal asks for a stop: one that came to another process of the same run."""
    global _asked
    if _asked is None:
        _asked = signal.Signals(number)


def _note(number: int, _: FrameType | None) -> None:
    global _terminated
    note(number)
    if number != signal.SIGTERM:
        return
    if _terminated is None:
        _terminated = time.monotonic()
    elif time.monotonic() - _terminated > _ONE_REQUEST_S:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def end_with_parent(number: int, parent: int | None = None) -> None:
    """Have the kernel send this process a signal when its parent ends, however it ends; on Linux, elsewhere nothing.

    Called by the child itself, before it starts any work: code between fork and exec in a process with threads may deadlock.

    Args:
        number: The signal.
        parent: The parent's process id, known from the parent: where that one has ended already, the signal comes at once.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_SIGNAL_AT_END_OF_PARENT, number)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), number)


def stop_requested() -> signal.Signals | None:
    """The signal that requested a stop; None while none has."""
    return _asked


def stop_if_requested() -> None:
    """End the work here if a signal has requested it.

    Raises:
        KeyboardInterrupt: It has.
    """
    if _asked is not None:
        raise KeyboardInterrupt


def sleep(seconds: float) -> None:
    """``time.sleep`` that ends with :func:`stop_if_requested`."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        stop_if_requested()
        time.sleep(min(left, _SLICE_S))


async def asyncio_sleep(seconds: float) -> None:
    """``asyncio.sleep`` that ends with :func:`stop_if_requested`."""
    import asyncio  # here: a hundredth of a second at every start

    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        stop_if_requested()
        await asyncio.sleep(min(left, _SLICE_S))
