"""Reads the rows of a data file, of a folder that ``datasets`` saved, or of a data set on the hub. A row's cells keep their types.

A row that cannot be read is a fault with its place, so that all of them can be reported at once.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fcot.base.errors import FcotError
from fcot.base.hub import hub_access

FORMATS = {".json": "JSON", ".jsonl": "JSON Lines", ".ndjson": "JSON Lines", ".csv": "CSV", ".tsv": "CSV", ".parquet": "Parquet"}
SPLIT_COLUMN = "split"  # names the part that a row of a saved ``DatasetDict`` belongs to
_TEXT = "text, a cell per line"
_FOLDER_FILES = ("dataset_info.json", "dataset_dict.json")  # of ``save_to_disk``
_SHEETS = (".xlsx", ".xls", ".ods")
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_ENCODINGS = ("cp1252", "cp1250", "cp1251", "cp932", "gb18030", "cp949")  # what Windows writes instead of UTF-8: a person sees which
_NO_OBJECT = "expected a JSON object with a cell per column"
_SAMPLE = 1 << 16  # characters that decide what separates the cells
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # bytes that were not UTF-8, as ``surrogateescape`` decodes them

Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """The rows of a source.

    Attributes:
        name: The file, folder or hub id.
        format: What was read, in words, such as ``CSV, cells separated by semicolons``.
        values: The cells of each row by column; empty for a row that cannot be read.
        columns: All columns, in order, also those whose cells were not kept.
        lines: The line on which each row begins; empty where the format has no lines.
        faults: What is wrong with each row that cannot be read, by position.
        dataset_key: The task that the authors' JSON names; None elsewhere.
    """

    name: str
    format: str
    values: list[Row]
    columns: tuple[str, ...]
    lines: Sequence[int] = ()
    faults: Mapping[int, str] = field(default_factory=dict)
    dataset_key: str | None = None

    def place(self, position: int) -> str:
        """The place of a row within the source: ``line 4``, or ``row 3`` where the format has no lines."""
        return f"line {self.lines[position]}" if position < len(self.lines) else f"row {position + 1}"

    def where(self, position: int) -> str:
        """The source and the place of a row: ``mine.csv, line 4``."""
        return f"{self.name}, {self.place(position)}"


def is_hub_id(source: str) -> bool:
    """Whether a source has the form ``owner/name`` or ``owner/name:config`` and is no file."""
    suffix = Path(source).suffix.lower()
    return not Path(source).exists() and suffix not in FORMATS and re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", source) is not None


def source_fault(source: str, texts: bool = False) -> str | None:
    """What is wrong with the name of a source; None for a hub id, a file of a known format, or a folder that ``datasets`` saved.

    Args:
        source: The name.
        texts: Whether files with another suffix are text, JSON or JSON Lines.
    """
    path = Path(source)
    if is_hub_id(source):
        return None
    if path.is_dir():
        saved = any((path / name).exists() for name in _FOLDER_FILES)
        return None if saved else "a folder, but none that datasets' save_to_disk wrote: name a file"
    if not path.exists():
        return "no such file"
    if path.suffix.lower() not in FORMATS and (not texts or path.suffix.lower() in _SHEETS):
        hint = "; save the sheet as CSV" if path.suffix.lower() in _SHEETS else ""
        return f"unknown format; a data file ends with {', '.join(FORMATS)}{hint}"
    return None if os.access(path, os.R_OK) else "not readable"


def read_rows(
    source: str, keep: Collection[str] | None = None, limit: int | None = None, option: str = "dataset.path",
    text_column: str | None = None,
) -> Rows:  # fmt: skip
    """Read the rows of a file, folder or hub id.

    Args:
        source: JSON, JSON Lines, CSV (separated by commas, semicolons, tabs or bars) or Parquet; a folder that ``datasets`` saved, all of
            its splits; or a hub id ``owner/name`` or ``owner/name:config`` (split ``train``).
        keep: The columns whose cells are kept, to save memory; None keeps all.
        limit: Read at most this many rows.
        option: What names the source on the command line, for messages.
        text_column: Reads files without a known suffix, too: JSON, JSON Lines, or text, whose lines become cells of this column; None
            rejects them.

    Raises:
        FcotError: The source does not exist, has another format, is not UTF-8, or has no rows.
    """
    if (fault := source_fault(source, text_column is not None)) is not None:
        raise FcotError(f"{option}={source}: {fault}")
    path = Path(source)
    if is_hub_id(source):
        name, _, config = source.partition(":")
        reader = _Reader(source, "hub data set, split train", keep, limit)
        return reader.rows((None, row) for row in load_hub(name, config or None, ("train",)))
    if path.is_dir():
        return _Reader(source, "datasets folder", keep, limit).rows(_folder_rows(path, keep))
    kind = FORMATS.get(path.suffix.lower()) or _kind(path)
    reader = _Reader(source, kind, keep, limit)
    if kind == _TEXT:
        rows = _read_lines(path, reader, lambda line: {str(text_column): line.strip()})
    else:
        rows = {"CSV": _read_csv, "JSON": _read_json, "JSON Lines": _read_json_lines, "Parquet": _read_parquet}[kind](path, reader)
    if not rows.values:
        raise FcotError(f"{source} holds no problems")
    return rows


Located = tuple[int | None, Row | str]  # line, and the cells or what is wrong with them


@dataclass
class _Reader:
    """Collects the rows of a source: keeps some columns of each, and the places of all.

    Attributes:
        name: The source.
        format: Its format in words.
        keep: The columns to keep; None keeps all.
        limit: The most rows; None for all.
    """

    name: str
    format: str
    keep: Collection[str] | None
    limit: int | None

    def rows(self, located: Iterable[Located], columns: Sequence[str] | None = None, dataset_key: str | None = None) -> Rows:
        """The rows of an iterator. ``columns`` are those of the header; without, they are the union over rows."""
        names: dict[str, None] = dict.fromkeys(columns or ())
        values: list[Row] = []
        lines: list[int] = []
        faults: dict[int, str] = {}
        for line, row in itertools.islice(located, self.limit):
            if isinstance(row, str):
                faults[len(values)] = row
                row = {}
            elif columns is None and not row.keys() <= names.keys():
                names |= dict.fromkeys(row)
            if line is not None:
                lines.append(line)
            values.append(row if self.keep is None else {name: row[name] for name in self.keep if name in row})
        return Rows(self.name, self.format, values, tuple(names), lines, faults, dataset_key)


# --- text files ---------------------------------------------------------------------------------------------------


def _open(path: Path, newline: str) -> IO[str]:
    """Open a text file. Bytes that are not UTF-8 become surrogates, so that the line that has them can be named."""
    with path.open("rb") as file:
        utf16 = file.read(2) in (b"\xff\xfe", b"\xfe\xff")  # how Excel saves "Unicode text"
    return path.open(encoding="utf-16" if utf16 else "utf-8-sig", errors="surrogateescape", newline=newline)


def _kind(path: Path) -> str:
    """The format of a file without a known suffix, from its first character."""
    with _open(path, newline="") as file:
        start = file.read(_SAMPLE).lstrip()
    return "JSON" if start.startswith("[") else "JSON Lines" if start.startswith("{") else _TEXT


def _check_utf8(path: Path, line: int, text: str) -> None:
    """Raise an error for a text with bytes that are not UTF-8, which shows how other encodings would read it."""
    if text.isascii() or not (bad := _NOT_UTF8.search(text)):
        return
    part = text[max(0, bad.start() - 20) : bad.start() + 40].strip().encode("utf-8", "surrogateescape")
    readings = [f"  {encoding}: {part.decode(encoding, 'replace')}" for encoding in _ENCODINGS]
    message = f"{path}, line {line}: not UTF-8 text. Save the file as UTF-8, or convert it from the encoding that reads well here:"
    raise FcotError("\n".join([message, *readings, f"iconv -f ENCODING -t UTF-8 {path.name} > {path.stem}_utf8{path.suffix}"]))


def _read_csv(path: Path, reader: _Reader) -> Rows:
    """Read CSV. What separates the cells is detected from the beginning of the file; a first line ``sep=;`` is Excel's way to say it."""
    with _open(path, newline="") as file:
        sample = file.read(_SAMPLE)
    declared = re.match(r"sep=(.)\r?\n", sample)
    delimiter = declared[1] if declared else _delimiter(sample, len(sample) == _SAMPLE, "\t" if path.suffix.lower() == ".tsv" else ",")
    skipped = 1 if declared else 0
    with _open(path, newline="") as file:
        cells_of = _csv_cells(path, itertools.islice(file, skipped, None), delimiter, skipped)
        _, header = next(cells_of, (0, []))
        if not header or isinstance(header, str):
            raise FcotError(f"{path}, line {1 + skipped}: {header}" if header else f"{path} holds no problems")
        if repeated := sorted({name for name in header if name and header.count(name) > 1}):
            raise FcotError(f"{path}: the header has the column {repeated[0]!r} twice; rename one")
        separator = _DELIMITERS.get(delimiter, repr(delimiter))
        reader.format = "TSV" if delimiter == "\t" else f"CSV, cells separated by {separator}"
        located = ((line, cells if isinstance(cells, str) else _csv_row(cells, header, separator)) for line, cells in cells_of)
        return reader.rows(located, header)


