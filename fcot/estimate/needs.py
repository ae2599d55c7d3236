"""What a dry run found out, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from fcot.base.console import result_console
from fcot.evaluation.statistics import detectable

_ASSUMED_SPREAD = 0.03  # standard deviation of a setting's accuracy over seeds
Interval = NDArray[np.float64]  # lower end, middle, upper end


@dataclass
class RunEstimate:
    """One run's needs beyond what the store has. Token counts and USD are (low, middle, high)."""

    label: Sequence[str]
    problems: int = 0
    diversity: int = 0
    requested: int = 0
    stored: int = 0
    bought: int = 0
    requests: int = 0
    prompt_tokens: Interval = field(default_factory=lambda: np.zeros(3))
    completion_tokens: Interval = field(default_factory=lambda: np.zeros(3))
    shared_tokens: Interval = field(default_factory=lambda: np.zeros(3))
    usd: Interval | None = None
    usd_batch: Interval | None = None
    usd_shared: Interval | None = None
    student: StudentNeeds | None = None
    round: RoundNeeds | None = None
    steps: int = 0
    disk_bytes: float = 0.0
    weights_unknown: bool = False
    notes: list[str] = field(default_factory=list)
    setting: str = ""
    trains: bool = False
    n_test: int = 0

    @property
    def buys(self) -> bool:
        """Whether it sends requests, now or in a later round."""
        return bool(self.bought or self.round or (self.student and self.student.answers))


@dataclass
class RoundNeeds:
    """What one later round of tailored learning may ask for. All (low, middle, high)."""

    rounds: int
    requests: Interval
    prompt_tokens: Interval
    completion_tokens: Interval
    usd: Interval | None


@dataclass
class StudentNeeds:
    """What an API student is still to be trained on and asked. Token counts and USD are (low, middle, high)."""

    trained_tokens: Interval = field(default_factory=lambda: np.zeros(3))
    requests: int = 0
    answers: int = 0
    prompt_tokens: Interval = field(default_factory=lambda: np.zeros(3))
    completion_tokens: Interval = field(default_factory=lambda: np.zeros(3))
    usd_training: Interval | None = None
    usd_answers: Interval | None = None


def dollars(usd: float) -> str:
    """Such as ``$1.20``, of small amounts two digits: ``$0.0012``."""
    return f"${usd:,.2f}" if usd >= 0.1 else f"${usd:.2g}"


def money(interval: Interval | None) -> str:
    """Such as ``$1.20 ($0.80-$1.90)``."""
    if interval is None:
        return "price unknown"
    if not interval[2]:
        return "$0"
    low, middle, high = map(dollars, interval)
    return f"{middle} ({low}-{high})"


def show(estimates: Sequence[RunEstimate]) -> None:
    """Print a run's needs as a list; for a sweep, a table of its runs and the list of their sum."""
    console = result_console()
    if len(estimates) > 1:
        console.print(_table(estimates))
    total, (shown, assumed) = sum_of(estimates), _detectable(estimates)
    facts = {
        "completions requested": f"{total.requested:,}"
        + (f" (D = {total.diversity} for {total.problems:,} problems)" if len(estimates) == 1 else ""),
        "in the store already": f"{total.stored:,}" + (f" ({total.stored / total.requested:.0%})" if total.requested else ""),
        "to be bought": f"{total.bought:,}" + (" (what several runs share once)" if len(estimates) > 1 else ""),
        "requests": f"{total.requests:,}",
        "prompt tokens": _tokens(total.prompt_tokens),
        "completion tokens": _tokens(total.completion_tokens),
        "price online": money(total.usd),
        "price through the Batch API": money(total.usd_batch) if total.usd_batch is not None else None,
        "saved by several choices a request": f"{total.shared_tokens[1]:,.0f} prompt tokens, {money(total.usd_shared)}"
        if total.shared_tokens[1]
        else None,
        **_round_facts(estimates),
        **_student_facts(total.student),
        "optimizer steps, if all are kept": f"{total.steps:,}" if total.steps or total.student is None else None,
        **shown,
        "disk": f"{total.disk_bytes / 1e6:,.1f} MB" + (" without the students' weights" if total.weights_unknown else ""),
    }
    console.print("dry run: no request was sent", style="bold")
    for name, value in facts.items():
        if value is not None:
            console.print(f"  {name:<34} {value}", markup=False, soft_wrap=True)
    for note in dict.fromkeys([*(note for one in estimates for note in one.notes), *assumed]):
        console.print(f"  {note}", markup=False, soft_wrap=True)


