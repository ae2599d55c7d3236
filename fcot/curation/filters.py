"""Curation: pure filters from completions to reasoning samples, each refusal with a reason code.

The ``answer`` filter alone is paper A's rule: keep a completion iff its parsed answer equals the gold one; the student
then trains on the gold answer.

A filter is a function of a :class:`Candidate` and of the settings that it names as further parameters. It returns the reason to reject
the candidate, or None. A setting's value is ``curation.<name>`` where ``curation`` has that option, else ``curation.settings.<name>``, else
the parameter's default. A filter is given these settings and no others, and they count in the identity of the runs that use the filter: a
filter cannot read a setting that the identity does not know.
"""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

from fcot.base.errors import FcotError
from fcot.base.files import fingerprint
from fcot.base.plugins import load_function
from fcot.base.records import REFUSED, Completion, CuratedCompletion, Problem
from fcot.curation.equations import wrong_equations
from fcot.prompts.answers import AnswerRule, votes
from fcot.prompts.numbers import Reading
from fcot.prompts.thinking import only_an_answer

Read = Callable[[Completion, AnswerRule], Reading]
Filter = Callable[..., str | None]  # of a candidate and settings: the reason to reject it, None to keep it
Golden = Mapping[int, frozenset[int] | None]  # completion indices by sample index; None for all of a problem


@dataclass(frozen=True)
class Rules:
    """What becomes a reasoning sample.

    Attributes:
        filters: Names for :func:`filter_named`, in order; and ``concise``, which looks at what the others leave: of a problem's
            completions it keeps the shortest (paper A, limitation 7.1).
        thinking: What of a completion is its rationale: what the model said (``strip``), its thought and what it said (``keep``), or
            its thought alone (``only``).
        labels: ``gold``; ``vote``: of a problem without a gold answer, the one that most of its D completions give, two at
            least (self-consistency labelling); ``vote_all``: of every problem, as if no gold answer were known.
        writable: Whether the student's vocabulary can write a text; None where every vocabulary can.
        settings: Those that the filters read, by name; and ``golden`` wherever a file of golden ids is given.
    """

    filters: Sequence[str]
    labels: str = "gold"
    thinking: str = "strip"
    writable: Callable[[str], bool] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def golden(self) -> Golden:
        """The golden ids, none where there is no file."""
        return self.settings.get("golden") or {}


@dataclass
class Candidate:
    """What a filter may look at.

    Attributes:
        completion: The teacher's output.
        rationale: The text that the student would be trained on; never empty.
        answer: The teacher's answer, or why none was read.
        agrees: Whether it equals the label.
        voted: Whether the label is the majority's answer rather than a gold one.
        kept_before: Rationales of the same problem that were kept, with single spaces.
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
    "length": _length,
    "repetition": _repetition,
    "arithmetic": _arithmetic,
    "golden": _golden,
}
CONCISE = "concise"
REQUIRED = inspect.Parameter.empty


def filter_named(name: str) -> Filter:
    """A filter of :data:`FILTERS`, or a user's own by ``module.function``.

    Raises:
        FcotError: There is none.
    """
    return FILTERS[name] if name in FILTERS else load_function("curation.filters", name)


def settings_of(name: str) -> dict[str, Any]:
    """The settings that a filter reads, by name, with their defaults; ``REQUIRED`` where it has none.

    Raises:
        FcotError: There is no such filter.
    """
    return {} if name == CONCISE else _settings_of(filter_named(name))


@cache
def _settings_of(judge: Filter) -> dict[str, Any]:
    settings = list(inspect.signature(judge).parameters.values())[1:]
    if any(setting.kind in (setting.VAR_POSITIONAL, setting.VAR_KEYWORD) for setting in settings):
        raise FcotError(f"curation.filters: {judge.__qualname__} takes any settings; name each one, because their values name the run")
    return {setting.name: setting.default for setting in settings}


def most_repeated(text: str) -> int:
    """How often the sentence or line that a text repeats most stands in it; those of one word do not count."""
    sentences = (" ".join(part.split()).lower() for part in re.split(r"(?<=[.!?])\s+|\n+", text))
    return max(Counter(sentence for sentence in sentences if " " in sentence).values(), default=0)


def stutters(text: str) -> bool:
    """Whether a few words follow themselves again and again: up to three of them eight times, up to ten of them four times."""
    words = text.split()
    for size in range(1, 11):
        run, enough = 0, size * ((8 if size <= 3 else 4) - 1)
        for here, before in zip(words[size:], words, strict=False):
            run = run + 1 if here == before else 0
            if run >= enough:
                return True
    return False


def curate(
    completions: Iterable[Completion], problems: Mapping[int, Problem], rule: AnswerRule, read: Read, rules: Rules
) -> Iterator[CuratedCompletion]:
    """The verdict on each completion; the first filter that refuses gives the reason.

    A completion the teacher never gave is refused whatever the rules are, for the reason it was not given (``empty``,
    ``content_filter``, ``too_long``...).

    Args:
        completions: Raw teacher outputs; those of one problem follow each other.
        problems: By sample index, for the gold answers; an unlabelled problem has an empty one.
        rule: How answers are compared.
        read: The prompt's parser.
        rules: What is kept.
    """
    for index, group in groupby(completions, key=lambda completion: completion.sample_index):
        drawn = list(group)
        rows = _judge(drawn, [read(completion, rule) for completion in drawn], problems[index], rule, rules)
        kept = [row for row in rows if row.kept]
        if CONCISE in rules.filters and kept:
            shortest = min(kept, key=lambda row: len(row.rationale.split()))
            rows = [replace(row, kept=False, reason="not_shortest") if row.kept and row is not shortest else row for row in rows]
        yield from rows


def _judge(
    drawn: Sequence[Completion], answers: Sequence[Reading], problem: Problem, rule: AnswerRule, rules: Rules
) -> list[CuratedCompletion]:
    """The verdicts on one problem's completions, one by one."""
    voted = rules.labels == "vote_all" or (rules.labels == "vote" and not problem.labelled)
    label = _majority([answer.value for answer in answers]) if voted else problem.answer
    rows, kept_before = [], set[str]()
    filters = [
        partial(filter_named(name), **{setting: rules.settings[setting] for setting in settings_of(name) if setting in rules.settings})
        for name in rules.filters if name != CONCISE
    ]  # fmt: skip
    for completion, answer in zip(drawn, answers, strict=True):
        prediction = answer.value
        rationale = _rationale(completion, rules.thinking)
        candidate = Candidate(completion, rationale, answer, rule.same(prediction, label), voted, kept_before)
        if rationale and voted and not label:
            reason: str | None = "no_majority"
        elif rationale and rules.writable and not rules.writable(f"{problem.question}\n{rationale}\n{label}"):
            reason = "special_token"
        elif rationale:
            reason = next((reason for judge in filters if (reason := judge(candidate))), None)
        else:
            reason = _why_empty(completion, rules.thinking)
        if reason is None:
            kept_before.add(" ".join(rationale.split()))
        correct = rule.same(prediction, problem.answer)
        slot = completion.completion_index
        rows.append(CuratedCompletion(completion.sample_index, slot, prediction, correct, reason is None, reason, rationale, label))
    return rows


