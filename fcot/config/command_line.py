"""The command line of ``fcot.run``: flags and overrides in any order, and answers to words that are neither."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from fcot.base.errors import FcotError, UsageError
from fcot.base.resources import CONF
from fcot.config.schema import Config

_ALONE = ("--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m", "--shell-completion", "-sc")
_WITH_VALUE = (
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--experimental-rerun",
)  # fmt: skip
_INFO = ("--info", "-i")  # a value may follow
_INFO_VALUES = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_FOLDERS = ("--config-dir", "-cd", "--config-path", "-cp")
_FLAGS_TO_SHOW = "-m, --cfg job, --config-dir FOLDER, --help, --version"


def arrange(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the words of a command line, whose flags may stand anywhere: Hydra's own parser stops at overrides behind a flag.

    Returns:
        The overrides, and Hydra's flags with their values.

    Raises:
        UsageError: A word is neither an override nor one of Hydra's flags; the message says what to type.
        FcotError: ``--config-dir`` names the folder of a run.
    """
    overrides: list[str] = []
    flags: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if not word.startswith("-"):
            overrides.append(_checked(word))
            continue
        if flag not in (*_ALONE, *_WITH_VALUE, *_INFO):
            raise UsageError(_wrong_flag(word, rest))
        flags.append(word)
        if not equals and rest and (flag in _WITH_VALUE or (flag in _INFO and rest[0] in _INFO_VALUES)):
            value = rest.pop(0)
            flags.append(value)
        if flag in _FOLDERS and value:
            _check_folder(flag, Path(value))
    return overrides, flags


def _checked(word: str) -> str:
    """The word itself, if it may be an override."""
    if "=" in word or word.startswith("~"):
        return word
    if Path(word).suffix in (".csv", ".tsv", ".json", ".jsonl", ".parquet"):
        raise UsageError(f"{word}: a file is named by an override: dataset=custom dataset.path={word}")
    if (group := word.replace("_", "-")) and _is_name(word):
        raise UsageError(f"{word}: write {group if (CONF / group).is_dir() else word}=VALUE")
    raise UsageError(f"{word}: not an override; write KEY=VALUE or GROUP=CHOICE (--help lists them)")


def _is_name(key: str) -> bool:
    """Whether a key begins with the name of a group or of an option of the root."""
    first = key.partition(".")[0]
    return (CONF / first.replace("_", "-")).is_dir() or first.replace("-", "_") in {field.name for field in fields(Config)}


def _wrong_flag(word: str, rest: Sequence[str]) -> str:
    """The message about a flag that Hydra does not have, which usually is an option with dashes before it.

    Args:
        word: The flag.
        rest: The words behind it, whose first may be its value.
    """
    name, equals, value = word.lstrip("-").partition("=")
    if _is_name(name):
        if not equals and rest and not rest[0].startswith("-") and "=" not in rest[0]:
            value, word = rest[0], f"{word} {rest[0]}"
        group = name.replace("_", "-")
        key = group if (CONF / group).is_dir() else name.replace("-", "_")
        return f"{word}: options have no dashes before them; write {key}={value or 'true'}"
    close = difflib.get_close_matches(word, (*_ALONE, *_WITH_VALUE, *_INFO), 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{word}: no such flag; {hint}Flags: {_FLAGS_TO_SHOW}. Everything else is KEY=VALUE without dashes (--help lists it)"


def _check_folder(flag: str, folder: Path) -> None:
    """Reject a folder whose ``config.yaml`` would be ignored, because fcot's own has this name.

    Raises:
        FcotError: The folder is a run's, or it has such a file.
    """
    from fcot.base.run_folder import RunDirectory
    from fcot.reporting.finished import command_of

    run = RunDirectory(folder)
    if not run.config.is_file():
        return
    if command := command_of(run):
        raise FcotError(
            f"{flag} {folder}: this is a run's folder, and its config.yaml only records what the run was made with. The run's command, "
            f"which continues it, or changes it with more overrides:\n{command}"
        )
    raise FcotError(
        f"{flag} {folder}: its config.yaml would not be read, because fcot's own has the same name. Give it another name and select it "
        "with --config-name NAME, or put choices into GROUP/CHOICE.yaml"
    )
