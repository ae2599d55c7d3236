"""Log-probabilities that a student gives to texts: with gradients for objectives, and without for whole lists of texts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fcot.base.console import unwatched
from fcot.base.ranks import World
from fcot.base.stopping import stop_if_requested
from fcot.student.data import Layout
from fcot.student.forward import CHUNK, Forward
from fcot.student.loading import Student
from fcot.student.tensors import Batch
from fcot.student.tokenization import TokenizedSample

_TOKENS = 8192  # size of a batch without gradients, padding included


def target_logprobs(forward: Forward, part: Batch) -> torch.Tensor:
    """The log-probability of each target of a batch: (targets,), in float32.

    Where the batch has many logits, only a chunk of them exists at a time: the backward pass computes each chunk again.

    Args:
        forward: The student's forward pass.
        part: The tensors of :meth:`fcot.student.data.Layout.batch`.
    """
    targets = part["targets"]
    if (states_and_head := forward.head_inputs(part)) is None:
        return -functional.cross_entropy(forward(part), targets, reduction="none")
    states, head = states_and_head
    rows = max(16, CHUNK // head.weight.shape[0])
    chunks = [
        checkpoint(_chunk_logprobs, states[start : start + rows], head, targets[start : start + rows], use_reentrant=False)
        for start in range(0, len(targets), rows)
    ]
    return torch.cat(chunks)  # type: ignore[arg-type]


def _chunk_logprobs(states: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    return -functional.cross_entropy(head(states).float(), targets, reduction="none")


def completion_logprobs(
    student: Student, rows: Sequence[TokenizedSample], layout: Layout, precision: str = "32-true", world: World = World(),  # noqa: B008 - frozen
    advance: Callable[[int], object] = unwatched,
) -> NDArray[np.float32]:  # fmt: skip
    """The log-probability of each completion after its prompt, summed over its tokens: (rows,). Every rank gets all of them.

    Args:
        student: Evaluated without dropout, on a GPU if there is one. Its parameters do not change.
        rows: Prompts and completions as token ids.
        layout: How samples become tensors. Packing and the weights of prompts do not matter.
        precision: Lightning's name of the training's precision: its rounding errors cancel where a loss subtracts these values.
        world: The ranks that share the work.
        advance: Called with the number of completions that were finished since the last call.
    """
    return _sums(student, rows, layout, target_logprobs, precision, world, advance).reshape(len(rows))


def completion_surprisals_and_ranks(
    student: Student, rows: Sequence[TokenizedSample], layout: Layout, rank_limit: int, world: World = World(),  # noqa: B008 - frozen
    advance: Callable[[int], object] = unwatched,
) -> NDArray[np.float32]:  # fmt: skip
    """Each completion's surprisal after its prompt and its rank, summed over its tokens: (rows, 2), computed in float32.

    A token's surprisal is its negative log-probability in nats. Its rank is 1 plus the number of tokens that are likelier, at most
    ``rank_limit``. Every rank of ``world`` gets all sums. For the other arguments see :func:`completion_logprobs`.
    """
    values = partial(_surprisals_and_ranks, limit=rank_limit)
    return _sums(student, rows, layout, values, "32-true", world, advance).reshape(len(rows), 2)


def _surprisals_and_ranks(forward: Forward, part: Batch, limit: int) -> torch.Tensor:
    """The surprisal and the rank of each target, (targets, 2). Where there are many logits, only a chunk of them exists at a time."""
    targets = part["targets"]
    if (states_and_head := forward.head_inputs(part)) is None:
        return _chunk_surprisals_and_ranks(forward(part), targets, limit)
    states, head = states_and_head
    rows = max(16, CHUNK // head.weight.shape[0])
    chunks = zip(states.split(rows), targets.split(rows), strict=True)
    return torch.cat([_chunk_surprisals_and_ranks(head(chunk), chunk_targets, limit) for chunk, chunk_targets in chunks])


def _chunk_surprisals_and_ranks(logits: torch.Tensor, targets: torch.Tensor, limit: int) -> torch.Tensor:
    logits = logits.float()
    n_likelier = (logits > logits.gather(1, targets[:, None])).sum(1)
    return torch.stack([functional.cross_entropy(logits, targets, reduction="none"), (1 + n_likelier).clamp(max=limit).float()], 1)


def _sums(
    student: Student, rows: Sequence[TokenizedSample], layout: Layout, values_of: Callable[[Forward, Batch], torch.Tensor],
    precision: str, world: World, advance: Callable[[int], object],
) -> NDArray[np.float32]:  # fmt: skip
    """Values of the targets, (targets,) or (targets, k), summed over each completion: (rows,) or (rows, k)."""
    plain = replace(layout, prompt_weight=0.0, demonstration_weight=0.0, packing=False)
    lengths = [len(row.prompt) + len(row.completion) for row in rows]
    order = sorted(range(len(rows)), key=lambda index: -lengths[index])
    share = world.share(order)
    device, training = torch.device("cuda" if torch.cuda.is_available() else "cpu"), student.model.training
    student.model.to(device).eval()  # type: ignore[arg-type]
    forward, sums = Forward(student.model), list[Any]()
    try:
        with torch.no_grad(), autocast(precision, device.type):
            while len(sums) < len(share):
                start = len(sums)
                batch = share[start : start + max(1, _TOKENS // lengths[share[start]])]
                part = on_device(plain.batch([rows[index] for index in batch]), device)
                owners = torch.tensor([place for place, index in enumerate(batch) for _ in rows[index].completion], device=device)
                values = values_of(forward, part)
                sums += values.new_zeros(len(batch), *values.shape[1:]).index_add(0, owners, values).tolist()
                advance(len(batch) * world.size)
                stop_if_requested()
    finally:
        forward.remove()
        student.model.train(training)
    gathered = np.array(world.gather(sums, len(rows)), np.float32)
    result = np.zeros_like(gathered)
    result[order] = gathered
    return result


def on_device(part: Any, device: torch.device) -> Any:
    """A nested batch with its tensors on a device."""
    if isinstance(part, dict):
        return {name: on_device(value, device) for name, value in part.items()}
    return part.to(device) if isinstance(part, torch.Tensor) else part


def autocast(precision: str, device: str) -> contextlib.AbstractContextManager[Any]:
    """The context in which Lightning computes a forward pass in a precision."""
    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return torch.autocast(device, kinds[precision]) if precision in kinds else contextlib.nullcontext()
