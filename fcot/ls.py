"""``fcot ls``: the runs and sweeps of the output folder."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcot.base.console import result_console, say
from fcot.base.entry import entry_point
from fcot.base.locations import output_dir

if TYPE_CHECKING:
    from fcot.runs.inventory import RunEntry
    from fcot.sweeps.inventory import SweepEntry

_STYLES = {"finished": "green", "running": "cyan", "failed": "red", "interrupted": "yellow", "unfinished": "yellow"}


@entry_point
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point, with the exit codes of :func:`fcot.base.entry.entry_point`."""
    options = parser().parse_args(arguments)
    from fcot.runs.inventory import check_outputs, runs_in
    from fcot.sweeps.inventory import plans_in, sweep_entry

    check_outputs(options.folder)
    runs = sorted(runs_in(options.folder), key=lambda run: run.changed)
    sweeps = sorted(map(sweep_entry, plans_in(options.folder)), key=lambda sweep: sweep.changed)
    if options.json:
        print(json.dumps({"runs": [_row(run) for run in runs], "sweeps": [_row(sweep) for sweep in sweeps]}, indent=2, ensure_ascii=False))
    else:
        _show(runs, sweeps, options.folder)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    text = "List the runs and sweeps of the output folder, the latest last."
    command = argparse.ArgumentParser(prog="fcot ls", description=text)
    command.add_argument("folder", nargs="?", type=Path, default=output_dir(), metavar="DIR", help="default: FCOT_OUTPUT_DIR, or outputs")
    command.add_argument("--json", action="store_true", help="print JSON: sizes in bytes, times in ISO 8601, accuracies from 0 to 1")
    return command


def _row(entry: RunEntry | SweepEntry) -> dict[str, Any]:
    """An entry as JSON values."""
    changed = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(entry.changed))
    return asdict(entry) | {"folder": str(entry.folder), "changed": changed}


def _show(runs: Sequence[RunEntry], sweeps: Sequence[SweepEntry], folder: Path) -> None:
    from fcot.runs.inventory import age_text, size_text

    if not runs and not sweeps:
        say(f"{folder}: no runs and no sweeps")
        return
    if runs:
        rows = [
            [_state(run), _percent(run.accuracy), "" if run.diversity is None else str(run.diversity), run.task, run.student,
             run.title or run.method, size_text(run.n_bytes), age_text(run.changed), run.name]
            for run in runs
        ]  # fmt: skip
        _print(["state", "acc %", "D", "task", "student", "method", "size", "age", "run"], rows)
    for run in runs:
        if run.error:
            print(f"{run.name}: {run.error.splitlines()[0]}")
    if sweeps:
        rows = [
            [sweep.state, f"{sweep.n_done}/{sweep.n_jobs}", ", ".join(sweep.varies), size_text(sweep.n_bytes), age_text(sweep.changed),
             sweep.name]
            for sweep in sweeps
        ]  # fmt: skip
        _print(["state", "jobs done", "varies", "size", "age", "sweep"], rows)


def _state(run: RunEntry) -> str:
    return f"{run.state} (until {run.until})" if run.state == "finished" and run.until != "evaluate" and run.accuracy is None else run.state


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _print(columns: Sequence[str], rows: Sequence[Sequence[str | None]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for name in columns:
        table.add_column(name, justify="right" if name in ("acc %", "D", "size", "age", "jobs done") else "left", overflow="fold")
    for state, *cells in rows:
        table.add_row(Text(str(state), style=_STYLES.get(str(state).split()[0], "")), *(Text(cell or "") for cell in cells))
    result_console().print(table)


if __name__ == "__main__":
    main()
