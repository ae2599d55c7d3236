"""The options of ``logger``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from omegaconf import MISSING

from fcot.base.fields import bounded


class LoggerOptions(Protocol):
    """The interface of every logger's options.

    Attributes:
        name: The logger's name.
        at_wandb: Whether runs are reported to Weights & Biases.
        by_lightning: Whether each training gets a logger of Lightning.
    """

    name: str
    at_wandb: ClassVar[bool]
    by_lightning: ClassVar[bool]


@dataclass
class LoggerConfig:
    """Training log."""

    name: str = bounded(MISSING, one_of=("csv", "none"))

    at_wandb: ClassVar[bool] = False
    by_lightning: ClassVar[bool] = False


@dataclass
class LightningLoggerConfig:
    """Any logger of Lightning, in addition to the CSV log."""

    name: str = MISSING
    target: str = MISSING  # its class, such as pytorch_lightning.loggers.MLFlowLogger
    options: dict[str, Any] = field(default_factory=dict)  # its arguments; save_dir is the run's logs unless set here

    at_wandb: ClassVar[bool] = False
    by_lightning: ClassVar[bool] = True

    def faults(self) -> Iterator[str]:
        """Faults that the bounds of single options do not cover."""
        if "." not in self.target:
            yield f"logger.target={self.target}: the full name of a class, such as pytorch_lightning.loggers.TensorBoardLogger"


@dataclass
class WandbLoggerConfig:
    """Weights & Biases, in addition to the CSV log. WANDB_API_KEY holds the key, WANDB_BASE_URL the address of a server of your own."""

    name: str = "wandb"
    project: str = "fcot"
    entity: str | None = None  # user or team; null: the default one of the key
    # auto: online if there is a key and the server answers, otherwise offline; online: without a key the run does not start
    mode: str = bounded("auto", one_of=("auto", "online", "offline"))
    tags: list[str] = field(default_factory=list)  # in addition to method, task, student, teacher and D
    log_student: bool = True  # upload the trained student
    wait_s: int = bounded(120, at_least=1)  # maximum wait for uploads at the end of a run; `wandb sync` uploads the rest

    at_wandb: ClassVar[bool] = True
    by_lightning: ClassVar[bool] = False

    def faults(self) -> Iterator[str]:
        """Faults that the bounds of single options do not cover."""
        if self.mode == "online" and not os.environ.get("WANDB_API_KEY"):
            yield "logger.mode=online: no key in WANDB_API_KEY; logger.mode=auto logs offline without one"


SCHEMAS = {
    ("logger", "logger"): LoggerConfig,
    ("logger", "lightning"): LightningLoggerConfig,
    ("logger", "wandb"): WandbLoggerConfig,
}
