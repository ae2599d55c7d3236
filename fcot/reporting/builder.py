"""Build the report from settings: its first paragraph, tables and charts, all made from the runs' files."""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcot.reporting.answer import answer, listed
from fcot.reporting.at_k import at_k_table
from fcot.reporting.cost import cost_table, costs_of, has_cost
from fcot.reporting.difficulty import difficulty_tables
from fcot.reporting.document import Chart, Code, Document, Paragraph, RunFiles, Section
from fcot.reporting.failures import aligned_table, error_table, length_table
from fcot.reporting.figures import accuracy_chart, cost_chart, kept_chart, scaling_chart, training_chart
from fcot.reporting.finished import command_of
from fcot.reporting.reference import reference_tables
from fcot.reporting.rounds import rounds_tables
from fcot.reporting.scaling import Line, lines, trend_table
from fcot.reporting.settings import Setting, data_name, model_name, report_label
from fcot.reporting.table import Table
from fcot.reporting.tables import Compared, accuracy_table, by_task, compare_settings, comparison_table

_ABOUT_COMMANDS = (
    "Each run of a sweep can be repeated alone. Relative paths in a command start in the folder in which the sweep was started. "
    "Finished stages are skipped: set another output_dir to compute them again."
)
_MOST_CURVES = 40  # runs in the training chart
_MOST_POINTS = 400  # points per curve


@dataclass(frozen=True)
class Analysis:
    """The settings and the results of comparing them, computed once and shown in several formats.

    Attributes:
        settings: All settings, in order.
        scaling: Lines of settings along an ordered axis.
        compared: Pairs of settings with their paired test.
        rounds: A table for each setting of tailored learning.
        hourly_usd: What an hour of annotation costs; None: as :func:`fcot.reporting.cost.cost_of` assumes.
    """

    settings: Sequence[Setting]
    scaling: Sequence[Line]
    compared: Sequence[Compared]
    rounds: Sequence[Table]
    hourly_usd: float | None = None


def analyse(settings: Sequence[Setting], hourly_usd: float | None = None) -> Analysis:
    """Compute everything that reports show about the settings."""
    return Analysis(settings, lines(settings), compare_settings(settings), list(rounds_tables(settings)), hourly_usd)


def build(analysis: Analysis, runs: Sequence[RunFiles], missing: Sequence[str]) -> Document:
    """Build a report.

    Args:
        analysis: The settings and their comparisons.
        runs: The files of the settings' runs.
        missing: A line for each run that is not in the report, with the reason.
    """
    settings, scaling, compared = analysis.settings, analysis.scaling, analysis.compared
    sections = [
        _section("results", "Results", [
            accuracy_chart(settings), accuracy_table(settings), by_task(settings),
            comparison_table(compared, settings) if compared else None, at_k_table(settings), *difficulty_tables(settings),
            *reference_tables(settings),
        ]),
        _section("scaling", "Scaling", [scaling_chart(scaling), trend_table(scaling)] if scaling else []),
        _section("cost", "Cost", _cost(settings, analysis.hourly_usd)),
        _section("kept", "What curation kept", [kept_chart(settings), _verdicts(settings)]),
        _section("training", "Training", [training_chart(_curves(runs[:_MOST_CURVES])), _omitted_curves(runs)]),
        _section("errors", "Wrong answers", [make(settings) for make in (error_table, length_table, aligned_table)]),
        Section("samples", "Rationales and answers"),
        _section("rounds", "Rounds", analysis.rounds),
        _section("configs", "Configurations and versions", [_versions(runs), *map(_config, runs)]),
        _section("reproduce", "Commands that reproduce each run", [Paragraph(_ABOUT_COMMANDS), *map(_command, runs)]),
    ]  # fmt: skip
    kept = [section for section in sections if section.blocks or section.id == "samples"]
    return Document(_title(settings), answer(settings, scaling, compared), missing, kept, runs)


def terminal_tables(analysis: Analysis) -> list[Table]:
    """The tables of the report that a terminal shows."""
    settings, scaling, compared = analysis.settings, analysis.scaling, analysis.compared
    tables = [
        accuracy_table(settings), *analysis.rounds, *reference_tables(settings),
        comparison_table(compared, settings) if compared else None, at_k_table(settings), trend_table(scaling) if scaling else None,
        *(make(settings) for make in (error_table, length_table, aligned_table)),
        cost_table(settings, analysis.hourly_usd) if has_cost(settings) else None,
    ]  # fmt: skip
    return [table for table in tables if table is not None]


def _section(name: str, title: str, blocks: Sequence[Any]) -> Section:
    return Section(name, title, [block for block in blocks if block is not None])


def _title(settings: Sequence[Setting]) -> str:
    data, models = (list(dict.fromkeys(map(name, settings))) for name in (data_name, model_name))
    return f"{listed(data)}: {listed(models)}"


# --- parts -----------------------------------------------------------------------------------------------------------


def _cost(settings: Sequence[Setting], hourly_usd: float | None) -> list[Table | Chart]:
    costs = costs_of(settings, hourly_usd)
    if not costs:
        return []
    return [*([cost_chart(costs)] if any(cost.usd for cost in costs) else []), cost_table(settings, hourly_usd)]


