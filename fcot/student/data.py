"""Batches for training: tokenized samples as the model's input tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from fcot.base.ranks import World
from fcot.base.records import TrainingSample
from fcot.llm.distributions import TopTokens
from fcot.prompts.student import Architecture, StudentFormat
from fcot.student.batching import Ids, StepSampler, deal
from fcot.student.loading import Student
from fcot.student.objective import Objective
from fcot.student.own import OwnSamples
from fcot.student.tensors import Batch, mask, pad
from fcot.student.tokenization import Rows, TokenizedSample


@dataclass(frozen=True)
class Layout:
    """How samples become tensors.

    Attributes:
        architecture: The student's architecture.
        pad_id: Token id of padding, which is masked.
        start_id: First input token of an encoder-decoder's decoder; None for decoders.
        prompt_weight: Loss weight of a prompt token, where a completion token has 1 (decoders).
        demonstration_weight: Loss weight of a token of the prompt's demonstrations (decoders).
        count_weighted: True: the mean loss divides by the sum of the token weights; False: by the number of tokens with a weight
            above 0 (paper B).
        packing: Whether a decoder's samples are concatenated in one row, instead of one row per sample.
    """

    architecture: Architecture
    pad_id: int
    start_id: int | None = None
    prompt_weight: float = 0.0
    demonstration_weight: float = 0.0
    count_weighted: bool = True
    packing: bool = False

    def lengths(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Lengths of the tensors that are padded, (n, 1) or (n, 2), from the lengths of prompt and completion, (n, 2)."""
        return tokens[:, ::-1] if self.architecture == "encoder_decoder" else tokens.sum(1, keepdims=True)

    def loss_tokens(
        self, tokens: NDArray[np.int64], demonstrations: NDArray[np.int64] | None = None, weights: NDArray[np.float64] | None = None
    ) -> float:
        """The denominator of an optimizer step's loss: the number of tokens that have a weight, or the sum of their weights.

        Args:
            tokens: Tokens of prompt and completion, (n, 2).
            demonstrations: Tokens of the prompts' demonstrations, (n,); None: the prompts have none.
            weights: Loss weights of the samples, (n,); None: all are 1.
        """
        n_shown = np.zeros(len(tokens)) if demonstrations is None else demonstrations
        # Number of targets, (3, n): in demonstrations, in the rest of the prompt, in the completion. The first token is not a target.
        targets = np.stack([np.maximum(n_shown - 1, 0), tokens[:, 0] - np.maximum(n_shown, 1), tokens[:, 1]])
        part_weights = np.array([self.demonstration_weight, self.prompt_weight, 1.0])
        sample_weights = np.ones(len(tokens)) if weights is None else weights
        if not self.count_weighted:
            part_weights, sample_weights = (part_weights > 0).astype(float), (sample_weights > 0).astype(float)
        return float(part_weights @ targets @ sample_weights)

    def batch(self, rows: Sequence[TokenizedSample], weights: Sequence[float] | None = None) -> Batch:
        """Tensors of a (micro-)batch.

        Args:
            rows: The samples.
            weights: Loss weights of the samples; None: all are 1.

        Returns:
            ``inputs``: the model's keyword arguments; ``positions`` (targets,): where, in the flattened (batch, length)
            hidden states, a target is predicted; ``targets`` (targets,): token ids; ``weights`` (targets,): loss weights, None if
            all are 1; ``n_padded``: tokens, padding included.
        """
        if self.architecture == "encoder_decoder":
            return self._encoder_decoder(rows, weights)
        return self._decoder(rows, weights)

    def completion_targets(self, rows: Sequence[TokenizedSample]) -> list[int]:
        """For each sample, the position of its completion's first token among the targets of :meth:`batch`."""
        begins, end = [], 0
        for row in rows:
            if self.architecture == "decoder":
                n_shown = max(1, row.demonstrations)
                end += (n_shown - 1) * bool(self.demonstration_weight) + (len(row.prompt) - n_shown) * bool(self.prompt_weight)
            begins.append(end)
            end += len(row.completion)
        return begins

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
        token_weights = None if weights is None else [weight for ids, weight in zip(completions, weights, strict=True) for _ in ids]
        return _batch(inputs, positions, [token for ids in completions for token in ids], token_weights)

    def _decoder(self, rows: Sequence[TokenizedSample], weights: Sequence[float] | None) -> Batch:
        texts = [[*row.prompt, *row.completion] for row in rows]
        sizes = [len(ids) for ids in texts]
        inputs: dict[str, Any]
        if self.packing:
            position_ids = [position for size in sizes for position in range(size)]
            inputs = {
                "input_ids": torch.tensor([[token for ids in texts for token in ids]]), "position_ids": torch.tensor([position_ids]),
                "segments": sizes,
            }  # fmt: skip
            begins = np.cumsum([0, *sizes[:-1]]).tolist()
        else:
            inputs = {"input_ids": pad(texts, self.pad_id), "attention_mask": mask(texts)}
            begins = [row * inputs["input_ids"].shape[1] for row in range(len(rows))]
        positions: list[int] = []
        targets: list[int] = []
        token_weights: list[float] = []
        for row, ids, begin, weight in zip(rows, texts, begins, weights or [1.0] * len(rows), strict=True):
            n_shown, n_prompt = max(1, row.demonstrations), len(row.prompt)  # the first token is not a target
            parts = ((1, n_shown, self.demonstration_weight), (n_shown, n_prompt, self.prompt_weight), (n_prompt, len(ids), 1.0))
            for start, end, part_weight in parts:
                if part_weight:
                    positions += range(begin + start - 1, begin + end - 1)  # a token is predicted at the position before it
                    targets += ids[start:end]
                    token_weights += [weight * part_weight] * (end - start)
        weighted = weights is not None or self.prompt_weight or self.demonstration_weight
        return _batch(inputs, positions, targets, token_weights if weighted else None)


