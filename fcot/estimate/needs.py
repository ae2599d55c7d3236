"""The result of a dry run, and how it is printed."""

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
    """What a run needs in addition to the completions in the store. Token counts and USD are (low, middle, high).

    Attributes:
        label: The run's overrides.
        problems: Number of train problems.
        diversity: Completions per problem, D.
        requested: Completions that the run uses.
        stored: Requested completions that are in the store.
        bought: Requested completions that the run would buy.
        requests: Requests to the teacher, those for answers included.
        prompt_tokens: Prompt tokens of the requests.
        completion_tokens: Completion tokens of the requests.
        shared_tokens: Prompt tokens that are saved because one request returns several completions.
        usd: Price of the requests; None if unknown.
        usd_batch: Price of the requests through the Batch API; None if it is unknown or the same.
        usd_shared: Price of ``shared_tokens``; None if unknown.
        student: Needs of an API-backed student, or of the teacher as student; None for students on this machine.
        round: Needs of each later round; None without rounds.
        judge: Needs of the judge of rationales, counted as one round; None without a judge.
        scores: Needs of a server that scores the student's own samples, counted as one round; None without one.
        steps: Optimizer steps if curation keeps every completion.
        disk_bytes: Disk space for completions and trained students.
        weights_unknown: Whether ``disk_bytes`` leaves out the trained student, because its size is not known yet.
        notes: Sentences that are printed below the numbers.
        setting: A hash that is equal for runs that differ only in their seed.
        trains: Whether the run trains a student and evaluates it.
        n_test: Number of test problems.
    """

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
    judge: RoundNeeds | None = None
    scores: RoundNeeds | None = None
    steps: int = 0
    disk_bytes: float = 0.0
    weights_unknown: bool = False
    notes: list[str] = field(default_factory=list)
    setting: str = ""
    trains: bool = False
    n_test: int = 0

    @property
    def buys(self) -> bool:
        """Whether the run sends requests, now or in a later round."""
        judged = self.judge is not None and self.judge.requests[2] > 0
        return bool(self.bought or self.round or judged or self.scores or (self.student and self.student.answers))


@dataclass
class RoundNeeds:
    """What each later round of tailored learning, the judge or the scores may need, as (low, middle, high); ``rounds`` is their number."""

    rounds: int
    requests: Interval
    prompt_tokens: Interval
    completion_tokens: Interval
    usd: Interval | None


@dataclass
class StudentNeeds:
    """What the training and the evaluation of an API-backed student still need. Token counts and USD are (low, middle, high).

    Attributes:
        trained_tokens: Tokens of the training data, over all epochs; 0 if the student is trained already.
        requests: Requests for answers to test problems.
        answers: Answers that are not in the store.
        prompt_tokens: Prompt tokens of the requests.
        completion_tokens: Completion tokens of the requests.
        usd_training: Price of the training; None if unknown.
        usd_answers: Price of the requests; None if unknown.
    """

    trained_tokens: Interval = field(default_factory=lambda: np.zeros(3))
    requests: int = 0
    answers: int = 0
    prompt_tokens: Interval = field(default_factory=lambda: np.zeros(3))
    completion_tokens: Interval = field(default_factory=lambda: np.zeros(3))
    usd_training: Interval | None = None
    usd_answers: Interval | None = None


def dollars(usd: float) -> str:
    """Such as ``$1.20``, or with two significant digits ``$0.0012``."""
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
    """Print what a run needs as a list. For a sweep, print a table of its runs and the list of their sums."""
    console = result_console()
    if len(estimates) > 1:
        console.print(_table(estimates))
    total, (detectable_facts, detectable_notes) = sum_of(estimates), _detectable(estimates)
    facts = {
        "completions requested": f"{total.requested:,}"
        + (f" (D = {total.diversity} for {total.problems:,} problems)" if len(estimates) == 1 and total.requested else ""),
        "in the store already": f"{total.stored:,}" + (f" ({total.stored / total.requested:.0%})" if total.requested else ""),
        "to be bought": f"{total.bought:,}" + (" (shared completions counted once)" if len(estimates) > 1 else ""),
        "requests": f"{total.requests:,}",
        "prompt tokens": _tokens(total.prompt_tokens),
        "completion tokens": _tokens(total.completion_tokens),
        "price online": money(total.usd),
        "price through the Batch API": money(total.usd_batch) if total.usd_batch is not None else None,
        "saved by shared prompts": f"{total.shared_tokens[1]:,.0f} prompt tokens, {money(total.usd_shared)}"
        if total.shared_tokens[1]
        else None,
        **_round_facts(estimates),
        **_needs_facts([estimate.judge for estimate in estimates if estimate.judge is not None], "judge", "judge"),
        **_needs_facts([estimate.scores for estimate in estimates if estimate.scores is not None], "scores", "scores"),
        **_student_facts(total.student),
        "optimizer steps, if all are kept": f"{total.steps:,}" if total.steps or total.student is None else None,
        **detectable_facts,
        "disk": f"{total.disk_bytes / 1e6:,.1f} MB" + (" without the trained students" if total.weights_unknown else ""),
    }
    console.print("dry run: no request was sent", style="bold")
    for name, value in facts.items():
        if value is not None:
            console.print(f"  {name:<34} {value}", markup=False, soft_wrap=True)
    for note in dict.fromkeys([*(note for estimate in estimates for note in estimate.notes), *detectable_notes]):
        console.print(f"  {note}", markup=False, soft_wrap=True)


