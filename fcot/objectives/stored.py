"""A divergence from distributions that the teacher's store holds: its likeliest tokens at each token of a rationale.

The teacher's context was its own prompt. Its distributions count at the student's tokens that are the teacher's: the rationale up to the
first token that differs. At all other tokens, such as those of the answer, the loss is the cross-entropy; samples that the student wrote
itself have none there, because it does not imitate them. Source: the divergence over the likeliest tokens and one bucket for all others is
that of verl's ``forward_kl_topk_tail``.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fcot.llm.distributions import NO_TOKEN, TopTokens
from fcot.objectives.completion import CompletionLoss
from fcot.objectives.distribution import coarsened, divergence, outputs, summed_in_chunks
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
        share: Weight of the divergence at covered tokens, 0 to 1; it is 1 in the student's own samples.
        first_own: The samples from this position on are the student's own. None: no sample is.
        own_top: Returns the teacher's distributions on such a sample; None where there are none.
        name: Name in logs.
        weight: Weight of this term beside other objectives.
    """

    completion: CompletionLoss
    covered: Sequence[Covered | None]
    share: float
    first_own: int | None = None
    own_top: Callable[[int], TopTokens | None] = lambda _: None
    name: str = "distribution"
    weight: float = 1.0

    def denominator(self, ids: Ids) -> float:
        """The cross-entropy's denominator: both losses are means over the same tokens.

        1 for a step whose samples were all left out: it has a loss of 0, instead of none.
        """
        n = self.completion.denominator(ids)
        return n if self.first_own is None else n or 1.0

    def collate(self, ids: Ids, step: int) -> Batch:
        """The batch of the cross-entropy, ``imitated``: the weight of the cross-entropy per target, and ``top``: the covered targets.

        ``top`` has their positions ``at`` (also as a list, ``places``), ascending; the teacher's tokens ``ids`` and their ``logprobs``,
        (n, k); and the divergence's weights ``shares``, (n,).
        """
        part = self.completion.collate(ids, step)
        rows = [self.completion.rows[index] for index in ids]
        begins, own = self.completion.layout.completion_targets(rows), [self._is_own(index) for index in ids]
        found = [
            (begin + covered.first, covered, 1.0 if is_own else self.share)
            for begin, index, is_own in zip(begins, ids, own, strict=True) if (covered := self._covered(index))
        ]  # fmt: skip
        width = max((covered.ids.shape[1] for _, covered, _ in found), default=1)
        nothing = Covered(0, np.zeros((0, width), np.int64), np.zeros((0, width), np.float32))
        parts = [covered for _, covered, _ in found] or [nothing]
        at = np.array([target for first, covered, _ in found for target in range(first, first + len(covered))], np.int64)
        teacher_ids = np.concatenate([_widened(covered.ids, width, NO_TOKEN) for covered in parts])
        logprobs = np.concatenate([_widened(covered.logprobs, width, -np.inf) for covered in parts])
        shares = np.concatenate([np.zeros(0), *(np.full(len(covered), share) for _, covered, share in found)]).astype(np.float32)
        known = (teacher_ids != NO_TOKEN).any(-1)  # the teacher may have named no token somewhere
        top = {name: torch.from_numpy(values[known]) for name, values in
               {"at": at, "ids": teacher_ids, "logprobs": logprobs, "shares": shares}.items()}  # fmt: skip
        ends = np.array([begin + len(row.completion) for begin, row in zip(begins, rows, strict=True)], np.int64)
        imitated = np.repeat(1.0 - np.array(own, np.float32), np.diff(ends, prepend=0)) if len(rows) else np.ones(len(part["targets"]))
        return part | {"top": top | {"places": at[known].tolist()}, "imitated": torch.from_numpy(imitated.astype(np.float32))}

    def _is_own(self, index: int) -> bool:
        """Whether the student wrote a sample itself."""
        return self.first_own is not None and index >= self.first_own

    def _covered(self, index: int) -> Covered | None:
        """The teacher's distributions on a sample's completion."""
        if self._is_own(index):
            return cover(self.completion.rows[index].completion, self.own_top(index))
        return self.covered[index]

    def facts(self) -> dict[str, Any]:
        """``distribution_tokens_share``: the share of the completions' tokens at which the teacher's distribution is known."""
        n_covered = sum(int((covered.ids != NO_TOKEN).any(-1).sum()) for covered in self.covered if covered)
        return {"distribution_tokens_share": round(n_covered / max(1, int(self.completion.rows.lengths[:, 1].sum())), 4)}

    def loss(self, forward: Forward, part: Batch) -> Loss:
        """The summed loss. Watched, as sums over covered tokens: their number, the divergence, and both models' probability of the top.

        Where the batch has many logits, only a chunk of them exists at a time; the backward pass computes it again.
        """
        student, n = outputs(forward, part), len(part["targets"])
        weights = torch.ones(n, device=student.states.device) if part["weights"] is None else part["weights"]
        places = part["top"]["places"]

        def sums(chunk: slice) -> torch.Tensor:
            covered = slice(bisect_left(places, chunk.start), bisect_left(places, chunk.stop))
            top = {name: part["top"][name][covered] for name in ("at", "ids", "logprobs", "shares")}
            of_targets = part["targets"][chunk], weights[chunk], part["imitated"][chunk]
            return _sums(student.logits(chunk), *of_targets, top | {"at": top["at"] - chunk.start})

        whole = student.head is None
        totals = sums(slice(0, n)) if whole else summed_in_chunks(sums, n, student.head.out_features)  # type: ignore[union-attr, arg-type]
        return Loss(totals[0], dict(zip(_WATCHED, totals[1:].detach(), strict=True)))


