"""Samples that the student writes itself while it trains (on-policy): written for the coming steps, and renewed every few steps.

Between two renewals a training is an ordinary one. A checkpoint holds the samples of the last renewal, so that a training that was
killed between two renewals continues with the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcot.base.errors import FcotError
from fcot.decoding.engine import DecodingPrompt
from fcot.llm.distributions import TopTokens
from fcot.student.batching import Ids, StepSampler
from fcot.student.decoding import Decoded
from fcot.student.tokenization import Rows, Tokenized, TokenizedSample

_NOISE = 2  # part of the seeds of own samples
_RENEWALS = 3  # a training stops after this many renewals with too many unfinished samples
Position = int  # of a sample among those that are stored


class RenewedRows(Rows):
    """Stored rows, followed by rows that the student wrote.

    Attributes:
        stored: The stored rows.
    """

    def __init__(self, stored: Tokenized) -> None:
        self.stored = stored
        self.replace_own([])

    def replace_own(self, rows: Sequence[TokenizedSample], tops: Sequence[TopTokens | None] = ()) -> None:
        """Replace the rows that the student wrote.

        Args:
            rows: The rows.
            tops: A server's distributions on each row; empty without a server.
        """
        self._own, self._tops = rows, tops
        lengths = np.array([(len(row.prompt), len(row.completion)) for row in rows], np.int64).reshape(-1, 2)
        self.lengths = np.concatenate([self.stored.lengths, lengths])
        own_demonstrations = np.array([row.demonstrations for row in rows], np.int64)
        self.demonstrations = np.concatenate([self.stored.demonstrations, own_demonstrations])

    def top(self, position: int) -> TopTokens | None:
        """A server's distributions on a row that the student wrote; None if there are none.

        Args:
            position: Position of the row among all rows.
        """
        return self._tops[position - len(self.stored)]

    def _row(self, position: int) -> TokenizedSample:
        return self.stored[position] if position < len(self.stored) else self._own[position - len(self.stored)]


@dataclass(frozen=True)
class Schedule:
    """When the student writes samples, and how many.

    Attributes:
        first_share: Share of the samples of the first step that the student writes, 0 to 1 (GKD's lambda).
        last_share: This share at the last step; it changes linearly in between.
        every: Optimizer steps between two renewals.
        n_steps: Optimizer steps of the training.
        seed: Seed of the choice of samples and of the noise.
    """

    first_share: float
    last_share: float
    every: int
    n_steps: int
    seed: int

    def chosen(self, step: int, ids: Ids) -> NDArray[np.bool_]:
        """Which samples of a step the student writes: a pure function of seed and step. On average over seeds, it is the exact share."""
        share = self.first_share + (self.last_share - self.first_share) * step / max(1, self.n_steps - 1)
        rng = np.random.default_rng((self.seed, step, _NOISE))
        n = min(len(ids), int(share * len(ids) + rng.random()))
        return rng.permutation(len(ids)) < n

    def end(self, step: int) -> int:
        """The step before which the samples that serve ``step`` are renewed."""
        return min(self.n_steps, (step // self.every + 1) * self.every)

    def n_intervals(self, step: int) -> int:
        """Number of renewals that serve the steps from ``step`` on."""
        return -(-self.n_steps // self.every) - step // self.every


@dataclass(frozen=True)
class Writing:
    """How the student writes.

    Attributes:
        limit: Most tokens of a sample.
        write: Decodes prompts with the student; every rank calls it and gets all answers.
        is_right: Whether an answer to the problem of a stored sample is right; None if the problem has no gold answer.
        use_wrong: Whether samples that are not right are used; otherwise they are left out of their step.
        end_token: Id of the token that ends a completion.
        most_unfinished: Share of samples without an end, 0 to 1; above it in three renewals in a row, the training stops.
        score: Returns a server's distributions on samples, each given by the stored sample it stands for and its token ids; every rank
            calls it. None: no server scores them.
    """

    limit: int
    write: Callable[[Sequence[DecodingPrompt]], list[Decoded]]
    is_right: Callable[[Position, Decoded], bool | None]
    use_wrong: bool
    end_token: int
    most_unfinished: float
    score: Callable[[Sequence[tuple[Position, Sequence[int]]]], Sequence[TopTokens | None]] | None = None


class OwnSamples:
    """The samples of every step, some of them written by the student.

    Args:
        rows: The rows, whose own part is replaced at each renewal.
        sampler: Gives the stored samples of each step; the student writes completions for the problems of some of them.
        schedule: When it writes, and how many.
        writing: How it writes.
    """

    def __init__(self, rows: RenewedRows, sampler: StepSampler, schedule: Schedule, writing: Writing) -> None:
        self._rows = rows
        self._sampler = sampler
        self.schedule = schedule
        self._writing = writing
        self._steps: dict[int, Ids] = {}  # samples of the steps up to the next renewal
        self._own: list[tuple[Position, list[int]]] = []  # what the student wrote: the stored sample it stands for, token ids
        self._records: list[dict[str, int]] = []

    def step(self, step: int) -> Ids:
        """Positions of one step's samples among the rows, counted from 0; may be empty if wrong samples are left out."""
        return self._steps[step]

    def renew(self, step: int) -> int:
        """Write the samples of the steps from ``step`` up to the next renewal, unless a checkpoint brought them.

        Returns:
            The step of the next renewal.

        Raises:
            FcotError: The student no longer ends its samples.
        """
        end = self.schedule.end(step)
        if step not in self._steps:
            self._write(range(step, end))
        self._stop_if_endless()
        return end

    def _write(self, steps: range) -> None:
        ids_of = {step: self._sampler.step(step) for step in steps}
        own_of = {step: self.schedule.chosen(step, ids) for step, ids in ids_of.items()}
        places = [(step, place) for step in steps for place in np.flatnonzero(own_of[step]).tolist()]
        positions = [int(ids_of[step][place]) for step, place in places]
        seed = self.schedule.seed
        answers = self._writing.write([
            DecodingPrompt(self._rows.stored[position].prompt, self._writing.limit, (seed, step, position, _NOISE))
            for (step, _), position in zip(places, positions, strict=True)
        ])  # fmt: skip
        right = [self._writing.is_right(position, answer) for position, answer in zip(positions, answers, strict=True)]
        used = [self._writing.use_wrong or bool(verdict) for verdict in right]
        self._steps, self._own = {}, []
        numbers = {place: number for number, place in enumerate(places)}
        for step in steps:
            ids = []
            for place, position in enumerate(ids_of[step].tolist()):
                number = numbers.get((step, place))
                if number is None:
                    ids.append(position)
                elif used[number]:
                    ids.append(len(self._rows.stored) + len(self._own))
                    ending = [self._writing.end_token] if answers[number].complete else []
                    self._own.append((position, [*answers[number].ids, *ending]))
            self._steps[step] = np.array(ids, np.int64)
        n_scored = self._renew_rows()
        self._records.append({
            "step": steps.start, "written": len(answers), "right": sum(map(bool, right)), "used": sum(used),
            "unfinished": sum(not answer.complete for answer in answers), "tokens": sum(answer.n_tokens for answer in answers),
            **({"scored": n_scored} if self._writing.score else {}),
        })  # fmt: skip

    def _renew_rows(self) -> int:
        """Replace the rows that the student wrote before by its present ones; returns how many of these a server has scored."""
        stored = self._rows.stored
        tops = self._writing.score(self._own) if self._writing.score else ()
        rows = [TokenizedSample(stored[position].prompt, ids, int(stored.demonstrations[position])) for position, ids in self._own]
        self._rows.replace_own(rows, tops)
        return sum(top is not None for top in tops)

    def _stop_if_endless(self) -> None:
        last, most = self._records[-_RENEWALS:], self._writing.most_unfinished
        if len(last) < _RENEWALS or not all(record["unfinished"] > most * record["written"] for record in last):
            return
        share = sum(record["unfinished"] for record in last) / sum(record["written"] for record in last)
        steps = ", ".join(str(record["step"]) for record in last)
        raise FcotError(
            f"the student no longer ends its answers: {share:.0%} of those that it wrote at steps {steps} reached "
            f"{self._writing.limit} tokens (method.max_new_tokens), and method.max_unfinished={most:g} allows {most:.0%}. "
            "Lower method.lr or method.temperature, train it longer on rationales first (trainer.epochs, "
            "trainer.max_steps), or raise method.max_new_tokens if right answers are longer; "
            "method.max_unfinished=1 trains on regardless"
        )

    def facts(self) -> dict[str, Any]:
        """``own_samples``: numbers of samples and tokens, over all renewals; ``renewals``: these numbers for each renewal."""
        names = ("written", "right", "used", "unfinished", "tokens")
        return {"own_samples": {name: sum(record[name] for record in self._records) for name in names}, "renewals": self._records}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the samples of the last renewal, and the counts."""
        steps = {step: ids.tolist() for step, ids in self._steps.items()}
        return {"steps": steps, "own": [list(pair) for pair in self._own], "records": self._records}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self._steps = {step: np.array(ids, np.int64) for step, ids in state["steps"].items()}
        self._own = [(position, ids) for position, ids in state["own"]]
        self._records = list(state["records"])
        self._renew_rows()
