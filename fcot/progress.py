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


def unwatched(_: object) -> None:
    """An ``advance`` or ``watch`` for callers whom nobody watches."""


class Bar:
    """Shows done/total, rate and remaining time on stderr, and what :meth:`watch` was given.

    Args:
        show: Called with what is done and the note, at each step; decides itself how often to draw.
    """

    def __init__(self, show: Callable[[int, object], object]) -> None:
        self._show = show
        self._done = 0
        self._watched: object = ""

    def advance(self, n: int) -> None:
        """Count ``n`` more as done; 0 redraws."""
        self._done += n
        self._show(self._done, self._watched)

    def watch(self, status: object) -> None:
        """Show ``str(status)`` beside the rate from now on."""
        self._watched = status


@contextlib.contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Bar]:
    """A bar on a terminal, a line every ten seconds elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
            TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total, rate="", note="")
            start = time.monotonic()

            def draw(done: int, note: object) -> None:
                bar.update(task, completed=done, rate=f"{done / max(1e-9, time.monotonic() - start):,.1f}/s", note=note)

            yield Bar(draw)
    else:
        yield Bar(_plain(what, total, unit))


def _plain(what: str, total: int, unit: str) -> Callable[[int, object], None]:
    start = last = time.monotonic()

    def show(done: int, note: object) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PLAIN_EVERY_S and done < total:
            last = now
            rate = done / (now - start)
            left = f"{(total - done) / rate:,.0f} s left" if rate else "nothing yet"
            say(f"{what}: {done:,}/{total:,} {unit}, {rate:,.1f}/s, {left}" + (f"; {note}" if note != "" else ""))

    return show
