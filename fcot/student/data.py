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

from fcot.base.records import TrainingSample
from fcot.prompts.student import Architecture, StudentFormat
from fcot.student.batching import Ids, StepSampler, deal
from fcot.student.loading import Student
from fcot.student.objective import Objective
from fcot.student.tensors import Batch, mask, pad
from fcot.student.tokenization import Tokenized, TokenizedSample


@dataclass(frozen=True)
class Layout:
    """How samples become tensors.

    Attributes:
        architecture: Of the student.
        pad_id: Fills what is masked.
        start_id: What an encoder-decoder's decoder starts with.
        prompt_weight: Of a prompt token's loss beside a completion token's 1 (decoders).
        demonstration_weight: Of a token of the prompt's demonstrations (decoders).
        count_weighted: Whether the mean loss is over the tokens by their weights, or over all that have any (paper B).
        packing: Lay a decoder's samples one behind the other instead of one below the other.
    """

    architecture: Architecture
    pad_id: int
    start_id: int | None = None
    prompt_weight: float = 0.0
    demonstration_weight: float = 0.0
    count_weighted: bool = True
    packing: bool = False

    def lengths(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """What is padded together, (n, 1) or (n, 2) tokens, from the lengths of prompt and completion, (n, 2)."""
        return tokens[:, ::-1] if self.architecture == "encoder_decoder" else tokens.sum(1, keepdims=True)

    def loss_tokens(
        self, tokens: NDArray[np.int64], demonstrations: NDArray[np.int64] | None = None, weights: NDArray[np.float64] | None = None
    ) -> float:
        """What the loss of an optimizer step is divided by: how many tokens have a weight, or the sum of their weights.

        Args:
            tokens: Of prompt and completion, (n, 2).
            demonstrations: Tokens of the prompts' demonstrations, (n,); None for none.
            weights: Of the samples, (n,); None for all ones.
        """
        shown = np.zeros(len(tokens)) if demonstrations is None else demonstrations
        targets = np.stack([np.maximum(shown - 1, 0), tokens[:, 0] - np.maximum(shown, 1), tokens[:, 1]])  # the first token is none
        share = np.array([self.demonstration_weight, self.prompt_weight, 1.0])
        of_samples = np.ones(len(tokens)) if weights is None else weights
        if not self.count_weighted:
            share, of_samples = (share > 0).astype(float), (of_samples > 0).astype(float)
        return float(share @ targets @ of_samples)

    def batch(self, rows: Sequence[TokenizedSample], weights: Sequence[float] | None = None) -> Batch:
        """Tensors of a (micro-)batch.

        Args:
            rows: The samples.
            weights: Of their losses, None for all ones.

        Returns:
            ``inputs``: the model's keyword arguments; ``positions`` (targets,): where, in the flattened (batch, length)
            hidden states, a target is predicted; ``targets`` (targets,): token ids; ``weights`` (targets,), None for
            all ones; ``n_padded``: tokens, padding included.
        """
        if self.architecture == "encoder_decoder":
            return self._encoder_decoder(rows, weights)
        return self._decoder(rows, weights)

    def _encoder_decoder(self, rows: Sequence[TokenizedSample], weights: Sequence[float] | None) -> Batch:
        prompts, completions = [row.prompt for row in rows], [row.completion for row in rows]
        shifted = [[self.start_id, *ids[:-1]] for ids in completions]
        inputs = {
            "input_ids": pad(prompts, self.pad_id),
            "attention_mask": mask(prompts),
            "decoder_input_ids": pad(shifted, self.pad_id),
        }
        width = inputs["decoder_input_ids"].shape[1]
        positions = [row * width + offset for row, ids in enumerate(completions) for offset in range(len(ids))]
        of_tokens = None if weights is None else [weight for ids, weight in zip(completions, weights, strict=True) for _ in ids]
        return _batch(inputs, positions, [token for ids in completions for token in ids], of_tokens)

    def _decoder(self, rows: Sequence[TokenizedSample], weights: Sequence[float] | None) -> Batch:
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
            inputs = {"input_ids": pad(texts, self.pad_id), "attention_mask": mask(texts)}
            begins = [row * inputs["input_ids"].shape[1] for row in range(len(rows))]
        positions: list[int] = []
        targets: list[int] = []
        of_tokens: list[float] = []
        for row, ids, begin, weight in zip(rows, texts, begins, weights or [1.0] * len(rows), strict=True):
            shown, asked = max(1, row.demonstrations), len(row.prompt)  # the first token is no target
            for start, end, share in ((1, shown, self.demonstration_weight), (shown, asked, self.prompt_weight), (asked, len(ids), 1.0)):
                if share:
                    positions += range(begin + start - 1, begin + end - 1)  # a token is predicted one position before
                    targets += ids[start:end]
                    of_tokens += [weight * share] * (end - start)
        weighted = weights is not None or self.prompt_weight or self.demonstration_weight
        return _batch(inputs, positions, targets, of_tokens if weighted else None)


def _batch(inputs: dict[str, Any], positions: list[int], targets: list[int], weights: list[float] | None) -> Batch:
    padded = sum(inputs[name].numel() for name in ("input_ids", "decoder_input_ids") if name in inputs)
    return {
        "inputs": inputs, "positions": torch.tensor(positions), "targets": torch.tensor(targets),
        "weights": None if weights is None else torch.tensor(weights), "n_padded": padded,
    }  # fmt: skip


@dataclass(frozen=True)
class TrainingData:
    """What objectives are made from.

    Attributes:
        student: The student, before training.
        form: What it reads and writes.
        samples: What it learns from.
        rows: The samples as token ids, in the same order.
        layout: How they become tensors.
    """

    student: Student
    form: StudentFormat
    samples: Sequence[TrainingSample]
    rows: Tokenized
    layout: Layout


class _MicroBatch(NamedTuple):
    """What a rank sees in one micro-batch of a step."""

    step: int
    micro_batch: int
    ids: Ids
    n_samples: int  # of the micro-batch, over all ranks
    n_tokens: int  # likewise
    denominators: dict[str, float]  # of the whole step, by objective


class ReasoningData(pl.LightningDataModule):
    """Training samples as one stream of micro-batches, from one optimizer step to another.

    A batch has ``parts``, by objective, and ``denominators``; ``step``, ``micro_batch``; ``n_samples``, ``n_tokens`` and ``n_padded``.

    Args:
        objectives: The terms of the loss.
        lengths: Tokens of each sample's prompt and completion, (n, 2).
        sampler: Which samples a step sees.
        first_step: Where the stream begins.
        n_steps: Where it ends (not included).
        micro_batches: Parts of a step, one after the other.
        ranks: Parts of a micro-batch, side by side.
        rank: Which of those is this process's.
        workers: Processes that prepare batches; 0 prepares them here.
    """

    def __init__(
        self, objectives: Sequence[Objective], lengths: NDArray[np.int64], sampler: StepSampler, *, first_step: int, n_steps: int,
        micro_batches: int = 1, ranks: int = 1, rank: int = 0, workers: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self._stream = _Stream(sampler, objectives, lengths, range(first_step, n_steps), micro_batches, ranks, rank)
        self._dataset = _MicroBatches(objectives)
        self._workers = workers

    def train_dataloader(self) -> DataLoader[Batch]:
        """One pass over it is the rest of the training."""
        return DataLoader(
            self._dataset, batch_size=None, sampler=self._stream, num_workers=self._workers, pin_memory=torch.cuda.is_available(),  # type: ignore[arg-type]
        )  # fmt: skip


class _Stream:
    """A sampler of parts."""

    def __init__(
        self, sampler: StepSampler, objectives: Sequence[Objective], lengths: NDArray[np.int64], steps: range, micro_batches: int,
        ranks: int, rank: int,
    ) -> None:  # fmt: skip
        self._sampler = sampler
        self._objectives = objectives
        self._lengths = lengths
        self._steps = steps
        self._micro_batches = micro_batches
        self._ranks = ranks
        self._rank = rank

    def __len__(self) -> int:
        return len(self._steps) * self._micro_batches

    def __iter__(self) -> Iterator[_MicroBatch]:
        for step in self._steps:
            ids = self._sampler.step(step)
            denominators = {objective.name: objective.denominator(ids) for objective in self._objectives}
            for index, parts in enumerate(deal(ids, self._lengths, self._micro_batches, self._ranks)):
                whole = np.concatenate(parts)
                yield _MicroBatch(step, index, parts[self._rank], len(whole), int(self._lengths[whole].sum()), denominators)


class _MicroBatches(Dataset[Batch]):
    """Batches by part."""

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = objectives

    def __getitem__(self, part: _MicroBatch) -> Batch:
        parts = {
            objective.name: objective.collate(part.ids, part.step) | {"step": part.step}
            for objective in self._objectives if part.denominators[objective.name]
        }  # fmt: skip
        padded = sum(tensors.get("n_padded", 0) for tensors in parts.values())
        return {"parts": parts, "n_padded": padded} | {name: value for name, value in part._asdict().items() if name != "ids"}
