"""A report as files for papers and notes: each table and figure by itself, and all of it as Markdown."""

from __future__ import annotations

import shutil
from pathlib import Path

from fcot.artifacts import write_atomic
from fcot.errors import FcotError
from fcot.reporting.document import Chart, Document, Paragraph
from fcot.reporting.figures import save
from fcot.reporting.table import Table, plain


def export_files(document: Document, folder: Path) -> None:
    """Write ``tables/`` (Markdown, LaTeX, CSV), ``figures/`` (SVG, PDF, PNG) and ``report.md`` into a folder."""
    for name in ("tables", "figures"):  # of an earlier report, which may have had others
        shutil.rmtree(folder / name, ignore_errors=True)
    text = [f"# {plain(document.title)}", plain(document.answer), *(f"- not in the report: {plain(one)}" for one in document.missing)]
    for section in document.sections:
        text.append(f"## {section.title}" if section.id != "samples" else "")
        for block in section.blocks:
            if isinstance(block, Table):
                for form, made in (("md", block.to_markdown()), ("tex", block.to_latex()), ("csv", block.to_csv())):
                    write_atomic(folder / "tables" / f"{block.name}.{form}", made)
                text.append(block.to_markdown())
            elif isinstance(block, Chart):
                try:
                    text.append(f"![{plain(block.title)}](figures/{save(block, folder / 'figures')[0].name})")
                except FcotError as error:
                    print(error)
            elif isinstance(block, Paragraph):
                text.append(plain(block.text))
            else:
                text.append(f"{plain(block.title)}\n\n    " + block.text.rstrip().replace("\n", "\n    "))
    write_atomic(folder / "report.md", "\n\n".join(filter(None, text)) + "\n")
