"""``python -m fcot.report DIR...``: the comparison table and picture of runs and sweeps, from the files they left."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fcot.artifacts import read_json
from fcot.errors import FcotError


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exit code 1 with one message where a folder holds no finished run."""
    parser = argparse.ArgumentParser(prog="python -m fcot.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a run, a sweep, or a folder of either")
    options = parser.parse_args(arguments)
    try:
        report(options.folders, options.folders[0] / "comparison.png")
    except FcotError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def report(folders: Sequence[Path], picture: Path) -> None:
    """Print the comparison of all finished runs in the folders, and draw it."""
    from fcot.reporting.figures import accuracy_figure
    from fcot.reporting.tables import ordered, print_comparison

    jobs = [job for folder in folders for job in find_jobs(folder)]
    done = [metrics for metrics in jobs if metrics.exists()]
    if not done:
        raise FcotError(f"no finished run in {', '.join(map(str, folders))}")
    runs = ordered(read_json(metrics) for metrics in done)
    print_comparison(runs)
    if missing := len(jobs) - len(done):
        print(f"{missing} of {len(jobs)} runs are not finished")
    accuracy_figure(runs, picture)
    print(f"picture: {picture}")


def find_jobs(folder: Path) -> list[Path]:
    """The ``metrics.json`` of a folder's runs, existing or not: a sweep's jobs name them, a run has one."""
    if not folder.is_dir():
        raise FcotError(f"{folder}: no such folder")
    jobs = sorted(folder.glob("jobs/*.json"))
    if jobs:
        return [folder.parent.parent / "runs" / str(read_json(job)["run_id"]) / "metrics.json" for job in jobs]
    if (folder / "config.yaml").exists():
        return [folder / "metrics.json"]
    return list(sorted(folder.glob("*/metrics.json")) + sorted(folder.glob("runs/*/metrics.json")))


if __name__ == "__main__":
    main()
