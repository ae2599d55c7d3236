"""The main tables of a report: a row per setting, a row per task, and paired tests; and the notes below them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from fcot.base.console import result_console
from fcot.evaluation.statistics import Comparison, against_published, compare, holm
from fcot.reporting.comparable import other_problems, train_sizes
from fcot.reporting.numbers import p_value, signed, signed_interval
from fcot.reporting.published import Published, find_published
from fcot.reporting.ranking import evaluations, rank
from fcot.reporting.rounds import rounds_tables
from fcot.reporting.settings import (
    SHOWN,
    MetricsRow,
    Setting,
    ambiguous,
    data_name,
    differing,
    full_label,
    label,
    method_title,
    model_name,
    report_label,
    varied_keys,
)
from fcot.reporting.table import Table

_TESTED = (
    "95 % CI and p with one run each: exact McNemar test, for these two trained students only. With several runs: over trainings and "
    "problems (variance of both, Cochran and Cox's t quantile)."
)
_SINGLY = (
    "Test problems are of few templates or groups (fewer than 10): intervals and tests treat the problems as independent, which they may "
    "not be."
)
_INTERVALS = "95 % CI with several seeds: over trainings and problems (Wilson's formula, variance of both, t quantile); sd: over seeds."
BY_TEMPLATE = "Test problems of one template or group are one unit in intervals and tests (standard errors clustered by template or group)."
_VARIED_COLUMNS = 2
_FEWEST_ENDED = 0.5  # minimum share of answers that ended by themselves; below it, accuracy means little
_ALL_PAIRS = 5  # up to this many settings of a task and student, all pairs are compared


def accuracy_table(settings: Sequence[Setting]) -> Table:
    """A row per setting: method, D, accuracy with its 95 % interval, paper A's accuracy, n, kept/asked, seconds per run."""
    extra = [name for name in SHOWN if len({setting[name] for setting in settings}) > 1]
    first = settings[0]
    title = None if extra else f"{data_name(first)}, {model_name(first)}"
    columns = {name: [str(setting[name]) for setting in settings] for name in extra}
    columns["method"] = [method_title(setting.runs[0]) for setting in settings]
    columns["D"] = [str(setting["diversity"] or "-") for setting in settings]
    varied = _varied(settings)
    columns |= varied
    if same := ambiguous(settings):
        columns["run"] = [setting["run_id"][-10:] if setting in same else "" for setting in settings]
    columns["acc %"] = [f"{100 * setting.accuracy.mean:.2f}" for setting in settings]
    columns["95 % CI"] = [f"{100 * setting.accuracy.low:.1f}-{100 * setting.accuracy.high:.1f}" for setting in settings]
    if any(len(setting.runs) > 1 for setting in settings):
        columns["sd"] = [_percent(setting.accuracy.spread) for setting in settings]
        columns["seeds"] = [str(len(setting.runs)) for setting in settings]
    columns |= _published(settings)
    if any(setting["equations"] is not None for setting in settings):
        columns["corrected %"] = [_percent(_corrected_share(setting)) for setting in settings]
    if any(setting["accuracy_best_epoch"] is not None for setting in settings):
        columns["best epoch %"] = [_percent(setting.mean("accuracy_best_epoch")) for setting in settings]
    if any(setting["accuracy_checkpoint"] == "last" for setting in settings):
        columns["checkpoint"] = [setting["accuracy_checkpoint"] for setting in settings]
    if sizes := train_sizes(settings):
        columns["train"] = sizes
    columns["n"] = [str(len(setting.problems)) for setting in settings]
    if any(key.startswith("trainer.") for setting in settings for key in setting.varied):  # validation chooses among them
        columns["validation %"] = [_percent(setting.mean("validation_accuracy")) for setting in settings]
    columns["kept/asked"] = [_kept(setting) for setting in settings]
    columns |= _faulty(settings)
    if _differ(settings, "rationale_words"):
        columns["words"] = [_plain(setting.mean("rationale_words"), "{:.0f}") for setting in settings]
    columns["s"] = [f"{sum(sum(run['seconds'].values()) for run in setting.runs) / len(setting.runs):.0f}" for setting in settings]
    left = ("task", "student", "method", *varied, "checkpoint", "run")
    table = Table("accuracy", title, list(columns), left, notes=notes(settings), always=("acc %", "95 % CI"))
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def _varied(settings: Sequence[Setting]) -> dict[str, list[str]]:
    """A column for each varied key, or a single one for all of them if there are many."""
    keys = varied_keys(settings)
    if len(keys) <= _VARIED_COLUMNS:
        return {key.removeprefix("method."): [setting.varied.get(key, "-") for setting in settings] for key in keys}
    return {"varied": [", ".join(f"{key}={value}" for key, value in differing(setting, settings).items()) for setting in settings]}


