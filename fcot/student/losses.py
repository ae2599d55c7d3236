"""Training losses. All are sums: the caller divides by what the whole optimizer step holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

Batch = dict[str, Any]  # as fcot.student.data builds it


@contextmanager
def only_at(model: Any, positions: torch.Tensor) -> Iterator[None]:
    """Within, the model's head sees only the hidden states at ``positions`` of the flattened (batch, length): it is the dearest layer.

    A hook, because what models do around the head differs (scales, caps) and stays theirs.
    """

    def select(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0].flatten(0, 1)[positions][None],)

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def logits_at_targets(model: Any, batch: Batch) -> torch.Tensor:
    """The model's logits where the batch has targets, (targets, vocabulary), in float32."""
    with only_at(model, batch["positions"]):
        logits = model(**batch["inputs"], use_cache=False).logits
    return logits[0].float()  # type: ignore[no-any-return]


def token_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cross-entropy of the targets, weighted and summed: a scalar.

    Args:
        logits: (targets, vocabulary).
        batch: With ``targets`` (targets,) and ``weights`` (targets,), None for all ones.
    """
    if batch["weights"] is None:
        return functional.cross_entropy(logits, batch["targets"], reduction="sum")
    return functional.cross_entropy(logits, batch["targets"], reduction="none") @ batch["weights"]  # type: ignore[no-any-return]
