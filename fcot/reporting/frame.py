"""How every table of a report looks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table


def framed(title: str | None, columns: Iterable[str], left: Sequence[str] = (), no_wrap: bool = False) -> Table:
    """An empty table: words in the ``left`` columns stand at the left, numbers in the others at the right."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=no_wrap)
    return table
