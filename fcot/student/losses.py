"""Training losses. All are sums: the caller divides by what the whole optimizer step holds."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from fcot.student.data import Batch


class TargetLogits:
    """A model's logits where a batch has targets: its head, the dearest layer, sees only those hidden states.

    By a hook, because what models do around the head differs (scales, caps) and stays theirs; and by one for good, because
    ``torch.compile`` takes a new one for a new model. :meth:`remove` takes it off.

    Args:
        model: A language model of transformers.
        compile: Whether the forward pass is compiled.
    """

    def __init__(self, model: Any, compile: bool = False) -> None:
        self._positions: torch.Tensor | None = None
        self._handle = model.get_output_embeddings().register_forward_pre_hook(self._select)
        self._model = model
        self._forward = torch.compile(self._run, dynamic=True) if compile else self._run

    def __call__(self, batch: Batch) -> torch.Tensor:
        """(targets, vocabulary), in float32."""
        try:
            return self._forward(batch["inputs"], batch["positions"])
        finally:
            self._positions = None

    def remove(self) -> None:
        """Leave the model as it was."""
        self._handle.remove()

    def _run(self, inputs: dict[str, Any], positions: torch.Tensor) -> torch.Tensor:
        self._positions = positions
        return self._model(**inputs, use_cache=False).logits[0].float()  # type: ignore[no-any-return]

    def _select(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if self._positions is None:  # decoding, between two steps
            return inputs
        return (inputs[0].flatten(0, 1)[self._positions][None],)


def token_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cross-entropy of the targets, weighted and summed: a scalar.

    Args:
        logits: (targets, vocabulary).
        batch: With ``targets`` (targets,) and ``weights`` (targets,), None for all ones.
    """
    if batch["weights"] is None:
        return functional.cross_entropy(logits, batch["targets"], reduction="sum")
    return functional.cross_entropy(logits, batch["targets"], reduction="none") @ batch["weights"]  # type: ignore[no-any-return]
