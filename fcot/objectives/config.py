"""The options of ``objective``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from omegaconf import MISSING

from fcot.base.fields import Why, absent_at, bounded, counted, neutral, resolved
from fcot.teacher.config import folder_faults

if TYPE_CHECKING:  # imports that would delay --help and --cfg job
    from fcot.runs.run import Run
    from fcot.stages.table import Stage
    from fcot.student.data import TrainingData
    from fcot.student.objective import Objective


STORED = "stored"  # the value of objective.teacher that stands for the distributions in the store
SERVER = "server"  # the value that stands for the run's teacher, a server that scores what the student writes


class BuildsObjectives(Protocol):
    """Builds the terms of a training's loss."""

    def build(self, data: TrainingData) -> Sequence[Objective]:
        """Build the terms of a training's loss; the first one is the main objective.

        Args:
            data: The student, its training samples and how they become tensors.
        """


class ObjectiveConfig(BuildsObjectives, Protocol):
    """The interface of every objective's options.

    They may also have ``faults()``, messages about invalid options; ``conflicts(config)``, messages about options that cannot be
    combined with the rest of the configuration; ``stages``, stages that run before the training; ``compares_rejected``, whether it
    compares kept completions of the teacher with rejected ones; and ``needs_teacher``, whether it sends requests to the run's teacher
    even where the method needs no rationales.
    """

    name: str

    def identity(self, run: Run) -> dict[str, Any]:
        """The objective's part of the identity of a run that trains: options that change the loss, as JSON values."""


@dataclass
class CompletionConfig:
    """Cross-entropy of the completions' tokens."""

    name: str = neutral("completion", Why.NAMED)

    def identity(self, run: Run) -> dict[str, Any]:
        """An empty dict, so that runs keep the names that they had when this was the only objective."""
        return {}

    def build(self, data: TrainingData) -> Sequence[Objective]:
        """Build the cross-entropy, the only term."""
        from fcot.objectives.completion import completion_loss

        return [completion_loss(data.rows, data.layout, [sample.weight for sample in data.samples])]


