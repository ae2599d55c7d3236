"""Collect the data of the page's browsers: per problem the teacher's completions, the answers of all runs, and its rounds.

Everything is read from the runs' files in two passes. The first one counts and measures all problems and chooses some; the second one loads
the texts of the chosen problems only.
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
Key = tuple[int, int]  # number of the dataset, sample index
# Maximum uncompressed size as a multiple of the limit: a browser holds the text twice, the second time in lower case for the search.
_INFLATED = 6
_DAMAGE = (ValueError, TypeError, KeyError, AttributeError)
Row = TypeVar("Row")


@dataclass(frozen=True)
class Samples:
    """The data of the page's browsers.

    Attributes:
        packed: Deflated JSON: see :func:`_problem_json` and :func:`_tail`.
        shown: Number of problems in it.
        total: Number of problems in the runs' files.
        paths: Number of problems in it with a path through rounds.
        warnings: The missing or damaged files.
    """

    packed: bytes
    shown: int
    total: int
    paths: int
    warnings: Sequence[str]


def read_samples(runs: Sequence[RunFiles], limit: int, problems_of: ProblemsOf | None = None) -> Samples:
    """Read the samples of some runs.

    Args:
        runs: The runs in the order in which they are shown.
        limit: Maximum size of ``packed`` in bytes. Problems that do not fit are left out. Problems on which runs disagree or are wrong
            come first; tasks alternate.
        problems_of: Loads the problems of a run's dataset, for files of earlier versions, which lack the questions that a run trained on.
            With None these are shown only if another run was tested or examined on them.
    """
    warnings: dict[str, None] = {}
    data = _DataSets(runs)
    facts: dict[Key, _Facts] = {}
    for item in _items(runs, data, warnings):
        _add(facts.setdefault(item.key, _Facts()), item, warnings)
    order = _by_interest(facts)
    chosen, size = [], 0
    for key in order:
        if size + facts[key].size <= _INFLATED * limit:
            chosen.append(key)
            size += facts[key].size
    problems = {key: _Shown() for key in chosen}
    for item in _items(runs, data, warnings):
        if item.key in problems:
            _add(problems[item.key], item, warnings)
    _add_questions(problems, runs, data, problems_of, warnings)
    return _pack(problems, runs, data, limit, len(facts), list(warnings))


class _DataSets:
    """Numbers the datasets of runs: runs with the same task and the same questions share one."""

    def __init__(self, runs: Sequence[RunFiles]) -> None:
        known: dict[tuple[str, object], int] = {}
        self.of_run = [known.setdefault(_data_set(run), len(known)) for run in runs]
        tasks = [task for task, _ in known]
        self.tasks = tasks
        # A sample is named by task and index; a suffix distinguishes further datasets of the same task.
        self.suffixes = [f"~{1 + tasks[:place].count(task)}" if task in tasks[:place] else "" for place, task in enumerate(tasks)]


def _data_set(run: RunFiles) -> tuple[str, object]:
    return str(run.metrics.get("task")), run.metrics.get("questions_sha256")


@dataclass(frozen=True)
class _Item:
    """A row of a run's files.

    Attributes:
        kind: What the row is about.
        key: Its problem.
        runs: Numbers of the runs that share it.
        round: The round in tailored learning, 1 for the completions of all other methods; None for other rows.
        row: The record.
        size: The size of its line in bytes.
    """

    kind: Literal["answer", "marks", "completion", "exam", "feedback", "judged", "test"]
    key: Key
    runs: tuple[int, ...]
    round: int | None
    row: Any
    size: int


def _items(runs: Sequence[RunFiles], data: _DataSets, warnings: dict[str, None]) -> Iterator[_Item]:
    """All rows of all runs. Completions that several runs share come once."""
    shared: dict[tuple[int, str], list[int]] = {}
    files: dict[tuple[int, str], Path] = {}
    for number, run in enumerate(runs):
        folder, data_set = run.directory, data.of_run[number]
        reader = _Reader(data_set, (number,), warnings)
        if run.evaluated:
            yield from reader.rows("answer", folder.predictions, Prediction)
            yield from reader.rows("marks", folder.errors, Marked)
        for round_metrics in run.metrics.get("rounds") or ():
            yield from _round_items(reader, folder.round(round_metrics["round"]), round_metrics["round"])
        if run.metrics.get("completions_asked") and reader.exists(folder.curated):
            key = data_set, file_fingerprint(folder.curated)
            shared.setdefault(key, []).append(number)
            files[key] = folder.curated
    for key, numbers in shared.items():
        yield from _Reader(key[0], tuple(numbers), warnings).rows("completion", files[key], CuratedCompletion)


def _round_items(reader: _Reader, folder: RunDirectory, number: int) -> Iterator[_Item]:
    """The rows of a round. A first round has no feedback, and a round's files may have been deleted."""
    if folder.exam.exists():
        yield from reader.rows("exam", folder.exam, ExamResult, number)
    if folder.feedback.exists():
        yield from reader.rows("feedback", folder.feedback, Feedback, number)
        yield from reader.rows("judged", folder.curated, CuratedCompletion, number)
    if folder.predictions.exists():
        yield from reader.rows("test", folder.predictions, Prediction, number)