_WATCHED = ("covered", "divergence", "teacher_mass", "student_mass")


def _sums(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, imitated: torch.Tensor, top: Batch) -> torch.Tensor:
    """Sums over targets of the loss and of the values of :data:`_WATCHED`, (5,).

    Args:
        logits: The student's logits, (targets, tokens).
        targets: Token ids, (targets,).
        weights: Loss weights, (targets,).
        imitated: Weights of the cross-entropy, (targets,).
        top: The covered ones of these targets, as in :meth:`StoredDistributionLoss.collate`.
    """
    student = logits.float().log_softmax(-1)
    losses = -student.gather(-1, targets[:, None])[:, 0] * imitated
    at, named = top["at"], top["ids"] != NO_TOKEN
    ids = torch.where(named, top["ids"], top["ids"][:, :1])
    student_top, student_tail = coarsened(student[at], ids).split([ids.shape[-1], 1], -1)
    student_top, student_tail = student_top.masked_fill(~named, -torch.inf), student_tail.clamp(min=_SMALLEST_TAIL)
    teacher_top = top["logprobs"]
    divergences = divergence(torch.cat([student_top, student_tail], -1), _with_tail(teacher_top), "forward_kl")
    mixed = losses.index_add(0, at, top["shares"] * (divergences - losses[at]))
    watched = [torch.ones_like(divergences), divergences, teacher_top.exp().sum(-1), student_top.exp().sum(-1)]
    return torch.stack([mixed @ weights, *(values.detach() @ weights[at] for values in watched)])


_SMALLEST_TAIL = math.log(1e-6)  # probabilities of stored tokens are rounded, and may add up to more than 1


def _with_tail(log_probabilities: torch.Tensor) -> torch.Tensor:
    """Add a bucket for all other tokens, and normalize: (n, k) to (n, k + 1)."""
    tail = (1 - log_probabilities.exp().sum(-1, keepdim=True)).clamp(min=math.exp(_SMALLEST_TAIL)).log()
    return torch.cat([log_probabilities, tail], -1).log_softmax(-1)


def _widened(values: NDArray[Any], width: int, fill: float) -> NDArray[Any]:
    return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=fill)
