"""``python -m fcot.report DIR...``: tables, figures and the page of runs and sweeps, from the files they left."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

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
_SHOWN_MISSING = 10
_NEEDED = ("run_id", "task", "student", "method", "diversity", "seed", "accuracy", "n_test", "seconds")


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


def report(folders: Sequence[Path], output: Path | None = None, export: bool = False) -> Document | None:
    """Print the comparison of all finished runs in the folders with what is signal in it, and write its page.

    Args:
        folders: Runs, sweeps, or folders of either.
        output: Where to write; the first folder unless told.
        export: Whether to write tables (Markdown, LaTeX, CSV) and figures (SVG, PDF, PNG) as well.

    Returns:
        The report; None where no run went further than curation.

    Raises:
        FcotError: None is finished, or something cannot be read.
    """
    from fcot.reporting.builder import analyse, build, terminal_tables
    from fcot.reporting.page import write_page
    from fcot.reporting.settings import named

    output = output or folders[0]
    jobs = [job for folder in folders for job in find_jobs(folder)]
    done, missing = _finished(jobs)
    if not done:
        _report_lengths(folders, jobs, missing, output if export else None)
        return None
    settings, paths = _settings(done)
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
        _export(document, output / "report")
        print(f"tables and figures: {output / 'report'}")
    print(f"page: {page}")
    return document


def _finished(jobs: Sequence[Job]) -> tuple[list[tuple[Path, Loaded]], list[str]]:
    """What finished runs left, with their folders, and what is to be said of the others: not finished, or damaged."""
    done, missing = [], []
    for job in jobs:
        if job.metrics is None or not job.metrics.exists():
            missing.append(_told(job))
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


def _settings(done: Sequence[tuple[Path, Loaded]]) -> tuple[list[Setting], dict[str, Path]]:
    """What is compared, and each run's folder by its id."""
    from fcot.reporting.settings import alike, group

    loaded = [run for _, run in done]
    settings, paths = group(loaded), {metrics["run_id"]: folder for folder, (metrics, *_) in done}
    if same := alike(settings):  # runs of several commands: their configurations say what differs
        _tell_apart({run["run_id"] for setting in same for run in setting.runs}, paths, loaded)
        settings = group(loaded)
    return settings, paths


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
    try:
        left = read_json(job.record)
    except ValueError:
        return f"{job.name}: its record is damaged"
    status = "its metrics are gone" if left["status"] == "done" else left["status"]
    return f"{job.name}: {status}" + (f": {left['error'].splitlines()[0]}" if left.get("error") else "")


def _export(document: Document, folder: Path) -> None:
    """Every table and figure in files of their own, and all of it as Markdown."""
    from fcot.reporting.document import Chart, Paragraph
    from fcot.reporting.figures import save
    from fcot.reporting.table import Table, plain

    for name in ("tables", "figures"):  # of an earlier report, which may have had others
        shutil.rmtree(folder / name, ignore_errors=True)
    text = [f"# {plain(document.title)}", plain(document.answer), *(f"- not in the report: {plain(one)}" for one in document.missing)]
    for section in document.sections:
        text.append(f"## {section.title}" if section.id != "samples" else "")
        for block in section.blocks:
            if isinstance(block, Table):
                for form, made in (("md", block.to_markdown()), ("tex", block.to_latex()), ("csv", block.to_csv())):
                    write_atomic(folder / "tables" / f"{block.name}.{form}", made)
                text.append(block.to_markdown())
            elif isinstance(block, Chart):
                try:
                    text.append(f"![{plain(block.title)}](figures/{save(block, folder / 'figures')[0].name})")
                except FcotError as error:
                    print(error)
            elif isinstance(block, Paragraph):
                text.append(plain(block.text))
            else:
                text.append(f"{plain(block.title)}\n\n    " + block.text.rstrip().replace("\n", "\n    "))
    write_atomic(folder / "report.md", "\n\n".join(filter(None, text)) + "\n")


_NO_MATTER = ("seed", "output_dir", "dry_run", "until", "logger.", "dataset.name", "student.name", "method.name", "diversity", "preview")


