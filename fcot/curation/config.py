"""The options of ``curation``."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from fcot.fields import Why, neutral, resolved


@dataclass
class CurationConfig:
    """Which completions become reasoning samples."""

    name: str = neutral(MISSING, Why.NAMED)
    filters: list[str] = field(default_factory=list)  # answer, truncated, duplicate, length, repetition, arithmetic, golden, concise
    labels: str = "gold"  # vote: where there is none, the majority of a problem's completions; vote_all: everywhere
    max_words: int = 300  # the length filter's limit, in words
    max_repeats: int = 2  # the repetition filter's: how often a sentence may stand in a rationale
    golden: str | None = resolved(None, "its ids")  # file: [sample index, ...] or {"sample index": [completion index, ...]}
    max_samples: int | None = None  # undersample what is kept to so many, at random
    match_golden: bool = False  # undersample to as many as the golden ids name
