"""Export a sweep's jobs as a table for other programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcot.base.files import replacing
from fcot.sweeps.job import JobRecord, read_record
from fcot.sweeps.ledger import metrics_of, statuses
from fcot.sweeps.plan import Sweep

if TYPE_CHECKING:
    from pandas import DataFrame


def collect(sweep: Sweep, folder: Path) -> list[Path]:
    """Write ``jobs.parquet`` and ``jobs.csv``, the rows of :func:`jobs_table`."""
    frame = jobs_table(sweep)
    parquet, text = folder / "jobs.parquet", folder / "jobs.csv"
    with replacing(parquet) as temporary:
        frame.to_parquet(temporary, index=False)
    with replacing(text) as temporary:
        frame.to_csv(temporary, index=False)
    return [parquet, text]


def jobs_table(sweep: Sweep) -> DataFrame:
    """A row per job: what was varied, its state and its metrics."""
    import yaml

    rows = []
    by_name = {status.name: status for status in statuses(sweep)}
    for job in sweep.jobs:
        status = by_name[job.number]
        source = sweep.jobs[job.same_as] if job.same_as is not None else job
        metrics = metrics_of(sweep, source) if source.run is not None else {}
        seconds = _seconds(read_record(sweep.record(job.number)))
        row = {
            "job": job.number, "state": status.state, "same_as": job.same_as, "run_id": job.run_id, "slurm": status.slurm,
            "requeued": status.preempted,
            "job_seconds": seconds, "device_hours": None if seconds is None else seconds / 3600 * (metrics.get("devices") or 1),
            "error": "\n".join(status.error) or None, "log": str(status.log) if status.log else None,
        }  # fmt: skip
        overrides = {f"override.{key}": yaml.safe_load(value) for key, _, value in (word.partition("=") for word in job.overrides)}
        rows.append(row | overrides | _flat(metrics))
    return _table(rows)


def _table(rows: Sequence[Mapping[str, Any]]) -> DataFrame:
    """A column per name. Each column has one type: integers beside floats become floats, other mixtures become text."""
    import pandas as pd

    names = list(dict.fromkeys(name for row in rows for name in row))
    # Arrays of pandas' own types keep integers beside missing values.
    frame = pd.DataFrame({name: pd.array([_cell(row.get(name)) for row in rows]) for name in names})
    mixed = frame.select_dtypes("object").columns
    frame[mixed] = frame[mixed].map(str, na_action="ignore").astype("string")
    return frame


def _cell(value: Any) -> Any:
    """A value as one cell: lists and mappings as JSON, because pandas takes lists of one length for a table."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def _seconds(record: JobRecord | None) -> float | None:
    """Total seconds of the attempts that recorded their end, which killed ones did not; None if no attempt did."""
    durations = [attempt.ended - attempt.started for attempt in (record.attempts if record else []) if attempt.ended is not None]
    return sum(durations) if durations else None


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested metrics by dotted name; an interval becomes its two ends, other lists become JSON."""
    flat: dict[str, Any] = {}
    for key, value in metrics.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.")
        elif key.endswith("_ci95") and value:
            flat |= {f"{name}.low": value[0], f"{name}.high": value[1]}
        elif key not in ("run_id",):
            flat[name] = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
    return flat
