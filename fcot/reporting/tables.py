"""The comparison table: one line a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

METHOD_ORDER = ("zero_shot", "fine_tune", "fine_tune_cot")
METHOD_TITLES = {"zero_shot": "Zero-shot", "fine_tune": "Fine-tune", "fine_tune_cot": "Fine-tune-CoT"}
Metrics = Mapping[str, Any]


def ordered(runs: Iterable[Metrics]) -> list[Metrics]:
    """Each run once, by task, student, method, D and seed."""
    unique = {metrics["run_id"]: metrics for metrics in runs}
    return sorted(
        unique.values(),
        key=lambda m: (m["task"], m["student"], METHOD_ORDER.index(m["method"]), m["diversity"] or 0, m["seed"], m["run_id"]),
    )


def label(metrics: Metrics) -> str:
    """A run's method and D, as the papers write them."""
    title = METHOD_TITLES[metrics["method"]]
    return f"{title} D={metrics['diversity']}" if metrics["diversity"] else title


def comparison(runs: Sequence[Metrics]) -> Table:
    """Method, D, kept/asked, accuracy with its 95 % Wilson interval, seconds; task, student and seed where they vary."""
    extra = [name for name in ("task", "student", "seed") if len({metrics[name] for metrics in runs}) > 1]
    best = any(metrics["accuracy_best_epoch"] is not None for metrics in runs)
    table = Table(title=None if extra[:2] or not runs else f"{runs[0]['task']}, {runs[0]['student']}", title_justify="left")
    for name in extra:
        table.add_column(name, justify="right" if name == "seed" else "left")
    names = ["method", "D", "kept/asked", "accuracy %", "95 % interval", "best epoch %", "n", "checkpoint", "seconds"]
    for name in (name for name in names if best or name != "best epoch %"):
        table.add_column(name, justify="left" if name in ("method", "checkpoint") else "right")
    for metrics in runs:
        table.add_row(*(str(metrics[name]) for name in extra), *_cells(metrics, best))
    return table


def _cells(metrics: Metrics, best: bool) -> list[str]:
    low, high = metrics["accuracy_ci95"]
    asked = metrics["completions_asked"]
    best_epoch = metrics["accuracy_best_epoch"]
    return [
        METHOD_TITLES[metrics["method"]],
        str(metrics["diversity"] or "-"),
        f"{metrics['completions_kept']:,}/{asked:,}" if asked else "-",
        f"{100 * metrics['accuracy']:.2f}",
        f"{100 * low:.1f} to {100 * high:.1f}",
        *([f"{100 * best_epoch:.2f}" if best_epoch is not None else "-"] if best else []),
        str(metrics["n_test"]),
        metrics["accuracy_checkpoint"],
        f"{sum(metrics['seconds'].values()):.0f}",
    ]


def notes(runs: Sequence[Metrics]) -> list[str]:
    """What a reader must know about the numbers."""
    found = []
    if any(metrics["accuracy_checkpoint"] == "last" for metrics in runs):
        found.append("checkpoint 'last': no validation problems; the accuracy is that of the last step's weights.")
    if any(metrics["accuracy_best_epoch"] is not None for metrics in runs):
        found.append("best epoch: the best test accuracy over epochs, chosen on the test set itself (paper A's protocol).")
    if any(metrics["accuracy_checkpoint"] == "untrained" and metrics["student"].startswith("tiny") for metrics in runs):
        found.append("zero-shot of a student from scratch has random weights: it can answer nothing, by construction.")
    if shared := {metrics["task"]: metrics["test_questions_also_in_train"] for metrics in runs if metrics["test_questions_also_in_train"]}:
        found += [f"{task}: {count} test questions also stand in train." for task, count in shared.items()]
    found += [
        f"{task}: these are not the rows of the authors' file, so the split is not the published one."
        for task in dict.fromkeys(metrics["task"] for metrics in runs if metrics["rows_in_published_order"] is False)
    ]
    cut = sum(metrics["cut_completions"] for metrics in runs)
    if cut:
        found.append(f"{cut} training completions were cut at the length limit.")
    return found


def stage_line(stage: str, summary: Metrics) -> str:
    """What a run that stopped after a stage has to say, on one line."""
    shown = {key: value for key, value in summary.items() if value is not None and key != "history"}
    parts = [f"{key} {value}" for key, value in shown.items() if not isinstance(value, Mapping)]
    parts += [
        f"{name} {number}" for value in shown.values() if isinstance(value, Mapping) for name, number in value.items() if number is not None
    ]
    return f"after {stage}: {', '.join(parts)}"


def print_comparison(runs: Sequence[Metrics]) -> None:
    """The table and its notes on stdout; plain and wide enough where that is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(comparison(runs))
    for note in notes(runs):
        console.print(f"  {note}", highlight=False)
