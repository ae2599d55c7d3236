"""The completions that a person chose, in the file ``curation.golden``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fcot.base.errors import FcotError
from fcot.base.records import Problem
from fcot.tasks.loaders import listed

Golden = Mapping[int, frozenset[int] | None]  # completion indices by sample index; None: all completions of the problem
_SHAPES = (
    '[sample index, ...], {"sample index": [completion index, ...]}, or rows of curated.jsonl, one per line, such as the report page saves'
)
_SHOWN_FAULTS = 10


def read_golden(path: Path, problems: Mapping[int, Problem] | None = None) -> dict[int, frozenset[int] | None]:
    """Read the golden ids: ``[sample index, ...]``, ``{"sample index": [completion index, ...]}``, or JSON Lines with the rows to keep.

    A row has ``sample_index``, ``completion_index`` and ``question``. It is found by its question, so that it means the same completion
    after rows of the data were added, removed or moved; without a question, by its sample index.

    Args:
        path: The file.
        problems: The problems by sample index, in which rows are looked up.

    Raises:
        FcotError: The file has another format, or questions of its rows are not in the data.
    """
    try:
        rows = _rows(text := path.read_text(encoding="utf-8-sig"))
        if rows is not None:
            return _chosen(path, rows, problems or {})
        data = json.loads(text, object_pairs_hook=_unique)
        if isinstance(data, list):
            return {_index(index): None for index in data}
        return {int(index): frozenset(map(_index, slots)) for index, slots in data.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise FcotError(f"curation.golden={path}: expected {_SHAPES} ({error})") from error


def _rows(text: str) -> list[tuple[int, dict[str, Any]]] | None:
    """Line number and content of each row, if the file holds rows; None if it holds indices.

    Raises:
        ValueError: A line after the first one is not JSON, or not a row.
    """
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        first = json.loads(lines[0][1]) if lines else None
    except ValueError:  # JSON over several lines
        return None
    if not (isinstance(first, dict) and "completion_index" in first):
        return None
    return list(_parsed(lines))


def _parsed(lines: list[tuple[int, str]]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in lines:
        try:
            row = json.loads(line)
            _index(row["sample_index"])
            _index(row["completion_index"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"line {number}: {error}") from error
        yield number, row


def _chosen(path: Path, rows: list[tuple[int, dict[str, Any]]], problems: Mapping[int, Problem]) -> dict[int, frozenset[int] | None]:
    """The chosen completions of the rows by sample index.

    Raises:
        FcotError: Questions are not in the data.
    """
    by_question: dict[str, list[int]] = {}
    for index, problem in problems.items():
        by_question.setdefault(problem.question, []).append(index)
    golden: dict[int, set[int]] = {}
    faults = []
    for number, row in rows:
        index, question = row["sample_index"], str(row.get("question") or "")
        named = problems.get(index)
        has_moved = problems and question and (named is None or named.question != question)
        indices = by_question.get(question, []) if has_moved else [index]
        if not indices:
            faults.append(f"{path}, line {number}: no problem has its question any more: {question[:80]!r}")
        for index in indices:
            golden.setdefault(index, set()).add(row["completion_index"])
    if faults:
        remedy = "Remove these lines from the file, or choose again on the report's page"
        raise FcotError(f"{listed(faults, _SHOWN_FAULTS)}\n{remedy}")
    return {index: frozenset(slots) for index, slots in golden.items()}


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if duplicates := [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]:
        raise ValueError(f"duplicate key {duplicates[0]!r}")
    return dict(pairs)


def _index(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not an index")
    return value
