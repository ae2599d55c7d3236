"""Curation: filters decide which completions become reasoning samples. Each rejection has a reason code.

The ``answer`` filter alone is paper A's rule: keep a completion if and only if its parsed answer equals the gold answer. The student then
trains on the gold answer.

A filter is a function of a :class:`Candidate` and of its settings, which are its further parameters. It returns the reason to reject the
candidate, or None. The value of a setting is ``curation.<name>`` if ``curation`` has that option, else ``curation.settings.<name>``, else
the parameter's default. A filter gets only the settings that it names, and these count in the identity of the runs that use the filter.
So no filter can depend on a setting that the identity leaves out.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import groupby
from typing import Any

from fcot.base.errors import FcotError
from fcot.base.files import fingerprint
from fcot.base.plugins import load_function
from fcot.base.records import REFUSED, Completion, CuratedCompletion, Problem
from fcot.curation.equations import calculations, wrong_equations
from fcot.curation.golden import Golden
from fcot.curation.outcomes import THOUGHT_ONLY
from fcot.prompts.answers import AnswerRule, votes
from fcot.prompts.numbers import Reading
from fcot.prompts.thinking import only_an_answer

Read = Callable[[Completion, AnswerRule], Reading]  # the prompt's parser: reads the answer from a completion
Filter = Callable[..., str | None]  # from a candidate and settings to the reason to reject it, or None to keep it


@dataclass(frozen=True)
class Rules:
    """The rules by which completions become reasoning samples.

    Attributes:
        filters: Names for :func:`filter_named`, in order. ``concise`` is applied last: it keeps the shortest of the completions that the
            other filters kept for a problem (paper A, limitation 7.1).
        labels: Which label a rationale must reach. ``gold``: the gold answer. ``vote``: the gold answer or, for a problem without one, the
            answer that most of its D completions give, at least two (self-consistency labeling). ``vote_all``: the vote for every problem.
        thinking: Which text is the rationale: the reply (``strip``), the thought and the reply (``keep``), or the thought (``only``).
        writable: Returns whether the student's vocabulary can write a text; None if every text can be written.
        settings: Values of the filters' settings, by name. ``golden`` is present whenever there is a file of golden ids.
        kept_before: Rationales that were kept before, such as those of earlier rounds, by sample index. Filters that compare rationales
            compare with these as well.
    """

    filters: Sequence[str]
    labels: str = "gold"
    thinking: str = "strip"
    writable: Callable[[str], bool] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    kept_before: Mapping[int, Iterable[str]] = field(default_factory=dict)

    @property
    def golden(self) -> Golden:
        """The golden ids; empty without a file."""
        return self.settings.get("golden") or {}


@dataclass
class Candidate:
    """The input of a filter.

    Attributes:
        completion: The teacher's output.
        rationale: The text that the student would be trained on; never empty.
        answer: The teacher's parsed answer, or the reason why there is none.
        agrees: Whether the answer equals the label.
        voted: Whether the label is the majority's answer instead of the gold answer.
        kept_before: Rationales of the same problem that are already kept, with runs of whitespace replaced by single spaces.
    """

    completion: Completion
    rationale: str
    answer: Reading
    agrees: bool
    voted: bool
    kept_before: set[str]


def _answer(candidate: Candidate) -> str | None:
    if candidate.answer.value is None:
        return candidate.answer.fault or "no_answer"
    return None if candidate.agrees else "outvoted" if candidate.voted else "wrong_answer"


def _truncated(candidate: Candidate) -> str | None:
    return "truncated" if candidate.completion.finish_reason == "length" else None


def _duplicate(candidate: Candidate) -> str | None:
    return "duplicate_rationale" if " ".join(candidate.rationale.split()) in candidate.kept_before else None


def _near_copy(candidate: Candidate, max_similarity: float = 0.7) -> str | None:
    words = set(candidate.rationale.lower().split())
    kept = (set(rationale.lower().split()) for rationale in candidate.kept_before)
    return "near_copy" if any(len(words & other) > max_similarity * len(words | other) for other in kept) else None


def _same_equations(candidate: Candidate) -> str | None:
    calculated = calculations(candidate.rationale)
    return "same_equations" if calculated and any(calculated == calculations(kept) for kept in candidate.kept_before) else None


def _length(candidate: Candidate, max_words: int) -> str | None:
    return "over_length" if len(candidate.rationale.split()) > max_words else None


def _repetition(candidate: Candidate, max_repeats: int) -> str | None:
    return "repetitive" if most_repeated(candidate.rationale) > max_repeats or stutters(candidate.rationale) else None


def _arithmetic(candidate: Candidate) -> str | None:
    return "wrong_equation" if wrong_equations(candidate.rationale) else None


def _golden(candidate: Candidate, golden: Golden) -> str | None:
    completion = candidate.completion
    chosen = golden.get(completion.sample_index, frozenset())
    return None if chosen is None or completion.completion_index in chosen else "not_golden"


FILTERS: dict[str, Filter] = {
    "answer": _answer,
    "truncated": _truncated,
    "duplicate": _duplicate,
    "near_copy": _near_copy,
    "same_equations": _same_equations,
    "length": _length,
    "repetition": _repetition,
    "arithmetic": _arithmetic,
    "golden": _golden,
}
CONCISE = "concise"
WRONG_STEP = "wrong_step"  # the reason of a completion in which a judge names a wrong step (curation.judge)
MISTAKEN = frozenset({"wrong_answer", "outvoted", "wrong_equation", WRONG_STEP})  # the reasons that are mistakes, not length or form
REQUIRED = inspect.Parameter.empty


def filter_named(name: str) -> Filter:
    """A filter of :data:`FILTERS`, or a user's own filter named ``module.function``.

    Raises:
        FcotError: There is no such filter.
    """
    return FILTERS[name] if name in FILTERS else load_function("curation.filters", name)


def settings_of(name: str) -> dict[str, Any]:
    """The defaults of the settings that a filter reads, by name; ``REQUIRED`` for a setting without a default.

    Raises:
        FcotError: There is no such filter.
    """
    return {} if name == CONCISE else _settings_of(filter_named(name))


@cache
def _settings_of(function: Filter) -> dict[str, Any]:
    settings = list(inspect.signature(function).parameters.values())[1:]
    if any(setting.kind in (setting.VAR_POSITIONAL, setting.VAR_KEYWORD) for setting in settings):
        raise FcotError(
            f"curation.filters: {function.__qualname__} takes any settings; name each one as a parameter, because the run's name depends "
            "on their values"
        )
    return {setting.name: setting.default for setting in settings}


def most_repeated(text: str) -> int:
    """How often a text contains its most frequent sentence or line. Sentences of one word do not count."""
    sentences = (" ".join(part.split()).lower() for part in re.split(r"(?<=[.!?])\s+|\n+", text))
    return max(Counter(sentence for sentence in sentences if " " in sentence).values(), default=0)


def stutters(text: str) -> bool:
    """Whether a text repeats a sequence of words without a break: one to three words eight times, four to ten words four times."""
    words = text.split()
    for size in range(1, 11):
        n_equal, limit = 0, size * ((8 if size <= 3 else 4) - 1)
        for word, earlier_word in zip(words[size:], words, strict=False):
            n_equal = n_equal + 1 if word == earlier_word else 0
            if n_equal >= limit:
                return True
    return False


def curate(
    completions: Iterable[Completion], problems: Mapping[int, Problem], rule: AnswerRule, read: Read, rules: Rules
) -> Iterator[CuratedCompletion]:
    """The verdict on each completion. The first filter that rejects a completion gives the reason.

    A completion that the teacher never gave is always rejected, with the reason why it is missing (``empty``, ``content_filter``,
    ``too_long``...).

    Args:
        completions: Raw teacher outputs. The completions of one problem must be adjacent.
        problems: The problems by sample index.
        rule: Reads and compares answers.
        read: The prompt's parser.
        rules: The filters with their settings, and the labels.
    """
    for index, group in groupby(completions, key=lambda completion: completion.sample_index):
        problem_completions = list(group)
        answers = [read(completion, rule) for completion in problem_completions]
        rows = _verdicts(problem_completions, answers, problems[index], rule, rules)
        kept = [row for row in rows if row.kept]
        if CONCISE in rules.filters and kept:
            shortest = min(kept, key=lambda row: len(row.rationale.split()))
            rows = [replace(row, kept=False, reason="not_shortest") if row.kept and row is not shortest else row for row in rows]
        yield from rows


def _verdicts(
    completions: Sequence[Completion], answers: Sequence[Reading], problem: Problem, rule: AnswerRule, rules: Rules
) -> list[CuratedCompletion]:
    """The verdicts on the completions of one problem, by all filters except ``concise``."""
    voted = rules.labels == "vote_all" or (rules.labels == "vote" and not problem.labelled)
    label = _majority([answer.value for answer in answers]) if voted else problem.answer
    rows, kept_before = [], {" ".join(rationale.split()) for rationale in rules.kept_before.get(problem.sample_index, ())}
    filters = [
        partial(filter_named(name), **{setting: rules.settings[setting] for setting in settings_of(name) if setting in rules.settings})
        for name in rules.filters if name != CONCISE
    ]  # fmt: skip
    for completion, answer in zip(completions, answers, strict=True):
        prediction = answer.value
        rationale = _rationale(completion, rules.thinking)
        candidate = Candidate(completion, rationale, answer, rule.same(prediction, label), voted, kept_before)
        if not rationale:
            reason: str | None = _why_empty(completion, rules.thinking)
        elif voted and not label:
            reason = "no_majority"
        elif rules.writable and not rules.writable(f"{problem.question}\n{rationale}\n{label}"):
            reason = "special_token"
        else:
            reason = next((reason for reject in filters if (reason := reject(candidate))), None)
        if reason is None:
            kept_before.add(" ".join(rationale.split()))
        correct = rule.same(prediction, problem.answer)
        slot = completion.completion_index
        rows.append(
            CuratedCompletion(
                completion.sample_index, slot, prediction, correct, reason is None, reason, rationale, label, problem.question, problem.id
            )
        )
    return rows


def _rationale(completion: Completion, thinking: str) -> str:
    """The text that the student would be trained on; empty if the completion has no rationale."""
    thought, reply = completion.thought.strip(), completion.rationale.strip()
    if thinking == "only":
        return thought
    if thinking == "keep":
        return f"{thought}\n{reply}".strip()
    return "" if thought and only_an_answer(reply) else reply


def _why_empty(completion: Completion, thinking: str) -> str:
    """The reason code of a completion without a rationale."""
    _, never_given, reason = (completion.finish_reason or "").rpartition(REFUSED)
    if never_given:
        return reason
    if completion.thought:
        return "truncated" if completion.finish_reason == "length" else THOUGHT_ONLY
    return "no_thought" if thinking == "only" and completion.rationale.strip() else "empty"


def _majority(predictions: Sequence[str | None]) -> str:
    """The most frequent answer, if at least two completions give it and no other answer is as frequent; else empty."""
    (answer, n_votes), (_, n_next) = [*votes(predictions).items(), ("", 0), ("", 0)][:2]
    return answer if n_votes > max(1, n_next) else ""


def undersample(kept: Iterable[tuple[int, int]], n: int) -> set[tuple[int, int]]:
    """Draw at most ``n`` of the kept completions (sample index, completion index) at random, with a fixed seed.

    With a smaller ``n``, the result is a subset of the result with a larger one.
    """
    return set(sorted(kept, key=lambda indices: fingerprint(["undersample", *indices]))[:n])


def expected_kept_rate(random_guess: float, teacher_accuracy: float | None) -> float:
    """The kept rate (0 to 1) below which something is probably wrong.

    It is the largest of 5 %, the accuracy of guessing, and half of the accuracy of paper A's teacher.

    Args:
        random_guess: The accuracy of guessing on the task, in percent.
        teacher_accuracy: The accuracy of text-davinci-002 on the task, in percent; None if unknown.
    """
    return max(0.05, random_guess / 100, 0.5 * (teacher_accuracy or 0.0) / 100)
