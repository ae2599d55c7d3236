"""The tables of a report: a line a setting, paired tests, wrong answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from fcot.base.console import result_console
from fcot.evaluation.statistics import Comparison, against_published, compare, holm
from fcot.methods.table import METHODS
from fcot.reporting.numbers import p_value, signed, signed_interval
from fcot.reporting.published import Published, find_published
from fcot.reporting.ranking import evaluations, rank
from fcot.reporting.rounds import rounds_tables
from fcot.reporting.settings import SHOWN, MetricsRow, Setting, alike, differing, full_label, label, named, varied_keys
from fcot.reporting.table import Table

_TESTED = (
    "95 % CI and p, one run each: exact McNemar test, for these two trained students only; several: over trainings and problems (variance "
    "of both, Cochran and Cox's t quantile)."
)
_SINGLY = (
    "Test problems are of few templates (fewer than 10): intervals and tests take the problems for independent, which they may not be."
)
_INTERVALS = "95 % CI with several seeds: over trainings and problems (Wilson's formula, variance of both, t quantile); sd: over seeds."
BY_TEMPLATE = "Test problems of one template are counted as one unit in intervals and tests (standard errors clustered by template)."
_VARIED_COLUMNS = 2
_ENDED = 0.5  # share of answers that end by themselves, below which an accuracy says little
_ALL_PAIRS = 5  # settings of a task and student up to which all are compared with all


def accuracy_table(settings: Sequence[Setting]) -> Table:
    """A line a setting: method, D, accuracy with its 95 % interval, what paper A published, n, kept/asked, seconds a run."""
    extra = [name for name in SHOWN if len({setting[name] for setting in settings}) > 1]
    first = settings[0]
    title = None if extra else f"{first['task']}, {first['student']}"
    columns = {name: [str(setting[name]) for setting in settings] for name in extra}
    columns["method"] = [METHODS[setting["method"]].title for setting in settings]
    columns["D"] = [str(setting["diversity"] or "-") for setting in settings]
    varied = _varied(settings)
    columns |= varied
    if same := alike(settings):
        columns["run"] = [setting["run_id"][-10:] if setting in same else "" for setting in settings]
    columns["acc %"] = [f"{100 * setting.accuracy.mean:.2f}" for setting in settings]
    columns["95 % CI"] = [f"{100 * setting.accuracy.low:.1f}-{100 * setting.accuracy.high:.1f}" for setting in settings]
    if any(len(setting.runs) > 1 for setting in settings):
        columns["sd"] = [_percent(setting.accuracy.spread) for setting in settings]
        columns["seeds"] = [str(len(setting.runs)) for setting in settings]
    columns |= _published(settings)
    if any(setting["accuracy_best_epoch"] is not None for setting in settings):
        columns["best epoch %"] = [_percent(setting.mean("accuracy_best_epoch")) for setting in settings]
    if any(setting["accuracy_checkpoint"] == "last" for setting in settings):
        columns["checkpoint"] = [setting["accuracy_checkpoint"] for setting in settings]
    columns["n"] = [str(len(setting.problems)) for setting in settings]
    if any(key.startswith("trainer.") for setting in settings for key in setting.varied):  # what chooses among them
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
    """A column for each thing that was varied; one for all of them where they would push the accuracies aside."""
    keys = varied_keys(settings)
    if len(keys) <= _VARIED_COLUMNS:
        return {key.removeprefix("method."): [setting.varied.get(key, "-") for setting in settings] for key in keys}
    return {"varied": [", ".join(f"{key}={value}" for key, value in differing(setting, settings).items()) for setting in settings]}


def by_task(settings: Sequence[Setting]) -> Table | None:
    """As the papers print results: a line a student and method, a column a task; None for a single task."""
    tasks = list(dict.fromkeys(setting["task"] for setting in settings))
    if len(tasks) == 1:
        return None
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for setting in settings:
        lines.setdefault((setting["student"], full_label(setting, settings)), {})[setting["task"]] = _beside_the_paper(setting)
    table = Table("by_task", "test accuracy (%) by task", ("student", "method", *tasks), ("student", "method"))
    for names, cells in lines.items():
        table.add_row(*names, *(cells.get(task, "-") for task in tasks))
    table.notes = ["Intervals stand in the table of all settings." + (" In brackets: paper A." if any(_cells(settings)) else "")]
    if any(cell.best_epoch for cell in _cells(settings)):
        table.notes.append("best epoch: ours and paper A's best test accuracy over evaluations, optimistic.")
    return table


def _beside_the_paper(setting: Setting) -> str:
    """A setting's accuracy with the published one; what is a best epoch stands beside a best epoch."""
    own = f"{100 * setting.accuracy.mean:.2f}"
    if setting.published is None:
        return own
    cell, measured = setting.published
    return f"{own}; best epoch {100 * measured.mean:.2f} ({cell.percent:.2f})" if cell.best_epoch else f"{own} ({cell.percent:.2f})"


