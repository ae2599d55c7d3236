"""A training that went wrong: a loss or a weight that is no number ends it, a loss far above its start is a warning.

Losses are noted on their device; the host reads them only where it waits for the device anyway.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.distributed.tensor import DTensor

from fcot.base.console import say
from fcot.base.errors import NotFinite
from fcot.base.ranks import least_together
from fcot.decoding.models import all_finite

_NEVER = 2**62  # a step that does not come
_FAR = 2.0  # times the first loss, and one more: a small first loss is soon doubled


class Watch:
    """Watches one training, on every rank.

    Args:
        model: In training; only weights that are trained are looked at.
        size: Number of ranks.
        rate: The learning rate of a step, counted from 1.
        remedies: What to change, by overrides: at the first step, which no learning rate has touched yet, and later.
    """

    def __init__(self, model: torch.nn.Module, size: int, rate: Callable[[int], float], remedies: tuple[str, str]) -> None:
        self._model = model
        self._size = size
        self._rate = rate
        self._remedies = remedies
        self._first: torch.Tensor | None = None  # step whose loss is not finite, on the loss's device
        self._warned = False

    def note(self, loss: torch.Tensor, step: int) -> None:
        """Note a step's loss, a scalar, without reading it.

        The weights alone say whether gradients were finite: a float16 gradient scaler skips steps whose gradients overflow on purpose.
        """
        first = torch.where(loss.isfinite(), _NEVER, step)
        self._first = first if self._first is None else torch.minimum(self._first, first)

    @property
    def sound(self) -> bool:
        """Whether this rank knows of nothing that is not finite, neither losses nor present weights."""
        return self._earliest() == _NEVER and self._weights_finite()

    def check(self, step: int, weights: bool) -> None:
        """End the training on all ranks where any has something that is not finite; every rank calls it at the same step.

        Args:
            step: Of the present weights.
            weights: Whether to look at them too, not at the losses alone.

        Raises:
            NotFinite: There is something.
        """
        broken = weights and not self._weights_finite()
        loss, weight = least_together([self._earliest(), step if broken else _NEVER], self._size)
        if min(loss, weight) == _NEVER:
            return
        at = min(loss, weight)
        remedy = self._remedies[0 if loss == 1 else 1]
        what = "the loss is" if loss <= weight else "weights are"
        raise NotFinite(
            f"the training stopped at step {at:,}, with learning rate {self._rate(at):.3g}: {what} not finite (inf or nan); {remedy}"
        )

    def compare(self, loss: float, first: float | None, step: int) -> None:
        """Warn, once, of a loss far above that of the first step."""
        if first is None or self._warned or loss <= _FAR * first + 1:
            return
        self._warned = True
        say(
            f"warning: at step {step:,}, with learning rate {self._rate(step):.3g}, the loss is {loss:.3g}, far above the {first:.3g} "
            "of the first step; lower trainer.lr or raise trainer.warmup_steps"
        )

    def _earliest(self) -> int:
        return _NEVER if self._first is None else int(self._first)

    def _weights_finite(self) -> bool:
        trained = [parameter.detach() for parameter in self._model.parameters() if parameter.requires_grad]
        local = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in trained]
        return all_finite([weight for weight in local if weight.numel()])


def remedies(clip_norm: float | None, precision: str) -> tuple[str, str]:
    """What to change where a training is not finite: at its first step, and later."""
    clip = "set trainer.clip_norm=1.0" if clip_norm is None else f"lower trainer.clip_norm={clip_norm:g}"
    if precision == "32-true":
        return "check the weights it started from (student.path)", f"lower trainer.lr or {clip}"
    more = "train with trainer.precision=32-true"
    return more, f"lower trainer.lr, {clip}, or {more}"