def _csv_row(cells: Sequence[str], header: Sequence[str], separator: str) -> Row | str:
    """The row of some cells, or what is wrong with their number."""
    if len(cells) == len(header):
        return {name: cell if cell != "" else None for name, cell in zip(header, cells, strict=True)}
    quote = f'; put a cell that contains {separator} in quotation marks ("...")' if len(cells) > len(header) else ""
    return f"{len(cells)} cells, but the header has {len(header)}{quote}"


def _delimiter(sample: str, cut: bool, usual: str) -> str:
    """The delimiter by which the header has several cells and most rows have as many; of equal ones the usual one.

    Args:
        sample: The beginning of the file.
        cut: Whether the file goes on, so that the sample's last row is incomplete.
        usual: The delimiter of the file's suffix.
    """

    def fit(delimiter: str) -> tuple[bool, float, bool]:
        rows = [cells for cells in _parsed(sample, delimiter) if cells]
        header, *others = (rows[:-1] if cut else rows) or [[]]
        agree = sum(len(cells) == len(header) for cells in others)
        return len(header) > 1, agree / max(1, len(others)), delimiter == usual

    return max(_DELIMITERS, key=fit)


def _parsed(sample: str, delimiter: str) -> list[list[str]]:
    try:
        return list(itertools.islice(csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter), 100))
    except csv.Error:
        return []


