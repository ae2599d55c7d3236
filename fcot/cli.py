"""``fcot COMMAND ...``: one command for all entry points; ``python -m fcot COMMAND`` is the same."""

from __future__ import annotations

import difflib
import importlib
import sys

from fcot import __version__
from fcot.base.entry import entry_point

COMMANDS = {
    "run": "one run, or a sweep with -m: fcot run student=flan_t5_base diversity=64",
    "check": "data before a run, its faults and its split: fcot check mine.csv",
    "sweep": "the jobs of a sweep: fcot sweep status|rerun|cancel|collect outputs/sweeps/<time>",
    "report": "tables, figures and a page of finished runs: fcot report outputs/sweeps/<time>",
    "predict": "answers of a trained student: fcot predict outputs/runs/<run>/student FILE or QUESTION",
    "evaluate": "accuracy of a finished student on another task: fcot evaluate outputs/runs/<run>/student dataset=svamp",
    "export": "kept rationales as training data for other programs: fcot export outputs/runs/<run> samples.jsonl",
    "ls": "the runs and sweeps of the output folder with their states, accuracies and sizes: fcot ls",
    "rm": "removes runs, or only their students' weights: fcot rm RUN; fcot rm --unfinished",
    "store": "the completion store: fcot store list|verify|compact|merge|export|import",
    "prefetch": "downloads models and data for nodes without internet: fcot prefetch student=t5_base dataset=svamp",
}


def help_text() -> str:
    """The commands, each with an example."""
    lines = (f"  {name:<10}{text}" for name, text in COMMANDS.items())
    return "\n".join([
        "Distill a teacher's chain-of-thought reasoning into a small student.", "", "  fcot COMMAND ...", "", *lines, "",
        "fcot COMMAND --help shows details; fcot --version prints the version. python -m fcot.COMMAND does the same.",
    ])  # fmt: skip


@entry_point
def main() -> None:
    """Entry point: hands the arguments to the command's module."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("--help", "-h", "help"):
        print(help_text())
    elif command in ("--version", "version"):
        print(f"fcot {__version__}")
    elif command in COMMANDS:
        sys.argv = [f"fcot {command}", *arguments]
        importlib.import_module(f"fcot.{command}").main()
    else:
        close = difflib.get_close_matches(command, COMMANDS, 1)
        override_hint = "an override needs a command before it: fcot run " + command if "=" in command else ""
        hint = override_hint or (f"did you mean {close[0]}?" if close else f"choose from {', '.join(COMMANDS)}")
        print(f"fcot {command}: no such command; {hint}", file=sys.stderr)
        sys.exit(2)
