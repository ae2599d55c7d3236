"""Notes on a run's data and student, which the commands that lead to a trained student share: each is said once."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from fcot.base.console import say, say_once
from fcot.base.files import fingerprint
from fcot.runs.run import Run, knowledge_warnings, own_data_notes


def say_notes(run: Run, toy: str | None) -> None:
    """Say what may be wrong with a run's data, and that its student is a toy, before anything is paid.

    Args:
        run: The run.
        toy: The warning about a toy student; None if it is none.
    """
    for warning in knowledge_warnings(run):
        say_once(warning)
    name = f"{run.task.name} {run.config.student.name} is a toy"  # the warning itself also names the memory that is free now
    _say_first(run.outputs, {note: note for note in own_data_notes(run)} | ({} if toy is None else {name: toy}))


def _say_first(outputs: Path, notes: Mapping[str, str]) -> None:
    """Say those notes that no earlier command with the same output folder has said: preview, curation and training repeat them otherwise.

    Args:
        outputs: The output folder, whose ``cache/notes`` marks what was said. Without the marks, notes are said again.
        notes: The notes, by a text that stays the same as long as a note says the same.
    """
    for key, note in notes.items():
        mark = outputs / "cache" / "notes" / fingerprint(key)[:16]
        if mark.exists():
            continue
        say(note)
        with contextlib.suppress(OSError):  # a note is not worth an error
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
