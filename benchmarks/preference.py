"""Compares the DPO loss of fcot with that of TRL's DPOTrainer: the loss and reward margin of each step, and the weights afterwards.

    pip install trl
    python benchmarks/preference.py

Both train the same tiny GPT-2 on the same pairs of token ids, all of them in every step. TRL averages the negative log-likelihood over the
tokens of a batch, fcot over the tokens of each completion and then over pairs. The right completions have equal lengths, where both agree.
"""

from __future__ import annotations

import copy
import csv
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from students import make_rows, make_student

from fcot.methods.table import METHODS
from fcot.objectives.completion import CompletionLoss
from fcot.objectives.pairs import Pairs
from fcot.objectives.preference import preference_loss
from fcot.student import training
from fcot.student.config import TrainerConfig
from fcot.student.data import TrainingData
from fcot.student.training import Hooks, plan, train

BETA, LR = 0.1, 1e-3


@dataclass
class Trained:
    """Losses and reward margins of the steps, and the parameters afterwards in one vector."""

    losses: list[float]
    margins: list[float]
    weights: torch.Tensor


def compare(student: Any, rows: Any, nll: float, steps: int) -> tuple[Trained, Trained]:
    """Train a copy of a decoder with each; a row's completion is right, and that of the next row is wrong.

    Args:
        student: The student.
        rows: Tokenized samples.
        nll: Weight of the negative log-likelihood.
        steps: Optimizer steps.
    """
    shortest = int(rows.lengths[:, 1].min())
    n = len(rows)
    ends = np.concatenate([np.full(n, shortest), rows.lengths[:, 1]])  # first the right completions, then the wrong ones
    order = [*range(n), *((index + 1) % n for index in range(n))]
    return _fcot(copy.deepcopy(student), rows, order, ends, nll, steps), _trl(copy.deepcopy(student), rows, order, ends, nll, steps)


def _fcot(student: Any, rows: Any, order: Sequence[int], ends: Any, nll: float, steps: int) -> Trained:
    n = len(rows)
    recipe = TrainerConfig(
        name="x", lr=LR, batch_size=n, max_steps=steps, warmup_steps=0, schedule="constant", clip_norm=None, weight_decay=0.0,
        precision="32-true",
    )  # fmt: skip
    training._LOG_EVERY = 1  # type: ignore[attr-defined]
    data = TrainingData(student, METHODS["fine_tune_cot"].formats["decoder"], [], rows, plan(student, rows, recipe, 0)[0])
    pairs = Pairs(
        rows, [rows[index] for index in order], ends, np.array([*range(n), *range(n)]), [np.array([[i, n + i]]) for i in range(n)]
    )  # type: ignore[arg-type]
    nothing = CompletionLoss(rows, data.layout, weight=0.0)  # training counts its tokens
    objective = preference_loss(data, pairs, "dpo", beta=BETA, gamma=0.0, nll=nll, weight=1.0)
    with tempfile.TemporaryDirectory() as folder:
        train(student, rows, [nothing, objective], recipe, Hooks(lambda _: {}), seed=0, log_folder=Path(folder))
        logged = list(csv.DictReader((Path(folder) / "metrics.csv").open()))
    return Trained([float(row["train_loss"]) for row in logged], [float(row["reward_margin"]) for row in logged], _weights(student))


def _trl(student: Any, rows: Any, order: Sequence[int], ends: Any, nll: float, steps: int) -> Trained:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Tokenized(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset  # it holds token ids already

    n = len(rows)
    pairs = Dataset.from_list([
        {
            "prompt_ids": list(rows[i].prompt), "chosen_ids": list(rows[order[i]].completion[: ends[i]]),
            "rejected_ids": list(rows[order[n + i]].completion[: ends[n + i]]),
        }
        for i in range(n)
    ])  # fmt: skip
    losses = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, nll]} if nll else {"loss_type": ["sigmoid"]}
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(
            output_dir=folder, per_device_train_batch_size=n, max_steps=steps, learning_rate=LR, lr_scheduler_type="constant", beta=BETA,
            max_grad_norm=0.0, weight_decay=0.0, logging_steps=1, report_to=[], bf16=False, gradient_checkpointing=False, use_cpu=True,
            disable_tqdm=True, save_strategy="no", disable_dropout=True, **losses,
        )  # fmt: skip
        trainer = Tokenized(
            model=student.model,
            ref_model=copy.deepcopy(student.model),
            args=arguments,
            train_dataset=pairs,
            processing_class=student.tokenizer,
        )
        trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Trained([entry["loss"] for entry in logged], [entry["rewards/margins"] for entry in logged], _weights(student))


def _weights(student: Any) -> torch.Tensor:
    """All parameters but the attention's biases: a key's bias has a gradient of 0, whose rounding AdamW scales to whole steps."""
    named = student.model.named_parameters()
    return torch.cat([parameter.detach().flatten() for name, parameter in named if not name.endswith("c_attn.bias")])


def main() -> None:
    """Print a table of the largest differences."""
    student = make_student("gpt2", noise=0.1)
    print("| loss | steps | first and last loss | largest difference: loss | reward margin | weight |\n|---|---|---|---|---|---|")
    for name, nll in (("DPO", 0.0), ("DPO + NLL", 1.0)):
        ours, theirs = compare(student, make_rows(student, 32), nll, steps=50)
        loss, margin = (
            max(abs(a - b) for a, b in zip(*values, strict=True))
            for values in ((ours.losses, theirs.losses), (ours.margins, theirs.margins))
        )
        weight = float((ours.weights - theirs.weights).abs().max())
        print(f"| {name} | 50 | {ours.losses[0]:.4f}, {ours.losses[-1]:.4f} | {loss:.1e} | {margin:.1e} | {weight:.1e} |")


if __name__ == "__main__":
    main()
