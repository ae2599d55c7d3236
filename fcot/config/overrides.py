"""Checks the overrides before Hydra reads them, and rewrites Hydra's error messages."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fcot.base.errors import FcotError
from fcot.base.locations import OUTPUT_DIR, STORE
from fcot.base.resources import CONF
from fcot.base.values import written
from fcot.config.schema import choices_of_options, of_other_choices

_SECRET_NAME = re.compile(r"(?:^|[._-])(?:api[_-]?key|key|token|secret|password|passwd|authorization)$", re.IGNORECASE)
_SECRET_TOKEN = re.compile(r"(?:sk|hf|pk|ghp|gsk)[-_](?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{16,}", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"Bearer\s+\S+|oc\.env:|://[^/@\s]+:[^/@\s]+@|(?:api[_-]?key|token|secret|password)[\"']?\s*[=:]", re.IGNORECASE)
_HEADERS = r"(?:teacher|student)\.headers"
_OPEN_MAPPING = rf"(?:teacher\.parameters|{_HEADERS}|curation\.settings|logger\.options|hydra\.launcher\.additional_parameters)[.=]"
_INTERNAL = ("fcot_", "submitit_", "basic")  # prefixes of hydra/launcher choices that only other choices build on


def prepare(arguments: list[str]) -> list[str]:
    """Check the overrides, and return them in the form that Hydra needs.

    Raises:
        FcotError: An override looks like a secret, adds a key that nothing reads, sets a group to ``null``, or mixes up ``split-mode`` (the
            choice) and ``split_mode`` (its values). No option takes a secret, and Hydra would write it to disk.
    """
    for argument in arguments:
        name, has_value, value = argument.lstrip("+~").partition("=")
        if has_value and re.match(_HEADERS, name):
            _check_headers(name, value)
        elif has_value and looks_secret(name, value):
            raise FcotError(
                f"{name}=...: this looks like a secret. fcot reads keys only from environment variables (OPENAI_API_KEY, WANDB_API_KEY)"
            )
        if has_value and name.endswith("api_key_env") and not re.fullmatch(r"[A-Za-z_]\w*|", value):
            raise FcotError(f"{name}: set it to the name of an environment variable with the key, such as MY_KEY, never to the key itself")
        if has_value and argument.startswith("+") and not name.startswith("hydra"):
            raise FcotError(f"{argument.partition('=')[0]}: nothing reads added keys; write {name}=... to set an existing key")
        if name == "diversity_is_swept":
            raise FcotError("diversity_is_swept was removed: diversity=1 decodes greedily; add teacher.temperature=0.7 to sample")
        if name == "split_mode":
            raise FcotError(f"split_mode={value}: the choice is split-mode={value}; split_mode.KEY=VALUE sets its values")
        if name == "hydra.launcher" and not value.startswith("{"):
            raise FcotError(f"{argument}: the choice is hydra/launcher={value}; hydra.launcher.KEY=VALUE sets its values")
        if name.startswith("hydra/launcher."):
            raise FcotError(f"{argument}: write {argument.replace('/', '.', 1)}; hydra/launcher=CHOICE sets the choice only")
        if value == "null" and (CONF / name).is_dir():  # Hydra would crash
            raise FcotError(f"{argument}: a group cannot be null; leave the override out, or name a choice")
        if name.startswith("split-mode."):
            raise FcotError(f"{name}={value}: write {name.replace('-', '_', 1)}={value}; split-mode=CHOICE sets the choice only")
    arguments = [*_places(arguments), *arguments]
    # The keys of these mappings belong to a server, a filter or sbatch and are not in the schema: Hydra sets them only with "++".
    return [f"++{argument}" if re.match(_OPEN_MAPPING, argument) else argument for argument in arguments]


def _check_headers(name: str, value: str) -> None:
    """Check that all values of ``teacher.headers`` or ``student.headers`` can be names of environment variables.

    Raises:
        FcotError: A value cannot. Hydra would write it to disk, and it may be a secret.
    """
    entries = value.strip().removeprefix("{").removesuffix("}").split(",") if re.fullmatch(_HEADERS, name) else [f"_:{value}"]
    variables = [entry.partition(":")[2].strip(" '\"") for entry in entries if entry.strip()]
    if value != "null" and not all(re.fullmatch(r"[A-Za-z_]\w*", variable) and not looks_secret("", variable) for variable in variables):
        raise FcotError(
            f"{name}: a value is the name of an environment variable, never the header's value itself: "
            f'"{name.partition(".")[0]}.headers={{X-Team: TEAM_TOKEN}}"'
        )


def _places(overrides: Sequence[str]) -> list[str]:
    """Overrides for the folders that environment variables name and the command does not set.

    As overrides they are recorded with a run and in a sweep's plan, so that jobs and ``rerun`` need no variables.
    """
    given = {override.partition("=")[0] for override in overrides}
    variables = {"output_dir": OUTPUT_DIR, "store_dir": STORE}
    folders = {key: os.environ.get(variable) for key, variable in variables.items() if key not in given}
    return [f"{key}={written(os.path.abspath(folder))}" for key, folder in folders.items() if folder]


def looks_secret(name: str, value: str) -> bool:
    """Whether the value of an override may be a secret, which must not be written to disk."""
    if not value:
        return False
    words = re.split(r"[\s,\[\]{}\"':=]+", value)
    return bool(_SECRET_NAME.search(name) or _SECRET_TEXT.search(value) or any(_SECRET_TOKEN.fullmatch(word) for word in words))


def _nested_choices(group: str) -> list[str]:
    """The choices in subfolders of a group, such as ``toy/cost``."""
    folder = CONF / group
    return [str(path.relative_to(folder).with_suffix("")) for path in folder.glob("*/*.yaml")]


@contextlib.contextmanager
def explained(overrides: Sequence[str]) -> Iterator[None]:
    """A context in which Hydra's errors about overrides become messages.

    Raises:
        FcotError: Hydra rejects an override.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise FcotError(explain(error, overrides)) from error