def _csv_cells(path: Path, lines: Iterable[str], delimiter: str, skipped: int) -> Iterator[tuple[int, list[str] | str]]:
    """The first line of each row, and its cells or why it cannot be parsed. Blank lines are left out.

    Args:
        path: The file, for messages.
        lines: Its lines.
        delimiter: What separates the cells.
        skipped: How many lines of the file come before ``lines``.
    """
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        start = reader.line_num + 1 + skipped
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield start, f"malformed CSV ({_csv_reason(error)})"
            continue
        if cells:
            _check_utf8(path, start, "".join(cells))
            yield start, cells


def _csv_reason(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end of data" in text:
        return "a quotation mark opens a cell and no other one closes it"
    if "expected after" in text:
        return 'a quotation mark within a cell in quotation marks is written twice: ""'
    return text


def _read_json_lines(path: Path, reader: _Reader) -> Rows:
    """Read JSON Lines."""
    return _read_lines(path, reader, _json_object)


def _read_lines(path: Path, reader: _Reader, to_row: Callable[[str], Row | str]) -> Rows:
    """Read a file with a row per line. Lines end at newlines only; blank ones are left out.

    Args:
        path: The file.
        reader: Collects the rows.
        to_row: Turns a line without its end into a row, or into what is wrong with it.
    """

    def located() -> Iterator[Located]:
        for number, line in enumerate(file, start=1):
            if line.strip():
                _check_utf8(path, number, line)
                yield number, to_row(line.rstrip("\n"))

    with _open(path, newline="\n") as file:
        return reader.rows(located())


def _json_object(line: str) -> Row | str:
    try:
        row = json.loads(line)
    except ValueError as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        return f"malformed JSON ({reason})"
    return row if isinstance(row, dict) else _NO_OBJECT


def _read_json(path: Path, reader: _Reader) -> Rows:
    """Read the authors' ``{"metadata": ..., "data": [...]}`` or a plain list."""
    with _open(path, newline="") as file:
        text = file.read()
    if bad := _NOT_UTF8.search(text):
        before = text[: bad.start()]
        _check_utf8(path, before.count("\n") + 1, text[before.rfind("\n") + 1 :].partition("\n")[0])
    try:
        data = json.loads(text)
    except ValueError as error:
        raise FcotError(f"{path}: not JSON: {error}") from error
    rows = data.get("data") if isinstance(data, dict) else data
    if not isinstance(rows, list):
        raise FcotError(f'{path}: expected {{"metadata": ..., "data": [...]}} or a list of problems')
    metadata = data.get("metadata") if isinstance(data, dict) else None
    key = metadata.get("dataset_key") if isinstance(metadata, dict) else None
    return reader.rows(((None, row if isinstance(row, dict) else _NO_OBJECT) for row in rows), dataset_key=key)


# --- Arrow, and the hub -------------------------------------------------------------------------------------------


def _read_parquet(path: Path, reader: _Reader) -> Rows:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            kept = names if reader.keep is None else [name for name in names if name in reader.keep]
            batches = file.iter_batches(columns=kept, batch_size=10_000)
            if not kept:  # a batch without columns has no rows
                return reader.rows(((None, {}) for _ in range(file.metadata.num_rows)), names)
            return reader.rows(((None, row) for batch in batches for row in batch.to_pylist()), names)
    except Exception as error:  # pyarrow raises exceptions of its own
        raise FcotError(f"{path}: cannot be read as Parquet ({_reason(error)})") from error


def _folder_rows(path: Path, keep: Collection[str] | None) -> Iterator[Located]:
    """The rows of a folder of ``save_to_disk``. Those of a ``DatasetDict`` have the column ``split``, unless it has one of its own."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # datasets raises exceptions of pyarrow and fsspec as well as its own
        raise FcotError(f"{path}: cannot be read as a datasets folder ({_reason(error)})") from error
    parts: Mapping[str, Any] = saved if isinstance(saved, dict) else {"": saved}
    for name, part in parts.items():
        added = {SPLIT_COLUMN: name} if name and SPLIT_COLUMN not in part.column_names else {}
        missing = dict.fromkeys(part.column_names)
        kept = part if keep is None else part.select_columns([column for column in part.column_names if column in keep])
        if not kept.column_names:
            yield from ((None, missing | added) for _ in range(len(part)))
            continue
        for batch in kept.with_format("arrow").iter(10_000):
            yield from ((None, missing | row | added) for row in batch.to_pylist())


_unreachable: dict[str, FcotError] = {}  # by hub id: further jobs of a sweep fail without waiting for the hub again


def load_hub(id: str, config: str | None, splits: Sequence[str], data_files: str | None = None) -> list[Row]:
    """The rows of a data set on the hub.

    Args:
        id: ``owner/name``.
        config: Configuration name, or None.
        splits: The splits to concatenate, in this order.
        data_files: A file inside a repository of several data sets, instead of a configuration.

    Raises:
        FcotError: The hub cannot be reached, or has no such data set.
    """
    rows: list[Row] = []
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


def _load_dataset(*arguments: Any, **options: Any) -> list[Row]:
    import datasets

    datasets.disable_progress_bars()
    with hub_access(arguments[0]):
        return list(datasets.load_dataset(*arguments, **options))


def _reason(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0].removesuffix(":").rstrip()
