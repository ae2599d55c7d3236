"""Batches for training: tokenised samples laid out as the model takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from fcot.prompts.student import Architecture
from fcot.student.batching import Ids, StepSampler, deal
from fcot.student.tokenization import Row, Tokenized

Batch = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """How samples become tensors.

    Attributes:
        architecture: Of the student.
        pad_id: Fills what is masked.
        start_id: What an encoder-decoder's decoder starts with.
        prompt_weight: Of a prompt token's loss beside a completion token's 1 (decoders).
        packing: Lay a decoder's samples one behind the other instead of one below the other.
    """

    architecture: Architecture
    pad_id: int
    start_id: int | None = None
    prompt_weight: float = 0.0
    packing: bool = False

    def lengths(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """What is padded together, (n, 1) or (n, 2) tokens, from the lengths of prompt and completion, (n, 2)."""
        return tokens[:, ::-1] if self.architecture == "encoder_decoder" else tokens.sum(1, keepdims=True)

    def loss_tokens(self, tokens: NDArray[np.int64]) -> float:
        """The weighted number of tokens whose loss counts."""
        prompts, completions = tokens.sum(0)
        return float(completions + self.prompt_weight * (prompts - len(tokens)))

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Tensors of a (micro-)batch.

        Returns:
            ``inputs``: the model's keyword arguments; ``positions`` (targets,): where, in the flattened (batch, length)
            hidden states, a target is predicted; ``targets`` (targets,): token ids; ``weights`` (targets,), None for
            all ones; ``n_padded``: tokens, padding included.
        """
        if self.architecture == "encoder_decoder":
            return self._encoder_decoder(rows)
        return self._decoder(rows)

    def _encoder_decoder(self, rows: Sequence[Row]) -> Batch:
        prompts, completions = [row.prompt for row in rows], [row.completion for row in rows]
        shifted = [[self.start_id, *ids[:-1]] for ids in completions]
        inputs = {
            "input_ids": _pad(prompts, self.pad_id),
            "attention_mask": _mask(prompts),
            "decoder_input_ids": _pad(shifted, self.pad_id),
        }
        width = inputs["decoder_input_ids"].shape[1]
        positions = [row * width + offset for row, ids in enumerate(completions) for offset in range(len(ids))]
        return _batch(inputs, positions, [token for ids in completions for token in ids], None)

    def _decoder(self, rows: Sequence[Row]) -> Batch:
        texts = [[*row.prompt, *row.completion] for row in rows]
        sizes = [len(ids) for ids in texts]
        inputs: dict[str, Any]
        if self.packing:
            positions_in = [position for size in sizes for position in range(size)]
            inputs = {
                "input_ids": torch.tensor([[token for ids in texts for token in ids]]), "position_ids": torch.tensor([positions_in]),
                "segments": sizes,
            }  # fmt: skip
            begins = np.cumsum([0, *sizes[:-1]]).tolist()
        else:
            inputs = {"input_ids": _pad(texts, self.pad_id), "attention_mask": _mask(texts)}
            begins = [row * inputs["input_ids"].shape[1] for row in range(len(rows))]
        positions: list[int] = []
        targets: list[int] = []
        weights: list[float] = []
        for row, ids, begin in zip(rows, texts, begins, strict=True):
            first = 1 if self.prompt_weight else len(row.prompt)  # the first target; it is predicted one position before
            positions += range(begin + first - 1, begin + len(ids) - 1)
            targets += ids[first:]
            weights += [self.prompt_weight] * (len(row.prompt) - first) + [1.0] * len(row.completion)
        return _batch(inputs, positions, targets, weights if self.prompt_weight else None)


def _batch(inputs: dict[str, Any], positions: list[int], targets: list[int], weights: list[float] | None) -> Batch:
    padded = sum(inputs[name].numel() for name in ("input_ids", "decoder_input_ids") if name in inputs)
    return {
        "inputs": inputs, "positions": torch.tensor(positions), "targets": torch.tensor(targets),
        "weights": None if weights is None else torch.tensor(weights), "n_padded": padded,
    }  # fmt: skip


def _pad(sequences: Sequence[Sequence[Any]], value: int) -> torch.Tensor:
    """Rectangular (batch, longest) int64 tensor, filled on the right."""
    width = max(map(len, sequences))
    return torch.tensor([[*sequence, *[value] * (width - len(sequence))] for sequence in sequences], dtype=torch.long)


def _mask(sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    return _pad([[1] * len(sequence) for sequence in sequences], 0)


class _Part(NamedTuple):
    """What a rank sees in one micro-batch of a step."""

    step: int
    micro_batch: int
    ids: Ids
    n_samples: int  # of the micro-batch, over all ranks
    n_tokens: int  # likewise
    loss_tokens: float  # of the whole step


class ReasoningData(pl.LightningDataModule):
    """Tokenised training samples as one stream of micro-batches, from one optimizer step to another.

    Args:
        rows: All samples.
        sampler: Which of them a step sees.
        layout: How they become tensors.
        first_step: Where the stream begins.
        n_steps: Where it ends (not included).
        micro_batches: Parts of a step, one after the other.
        ranks: Parts of a micro-batch, side by side.
        rank: Which of those is this process's.
        workers: Processes that prepare batches; 0 prepares them here.
    """

    def __init__(
        self, rows: Tokenized, sampler: StepSampler, layout: Layout, *, first_step: int, n_steps: int, micro_batches: int = 1,
        ranks: int = 1, rank: int = 0, workers: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self._stream = _Stream(sampler, layout, rows.lengths, range(first_step, n_steps), micro_batches, ranks, rank)
        self._dataset = _Batches(rows, layout)
        self._workers = workers

    def train_dataloader(self) -> DataLoader[Batch]:
        """One pass over it is the rest of the training."""
        return DataLoader(
            self._dataset, batch_size=None, sampler=self._stream, num_workers=self._workers, pin_memory=torch.cuda.is_available(),  # type: ignore[arg-type]
        )  # fmt: skip


class _Stream:
    """A sampler of parts."""

    def __init__(
        self, sampler: StepSampler, layout: Layout, lengths: NDArray[np.int64], steps: range, micro_batches: int, ranks: int, rank: int
    ) -> None:
        self._sampler = sampler
        self._layout = layout
        self._lengths = lengths
        self._steps = steps
        self._micro_batches = micro_batches
        self._ranks = ranks
        self._rank = rank

    def __len__(self) -> int:
        return len(self._steps) * self._micro_batches

    def __iter__(self) -> Iterator[_Part]:
        for step in self._steps:
            ids = self._sampler.step(step)
            loss_tokens = self._layout.loss_tokens(self._lengths[ids])
            for index, parts in enumerate(deal(ids, self._lengths, self._micro_batches, self._ranks)):
                whole = np.concatenate(parts)
                yield _Part(step, index, parts[self._rank], len(whole), int(self._lengths[whole].sum()), loss_tokens)


class _Batches(Dataset[Batch]):
    """Batches by part."""

    def __init__(self, rows: Tokenized, layout: Layout) -> None:
        self._rows = rows
        self._layout = layout

    def __getitem__(self, part: _Part) -> Batch:
        batch = self._layout.batch([self._rows[index] for index in part.ids] or [self._rows[0]])
        if not len(part.ids):  # every rank takes part in every micro-batch; this one has nothing to say
            batch["weights"] = torch.zeros(len(batch["targets"]))
        return batch | {name: value for name, value in part._asdict().items() if name != "ids"}
