"""``python -m fcot.run``: one run, or with ``-m`` a sweep. ``--help`` says what can be chosen."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fcot.config import CONF, register_schemas
from fcot.errors import ConfigFaults, FcotError
from fcot.overrides import MARK, explain, prepare
from fcot.progress import say

# What this process has run of its sweep, for the summary at the end.
_sweeps: list[Path] = []
_jobs: dict[str, int] = {}
_failed: dict[str, list[str]] = {}  # jobs by message
_estimates: list[Any] = []
_SHOWN_JOBS = 3  # of those that failed for one reason
_planned: dict[tuple[object, ...], int] = {}


def main() -> None:
    """Entry point. Exit code 0, 1 after a message, 130 after Ctrl-C."""
    if {"--help", "-h"} & set(sys.argv[1:]):  # Hydra would print the same text after listing every group's files
        print(OmegaConf.load(CONF / "config.yaml").hydra.help.template)
        return
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises, and the message is ours
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads make two runs on one machine 20 times slower
    register_schemas()
    try:
        sys.argv[1:] = prepare(sys.argv[1:])
        _application()
    except KeyboardInterrupt:
        say("\ninterrupted; the same command continues where this one stopped")
        sys.exit(130)
    except (HydraException, OmegaConfBaseException) as error:
        say(explain(error))
        sys.exit(1)
    except FcotError as error:
        say(str(error))
        sys.exit(1)
    finally:
        _report_sweeps()
    if _failed:
        say(f"{sum(map(len, _failed.values()))} jobs failed:")
        for message, jobs in _failed.items():
            reason = "" if len(jobs) == 1 else f": {message.splitlines()[0]}"
            say(f"  {', '.join(jobs[:_SHOWN_JOBS])}{f' and {len(jobs) - _SHOWN_JOBS} more' if len(jobs) > _SHOWN_JOBS else ''}{reason}")
        sys.exit(1)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _application(composed: DictConfig) -> None:
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        _sweep_job(composed, hydra_config)
        return
    try:
        folder, metrics = _run(composed, hydra_config, before=_announce)
    except FcotError as error:  # here, because Hydra would announce it with the overrides first
        say(str(error))
        sys.exit(1)
    if "accuracy" in metrics:
        from fcot.report import load
        from fcot.reporting.settings import group
        from fcot.reporting.tables import print_comparison

        print_comparison(group([load(folder / "metrics.json")]))
    elif metrics:
        from fcot.reporting.tables import stage_line

        first = folder / "round_1"  # of a run of rounds
        print(stage_line(composed.until, metrics, str(first if first.exists() else folder)))


def _announce(run: Any) -> bool:
    if run.config.dry_run or run.config.preview:
        _look_ahead(run, ())
        return False
    say(f"run {run.directory.path}")
    return True


def _run(composed: DictConfig, hydra_config: Any, before: Callable[[Any], bool]) -> tuple[Path, dict[str, Any]]:
    """Resolve and execute one run, unless ``before`` declines it; its folder and metrics."""
    from fcot.checks import to_config

    config = to_config(composed)
    from fcot.pipeline import execute
    from fcot.runs import resolve

    swept = composed.diversity_is_swept
    run = resolve(config, "diversity" in (hydra_config.sweeper.get("params") or {}) if swept is None else swept)
    if not before(run):
        return run.directory.path, {}
    settled = composed.copy()
    if "temperature" in settled.teacher:  # what the default came to, so that the kept file repeats the run
        settled.teacher.temperature = run.temperature
    return run.directory.path, execute(run, OmegaConf.to_yaml(settled, resolve=True))


def _look_ahead(run: Any, label: Sequence[str]) -> None:
    """A preview; or what the run would cost, shown at the end."""
    if run.config.dry_run:
        from fcot.stages.dry_run import estimate

        _estimates.append(estimate(run, _planned, label))
    else:
        from fcot.stages.preview import preview

        preview(run, run.config.preview)


def _sweep_job(composed: DictConfig, hydra_config: Any) -> None:
    """One job of a sweep: its outcome goes into ``jobs/<number>.json`` of the sweep's folder; a failure ends only the job."""
    from fcot.artifacts import write_json

    folder, number = Path(hydra_config.sweep.dir), hydra_config.job.num
    ahead = bool(composed.dry_run or composed.preview)  # nothing is run, so nothing is reported
    if folder not in _sweeps and not ahead:
        _sweeps.append(folder)
    overrides = [override for override in hydra_config.overrides.task if not override.startswith(MARK)]
    job: dict[str, Any] = {"job": number, "overrides": overrides, "run_id": None, "run": None, "status": "failed"}
    say(f"job {number}: {' '.join(overrides)}")

    def announce(run: Any) -> bool:
        job.update(run_id=run.run_id, run=str(run.directory.path))
        first = _jobs.setdefault(run.run_id, number)
        if first == number and ahead:
            _look_ahead(run, overrides)
            return False
        say(f"run {run.directory.path}" if first == number else f"the same run as job {first}: this method does not use what differs")
        return bool(first == number)

    try:
        _run(composed, hydra_config, before=announce)
        job["status"] = "done"
    except FcotError as error:
        if isinstance(error, ConfigFaults) and (common := _common(error.faults, overrides)):
            say(f"{common}\nthis holds for every job of the sweep, which ends here")
            _sweeps.clear()
            sys.exit(1)  # past Hydra, which would go on to the next job
        job["error"] = str(error)
        _failed.setdefault(str(error), []).append(f"{number} ({' '.join(overrides)})")
        _jobs.pop(str(job["run_id"]), None)  # an equal job later tries again
        say(f"job {number} failed: {error}")
    except KeyboardInterrupt:
        job["status"] = "interrupted"
        raise
    finally:
        if not ahead:
            write_json(folder / "jobs" / f"{number}.json", job)


def _common(faults: Sequence[str], overrides: Sequence[str]) -> str | None:
    """A missing value that no axis of the sweep has to do with: no job can have it. What a prompt lacks is the method's affair."""
    swept = {override.partition("=")[0].partition(".")[0].replace("-", "_") for override in overrides}
    unset = [fault for fault in faults if " is not set: " in fault and fault.partition(".")[0] not in swept | {"prompt"}]
    return "\n".join(unset) or None


def _report_sweeps() -> None:
    """The comparison of what the sweep's jobs left, whether or not all of them finished; or what they would cost."""
    if _estimates:
        from fcot.stages.needs import show

        show(_estimates)
    for folder in _sweeps:
        from fcot.report import report

        try:
            report([folder], folder / "comparison.png")
        except FcotError as error:
            say(str(error))


if __name__ == "__main__":
    main()