_WRONG_TYPE = re.compile(r"Value '(.*)' (?:of type '\w+' could not be converted to|is not a valid) (\w+)", re.DOTALL)
_EXPECTED = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """A message for Hydra's error about one of the overrides, with the keys or choices that exist."""
    cause: Any = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    message = str(error).strip()
    parent, key = getattr(cause, "parent_node", None), getattr(cause, "key", None)
    if isinstance(parent, DictConfig) and key is not None and str(key) not in parent:
        full_key = str(getattr(cause, "full_key", key))
        prefix = full_key[: -len(str(key))]
        existing = sorted(map(str, parent))
        close = difflib.get_close_matches(str(key), existing, n=1)
        hint = f" Did you mean {prefix}{close[0]}?" if close else ""
        group = prefix.rstrip(".").replace("_", "-")
        of_others = "" if close else next(iter(difflib.get_close_matches(str(key), choices_of_options(group), n=1)), "")
        if others := of_other_choices(group, str(key)):
            hint = f" {others}."
        elif of_others:
            hint = f" Did you mean {prefix}{of_others}? {of_other_choices(group, of_others)}."
        if full_key == "dataset.path":
            hint = " For a file of your own: dataset=custom dataset.path=FILE; for one of paper A's tasks: dataset=svamp dataset.path=FILE."
        # Hydra first composes a sweep without its axes.
        if any(re.match(rf"{group}=.*,|experiment=", argument) for argument in overrides):
            hint += f" In a sweep over {group}, the command line sets only keys of the default {group}; set others in an experiment file."
        return f"there is no {full_key}.{hint}\n{prefix.rstrip('.') or 'the root'} has: {', '.join(existing)}"
    if missing := re.search(
        r"Could not find '(hydra/[\w-]+|[\w-]+)/([^']*)'.*Available options in [^\n]*\n(.*?)(?:\nConfig search|$)", message, re.DOTALL
    ):
        group, choice = missing[1], missing[2]
        existing = sorted(name for name in {*missing[3].split(), *_nested_choices(group)} if not name.startswith(_INTERNAL))
        folder = choice.rpartition("/")[0]
        siblings = [name for name in existing if name.rpartition("/")[0] == folder] or existing
        close = difflib.get_close_matches(choice, siblings, n=1) or difflib.get_close_matches(choice, existing, n=1)
        hint = f" Did you mean {group}={close[0]}?" if close else ""
        return f"there is no {group}={choice}.{hint}\n{group} has: {', '.join(existing)}"
    if "LexerNoViableAlt" in message or "mismatched input" in message or "token recognition" in message:
        return f"{message}\nvalues with special characters need quotes: \"KEY='VALUE'\""
    option = getattr(cause, "full_key", None) or key
    if option and (wrong := _WRONG_TYPE.match(str(cause))):
        return f"{option}={wrong[1]}: {_EXPECTED.get(wrong[2], wrong[2])} is expected"
    if option and re.match(r"Cannot assign \w+ to Dict", str(cause)):
        return f'{option} takes names and values, in quotes for the shell: "{option}={{NAME: VALUE}}"'
    if cause is not error:
        message += f"\n{cause}"
    return re.sub(r"\n\s*(full_key|object_type|reference_type)[:=].*", "", message)
