"""Messages to the user, and the progress of long work: a bar on a terminal, lines of text elsewhere."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_EVERY_S = 10.0
CELL_EVERY_S = 0.3
_PUBLISHED_EVERY_S = 2.0
_MANY = 20_000  # items whose processing takes seconds
_CHUNK = 500  # items between two updates of a bar
_Item = TypeVar("_Item")
_silent = False
_publish: Callable[[dict[str, Any]], object] | None = None


@contextlib.contextmanager
def published(publish: Callable[[dict[str, Any]], object]) -> Iterator[None]:
    """Pass the progress of all bars in this context to ``publish``, at most every two seconds.

    Args:
        publish: Called with the keys ``what``, ``done``, ``total``, ``unit`` and ``seconds_left`` (None if unknown).
    """
    global _publish
    _publish = publish
    try:
        yield
    finally:
        _publish = None


def be_silent() -> None:
    """Print no messages and no progress from now on: another process of the run prints them."""
    global _silent
    _silent = True


def say(message: str) -> None:
    """Print one line to stderr. Only results go to stdout (:func:`result_console`)."""
    if _silent:
        return
    print(message, file=sys.stderr, flush=True)


@cache
def say_once(message: str) -> None:
    """Print one line to stderr, unless this process has printed it before: the jobs of a sweep share data and settings."""
    say(message)


def result_console() -> Console:
    """The console for results, on stdout. If stdout is not a terminal, lines are 200 characters wide so that tables fit."""
    from rich.console import Console

    console = Console(highlight=False, force_jupyter=False)  # in a notebook too: text, which a caller can redirect
    return console if console.is_terminal else Console(highlight=False, force_jupyter=False, width=200)


def unwatched(_: object) -> None:
    """An ``advance`` or ``watch`` callback that does nothing."""


class Bar:
    """Counts finished work and shows it with its rate, its remaining time and a status.

    Args:
        what: Name of the work.
        total: Amount of work, in ``unit``.
        unit: Such as ``steps``.
        show: Called by each :meth:`advance` with the amount done, the rate (units per second) and the status. It may skip drawing.
    """

    def __init__(self, what: str, total: int, unit: str, show: Callable[[int, float, object], object]) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._show = show
        self._last_published = -math.inf
        self._start = time.monotonic()
        self._done = self._done_at_start = 0
        self._status: object = ""

    def advance(self, n: int) -> None:
        """Add ``n`` to the work done; 0 only redraws."""
        self._done += n
        now = time.monotonic()
        rate = (self._done - self._done_at_start) / max(1e-9, now - self._start)
        self._show(self._done, rate, self._status)
        if _publish is not None and now - self._last_published >= _PUBLISHED_EVERY_S:
            self._last_published = now
            seconds = (self._total - self._done) / rate if rate else None
            _publish({"what": self._what, "done": self._done, "total": self._total, "unit": self._unit, "seconds_left": seconds})

    def resume(self, n: int) -> None:
        """Add ``n`` units of work that an earlier process did. The rate is measured from here on."""
        self._done += n
        self._done_at_start, self._start = self._done, time.monotonic()

    def watch(self, status: object) -> None:
        """Show ``str(status)`` beside the progress from now on, and measure the rate from here on."""
        self._status, self._done_at_start, self._start = status, self._done, time.monotonic()


def _cell_line() -> Callable[[str], object] | None:
    """A function that shows a line of text below the running cell of a notebook and replaces the line before; None outside notebooks."""
    python = sys.modules.get("IPython")
    if python is None or not hasattr(python.get_ipython(), "kernel"):
        return None
    from IPython.display import display

    line = display({"text/plain": ""}, raw=True, display_id=True)
    return lambda text: line.update({"text/plain": text}, raw=True)


def _in_cell(what: str, total: int, unit: str, show_line: Callable[[str], object]) -> Callable[[int, float, object], None]:
    """A ``show`` function for :class:`Bar` that updates a line of a notebook, a few times per second."""
    shown_at = -math.inf

    def show(done: int, rate: float, status: object) -> None:
        nonlocal shown_at
        now = time.monotonic()
        if now - shown_at >= CELL_EVERY_S or done >= total:
            shown_at = now
            left = f", {_remaining(done, total, rate)}" if done < total else ""
            suffix = f"; {status}" if status != "" else ""
            show_line(f"{what}: {done:,}/{total:,} {unit}, {_pace(rate, unit)}{left}{suffix}")

    return show


@contextlib.contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Bar]:
    """Show progress: on a terminal a bar, with the status below it; in a notebook one changing line; elsewhere a line every ten seconds."""
    if not _silent and (show_line := _cell_line()) is not None:
        yield Bar(what, total, unit, _in_cell(what, total, unit, show_line))
        return
    if _silent or not sys.stderr.isatty():
        yield Bar(what, total, unit, _plain(what, total, unit))
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.text import Text

    columns = TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn(f"{unit} {{task.fields[rate]}}")
    bar, status_line = Progress(*columns), Text()
    task = bar.add_task(what, total=total, rate="")

    def draw(done: int, rate: float, status: object) -> None:
        bar.update(task, completed=done, rate=f"{_pace(rate, unit)}, {_remaining(done, total, rate)}")
        status_line.plain = f"  {status}" if status != "" else ""

    with Live(Group(bar, status_line), console=Console(stderr=True), transient=True):
        yield Bar(what, total, unit, draw)


def watched(items: Sequence[_Item], what: str, unit: str) -> Iterator[_Item]:
    """The items, with progress if they are so many that processing them takes seconds.

    Args:
        items: The items.
        what: Name of the work.
        unit: Such as ``rows``.
    """
    if len(items) < _MANY:
        yield from items
        return
    with progress(what, len(items), unit) as bar:
        for start in range(0, len(items), _CHUNK):
            chunk = items[start : start + _CHUNK]
            yield from chunk
            bar.advance(len(chunk))


def _pace(rate: float, unit: str) -> str:
    """Such as ``12.3/s``, or ``15.2 s/step`` for slow work."""
    return f"{rate:,.1f}/s" if rate >= 1 or not rate else f"{1 / rate:,.1f} s/{unit.removesuffix('s')}"


def _remaining(done: int, total: int, rate: float) -> str:
    return f"{(total - done) / rate:,.0f} s left" if rate else "remaining time unknown"


def _plain(what: str, total: int, unit: str) -> Callable[[int, float, object], None]:
    """A ``show`` function for :class:`Bar` that prints a line of text every ten seconds."""
    shown_at = time.monotonic()

    def show(done: int, rate: float, status: object) -> None:
        nonlocal shown_at
        now = time.monotonic()
        if now - shown_at >= PLAIN_EVERY_S and done < total:
            shown_at = now
            suffix = f"; {status}" if status != "" else ""
            say(f"{what}: {done:,}/{total:,} {unit}, {_pace(rate, unit)}, {_remaining(done, total, rate)}{suffix}")

    return show
