"""Self-reflection (paper B): the triplets of a step, and the batch that represents their texts.

A sample's triplet is its rationale (anchor), another kept rationale of its problem (positive) and one of the student's own
mistakes on it (negative), each a whole completion with the ending its writer gave it: paper B's code appends the gold answer
to mistakes too, which is not repeated here.
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
from fcot.student.tensors import Batch, mask, pad
from fcot.student.tokenization import Tokenized

TEXTS = 3  # anchor, positive, negative


@dataclass(frozen=True)
class Reflection:
    """What samples are contrasted with.

    Attributes:
        texts: Rationales and mistakes as completions; their prompts are empty.
        spans: Of each text the tokens, from and to, whose mean state represents it, (texts, 2).
        anchors: Of each sample its own text, (samples,).
        positives: Of each sample the texts of the other kept rationales of its problem.
        negatives: Of each sample the student's mistakes on its problem.
        weight: Of the triplet loss beside the language-model loss (paper B's lambda).
        margin: The loss's.
        seed: Of the choice among positives and negatives.
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
    reflection: Reflection, rows: Tokenized, samples: Sequence[int], step: int, pad_id: int, start_id: int | None
) -> dict[str, Any]:
    """Tensors of the triplets of a (micro-)batch.

    Args:
        reflection: Whose step has at least one triplet.
        rows: The samples' prompts.
        samples: Those of the batch; where none of them has a triplet, another sample's stands in with weight 0, because
            sharded weights want every rank to take part.
        step: The optimizer step.
        pad_id: Fills what is masked.
        start_id: What an encoder-decoder's decoder starts with; None for decoders.

    Returns:
        ``prefix``: the model's keyword arguments for the questions, (triplets, length); ``texts``: for anchors, positives
        and negatives in turn behind those, (3 triplets, length); ``positions``: where in the flattened texts a state is
        taken; ``owners``: the text each of those belongs to; ``weights``: of each triplet, 1 or 0.
    """
    contributes = reflection.contributes
    chosen = [sample for sample in samples if contributes[sample]]
    weights = torch.ones(len(chosen)) if chosen else torch.zeros(1)
    chosen = chosen or [int(contributes.argmax())]
    prompts = [rows[sample].prompt for sample in chosen]
    numbers = [number for sample in chosen for number in reflection.triplet(sample, step)]
    texts = [reflection.texts[number].completion for number in numbers]
    asked = mask(prompts)
    prefix = {"input_ids": pad(prompts, pad_id), "attention_mask": asked}
    before = asked.repeat_interleave(TEXTS, 0)
    inputs: dict[str, Any]
    if start_id is not None:
        prefix["decoder_input_ids"] = torch.full((len(prompts), 1), start_id)
        written = [[start_id, *ids] for ids in texts]
        inputs = {"attention_mask": before, "decoder_input_ids": pad(written, pad_id), "decoder_attention_mask": mask(written)}
    else:
        written = texts
        places = before.sum(1, keepdim=True) + torch.arange(max(map(len, texts)))
        inputs = {"input_ids": pad(texts, pad_id), "attention_mask": torch.cat([before, mask(texts)], 1), "position_ids": places}
    width, shift = max(map(len, written)), len(written[0]) - len(texts[0])
    spans = [range(*reflection.spans[number]) for number in numbers]
    positions = [row * width + shift + place for row, span in enumerate(spans) for place in span]
    owners = [row for row, span in enumerate(spans) for _ in span]
    return {
        "prefix": prefix, "texts": inputs, "positions": torch.tensor(positions), "owners": torch.tensor(owners), "weights": weights,
    }  # fmt: skip


@dataclass(frozen=True)
class TripletLoss:
    """The triplet loss of self-reflection.

    Attributes:
        reflection: What samples are contrasted with.
        rows: The samples.
        layout: How they become tensors.
        name: In logs.
    """

    reflection: Reflection
    rows: Tokenized
    layout: Layout
    name: str = "reflection"

    @property
    def weight(self) -> float:
        """Beside the cross-entropy: paper B's lambda."""
        return self.reflection.weight

    def denominator(self, ids: Ids) -> float:
        """How many samples have a triplet."""
        return int(self.reflection.contributes[ids].sum())

    def collate(self, ids: Ids, step: int) -> Batch:
        """See :func:`triplet_batch`."""
        return triplet_batch(self.reflection, self.rows, list(ids), step, self.layout.pad_id, self.layout.start_id)

    def facts(self) -> dict[str, Any]:
        """The share of the samples that have a triplet."""
        return {"reflection_share": round(float(self.reflection.contributes.mean()), 4)}

    def loss(self, forward: Forward, part: Batch) -> torch.Tensor:
        """See :func:`triplet_loss`."""
        return triplet_loss(forward.text_states(part, TEXTS), part["weights"], self.reflection.margin)


def triplet_loss(states: torch.Tensor, weights: torch.Tensor, margin: float) -> torch.Tensor:
    """How much nearer than its negative an anchor is not to its positive, by the cosine, summed over triplets: a scalar.

    Args:
        states: Of anchors, positives and negatives in turn, (3 triplets, width).
        weights: Of each triplet.
        margin: By which the positive is to be nearer.
    """
    anchors, positives, negatives = states.unflatten(0, (-1, TEXTS)).unbind(1)
    nearer = functional.cosine_similarity(anchors, positives) - functional.cosine_similarity(anchors, negatives)
    return (margin - nearer).clamp(min=0) @ weights