def _rationale(completion: Completion, thinking: str) -> str:
    """The text that the student would be trained on; empty where there is none."""
    thought, said = completion.thought.strip(), completion.rationale.strip()
    if thinking == "only":
        return thought
    if thinking == "keep":
        return f"{thought}\n{said}".strip()
    return "" if thought and only_an_answer(said) else said


def _why_empty(completion: Completion, thinking: str) -> str:
    """Why a completion has no rationale."""
    _, never_given, why = (completion.finish_reason or "").rpartition(REFUSED)
    if never_given:
        return why
    if completion.thought:
        return "truncated" if completion.finish_reason == "length" else "thought_only"
    return "no_thought" if thinking == "only" and completion.rationale.strip() else "empty"


def _majority(predictions: Sequence[str | None]) -> str:
    """The answer that more completions than any other give, two at least; empty without one."""
    (first, most), (_, next_most) = [*votes(predictions).items(), ("", 0), ("", 0)][:2]
    return first if most > max(1, next_most) else ""


def undersample(kept: Iterable[tuple[int, int]], n: int) -> set[tuple[int, int]]:
    """``n`` of the kept completions (sample and completion index), drawn at random by a fixed seed; all where there are fewer.

    A smaller ``n`` takes a part of what a larger one takes.
    """
    return set(sorted(kept, key=lambda one: fingerprint(["undersample", *one]))[:n])


def read_golden(path: Path) -> dict[int, frozenset[int] | None]:
    """Golden ids: ``[sample index, ...]``, or ``{"sample index": [completion index, ...]}``.

    Raises:
        FcotError: Not such a file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique)
        if isinstance(data, list):
            return {_index(index): None for index in data}
        return {int(index): frozenset(map(_index, chosen)) for index, chosen in data.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        shape = '[sample index, ...] or {"sample index": [completion index, ...]}'
        raise FcotError(f"curation.golden={path}: expected {shape} ({error})") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if twice := [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]:
        raise ValueError(f"{twice[0]!r} stands twice")
    return dict(pairs)


def _index(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is no index")
    return value


def count_reasons(curated: Iterable[CuratedCompletion]) -> dict[str, int]:
    """Refused completions by reason code, the most frequent first."""
    return dict(Counter(row.reason for row in curated if row.reason).most_common())


def expected_share(random_guess: float, teacher_accuracy: float | None) -> float:
    """The kept share (0 to 1) below which something is probably wrong.

    Half of what text-davinci-002 reached on the task, or what guessing reaches, whichever is more; 5 % where nothing
    is known.
    """
    return max(0.05, random_guess / 100, 0.5 * (teacher_accuracy or 0.0) / 100)
