"""``python -m fcot.sweep status|rerun|cancel|collect DIR``: what became of a sweep's jobs, and running those that failed again.

Any of them at any time, from any machine that sees the folder.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcot.errors import FcotError
from fcot.progress import result_console, say
from fcot.ranks import started_first
from fcot.stopping import listen

if TYPE_CHECKING:
    from rich.table import Table

    from fcot.sweeps.ledger import Status
    from fcot.sweeps.plan import Sweep

_EVERY_S = 2.0
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
            command.add_argument("--watch", action="store_true", help="again every two seconds, until nothing waits or runs")
        if name == "rerun":
            command.add_argument(
                "parameters", nargs="*", metavar="KEY=VALUE", help="of the launcher, other than before: mem_gb=64 timeout_min=600"
            )
        if name == "job":
            command.add_argument("numbers", help=argparse.SUPPRESS)
            command.add_argument("--generation", action="store_true", help=argparse.SUPPRESS)
    return parser


def _status(sweep: Sweep, options: argparse.Namespace) -> None:
    from rich.live import Live

    from fcot.sweeps.ledger import statuses, wait_for_end

    console = result_console()
    if not options.watch:
        console.print(_table(sweep, statuses(sweep)))
        return
    with Live(console=console, auto_refresh=False) as live:
        wait_for_end(sweep, lambda found: live.update(_table(sweep, found), refresh=True), _EVERY_S)


def _table(sweep: Sweep, found: Sequence[Status]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from fcot.sweeps.ledger import counts
    from fcot.sweeps.plan import GENERATION

    table = Table(box=SIMPLE_HEAD, padding=(0, 1), title=f"{sweep.folder}: {counts(found)}", title_justify="left", title_style="bold")
    on_slurm = any(one.slurm for one in found)
    for head in ("job", "state", *(("slurm",) if on_slurm else ()), "preempted", "what differs", ""):
        table.add_column(head, no_wrap=head in ("job", "state", "slurm"), overflow="fold")
    for one in found:
        label = "teacher's answers for all" if one.name == GENERATION else sweep.label(sweep.jobs[int(one.name)])
        told = Text("\n".join([*filter(None, [one.told]), *one.error]))
        if one.state == "failed" and one.log is not None:
            told.append(f"\n{one.log}", style="dim")
        table.add_row(
            str(one.name), Text(one.state, style=_STYLES.get(one.state, "")), *([one.slurm or ""] if on_slurm else []),
            f"{one.preempted}x" if one.preempted else "", Text(label), told,
        )  # fmt: skip
    return table


def _rerun(sweep: Sweep, options: argparse.Namespace) -> None:
    from fcot.sweeps.launch import rerun
    from fcot.sweeps.ledger import again

    launcher = sweep.launcher | _launcher_parameters(sweep.launcher, options.parameters)
    if not Path(sweep.cwd).is_dir():
        raise FcotError(f"the sweep was started in {sweep.cwd}, which is not here: its relative paths mean nothing")
    os.chdir(sweep.cwd)
    todo = again(sweep)
    if not todo:
        say("nothing to run again: no job has failed or is missing")
        return
    say(f"again: jobs {', '.join(str(job.number) for job in todo)}")
    rerun(replace(sweep, launcher=launcher), {job.number for job in todo})


def _launcher_parameters(launcher: dict[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` of the launcher; ``generation.KEY=VALUE`` of its generation job."""
    import yaml

    changed: dict[str, Any] = {}
    for word in given:
        key, found, value = word.partition("=")
        part, _, inner = key.rpartition(".")
        known = launcher.get("generation", {}) if part == "generation" else launcher
        if not found or part not in ("", "generation") or inner not in known or inner in ("kind", "generation"):
            raise FcotError(f"{word}: the launcher has no such parameter; it has {', '.join(sorted(launcher))}")
        read = yaml.safe_load(value)
        if part:
            changed["generation"] = launcher["generation"] | changed.get("generation", {}) | {inner: read}
        else:
            changed[inner] = read
    return changed


def _cancel(sweep: Sweep, _: argparse.Namespace) -> None:
    from fcot.sweeps.ledger import stop

    told = stop(sweep)
    say(f"cancelled: {', '.join(map(str, told))}" if told else "nothing waits or runs")


def _collect(sweep: Sweep, _: argparse.Namespace) -> None:
    from fcot.sweeps.ledger import collect, counts, statuses

    for path in collect(sweep, sweep.folder):
        print(path)
    say(counts(statuses(sweep)))


def _job(sweep: Sweep, options: argparse.Namespace) -> None:
    from fcot.sweeps.job import do_generation, do_job

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    os.chdir(sweep.cwd)
    if started_first():
        listen()
    numbers = [int(number) for number in options.numbers.split(",")]
    if options.generation:
        do_generation(sweep, numbers)
    else:
        do_job(sweep, numbers[0])


if __name__ == "__main__":
    main()
