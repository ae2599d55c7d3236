"""The options of ``method=tailored``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from fcot.base.fields import Why, absent_at, bounded, counted, neutral, resolved

if TYPE_CHECKING:
    from fcot.config.schema import Config
    from fcot.runs.run import Run

_OF_LATER_ROUNDS = frozenset(
    {"patience", "min_mistakes", "start", "accumulate", "feedback", "own", "replay", "one_schedule", "carry_optimizer", "skip_solved"}
)


@dataclass
class ExamConfig:
    """How a round's student samples answers to the train problems."""

    samples: int = bounded(4, at_least=1)  # answers sampled per train problem
    temperature: float = bounded(1.0, above=0, hint="; an exam's answers are sampled")
    top_k: int | None = bounded(50, at_least=1)  # sample from the k likeliest tokens; null for all
    max_new_tokens: int | None = bounded(None, at_least=1)  # limit of an answer, in tokens; null: student.max_new_tokens


@dataclass
class FeedbackConfig:
    """The completions that a round after the first learns from."""

    # feedback: replies on mistakes; plain: as many further rationales of the run's own prompt; self: the student's right exam answers;
    # both: feedback and self
    source: str = bounded("feedback", one_of=("feedback", "plain", "self", "both"))
    # what a reply on mistakes is. tailored: a rationale for this student; rewrite: the teacher's own first rationale, rewritten with the
    # mistake in view; critique: the number of the first wrong step, from which the student tries again
    form: str = absent_at("tailored", one_of=("tailored", "rewrite", "critique"))
    retries: int = absent_at(4, at_least=1)  # critique: answers that the student samples after each critique
    mistakes: int = bounded(1, at_least=1)  # most mistakes in one request
    requests: int = bounded(1, at_least=1)  # most requests per problem, each on other mistakes
    max_requests: int | None = bounded(None, at_least=1)  # most requests per round, lowest pass rate first; null for no limit
    hint: bool = True  # state the right answer in the request
    max_tokens: int = bounded(512, at_least=1)  # limit of a reply, in tokens
    template: str | None = resolved(MISSING, "the text")  # text with {question} and {mistakes}; may hold {hint} and {trigger}
    critique_template: str | None = resolved(None, "the text")  # the same for form=critique; {mistakes} has numbered steps
    rewrite_template: str | None = resolved(None, "the text")  # the same for form=rewrite; has {earlier} as well
    path: str | None = resolved(None, "the text", file=True)  # file with the template; overrides the template of the form

    def faults(self) -> Iterator[str]:
        """One message for each fault of the template."""
        option, template = f"method.feedback.{self.template_option}", self.form_template
        if self.path is not None and os.access(self.path, os.R_OK) and Path(self.path).is_file():
            option, template = f"method.feedback.path={self.path}", Path(self.path).read_text(encoding="utf-8-sig", errors="replace")
        if self.form == "critique" and self.mistakes > 1:
            yield f"method.feedback.mistakes={self.mistakes}: method.feedback.form=critique is about one mistake; use 1"
        for part in ("{question}", "{mistakes}", *(("{earlier}",) if self.form == "rewrite" else ())):
            if template is not None and part not in template:
                yield f"{option}: the template must contain {part}"
        if template is not None and self.hint and "{hint}" not in template:
            yield f"{option}: no {{hint}}: requests would not state the answer. Add {{hint}}, or set method.feedback.hint=false"
        if template is None and self.path is None:
            yield f"method.feedback: set {option} or method.feedback.path=FILE"

    @property
    def template_option(self) -> str:
        """Name of the option with the template of the form."""
        return {"critique": "critique_template", "rewrite": "rewrite_template"}.get(self.form, "template")

    @property
    def form_template(self) -> str | None:
        """The template of the form."""
        template: str | None = getattr(self, self.template_option)
        return template

    @property
    def critiques(self) -> bool:
        """Whether the student tries again after critiques."""
        return self.form == "critique" and self.source in ("feedback", "both")

    @property
    def learns_own_answers(self) -> bool:
        """Whether a round trains on right answers of the student's own."""
        return self.source in ("self", "both") or self.critiques

    def identity(self, template: str) -> dict[str, Any]:
        """The options that change the requests of this source, for the run's identity.

        Args:
            template: Text of the template, whether it comes from ``template`` or from ``path``.
        """
        if self.source == "self":
            return counted(self, without=("form", "retries", "mistakes", "requests", "max_requests", "hint", "max_tokens"))
        if self.source == "plain":
            return counted(self, without=("form", "retries", "hint", "max_tokens"))
        return counted(self, without=() if self.form == "critique" else ("retries",)) | {"template": template}


