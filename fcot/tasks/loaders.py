"""Turns the rows of a source into problems, and names every faulty row."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from fcot.base.console import watched
from fcot.base.errors import FcotError
from fcot.base.records import Problem
from fcot.tasks.answers import AnswerReader, Answers
from fcot.tasks.decimals import POINT
from fcot.tasks.guesses import guess_column
from fcot.tasks.hub import HubSource
from fcot.tasks.reading import Row, Rows, load_hub, read_rows
from fcot.tasks.table import TASKS, Task

PARTS = ("train", "validation", "test")
SAMPLE_INDEX = "sample_index"
_MISSING = frozenset(("NaN", "null", "<NA>"))  # words by which pandas or JSON write a missing value
_SHOWN_FAULTS = 20


@dataclass(frozen=True)
class Columns:
    """The names of a source's columns.

    Attributes:
        question: The question.
        answer: The gold answer; None: the source has none.
        rationale: A person's rationale. A column with the default name may be missing.
        template: Template ids. A column with the default name may be missing.
        index: The rows' own ids, which are unique; None for none.
        group: The groups that a split keeps together; None for none.
        split: ``train``, ``validation`` or ``test``; None: the source has no split.
        options: The options of a multiple choice, in pairs of a letter and a column.
    """

    question: str = "question"
    answer: str | None = "answer"
    rationale: str = "rationale"
    template: str = "template_id"
    index: str | None = None
    group: str | None = None
    split: str | None = None
    options: tuple[tuple[str, str], ...] = ()

    @property
    def named(self) -> dict[str, str]:
        """The columns that are read, by their meaning."""
        single = (meaning for meaning in self.__dataclass_fields__ if meaning != "options")
        named = {meaning: name for meaning in single if (name := getattr(self, meaning)) is not None}
        return named | {f"option {letter}": name for letter, name in self.options}

    @property
    def needed(self) -> dict[str, str]:
        """The columns that the source must have, by their meaning."""
        default = Columns()
        optional = {name for name in ("rationale", "template") if getattr(self, name) == getattr(default, name)}
        return {meaning: name for meaning, name in self.named.items() if meaning not in optional}


@dataclass(frozen=True)
class Data:
    """The problems of a source, and the faults of its other rows.

    Attributes:
        source: The source, without the cells of its rows.
        n_rows: Number of rows, faulty ones included.
        problems: The problems of the rows without a fault, in the order of their sample indices.
        faults: A sentence for each fault, which begins with the row's place.
        n_faulty: Number of rows with a fault.
        answers: How the gold answers are written, and how they were read.
        positions: The position of a problem's row, by sample index; empty where both are the same.
        written: The answer as it is written, by sample index, where the problem's answer is spelled in another way.
    """

    source: Rows
    n_rows: int
    problems: Sequence[Problem]
    faults: Sequence[str] = ()
    n_faulty: int = 0
    answers: Answers = field(default_factory=Answers)
    positions: Mapping[int, int] = field(default_factory=dict)
    written: Mapping[int, str] = field(default_factory=dict)

    def place(self, sample_index: int) -> str:
        """The place of a problem's row, such as ``line 4``."""
        return self.source.place(self.positions.get(sample_index, sample_index))

    def answer_of(self, problem: Problem) -> str:
        """A problem's gold answer as it is written."""
        return self.written.get(problem.sample_index, problem.answer)


def load_problems(task: Task, source: str | None, columns: Columns = Columns(), unlabelled: bool = False) -> list[Problem]:
    """The task's problems in the order of their sample indices.

    Args:
        task: The task. Gold answers are checked by its rule, and problems get templates by its template pattern.
        source: What :func:`fcot.tasks.reading.read_rows` reads, or None for the task's own hub source.
        columns: Column names of the source. The task's own hub source does not use them.
        unlabelled: Whether problems without a gold answer are allowed.

    Raises:
        FcotError: The source cannot be read, lacks a column, or has faulty rows; the message has all of them (:func:`listed`).
    """
    data = load(task, source, columns, unlabelled=unlabelled)
    if data.faults:
        raise FcotError(listed(data.faults))
    return list(data.problems)


def load(
    task: Task, source: str | None, columns: Columns = Columns(), *, unlabelled: bool = False, decimal: str = POINT, normalize: bool = False
) -> Data:
    """Read a task's problems, and find the faults of its rows.

    Args:
        task: The task. Gold answers are checked by its rule, and problems get templates by its template pattern.
        source: What :func:`fcot.tasks.reading.read_rows` reads, or None for the task's own hub source.
        columns: Column names of the source. The task's own hub source does not use them.
        unlabelled: Whether problems without a gold answer are allowed. Problems that the source puts into validation or test need one.
        decimal: The decimal mark of number answers: ``point``, ``comma``, or ``auto`` for the one that fits more answers.
        normalize: Whether an answer's text is replaced by its value, so that ``$3,800`` and ``3800`` become the same text.

    Raises:
        FcotError: The source cannot be read, lacks a column, or has no rows.
    """
    if source is None:
        return to_data(task, _hub_rows(task), Columns())
    rows = read_rows(source, keep={SAMPLE_INDEX, *columns.named.values()})
    if rows.dataset_key not in (None, task.name) and task.name in TASKS:
        raise FcotError(f"{source} holds {rows.dataset_key} (its metadata.dataset_key), not {task.name}")
    return to_data(task, rows, columns, unlabelled=unlabelled, decimal=decimal, normalize=normalize)


