"""``fcot rm``: remove runs and sweeps, but nothing that is running or that another run or sweep needs."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fcot.base.console import say
from fcot.base.entry import entry_point
from fcot.base.errors import FcotError, UsageError
from fcot.base.files import TEMPORARY, exclusive
from fcot.base.locations import locate, output_dir
from fcot.base.run_folder import RunDirectory

if TYPE_CHECKING:
    from fcot.runs.inventory import RunEntry

_SHOWN = 3  # reasons for each run
HELP = """Remove runs or sweeps. The completion store is never touched: what was bought stays, and the same command makes a run again.

A run is kept if a process works on it, if a sweep's plan contains it, or if an option of another run or sweep (student.path,
prompt.exemplars, objective.teacher...) names a path in it. Removing a sweep removes its plan and its report, not its runs."""


@dataclass(frozen=True)
class Removal:
    """Something to remove.

    Attributes:
        path: The folder.
        lock: The lock that whoever works on it holds.
        paths: What is removed: the folder itself, or the students in it.
    """

    path: Path
    lock: Path
    paths: tuple[Path, ...]


@entry_point
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point, with the exit codes of :func:`fcot.base.entry.entry_point`."""
    options = parser().parse_args(arguments)
    if options.unfinished == bool(options.folders):
        raise UsageError("name the runs to remove, or --unfinished for all that did not finish (fcot ls lists them)")
    runs, sweeps = _unfinished() if options.unfinished else _named([locate(folder) for folder in options.folders])
    removals = _removals(runs, sweeps, options)
    if not removals:
        say("nothing to remove")
        return
    if not options.yes:
        _confirm(removals)
    for removal in removals:
        _remove(removal)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    command = argparse.ArgumentParser(prog="fcot rm", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("folders", nargs="*", type=Path, metavar="RUN", help="folders or names of runs and sweeps")
    command.add_argument("--student", action="store_true", help="remove only the students' weights; metrics, predictions and tables stay")
    command.add_argument("--unfinished", action="store_true", help="remove all runs that failed or were interrupted")
    command.add_argument("--force", action="store_true", help="also what a sweep or another run needs; what is running is never removed")
    command.add_argument("--yes", action="store_true", help="do not ask")
    return command


def _named(folders: Sequence[Path]) -> tuple[list[RunEntry], list[Path]]:
    """The runs and the folders of sweeps that the command line names.

    Raises:
        FcotError: A folder is neither; the message lists all such folders.
    """
    from fcot.runs.inventory import run_entry
    from fcot.sweeps.plan import plan_path

    runs, sweeps, faults = [], [], []
    for folder in dict.fromkeys(folders):
        directory = RunDirectory(folder)
        if plan_path(folder).is_file():
            sweeps.append(folder)
        elif directory.config.is_file() or directory.lock_file.is_file():
            runs.append(run_entry(directory))
        else:
            faults.append(f"{folder}: {'neither a run nor a sweep' if folder.exists() else 'no such run or sweep'}")
    if faults:
        raise FcotError("\n".join([*faults, "fcot ls lists them"]))
    return runs, sweeps


def _unfinished() -> tuple[list[RunEntry], list[Path]]:
    from fcot.runs.inventory import check_outputs, runs_in

    check_outputs(output_dir())
    return [run for run in runs_in(output_dir()) if run.state in ("failed", "interrupted")], []


def _removals(runs: Sequence[RunEntry], sweeps: Sequence[Path], options: argparse.Namespace) -> list[Removal]:
    """What is removed.

    Raises:
        FcotError: Something that the command line names must stay; the message says why. Then nothing is removed.
    """
    from fcot.sweeps.plan import read_plan

    folders = [run.folder for run in runs] + list(sweeps)
    kept = _reasons(runs, sweeps, folders, options)
    if kept:
        lines = [f"{name}: {reason}" for name, reason in kept.items()]
        if not options.unfinished:
            raise FcotError("\n".join(["nothing is removed:", *lines]))
        say("\n".join(["these stay:", *lines]))
    removals = [_run_removal(run.folder, options.student) for run in runs if run.name not in kept]
    removals += [Removal(folder, read_plan(folder).launch_lock, (folder,)) for folder in sweeps]
    return [removal for removal in removals if removal.paths]


def _run_removal(folder: Path, weights_only: bool) -> Removal:
    students = [folder / "student", *sorted(folder.glob("round_*/student")), *sorted(folder.glob("round_*/sampler/student"))]
    paths = tuple(path for path in students if path.is_dir()) if weights_only else (folder,)
    return Removal(folder, RunDirectory(folder).lock_file, paths)


def _reasons(runs: Sequence[RunEntry], sweeps: Sequence[Path], folders: Collection[Path], options: argparse.Namespace) -> dict[str, str]:
    """Why some runs and sweeps must stay, by name."""
    from fcot.sweeps.inventory import is_running, needed_by
    from fcot.sweeps.plan import read_plan

    kept = {run.name: "a process works on it" for run in runs if run.state == "running"}
    if options.student:
        kept |= {folder.name: "--student removes the weights of runs: name the runs" for folder in sweeps}
        if not options.force:
            unfinished = (run for run in runs if run.state != "finished" and any(run.folder.glob("round_*")))
            kept |= {run.name: "its later rounds need them (--force)" for run in unfinished}
    kept |= {folder.name: "it is running" for folder in sweeps if is_running(read_plan(folder))}
    if options.force:
        return kept
    for outputs in {_outputs_of(run.folder) for run in runs}:
        here = [run for run in runs if _outputs_of(run.folder) == outputs]
        for name, needs in needed_by(here, outputs, folders, options.student).items():
            more = f" and {len(needs) - _SHOWN} more" if len(needs) > _SHOWN else ""
            who = f"needed by {', '.join(needs[:_SHOWN])}{more}"
            kept.setdefault(name, f"{who} (--force removes it; fcot sweep rerun makes a sweep's run again)")
    return kept


def _outputs_of(run: Path) -> Path:
    """The output folder that a run is in."""
    return run.absolute().parent.parent


def _confirm(removals: Sequence[Removal]) -> None:
    """Ask before anything is removed.

    Raises:
        FcotError: The answer is no, or nobody can be asked.
    """
    from fcot.runs.inventory import size_text, usage_of

    total = 0
    for removal in removals:
        n_bytes = sum(usage_of(path)[0] for path in removal.paths)
        total += n_bytes
        what = "" if removal.paths == (removal.path,) else ": " + ", ".join(str(path.relative_to(removal.path)) for path in removal.paths)
        say(f"  {removal.path}{what}   {size_text(n_bytes)}")
    if not sys.stdin.isatty():
        raise FcotError("nothing is removed: add --yes to remove these without a question")
    say(f"remove {'these' if len(removals) > 1 else 'this'} ({size_text(total)})? [y/N] ")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise FcotError("nothing is removed")


def _remove(removal: Removal) -> None:
    """Remove one run or sweep under its lock. A killed command leaves it as it was, or gone but for a hidden folder."""

    def refuse(_: object) -> None:
        raise FcotError(f"{removal.path}: a process has begun to work on it; it stays")

    with exclusive(removal.lock, refuse):
        for path in removal.paths:
            with _renamed(path) as hidden:
                shutil.rmtree(hidden)
    say(f"removed {', '.join(map(str, removal.paths))}")


@contextlib.contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """Rename a folder to a hidden name, at once for all readers; remove what killed commands left under such names."""
    for left in path.parent.glob(f".removed{TEMPORARY}-*"):
        shutil.rmtree(left, ignore_errors=True)
    hidden = path.with_name(f".removed{TEMPORARY}-{os.getpid()}-{path.name}")
    path.rename(hidden)
    yield hidden


if __name__ == "__main__":
    main()
