"""A training that continues earlier trainings of the same student: its place in their schedule, and the moments of their optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fcot.base.files import replacing
from fcot.student.checkpoints import optimizer_state, restore_optimizer
from fcot.student.config import TrainerConfig
from fcot.student.module import LearningRate

Moments = Mapping[str, Any]  # the state that an optimizer has for each parameter, by the parameter's name


@dataclass(frozen=True)
class Continued:
    """How a training continues earlier ones.

    Attributes:
        steps_before: Optimizer steps of the earlier trainings on the same learning-rate schedule.
        trainings_left: Trainings on the rest of the schedule, this one included. The later ones are assumed to be as long as this one.
        moments: The moments at the end of the last training; None: they begin at zero.
    """

    steps_before: int = 0
    trainings_left: int = 1
    moments: Moments | None = None

    def learning_rate(self, recipe: TrainerConfig, n_steps: int) -> LearningRate:
        """The learning rates of a training of ``n_steps`` optimizer steps."""
        total = self.steps_before + n_steps * self.trainings_left
        return LearningRate(recipe.lr, recipe.schedule, recipe.warmup_steps, total, self.steps_before)


def save_moments(path: Path, moments: Moments) -> None:
    """Write moments to a file: whole or not at all."""
    with replacing(path) as temporary:
        torch.save(dict(moments), temporary)


def load_moments(path: Path) -> Moments:
    """Read the file of :func:`save_moments`."""
    moments: Moments = torch.load(path, map_location="cpu", weights_only=True)
    return moments


def set_moments(model: torch.nn.Module, optimizer: torch.optim.Optimizer, moments: Moments) -> None:
    """Give an optimizer moments. Its learning rate and its other settings stay."""
    restore_optimizer(model, optimizer, optimizer_state(model, optimizer) | {"state": moments})
