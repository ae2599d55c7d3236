"""``python -m fcot.report DIR...``: tables, figures and the page of runs and sweeps, from the files they left."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fcot.artifacts import RunDirectory, read_json, read_jsonl, write_atomic, write_json
from fcot.errors import FcotError
from fcot.progress import result_console
from fcot.sweeps.plan import plan_path, read_plan

if TYPE_CHECKING:
    from fcot.records import Problem
    from fcot.reporting.document import Document, RunFiles
    from fcot.reporting.settings import Setting

Loaded = tuple[dict[str, Any], dict[int, bool], dict[int, int]]  # metrics; by sample index: right or wrong, tokens
_SHOWN_KEYS = 4  # of those in which runs differ


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exit code 1 with one message where a folder holds no finished run."""
    parser = argparse.ArgumentParser(description="The report of runs and sweeps, from the files they left: tables, figures, one HTML page.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a run, a sweep, or a folder of either")
    parser.add_argument("--wandb", action="store_true", help="also as a W&B Report; without WANDB_API_KEY its spec as a file")
    options = parser.parse_args(arguments)
    try:
        publishing = report(options.folders, export=True)
        if options.wandb and publishing is not None:
            from fcot.reporting.wandb_report import publish

            entity, project = (os.environ.get(name) for name in ("WANDB_ENTITY", "WANDB_PROJECT"))
            again = shlex.join(["python", "-m", "fcot.report", "--wandb", *map(str, options.folders)])
            publish(publishing, entity, project, options.folders[0], again)
    except FcotError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def report(folders: Sequence[Path], export: bool = False) -> Document | None:
    """Print the comparison of all finished runs in the folders with what is signal in it, and write its page into the first folder.

    Args:
        folders: Runs, sweeps, or folders of either.
        export: Whether to write tables (Markdown, LaTeX, CSV) and figures (SVG, PDF, PNG) as well.

    Returns:
        The report; None where no run went further than curation.

    Raises:
        FcotError: None is finished, or something cannot be read.
    """
    from fcot.reporting.builder import build, terminal_tables
    from fcot.reporting.page import write_page
    from fcot.reporting.settings import named
    from fcot.reporting.tables import comparisons

    jobs = [job for folder in folders for job in find_jobs(folder)]
    done = [job for job in jobs if job.metrics is not None and job.metrics.exists()]
    if not done:
        _report_lengths(folders, jobs, export)
        return None
    settings, loaded = _settings(done)
    console = result_console()
    for table in terminal_tables(settings):
        console.print(table)
    missing = [_told(job) for job in jobs if job not in done]
    if missing:
        print(f"{len(missing)} of {len(jobs)} runs are not finished")
    document = build(settings, _files(settings, loaded), missing)
    page = folders[0] / "report.html"
    write_page(document, page, problems_of=_problems)
    if compared := comparisons(settings):
        rows = [{"first": named(one, settings), "second": named(other, settings), **asdict(result)} for one, other, result in compared]
        write_json(folders[0] / "comparisons.json", {"comparisons": rows})
    if export:
        _export(document, folders[0] / "report")
        print(f"tables and figures: {folders[0] / 'report'}")
    print(f"page: {page}")
    return document


def _settings(done: Sequence[Job]) -> tuple[list[Setting], dict[str, Path]]:
    """What is compared, and each run's folder by its id."""
    from fcot.reporting.settings import alike, group

    loaded = [load(job.metrics, job.varied) for job in reversed(done) if job.metrics]  # of a run that several jobs share the first names it
    settings = group(loaded)
    if same := alike(settings):  # runs of several commands: their configurations say what differs
        _tell_apart({run["run_id"] for setting in same for run in setting.runs}, done, loaded)
        settings = group(loaded)
    return settings, {
        metrics["run_id"]: job.metrics.parent for job, (metrics, *_) in zip(reversed(done), loaded, strict=True) if job.metrics
    }


def _files(settings: Sequence[Setting], folders: Mapping[str, Path]) -> list[RunFiles]:
    from fcot.reporting.document import RunFiles
    from fcot.reporting.settings import named

    several = len({run["seed"] for setting in settings for run in setting.runs}) > 1
    return [
        RunFiles(RunDirectory(folders[run["run_id"]]), named(setting, settings) + (f", seed {run['seed']}" if several else ""), run)
        for setting in settings
        for run in setting.runs
    ]


