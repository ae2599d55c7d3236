"""Estimates the device-hours of a sweep: an upper bound from the time limit, and an estimate from the pace of finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcot.base.files import read_json

if TYPE_CHECKING:
    from fcot.runs.run import Run

Pace = dict[tuple[str, int], tuple[int, float]]  # by student and devices: steps of the longest finished run, and its seconds per step


def at_most(launcher: Mapping[str, Any], n_jobs: int) -> str | None:
    """Such as ``at most 9 jobs x 4 h x 2 GPUs = 72.0 GPU-hours``; None if the jobs have no GPU or no time limit."""
    gpus, minutes = launcher.get("gpus_per_node"), launcher.get("timeout_min")
    if not gpus or not minutes or not n_jobs:
        return None
    gpus *= launcher.get("nodes") or 1
    limit = f"{minutes} min" if minutes % 60 else f"{minutes // 60} h"
    jobs = f"{n_jobs} job{'s' if n_jobs != 1 else ''} x {limit} x {gpus} GPU{'s' if gpus > 1 else ''}"
    return f"at most {jobs} = {n_jobs * minutes / 60 * gpus:,.1f} GPU-hours, without requeued jobs"


def about(runs: Sequence[Run], steps: Sequence[int]) -> str | None:
    """Such as ``about 3.2 device-hours of training, by the pace of the longest finished runs (2 jobs: no finished run of their student)``.

    Args:
        runs: The runs that are not finished.
        steps: The largest number of optimizer steps of each run.

    Returns:
        The estimate; None if no run trains locally, or no finished run has the same student and number of devices.
    """
    training = [(run, n) for run, n in zip(runs, steps, strict=True) if n and not run.config.student.remote]
    if not training:
        return None
    pace = _pace(training[0][0].outputs)
    measured = [(run, n) for run, n in training if _pace_key(run) in pace]
    if not measured:
        return None
    seconds = sum(n * pace[_pace_key(run)][1] * _pace_key(run)[1] for run, n in measured)
    time = f"{seconds:,.0f} device-seconds" if seconds < 600 else f"{seconds / 3600:,.2g} device-hours"
    n_unknown = len(training) - len(measured)
    unknown = f" ({n_unknown} jobs: no finished run of their student)" if n_unknown else ""
    return f"about {time} of training, by the pace of the longest finished runs{unknown}"


def _pace_key(run: Run) -> tuple[str, int]:
    """The student and the number of devices."""
    return run.config.student.name, run.config.trainer.devices * run.config.trainer.nodes


def _pace(outputs: Path) -> Pace:
    """The pace of the longest finished run of each student and number of devices."""
    pace: Pace = {}
    for path in outputs.glob("runs/*/metrics.json"):
        try:
            metrics = read_json(path)
            key, n_steps = (metrics["student"], metrics["devices"]), metrics["n_steps"]
            if n_steps > pace.get(key, (0, 0.0))[0]:  # in a short run, starting up takes too large a share of the time
                pace[key] = n_steps, metrics["seconds"]["train"] / n_steps
        except (OSError, ValueError, KeyError, TypeError):  # damaged, or of another version: the report will say so
            continue
    return pace
