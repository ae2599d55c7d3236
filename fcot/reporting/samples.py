"""What the page's browsers show: per problem the teacher's completions, the answers of all runs, and its path through rounds.

Everything is read from the files that runs leave, in two passes: the first counts and measures, so that the second holds the
texts of those problems only that are shown.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal, TypeVar

from fcot.base.errors import FcotError
from fcot.base.files import file_fingerprint
from fcot.base.records import CuratedCompletion, ExamResult, Feedback, Prediction, Problem, from_row
from fcot.base.run_folder import RunDirectory
from fcot.evaluation.errors import Marked
from fcot.reporting.document import RunFiles

ProblemsOf = Callable[[RunFiles], Iterable[Problem]]
Key = tuple[int, int]  # data set, sample index
_INFLATED = 6  # times the limit: a browser holds it twice, as it is and in lower case for the search
_DAMAGE = (ValueError, TypeError, KeyError, AttributeError)
Row = TypeVar("Row")


@dataclass(frozen=True)
class Samples:
    """The data of the page's browsers.

    Attributes:
        packed: JSON, deflated: see :func:`_written` and :func:`_tail`.
        shown: How many problems are in it.
        total: How many there are.
        paths: How many problems have a path through rounds.
        warnings: Which files are missing or damaged.
    """

    packed: bytes
    shown: int
    total: int
    paths: int
    warnings: Sequence[str]


def read_samples(runs: Sequence[RunFiles], limit: int, problems_of: ProblemsOf | None = None) -> Samples:
    """Read the samples of some runs.

    Args:
        runs: In the order in which they are shown.
        limit: On ``packed``, in bytes. Problems that do not fit are left out whole; those where runs disagree or are wrong
            come first, tasks alternate.
        problems_of: The problems of a run's data set. No file of a run has the questions it trained on; without it they are
            shown only where another run was tested or examined on them.
    """
    warnings: dict[str, None] = {}
    data = _DataSets(runs)
    facts: dict[Key, _Facts] = {}
    for found in _find(runs, data, warnings):
        _add(facts.setdefault(found.key, _Facts()), found, warnings)
    order = _by_interest(facts)
    chosen, size = [], 0
    for key in order:
        if size + facts[key].size <= _INFLATED * limit:
            chosen.append(key)
            size += facts[key].size
    problems = {key: _Shown() for key in chosen}
    for found in _find(runs, data, warnings):
        if found.key in problems:
            _add(problems[found.key], found, warnings)
    _add_questions(problems, runs, data, problems_of, warnings)
    return _pack(problems, runs, data, limit, len(facts), list(warnings))


class _DataSets:
    """Which runs have the same problems: those of one task and one list of questions."""

    def __init__(self, runs: Sequence[RunFiles]) -> None:
        known: dict[tuple[str, object], int] = {}
        self.of_run = [known.setdefault(_data_set(run), len(known)) for run in runs]
        tasks = [task for task, _ in known]
        self.tasks = tasks
        # A sample is named by task and index; further data sets of one task are told apart by a number.
        self.suffixes = [f"~{1 + tasks[:place].count(task)}" if task in tasks[:place] else "" for place, task in enumerate(tasks)]


def _data_set(run: RunFiles) -> tuple[str, object]:
    return str(run.metrics.get("task")), run.metrics.get("questions_sha256")


@dataclass(frozen=True)
class _Found:
    """A row of a run's files.

    Attributes:
        runs: Numbers of the runs that share it.
        round: Of a run of rounds, and of every completion: a first round asks the teacher as all runs do. Else None.
        row: The record.
        size: Of its line, in bytes.
    """

    kind: Literal["answer", "marks", "completion", "exam", "feedback", "judged", "test"]
    key: Key
    runs: tuple[int, ...]
    round: int | None
    row: Any
    size: int


def _find(runs: Sequence[RunFiles], data: _DataSets, warnings: dict[str, None]) -> Iterator[_Found]:
    """All rows of all runs; completions that several runs share once."""
    shared: dict[tuple[int, str], list[int]] = {}
    files: dict[tuple[int, str], Path] = {}
    for number, run in enumerate(runs):
        folder, of = run.directory, data.of_run[number]
        reader = _Reader(of, (number,), warnings)
        yield from reader.rows("answer", folder.predictions, Prediction)
        yield from reader.rows("marks", folder.errors, Marked)
        rounds = [held["round"] for held in run.metrics.get("rounds") or ()]
        for one in rounds:
            yield from _of_round(reader, folder.round(one), one)
        if run.metrics.get("completions_asked") and reader.exists(folder.curated):
            key = of, file_fingerprint(folder.curated)
            shared.setdefault(key, []).append(number)
            files[key] = folder.curated
    for key, numbers in shared.items():
        yield from _Reader(key[0], tuple(numbers), warnings).rows("completion", files[key], CuratedCompletion)


def _of_round(reader: _Reader, folder: RunDirectory, number: int) -> Iterator[_Found]:
    """What a round left; a first round asks the teacher as any run does, and a round's files may have been deleted."""
    if folder.exam.exists():
        yield from reader.rows("exam", folder.exam, ExamResult, number)
    if folder.feedback.exists():
        yield from reader.rows("feedback", folder.feedback, Feedback, number)
        yield from reader.rows("judged", folder.curated, CuratedCompletion, number)
    if folder.predictions.exists():
        yield from reader.rows("test", folder.predictions, Prediction, number)


