"""``python -m fcot.report DIR...``: tables, figures and the page of runs and sweeps, from the files they left."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fcot.base.console import result_console
from fcot.base.errors import FcotError
from fcot.base.files import holder, write_json
from fcot.base.run_folder import RunDirectory
from fcot.reporting.finished import Loaded, command_of, distinguish, load, readable
from fcot.sweeps.ledger import Status, statuses
from fcot.sweeps.plan import Sweep, plan_path, read_plan

if TYPE_CHECKING:
    from fcot.base.records import Problem
    from fcot.reporting.document import Document, RunFiles
    from fcot.reporting.settings import Setting
    from fcot.sweeps.controller import SlurmAnswer

_SHOWN_MISSING = 10


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exit code 1 with one message where a folder holds no finished run."""
    parser = argparse.ArgumentParser(description="The report of runs and sweeps, from the files they left: tables, figures, one HTML page.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a run, a sweep, or a folder of either")
    parser.add_argument("--wandb", action="store_true", help="also as a W&B Report; without WANDB_API_KEY its spec as a file")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where to write it; default: the first DIR")
    options = parser.parse_args(arguments)
    output = options.output or options.folders[0]
    try:
        publishing = report(options.folders, output, export=True)
        if options.wandb and publishing is not None:
            from fcot.reporting.wandb_report import publish

            entity, project = (os.environ.get(name) for name in ("WANDB_ENTITY", "WANDB_PROJECT"))
            elsewhere = ["--output", str(output)] if options.output else []
            again = shlex.join(["python", "-m", "fcot.report", "--wandb", *elsewhere, *map(str, options.folders)])
            publish(publishing, entity, project, output, again)
    except FcotError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def report(
    folders: Sequence[Path],
    output: Path | None = None,
    export: bool = False,
    launching: bool | None = None,
    slurm: SlurmAnswer | None = None,
) -> Document | None:
    """Print the comparison of all finished runs in the folders with what is signal in it, and write its page.

    Args:
        folders: Runs, sweeps, or folders of either.
        output: Where to write; the first folder unless told.
        export: Whether to write tables (Markdown, LaTeX, CSV) and figures (SVG, PDF, PNG) as well.
        launching: Whether a process launches the sweep; that process itself must say so, None looks.
        slurm: SLURM's answer about the jobs of the only sweep; None asks.

    Returns:
        The report; None where no run went further than curation.

    Raises:
        FcotError: None is finished, or something cannot be read.
    """
    from fcot.reporting.builder import analyse, build, terminal_tables
    from fcot.reporting.export import export_files
    from fcot.reporting.page import write_page
    from fcot.reporting.settings import named

    output = output or folders[0]
    jobs = [job for folder in folders for job in find_jobs(folder, launching, slurm)]
    done, missing = _finished(jobs)
    if not done:
        _report_lengths(folders, jobs, missing, output if export else None)
        return None
    settings, paths = _settings(done, one_sweep=len(folders) == 1 and plan_path(folders[0]).exists())
    analysis = analyse(settings)
    console = result_console()
    for table in terminal_tables(analysis):
        console.print(table)
    _print_missing(missing, len(jobs))
    document = build(analysis, _files(settings, paths), missing)
    page = output / "report.html"
    write_page(document, page, problems_of=_problems)
    rows = [{"first": named(one, settings), "second": named(other, settings), **asdict(result)} for one, other, result in analysis.compared]
    write_json(output / "comparisons.json", {"comparisons": rows})
    if export:
        export_files(document, settings, output / "report")
        print(f"tables and figures: {output / 'report'}")
    else:
        print(f"tables and figures as files: {shlex.join(['python', '-m', 'fcot.report', *map(str, folders)])}")
    print(f"page: {page}")
    return document


def _finished(jobs: Sequence[ReportedRun]) -> tuple[list[tuple[Path, Loaded]], list[str]]:
    """What finished runs left, with their folders, and what is to be said of the others: not finished, or damaged."""
    done, missing = [], []
    for job in jobs:
        if job.metrics is None or not job.metrics.exists():
            missing.append(job.why_missing)
            continue
        try:
            done.append((job.metrics.parent, load(job.metrics, job.varied)))
        except FcotError as error:
            missing.append(f"{job.name}: {error}")
    return done[::-1], missing  # of a run that several jobs share the first one, now the last, names it


def _print_missing(missing: Sequence[str], n: int) -> None:
    if missing:
        print(f"{len(missing)} of {n} runs are not in the report:")
        for one in missing[:_SHOWN_MISSING]:
            print(f"  {one}")
        if len(missing) > _SHOWN_MISSING:
            print(f"  and {len(missing) - _SHOWN_MISSING} more")


