"""Splits problems into train, validation and test.

All rules use positions in the order of sample indices and ``numpy.random.RandomState(0)``, as the papers do. A split therefore never
depends on a run's seed.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fcot.base.errors import FcotError
from fcot.base.records import Problem
from fcot.tasks.table import Task

_LISTS_OF_SPLITS = ("train", "validation", "test", "trained_questions")  # the lists of a run's split.json, of which the last is not read


@dataclass(frozen=True)
class Split:
    """The sample indices of each part, sorted. The parts are disjoint."""

    train: list[int]
    validation: list[int]
    test: list[int]

    def __post_init__(self) -> None:
        """Assert that no sample index is in two parts: user errors are reported before a split is made."""
        parts = [*self.train, *self.validation, *self.test]
        assert len(parts) == len(set(parts)), "train, validation and test share sample indices"


def folded(question: str) -> str:
    """Normalize a question for comparison: each run of white space becomes one space, accents are composed."""
    return " ".join(unicodedata.normalize("NFC", question).split())


def questions_hash(problems: Sequence[Problem], ordered: bool = True) -> str:
    """SHA-256 (hex) of the folded questions.

    Args:
        problems: Problems in the order of their sample indices.
        ordered: Whether the hash depends on the order; otherwise the questions are sorted.
    """
    questions = [folded(problem.question) for problem in problems]
    return hashlib.sha256("\n".join(questions if ordered else sorted(questions)).encode()).hexdigest()


def check_order(task: Task, problems: Sequence[Problem], split_hash: str | None = None) -> bool:
    """Whether the rows are in the order that a split by index requires.

    Args:
        task: The task, whose ``order`` and ``rows`` are the hashes of the authors' file.
        problems: Problems in the order of their sample indices.
        split_hash: The questions hash of a split file, used instead of the task's hashes; None where there is no such hash.

    Returns:
        True where the order is verified. False where there is no hash to compare with, as for other rows or data of the user.

    Raises:
        FcotError: The rows are the authors' in another order, or they are not the rows of the split file.
    """
    actual = questions_hash(problems)
    if split_hash is not None:
        if actual != split_hash:
            raise FcotError(
                f"the split file was made for other rows, or the same rows in another order (questions hash {split_hash[:16]}, "
                f"this data {actual[:16]}): its indices would mix train and test. Use the data that it was made for, or another split file"
            )
        return True
    if task.order is None:
        return False
    if actual.startswith(task.order):
        return True
    if task.rows is not None and questions_hash(problems, ordered=False).startswith(task.rows):
        raise FcotError(
            f"these are {task.title}'s questions in another order than the authors' file: the published index split would "
            "put other problems into test. Use the authors' file (dataset.path=FILE), rows that carry their sample_index, "
            "or a split of your own (split-mode=file split_mode.path=FILE with a questions_sha256)"
        )
    return False


def sample_split(n: int, train_fraction: float = 0.7) -> tuple[list[int], list[int]]:
    """Paper A's random split of ``range(n)``: of a random permutation, the first round(train_fraction * n) are train. Both are sorted."""
    order = np.random.RandomState(0).permutation(n)
    n_train = round(train_fraction * n)
    return sorted(order[:n_train].tolist()), sorted(order[n_train:].tolist())


def hash_split(keys: Mapping[int, str], train_fraction: float, validation_fraction: float) -> tuple[list[int], list[int], list[int]]:
    """A split in which a problem's part follows from its key alone, whatever other problems there are.

    Args:
        keys: By sample index, what decides: the folded question, or the template. Problems with one key are in the same part.
        train_fraction: Expected share of train and validation together.
        validation_fraction: Expected share of validation in these.

    Returns:
        The sample indices of train, validation and test, each in the order of :func:`hashed`.
    """
    parts: tuple[list[int], list[int], list[int]] = [], [], []
    for index in hashed(keys, keys):
        side, validation = (_share(f"{name} {keys[index]}") for name in ("side", "validation"))
        parts[2 if side >= train_fraction else 1 if validation < validation_fraction else 0].append(index)
    return parts


