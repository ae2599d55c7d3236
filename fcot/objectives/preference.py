"""Preference losses: a right completion should be likelier than a wrong one of the same problem, relative to the student at the start.

Sources: DPO, Rafailov et al. 2023, equation 7; its sum with the negative log-likelihood of the right completion, per token, Pang et al.
2024 (*Iterative Reasoning Preference Optimization*), equation 1; SimPO, Meng et al. 2024, equation 6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fcot.base.console import progress
from fcot.objectives.pairs import Pairs
from fcot.student.batching import Ids
from fcot.student.data import Layout, TrainingData
from fcot.student.forward import Forward
from fcot.student.likelihood import completion_logprobs, target_logprobs
from fcot.student.objective import Loss
from fcot.student.tensors import Batch

LOSSES = ("dpo", "simpo")


@dataclass(frozen=True)
class PreferenceLoss:
    """A preference loss on one pair per sample and step.

    A completion's reward is ``beta`` times its log-probability minus the reference's (``dpo``), or ``beta`` times its mean log-probability
    per token (``simpo``). A pair's loss is ``-log sigmoid(right reward - wrong reward - gamma)``, plus ``nll`` times the negative
    log-likelihood of the right completion per token.

    Attributes:
        pairs: The pairs.
        layout: How samples become tensors.
        reference: Log-probability of each completion under the student before training, (completions,); None: ``simpo`` needs none.
        beta: Scale of the rewards.
        gamma: Margin by which the right reward should exceed the wrong one; 0 for ``dpo``.
        nll: Weight of the negative log-likelihood.
        weight: Factor of this objective, where the cross-entropy of the training samples has 1.
        seed: Seed of the choice among a sample's pairs.
        name: Name of the objective in logs.
        main: Whether it is the only term of the loss.
    """

    pairs: Pairs
    layout: Layout
    reference: NDArray[np.float32] | None
    beta: float
    gamma: float
    nll: float
    weight: float
    seed: int
    name: str = "preference"
    main: bool = False

    def denominator(self, ids: Ids) -> float:
        """The number of samples in the step that have a pair."""
        return int(self.pairs.contributes[ids].sum())

    def collate(self, ids: Ids, step: int) -> Batch:
        """The tensors of :meth:`fcot.student.data.Layout.batch` for right and wrong completions in turn, (2 pairs).

        Returns:
            Further: ``owners`` (targets,): the completion of each target; ``reference`` and ``lengths`` (2 pairs,): the completions'
            reference log-probabilities and tokens; ``pair_weights`` (pairs,): 1, or 0 for the pair of another sample where no sample has
            one: every rank takes part in every micro-batch.
        """
        contributes = self.pairs.contributes
        samples = [int(sample) for sample in ids if contributes[sample]]
        weights = torch.ones(len(samples)) if samples else torch.zeros(1)
        numbers = [number for sample in samples or [int(contributes.argmax())] for number in self.pairs.draw(sample, step, self.seed)]
        rows = [self.pairs.row(number) for number in numbers]
        part = replace(self.layout, prompt_weight=0.0, demonstration_weight=0.0).batch(rows)
        if not self.main:
            del part["n_padded"]  # padding efficiency is that of the training samples
        reference = np.zeros(len(numbers), np.float32) if self.reference is None else self.reference[numbers]
        return part | {
            "owners": torch.tensor([place for place, row in enumerate(rows) for _ in row.completion]),
            "reference": torch.from_numpy(reference), "lengths": torch.tensor([float(len(row.completion)) for row in rows]),
            "pair_weights": weights,
        }  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """The share of samples that have a pair."""
        return {f"{self.name}_share": round(float(self.pairs.contributes.mean()), 4)}

    def loss(self, forward: Forward, part: Batch) -> Loss:
        """The loss, summed over pairs. Watched, as sums over pairs: the values of :func:`preference_losses`."""
        tokens = target_logprobs(forward, part)
        sums = tokens.new_zeros(len(part["lengths"])).index_add(0, part["owners"], tokens)
        per_token = self.reference is None
        losses, watched = preference_losses(sums, part["reference"], part["lengths"], per_token, self.beta, self.gamma, self.nll)
        weights = part["pair_weights"]
        return Loss(losses @ weights, {name: values.detach() @ weights for name, values in watched.items()})


def preference_losses(
    logprobs: torch.Tensor, reference: torch.Tensor, lengths: torch.Tensor, per_token: bool, beta: float, gamma: float, nll: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of each pair, (pairs,), and what the logs show of it.

    Args:
        logprobs: Log-probabilities of right and wrong completions in turn, summed over their tokens, (2 pairs,).
        reference: The same before training, (2 pairs,); 0 without a reference.
        lengths: Tokens of the completions, (2 pairs,).
        per_token: Whether rewards are means over tokens.
        beta: Scale of the rewards.
        gamma: Margin of the rewards.
        nll: Weight of the right completion's negative log-likelihood per token.

    Returns:
        The losses, and by name (pairs,): ``reward_margin``, the right reward minus the wrong one; ``reward_accuracy``, 1 where it is above
        0; ``chosen_logprob`` and ``rejected_logprob``, the completions' summed log-probabilities.
    """
    rewards = beta * (logprobs - reference) / (lengths if per_token else 1)
    (right, wrong), (chosen, rejected) = (values.unflatten(0, (-1, 2)).unbind(1) for values in (rewards, logprobs))
    margin = right - wrong
    losses = functional.softplus(gamma - margin) - nll * chosen / lengths[::2]
    accuracy = (margin > 0).to(margin.dtype)
    return losses, {"reward_margin": margin, "reward_accuracy": accuracy, "chosen_logprob": chosen, "rejected_logprob": rejected}


def preference_loss(
    data: TrainingData, pairs: Pairs, kind: str, *, beta: float, gamma: float, nll: float, weight: float, name: str = "preference"
) -> PreferenceLoss:
    """Build a preference loss. The reference's log-probabilities are computed here, so no second model stays in memory.

    A training that continues after an interruption is also built from the student that it started from, before its checkpoint is loaded:
    the reference is the same.

    Args:
        data: The student before training, and the seed of the choice among a sample's pairs.
        pairs: The pairs.
        kind: ``dpo`` or ``simpo``.
        beta: Scale of the rewards.
        gamma: Margin of ``simpo``; not read by ``dpo``.
        nll: Weight of the right completion's negative log-likelihood per token.
        weight: Factor of the objective.
        name: Name of the objective in logs.
    """
    reference = None
    if kind == "dpo":
        rows = [pairs.row(number) for number in range(len(pairs.completions))]
        with progress("reference", len(rows), "completions") as bar:
            reference = completion_logprobs(data.student, rows, data.layout, data.precision, data.world, bar.advance)
    return PreferenceLoss(pairs, data.layout, reference, beta, gamma if kind == "simpo" else 0.0, nll, weight, data.seed, name)
