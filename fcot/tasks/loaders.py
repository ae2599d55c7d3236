"""Loads problems from files and from the hub, with messages that name file and line. ``datasets`` reads CSV, Parquet and the hub."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as dataclass_replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from fcot.base.errors import FcotError
from fcot.base.records import Problem
from fcot.tasks.hub import HubSource
from fcot.tasks.table import TASKS, Task

FORMATS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class Columns:
    """The names of a file's columns. Rationale and template columns may be missing from the file."""

    question: str = "question"
    answer: str = "answer"
    rationale: str = "rationale"
    template: str = "template_id"


def load_problems(task: Task, source: str | None, columns: Columns = Columns(), unlabelled: bool = False) -> list[Problem]:
    """The task's problems in the order of their sample indices.

    Args:
        task: The task. Gold answers are checked by its rule, and problems get templates by its template pattern.
        source: A file (the authors' JSON, JSON Lines, CSV, Parquet), a hub id ``owner/name`` or
            ``owner/name:config`` (split ``train``), or None for the task's own hub source.
        columns: Column names of a file or hub id. The task's own hub source does not use them.
        unlabelled: Whether problems without a gold answer are allowed.

    Raises:
        FcotError: The source cannot be read, or a row is malformed, lacks a column, has an empty question, repeats a sample index, or has
            a gold answer of another type.
    """
    if source is None:
        problems = _from_hub(task)
        where = _Rows(task.hub.id if task.hub else task.name)
    elif not is_hub_id(source):
        rows, where = _read_file(Path(source), task.name)
        problems = _to_problems(rows, columns, where)
    else:
        rows = _load_hub(source.partition(":")[0], source.partition(":")[2] or None, ("train",), None)
        where = _Rows(source)
        problems = _to_problems(rows, columns, where)
    if task.rule.answer_type == "number":
        problems = [_split_at_marks(problem) for problem in problems]
    labelled = [problem for problem in problems if problem.labelled] if unlabelled else problems
    if labelled or not problems:
        check_problems(labelled, task, where)
    if task.template_pattern:
        pattern = re.compile(task.template_pattern, re.DOTALL)
        problems = [_with_template(problem, pattern) for problem in problems]
    return sorted(problems, key=lambda problem: problem.sample_index)


def _split_at_marks(problem: Problem) -> Problem:
    """Separate rationale and number where the answer holds both, joined by ``####`` as in GSM8K's own files."""
    rationale, mark, answer = problem.answer.partition("####")
    return dataclass_replace(problem, answer=answer.strip(), rationale=problem.rationale or rationale.strip()) if mark else problem


def is_hub_id(source: str) -> bool:
    """Whether a source has the form ``owner/name`` or ``owner/name:config`` and is no file."""
    suffix = Path(source).suffix
    return not Path(source).exists() and suffix not in FORMATS and re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", source) is not None


def check_problems(problems: Sequence[Problem], task: Task, where: _Rows) -> None:
    """Check questions, sample indices and gold answers.

    Raises:
        FcotError: There are no problems, or some have an empty question, a repeated sample index or a gold answer that is not of the
            task's answer type.
    """
    if not problems:
        raise FcotError(f"{where.name} holds no problems")
    kinds = {"choice": f"one of the letters {', '.join(task.rule.choices)}", "yes_no": "yes or no (or true or false)", "number": "a number"}
    expected = kinds.get(task.rule.answer_type, f"a {task.rule.answer_type}")
    positions: dict[int, int] = {}  # first position of each sample index
    faults = []
    for position, problem in enumerate(problems):
        if not problem.question.strip():
            faults.append(f"{where.row(position)}: empty question (sample index {problem.sample_index})")
        if problem.sample_index in positions:
            first = where.row(positions[problem.sample_index])
            faults.append(f"{where.row(position)}: sample index {problem.sample_index} is repeated (first in {first})")
        positions.setdefault(problem.sample_index, position)
        if not problem.labelled:
            faults.append(f"{where.row(position)}: no gold answer (blank, NaN or null): fill it in, or delete the row")
        elif task.rule.gold(problem.answer) is None:
            faults.append(f"{where.row(position)}: the gold answer {problem.answer!r} is not {expected}")
    if len(faults) == len(problems) > 2 and task.rule.answer_type != "text":
        faults.append("Is dataset.answer_type right? text takes any answer")
    _raise(faults)