def _verdicts(settings: Sequence[Setting]) -> Table | None:
    """Kept and rejected completions by reason, and verdicts of a judge: a row per setting, mean over its runs; None without a teacher."""
    taught = [setting for setting in settings if setting.mean("completions_asked")]
    if not taught:
        return None
    counts = [[_verdict_counts(run) for run in setting.runs] for setting in taught]
    names = list(dict.fromkeys(name for runs in counts for run_counts in runs for name in run_counts))
    columns = ("setting", "asked", "kept", "kept %", *names)
    table = Table("refused", "completions by curation's verdict (mean over runs)", columns, ("setting",))
    for setting, runs in zip(taught, counts, strict=True):
        n, kept = setting.mean("completions_asked"), setting.mean("completions_kept")
        assert n is not None
        assert kept is not None
        means = [sum(run_counts.get(name, 0) for run_counts in runs) / len(runs) for name in names]
        cells = (f"{mean:,.0f}" if mean else "" for mean in means)
        table.add_row(report_label(setting, settings), f"{n:,.0f}", f"{kept:,.0f}", f"{100 * kept / n:.1f}", *cells)
    return table


def _verdict_counts(run: Mapping[str, Any]) -> dict[str, int]:
    """Numbers of a run's completions by column title: rejected ones by reason, and what its judge said of those that it read."""
    counts = {reason.replace("_", " "): n for reason, n in (run.get("refused") or {}).items()}
    if judge := run.get("judge"):
        counts |= {"judge: wrong": judge["wrong_step"], "judge: unreadable": sum(judge["unreadable"].values())}
    return counts


def _curves(runs: Sequence[RunFiles]) -> dict[str, list[dict[str, Any]]]:
    """Training loss and validation accuracy by optimizer step, by run label. The rounds of a run are joined to one curve."""
    curves = {}
    for run in runs:
        rounds = run.metrics.get("rounds") or []
        if rounds:
            rows, first_step = [], 0
            for round_metrics in rounds:
                losses = _losses(run.directory.round(round_metrics["round"]).logs / "metrics.csv")
                rows += [{**row, "step": first_step + row["step"]} for row in losses]
                first_step += losses[-1]["step"] if losses else 0
                if round_metrics.get("validation_accuracy") is not None:
                    rows.append({"step": first_step, "validation": 100 * round_metrics["validation_accuracy"]})
        else:
            rows = _losses(run.directory.logs / "metrics.csv")
            entries = [entry for entry in run.metrics.get("history") or [] if entry.get("validation_accuracy") is not None]
            rows += [{"step": entry["step"], "validation": 100 * entry["validation_accuracy"]} for entry in entries]
        if rows:
            curves[run.label] = rows
    return curves


def _losses(log: Path) -> list[dict[str, Any]]:
    """Steps and losses in a training log, thinned out evenly to a few hundred."""
    rows = []
    with contextlib.suppress(OSError, csv.Error, UnicodeDecodeError), log.open(newline="") as file:
        for row in csv.DictReader(file):
            with contextlib.suppress(TypeError, ValueError, KeyError):  # a killed process may leave half a line
                step, loss = int(row["step"]), float(row["train_loss"])
                if math.isfinite(loss):  # inf or nan if the training diverged
                    rows.append({"step": step, "train_loss": loss})
    return rows[:: 1 + len(rows) // _MOST_POINTS]


def _omitted_curves(runs: Sequence[RunFiles]) -> Paragraph | None:
    n = len(runs) - _MOST_CURVES
    return Paragraph(f"The first {_MOST_CURVES} of {len(runs)} runs; logs/metrics.csv of each other run has its curve.") if n > 0 else None


def _versions(runs: Sequence[RunFiles]) -> Table:
    """The package versions of the runs: a column per package; runs with the same versions share a row."""
    names = list(dict.fromkeys(name for run in runs for name in run.metrics.get("versions") or {}))
    table = Table("versions", "versions", ("runs", "precision", "devices", *names), ("precision",))
    n_runs: dict[tuple[str, ...], int] = {}
    for run in runs:
        versions = run.metrics.get("versions") or {}
        cells = (
            str(run.metrics.get("precision") or "-"),
            str(run.metrics.get("devices") or "-"),
            *(versions.get(name, "-") for name in names),
        )
        n_runs[cells] = n_runs.get(cells, 0) + 1
    for cells, n in n_runs.items():
        table.add_row(str(n), *cells)
    return table


def _config(run: RunFiles) -> Code | None:
    text = _text(run.directory.config)
    return Code(f"{run.label}: {run.directory.path.name}/config.yaml", text, folded=True) if text else None


def _command(run: RunFiles) -> Code:
    """The command that repeats a run, titled with the run's accuracy."""
    try:
        command = command_of(run.directory)
    except OSError:
        command = ""
    seed = "" if run.label.endswith(f", seed {run.metrics['seed']}") else f", seed {run.metrics['seed']}"
    text = command or f"python -m fcot.run with the values of runs/{run.metrics['run_id']}/config.yaml"
    return Code(f"{run.label}{seed}: {100 * run.metrics['accuracy']:.2f} %", text)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