def layout_of(student: Student) -> Layout:
    """How a student's samples become tensors, with a loss on completion tokens only."""
    return Layout(student.architecture, student.tokenizer.pad_token_id, getattr(student.model.config, "decoder_start_token_id", None))


def _batch(inputs: dict[str, Any], positions: list[int], targets: list[int], weights: list[float] | None) -> Batch:
    padded = sum(inputs[name].numel() for name in ("input_ids", "decoder_input_ids") if name in inputs)
    return {
        "inputs": inputs, "positions": torch.tensor(positions), "targets": torch.tensor(targets),
        "weights": None if weights is None else torch.tensor(weights), "n_padded": padded,
    }  # fmt: skip


@dataclass(frozen=True)
class TrainingData:
    """The data from which objectives are built.

    Attributes:
        student: The student, before training.
        form: The student's format of prompts and completions.
        samples: The training samples.
        rows: The samples as token ids, in the same order.
        layout: How the samples become tensors.
        stored: The teacher's stored distributions; None if none are stored.
        rejected: Returns the teacher's wrong completions, as samples with the answer that they reach.
        precision: Lightning's name of the training's precision.
        world: The ranks that train.
        seed: Seed of random choices among samples.
        first_own: The rows from this position on are written by the student itself; None: it writes none.
        teacher_prompts: Returns the token ids of a local teacher's own prompt for each sample.
        own_top: Returns a server's distributions on a row that the student wrote; None where there are none.
    """

    student: Student
    form: StudentFormat
    samples: Sequence[TrainingSample]
    rows: Rows
    layout: Layout
    stored: StoredDistributions | None = None
    rejected: Callable[[], Sequence[TrainingSample]] = tuple
    precision: str = "32-true"
    world: World = World()  # noqa: RUF009 - frozen
    seed: int = 0
    first_own: int | None = None
    teacher_prompts: Callable[[Student], Sequence[Sequence[int]]] = lambda _: ()
    own_top: Callable[[int], TopTokens | None] = lambda _: None


