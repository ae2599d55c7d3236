"""From settings to the report: its tables, charts and the paragraph that answers, all made from the files runs leave."""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcot.reporting.answer import answer, listed
from fcot.reporting.cost import cost_table, costs_of, has_cost
from fcot.reporting.document import Chart, Code, Document, Paragraph, RunFiles, Section
from fcot.reporting.failures import aligned_table, error_table, length_table
from fcot.reporting.figures import accuracy_chart, cost_chart, kept_chart, scaling_chart, training_chart
from fcot.reporting.finished import command_of
from fcot.reporting.reference import reference_tables
from fcot.reporting.rounds import rounds_tables
from fcot.reporting.scaling import Line, lines, trend_table
from fcot.reporting.settings import Setting, named
from fcot.reporting.table import Table
from fcot.reporting.tables import Compared, accuracy_table, by_task, compare_settings, comparison_table

_ABOUT_COMMANDS = (
    "A run of a sweep can be made alone. Relative paths are "
    "those of the folder in which the command was given. What is finished is not done again: another output_dir makes it anew."
)
_MOST_CURVES = 40  # runs in one chart of trainings
_MOST_POINTS = 400  # of one curve


@dataclass(frozen=True)
class Analysis:
    """What is compared, and what comparing found: worked out once, shown in several ways."""

    settings: Sequence[Setting]
    scaling: Sequence[Line]
    compared: Sequence[Compared]
    rounds: Sequence[Table]


def analyse(settings: Sequence[Setting]) -> Analysis:
    """Lines, comparisons and rounds of settings."""
    return Analysis(settings, lines(settings), compare_settings(settings), list(rounds_tables(settings)))


def build(analysis: Analysis, runs: Sequence[RunFiles], missing: Sequence[str]) -> Document:
    """A report.

    Args:
        analysis: What is compared.
        runs: Its runs, for what only files tell.
        missing: What of the sweeps is not in the report, and why.
    """
    settings, scaling, compared = analysis.settings, analysis.scaling, analysis.compared
    sections = [
        _section("results", "Results", [
            accuracy_chart(settings), accuracy_table(settings), by_task(settings),
            comparison_table(compared, settings) if compared else None, *reference_tables(settings),
        ]),
        _section("scaling", "Scaling", [scaling_chart(scaling), trend_table(scaling)] if scaling else []),
        _section("cost", "Cost", _cost(settings)),
        _section("kept", "What curation kept", [kept_chart(settings), _refused(settings)]),
        _section("training", "Training", [training_chart(_curves(runs[:_MOST_CURVES])), _left_out(runs)]),
        _section("errors", "Wrong answers", [make(settings) for make in (error_table, length_table, aligned_table)]),
        Section("samples", "Rationales and answers"),
        _section("rounds", "Rounds", analysis.rounds),
        _section("configs", "Configurations and versions", [_versions(runs), *map(_config, runs)]),
        _section("reproduce", "How to make each cell again", [Paragraph(_ABOUT_COMMANDS), *map(_command, runs)]),
    ]  # fmt: skip
    kept = [section for section in sections if section.blocks or section.id == "samples"]
    return Document(_title(settings), answer(settings, scaling, compared), missing, kept, runs)


def terminal_tables(analysis: Analysis) -> list[Table]:
    """What a terminal shows of it."""
    settings, scaling, compared = analysis.settings, analysis.scaling, analysis.compared
    found = [
        accuracy_table(settings), *analysis.rounds, *reference_tables(settings),
        comparison_table(compared, settings) if compared else None, trend_table(scaling) if scaling else None,
        *(make(settings) for make in (error_table, length_table, aligned_table)), cost_table(settings) if has_cost(settings) else None,
    ]  # fmt: skip
    return [table for table in found if table is not None]


def _section(name: str, title: str, blocks: Sequence[Any]) -> Section:
    return Section(name, title, [block for block in blocks if block is not None])


def _title(settings: Sequence[Setting]) -> str:
    tasks, students = (list(dict.fromkeys(str(setting[name]) for setting in settings)) for name in ("task", "student"))
    return f"{listed(tasks)}: {listed(students)}"


# --- parts -----------------------------------------------------------------------------------------------------------


def _cost(settings: Sequence[Setting]) -> list[Table | Chart]:
    costs = costs_of(settings)
    if not costs:
        return []
    return [*([cost_chart(costs)] if any(cost.usd for cost in costs) else []), cost_table(settings)]


