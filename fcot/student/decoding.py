"""Greedy decoding of many prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from fcot.progress import unwatched
from fcot.student.loading import Student
from fcot.student.tokenization import Row, collate_prompts


@dataclass(frozen=True)
class Decoded:
    """One answer: text without special tokens, whether it ended by itself, and its length in tokens (end token included)."""

    text: str
    complete: bool
    n_tokens: int


@torch.inference_mode()
def decode(
    student: Student,
    rows: Sequence[Row],
    *,
    max_new_tokens: int,
    batch_size: int,
    advance: Callable[[int], object] = unwatched,
) -> list[Decoded]:
    """Greedy answers to prompt rows, in their order.

    Rows are batched by length; masks and positions follow the mask, so a row's text does not depend on its batch.

    Args:
        student: Model (put into evaluation mode, on its own device) and tokenizer.
        rows: Prompts.
        max_new_tokens: Limit on generated tokens; for models with learned positions also bounded by what is left.
        batch_size: Prompts per batch.
        advance: Called with the number of prompts finished.
    """
    model = student.model
    training = model.training
    model.eval()
    positions = getattr(model.config, "n_positions", None) if student.architecture == "decoder" else None
    limits = [min(max_new_tokens, positions - len(row.prompt)) if positions else max_new_tokens for row in rows]
    results: dict[int, Decoded] = {}
    for indices in _batches(sorted(range(len(rows)), key=lambda index: -len(rows[index].prompt)), batch_size):
        limit = min(limits[index] for index in indices)
        results |= zip(indices, _generate(student, [rows[index] for index in indices], limit), strict=True)
        advance(len(indices))
    # With learned positions the longest prompt of a batch bounds the others: those cut by it are decoded with their own room.
    cut = [index for index, answer in results.items() if not answer.complete and answer.n_tokens < limits[index]]
    for limit in sorted({limits[index] for index in cut}):
        for indices in _batches([index for index in cut if limits[index] == limit], batch_size):
            results |= zip(indices, _generate(student, [rows[index] for index in indices], limit), strict=True)
    model.train(training)
    return [results[index] for index in range(len(rows))]


def _batches(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def _generate(student: Student, rows: Sequence[Row], limit: int) -> list[Decoded]:
    """Greedy answers of one batch, at most ``limit`` tokens each."""
    model, tokenizer = student.model, student.tokenizer
    batch = collate_prompts(rows, student.architecture, tokenizer.pad_token_id)
    output = model.generate(  # type: ignore[operator]
        **{name: tensor.to(model.device) for name, tensor in batch.items()}, max_new_tokens=limit, do_sample=False, num_beams=1,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    generated = output[:, 1:] if student.architecture == "encoder_decoder" else output[:, batch["input_ids"].shape[1] :]
    answers = []
    for ids in generated.tolist():
        complete = tokenizer.eos_token_id in ids
        ids = ids[: ids.index(tokenizer.eos_token_id)] if complete else ids
        answers.append(Decoded(str(tokenizer.decode(ids, skip_special_tokens=True)), complete, len(ids) + complete))
    return answers
