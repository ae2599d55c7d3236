"""Where a student comes from: its base model and, of a finished one, its interface and the problems that it was trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from fcot.student.config import ApiStudentConfig, PretrainedStudentConfig
from fcot.student.interface import FILE, StudentInterface, download_interface, read_interface
from fcot.tasks.splits import Split, folded, questions_hash

TRAINED_QUESTIONS = "trained_questions"  # key of split.json: a hash of the question of each train and validation problem


@dataclass(frozen=True)
class Training:
    """The finished run that trained a student.

    Attributes:
        setting: A hash that is equal for students whose runs differ only in their seed.
        seed: The run's seed; None if its result does not depend on it.
    """

    setting: str
    seed: int | None


def training_of(student: Path) -> Training | None:
    """The training of a student in its run's folder; None elsewhere, and if the run did not evaluate it."""
    for run in _runs_of(student):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            metrics = read_json(run.metrics)
            place = student.resolve().relative_to(run.path)  # a run of several rounds has several students
            return Training(fingerprint([metrics["setting"], str(place)]), metrics["seed"] if metrics["uses_seed"] else None)
    return None


FinishedStudent = PretrainedStudentConfig | ApiStudentConfig  # the schemas that can name a finished student


def interface_of(student: FinishedStudent) -> StudentInterface:
    """How to prompt a finished student, from its folder or its repository on the hub.

    Raises:
        FcotError: The student was not trained by fcot, or is used with another chat template than in training.
    """
    if isinstance(student, ApiStudentConfig):
        return read_interface(Path(str(student.path)))
    interface = read_interface(Path(student.path)) if student.path else download_interface(str(student.hub_id), student.revision)
    if interface.chat != student.chat_template:
        raise FcotError(
            f"student.chat_template={str(student.chat_template).lower()}: the student was trained with "
            f"student.chat_template={str(interface.chat).lower()}"
        )
    return interface


def question_hashes(questions: Iterable[str]) -> list[str]:
    """A short hash of each question, so that a later run recognizes it in other data."""
    return [fingerprint(folded(question))[:16] for question in questions]


def trained_on(folder: Path, questions: Sequence[str]) -> list[bool] | None:
    """For each question, whether a student's training or validation problems had it.

    Returns:
        None if it is not known: the student is not in its run's folder, or an earlier version trained it.
    """
    record = _record(folder)
    return None if record is None or TRAINED_QUESTIONS not in record else _were_trained(record, questions)


def _were_trained(record: Mapping[str, Any], questions: Iterable[str]) -> list[bool]:
    """For each question, whether the training had it, by a record with questions."""
    return [question in record[TRAINED_QUESTIONS] for question in question_hashes(questions)]


def untrained_test(
    student: FinishedStudent, interface: StudentInterface, task: str, problems: Mapping[int, Problem], split: Split
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
    record = None if student.path is None else _record(Path(student.path))
    if record is None:
        if interface.task == task:
            say(f"warning: the student was trained on {task} too, and no split.json beside it says on which problems: it may know some")
        return split.test
    trained = _trained_among(record, problems, split.test)
    if trained is not None:
        return [index for index in split.test if index not in trained]
    if interface.task == task:
        raise FcotError(
            f"{student.path} was trained on other rows of {task} by an earlier version, which did not record their questions: "
            "evaluate it on the data that it was trained with, or on another task"
        )
    return split.test


def trained_note(folder: Path, task: str, problems: Mapping[int, Problem], split: Split) -> str | None:
    """A warning about a trained student that is trained further, if it was trained on problems that are test problems now.

    Args:
        folder: The folder of the student that the training starts from.
        task: The task of the run.
        problems: The problems by sample index.
        split: The split of the run.

    Returns:
        None if it was not trained by fcot, or on none of the test problems. Problems of the students that it was trained from count, too.
    """
    known: set[int] = set()
    start: Path | None = folder
    while start is not None and (start / FILE).exists():
        record = _record(start)
        trained = None if record is None else _trained_among(record, problems, split.test)
        if trained is None and read_interface(start).task == task:
            return f"warning: student.path={folder} was trained on {task} too, and no split.json says on which problems: it may know some"
        known |= trained or set()
        start = _start_of(start)
    if not known:
        return None
    return (
        f"warning: student.path={folder} was trained on {len(known):,} of the {len(split.test):,} test problems: its accuracy is not "
        "that on new problems. Use the dataset, split mode and seed that it was trained with, or leave these rows out of the data"
    )


def _start_of(student: Path) -> Path | None:
    """The folder of the student that a student's training started from; None if it started from none, or if it is not known."""
    for run in _runs_of(student):
        with contextlib.suppress(OSError, AttributeError, YAMLError, OmegaConfBaseException):
            path = OmegaConf.load(run.config).student.get("path")
            return Path(path) if path and Path(path).resolve() != student.resolve() else None
    return None


def _trained_among(record: Mapping[str, Any], problems: Mapping[int, Problem], indices: Sequence[int]) -> set[int] | None:
    """Which of some problems a student was trained on; None if its record of other rows has no questions.

    Args:
        record: The content of the ``split.json`` of its training.
        problems: The problems by sample index.
        indices: The problems to look up.
    """
    if record.get("questions_sha256") == questions_hash(list(problems.values())):
        return {*record["train"], *record["validation"]} & set(indices)
    if TRAINED_QUESTIONS not in record:
        return None
    trained = _were_trained(record, (problems[index].question for index in indices))
    return {index for index, is_trained in zip(indices, trained, strict=True) if is_trained}


def _record(student: Path) -> dict[str, Any] | None:
    """The content of the ``split.json`` of the run that trained a student; None if its folder is in no run's folder."""
    path = next((run.split for run in _runs_of(student) if run.split.exists()), None)
    if path is None:
        return None
    with readable(path):
        record = dict(read_json(path))
    return record | {TRAINED_QUESTIONS: set(record[TRAINED_QUESTIONS])} if TRAINED_QUESTIONS in record else record


def _runs_of(student: Path) -> list[RunDirectory]:
    """Where the run that trained a student may be: the student is in the run's folder, or in the folder of one of the run's rounds."""
    return [RunDirectory(parent) for parent in student.resolve().parents[:2]]


def options_of_data(student: Path) -> dict[str, Any]:
    """The options of the user's own data in the run that trained a student; empty for other data, and if the run is not known."""
    for run in _runs_of(student):
        with contextlib.suppress(OSError, AttributeError, YAMLError, OmegaConfBaseException):
            options = dict(OmegaConf.load(run.config).dataset)
            return options if "question_column" in options else {}
    return {}


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
