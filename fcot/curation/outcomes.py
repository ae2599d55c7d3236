"""What came of completions: counted while they are bought and when they are curated, with the override that helps where it is unusual."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fcot.records import Completion, CuratedCompletion

_UNUSUAL = 0.1  # share of completions from which a kind of fault is told


@dataclass
class Outcomes:
    """Counts of completions; one may be empty, cut and unanswered at once.

    Attributes:
        asked: All.
        empty: Without a rationale.
        cut: Ended by the token limit.
        unanswered: Without an answer of the task's type.
        correct: With the gold answer.
        faults: Each faulty completion once, under what explains the rest: ``cut``, ``thought_only``, ``empty``, ``unanswered``.
    """

    asked: int = 0
    empty: int = 0
    cut: int = 0
    unanswered: int = 0
    correct: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def count(self, completion: Completion, row: CuratedCompletion) -> None:
        """Count a completion with curation's verdict on it."""
        cut, empty, unanswered = completion.finish_reason == "length", not row.rationale, row.prediction is None
        self.asked += 1
        self.cut += cut
        self.empty += empty
        self.unanswered += unanswered
        self.correct += row.correct
        if cut or empty or unanswered:
            self.faults["cut" if cut else row.reason if row.reason == "thought_only" else "empty" if empty else "unanswered"] += 1

    def __str__(self) -> str:
        """Such as ``24 completions: 0 empty, 23 cut (96 %), 1 unanswered (4 %), 16 correct (67 %)``."""
        counts = {"empty": self.empty, "cut": self.cut, "unanswered": self.unanswered, "correct": self.correct}
        shares = (f"{n:,} {name}" + (f" ({100 * n / self.asked:.0f} %)" if n else "") for name, n in counts.items())
        return f"{self.asked:,} completions: {', '.join(shares)}"


@dataclass(frozen=True)
class Remedies:
    """What helps against each kind of fault, as the end of a sentence that begins "5 of 20 completions".

    Attributes:
        cut: Names the limit and a larger one, and says what becomes of cut rationales.
        empty: Names a prompt that asks for reasoning.
        unanswered: Names a prompt that asks for a closing sentence.
    """

    cut: str
    empty: str
    unanswered: str
    thought_only: str = "are a thought and an answer, without a rationale: prompt.thinking=only trains on the thoughts"


def advice(seen: Outcomes, remedies: Remedies) -> list[str]:
    """One sentence for each kind of fault that a tenth of the completions have, at least two."""
    texts = {"cut": remedies.cut, "thought_only": remedies.thought_only, "empty": remedies.empty, "unanswered": remedies.unanswered}
    enough = max(2, _UNUSUAL * seen.asked)
    return [f"{seen.faults[fault]:,} of {seen.asked:,} completions {text}" for fault, text in texts.items() if seen.faults[fault] >= enough]