_SHOWN_FAULTS = 20


def _raise(faults: Sequence[str]) -> None:
    """Report all faults of a file in one message.

    Raises:
        FcotError: There is at least one fault.
    """
    if faults:
        hidden = len(faults) - _SHOWN_FAULTS
        raise FcotError("\n".join([*faults[:_SHOWN_FAULTS], *([f"and {hidden:,} more"] if hidden > 0 else [])]))


@dataclass(frozen=True)
class _Rows:
    """Names of rows for messages.

    Attributes:
        name: File or hub id.
        lines: The line number of each row; empty where the format has no lines.
    """

    name: str
    lines: tuple[int, ...] = ()

    def row(self, position: int) -> str:
        if position < len(self.lines):
            return f"{self.name}, line {self.lines[position]}"
        return f"{self.name}, row {position + 1}"


def _to_problems(rows: Iterable[Mapping[str, Any]], columns: Columns, where: _Rows) -> list[Problem]:
    rows = list(rows)
    column_of: dict[str, str] = {
        "question": columns.question,
        "answer": columns.answer,
        "rationale": columns.rationale,
        "template": columns.template,
    }
    problems = []
    faults = [
        f"{where.row(position)}: the {part} is {_nested(row[name])}, not one value"
        for position, row in enumerate(rows) for part, name in column_of.items() if _nested(row.get(name))
    ]  # fmt: skip
    _raise(faults)
    indices = _indices(rows, where)
    names = {name for row in rows for name in row}
    if rows and (missing := [name for name in (columns.question, columns.answer) if name not in names]):
        raise FcotError(
            f"{where.name} has no column {missing[0]!r}; it has {', '.join(sorted(names))}. For your own data name the "
            "columns: dataset.question_column=..., dataset.answer_column=..."
            + (" (a CSV file is separated by commas)" if any(";" in name for name in names) else "")
        )
    for position, row in enumerate(rows):
        problems.append(
            Problem(
                sample_index=indices[position],
                question=_text(row.get(columns.question)) or "",
                answer=_text(row.get(columns.answer)) or "",
                rationale=_text(row.get(columns.rationale)),
                template_id=_text(row.get(columns.template)),
            )
        )
    return problems


def _indices(rows: Sequence[Mapping[str, Any]], where: _Rows) -> list[int]:
    """The rows' sample indices. Rows are numbered from 0 if none has an index, or if the indices are names such as ``q-17``.

    Raises:
        FcotError: Only some rows have an index, an index is not a whole number, or two rows have the same name.
    """
    cells = [_index(row.get("sample_index")) for row in rows]
    if any(isinstance(index, str) for index in cells) or not any(index is not None for index in cells):
        names = Counter(str(index) for index in cells if index is not None)
        _raise([f"{where.name}: sample_index {name!r} is in {n} rows" for name, n in names.items() if n > 1])
        return list(range(len(rows)))
    faults = [f"{where.row(position)}: no sample_index; other rows have one" for position, index in enumerate(cells) if index is None]
    faults += [
        f"{where.row(position)}: sample_index {index!r} is not an integer"
        for position, index in enumerate(cells) if index is not None and not isinstance(index, int)
    ]  # fmt: skip
    _raise(faults)
    return [index for index in cells if isinstance(index, int)]


