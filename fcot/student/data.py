"""Batches for training: which samples a step sees is a pure function of seed and step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from fcot.prompts.student import Architecture
from fcot.student.tokenization import Row, collate


def steps_per_epoch(n_samples: int, batch_size: int) -> int:
    """Optimizer steps that see every sample once; the last may be smaller."""
    return -(-n_samples // batch_size)


def batch_of_step(n_samples: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Sample positions of one optimizer step: a fresh permutation each epoch, derived from (seed, epoch) alone."""
    epoch, position = divmod(step, steps_per_epoch(n_samples, batch_size))
    return list(_epoch_order(n_samples, seed, epoch)[position * batch_size : (position + 1) * batch_size])


@lru_cache(maxsize=2)
def _epoch_order(n_samples: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng((seed, epoch)).permutation(n_samples).tolist())


class StepBatches:
    """A batch sampler over the steps ``range(n_steps)``; epochs are a matter of counting, not of the loader."""

    def __init__(self, n_samples: int, batch_size: int, seed: int, n_steps: int) -> None:
        self._n_samples = n_samples
        self._batch_size = batch_size
        self._seed = seed
        self._n_steps = n_steps

    def __len__(self) -> int:
        return self._n_steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self._n_steps):
            yield batch_of_step(self._n_samples, self._batch_size, self._seed, step)


class ReasoningData(pl.LightningDataModule):
    """Tokenised training samples as one stream of optimizer steps, each batch padded to its own longest row."""

    def __init__(self, rows: Sequence[Row], *, architecture: Architecture, pad_id: int, batch_size: int, seed: int, n_steps: int) -> None:
        super().__init__()
        self._rows = rows
        self._collate = partial(collate, architecture=architecture, pad_id=pad_id)
        self._batches = StepBatches(len(rows), batch_size, seed, n_steps)

    def train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """One pass over it is the whole training."""
        return DataLoader(self._rows, batch_sampler=self._batches, collate_fn=self._collate)  # type: ignore[arg-type]