@dataclass(frozen=True)
class _Reader:
    """Reads the files of one run, or a file that several runs share; what cannot be read becomes a warning."""

    data_set: int
    runs: tuple[int, ...]
    warnings: dict[str, None]

    def exists(self, path: Path) -> bool:
        """Whether a required file exists; if not, warn."""
        if not path.exists():
            self.warnings[f"{path} is missing"] = None
        return path.exists()

    def rows(self, kind: Any, path: Path, record: type[Row], number: int | None = None) -> Iterator[_Item]:
        """The rows of a file; damaged lines are left out.

        Args:
            kind: The kind of the items.
            path: The file, in JSON Lines.
            record: The class of its rows.
            number: The round, None outside rounds; completions have theirs in the row.
        """
        damaged = 0
        if not self.exists(path):
            return
        try:
            with path.open("rb") as file:
                for line in file:
                    try:
                        row = json.loads(line)
                        round_number = max(row.get("round") or 1, 1) if kind == "completion" else number
                        key = self.data_set, int(row["sample_index"])
                        yield _Item(kind, key, self.runs, round_number, from_row(record, row), len(line))
                    except _DAMAGE:
                        damaged += 1
        except OSError as error:
            self.warnings[f"{path} cannot be read: {error.strerror}"] = None
        if damaged:
            self.warnings[f"{path}: {damaged:,} damaged {'line is' if damaged == 1 else 'lines are'} left out"] = None


@dataclass
class _Facts:
    """The counts that decide whether a problem is shown."""

    size: int = 0
    right: int = 0
    wrong: int = 0
    kept: int = 0
    rejected: int = 0
    has_path: bool = False

    def add(self, item: _Item) -> None:
        """Count a row about the problem."""
        self.size += item.size - len(str(getattr(item.row, "question", "")))  # the question is written once only
        self.has_path |= item.kind in ("exam", "feedback")
        if item.kind == "answer":
            self.right += bool(item.row.correct)
            self.wrong += not item.row.correct
        if item.kind == "completion":
            self.kept += bool(item.row.kept)
            self.rejected += not item.row.kept

    @property
    def interest(self) -> int:
        """The problem's rank: 0 for the most instructive problems, 2 for the least."""
        if self.right or self.wrong:
            return 0 if self.right and self.wrong else 1 if self.wrong else 2
        return 0 if self.has_path else 1 if self.rejected else 2


