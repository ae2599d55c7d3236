"""Train small students for tests that compare the loss of every step and the final weights. Spawned ranks import this module."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from students import make_rows, make_student, weights_of

from fcot.base.files import replacing
from fcot.base.ranks import Team, World
from fcot.decoding.engine import Sampling
from fcot.methods.table import METHODS
from fcot.objectives import completion, distribution
from fcot.objectives.completion import CompletionLoss, token_loss
from fcot.objectives.distribution import DistributionLoss
from fcot.objectives.pairs import Pairs
from fcot.objectives.preference import PreferenceLoss, preference_loss
from fcot.objectives.reflection import Reflection, TripletLoss
from fcot.stages import training as stage
from fcot.student import checkpoints, training
from fcot.student.checkpoints import gathered
from fcot.student.config import TrainerConfig
from fcot.student.data import TrainingData
from fcot.student.decoding import Decoded, DecodingPrompt, decode
from fcot.student.forward import Forward
from fcot.student.loading import Lora, add_lora
from fcot.student.own import OwnSamples, RenewedRows, Schedule, Writing
from fcot.student.tokenization import Tokenized
from fcot.student.training import Hooks, TrainingReport, train

STEPS = 50
ANSWERS = 7
ALONE = World()


@dataclass
class Outcome:
    """Result of a training."""

    losses: list[float]
    rates: list[float]
    weights: torch.Tensor
    report: TrainingReport
    answers: list[Decoded]
    own: OwnSamples | None = None


def student_of(family: str, dropout: float = 0.0, lora: bool = False) -> Any:
    """A student with small weights, which is easy to train."""
    student = make_student(family, dropout=dropout, noise=0.02)
    torch.manual_seed(5)
    return add_lora(student, Lora(4, 16.0, dropout)) if lora else student


def recipe_of(**options: Any) -> TrainerConfig:
    """A short recipe with warm-up, decay and clipping."""
    common = {"name": "test", "lr": 2e-3, "batch_size": 8, "max_steps": STEPS, "warmup_steps": 5, "clip_norm": 1.0, "precision": "32-true"}
    return TrainerConfig(**(common | options))


def trained(
    folder: Path, family: str = "gpt2", *, n: int = 30, dropout: float = 0.0, lora: bool = False, seed: int = 0, world: World = ALONE,
    evaluate: Any = lambda _: {}, stop: Any = lambda _: False, checkpoints: Any = None, advance: Any = lambda _: None, ask: bool = False,
    reflects: bool = False, prefers: str | None = None, own: dict[str, Any] | None = None,
    poison: tuple[int, int] | None = None, overflow: int | None = None,
    log_every: int = 1, **options: Any,
) -> Outcome:  # fmt: skip
    """Train a student of a family from its initial weights; ``options`` are options of the recipe.

    ``prefers``: add a preference loss, ``dpo`` or ``simpo``.
    ``own``: the student writes samples itself (:func:`own_samples`).
    ``poison``: step and rank of a loss that is nan; ``overflow``: rank whose logits overflow when it answers.
    """
    loss = token_loss if poison is None or world.rank != poison[1] else partial(_nan_at, poison[0])
    with patch.object(training, "_LOG_EVERY", log_every), patch.object(completion, "token_loss", loss):
        student = student_of(family, dropout, lora)
        rows = make_rows(student, n)
        recipe = recipe_of(**options)
        layout = training.plan(student, rows, recipe, seed)[0]
        if own is not None:
            return _trained_on_own(folder, student, rows, recipe, Hooks(evaluate, stop, advance, advance), checkpoints, seed, world, own)
        objectives = [CompletionLoss(rows, layout), *([TripletLoss(reflection_of(rows), rows, layout)] if reflects else [])]
        if prefers:
            objectives.append(preference_of(student, rows, layout, prefers, world))
        report = train(
            student, rows, objectives, recipe, Hooks(evaluate, stop, advance, advance), seed=seed, checkpoints=checkpoints,
            log_folder=folder / "logs", world=world,
        )  # fmt: skip
        if overflow == world.rank:
            student.model.get_output_embeddings().weight.data.fill_(3e38)
        prompts = [DecodingPrompt(row.prompt, 8) for row in rows[:ANSWERS]] if ask else []
        answers = decode(student, prompts, max_tokens=400, world=world) if ask else []
        path = folder / "logs" / "metrics.csv"
        logged = list(csv.DictReader(path.open())) if path.exists() else []
        return Outcome(
            [float(row["train_loss"]) for row in logged], [float(row["lr"]) for row in logged], weights_of(student), report, answers
        )


def _trained_on_own(
    folder: Path, student: Any, stored: Tokenized, recipe: TrainerConfig, hooks: Hooks, checkpoints: Any, seed: int, world: World,
    own: dict[str, Any],
) -> Outcome:  # fmt: skip
    """Train on samples that the student writes; ``own`` has options of :func:`own_samples`, and of the loss as ``loss``."""
    layout, sampler, n_steps = training.plan(student, stored, recipe, seed)
    rows = RenewedRows(stored)
    samples = own_samples(student, rows, sampler, n_steps, seed, world, **{name: value for name, value in own.items() if name != "loss"})
    completion = CompletionLoss(rows, layout)
    loss = DistributionLoss(
        completion, make_student(own.get("loss", {}).get("teacher", "llama")), len(student.tokenizer), 0.5,
        **{name: value for name, value in own.get("loss", {}).items() if name != "teacher"}, first_own=len(stored),
    )  # fmt: skip
    report = train(
        student, rows, [loss], recipe, hooks, seed=seed, own=samples, checkpoints=checkpoints, log_folder=folder / "logs", world=world
    )
    path = folder / "logs" / "metrics.csv"
    logged = list(csv.DictReader(path.open())) if path.exists() else []
    return Outcome(
        [float(row["train_loss"]) for row in logged], [float(row["lr"]) for row in logged], weights_of(student), report, [], samples
    )


def own_samples(
    student: Any, rows: RenewedRows, sampler: Any, n_steps: int, seed: int, world: World = ALONE, *, first_share: float = 0.5,
    last_share: float = 1.0, every: int = 4, limit: int = 12, use_wrong: bool = True,
    is_right: Any = lambda position, answer: position % 3 > 0, most_unfinished: float = 1.0,
) -> OwnSamples:  # fmt: skip
    """Samples that the student writes; by default a third of them counts as wrong."""

    def write(prompts: Any) -> list[Decoded]:
        with gathered(student.model):
            return decode(student, prompts, max_tokens=400, sampling=Sampling(1.0), world=world)

    writing = Writing(limit, write, is_right, use_wrong, student.tokenizer.eos_token_id, most_unfinished)
    return OwnSamples(rows, sampler, Schedule(first_share, last_share, every, n_steps, seed), writing)


def train_to_be_killed(path: str) -> None:
    """Train in a process that a test kills, with a checkpoint after every step. The folder has ``options.json``.

    It leaves ``steps``, the numbers of the steps in the order in which all processes did them, and at its end ``outcome.pt``.
    """
    folder = Path(path)
    options = json.loads((folder / "options.json").read_text())
    checkpoints._SHARE = float("inf")
    n_done = 0

    def advance(n: int) -> None:
        nonlocal n_done
        n_done += n
        with (folder / "steps").open("a") as file:
            file.write(f"{n_done}\n")

    found = trained(
        folder, evaluate=lambda history: {"n": len(history)}, advance=advance,
        checkpoints=checkpoints.Checkpoints(folder / "checkpoints", 0), **options,
    )  # fmt: skip
    report = vars(found.report) | {"train_seconds": 0}
    with replacing(folder / "outcome.pt") as temporary:
        torch.save({"weights": found.weights, "losses": found.losses, "report": report, "own": found.own.facts()}, temporary)


def _nan_at(step: int, logits: torch.Tensor, batch: Any) -> torch.Tensor:
    return token_loss(logits, batch) * (torch.nan if batch["step"] + 1 == step else 1.0)


def reflection_of(rows: Tokenized) -> Reflection:
    """Every second sample is contrasted with its neighbors' completions."""
    n = len(rows)
    lengths = rows.lengths[:, 1]
    none = np.zeros(0, np.int64)
    return Reflection(
        rows, np.stack([lengths - 1, lengths], 1), np.arange(n), [np.array([(i + 1) % n, (i + 3) % n]) for i in range(n)],
        [np.array([(i + 2) % n]) if i % 2 else none for i in range(n)], weight=0.5, margin=1.0, seed=7,
    )  # fmt: skip