@dataclass
class OwnConfig:
    """Filters for the student's own right answers, after those of curation."""

    arithmetic: bool = absent_at(False)  # reject answers with an equation that does not hold
    distinct_equations: bool = absent_at(False)  # reject answers with the equations of a rationale that is kept already
    # reject answers whose words are more like those of a rationale that is kept already (Jaccard index); null: reject none
    max_similarity: float | None = absent_at(None, above=0, at_most=1)

    @property
    def filters(self) -> list[str]:
        """Names of the filters of curation that these options add."""
        chosen = {
            "arithmetic": self.arithmetic, "same_equations": self.distinct_equations, "near_copy": self.max_similarity is not None
        }  # fmt: skip
        return [name for name, active in chosen.items() if active]


@dataclass
class SamplerConfig:
    """The sampler (DPO-ST): a copy of the previous round's student, trained by a preference loss on the exam, that writes own answers."""

    objective: str = bounded("none", one_of=("none", "dpo", "simpo"))  # none: no sampler; own answers come from the exam
    steps: int = bounded(150, at_least=1)  # optimizer steps; the first tenth of them warms the learning rate up
    lr: float = bounded(7e-7, above=0)  # peak learning rate
    beta: float = bounded(0.1, above=0)  # scale of the rewards
    gamma: float = bounded(1.375, at_least=0)  # simpo: margin of the rewards
    nll: float = bounded(0.0, at_least=0)  # weight of the right answer's negative log-likelihood per token
    max_tokens: int = bounded(192, at_least=2)  # answers are cut to this many tokens in the preference loss
    samples: int = bounded(3, at_least=1)  # answers that it writes per train problem
    temperature: float = bounded(0.7, above=0)  # sampling temperature of its answers
    top_k: int | None = bounded(None, at_least=1)  # sample from the k likeliest tokens; null for all

    @property
    def active(self) -> bool:
        """Whether there is a sampler."""
        return self.objective != "none"


@dataclass
class ReflectionConfig:
    """Self-reflection: an objective that contrasts right and wrong completions of the same problem."""

    # triplet: paper B's loss on the states of a rationale, another rationale and a mistake; dpo, simpo: preference losses on the
    # log-probabilities of a right and a wrong completion; none: no self-reflection
    objective: str = absent_at("triplet", one_of=("triplet", "dpo", "simpo", "none"))
    weight: float = bounded(0.5, at_least=0)  # paper B's lambda; 0 turns self-reflection off
    margin: float = bounded(1.0, at_least=0)  # triplet: by how much the similarity to a rationale should exceed that to a mistake
    # triplet: the state that represents a completion. last: of its last token; rationale: of its rationale's last token; mean: the
    # mean of all
    representation: str = bounded("last", one_of=("last", "rationale", "mean"))
    max_tokens: int = bounded(192, at_least=2)  # completions are cut to this many tokens
    # dpo, simpo: the completions. exam: the student's right and wrong answers; teacher: kept and wrong completions; both: all of these
    pairs: str = bounded("exam", one_of=("exam", "teacher", "both"))
    # dpo, simpo: nearest: a wrong completion with the right one that shares most steps; random: with any right one
    pairing: str = bounded("nearest", one_of=("nearest", "random"))
    beta: float = bounded(0.1, above=0)  # dpo, simpo: scale of the rewards
    gamma: float = bounded(1.375, at_least=0)  # simpo: margin of the rewards
    nll: float = bounded(1.0, at_least=0)  # dpo, simpo: weight of the right completion's negative log-likelihood per token

    @property
    def active(self) -> bool:
        """Whether there is self-reflection."""
        return self.weight > 0 and self.objective != "none"

    @property
    def reads_exam(self) -> bool:
        """Whether self-reflection needs the exam of its round."""
        return self.active and (self.objective == "triplet" or self.pairs != "teacher")

    @property
    def needs_pairs_of_teacher(self) -> bool:
        """Whether only completions of the teacher are compared."""
        return self.active and self.objective != "triplet" and self.pairs == "teacher"

    @property
    def compares_rejected(self) -> bool:
        """Whether kept completions of the teacher are compared with rejected ones."""
        return self.active and self.objective != "triplet" and self.pairs != "exam"

    def identity(self) -> dict[str, Any]:
        """The options that the objective reads."""
        if not self.active:
            return {"weight": 0.0}
        if self.objective == "triplet":
            return counted(self, without=("pairs", "pairing", "beta", "gamma", "nll"))
        return counted(self, without=("margin", "representation", *(("gamma",) if self.objective == "dpo" else ())))


