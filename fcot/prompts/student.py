"""What a student reads and writes, with the parser of what it writes (paper A, section 3 and ``src/data/format.py``; paper B's
``preprocessors.prepare_prompt``).

Paper A's GPT-3 students read ``{question} ###`` and end with `` END`` because the completion endpoint they were trained
for knows one running text. Today's fine-tuning API takes a user turn and an assistant turn, which mark both places
themselves: in a ``chat``, that of an API or of a local student's template, prompt and completion are the bare turns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from fcot.prompts.answers import AnswerRule
from fcot.prompts.thinking import separate

Architecture = Literal["encoder_decoder", "decoder"]
FormatKind = Literal["encoder_decoder", "decoder", "chat"]  # what a format is for; chat: the turns of a template or an API


@dataclass(frozen=True)
class Demonstration:
    """A worked problem that stands before the question in a student's prompt."""

    question: str
    rationale: str
    answer: str


@dataclass(frozen=True)
class StudentFormat:
    """One method's format for one architecture: prompt template, completion template and the parser's answer prefix.

    Attributes:
        prompt_template: Around ``{question}``; for an encoder-decoder the whole encoder input, in a chat the user's turn.
        completion_template: Around ``{rationale}`` and ``{answer}``; the end-of-sequence token is the tokenizer's. In a
            chat the assistant's turn.
        answer_prefix: What stands before the answer in a completion, None where the completion is the answer.
        demonstrations: Stand before the question, in order, an empty line after each.
    """

    prompt_template: str
    completion_template: str
    answer_prefix: str | None
    demonstrations: tuple[Demonstration, ...] = ()

    @property
    def without_demonstrations(self) -> StudentFormat:
        """The same for the bare question."""
        return replace(self, demonstrations=())

    def prompt(self, question: str) -> str:
        """The text the student is given. A demonstration of the same question is left out: it holds the answer."""
        shown = [one for one in self.demonstrations if one.question.split() != question.split()]
        seam = "" if self.completion_template.startswith(" ") else " " if self.prompt_template.endswith(":") else "\n"
        before = "".join(
            f"{self.prompt_template.format(question=one.question)}{seam}{self.completion(one.answer, one.rationale)}\n\n" for one in shown
        )
        return before + self.prompt_template.format(question=question)

    def split(self, text: str) -> tuple[str, str]:
        """Rationale and answer text of a completion; the latter is empty where there is no answer prefix."""
        text = separate(text).rest
        if self.answer_prefix is None:
            return "", text.strip()
        rationale, prefix, answer = text.rpartition(self.answer_prefix)
        if not prefix:
            rationale, answer = text, ""
        lead = self.completion_template.partition("{rationale}")[0].strip()
        return rationale.strip().removeprefix(lead).strip(), answer.strip()

    def completion(self, answer: str, rationale: str | None = None) -> str:
        """The text the student is trained to write."""
        return self.completion_template.format(rationale=rationale, answer=answer)

    def parse(self, text: str, rule: AnswerRule) -> str | None:
        """The answer in a completion, or None. What the student thought (``<think>``) holds none."""
        text = separate(text).rest
        return rule.first(text) if self.answer_prefix is None else rule.after(text, self.answer_prefix)

    def well_formed(self, text: str, rule: AnswerRule) -> bool:
        """Whether the completion ends with the answer prefix (where the format has one) and an answer."""
        text = separate(text).rest
        if self.answer_prefix is None:
            return rule.first(text) is not None
        _, prefix, answer = text.rpartition(self.answer_prefix)
        return bool(prefix) and rule.first(answer) is not None
