"""The options of ``prompt``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from fcot.base.fields import To, absent_at, neutral, resolved
from fcot.prompts.answer_types import ANSWER_TYPES


@dataclass
class PromptConfig:
    """A teacher prompt."""

    name: str = neutral(MISSING, "names a folder of the store; the text counts")
    template: str | None = resolved(MISSING, To.PROMPT)  # text with {question}; may hold {exemplars} and {trigger}
    path: str | None = resolved(None, To.PROMPT, file=True)  # file with the template
    answer_triggers: dict[str, str] = resolved({}, "the trigger of the task's answer type")  # by answer type: the text before the answer
    two_steps: bool = resolved(MISSING, To.PROMPT)  # true: a second request elicits the answer; false: one reply has both
    chat_only: bool = neutral(False, "only rejects endpoints that the text does not suit")  # true: the prompt needs a chat endpoint
    rationale_tokens: int = resolved(128, To.PROMPT, at_least=1)  # limit of the first reply, in tokens
    answer_tokens: int = resolved(128, To.PROMPT, at_least=1)  # limit of the second reply, in tokens
    stop: list[str] = resolved([], To.PROMPT)  # strings that end a reply
    system: str = absent_at("")  # text of a system turn before each request to a chat model; empty: no such turn
    exemplars: str | None = resolved(None, To.EXEMPLARS)  # the authors' file, JSON Lines, a run's folder, or train: human rationales
    n_exemplars: int | None = resolved(None, To.EXEMPLARS, at_least=1)  # null: all of a file, 8 of a run or of train
    # how answers are read. paper: as paper A does; extended: whole or not at all; task: as the task defines
    numbers: str = resolved("task", To.RULE, one_of=("task", "paper", "extended"))
    # which part of a reply is the rationale. strip: the reply without its thought; keep: thought and reply; only: the thought
    thinking: str = absent_at("strip", one_of=("strip", "keep", "only"))

    def faults(self) -> Iterator[str]:
        """One message for each fault that the bounds of single options do not cover."""
        if (self.template is None) == (self.path is None):
            yield "prompt: set either prompt.template or prompt.path=FILE, not both and not neither"
        if self.template is not None and "{question}" not in self.template:
            yield "prompt.template: the template must contain {question}"
        if "{exemplars}" in (self.template or "") and self.exemplars is None:
            yield (
                f"prompt={self.name} needs exemplars: prompt.exemplars=FILE, =outputs/runs/<run> for that run's rationales, "
                "or =train for the task's human rationales"
            )
        if not all(self.stop):
            yield "prompt.stop: an empty string would end every reply at once"
        if self.system and not self.system.strip():
            yield "prompt.system: the text is blank; leave it out"
        if self.exemplars not in (None, "train") and not Path(self.exemplars).exists():
            yield f"prompt.exemplars={self.exemplars}: no such file or folder"
        for answer_type in ANSWER_TYPES:
            if answer_type not in self.answer_triggers:
                yield f"prompt.answer_triggers: no trigger for answer type {answer_type}"


SCHEMAS = {
    ("prompt", "prompt"): PromptConfig,
}