def by_task(settings: Sequence[Setting]) -> Table | None:
    """The layout of the papers: a row per student and method, a column per task; None for a single task."""
    tasks = list(dict.fromkeys(setting["task"] for setting in settings))
    if len(tasks) == 1:
        return None
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for setting in settings:
        lines.setdefault((setting["student"], full_label(setting, settings)), {})[setting["task"]] = _beside_the_paper(setting)
    table = Table("by_task", "test accuracy (%) by task", ("student", "method", *tasks), ("student", "method"))
    for names, cells in lines.items():
        table.add_row(*names, *(cells.get(task, "-") for task in tasks))
    table.notes = ["Intervals are in the table of all settings." + (" In brackets: paper A." if any(_cells(settings)) else "")]
    if any(cell.best_epoch for cell in _cells(settings)):
        table.notes.append("best epoch: ours and paper A's best test accuracy over evaluations, optimistic.")
    return table


def _beside_the_paper(setting: Setting) -> str:
    """A setting's accuracy with the published one in brackets. A published best epoch is compared with our best epoch."""
    own = f"{100 * setting.accuracy.mean:.2f}"
    if setting.published is None:
        return own
    cell, measured = setting.published
    return f"{own}; best epoch {100 * measured.mean:.2f} ({cell.percent:.2f})" if cell.best_epoch else f"{own} ({cell.percent:.2f})"


def _cells(settings: Sequence[Setting]) -> list[Published]:
    """The published accuracies that can be compared with a measured one."""
    return [setting.published[0] for setting in settings if setting.published is not None]


def _published(settings: Sequence[Setting]) -> dict[str, list[str]]:
    """Columns for paper A's accuracy, the difference to it, and whether the difference's interval contains 0; empty without any."""
    if not _cells(settings):
        return {}
    columns: dict[str, list[str]] = {"paper %": [], "diff": [], "covered": []}
    for setting in settings:
        for name, text in zip(columns, _against_the_paper(setting), strict=True):
            columns[name].append(text)
    return columns


def _against_the_paper(setting: Setting) -> tuple[str, str, str]:
    if setting.published is None:
        return "", "", ""
    cell, measured = setting.published
    share = cell.percent / 100
    low, high = against_published(measured, len(setting.runs), share, len(setting.problems))
    return f"{cell.percent:.2f}", signed(measured.mean - share, 2), "yes" if low <= 0 <= high else "no"


def _kept(setting: Setting) -> str:
    requested = setting.mean("completions_asked")
    return f"{setting.mean('completions_kept'):,.0f}/{requested:,.0f}" if requested else "-"


def _faulty(settings: Sequence[Setting]) -> dict[str, list[str]]:
    """Columns for the percentages of empty, cut and unanswered completions, each only if some setting has such completions."""
    columns: dict[str, list[str]] = {}
    for name in ("empty", "cut", "unanswered"):
        counts = [(setting.mean(f"completions_{name}"), setting.mean("completions_asked")) for setting in settings]
        if any(faulty for faulty, _ in counts):
            columns[f"{name} %"] = [f"{100 * faulty / total:.1f}" if faulty is not None and total else "-" for faulty, total in counts]
    return columns


def _differ(settings: Sequence[Setting], name: str) -> bool:
    """Whether a metric differs by more than 10 % between settings."""
    known = [value for setting in settings if (value := setting.mean(name)) is not None]
    return len(known) > 1 and max(known) > 1.1 * min(known)


