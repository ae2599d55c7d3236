"""``python -m fcot.report DIR...``: the comparison table and picture of runs and sweeps, from the files they left."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fcot.artifacts import read_json, read_jsonl, write_json
from fcot.errors import FcotError


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exit code 1 with one message where a folder holds no finished run."""
    parser = argparse.ArgumentParser(description="The comparison table and picture of runs and sweeps, from the files they left.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a run, a sweep, or a folder of either")
    options = parser.parse_args(arguments)
    try:
        report(options.folders, options.folders[0] / "comparison.png")
    except FcotError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def report(folders: Sequence[Path], picture: Path) -> None:
    """Print the comparison of all finished runs in the folders with what is signal in it, and draw it."""
    from fcot.reporting.cost import asks_for_cost, cost_of
    from fcot.reporting.figures import accuracy_figure, cost_figure, scaling_figure
    from fcot.reporting.scaling import lines
    from fcot.reporting.settings import group, named
    from fcot.reporting.tables import comparisons, print_analysis, print_comparison

    jobs = [job for folder in folders for job in find_jobs(folder)]
    done = [(path, varied) for path, varied in jobs if path is not None and path.exists()]
    if not done:
        curated = [path.parent for path, _ in jobs if path is not None and path.with_name("curated.jsonl").exists()]
        if not curated:
            raise FcotError(f"no evaluated run in {', '.join(map(str, folders))}")
        _report_lengths(list(dict.fromkeys(curated)), picture.with_name("lengths.png"))
        return
    settings = group(load(path, varied) for path, varied in reversed(done))  # of a run that several jobs share the first names it
    print_comparison(settings)
    scaling, compared = lines(settings), comparisons(settings)
    print_analysis(settings, scaling, compared)
    if compared:
        rows = [{"first": named(one, settings), "second": named(other, settings), **asdict(result)} for one, other, result in compared]
        write_json(picture.with_name("comparisons.json"), {"comparisons": rows})
    if missing := len(jobs) - len(done):
        print(f"{missing} of {len(jobs)} runs are not finished")
    accuracy_figure(settings, picture)
    print(f"picture: {picture}")
    if scaling:
        scaling_figure(scaling, picture.with_name("scaling.png"))
        print(f"picture: {picture.with_name('scaling.png')}")
    if asks_for_cost(settings):
        cost_figure([cost_of(setting) for setting in settings], picture.with_name("cost.png"))
        print(f"picture: {picture.with_name('cost.png')}")


def _report_lengths(runs: Sequence[Path], picture: Path) -> None:
    """What can be said of runs that stopped after curation."""
    from fcot.progress import result_console
    from fcot.reporting.lengths import lengths_figure, lengths_of, lengths_table

    found = [lengths_of(run) for run in runs]
    result_console().print(lengths_table(found))
    lengths_figure(found, picture)
    print(f"picture: {picture}")


def load(path: Path, varied: Mapping[str, str] | None = None) -> tuple[dict[str, Any], dict[int, bool], dict[int, int]]:
    """A run's metrics; by sample index which test problems it answered rightly, and in how many tokens."""
    answers, lengths = {}, {}
    for row in read_jsonl(path.with_name("predictions.jsonl")):
        answers[row["sample_index"]], lengths[row["sample_index"]] = row["correct"], row["n_tokens"]
    return read_json(path) | {"varied": dict(varied or {})}, answers, lengths


Job = tuple[Path | None, dict[str, str]]  # a run's metrics.json, existing or not, and what the sweep varied in it


def find_jobs(folder: Path) -> list[Job]:
    """The runs of a folder: those a sweep's jobs name, a run's own, or all below ``runs/``."""
    if not folder.is_dir():
        raise FcotError(f"{folder}: {'a file, not a folder' if folder.exists() else 'no such folder'}")
    jobs = [read_json(path) for path in sorted(folder.glob("jobs/*.json"), key=lambda path: int(path.stem))]
    if jobs:
        varied = _varied([job["overrides"] for job in jobs])
        return [(Path(job["run"]) / "metrics.json" if job["run"] else None, values) for job, values in zip(jobs, varied, strict=True)]
    if (folder / "config.yaml").exists():
        return [(folder / "metrics.json", {})]
    return [(path, {}) for path in (*sorted(folder.glob("*/metrics.json")), *sorted(folder.glob("runs/*/metrics.json")))]


def _varied(overrides: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Of each job's overrides those in which the jobs differ and that have no column of their own."""
    settings = [dict(override.partition("=")[::2] for override in job) for job in overrides]
    keys = dict.fromkeys(key for job in settings for key in job if key not in ("dataset", "student", "method", "diversity", "seed"))
    differing = [key for key in keys if len({job.get(key) for job in settings}) > 1 and not _follows(key, settings)]
    return [{key: job[key] for key in differing if key in job} for job in settings]


def _follows(key: str, settings: Sequence[Mapping[str, str]]) -> bool:
    """Whether a value is another one for each data set and the same within: a path that names the data set."""
    values: dict[str | None, set[str | None]] = {}
    for job in settings:
        values.setdefault(job.get("dataset"), set()).add(job.get(key))
    return len(values) > 1 and all(len(found) == 1 for found in values.values())


if __name__ == "__main__":
    main()
