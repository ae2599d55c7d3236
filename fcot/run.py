"""``python -m fcot.run``: one run, or with ``-m`` a sweep. ``--help`` says what can be chosen."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fcot.base.console import say
from fcot.base.errors import FcotError
from fcot.base.resources import CONF
from fcot.base.stopping import listen, stop_requested
from fcot.config.overrides import explained, prepare
from fcot.config.schema import register_schemas


def main() -> None:
    """Entry point. Exit code 0, 1 after a message, 130 after Ctrl-C."""
    if {"--help", "-h"} & set(sys.argv[1:]):  # Hydra would print the same text after listing every group's files
        print(OmegaConf.load(CONF / "config.yaml").hydra.help.template)
        return
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises, and the message is ours
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads make two runs on one machine 20 times slower
    register_schemas()
    try:
        with explained():
            listen()  # every rank does: they stop together
            sys.argv[1:] = prepare(sys.argv[1:])
            _application()
    except KeyboardInterrupt:
        signalled = stop_requested()
        say(f"\n{f'stopped by {signalled.name}' if signalled else 'interrupted'}; the same command continues where this one stopped")
        sys.exit(130 if signalled is None else 128 + signalled)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _application(composed: DictConfig) -> None:
    """One run. The jobs of a sweep come from its plan (:mod:`fcot.sweeps`), not from here."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise FcotError("sweeps run under hydra/launcher=serial, local, slurm or slurm_ddp")
    if HydraConfig.get().launcher.get("kind") != "serial":
        say(f"hydra/launcher={HydraConfig.get().runtime.choices['hydra/launcher']} is for sweeps: add -m, also for one job")
        sys.exit(1)
    try:
        folder, metrics = _run(composed)
    except FcotError as error:  # here, because Hydra would announce it with the overrides first
        say(str(error))
        sys.exit(1)
    if "accuracy" in metrics:
        from fcot.reporting.finished import load
        from fcot.reporting.settings import group
        from fcot.reporting.tables import print_comparison

        print_comparison(group([load(folder / "metrics.json")]))
        say(f"every answer, curves and errors on a page: python -m fcot.report {shlex.quote(str(folder))}")
    elif metrics:
        from fcot.reporting.tables import stage_line

        first = folder / "round_1"  # of a run of rounds
        print(stage_line(composed.until, metrics, str(first if first.exists() else folder)))


def _run(composed: DictConfig) -> tuple[Path, dict[str, Any]]:
    """Resolve and execute one run; its folder and metrics, which are empty where it only looked ahead."""
    from fcot.sweeps.plan import resolve_job

    run = resolve_job(composed)
    if run.config.dry_run:
        from fcot.estimate.dry_run import estimate
        from fcot.estimate.needs import show

        show([estimate(run, {})])
    elif run.config.preview:
        from fcot.estimate.preview import preview

        preview(run, run.config.preview)
    else:
        from fcot.runs.pipeline import execute
        from fcot.runs.run import kept_config
        from fcot.sweeps.plan import added_searchpath

        say(f"run {run.directory.path}")
        hydra = HydraConfig.get()
        return run.directory.path, execute(run, kept_config(composed, run, hydra.overrides.task, added_searchpath(hydra.runtime)))
    return run.directory.path, {}


if __name__ == "__main__":
    main()