def _detectable(estimates: Sequence[RunEstimate]) -> tuple[dict[str, str], list[str]]:
    """The smallest difference that the planned trainings and test problems can show between two settings, and what that assumes."""
    settings: dict[str, list[RunEstimate]] = {}
    for one in estimates:
        if one.trains and one.n_test > 1:
            settings.setdefault(one.setting, []).append(one)
    if not settings:
        return {}, []
    seeds, n = min(map(len, settings.values())), min(one.n_test for runs in settings.values() for one in runs)
    smallest = 100 * detectable(n, seeds, spread=_ASSUMED_SPREAD)
    points = f"{smallest:.1f} points" if smallest < 100 else "none, not even 100 points"
    points += f" (power 80 %, {n:,} test problems, {_seeds(seeds)})"
    spread = f"a standard deviation of {100 * _ASSUMED_SPREAD:.0f} points between seeds, " if seeds > 1 else ""
    note = f"smallest difference: of two settings, p < 0.05; ASSUMED: {spread}accuracies near 50 %, independent problems, one comparison"
    alone = "with one seed it is that of two trained students, which says nothing of other trainings; seed=0,1,2 plans three"
    return {"smallest difference that can be shown": points}, [note, *([alone] if seeds == 1 else [])]


def _seeds(n: int) -> str:
    return f"{n} seed{'s' * (n > 1)}"


def _round_facts(estimates: Sequence[RunEstimate]) -> dict[str, str]:
    """What later rounds may ask for, all runs together."""
    rounds = [one.round for one in estimates if one.round is not None]
    if not rounds:
        return {}

    def total(value: Callable[[RoundNeeds], Interval | None]) -> Interval | None:
        values = [(one.rounds, value(one)) for one in rounds]
        return _sum([None if interval is None else n * interval for n, interval in values])

    parts = [total(lambda one: one.requests), total(lambda one: one.prompt_tokens), total(lambda one: one.completion_tokens)]
    n = sum(one.rounds for one in rounds)
    return {
        f"later rounds ({n}): requests": _tokens(parts[0]),  # type: ignore[arg-type]
        "later rounds: prompt tokens": _tokens(parts[1]),  # type: ignore[arg-type]
        "later rounds: completion tokens": _tokens(parts[2]),  # type: ignore[arg-type]
        "later rounds: price online": money(total(lambda one: one.usd)),
    }


def _student_facts(needs: StudentNeeds | None) -> dict[str, str]:
    if needs is None:
        return {}
    training = {
        "student: tokens to train on": f"{_tokens(needs.trained_tokens)}, all epochs, if all are kept",
        "student: price of the training": money(needs.usd_training),
    }
    return {
        **(training if needs.trained_tokens[2] else {}),
        "student: answers to request": f"{needs.answers:,}",
        "student: prompt tokens": _tokens(needs.prompt_tokens),
        "student: completion tokens": _tokens(needs.completion_tokens),
        "student: price of the answers": money(needs.usd_answers),
    }


def _student_usd(needs: StudentNeeds | None) -> str:
    """Training and answers together, the middle of the interval."""
    return "" if needs is None else money(_sum([needs.usd_training, needs.usd_answers])).partition(" (")[0]


def _table(estimates: Sequence[RunEstimate]) -> Table:
    """A row for each run of a sweep, named by what differs; what an earlier row buys is not bought again."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    students = any(one.student is not None for one in estimates)
    heads = ("run", "requested", "to buy", "requests", "tokens in", "tokens out", "online", *(("student",) if students else ()), "steps")
    for head in heads:
        table.add_column(head, justify="left" if head == "run" else "right", no_wrap=True)
    common = set.intersection(*(set(one.label) for one in estimates))
    for one in estimates:
        usd = "" if one.usd is None else money(one.usd).partition(" ")[0]
        table.add_row(
            "\n".join(word for word in one.label if word not in common), f"{one.requested:,}", f"{one.bought:,}", f"{one.requests:,}",
            f"{one.prompt_tokens[1]:,.0f}", f"{one.completion_tokens[1]:,.0f}", usd, *([_student_usd(one.student)] if students else []),
            f"{one.steps:,}",
        )  # fmt: skip
    return table


def _tokens(interval: Interval) -> str:
    return f"{interval[1]:,.0f}" + (f" ({interval[0]:,.0f}-{interval[2]:,.0f})" if interval[1] else "")


_ADDED = (
    "requested", "stored", "bought", "requests", "prompt_tokens", "completion_tokens", "shared_tokens", "steps", "disk_bytes",
)  # fmt: skip


def sum_of(estimates: Sequence[RunEstimate]) -> RunEstimate:
    """The needs of several runs together."""
    total = RunEstimate((), estimates[0].problems, estimates[0].diversity)
    for one in estimates:
        for name in _ADDED:
            setattr(total, name, getattr(total, name) + getattr(one, name))
        total.weights_unknown |= one.weights_unknown
    for name in ("usd", "usd_batch", "usd_shared"):
        setattr(total, name, _sum([getattr(one, name) for one in estimates if one.requests]))
    if students := [one.student for one in estimates if one.student is not None]:
        total.student = StudentNeeds(requests=sum(needs.requests for needs in students), answers=sum(needs.answers for needs in students))
        for name in ("trained_tokens", "prompt_tokens", "completion_tokens", "usd_training", "usd_answers"):
            setattr(total.student, name, _sum([getattr(needs, name) for needs in students]))
    return total


def _sum(known: Sequence[Interval | None]) -> Interval | None:
    """Their sum, None where one of them is unknown."""
    return None if any(value is None for value in known) else sum((value for value in known if value is not None), np.zeros(3))
