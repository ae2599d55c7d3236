"""The options of ``method`` for methods without rounds, and the interface of every method's options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from omegaconf import MISSING

from fcot.base.fields import counted, resolved

if TYPE_CHECKING:
    from fcot.config.schema import Config
    from fcot.runs.run import Run


class MethodOptions(Protocol):
    """The interface of a method's options.

    Attributes:
        name: Key of the method's entry in :mod:`fcot.methods.table`.
        rounds: Largest number of rounds; 1 for methods whose stages run once.
    """

    name: str
    rounds: int

    @property
    def draws_beyond_diversity(self) -> bool:
        """Whether the method requests further completions with the run's own prompt, beyond the first D."""

    @property
    def request_text(self) -> str:
        """The template of the requests that the method sends besides those of the run's prompt; empty where it sends none.

        Test problems whose question occurs in this text are not evaluated.
        """

    def conflicts(self, config: Config) -> Iterator[str]:
        """One message for each option of the run that the method's options cannot be combined with."""

    def identity(self, run: Run) -> dict[str, Any]:
        """The method's part of the run's identity: options that change a prediction, as JSON values."""


@dataclass
class MethodConfig:
    """The options of a method without rounds."""

    name: str = MISSING
    # few-shot: exemplars are left out of prompts longer than this many tokens; null: student.max_prompt_tokens
    prompt_tokens: int | None = resolved(None, "the limit", at_least=1)

    rounds: ClassVar[int] = 1
    draws_beyond_diversity: ClassVar[bool] = False
    request_text: ClassVar[str] = ""

    def conflicts(self, config: Config) -> Iterator[str]:
        """A message if ``method=as_trained`` has no finished student."""
        from fcot.methods.table import METHODS

        student = config.student
        finished = student.pretrained or (student.api_backed and student.path is not None)
        if self.name in METHODS and METHODS[self.name].own_format and not finished:
            remedy = "fcot evaluate FOLDER dataset=..." if student.api_backed else "student=causal student.path=FOLDER"
            yield f"method={self.name} evaluates a finished student, not student={student.name}: {remedy}"

    def identity(self, run: Run) -> dict[str, Any]:
        """The options that change a prediction. Where a local student is prompted, this includes the resolved limit of the prompt."""
        student = run.config.student
        if run.method.prompted and not student.remote:
            return counted(self) | {"prompt_tokens": self.prompt_tokens or student.max_prompt_tokens}
        return counted(self)


SCHEMAS = {
    ("method", "method"): MethodConfig,
}