@dataclass(frozen=True)
class StoredDistributions:
    """The distributions that a teacher's store holds.

    Attributes:
        tokenizer: Folder or hub id of the teacher's tokenizer.
        of: The distributions of the completion that a sample comes from; None if there are none.
    """

    tokenizer: str
    of: Callable[[TrainingSample], TopTokens | None]


class _MicroBatch(NamedTuple):
    """One rank's part of a micro-batch."""

    step: int
    micro_batch: int
    ids: Ids
    n_samples: int  # samples of the micro-batch, over all ranks
    n_tokens: int  # tokens of the micro-batch, over all ranks, without padding
    denominators: dict[str, float]  # by objective, for the whole step


class ReasoningData(pl.LightningDataModule):
    """Training samples as one stream of micro-batches, over a range of optimizer steps.

    A batch has ``parts`` and ``denominators``, both by objective; ``step``, ``micro_batch``; ``n_samples``, ``n_tokens`` and ``n_padded``.

    Args:
        objectives: The terms of the loss.
        rows: The tokenized samples.
        sampler: Gives the samples of each step.
        own: Replaces samples of each step by the student's own; None: the student writes none.
        first_step: First step of the stream.
        n_steps: The stream ends before this step.
        micro_batches: Micro-batches per step.
        ranks: Ranks that divide each micro-batch.
        rank: Number of this process's rank.
        workers: Processes that prepare batches; 0: this process prepares them.
    """

    def __init__(
        self, objectives: Sequence[Objective], rows: Rows, sampler: StepSampler, own: OwnSamples | None = None, *, first_step: int,
        n_steps: int, micro_batches: int = 1, ranks: int = 1, rank: int = 0, workers: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self._objectives = objectives
        self._rows = rows
        self._sampler = sampler
        self._own = own
        self._next_step = first_step
        self._n_steps = n_steps
        self._division = micro_batches, ranks, rank
        self._workers = workers if own is None else 0  # a worker process would have the samples of an earlier renewal

    def train_dataloader(self) -> DataLoader[Batch]:
        """The micro-batches of all remaining steps, in order; if the student writes samples, up to their next renewal."""
        end = self._n_steps if self._own is None else self._own.renew(self._next_step)
        steps, self._next_step = range(self._next_step, end), end
        stream = _Stream(self._own or self._sampler, self._objectives, self._rows, steps, *self._division)
        return DataLoader(
            _MicroBatches(self._objectives), batch_size=None, sampler=stream, num_workers=self._workers,  # type: ignore[arg-type]
            pin_memory=torch.cuda.is_available(),
        )  # fmt: skip


class _Stream:
    """The sampler of the DataLoader: this rank's micro-batches, in order."""

    def __init__(
        self, sampler: StepSampler | OwnSamples, objectives: Sequence[Objective], rows: Rows, steps: range, micro_batches: int, ranks: int,
        rank: int,
    ) -> None:  # fmt: skip
        self._sampler = sampler
        self._objectives = objectives
        self._lengths = rows.lengths
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
                all_ids = np.concatenate(parts)
                yield _MicroBatch(step, index, parts[self._rank], len(all_ids), int(self._lengths[all_ids].sum()), denominators)


class _MicroBatches(Dataset[Batch]):
    """The dataset of the DataLoader: turns a micro-batch into tensors."""

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = objectives

    def __getitem__(self, micro_batch: _MicroBatch) -> Batch:
        parts = {
            objective.name: objective.collate(micro_batch.ids, micro_batch.step) | {"step": micro_batch.step}
            for objective in self._objectives if micro_batch.denominators[objective.name]
        }  # fmt: skip
        padded = sum(tensors.get("n_padded", 0) for tensors in parts.values())
        return {"parts": parts, "n_padded": padded} | {name: value for name, value in micro_batch._asdict().items() if name != "ids"}
