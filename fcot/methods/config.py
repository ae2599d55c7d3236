"""The options of ``method`` for methods without rounds, and what the options of every method have to offer."""

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
    """What the options of any method have to offer. ``name`` chooses its entry in :mod:`fcot.methods.table`.

    Attributes:
        rounds: How many rounds of its stages there are at most.
    """

    name: str
    rounds: int

    @property
    def draws_beyond_diversity(self) -> bool:
        """Whether it draws further completions of the same requests, behind the first D."""

    @property
    def request_text(self) -> str:
        """The text of its own requests to the teacher, beside the run's prompt; empty where it has none.

        Test questions that stand in it are not evaluated.
        """

    def conflicts(self, config: Config) -> Iterator[str]:
        """What its options cannot be combined with, one message each."""

    def identity(self, run: Run) -> dict[str, Any]:
        """Its part of the run's identity: options that change a prediction, as JSON values."""


@dataclass
class MethodConfig:
    """A method without options of its own."""

    name: str = MISSING
    # few-shot: above so many tokens exemplars are left out; null: the student's
    prompt_tokens: int | None = resolved(None, "the limit", at_least=1)

    rounds: ClassVar[int] = 1
    draws_beyond_diversity: ClassVar[bool] = False
    request_text: ClassVar[str] = ""

    def conflicts(self, config: Config) -> Iterator[str]:
        """None."""
        return iter(())

    def identity(self, run: Run) -> dict[str, Any]:
        """The prompt's limit where a local student is prompted."""
        student = run.config.student
        if run.method.prompted and not student.remote:
            return counted(self) | {"prompt_tokens": self.prompt_tokens or student.max_prompt_tokens}
        return counted(self)


SCHEMAS = {
    ("method", "method"): MethodConfig,
}
