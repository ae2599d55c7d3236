"""The student as a LightningModule: loss, optimizer and schedule."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from fcot.student.loading import Student
from fcot.student.losses import completion_loss


class StudentModule(pl.LightningModule):
    """Fine-tunes all weights on completion tokens.

    Args:
        student: Model, tokenizer and architecture.
        lr: Peak learning rate of AdamW.
        weight_decay: AdamW's.
        schedule: ``constant`` or ``linear`` (decay to zero at the last step), both after the warm-up.
        warmup_steps: Optimizer steps of linear warm-up.
        n_steps: Optimizer steps in all.
    """

    def __init__(self, student: Student, *, lr: float, weight_decay: float, schedule: str, warmup_steps: int, n_steps: int) -> None:
        super().__init__()
        self.model = student.model
        self._architecture = student.architecture
        self._lr = lr
        self._weight_decay = weight_decay
        self._schedule = schedule
        self._warmup_steps = warmup_steps
        self._n_steps = n_steps

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Mean loss over the completion tokens of the step."""
        total, n_tokens = completion_loss(self.model, batch, self._architecture)
        loss = total / max(1, n_tokens)
        self.log("train_loss", loss, on_step=True)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW with torch's defaults besides learning rate and weight decay, and a schedule per optimizer step."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=self._lr, weight_decay=self._weight_decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _factor(self, step: int) -> float:
        warm = min(1.0, (step + 1) / self._warmup_steps) if self._warmup_steps else 1.0
        if self._schedule == "constant":
            return warm
        return warm * max(0.0, (self._n_steps - step) / max(1, self._n_steps))
