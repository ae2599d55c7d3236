"""The methods: one entry each, with the stages that make a student and the formats that it reads and writes.

A method's options are a schema in ``fcot/methods/``, its choice a YAML file in ``conf/method/``.
"""

from __future__ import annotations

from dataclasses import dataclass

from fcot.prompts.student import FormatKind, StudentFormat
from fcot.stages.table import CURATE, EVALUATE, EXAM, FEEDBACK, GENERATE, REMOTE, TRAIN, Stage


@dataclass(frozen=True)
class Method:
    """How a student is made and evaluated.

    Attributes:
        title: The papers' name.
        stages: In order; those of several rounds once.
        formats: What its students read and write, by kind of format; empty where the untrained student is prompted with the run's prompt,
            as a teacher is.
        round_runner: ``module:function`` that takes a run through rounds of these stages (:func:`fcot.runs.pipeline.execute` calls it with
            the run and the function that takes one step); empty: each stage is taken once.
    """

    title: str
    stages: tuple[Stage, ...]
    formats: dict[FormatKind, StudentFormat]
    round_runner: str = ""

    @property
    def uses_rationales(self) -> bool:
        """Whether it trains on rationales of a teacher."""
        return GENERATE in self.stages

    @property
    def trains(self) -> bool:
        """Whether it trains at all."""
        return TRAIN in self.stages

    @property
    def prompted(self) -> bool:
        """Whether an untrained student is prompted with the run's prompt."""
        return not self.formats

    def stages_of(self, remote: bool) -> tuple[Stage, ...]:
        """The stages of a run.

        Args:
            remote: Whether the student is a model behind an API.
        """
        return tuple(REMOTE.get(stage.name, stage) if remote else stage for stage in self.stages)


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
    "fine_tune": Method(
        "Fine-tune", (TRAIN, EVALUATE),
        {
            "encoder_decoder": StudentFormat("{question}", "{answer}", None),
            "decoder": StudentFormat("{question} ###", " {answer}", None),
            "chat": StudentFormat("{question}", "{answer}", None),
        },
    ),
    "fine_tune_cot": Method(
        "Fine-tune-CoT", (GENERATE, CURATE, TRAIN, EVALUATE),
        {
            "encoder_decoder": StudentFormat("{question}", "{rationale} --> {answer}", "-->"),
            "decoder": StudentFormat("{question} ###", " {rationale} --> {answer}", "-->"),
            "chat": StudentFormat("{question}", "{rationale} --> {answer}", "-->"),
        },
    ),
    "tailored": Method(  # paper B's; T5's tokenizer has no newlines
        "Tailored", (GENERATE, CURATE, EXAM, FEEDBACK, TRAIN, EVALUATE),
        {
            "encoder_decoder": StudentFormat("Question: {question} Reasoning:", "{rationale} Answer: {answer}", "Answer:"),
            "decoder": StudentFormat("Question: {question}\nReasoning:", " {rationale}\nAnswer: {answer}", "Answer:"),
            "chat": StudentFormat("Question: {question}", "Reasoning: {rationale}\nAnswer: {answer}", "Answer:"),
        },
        round_runner="fcot.methods.tailored.rounds:run_rounds",
    ),
}  # fmt: skip
