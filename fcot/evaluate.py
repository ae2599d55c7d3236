"""``fcot evaluate STUDENT dataset=...``: score a finished student on another task. The result is a run like any other."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fcot.base.entry import entry_point, with_help
from fcot.base.errors import FcotError
from fcot.base.files import read_json
from fcot.base.values import written
from fcot.reporting.finished import readable
from fcot.runs.origin import student_name
from fcot.runs.questions import reading_of_its_run
from fcot.student.interface import API_FILE, FILE, StudentInterface, download_interface, find_student, read_interface
from fcot.tasks.config import CustomDatasetConfig

HELP = """Score a finished student on a task: predictions, errors, interval and page, as of any run.

  fcot evaluate outputs/runs/<run>/student dataset=svamp
  fcot evaluate outputs/runs/<run>/student mine.csv
  fcot evaluate OWNER/NAME dataset=svamp

  STUDENT               the student/ folder of a run, any folder of transformers, or a hub id
  FILE                  a labelled file of your own: the same as dataset=custom dataset.path=FILE
  dataset=...           a task, with its options, as in fcot run

A student of fcot answers in the format that it was trained with (method=as_trained). Problems that its run trained on are not scored.
An API-backed student answers at its server; answers that were bought before come from the store.
Another model is prompted: method=zero_shot_cot, or set method=zero_shot. Your own data is read as in the student's run, where the file
has its columns, and is scored as a whole (split-mode=all); a published or toy task is scored on its test problems. Any other override of
fcot run works: dry_run=true, student.self_consistency=8, seed=1, -m.

The run is in outputs/runs; fcot report compares it with others.
"""


@entry_point
@with_help(HELP)
def main(words: list[str]) -> None:
    """Entry point: runs ``fcot.run`` with the overrides of the evaluation. Exit codes are those of ``fcot.run``."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    overrides = overrides_of(words)
    from fcot import run

    sys.argv[1:] = overrides
    run.main()


def overrides_of(words: Sequence[str]) -> list[str]:
    """The overrides of ``fcot.run`` for an evaluation.

    Args:
        words: The student, then overrides, flags, and at most one data file.

    Raises:
        FcotError: The student cannot be evaluated, or no task is named.
    """
    places = [place for place, word in enumerate(words) if "=" not in word and not word.startswith("-")]
    if not places:
        raise FcotError("name the student first: fcot evaluate outputs/runs/<run>/student dataset=...")
    source = words[places[0]]
    files = [words[place] for place in places[1:]]
    given = [word for place, word in enumerate(words) if place not in places]
    if len(files) > 1:
        raise FcotError(f"{' and '.join(files)}: name one data file")
    if files:
        if not Path(files[0]).exists():
            raise FcotError(f"{files[0]}: no such file; a task is dataset=..., and other options are KEY=VALUE")
        given = [*_defaults(given, {"dataset": "custom"}), f"dataset.path={written(files[0])}", *given]
    own = "dataset=custom" in given
    if not any(word.startswith("dataset=") for word in given):
        raise FcotError("name the task: dataset=svamp, or a labelled file of your own")
    student, method, interface = _student(source)
    has_split = any(word.startswith(("dataset.split_column=", "dataset.group_column=")) for word in given)
    defaults = {"split-mode": "all"} if own and not has_split else {}
    if own and interface is not None:
        defaults |= {"dataset.answer_type": interface.rule.answer_type}
        defaults |= {"dataset.choices": interface.rule.choices} if interface.rule.choices else {}
        defaults |= _reading(source, given)
    if interface is not None and interface.calculator:
        defaults |= {"student.calculator": "true"}
    return [*student, *_defaults(given, defaults | method), *given]


def _student(source: str) -> tuple[list[str], dict[str, str], StudentInterface | None]:
    """The overrides that choose the student, the choices of method and prompt, and the interface; None for a model that fcot did not train.

    Raises:
        FcotError: There is no such student, or its files are damaged.
    """
    folder = find_student(source)
    if (folder / API_FILE).exists():
        return _api_backed(folder)
    if not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
            raise FcotError(f"{source}: no such folder, and no hub id OWNER/NAME")
        interface, place = _on_the_hub(source), f"student.hub_id={source}"
        name = source.partition("/")[2]
    else:
        interface = read_interface(folder) if (folder / FILE).exists() else None
        place, name = f"student.path={written(str(folder))}", student_name(folder)
    chosen = ["student=causal", place, f"student.name={written(name)}"]
    if interface is None:
        chat = _has_chat_template(str(folder) if folder.is_dir() else source)
        method = {"method": "zero_shot_cot", "prompt": "reasoning_chat" if chat else "zero_shot_cot"}
        return [*chosen, f"student.chat_template={str(chat).lower()}"], method, None
    limits = f"student.max_prompt_tokens={interface.max_prompt_tokens}", f"student.max_new_tokens={interface.max_new_tokens}"
    return [*chosen, *limits, f"student.chat_template={str(interface.chat).lower()}"], {"method": "as_trained"}, interface


def _api_backed(folder: Path) -> tuple[list[str], dict[str, str], StudentInterface]:
    """The same for a finished API-backed student: its model at the server that trained it."""
    interface = read_interface(folder)
    with readable(folder / API_FILE):
        student = read_json(folder / API_FILE)
        values: dict[str, Any] = {"model": student["model"], "max_tokens_parameter": student["max_tokens_parameter"]}
        values |= {name: student[name] for name in ("base_url", "api_key_env", "headers") if student.get(name)}
    values |= {"path": str(folder), "name": student_name(folder), "max_new_tokens": interface.max_new_tokens}
    return ["student=openai", *(f"student.{name}={written(value)}" for name, value in values.items())], {"method": "as_trained"}, interface


def _on_the_hub(hub_id: str) -> StudentInterface | None:
    """The interface of a student on the hub; None for a model that fcot did not train."""
    try:
        return download_interface(hub_id)
    except FcotError as error:
        if "no student of fcot" in str(error):
            return None
        raise


def _has_chat_template(source: str) -> bool:
    """Whether a model's tokenizer has a chat template; False too if the tokenizer cannot be loaded, which the run then reports."""
    from fcot.student.loading import load_tokenizer

    try:
        return bool(load_tokenizer(source).chat_template)
    except (FcotError, OSError, ValueError):
        return False


_READING = ("question_column", "answer_column", "option_columns", "decimal", "on_invalid", "normalize_answers")


def _reading(source: str, given: Sequence[str]) -> dict[str, str]:
    """The overrides with which a file of the user's own is read as the data of the student's run was."""
    values = dict(word.partition("=")[::2] for word in given)
    file = values.get("dataset.path", "").strip("'\"")
    folder = find_student(source)
    if not file or not folder.is_dir() or not Path(file).exists():
        return {}
    options = {key.removeprefix("dataset."): value for key, value in values.items() if key.startswith("dataset.")}
    taken = reading_of_its_run(folder, file, _READING, options)
    usual = {option.name: option.default for option in fields(CustomDatasetConfig)}
    return {f"dataset.{name}": written(value) for name, value in taken.items() if value != usual[name]}


def _defaults(given: Sequence[str], values: dict[str, str]) -> Iterator[str]:
    """Overrides for the keys that are not given."""
    keys = {word.partition("=")[0] for word in given}
    return (f"{key}={value}" for key, value in values.items() if key not in keys)


if __name__ == "__main__":
    main()