def to_data(
    task: Task, rows: Rows, columns: Columns, *, unlabelled: bool = False, decimal: str = POINT, normalize: bool = False
) -> Data:  # fmt: skip
    """Turn rows into problems. Arguments and errors are those of :func:`load`."""
    if not rows.values:
        raise FcotError(f"{rows.name} holds no problems")
    _check_columns(rows, columns)
    written = [cell_text(row.get(columns.answer)) or "" if columns.answer else "" for row in rows.values]
    reader = AnswerReader(task.rule, written, decimal, normalize)
    pattern = re.compile(task.template_pattern, re.DOTALL) if task.template_pattern else None
    indices, ids, faults = _identify(rows, columns)
    problems: list[Problem] = []
    respelled: dict[int, str] = {}
    for position, row in enumerate(watched(rows.values, "read", "rows")):
        row_faults = faults.get(position, [])
        if position in rows.faults:
            row_faults = [rows.faults[position]]
        else:
            rationale, answer, answer_fault = reader.read(written[position])
            problem = _problem(row, columns, indices[position], ids[position], answer, rationale)
            row_faults += _faults(row, columns, problem)
            may_miss = unlabelled and problem.part in (None, "train") and not problem.labelled
            if answer_fault and not may_miss and not (columns.answer and _nested(row.get(columns.answer))):
                row_faults.append(answer_fault)
        if row_faults:
            faults[position] = row_faults
        else:
            if rationale is None and answer != written[position]:
                respelled[problem.sample_index] = written[position]
            problems.append(problem if pattern is None else _with_template(problem, pattern))
    sentences = [f"{rows.where(position)}: {fault}" for position in sorted(faults) for fault in faults[position]]
    positions = {} if indices == list(range(len(indices))) else {index: position for position, index in enumerate(indices)}
    problems.sort(key=lambda problem: problem.sample_index)
    source = replace(rows, values=[], faults={})
    return Data(source, len(rows.values), problems, sentences, len(faults), reader.summary(), positions, respelled)


def listed(faults: Sequence[str], shown: int = _SHOWN_FAULTS) -> str:
    """The first faults, one on each line, and the number of the others."""
    hidden = len(faults) - shown
    return "\n".join([*faults[:shown], *([f"and {hidden:,} more"] if hidden > 0 else [])])


def _check_columns(rows: Rows, columns: Columns) -> None:
    missing = {meaning: name for meaning, name in columns.needed.items() if name not in rows.columns}
    if not missing:
        return
    names = " or ".join(map(repr, missing.values()))
    single = [meaning for meaning in missing if not meaning.startswith("option ")]
    options = " ".join(f"dataset.{meaning}_column={guess_column(rows.columns, meaning) or '...'}" for meaning in single)
    options += f"{' ' if options else ''}'dataset.option_columns=[...]'" if len(single) < len(missing) else ""
    has = ", ".join(sorted(rows.columns))
    raise FcotError(f"{rows.name} has no column {names}; it has {has}. For your own data name the columns: {options}")


def _identify(rows: Rows, columns: Columns) -> tuple[list[int], list[str | None], dict[int, list[str]]]:
    """The sample index and the id of each row, and what is wrong with them, by position.

    Rows are numbered from 0 if ``sample_index`` is missing, or if it holds names such as ``q-17``: then these are the ids.
    """
    cells = [_index(row.get(SAMPLE_INDEX)) for row in rows.values]
    named = any(isinstance(cell, str) for cell in cells)
    faults: dict[int, list[str]] = {}
    if column := columns.index or (SAMPLE_INDEX if named else None):
        ids = [cell_text(row.get(column)) for row in rows.values]
        _check_ids(rows, ids, columns.index, faults)
    else:
        ids = [None] * len(cells)
    if named or all(cell is None for cell in cells):
        return list(range(len(cells))), ids, faults
    first: dict[int, int] = {}  # position of each sample index
    for position, cell in enumerate(cells):
        if position in rows.faults:
            continue
        if cell is None:
            faults.setdefault(position, []).append("no sample_index; other rows have one")
        elif not isinstance(cell, int):
            faults.setdefault(position, []).append(f"sample_index {cell!r} is not an integer")
        elif first.setdefault(cell, position) != position:
            fault = f"sample index {cell} is repeated (first in {rows.place(first[cell])})"
            faults.setdefault(position, []).append(fault)
    return [cell if isinstance(cell, int) else -1 for cell in cells], ids, faults


