"""Progress of long work: a bar with rate and remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

PLAIN_EVERY_S = 10.0


def say(message: str) -> None:
    """One line to the person at the terminal; results go to stdout, everything else to stderr."""
    print(message, file=sys.stderr, flush=True)


def unwatched(n: int) -> None:
    """An ``advance`` for callers whom nobody watches."""


@contextlib.contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yield ``advance(n)``; shows done/total, rate and remaining time on stderr."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
            TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total, rate="")
            start = time.monotonic()

            def advance(n: int) -> None:
                done = bar.tasks[0].completed + n
                bar.update(task, advance=n, rate=f"{done / max(1e-9, time.monotonic() - start):,.1f}/s")

            yield advance
    else:
        yield _plain(what, total, unit)


def _plain(what: str, total: int, unit: str) -> Callable[[int], None]:
    start = last = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= PLAIN_EVERY_S and done < total:
            last = now
            rate = done / (now - start)
            say(f"{what}: {done:,}/{total:,} {unit}, {rate:,.1f}/s, {(total - done) / max(rate, 1e-9):,.0f} s left")

    return advance
