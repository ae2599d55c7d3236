"""A report as plain data, which the HTML page, the Markdown file and the W&B Report show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fcot.base.run_folder import RunDirectory
from fcot.reporting.settings import MetricsRow
from fcot.reporting.table import Table


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Code:
    """Text to copy or to read verbatim: a command, a configuration.

    Attributes:
        title: The heading.
        text: The text.
        folded: Whether the page hides the text until the reader opens it.
    """

    title: str
    text: str
    folded: bool = False


@dataclass(frozen=True)
class Chart:
    """A picture.

    Attributes:
        name: The name of its files.
        title: The heading.
        spec: The Vega-Lite specification, data included.
    """

    name: str
    title: str
    spec: dict[str, Any]


Block = Table | Paragraph | Code | Chart


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        id: The anchor in links: results, scaling, cost, kept, training, errors, samples, rounds, configs, reproduce.
        title: The heading.
        blocks: The content from top to bottom. The page fills ``samples`` and ``rounds`` from the runs' files.
    """

    id: str
    title: str
    blocks: Sequence[Block] = ()


@dataclass(frozen=True)
class RunFiles:
    """A run in the report.

    Attributes:
        directory: The run's files.
        label: A name that is unique within the report; it names the seed if there are several.
        metrics: The content of ``metrics.json``.
        evaluated: Whether the run has answers of a student; otherwise it has only curated.
    """

    directory: RunDirectory
    label: str
    metrics: MetricsRow
    evaluated: bool = True


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        title: One line.
        answer: The first paragraph: what was run, and what the results are.
        missing: A line for each run that is not in the report, with the reason.
        sections: The sections in order.
        runs: The runs in the order of the main table.
    """

    title: str
    answer: str
    missing: Sequence[str]
    sections: Sequence[Section]
    runs: Sequence[RunFiles]
