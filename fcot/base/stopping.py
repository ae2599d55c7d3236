"""Stopping on a signal: the handler only records the request, and the work ends at its next safe point.

SLURM sends a signal before a time limit or a preemption: ``SIGUSR2``, as submitit configures it, or ``SIGTERM`` on partitions that send
nothing else. A signal handler may do very little, so it only records the request. Training checks for a request after each optimizer
step and writes a checkpoint. A purchase sends no further request and waits for the answers that it has paid for. Then
:func:`stop_if_requested` raises ``KeyboardInterrupt``, and everything else works as after Ctrl-C.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from types import FrameType

WARNING = signal.SIGUSR2
_CHECK_EVERY_S = 0.5  # while waiting
_SAME_REQUEST_S = 2.0  # when a parent is killed, the kernel sends one signal for each of its threads
_SIGNAL_AT_END_OF_PARENT = 1  # PR_SET_PDEATHSIG of Linux
_requested: signal.Signals | None = None
_first_sigterm_at: float | None = None  # time.monotonic()


def listen() -> None:
    """Treat ``SIGUSR2`` and ``SIGTERM`` as requests to stop. A ``SIGTERM`` more than two seconds after the first ends the process.

    Signals that :mod:`fcot.sweeps.hold_signals` has held back since the process started arrive now.
    """
    signal.signal(WARNING, _handle)
    signal.signal(signal.SIGTERM, _handle)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (WARNING, signal.SIGTERM))


def note(number: int) -> None:
    """Record a request to stop. Used directly for a signal that another process of the same run received."""
    global _requested
    if _requested is None:
        _requested = signal.Signals(number)


def forget(number: int) -> None:
    """Withdraw the request of a signal, after the work that it stopped has ended and the process goes on."""
    global _requested
    if _requested == number:
        _requested = None


def _handle(number: int, _: FrameType | None) -> None:
    global _first_sigterm_at
    note(number)
    if number != signal.SIGTERM:
        return
    if _first_sigterm_at is None:
        _first_sigterm_at = time.monotonic()
    elif time.monotonic() - _first_sigterm_at > _SAME_REQUEST_S:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def end_with_parent(number: int, parent: int | None = None) -> None:
    """Make the kernel send this process a signal when its parent ends. Does nothing on systems other than Linux.

    The child calls it before it starts any work. Between fork and exec it could deadlock in a process with threads.

    Args:
        number: The signal.
        parent: The parent's process id, which the parent itself passed to this process. If the parent has already ended, this process
            sends itself the signal at once. None skips this check.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_SIGNAL_AT_END_OF_PARENT, number)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), number)


def stop_requested() -> signal.Signals | None:
    """The signal that requested a stop; None if there was none."""
    return _requested


def stop_if_requested() -> None:
    """End the work here if a signal has requested a stop.

    Raises:
        KeyboardInterrupt: A signal has requested a stop.
    """
    if _requested is not None:
        raise KeyboardInterrupt


def sleep(seconds: float) -> None:
    """``time.sleep`` that calls :func:`stop_if_requested` every half second."""
    until = time.monotonic() + seconds
    while (remaining := until - time.monotonic()) > 0:
        stop_if_requested()
        time.sleep(min(remaining, _CHECK_EVERY_S))


async def asyncio_sleep(seconds: float) -> None:
    """``asyncio.sleep`` that calls :func:`stop_if_requested` every half second."""
    import asyncio  # here, because importing it takes a hundredth of a second at every start

    until = time.monotonic() + seconds
    while (remaining := until - time.monotonic()) > 0:
        stop_if_requested()
        await asyncio.sleep(min(remaining, _CHECK_EVERY_S))
