"""What accuracy costs: annotation against rationales (paper A, appendix F), GPU-hours, and the tokens of an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from fcot.reporting.settings import Setting

ANNOTATION_USD = 20 / 30  # a gold answer: $20 an hour, 30 an hour (paper A, appendix F)
TEACHER_USD = 20.0  # a million tokens where a run paid nothing: text-davinci-002's price in 2022
_CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True)
class Cost:
    """What one run of a setting takes, mean over its seeds.

    Attributes:
        problems: Annotated train problems, those held out for validation included.
        annotation_usd: Of their gold answers.
        teacher_usd: Of the rationales as if each had to be bought: by measured tokens, or by those of the rationales' length.
        measured: Whether the tokens were counted by the teacher.
        gpu_hours: Of training, times devices.
        answer_tokens: Mean length of an answer at evaluation; None where it was not counted.
    """

    setting: Setting
    problems: int
    annotation_usd: float
    teacher_usd: float
    measured: bool
    gpu_hours: float
    answer_tokens: float | None

    @property
    def usd(self) -> float:
        """Annotation and rationales."""
        return self.annotation_usd + self.teacher_usd


def cost_of(setting: Setting, price: float = TEACHER_USD) -> Cost:
    """A setting's cost.

    Args:
        setting: Trained or not; an untrained one costs its answers only.
        price: USD for a million tokens of the teacher.
    """
    run = setting.runs[0]
    problems = run["n_train_problems"] + (run["n_validation_problems"] if run["n_train_problems"] else 0)
    usage = run.get("teacher_usage") or {}
    counted = (usage.get("prompt_tokens") or 0) + (usage.get("completion_tokens") or 0)
    bought = usage.get("requests") and not usage.get("served_from_store")  # otherwise others paid for a part of it
    tokens = counted if counted and bought else (run.get("teacher_characters") or 0) / _CHARACTERS_A_TOKEN
    seconds = [one["seconds"].get("train", 0.0) for one in setting.runs]
    hours = sum(seconds) / len(seconds) * (run.get("devices") or 1) / 3600
    return Cost(
        setting, problems, problems * ANNOTATION_USD, tokens * price / 1e6, bool(counted and bought), hours, setting.mean("answer_tokens"),
    )  # fmt: skip


def pareto(costs: Sequence[Cost], resource: Callable[[Cost], float | None]) -> list[bool]:
    """Which settings no other one of the task beats: as accurate or more, for as little or less, and better in one of the two."""

    def beats(one: Cost, other: Cost) -> bool:
        mine, theirs = (resource(cost) or 0.0 for cost in (one, other))
        better = one.setting.accuracy.mean - other.setting.accuracy.mean
        return one.setting["task"] == other.setting["task"] and better >= 0 and mine <= theirs and (better > 0 or mine < theirs)

    return [not any(beats(other, one) for other in costs) for one in costs]


def cost_table(settings: Sequence[Setting]) -> Table:
    """A line a setting; a star where it lies on the Pareto front of that column."""
    costs = [cost_of(setting) for setting in settings]
    fronts = [pareto(costs, resource) for resource in (lambda one: one.usd, lambda one: one.gpu_hours, lambda one: one.answer_tokens)]
    table = Table(box=box.SIMPLE_HEAD, title="cost (*: on the Pareto front)", title_justify="left")
    for name in ("setting", "problems", "annotation $", "rationales $", "total $", "GPU h", "tokens an answer", "acc %"):
        table.add_column(name, justify="left" if name == "setting" else "right")
    for cost, *stars in zip(costs, *fronts, strict=True):
        usd, hours, tokens = ("*" if star else " " for star in stars)
        length = "-" if cost.answer_tokens is None else f"{cost.answer_tokens:.0f}"
        table.add_row(
            f"{cost.setting['task']}, {cost.setting['student']}, {cost.setting.title}", f"{cost.problems:,}",
            f"{cost.annotation_usd:,.2f}", f"{cost.teacher_usd:,.2f}{'' if cost.measured else '~'}", f"{cost.usd:,.2f}{usd}",
            f"{cost.gpu_hours:.3f}{hours}", f"{length}{tokens}", f"{100 * cost.setting.accuracy.mean:.2f}",
        )  # fmt: skip
    table.caption = (
        f"gold answers at $20 an hour, 30 an hour (paper A, appendix F); rationales at ${TEACHER_USD:g} a million tokens; "
        "~: tokens by length, the teacher did not count them. GPU h: of the machine that ran it."
    )
    table.caption_justify = "left"
    return table


def asks_for_cost(settings: Sequence[Setting]) -> bool:
    """Whether settings differ both in how many problems are annotated and in D: which of the two pays is then the question."""
    return len({setting["n_train_problems"] for setting in settings if setting["diversity"]}) > 1 and (
        len({setting["diversity"] for setting in settings if setting["diversity"]}) > 1
    )
