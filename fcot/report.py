"""``python -m fcot.report DIR...``: the comparison table and picture of runs and sweeps, from the files they left."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from fcot.artifacts import RunDirectory, read_json, read_jsonl, write_json
from fcot.errors import FcotError
from fcot.sweeps.plan import plan_path, read_plan

if TYPE_CHECKING:
    from fcot.reporting.document import Document

_SHOWN_KEYS = 4  # of those in which runs differ


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exit code 1 with one message where a folder holds no finished run."""
    parser = argparse.ArgumentParser(description="The comparison table and picture of runs and sweeps, from the files they left.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a run, a sweep, or a folder of either")
    parser.add_argument("--wandb", action="store_true", help="also as a W&B Report; without WANDB_API_KEY its spec as a file")
    options = parser.parse_args(arguments)
    try:
        report(options.folders, options.folders[0] / "comparison.png")
        if options.wandb:
            from fcot.reporting.wandb_report import publish

            entity, project = (os.environ.get(name) for name in ("WANDB_ENTITY", "WANDB_PROJECT"))
            again = shlex.join(["python", "-m", "fcot.report", "--wandb", *map(str, options.folders)])
            publish(_document(options.folders), entity, project, options.folders[0], again)
    except FcotError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def _document(folders: Sequence[Path]) -> Document:
    """The least that can be said of the finished runs in the folders."""
    from fcot.reporting.document import Document, RunFiles, Section
    from fcot.reporting.settings import group, named
    from fcot.reporting.tables import comparison

    jobs = [job for folder in folders for job in find_jobs(folder)]
    done = [(path, varied) for path, varied in jobs if path is not None and path.exists()]
    if not done:
        raise FcotError(f"no evaluated run in {', '.join(map(str, folders))}")
    paths = {load(path)[0]["run_id"]: path.parent for path, _ in done}
    settings = group([load(path, varied) for path, varied in reversed(done)])
    runs = [
        RunFiles(RunDirectory(paths[run["run_id"]]), f"{named(setting, settings)}, seed {run['seed']}", run)
        for setting in settings
        for run in setting.runs
    ]
    missing = [f"{len(jobs) - len(done)} of {len(jobs)} runs are not finished"] if len(done) < len(jobs) else []
    title = ", ".join(folder.resolve().name for folder in folders)
    return Document(f"fcot: {title}", f"{len(runs)} runs.", missing, [Section("results", "Results", [comparison(settings)])], runs)


def report(folders: Sequence[Path], picture: Path) -> None:
    """Print the comparison of all finished runs in the folders with what is signal in it, and draw it."""
    from fcot.reporting.cost import asks_for_cost, costs_of
    from fcot.reporting.figures import accuracy_figure, cost_figure, scaling_figure
    from fcot.reporting.scaling import lines
    from fcot.reporting.settings import alike, group, named
    from fcot.reporting.tables import comparisons, print_analysis, print_comparison

    jobs = [job for folder in folders for job in find_jobs(folder)]
    done = [(path, varied) for path, varied in jobs if path is not None and path.exists()]
    if not done:
        curated = [path.parent for path, _ in jobs if path is not None and path.with_name("curated.jsonl").exists()]
        if not curated:
            raise FcotError(f"no evaluated run in {', '.join(map(str, folders))}")
        _report_lengths(list(dict.fromkeys(curated)), picture.with_name("lengths.png"))
        return
    loaded = [load(path, varied) for path, varied in reversed(done)]  # of a run that several jobs share the first names it
    settings = group(loaded)
    if same := alike(settings):  # runs of several commands: their configurations say what differs
        _tell_apart({run["run_id"] for setting in same for run in setting.runs}, done, loaded)
        settings = group(loaded)
    print_comparison(settings)
    scaling, compared = lines(settings), comparisons(settings)
    print_analysis(settings, scaling, compared)
    if compared:
        rows = [{"first": named(one, settings), "second": named(other, settings), **asdict(result)} for one, other, result in compared]
        write_json(picture.with_name("comparisons.json"), {"comparisons": rows})
    if missing := len(jobs) - len(done):
        print(f"{missing} of {len(jobs)} runs are not finished")
    for name in ("scaling.png", "cost.png"):  # of an earlier report, which may have had more to draw
        picture.with_name(name).unlink(missing_ok=True)
    accuracy_figure(settings, picture)
    print(f"picture: {picture}")
    if scaling:
        scaling_figure(scaling, picture.with_name("scaling.png"))
        print(f"picture: {picture.with_name('scaling.png')}")
    if asks_for_cost(settings):
        cost_figure(costs_of(settings), picture.with_name("cost.png"))
        print(f"picture: {picture.with_name('cost.png')}")


