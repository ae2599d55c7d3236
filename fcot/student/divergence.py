"""Detects a training that diverges. A loss or a parameter that is inf or nan ends the training; a loss far above the first one warns.

Losses stay on their device; the host reads them only at steps where it waits for the device anyway.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.distributed.tensor import DTensor

from fcot.base.console import say
from fcot.base.errors import NotFinite
from fcot.base.ranks import least_together
from fcot.decoding.models import all_finite

_NEVER = 2**62  # stands for "at no step"
_FAR = 2.0  # warn of a loss above this many times the first loss, plus 1: without the 1, a small first loss would double soon


class DivergenceCheck:
    """Checks one training, on every rank.

    Args:
        model: The model in training; only its trainable parameters are checked.
        ranks: Number of ranks.
        rate: Gives the learning rate of a step, counted from 1.
        remedies: What to change, for messages: one text for the first step, which no learning rate has affected yet, one for later steps.
    """

    def __init__(self, model: torch.nn.Module, ranks: int, rate: Callable[[int], float], remedies: tuple[str, str]) -> None:
        self._model = model
        self._ranks = ranks
        self._rate = rate
        self._remedies = remedies
        self._first: torch.Tensor | None = None  # first step whose loss is not finite, on the loss's device
        self._warned = False

    def note(self, loss: torch.Tensor, step: int) -> None:
        """Record a step's loss, a scalar, without reading it on the host.

        Gradients are not checked: a float16 gradient scaler lets them overflow on purpose and skips those steps. A harmful gradient
        shows in the parameters.
        """
        first = torch.where(loss.isfinite(), _NEVER, step)
        self._first = first if self._first is None else torch.minimum(self._first, first)

    @property
    def all_finite(self) -> bool:
        """Whether all losses and all present parameters of this rank are finite."""
        return self._first_broken_step() == _NEVER and self._weights_finite()

    def check(self, step: int, weights: bool) -> None:
        """End the training on all ranks if any rank has a value that is not finite; every rank calls it at the same step.

        Args:
            step: The current step, counted from 1.
            weights: Whether to check the parameters too, besides the losses.

        Raises:
            NotFinite: A loss or a parameter is inf or nan.
        """
        broken = weights and not self._weights_finite()
        loss_step, weight_step = least_together([self._first_broken_step(), step if broken else _NEVER], self._ranks)
        broken_step = min(loss_step, weight_step)
        if broken_step == _NEVER:
            return
        remedy = self._remedies[0 if loss_step == 1 else 1]
        subject = "the loss is" if loss_step <= weight_step else "weights are"
        raise NotFinite(
            f"the training stopped at step {broken_step:,}, with learning rate {self._rate(broken_step):.3g}: "
            f"{subject} not finite (inf or nan); {remedy}"
        )

    def warn_if_far_above(self, loss: float, first: float | None, step: int) -> None:
        """Warn, once per training, of a loss far above that of the first step."""
        if first is None or self._warned or loss <= _FAR * first + 1:
            return
        self._warned = True
        say(
            f"warning: at step {step:,}, with learning rate {self._rate(step):.3g}, the loss is {loss:.3g}, far above the {first:.3g} "
            "of the first step; lower trainer.lr or raise trainer.warmup_steps"
        )

    def _first_broken_step(self) -> int:
        return _NEVER if self._first is None else int(self._first)

    def _weights_finite(self) -> bool:
        trainable = [parameter.detach() for parameter in self._model.parameters() if parameter.requires_grad]
        local = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in trainable]
        return all_finite([weight for weight in local if weight.numel()])


def remedies(clip_norm: float | None, precision: str) -> tuple[str, str]:
    """Advice for a training that is not finite, with overrides: for its first step, and for later ones.

    Args:
        clip_norm: The option ``trainer.clip_norm``; None: gradients are not clipped.
        precision: Lightning's name of the precision.
    """
    clip = "set trainer.clip_norm=1.0" if clip_norm is None else f"lower trainer.clip_norm={clip_norm:g}"
    if precision == "32-true":
        return "check the weights it started from (student.path)", f"lower trainer.lr or {clip}"
    full_precision = "train with trainer.precision=32-true"
    return full_precision, f"lower trainer.lr, {clip}, or {full_precision}"
