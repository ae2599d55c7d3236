"""The command line before Hydra reads it, and Hydra's complaints about it in our words."""

from __future__ import annotations

import contextlib
import difflib
import re
import sys
from collections.abc import Iterator
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fcot.base.console import say
from fcot.base.errors import FcotError
from fcot.base.resources import CONF

_SECRET_NAME = re.compile(r"(?:^|[._-])(?:api[_-]?key|key|token|secret|password|passwd|authorization)$", re.IGNORECASE)
_SECRET_TOKEN = re.compile(r"(?:sk|hf|pk|ghp|gsk)[-_](?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{16,}", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"Bearer\s+\S+|oc\.env:|://[^/@\s]+:[^/@\s]+@|(?:api[_-]?key|token|secret|password)[\"']?\s*[=:]", re.IGNORECASE)
_OPEN = r"(?:teacher\.parameters|curation\.settings|logger\.options|hydra\.launcher\.additional_parameters)[.=]"
_INTERNAL = ("fcot_", "submitit_", "basic")  # choices of hydra/launcher that only others build on


def prepare(arguments: list[str]) -> list[str]:
    """Check the overrides.

    Raises:
        FcotError: An override looks like a secret (no field can hold one, and Hydra writes overrides to disk), adds a key
            that nothing reads, chooses nothing of a group, or mixes up ``split-mode`` (the choice) and ``split_mode`` (its values).
    """
    for argument in arguments:
        name, found, value = argument.lstrip("+~").partition("=")
        if found and looks_secret(name, value):
            raise FcotError(f"{name}=...: this looks like a secret. Keys come from the environment (OPENAI_API_KEY, WANDB_API_KEY) only")
        if found and name.endswith("api_key_env") and not re.fullmatch(r"[A-Za-z_]\w*|", value):
            raise FcotError(f"{name}: the name of an environment variable that holds the key, such as MY_KEY; never the key itself")
        if found and argument.startswith("+") and not name.startswith("hydra"):
            raise FcotError(f"{argument.partition('=')[0]}: nothing reads added keys; write {name}=... to set what exists")
        if name == "diversity_is_swept":
            raise FcotError("diversity_is_swept is gone: diversity=1 is greedy; teacher.temperature=0.7 samples its one rationale")
        if name == "split_mode":
            raise FcotError(f"split_mode={value}: the choice is split-mode={value}; split_mode.KEY=VALUE sets its values")
        if value == "null" and (CONF / name).is_dir():  # Hydra would fall over it
            raise FcotError(f"{argument}: leave it out, or name a choice")
        if name.startswith("split-mode."):
            raise FcotError(f"{name}={value}: write {name.replace('-', '_', 1)}={value}; split-mode=CHOICE selects")
    # The keys of these mappings are a server's, a filter's or sbatch's, not the schema's: Hydra has to be told to add them.
    return [f"++{argument}" if re.match(_OPEN, argument) else argument for argument in arguments]


def looks_secret(name: str, value: str) -> bool:
    """Whether an override's value is one that must not be written down."""
    if not value:
        return False
    words = re.split(r"[\s,\[\]{}\"':=]+", value)
    return bool(_SECRET_NAME.search(name) or _SECRET_TEXT.search(value) or any(_SECRET_TOKEN.fullmatch(word) for word in words))


def _below(group: str) -> list[str]:
    """The choices of a group in folders of their own, such as ``toy/cost``."""
    folder = CONF / group
    return [str(path.relative_to(folder).with_suffix("")) for path in folder.glob("*/*.yaml")]


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Within, what is wrong with a command ends the program with one message and exit code 1."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        say(explain(error))
        sys.exit(1)
    except FcotError as error:
        say(str(error))
        sys.exit(1)


def explain(error: Exception) -> str:
    """Hydra's complaint about an override, with what exists in its place."""
    cause: Any = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    message = str(error).strip()
    parent, key = getattr(cause, "parent_node", None), getattr(cause, "key", None)
    if isinstance(parent, DictConfig) and key is not None and str(key) not in parent:
        full = str(getattr(cause, "full_key", key))
        prefix = full[: -len(str(key))]
        known = sorted(map(str, parent))
        close = difflib.get_close_matches(str(key), known, n=1)
        hint = f" Did you mean {prefix}{close[0]}?" if close else ""
        group = prefix.rstrip(".").replace("_", "-")
        if any(
            re.match(rf"{group}=.*,|experiment=", argument) for argument in sys.argv[1:]
        ):  # Hydra composes a sweep without its axes first
            hint += f" In a sweep over {group} only what the default {group} has can be set beside it; make an experiment of it."
        return f"there is no {full}.{hint}\n{prefix.rstrip('.') or 'the root'} has: {', '.join(known)}"
    if missing := re.search(
        r"Could not find '(hydra/[\w-]+|[\w-]+)/([^']*)'.*Available options in [^\n]*\n(.*?)(?:\nConfig search|$)", message, re.DOTALL
    ):
        known = sorted(name for name in {*missing[3].split(), *_below(missing[1])} if not name.startswith(_INTERNAL))
        folder = missing[2].rpartition("/")[0]
        near = [name for name in known if name.rpartition("/")[0] == folder] or known
        close = difflib.get_close_matches(missing[2], near, n=1) or difflib.get_close_matches(missing[2], known, n=1)
        hint = f" Did you mean {missing[1]}={close[0]}?" if close else ""
        return f"there is no {missing[1]}={missing[2]}.{hint}\n{missing[1]} has: {', '.join(known)}"
    if "LexerNoViableAlt" in message or "mismatched input" in message or "token recognition" in message:
        return f"{message}\nvalues with special characters need quotes: \"KEY='VALUE'\""
    if cause is not error:
        message += f"\n{cause}"
    return re.sub(r"\n\s*(full_key|object_type|reference_type)[:=].*", "", message)
