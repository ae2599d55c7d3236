"""Training losses. All are sums: the caller divides by what the whole optimizer step holds."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from fcot.student.activations import checkpoint_activations, checkpoints_activations
from fcot.student.data import Batch
from fcot.student.reflection import TEXTS


class TargetLogits:
    """A model's logits where a batch has targets: its head, the dearest layer, sees only those hidden states.

    And those states themselves, for self-reflection: what the head reads is the last layer's state.

    By a hook, because what models do around the head differs (scales, caps) and stays theirs; and by one for good, because
    ``torch.compile`` takes a new one for a new model. :meth:`remove` takes it off.

    Args:
        model: A language model of transformers.
        compile: Whether the forward pass is compiled.
    """

    def __init__(self, model: Any, compile: bool = False) -> None:
        self._positions: torch.Tensor | None = None
        self._reads: list[torch.Tensor] | None = None  # where a list, the states go in there
        self._handle = model.get_output_embeddings().register_forward_pre_hook(self._select)
        self._model = model
        self._encodes = bool(model.config.is_encoder_decoder)
        self._forward = torch.compile(self._run, dynamic=True) if compile else self._run

    def __call__(self, batch: Batch) -> torch.Tensor:
        """(targets, vocabulary), in float32."""
        try:
            return self._forward(batch["inputs"], batch["positions"])
        finally:
            self._positions = None

    def states(self, triplets: Batch) -> torch.Tensor:
        """The states that represent the texts of :func:`fcot.student.reflection.triplet_batch`, (texts, width), in float32.

        The questions before them stand under stop-gradient, as in paper B's code: their keys and values, or their encoder
        states, are computed without one.
        """
        model, checkpoints = self._model, checkpoints_activations(self._model)
        if checkpoints:  # it would compute the texts without what stands before them
            checkpoint_activations(model, False)
        try:
            self._positions = triplets["positions"][:1] * 0  # nobody wants these logits
            with torch.no_grad():
                before = model(**triplets["prefix"], past_key_values=None if self._encodes else DynamicCache(), use_cache=not self._encodes)
            more: dict[str, Any]
            if self._encodes:
                encoded = before.encoder_last_hidden_state.repeat_interleave(TEXTS, 0)
                more = {"encoder_outputs": BaseModelOutput(last_hidden_state=encoded), "use_cache": False}
            else:
                before.past_key_values.batch_repeat_interleave(TEXTS)
                more = {"past_key_values": before.past_key_values, "use_cache": True}
            self._positions, self._reads = triplets["positions"], []
            logits = model(**triplets["texts"], **more).logits
            # FSDP gathers the root's weights for the backward pass when a gradient reaches the model's output: it has to be in the graph.
            read, owners = self._reads[0].float() + 0 * logits.sum(), triplets["owners"]
        finally:
            self._positions = self._reads = None
            if checkpoints:
                checkpoint_activations(model, True)
        n = len(triplets["weights"]) * TEXTS
        return read.new_zeros(n, read.shape[1]).index_add(0, owners, read) / owners.bincount(minlength=n)[:, None]

    def remove(self) -> None:
        """Leave the model as it was."""
        self._handle.remove()

    def _run(self, inputs: dict[str, Any], positions: torch.Tensor) -> torch.Tensor:
        self._positions = positions
        return self._model(**inputs, use_cache=False).logits[0].float()  # type: ignore[no-any-return]

    def _select(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if self._positions is None:  # decoding, between two steps
            return inputs
        states = inputs[0].flatten(0, 1)[self._positions]
        if self._reads is None:
            return (states[None],)
        self._reads.append(states)
        return (states[None, :1],)


def token_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cross-entropy of the targets, weighted and summed: a scalar.

    Args:
        logits: (targets, vocabulary).
        batch: With ``targets`` (targets,) and ``weights`` (targets,), None for all ones.
    """
    if batch["weights"] is None:
        return functional.cross_entropy(logits, batch["targets"], reduction="sum")
    return functional.cross_entropy(logits, batch["targets"], reduction="none") @ batch["weights"]  # type: ignore[no-any-return]


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