@dataclass
class DistributionConfig:
    """Cross-entropy, and a divergence from the token distributions of a teacher: a local model, or the run's own one."""

    name: str = neutral("distribution", Why.NAMED)
    # a model with the student's tokens: a folder, such as outputs/runs/RUN/student, or OWNER/NAME on the hub; it predicts the student's
    # completions under the student's prompt. stored: the distributions of the rationales' own teacher (teacher.top_logprobs).
    # server: for method=on_policy, the server of teacher=openai scores the student's own samples (vLLM's prompt_logprobs)
    teacher: str = resolved(MISSING, "the folder's content, the name on the hub, or the number of stored likeliest tokens")
    share: float = bounded(0.5, above=0, at_most=1)  # weight of the divergence; the cross-entropy has the rest
    # forward_kl: KL(teacher, student); reverse_kl: KL(student, teacher); jsd: of both from their mixture
    divergence: str = bounded("forward_kl", one_of=("forward_kl", "reverse_kl", "jsd"))
    beta: float = bounded(0.5, above=0, below=1)  # the teacher's weight in the mixture of jsd
    temperature: float = bounded(1.0, above=0)  # divides the logits of both models
    top_k: int | None = bounded(None, at_least=1)  # the teacher's k likeliest tokens and one bucket for the others; null: all tokens
    # the prompt under which a local teacher predicts: the student's, or its own; stored and server always have the teacher's own
    context: str = absent_at("student", one_of=("teacher", "student"))

    def faults(self) -> Iterator[str]:
        """Messages about invalid options."""
        if not self.is_local:
            for name, value in (("divergence", "forward_kl"), ("temperature", 1.0), ("top_k", None)):
                if getattr(self, name) != value:
                    named = f"objective.{name}={getattr(self, name)}: not with objective.teacher={self.teacher}"
                    yield f"{named}, which has the likeliest tokens only (teacher.top_logprobs)"
        elif not self._on_hub:
            yield from folder_faults("objective.teacher", self.teacher)
        if self.top_k is not None and self.divergence != "forward_kl":
            yield f"objective.top_k={self.top_k}: with objective.divergence=forward_kl only; {self.divergence} needs all tokens"

    def conflicts(self, config: Any) -> Iterator[str]:
        """A message about a student that fcot does not train itself."""
        if config.student.remote:
            yield f"objective=distribution: student={config.student.name} is trained by its API, which has no such loss"
        if self.teacher == STORED and not getattr(config.teacher, "top_logprobs", None):
            yield "objective.teacher=stored needs stored distributions: teacher.top_logprobs=20, with teacher=hf, openai or openai_batch"
        if self.teacher == STORED and config.method.name == "tailored":
            yield "objective.teacher=stored: method=tailored learns feedback too, for which no distributions are stored"
        if self.teacher == SERVER and config.method.name != "on_policy":
            yield "objective.teacher=server scores what the student writes: method=on_policy. For the teacher's rationales: stored"
        if self.teacher == SERVER and not (getattr(config.teacher, "top_logprobs", None) and not getattr(config.teacher, "batch", True)):
            yield (
                "objective.teacher=server needs a server that scores texts, such as vLLM, and the tokenizer of its model: teacher=openai "
                "teacher.base_url=URL teacher.top_logprobs=20 teacher.tokenizer=FOLDER. A local model: objective.teacher=FOLDER"
            )
        if not self.is_local and config.prompt.thinking != "strip":
            yield (
                f"objective.teacher={self.teacher}: prompt.thinking={config.prompt.thinking} makes the student learn texts without "
                "distributions"
            )

    def identity(self, run: Run) -> dict[str, Any]:
        """Its options, and the teacher."""
        from fcot.base.files import folder_fingerprint

        if self.teacher == STORED:
            teacher = run.config.teacher
            stored = {"top_logprobs": teacher.top_logprobs, "scored": teacher.score_stored}
            return {"loss": "stored_distribution", "share": self.share} | stored
        if self.teacher == SERVER:
            scored = {"top_logprobs": run.config.teacher.top_logprobs, "scored": run.config.teacher.score_stored}
            return {"loss": "server_distribution", "share": self.share, "prompt": run.prompt_for("")} | scored
        unread = () if self.divergence == "jsd" else ("beta",)
        teacher = self.teacher if self._on_hub else folder_fingerprint(Path(self.teacher), run.outputs)
        own_prompt = {"prompt": self._own_prompt(run)} if self.context == "teacher" else {}
        return {"loss": "distribution", "teacher": teacher} | own_prompt | counted(self, without=unread)

    def _own_prompt(self, run: Run) -> Any:
        """The teacher's own prompt without a question; None if its folder, which counts, has its format."""
        from fcot.student.interface import FILE

        return None if (Path(self.teacher) / FILE).exists() else run.prompt_for("")

    @property
    def scores_any_text(self) -> bool:
        """Whether the teacher gives distributions on any text, such as one that the student wrote."""
        return self.teacher != STORED

    @property
    def is_local(self) -> bool:
        """Whether the teacher is a model of its own on this machine."""
        return self.teacher not in (STORED, SERVER)

    @property
    def needs_teacher(self) -> bool:
        """Whether the run's teacher gets requests, even if the method needs no rationales."""
        return self.teacher == SERVER

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stage that scores rationales without distributions, or checks that a server can score texts."""
        from fcot.stages.table import PROBE, SCORE

        return () if self.is_local else (SCORE,) if self.teacher == STORED else (PROBE,)

    @property
    def _on_hub(self) -> bool:
        return not Path(self.teacher).exists() and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", self.teacher) is not None

    def build(self, data: TrainingData) -> Sequence[Objective]:
        """Build the one term."""
        from fcot.objectives.completion import completion_loss
        from fcot.objectives.distribution import DistributionLoss, check_vocabulary, own_contexts
        from fcot.student.loading import load_student

        if not self.is_local:
            return [self._of_stored(data)]
        teacher = load_student(self.teacher, chat=data.student.chat)
        vocabulary = check_vocabulary(data.student.tokenizer, teacher.tokenizer, self.teacher)
        completion = completion_loss(data.rows, data.layout, [sample.weight for sample in data.samples])
        options = self.share, self.divergence, self.beta, self.temperature, self.top_k
        contexts = own_contexts(data, teacher) if self.context == "teacher" else None
        return [DistributionLoss(completion, teacher, vocabulary, *options, data.first_own, contexts)]

    def _of_stored(self, data: TrainingData) -> Objective:
        from fcot.decoding.models import load_tokenizer_alone
        from fcot.llm.distributions import within
        from fcot.objectives.completion import completion_loss
        from fcot.objectives.distribution import check_vocabulary
        from fcot.objectives.stored import StoredDistributionLoss, cover

        assert data.stored is not None
        tokenizer = load_tokenizer_alone(data.stored.tokenizer)
        n = check_vocabulary(data.student.tokenizer, tokenizer, f"{self.teacher} ({data.stored.tokenizer})")
        covered = [cover(row.completion, within(data.stored.of(sample), n)) for row, sample in zip(data.rows, data.samples, strict=True)]
        completion = completion_loss(data.rows, data.layout, [sample.weight for sample in data.samples])
        return StoredDistributionLoss(completion, covered, self.share, data.first_own, lambda index: within(data.own_top(index), n))


def pair_faults(option: str, config: Any) -> Iterator[str]:
    """Messages about settings with which no problem can have both a kept and a wrong completion of the teacher.

    Args:
        option: The option that needs such pairs, as a message shows it.
        config: The whole configuration.
    """
    if not {"answer", "arithmetic"} & set(config.curation.filters):
        yield f"{option} needs wrong completions: add answer to curation.filters={list(config.curation.filters)}, such as curation=answer"
    if config.diversity < 2:
        yield f"{option} compares completions of one problem: diversity=2 or more"


@dataclass
class PreferenceConfig:
    """Cross-entropy of the kept completions, and a preference loss on kept and wrong completions of the same problem."""

    name: str = neutral("preference", Why.NAMED)
    loss: str = bounded("dpo", one_of=("dpo", "simpo"))  # dpo: relative to the student before training; simpo: per token, no reference
    weight: float = bounded(0.5, above=0)  # weight of the preference loss, where the cross-entropy has 1
    # nearest: a wrong completion with the kept one that shares most steps; random: with any kept one
    pairing: str = bounded("nearest", one_of=("nearest", "random"))
    beta: float = bounded(0.1, above=0)  # scale of the rewards
    gamma: float = bounded(1.375, at_least=0)  # simpo: margin of the rewards
    nll: float = bounded(0.0, at_least=0)  # weight of the kept completion's negative log-likelihood per token
    max_tokens: int = bounded(192, at_least=2)  # completions are cut to this many tokens in the preference loss

    compares_rejected: ClassVar[bool] = True

    def conflicts(self, config: Any) -> Iterator[str]:
        """Messages about configurations without pairs of kept and wrong completions."""
        if config.student.remote:
            yield f"objective=preference: student={config.student.name} is trained by its API, which has no such loss"
        if config.method.name == "tailored":
            yield f"objective=preference: method=tailored has method.reflection.objective={self.loss}"
        elif config.method.name != "fine_tune_cot":
            yield f"objective=preference: method={config.method.name} has no rejected rationales; use method=fine_tune_cot"
        yield from pair_faults("objective=preference", config)

    def identity(self, run: Run) -> dict[str, Any]:
        """Its options."""
        return counted(self, without=("gamma",) if self.loss == "dpo" else ())

    def build(self, data: TrainingData) -> Sequence[Objective]:
        """Build the cross-entropy and the preference loss."""
        from fcot.objectives.completion import completion_loss
        from fcot.objectives.pairs import build_pairs, completions_by_problem
        from fcot.objectives.preference import preference_loss

        right, wrong = (completions_by_problem(data.form, samples) for samples in (data.samples, data.rejected()))
        pairs = build_pairs(data, right, wrong, nearest=self.pairing == "nearest", max_tokens=self.max_tokens)
        completion = completion_loss(data.rows, data.layout, [sample.weight for sample in data.samples])
        preference = preference_loss(data, pairs, self.loss, beta=self.beta, gamma=self.gamma, nll=self.nll, weight=self.weight)
        return [completion, preference]


SCHEMAS = {
    ("objective", "completion"): CompletionConfig,
    ("objective", "distribution"): DistributionConfig,
    ("objective", "preference"): PreferenceConfig,
}
