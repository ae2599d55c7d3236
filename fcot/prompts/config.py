"""The options of ``prompt``."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from fcot.fields import To, absent_at, neutral, resolved


@dataclass
class PromptConfig:
    """A teacher prompt."""

    name: str = neutral(MISSING, "names a folder of the store; the text counts")
    template: str | None = resolved(MISSING, To.PROMPT)  # text with {question}; may hold {exemplars} and {trigger}
    path: str | None = resolved(None, To.PROMPT)  # file with the template
    answer_triggers: dict[str, str] = resolved({}, "the trigger of the task's answer type")  # by answer type: what stands before the answer
    two_steps: bool = resolved(MISSING, To.PROMPT)  # a second request asks for the answer
    chat_only: bool = neutral(False, "only refuses endpoints that the text does not suit")
    rationale_tokens: int = resolved(128, To.PROMPT)  # limit of the first request
    answer_tokens: int = resolved(128, To.PROMPT)  # limit of the second
    stop: list[str] = resolved([], To.PROMPT)
    exemplars: str | None = resolved(None, To.EXEMPLARS)  # the authors' file, JSON Lines, a run's folder, or train: human rationales
    n_exemplars: int | None = resolved(None, To.EXEMPLARS)  # null: all of a file, 8 of a run
    numbers: str = resolved("task", To.RULE)  # how answers are read: as paper A does, whole (extended), or as the task has it
    thinking: str = absent_at("strip")  # the rationale is what the model said, its thought and that (keep), or its thought (only)
