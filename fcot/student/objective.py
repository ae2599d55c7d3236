"""The interface of an objective, one term of the loss; implementations are in :mod:`fcot.objectives`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from fcot.student.batching import Ids
from fcot.student.forward import Forward
from fcot.student.tensors import Batch


@dataclass(frozen=True)
class Loss:
    """An objective's summed loss of a part.

    Attributes:
        total: The loss, a scalar.
        watched: Further sums for the logs, by name: scalars without gradient. They are divided by the denominator, as the loss is.
    """

    total: torch.Tensor
    watched: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """One term of the loss.

    A step's loss is the sum over its objectives of ``weight`` times the objective's summed loss divided by its denominator, both over
    all samples of the step. Micro-batches, ranks and packing divide the samples; an objective does not depend on how.
    """

    @property
    def name(self) -> str:
        """Name of the objective in logs."""

    @property
    def weight(self) -> float:
        """Factor of this objective's mean loss in the sum."""

    def denominator(self, ids: Ids) -> float:
        """The number that divides the summed loss of an optimizer step; 0: this objective has no sample in the step.

        Args:
            ids: Positions of all samples of the step.
        """

    def collate(self, ids: Ids, step: int) -> Batch:
        """The tensors of one rank's part of a micro-batch.

        Args:
            ids: Positions of the rank's samples. If there are none, the tensors must still go through the model, with a loss of 0:
                every rank takes part in every micro-batch.
            step: The optimizer step, a seed for random choices.

        Returns:
            Tensors by name, nested as needed. ``n_padded``, if present, counts tokens, padding included.
        """

    def facts(self) -> dict[str, Any]:
        """Entries of the training's summary about this objective: JSON values by name."""

    def loss(self, forward: Forward, part: Batch) -> Loss:
        """The summed loss of one rank's part of a micro-batch.

        Args:
            forward: The student's forward pass.
            part: The result of :meth:`collate`, on the student's device, with ``step`` added.
        """
