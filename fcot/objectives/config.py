"""The options of ``objective``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fcot.base.fields import Why, neutral

if TYPE_CHECKING:  # what --help and --cfg job need not wait for
    from fcot.runs.run import Run
    from fcot.student.data import TrainingData
    from fcot.student.objective import Objective


class ObjectiveConfig(Protocol):
    """What the options of any objective have to offer.

    Beside this it may have ``faults()``, messages about options that cannot be together, and ``conflicts(config)``, messages about
    what they cannot be combined with.
    """

    name: str

    def identity(self, run: Run) -> dict[str, Any]:
        """Its part of the identity of a run that trains: options that change the loss, as JSON values."""

    def build(self, data: TrainingData) -> Sequence[Objective]:
        """The terms of a training's loss; the first one is the training's main one."""


@dataclass
class CompletionConfig:
    """Cross-entropy of the completions' tokens."""

    name: str = neutral("completion", Why.NAMED)

    def identity(self, run: Run) -> dict[str, Any]:
        """Nothing: runs are named as before there were others."""
        return {}

    def build(self, data: TrainingData) -> Sequence[Objective]:
        """One term."""
        from fcot.objectives.completion import completion_loss

        return [completion_loss(data.rows, data.layout, [sample.weight for sample in data.samples])]


SCHEMAS = {("objective", "completion"): CompletionConfig}
