"""A divergence from a teacher's token distributions, beside the cross-entropy of the completions (knowledge distillation).

The teacher is a local model that predicts the same target tokens, under the student's prompt or its own. Sources: Hinton et al. 2015
(forward KL); Agarwal et al., *On-Policy Distillation of Language Models* (ICLR 2024), section 3 (generalized Jensen-Shannon divergence);
the coarse distribution over the teacher's top tokens and one tail bucket is that of verl's ``forward_kl_topk_tail``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerBase

from fcot.base.errors import FcotError
from fcot.objectives.completion import CompletionLoss
from fcot.student.batching import Ids
from fcot.student.data import Layout, TrainingData
from fcot.student.forward import CHUNK, Forward
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
        first_own: The samples from this position on are the student's own: it does not imitate their tokens, so that the divergence has
            the whole weight. None: no sample is.
        contexts: Token ids of the teacher's own prompt, by the token ids of the student's; None: the teacher reads the student's.
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
    first_own: int | None = None
    contexts: Mapping[tuple[int, ...], Sequence[int]] | None = None
    name: str = "distribution"
    weight: float = 1.0
    _forward: Forward = field(init=False, repr=False)
    _layout: Layout = field(init=False, repr=False)
    _most_rows: int | None = field(init=False, repr=False, default=None)  # samples that the teacher takes at once; None: all

    def __post_init__(self) -> None:
        self._forward = Forward(self.teacher.model.eval().requires_grad_(False))
        layout, teacher = self.completion.layout, self.teacher
        if layout.prompt_weight or layout.demonstration_weight:
            if teacher.architecture != layout.architecture:
                raise FcotError(
                    "trainer.prompt_loss_weight, trainer.demonstration_loss_weight: a teacher that encodes prompts predicts none"
                )
            if self.contexts is not None:
                raise FcotError("trainer.prompt_loss_weight, trainer.demonstration_loss_weight: not with objective.context=teacher")
        start_id = getattr(teacher.model.config, "decoder_start_token_id", None)
        self._layout = replace(
            layout, architecture=teacher.architecture, pad_id=teacher.tokenizer.pad_token_id, start_id=start_id, packing=False
        )

        rows = self.completion.rows
        if self.contexts is None:
            self._check_positions(int(rows.lengths.sum(1).max()))
        else:
            self._check_positions(max(map(len, self.contexts.values())) + int(rows.lengths[:, 1].max()))

    def _check_positions(self, longest: int) -> None:
        """Reject samples that the teacher has no positions for.

        Args:
            longest: Tokens of the longest sample, its prompt included.

        Raises:
            FcotError: The teacher has fewer positions.
        """
        positions = self.teacher.positions
        if positions is not None and longest > positions:
            raise FcotError(
                f"objective.teacher: it has {positions} positions, and a sample has {longest} tokens: lower student.max_prompt_tokens, "
                "student.max_completion_tokens or student.max_new_tokens, or take a teacher with more positions"
            )

    def denominator(self, ids: Ids) -> float:
        """The number of target tokens with a weight, or the sum of their weights: the cross-entropy's denominator.

        1 for a step whose samples were all left out: it has a loss of 0, instead of none.
        """
        n = self.completion.denominator(ids)
        return n if self.first_own is None else n or 1.0

    def collate(self, ids: Ids, step: int) -> Batch:
        """The student's batch; ``teacher``: the same samples in the teacher's layout; ``shares``: the divergence's weight per target."""
        rows = [self.completion.rows[index] for index in ids] or [self.completion.rows[0]]
        teacher_rows = rows if self.contexts is None else [replace(row, prompt=self.contexts[tuple(row.prompt)]) for row in rows]
        if self.first_own is not None:
            self._check_positions(max(len(row.prompt) + len(row.completion) for row in teacher_rows))
        ends = [begin + len(row.completion) for begin, row in zip(self.completion.layout.completion_targets(rows), rows, strict=True)]
        shares = [1.0 if self.first_own is not None and index >= self.first_own else self.share for index in ids] or [self.share]
        of_targets = torch.tensor(shares).repeat_interleave(torch.tensor(ends).diff(prepend=torch.zeros(1, dtype=torch.long)))
        return self.completion.collate(ids, step) | {"teacher": self._layout.batch(teacher_rows), "shares": of_targets}

    def facts(self) -> dict[str, Any]:
        """No facts: the training's summary has no entry about this objective."""
        return {}

    def loss(self, forward: Forward, part: Batch) -> Loss:
        """The summed loss. Watched: sums over targets of :data:`_WATCHED`.

        Where the batch has many logits, only a chunk of them exists at a time; the backward pass computes it again.
        """
        student = outputs(forward, part)
        device = student.states.device
        if self.teacher.model.device != device:
            self.teacher.model.to(device)  # type: ignore[arg-type]
        teacher, n = self._predict(part["teacher"]), len(part["targets"])
        weights = torch.ones(n, device=device) if part["weights"] is None else part["weights"]

        def sums(chunk: slice) -> torch.Tensor:
            of_targets = part["targets"][chunk], weights[chunk], part["shares"][chunk]
            return self._sums(student.logits(chunk), teacher.logits(chunk), *of_targets)

        whole = student.head is None and teacher.head is None
        totals = sums(slice(0, n)) if whole else summed_in_chunks(sums, n, self.vocabulary)
        return Loss(totals[0], dict(zip(_WATCHED, totals[1:].detach(), strict=True)))

    def _sums(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, shares: torch.Tensor
    ) -> torch.Tensor:
        """Sums over targets of the loss and of the values of :data:`_WATCHED`, (7,)."""
        student, teacher = (
            (logits[:, : self.vocabulary].float() / self.temperature).log_softmax(-1) for logits in (student_logits, teacher_logits)
        )
        top = teacher.topk(min(self.top_k or 20, self.vocabulary)).indices
        coarse = (student, teacher) if self.top_k is None else (coarsened(student, top), coarsened(teacher, top))
        divergences = divergence(*coarse, self.divergence, self.beta)
        entropies = functional.cross_entropy(student_logits.float(), targets, reduction="none")
        losses = (1 - shares) * entropies + shares * divergences
        watched = torch.stack([divergences, *_describe(student.detach(), teacher, top)]).detach()
        return torch.cat([(losses @ weights)[None], watched @ weights])

    @torch.no_grad()
    def _predict(self, part: Batch) -> Outputs:
        """The teacher's outputs. If memory runs out, it takes half as many samples at once from then on.

        Raises:
            FcotError: A single sample does not fit.
        """
        n = len(part["inputs"]["input_ids"])
        if self._most_rows is None or n <= self._most_rows:
            try:
                return outputs(self._forward, part)
            except torch.OutOfMemoryError as error:
                if n == 1:
                    raise FcotError(
                        f"objective.teacher: no memory for one sample of {part['n_padded']} tokens beside the student in training. "
                        "Take a smaller teacher, or leave it more: trainer.micro_batches=4, trainer.gradient_checkpointing=true, "
                        "student.lora.rank=16"
                    ) from error
                error.__traceback__ = None  # it keeps the tensors alive
            self._most_rows = n // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return _joined([self._predict(half) for half in _halves(part)])


