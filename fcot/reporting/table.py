"""A table of formatted cells, which prints on a terminal and converts to Markdown, LaTeX, CSV and HTML."""

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
_LONG = 24  # the page may wrap cells with more characters
_FOLDED = 14  # a terminal may narrow a text column to this many characters


@dataclass
class Table:
    """A table.

    Attributes:
        name: The name in file names and links.
        title: The title above the table; None shows none.
        columns: The column names.
        left: The text columns, which are aligned left; all others are aligned right.
        rows: The formatted cells.
        notes: Lines below the table.
        always: The columns that even a narrow terminal shows; the first column always is.
    """

    name: str
    title: str | None
    columns: Sequence[str]
    left: Sequence[str] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    always: Sequence[str] = ()

    def add_row(self, *cells: str) -> None:
        """Append a row."""
        assert len(cells) == len(self.columns), (self.name, cells)
        self.rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render on a terminal: text is wrapped, numbers are never cut. Columns that do not fit are hidden from the right and named."""
        hidden: list[int] = []
        for place in reversed(range(1, len(self.columns))):
            if self._least_width(hidden) > options.max_width and self.columns[place] not in self.always:
                hidden.insert(0, place)
        yield self._rich_table(hidden)
        if hidden:
            yield Text(f"  not shown, the terminal is too narrow: {', '.join(self.columns[place] for place in hidden)}")
        yield from (Text(f"  {note}") for note in self.notes)

    def _least_width(self, hidden: Sequence[int]) -> int:
        """The minimum width of the table without the hidden columns."""
        shown = [place for place in range(len(self.columns)) if place not in hidden]
        widths = [max(cell_len(text) for text in (self.columns[place], *(row[place] for row in self.rows))) for place in shown]
        least = [min(width, _FOLDED) if self.columns[place] in self.left else width for width, place in zip(widths, shown, strict=True)]
        return sum(least) + 3 * len(shown) + 1  # blanks on both sides, and the box's own

    def _rich_table(self, hidden: Sequence[int]) -> RichTable:
        """The table without the hidden columns."""
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
        """A LaTeX table with booktabs rules and the caption below."""
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
        """Column names and cells as CSV."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue()

    def to_html(self) -> str:
        """A ``<table>`` with the title as caption, followed by the notes as paragraphs."""
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
    """Text with LaTeX's special characters escaped."""
    escaped = "".join(_LATEX.get(character, character) for character in text.replace("\n", " "))
    return f"{{}}{escaped}" if escaped.startswith("[") else escaped  # after a row end LaTeX would read it as an argument


def _number(cell: str) -> str:
    """A cell of numbers as LaTeX: minus signs in math mode, ranges with an en dash."""
    if ends := re.fullmatch(r"([\d.]+)-([\d.]+)", cell.strip()):
        return f"{ends[1]}--{ends[2]}"
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", latex(cell.strip()))


def _piped(cells: Iterable[str]) -> str:
    return "| " + " | ".join(re.sub(r"\s*\n\s*", "<br>", plain(cell)).replace("|", "\\|") for cell in cells) + " |"


def plain(text: str) -> str:
    """Text escaped so that Markdown shows it verbatim, without HTML, links, images or formulas. It stays readable in the source, too."""
    tag, entity, address = r"<(?=[A-Za-z/!?])", r"&(?=#?\w+;)", r":(?=//)"
    shown = re.sub(rf"([\\`*\[\]!$~]|(?<!\w)_|_(?!\w)|{tag}|{entity}|{address})", r"\\\1", text)
    return re.sub(r"^(\s*)>", r"\1\\>", shown, flags=re.MULTILINE)
