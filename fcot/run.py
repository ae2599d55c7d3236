"""``python -m fcot.run``: one run, or with ``-m`` a sweep. ``--help`` says what can be chosen."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fcot.config import register_schemas, to_config
from fcot.errors import FcotError
from fcot.progress import say

_CONF = next(folder for folder in (Path(__file__).parent / "conf", Path(__file__).parent.parent / "conf") if folder.is_dir())
_SECRET_NAME = re.compile(r"(?:^|[._-])(?:api[_-]?key|key|token|secret|password|passwd|authorization)$", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"\b(?:sk|hf|pk|ghp|gsk)[-_][A-Za-z0-9_-]{16,}|Bearer\s+\S+", re.IGNORECASE)
_sweeps: list[Path] = []


def main() -> None:
    """Entry point. Exit code 0, 1 after a message, 130 after Ctrl-C."""
    if {"--help", "-h"} & set(sys.argv[1:]):  # Hydra would print the same text after listing every group's files
        print(OmegaConf.load(_CONF / "config.yaml").hydra.help.template)
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


def prepare(arguments: list[str]) -> list[str]:
    """Check the command line before Hydra writes it anywhere.

    Raises:
        FcotError: An override looks like a secret, or mixes up ``split-mode`` (the choice) and ``split_mode`` (its values).
    """
    for argument in arguments:
        name, found, value = argument.lstrip("+~").partition("=")
        if found and value and (_SECRET_NAME.search(name) or _SECRET_VALUE.search(value)):
            raise FcotError(f"{name}=...: this looks like a secret. Keys come from the environment (OPENAI_API_KEY) only")
        if name == "split_mode":
            raise FcotError(f"split_mode={value}: the choice is split-mode={value}; split_mode.KEY=VALUE sets its values")
        if name.startswith("split-mode."):
            raise FcotError(f"{name}={value}: write {name.replace('-', '_', 1)}={value}; split-mode=CHOICE selects")
    return arguments + _sampling(arguments)


def _sampling(arguments: list[str]) -> list[str]:
    """Mark a sweep over D that the command line spells out; an experiment's own sweep is seen in ``hydra.sweeper.params``."""
    swept = any(re.match(r"diversity=.*[,(]", argument) for argument in arguments)
    return ["diversity_is_swept=true"] if swept else []


@hydra.main(version_base="1.3", config_path=str(_CONF), config_name="config")
def _application(composed: DictConfig) -> None:
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        _sweep_job(composed, hydra_config)
        return
    try:
        metrics = _run(composed, hydra_config, before=lambda run: say(f"run {run.directory.path}"))
    except FcotError as error:  # here, because Hydra would announce it with the overrides first
        say(str(error))
        sys.exit(1)
    from fcot.reporting.tables import print_comparison, stage_line

    if "accuracy" in metrics:
        print_comparison([metrics])
    else:
        print(stage_line(composed.until, metrics))


def _run(composed: DictConfig, hydra_config: Any, before: Callable[[Any], object]) -> dict[str, Any]:
    """Resolve and execute one run; ``before`` sees it first."""
    config = to_config(composed)
    from fcot.pipeline import execute
    from fcot.runs import resolve

    run = resolve(config, composed.diversity_is_swept or "diversity" in (hydra_config.sweeper.get("params") or {}))
    before(run)
    return execute(run, OmegaConf.to_yaml(composed, resolve=True))


def _sweep_job(composed: DictConfig, hydra_config: Any) -> None:
    """One job of a sweep: its outcome goes into ``jobs/<number>.json`` of the sweep's folder, failures included."""
    from fcot.artifacts import write_json

    folder = Path(hydra_config.sweep.dir)
    if folder not in _sweeps:
        _sweeps.append(folder)
    job: dict[str, Any] = {"job": hydra_config.job.num, "overrides": list(hydra_config.overrides.task), "run_id": None, "status": "failed"}
    path = folder / "jobs" / f"{hydra_config.job.num}.json"
    say(f"job {hydra_config.job.num}: {' '.join(job['overrides'])}")

    def announce(run: Any) -> None:
        job["run_id"] = run.run_id
        say(f"run {run.directory.path}")

    try:
        _run(composed, hydra_config, before=announce)
        job["status"] = "done"
    except Exception as error:
        job["error"] = f"{type(error).__name__}: {error}"
        say(f"job {hydra_config.job.num} failed: {error}")
        raise
    finally:
        write_json(path, job)


def _report_sweeps() -> None:
    """The comparison of what the sweep's jobs left, whether or not all of them finished."""
    for folder in _sweeps:
        from fcot.report import report

        try:
            report([folder], folder / "comparison.png")
        except FcotError as error:
            say(str(error))


def explain(error: Exception) -> str:
    """Hydra's complaint about an override, with what exists in its place."""
    cause: Any = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    message = str(error).strip()
    parent, key = getattr(cause, "parent_node", None), getattr(cause, "key", None)
    if isinstance(parent, DictConfig) and key is not None and str(key) not in parent:
        full = str(getattr(cause, "full_key", key))
        prefix = full[: -len(str(key))]
        known = [str(name) for name in parent if str(name) != "diversity_is_swept"]
        close = difflib.get_close_matches(str(key), known, n=1)
        hint = f" Did you mean {prefix}{close[0]}?" if close else ""
        return f"there is no {full}.{hint}\n{prefix or 'the root'} has: {', '.join(sorted(known))}".replace(". has:", " has:")
    if cause is not error:
        message += f"\n{cause}"
    return re.sub(r"\n\s*(full_key|object_type|reference_type)[:=].*", "", message)


if __name__ == "__main__":
    main()