_NO_MATTER = ("seed", "output_dir", "dry_run", "until", "logger.", "dataset.name", "student.name", "method.name", "diversity", "preview")


def _tell_apart(runs: Container[str], done: Sequence[tuple[Path, Any]], loaded: Sequence[tuple[dict[str, Any], Any, Any]]) -> None:
    """Enter as varied the configuration values in which those of these runs differ that nothing else tells apart."""
    configs: dict[str, dict[str, str]] = {}
    for (path, _), (metrics, *_) in zip(reversed(done), loaded, strict=True):
        if metrics["run_id"] in runs and path.with_name("config.yaml").exists():
            configs[metrics["run_id"]] = _flat(OmegaConf.load(path.with_name("config.yaml")))
    cells: dict[tuple[Any, ...], list[str]] = {}
    told = {metrics["run_id"]: metrics for metrics, *_ in loaded}
    for run_id in configs:
        cells.setdefault(tuple(told[run_id][name] for name in ("task", "student", "method", "diversity")), []).append(run_id)
    for members in cells.values():
        keys = dict.fromkeys(key for run_id in members for key in configs[run_id] if not key.startswith(_NO_MATTER))
        differing = [key for key in keys if len({configs[run_id].get(key) for run_id in members}) > 1]
        names = [key for key in differing if key.endswith(".name")]  # a choice stands for all that comes with it
        chosen = [key for key in differing if key in names or f"{key.partition('.')[0]}.name" not in names]
        for metrics, *_ in loaded:
            if metrics["run_id"] in members:
                shown = {key.removesuffix(".name"): configs[metrics["run_id"]].get(key, "null") for key in chosen[:_SHOWN_KEYS]}
                metrics["varied"] = shown | metrics["varied"]


def _flat(config: Any, before: str = "") -> dict[str, str]:
    """Values by dotted key."""
    found: dict[str, str] = {}
    for key, value in config.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, DictConfig) else {f"{before}{key}": _word(value)}
    return found


def _word(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


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
    predictions = path.with_name("predictions.jsonl")
    with _readable(predictions):
        for row in read_jsonl(predictions):
            answers[row["sample_index"]], lengths[row["sample_index"]] = row["correct"], row["n_tokens"]
    with _readable(path):
        metrics = read_json(path) | {"varied": dict(varied or {})}
    for held in metrics.get("rounds", ()):
        of_round = RunDirectory(path.parent).round(held["round"]).predictions
        if of_round.exists():  # a round's files may be deleted
            held["answers"] = {row["sample_index"]: row["correct"] for row in read_jsonl(of_round)}
    return metrics, answers, lengths


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Tell which file cannot be read."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        damage = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
        raise FcotError(
            f"{path} {damage}; the run's own command makes it again where neither it nor the run's DONE.json is there"
        ) from error


Job = tuple[Path | None, dict[str, str]]  # a run's metrics.json, existing or not, and what the sweep varied in it


def find_jobs(folder: Path) -> list[Job]:
    """The runs of a folder: those a sweep's jobs name, a run's own, or all below ``runs/``."""
    if not folder.is_dir():
        raise FcotError(f"{folder}: {'a file, not a folder' if folder.exists() else 'no such folder'}")
    if plan_path(folder).exists():
        sweep = read_plan(folder)
        varied = _varied([job.shown for job in sweep.jobs])
        return [(sweep.directory(job).metrics if job.run else None, values) for job, values in zip(sweep.jobs, varied, strict=True)]
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