@dataclass(frozen=True)
class _Reader:
    """Reads the files of one run, or one file of several; what cannot be read becomes a warning."""

    data_set: int
    runs: tuple[int, ...]
    warnings: dict[str, None]

    def exists(self, path: Path) -> bool:
        """Whether a file is there that should be."""
        if not path.exists():
            self.warnings[f"{path} is missing"] = None
        return path.exists()

    def rows(self, kind: Any, path: Path, record: type[Row], number: int | None = None) -> Iterator[_Found]:
        """The rows of a file; damaged lines are left out."""
        damaged = 0
        if not self.exists(path):
            return
        try:
            with path.open("rb") as file:
                for line in file:
                    try:
                        row = json.loads(line)
                        of_round = max(row.get("round") or 1, 1) if kind == "completion" else number
                        yield _Found(kind, (self.data_set, int(row["sample_index"])), self.runs, of_round, from_row(record, row), len(line))
                    except _DAMAGE:
                        damaged += 1
        except OSError as error:
            self.warnings[f"{path} cannot be read: {error.strerror}"] = None
        if damaged:
            self.warnings[f"{path}: {damaged:,} damaged {'line is' if damaged == 1 else 'lines are'} left out"] = None


@dataclass
class _Facts:
    """What is to be known of a problem to decide whether it is shown."""

    size: int = 0
    right: int = 0
    wrong: int = 0
    kept: int = 0
    refused: int = 0
    path: bool = False

    def add(self, found: _Found) -> None:
        """One more row about it."""
        self.size += found.size - len(str(getattr(found.row, "question", "")))  # written once
        self.path |= found.kind in ("exam", "feedback")
        if found.kind == "answer":
            self.right += bool(found.row.correct)
            self.wrong += not found.row.correct
        if found.kind == "completion":
            self.kept += bool(found.row.kept)
            self.refused += not found.row.kept

    @property
    def interest(self) -> int:
        """0 for the problems from which there is most to learn."""
        if self.right or self.wrong:
            return 0 if self.right and self.wrong else 1 if self.wrong else 2
        return 0 if self.path else 1 if self.refused else 2


def _by_interest(facts: Mapping[Key, _Facts]) -> list[Key]:
    """All problems: data sets alternate, and in each those that students answered with those that only the teacher did."""
    queues: dict[tuple[int, bool], list[Key]] = {}
    for key in sorted(facts, key=lambda key: (facts[key].interest, key)):
        queues.setdefault((key[0], bool(facts[key].right or facts[key].wrong)), []).append(key)
    alternating = chain.from_iterable(zip_longest(*(queues[name] for name in sorted(queues))))
    return [key for key in alternating if key is not None]


def _add(problem: _Facts | _Shown, found: _Found, warnings: dict[str, None]) -> None:
    """Add a row, unless a field of it holds what it never should."""
    try:
        problem.add(found)
    except _DAMAGE as error:
        warnings[f"problem {found.key[1]}: a row of kind {found.kind} is left out ({error})"] = None


@dataclass
class _Shown:
    """All that is shown of a problem."""

    question: str | None = None
    gold: str | None = None
    answers: dict[int, list[Any]] = field(default_factory=dict)
    marks: dict[int, list[Any]] = field(default_factory=dict)
    completions: dict[tuple[Any, ...], set[int]] = field(default_factory=dict)
    events: dict[int, list[tuple[int, int, list[Any]]]] = field(default_factory=dict)  # round, rank within it
    judged: dict[tuple[int, int, int], CuratedCompletion] = field(default_factory=dict)  # run, round, completion

    def add(self, found: _Found) -> None:
        """One more row about it."""
        row, run, number = found.row, found.runs[0], found.round or 0
        if found.kind in ("answer", "exam", "test"):
            self.question, self.gold = row.question, row.answer
        if found.kind == "answer":
            self.answers[run] = [run, row.completion, row.prediction, int(bool(row.correct)), int(bool(row.complete)), row.n_tokens]
        elif found.kind == "marks":
            self.marks[run] = [list(row.marks), row.equation]
        elif found.kind == "completion":
            self.gold = self.gold or row.answer
            shown = number, row.completion_index, row.rationale, row.prediction, int(bool(row.correct)), row.reason
            self.completions.setdefault(shown, set()).update(found.runs)
        elif found.kind == "judged":
            self.judged[run, number, row.completion_index] = row
        elif found.kind == "exam":
            self._event(run, number, 0, ["exam", number, row.n_correct, row.n_answers, list(row.mistakes), list(row.right[:1])])
        elif found.kind == "feedback":
            self._event(run, number, 1, ["feedback", number, row.completion_index, list(row.mistakes), row.rationale, row.answer_text])
        else:
            self._event(run, number, 2, ["test", number, row.completion, row.prediction, int(bool(row.correct))])

    def _event(self, run: int, number: int, rank: int, event: list[Any]) -> None:
        self.events.setdefault(run, []).append((number, rank, event))


