"""The names of a run's files, and the removal of partial files that a killed process left."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fcot.base.files import TEMPORARY, exclusive


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run. Other programs rely on their names."""

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
        """Curation's verdicts, one row per completion."""
        return self.path / "curated.jsonl"

    @property
    def scores(self) -> Path:
        """How the student, before training, reads the kept completions, one row per completion (``curation.choose_by``)."""
        return self.path / "scores.jsonl"

    @property
    def student(self) -> Path:
        """The trained student, loadable by transformers' ``from_pretrained``. For an API-backed student, its name at the server."""
        return self.path / "student"

    @property
    def checkpoints(self) -> Path:
        """The checkpoints from which an interrupted training continues."""
        return self.path / "checkpoints"

    @property
    def sampler(self) -> RunDirectory:
        """In a round's folder: the files of the student that writes own answers (``method.sampler``)."""
        return RunDirectory(self.path / "sampler")

    @property
    def own(self) -> Path:
        """In a round's folder: the sampler's answers to the exam's problems, as in ``exam.jsonl``."""
        return self.path / "own.jsonl"

    @property
    def retries(self) -> Path:
        """In a round's folder: the student's right answers after critiques, in the form of ``feedback.jsonl``."""
        return self.path / "retries.jsonl"

    @property
    def moments(self) -> Path:
        """In a round's folder, until the next round is trained: the moments of the optimizer that the student was trained with."""
        return self.path / "optimizer.pt"

    @property
    def samples(self) -> Path:
        """With several sampled answers per test problem: one row per answer."""
        return self.path / "samples.jsonl"

    @property
    def fine_tuning(self) -> Path:
        """An API-backed student's training file, and its job at the server."""
        return self.path / "finetune"

    @property
    def predictions(self) -> Path:
        """The student's answers, one row per test problem."""
        return self.path / "predictions.jsonl"

    @property
    def errors(self) -> Path:
        """The error marks of the wrong answers, one row per answer."""
        return self.path / "errors.jsonl"

    @property
    def metrics(self) -> Path:
        """The run's metrics (:class:`fcot.runs.metrics.Metrics`)."""
        return self.path / "metrics.json"

    @property
    def done(self) -> Path:
        """Written last: if it exists, the run is complete."""
        return self.path / "DONE.json"

    @property
    def logs(self) -> Path:
        """Folder of the training logger."""
        return self.path / "logs"

    @property
    def wandb(self) -> Path:
        """The id of this run at W&B."""
        return self.logs / "wandb.json"

    @property
    def exam(self) -> Path:
        """In a round's folder: the exam, one row per train problem with the student's mistakes."""
        return self.path / "exam.jsonl"

    @property
    def feedback(self) -> Path:
        """In a round's folder: one row per completion, with the mistakes that the prompt showed to the teacher."""
        return self.path / "feedback.jsonl"

    @property
    def fine_tuned(self) -> RunDirectory:
        """The files of a run's training on rationales, if another training follows it."""
        return RunDirectory(self.path / "fine_tuned")

    def round(self, number: int) -> RunDirectory:
        """The files of a round; ``number`` counts from 1."""
        return RunDirectory(self.path / f"round_{number}")

    def stage(self, name: str) -> Path:
        """The summary that a finished stage writes last: if it exists, the stage is complete."""
        return self.path / "stages" / f"{name}.json"

    def reached(self, name: str) -> bool:
        """Whether a stage is complete, in a run with rounds that of the first round."""
        return any(directory.stage(name).exists() for directory in (self, self.round(1)))

    def finished_stages(self) -> list[str]:
        """Names of the complete stages, in the order in which they were completed. Those of rounds are not among them."""
        files = sorted((self.path / "stages").glob("*.json"), key=lambda path: path.stat().st_mtime)
        return [path.stem for path in files if "." not in path.stem]

    @property
    def lock_file(self) -> Path:
        """Locked while a process works on the run."""
        return self.path / "run.lock"

    @contextlib.contextmanager
    def lock(self, say: Callable[[str], object]) -> Iterator[None]:
        """Exclusive use of this folder (:func:`fcot.base.files.exclusive`). If nothing is in it at the end, it is removed."""
        with exclusive(self.lock_file, say):
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    if [path.name for path in self.path.iterdir()] == [self.lock_file.name]:
                        self.lock_file.unlink()
                        self.path.rmdir()

    def remove_partial(self) -> None:
        """Remove partial files of a killed process, and restore folders that it had renamed. The caller holds the lock."""
        for partial in list(self.path.rglob(f"*{TEMPORARY}-*")):
            complete = partial.with_name(partial.name.partition(TEMPORARY)[0])
            if f"{TEMPORARY}-old-" in partial.name and not complete.exists():
                partial.rename(complete)  # killed between the two renames of write_folder
            elif partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)
