"""What a student's folder says about its use, so that it answers as it was trained, wherever the folder is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from fcot.base.errors import FcotError
from fcot.base.files import read_json, write_json
from fcot.prompts.answers import AnswerRule
from fcot.prompts.student import Demonstration, StudentFormat

FILE = "fcot.json"


@dataclass(frozen=True)
class StudentInterface:
    """How a student is asked and read.

    Attributes:
        task: What it was trained on.
        method: How.
        format: Prompt, completion and answer prefix.
        rule: How answers are read.
        chat: Whether questions go through the tokenizer's chat template.
        max_prompt_tokens: The beginning of longer questions is cut.
        max_new_tokens: Limit on an answer.
    """

    task: str
    method: str
    format: StudentFormat
    rule: AnswerRule
    chat: bool
    max_prompt_tokens: int
    max_new_tokens: int


def write_interface(folder: Path, interface: StudentInterface) -> None:
    """Write ``fcot.json``."""
    write_json(folder / FILE, asdict(interface))


def read_interface(folder: Path) -> StudentInterface:
    """Read ``fcot.json``.

    Raises:
        FcotError: It is not there, or not of this kind.
    """
    try:
        found = read_json(folder / FILE)
        shown = tuple(Demonstration(**one) for one in found["format"].get("demonstrations", ()))
        form = StudentFormat(**found["format"] | {"demonstrations": shown})
        return StudentInterface(**found | {"format": form, "rule": AnswerRule(**found["rule"])})
    except FileNotFoundError as error:
        hint = f": {folder / 'student'} is one" if (folder / "student" / FILE).exists() else f", its {FILE} is missing"
        raise FcotError(f"{folder}: not a student that fcot trained{hint}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FcotError(f"{folder}: its {FILE} is damaged ({error})") from error
