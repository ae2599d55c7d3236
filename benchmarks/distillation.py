"""Compares distillation from a local teacher with TRL's GKDTrainer: the loss of each step, the weights afterwards, and steps per second.

    pip install trl
    python benchmarks/distillation.py [--steps 50] [--turns 3]

Both train the same tiny GPT-2 by the token distributions of the same tiny Llama, on the same token ids, all of them in every step. TRL's
``beta`` 0 is the forward KL divergence, 1 the reverse one. The last table times own samples, one per prompt and step, whose noise differs:
their losses cannot be compared.
"""

from __future__ import annotations

import argparse
import copy
import csv
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from students import make_rows, make_student

from fcot.decoding.engine import Sampling
from fcot.objectives.completion import CompletionLoss
from fcot.objectives.distribution import DistributionLoss
from fcot.student import training
from fcot.student.config import TrainerConfig
from fcot.student.decoding import decode
from fcot.student.own import OwnSamples, RenewedRows, Schedule, Writing
from fcot.student.training import Hooks, plan, train

LR, SAMPLES, NEW_TOKENS = 1e-3, 16, 32
MOST_TOKENS = 16_384  # that are decoded at once: all samples of a step
DIVERGENCES = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.3}  # with TRL's beta, which is fcot's where 0 < beta < 1


@dataclass
class Trained:
    """Losses of the steps, the parameters afterwards in one vector, and the pace."""

    losses: list[float]
    weights: torch.Tensor
    steps_per_second: float


def fcot(student: Any, teacher: Any, rows: Any, kind: str, beta: float, steps: int, own: bool = False) -> Trained:
    """Train with fcot.

    Args:
        student: The student, changed in place.
        teacher: The teacher.
        rows: Tokenized samples, all of them in every step.
        kind: The divergence.
        beta: The teacher's weight in the mixture of ``jsd``.
        steps: Optimizer steps.
        own: Whether the student writes the completions of every step itself.
    """
    recipe = TrainerConfig(
        name="x", lr=LR, batch_size=len(rows), max_steps=steps, warmup_steps=0, schedule="constant", clip_norm=None, weight_decay=0.0,
        precision="32-true",
    )  # fmt: skip
    training._LOG_EVERY = 1  # type: ignore[attr-defined]
    layout, sampler, _ = plan(student, rows, recipe, 0)
    renewed = RenewedRows(rows)
    writing = Writing(
        NEW_TOKENS, lambda prompts: decode(student, prompts, max_tokens=MOST_TOKENS, sampling=Sampling(1.0)), lambda *_: True, True,
        student.tokenizer.eos_token_id, 1.0,
    )  # fmt: skip
    samples = OwnSamples(renewed, sampler, Schedule(1.0, 1.0, 1, steps, 0), writing) if own else None
    shown = renewed if own else rows
    loss = DistributionLoss(
        CompletionLoss(shown, layout), teacher, len(student.tokenizer), 1.0, kind, beta, first_own=len(rows) if own else None
    )
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        train(student, shown, [loss], recipe, Hooks(lambda _: {}), seed=0, own=samples, log_folder=Path(folder))
        seconds = time.perf_counter() - began
        logged = list(csv.DictReader((Path(folder) / "metrics.csv").open()))
    return Trained([float(row["train_loss"]) for row in logged], _weights(student), steps / seconds)


def trl(student: Any, teacher: Any, rows: Any, beta: float, steps: int, own: bool = False) -> Trained:
    """Train with TRL; the arguments are those of :func:`fcot`, with TRL's ``beta``."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    pad = student.tokenizer.pad_token_id

    def collate(examples: Any) -> dict[str, torch.Tensor]:
        """Prompts padded on the left, whole samples on the right."""
        whole = [example["prompt"] + example["completion"] for example in examples]
        longest, longest_prompt = max(map(len, whole)), max(len(example["prompt"]) for example in examples)
        labels = [[-100] * len(example["prompt"]) + example["completion"] for example in examples]
        return {
            "input_ids": torch.tensor([ids + [pad] * (longest - len(ids)) for ids in whole]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in whole]),
            "labels": torch.tensor([ids + [-100] * (longest - len(ids)) for ids in labels]),
            "prompts": torch.tensor([[pad] * (longest_prompt - len(e["prompt"])) + e["prompt"] for e in examples]),
            "prompt_attention_mask": torch.tensor(
                [[0] * (longest_prompt - len(e["prompt"])) + [1] * len(e["prompt"]) for e in examples]
            ),
        }  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        arguments = GKDConfig(
            output_dir=folder, per_device_train_batch_size=len(rows), max_steps=steps, learning_rate=LR, lr_scheduler_type="constant",
            beta=beta, lmbda=1.0 if own else 0.0, temperature=1.0, max_new_tokens=NEW_TOKENS, max_grad_norm=0.0, weight_decay=0.0,
            logging_steps=1, report_to=[], bf16=False, gradient_checkpointing=False, use_cpu=True, disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        trainer = GKDTrainer(
            model=student.model, teacher_model=teacher.model, args=arguments, data_collator=collate, processing_class=student.tokenizer,
            train_dataset=Dataset.from_list([{"prompt": list(row.prompt), "completion": list(row.completion)} for row in rows]),
        )  # fmt: skip
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Trained(losses, _weights(student), steps / seconds)


def _weights(student: Any) -> torch.Tensor:
    """All parameters but the attention's biases: a key's bias has a gradient of 0, whose rounding AdamW scales to whole steps."""
    named = student.model.named_parameters()
    return torch.cat([parameter.detach().flatten() for name, parameter in named if not name.endswith("c_attn.bias")])


def _paces(sides: tuple[list[Trained], list[Trained]]) -> str:
    """Cells of a table: the best pace of each side, and their ratio."""
    ours, theirs = (max(trained.steps_per_second for trained in side) for side in sides)
    return f"{ours:.1f} | {theirs:.1f} | {ours / theirs:.2f}"


def main() -> None:
    """Print a table of the largest differences and the paces, and one of the paces with own samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    student, teacher, steps = make_student("gpt2", noise=0.1), make_student("llama"), options.steps
    rows = make_rows(student, SAMPLES)
    print("| divergence | first and last loss | largest difference: loss | weight | steps/s: fcot | TRL | fcot / TRL |")
    print("|---|---|---|---|---|---|---|")
    for kind, beta in DIVERGENCES.items():
        ours, theirs = [], []
        for _ in range(options.turns):
            ours.append(fcot(copy.deepcopy(student), teacher, rows, kind, beta, steps))
            theirs.append(trl(copy.deepcopy(student), teacher, rows, beta, steps))
        loss = max(abs(a - b) for a, b in zip(ours[0].losses, theirs[0].losses, strict=True))
        weight = float((ours[0].weights - theirs[0].weights).abs().max())
        ends = f"{ours[0].losses[0]:.4f}, {ours[0].losses[-1]:.4f}"
        print(f"| {kind} | {ends} | {loss:.1e} | {weight:.1e} | {_paces((ours, theirs))} |", flush=True)
    print(f"\n| own samples, at most {NEW_TOKENS} tokens | steps/s: fcot | TRL | fcot / TRL |\n|---|---|---|---|")
    ours = [fcot(copy.deepcopy(student), teacher, rows, "forward_kl", 0.0, steps, own=True) for _ in range(options.turns)]
    theirs = [trl(copy.deepcopy(student), teacher, rows, 0.0, steps, own=True) for _ in range(options.turns)]
    print(f"| {SAMPLES} per step | {_paces((ours, theirs))} |")


if __name__ == "__main__":
    main()
