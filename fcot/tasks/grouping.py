"""Groups problems without template labels into templates by their wording.

Everything but function words is masked: numbers, names, objects, dates. Two questions belong to the same template if the similarity of
their masked word sequences is above 0.85 (``difflib``'s ratio). On MultiArith this gives 117 templates; the published hand grouping has
120.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

import numpy as np

from fcot.base.records import Problem

SIMILARITY = 0.85
FUNCTION_WORDS = frozenset(
    "a about above after again against all also altogether am among an and another any are around as at away back be because been before "
    "being below between both but by can could did do does doing down during each either else enough even ever every few for from further "
    "had has have having he her here hers him his how i if in into is it its itself just left less let many may me might more most much "
    "must my neither never no nor not now of off on once one only onto or other others our out over own per rather same shall she should "
    "since so some still such than that the their them then there these they this those though through till to together too total toward "
    "under until up upon us very was we were what when where whether which while who whom whose why will with within without would yet you "
    "your".split()
)
_WORD = re.compile(r"[^\W\d_]+|\d[\d,./:]*|[?.,;$%]")


def mask(question: str) -> tuple[str, ...]:
    """A question's function words and punctuation marks, in order; each run of other words and numbers is one ``_``.

    A question without any English function word is split into characters, and only its numbers are masked.
    """
    masked: list[str] = []
    for word in _WORD.findall(question):
        token = word.lower() if word.lower() in FUNCTION_WORDS or not word[0].isalnum() else "_"
        if token != "_" or masked[-1:] != ["_"]:
            masked.append(token)
    if not FUNCTION_WORDS & set(masked):
        return tuple(re.sub(r"\d[\d,./:]*", "_", question))
    return tuple(masked)


def group_by_template(problems: Mapping[int, Problem]) -> dict[int, str]:
    """A template id for each problem, by sample index: ``T0``, ``T1``... in order of first appearance.

    A question joins the first group whose first question is similar to it.
    """
    groups = _Groups()
    return {index: f"T{groups.place(mask(problems[index].question))}" for index in sorted(problems)}


class _Groups:
    """The groups so far. The masked first question of a group represents it."""

    def __init__(self) -> None:
        self._group_of: dict[tuple[str, ...], int] = {}
        self._representatives: list[tuple[str, ...]] = []
        self._columns: dict[str, int] = {}
        # Word counts of each representative, (groups, words). Too few shared words exclude a group without the slow comparison.
        self._counts = np.zeros((64, 256), dtype=np.int32)

    def place(self, masked: tuple[str, ...]) -> int:
        """The number of the group that a masked question joins. If no group is similar, a new one is created."""
        if masked in self._group_of:
            return self._group_of[masked]
        counts = self._count(masked)
        n = len(self._representatives)
        lengths = self._counts[:n].sum(axis=1) + len(masked)
        possible = 2 * np.minimum(self._counts[:n], counts).sum(axis=1) > SIMILARITY * lengths
        matcher = SequenceMatcher(None, b=masked, autojunk=False)
        group = next((number for number in np.flatnonzero(possible).tolist() if self._is_similar(matcher, number)), None)
        if group is None:
            group = n
            self._representatives.append(masked)
            if n == len(self._counts):
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._counts[n] = counts
        self._group_of[masked] = group
        return group

    def _is_similar(self, matcher: SequenceMatcher[str], number: int) -> bool:
        matcher.set_seq1(self._representatives[number])
        return matcher.ratio() > SIMILARITY

    def _count(self, masked: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        columns = [self._columns.setdefault(word, len(self._columns)) for word in masked]
        return np.bincount(columns, minlength=self._counts.shape[1]).astype(np.int32)
