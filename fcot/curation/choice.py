"""Which of a problem's kept rationales a student learns, if only some of them: the best by a score, or some at random.

Scores come from the student itself, before training. A token's surprisal is its negative log-probability in nats. Its rank is 1 plus the
number of likelier tokens. The rank-surprisal ratio of a text is the sum of its ranks, each at most 100, divided by the sum of its
surprisals; the texts with the lowest ratio teach most. Source: Yang et al. 2026, *Which Reasoning Trajectories Teach Students to Reason
Better?* (arXiv 2601.14249), and its code (github.com/UmeanNever/RankSurprisalRatio, ``rsr_cal.py``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fcot.base.files import fingerprint

RANK_LIMIT = 100  # ranks above it count as this rank, as in the source: single rare tokens would dominate the sum
RANDOM = "random"
CHOICES = (RANDOM, "rsr", "surprisal")  # the values of curation.choose_by
Place = tuple[int, int]  # sample index and completion index


@dataclass(frozen=True)
class Score:
    """How a student, before training, reads the text that it would learn (a row of ``scores.jsonl``).

    Attributes:
        surprisal: Mean surprisal per token, in nats.
        rank: Mean rank per token, from 1 to :data:`RANK_LIMIT`.
        tokens: Number of tokens of the completion.
    """

    sample_index: int
    completion_index: int
    surprisal: float
    rank: float
    tokens: int

    @property
    def place(self) -> Place:
        """The completion."""
        return self.sample_index, self.completion_index

    def value(self, choose_by: str) -> float:
        """The number by which completions are compared; lower is better.

        Args:
            choose_by: ``rsr`` or ``surprisal``.
        """
        ratio = self.rank / max(self.surprisal, 1e-12)  # as the source bounds it
        return round(ratio if choose_by == "rsr" else self.surprisal, 6)


def choose(candidates: Iterable[Place], n: int, values: Mapping[Place, float] | None = None) -> set[Place]:
    """Choose at most ``n`` completions of each problem.

    The result does not depend on the order of the candidates. With a smaller ``n`` it is a subset of the result with a larger one.

    Args:
        candidates: The completions to choose from.
        n: Most completions per problem.
        values: The value of each candidate; lower is better, and equal ones are in random order. None: choose at random. Random orders
            have a fixed seed.
    """
    problems: dict[int, list[Place]] = defaultdict(list)
    for place in set(candidates):
        problems[place[0]].append(place)

    def order(place: Place) -> tuple[float, str]:
        return (values[place] if values is not None else 0.0), fingerprint(["choose", *place])

    return {place for places in problems.values() for place in sorted(places, key=order)[:n]}
