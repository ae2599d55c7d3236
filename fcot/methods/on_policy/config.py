"""The options of ``method=on_policy``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fcot.base.fields import absent_at, bounded, counted, neutral

if TYPE_CHECKING:
    from fcot.config.schema import Config
    from fcot.runs.run import Run


@dataclass
class OnPolicyConfig:
    """A training on samples that the student writes itself. ``objective`` is its loss, and names the teacher."""

    name: str = "on_policy"
    # the student before it. fine_tune_cot: the run trains it on rationales first; student: it is trained already (student.path=FOLDER)
    start: str = bounded("fine_tune_cot", one_of=("fine_tune_cot", "student"))
    steps: int = bounded(200, at_least=1)  # optimizer steps; those on rationales before are trainer.epochs and trainer.max_steps
    lr: float | None = bounded(None, above=0)  # peak learning rate; null: trainer.lr
    warmup_steps: int | None = absent_at(None, at_least=0)  # optimizer steps of its warm-up; null: trainer.warmup_steps
    # share of a step's samples that the student writes (GKD's lambda); the others are rationales of the run's teacher
    own_share: float = bounded(1.0, at_least=0, at_most=1)
    last_own_share: float | None = bounded(None, at_least=0, at_most=1)  # the same at the last step, linear in between; null: constant
    renew_every: int = bounded(10, at_least=1)  # the student writes the samples of this many optimizer steps at once
    wrong: str = bounded("used", one_of=("used", "skipped"))  # own samples whose answer is wrong: used as well, or left out of their step
    temperature: float = bounded(1.0, at_least=0)  # of the student's samples; 0: greedy
    top_k: int | None = bounded(None, at_least=1)  # sample from the k likeliest tokens; null for all
    max_new_tokens: int | None = bounded(None, at_least=1)  # limit of a sample, in tokens; null: student.max_new_tokens
    # stop if more than this share of the samples of three renewals in a row has no end
    max_unfinished: float = neutral(0.8, "ends a run, and changes no result", at_least=0, at_most=1)

    rounds: ClassVar[int] = 1
    draws_beyond_diversity: ClassVar[bool] = False
    request_text: ClassVar[str] = ""

    @property
    def own_only(self) -> bool:
        """Whether the student writes all samples, so that the training needs problems only."""
        return self.own_share == 1 and self.last_own_share in (None, 1)

    @property
    def unneeded(self) -> tuple[str, ...]:
        """Names of the method's stages that a run with these options leaves out."""
        if self.start == "fine_tune_cot":
            return ()
        return ("generate", "curate", "fine_tune") if self.own_only else ("fine_tune",)

    def conflicts(self, config: Config) -> Iterator[str]:
        """One message for each option that on-policy distillation cannot be combined with."""
        student, objective = config.student, config.objective
        if student.remote:
            yield f"method=on_policy trains local students only, not student={student.name}"
        elif self.start == "student" and not student.pretrained:
            yield (
                f"method.start=student: student={student.name} is not trained yet. Name a trained one: student=causal student.path=FOLDER, "
                "such as outputs/runs/RUN/student; method.start=fine_tune_cot trains it first"
            )
        if not getattr(objective, "scores_any_text", False):
            named = f"objective={objective.name}" if objective.name != "distribution" else "objective.teacher=stored"
            yield (
                f"{named}: method=on_policy needs a teacher that scores what the student writes: objective=distribution "
                "objective.teacher=FOLDER, such as outputs/runs/RUN/student, or OWNER/NAME on the hub; or objective.teacher=server, the "
                "run's teacher, if its server has vLLM's prompt_logprobs"
            )
        if config.trainer.batch_tokens is not None:
            yield "trainer.batch_tokens: the lengths of the student's own samples are not known beforehand; use trainer.batch_size"

    def identity(self, run: Run) -> dict[str, Any]:
        """The options that change a prediction."""
        return counted(self, without=() if self.temperature else ("top_k",))


SCHEMAS = {
    ("method", "on_policy"): OnPolicyConfig,
}
