"""fcot in Python: runs, sweeps and students with the names, folders and results of the command line.

Options are keyword arguments with the names of the command line. A name with a dot, a hyphen or a slash goes into a mapping::

    result = fcot.run_experiment(student="flan_t5_base", diversity=64, **{"trainer.lr": 1e-4, "split-mode": "template"})
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcot.base.errors import FcotError as FcotError
from fcot.base.files import read_json, read_jsonl
from fcot.base.locations import locate
from fcot.base.run_folder import RunDirectory

if TYPE_CHECKING:
    from pandas import DataFrame

    from fcot.student.loading import Student as LoadedStudent
    from fcot.sweeps.plan import Sweep
    from fcot.tasks.check import DataReport

_STAGES = ("evaluate", "train", "curate", "generate")  # the last one first
_LOGGERS = ("pytorch_lightning", "lightning_fabric")  # whose levels a training changes
_one_at_a_time = threading.RLock()  # file locks do not keep two threads of one process apart


def run_experiment(**overrides: Any) -> RunResult:
    """Execute one run, as ``fcot run`` does; a finished run is loaded, an interrupted one continues.

    Messages and progress go to stderr, in a notebook to the cell. With ``dry_run=True`` or ``preview=5`` the result is printed, and the
    returned run may have no files yet.

    Args:
        overrides: Choices and options with the names of the command line. Values are Python values: None is ``null``, a list is a list, a
            path or text stands for itself, a function for its dotted name.

    Raises:
        FcotError: As on the command line, with the same message.
        KeyboardInterrupt: Ctrl-C. All progress is saved; the same call continues.
    """
    if swept := [name for name in overrides if name.startswith(("hydra/", "hydra.launcher", "hydra.sweep"))]:
        raise FcotError(f"{swept[0]} is for sweeps: fcot.run_sweep")
    from hydra.errors import ConfigCompositionException

    from fcot.config.overrides import explain, explained, prepare
    from fcot.run import start
    from fcot.sweeps.plan import composer

    words = [_override(name, value) for name, value in overrides.items()]
    with _undisturbed():
        with explained(words), composer([]) as compose:
            arguments = prepare(words)
            try:
                composed = compose(arguments)
            except ConfigCompositionException as error:
                if "of type 'list' could not be converted" not in str(error.__cause__):
                    raise
                raise FcotError(f"{explain(error, words)}\nfcot.run_sweep sweeps over a list of values") from error
        folder, _ = start(composed, arguments, [])
    return RunResult(folder.absolute())


def run_sweep(**overrides: Any) -> SweepResult:
    """Execute a sweep, as ``fcot run -m`` does: every combination of the values that are given as lists.

    Its tables and its page are written into its folder. With ``hydra/launcher="slurm"`` its jobs are submitted, and the call returns.

    Args:
        overrides: As for :func:`run_experiment`, but a list (tuple, range) is a list of values to sweep over. An option whose value is
            itself a list takes a list of lists: ``**{"curation.filters": [["answer"], ["answer", "duplicate"]]}``.

    Raises:
        FcotError: The sweep cannot start, or some of its jobs failed; the others are finished, and the same call runs the failed ones
            again.
        KeyboardInterrupt: Ctrl-C. All progress is saved; the same call continues.
    """
    from omegaconf import OmegaConf

    from fcot.config.overrides import explained, prepare
    from fcot.sweeps.launch import failure_lines, launch
    from fcot.sweeps.plan import composer, expand, plan_path, read_plan, split_searchpath

    words = [_axis(name, value) for name, value in overrides.items()]
    with _undisturbed():
        with explained(words):
            searchpath, arguments = split_searchpath(prepare(words))
            with composer(searchpath) as compose:
                config, jobs = expand(arguments, compose)
            folder = Path(config.hydra.sweep.dir).absolute()
            launcher = OmegaConf.to_container(config.hydra.launcher, resolve=True)
        assert isinstance(launcher, dict)
        launcher.pop("_target_")
        if "kind" not in launcher:
            raise FcotError("sweeps run under hydra/launcher=serial, local, slurm or slurm_ddp: choose one of these")
        is_shown = config.dry_run or config.preview
        try:
            with explained(words), contextlib.nullcontext() if is_shown else contextlib.redirect_stdout(io.StringIO()):
                launch(folder, jobs, searchpath, {str(name): value for name, value in launcher.items()})
        except SystemExit as error:  # failed jobs, which were listed
            lines = failure_lines(read_plan(folder)) if plan_path(folder).exists() else []
            raise FcotError("\n".join(lines) or "not every job of the sweep can be run: see the lines above") from error
    return SweepResult(folder)


def check_data(path: str | Path | None = None, **overrides: Any) -> DataReport:
    """Check data before a run, as ``fcot check`` does: columns, faulty rows, contradictions, duplicates, the split. Nothing is written.

    Args:
        path: A file, folder or hub id as own data; None: the overrides choose the data, as in ``dataset="svamp"``.
        overrides: As for :func:`run_experiment`.

    Returns:
        The report: ``usable`` says whether a run can use the data, ``faults`` and ``notes`` are sentences, ``to_text()`` is the page.

    Raises:
        FcotError: The data cannot be read, a column is missing, or an override is wrong. Faulty rows are no error, but in the report.
    """
    from fcot.check import check

    with _undisturbed():
        return check(None if path is None else str(path), [_override(name, value) for name, value in overrides.items()])


def load_run(folder: str | Path) -> RunResult:
    """Load a run, finished or not.

    Args:
        folder: The run's folder, or its name if it is in the output folder.

    Raises:
        FcotError: There is no such run.
    """
    path = locate(Path(folder))
    if not RunDirectory(path).config.is_file():
        raise FcotError(f"{folder}: {'not the folder of a run' if path.is_dir() else 'no such folder'}")
    return RunResult(path.absolute())


@dataclass(frozen=True)
class RunResult:
    """A run, as its files describe it.

    Attributes:
        folder: The run's folder. It has no files after a dry run.
    """

    folder: Path

    @property
    def name(self) -> str:
        """The run's name: readable parts, and a hash of everything that changes a prediction."""
        return self.folder.name

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The content of ``metrics.json`` (:class:`fcot.runs.metrics.Metrics`); the summary of the last stage if the run stopped before
        its end, and empty without any.
        """
        directory = RunDirectory(self.folder)
        rounds = [RunDirectory(path) for path in sorted(self.folder.glob("round_*"), reverse=True)]
        paths = [directory.metrics, *(part.stage(stage) for part in (directory, *rounds) for stage in _STAGES)]
        return next((dict(read_json(path)) for path in paths if path.exists()), {})

    @property
    def is_finished(self) -> bool:
        """Whether the run has been evaluated."""
        return RunDirectory(self.folder).done.exists()

    def curated(self) -> DataFrame:
        """A row per completion with curation's verdict, as in ``curated.jsonl``. With rounds, the column ``round`` has the round's number.

        Raises:
            FcotError: The run has curated nothing: its method needs no rationales, or it stopped before.
        """
        return self._rows("curated.jsonl", "curated completions")

    def predictions(self) -> DataFrame:
        """A row per test problem with the student's answer, as in ``predictions.jsonl``.

        Raises:
            FcotError: The run has not been evaluated.
        """
        return self._rows("predictions.jsonl", "predictions")

    def _rows(self, name: str, what: str) -> DataFrame:
        import pandas as pd

        if (path := self.folder / name).exists():
            return pd.DataFrame(list(read_jsonl(path)))
        rounds = {int(path.parent.name.partition("_")[2]): path for path in self.folder.glob(f"round_*/{name}")}
        if not rounds:
            raise FcotError(f"{self.folder} has no {what}")
        return pd.DataFrame([{"round": number, **row} for number in sorted(rounds) for row in read_jsonl(rounds[number])])

    @cached_property
    def student(self) -> Student:
        """The trained student.

        Raises:
            FcotError: The run trains no student, has not trained it yet, or its student was removed.
        """
        return Student(self.folder)


@dataclass(frozen=True)
class SweepResult:
    """A sweep, as its files describe it.

    Attributes:
        folder: The sweep's folder. It has no files after a dry run.
    """

    folder: Path

    @property
    def runs(self) -> list[RunResult]:
        """The complete runs, in the order of the jobs. Jobs with the same run are one run."""
        return [RunResult(self._sweep.directory(job).path) for job in self._sweep.distinct if self._sweep.is_complete(job)]

    def jobs(self) -> DataFrame:
        """A row per job: what was varied (``override.NAME``), its state, its error and its metrics, as ``fcot sweep collect`` writes it."""
        from fcot.sweeps.collect import jobs_table

        return jobs_table(self._sweep)

    @property
    def page(self) -> Path:
        """The report's HTML page; it exists once a job is finished."""
        return self.folder / "report.html"

    @property
    def _sweep(self) -> Sweep:
        from fcot.sweeps.plan import read_plan

        return read_plan(self.folder)


