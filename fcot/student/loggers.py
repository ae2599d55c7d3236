"""Where a training is told of beside its CSV log: any logger of Lightning, or a function."""

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

# Lightning imports these when its logger is made, and names them in words only.
_PACKAGES = {"TensorBoardLogger": "tensorboard", "MLFlowLogger": "mlflow", "CometLogger": "comet-ml", "NeptuneLogger": "neptune"}


class FunctionLogger(Logger):
    """A logger that passes metrics on.

    Args:
        tell: Called with the metrics and the optimizer step.
    """

    def __init__(self, tell: Callable[[dict[str, float], int], object]) -> None:
        super().__init__()
        self._tell = tell

    @property
    def name(self) -> str:
        """Unused: it keeps no files."""
        return "told"

    @property
    def version(self) -> str:
        """Unused."""
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Pass them on."""
        self._tell(dict(metrics), step or 0)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The configuration is logged elsewhere."""


def lightning_logger(target: str, options: Mapping[str, Any], folder: Path) -> Logger:
    """A logger of Lightning by the name of its class; what it saves goes into ``folder`` unless its options say otherwise.

    Raises:
        FcotError: There is no such class, it is none of a logger, it wants other options, or its package is not installed.
    """
    module, _, name = target.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
        if not (isinstance(kind, type) and issubclass(kind, Logger)):
            raise FcotError(f"logger.target={target}: not a logger of Lightning")
        place = {"save_dir": str(folder)} if "save_dir" in inspect.signature(kind).parameters else {}
        return kind(**place | dict(options))
    except ModuleNotFoundError as error:
        raise FcotError(f"logger.target={target}: {error}; pip install {_PACKAGES.get(name, error.name or module)}") from error
    except AttributeError as error:
        raise FcotError(f"logger.target={target}: {module} has no {name}") from error
    except TypeError as error:
        raise FcotError(f"logger.options={dict(options)}: {error}") from error


def csv_log(folder: Path, first_step: int) -> CSVLogger:
    """A log that keeps what was written before this process, up to where it goes on: Lightning's own would begin anew."""
    written = folder / "metrics.csv"
    rows = list(csv.DictReader(written.open(newline=""))) if first_step and written.exists() else []
    logger = CSVLogger(folder.parent, name=folder.name, version="", flush_logs_every_n_steps=1)
    for row in rows:
        with contextlib.suppress(TypeError, ValueError):  # a line that a kill tore
            values: dict[str, Any] = {name: float(value) for name, value in row.items() if name != "step" and value != ""}
            if (step := int(row["step"])) <= first_step:
                logger.log_metrics(values, step)
    return logger
