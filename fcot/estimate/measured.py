"""Lengths of prompts and answers, measured on the newest rows of a store folder, or assumed if it is empty."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fcot.estimate.needs import Interval
from fcot.llm.store.folder import StoreFolder
from fcot.llm.store.rows import lines

ASSUMED_TOKENS_PER_CHARACTER = np.array([1 / 5, 1 / 4, 1 / 3])
_ASSUMED_RATIONALE_TOKENS = np.array([30.0, 120.0, math.inf])  # cut at the token limit
_ASSUMED_ANSWER_TOKENS = np.array([2.0, 8.0, 32.0])
_MIN_WIDTH = 0.1  # smallest half-width of an interval, as a share of the measured mean: unmeasured problems have other lengths
_ASSUMED_ROW_BYTES = 900
_MEASURED_BYTES = 1 << 18  # read from the end of each file of a store folder


class Measured:
    """Lengths of the prompts and answers in a store folder, as (low, middle, high); assumed lengths if the folder is empty.

    Attributes:
        row_bytes: Mean size of a row, in bytes.
        per_character: Prompt tokens per character.
        rationale: Tokens of a rationale.
        answer: Tokens of a step-2 answer.
        note: Sentence about the source of the lengths.
        most_choices: The most choices of one prompt that the server has returned in one request, if it never returned as many as were
            requested; None if it did, and if nothing is known.
    """

    def __init__(self, folder: StoreFolder, two_steps: bool, rationale_limit: int, answer_limit: int) -> None:
        sample = _sample(tuple((path, path.stat().st_size) for shard in folder.shards() for path in shard.files()))
        self.row_bytes = sample.row_bytes or _ASSUMED_ROW_BYTES
        self.per_character = _interval(sample.per_character) if sample.per_character else ASSUMED_TOKENS_PER_CHARACTER
        self.rationale = np.minimum(_interval(sample.rationales) if sample.rationales else _ASSUMED_RATIONALE_TOKENS, rationale_limit)
        self.answer = np.minimum(_interval(sample.answers) if sample.answers else _ASSUMED_ANSWER_TOKENS, answer_limit)
        short = sample.choices and all(returned < requested for requested, returned in sample.choices)
        self.most_choices = max(returned for _, returned in sample.choices) if short else None
        n = len(sample.rationales)
        self.note = (
            f"lengths: from {n:,} generations in the store" if n
            else "lengths: ASSUMED (a rationale of 30-120 tokens, at most its limit; a token of 3-5 characters); preview=5 measures them"
        )  # fmt: skip


@dataclass(frozen=True)
class _StoredLengths:
    """Lengths of generations in a store folder."""

    rationales: list[float]  # tokens
    answers: list[float]  # tokens
    per_character: list[float]  # tokens per character of a prompt
    row_bytes: float  # mean; 0 without rows
    choices: list[tuple[int, int]]  # of each request for several choices: how many were requested, and how many were returned


@lru_cache(maxsize=64)
def _sample(files: tuple[tuple[Path, int], ...]) -> _StoredLengths:
    """Measure the newest rows of each file (path, size). The result is cached for all runs that share the folder."""
    lengths: dict[bool, list[float]] = {False: [], True: []}  # tokens of a generation, by whether it is a step-2 answer
    ratios: list[float] = []
    choices: list[tuple[int, int]] = []
    size = n_rows = 0

    def measure(group: Sequence[dict[str, Any]]) -> None:
        if group and (requested := group[0].get("n") or 1) > 1:
            choices.append((requested, len(group)))
        tokens = group[0].get("completion_tokens") if group else None
        if tokens:
            lengths[group[0]["root"] is not None] += [tokens / len(group)] * len(group)

    for path, end in files:
        group: list[dict[str, Any]] = []
        for begin, stop, row in _newest_rows(path, end):
            size, n_rows = size + stop - begin, n_rows + 1
            if row is None:
                continue
            if row.get("prompt_tokens") and "asked" in row:
                ratios.append(row["prompt_tokens"] / max(1, characters(row["asked"]["prompt"])))
            if "prompt_tokens" in row:  # the first row of an answered request
                measure(group)
                group = [row]
            elif group and row["request"] == group[0]["request"]:
                group.append(row)
        measure(group)
    return _StoredLengths(lengths[False], lengths[True], ratios, size / n_rows if n_rows else 0.0, choices)


def _newest_rows(path: Path, size: int) -> Iterator[tuple[int, int, dict[str, Any] | None]]:
    """The last lines of a file of ``size`` bytes: first byte, end, and the row (None if the line is damaged)."""
    with path.open("rb") as file:
        start = max(0, size - _MEASURED_BYTES)
        file.seek(start)
        start += len(file.readline()) if start else 0
        yield from lines(file.fileno(), start)


def _interval(sample: Sequence[float]) -> Interval:
    """The mean, with two standard errors or a tenth of the mean on either side, whichever is larger."""
    mean = float(np.mean(sample))
    width = max(_MIN_WIDTH * mean, 2 * float(np.std(sample)) / math.sqrt(len(sample)))
    return np.array([max(0.0, mean - width), mean, mean + width])


def characters(prompt: Any) -> int:
    """Number of characters of a prompt: a text or chat messages."""
    return len(prompt) if isinstance(prompt, str) else sum(len(message["content"]) for message in prompt)
