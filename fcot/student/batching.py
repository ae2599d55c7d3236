"""Which samples an optimizer step sees: a pure function of seed and step.

Resuming is then "continue at step k", and micro-batches, ranks and packing only carry what a step holds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fcot.base.errors import FcotError

Ids = NDArray[np.int64]  # sample positions

_BUCKET = 4  # batches a bucket: few enough for little padding, enough for batches that differ from epoch to epoch
_JITTER = 0.05  # of a length, where a bucket is sorted by the second length


class StepSampler:
    """The samples of every optimizer step, each sample once an epoch.

    Samples of like length stand in one batch: all are sorted by length and cut into buckets of four batches with borders
    that move from epoch to epoch; inside a bucket the order is random (one length), or by the second length with a random
    five percent to and fro (two lengths, for encoder-decoders, where prompt and completion are padded apart). The order
    of the batches is random.

    Args:
        lengths: Tokens of each sample, (n, 1) or (n, 2): what is padded together stands in one column, the dearest first.
        seed: Of the order.
        batch_size: Samples a step; None with ``batch_tokens``.
        batch_tokens: Tokens a step, padding included, at most (but always one sample).

    Raises:
        FcotError: There is not one sample.
    """

    def __init__(self, lengths: NDArray[np.int64], seed: int, batch_size: int | None, batch_tokens: int | None = None) -> None:
        if not len(lengths):
            raise FcotError("there are no samples to train on")
        self._lengths = lengths
        self._seed = seed
        self._batch_size = batch_size
        self._batch_tokens = batch_tokens
        self._ends = [0]  # steps up to the end of each epoch planned so far
        self._epoch = lru_cache(maxsize=2)(self._plan)

    def count(self, epochs: int | None, max_steps: int | None) -> int:
        """Optimizer steps of a training: so many epochs or so many steps, whichever comes first."""
        if epochs is None:
            assert max_steps is not None
            return max_steps
        while len(self._ends) <= epochs and (max_steps is None or self._ends[-1] < max_steps):
            self._reach(len(self._ends))
        by_epochs = self._ends[min(epochs, len(self._ends) - 1)]
        return by_epochs if max_steps is None else min(by_epochs, max_steps)

    def step(self, step: int) -> Ids:
        """Sample positions of one optimizer step, counted from 0."""
        while self._ends[-1] <= step:
            self._reach(len(self._ends))
        epoch = bisect_right(self._ends, step) - 1
        return self._epoch(epoch)[step - self._ends[epoch]]

    def epochs_done(self, steps: int) -> float:
        """How many epochs so many steps are."""
        if steps:
            self.step(steps - 1)
        epoch = bisect_right(self._ends, steps) - 1
        if epoch + 1 == len(self._ends):
            return float(epoch)
        return epoch + (steps - self._ends[epoch]) / (self._ends[epoch + 1] - self._ends[epoch])

    def epoch_ends(self, n_steps: int) -> list[int]:
        """The steps, up to ``n_steps``, after which an epoch is over."""
        if n_steps:
            self.step(n_steps - 1)
        return [end for end in self._ends[1:] if end <= n_steps]

    def _reach(self, epochs: int) -> None:
        while len(self._ends) <= epochs:
            n_steps = -(-len(self._lengths) // self._batch_size) if self._batch_size else len(self._epoch(len(self._ends) - 1))
            self._ends.append(self._ends[-1] + n_steps)

    def _plan(self, epoch: int) -> list[Ids]:
        """The batches of an epoch, in order."""
        rng = np.random.default_rng((self._seed, epoch))
        n = len(self._lengths)
        first = self._lengths[:, 0]
        order = np.lexsort((rng.random(n), first))  # like lengths in random order
        size = _BUCKET * (self._batch_size or max(1, int(self._batch_tokens / self._lengths.sum(1).mean())))  # type: ignore[operator]
        borders = np.arange(rng.integers(0, size), n, size)
        buckets = [self._inside(bucket, rng) for bucket in np.split(order, borders)]
        batches = list(self._cut(np.concatenate(buckets)))
        return [batches[index] for index in rng.permutation(len(batches))]

    def _inside(self, bucket: Ids, rng: np.random.Generator) -> Ids:
        """The order inside a bucket."""
        if self._lengths.shape[1] == 1:
            return rng.permutation(bucket)
        second = self._lengths[bucket, 1] * (1 + rng.uniform(-_JITTER, _JITTER, len(bucket)))
        return bucket[np.argsort(second)]

    def _cut(self, order: Ids) -> Sequence[Ids]:
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
    """A step's samples by micro-batch and rank, each sample once; a part may be empty.

    Micro-batches are runs of like length (little padding); inside one the ranks take turns (like work).
    """
    order = ids[np.argsort(lengths[ids].sum(1), kind="stable")]
    return [[part[rank::ranks] for rank in range(ranks)] for part in np.array_split(order, micro_batches)]
