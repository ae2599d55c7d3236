"""Runs coroutines from ordinary code, also in a notebook, whose cells run inside an event loop."""

from __future__ import annotations

import asyncio
import contextvars
import signal
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from fcot.base.stopping import forget, note

Result = TypeVar("Result")


def run_async(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """``asyncio.run``, which also works where an event loop runs in this thread: the coroutine then runs in a thread with its own loop.

    In that case a first Ctrl-C (the stop button of a notebook) counts as a request to stop, which :mod:`fcot.base.stopping` passes on to
    the coroutine, and a second one cancels it.

    Raises:
        KeyboardInterrupt: Ctrl-C; and whatever the coroutine raises.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> Result:
        loops.append(asyncio.get_running_loop())
        return await coroutine

    context = contextvars.copy_context()  # a notebook's output goes to the cell that the context names
    with ThreadPoolExecutor(1) as pool:
        return _result(pool.submit(context.run, asyncio.run, main()), loops)


def _result(future: Future[Result], loops: list[asyncio.AbstractEventLoop]) -> Result:
    """Wait for the coroutine, and pass on interrupts that arrive meanwhile."""
    interrupts = 0
    try:
        while True:
            try:
                return future.result()
            except KeyboardInterrupt:
                if future.done():
                    raise
                interrupts += 1
                if interrupts == 1:
                    note(signal.SIGINT)
                elif loops:
                    loops[0].call_soon_threadsafe(_cancel_all, loops[0])
            except asyncio.CancelledError as error:
                raise KeyboardInterrupt from error
    finally:
        if interrupts:
            forget(signal.SIGINT)


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
