"""The cost of accuracy: annotation and rationales in dollars (paper A, appendix F), GPU hours, and tokens per answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fcot.reporting.settings import MetricsRow, Setting
from fcot.reporting.table import Table
from fcot.stages.table import LEARNING
from fcot.tasks.table import TASKS
from fcot.tasks.toy import TOY_TASKS

HOURLY_USD = 20.0  # an hour of annotation (paper A, appendix F); own data has no such cost unless the user names one
ANSWERS_PER_HOUR = 30  # gold answers (paper A, appendix F)
DAVINCI_USD = 20.0  # per million tokens, in and out: text-davinci-002's price in 2022, for teachers without a price
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Cost:
    """The cost of one run of a setting, mean over its seeds.

    Attributes:
        setting: The setting.
        problems: Annotated train problems, including those held out for validation.
        annotation_usd: Dollars for their gold answers; None if nobody says what an hour of annotation costs.
        teacher_usd: Dollars for the rationales at the teacher's price, even if another run paid them; None if the price is unknown.
        measured: Whether the teacher counted the tokens; otherwise they are estimated by length.
        training_hours: Hours of all stages in which the student learns, exams and its own samples included, times number of devices.
        answer_tokens: Mean tokens per answer at evaluation; None if they were not counted.
    """

    setting: Setting
    problems: int
    annotation_usd: float | None
    teacher_usd: float | None
    measured: bool
    training_hours: float
    answer_tokens: float | None

    @property
    def usd(self) -> float | None:
        """Dollars for annotation, if it is counted, and rationales; None if the price of the rationales is unknown."""
        return None if self.teacher_usd is None else (self.annotation_usd or 0.0) + self.teacher_usd


def costs_of(settings: Sequence[Setting], hourly_usd: float | None = None) -> list[Cost]:
    """The cost of each setting with a student; settings that evaluate the teacher itself are left out."""
    return [cost_of(setting, hourly_usd) for setting in settings if setting["student"] != "teacher"]


def is_own_data(setting: Setting) -> bool:
    """Whether the task is the user's own, not one of the papers' or a toy task."""
    return setting["task"] not in TASKS and setting["task"] not in TOY_TASKS


def cost_of(setting: Setting, hourly_usd: float | None = None) -> Cost:
    """The cost of a setting; without training problems there is no annotation to pay.

    Args:
        setting: The setting.
        hourly_usd: What an hour of annotation costs; None: paper A's assumption for its tasks, unknown for own data.
    """
    own = is_own_data(setting)
    if hourly_usd is None and not own:
        hourly_usd = HOURLY_USD
    run = setting.runs[0]
    problems = run["n_train_problems"] + (run["n_validation_problems"] if run["n_train_problems"] else 0)
    paid = [_rationales_usd(metrics, own) for metrics in setting.runs]  # with rounds, each seed requests other completions
    seconds = [sum(taken for stage, taken in metrics["seconds"].items() if stage in LEARNING) for metrics in setting.runs]
    hours = sum(seconds) / len(seconds) * (run.get("devices") or 1) / 3600
    known = [usd for usd, _ in paid if usd is not None]
    return Cost(
        setting, problems, None if hourly_usd is None else problems * hourly_usd / ANSWERS_PER_HOUR,
        sum(known) / len(known) if len(known) == len(paid) else None, all(measured for _, measured in paid), hours,
        setting.mean("answer_tokens"),
    )  # fmt: skip


def _rationales_usd(run: MetricsRow, own: bool) -> tuple[float | None, bool]:
    """Dollars for a run's rationales, and whether the teacher counted the tokens.

    Args:
        run: The run's metrics.
        own: Whether the task is the user's own: an unknown price then stays unknown.
    """
    usage = run.get("teacher_usage") or {}
    measured = bool(usage.get("used_completion_tokens"))
    tokens = (usage["used_prompt_tokens"], usage["used_completion_tokens"]) if measured else _by_length(run)
    prices = run.get("teacher_price") or (DAVINCI_USD, DAVINCI_USD)
    if own and not run.get("teacher_price") and any(tokens):
        return None, measured
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


def cost_table(settings: Sequence[Setting], hourly_usd: float | None = None) -> Table:
    """A row per setting; a star marks the settings on the Pareto front of accuracy and that column.

    Without annotation costs, there are no columns for them and for the total.

    Args:
        settings: The settings.
        hourly_usd: As for :func:`cost_of`.
    """
    costs = costs_of(settings, hourly_usd)
    annotated = any(cost.annotation_usd is not None for cost in costs)
    resources = (lambda cost: cost.usd, lambda cost: cost.training_hours, lambda cost: cost.answer_tokens)
    fronts = [pareto(costs, resource) if len(costs) > 1 else [False] for resource in resources]
    dollars = ("annotation $", "rationales $", "total $") if annotated else ("rationales $",)
    columns = ("setting", "problems", *dollars, "training h", "tokens per answer", "acc %")
    table = Table("cost", "cost (*: on the Pareto front)", columns, ("setting",))
    for cost, *stars in zip(costs, *fronts, strict=True):
        usd, hours, tokens = ("*" if star else " " for star in stars)
        estimated = "" if cost.measured or not cost.teacher_usd else "~"
        length = "-" if cost.answer_tokens is None else f"{cost.answer_tokens:.0f}"
        rationales = _dollars(cost.teacher_usd) + estimated
        amounts = (_dollars(cost.annotation_usd), rationales, _dollars(cost.usd) + usd) if annotated else (rationales + usd,)
        table.add_row(
            f"{cost.setting['task']}, {cost.setting['student']}, {cost.setting.title}", f"{cost.problems:,}",
            *amounts, f"{cost.training_hours:.3f}{hours}", f"{length}{tokens}", f"{100 * cost.setting.accuracy.mean:.2f}",
        )  # fmt: skip
    hours = "training h: hours of training, exams and own samples times devices, on the machine that ran it."
    table.notes = [" ".join([*_assumptions([cost.setting for cost in costs], hourly_usd), hours])]
    return table


def _assumptions(settings: Sequence[Setting], hourly_usd: float | None) -> Iterator[str]:
    """Sentences about what is counted, and at which prices."""
    own = [is_own_data(setting) for setting in settings]
    if hourly_usd is not None:
        yield f"gold answers: ${hourly_usd / ANSWERS_PER_HOUR:.2f} each (${hourly_usd:g} per hour for {ANSWERS_PER_HOUR} answers)."
    elif not all(own):
        each = f"${HOURLY_USD / ANSWERS_PER_HOUR:.2f} each (${HOURLY_USD:g} per hour for {ANSWERS_PER_HOUR} answers: paper A, appendix F)"
        yield f"gold answers: {each}{', none for own data' if any(own) else ''}."
    else:
        yield "gold answers of your own data are not counted; fcot report --hourly-usd USD counts them, 30 per hour."
    price = "-: price unknown" if all(own) else f"without one: ${DAVINCI_USD:g} per million tokens" + (", unknown for own data" * any(own))
    yield f"rationales: at the teacher's price ({price}), even if other runs paid them; ~: tokens estimated by length."


def _dollars(usd: float | None) -> str:
    return "-" if usd is None else f"{usd:,.2f}"


def has_cost(settings: Sequence[Setting]) -> bool:
    """Whether the cost table is worth showing on a terminal.

    It is if settings differ both in the number of annotated problems and in D, or if several methods use a teacher.
    """
    if len({(setting["method"], setting["method_title"]) for setting in settings if setting["diversity"]}) > 1:
        return True
    return len({setting["n_train_problems"] for setting in settings if setting["diversity"]}) > 1 and (
        len({setting["diversity"] for setting in settings if setting["diversity"]}) > 1
    )
