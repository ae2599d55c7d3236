"""The cost of accuracy: annotation and rationales in dollars (paper A, appendix F), GPU hours, and tokens per answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fcot.reporting.settings import MetricsRow, Setting
from fcot.reporting.table import Table

ANNOTATION_USD = 20 / 30  # per gold answer: $20 per hour, 30 answers per hour (paper A, appendix F)
DAVINCI_USD = 20.0  # per million tokens, in and out: text-davinci-002's price in 2022, for teachers without a price
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Cost:
    """The cost of one run of a setting, mean over its seeds.

    Attributes:
        setting: The setting.
        problems: Annotated train problems, including those held out for validation.
        annotation_usd: Dollars for their gold answers.
        teacher_usd: Dollars for the rationales at the teacher's price, even if another run paid them.
        measured: Whether the teacher counted the tokens; otherwise they are estimated by length.
        training_hours: Hours of training times number of devices.
        answer_tokens: Mean tokens per answer at evaluation; None if they were not counted.
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
        """Dollars for annotation and rationales."""
        return self.annotation_usd + self.teacher_usd


def costs_of(settings: Sequence[Setting]) -> list[Cost]:
    """The cost of each setting with a student; settings that evaluate the teacher itself are left out."""
    return [cost_of(setting) for setting in settings if setting["student"] != "teacher"]


def cost_of(setting: Setting) -> Cost:
    """The cost of a setting; without training problems there is no annotation to pay."""
    run = setting.runs[0]
    problems = run["n_train_problems"] + (run["n_validation_problems"] if run["n_train_problems"] else 0)
    paid = [_rationales_usd(metrics) for metrics in setting.runs]  # with rounds, each seed requests other completions
    seconds = [metrics["seconds"].get("train", 0.0) for metrics in setting.runs]
    hours = sum(seconds) / len(seconds) * (run.get("devices") or 1) / 3600
    usd = sum(usd for usd, _ in paid) / len(paid)
    return Cost(
        setting, problems, problems * ANNOTATION_USD, usd, all(measured for _, measured in paid), hours, setting.mean("answer_tokens")
    )


def _rationales_usd(run: MetricsRow) -> tuple[float, bool]:
    """Dollars for a run's rationales, and whether the teacher counted the tokens."""
    usage = run.get("teacher_usage") or {}
    measured = bool(usage.get("used_completion_tokens"))
    tokens = (usage["used_prompt_tokens"], usage["used_completion_tokens"]) if measured else _by_length(run)
    prices = run.get("teacher_price") or (DAVINCI_USD, DAVINCI_USD)
    return sum(n * price / 1e6 for n, price in zip(tokens, prices, strict=True)), measured


def _by_length(run: MetricsRow) -> tuple[float, float]:
    """Tokens of prompts and completions, estimated from their characters; each completion counts its own prompt."""
    return tuple((run.get(name) or 0) / _CHARACTERS_PER_TOKEN for name in ("teacher_prompt_characters", "teacher_characters"))  # type: ignore[return-value]


def pareto(costs: Sequence[Cost], resource: Callable[[Cost], float | None]) -> list[bool]:
    """Which settings are on the Pareto front of accuracy and a resource, among those with the same test problems.

    Args:
        costs: The settings with their costs.
        resource: The amount that a setting uses; None if it is unknown. Such a setting is not on the front.
    """

    def dominates(first: Cost, second: Cost) -> bool:
        used, used_by_second = resource(first), resource(second)
        if used is None or used_by_second is None:
            return False
        gain = first.setting.accuracy.mean - second.setting.accuracy.mean
        return _same_questions(first, second) and gain >= 0 and used <= used_by_second and (gain > 0 or used < used_by_second)

    return [resource(cost) is not None and not any(dominates(other, cost) for other in costs) for cost in costs]


def _same_questions(first: Cost, second: Cost) -> bool:
    return all(first.setting[name] == second.setting[name] for name in ("questions_sha256", "task"))


def cost_table(settings: Sequence[Setting]) -> Table:
    """A row per setting; a star marks the settings on the Pareto front of accuracy and that column."""
    costs = costs_of(settings)
    resources = (lambda cost: cost.usd, lambda cost: cost.training_hours, lambda cost: cost.answer_tokens)
    fronts = [pareto(costs, resource) if len(costs) > 1 else [False] for resource in resources]
    columns = ("setting", "problems", "annotation $", "rationales $", "total $", "training h", "tokens per answer", "acc %")
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
        f"gold answers: ${ANNOTATION_USD:.2f} each ($20 per hour for 30 answers: paper A, appendix F). rationales: at the teacher's price "
        f"(without one: ${DAVINCI_USD:g} per million tokens), even if other runs paid them; ~: tokens estimated by length. "
        "training h: hours times devices, on the machine that ran it."
    ]
    return table


def has_cost(settings: Sequence[Setting]) -> bool:
    """Whether the cost table is worth showing on a terminal.

    It is if settings differ both in the number of annotated problems and in D, or if several methods use a teacher.
    """
    if len({setting["method"] for setting in settings if setting["diversity"]}) > 1:
        return True
    return len({setting["n_train_problems"] for setting in settings if setting["diversity"]}) > 1 and (
        len({setting["diversity"] for setting in settings if setting["diversity"]}) > 1
    )
