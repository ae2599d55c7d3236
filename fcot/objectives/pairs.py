"""Pairs of a right and a wrong completion of the same problem, for preference losses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fcot.base.console import say
from fcot.base.records import CuratedCompletion, TrainingSample
from fcot.prompts.student import StudentFormat
from fcot.student.data import TrainingData
from fcot.student.tokenization import Rows, Tokenized, TokenizedSample, tokenize

_NO_PROMPT = 8  # tokens; the prompts come from the training samples
Texts = dict[int, list[str]]  # completions by sample index
_STEP = re.compile(r"(?<=[.!?;])\s+|\n+")


@dataclass(frozen=True)
class Pairs:
    """The pairs of the training samples. A sample has the pairs of its problem.

    Attributes:
        samples: The tokenized training samples, whose prompts the completions follow.
        completions: Right and wrong completions; their own prompts are not used.
        ends: How many tokens of each completion count, (completions,): an unfinished one has no end-of-sequence token.
        owners: A sample of each completion's problem, (completions,).
        pairs: For each sample, its right and wrong completions, (pairs, 2).
    """

    samples: Rows
    completions: Tokenized
    ends: NDArray[np.int64]
    owners: NDArray[np.int64]
    pairs: Sequence[NDArray[np.int64]]

    @cached_property
    def contributes(self) -> NDArray[np.bool_]:
        """Which samples have a pair, (samples,)."""
        return np.array([len(pairs) > 0 for pairs in self.pairs], dtype=np.bool_)

    def row(self, number: int) -> TokenizedSample:
        """A completion after the prompt of its problem."""
        sample, completion = self.samples[int(self.owners[number])], self.completions[number].completion
        return TokenizedSample(sample.prompt, completion[: self.ends[number]], sample.demonstrations)

    def draw(self, sample: int, step: int, seed: int) -> tuple[int, int]:
        """The right and the wrong completion of a sample in an optimizer step: a pure function of seed, step and sample."""
        right, wrong = np.random.default_rng((seed, step, sample)).choice(self.pairs[sample])
        return int(right), int(wrong)


def build_pairs(
    data: TrainingData, right: Mapping[int, Sequence[str]], wrong: Mapping[int, Sequence[str]], *, nearest: bool, max_tokens: int,
    unfinished: Mapping[int, Collection[str]] = {},
) -> Pairs:  # fmt: skip
    """Pair the right and wrong completions of each problem that has training samples.

    Args:
        data: The training samples, the student's tokenizer and its format.
        right: Right completions, by sample index.
        wrong: Wrong completions, by sample index; a completion that is also right is left out.
        nearest: True: each wrong completion with the right one that shares most steps. False: each with every right one.
        max_tokens: Completions are cut to this many tokens.
        unfinished: Completions that were cut at the length limit, by sample index. They have no end-of-sequence token.
    """
    first = {sample.sample_index: place for place, sample in reversed(list(enumerate(data.samples)))}
    numbers: dict[tuple[int, str], int] = {}
    pairs: dict[int, NDArray[np.int64]] = {}
    for index in first:
        chosen = list(dict.fromkeys(right.get(index, ())))
        rejected = [text for text in dict.fromkeys(wrong.get(index, ())) if text not in chosen]
        if not (chosen and rejected):
            continue
        texts = [(nearest_of(chosen, text), text) for text in rejected] if nearest else [(a, b) for a in chosen for b in rejected]
        pairs[index] = np.array([[numbers.setdefault((index, text), len(numbers)) for text in pair] for pair in texts], np.int64)
    if not pairs and data.world.rank == 0:
        say("warning: no train problem has both a right and a wrong completion to compare: the preference loss changes nothing")
    completions = tokenize(
        data.student,
        data.form.without_demonstrations,
        [("", text) for _, text in numbers],
        max_prompt=_NO_PROMPT,
        max_completion=max_tokens,
    )
    lengths, owners = completions.lengths[:, 1], np.array([first[index] for index, _ in numbers], np.int64)
    cut = np.array([text in unfinished.get(index, ()) for index, text in numbers], np.bool_)
    ends = lengths - (cut & (lengths < max_tokens))
    if data.student.positions is not None:
        ends = np.minimum(ends, data.student.positions - data.rows.lengths[owners, 0])
    return Pairs(
        data.rows, completions, np.maximum(ends, 1), owners,
        [pairs.get(sample.sample_index, np.zeros((0, 2), np.int64)) for sample in data.samples],
    )  # fmt: skip


def completions_by_problem(form: StudentFormat, rows: Iterable[CuratedCompletion | TrainingSample]) -> Texts:
    """Rationales with their answers in the student's format, by sample index."""
    texts = Texts()
    for row in rows:
        texts.setdefault(row.sample_index, []).append(form.completion(row.answer, row.rationale))
    return texts


def nearest_of(candidates: Sequence[str], text: str) -> str:
    """The candidate that shares most steps with a text; among equals, the one that shares most words; then the first one.

    A step is a sentence or a line.
    """
    return max(
        candidates, key=lambda candidate: (_shared(_STEP.split(candidate), _STEP.split(text)), _shared(candidate.split(), text.split()))
    )


def _shared(first: Sequence[str], second: Sequence[str]) -> float:
    """The share of equal items among those of both lists (Dice coefficient of two multisets), 0 to 1."""
    return 2 * (Counter(first) & Counter(second)).total() / max(1, len(first) + len(second))


def as_completion(form: StudentFormat, text: str) -> str:
    """A text that a student wrote, as its training completions begin: decoding drops a decoder's leading space."""
    return (" " if form.completion_template.startswith(" ") else "") + text.strip()
