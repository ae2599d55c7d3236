"""Loads functions that the user wrote and named in an option as ``module.function``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from fcot.base.errors import FcotError
from fcot.base.files import file_fingerprint


def load_function(option: str, name: str) -> Callable[..., Any]:
    """Import the function named ``module.function``. Modules in the working folder are found as well.

    Args:
        option: The option that names the function, for messages.
        name: Module and function, such as ``my_filters.short``.

    Raises:
        FcotError: There is no such module or function, or importing the module fails.
    """
    module_name, _, attribute = name.rpartition(".")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise FcotError(f"{option}={name}: no module {error.name} in {folder} or the Python environment") from error
    except Exception as error:
        raise FcotError(f"{option}={name}: importing {module_name} failed with {type(error).__name__}: {error}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise FcotError(f"{option}={name}: {module_name} has no function {attribute}")
    checked: Callable[..., Any] = function
    return checked


def source_fingerprint(function: Callable[..., Any]) -> str:
    """The SHA-256 (hex) of the file that defines a function, so that a changed function renames the run."""
    return file_fingerprint(Path(inspect.getfile(inspect.unwrap(function))))