def _plain(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


Compared = tuple[Setting, Setting, Comparison]


def compare_settings(settings: Sequence[Setting]) -> list[Compared]:
    """Compare settings of the same task and student in pairs, on the problems that both answered.

    Of few settings all pairs are compared. Of many, each is compared with the first, and with the nearest that differs from it in one thing
    only; the two best are compared too.
    """
    compared = []
    groups: dict[tuple[object, ...], list[Setting]] = {}
    for setting in settings:
        groups.setdefault(tuple(setting[name] for name in (*SHOWN, "questions_sha256")), []).append(setting)
    for group in groups.values():
        for first, second in combinations(group, 2) if len(group) <= _ALL_PAIRS else _informative_pairs(group):
            if problems := sorted(first.problems & second.problems):
                sides = first.correct(problems), second.correct(problems)
                compared.append((first, second, compare(*sides, problems, first.templates(problems), (first.fixed, second.fixed))))
    return compared


def _informative_pairs(group: Sequence[Setting]) -> Iterator[tuple[Setting, Setting]]:
    best = {place for place, setting in enumerate(group) if setting in rank(group).settings[:2]}
    for first_place, first in enumerate(group):
        covered: set[tuple[str | None, object]] = set()
        for second_place, second in enumerate(group[first_place + 1 :], first_place + 1):
            axis = _difference(first, second)
            direction = (axis, second["diversity"] if axis == "method" else None)  # D = 1 and diverse reasoning are two claims
            if first_place == 0 or {first_place, second_place} == best or (axis is not None and direction not in covered):
                yield first, second
            if axis is not None:
                covered.add(direction)


def _difference(first: Setting, second: Setting) -> str | None:
    """The only key in which two settings differ; None if there are several. If one setting has no D, D is ignored where methods differ."""
    facts = [
        {"method": (setting["method"], setting["method_title"]), "diversity": setting["diversity"], **setting.varied}
        for setting in (first, second)
    ]
    keys = [key for key in dict.fromkeys([*facts[0], *facts[1]]) if facts[0].get(key) != facts[1].get(key)]
    if "method" in keys and None in (first["diversity"], second["diversity"]):
        keys = [key for key in keys if key != "diversity"]
    return keys[0] if len(keys) == 1 else None


def comparison_table(compared: Sequence[Compared], settings: Sequence[Setting]) -> Table:
    """A row per pair of settings: difference, interval, and p-value with Holm's correction.

    Args:
        compared: The pairs.
        settings: All settings of the report, among which the names must be unique.
    """
    columns = ("comparison", "difference", "95 % CI", "p (Holm)", "repaired", "broken", "n")
    table = Table("comparisons", "comparisons on the same problems", columns, ("comparison",), notes=[
        "repaired: the first setting's answer is wrong and the second one's is right (with several seeds: in more than half of them); "
        "broken: the reverse.",
        _TESTED,
        "p is corrected for the number of comparisons (Holm); intervals are not corrected for multiple comparisons.",
    ])  # fmt: skip
    if any(result.p is None for _, _, result in compared):
        table.notes.append("no test: one side was trained once, and how much it would vary is unknown; train both several times.")
    table.notes += by_template([first for first, _, _ in compared])
    for (first, second, result), p in zip(compared, holm([result.p for _, _, result in compared]), strict=True):
        table.add_row(
            f"{report_label(first, settings)} -> {label(second, settings)}", signed(result.difference, 2),
            signed_interval(result.low, result.high), p_value(p), str(len(result.repaired)), str(len(result.broken)),
            str(len(first.problems & second.problems)),
        )  # fmt: skip
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _corrected_share(setting: Setting) -> float | None:
    """The share of the computed equations in test answers that the calculator corrected, over all runs; None without a calculator."""
    counts = [run["equations"] for run in setting.runs if run.get("equations")]
    computed = sum(count["computed"] for count in counts)
    return sum(count["changed"] for count in counts) / computed if computed else None


def notes(settings: Sequence[Setting]) -> list[str]:
    """The notes below the main table: how the numbers were made, and what limits them."""
    runs = [run for setting in settings for run in setting.runs]
    lines = []
    if any(len(setting.runs) > 1 for setting in settings):
        lines.append(_INTERVALS)
    lines += other_problems(settings)
    lines += by_template(settings)
    if any(find_published(setting.runs[0]) for setting in settings):
        lines.append(
            "paper: Ho et al. 2023, text-davinci-002 as teacher. Its fine-tuned open students are best test epochs of 20 (optimistic) and "
            "are compared with best epochs only (trainer.best_epoch=true). covered: the 95 % interval of the difference contains 0. It "
            "includes both sampling errors and, with several seeds, that of the paper's training; with one seed, other trainings may "
            "differ by more."
        )
    if any(metrics["accuracy_checkpoint"] == "last" for metrics in runs):
        lines.append("checkpoint last: no validation problems; the accuracy is that of the last step's weights.")
    if any(metrics.get("equations") for metrics in runs):
        lines.append("corrected: of the equations in test answers, the share that the calculator corrected; -: no calculator.")
    lines += _maxima(settings)
    if any(metrics["accuracy_checkpoint"] == "untrained" and metrics["student"].startswith("tiny") for metrics in runs):
        lines.append("an untrained student from scratch has random weights: it answers correctly only by chance.")
    trained = [metrics for metrics in runs if metrics["accuracy_checkpoint"] != "untrained"]
    if trained and any(len(setting.runs) == 1 and setting["accuracy_checkpoint"] != "untrained" for setting in settings):
        lines.append(
            "Settings with one seed: 95 % CI and p are over the test problems only; another training may differ by more (seed=0,1,2)."
        )
    if any(metrics["student"] == "teacher" and str(metrics["teacher"]).startswith("oracle") for metrics in runs):
        lines.append("the oracle's answers do not depend on the prompt.")
    lines += [
        f"{report_label(setting, settings)}: only {ended:.0%} of the answers ended by themselves."
        for setting in settings if setting["accuracy_checkpoint"] != "untrained"
        if (ended := setting.mean("complete")) is not None and ended < _FEWEST_ENDED
    ]  # fmt: skip
    for task, metrics in {metrics["task"]: metrics for metrics in runs}.items():
        lines += _baselines(task, metrics)
        if shared := metrics["test_questions_also_in_train"]:
            lines.append(f"{task}: {shared} test questions are also in train.")
        if metrics["rows_in_published_order"] is False:
            lines.append(f"{task}: these are not the rows of the authors' file, so the split is not the published one.")
    for setting in settings:
        for metrics in setting.runs:
            lines += [*_near_duplicates(metrics), *_altered_tests(report_label(setting, settings), metrics)]
    if cut := sum(metrics["cut_completions"] for metrics in runs):
        lines.append(f"{cut} training completions were cut at the length limit.")
    lines += _costs(runs)
    return list(dict.fromkeys(lines))


def _altered_tests(name: str, metrics: MetricsRow) -> Iterator[str]:
    """Notes on test problems of a run that are not scored, and on test prompts that were too long. ``name`` is that of its setting."""
    n = metrics["n_test"]
    if left_out := metrics.get("trained_left_out"):
        yield f"{metrics['task']}: {left_out} test problems are not scored: the student was trained on them."
    if left_out := metrics.get("exemplars_left_out"):
        yield f"{metrics['task']}: {left_out} test problems are in the prompt (exemplars or template) and are not scored."
    if shortened := metrics.get("shortened_prompts"):
        dropped = metrics["dropped_exemplars"] / n
        yield f"{name}: SHORTENED: {shortened} of {n} prompts were too long and lost exemplars ({dropped:.1f} on average)."
    if cut := metrics.get("cut_questions"):
        yield f"{name}: {cut} of {n} questions lost their beginning."


def _costs(runs: Sequence[MetricsRow]) -> Iterator[str]:
    """Notes on what the runs paid for teacher and student."""
    if usd := sum((metrics.get("teacher_usage") or {}).get("usd") or 0.0 for metrics in runs):
        yield f"teacher: ${usd:,.4f} paid by these runs."
    students = [metrics.get("student_usage") or {} for metrics in runs]
    if usd := sum((usage.get("usd") or 0.0) + (usage.get("training_usd") or 0.0) for usage in students):
        yield f"student: ${usd:,.4f} paid by these runs for training and answers."


def _near_duplicates(metrics: MetricsRow) -> Iterator[str]:
    """Notes on test questions that resemble train questions; older versions did not count them."""
    n, numbers = metrics["n_test"], metrics.get("test_questions_in_train_but_for_numbers", 0)
    templates = metrics.get("test_questions_of_a_train_template", 0)
    shared = []
    if numbers > metrics["test_questions_also_in_train"]:
        shared.append(f"{numbers} of {n} test problems ({numbers / n:.0%}) are in train with the same or other numbers")
    if templates > numbers:
        shared.append(f"{templates} of {n} ({templates / n:.0%}) have the wording of a train problem except for names, objects and numbers")
    if shared:
        yield f"{metrics['task']}: {', '.join(shared)}{_apart(metrics)}.".replace("%", " %")


def _apart(metrics: MetricsRow) -> str:
    """What keeps problems of one kind on one side of the split; empty where nothing was split, or templates are kept apart already."""
    if metrics.get("split_mode") in ("template", "all"):
        return ""
    if metrics.get("data_file") and metrics.get("test_templates"):  # dataset.group_column is set
        return ""
    if metrics.get("data_file"):  # own data: its kinds of problems are known to its owner, and wordings may all be alike
        return "; dataset.group_column keeps problems of one kind on one side, if a column names 20 kinds or more"
    return "; split-mode=template keeps templates apart"


def by_template(settings: Sequence[Setting]) -> Iterator[str]:
    """Notes on the unit of intervals and tests, a template or a problem, for data that name their templates."""
    with_templates = [setting for setting in settings if setting["test_templates"]]
    is_clustered = [setting.templates(sorted(setting.problems)) is not None for setting in with_templates]
    if any(is_clustered):
        yield BY_TEMPLATE
    if not all(is_clustered):
        yield _SINGLY


def _maxima(settings: Sequence[Setting]) -> Iterator[str]:
    """Notes on the accuracies that are maxima over several evaluations."""
    runs = [run for setting in settings for run in setting.runs if run.get("validation_accuracy") is not None]
    if sizes := {run["n_validation_problems"] for run in runs}:
        count = f"{min(sizes)}" if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
        times = next(filter(None, (evaluations(setting, "validation_accuracy") for setting in settings)), "best of all evaluations")
        yield f"checkpoints are chosen on {count} validation problems held out from train; validation % is a maximum ({times})."
    measured = [setting for setting in settings if setting["accuracy_best_epoch"] is not None]
    if measured:
        times = next(filter(None, (evaluations(setting, "test_accuracy") for setting in measured)), "best of all evaluations")
        yield f"best epoch: a maximum of the test accuracy ({times}), chosen on the test set itself (paper A): optimistic."


def _baselines(task: str, metrics: MetricsRow) -> Iterator[str]:
    """Notes on the baselines without a model: guessing, and the most frequent answer of train."""
    if metrics["random_guess"]:
        yield f"{task}: guessing gives {100 * metrics['random_guess']:.1f} %."
    if metrics.get("majority_accuracy") is not None:
        share, answer = 100 * metrics["majority_accuracy"], metrics["majority_answer"]
        yield f"{task}: always answering {answer!r}, the most frequent answer of train, gives {share:.1f} %."


def stage_line(stage: str, summary: MetricsRow, folder: str) -> str:
    """The line that a run prints if it stops after a stage.

    Args:
        stage: ``generate``, ``curate`` or ``train``.
        summary: The stage's results.
        folder: The run's folder.
    """
    if stage == "generate":
        usage = summary["teacher_usage"]
        price = "price unknown" if usage["usd"] is None else f"${usage['usd']:,.4f}"
        return (
            f"{summary['asked']:,} completions: {usage['requests']:,} requests sent, {usage['prompt_tokens']:,} prompt and "
            f"{usage['completion_tokens']:,} completion tokens, {price}; {usage['served_from_store']:,} generations from the store; "
            f"{usage['identical_rationales']:,} rationales repeat an earlier one of the same problem"
        )
    if stage == "curate":
        rejected = ", ".join(f"{reason} {count:,}" for reason, count in summary["refused"].items()) or "none"
        share = summary["kept"] / summary["asked"]
        usages = (summary.get("teacher_usage"), summary.get("judge", {}).get("usage"))
        usd = sum(usage.get("usd") or 0.0 for usage in usages if usage)
        paid = f"; ${usd:,.4f} paid" if usd else ""
        kept = f"kept {summary['kept']:,} of {summary['asked']:,} completions ({share:.1%})"
        return f"{kept}; rejected: {rejected}; see {folder}/curated.jsonl{paid}"
    steps = "" if summary["n_steps"] is None else f" {summary['n_steps']:,} steps"
    return f"trained{steps}; the student is in {folder}/student"


def print_comparison(settings: Sequence[Setting]) -> None:
    """Print the main table with its notes, and the tables of rounds. If stdout is no terminal, tables are as wide as needed."""
    console = result_console()
    for table in (accuracy_table(settings), *rounds_tables(settings)):
        console.print(table)