@dataclass(frozen=True)
class Outputs:
    """A model's outputs at targets.

    Attributes:
        states: Hidden states, (targets, width); logits, (targets, tokens), where there is no head.
        head: Turns states into logits; None where they are logits already.
    """

    states: torch.Tensor
    head: torch.nn.Module | None

    def logits(self, chunk: slice) -> torch.Tensor:
        """The logits of some targets, (targets, tokens)."""
        return self.states[chunk] if self.head is None else self.head(self.states[chunk])  # type: ignore[no-any-return]


def outputs(forward: Forward, part: Batch) -> Outputs:
    """A model's outputs at the targets of a batch: hidden states with the head where the batch has many logits, else logits."""
    states_and_head = forward.head_inputs(part)
    return Outputs(forward(part), None) if states_and_head is None else Outputs(*states_and_head)


def summed_in_chunks(sums: Callable[[slice], torch.Tensor], n: int, vocabulary: int) -> torch.Tensor:
    """The total of sums over targets, so that the logits of one chunk exist at a time. The backward pass computes them again.

    Args:
        sums: Returns the sums over a chunk of the targets.
        n: Number of targets.
        vocabulary: Number of logits of a target.
    """
    size = max(16, CHUNK // vocabulary)
    chunks = [slice(first, min(first + size, n)) for first in range(0, n, size)]
    return torch.stack([checkpoint(sums, chunk, use_reentrant=False) for chunk in chunks]).sum(0)


def _joined(parts: Sequence[Outputs]) -> Outputs:
    if all(part.head is not None for part in parts):
        return Outputs(torch.cat([part.states for part in parts]), parts[0].head)
    return Outputs(torch.cat([part.logits(slice(None)) for part in parts]), None)


def _halves(part: Batch) -> tuple[Batch, Batch]:
    """Divide the samples of a batch that is not packed."""
    inputs, n = part["inputs"], len(part["inputs"]["input_ids"]) // 2
    border = n * inputs.get("decoder_input_ids", inputs["input_ids"]).shape[1]
    first = part["positions"] < border
    return tuple(  # type: ignore[return-value]
        part | {"inputs": {name: values[rows] for name, values in inputs.items()}, "positions": part["positions"][chosen] - offset,
                "targets": part["targets"][chosen]}
        for rows, chosen, offset in ((slice(0, n), first, 0), (slice(n, None), ~first, border))
    )  # fmt: skip


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


_WATCHED = ("divergence", "teacher_mass", "student_mass", "overlap", "teacher_entropy", "student_entropy")


def _describe(student: torch.Tensor, teacher: torch.Tensor, top: torch.Tensor) -> Sequence[torch.Tensor]:
    """Per target: both models' probability of the teacher's top tokens, the share of these among the student's, the entropies."""
    shared = (student.topk(top.shape[-1]).indices[:, :, None] == top[:, None]).any(-1).float().mean(-1)
    masses = [model.gather(-1, top).exp().sum(-1) for model in (teacher, student)]
    return [*masses, shared, _entropy(teacher), _entropy(student)]


def _entropy(log_probabilities: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(log_probabilities.exp()).sum(-1)


def own_contexts(data: TrainingData, teacher: Student) -> dict[tuple[int, ...], Sequence[int]]:
    """The teacher's own prompts, by the student's prompt.

    Raises:
        FcotError: Two questions are one prompt of the student, because their beginning is cut.
    """
    contexts: dict[tuple[int, ...], Sequence[int]] = {}
    for row, prompt in zip(data.rows, data.teacher_prompts(teacher), strict=True):
        if contexts.setdefault(tuple(row.prompt), prompt) != prompt:
            raise FcotError(
                "objective.context=teacher: two questions differ only in their beginning, which student.max_prompt_tokens cuts: raise it"
            )
    return contexts


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