@dataclass(frozen=True)
class Answer:
    """A student's answer to a question.

    Attributes:
        question: The question.
        prediction: The answer, as the student's task reads it; None if the completion has no readable answer.
        completion: The text that the student generated.
        complete: Whether it ended by itself, before the token limit.
        n_tokens: Its length in tokens.
        votes: With several samples, how often each prediction was sampled; None with one.
    """

    question: str
    prediction: str | None
    completion: str
    complete: bool
    n_tokens: int
    votes: dict[str, int] | None = None


class Student:
    """A trained student. Its model is loaded for the first answer and then kept.

    Args:
        folder: The folder of the student or of its run, or the run's name.

    Raises:
        FcotError: There is no student that fcot trained.
    """

    def __init__(self, folder: str | Path) -> None:
        from fcot.student.interface import find_student, read_interface

        self.folder = find_student(folder).absolute()
        self.interface = read_interface(self.folder)

    def __repr__(self) -> str:
        return f"Student({str(self.folder)!r})"

    def answer(
        self,
        questions: str | Sequence[str],
        *,
        self_consistency: int = 1,
        temperature: float = 0.7,
        max_new_tokens: int | None = None,
        calculator: bool | None = None,
        seed: int = 0,
        api_key_env: str | None = None,
    ) -> list[Answer]:
        """Answer questions, as ``fcot predict`` does.

        Args:
            questions: One question or several.
            self_consistency: Answers sampled per question for a majority vote; 1 decodes greedily.
            temperature: The temperature of the samples.
            max_new_tokens: Limit of an answer, in tokens; None takes the student's own.
            calculator: Whether wrong numbers after an equals sign are corrected; None does as in the student's run.
            seed: The seed of the samples.
            api_key_env: For an API-backed student, the environment variable with the server's key.

        Returns:
            An answer per question, in their order.
        """
        from fcot.predict import Options, answer

        texts = [questions] if isinstance(questions, str) else list(questions)
        options = Options(
            str(self.folder), self_consistency=self_consistency, temperature=temperature, max_new_tokens=max_new_tokens,
            calculator=calculator, seed=seed, api_key_env=api_key_env,
        )  # fmt: skip
        rows = answer(options, [{"question": text} for text in texts], self._loaded) if texts else []
        return [
            Answer(row["question"], row["prediction"], row["completion"], row["complete"], row["n_tokens"], row.get("votes"))
            for row in rows
        ]  # fmt: skip

    @cached_property
    def _loaded(self) -> LoadedStudent | None:
        """Model and tokenizer; None for an API-backed student."""
        from fcot.predict import is_api_backed, load

        if is_api_backed(self.folder):
            return None
        restore = _progress_bars()
        try:
            return load(self.folder, self.interface)
        finally:
            restore()