def _by_interest(facts: Mapping[Key, _Facts]) -> list[Key]:
    """All problems in the order in which they are shown.

    Datasets alternate. Within a dataset, problems with answers of students alternate with those that have completions of the teacher only.
    """
    queues: dict[tuple[int, bool], list[Key]] = {}
    for key in sorted(facts, key=lambda key: (facts[key].interest, key)):
        queues.setdefault((key[0], bool(facts[key].right or facts[key].wrong)), []).append(key)
    alternating = chain.from_iterable(zip_longest(*(queues[name] for name in sorted(queues))))
    return [key for key in alternating if key is not None]


def _add(problem: _Facts | _Shown, item: _Item, warnings: dict[str, None]) -> None:
    """Add a row; one with an invalid field becomes a warning."""
    try:
        problem.add(item)
    except _DAMAGE as error:
        warnings[f"problem {item.key[1]}: a row of kind {item.kind} is left out ({error})"] = None


@dataclass
class _Shown:
    """The texts of a problem that is shown.

    Attributes:
        question: None until a row has it.
        gold: The gold answer.
        id: The problem's own id in the user's data; None if it has none.
        answers: By run: the cells of its answer.
        marks: By run: the marks and the wrong equation of its answer.
        completions: By the completion's cells: the runs that share it.
        events: By run: (round, rank within the round, cells) of each event on its path through the rounds.
        judged: Curation's verdict on the feedback, by run, round and completion.
    """

    question: str | None = None
    gold: str | None = None
    id: str | None = None
    answers: dict[int, list[Any]] = field(default_factory=dict)
    marks: dict[int, list[Any]] = field(default_factory=dict)
    completions: dict[tuple[Any, ...], set[int]] = field(default_factory=dict)
    events: dict[int, list[tuple[int, int, list[Any]]]] = field(default_factory=dict)
    judged: dict[tuple[int, int, int], CuratedCompletion] = field(default_factory=dict)

    def add(self, item: _Item) -> None:
        """Add a row about the problem."""
        row, run, number = item.row, item.runs[0], item.round or 0
        self.id = self.id or getattr(row, "id", None)
        if item.kind in ("answer", "exam", "test"):
            self.question, self.gold = row.question, row.answer
        if item.kind == "answer":
            self.answers[run] = [run, row.completion, row.prediction, int(bool(row.correct)), int(bool(row.complete)), row.n_tokens]
        elif item.kind == "marks":
            self.marks[run] = [list(row.marks), row.equation]
        elif item.kind == "completion":
            self.question, self.gold = self.question or row.question or None, self.gold or row.answer
            cells = (
                number,
                row.completion_index,
                row.rationale,
                row.prediction,
                int(bool(row.correct)),
                row.reason,
                row.score,
                row.first_wrong_step,
            )
            self.completions.setdefault(cells, set()).update(item.runs)
        elif item.kind == "judged":
            self.judged[run, number, row.completion_index] = row
        elif item.kind == "exam":
            self._event(run, number, 0, ["exam", number, row.n_correct, row.n_answers, list(row.mistakes), list(row.right[:1])])
        elif item.kind == "feedback":
            self._event(run, number, 1, ["feedback", number, row.completion_index, list(row.mistakes), row.rationale, row.answer_text])
        else:
            self._event(run, number, 2, ["test", number, row.completion, row.prediction, int(bool(row.correct))])

    def _event(self, run: int, number: int, rank: int, event: list[Any]) -> None:
        self.events.setdefault(run, []).append((number, rank, event))


def _add_questions(
    problems: Mapping[Key, _Shown], runs: Sequence[RunFiles], data: _DataSets, problems_of: ProblemsOf | None, warnings: dict[str, None]
) -> None:
    """Add the questions of problems that no run was tested or examined on, from the dataset itself."""
    if problems_of is None:
        return
    for data_set in sorted({key[0] for key, problem in problems.items() if problem.question is None}):
        run = runs[data.of_run.index(data_set)]
        try:
            for problem in problems_of(run):
                shown = problems.get((data_set, problem.sample_index))
                if shown is not None and shown.question is None:
                    shown.question, shown.gold = problem.question, problem.answer
        except (FcotError, OSError, *_DAMAGE) as error:
            warnings[f"the train questions of {run.metrics['task']} cannot be read: {error}"] = None


