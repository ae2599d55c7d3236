"""The files of a run: their names and what a killed process left of them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fcot.base.files import TEMPORARY, exclusive


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run. Names are a contract: other programs read them."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def split(self) -> Path:
        """Sample indices of train, validation and test, with the hash of the ordered questions."""
        return self.path / "split.json"

    @property
    def curated(self) -> Path:
        """A row per completion with curation's verdict."""
        return self.path / "curated.jsonl"

    @property
    def student(self) -> Path:
        """The trained student, loadable by transformers' ``from_pretrained``; of an API student its name at the server."""
        return self.path / "student"

    @property
    def checkpoints(self) -> Path:
        """What an unfinished training continues from."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """A row per sampled answer, where several were drawn for each test problem."""
        return self.path / "samples.jsonl"

    @property
    def fine_tuning(self) -> Path:
        """An API student's training file, and its job at the server."""
        return self.path / "finetune"

    @property
    def predictions(self) -> Path:
        """A row per test problem."""
        return self.path / "predictions.jsonl"

    @property
    def errors(self) -> Path:
        """What is wrong with the wrong answers."""
        return self.path / "errors.jsonl"

    @property
    def metrics(self) -> Path:
        """The run's numbers."""
        return self.path / "metrics.json"

    @property
    def done(self) -> Path:
        """Written last: its existence means the run is whole."""
        return self.path / "DONE.json"

    @property
    def logs(self) -> Path:
        """Folder of the training logger."""
        return self.path / "logs"

    @property
    def wandb(self) -> Path:
        """Which W&B run this run is."""
        return self.logs / "wandb.json"

    @property
    def exam(self) -> Path:
        """Of a round: a row per train problem with the student's mistakes."""
        return self.path / "exam.jsonl"

    @property
    def feedback(self) -> Path:
        """Of a round: a row per completion, with the mistakes that the teacher was shown."""
        return self.path / "feedback.jsonl"

    def round(self, number: int) -> RunDirectory:
        """A round's files, rounds counted from 1."""
        return RunDirectory(self.path / f"round_{number}")

    def stage(self, name: str) -> Path:
        """The summary a finished stage leaves: its existence means the stage is whole."""
        return self.path / "stages" / f"{name}.json"

    def lock(self, say: Callable[[str], object]) -> contextlib.AbstractContextManager[None]:
        """Exclusive use of this directory; see :func:`exclusive`."""
        return exclusive(self.path / "run.lock", say)

    def remove_partial(self) -> None:
        """Remove what a killed process left half-written, and put back what it had moved aside; call it under the lock."""
        for leftover in list(self.path.rglob(f"*{TEMPORARY}-*")):
            whole = leftover.with_name(leftover.name.partition(TEMPORARY)[0])
            if f"{TEMPORARY}-old-" in leftover.name and not whole.exists():
                leftover.rename(whole)  # killed between the two renames of write_folder
            elif leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
