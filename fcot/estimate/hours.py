"""How long a sweep will take its devices: at most, by the time limit; and about, by the pace of finished runs of the same students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcot.base.files import read_json

if TYPE_CHECKING:
    from fcot.runs.run import Run

Pace = dict[tuple[str, int], tuple[int, float]]  # of the longest run by student and devices: steps, and seconds a step


def at_most(launcher: Mapping[str, Any], n_jobs: int) -> str | None:
    """Such as ``at most 9 jobs x 4 h x 2 GPUs = 72.0 GPU-hours``; None where jobs have no GPU or no limit."""
    gpus, minutes = launcher.get("gpus_per_node"), launcher.get("timeout_min")
    if not gpus or not minutes or not n_jobs:
        return None
    gpus *= launcher.get("nodes") or 1
    limit = f"{minutes} min" if minutes % 60 else f"{minutes // 60} h"
    jobs = f"{n_jobs} job{'s' if n_jobs != 1 else ''} x {limit} x {gpus} GPU{'s' if gpus > 1 else ''}"
    return f"at most {jobs} = {n_jobs * minutes / 60 * gpus:,.1f} GPU-hours, requeued jobs aside"


def about(runs: Sequence[Run], steps: Sequence[int]) -> str | None:
    """Such as ``about 3.2 device-hours of training, by the pace of the longest finished runs (2 jobs: none of their student yet)``.

    Args:
        runs: Those that are to be done.
        steps: Their optimizer steps at most.
    """
    training = [(run, n) for run, n in zip(runs, steps, strict=True) if n and not run.config.student.remote]
    if not training:
        return None
    pace = _pace(training[0][0].outputs)
    known = [(run, n) for run, n in training if _like(run) in pace]
    if not known:
        return None
    seconds = sum(n * pace[_like(run)][1] * _like(run)[1] for run, n in known)
    time = f"{seconds:,.0f} device-seconds" if seconds < 600 else f"{seconds / 3600:,.2g} device-hours"
    rest = f" ({len(training) - len(known)} jobs: none of their student yet)" if len(known) < len(training) else ""
    return f"about {time} of training, by the pace of the longest finished runs{rest}"


def _like(run: Run) -> tuple[str, int]:
    return run.config.student.name, run.config.trainer.devices * run.config.trainer.nodes


def _pace(outputs: Path) -> Pace:
    found: Pace = {}
    for path in outputs.glob("runs/*/metrics.json"):
        try:
            metrics = read_json(path)
            like, n_steps = (metrics["student"], metrics["devices"]), metrics["n_steps"]
            if n_steps > found.get(like, (0, 0.0))[0]:  # of short runs the start counts for too much
                found[like] = n_steps, metrics["seconds"]["train"] / n_steps
        except (OSError, ValueError, KeyError, TypeError):  # another version's, or damaged: the report will say so
            continue
    return found