def _cells(settings: Sequence[Setting]) -> list[Published]:
    """The published figures that something measured stands beside."""
    return [setting.published[0] for setting in settings if setting.published is not None]


def _published(settings: Sequence[Setting]) -> dict[str, list[str]]:
    """Paper A's figure for each cell, the difference to it, and whether the interval of the difference holds 0."""
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
    asked = setting.mean("completions_asked")
    return f"{setting.mean('completions_kept'):,.0f}/{asked:,.0f}" if asked else "-"


def _faulty(settings: Sequence[Setting]) -> dict[str, list[str]]:
    """Shares of empty, cut and unanswered completions; a column only where some setting has such completions."""
    columns: dict[str, list[str]] = {}
    for name in ("empty", "cut", "unanswered"):
        counts = [(setting.mean(f"completions_{name}"), setting.mean("completions_asked")) for setting in settings]
        if any(faulty for faulty, _ in counts):
            columns[f"{name} %"] = [f"{100 * faulty / total:.1f}" if faulty is not None and total else "-" for faulty, total in counts]
    return columns


def _differ(settings: Sequence[Setting], name: str) -> bool:
    """Whether a figure of the rationales moves by more than a tenth between settings."""
    known = [value for setting in settings if (value := setting.mean(name)) is not None]
    return len(known) > 1 and max(known) > 1.1 * min(known)


