"""The Hydra plugin of fcot's sweeps: the sweeper, and the launcher for ``hydra/launcher=serial``, ``local``, ``slurm`` and ``slurm_ddp``.

Hydra finds plugins only below ``hydra_plugins`` and executes all of them at every start, so nothing heavy is imported here. It executes
them outside ``sys.modules``, where dataclasses with postponed annotations fail: this file has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from omegaconf import DictConfig, OmegaConf

_TARGET = "hydra_plugins.fcot_launcher.FcotLauncher"


@dataclass
class SerialConf:
    """Run one job after another in this process."""

    _target_: str = _TARGET
    kind: str = "serial"
    budget_usd: float | None = None


@dataclass
class LocalConf:
    """Run jobs in a pool of processes on this machine."""

    _target_: str = _TARGET
    kind: str = "local"
    processes: int | None = None
    gpus_per_job: int = 1
    budget_usd: float | None = None


@dataclass
class GenerationConf:
    """Parameters of the generation job; null takes the array's value, but no GPU."""

    partition: str | None = None
    qos: str | None = None
    timeout_min: int | None = None
    cpus_per_task: int | None = None
    mem_gb: int | None = None
    gpus_per_node: int | None = None


@dataclass
class SlurmConf(SlurmQueueConf):  # type: ignore[misc] - hydra-submitit-launcher's parameters, under their names
    """Submit the jobs as arrays to SLURM."""

    _target_: str = _TARGET
    kind: str = "slurm"
    budget_usd: float | None = None
    generation: GenerationConf = field(default_factory=GenerationConf)


for _name, _node in {"serial": SerialConf, "local": LocalConf, "slurm": SlurmConf}.items():
    ConfigStore.instance().store(group="hydra/launcher", name=f"fcot_{_name}", node=_node, provider="fcot")


@dataclass
class SweeperConf:
    """Parameters of the sweeper, those of Hydra's basic sweeper."""

    _target_: str = "hydra_plugins.fcot_launcher.FcotSweeper"
    params: dict[str, str] | None = None
    max_batch_size: int | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="fcot", node=SweeperConf, provider="fcot")


class FcotSweeper(BasicSweeper):
    """Hydra's basic sweeper without its check that every job composes: the plan composes every job anyway."""

    def __init__(self, max_batch_size: int | None, params: Any = None) -> None:
        super().__init__(max_batch_size, params)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Skip Hydra's check, which would compose every job a second time."""


class FcotLauncher(Launcher):
    """Hands all jobs of a sweep to :func:`fcot.sweeps.launch.launch`."""

    def __init__(self, **parameters: Any) -> None:
        self._parameters = {
            name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value for name, value in parameters.items()
        }

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the configuration that Hydra composed."""
        self._config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Plan all jobs and run or submit them. Nothing is returned: the results are in the sweep's folder.

        Raises:
            FcotError: ``hydra.sweeper.max_batch_size`` is set, or an error of :func:`fcot.sweeps.launch.launch`.
        """
        from fcot.base.errors import FcotError
        from fcot.sweeps.launch import launch
        from fcot.sweeps.plan import added_searchpath

        sweeper = self._config.hydra.sweeper
        if sweeper.get("max_batch_size") is not None:
            raise FcotError(
                "hydra.sweeper.max_batch_size: a sweep is planned as a whole; hydra.launcher.array_parallelism limits parallel SLURM jobs"
            )
        launch(Path(self._config.hydra.sweep.dir), job_overrides, added_searchpath(self._config.hydra.runtime), self._parameters)
        return []