def hashed(indices: Iterable[int], keys: Mapping[int, str]) -> list[int]:
    """Sample indices in an order that follows from their keys alone; of one key, by index."""
    return sorted(indices, key=lambda index: (_share(f"order {keys[index]}"), index))


def _share(text: str) -> float:
    """A number from 0 to below 1 that is uniformly distributed over texts."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:7]) / 2**56


def published_split(task: Task, n: int) -> tuple[list[int], list[int]]:
    """The upstream split: the last rows are test, those before them train. AQUA's train is subsampled to 10,000 (paper A).

    With a file of exactly the test problems, train is empty.

    Raises:
        FcotError: ``n`` is neither the task's row count nor its test count.
    """
    if n == task.n_test:
        return [], list(range(n))
    if n != task.n_rows:
        raise FcotError(
            f"split-mode=published needs all {task.n_rows:,} upstream rows of {task.title} (or exactly its {task.n_test:,} "
            f"test rows); this data has {n:,}. split-mode=sample splits any number of rows"
        )
    n_upstream_train = n - task.n_test
    test = list(range(n_upstream_train, n))
    if n_upstream_train == task.n_train:
        return list(range(n_upstream_train)), test
    order = np.random.RandomState(0).permutation(n_upstream_train)
    return sorted(order[: task.n_train].tolist()), test


def template_split(templates: Sequence[str], train_fraction: float = 0.7) -> tuple[list[int], list[int]]:
    """Split by whole templates: :func:`sample_split` of the templates in the order of first appearance."""
    names = list(dict.fromkeys(templates))
    train_positions, _ = sample_split(len(names), train_fraction)
    train_names = {names[position] for position in train_positions}
    train = [position for position, name in enumerate(templates) if name in train_names]
    return train, [position for position, name in enumerate(templates) if name not in train_names]


def subsample(indices: Sequence[int], n: int) -> list[int]:
    """Paper A's few-shot subset, sorted: the first ``n`` of the sorted indices permuted with ``RandomState(0)``."""
    ordered = np.sort(np.asarray(indices, dtype=int))
    return sorted(np.random.RandomState(0).permutation(ordered)[:n].tolist())


def read_split_file(path: Path, indices: Sequence[int]) -> tuple[list[int], list[int], str | None]:
    """Read a split file: the authors' ``{"train": [...], "test": [...]}``, or a run's ``split.json``, whose ``validation`` joins train.

    Args:
        path: The file.
        indices: The sample indices of the data.

    Returns:
        Train and test sample indices, and the hash of the ordered questions, None where the file has none.

    Raises:
        FcotError: The file is no split file, or an index is repeated, is in two parts, or does not exist in the data.
    """
    data = _read_object(path, "split_mode.path", '{"train": [...], "test": [...]}')
    if not all(isinstance(data.get(part, default), list) for part, default in (("train", None), ("test", None), ("validation", []))):
        raise FcotError(f'{path}: a split file is {{"train": [sample indices], "test": [sample indices]}}')
    if unknown := [name for name, value in data.items() if isinstance(value, list) and name not in _LISTS_OF_SPLITS]:
        raise FcotError(f"{path}: {unknown[0]!r} is no part of a split; the parts are train, validation and test")
    train, test = data["train"] + data.get("validation", []), data["test"]
    _check_integers(path, train + test)
    if repeated := len(train) + len(test) - len(set(train)) - len(set(test)):
        raise FcotError(f"{path}: {repeated} sample indices are repeated in one list")
    if overlap := sorted(set(train) & set(test)):
        raise FcotError(f"{path}: {len(overlap)} sample indices are in both train and test, the first is {overlap[0]}")
    if missing := sorted(set(train + test) - set(indices)):
        raise FcotError(f"{path}: {len(missing)} sample indices do not exist in this data, the first is {missing[0]}")
    return sorted(train), sorted(test), data.get("questions_sha256")


