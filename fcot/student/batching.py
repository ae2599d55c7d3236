"""Which samples an optimizer step sees: a pure function of seed and step.

To resume a training is therefore to continue at step k. Micro-batches, ranks and packing only divide the samples of a step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fcot.base.errors import FcotError

Ids = NDArray[np.int64]  # positions of samples in the training data

_BUCKET = 4  # batches per bucket: few enough for little padding, enough for batches that differ from epoch to epoch
_JITTER = 0.05  # largest random change, as a share of the second length, before a bucket is sorted by it


class StepSampler:
    """The samples of every optimizer step; each sample occurs once per epoch.

    A batch holds samples of similar length. All samples are sorted by length and cut into buckets of four batches; the borders
    of the buckets move from epoch to epoch. With one length per sample, the order within a bucket is random. With two lengths
    (encoder-decoders pad prompts and completions separately), a bucket is sorted by the second length, changed at random by up
    to five percent. The order of the batches is random.

    Args:
        lengths: Tokens of each sample, (n, 1) or (n, 2): one column per tensor that is padded, the most expensive first.
        seed: Seed of the order.
        batch_size: Samples per step; None with ``batch_tokens``.
        batch_tokens: Most tokens per step, padding included; a longer sample gets a step of its own.

    Raises:
        FcotError: There are no samples.
    """

    def __init__(self, lengths: NDArray[np.int64], seed: int, batch_size: int | None, batch_tokens: int | None = None) -> None:
        if not len(lengths):
            raise FcotError("there are no samples to train on")
        self._lengths = lengths
        self._seed = seed
        self._batch_size = batch_size
        self._batch_tokens = batch_tokens
        self._ends = [0]  # number of steps up to the end of each epoch that was planned so far
        self._epoch = lru_cache(maxsize=2)(self._plan)

    def count(self, epochs: int | None, max_steps: int | None) -> int:
        """Number of optimizer steps of a training, which ends after ``epochs`` or ``max_steps``, whichever comes first."""
        if epochs is None:
            assert max_steps is not None
            return max_steps
        while len(self._ends) <= epochs and (max_steps is None or self._ends[-1] < max_steps):
            self._plan_until(len(self._ends))
        n_steps = self._ends[min(epochs, len(self._ends) - 1)]
        return n_steps if max_steps is None else min(n_steps, max_steps)

    def step(self, step: int) -> Ids:
        """Sample positions of one optimizer step, counted from 0."""
        while self._ends[-1] <= step:
            self._plan_until(len(self._ends))
        epoch = bisect_right(self._ends, step) - 1
        return self._epoch(epoch)[step - self._ends[epoch]]

    def epochs_done(self, steps: int) -> float:
        """Number of epochs that ``steps`` optimizer steps make, as a fraction."""
        if steps:
            self.step(steps - 1)
        epoch = bisect_right(self._ends, steps) - 1
        if epoch + 1 == len(self._ends):
            return float(epoch)
        return epoch + (steps - self._ends[epoch]) / (self._ends[epoch + 1] - self._ends[epoch])

    def epoch_ends(self, n_steps: int) -> list[int]:
        """The steps, up to ``n_steps``, that end an epoch."""
        if n_steps:
            self.step(n_steps - 1)
        return [end for end in self._ends[1:] if end <= n_steps]

    def _plan_until(self, epochs: int) -> None:
        while len(self._ends) <= epochs:
            n_steps = -(-len(self._lengths) // self._batch_size) if self._batch_size else len(self._epoch(len(self._ends) - 1))
            self._ends.append(self._ends[-1] + n_steps)

    def _plan(self, epoch: int) -> list[Ids]:
        """The batches of an epoch, in order."""
        rng = np.random.default_rng((self._seed, epoch))
        n = len(self._lengths)
        first = self._lengths[:, 0]
        order = np.lexsort((rng.random(n), first))  # samples of equal length in random order
        size = _BUCKET * (self._batch_size or max(1, int(self._batch_tokens / self._lengths.sum(1).mean())))  # type: ignore[operator]
        borders = np.arange(rng.integers(0, size), n, size)
        buckets = [self._order_within(bucket, rng) for bucket in np.split(order, borders)]
        batches = list(self._cut_into_batches(np.concatenate(buckets)))
        return [batches[index] for index in rng.permutation(len(batches))]

    def _order_within(self, bucket: Ids, rng: np.random.Generator) -> Ids:
        if self._lengths.shape[1] == 1:
            return rng.permutation(bucket)
        second = self._lengths[bucket, 1] * (1 + rng.uniform(-_JITTER, _JITTER, len(bucket)))
        return bucket[np.argsort(second)]

    def _cut_into_batches(self, order: Ids) -> Sequence[Ids]:
        if self._batch_size is not None:
            return [order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size)]
        batches, start = [], 0
        longest = np.zeros(self._lengths.shape[1], np.int64)
        for end, sample in enumerate(order):
            longest = np.maximum(longest, self._lengths[sample])
            if end > start and (end + 1 - start) * longest.sum() > self._batch_tokens:  # type: ignore[operator]
                batches.append(order[start:end])
                start, longest = end, self._lengths[sample]
        return [*batches, order[start:]]


def deal(ids: Ids, lengths: NDArray[np.int64], micro_batches: int, ranks: int) -> list[list[Ids]]:
    """Divide a step's samples over micro-batches and ranks; a part may be empty.

    A micro-batch holds samples of similar length, for little padding. Its samples are dealt to the ranks in turn, for equal work.

    Args:
        ids: Positions of the step's samples.
        lengths: Tokens of all samples, (n, k).
        micro_batches: Micro-batches per step.
        ranks: Number of ranks.

    Returns:
        For each micro-batch, the positions that each rank gets.
    """
    order = ids[np.argsort(lengths[ids].sum(1), kind="stable")]
    return [[part[rank::ranks] for rank in range(ranks)] for part in np.array_split(order, micro_batches)]