def _detectable(estimates: Sequence[RunEstimate]) -> tuple[dict[str, str], list[str]]:
    """The smallest difference between two settings that the planned runs can detect, as a fact to print, and its assumptions as notes."""
    settings: dict[str, list[RunEstimate]] = {}
    for estimate in estimates:
        if estimate.trains and estimate.n_test > 1:
            settings.setdefault(estimate.setting, []).append(estimate)
    if not settings:
        return {}, []
    seeds, n = min(map(len, settings.values())), min(estimate.n_test for runs in settings.values() for estimate in runs)
    smallest = 100 * detectable(n, seeds, spread=_ASSUMED_SPREAD)
    points = f"{smallest:.1f} points" if smallest < 100 else "none, not even 100 points"
    points += f" (power 80 %, {n:,} test problems, {_seeds(seeds)})"
    spread = f"a standard deviation of {100 * _ASSUMED_SPREAD:.0f} points between seeds, " if seeds > 1 else ""
    note = f"smallest difference: two settings, p < 0.05; ASSUMED: {spread}accuracies near 50 %, independent problems, one comparison"
    one_seed = "with one seed, two single students are compared, which says nothing about other trainings; seed=0,1,2 plans three seeds"
    return {"smallest difference that can be shown": points}, [note, *([one_seed] if seeds == 1 else [])]


def _seeds(n: int) -> str:
    return f"{n} seed{'s' * (n > 1)}"


def _round_facts(estimates: Sequence[RunEstimate]) -> dict[str, str]:
    """What the later rounds of all runs may need together."""
    rounds = [estimate.round for estimate in estimates if estimate.round is not None]
    n = sum(needs.rounds for needs in rounds)
    return _needs_facts(rounds, f"later rounds ({n})", "later rounds")


def _needs_facts(listed: Sequence[RoundNeeds], first_title: str, title: str) -> dict[str, str]:
    if not listed:
        return {}

    def total(value: Callable[[RoundNeeds], Interval | None]) -> Interval | None:
        values = [(needs.rounds, value(needs)) for needs in listed]
        return _sum([None if interval is None else n * interval for n, interval in values])

    parts = [total(lambda needs: needs.requests), total(lambda needs: needs.prompt_tokens), total(lambda needs: needs.completion_tokens)]
    return {
        f"{first_title}: requests": _tokens(parts[0]),  # type: ignore[arg-type]
        f"{title}: prompt tokens": _tokens(parts[1]),  # type: ignore[arg-type]
        f"{title}: completion tokens": _tokens(parts[2]),  # type: ignore[arg-type]
        f"{title}: price online": money(total(lambda needs: needs.usd)),
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
    """The price of training and answers together, without its interval."""
    return "" if needs is None else money(_sum([needs.usd_training, needs.usd_answers])).partition(" (")[0]


def _table(estimates: Sequence[RunEstimate]) -> Table:
    """A table with a row per run of a sweep, named by the overrides that vary. A completion counts in the first row that buys it."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    students = any(estimate.student is not None for estimate in estimates)
    heads = ("run", "requested", "to buy", "requests", "tokens in", "tokens out", "online", *(("student",) if students else ()), "steps")
    for head in heads:
        table.add_column(head, justify="left" if head == "run" else "right", no_wrap=True)
    common = set.intersection(*(set(estimate.label) for estimate in estimates))
    for estimate in estimates:
        usd = "" if estimate.usd is None else money(estimate.usd).partition(" ")[0]
        table.add_row(
            "\n".join(override for override in estimate.label if override not in common),
            f"{estimate.requested:,}", f"{estimate.bought:,}", f"{estimate.requests:,}",
            f"{estimate.prompt_tokens[1]:,.0f}", f"{estimate.completion_tokens[1]:,.0f}", usd,
            *([_student_usd(estimate.student)] if students else []), f"{estimate.steps:,}",
        )  # fmt: skip
    return table


def _tokens(interval: Interval) -> str:
    return f"{interval[1]:,.0f}" + (f" ({interval[0]:,.0f}-{interval[2]:,.0f})" if interval[1] else "")


_ADDED = (
    "requested", "stored", "bought", "requests", "prompt_tokens", "completion_tokens", "shared_tokens", "steps", "disk_bytes",
)  # fmt: skip


def sum_of(estimates: Sequence[RunEstimate]) -> RunEstimate:
    """What several runs need together."""
    total = RunEstimate((), estimates[0].problems, estimates[0].diversity)
    for estimate in estimates:
        for name in _ADDED:
            setattr(total, name, getattr(total, name) + getattr(estimate, name))
        total.weights_unknown |= estimate.weights_unknown
    for name in ("usd", "usd_batch", "usd_shared"):
        setattr(total, name, _sum([getattr(estimate, name) for estimate in estimates if estimate.requests]))
    if students := [estimate.student for estimate in estimates if estimate.student is not None]:
        total.student = StudentNeeds(requests=sum(needs.requests for needs in students), answers=sum(needs.answers for needs in students))
        for name in ("trained_tokens", "prompt_tokens", "completion_tokens", "usd_training", "usd_answers"):
            setattr(total.student, name, _sum([getattr(needs, name) for needs in students]))
    total.judge = _sum_of_needs([estimate.judge for estimate in estimates if estimate.judge is not None])
    total.scores = _sum_of_needs([estimate.scores for estimate in estimates if estimate.scores is not None])
    return total


def _sum_of_needs(listed: Sequence[RoundNeeds]) -> RoundNeeds | None:
    """What several runs need together of the same kind; None without any."""
    names = ("requests", "prompt_tokens", "completion_tokens", "usd")
    return RoundNeeds(1, *(_sum([getattr(needs, name) for needs in listed]) for name in names)) if listed else None  # type: ignore[arg-type]


def _sum(intervals: Sequence[Interval | None]) -> Interval | None:
    """The sum of intervals; None if any of them is unknown."""
    return None if any(value is None for value in intervals) else sum((value for value in intervals if value is not None), np.zeros(3))
