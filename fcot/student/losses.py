"""Training losses. All are sums: the caller divides by what the whole optimizer step holds."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from fcot.student.activations import checkpoint_activations, checkpoints_activations
from fcot.student.data import Batch
from fcot.student.reflection import TEXTS

CHUNKED_FROM = 1 << 26  # logits of a micro-batch: a quarter of a gigabyte in float32, which a loss needs three times over
CHUNK = 1 << 25  # logits at once


class TargetLogits:
    """A model's logits where a batch has targets: only hidden states at target positions go through the head, the most expensive layer.

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
        plain = type(model.get_output_embeddings()) is torch.nn.Linear and not compile
        self._linear: bool | None = None if plain else False  # whether the logits are the head's, as they are; None: not known yet
        self._encodes = bool(model.config.is_encoder_decoder)
        self._forward = torch.compile(self._run, dynamic=True) if compile else self._run

    def __call__(self, batch: Batch) -> torch.Tensor:
        """(targets, vocabulary), in float32."""
        try:
            return self._forward(batch["inputs"], batch["positions"])
        finally:
            self._positions = None

    def loss_in_chunks(self, batch: Batch) -> torch.Tensor | None:
        """:func:`token_loss` of a batch with many targets under a large vocabulary, without all of its logits at once.

        Returns:
            A scalar; None for a small batch, and where the model does more with its logits than its linear head (Gemma 2 caps
            them) or the head cannot be taken by itself (adapters, sharded weights, compiled models, 16-mixed).
        """
        head = self._model.get_output_embeddings()
        if self._linear is False or isinstance(head.weight, DTensor) or _autocast(head.weight) == torch.float16:
            return None
        if len(batch["targets"]) * head.weight.shape[0] < CHUNKED_FROM:
            return None
        try:
            self._positions, self._reads = batch["positions"], []
            logits = self._model(**batch["inputs"], use_cache=False).logits[0]  # of one target
            states = self._reads[0]
        finally:
            self._positions = self._reads = None
        if self._linear is None and logits.any():  # of a padding token all are 0, whatever is done with them
            with torch.no_grad():
                self._linear = torch.equal(logits, head(states[:1]))
        return chunked_token_loss(states, head.weight, head.bias, batch) if self._linear else None

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


def chunked_token_loss(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, batch: Batch) -> torch.Tensor:
    """:func:`token_loss` of a linear head's logits, of which only some exist at a time: a scalar in float32.

    Args:
        states: (targets, width).
        weight: The head's, (vocabulary, width).
        bias: The head's, (vocabulary,), or None.
        batch: As in :func:`token_loss`.
    """
    rows = max(16, CHUNK // weight.shape[0])
    return _ChunkedLoss.apply(states, weight, bias, batch["targets"], batch["weights"], rows)  # type: ignore[no-any-return, no-untyped-call]


class _ChunkedLoss(torch.autograd.Function):
    """Computes the gradients together with the loss, while a chunk's logits exist: nothing is computed twice.

    The products are in autocast's type where it is on, everything else is in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor,
        weights: torch.Tensor | None, rows: int,
    ) -> torch.Tensor:  # fmt: skip
        kind = _autocast(states) or states.dtype
        head, offset = weight.to(kind), None if bias is None else bias.to(kind)
        loss = torch.zeros((), device=states.device)
        of_states, of_weight, of_bias = (
            torch.zeros_like(tensor, dtype=torch.float32) if tensor is not None and needed else None
            for tensor, needed in zip((states, weight, bias), ctx.needs_input_grad, strict=False)
        )
        with torch.autocast(states.device.type, enabled=False):
            for start in range(0, len(states), rows):
                chunk = slice(start, start + rows)
                inputs, index = states[chunk].to(kind), targets[chunk, None]
                logits = functional.linear(inputs, head, offset).float()
                normalizers = logits.logsumexp(-1, keepdim=True)
                losses = (normalizers - logits.gather(-1, index))[:, 0]
                loss += losses.sum() if weights is None else losses @ weights[chunk]
                gradient = logits.sub_(normalizers).exp_()
                gradient.scatter_add_(-1, index, torch.full_like(index, -1.0, dtype=gradient.dtype))
                gradient = (gradient if weights is None else gradient.mul_(weights[chunk, None])).to(kind)
                if of_states is not None:
                    of_states[chunk] = gradient @ head
                if of_weight is not None:
                    _add_product(of_weight, gradient.T, inputs)
                if of_bias is not None:
                    of_bias += gradient.sum(0)
        ctx.gradients = of_states, of_weight, of_bias
        ctx.types = states.dtype, weight.dtype, None if bias is None else bias.dtype
        return loss

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # they are large: scaled in place, and kept by nobody else
        scaled = [None if gradient is None else gradient.mul_(outer).to(kind) for gradient, kind in zip(gradients, ctx.types, strict=True)]
        return (*scaled, None, None, None)


def _add_product(total: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> None:
    """``total += first @ second``, without another tensor of that size where the types allow it."""
    if total.dtype == first.dtype:
        total.addmm_(first, second)
    else:
        total += first @ second


def _autocast(tensor: torch.Tensor) -> torch.dtype | None:
    """The type that products with a tensor have under autocast; None without it."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


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
