"""Greedy decoding of many prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    model, tokenizer = student.model, student.tokenizer
    training = model.training
    model.eval()
    results: dict[int, Decoded] = {}
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index].prompt))
    positions = getattr(model.config, "n_positions", None) if student.architecture == "decoder" else None
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = collate_prompts([rows[index] for index in indices], student.architecture, tokenizer.pad_token_id)
        width = batch["input_ids"].shape[1]
        output = model.generate(  # type: ignore[operator]
            **{name: tensor.to(model.device) for name, tensor in batch.items()},
            max_new_tokens=min(max_new_tokens, positions - width) if positions else max_new_tokens,
            do_sample=False, num_beams=1, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        generated = output[:, 1:] if student.architecture == "encoder_decoder" else output[:, width:]
        for index, ids in zip(indices, generated.tolist(), strict=True):
            complete = tokenizer.eos_token_id in ids
            ids = ids[: ids.index(tokenizer.eos_token_id)] if complete else ids
            text = str(tokenizer.decode(ids, skip_special_tokens=True))
            results[index] = Decoded(text, complete, len(ids) + complete)
        advance(len(indices))
    model.train(training)
    return [results[index] for index in range(len(rows))]