@dataclass
class TailoredConfig:
    """Paper B's rounds of exam, feedback and self-reflection."""

    name: str = "tailored"
    title: str | None = neutral(None, Why.NAMED)  # the method's name in reports, such as that of a preset; null: Tailored
    rounds: int = bounded(3, at_least=1)  # most rounds
    patience: int | None = bounded(None, at_least=1)  # stop after this many rounds without a better validation accuracy; null for never
    min_mistakes: int = bounded(1, at_least=1)  # stop when the student fails fewer train problems than this in an exam
    # the student that a round's training starts from. previous: the previous round's; pretrained: the untrained one
    start: str = bounded("previous", one_of=("previous", "pretrained"))
    accumulate: bool = True  # train on the samples of all rounds so far; false: on the round's own only
    round_weights: list[float] | None = None  # weight of each round's samples in the loss; null: 1 each
    # with accumulate: share of each earlier round's samples that a round trains on, drawn anew for every round
    replay: float = absent_at(1.0, above=0, at_most=1, hint="; method.accumulate=false trains on no earlier rounds")
    # warm-up and decay once over all rounds; false: once in each round. All steps of a round count, also those after the evaluation that
    # trainer.selection=validation chooses, although the next round continues from there; trainer.selection=last loses none
    one_schedule: bool = absent_at(False)
    # a round starts with AdamW's moments of the student that it continues; false: with zeros
    carry_optimizer: bool = absent_at(False)
    # a problem is left out of later exams once all its answers were right in this many exams in a row; null: never
    skip_solved: int | None = absent_at(None, at_least=1)
    # worked train problems that stand before each question
    demonstrations: int = resolved(0, "how many are shown, in the first exam as well", at_least=0)
    exam: ExamConfig = field(default_factory=ExamConfig)
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)
    own: OwnConfig = field(default_factory=OwnConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    reflection: ReflectionConfig = field(default_factory=ReflectionConfig)

    def faults(self) -> Iterator[str]:
        """One message for each fault that the bounds of single options do not cover."""
        yield from self.feedback.faults()
        weights = self.round_weights
        if weights is not None and (len(weights) != self.rounds or min(weights) < 0):
            yield f"method.round_weights={weights}: one weight for each of method.rounds={self.rounds}, none below 0"
        elif weights is not None and not (weights[0] if self.accumulate else min(weights)):
            hint = "round 1 needs a weight above 0" if self.accumulate else "each round needs a weight above 0"
            yield f"method.round_weights={weights}: a round would have nothing to train on; {hint}"

        yield from self._faults_of_continuation()

    def _faults_of_continuation(self) -> Iterator[str]:
        for option in ("one_schedule", "carry_optimizer"):
            if getattr(self, option) and self.start == "pretrained":
                yield f"method.{option}=true: with method.start=pretrained no round continues another one; use method.start=previous"
        if self.sampler.active and self.feedback.source not in ("self", "both"):
            yield f"method.sampler.objective={self.sampler.objective}: no round learns its answers; method.feedback.source=self or both"
        if self.replay < 1 and not self.accumulate:
            yield f"method.replay={self.replay}: method.accumulate=false trains on no earlier rounds; remove one of the two"

    @property
    def has_sampler(self) -> bool:
        """Whether later rounds have a sampler."""
        return self.rounds > 1 and self.sampler.active

    @property
    def unneeded(self) -> tuple[str, ...]:
        """Names of the method's stages that a run with these options leaves out."""
        return (*(() if self.has_sampler else ("sampler", "sample")), *(() if self.rounds > 1 and self.feedback.critiques else ("retry",)))

    @property
    def draws_beyond_diversity(self) -> bool:
        """Whether later rounds request further completions with the run's own prompt, beyond the first D."""
        return self.rounds > 1 and self.feedback.source == "plain"

    @property
    def request_text(self) -> str:
        """The template of a request for feedback, read from ``feedback.path`` if that is set."""
        feedback = self.feedback
        return str(feedback.form_template) if feedback.path is None else Path(feedback.path).read_text(encoding="utf-8-sig")

    def conflicts(self, config: Config) -> Iterator[str]:
        """One message for each option that tailored learning cannot be combined with."""
        if config.curation.labels == "vote_all" and self.rounds > 1:
            yield (
                "curation.labels=vote_all: an exam needs gold answers, and a single reply on a mistake cannot vote; "
                "use curation.labels=vote or gold"
            )
        if self.patience is not None and config.trainer.selection != "validation":
            yield "method.patience needs validation problems: trainer.selection=validation, or method.patience=null"
        if config.student.api_backed:
            yield f"method=tailored trains local students only; student={config.student.name} is trained by an API"
        if not config.teacher.generates and self.feedback.source != "self" and self.rounds > 1:
            yield "teacher=replay cannot reply to feedback requests: method.feedback.source=self, or a teacher that generates"
        if self.feedback.critiques and getattr(config.student, "calculator", False):
            yield "method.feedback.form=critique: a second try has a fixed beginning, and no calculator; use student.calculator=false"
        if self.carry_optimizer and config.student.pretrained and config.student.lora.rank is not None:
            yield "method.carry_optimizer=true: each round has new adapters; use student.lora.rank=null or method.carry_optimizer=false"
        if self.carry_optimizer and config.trainer.strategy == "fsdp":
            yield "method.carry_optimizer=true: not for sharded parameters; use trainer.strategy=ddp or method.carry_optimizer=false"
        if self.reflection.needs_pairs_of_teacher:
            from fcot.objectives.config import pair_faults

            yield from pair_faults("method.reflection.pairs=teacher", config)
        if config.until == "train":
            yield "until=train: method=tailored evaluates the student of each round; use until=curate or until=evaluate"

    def examines_first(self, pretrained: bool) -> bool:
        """Whether round 1 has an exam. A student from scratch cannot answer yet.

        Args:
            pretrained: Whether the student starts from pretrained parameters.
        """
        return pretrained and self.reflection.reads_exam

    def identity(self, run: Run) -> dict[str, Any]:
        """The options that the run reads. An option that names a file counts with the file's text."""
        from fcot.config.resolvers import paper_demonstrations

        later_rounds, first_exam = self.rounds > 1, self.examines_first(run.config.student.pretrained)
        unread = frozenset[str]() if later_rounds else _OF_LATER_ROUNDS
        if not (later_rounds or first_exam):
            unread = unread | {"exam"}
        if not self.feedback.learns_own_answers:
            unread = unread | {"own"}
        part = counted(self, without=unread | {"sampler"}) | {"demonstrations": self.demonstrations}
        if first_exam:
            part["first_demonstrations"] = self.demonstrations or paper_demonstrations(run.task.name)
        part["reflection"] = self.reflection.identity()
        if self.has_sampler:
            part["sampler"] = counted(self.sampler, without=() if self.sampler.objective == "simpo" else ("gamma",))
        if later_rounds:
            part["feedback"] = self.feedback.identity(run.request_text)
        return part


SCHEMAS = {
    ("method", "tailored"): TailoredConfig,
}
