"""``fcot.json`` in a student's folder: the format, parser and limits that the student was trained with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fcot.base.errors import FcotError
from fcot.base.files import read_json, write_json
from fcot.base.hub import hub_access
from fcot.base.locations import locate
from fcot.base.run_folder import RunDirectory
from fcot.prompts.answers import AnswerRule
from fcot.prompts.student import Demonstration, StudentFormat

FILE = "fcot.json"
API_FILE = "openai.json"  # in the folder of an API-backed student: its name at the server


@dataclass(frozen=True)
class StudentInterface:
    """How to prompt a student and parse its answers.

    Attributes:
        task: Name of the task it was trained on.
        method: Name of the method that trained it.
        format: Prompt, completion and answer prefix.
        rule: How an answer is extracted from a text.
        chat: Whether questions are formatted with the tokenizer's chat template.
        max_prompt_tokens: Limit of a prompt; the beginning of a longer question is cut.
        max_new_tokens: Limit of an answer, in tokens.
        calculator: Whether it answers with a calculator (:mod:`fcot.student.calculator`), as it did when its checkpoint was selected.
    """

    task: str
    method: str
    format: StudentFormat
    rule: AnswerRule
    chat: bool
    max_prompt_tokens: int
    max_new_tokens: int
    calculator: bool = False


def write_interface(folder: Path, interface: StudentInterface) -> None:
    """Write ``fcot.json`` into a student's folder."""
    content = asdict(interface)
    if not interface.calculator:  # so that the file of other students stays the same
        del content["calculator"]
    write_json(folder / FILE, content)


def read_interface(folder: Path) -> StudentInterface:
    """Read ``fcot.json`` from a student's folder.

    Raises:
        FcotError: The file is missing or damaged.
    """
    try:
        return _parse(read_json(folder / FILE))
    except FileNotFoundError as error:
        raise FcotError(_why_missing(folder)) from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FcotError(f"{folder}: its {FILE} is damaged ({error})") from error


def _why_missing(folder: Path) -> str:
    """Why a folder has no ``fcot.json``, and what to name instead."""
    run = next((RunDirectory(place) for place in (folder, folder.parent) if RunDirectory(place).config.exists()), None)
    if (folder / "student" / FILE).exists():
        return f"{folder}: not a student that fcot trained; use {folder / 'student'}"
    if run is not None and folder in (run.path, run.student):
        if run.done.exists():
            return f"{run.path}: the run is finished and has no student: its method trains none, or the student was deleted"
        finished = run.finished_stages()
        done = f"It has finished {', '.join(finished)}, and not the training" if finished else "It has not finished its first stage"
        return f"{run.path}: the run has no student yet. {done}: the command that began the run continues it (fcot ls lists runs)"
    if (folder / "plan.json").exists():
        return f"{folder}: a sweep; name one of its runs (fcot sweep status {folder} lists them)"
    if not folder.exists():
        return f"{folder}: no such folder; name that of a run or of a student, such as outputs/runs/<run>/student (fcot ls lists runs)"
    return f"{folder}: not a student that fcot trained, its {FILE} is missing"


def find_student(student: str | Path) -> Path:
    """A student's folder.

    Args:
        student: The folder of a student or of its run, or the run's name.
    """
    folder = locate(Path(student))
    return folder / "student" if not (folder / FILE).exists() and (folder / "student" / FILE).exists() else folder


def download_interface(hub_id: str, revision: str | None = None) -> StudentInterface:
    """Read ``fcot.json`` from a repository on the hub.

    Raises:
        FcotError: The repository has no such file, or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        with hub_access(hub_id):
            file = hf_hub_download(hub_id, FILE, revision=revision)
        return _parse(read_json(Path(file)))
    except LocalEntryNotFoundError as error:
        raise FcotError(
            f"student '{hub_id}': no such folder, and its {FILE} cannot be loaded from the hub; is this machine offline?"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise FcotError(f"student '{hub_id}': no such folder, and no student of fcot on the hub: its {FILE} is missing there") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FcotError(f"student '{hub_id}': its {FILE} is damaged ({error})") from error


def _parse(content: Any) -> StudentInterface:
    demonstrations = tuple(Demonstration(**demonstration) for demonstration in content["format"].get("demonstrations", ()))
    form = StudentFormat(**content["format"] | {"demonstrations": demonstrations})
    return StudentInterface(**content | {"format": form, "rule": AnswerRule(**content["rule"])})
