"""From texts to token ids: the only module besides loading that knows a tokenizer.

A *row* is one training sample: prompt ids and completion ids, the latter ending with the end-of-sequence token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from fcot.prompts.student import Architecture, StudentFormat

IGNORED = -100  # torch's cross-entropy skips this label


@dataclass(frozen=True)
class Row:
    """Token ids of one sample; ``completion`` is empty for a prompt that waits to be answered."""

    prompt: list[int]
    completion: list[int]


@dataclass(frozen=True)
class Tokenized:
    """Rows with what was lost on the way.

    Attributes:
        rows: One per sample, in order.
        cut_prompts: Prompts over the limit; their beginning was cut.
        cut_completions: Completions over the limit; their end was cut, the end-of-sequence token included.
        unknown_share: Share of all tokens that the tokenizer cannot represent.
    """

    rows: list[Row]
    cut_prompts: int
    cut_completions: int
    unknown_share: float


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt_format: StudentFormat, architecture: Architecture, question: str, limit: int
) -> tuple[list[int], bool]:
    """Prompt ids of at most ``limit`` tokens, and whether the beginning was cut to get there.

    The question's end and the delimiter always stay. Encoder inputs end with the end-of-sequence token, as T5 was
    trained.
    """
    ids = tokenizer(prompt_format.prompt(question), add_special_tokens=False)["input_ids"]
    tail = [tokenizer.eos_token_id] if architecture == "encoder_decoder" else []
    kept = ids[len(ids) + len(tail) - limit :] if len(ids) + len(tail) > limit else ids
    return kept + tail, len(kept) < len(ids)


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    text_format: StudentFormat,
    architecture: Architecture,
    samples: Iterable[tuple[str, str | None]],
    *,
    max_prompt: int,
    max_completion: int,
) -> Tokenized:
    """Tokenise (question, completion or None) pairs; limits in tokens."""
    rows: list[Row] = []
    cut_prompts = cut_completions = unknown = total = 0
    for question, completion in samples:
        prompt, cut = encode_prompt(tokenizer, text_format, architecture, question, max_prompt)
        cut_prompts += cut
        ids: list[int] = []
        if completion is not None:
            ids = tokenizer(completion, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            cut_completions += len(ids) > max_completion
            ids = ids[:max_completion]
        rows.append(Row(prompt, ids))
        total += len(prompt) + len(ids)
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id != tokenizer.eos_token_id:
            unknown += (prompt + ids).count(tokenizer.unk_token_id)
    return Tokenized(rows, cut_prompts, cut_completions, unknown / max(1, total))


def _pad(sequences: Sequence[Sequence[int]], value: int, left: bool = False) -> torch.Tensor:
    """Rectangular (batch, longest) int64 tensor."""
    width = max(len(sequence) for sequence in sequences)
    rows = [
        [value] * (width - len(sequence)) + list(sequence) if left else list(sequence) + [value] * (width - len(sequence))
        for sequence in sequences
    ]
    return torch.tensor(rows, dtype=torch.long)


def collate(rows: Sequence[Row], architecture: Architecture, pad_id: int) -> dict[str, torch.Tensor]:
    """A training batch, padded to its own longest row.

    Returns:
        ``input_ids`` and ``attention_mask`` (batch, length), and ``labels``: (batch, length) for a decoder, where
        prompt and padding are ``IGNORED``; (batch, completion length) for an encoder-decoder.
    """
    if architecture == "encoder_decoder":
        inputs = [row.prompt for row in rows]
        labels = _pad([row.completion for row in rows], IGNORED)
    else:
        inputs = [row.prompt + row.completion for row in rows]
        labels = _pad([[IGNORED] * len(row.prompt) + row.completion for row in rows], IGNORED)
    mask = _pad([[1] * len(ids) for ids in inputs], 0)
    return {"input_ids": _pad(inputs, pad_id), "attention_mask": mask, "labels": labels}


def collate_prompts(rows: Sequence[Row], architecture: Architecture, pad_id: int) -> dict[str, torch.Tensor]:
    """A decoding batch: prompts padded on the left for a decoder (generation continues at the right edge)."""
    prompts = [row.prompt for row in rows]
    left = architecture == "decoder"
    return {
        "input_ids": _pad(prompts, pad_id, left),
        "attention_mask": _pad([[1] * len(ids) for ids in prompts], 0, left),
    }