def _index(value: Any) -> Any:
    """A cell's sample index: an integer if possible, None where it is missing, otherwise the cell unchanged."""
    text = None if _nested(value) else _text(value)
    if text is None or isinstance(value, bool):
        return value if text or _nested(value) else None
    return int(text) if re.fullmatch(r"-?\d{1,18}", text.strip(), re.ASCII) else value


def _nested(value: Any) -> str:
    """The name of a cell's type if the cell is an object or a list; empty if it is a single value."""
    return "an object" if isinstance(value, Mapping) else "a list" if isinstance(value, list | tuple) else ""


def _text(value: Any) -> str | None:
    """A cell as text. None where it is missing: null, NaN, or a word by which pandas or JSON writes them.

    Whole numbers have no ``.0``, although readers turn a column with gaps into floats.
    """
    if value is None or value != value or (isinstance(value, str) and value.strip() in ("NaN", "null", "<NA>")):
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{Decimal(f'{value:.15g}'):f}" if math.isfinite(value) else str(value)
    return str(value).encode("utf-8", "replace").decode()  # JSON may contain half of a surrogate pair; UTF-8 files cannot


def _with_template(problem: Problem, pattern: re.Pattern[str]) -> Problem:
    """Set the template id to the pattern's first group, or to the whole question where the pattern does not match."""
    match = pattern.search(problem.question)
    return dataclass_replace(problem, template_id=match.group(1).strip() if match else problem.question)


