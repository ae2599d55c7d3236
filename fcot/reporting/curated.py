"""The report on runs that have curated and trained no student yet: what was kept, why the rest was rejected, and all rationales."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from fcot.base.files import read_json, read_jsonl
from fcot.base.run_folder import RunDirectory
from fcot.reporting.document import Chart, Code, Document, Paragraph, RunFiles, Section
from fcot.reporting.figures import histogram_chart
from fcot.reporting.finished import command_of
from fcot.reporting.table import Table

_CHOOSE = (
    "Open a problem below and mark the completions to train on; marks stay in this browser. Save marks downloads a file: move it to the "
    "folder in which the command runs. With it, the second command trains on the marked completions only."
)


@dataclass(frozen=True)
class Curated:
    """A run that has curated.

    Attributes:
        directory: The folder that holds ``curated.jsonl``: the run's or, in tailored learning, that of its first round.
        title: Task, teacher and D.
        kept: The words of each kept rationale.
        rejected: The words of each rejected rationale.
        reasons: Number of rejected completions by reason, the most frequent first.
        problems: Number of problems with a kept completion, and of all problems.
        metrics: What the page's browser needs of a run's metrics.
        command: The command that continues the run; empty if it was not recorded.
    """

    directory: RunDirectory
    title: str
    kept: Sequence[int]
    rejected: Sequence[int]
    reasons: Mapping[str, int]
    problems: tuple[int, int]
    metrics: Mapping[str, Any]
    command: str

    @property
    def total(self) -> int:
        """Number of completions."""
        return len(self.kept) + len(self.rejected)


def curated_file(run: RunDirectory) -> Path | None:
    """The verdicts on a run's completions; in the first round of tailored learning those of the round; None before curation."""
    return next((path for path in (run.curated, run.round(1).curated) if path.exists()), None)


def read_curated(folder: Path) -> Curated:
    """Read the verdicts of a run that has curated.

    Args:
        folder: The run's folder.

    Raises:
        OSError, ValueError, KeyError, TypeError: A file is missing or damaged.
    """
    run, words = RunDirectory(folder), ([], [])  # type: ignore[var-annotated]
    reasons: Counter[str] = Counter()
    kept_problems, all_problems = set[int](), set[int]()
    path = curated_file(run) or run.curated
    for row in read_jsonl(path):
        words[row["kept"]].append(len(row["rationale"].split()))
        index = row.get("sample_index", -1)
        all_problems.add(index)
        if row["kept"]:
            kept_problems.add(index)
        else:
            reasons[str(row.get("reason"))] += 1
    config = OmegaConf.load(run.config)
    teacher = config.teacher.get("model") or config.teacher.name
    questions = read_json(run.split).get("questions_sha256") if run.split.exists() else folder.name
    metrics = {
        "run_id": folder.name, "task": config.dataset.name, "method": _method(config),
        "method_title": _method_title(config),
        "questions_sha256": questions, "completions_asked": len(words[0]) + len(words[1]),
    }  # fmt: skip
    return Curated(
        RunDirectory(path.parent), f"{config.dataset.name}, {teacher}, D={config.diversity}", words[True], words[False],
        dict(reasons.most_common()), (len(kept_problems), len(all_problems)), metrics, command_of(run),
    )  # fmt: skip


def _method(config: Any) -> str:
    return str(config.method.name) if "method" in config else "fine_tune_cot"


def _method_title(config: Any) -> str | None:
    return config.method.get("title") if "method" in config else None


def curated_document(runs: Sequence[Curated], missing: Sequence[str]) -> Document:
    """The report on runs that have curated.

    Args:
        runs: The runs.
        missing: A line for each run that is not in the report, with the reason.
    """
    titles = Counter(run.title for run in runs)
    labels = [f"{run.title}, {run.metrics['run_id'][-10:]}" if titles[run.title] > 1 else run.title for run in runs]
    sections = [
        Section("kept", "What curation kept", [verdict_table(runs), lengths_table(runs), lengths_chart(runs)]),
        Section("next", "Train on the kept completions, or on those that you choose", [
            Paragraph(_CHOOSE), *(block for run, label in zip(runs, labels, strict=True) for block in _commands(run, label)),
        ]),
        Section("samples", "Rationales"),
    ]  # fmt: skip
    files = [RunFiles(run.directory, label, run.metrics, evaluated=False) for run, label in zip(runs, labels, strict=True)]
    tasks = ", ".join(dict.fromkeys(str(run.metrics["task"]) for run in runs))
    return Document(f"{tasks}: the teacher's rationales", "\n\n".join(map(_sentence, runs)), missing, sections, files)


