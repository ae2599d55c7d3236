"""The comparison table: one line a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from fcot.progress import result_console
from fcot.prompts.student import METHODS

Metrics = Mapping[str, Any]
SHOWN = ("task", "student", "seed")  # columns where runs differ in them; method and D always have one


def ordered(runs: Iterable[Metrics]) -> list[Metrics]:
    """Each run once, by task, student, method, D, what a sweep varied, and seed."""
    unique = {metrics["run_id"]: metrics for metrics in runs}
    methods = list(METHODS)
    return sorted(
        unique.values(),
        key=lambda m: (
            m["task"], m["student"], methods.index(m["method"]), m["diversity"] or 0, str(m.get("varied")), m["seed"], m["run_id"],
        ),
    )  # fmt: skip


def label(metrics: Metrics, runs: Sequence[Metrics]) -> str:
    """What tells a run apart from the others of its task and student: method, D, swept values, seed; else its hash."""
    parts = [METHODS[metrics["method"]].title + (f" D={metrics['diversity']}" if metrics["diversity"] else "")]
    parts += [f"{key}={value}" for key, value in (metrics.get("varied") or {}).items()]
    parts += [f"seed {metrics['seed']}"] if len({other["seed"] for other in runs}) > 1 else []
    parts += [metrics["run_id"][-10:]] if metrics in _alike(runs) else []
    return ", ".join(parts)


def _alike(runs: Sequence[Metrics]) -> list[Metrics]:
    """Runs that all the columns together do not tell apart."""
    groups: dict[str, list[Metrics]] = {}
    for metrics in runs:
        visible = [metrics[name] for name in (*SHOWN, "method", "diversity")]
        groups.setdefault(f"{visible} {metrics.get('varied')}", []).append(metrics)
    return [metrics for group in groups.values() if len(group) > 1 for metrics in group]


def comparison(runs: Sequence[Metrics]) -> Table:
    """Method, D, kept/asked, accuracy with its 95 % Wilson interval, n, seconds; and whatever else tells the runs apart."""
    extra = [name for name in SHOWN if len({metrics[name] for metrics in runs}) > 1]
    varied = list(dict.fromkeys(key for metrics in runs for key in metrics.get("varied") or {}))
    best = any(metrics["accuracy_best_epoch"] is not None for metrics in runs)
    last = any(metrics["accuracy_checkpoint"] == "last" for metrics in runs)
    alike = _alike(runs)
    table = Table(box=box.SIMPLE_HEAD, title=f"{runs[0]['task']}, {runs[0]['student']}" if runs else None, title_justify="left")
    if {"task", "student"} & set(extra):
        table.title = None
    columns = {name: [str(metrics[name]) for metrics in runs] for name in extra}
    columns["method"] = [METHODS[metrics["method"]].title for metrics in runs]
    columns["D"] = [str(metrics["diversity"] or "-") for metrics in runs]
    columns |= {key: [str((metrics.get("varied") or {}).get(key, "-")) for metrics in runs] for key in varied}
    columns["kept/asked"] = [
        f"{metrics['completions_kept']:,}/{metrics['completions_asked']:,}" if metrics["completions_asked"] else "-" for metrics in runs
    ]
    columns["acc %"] = [f"{100 * metrics['accuracy']:.2f}" for metrics in runs]
    columns["95 % CI"] = ["{:.1f}-{:.1f}".format(*(100 * bound for bound in metrics["accuracy_ci95"])) for metrics in runs]
    if best:
        columns["best epoch %"] = [_percent(metrics["accuracy_best_epoch"]) for metrics in runs]
    if last:
        columns["checkpoint"] = [metrics["accuracy_checkpoint"] for metrics in runs]
    columns["n"] = [str(metrics["n_test"]) for metrics in runs]
    columns["s"] = [f"{sum(metrics['seconds'].values()):.0f}" for metrics in runs]
    if alike:
        columns["run"] = [metrics["run_id"][-10:] if metrics in alike else "" for metrics in runs]
    for name in columns:
        table.add_column(name, justify="left" if name in ("task", "student", "method", "checkpoint", "run") else "right", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def notes(runs: Sequence[Metrics]) -> list[str]:
    """What a reader must know about the numbers."""
    found = []
    if any(metrics["accuracy_checkpoint"] == "last" for metrics in runs):
        found.append("checkpoint last: no validation problems; the accuracy is that of the last step's weights.")
    if any(metrics["accuracy_best_epoch"] is not None for metrics in runs):
        found.append("best epoch: the best test accuracy of all evaluations, chosen on the test set itself (paper A).")
    if any(metrics["accuracy_checkpoint"] == "untrained" and metrics["student"].startswith("tiny") for metrics in runs):
        found.append("zero-shot of a student from scratch has random weights: it can answer nothing, by construction.")
    per_task = {metrics["task"]: metrics for metrics in runs}
    for task, metrics in per_task.items():
        if metrics["random_guess"]:
            found.append(f"{task}: guessing gives {100 * metrics['random_guess']:.1f} %.")
        if shared := metrics["test_questions_also_in_train"]:
            found.append(f"{task}: {shared} test questions also stand in train.")
        if metrics["rows_in_published_order"] is False:
            found.append(f"{task}: these are not the rows of the authors' file, so the split is not the published one.")
    if cut := sum(metrics["cut_completions"] for metrics in runs):
        found.append(f"{cut} training completions were cut at the length limit.")
    if usd := sum((metrics.get("teacher_usage") or {}).get("usd") or 0.0 for metrics in runs):
        found.append(f"teacher: ${usd:,.4f} paid by these runs.")
    students = [metrics.get("student_usage") or {} for metrics in runs]
    if usd := sum((usage.get("usd") or 0.0) + (usage.get("training_usd") or 0.0) for usage in students):
        found.append(f"student: ${usd:,.4f} paid by these runs for training and answers.")
    return found


def stage_line(stage: str, summary: Metrics, folder: str) -> str:
    """What a run that stopped after a stage has to say."""
    if stage == "generate":
        usage = summary["teacher_usage"]
        price = "price unknown" if usage["usd"] is None else f"${usage['usd']:,.4f}"
        return (
            f"{summary['asked']:,} completions: {usage['requests']:,} requests sent, {usage['prompt_tokens']:,} prompt and "
            f"{usage['completion_tokens']:,} completion tokens, {price}; {usage['served_from_store']:,} generations from the store; "
            f"{usage['identical_rationales']:,} rationales repeat an earlier one of their problem"
        )
    if stage == "curate":
        refused = ", ".join(f"{reason} {count:,}" for reason, count in summary["refused"].items()) or "none"
        share = summary["kept"] / summary["asked"]
        usd = (summary.get("teacher_usage") or {}).get("usd")
        paid = f"; ${usd:,.4f} paid" if usd else ""
        kept = f"kept {summary['kept']:,} of {summary['asked']:,} completions ({share:.1%})"
        return f"{kept}; refused: {refused}; see {folder}/curated.jsonl{paid}"
    steps = "" if summary["n_steps"] is None else f" {summary['n_steps']:,} steps"
    return f"trained{steps}; the student is in {folder}/student"


def print_comparison(runs: Sequence[Metrics]) -> None:
    """The table and its notes on stdout; as wide as needed where that is no terminal."""
    console = result_console()
    console.print(comparison(runs))
    for note in notes(runs):
        console.print(f"  {note}")
