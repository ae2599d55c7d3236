"""The student as a LightningModule: loss, optimizer and schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from fcot.student.forward import Forward
from fcot.student.objective import Objective
from fcot.student.tensors import Batch


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of each optimizer step.

    Attributes:
        peak: The largest rate.
        schedule: ``constant``, or ``linear`` or ``cosine``, which decay to zero from the first step to the last. The warm-up factor
            multiplies the schedule.
        warmup_steps: Optimizer steps of linear warm-up.
        n_steps: Optimizer steps of the whole schedule.
        steps_before: Steps of the schedule that earlier trainings did.
    """

    peak: float
    schedule: str
    warmup_steps: int
    n_steps: int
    steps_before: int = 0

    def at(self, step: int) -> float:
        """The rate of a step of this training, counted from 1."""
        return self.peak * self.factor(step - 1)

    def factor(self, step: int) -> float:
        """Fraction of the peak at a step of this training, counted from 0."""
        step += self.steps_before
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        remaining = max(0.0, 1 - step / max(1, self.n_steps))
        return warmup * {"constant": 1.0, "linear": remaining, "cosine": (1 - math.cos(math.pi * remaining)) / 2}[self.schedule]


class StudentModule(pl.LightningModule):
    """Fine-tunes the parameters that require gradients.

    The loss of a step is the weighted sum over objectives of the objective's summed loss divided by its denominator. It does not depend on
    micro-batches or ranks: Lightning divides by the number of micro-batches and averages over ranks, and ``training_step`` undoes both.

    Args:
        model: The student's model.
        objectives: The terms of the loss.
        lr: Learning rates of AdamW.
        weight_decay: Weight decay of AdamW.
        seed: Seed of dropout.
        first_step: Optimizer steps that earlier processes did.
        micro_batches: Micro-batches per step.
        fused: Whether AdamW runs as one kernel.
        compile: Whether the forward pass is compiled.
    """

    def __init__(
        self, model: PreTrainedModel, objectives: Sequence[Objective], lr: LearningRate, *, weight_decay: float, seed: int,
        first_step: int = 0, micro_batches: int = 1, fused: bool = False, compile: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = model
        self._seed = seed
        self.learning_rate = lr
        self._weight_decay = weight_decay
        self._first_step = first_step
        self._micro_batches = micro_batches
        self._fused = fused
        self._objectives = objectives
        self.forward_pass = Forward(model, compile)

    def configure_model(self) -> None:
        """With FSDP, shard the parameters over the ranks: first each layer, then the remaining parameters."""
        mesh = getattr(self, "_device_mesh", None)
        if mesh is None:
            return
        kinds = set(self.model._no_split_modules or ())
        for layer in self.model.modules():
            if type(layer).__name__ in kinds:
                fully_shard(layer, mesh=mesh["data_parallel"])
        fully_shard(self.model, mesh=mesh["data_parallel"])

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Compute this micro-batch's share of the step's loss.

        Returns:
            ``loss``, and ``logged``: the micro-batch's share of what the step logs beside it, by name: the mean losses of the objectives
            after the first, and what objectives watch.
        """
        words = np.random.SeedSequence((self._seed, batch["step"], batch["micro_batch"], self.global_rank)).generate_state(2)
        torch.manual_seed((int(words[0]) << 32) | int(words[1]))
        total, logged = torch.zeros((), device=self.device), dict[str, torch.Tensor]()
        for objective in self._objectives:
            if objective.name in batch["parts"]:
                loss, denominator = objective.loss(self.forward_pass, batch["parts"][objective.name]), batch["denominators"][objective.name]
                total = total + objective.weight * loss.total / denominator
                logged |= {name: value / denominator * self.trainer.world_size for name, value in loss.watched.items()}
                if objective is not self._objectives[0]:
                    logged[f"{objective.name}_loss"] = loss.total.detach() / denominator * self.trainer.world_size
        return {"loss": total * (self._micro_batches * self.trainer.world_size), "logged": logged}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip gradients by norm.

        Lightning refuses to clip for a fused optimizer under bf16-mixed, because of a gradient scaler. bf16-mixed has no scaler, so torch
        clips there.
        """
        if gradient_clip_val is not None and self.trainer.precision == "bf16-mixed":
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        """AdamW and a learning rate per optimizer step; betas and epsilon are torch's defaults."""
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=self.learning_rate.peak, weight_decay=self._weight_decay, fused=self._fused)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.learning_rate.factor(self._first_step + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
