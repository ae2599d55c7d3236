"""The table of methods. Each entry has the stages that make a student and the formats that the student reads and writes.

A method's options are a schema in ``fcot/methods/``. The choice ``method=NAME`` is a YAML file in ``conf/method/``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from fcot.prompts.student import FormatKind, StudentFormat
from fcot.stages.table import (  # fmt: skip
    CURATE,
    EVALUATE,
    FINE_TUNE,
    FIRST_ROUND,
    GENERATE,
    LATER_ROUND,
    REMOTE,
    TRAIN,
    TRAIN_ON_POLICY,
    Stage,
)


@dataclass(frozen=True)
class Method:
    """How a student is made and evaluated.

    Attributes:
        title: The name that the papers use.
        stages: The stages in order. Of a method with rounds, the stages of all rounds, each name once.
        formats: Formats of the student by kind. Empty where an untrained student is prompted with the run's prompt, as a teacher is.
        own_format: Whether the student is a finished one, which answers in the format of its own ``fcot.json``.
        round_runner: ``module:function`` that runs the rounds. :func:`fcot.runs.pipeline.execute` calls it with the run and a function
            that runs one step. Empty where each stage runs once.
    """

    title: str
    stages: tuple[Stage, ...]
    formats: dict[FormatKind, StudentFormat]
    own_format: bool = False
    round_runner: str = ""

    @property
    def uses_rationales(self) -> bool:
        """Whether the method trains on rationales of a teacher."""
        return GENERATE in self.stages

    @property
    def trains(self) -> bool:
        """Whether the method trains a student."""
        return any(stage.name == TRAIN.name for stage in self.stages)

    @property
    def prompted(self) -> bool:
        """Whether the method prompts an untrained student with the run's prompt."""
        return not (self.formats or self.own_format)

    def stages_of(self, remote: bool) -> tuple[Stage, ...]:
        """The method's stages in order.

        Args:
            remote: Whether the student is a model behind an API.
        """
        return tuple(REMOTE.get(stage.name, stage) if remote else stage for stage in self.stages)


def each_once(*rounds: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The stages of all rounds, each name once: the stage of the first round that has this name."""
    stages: dict[str, Stage] = {}
    for stage in chain.from_iterable(rounds):
        stages.setdefault(stage.name, stage)
    return tuple(stages.values())


_FINE_TUNE_COT: dict[FormatKind, StudentFormat] = {
    "encoder_decoder": StudentFormat("{question}", "{rationale} --> {answer}", "-->"),
    "decoder": StudentFormat("{question} ###", " {rationale} --> {answer}", "-->"),
    "chat": StudentFormat("{question}", "{rationale} --> {answer}", "-->"),
}
METHODS: dict[str, Method] = {
    "zero_shot": Method(
        "Zero-shot", (EVALUATE,),
        {
            "encoder_decoder": StudentFormat("question: {question}", "{answer}", None),
            "decoder": StudentFormat("Q: {question}\n\nA:", " {answer}", None),
            "chat": StudentFormat("Q: {question}\n\nA:", "{answer}", None),
        },
    ),
    "zero_shot_cot": Method("Zero-shot-CoT", (EVALUATE,), {}),
    "few_shot_cot": Method("Few-shot-CoT", (EVALUATE,), {}),
    "as_trained": Method("As trained", (EVALUATE,), {}, own_format=True),
    "fine_tune": Method(
        "Fine-tune", (TRAIN, EVALUATE),
        {
            "encoder_decoder": StudentFormat("{question}", "{answer}", None),
            "decoder": StudentFormat("{question} ###", " {answer}", None),
            "chat": StudentFormat("{question}", "{answer}", None),
        },
    ),
    "fine_tune_cot": Method("Fine-tune-CoT", (GENERATE, CURATE, TRAIN, EVALUATE), _FINE_TUNE_COT),
    "on_policy": Method("On-policy", (GENERATE, CURATE, FINE_TUNE, TRAIN_ON_POLICY, EVALUATE), _FINE_TUNE_COT),
    "tailored": Method(  # paper B's formats; T5's tokenizer has no newlines, so an encoder-decoder gets spaces
        "Tailored", each_once(FIRST_ROUND, LATER_ROUND),
        {
            "encoder_decoder": StudentFormat("Question: {question} Reasoning:", "{rationale} Answer: {answer}", "Answer:"),
            "decoder": StudentFormat("Question: {question}\nReasoning:", " {rationale}\nAnswer: {answer}", "Answer:"),
            "chat": StudentFormat("Question: {question}", "Reasoning: {rationale}\nAnswer: {answer}", "Answer:"),
        },
        round_runner="fcot.methods.tailored.rounds:run_rounds",
    ),
}  # fmt: skip


def method_of(config: Any) -> Method:
    """The entry of a configuration's method, without the stages that its options make unnecessary (``unneeded``)."""
    method, unneeded = METHODS[config.method.name], getattr(config.method, "unneeded", ())
    return replace(method, stages=tuple(stage for stage in method.stages if stage.name not in unneeded))


def title_of(metrics: Mapping[str, Any]) -> str:
    """The name in reports of the method that made a run's student: the configuration's own, such as a preset's, or the table's.

    Args:
        metrics: The run's ``metrics.json``.
    """
    return str(metrics.get("method_title") or METHODS[metrics.get("student_method") or metrics["method"]].title)