def _refused(settings: Sequence[Setting]) -> Table | None:
    """Reasons of refusal, a line a setting, mean over its runs."""
    asked = [setting for setting in settings if setting.mean("completions_asked")]
    reasons = list(dict.fromkeys(reason for setting in asked for run in setting.runs for reason in run.get("refused") or {}))
    if not asked:
        return None
    columns = ("setting", "asked", "kept", "kept %", *(reason.replace("_", " ") for reason in reasons))
    table = Table("refused", "completions by curation's verdict (mean over runs)", columns, ("setting",))
    for setting in asked:
        n, kept = setting.mean("completions_asked"), setting.mean("completions_kept")
        assert n is not None
        assert kept is not None
        counts = [sum((run.get("refused") or {}).get(reason, 0) for run in setting.runs) / len(setting.runs) for reason in reasons]
        table.add_row(
            named(setting, settings),
            f"{n:,.0f}",
            f"{kept:,.0f}",
            f"{100 * kept / n:.1f}",
            *(f"{one:,.0f}" if one else "" for one in counts),
        )
    return table


def _curves(runs: Sequence[RunFiles]) -> dict[str, list[dict[str, Any]]]:
    """Training loss and validation accuracy by step, of runs that were trained here; the rounds of one follow each other."""
    found = {}
    for run in runs:
        rounds = run.metrics.get("rounds") or []
        if rounds:
            rows, before = [], 0
            for held in rounds:
                of_round = _losses(run.directory.round(held["round"]).logs / "metrics.csv")
                rows += [{**row, "step": before + row["step"]} for row in of_round]
                before += of_round[-1]["step"] if of_round else 0
                if held.get("validation_accuracy") is not None:
                    rows.append({"step": before, "validation": 100 * held["validation_accuracy"]})
        else:
            rows = _losses(run.directory.logs / "metrics.csv")
            entries = [entry for entry in run.metrics.get("history") or [] if entry.get("validation_accuracy") is not None]
            rows += [{"step": entry["step"], "validation": 100 * entry["validation_accuracy"]} for entry in entries]
        if rows:
            found[run.label] = rows
    return found


def _losses(log: Path) -> list[dict[str, Any]]:
    """Steps and losses of a training's log, at most some hundreds, evenly."""
    rows = []
    with contextlib.suppress(OSError, csv.Error, UnicodeDecodeError), log.open(newline="") as file:
        for row in csv.DictReader(file):
            with contextlib.suppress(TypeError, ValueError, KeyError):  # a line that a kill tore
                step, loss = int(row["step"]), float(row["train_loss"])
                if math.isfinite(loss):  # of a training that diverged
                    rows.append({"step": step, "train_loss": loss})
    return rows[:: 1 + len(rows) // _MOST_POINTS]


def _left_out(runs: Sequence[RunFiles]) -> Paragraph | None:
    n = len(runs) - _MOST_CURVES
    return Paragraph(f"The first {_MOST_CURVES} of {len(runs)} runs; the others' curves are in their logs/metrics.csv.") if n > 0 else None


def _versions(runs: Sequence[RunFiles]) -> Table:
    """What computed the results, a column a package; runs with the same versions share a line."""
    names = list(dict.fromkeys(name for run in runs for name in run.metrics.get("versions") or {}))
    table = Table("versions", "versions", ("runs", "precision", "devices", *names), ("precision",))
    lines_of: dict[tuple[str, ...], int] = {}
    for run in runs:
        versions = run.metrics.get("versions") or {}
        cells = (
            str(run.metrics.get("precision") or "-"),
            str(run.metrics.get("devices") or "-"),
            *(versions.get(name, "-") for name in names),
        )
        lines_of[cells] = lines_of.get(cells, 0) + 1
    for cells, n in lines_of.items():
        table.add_row(str(n), *cells)
    return table


def _config(run: RunFiles) -> Code | None:
    text = _text(run.directory.config)
    return Code(f"{run.label}: {run.directory.path.name}/config.yaml", text, folded=True) if text else None


def _command(run: RunFiles) -> Code:
    """The command of a run."""
    try:
        command = command_of(run.directory)
    except OSError:
        command = ""
    seed = "" if run.label.endswith(f", seed {run.metrics['seed']}") else f", seed {run.metrics['seed']}"
    told = command or f"python -m fcot.run with the values of runs/{run.metrics['run_id']}/config.yaml"
    return Code(f"{run.label}{seed}: {100 * run.metrics['accuracy']:.2f} %", told)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
