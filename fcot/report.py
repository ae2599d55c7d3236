"""``python -m fcot.report DIR...``: tables, figures and an HTML page about runs and sweeps, made from their files."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcot.base.console import result_console
from fcot.base.entry import entry_point
from fcot.base.errors import FcotError
from fcot.base.files import holder, write_json
from fcot.base.locations import locate
from fcot.base.run_folder import RunDirectory
from fcot.reporting.finished import Loaded, distinguish, load, readable
from fcot.sweeps.ledger import Status, statuses
from fcot.sweeps.plan import Sweep, plan_path, read_plan

if TYPE_CHECKING:
    from fcot.base.records import Problem
    from fcot.reporting.document import Document, RunFiles
    from fcot.reporting.settings import Setting
    from fcot.sweeps.controller import SlurmAnswer

_SHOWN_MISSING = 10


@entry_point
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point, with the exit codes of :func:`fcot.base.entry.entry_point`."""
    parser = argparse.ArgumentParser(description="Report runs and sweeps from their files: tables, figures, one HTML page.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a run, a sweep (or the name of either), or a folder of them")
    parser.add_argument("--wandb", action="store_true", help="also publish a W&B Report; without WANDB_API_KEY, write its spec to a file")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where to write it; default: the first DIR")
    parser.add_argument(
        "--hourly-usd", type=float, metavar="USD", help="what an hour of annotation (30 gold answers) costs; default: paper A's 20 for its "
        "tasks, nothing for own data",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    folders = [locate(folder) for folder in options.folders]
    output = options.output or folders[0]
    document = report(folders, output, export=True, hourly_usd=options.hourly_usd)
    if options.wandb and document is not None:
        from fcot.reporting.wandb_report import publish

        entity, project = (os.environ.get(name) for name in ("WANDB_ENTITY", "WANDB_PROJECT"))
        output_option = ["--output", str(output)] if options.output else []
        command = shlex.join(["python", "-m", "fcot.report", "--wandb", *output_option, *map(str, folders)])
        publish(document, entity, project, output, command)


def report(
    folders: Sequence[Path],
    output: Path | None = None,
    export: bool = False,
    launching: bool | None = None,
    slurm: SlurmAnswer | None = None,
    hourly_usd: float | None = None,
) -> Document | None:
    """Print a comparison of all finished runs in the folders, with significance tests, and write the HTML page.

    Args:
        folders: Runs, sweeps, or folders of either.
        output: The folder to write to; None is the first of ``folders``.
        export: Whether to write tables (Markdown, LaTeX, CSV) and figures (SVG, PDF, PNG) as well.
        launching: Whether a process is launching the sweep; None checks. The launching process itself must pass it.
        slurm: SLURM's answer about the jobs of the only sweep; None queries SLURM.
        hourly_usd: What an hour of annotation costs; None: paper A's assumption for its tasks, nothing for own data.

    Returns:
        The report; None if no run went further than curation.

    Raises:
        FcotError: No run is finished, or a file cannot be read.
    """
    from fcot.reporting.builder import analyse, build, terminal_tables
    from fcot.reporting.export import export_files
    from fcot.reporting.page import write_page
    from fcot.reporting.settings import report_label

    output = output or folders[0]
    jobs = [job for folder in folders for job in find_jobs(folder, launching, slurm)]
    done, missing = _finished(jobs)
    if not done:
        _report_curated(folders, jobs, missing, output, export)
        return None
    settings, paths = _settings(done, one_sweep=len(folders) == 1 and plan_path(folders[0]).exists())
    analysis = analyse(settings, hourly_usd)
    console = result_console()
    for table in terminal_tables(analysis):
        console.print(table)
    _print_missing(missing, len(jobs))
    document = build(analysis, _files(settings, paths), missing)
    page = output / "report.html"
    write_page(document, page, problems_of=_problems)
    rows = [
        {"first": report_label(first, settings), "second": report_label(second, settings), **asdict(result)}
        for first, second, result in analysis.compared
    ]
    write_json(output / "comparisons.json", {"comparisons": rows})
    if export:
        export_files(document, settings, output / "report")
        print(f"tables and figures: {output / 'report'}")
    else:
        print(f"tables and figures as files: {shlex.join(['python', '-m', 'fcot.report', *map(str, folders)])}")
    print(f"page: {page}")
    return document


def _finished(jobs: Sequence[ReportedRun]) -> tuple[list[tuple[Path, Loaded]], list[str]]:
    """Load the finished runs, and say of each other run why it is missing.

    Returns:
        Folder and data of each finished run, and a line for each unfinished or damaged one.
    """
    done, missing = [], []
    for job in jobs:
        if job.metrics is None or not job.metrics.exists():
            missing.append(job.why_missing)
            continue
        try:
            done.append((job.metrics.parent, load(job.metrics, job.varied)))
        except FcotError as error:
            missing.append(f"{job.name}: {error}")
    return done[::-1], missing  # reversed: of jobs that share a run, grouping keeps the last one, which should be the first job


def _print_missing(missing: Sequence[str], n: int) -> None:
    if missing:
        print(f"{len(missing)} of {n} runs are not in the report:")
        for line in missing[:_SHOWN_MISSING]:
            print(f"  {line}")
        if len(missing) > _SHOWN_MISSING:
            print(f"  and {len(missing) - _SHOWN_MISSING} more")


def _settings(done: Sequence[tuple[Path, Loaded]], one_sweep: bool) -> tuple[list[Setting], dict[str, Path]]:
    """Group runs into settings.

    Args:
        done: Folder and data of each run.
        one_sweep: Whether all runs are of one sweep, whose overrides say what was varied.

    Returns:
        The settings, and each run's folder by run id.
    """
    from fcot.reporting.settings import ambiguous, group

    loaded = [run for _, run in done]
    paths = {metrics["run_id"]: folder for folder, (metrics, *_) in done}
    if not one_sweep or ambiguous(group(loaded)):
        distinguish(loaded, paths)
    return group(loaded), paths


def _files(settings: Sequence[Setting], folders: Mapping[str, Path]) -> list[RunFiles]:
    from fcot.reporting.document import RunFiles
    from fcot.reporting.settings import report_label

    several = len({run["seed"] for setting in settings for run in setting.runs}) > 1

    def label(setting: Setting, run: Mapping[str, Any]) -> str:
        """The setting and the seed; the run's name where runs share their seed, because they train several students further."""
        seeds = [other["seed"] for other in setting.runs]
        own = f"seed {run['seed']}" if len(set(seeds)) == len(seeds) else run["run_id"]
        return report_label(setting, settings) + (f", {own}" if several or len(seeds) > 1 else "")

    return [RunFiles(RunDirectory(folders[run["run_id"]]), label(setting, run), run) for setting in settings for run in setting.runs]


def _problems(run: RunFiles) -> list[Problem]:
    """All problems of a run's dataset, loaded again: earlier versions' files do not hold the questions that a run trained on."""
    from fcot.runs.recorded import problems_of

    return problems_of(run.directory)


def _report_curated(folders: Sequence[Path], jobs: Sequence[ReportedRun], why_missing: Sequence[str], output: Path, export: bool) -> None:
    """Report the rationales of runs that stopped after curation, as tables and as a page.

    Args:
        folders: The folders of the report.
        jobs: The runs in these folders.
        why_missing: A line for each run without an evaluation.
        output: The folder for the page.
        export: Whether to write tables and figures as well.

    Raises:
        FcotError: No run has curated rationales.
    """
    from fcot.reporting.curated import curated_document, curated_file, lengths_table, read_curated, verdict_table
    from fcot.reporting.export import export_files
    from fcot.reporting.page import write_page

    folders_of_jobs = dict.fromkeys(job.metrics.parent for job in jobs if job.metrics)
    found = {folder: path for folder in folders_of_jobs if (path := curated_file(RunDirectory(folder))) is not None}
    if not found:
        raise FcotError("\n  ".join([f"no evaluated run in {', '.join(map(str, folders))}", *why_missing[:_SHOWN_MISSING]]))
    runs, missing = [], [job.why_missing for job in jobs if not job.metrics or job.metrics.parent not in found]
    for folder, path in found.items():
        try:
            with readable(path):
                runs.append(read_curated(folder))
        except FcotError as error:
            missing.append(f"{folder.name}: {error}")
    if not runs:
        raise FcotError("\n".join(missing))
    for make_table in (verdict_table, lengths_table):
        result_console().print(make_table(runs))
    _print_missing(missing, len(jobs))
    document = curated_document(runs, missing)
    write_page(document, output / "report.html", problems_of=_problems)
    if export:
        export_files(document, [], output / "report")
        print(f"tables and figures: {output / 'report'}")
    print(f"page with all rationales: {output / 'report.html'}")


@dataclass(frozen=True)
class ReportedRun:
    """A run, or a job without a run, to be reported.

    Attributes:
        name: The job's number and overrides, or the run's folder name.
        metrics: The path of its metrics.json, which may not exist; None if the job has no run.
        varied: The values that its sweep varied.
        state: Why it has no metrics, if it has none.
    """

    name: str
    metrics: Path | None
    varied: dict[str, str]
    state: str

    @property
    def why_missing(self) -> str:
        """The line that says why the run is missing in a report."""
        return f"{self.name}: {self.state}"


def find_jobs(folder: Path, launching: bool | None = None, slurm: SlurmAnswer | None = None) -> list[ReportedRun]:
    """The runs of a folder: of a sweep's plan, of a folder of sweeps, of a single run, or all below ``runs/``.

    Args:
        folder: A sweep, a run, or a folder of either.
        launching: As for :func:`report`.
        slurm: As for :func:`report`.

    Raises:
        FcotError: It is not a folder, or a plan cannot be read.
    """
    if not folder.is_dir():
        raise FcotError(f"{folder}: {'a file, not a folder' if folder.exists() else 'no such folder (fcot ls lists runs and sweeps)'}")
    if plan_path(folder).exists():
        return list(_jobs_of(read_plan(folder), launching, slurm))
    if (folder / "config.yaml").exists():
        return [_run(folder)]
    if sweeps := sorted(path.parent for path in folder.glob("*/plan.json")):
        return [job for sweep in sweeps for job in find_jobs(sweep, launching)]
    runs = {
        path.parent for pattern in ("*", "runs/*") for name in ("config.yaml", "metrics.json") for path in folder.glob(f"{pattern}/{name}")
    }
    return [_run(path) for path in sorted(runs)]


def _jobs_of(sweep: Sweep, launching: bool | None, slurm: SlurmAnswer | None) -> Iterator[ReportedRun]:
    states = {}
    if not all(sweep.is_complete(job) for job in sweep.jobs):
        states = {status.name: _state(status) for status in statuses(sweep, launching, slurm)}
    for job, varied in zip(sweep.jobs, _varied([job.overrides for job in sweep.jobs]), strict=True):
        state = states.get(job.number if job.same_as is None else job.same_as, "its metrics were deleted")
        yield ReportedRun(f"job {job.number} ({sweep.label(job)})", sweep.directory(job).metrics if job.run else None, varied, state)


def _state(status: Status) -> str:
    """A job's state in words: ``failed: ...``, ``missing: never started``, ``done: stopped after curate``."""
    return ": ".join(filter(None, [status.state, " ".join(map(str.strip, status.error)) or status.details]))


def _run(folder: Path) -> ReportedRun:
    stages = sorted((folder / "stages").glob("*.json"), key=lambda path: path.stat().st_mtime)
    stage, _, suffix = stages[-1].stem.partition(".") if stages else ("", "", "")  # a suffix marks an unfinished stage
    is_running = holder(folder / "run.lock") is not None
    state = "running" if is_running else "not finished" if not suffix else f"stopped in {stage}"
    return ReportedRun(
        folder.name, folder / "metrics.json", {}, state + (f", last finished stage: {stage}" if stage and not suffix else "")
    )


def _varied(overrides: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """For each job, its overrides that not all jobs share; those with their own column in tables are left out."""
    settings = [dict(override.lstrip("+").partition("=")[::2] for override in job) for job in overrides]
    keys = dict.fromkeys(key for job in settings for key in job if key not in ("dataset", "student", "method", "diversity", "seed"))
    differing = [key for key in keys if len({job.get(key) for job in settings}) > 1 and not _follows(key, settings)]
    return [{key: job[key] for key in differing if key in job} for job in settings]


def _follows(key: str, settings: Sequence[Mapping[str, str]]) -> bool:
    """Whether a value only follows the dataset: constant within each dataset, different between them, such as a path."""
    values: dict[str | None, set[str | None]] = {}
    for job in settings:
        values.setdefault(job.get("dataset"), set()).add(job.get(key))
    return len(values) > 1 and all(len(of_dataset) == 1 for of_dataset in values.values())


if __name__ == "__main__":
    main()
