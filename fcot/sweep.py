"""``python -m fcot.sweep status|rerun|cancel|collect DIR``: show, run again, cancel or export the jobs of a sweep.

Each command is safe at any time, on any machine that sees the folder.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcot.base.console import result_console, say
from fcot.base.entry import entry_point
from fcot.base.errors import FcotError
from fcot.base.locations import locate
from fcot.base.ranks import started_first
from fcot.base.stopping import end_with_parent, listen

if TYPE_CHECKING:
    from rich.console import Group

    from fcot.sweeps.ledger import Status
    from fcot.sweeps.plan import Sweep

_EVERY_S = 2.0
_SLURM_EVERY_S = 30.0  # frequent queries load SLURM's controller, and sites throttle them
_STYLES = {"done": "green", "running": "cyan", "starting": "cyan", "failed": "red", "cancelled": "yellow", "interrupted": "yellow"}
_HELP = {
    "status": "show every job: queued, running with its progress, done with its accuracy, failed with the last lines of its error",
    "rerun": "run or submit the failed and missing jobs again; the others stay as they are",
    "cancel": "cancel queued and running jobs; their progress is kept, and rerun continues them",
    "collect": "write jobs.parquet and jobs.csv: a row per job with its metrics",
    "job": "run one job here, as the local launcher does",
}


@entry_point
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point, with the exit codes of :func:`fcot.base.entry.entry_point`."""
    options = _parser().parse_args(arguments)
    if options.command == "job" and options.parent is not None:
        end_with_parent(signal.SIGTERM, options.parent)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from fcot.sweeps.plan import read_plan

    sweep = read_plan(locate(options.folder))
    {"status": _status, "rerun": _rerun, "cancel": _cancel, "collect": _collect, "job": _job}[options.command](sweep, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fcot.sweep", description="Manage the jobs of a sweep. Safe at any time, on any machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in _HELP.items():
        command = commands.add_parser(name, description=text, help=text)
        command.add_argument("folder", type=Path, metavar="DIR", help="a sweep's folder: outputs/sweeps/<time>, or only <time>")
        if name == "status":
            command.add_argument(
                "--watch",
                action="store_true",
                help="refresh every two seconds (SLURM is queried twice a minute) until no job is queued or running; then print the report",
            )
        if name == "rerun":
            command.add_argument(
                "parameters", nargs="*", metavar="KEY=VALUE", help="launcher parameters to change: mem_gb=64 timeout_min=600"
            )
        if name == "job":
            command.add_argument("numbers", help=argparse.SUPPRESS)
            command.add_argument("--generation", action="store_true", help=argparse.SUPPRESS)
            command.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    return parser


def _status(sweep: Sweep, options: argparse.Namespace) -> None:
    from rich.live import Live

    from fcot.sweeps.launch import report_sweep
    from fcot.sweeps.ledger import ACTIVE, ENDED, statuses, wait_for_end
    from fcot.sweeps.plan import display_path

    console = result_console()
    if not options.watch:
        jobs = statuses(sweep)
        console.print(_status_table(sweep, jobs))
        if not any(job.state in (*ACTIVE, "unknown") for job in jobs):
            say(f"main table and page: python -m fcot.report {shlex.quote(str(display_path(sweep.folder)))}")
        return
    with Live(console=console, auto_refresh=False) as live:

        def show(jobs: Sequence[Status]) -> None:
            running = [job for job in jobs if job.state not in (*ENDED, "same", "queued")]
            live.update(_status_table(sweep, running[: max(1, console.height - 6)], jobs), refresh=True)

        last, answer = wait_for_end(sweep, show, _EVERY_S, _SLURM_EVERY_S)
    console.print(_status_table(sweep, last))
    report_sweep(sweep, launching=None, slurm=answer)


def _status_table(sweep: Sweep, rows: Sequence[Status], counted: Sequence[Status] | None = None) -> Group:
    """The counts, a table of jobs, and below it the errors of failed jobs, in full lines so that paths can be copied.

    Args:
        sweep: The sweep.
        rows: The jobs in the table.
        counted: The jobs that are counted in the title; None counts ``rows``.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from fcot.sweeps.ledger import counts
    from fcot.sweeps.plan import GENERATION, display_path

    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    columns: dict[str, list[Any]] = {
        "job": [str(job.name) for job in rows],
        "state": [Text(job.state, style=_STYLES.get(job.state, "")) for job in rows],
        "slurm": [job.slurm or "" for job in rows],
        "requeued": [f"{job.preempted}x" if job.preempted else "" for job in rows],
        "varies": ["the teacher's completions" if job.name == GENERATION else sweep.label(sweep.jobs[int(job.name)]) for job in rows],
        "details": [job.details for job in rows],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells) or name in ("job", "state")}
    for name in columns:
        table.add_column(name, no_wrap=name in ("job", "state", "slurm"), overflow="fold")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells))
    errors = []
    for job in rows:
        if job.state == "failed" and job.error:
            log = f"\n  {display_path(job.log)}" if job.log else ""
            errors.append(Text(f"job {job.name}: " + "\n  ".join(job.error) + log, overflow="fold"))
    errors += [Text(line, overflow="fold") for line in dict.fromkeys(" ".join(job.error) for job in rows if job.state == "unknown")]
    title = Text(f"{display_path(sweep.folder)}: {counts(rows if counted is None else counted)}", style="bold")
    return Group(title, *([table] if rows else []), *errors)


def _rerun(sweep: Sweep, options: argparse.Namespace) -> None:
    from fcot.sweeps.launch import rerun

    launcher = sweep.launcher | _launcher_parameters(sweep.launcher, options.parameters)
    if not Path(sweep.cwd).is_dir():
        raise FcotError(f"the sweep was started in {sweep.cwd}, which is missing on this machine: its relative paths cannot be resolved")
    os.chdir(sweep.cwd)
    listen()
    rerun(sweep, launcher)


def _launcher_parameters(launcher: dict[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """Parse and check changes of the launcher's parameters.

    Args:
        launcher: The present parameters.
        given: ``KEY=VALUE``, or ``generation.KEY=VALUE`` for the generation job.

    Returns:
        The changed parameters only.

    Raises:
        FcotError: The launcher has no such parameter, or a value is of the wrong type or looks like a secret.
    """
    import yaml

    from fcot.config.overrides import looks_secret

    changed: dict[str, Any] = {}
    for word in given:
        key, equals, value = word.removeprefix("hydra.launcher.").partition("=")
        if looks_secret(key, value):
            raise FcotError(
                f"{key}=...: this looks like a secret, and launcher parameters are saved in plan.json; set an environment variable instead"
            )
        part, _, inner = key.rpartition(".")
        known = launcher.get("generation", {}) if part == "generation" else launcher
        if not equals and inner in known and inner != "kind":
            raise FcotError(f"{word}: give a value: {word}=VALUE (it is {known[inner]} now)")
        if not equals or part not in ("", "generation") or inner not in known or inner in ("kind", "generation"):
            raise FcotError(f"{word}: the launcher has no such parameter; set one of these by KEY=VALUE: {', '.join(sorted(launcher))}")
        new, old = yaml.safe_load(value), known[inner]
        if isinstance(old, int) and new is not None and not isinstance(new, int):
            raise FcotError(f"{word}: {inner} is a whole number, such as {old}")
        if part:
            changed["generation"] = launcher["generation"] | changed.get("generation", {}) | {inner: new}
        else:
            changed[inner] = new
    return changed


def _cancel(sweep: Sweep, _: argparse.Namespace) -> None:
    from fcot.sweeps.ledger import cancel_sweep
    from fcot.sweeps.plan import format_jobs

    cancelled = cancel_sweep(sweep)
    say(f"cancelled: {format_jobs(cancelled)}" if cancelled else "nothing to cancel: no job is queued or running")


def _collect(sweep: Sweep, _: argparse.Namespace) -> None:
    from fcot.sweeps.collect import collect
    from fcot.sweeps.ledger import counts, statuses

    for path in collect(sweep, sweep.folder):
        print(path)
    say(counts(statuses(sweep)))


def _job(sweep: Sweep, options: argparse.Namespace) -> None:
    from fcot.sweeps.job import run_generation, run_job

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    os.chdir(sweep.cwd)
    if started_first():
        listen()
    numbers = [int(number) for number in options.numbers.split(",")]
    if options.generation:
        run_generation(sweep, numbers)
    else:
        run_job(sweep, numbers[0])


if __name__ == "__main__":
    main()