def _pack(
    problems: Mapping[Key, _Shown], runs: Sequence[RunFiles], data: _DataSets, limit: int, total: int, warnings: list[str]
) -> Samples:
    """Deflate as many problems as fit into ``limit`` bytes: ``{"problems": [...], ...}``."""
    groups: dict[tuple[int, ...], int] = {}  # runs that share completions
    for problem in problems.values():
        for shared in problem.completions.values():
            groups.setdefault(tuple(sorted(shared)), len(groups))
    tail = _tail(runs, data, groups, total)
    writer = _Deflated(limit - len(tail))
    writer.add(b'{"problems":[')
    shown = paths = 0
    for key, problem in problems.items():
        text = _problem_json(key, problem, data, groups)
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
        """Whether ``size`` more bytes fit, even if they do not compress."""
        if self._written + self._pending + size > self._limit:
            self._take(self._stream.flush(zlib.Z_SYNC_FLUSH))  # this gives the compressed size of the pending bytes
            self._pending = 0
        return self._written + size <= self._limit

    def add(self, text: bytes) -> None:
        """Append text."""
        self._pending += len(text) + 16
        self._take(self._stream.compress(text))

    def _take(self, part: bytes) -> None:
        self._parts.append(part)
        self._written += len(part)

    def end(self) -> bytes:
        """End the stream and return it."""
        self._take(self._stream.flush())
        return b"".join(self._parts)


def _problem_json(key: Key, problem: _Shown, data: _DataSets, groups: Mapping[tuple[int, ...], int]) -> bytes:
    """A problem as a JSON list: dataset, name, question, gold answer, completions, answers, paths, id."""
    for run, answer in problem.answers.items():
        answer += problem.marks.get(run, [[], None])
    # By round and number, so that the completions shared by most runs come first: D = 8 is a prefix of D = 64.
    completions = sorted(problem.completions.items(), key=lambda item: (*item[0][:2], sorted(item[1])))
    return _json([
        key[0], f"{data.tasks[key[0]]}/{key[1]}{data.suffixes[key[0]]}", problem.question, problem.gold,
        [[*cells[:-2], groups[tuple(sorted(runs))], *(cells[-2:] if any(cell is not None for cell in cells[-2:]) else ())]
         for cells, runs in completions],
        list(problem.answers.values()),
        [[run, [_judged(event, run, problem) for *_, event in sorted(events, key=lambda event: event[:2])]]
         for run, events in problem.events.items()],
        problem.id,
    ])  # fmt: skip


def _judged(event: list[Any], run: int, problem: _Shown) -> list[Any]:
    """An event's cells; those of the teacher's feedback are extended by curation's verdict."""
    if event[0] != "feedback":
        return event
    verdict = problem.judged.get((run, event[1], event[2]))
    return [*event, *((int(bool(verdict.kept)), verdict.reason) if verdict else (None, None))]


def _tail(runs: Sequence[RunFiles], data: _DataSets, groups: Iterable[tuple[int, ...]], total: int) -> bytes:
    """The rest of the JSON object: the tasks, runs and groups that the problems refer to by number."""
    return b"," + _json({
        "tasks": data.tasks,
        "runs": [{"label": run.label, "method": _method(run), "task": str(run.metrics.get("task"))} for run in runs],
        "groups": [list(group) for group in groups],
        "total": total,
    })[1:]  # fmt: skip


def _method(run: RunFiles) -> str:
    """What the filter of methods shows: a preset's title, or the key of a title in ``page/samples.js``."""
    return str(run.metrics.get("method_title") or run.metrics.get("method"))


def _json(value: Any) -> bytes:
    """Compact JSON; unpaired surrogates, which UTF-8 cannot encode, become replacement characters."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
