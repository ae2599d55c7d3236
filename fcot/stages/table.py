"""The stages as data: what each leaves, its version, its function, and whether all ranks take part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fcot.base.run_folder import RunDirectory

if TYPE_CHECKING:
    from fcot.base.ranks import World
    from fcot.runs.run import Run

Summary = dict[str, Any]


def function(name: str) -> Callable[..., Any]:
    """The function that ``module:function`` names, imported now."""
    module, _, attribute = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), attribute)
    return found


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: In ``stages/<name>.json``, in ``until`` and in the metrics.
        version: Increase it when the stage's code, or code that it calls, changes what a run computes: the runs that have the stage
            are then other runs. Changes of speed, messages or logs leave it.
        function: ``module:function``, imported when the stage runs. It takes a :class:`Context` and returns the stage's summary.
        output: The file or folder that the stage leaves in its directory; the stage runs again where that is gone. None: the summary
            is all.
        shared: Whether all ranks run it.
        key: Under which its version is part of a run's identity; empty for the name.
    """

    name: str
    version: int
    function: str
    output: str | None = None
    shared: bool = False
    key: str = ""


@dataclass(frozen=True)
class Step:
    """A stage of a run, or of one of its rounds. Ranks send it to each other.

    Attributes:
        stage: The stage.
        round: The round, counted from 1; None in a run without rounds.
    """

    stage: Stage
    round: int | None = None

    def __str__(self) -> str:
        """Such as ``train`` or ``round_2/train``."""
        return self.stage.name if self.round is None else f"round_{self.round}/{self.stage.name}"

    def run(self, run: Run, world: World) -> Summary:
        """Call the stage's function."""
        summary: Summary = function(self.stage.function)(Context(run, self, world))
        return summary


@dataclass(frozen=True)
class Context:
    """What a stage's function is given.

    Attributes:
        run: The run.
        step: The step that is taken.
        world: The ranks. Of a stage that is not shared only the first one calls the function.
    """

    run: Run
    step: Step
    world: World

    @property
    def directory(self) -> RunDirectory:
        """Where the stage leaves its files: the run's directory, or the round's."""
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
TRAIN = Stage("train", 2, "fcot.stages.training:train", "student", shared=True)
EVALUATE = Stage("evaluate", 3, "fcot.stages.training:evaluate", "predictions.jsonl", shared=True)
# Of API-backed students, and of the teacher evaluated as the student.
TRAIN_REMOTE = Stage("train", 2, "fcot.stages.remote_training:train", "student", key="train_remote")
EVALUATE_REMOTE = Stage("evaluate", 3, "fcot.stages.remote_evaluation:evaluate", "predictions.jsonl", key="evaluate_remote")
REMOTE = {stage.name: stage for stage in (TRAIN_REMOTE, EVALUATE_REMOTE)}
# Of a round of tailored learning.
EXAM = Stage("exam", 2, "fcot.methods.tailored.stages:exam", "exam.jsonl", shared=True)
FEEDBACK = Stage("feedback", 1, "fcot.methods.tailored.feedback:feedback", "feedback.jsonl")
CURATE_ROUND = replace(CURATE, function="fcot.methods.tailored.stages:curate")
TRAIN_ROUND = replace(TRAIN, function="fcot.methods.tailored.stages:train")
