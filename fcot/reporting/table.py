"""A table of a report: words and numbers as they are shown, for the terminal, Markdown, LaTeX, CSV and HTML alike."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip
_LONG = 24  # characters of a cell from which on a page may fold it
_FOLDED = 14  # characters to which a terminal may narrow a column of words


@dataclass
class Table:
    """A table.

    Attributes:
        name: In file names and links.
        title: Above it; None where the page says enough.
        columns: Their heads.
        left: Heads of columns of words; those of the others, of numbers, stand at the right.
        rows: Cells as they are shown.
        notes: Below it.
        always: Heads of columns that a terminal shows, however narrow it is; the first one too.
    """

    name: str
    title: str | None
    columns: Sequence[str]
    left: Sequence[str] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    always: Sequence[str] = ()

    def add_row(self, *cells: str) -> None:
        """One more row."""
        assert len(cells) == len(self.columns), (self.name, cells)
        self.rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """On a terminal: words are folded, numbers are never cut; columns without room are named instead, from the right."""
        hidden: list[int] = []
        for place in reversed(range(1, len(self.columns))):
            if self._least_width(hidden) > options.max_width and self.columns[place] not in self.always:
                hidden.insert(0, place)
        yield self._drawn(hidden)
        if hidden:
            yield Text(f"  not shown, for want of room: {', '.join(self.columns[place] for place in hidden)}")
        yield from (Text(f"  {note}") for note in self.notes)

    def _least_width(self, hidden: Sequence[int]) -> int:
        """What the columns that are not hidden need at least."""
        shown = [place for place in range(len(self.columns)) if place not in hidden]
        widths = [max(cell_len(text) for text in (self.columns[place], *(row[place] for row in self.rows))) for place in shown]
        least = [min(width, _FOLDED) if self.columns[place] in self.left else width for width, place in zip(widths, shown, strict=True)]
        return sum(least) + 3 * len(shown) + 1  # blanks on both sides, and the box's own

    def _drawn(self, hidden: Sequence[int]) -> RichTable:
        """Without some columns."""
        table = RichTable(box=box.SIMPLE_HEAD, title=Text(self.title, style="italic") if self.title else None, title_justify="left")
        shown = [place for place in range(len(self.columns)) if place not in hidden]
        for name in (self.columns[place] for place in shown):
            table.add_column(Text(name), justify=self._side(name), no_wrap=name not in self.left, overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(row[place]) for place in shown))
        return table

    def _side(self, name: str) -> Literal["left", "right"]:
        return "left" if name in self.left else "right"

    def to_markdown(self) -> str:
        """A pipe table."""
        lines = [_piped(self.columns), _piped([":--" if name in self.left else "--:" for name in self.columns]), *map(_piped, self.rows)]
        return (
            "\n".join(
                [*([f"**{plain(self.title)}**", ""] if self.title else []), *lines, *(["", *map(plain, self.notes)] if self.notes else [])]
            )
            + "\n"
        )

    def to_latex(self) -> str:
        """As the papers print them: booktabs' rules, caption below."""
        columns = "".join("l" if name in self.left else "r" for name in self.columns)
        sides = [self._side(name) for name in self.columns]
        rows = [
            " & ".join(latex(cell) if side == "left" else _number(cell) for cell, side in zip(row, sides, strict=True)) + r" \\"
            for row in self.rows
        ]
        caption = " ".join(filter(None, [self.title and latex(self.title) + ".", *map(latex, self.notes)]))
        return "\n".join([
            r"\begin{table}[t]", r"\centering", rf"\begin{{tabular}}{{{columns}}}", r"\toprule",
            " & ".join(map(latex, self.columns)) + r" \\", r"\midrule", *rows, r"\bottomrule", r"\end{tabular}",
            *([rf"\caption{{{caption}}}"] if caption else []), rf"\label{{tab:{self.name}}}", r"\end{table}", "",
        ])  # fmt: skip

    def to_csv(self) -> str:
        """Heads and cells."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue()

    def to_html(self) -> str:
        """A ``<table>`` with its title as caption; notes follow as paragraphs."""
        sides = [self._side(name) for name in self.columns]
        wide = [side == "left" and any(len(row[place]) > _LONG for row in self.rows) for place, side in enumerate(sides)]
        kinds = [f"{side} wide" if is_wide else side for side, is_wide in zip(sides, wide, strict=True)]
        heads = "".join(f'<th scope="col" class="{kind}">{html.escape(name)}</th>' for name, kind in zip(self.columns, kinds, strict=True))
        rows = "".join(
            "<tr>" + "".join(f'<td class="{kind}">{html.escape(cell)}</td>' for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
            for row in self.rows
        )
        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in self.notes)
        body = f"{caption}<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>"
        return f'<div class="scroll"><table id="table-{self.name}">{body}</table></div>{notes}'


def latex(text: str) -> str:
    """Text with what LaTeX would take for commands escaped."""
    escaped = "".join(_LATEX.get(character, character) for character in text.replace("\n", " "))
    return f"{{}}{escaped}" if escaped.startswith("[") else escaped  # after a line's end it would be read as an argument


def _number(cell: str) -> str:
    """A cell of numbers: with minus signs, and a range from one to another."""
    if found := re.fullmatch(r"([\d.]+)-([\d.]+)", cell.strip()):
        return f"{found[1]}--{found[2]}"
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", latex(cell.strip()))


def _piped(cells: Iterable[str]) -> str:
    return "| " + " | ".join(re.sub(r"\s*\n\s*", "<br>", plain(cell)).replace("|", "\\|") for cell in cells) + " |"


def plain(text: str) -> str:
    """Text that Markdown shows as it is: marks of HTML, links, pictures and formulas are none."""
    shown = re.sub(r"([\\`*\[\]!$~]|(?<!\w)_|_(?!\w))", r"\\\1", html.escape(text, quote=False))
    return shown.replace("://", "&#58;//")
