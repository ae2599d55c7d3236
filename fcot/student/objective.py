"""What a training needs from an objective (:mod:`fcot.objectives`)."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from fcot.student.batching import Ids
from fcot.student.forward import Forward
from fcot.student.tensors import Batch


class Objective(Protocol):
    """One term of the loss.

    A step's loss is the sum over its objectives of ``weight`` times the objective's summed loss divided by its denominator, both over
    all samples of the step. Micro-batches, ranks and packing divide the samples; an objective does not see them.

    """

    @property
    def name(self) -> str:
        """In logs."""

    @property
    def weight(self) -> float:
        """The objective's weight beside the others."""

    def denominator(self, ids: Ids) -> float:
        """What the summed loss of an optimizer step is divided by; 0: the step has nothing for this objective.

        Args:
            ids: The step's samples.
        """

    def collate(self, ids: Ids, step: int) -> Batch:
        """The tensors of a micro-batch, as one rank sees them.

        Args:
            ids: The rank's samples. There may be none: then the part has to stand for nothing, and still go through the model, because
                every rank takes part in every micro-batch.
            step: The optimizer step, for what is drawn at random.

        Returns:
            Tensors by name, nested as needed. ``n_padded``, if present, counts tokens, padding included.
        """

    def facts(self) -> dict[str, Any]:
        """What the training's summary says of the objective, as JSON values by name."""

    def loss(self, forward: Forward, part: Batch) -> torch.Tensor:
        """The summed loss of a part, a scalar.

        Args:
            forward: The student's forward pass.
            part: By :meth:`collate`, on the student's device; with ``step``.
        """
