"""Self-reflection (paper B): the triplet loss, and the batch of a step's triplets.

A sample's triplet is its rationale (anchor), another kept rationale of its problem (positive) and one of the student's own
mistakes on that problem (negative). Each is a whole completion that ends with the answer its writer gave. Paper B's code differs:
it appends the gold answer to mistakes too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fcot.student.batching import Ids
from fcot.student.data import Layout
from fcot.student.forward import Forward
from fcot.student.objective import Loss
from fcot.student.tensors import Batch, mask, pad
from fcot.student.tokenization import Rows, Tokenized

TEXTS = 3  # anchor, positive, negative


@dataclass(frozen=True)
class Reflection:
    """The rationales and mistakes that form the samples' triplets.

    Attributes:
        texts: Rationales and mistakes as completions; their prompts are empty.
        spans: First token and end of the tokens whose mean state represents a text, (texts, 2).
        anchors: The text of each sample's rationale, (samples,).
        positives: For each sample, the texts of the other kept rationales of its problem.
        negatives: For each sample, the texts of the student's mistakes on its problem.
        weight: Factor of the triplet loss, where the cross-entropy has 1 (paper B's lambda).
        margin: Margin of the triplet loss.
        seed: Seed of the choice among positives and negatives.
    """

    texts: Tokenized
    spans: NDArray[np.int64]
    anchors: NDArray[np.int64]
    positives: Sequence[NDArray[np.int64]]
    negatives: Sequence[NDArray[np.int64]]
    weight: float
    margin: float
    seed: int

    @cached_property
    def contributes(self) -> NDArray[np.bool_]:
        """Which samples have both a positive and a negative, (samples,)."""
        return np.array([bool(len(p) and len(n)) for p, n in zip(self.positives, self.negatives, strict=True)], dtype=np.bool_)

    def triplet(self, sample: int, step: int) -> tuple[int, int, int]:
        """Texts of a sample's anchor, positive and negative in an optimizer step: a pure function of seed, step and sample."""
        rng = np.random.default_rng((self.seed, step, sample))
        return int(self.anchors[sample]), int(rng.choice(self.positives[sample])), int(rng.choice(self.negatives[sample]))


def triplet_batch(
    reflection: Reflection, rows: Rows, samples: Sequence[int], step: int, pad_id: int, start_id: int | None
) -> dict[str, Any]:
    """Tensors of the triplets of a (micro-)batch.

    Args:
        reflection: The triplets; at least one sample has one.
        rows: The samples' prompts.
        samples: The samples of the batch. If none of them has a triplet, the triplet of another sample gets weight 0: sharded
            parameters need every rank to take part.
        step: The optimizer step.
        pad_id: Token id of padding, which is masked.
        start_id: First input token of an encoder-decoder's decoder; None for decoders.

    Returns:
        ``prefix``: the model's keyword arguments for the questions, (triplets, length); ``texts``: those for the texts that follow,
        anchor, positive and negative in turn, (3 triplets, length); ``positions``: where in the flattened texts a state is
        read; ``owners``: the text that each position belongs to; ``weights``: loss weight of each triplet, 1 or 0.
    """
    contributes = reflection.contributes
    chosen = [sample for sample in samples if contributes[sample]]
    weights = torch.ones(len(chosen)) if chosen else torch.zeros(1)
    chosen = chosen or [int(contributes.argmax())]
    prompts = [rows[sample].prompt for sample in chosen]
    numbers = [number for sample in chosen for number in reflection.triplet(sample, step)]
    texts = [reflection.texts[number].completion for number in numbers]
    prompt_mask = mask(prompts)
    prefix = {"input_ids": pad(prompts, pad_id), "attention_mask": prompt_mask}
    repeated_mask = prompt_mask.repeat_interleave(TEXTS, 0)  # one row per text
    inputs: dict[str, Any]
    if start_id is not None:
        prefix["decoder_input_ids"] = torch.full((len(prompts), 1), start_id)
        inputs_of_texts = [[start_id, *ids] for ids in texts]
        inputs = {
            "attention_mask": repeated_mask, "decoder_input_ids": pad(inputs_of_texts, pad_id),
            "decoder_attention_mask": mask(inputs_of_texts),
        }  # fmt: skip
    else:
        inputs_of_texts = texts
        position_ids = repeated_mask.sum(1, keepdim=True) + torch.arange(max(map(len, texts)))
        full_mask = torch.cat([repeated_mask, mask(texts)], 1)
        inputs = {"input_ids": pad(texts, pad_id), "attention_mask": full_mask, "position_ids": position_ids}
    width, shift = max(map(len, inputs_of_texts)), len(inputs_of_texts[0]) - len(texts[0])
    spans = [range(*reflection.spans[number]) for number in numbers]
    positions = [row * width + shift + offset for row, span in enumerate(spans) for offset in span]
    owners = [row for row, span in enumerate(spans) for _ in span]
    return {
        "prefix": prefix, "texts": inputs, "positions": torch.tensor(positions), "owners": torch.tensor(owners), "weights": weights,
    }  # fmt: skip


@dataclass(frozen=True)
class TripletLoss:
    """The triplet loss of self-reflection.

    Attributes:
        reflection: The triplets.
        rows: The samples.
        layout: How the samples become tensors.
        name: Name of the objective in logs.
    """

    reflection: Reflection
    rows: Rows
    layout: Layout
    name: str = "reflection"

    @property
    def weight(self) -> float:
        """Factor of the loss, where the cross-entropy has 1: paper B's lambda."""
        return self.reflection.weight

    def denominator(self, ids: Ids) -> float:
        """The number of samples in the step that have a triplet."""
        return int(self.reflection.contributes[ids].sum())

    def collate(self, ids: Ids, step: int) -> Batch:
        """The tensors of the samples' triplets: see :func:`triplet_batch`."""
        return triplet_batch(self.reflection, self.rows, list(ids), step, self.layout.pad_id, self.layout.start_id)

    def facts(self) -> dict[str, Any]:
        """The share of samples that have a triplet."""
        return {"reflection_share": round(float(self.reflection.contributes.mean()), 4)}

    def loss(self, forward: Forward, part: Batch) -> Loss:
        """The triplet loss, summed over triplets: see :func:`triplet_loss`."""
        return Loss(triplet_loss(forward.text_states(part, TEXTS), part["weights"], self.reflection.margin))


def triplet_loss(states: torch.Tensor, weights: torch.Tensor, margin: float) -> torch.Tensor:
    """The triplet loss with cosine similarity, summed over triplets: a scalar.

    A triplet's loss is how much the similarity of anchor and positive falls short of that of anchor and negative plus the margin.

    Args:
        states: States of anchor, positive and negative in turn, (3 triplets, width).
        weights: Loss weight of each triplet, (triplets,).
        margin: Required difference of the two similarities.
    """
    anchors, positives, negatives = states.unflatten(0, (-1, TEXTS)).unbind(1)
    difference = functional.cosine_similarity(anchors, positives) - functional.cosine_similarity(anchors, negatives)
    return (margin - difference).clamp(min=0) @ weights
