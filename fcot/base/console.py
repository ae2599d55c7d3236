"""Progress of long work: a bar with rate and remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_EVERY_S = 10.0
_PUBLISHED_EVERY_S = 2.0
_silent = False
_publish: Callable[[dict[str, Any]], object] | None = None


@contextlib.contextmanager
def published(publish: Callable[[dict[str, Any]], object]) -> Iterator[None]:
    """Within, bars are also given to ``publish``, every two seconds: what, done, total, unit and the seconds left (null if unknown)."""
    global _publish
    _publish = publish
    try:
        yield
    finally:
        _publish = None


def be_silent() -> None:
    """Say and show nothing from now on: another process does."""
    global _silent
    _silent = True


def say(message: str) -> None:
    """One line to the person at the terminal; results go to stdout, everything else to stderr."""
    if _silent:
        return
    print(message, file=sys.stderr, flush=True)


def result_console() -> Console:
    """Where results are printed: stdout, as wide as tables need where that is no terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


def unwatched(_: object) -> None:
    """An ``advance`` or ``watch`` for callers whom nobody watches."""


class Bar:
    """Shows done/total, rate and remaining time on stderr, and what :meth:`watch` was given.

    Args:
        what: The work's name.
        total: How much there is to do.
        unit: Of what.
        show: Called with what is done, the rate (1/s) and the note, at each step; decides itself how often to draw.
    """

    def __init__(self, what: str, total: int, unit: str, show: Callable[[int, float, object], object]) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._show = show
        self._published = -math.inf
        self._start = time.monotonic()
        self._before = self._done = 0
        self._watched: object = ""

    def advance(self, n: int) -> None:
        """Count ``n`` more as done; 0 redraws."""
        self._done += n
        now = time.monotonic()
        rate = (self._done - self._before) / max(1e-9, now - self._start)
        self._show(self._done, rate, self._watched)
        if _publish is not None and now - self._published >= _PUBLISHED_EVERY_S:
            self._published = now
            left = (self._total - self._done) / rate if rate else None
            _publish({"what": self._what, "done": self._done, "total": self._total, "unit": self._unit, "seconds_left": left})

    def resume(self, n: int) -> None:
        """Count ``n`` as done before now: they count for no rate."""
        self._done += n
        self._before, self._start = self._done, time.monotonic()

    def watch(self, status: object) -> None:
        """Show ``str(status)`` from now on; what was done before counts for no rate."""
        self._watched, self._before, self._start = status, self._done, time.monotonic()


@contextlib.contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Bar]:
    """A bar on a terminal with the note on a line of its own; elsewhere a line every ten seconds."""
    if _silent or not sys.stderr.isatty():
        yield Bar(what, total, unit, _plain(what, total, unit))
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.text import Text

    columns = TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn(f"{unit} {{task.fields[rate]}}")
    bar, note = Progress(*columns), Text()
    task = bar.add_task(what, total=total, rate="")

    def draw(done: int, rate: float, status: object) -> None:
        bar.update(task, completed=done, rate=f"{_pace(rate, unit)}, {_left(done, total, rate)}")
        note.plain = f"  {status}" if status != "" else ""

    with Live(Group(bar, note), console=Console(stderr=True), transient=True):
        yield Bar(what, total, unit, draw)


def _pace(rate: float, unit: str) -> str:
    """Such as ``12.3/s``; of slow work ``15.2 s/step``."""
    return f"{rate:,.1f}/s" if rate >= 1 or not rate else f"{1 / rate:,.1f} s/{unit.removesuffix('s')}"


def _left(done: int, total: int, rate: float) -> str:
    return f"{(total - done) / rate:,.0f} s left" if rate else "nothing yet"


def _plain(what: str, total: int, unit: str) -> Callable[[int, float, object], None]:
    last = time.monotonic()

    def show(done: int, rate: float, status: object) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PLAIN_EVERY_S and done < total:
            last = now
            said = f"; {status}" if status != "" else ""
            say(f"{what}: {done:,}/{total:,} {unit}, {_pace(rate, unit)}, {_left(done, total, rate)}{said}")

    return show
