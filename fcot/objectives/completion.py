"""The main objective: cross-entropy of completion tokens and, with a weight of their own, of prompt tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fcot.student.batching import Ids
from fcot.student.data import Layout
from fcot.student.forward import CHUNK, GRADIENT_BYTES, Forward, autocast_type
from fcot.student.objective import Loss
from fcot.student.tensors import Batch
from fcot.student.tokenization import Rows


@dataclass(frozen=True)
class CompletionLoss:
    """Cross-entropy of the completions' tokens.

    Attributes:
        rows: The tokenized samples.
        layout: How samples become tensors. It holds the loss weights of prompt tokens.
        weights: Loss weights of the samples, (n,); None: all are 1.
        name: Name of the objective in logs.
        weight: Factor of this objective in the sum of objectives.
    """

    rows: Rows
    layout: Layout
    weights: NDArray[Any] | None = None
    name: str = "completion"
    weight: float = 1.0

    def denominator(self, ids: Ids) -> float:
        """The number of tokens with a weight above 0, or the sum of the token weights: ``layout.count_weighted`` decides."""
        weights = None if self.weights is None else self.weights[ids]
        return self.layout.loss_tokens(self.rows.lengths[ids], self.rows.demonstrations[ids], weights)

    def collate(self, ids: Ids, step: int) -> Batch:
        """The tensors of :meth:`fcot.student.data.Layout.batch`.

        Without samples they are those of the first sample, with weight 0: every rank takes part in every micro-batch.
        """
        weights = None if self.weights is None or not len(ids) else self.weights[ids].tolist()
        part = self.layout.batch([self.rows[index] for index in ids] or [self.rows[0]], weights)
        if not len(ids):
            part["weights"] = torch.zeros(len(part["targets"]))
        return part

    def facts(self) -> dict[str, Any]:
        """No facts: the training's summary has no entry about this objective."""
        return {}

    def loss(self, forward: Forward, part: Batch) -> Loss:
        """The summed cross-entropy of a batch. Where the batch has many logits, only some of them exist at a time."""
        if (states_and_head := forward.head_inputs(part)) is None:
            return Loss(token_loss(forward(part), part))
        states, head = states_and_head
        return Loss(chunked_token_loss(states, head.weight, head.bias, part))


def completion_loss(rows: Rows, layout: Layout, weights: Sequence[float]) -> CompletionLoss:
    """Build the cross-entropy of samples.

    Args:
        rows: The tokenized samples.
        layout: How samples become tensors.
        weights: Loss weight of each sample.
    """
    return CompletionLoss(rows, layout, None if all(weight == 1 for weight in weights) else np.array(weights))


