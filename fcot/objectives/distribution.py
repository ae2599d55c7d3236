"""A divergence from a teacher's token distributions, beside the cross-entropy of the completions (knowledge distillation).

The teacher is a local model that predicts the same target tokens under the student's prompt. Sources: Hinton et al. 2015 (forward KL);
Agarwal et al., *On-Policy Distillation of Language Models* (ICLR 2024), section 3 (generalized Jensen-Shannon divergence); the coarse
distribution over the teacher's top tokens and one tail bucket is that of verl's ``forward_kl_topk_tail``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from fcot.base.errors import FcotError
from fcot.objectives.completion import CompletionLoss, token_loss
from fcot.student.batching import Ids
from fcot.student.data import Layout
from fcot.student.forward import Forward
from fcot.student.loading import Student
from fcot.student.objective import Loss
from fcot.student.tensors import Batch


@dataclass
class DistributionLoss:
    """``(1 - share)`` of the cross-entropy plus ``share`` of a divergence from the teacher, both per target token.

    Attributes:
        completion: The cross-entropy; it holds the samples and their weights.
        teacher: The model whose distributions are learned. Its tokens have to be the student's (:func:`check_vocabulary`).
        vocabulary: Number of tokens that both models have; columns beyond it are padding.
        share: Weight of the divergence, 0 to 1.
        divergence: ``forward_kl``, ``reverse_kl`` or ``jsd``.
        beta: The teacher's weight in the mixture of ``jsd``, above 0 and below 1.
        temperature: Divides the logits of both models.
        top_k: Compare the teacher's k likeliest tokens and one bucket for all others; None: all tokens.
        name: Name in logs.
        weight: Weight of this term beside other objectives.
    """

    completion: CompletionLoss
    teacher: Student
    vocabulary: int
    share: float
    divergence: str = "forward_kl"
    beta: float = 0.5
    temperature: float = 1.0
    top_k: int | None = None
    name: str = "distribution"
    weight: float = 1.0
    _forward: Forward = field(init=False, repr=False)
    _layout: Layout = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._forward = Forward(self.teacher.model.eval().requires_grad_(False))
        layout, teacher = self.completion.layout, self.teacher
        if teacher.architecture != layout.architecture and (layout.prompt_weight or layout.demonstration_weight):
            raise FcotError("trainer.prompt_loss_weight, trainer.demonstration_loss_weight: a teacher that encodes prompts predicts none")
        start_id = getattr(teacher.model.config, "decoder_start_token_id", None)
        self._layout = replace(
            layout, architecture=teacher.architecture, pad_id=teacher.tokenizer.pad_token_id, start_id=start_id, packing=False
        )

    def denominator(self, ids: Ids) -> float:
        """The number of target tokens with a weight, or the sum of their weights: the cross-entropy's denominator."""
        return self.completion.denominator(ids)

    def collate(self, ids: Ids, step: int) -> Batch:
        """The student's batch, and as ``teacher`` the same samples in the teacher's layout."""
        rows = [self.completion.rows[index] for index in ids] or [self.completion.rows[0]]
        return self.completion.collate(ids, step) | {"teacher": self._layout.batch(rows)}

    def facts(self) -> dict[str, Any]:
        """No facts: the training's summary has no entry about this objective."""
        return {}

    def loss(self, forward: Forward, part: Batch) -> Loss:
        """The summed loss. Watched: the sums over targets of the divergence and of the values of :func:`_describe`."""
        logits = forward(part)
        teacher = self._teacher_logits(part["teacher"], logits.device)
        student, target = (
            (model_logits[:, : self.vocabulary].float() / self.temperature).log_softmax(-1) for model_logits in (logits, teacher)
        )
        weights = torch.ones(len(student), device=student.device) if part["weights"] is None else part["weights"]
        top = target.topk(min(self.top_k or 20, self.vocabulary)).indices
        coarse = (student, target) if self.top_k is None else (coarsened(student, top), coarsened(target, top))
        divergences = divergence(*coarse, self.divergence, self.beta)
        total = (1 - self.share) * token_loss(logits, part) + self.share * (divergences @ weights)
        watched = {"divergence": divergences, **_describe(student.detach(), target, top)}
        return Loss(total, {name: values.detach() @ weights for name, values in watched.items()})

    @torch.no_grad()
    def _teacher_logits(self, part: Batch, device: torch.device) -> torch.Tensor:
        if self.teacher.model.device != device:
            self.teacher.model.to(device)  # type: ignore[arg-type]
        return self._forward(part)


def divergence(student: torch.Tensor, teacher: torch.Tensor, kind: str, beta: float = 0.5) -> torch.Tensor:
    """The divergence of each target's distributions, (targets,).

    Args:
        student: Log-probabilities, (targets, tokens).
        teacher: Log-probabilities, (targets, tokens).
        kind: ``forward_kl``: KL(teacher, student). ``reverse_kl``: KL(student, teacher). ``jsd``: ``beta`` KL(teacher, mixture) +
            (1 - ``beta``) KL(student, mixture), where the mixture is ``beta`` teacher + (1 - ``beta``) student.
        beta: The teacher's weight in the mixture.
    """
    if kind == "forward_kl":
        return _kl(teacher, student)
    if kind == "reverse_kl":
        return _kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log(1 - beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """KL(first, second) of log-probabilities; tokens that ``first`` gives probability 0 count 0."""
    terms = first.exp() * (first - second)
    return torch.where(first == -math.inf, 0.0, terms).sum(-1)


def coarsened(log_probabilities: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the tokens ``top`` (targets, k), and of all others together: (targets, k + 1)."""
    tail = log_probabilities.scatter(-1, top, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_probabilities.gather(-1, top), tail], -1)


def _describe(student: torch.Tensor, teacher: torch.Tensor, top: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """Per target: both models' probability of the teacher's top tokens, the share of these among the student's, the entropies."""
    shared = (student.topk(top.shape[-1]).indices[:, :, None] == top[:, None]).any(-1).float().mean(-1)
    return {
        "teacher_mass": teacher.gather(-1, top).exp().sum(-1), "student_mass": student.gather(-1, top).exp().sum(-1), "overlap": shared,
        "teacher_entropy": _entropy(teacher), "student_entropy": _entropy(student),
    }  # fmt: skip


def _entropy(log_probabilities: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(log_probabilities.exp()).sum(-1)


def check_vocabulary(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, source: str) -> int:
    """How many tokens the two have, checked by content: models pad their vocabularies to different widths.

    Raises:
        FcotError: The teacher has other tokens.
    """
    ids, teacher_ids = student.get_vocab(), teacher.get_vocab()
    if ids != teacher_ids:
        different = next(token for token in {**ids, **teacher_ids} if ids.get(token) != teacher_ids.get(token))
        raise FcotError(
            f"objective.teacher={source}: its tokens are not the student's ({len(teacher_ids):,} and {len(ids):,}; {different!r} is number "
            f"{teacher_ids.get(different)} there and {ids.get(different)} here). Distributions can be compared only over the same tokens: "
            "train the student on text (objective=completion), or take a teacher of the student's family"
        )
    return max(ids.values()) + 1
