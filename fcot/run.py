"""``python -m fcot.run``: one run, or a sweep with ``-m``. ``--help`` lists the choices."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fcot import __version__
from fcot.base.console import say
from fcot.base.entry import entry_point
from fcot.base.errors import FcotError
from fcot.base.resources import CONF
from fcot.base.stopping import listen
from fcot.config.command_line import arrange
from fcot.config.overrides import explained, prepare
from fcot.config.schema import register_schemas


@entry_point
def main() -> None:
    """Entry point, with the exit codes of :func:`fcot.base.entry.entry_point`."""
    words = sys.argv[1:]
    if {"--help", "-h"} & set(words):  # Hydra would list the files of every group before this text
        from fcot.student.catalogue import ABOUT, help_table

        print(OmegaConf.load(CONF / "config.yaml").hydra.help.template.replace("STUDENTS", f"{ABOUT}\n\n{help_table()}"))
        return
    if "--version" in words:  # Hydra would print its own
        print(f"fcot {__version__}")
        return
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises the exception, so that fcot can print its own message
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow two runs on one machine down by a factor of 20
    register_schemas()
    listen()  # on every rank, because ranks stop together
    overrides, flags = arrange(words)
    with explained(overrides):
        sys.argv[1:] = [*prepare(overrides), *flags]
        _application()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _application(composed: DictConfig) -> None:
    """Execute one run. The jobs of a sweep are executed by :mod:`fcot.sweeps`."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise FcotError("sweeps run under hydra/launcher=serial, local, slurm or slurm_ddp: choose one of these")
    if HydraConfig.get().launcher.get("kind") != "serial":
        say(f"hydra/launcher={HydraConfig.get().runtime.choices['hydra/launcher']} is for sweeps: add -m, even for a single job")
        sys.exit(1)
    from fcot.sweeps.plan import added_searchpath

    hydra_config = HydraConfig.get()
    try:
        folder, metrics = start(composed, hydra_config.overrides.task, added_searchpath(hydra_config.runtime))
    except FcotError as error:  # caught here, because Hydra would print the overrides before the message
        say(str(error))
        sys.exit(1)
    if "accuracy" in metrics:
        from fcot.reporting.finished import load
        from fcot.reporting.settings import group
        from fcot.reporting.tables import print_comparison

        print_comparison(group([load(folder / "metrics.json")]))
        say(f"page with all answers, curves and errors: python -m fcot.report {shlex.quote(str(folder))}")
    elif metrics:
        from fcot.reporting.tables import stage_line

        first_round = folder / "round_1"  # exists if the method has rounds
        print(stage_line(composed.until, metrics, str(first_round if first_round.exists() else folder)))
        if composed.until == "curate":
            say(f"page to look at all rationales, and to choose among them: python -m fcot.report {shlex.quote(str(folder))}")


def start(composed: DictConfig, overrides: Sequence[str], searchpath: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """Resolve and execute one run, or show its dry run or preview.

    Args:
        composed: The composed configuration.
        overrides: The overrides that made it, which the run records.
        searchpath: Folders of configuration files that the command added, as URLs.

    Returns:
        The run's folder and its metrics, which are empty for a dry run or a preview.
    """
    from fcot.sweeps.plan import resolve_job

    run = resolve_job(composed)
    if run.config.dry_run:
        from fcot.estimate.dry_run import estimate
        from fcot.estimate.needs import show

        show([estimate(run, {}, overrides)])
    elif run.config.preview:
        from fcot.estimate.preview import preview

        preview(run, run.config.preview)
    else:
        from fcot.runs.pipeline import execute
        from fcot.runs.run import config_yaml

        say(f"run {run.directory.path}")
        return run.directory.path, execute(run, config_yaml(composed, run, overrides, searchpath))
    return run.directory.path, {}


if __name__ == "__main__":
    main()
