"""``python -m fcot.sweep status|rerun|cancel|collect DIR``: what became of a sweep's jobs, and running those that failed again.

Any of them at any time, from any machine that sees the folder.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcot.base.console import result_console, say
from fcot.base.errors import FcotError
from fcot.base.ranks import started_first
from fcot.base.stopping import end_with_parent, listen

if TYPE_CHECKING:
    from rich.console import Group

    from fcot.sweeps.ledger import Status
    from fcot.sweeps.plan import Sweep

_EVERY_S = 2.0
_SLURM_EVERY_S = 30.0  # administrators throttle who asks the controller all the time
_STYLES = {"done": "green", "running": "cyan", "starting": "cyan", "failed": "red", "cancelled": "yellow", "interrupted": "yellow"}
_HELP = {
    "status": "every job: queued, running and how far, done with its accuracy, failed with the last lines of its error",
    "rerun": "run, or submit, the failed and missing jobs again; the others stay as they are",
    "cancel": "cancel what waits or runs; what was done is kept, and rerun goes on",
    "collect": "write jobs.parquet and jobs.csv, a row a job with its metrics",
    "job": "do one job here, as the local launcher does",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exit code 0, 1 with one message where something is wrong, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    if options.command == "job" and options.parent is not None:
        end_with_parent(signal.SIGTERM, options.parent)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from fcot.sweeps.plan import read_plan

        sweep = read_plan(options.folder)
        {"status": _status, "rerun": _rerun, "cancel": _cancel, "collect": _collect, "job": _job}[options.command](sweep, options)
    except FcotError as error:
        say(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        say("\ninterrupted; the same command can be given again")
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fcot.sweep", description="What became of a sweep's jobs. Safe at any time, from any machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in _HELP.items():
        command = commands.add_parser(name, description=text, help=text)
        command.add_argument("folder", type=Path, metavar="DIR", help="a sweep's folder: outputs/sweeps/<time>")
        if name == "status":
            command.add_argument(
                "--watch",
                action="store_true",
                help="every two seconds (SLURM is asked twice a minute), until nothing waits or runs; then the report",
            )
        if name == "rerun":
            command.add_argument(
                "parameters", nargs="*", metavar="KEY=VALUE", help="of the launcher, other than before: mem_gb=64 timeout_min=600"
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
        found = statuses(sweep)
        console.print(_shown(sweep, found))
        if not any(one.state in (*ACTIVE, "unknown") for one in found):
            say(f"main table and page: python -m fcot.report {shlex.quote(str(display_path(sweep.folder)))}")
        return
    with Live(console=console, auto_refresh=False) as live:

        def show(found: Sequence[Status]) -> None:
            alive = [one for one in found if one.state not in (*ENDED, "same", "queued")]
            live.update(_shown(sweep, alive[: max(1, console.height - 6)], found), refresh=True)

        last, answer = wait_for_end(sweep, show, _EVERY_S, _SLURM_EVERY_S)
    console.print(_shown(sweep, last))
    report_sweep(sweep, launching=None, slurm=answer)


def _shown(sweep: Sweep, rows: Sequence[Status], found: Sequence[Status] | None = None) -> Group:
    """The counts, a line a job, and below them what failed ones said, unbroken: paths are to be copied.

    Args:
        sweep: Whose.
        rows: The jobs to be listed.
        found: All that are counted, where they are others.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from fcot.sweeps.ledger import counts
    from fcot.sweeps.plan import GENERATION, display_path

    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    columns: dict[str, list[Any]] = {
        "job": [str(one.name) for one in rows],
        "state": [Text(one.state, style=_STYLES.get(one.state, "")) for one in rows],
        "slurm": [one.slurm or "" for one in rows],
        "requeued": [f"{one.preempted}x" if one.preempted else "" for one in rows],
        "what differs": ["the teacher's answers" if one.name == GENERATION else sweep.label(sweep.jobs[int(one.name)]) for one in rows],
        "how it stands": [one.details for one in rows],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells) or name in ("job", "state")}
    for name in columns:
        table.add_column(name, no_wrap=name in ("job", "state", "slurm"), overflow="fold")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells))
    said = []
    for one in rows:
        if one.state == "failed" and one.error:
            log = f"\n  {display_path(one.log)}" if one.log else ""
            said.append(Text(f"job {one.name}: " + "\n  ".join(one.error) + log, overflow="fold"))
    said += [Text(line, overflow="fold") for line in dict.fromkeys(" ".join(one.error) for one in rows if one.state == "unknown")]
    title = Text(f"{display_path(sweep.folder)}: {counts(rows if found is None else found)}", style="bold")
    return Group(title, *([table] if rows else []), *said)


def _rerun(sweep: Sweep, options: argparse.Namespace) -> None:
    from fcot.sweeps.launch import rerun

    launcher = sweep.launcher | _launcher_parameters(sweep.launcher, options.parameters)
    if not Path(sweep.cwd).is_dir():
        raise FcotError(f"the sweep was started in {sweep.cwd}, which is not here: its relative paths mean nothing")
    os.chdir(sweep.cwd)
    listen()
    rerun(sweep, launcher)


def _launcher_parameters(launcher: dict[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` of the launcher; ``generation.KEY=VALUE`` of its generation job."""
    import yaml

    from fcot.config.overrides import looks_secret

    changed: dict[str, Any] = {}
    for word in given:
        key, found, value = word.removeprefix("hydra.launcher.").partition("=")
        if looks_secret(key, value):
            raise FcotError(
                f"{key}=...: this looks like a secret, and launcher parameters are written down; keys come from the environment"
            )
        part, _, inner = key.rpartition(".")
        known = launcher.get("generation", {}) if part == "generation" else launcher
        if not found or part not in ("", "generation") or inner not in known or inner in ("kind", "generation"):
            raise FcotError(f"{word}: the launcher has no such parameter; it has {', '.join(sorted(launcher))}")
        read, before = yaml.safe_load(value), known[inner]
        if isinstance(before, int) and read is not None and not isinstance(read, int):
            raise FcotError(f"{word}: {inner} is a whole number, such as {before}")
        if part:
            changed["generation"] = launcher["generation"] | changed.get("generation", {}) | {inner: read}
        else:
            changed[inner] = read
    return changed


def _cancel(sweep: Sweep, _: argparse.Namespace) -> None:
    from fcot.sweeps.ledger import cancel_sweep
    from fcot.sweeps.plan import format_jobs

    told = cancel_sweep(sweep)
    say(f"cancelled: {format_jobs(told)}" if told else "nothing waits or runs")


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
