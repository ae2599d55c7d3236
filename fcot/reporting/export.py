"""Export a report as files: each table and figure, the whole report as Markdown, and the numbers as CSV."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fcot.base.errors import FcotError
from fcot.base.files import read_json, write_atomic, write_json
from fcot.reporting.document import Block, Chart, Code, Document, Paragraph
from fcot.reporting.figures import save
from fcot.reporting.published import find_published
from fcot.reporting.settings import Setting, varied_keys
from fcot.reporting.table import Table, plain


def export_files(document: Document, settings: Sequence[Setting], folder: Path) -> None:
    """Write ``tables/`` (Markdown, LaTeX, CSV), ``figures/`` (SVG, PDF, PNG), ``report.md`` and ``settings.csv`` into a folder.

    Without settings, as before any training, there is no ``settings.csv``. Files of an earlier report that this one does not write are
    removed; other files in the folder stay.
    """
    listing = folder / "files.json"
    old_files: list[str] = []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # missing or damaged: then nothing is removed
        old_files = list(read_json(listing)["files"])
    text = [f"# {plain(document.title)}", plain(document.answer), *(f"- not in the report: {plain(line)}" for line in document.missing)]
    written: list[str] = []
    for section in document.sections:
        text.append(f"## {section.title}" if section.id != "samples" else "")
        for block in section.blocks:
            written += _write(block, folder)
            text.append(_markdown(block))
    write_atomic(folder / "report.md", "\n\n".join(filter(None, text)) + "\n")
    if settings:
        write_atomic(folder / "settings.csv", _data(settings))
    write_json(listing, {"files": written})
    for name in set(old_files) - set(written):
        (folder / name).unlink(missing_ok=True)


def _write(block: Block, folder: Path) -> Iterator[str]:
    """Write the files of a table or figure; yield their names."""
    if isinstance(block, Table):
        for suffix, text in (("md", block.to_markdown()), ("tex", block.to_latex()), ("csv", block.to_csv())):
            write_atomic(folder / "tables" / f"{block.name}.{suffix}", text)
            yield f"tables/{block.name}.{suffix}"
    elif isinstance(block, Chart):
        try:
            yield from (f"figures/{path.name}" for path in save(block, folder / "figures"))
        except FcotError as error:
            print(error)


def _markdown(block: Block) -> str:
    """A block in ``report.md``; folded blocks (configurations) are left out, as the runs' folders have them."""
    if isinstance(block, Table):
        return block.to_markdown()
    if isinstance(block, Chart):
        return f"![{plain(block.title)}](figures/{block.name}.svg)"
    if isinstance(block, Paragraph):
        return plain(block.text)
    assert isinstance(block, Code)
    return "" if block.folded else f"{plain(block.title)}\n\n    " + block.text.rstrip().replace("\n", "\n    ")


def _data(settings: Sequence[Setting]) -> str:
    """A row per setting as CSV: accuracies from 0 to 1, unknown values empty."""
    text = io.StringIO()
    rows = [_row(setting) for setting in settings]
    writer = csv.DictWriter(text, list(dict.fromkeys([*rows[0], *varied_keys(settings)])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


_MEANS = (
    "validation_accuracy", "completions_asked", "completions_kept", "completions_empty", "completions_cut", "completions_unanswered",
    "n_train_problems",
)  # fmt: skip


def _row(setting: Setting) -> dict[str, Any]:
    accuracy, cell, best = setting.accuracy, find_published(setting.runs[0]), setting.best_epoch
    return {
        "task": setting["task"], "student": setting["student"], "method": setting["method"], "diversity": setting["diversity"],
        "accuracy": accuracy.mean, "low": accuracy.low, "high": accuracy.high, "sd": accuracy.spread, "seeds": len(setting.runs),
        "n": len(setting.problems), "best_epoch": best.mean if best else None,
        "paper_a": cell.percent / 100 if cell else None, "paper_a_is_best_epoch": cell.best_epoch if cell else None,
        **{name: setting.mean(name) for name in _MEANS},
        "runs": " ".join(run["run_id"] for run in setting.runs), **setting.varied,
    }  # fmt: skip
