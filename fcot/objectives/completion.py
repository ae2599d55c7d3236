"""The cross-entropy of completions, and of prompts with a weight of their own."""

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
from fcot.student.tokenization import Tokenized


@dataclass(frozen=True)
class CompletionLoss:
    """Cross-entropy of the completions' tokens.

    Attributes:
        rows: The samples.
        layout: How they become tensors; it holds the weights of prompt tokens.
        weights: Of the samples, (n,); None for all ones.
        name: In logs.
        weight: Beside other objectives.
    """

    rows: Tokenized
    layout: Layout
    weights: NDArray[Any] | None = None
    name: str = "completion"
    weight: float = 1.0

    def denominator(self, ids: Ids) -> float:
        """How many tokens have a weight, or the sum of their weights."""
        weights = None if self.weights is None else self.weights[ids]
        return self.layout.loss_tokens(self.rows.lengths[ids], self.rows.demonstrations[ids], weights)

    def collate(self, ids: Ids, step: int) -> Batch:
        """As :meth:`fcot.student.data.Layout.batch` has it; without samples the first one, its tokens weighted 0."""
        weights = None if self.weights is None or not len(ids) else self.weights[ids].tolist()
        part = self.layout.batch([self.rows[index] for index in ids] or [self.rows[0]], weights)
        if not len(ids):
            part["weights"] = torch.zeros(len(part["targets"]))
        return part

    def facts(self) -> dict[str, Any]:
        """None."""
        return {}

    def loss(self, forward: Forward, part: Batch) -> Loss:
        """With all logits of the targets at once, or, where they are many, with some at a time."""
        if (read := forward.head_inputs(part)) is None:
            return Loss(token_loss(forward(part), part))
        states, head = read
        return Loss(chunked_token_loss(states, head.weight, head.bias, part))


def completion_loss(rows: Tokenized, layout: Layout, weights: Sequence[float]) -> CompletionLoss:
    """The cross-entropy of samples with these weights, one each."""
    return CompletionLoss(rows, layout, None if all(weight == 1 for weight in weights) else np.array(weights))


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

    The products are in autocast's type where it is on, everything else is in float32. All chunks share the memory of their logits.
    The gradients of several chunks are kept, because a product of the head's size costs more than they do.
    """

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor,
        weights: torch.Tensor | None, rows: int,
    ) -> torch.Tensor:  # fmt: skip
        kind = autocast_type(states) or states.dtype
        inputs, head, offset = states.to(kind), weight.to(kind), None if bias is None else bias.to(kind)
        scales = torch.ones(len(states), 1, device=states.device) if weights is None else weights[:, None].float()
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        of_states = torch.empty_like(states, dtype=torch.float32) if needs_states else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs_bias else None
        of_weight: torch.Tensor | None = None
        loss = torch.zeros((), device=states.device)
        n, vocabulary = len(states), len(weight)
        kept = max(rows, GRADIENT_BYTES // (vocabulary * inputs.element_size()))  # fewer products of the weight's size than chunks
        all_gradients = inputs.new_empty(min(kept, n), vocabulary)
        all_logits = states.new_empty(min(rows, n), vocabulary, dtype=torch.float32)
        with torch.autocast(states.device.type, enabled=False):
            for group in _slices(0, n, kept):
                for chunk in _slices(group.start, group.stop, rows):
                    gradient = all_gradients[chunk.start - group.start : chunk.stop - group.start]
                    torch.mm(inputs[chunk], head.T, out=gradient)
                    if offset is not None:
                        gradient += offset
                    logits = all_logits[: len(gradient)].copy_(gradient)
                    losses = _softmax_gradient(logits, targets[chunk, None], scales[chunk])
                    loss += losses @ scales[chunk, 0]
                    gradient.copy_(logits)
                    if of_bias is not None:
                        of_bias += logits.sum(0)
                gradients = all_gradients[: group.stop - group.start]
                if of_states is not None:
                    of_states[group] = (gradients @ head).float()
                if needs_weight:
                    of_weight = _add_product(of_weight, gradients.T, inputs[group])
        ctx.gradients = of_states, of_weight, of_bias
        ctx.types = states.dtype, weight.dtype, None if bias is None else bias.dtype
        return loss

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # they are large: scaled in place, and kept by nobody else
        scaled = [None if gradient is None else gradient.mul_(outer).to(kind) for gradient, kind in zip(gradients, ctx.types, strict=True)]
        return (*scaled, None, None, None)


def _softmax_gradient(logits: torch.Tensor, index: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Turn logits into the gradient of their weighted cross-entropy, in place.

    Without ``logsumexp``, which takes ten times as long as a softmax on a CPU.

    Args:
        logits: (rows, vocabulary) in float32; becomes ``scales * (softmax(logits) - one_hot(index))``.
        index: The targets, (rows, 1).
        scales: The weights of the rows, (rows, 1).

    Returns:
        The cross-entropy of each row, not weighted, (rows,).
    """
    largest, target = logits.amax(-1, keepdim=True), logits.gather(-1, index)
    total = logits.sub_(largest).exp_().sum(-1, keepdim=True)
    logits.mul_(scales / total).scatter_add_(-1, index, -scales)
    return (total.log() + largest - target)[:, 0]


def _add_product(total: torch.Tensor | None, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """``total + first @ second`` in float32, in place: without another tensor of that size where the types allow it."""
    if total is None:
        return (first @ second).float()
    if first.dtype == torch.float32:
        return total.addmm_(first, second)
    return total.add_(first @ second)


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` that cover a range."""
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))