def _read_file(path: Path, task_name: str) -> tuple[list[dict[str, Any]], _Rows]:
    """Read the rows of a data file, with their names for messages.

    Raises:
        FcotError: The file does not exist, has an unknown format or another task's data, or cannot be read.
    """
    if not path.is_file():
        raise FcotError(f"dataset.path={path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    if path.suffix not in FORMATS:
        raise FcotError(f"dataset.path={path}: unknown format; a data file ends with {', '.join(FORMATS)}")
    kind = FORMATS[path.suffix]
    options: dict[str, Any] = {}
    lines: tuple[int, ...] = ()
    if kind != "parquet":  # checked here, because the messages of the libraries name no line or a wrong one
        check = _check_csv if kind == "csv" else _check_json if path.suffix == ".json" else _check_json_lines
        n_rows, lines, options = check(path, _read_text(path))
        if (key := options.pop("dataset_key", None)) not in (None, task_name) and task_name in TASKS:
            raise FcotError(f"{path} holds {key} (its metadata.dataset_key), not {task_name}")
        if not n_rows:
            raise FcotError(f"{path} holds no problems")
    if "rows" in options:
        return options["rows"], _Rows(str(path), lines)
    try:
        rows = _load_dataset(kind, data_files=str(path), split="train", **options)
    except Exception as error:  # pyarrow, pandas and datasets raise exceptions of their own
        raise FcotError(f"{path}: cannot be read as {kind} ({_reason(error.__cause__ or error)})") from error
    if kind == "csv":
        rows = [{name: value if value != "" else None for name, value in row.items()} for row in rows]
    return rows, _Rows(str(path), lines)


def _reason(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0].removesuffix(":").rstrip()


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FcotError(f"{path}, line {line}: not UTF-8 text ({error.reason})") from error


# Number of rows; line number of each row; and either options of datasets.load_dataset (CSV) or the parsed ``rows`` (JSON).
_Checked = tuple[int, tuple[int, ...], dict[str, Any]]


def _check_csv(path: Path, text: str) -> _Checked:
    """Check that every row has as many cells as the header. The returned options make ``datasets`` read all cells as text."""
    separator = "\t" if path.suffix == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    header: list[str] = []
    lines = []
    start = 1
    try:
        for cells in reader:  # blank lines are empty lists
            if cells and header and len(cells) != len(header):
                raise FcotError(f"{path}, line {start}: {len(cells)} cells, but the header has {len(header)}")
            lines += [start] if cells and header else []
            header = header or cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise FcotError(f"{path}, line {start}: malformed CSV ({error})") from error
    options = {"sep": separator, "keep_default_na": False, "features": dict.fromkeys(header, "string")}
    return len(lines), tuple(lines), options


def _check_json(path: Path, text: str) -> _Checked:
    """Parse the authors' ``{"metadata": ..., "data": [...]}`` or a plain list. The rows have no line numbers."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise FcotError(f"{path}: not JSON: {error}") from error
    rows = data.get("data") if isinstance(data, dict) else data
    if not isinstance(rows, list):
        raise FcotError(f'{path}: expected {{"metadata": ..., "data": [...]}} or a list of problems')
    for position, row in enumerate(rows):
        _check_object(row, _Rows(str(path)).row(position))
    metadata = data.get("metadata") if isinstance(data, dict) else None
    return len(rows), (), {"rows": rows, "dataset_key": metadata.get("dataset_key") if isinstance(metadata, dict) else None}


def _check_json_lines(path: Path, text: str) -> _Checked:
    """Parse JSON Lines, and check that every line that is not blank is a JSON object."""
    numbers, rows = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise FcotError(f"{path}, line {number}: malformed JSON ({reason})") from error
        _check_object(row, f"{path}, line {number}")
        numbers.append(number)
        rows.append(row)
    return len(numbers), tuple(numbers), {"rows": rows}


def _check_object(row: Any, where: str) -> None:
    if not isinstance(row, dict):
        raise FcotError(f"{where}: expected a JSON object with question and answer")


def _load_dataset(*arguments: Any, **options: Any) -> list[dict[str, Any]]:
    """Load rows with ``datasets.load_dataset``. Local files are not copied into the user's cache."""
    import datasets

    datasets.disable_progress_bars()
    if columns := options.pop("features", None):
        options["features"] = datasets.Features({name: datasets.Value(kind) for name, kind in columns.items()})
    if "data_files" not in options or arguments[0] not in FORMATS.values():
        return list(datasets.load_dataset(*arguments, **options))
    with tempfile.TemporaryDirectory(prefix="fcot-") as cache:
        return list(datasets.load_dataset(*arguments, cache_dir=cache, keep_in_memory=True, **options))


_unreachable: dict[str, FcotError] = {}  # by hub id: further jobs of a sweep fail without waiting for the hub again


def _load_hub(id: str, config: str | None, splits: Sequence[str], data_files: str | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    if error := _unreachable.get(id):
        raise error
    try:
        for split in splits:
            options = {"data_files": data_files} if data_files else {"name": config}
            rows += _load_dataset(id, split=split, **options)
    except Exception as failure:  # the hub's client raises exceptions of requests and fsspec as well as its own
        _unreachable[id] = FcotError(
            f"could not load '{id}' from the hub ({_reason(failure)}). "
            "On a machine without internet use a local copy: dataset.path=FILE (the authors' JSON, JSON Lines, "
            "CSV or Parquet)"
        )
        raise _unreachable[id] from failure
    return rows


def _from_hub(task: Task) -> list[Problem]:
    source: HubSource | None = task.hub
    if source is None:
        raise FcotError(f"no hub copy with the authors' rows of {task.title} is known: dataset.path=FILE (the authors' {task.name}.json)")
    rows = _load_hub(source.id, source.config, source.splits, source.data_files)
    if rows and (missing := [name for name in source.columns if name not in rows[0]]):
        raise FcotError(f"'{source.id}' on the hub no longer has the column {missing[0]!r}: dataset.path=FILE instead")
    if source.order:
        rows.sort(key=source.order)
    fields = [converted for row in rows if (converted := source.fields(row)) is not None]
    if len(fields) != task.n_rows:
        raise FcotError(
            f"'{source.id}' on the hub has {len(fields):,} rows of {task.title}, not {task.n_rows:,}: dataset.path=FILE instead"
        )
    return [Problem(index, question, answer, rationale) for index, (question, answer, rationale) in enumerate(fields)]
