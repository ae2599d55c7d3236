"""Export a sweep's jobs as a table for other programs."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fcot.base.files import replacing
from fcot.sweeps.job import JobRecord, read_record
from fcot.sweeps.ledger import metrics_of, statuses
from fcot.sweeps.plan import Sweep


def collect(sweep: Sweep, folder: Path) -> list[Path]:
    """Write ``jobs.parquet`` and ``jobs.csv``: per job, what was varied, its state and its metrics."""
    import pyarrow as pa
    import pyarrow.parquet as pq
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
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    parquet, text = folder / "jobs.parquet", folder / "jobs.csv"
    with replacing(parquet) as temporary:
        pq.write_table(
            pa.table(
                {
                    name: pa.array(_column(values), pa.string() if all(value is None for value in values) else None)
                    for name, values in columns.items()
                }
            ),
            temporary,
        )
    with replacing(text) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return [parquet, text]


def _seconds(record: JobRecord | None) -> float | None:
    """Total duration of the attempts that recorded their end; None if there are none. A killed attempt records none."""
    known = [attempt.ended - attempt.started for attempt in (record.attempts if record else []) if attempt.ended is not None]
    return sum(known) if known else None


def _flat(metrics: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested metrics by dotted name; an interval becomes its two ends, other lists become JSON."""
    flat: dict[str, Any] = {}
    for key, value in metrics.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.")
        elif key.endswith("_ci95") and value:
            flat |= {f"{name}.low": value[0], f"{name}.high": value[1]}
        elif key not in ("run_id",):
            flat[name] = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
    return flat


def _column(values: Sequence[Any]) -> list[Any]:
    """Values converted to one type: integers and floats to floats, any other mixture to text."""
    values = [json.dumps(value) if isinstance(value, list | dict) else value for value in values]
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and float in kinds:
        return [None if value is None else float(value) for value in values]
    if len(kinds) > 1:
        return [None if value is None else str(value) for value in values]
    return list(values)
