"""The options of ``objective``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fcot.base.fields import Why, neutral

if TYPE_CHECKING:  # imports that would delay --help and --cfg job
    from fcot.runs.run import Run
    from fcot.student.data import TrainingData
    from fcot.student.objective import Objective


class ObjectiveConfig(Protocol):
    """The interface of every objective's options.

    They may also have ``faults()``, messages about invalid options, and ``conflicts(config)``, messages about options that cannot be
    combined with the rest of the configuration.
    """

    name: str

    def identity(self, run: Run) -> dict[str, Any]:
        """The objective's part of the identity of a run that trains: options that change the loss, as JSON values."""

    def build(self, data: TrainingData) -> Sequence[Objective]:
        """Build the terms of a training's loss; the first one is the main objective.

        Args:
            data: The student, its training samples and how they become tensors.
        """


@dataclass
class CompletionConfig:
    """Cross-entropy of the completions' tokens."""

    name: str = neutral("completion", Why.NAMED)

    def identity(self, run: Run) -> dict[str, Any]:
        """An empty dict, so that runs keep the names that they had when this was the only objective."""
        return {}

    def build(self, data: TrainingData) -> Sequence[Objective]:
        """Build the cross-entropy, the only term."""
        from fcot.objectives.completion import completion_loss

        return [completion_loss(data.rows, data.layout, [sample.weight for sample in data.samples])]


SCHEMAS = {("objective", "completion"): CompletionConfig}