# --- from Python values to overrides ----------------------------------------------------------------------------------


def _override(name: str, value: Any) -> str:
    """An override for one value."""
    from fcot.base.resources import CONF
    from fcot.base.values import written

    if "=" in name or not name.strip():
        raise FcotError(f"{name!r}: not the name of an option")
    if "__" in name:
        raise FcotError(f'{name}: names have dots, as on the command line: **{{"{name.replace("__", ".")}": ...}}')
    if isinstance(value, dict) and (CONF / name.replace("_", "-")).is_dir():
        raise FcotError(f'{name} takes the name of a choice; its options are set one by one: **{{"{name.replace("-", "_")}.KEY": VALUE}}')
    return f"{name}={written(value)}"


def _axis(name: str, value: Any) -> str:
    """An override for one value, or for each value of a list."""
    if not isinstance(value, list | tuple | range):
        return _override(name, value)
    if not value:
        raise FcotError(f"{name}: an empty list of values; an option that is itself empty is [[]]")
    return f"{name}={','.join(_override(name, item).partition('=')[2] for item in value)}"


# --- the calling process ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Leave the process as it was: environment, log levels, warning filters, progress bars of other libraries, random generators."""
    with _one_at_a_time, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")  # of tqdm in notebooks without widgets
        environment, levels = dict(os.environ), {name: logging.getLogger(name).level for name in _LOGGERS}
        restore_state = [_random_states(), _progress_bars()]
        try:
            yield
        finally:
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            for name, value in environment.items():
                if os.environ.get(name) != value:
                    os.environ[name] = value
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            for restore in restore_state:
                restore()


def _random_states() -> Callable[[], None]:
    """A function that restores the present states of the random generators: a training seeds those of the whole process."""
    import numpy as np

    states, numpy_state, torch = random.getstate(), np.random.get_state(), sys.modules.get("torch")
    torch_state = torch.random.get_rng_state() if torch is not None else None

    def restore() -> None:
        random.setstate(states)
        np.random.set_state(numpy_state)
        if torch is not None and torch_state is not None:
            torch.random.set_rng_state(torch_state)

    return restore


def _progress_bars() -> Callable[[], None]:
    """A function that restores whether transformers shows progress bars; fcot shows its own."""
    library = sys.modules.get("transformers.utils.logging")
    was_enabled = library is None or library.is_progress_bar_enabled()

    def restore() -> None:
        library = sys.modules.get("transformers.utils.logging")
        if library is not None and was_enabled:
            library.enable_progress_bar()

    return restore
