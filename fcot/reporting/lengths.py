"""How long rationales are (paper A, Figure 7), of runs that stopped after curation too."""

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
    """Words of a run's rationales.

    Attributes:
        title: Task, teacher and D.
        kept, refused: One number a rationale.
    """

    title: str
    kept: Sequence[int]
    refused: Sequence[int]


def lengths_of(folder: Path) -> Lengths:
    """Of a run that has curated."""
    run, words = RunDirectory(folder), ([], [])  # type: ignore[var-annotated]
    for row in read_jsonl(run.curated):
        words[row["kept"]].append(len(row["rationale"].split()))
    config = OmegaConf.load(run.config)
    teacher = config.teacher.get("model") or config.teacher.name
    return Lengths(f"{config.dataset.name}, {teacher}, D={config.diversity}", words[True], words[False])


def lengths_table(found: Sequence[Lengths]) -> Table:
    """A line a run: how many were kept, and the words of kept and refused rationales."""
    table = Table("lengths", "words of a rationale", ("run", "kept/asked", "mean", "median", "95 %", "longest", "refused: mean"), ("run",))
    for one in found:
        kept = np.array(one.kept or [0])
        refused = f"{np.mean(one.refused):.1f}" if one.refused else "-"
        table.add_row(
            one.title, f"{len(one.kept):,}/{len(one.kept) + len(one.refused):,}", f"{kept.mean():.1f}", f"{np.median(kept):.0f}",
            f"{np.percentile(kept, 95):.0f}", f"{kept.max()}", refused,
        )  # fmt: skip
    return table


def lengths_chart(found: Sequence[Lengths]) -> Chart:
    """A histogram a run, kept and refused rationales on top of each other."""
    panels = {
        f"{one.title}: {len(one.kept):,} kept, {len(one.refused):,} refused": {"kept": one.kept, "refused": one.refused} for one in found
    }
    return histogram_chart("lengths", "words of a rationale", panels, "words of a rationale")
