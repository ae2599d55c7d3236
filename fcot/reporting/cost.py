"""What accuracy costs: annotation against rationales (paper A, appendix F), GPU-hours, and the tokens of an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fcot.reporting.settings import MetricsRow, Setting
from fcot.reporting.table import Table

ANNOTATION_USD = 20 / 30  # a gold answer: $20 an hour, 30 an hour (paper A, appendix F)
DAVINCI_USD = 20.0  # a million tokens, in and out: text-davinci-002's price in 2022, for teachers without one
_CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True)
class Cost:
    """What one run of a setting takes, mean over its seeds.

    Attributes:
        problems: Annotated train problems, those held out for validation included.
        annotation_usd: Of their gold answers.
        teacher_usd: Of the rationales, whoever bought them: measured tokens, or those of their length, at the teacher's price.
        measured: Whether the teacher counted the tokens.
        training_hours: Of training, times devices.
        answer_tokens: Mean length of an answer at evaluation; None where it was not counted.
    """

    setting: Setting
    problems: int
    annotation_usd: float
    teacher_usd: float
    measured: bool
    training_hours: float
    answer_tokens: float | None

    @property
    def usd(self) -> float:
        """Annotation and rationales."""
        return self.annotation_usd + self.teacher_usd


def costs_of(settings: Sequence[Setting]) -> list[Cost]:
    """Of all students; the teacher's own answers are what a student is to save."""
    return [cost_of(setting) for setting in settings if setting["student"] != "teacher"]


def cost_of(setting: Setting) -> Cost:
    """A setting's cost; an untrained one costs its answers only."""
    run = setting.runs[0]
    problems = run["n_train_problems"] + (run["n_validation_problems"] if run["n_train_problems"] else 0)
    paid = [_rationales_usd(one) for one in setting.runs]  # rounds ask what their exams say, seed by seed
    seconds = [one["seconds"].get("train", 0.0) for one in setting.runs]
    hours = sum(seconds) / len(seconds) * (run.get("devices") or 1) / 3600
    usd = sum(usd for usd, _ in paid) / len(paid)
    return Cost(
        setting, problems, problems * ANNOTATION_USD, usd, all(measured for _, measured in paid), hours, setting.mean("answer_tokens")
    )


def _rationales_usd(run: MetricsRow) -> tuple[float, bool]:
    """What a run's rationales cost, and whether their tokens were counted."""
    usage = run.get("teacher_usage") or {}
    measured = bool(usage.get("used_completion_tokens"))
    tokens = (usage["used_prompt_tokens"], usage["used_completion_tokens"]) if measured else _by_length(run)
    prices = run.get("teacher_price") or (DAVINCI_USD, DAVINCI_USD)
    return sum(n * price / 1e6 for n, price in zip(tokens, prices, strict=True)), measured


def _by_length(run: MetricsRow) -> tuple[float, float]:
    """Tokens of prompts and completions by their characters: each completion asked for with its question."""
    return tuple((run.get(name) or 0) / _CHARACTERS_A_TOKEN for name in ("teacher_prompt_characters", "teacher_characters"))  # type: ignore[return-value]


def pareto(costs: Sequence[Cost], resource: Callable[[Cost], float | None]) -> list[bool]:
    """Which settings no other one of the task beats: as accurate or more, for as little or less, and better in one of the two.

    What is unknown is not on the front.
    """

    def beats(one: Cost, other: Cost) -> bool:
        mine, theirs = resource(one), resource(other)
        if mine is None or theirs is None:
            return False
        better = one.setting.accuracy.mean - other.setting.accuracy.mean
        return _same_questions(one, other) and better >= 0 and mine <= theirs and (better > 0 or mine < theirs)

    return [resource(one) is not None and not any(beats(other, one) for other in costs) for one in costs]


def _same_questions(one: Cost, other: Cost) -> bool:
    return bool(one.setting["questions_sha256"] == other.setting["questions_sha256"] and one.setting["task"] == other.setting["task"])


def cost_table(settings: Sequence[Setting]) -> Table:
    """A line a setting; a star where it lies on the Pareto front of that column."""
    costs = costs_of(settings)
    resources = (lambda one: one.usd, lambda one: one.training_hours, lambda one: one.answer_tokens)
    fronts = [pareto(costs, resource) if len(costs) > 1 else [False] for resource in resources]
    columns = ("setting", "problems", "annotation $", "rationales $", "total $", "training h", "tokens an answer", "acc %")
    table = Table("cost", "cost (*: on the Pareto front)", columns, ("setting",))
    for cost, *stars in zip(costs, *fronts, strict=True):
        usd, hours, tokens = ("*" if star else " " for star in stars)
        estimated = "" if cost.measured or not cost.teacher_usd else "~"
        length = "-" if cost.answer_tokens is None else f"{cost.answer_tokens:.0f}"
        table.add_row(
            f"{cost.setting['task']}, {cost.setting['student']}, {cost.setting.title}", f"{cost.problems:,}",
            f"{cost.annotation_usd:,.2f}", f"{cost.teacher_usd:,.2f}{estimated}", f"{cost.usd:,.2f}{usd}",
            f"{cost.training_hours:.3f}{hours}", f"{length}{tokens}", f"{100 * cost.setting.accuracy.mean:.2f}",
        )  # fmt: skip
    table.notes = [
        f"gold answers at ${ANNOTATION_USD:.2f} each ($20 an hour for 30 of them: paper A, appendix F); rationales at the teacher's price, "
        f"for a teacher without one ${DAVINCI_USD:g} a million tokens, whether or not these runs paid it; ~: tokens estimated by length. "
        "training h: hours times devices, on the machine that ran it."
    ]
    return table


def has_cost(settings: Sequence[Setting]) -> bool:
    """Whether settings differ both in how many problems are annotated and in D: which of the two pays is then the question.

    Or in whether the teacher is asked for plain rationales or for feedback.
    """
    if len({setting["method"] for setting in settings if setting["diversity"]}) > 1:
        return True
    return len({setting["n_train_problems"] for setting in settings if setting["diversity"]}) > 1 and (
        len({setting["diversity"] for setting in settings if setting["diversity"]}) > 1
    )
