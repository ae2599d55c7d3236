"""A report as plain data: what the page, the Markdown and W&B show, in their order."""

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
    """Text to be copied or read as it is: a command, a configuration.

    Attributes:
        title: What it is.
        folded: Whether it is shown only when asked for.
    """

    title: str
    text: str
    folded: bool = False


@dataclass(frozen=True)
class Chart:
    """A picture.

    Attributes:
        name: In file names.
        title: Above it.
        spec: Vega-Lite, data included.
    """

    name: str
    title: str
    spec: dict[str, Any]


Block = Table | Paragraph | Code | Chart


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        id: In links: results, scaling, cost, kept, training, errors, samples, rounds, configs, reproduce.
        title: Its heading.
        blocks: From top to bottom; the page fills ``samples`` and ``rounds`` itself from the runs' files.
    """

    id: str
    title: str
    blocks: Sequence[Block] = ()


@dataclass(frozen=True)
class RunFiles:
    """A run that the report is about.

    Attributes:
        directory: Its files.
        label: What tells it from the report's other runs, its seed included.
        metrics: Of ``metrics.json``.
    """

    directory: RunDirectory
    label: str
    metrics: MetricsRow


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        title: One line.
        answer: What was run and what came out, in one paragraph made from the numbers.
        missing: What of the sweeps is not finished; empty where everything is.
        sections: In their order.
        runs: Finished ones, in the order of the main table.
    """

    title: str
    answer: str
    missing: Sequence[str]
    sections: Sequence[Section]
    runs: Sequence[RunFiles]
