"""Where a student comes from: its base model and, of a finished one, its interface and the problems that it was trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fcot.base.console import say
from fcot.base.errors import FcotError
from fcot.base.files import fingerprint, read_json
from fcot.base.records import Problem
from fcot.base.run_folder import RunDirectory
from fcot.reporting.card import BaseModel
from fcot.reporting.finished import readable
from fcot.student.config import PretrainedStudentConfig
from fcot.student.interface import StudentInterface, download_interface, read_interface
from fcot.tasks.splits import Split, folded, questions_hash

SEEN = "trained_questions"  # key of split.json: a hash of the question of each train and validation problem


def interface_of(student: PretrainedStudentConfig) -> StudentInterface:
    """How to prompt a finished student, from its folder or its repository on the hub.

    Raises:
        FcotError: The student was not trained by fcot, or is used with another chat template than in training.
    """
    interface = read_interface(Path(student.path)) if student.path else download_interface(str(student.hub_id), student.revision)
    if interface.chat != student.chat_template:
        raise FcotError(
            f"student.chat_template={str(student.chat_template).lower()}: the student was trained with "
            f"student.chat_template={str(interface.chat).lower()}"
        )
    return interface


def question_hashes(problems: Iterable[Problem]) -> list[str]:
    """A short hash of each problem's question, so that a later run recognizes it in other data."""
    return [fingerprint(folded(problem.question))[:16] for problem in problems]


def untrained_test(
    student: PretrainedStudentConfig, interface: StudentInterface, task: str, problems: Mapping[int, Problem], split: Split
) -> list[int]:
    """The test problems that a finished student was not trained on.

    Args:
        student: The student. If its folder is in a run's folder, the run's ``split.json`` says what it was trained on.
        interface: The student's interface.
        task: The task of the evaluation.
        problems: The problems by sample index.
        split: The split of the evaluation.

    Raises:
        FcotError: It was trained on problems of this task, and which ones cannot be known.
    """
    record = _record(student)
    if record is None:
        if interface.task == task:
            say(f"warning: the student was trained on {task} too, and no split.json beside it says on which problems: it may know some")
        return split.test
    if record.get("questions_sha256") == questions_hash(list(problems.values())):
        seen = {*record["train"], *record["validation"]}
        return [index for index in split.test if index not in seen]
    if SEEN in record:
        seen_hashes, hashes = set(record[SEEN]), question_hashes(problems[index] for index in split.test)
        return [index for index, question in zip(split.test, hashes, strict=True) if question not in seen_hashes]
    if interface.task == task:
        raise FcotError(
            f"{student.path} was trained on other rows of {task} by an earlier version, which did not record their questions: "
            "evaluate it on the data that it was trained with, or on another task"
        )
    return split.test


def _record(student: PretrainedStudentConfig) -> dict[str, Any] | None:
    """The content of the ``split.json`` of the run that trained the student; None if its folder is in no run's folder."""
    if student.path is None:
        return None
    path = next((run.split for run in _runs_of(Path(student.path)) if run.split.exists()), None)
    if path is None:
        return None
    with readable(path):
        return dict(read_json(path))


def _runs_of(student: Path) -> list[RunDirectory]:
    """Where the run that trained a student may be: the student is in the run's folder, or in the folder of one of the run's rounds."""
    return [RunDirectory(parent) for parent in student.resolve().parents[:2]]


def student_name(folder: Path) -> str:
    """The name of a model in a folder: ``student.name`` of the run that trained it, its hub id, or the folder's name."""
    folder = folder.resolve()
    for run in _runs_of(folder):
        with contextlib.suppress(OSError, AttributeError, YAMLError, OmegaConfBaseException):
            return str(OmegaConf.load(run.config).student.name)
    return hub_id_of(folder) or folder.name


def hub_id_of(folder: Path) -> str | None:
    """The hub id of a folder in the hub's cache, ``models--OWNER--NAME/snapshots/COMMIT``; None for other folders."""
    parts = folder.resolve().parts[-3:]
    is_snapshot = len(parts) == 3 and parts[0].startswith("models--") and parts[1] == "snapshots"
    return parts[0].removeprefix("models--").replace("--", "/") if is_snapshot else None


def base_model_of(student: Any) -> BaseModel:
    """The model that a student's configuration starts training from.

    Args:
        student: The options of ``student``.
    """
    if student.api_backed:
        return BaseModel(student.model)
    if student.from_scratch:
        kind = "T5" if student.architecture == "encoder_decoder" else "GPT-2"
        return BaseModel(f"{kind} from scratch", note=f"It has {student.layers} layers of width {student.width}.")
    if student.path is None:
        return BaseModel(student.hub_id, student.hub_id)
    folder = Path(student.path)
    name, hub_id = student_name(folder), hub_id_of(folder)
    try:
        model_class = read_json(folder / "config.json")["architectures"][0]
    except (OSError, ValueError, TypeError, LookupError):
        return BaseModel(name, hub_id)
    return BaseModel(name, hub_id, f"It was a folder with a model of the class {model_class}.")
