"""Lengths of rationales (paper A, Figure 7), also for runs that stopped after curation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from fcot.base.files import read_jsonl
from fcot.base.run_folder import RunDirectory
from fcot.reporting.document import Chart
from fcot.reporting.figures import histogram_chart
from fcot.reporting.table import Table


@dataclass(frozen=True)
class Lengths:
    """The lengths of a run's rationales in words.

    Attributes:
        title: Task, teacher and D.
        kept: The words of each kept rationale.
        rejected: The words of each rejected rationale.
    """

    title: str
    kept: Sequence[int]
    rejected: Sequence[int]


def lengths_of(folder: Path) -> Lengths:
    """Read the rationale lengths of a run that has curated.

    Args:
        folder: The run's folder.
    """
    run, words = RunDirectory(folder), ([], [])  # type: ignore[var-annotated]
    for row in read_jsonl(run.curated):
        words[row["kept"]].append(len(row["rationale"].split()))
    config = OmegaConf.load(run.config)
    teacher = config.teacher.get("model") or config.teacher.name
    return Lengths(f"{config.dataset.name}, {teacher}, D={config.diversity}", words[True], words[False])


def lengths_table(runs: Sequence[Lengths]) -> Table:
    """A row per run: how many rationales were kept, and the words of kept and rejected ones."""
    table = Table("lengths", "words per rationale", ("run", "kept/asked", "mean", "median", "95 %", "longest", "rejected: mean"), ("run",))
    for run in runs:
        kept = np.array(run.kept or [0])
        rejected = f"{np.mean(run.rejected):.1f}" if run.rejected else "-"
        table.add_row(
            run.title, f"{len(run.kept):,}/{len(run.kept) + len(run.rejected):,}", f"{kept.mean():.1f}", f"{np.median(kept):.0f}",
            f"{np.percentile(kept, 95):.0f}", f"{kept.max()}", rejected,
        )  # fmt: skip
    return table


def lengths_chart(runs: Sequence[Lengths]) -> Chart:
    """A histogram per run, with kept and rejected rationales stacked."""
    panels = {
        f"{run.title}: {len(run.kept):,} kept, {len(run.rejected):,} rejected": {"kept": run.kept, "rejected": run.rejected} for run in runs
    }
    return histogram_chart("lengths", "words per rationale", panels, "words per rationale")
