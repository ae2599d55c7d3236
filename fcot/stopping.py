"""A stop that a signal asks for: the signal only leaves a note, and work ends at its next safe place.

SLURM warns before a time limit or a preemption (``SIGUSR2``, as submitit asks for it; ``SIGTERM`` where a partition sends
nothing else). What a handler may do at such a moment is next to nothing, so it does nothing: training looks at the note after
an optimizer step and writes a checkpoint, a purchase sends nothing more and waits for what it has paid for, and then
:func:`stop_if_asked` raises ``KeyboardInterrupt``, which everything else knows from Ctrl-C.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

WARNING = signal.SIGUSR2
_SLICE_S = 0.5  # between two looks at the note while waiting
_asked: signal.Signals | None = None


def listen() -> None:
    """Take ``SIGUSR2`` and ``SIGTERM`` as requests to stop; a second ``SIGTERM`` ends the process."""
    signal.signal(WARNING, _note)
    signal.signal(signal.SIGTERM, _note)


def _note(number: int, _: FrameType | None) -> None:
    global _asked
    if _asked is None:
        _asked = signal.Signals(number)
    if number == signal.SIGTERM:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def asked() -> signal.Signals | None:
    """The signal that asked for a stop, None while none has."""
    return _asked


def stop_if_asked() -> None:
    """End the work here where a signal has asked for it.

    Raises:
        KeyboardInterrupt: It has.
    """
    if _asked is not None:
        raise KeyboardInterrupt


def sleep(seconds: float) -> None:
    """``time.sleep`` that ends with :func:`stop_if_asked`."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        stop_if_asked()
        time.sleep(min(left, _SLICE_S))


async def asyncio_sleep(seconds: float) -> None:
    """``asyncio.sleep`` that ends with :func:`stop_if_asked`."""
    import asyncio  # here: a hundredth of a second at every start

    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        stop_if_asked()
        await asyncio.sleep(min(left, _SLICE_S))
