"""A divergence from distributions that the teacher's store holds: its likeliest tokens at each token of a rationale.

The teacher's context was its own prompt. Its distributions count at the student's tokens that are the teacher's: the rationale up to the
first token that differs. At all other tokens, such as those of the answer, the loss is the cross-entropy. Source: the divergence
over the likeliest tokens and one bucket for all others is that of verl's ``forward_kl_topk_tail``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fcot.llm.distributions import NO_TOKEN, TopTokens
from fcot.objectives.completion import CompletionLoss
from fcot.objectives.distribution import coarsened, divergence
from fcot.student.batching import Ids
from fcot.student.forward import Forward
from fcot.student.objective import Loss
from fcot.student.tensors import Batch

_SKIPPED = 3  # tokens before the rationale, of the student's format or of the teacher's completion, that may have no counterpart


@dataclass(frozen=True)
class Covered:
    """The distributions at some tokens of a student's completion.

    Attributes:
        first: Position of the first of these tokens in the completion.
        ids: The teacher's likeliest tokens, (n, k); :data:`NO_TOKEN` where it named fewer.
        logprobs: Their log-probabilities, (n, k).
    """

    first: int
    ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)


def cover(completion: Sequence[int], top: TopTokens | None) -> Covered | None:
    """Find a teacher's distributions for a student's completion: the longest run of equal tokens that begins near both beginnings.

    Args:
        completion: Token ids of the student's completion.
        top: The teacher's distributions; None if there are none.

    Returns:
        None if no token is covered.
    """
    if top is None or not len(top):
        return None
    own, others = np.asarray(completion), top.tokens
    runs = []
    for first in range(min(_SKIPPED, len(own))):
        for begin in range(min(_SKIPPED, len(others))):
            n = min(len(own) - first, len(others) - begin)
            different = np.flatnonzero(own[first : first + n] != others[begin : begin + n])
            runs.append((int(different[0]) if len(different) else n, first, begin))
    n, first, begin = max(runs, key=lambda run: run[0])
    if not n:
        return None
    part = slice(begin, begin + n)
    return Covered(first, top.ids[part].astype(np.int64), top.logprobs[part].astype(np.float32))


@dataclass(frozen=True)
class StoredDistributionLoss:
    """Cross-entropy, and at covered tokens ``(1 - share)`` of it plus ``share`` of the forward KL divergence from the teacher.

    Attributes:
        completion: The cross-entropy; it holds the samples and their weights.
        covered: The distributions of each sample's completion; None where there are none.
        share: Weight of the divergence at covered tokens, 0 to 1.
        name: Name in logs.
        weight: Weight of this term beside other objectives.
    """

    completion: CompletionLoss
    covered: Sequence[Covered | None]
    share: float
    name: str = "distribution"
    weight: float = 1.0

    def denominator(self, ids: Ids) -> float:
        """The cross-entropy's denominator: both losses are means over the same tokens."""
        return self.completion.denominator(ids)

    def collate(self, ids: Ids, step: int) -> Batch:
        """The batch of the cross-entropy, and as ``top`` its covered targets with the teacher's tokens and log-probabilities there."""
        part = self.completion.collate(ids, step)
        rows = [self.completion.rows[index] for index in ids]
        begins = self.completion.layout.completion_targets(rows)
        pairs = [(begin + covered.first, covered) for begin, index in zip(begins, ids, strict=True) if (covered := self.covered[index])]
        width = max((covered.ids.shape[1] for _, covered in pairs), default=1)
        at = [target for first, covered in pairs for target in range(first, first + len(covered))]
        teacher_ids = np.concatenate([_widened(covered.ids, width, NO_TOKEN) for _, covered in pairs] or [np.zeros((0, width), np.int64)])
        logprobs = [_widened(covered.logprobs, width, -np.inf) for _, covered in pairs] or [np.zeros((0, width), np.float32)]
        known = (teacher_ids != NO_TOKEN).any(-1)  # the teacher may have named no token somewhere
        top = {"at": torch.tensor(at, dtype=torch.long)[known], "ids": torch.from_numpy(teacher_ids[known])}
        return part | {"top": top | {"logprobs": torch.from_numpy(np.concatenate(logprobs)[known])}}

    def facts(self) -> dict[str, Any]:
        """``distribution_tokens_share``: the share of the completions' tokens at which the teacher's distribution is known."""
        n_covered = sum(int((covered.ids != NO_TOKEN).any(-1).sum()) for covered in self.covered if covered)
        return {"distribution_tokens_share": round(n_covered / max(1, int(self.completion.rows.lengths[:, 1].sum())), 4)}

    def loss(self, forward: Forward, part: Batch) -> Loss:
        """The summed loss. Watched, as sums over covered tokens: their number, the divergence, and both models' probability of the top."""
        logits = forward(part).float()
        targets, top = part["targets"], part["top"]
        weights = torch.ones(len(targets), device=logits.device) if part["weights"] is None else part["weights"]
        student = logits.log_softmax(-1)
        losses = -student.gather(-1, targets[:, None])[:, 0]
        at, named = top["at"], top["ids"] != NO_TOKEN
        ids = torch.where(named, top["ids"], top["ids"][:, :1])
        student_top, student_tail = coarsened(student[at], ids).split([ids.shape[-1], 1], -1)
        student_top, student_tail = student_top.masked_fill(~named, -torch.inf), student_tail.clamp(min=_SMALLEST_TAIL)
        teacher_top = top["logprobs"]
        divergences = divergence(torch.cat([student_top, student_tail], -1), _with_tail(teacher_top), "forward_kl")
        mixed = losses.index_add(0, at, self.share * (divergences - losses[at]))
        watched = {
            "covered": torch.ones_like(divergences), "divergence": divergences,
            "teacher_mass": teacher_top.exp().sum(-1), "student_mass": student_top.exp().sum(-1),
        }  # fmt: skip
        return Loss(mixed @ weights, {name: values.detach() @ weights[at] for name, values in watched.items()})


_SMALLEST_TAIL = math.log(1e-6)  # probabilities of stored tokens are rounded, and may add up to more than 1


def _with_tail(log_probabilities: torch.Tensor) -> torch.Tensor:
    """Add a bucket for all other tokens, and normalize: (n, k) to (n, k + 1)."""
    tail = (1 - log_probabilities.exp().sum(-1, keepdim=True)).clamp(min=math.exp(_SMALLEST_TAIL)).log()
    return torch.cat([log_probabilities, tail], -1).log_softmax(-1)


def _widened(values: NDArray[Any], width: int, fill: float) -> NDArray[Any]:
    return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=fill)