def preference_of(student: Any, rows: Tokenized, layout: Any, kind: str, world: World = ALONE) -> PreferenceLoss:
    """Every second sample prefers its neighbor's completion to that of the one after."""
    n = len(rows)
    pairs = [np.array([[(i + 1) % n, (i + 2) % n], [i, (i + 3) % n]] if i % 2 else np.zeros((0, 2)), np.int64) for i in range(n)]
    data = TrainingData(student, METHODS["fine_tune_cot"].formats[student.architecture], [], rows, layout, world=world, seed=7)
    built = Pairs(rows, rows, rows.lengths[:, 1], np.arange(n), pairs)
    return preference_loss(data, built, kind, beta=0.5, gamma=0.3, nll=0.7, weight=0.5)


def trained_by(ranks: int, folder: Path, **options: Any) -> Outcome:
    """Train on several processes; ``options`` are those of ``trained``."""
    world = World(size=ranks)
    with Team(world, False, _follow, (folder, options)) as team:
        return team.lead("train", lambda: trained(folder, world=world, **options))


def _follow(world: World, folder: Path, options: dict[str, Any]) -> None:
    with Team(world, False, _follow, ()) as team:
        team.follow(lambda _: trained(folder / f"rank_{world.rank}", world=world, **options))


def give_accuracies(monkeypatch, accuracies, after_step=lambda step: None):
    """Let the evaluations of later runs find these accuracies, by optimizer step; ``after_step`` is called after each step."""

    def patched_fit(student, rows, objectives, recipe, hooks, **keywords):
        step = 0

        def resume(n):
            nonlocal step
            step += n
            hooks.resume(n)

        def advance(n):
            nonlocal step
            step += n
            hooks.advance(n)
            after_step(step)

        def evaluate(history):
            monkeypatch.setattr(stage.scoring, "accuracy", lambda predictions: accuracies[step])
            return hooks.evaluate(history)

        patched = replace(hooks, evaluate=evaluate, advance=advance, resume=resume)
        return train(student, rows, objectives, recipe, patched, **keywords)

    monkeypatch.setattr(stage, "fit_student", patched_fit)


def assert_equal_in_chunks(student, objective, part, monkeypatch):
    """A divergence whose logits exist for 16 targets at a time has the loss, watched sums and gradients of all logits at once."""

    def computed():
        student.model.zero_grad()
        loss = objective.loss(Forward(student.model), part)
        loss.total.backward()
        return loss.total.item(), loss.watched, [weight.grad.clone() for weight in student.model.parameters()]

    whole = computed()
    monkeypatch.setattr("fcot.student.forward.CHUNKED_FROM", 1)
    monkeypatch.setattr(distribution, "CHUNK", 16 * 350)
    sizes, of_chunk = [], distribution.Outputs.logits

    def watched(self, chunk):
        logits = of_chunk(self, chunk)
        sizes.append(len(logits))
        return logits

    monkeypatch.setattr(distribution.Outputs, "logits", watched)
    chunked = computed()
    assert max(sizes) == 16 < len(part["targets"]), "all logits at once"
    assert chunked[0] == pytest.approx(whole[0], rel=1e-5)
    assert set(chunked[1]) == set(whole[1])
    for name, value in whole[1].items():
        assert float(chunked[1][name]) == pytest.approx(float(value), rel=1e-4), name
    for found, expected in zip(chunked[2], whole[2], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
