"""The options of ``logger``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class LoggerConfig:
    """Training log."""

    name: str = MISSING  # csv or none


@dataclass
class LightningLoggerConfig:
    """Any logger of Lightning, beside the CSV log."""

    name: str = MISSING
    target: str = MISSING  # its class, such as pytorch_lightning.loggers.MLFlowLogger
    options: dict[str, Any] = field(default_factory=dict)  # its arguments; save_dir is the run's logs unless set here


@dataclass
class WandbLoggerConfig:
    """Weights & Biases, beside the CSV log. The key comes from WANDB_API_KEY, a server of your own from WANDB_BASE_URL."""

    name: str = "wandb"
    project: str = "fcot"
    entity: str | None = None  # user or team; null takes the key's own
    mode: str = "auto"  # online where there is a key and the server answers, else offline; online: no run without a key; offline
    tags: list[str] = field(default_factory=list)  # beside method, task, student, teacher and D
    log_student: bool = True  # upload the trained student
    wait_s: int = 120  # for uploads at the end of a run; what is missing then can be synced
