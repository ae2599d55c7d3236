"""The stages as data: each stage's output, version and function, and whether all ranks run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fcot.base.run_folder import RunDirectory

if TYPE_CHECKING:
    from fcot.base.ranks import World
    from fcot.runs.run import Run
    from fcot.stages.tracking import Tracker

Summary = dict[str, Any]


def function(name: str) -> Callable[..., Any]:
    """Import the function that ``module:function`` names."""
    module, _, attribute = name.partition(":")
    imported: Callable[..., Any] = getattr(import_module(module), attribute)
    return imported


@dataclass(frozen=True)
class Stage:
    """A stage of a run: what it runs, what it writes, and its version.

    Attributes:
        name: The name in ``stages/<name>.json``, in ``until`` and in the metrics.
        version: Part of a run's identity. Increase it when the stage's code, or code that it calls, changes what a run computes; runs
            with this stage then get new names. Do not increase it for changes of speed, messages or logs.
        function: ``module:function``, imported when the stage runs. It takes a :class:`Context` and returns the stage's summary.
        output: The file or folder that the stage writes in its directory; the stage runs again if it is missing. None: the stage
            writes only its summary.
        shared: Whether all ranks run the stage, rather than the first one alone.
        key: Name of the stage's version in a run's identity; empty: ``name``.
    """

    name: str
    version: int
    function: str
    output: str | None = None
    shared: bool = False
    key: str = ""


@dataclass(frozen=True)
class Step:
    """A stage of a run, or of one of its rounds. Ranks send steps to each other, so it can be pickled.

    Attributes:
        stage: The stage.
        round: The round, counted from 1; None in a run without rounds.
    """

    stage: Stage
    round: int | None = None

    def __str__(self) -> str:
        """The step's name, such as ``train`` or ``round_2/train``."""
        return self.stage.name if self.round is None else f"round_{self.round}/{self.stage.name}"

    def run(self, run: Run, world: World, tracker: Tracker | None = None) -> Summary:
        """Call the stage's function."""
        summary: Summary = function(self.stage.function)(Context(run, self, world, tracker))
        return summary


@dataclass(frozen=True)
class Context:
    """The argument of a stage's function.

    Attributes:
        run: The run.
        step: The step that is executed.
        world: The ranks. Only the first one executes a stage that is not shared.
        tracker: Where the run is logged; None on all ranks but the first.
    """

    run: Run
    step: Step
    world: World
    tracker: Tracker | None = None

    @property
    def directory(self) -> RunDirectory:
        """The directory of the stage's files: the run's, or the round's."""
        return directory_of(self.run, self.step)

    @property
    def round(self) -> int:
        """The round, counted from 1."""
        assert self.step.round is not None
        return self.step.round


def directory_of(run: Run, step: Step) -> RunDirectory:
    """The directory of a step's files."""
    return run.directory if step.round is None else run.directory.round(step.round)


GENERATE = Stage("generate", 2, "fcot.stages.rationales:generate")
CURATE = Stage("curate", 3, "fcot.stages.rationales:curate", "curated.jsonl")
JUDGE = Stage("judge", 1, "fcot.stages.judging:judge")
CHOOSE = Stage("choose", 1, "fcot.stages.choosing:choose_completions", shared=True)
REVISIONS = (JUDGE, CHOOSE)  # stages after the curation that change its verdicts
SCORE = Stage("score", 1, "fcot.stages.scoring:score")
PROBE = Stage("probe", 1, "fcot.stages.scoring:probe")
TRAIN = Stage("train", 2, "fcot.stages.training:train", "student", shared=True)
EVALUATE = Stage("evaluate", 3, "fcot.stages.training:evaluate", "predictions.jsonl", shared=True)
# Stages of API-backed students, and of the teacher evaluated as the student.
TRAIN_REMOTE = Stage("train", 2, "fcot.stages.remote_training:train", "student", key="train_remote")
EVALUATE_REMOTE = Stage("evaluate", 3, "fcot.stages.remote_evaluation:evaluate", "predictions.jsonl", key="evaluate_remote")
REMOTE = {stage.name: stage for stage in (TRAIN_REMOTE, EVALUATE_REMOTE)}
# Stages of on-policy distillation.
FINE_TUNE = Stage("fine_tune", 2, "fcot.methods.on_policy.stages:fine_tune", "fine_tuned/student", shared=True)
TRAIN_ON_POLICY = Stage("train", 1, "fcot.methods.on_policy.stages:train", "student", shared=True, key="train_on_policy")
# Stages of a round of tailored learning.
EXAM = Stage("exam", 2, "fcot.methods.tailored.stages:exam", "exam.jsonl", shared=True)
SAMPLER = Stage("sampler", 1, "fcot.methods.tailored.sampler:tune", "sampler/student", shared=True)
SAMPLE = Stage("sample", 1, "fcot.methods.tailored.sampler:sample", "own.jsonl", shared=True)
RETRY = Stage("retry", 1, "fcot.methods.tailored.retry:retry", "retries.jsonl", shared=True)
FEEDBACK = Stage("feedback", 1, "fcot.methods.tailored.feedback:feedback", "feedback.jsonl")
CURATE_ROUND = replace(CURATE, function="fcot.methods.tailored.stages:curate")
TRAIN_ROUND = replace(TRAIN, function="fcot.methods.tailored.stages:train")
LEARNING = frozenset(stage.name for stage in (TRAIN, FINE_TUNE, CHOOSE, EXAM, SAMPLER, SAMPLE, RETRY))  # the student's device works
FIRST_ROUND = (GENERATE, CURATE, EXAM, TRAIN_ROUND, EVALUATE)
LATER_ROUND = (EXAM, SAMPLER, SAMPLE, FEEDBACK, RETRY, CURATE_ROUND, TRAIN_ROUND, EVALUATE)