def _sentence(run: Curated) -> str:
    """What curation kept of a run, and why it rejected the rest."""
    share = f" ({100 * len(run.kept) / run.total:.1f} %)" if run.total else ""
    reasons = ", ".join(f"{reason.replace('_', ' ')} {n:,}" for reason, n in run.reasons.items())
    kept, total = run.problems
    return (
        f"{run.title}: curation kept {len(run.kept):,} of {run.total:,} completions{share}, of {kept:,} of {total:,} problems. "
        f"{f'Rejected: {reasons}. ' if reasons else ''}No student is trained yet."
    )


def _commands(run: Curated, label: str) -> list[Code]:
    """The commands that train on what curation kept, and on a choice."""
    if not run.command:
        return []
    replaced = (
        "curation=",
        "curation.filters=",
        "curation.golden=",
        "curation.match_golden=",
        "curation.max_per_problem=",
        "curation.choose_by=",
        "curation.judge",
    )
    words = [word for word in shlex.split(run.command) if not word.startswith(replaced)]
    chosen = shlex.join([*words, "curation=golden", f"curation.golden={_golden_name(run)}"])
    return [Code(f"{label}: train on what curation kept", run.command), Code(f"{label}: train on marked completions", chosen)]


def _golden_name(run: Curated) -> str:
    """The name of the file that the page saves, as ``page/marks.js`` makes it."""
    return f"golden-{re.sub(r'[^A-Za-z0-9_.-]', '_', str(run.metrics['task']))}.jsonl"


def verdict_table(runs: Sequence[Curated]) -> Table:
    """A row per run: kept and rejected completions by reason."""
    reasons = list(dict.fromkeys(reason for run in runs for reason in run.reasons))
    columns = ("run", "completions", "kept", "kept %", "problems", *(reason.replace("_", " ") for reason in reasons))
    table = Table("verdicts", "completions by curation's verdict", columns, ("run",))
    for run in runs:
        counts = (f"{run.reasons[reason]:,}" if reason in run.reasons else "" for reason in reasons)
        share = f"{100 * len(run.kept) / run.total:.1f}" if run.total else "-"
        table.add_row(run.title, f"{run.total:,}", f"{len(run.kept):,}", share, f"{run.problems[0]:,}/{run.problems[1]:,}", *counts)
    table.notes.append("problems: those with a kept completion, of all.")
    return table


def lengths_table(runs: Sequence[Curated]) -> Table:
    """A row per run: the words of kept and rejected rationales (paper A, Figure 7)."""
    table = Table("lengths", "words per rationale", ("run", "kept/asked", "mean", "median", "95 %", "longest", "rejected: mean"), ("run",))
    for run in runs:
        kept = np.array(run.kept or [0])
        rejected = f"{np.mean(run.rejected):.1f}" if run.rejected else "-"
        table.add_row(
            run.title, f"{len(run.kept):,}/{run.total:,}", f"{kept.mean():.1f}", f"{np.median(kept):.0f}",
            f"{np.percentile(kept, 95):.0f}", f"{kept.max()}", rejected,
        )  # fmt: skip
    return table


def lengths_chart(runs: Sequence[Curated]) -> Chart:
    """A histogram per run, with kept and rejected rationales stacked."""
    panels = {
        f"{run.title}: {len(run.kept):,} kept, {len(run.rejected):,} rejected": {"kept": run.kept, "rejected": run.rejected} for run in runs
    }
    return histogram_chart("lengths", "words per rationale", panels, "words per rationale")
