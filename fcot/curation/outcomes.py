"""Counts of empty, cut, unanswered and correct completions, and advice where a count is unusually high."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fcot.base.records import NO_REPLY, Completion, CuratedCompletion

THOUGHT_ONLY = "thought_only"  # the reason of a completion with a thought and no rationale
_FEWEST_WRONG = 3  # wrong answers from which on it is reported that none is right
_UNUSUAL = 0.1  # a fault is reported if at least this share of the completions has it


@dataclass
class Outcomes:
    """Counts of completions. A completion can be empty, cut and unanswered at the same time.

    Attributes:
        total: All completions.
        empty: Completions without a rationale.
        cut: Completions that the token limit ended (finish reason ``length``).
        unanswered: Completions without a readable answer of the task's type.
        correct: Completions with the gold answer.
        wrong: Completions with a readable answer that is not the gold answer; only of those that were counted with their gold answer.
        wrong_example: The gold answer and the parsed one of the first of them.
        faults: Number of completions by main fault: the first of ``cut``, ``no_reply``, ``thought_only``, ``empty``, ``unanswered`` that
            applies. Without a reply, there is nothing but a thought.
    """

    total: int = 0
    empty: int = 0
    cut: int = 0
    unanswered: int = 0
    correct: int = 0
    wrong: int = 0
    wrong_example: tuple[str, str] | None = None
    faults: Counter[str] = field(default_factory=Counter)

    def count(self, completion: Completion, row: CuratedCompletion, gold: str | None = None) -> None:
        """Add a completion, with curation's verdict on it. Without the gold answer it does not count as wrong."""
        cut, empty, unanswered = completion.finish_reason == "length", not row.rationale, row.prediction is None
        self.total += 1
        self.cut += cut
        self.empty += empty
        self.unanswered += unanswered
        self.correct += row.correct
        if gold is not None and row.prediction is not None and not row.correct:
            self.wrong += 1
            self.wrong_example = self.wrong_example or (gold, row.prediction)
        only_thought = row.reason in (NO_REPLY, THOUGHT_ONLY)
        present = {
            "cut": cut, "no_reply": only_thought and unanswered, "thought_only": only_thought, "empty": empty, "unanswered": unanswered,
        }  # fmt: skip
        self.faults.update([fault for fault, is_present in present.items() if is_present][:1])

    def __str__(self) -> str:
        """Such as ``24 completions: 0 empty, 23 cut (96 %), 1 unanswered (4 %), 16 correct (67 %)``."""
        counts = {"empty": self.empty, "cut": self.cut, "unanswered": self.unanswered, "correct": self.correct}
        shares = (f"{n:,} {name}" + (f" ({100 * n / self.total:.0f} %)" if n else "") for name, n in counts.items())
        return f"{self.total:,} completions: {', '.join(shares)}"


@dataclass(frozen=True)
class Remedies:
    """Texts for :func:`advice`: what is wrong, and the override that helps. Each completes a sentence that begins "5 of 20 completions".

    Attributes:
        cut: Names the limit and a larger one, and says whether cut rationales become training data.
        empty: Names a prompt that elicits reasoning.
        unanswered: Names a prompt that elicits a closing sentence.
        thought_only: Names an option that trains on the thoughts of a reasoning model.
        wrong: Says what to compare where no readable answer is right; None where answers are not compared with gold answers.
        no_reply: Says what to change where a reasoning model returns thoughts only.
    """

    cut: str
    empty: str
    unanswered: str
    thought_only: str = (
        "have a thought and an answer, but no rationale: prompt.thinking=only trains on the thoughts; what is stored is not bought again"
    )
    wrong: str | None = (
        "Is the gold answer right, and may a completion write it in this way? See what fcot check says about the data and "
        "dataset.answer_type; if the problems are only hard, go on"
    )
    no_reply: str = (
        "have a thought and no reply, and no answer is read from a thought. If the server's reasoning parser does not fit the model, start "
        "the server without it: fcot separates thoughts itself. "
        '"teacher.parameters={chat_template_kwargs: {enable_thinking: false}}" turns thinking off where the chat template can'
    )


def advice(outcomes: Outcomes, remedies: Remedies) -> list[str]:
    """One sentence for each fault that at least two completions, and at least a tenth of them, have; and one if none is right."""
    texts = {
        "cut": remedies.cut, "no_reply": remedies.no_reply, "thought_only": remedies.thought_only, "empty": remedies.empty,
        "unanswered": remedies.unanswered,
    }  # fmt: skip
    n_reported = max(2, _UNUSUAL * outcomes.total)
    counts = {fault: outcomes.faults[fault] for fault in texts}
    sentences = [f"{n:,} of {outcomes.total:,} completions {texts[fault]}" for fault, n in counts.items() if n >= n_reported]
    return [*sentences, *_none_right(outcomes, remedies)]


def _none_right(outcomes: Outcomes, remedies: Remedies) -> list[str]:
    """A sentence if no completion has the right answer, although most have a readable one: the data's words may be others."""
    if (
        remedies.wrong is None
        or outcomes.correct
        or outcomes.wrong_example is None
        or outcomes.wrong < max(_FEWEST_WRONG, outcomes.total / 2)
    ):
        return []
    gold, prediction = outcomes.wrong_example
    return [
        f"{outcomes.wrong:,} of {outcomes.total:,} completions have a readable answer, and none is right (gold {gold!r}, read "
        f"{prediction!r}). {remedies.wrong}"
    ]