def _settings(done: Sequence[tuple[Path, Loaded]], one_sweep: bool) -> tuple[list[Setting], dict[str, Path]]:
    """What is compared, and each run's folder by its id."""
    from fcot.reporting.settings import alike, group

    loaded = [run for _, run in done]
    paths = {metrics["run_id"]: folder for folder, (metrics, *_) in done}
    if not one_sweep or alike(group(loaded)):
        distinguish(loaded, paths)
    return group(loaded), paths


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
    from fcot.config.checks import unchecked
    from fcot.runs.run import problems_of, task_of
    from fcot.sweeps.plan import composer

    with readable(run.directory.config):
        command = command_of(run.directory)
    if not command:
        raise FcotError("its command was not kept")
    try:
        with composer([]) as compose:
            config = unchecked(compose(shlex.split(command)[3:]))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise FcotError(str(error).splitlines()[0]) from error
    return problems_of(config, task_of(config))


def _report_lengths(folders: Sequence[Path], jobs: Sequence[ReportedRun], said: Sequence[str], output: Path | None) -> None:
    """What can be said of runs that stopped after curation; a figure of it below ``output``.

    Raises:
        FcotError: There are none.
    """
    from fcot.reporting.figures import save
    from fcot.reporting.lengths import lengths_chart, lengths_of, lengths_table

    curated = list(dict.fromkeys(job.metrics.parent for job in jobs if job.metrics and job.metrics.with_name("curated.jsonl").exists()))
    if not curated:
        raise FcotError("\n  ".join([f"no evaluated run in {', '.join(map(str, folders))}", *said[:_SHOWN_MISSING]]))
    found, missing = [], [job.why_missing for job in jobs if not job.metrics or job.metrics.parent not in curated]
    for run in curated:
        try:
            with readable(run / "curated.jsonl"):
                found.append(lengths_of(run))
        except FcotError as error:
            missing.append(f"{run.name}: {error}")
    result_console().print(lengths_table(found))
    if output:
        print(f"figure: {save(lengths_chart(found), output / 'report' / 'figures')[0]}")
    _print_missing(missing, len(jobs))


@dataclass(frozen=True)
class ReportedRun:
    """A run to be reported.

    Attributes:
        name: In words.
        metrics: Its metrics.json, existing or not; None where it has no run.
        varied: What its sweep varied in it.
        state: What is known of why it has no metrics.
    """

    name: str
    metrics: Path | None
    varied: dict[str, str]
    state: str

    @property
    def why_missing(self) -> str:
        """Why it is not in a report."""
        return f"{self.name}: {self.state}"


def find_jobs(folder: Path, launching: bool | None = None, slurm: SlurmAnswer | None = None) -> list[ReportedRun]:
    """The runs of a folder: those a sweep's plan names, or those of several sweeps, a run's own, or all below ``runs/``.

    Args:
        folder: Which.
        launching: As for :func:`report`.
        slurm: As for :func:`report`.
    """
    if not folder.is_dir():
        raise FcotError(f"{folder}: {'a file, not a folder' if folder.exists() else 'no such folder'}")
    if plan_path(folder).exists():
        return list(_jobs_of(read_plan(folder), launching, slurm))
    if (folder / "config.yaml").exists():
        return [_run(folder)]
    if sweeps := sorted(path.parent for path in folder.glob("*/plan.json")):
        return [job for sweep in sweeps for job in find_jobs(sweep, launching)]
    found = {
        path.parent for pattern in ("*", "runs/*") for name in ("config.yaml", "metrics.json") for path in folder.glob(f"{pattern}/{name}")
    }
    return [_run(path) for path in sorted(found)]


def _jobs_of(sweep: Sweep, launching: bool | None, slurm: SlurmAnswer | None) -> Iterator[ReportedRun]:
    states = {}
    if not all(sweep.is_complete(job) for job in sweep.jobs):
        states = {status.name: _state(status) for status in statuses(sweep, launching, slurm)}
    for job, varied in zip(sweep.jobs, _varied([job.overrides for job in sweep.jobs]), strict=True):
        state = states.get(job.number if job.same_as is None else job.same_as, "its metrics are gone")
        yield ReportedRun(f"job {job.number} ({sweep.label(job)})", sweep.directory(job).metrics if job.run else None, varied, state)


def _state(status: Status) -> str:
    """In words: ``failed: ...``, ``missing: never started``, ``done: as far as curate``."""
    return ": ".join(filter(None, [status.state, " ".join(map(str.strip, status.error)) or status.details]))


def _run(folder: Path) -> ReportedRun:
    stages = sorted((folder / "stages").glob("*.json"), key=lambda path: path.stat().st_mtime)
    stage, _, how = stages[-1].stem.partition(".") if stages else ("", "", "")
    running = holder(folder / "run.lock") is not None
    state = "running" if running else "not finished" if not how else f"stopped in {stage}"
    return ReportedRun(folder.name, folder / "metrics.json", {}, state + (f", as far as {stage}" if stage and not how else ""))


def _varied(overrides: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Of each job's overrides those in which the jobs differ and that have no column of their own."""
    settings = [dict(override.lstrip("+").partition("=")[::2] for override in job) for job in overrides]
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
