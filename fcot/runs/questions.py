"""The questions of a data file that a trained student answers (``fcot predict``), read as the data of its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fcot.base.console import say
from fcot.base.errors import FcotError

if TYPE_CHECKING:
    from fcot.tasks.loaders import Columns
    from fcot.tasks.reading import Rows
    from fcot.tasks.table import Task


@dataclass
class QuestionOptions:
    """The options of ``fcot predict`` that say where the questions and gold answers are, and how they are read."""

    student: str
    file: str | None = None
    question_column: str | None = None
    answer_column: str | None = None
    group_column: str | None = None
    option_columns: list[str] | None = None
    decimal: str | None = None
    on_invalid: str | None = None


AnyOptions = TypeVar("AnyOptions", bound=QuestionOptions)
_QUESTION, _ANSWER = "question", "answer"  # the columns of questions and gold answers where neither an option nor the run names them
_SAMPLE = 20_000  # rows that show which columns a file has
GOLD = "\0gold"  # key of a row for its gold answer, which no column of a file has


def as_in_its_run(options: AnyOptions) -> AnyOptions:
    """The options with those that are not set as in the run that trained the student, and a message that names them.

    Raises:
        FcotError: The file cannot be read.
    """
    from fcot.student.interface import find_student

    assert options.file is not None
    names = ("question_column", "answer_column", "group_column", "option_columns", "decimal", "on_invalid")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return replace(options, **reading_of_its_run(find_student(options.student), options.file, names, given))


def reading_of_its_run(student: Path, file: str, names: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """How the run that trained a student read its data, so that another file is read in the same way; a message names what is unusual.

    Args:
        student: The student's folder.
        file: The other file. A column is taken over if the file has it.
        names: The options in question: those of ``dataset=custom``.
        given: Options that are set, which are not taken over.

    Returns:
        The values of the options that are taken over; empty if the student is not in its run's folder.

    Raises:
        FcotError: The file cannot be read.
    """
    from fcot.runs.origin import options_of_data
    from fcot.tasks.reading import read_rows

    recorded = options_of_data(student)
    unset = {name: recorded[name] for name in names if name not in given and recorded.get(name) not in (None, [])}
    if not unset:
        return {}
    columns = read_rows(file, (), _SAMPLE, "file", given.get("question_column", _QUESTION)).columns
    taken = {name: value for name, value in unset.items() if not name.endswith("_column") or value in columns}
    if missing := [name for name in taken.get("option_columns", ()) if name not in columns]:
        del taken["option_columns"]
        say(
            f"note: the student's run read options from columns, and {file} has no column {missing[0]!r}: the questions are "
            "answered as they are. option_columns names other columns"
        )
    texts = {name: ",".join(value) if name == "option_columns" else value for name, value in taken.items()}
    if shown := [f"{name}={text}" for name, text in texts.items() if text not in (_QUESTION, _ANSWER, "auto", "error", False)]:
        say(f"as in the student's run: {' '.join(shown)}")
    return taken


def read_questions(options: QuestionOptions) -> list[dict[str, Any]]:
    """Read the rows of the file.

    Returns:
        The cells of each row with ``question`` and, if the row has a gold answer, ``GOLD``; with a group column, ``GROUP``.

    Raises:
        FcotError: The file cannot be read or lacks a column, or rows are faulty; the message has all of them.
    """
    from fcot.reporting.predicted import GROUP
    from fcot.student.interface import find_student, read_interface
    from fcot.tasks.check import skipped_note
    from fcot.tasks.loaders import Columns, listed, to_data
    from fcot.tasks.reading import read_rows
    from fcot.tasks.table import custom_task

    assert options.file is not None
    question = options.question_column or _QUESTION
    rows = read_rows(options.file, option="file", text_column=question)
    answers = _check_columns(rows, options, question)
    interface = read_interface(find_student(options.student))
    task = custom_task(interface.task, interface.rule)
    columns = Columns(question, answers, group=options.group_column, options=_options_of(rows, options, interface.rule.choices))
    scorable = _without_unreadable(rows, columns, task, options)
    data = to_data(task, scorable, columns, unlabelled=True, decimal=options.decimal or "auto")
    if data.faults and options.on_invalid == "skip" and data.problems:
        say(f"note: {skipped_note(data, 'on_invalid')[0]}")
    elif data.faults:
        raise FcotError(f"{listed(data.faults)}\nCorrect these rows, or leave them out with on_invalid=skip")
    if data.answers.undecided:
        mark, other = ("comma", "point") if data.answers.decimal == "comma" else ("point", "comma")
        say(f"note: {data.answers.undecided[0]!r} is read with a decimal {mark}; decimal={other} reads it as another number")
    questions = []
    by_position = {data.positions.get(problem.sample_index, problem.sample_index): problem for problem in data.problems}
    for position, problem in sorted(by_position.items()):
        row = rows.values[position]
        gold = {GOLD: problem.answer} if problem.labelled else {}
        group = {GROUP: problem.group or "(none)"} if options.group_column else {}
        questions.append({**row, "question": problem.question, **gold, **group})
    return questions


def _without_unreadable(rows: Rows, columns: Columns, task: Task, options: QuestionOptions) -> Rows:
    """The rows without the gold answers that cannot be read, and a note on these: their questions are answered, but not scored.

    Raises:
        FcotError: No gold answer can be read, as if they were of another type or in another column.
    """
    from fcot.tasks.answers import NO_ANSWER, AnswerReader, expected
    from fcot.tasks.loaders import cell_text

    if columns.answer is None:
        return rows
    cells = [row.get(columns.answer) for row in rows.values]
    written = [cell_text(cell) or "" for cell in cells]
    reader = AnswerReader(task.rule, written, options.decimal or "auto", normalize=False)
    faults: dict[int, str] = {}
    n_given = 0
    for position, (cell, text) in enumerate(zip(cells, written, strict=True)):
        fault = reader.read(text)[2]
        if isinstance(cell, Mapping | list | tuple):
            fault = "the gold answer is an object or a list, not one value"
        n_given += fault != NO_ANSWER
        if fault is not None and fault != NO_ANSWER and position not in rows.faults:
            faults[position] = fault
    if not faults:
        return rows
    position, fault = next(iter(faults.items()))
    example = f"{rows.where(position)}: {fault}"
    if len(faults) == n_given:
        otherwise = reader.summary().n_unread_otherwise
        mark = "point" if reader.summary().decimal == "comma" else "comma"
        raise FcotError(
            f"{example}\nNo gold answer in the column {columns.answer!r} ({n_given:,} given) is {expected(task.rule)}, as the "
            f"student answers. Name another column (answer_column=NAME), or answer without scores: answer_column=none"
            + (f"; decimal={mark} reads {otherwise:,} of them" if otherwise else "")
        )
    questions = "Its question is" if len(faults) == 1 else "Their questions are"
    say(f"note: {len(faults):,} of {n_given:,} gold answers cannot be read. {questions} answered, but not scored: {example}")
    values = [{**row, columns.answer: None} if position in faults else row for position, row in enumerate(rows.values)]
    return replace(rows, values=values)


def _options_of(rows: Rows, options: QuestionOptions, choices: str) -> tuple[tuple[str, str], ...]:
    """Letters and columns of the options.

    Args:
        rows: The rows.
        options: The options of the command.
        choices: The letters that the student answers with.

    Raises:
        FcotError: A column is missing, or there is not one for each letter.
    """
    names = options.option_columns or []
    if missing := [name for name in names if name not in rows.columns]:
        raise FcotError(f"option_columns: {rows.name} has no column {missing[0]!r}; it has {', '.join(sorted(rows.columns))}")
    if names and len(names) != len(choices):
        letters = f"the letters {choices}: name one column per letter" if choices else "no letters: remove option_columns"
        raise FcotError(f"option_columns={','.join(names)}: the student answers with {letters}")
    return tuple(zip(choices, names, strict=False))


def _check_columns(rows: Rows, options: QuestionOptions, question: str) -> str | None:
    """Check that the file has the columns, with the questions in ``question``. Returns the column with the gold answers; None for none.

    Raises:
        FcotError: A column is missing.
    """
    named = {"question_column": question, "group_column": options.group_column}
    if options.answer_column not in (None, _ANSWER, "none"):
        named["answer_column"] = options.answer_column
    if missing := {option: name for option, name in named.items() if name is not None and name not in rows.columns}:
        names = " or ".join(map(repr, missing.values()))
        close = {option: get_close_matches(str(name), rows.columns, 1) for option, name in missing.items()}
        remedy = " ".join(f"{option}={columns[0] if columns else '...'}" for option, columns in close.items())
        asks = f"Did you mean {remedy}?" if all(close.values()) else f"Name the columns: {remedy}"
        raise FcotError(f"{rows.name} has no column {names}; it has {', '.join(sorted(rows.columns))}. {asks}")
    answers = options.answer_column or _ANSWER
    return answers if answers in rows.columns else None