def _tell_apart(runs: Container[str], paths: Mapping[str, Path], loaded: Sequence[Loaded]) -> None:
    """Enter as varied the configuration values in which those of these runs differ that nothing else tells apart.

    And the same values of the other runs of their task, student and method: a table or a line has them all or none.
    """
    told = {metrics["run_id"]: metrics for metrics, *_ in loaded}
    configs = {run_id: _configuration(paths[run_id]) for run_id in told}
    cells: dict[tuple[Any, ...], list[str]] = {}
    for run_id in told:
        if run_id in runs and configs[run_id]:
            cells.setdefault(tuple(told[run_id][name] for name in ("task", "student", "method", "diversity")), []).append(run_id)
    for (*kind, _), members in cells.items():
        keys = dict.fromkeys(key for run_id in members for key in configs[run_id] if not key.startswith(_NO_MATTER))
        differing = [key for key in keys if len({configs[run_id].get(key) for run_id in members}) > 1]
        names = [key for key in differing if key.endswith(".name")]  # a choice stands for all that comes with it
        chosen = [key for key in differing if key in names or f"{key.partition('.')[0]}.name" not in names][:_SHOWN_KEYS]
        for metrics in told.values():
            config = configs[metrics["run_id"]]
            if config and kind == [metrics[name] for name in ("task", "student", "method")]:
                metrics["varied"] = {key.removesuffix(".name"): config.get(key, "null") for key in chosen} | metrics["varied"]


def _configuration(folder: Path) -> dict[str, str]:
    """A run's values by dotted key; empty where they cannot be read."""
    try:
        return _flat(OmegaConf.load(folder / "config.yaml"))
    except (OSError, ValueError, AttributeError, YAMLError, OmegaConfBaseException):
        return {}


def _flat(config: Any, before: str = "") -> dict[str, str]:
    """Values by dotted key."""
    found: dict[str, str] = {}
    for key, value in config.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, DictConfig) else {f"{before}{key}": _word(value)}
    return found


def _word(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _report_lengths(folders: Sequence[Path], jobs: Sequence[Job], missing: Sequence[str], output: Path | None) -> None:
    """What can be said of runs that stopped after curation; a figure of it below ``output``.

    Raises:
        FcotError: There are none.
    """
    from fcot.reporting.figures import save
    from fcot.reporting.lengths import lengths_chart, lengths_of, lengths_table

    curated = list(dict.fromkeys(job.metrics.parent for job in jobs if job.metrics and job.metrics.with_name("curated.jsonl").exists()))
    if not curated:
        raise FcotError("\n  ".join([f"no evaluated run in {', '.join(map(str, folders))}", *missing[:_SHOWN_MISSING]]))
    found = [lengths_of(run) for run in curated]
    result_console().print(lengths_table(found))
    if output:
        print(f"figure: {save(lengths_chart(found), output / 'report' / 'figures')[0]}")
    _print_missing(missing, len(jobs))


def load(path: Path, varied: Mapping[str, str] | None = None) -> Loaded:
    """A run's metrics; by sample index which test problems it answered rightly, and in how many tokens."""
    answers, lengths = {}, {}
    predictions = path.with_name("predictions.jsonl")
    with _readable(predictions):
        for row in read_jsonl(predictions):
            if not isinstance(row["correct"], bool):
                raise ValueError(f"correct: {row['correct']!r}")
            answers[row["sample_index"]], lengths[row["sample_index"]] = row["correct"], row["n_tokens"]
    with _readable(path):
        metrics = read_json(path) | {"varied": dict(varied or {})}
        if lacking := [name for name in _NEEDED if name not in metrics]:
            raise ValueError(f"it has no {', '.join(lacking)}")
        for held in metrics.get("rounds", ()):
            of_round = RunDirectory(path.parent).round(held["round"]).predictions
            if of_round.exists():  # a round's files may be deleted
                held["answers"] = {row["sample_index"]: bool(row["correct"]) for row in read_jsonl(of_round)}
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
    """The runs of a folder: those a sweep's plan names, or those of several sweeps, a run's own, or all below ``runs/``."""
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
    if sweeps := sorted(path.parent for path in folder.glob("*/plan.json")):
        return [job for sweep in sweeps for job in find_jobs(sweep)]
    found = {
        path.parent for pattern in ("*", "runs/*") for name in ("config.yaml", "metrics.json") for path in folder.glob(f"{pattern}/{name}")
    }
    return [Job(path.name, path / "metrics.json", {}) for path in sorted(found)]


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
