"""The loggers of a training: its CSV log, any Lightning logger, or a function."""

from __future__ import annotations

import contextlib
import csv
import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger

from fcot.base.errors import FcotError

# Packages that Lightning's loggers import when they are created; Lightning's error names them only in prose.
_PACKAGES = {"TensorBoardLogger": "tensorboard", "MLFlowLogger": "mlflow", "CometLogger": "comet-ml", "NeptuneLogger": "neptune"}


class FunctionLogger(Logger):
    """A logger that passes metrics to a function.

    Args:
        log: Called with the metrics and the optimizer step.
    """

    def __init__(self, log: Callable[[dict[str, float], int], object]) -> None:
        super().__init__()
        self._log = log

    @property
    def name(self) -> str:
        """Required by Lightning; unused, because this logger writes no files."""
        return "function"

    @property
    def version(self) -> str:
        """Required by Lightning; unused."""
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Pass metrics to the function."""
        self._log(dict(metrics), step or 0)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The configuration is logged elsewhere."""


def lightning_logger(target: str, options: Mapping[str, Any], folder: Path) -> Logger:
    """Create a Lightning logger from the name of its class.

    Args:
        target: ``module.Class``.
        options: Keyword arguments of the class.
        folder: Where the logger saves its files, unless ``options`` has ``save_dir``.

    Raises:
        FcotError: The class does not exist, is not a logger or rejects the options, or its package is not installed.
    """
    module, _, name = target.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
        if not (isinstance(kind, type) and issubclass(kind, Logger)):
            raise FcotError(f"logger.target={target}: not a Lightning logger")
        defaults = {"save_dir": str(folder)} if "save_dir" in inspect.signature(kind).parameters else {}
        return kind(**defaults | dict(options))
    except ModuleNotFoundError as error:
        raise FcotError(f"logger.target={target}: {error}; pip install {_PACKAGES.get(name, error.name or module)}") from error
    except AttributeError as error:
        raise FcotError(f"logger.target={target}: {module} has no {name}") from error
    except TypeError as error:
        raise FcotError(f"logger.options={dict(options)}: {error}") from error


def csv_log(folder: Path, first_step: int) -> CSVLogger:
    """Open the CSV log of a training that may have been interrupted.

    Lightning's logger overwrites ``metrics.csv``; this one first copies the rows of earlier processes, up to ``first_step``.
    """
    path = folder / "metrics.csv"
    rows = list(csv.DictReader(path.open(newline=""))) if first_step and path.exists() else []
    logger = CSVLogger(folder.parent, name=folder.name, version="", flush_logs_every_n_steps=1)
    for row in rows:
        with contextlib.suppress(TypeError, ValueError):  # a line that was cut off when the process was killed
            values: dict[str, Any] = {name: float(value) for name, value in row.items() if name != "step" and value != ""}
            if (step := int(row["step"])) <= first_step:
                logger.log_metrics(values, step)
    return logger