def _plain(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


Compared = tuple[Setting, Setting, Comparison]


def compare_settings(settings: Sequence[Setting]) -> list[Compared]:
    """Settings of a task and student in pairs, on the problems that both answered.

    All pairs of few; of more each with the first, and with the nearest that differs from it in one thing only; and the two highest.
    """
    found = []
    groups: dict[tuple[object, ...], list[Setting]] = {}
    for setting in settings:
        groups.setdefault(tuple(setting[name] for name in (*SHOWN, "questions_sha256")), []).append(setting)
    for group in groups.values():
        for one, other in combinations(group, 2) if len(group) <= _ALL_PAIRS else _telling(group):
            if problems := sorted(one.problems & other.problems):
                sides = one.correct(problems), other.correct(problems)
                found.append((one, other, compare(*sides, problems, one.templates(problems), (one.fixed, other.fixed))))
    return found


def _telling(group: Sequence[Setting]) -> Iterator[tuple[Setting, Setting]]:
    highest = {place for place, setting in enumerate(group) if setting in rank(group).settings[:2]}
    for place, one in enumerate(group):
        seen: set[tuple[str | None, object]] = set()
        for then, other in enumerate(group[place + 1 :], place + 1):
            axis = _difference(one, other)
            direction = (axis, other["diversity"] if axis == "method" else None)  # D = 1 and diverse reasoning are two claims
            if place == 0 or {place, then} == highest or (axis is not None and direction not in seen):
                yield one, other
            if axis is not None:
                seen.add(direction)


def _difference(one: Setting, other: Setting) -> str | None:
    """The one thing in which two settings differ, None for several; D belongs to the method where one of them has none."""
    facts = [{"method": side["method"], "diversity": side["diversity"], **side.varied} for side in (one, other)]
    differing = [key for key in dict.fromkeys([*facts[0], *facts[1]]) if facts[0].get(key) != facts[1].get(key)]
    if "method" in differing and None in (one["diversity"], other["diversity"]):
        differing = [key for key in differing if key != "diversity"]
    return differing[0] if len(differing) == 1 else None


def comparison_table(compared: Sequence[Compared], settings: Sequence[Setting]) -> Table:
    """Settings against each other: difference, interval, test with Holm's correction; the names tell them from all ``settings``."""
    columns = ("comparison", "difference", "95 % CI", "p (Holm)", "repaired", "broken", "n")
    table = Table("comparisons", "against each other, on the same problems", columns, ("comparison",), notes=[
        "repaired: problems that the first answers wrongly and the second rightly (of several seeds: more than half); broken: the reverse.",
        _TESTED,
        "p is corrected for the number of comparisons (Holm); intervals are not corrected for multiple comparisons.",
    ])  # fmt: skip
    if any(result.p is None for _, _, result in compared):
        table.notes.append("no test: one side was trained once, and how much it would vary is unknown; train both several times.")
    table.notes += by_template([one for one, _, _ in compared])
    for (one, other, result), p in zip(compared, holm([result.p for _, _, result in compared]), strict=True):
        table.add_row(
            f"{named(one, settings)} -> {label(other, settings)}", signed(result.difference, 2),
            signed_interval(result.low, result.high), p_value(p), str(len(result.repaired)), str(len(result.broken)),
            str(len(one.problems & other.problems)),
        )  # fmt: skip
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def notes(settings: Sequence[Setting]) -> list[str]:
    """What a reader must know about the numbers."""
    runs = [run for setting in settings for run in setting.runs]
    found = []
    if any(len(setting.runs) > 1 for setting in settings):
        found.append(_INTERVALS)
    found += by_template(settings)
    if any(find_published(setting.runs[0]) for setting in settings):
        found.append(
            "paper: Ho et al. 2023, text-davinci-002 as teacher. Its fine-tuned open students are best test epochs of 20 (optimistic) and "
            "stand beside best epochs only (trainer.best_epoch=true). covered: the 95 % interval of the difference holds 0; it has both "
            "sampling errors and, with several seeds, that of the paper's training; with one seed other trainings may differ by more."
        )
    if any(metrics["accuracy_checkpoint"] == "last" for metrics in runs):
        found.append("checkpoint last: no validation problems; the accuracy is that of the last step's weights.")
    found += _maxima(settings)
    if any(metrics["accuracy_checkpoint"] == "untrained" and metrics["student"].startswith("tiny") for metrics in runs):
        found.append("an untrained student from scratch has random weights: it can answer nothing, but by chance.")
    trained = [metrics for metrics in runs if metrics["accuracy_checkpoint"] != "untrained"]
    if trained and any(len(setting.runs) == 1 and setting["accuracy_checkpoint"] != "untrained" for setting in settings):
        found.append(
            "95 % CI and p: over the test problems, one training each where there is one seed; another may differ by more (seed=0,1,2)."
        )
    if any(metrics["student"] == "teacher" and str(metrics["teacher"]).startswith("oracle") for metrics in runs):
        found.append("the oracle answers alike however it is asked.")
    found += [
        f"{named(setting, settings)}: only {ended:.0%} of the answers ended by themselves."
        for setting in settings if setting["accuracy_checkpoint"] != "untrained"
        if (ended := setting.mean("complete")) is not None and ended < _ENDED
    ]  # fmt: skip
    for task, metrics in {metrics["task"]: metrics for metrics in runs}.items():
        found += _baselines(task, metrics)
        if shared := metrics["test_questions_also_in_train"]:
            found.append(f"{task}: {shared} test questions also stand in train.")
        if metrics["rows_in_published_order"] is False:
            found.append(f"{task}: these are not the rows of the authors' file, so the split is not the published one.")
    for setting, metrics in ((one, run) for one in settings for run in one.runs):
        found += _near_duplicates(metrics)
        if left_out := metrics.get("exemplars_left_out"):
            found.append(f"{metrics['task']}: {left_out} test problems stand in the prompt (exemplars or template) and are not scored.")
        if n := metrics.get("shortened_prompts"):
            dropped = metrics["dropped_exemplars"] / metrics["n_test"]
            found.append(
                f"{named(setting, settings)}: SHORTENED: {n} of {metrics['n_test']} prompts were too long and lost exemplars "
                f"({dropped:.1f} on average)."
            )
        if n := metrics.get("cut_questions"):
            found.append(f"{named(setting, settings)}: {n} of {metrics['n_test']} questions lost their beginning.")
    if cut := sum(metrics["cut_completions"] for metrics in runs):
        found.append(f"{cut} training completions were cut at the length limit.")
    if usd := sum((metrics.get("teacher_usage") or {}).get("usd") or 0.0 for metrics in runs):
        found.append(f"teacher: ${usd:,.4f} paid by these runs.")
    students = [metrics.get("student_usage") or {} for metrics in runs]
    if usd := sum((usage.get("usd") or 0.0) + (usage.get("training_usd") or 0.0) for usage in students):
        found.append(f"student: ${usd:,.4f} paid by these runs for training and answers.")
    return list(dict.fromkeys(found))


def _near_duplicates(metrics: MetricsRow) -> Iterator[str]:
    """What the test set shares with train beyond whole questions; metrics of older versions do not say it."""
    n, numbers = metrics["n_test"], metrics.get("test_questions_in_train_but_for_numbers", 0)
    templates = metrics.get("test_questions_of_a_train_template", 0)
    shared = []
    if numbers > metrics["test_questions_also_in_train"]:
        shared.append(f"{numbers} of {n} test problems ({numbers / n:.0%}) stand in train with the same or other numbers")
    if templates > numbers:
        shared.append(f"{templates} of {n} ({templates / n:.0%}) have the wording of a train problem but for names, objects and numbers")
    if shared:
        remedy = "" if metrics.get("split_mode") == "template" else "; split-mode=template keeps templates apart"
        yield f"{metrics['task']}: {', '.join(shared)}{remedy}.".replace("%", " %")


def by_template(settings: Sequence[Setting]) -> Iterator[str]:
    """What is the unit of intervals and tests, where the data name templates."""
    named_ones = [setting for setting in settings if setting["test_templates"]]
    by_unit = [setting.templates(sorted(setting.problems)) is not None for setting in named_ones]
    if any(by_unit):
        yield BY_TEMPLATE
    if not all(by_unit):
        yield _SINGLY


def _maxima(settings: Sequence[Setting]) -> Iterator[str]:
    """Which figures are maxima over evaluations."""
    runs = [run for setting in settings for run in setting.runs if run.get("validation_accuracy") is not None]
    if sizes := {run["n_validation_problems"] for run in runs}:
        told = f"{min(sizes)}" if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
        times = next(filter(None, (evaluations(setting, "validation_accuracy") for setting in settings)), "best of all evaluations")
        yield f"checkpoints are chosen on {told} validation problems held out from train; validation % is a maximum ({times})."
    measured = [setting for setting in settings if setting["accuracy_best_epoch"] is not None]
    if measured:
        times = next(filter(None, (evaluations(setting, "test_accuracy") for setting in measured)), "best of all evaluations")
        yield f"best epoch: a maximum of the test accuracy ({times}), chosen on the test set itself (paper A): optimistic."


def _baselines(task: str, metrics: MetricsRow) -> Iterator[str]:
    """What needs no skill: guessing, and the most frequent answer."""
    if metrics["random_guess"]:
        yield f"{task}: guessing gives {100 * metrics['random_guess']:.1f} %."
    if metrics.get("majority_accuracy") is not None:
        share, answer = 100 * metrics["majority_accuracy"], metrics["majority_answer"]
        yield f"{task}: always answering {answer!r}, the most frequent answer of train, gives {share:.1f} %."


def stage_line(stage: str, summary: MetricsRow, folder: str) -> str:
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


def print_comparison(settings: Sequence[Setting]) -> None:
    """The table and its notes on stdout; as wide as needed where that is no terminal."""
    console = result_console()
    for table in (accuracy_table(settings), *rounds_tables(settings)):
        console.print(table)