def token_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cross-entropy of the targets, weighted and summed: a scalar.

    Args:
        logits: Logits at the targets, (targets, vocabulary).
        batch: Has ``targets``, token ids, (targets,), and ``weights``, loss weights, (targets,), or None where all are 1.
    """
    if batch["weights"] is None:
        return functional.cross_entropy(logits, batch["targets"], reduction="sum")
    return functional.cross_entropy(logits, batch["targets"], reduction="none") @ batch["weights"]  # type: ignore[no-any-return]


def chunked_token_loss(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, batch: Batch) -> torch.Tensor:
    """Compute :func:`token_loss` from hidden states, so that only a chunk of the logits exists at a time: a scalar in float32.

    Args:
        states: Hidden states at the targets, (targets, width).
        weight: Weight of the linear output head, (vocabulary, width).
        bias: Bias of the output head, (vocabulary,); None: the head has none.
        batch: Has ``targets``, token ids, (targets,), and ``weights``, loss weights, (targets,), or None where all are 1.
    """
    rows = max(16, CHUNK // weight.shape[0])
    return _ChunkedLoss.apply(states, weight, bias, batch["targets"], batch["weights"], rows)  # type: ignore[no-any-return, no-untyped-call]


class _ChunkedLoss(torch.autograd.Function):
    """A loss whose forward pass also computes the gradients, so that the backward pass need not compute the logits again.

    Under autocast, matrix products are computed in its type, everything else in float32. All chunks share one buffer of logits. The
    gradients of several chunks are collected before they are multiplied with the head: the memory of these gradients costs less
    than a product of the head's size for every chunk.
    """

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor,
        weights: torch.Tensor | None, rows: int,
    ) -> torch.Tensor:  # fmt: skip
        kind = autocast_type(states) or states.dtype
        inputs, head, head_bias = states.to(kind), weight.to(kind), None if bias is None else bias.to(kind)
        scales = torch.ones(len(states), 1, device=states.device) if weights is None else weights[:, None].float()
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        states_gradient = torch.empty_like(states, dtype=torch.float32) if needs_states else None
        bias_gradient = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs_bias else None
        weight_gradient: torch.Tensor | None = None
        loss = torch.zeros((), device=states.device)
        n, vocabulary = len(states), len(weight)
        group_size = max(rows, GRADIENT_BYTES // (vocabulary * inputs.element_size()))  # in targets; a group has several chunks
        all_gradients = inputs.new_empty(min(group_size, n), vocabulary)
        all_logits = states.new_empty(min(rows, n), vocabulary, dtype=torch.float32)
        with torch.autocast(states.device.type, enabled=False):
            for group in _slices(0, n, group_size):
                for chunk in _slices(group.start, group.stop, rows):
                    gradient = all_gradients[chunk.start - group.start : chunk.stop - group.start]
                    torch.mm(inputs[chunk], head.T, out=gradient)
                    if head_bias is not None:
                        gradient += head_bias
                    logits = all_logits[: len(gradient)].copy_(gradient)
                    losses = _softmax_gradient(logits, targets[chunk, None], scales[chunk])
                    loss += losses @ scales[chunk, 0]
                    gradient.copy_(logits)
                    if bias_gradient is not None:
                        bias_gradient += logits.sum(0)
                gradients = all_gradients[: group.stop - group.start]
                if states_gradient is not None:
                    states_gradient[group] = (gradients @ head).float()
                if needs_weight:
                    weight_gradient = _add_product(weight_gradient, gradients.T, inputs[group])
        ctx.gradients = states_gradient, weight_gradient, bias_gradient
        ctx.types = states.dtype, weight.dtype, None if bias is None else bias.dtype
        return loss

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # they are large: scaled in place, and freed as soon as autograd has used them
        scaled = [None if gradient is None else gradient.mul_(scale).to(kind) for gradient, kind in zip(gradients, ctx.types, strict=True)]
        return (*scaled, None, None, None)


def _softmax_gradient(logits: torch.Tensor, index: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Turn logits into the gradient of their weighted cross-entropy, in place.

    ``logsumexp`` is avoided: on a CPU it takes ten times as long as a softmax.

    Args:
        logits: (rows, vocabulary) in float32; becomes ``scales * (softmax(logits) - one_hot(index))``.
        index: Token id of each row's target, (rows, 1).
        scales: Loss weight of each row, (rows, 1).

    Returns:
        The unweighted cross-entropy of each row, (rows,).
    """
    largest, target = logits.amax(-1, keepdim=True), logits.gather(-1, index)
    total = logits.sub_(largest).exp_().sum(-1, keepdim=True)
    logits.mul_(scales / total).scatter_add_(-1, index, -scales)
    return (total.log() + largest - target)[:, 0]


def _add_product(total: torch.Tensor | None, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Add ``first @ second`` to ``total`` in place, in float32; None counts as 0. Float32 factors need no temporary tensor."""
    if total is None:
        return (first @ second).float()
    if first.dtype == torch.float32:
        return total.addmm_(first, second)
    return total.add_(first @ second)


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` positions that cover ``start`` to ``stop``."""
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))
