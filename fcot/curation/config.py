"""The options of ``curation``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from omegaconf import MISSING

from fcot.base.fields import Bounds, Why, bounded, neutral, resolved


@dataclass
class CurationConfig:
    """Which completions become reasoning samples."""

    name: str = neutral(MISSING, Why.NAMED)
    filters: list[str] = field(default_factory=list)  # answer, truncated, duplicate, length, repetition, arithmetic, golden, concise
    # vote: where there is none, the majority of a problem's completions; vote_all: everywhere
    labels: str = bounded("gold", one_of=("gold", "vote", "vote_all"))
    max_words: int = bounded(300, at_least=1)  # the length filter's limit, in words
    max_repeats: int = bounded(2, at_least=1)  # the repetition filter's: how often a sentence may stand in a rationale
    golden: str | None = resolved(None, "its ids", file=True)  # file: [sample index, ...] or {"sample index": [completion index, ...]}
    max_samples: int | None = bounded(None, at_least=1)  # undersample what is kept to so many, at random
    match_golden: bool = False  # undersample to as many as the golden ids name

    def faults(self) -> Iterator[str]:
        """What is wrong beside the bounds of single options."""
        from fcot.curation.filters import CONCISE, FILTERS

        for name in self.filters:
            if fault := Bounds(one_of=(*FILTERS, CONCISE)).fault(name):
                yield f"curation.filters={name}: {fault}"
        if ("golden" in self.filters or self.match_golden) and self.golden is None:
            yield f"curation={self.name} needs curation.golden=FILE"
        if self.match_golden and self.max_samples is not None:
            yield "curation.match_golden and curation.max_samples: one of the two says how many samples are kept"