def _check_ids(rows: Rows, ids: Sequence[str | None], column: str | None, faults: dict[int, list[str]]) -> None:
    """Add a fault for each repeated id and, in a column that the user named, for each missing one."""
    first: dict[str, int] = {}
    for position, name in enumerate(ids):
        if position in rows.faults:
            continue
        if name is None or not name.strip():
            if column is not None:
                faults.setdefault(position, []).append(f"no id in the column {column!r}")
        elif first.setdefault(name, position) != position:
            faults.setdefault(position, []).append(f"the id {name!r} is repeated (first in {rows.place(first[name])})")


def _problem(row: Row, columns: Columns, index: int, own_id: str | None, answer: str, rationale: str | None) -> Problem:
    """The problem of a row. ``rationale`` is that of the answer's cell, for rows without another one."""

    def cell(column: str | None) -> str | None:
        return None if column is None else cell_text(row.get(column))

    part = cell(columns.split)
    question = cell(columns.question) or ""
    if question.strip() and (options := [f"({letter}) {text}" for letter, name in columns.options if (text := cell(name))]):
        question = f"{question} Answer Choices: {' '.join(options)}"
    return Problem(
        index, question, answer, cell(columns.rationale) or rationale, cell(columns.template), own_id,
        cell(columns.group) or None, part.strip().lower() if part else part,
    )  # fmt: skip


def _faults(row: Row, columns: Columns, problem: Problem) -> Iterator[str]:
    """What is wrong with a row, except for its ids and the reading of its answer."""
    for meaning, name in columns.named.items():
        if nested := _nested(row.get(name)):
            yield f"the {meaning} is {nested}, not one value"
    if not problem.question.strip() and not _nested(row.get(columns.question)):
        yield "empty question"
    if columns.split is not None and problem.part not in PARTS:
        yield f"the split {row.get(columns.split)!r} is none of {', '.join(PARTS)}"


def _index(value: Any) -> Any:
    """A cell's sample index: an integer if possible, None where it is missing, otherwise the cell unchanged."""
    text = None if _nested(value) else _text(value)
    if text is None or isinstance(value, bool):
        return value if text or _nested(value) else None
    return int(text) if re.fullmatch(r"-?\d{1,18}", text.strip(), re.ASCII) else value


def _nested(value: Any) -> str:
    """The name of a cell's type if the cell is an object or a list; empty if it is a single value."""
    if type(value) is str:
        return ""
    return "an object" if isinstance(value, Mapping) else "a list" if isinstance(value, list | tuple) else ""


def cell_text(value: Any) -> str | None:
    """A cell as text; None where it is missing or holds several values, which is a fault of its own."""
    return value if type(value) is str and value.isascii() and value.strip() not in _MISSING else None if _nested(value) else _text(value)


def _text(value: Any) -> str | None:
    """A cell as text. None where it is missing: null, NaN, or a word by which pandas or JSON writes them.

    Whole numbers have no ``.0``, although readers turn a column with gaps into floats.
    """
    if value is None or value != value or (isinstance(value, str) and value.strip() in _MISSING):
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{Decimal(f'{value:.15g}'):f}" if math.isfinite(value) else str(value)
    return str(value).encode("utf-8", "replace").decode()  # JSON may contain half of a surrogate pair; UTF-8 files cannot


def _with_template(problem: Problem, pattern: re.Pattern[str]) -> Problem:
    """Set the template id to the pattern's first group, or to the whole question where the pattern does not match."""
    match = pattern.search(problem.question)
    return replace(problem, template_id=match.group(1).strip() if match else problem.question)


def _hub_rows(task: Task) -> Rows:
    """The rows of the task's own hub source, in the order of its sample indices."""
    source: HubSource | None = task.hub
    if source is None:
        raise FcotError(f"no hub copy with the authors' rows of {task.title} is known: dataset.path=FILE (the authors' {task.name}.json)")
    rows = load_hub(source.id, source.config, source.splits, source.data_files)
    if rows and (missing := [name for name in source.columns if name not in rows[0]]):
        raise FcotError(f"'{source.id}' on the hub no longer has the column {missing[0]!r}: dataset.path=FILE instead")
    if source.order:
        rows.sort(key=source.order)
    fields = [converted for row in rows if (converted := source.fields(row)) is not None]
    if len(fields) != task.n_rows:
        raise FcotError(
            f"'{source.id}' on the hub has {len(fields):,} rows of {task.title}, not {task.n_rows:,}: dataset.path=FILE instead"
        )
    values = [{"question": question, "answer": answer, "rationale": rationale} for question, answer, rationale in fields]
    return Rows(source.id, "hub data set", values, ("question", "answer", "rationale"))
