"""What the output folder holds: runs with their state and size, read from their files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcot.base.errors import FcotError
from fcot.base.files import holder, read_json
from fcot.base.run_folder import RunDirectory


@dataclass(frozen=True)
class RunEntry:
    """A run in the output folder. What its files do not say is None.

    Attributes:
        name: The run's name.
        folder: Its folder.
        state: ``finished``, ``running``, ``failed`` (a stage ended with an error) or ``interrupted`` (by a signal or a kill).
        until: The stage at which the run was to stop; ``evaluate`` for a whole run.
        task: Name of the task.
        student: Name of the student.
        method: Name of the method.
        title: The name of a preset of the method, such as ``STaR``.
        diversity: D.
        accuracy: Test accuracy, 0..1.
        error: The message of a failed run.
        n_bytes: Size of all files.
        changed: Time of the last change, in seconds since 1970.
    """

    name: str
    folder: Path
    state: str
    until: str
    task: str | None
    student: str | None
    method: str | None
    title: str | None
    diversity: int | None
    accuracy: float | None
    error: str | None
    n_bytes: int
    changed: float


def runs_in(outputs: Path) -> Iterator[RunEntry]:
    """The runs of an output folder, in the order of their names."""
    for path in sorted((outputs / "runs").glob("[!.]*/")):
        directory = RunDirectory(path)
        if directory.config.is_file() or directory.lock_file.exists():
            yield run_entry(directory)


def run_entry(directory: RunDirectory) -> RunEntry:
    """Read a run's files."""
    config, metrics = run_config(directory.config), _json(directory.metrics)
    until = str(config.get("until", "evaluate"))
    error = _error(directory)
    if holder(directory.lock_file) is not None:
        state = "running"
    elif directory.done.exists() or (until != "evaluate" and directory.reached(until)):
        state = "finished"
    else:
        state = "failed" if error else "interrupted"
    n_bytes, changed = usage_of(directory.path)
    names = {key: metrics.get(key) or config.get(key, {}).get("name") for key in ("task", "student", "method")}
    title, diversity = config.get("method", {}).get("title"), metrics.get("diversity", None if metrics else config.get("diversity"))
    return RunEntry(
        directory.path.name, directory.path, state, until, names["task"] or config.get("dataset", {}).get("name"), names["student"],
        names["method"], title, diversity, metrics.get("accuracy"),
        error if state == "failed" else None, n_bytes, changed,
    )  # fmt: skip


def usage_of(folder: Path) -> tuple[int, float]:
    """Size of all files below a folder in bytes, and the time of its last change in seconds since 1970."""
    n_bytes, changed = 0, 0.0
    for path in (folder, *folder.rglob("*")):
        try:
            stat = path.lstat()
        except FileNotFoundError:  # a running process removed it
            continue
        changed = max(changed, stat.st_mtime)
        n_bytes += 0 if path.is_dir() else stat.st_size
    return n_bytes, changed


def size_text(n_bytes: float) -> str:
    """Such as ``12.3 MB``."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} GB"


def age_text(changed: float) -> str:
    """The time since a change, such as ``5 min`` or ``3 days``."""
    minutes = max(0.0, time.time() - changed) / 60
    if minutes < 90:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.0f} h" if minutes < 48 * 60 else f"{minutes / 1440:.0f} days"


def _error(directory: RunDirectory) -> str | None:
    """The message of the stage that ended with an error; None if none did."""
    records = [path for pattern in ("stages", "round_*/stages") for path in directory.path.glob(f"{pattern}/*.interrupted.json")]
    return next((record["error"] for path in records if (record := _json(path)).get("error")), None)


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path))
    except (OSError, ValueError, TypeError):
        return {}


def run_config(path: Path) -> dict[str, Any]:
    """A run's configuration; empty if it cannot be read."""
    import yaml

    try:
        content = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def check_outputs(outputs: Path) -> None:
    """Check that a folder exists.

    Raises:
        FcotError: There is no such folder.
    """
    if not outputs.is_dir():
        raise FcotError(f"{outputs}: no such folder; output_dir is where the runs are, or FCOT_OUTPUT_DIR names it")