def read_templates_file(path: Path, indices: Sequence[int]) -> dict[int, str]:
    """Read a template file, ``{"template id": [sample indices], ...}``.

    Args:
        path: The file.
        indices: The sample indices of the data.

    Returns:
        Template ids by sample index.

    Raises:
        FcotError: The file is no template file, or an index is missing, unknown or in two templates.
    """
    data = _read_object(path, "split_mode.templates", '{"template id": [sample indices], ...}')
    templates: dict[int, str] = {}
    for name, members in data.items():
        if not isinstance(members, list):
            raise FcotError(f'{path}: a template file is {{"template id": [sample indices], ...}}; "{name}" holds no list')
        _check_integers(path, members)
        for index in members:
            if index in templates:
                raise FcotError(f"{path}: sample index {index} is in the templates {templates[index]!r} and {name!r}")
            templates[index] = name
    if missing := sorted(set(indices) - set(templates)):
        raise FcotError(f"{path}: {len(missing)} problems have no template, the first is sample index {missing[0]}")
    if unknown := sorted(set(templates) - set(indices)):
        raise FcotError(f"{path}: {len(unknown)} sample indices do not exist in this data, the first is {unknown[0]}")
    return templates


def _check_integers(path: Path, indices: Sequence[Any]) -> None:
    if strange := [index for index in indices if not isinstance(index, int) or isinstance(index, bool)]:
        raise FcotError(f"{path}: sample indices are integers, not {strange[0]!r}")


def _read_object(path: Path, option: str, shape: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise FcotError(f"{option}={path}: {error.strerror}") from error
    except ValueError as error:
        raise FcotError(f"{path}: not JSON ({error}); expected {shape}") from error
    if not isinstance(data, dict):
        raise FcotError(f"{path}: expected {shape}")
    return data


def hold_out_validation(
    train: Sequence[int], chosen: Sequence[int], fraction: float, templates: Mapping[int, str] | None
) -> tuple[list[int], list[int]]:
    """Hold out validation problems from train.

    Args:
        train: All train sample indices of the split.
        chosen: The sample indices to train on: all of ``train``, a few-shot subset, or a limited number. Validation problems are taken
            from the unused rest of ``train``, and from ``chosen`` where the rest is too small.
        fraction: Number of validation problems as a share of ``train``.
        templates: Template ids by sample index. With them, no template is in both train and validation; None or empty ignores templates.

    Returns:
        The sample indices of train and of validation.
    """
    n_validation = max(1, round(fraction * len(train)))
    unused = sorted(set(train) - set(chosen))
    if templates and unused:
        trained = {templates[index] for index in chosen}
        unused = [index for index in unused if templates[index] not in trained]
    if len(unused) >= n_validation:
        return sorted(chosen), subsample(unused, n_validation)
    if len(chosen) < 2:
        return sorted(chosen), unused
    if not templates:
        held_out = subsample(chosen, min(n_validation - len(unused), len(chosen) - 1))
        return sorted(set(chosen) - set(held_out)), sorted([*unused, *held_out])
    names = list(dict.fromkeys(templates[index] for index in sorted(chosen)))
    # At least one template goes to validation if there are two or more.
    train_positions, _ = template_split(names, min(1 - fraction, (len(names) - 1) / len(names)))
    train_names = {names[position] for position in train_positions} or {names[0]}
    remaining = [index for index in sorted(chosen) if templates[index] in train_names]
    return remaining, [index for index in sorted(chosen) if templates[index] not in train_names]


def shared_questions(problems: Mapping[int, Problem], split: Split) -> int:
    """The number of test problems whose question is also in train or validation (five in MultiArith's published split)."""
    trained = {folded(problems[index].question) for index in split.train + split.validation}
    return sum(folded(problems[index].question) in trained for index in split.test)