def _add_questions(
    problems: Mapping[Key, _Shown], runs: Sequence[RunFiles], data: _DataSets, problems_of: ProblemsOf | None, warnings: dict[str, None]
) -> None:
    """Questions of problems that no run was tested or examined on, from the data itself."""
    if problems_of is None:
        return
    for data_set in sorted({key[0] for key, problem in problems.items() if problem.question is None}):
        run = runs[data.of_run.index(data_set)]
        try:
            for one in problems_of(run):
                shown = problems.get((data_set, one.sample_index))
                if shown is not None and shown.question is None:
                    shown.question, shown.gold = one.question, one.answer
        except (FcotError, OSError, *_DAMAGE) as error:
            warnings[f"the train questions of {run.metrics['task']} cannot be read: {error}"] = None


def _pack(
    problems: Mapping[Key, _Shown], runs: Sequence[RunFiles], data: _DataSets, limit: int, total: int, warnings: list[str]
) -> Samples:
    """Deflate what fits: ``{"problems": [...], ...}``."""
    groups: dict[tuple[int, ...], int] = {}  # runs that share completions
    for problem in problems.values():
        for shared in problem.completions.values():
            groups.setdefault(tuple(sorted(shared)), len(groups))
    tail = _tail(runs, data, groups, total)
    writer = _Deflated(limit - len(tail))
    writer.add(b'{"problems":[')
    shown = paths = 0
    for key, problem in problems.items():
        text = _written(key, problem, data, groups)
        if writer.fits(len(text) + 1):
            writer.add(text if shown == 0 else b"," + text)
            shown += 1
            paths += bool(problem.events)
    writer.add(b"]" + tail)
    return Samples(writer.end(), shown, total, paths, warnings)


class _Deflated:
    """A zlib stream of limited length."""

    def __init__(self, limit: int) -> None:
        self._stream = zlib.compressobj(6)
        self._parts: list[bytes] = []
        self._limit = limit - 64  # what ending the stream takes
        self._written = self._pending = 0

    def fits(self, size: int) -> bool:
        """Whether so much more fits, even if it does not shrink."""
        if self._written + self._pending + size > self._limit:
            self._take(self._stream.flush(zlib.Z_SYNC_FLUSH))  # then it is known what the pending bytes came to
            self._pending = 0
        return self._written + size <= self._limit

    def add(self, text: bytes) -> None:
        """Append."""
        self._pending += len(text) + 16
        self._take(self._stream.compress(text))

    def _take(self, part: bytes) -> None:
        self._parts.append(part)
        self._written += len(part)

    def end(self) -> bytes:
        """The whole stream."""
        self._take(self._stream.flush())
        return b"".join(self._parts)


def _written(key: Key, problem: _Shown, data: _DataSets, groups: Mapping[tuple[int, ...], int]) -> bytes:
    """A problem: data set, name, question, gold answer, completions, answers, paths."""
    for run, answer in problem.answers.items():
        answer += problem.marks.get(run, [[], None])
    # The one shared by most runs first: D = 8 is a prefix of D = 64.
    completions = sorted(problem.completions.items(), key=lambda item: (*item[0][:2], sorted(item[1])))
    return _json([
        key[0], f"{data.tasks[key[0]]}/{key[1]}{data.suffixes[key[0]]}", problem.question, problem.gold,
        [[*shown, groups[tuple(sorted(runs))]] for shown, runs in completions],
        list(problem.answers.values()),
        [[run, [_judged(event, run, problem) for *_, event in sorted(events, key=lambda event: event[:2])]]
         for run, events in problem.events.items()],
    ])  # fmt: skip


def _judged(event: list[Any], run: int, problem: _Shown) -> list[Any]:
    """An event; the teacher's feedback with curation's verdict."""
    if event[0] != "feedback":
        return event
    verdict = problem.judged.get((run, event[1], event[2]))
    return [*event, *((int(bool(verdict.kept)), verdict.reason) if verdict else (None, None))]


def _tail(runs: Sequence[RunFiles], data: _DataSets, groups: Iterable[tuple[int, ...]], total: int) -> bytes:
    """What the problems refer to by number."""
    return b"," + _json({
        "tasks": data.tasks,
        "runs": [{"label": run.label, "method": str(run.metrics.get("method")), "task": str(run.metrics.get("task"))} for run in runs],
        "groups": [list(group) for group in groups],
        "total": total,
    })[1:]  # fmt: skip


def _json(value: Any) -> bytes:
    """JSON; half of a surrogate pair, which UTF-8 does not have, becomes a replacement character."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