def _problems(run: RunFiles) -> list[Problem]:
    """All problems of a run's data, made or read again by the command that it keeps: its files hold the tested ones only.

    Raises:
        FcotError: They are not to be had here.
    """
    from fcot.checks import unchecked
    from fcot.runs import problems_of, task_of
    from fcot.sweeps.plan import composer

    with _readable(run.directory.config), run.directory.config.open(encoding="utf-8") as file:
        command = file.readline()
    if not command.startswith("# python -m fcot.run"):
        raise FcotError("its command was not kept")
    try:
        with composer([]) as compose:
            config = unchecked(compose(shlex.split(command.removeprefix("# "))[3:]))
    except (HydraException, OmegaConfBaseException) as error:
        raise FcotError(str(error).splitlines()[0]) from error
    return problems_of(config, task_of(config))


def _told(job: Job) -> str:
    """Which job is not finished, and what is known of why."""
    if job.record is None or not job.record.exists():
        return f"{job.name}: not started"
    with _readable(job.record):
        left = read_json(job.record)
    return f"{job.name}: {left['status']}" + (f": {left['error'].splitlines()[0]}" if left.get("error") else "")


def _export(document: Document, folder: Path) -> None:
    """Every table and figure in files of their own, and all of it as Markdown."""
    from fcot.reporting.document import Chart, Paragraph
    from fcot.reporting.figures import save
    from fcot.reporting.table import Table

    text = [f"# {document.title}", document.answer, *(f"- not finished: {one}" for one in document.missing)]
    for section in document.sections:
        text.append(f"## {section.title}" if section.id != "samples" else "")
        for block in section.blocks:
            if isinstance(block, Table):
                for form, made in (("md", block.to_markdown()), ("tex", block.to_latex()), ("csv", block.to_csv())):
                    write_atomic(folder / "tables" / f"{block.name}.{form}", made)
                text.append(block.to_markdown())
            elif isinstance(block, Chart):
                picture = save(block, folder / "figures")[0]
                text.append(f"![{block.title}](figures/{picture.name})")
            elif isinstance(block, Paragraph):
                text.append(block.text)
    write_atomic(folder / "report.md", "\n\n".join(filter(None, text)) + "\n")


_NO_MATTER = ("seed", "output_dir", "dry_run", "until", "logger.", "dataset.name", "student.name", "method.name", "diversity", "preview")


def _tell_apart(runs: Container[str], done: Sequence[Job], loaded: Sequence[Loaded]) -> None:
    """Enter as varied the configuration values in which those of these runs differ that nothing else tells apart."""
    configs: dict[str, dict[str, str]] = {}
    for job, (metrics, *_) in zip(reversed(done), loaded, strict=True):
        assert job.metrics is not None
        if metrics["run_id"] in runs and job.metrics.with_name("config.yaml").exists():
            configs[metrics["run_id"]] = _flat(OmegaConf.load(job.metrics.with_name("config.yaml")))
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


def _report_lengths(folders: Sequence[Path], jobs: Sequence[Job], export: bool) -> None:
    """What can be said of runs that stopped after curation.

    Raises:
        FcotError: There are none.
    """
    from fcot.reporting.figures import save
    from fcot.reporting.lengths import lengths_chart, lengths_of, lengths_table

    curated = list(dict.fromkeys(job.metrics.parent for job in jobs if job.metrics and job.metrics.with_name("curated.jsonl").exists()))
    if not curated:
        raise FcotError(f"no evaluated run in {', '.join(map(str, folders))}")
    found = [lengths_of(run) for run in curated]
    result_console().print(lengths_table(found))
    if export:
        print(f"figure: {save(lengths_chart(found), folders[0] / 'report' / 'figures')[0]}")


def load(path: Path, varied: Mapping[str, str] | None = None) -> Loaded:
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


@dataclass(frozen=True)
class Job:
    """A run to be reported.

    Attributes:
        name: In words.
        metrics: Its metrics.json, existing or not; None where it has no run.
        varied: What its sweep varied in it.
        record: What a sweep's job left, None outside sweeps.
    """

    name: str
    metrics: Path | None
    varied: dict[str, str]
    record: Path | None = None


def find_jobs(folder: Path) -> list[Job]:
    """The runs of a folder: those a sweep's plan names, a run's own, or all below ``runs/``."""
    if not folder.is_dir():
        raise FcotError(f"{folder}: {'a file, not a folder' if folder.exists() else 'no such folder'}")
    if plan_path(folder).exists():
        sweep = read_plan(folder)
        varied = _varied([job.shown for job in sweep.jobs])
        return [
            Job(
                f"job {job.number} ({sweep.label(job)})", sweep.directory(job).metrics if job.run else None, values,
                sweep.record(job.number if job.same_as is None else job.same_as),
            )
            for job, values in zip(sweep.jobs, varied, strict=True)
        ]  # fmt: skip
    if (folder / "config.yaml").exists():
        return [Job(folder.name, folder / "metrics.json", {})]
    found = (*sorted(folder.glob("*/metrics.json")), *sorted(folder.glob("runs/*/metrics.json")))
    return [Job(path.parent.name, path, {}) for path in found]


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
