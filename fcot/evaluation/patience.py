"""Early stopping, of a training and of rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def out_of_patience(evaluations: Sequence[Mapping[str, Any]], patience: int | None) -> bool:
    """Whether the last ``patience`` evaluations brought no better validation accuracy.

    Args:
        evaluations: The evaluations in their order. Those without a ``validation_accuracy`` do not count.
        patience: Number of evaluations; None: never out of patience.
    """
    accuracies = [accuracy for evaluation in evaluations if (accuracy := evaluation.get("validation_accuracy")) is not None]
    return patience is not None and bool(accuracies) and len(accuracies) - 1 - accuracies.index(max(accuracies)) >= patience
