"""The formats of a student: its prompts, its completions and their parser.

The formats follow paper A (section 3 and ``src/data/format.py``) and paper B (``preprocessors.prepare_prompt``). Paper A's GPT-3 students
read ``{question} ###`` and end with `` END``: the completion endpoint of that time took one continuous text, which needs marks where the
prompt and the completion end. Chat messages need no marks. In the ``chat`` format, of an API or of a local chat template, prompt and
completion are the bare messages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from fcot.prompts.answers import AnswerRule
from fcot.prompts.thinking import separate

Architecture = Literal["encoder_decoder", "decoder"]
FormatKind = Literal["encoder_decoder", "decoder", "chat"]  # chat: the messages of a chat template or an API


@dataclass(frozen=True)
class Demonstration:
    """A worked problem that stands before the question in a student's prompt."""

    question: str
    rationale: str
    answer: str


@dataclass(frozen=True)
class StudentFormat:
    """A method's format for one kind of student.

    Attributes:
        prompt_template: Text around ``{question}``: the whole encoder input of an encoder-decoder, the user's message in a chat.
        completion_template: Text around ``{rationale}`` and ``{answer}``: the assistant's message in a chat. The tokenizer adds the
            end-of-sequence token.
        answer_prefix: The text before the answer in a completion; None where the completion is the answer alone.
        demonstrations: Worked problems that stand before the question, in order, with an empty line after each.
    """

    prompt_template: str
    completion_template: str
    answer_prefix: str | None
    demonstrations: tuple[Demonstration, ...] = ()

    @property
    def without_demonstrations(self) -> StudentFormat:
        """This format without its demonstrations."""
        return replace(self, demonstrations=())

    def prompt(self, question: str) -> str:
        """The student's input. A demonstration of the same question is left out, because it contains the answer."""
        usable = [demonstration for demonstration in self.demonstrations if demonstration.question.split() != question.split()]
        separator = "" if self.completion_template.startswith(" ") else " " if self.prompt_template.endswith(":") else "\n"
        worked = [
            (self.prompt_template.format(question=demonstration.question), self.completion(demonstration.answer, demonstration.rationale))
            for demonstration in usable
        ]
        before = "".join(f"{prompt}{separator}{completion}\n\n" for prompt, completion in worked)
        return before + self.prompt_template.format(question=question)

    def split(self, text: str) -> tuple[str, str]:
        """Rationale and answer text of a completion. The answer text is empty where the completion lacks the answer prefix."""
        text = separate(text).rest
        if self.answer_prefix is None:
            return "", text.strip()
        rationale, prefix, answer = text.rpartition(self.answer_prefix)
        if not prefix:
            rationale, answer = text, ""
        lead = self.completion_template.partition("{rationale}")[0].strip()
        return rationale.strip().removeprefix(lead).strip(), answer.strip()

    def completion(self, answer: str, rationale: str | None = None) -> str:
        """The completion that the student is trained to write."""
        return self.completion_template.format(rationale=rationale, answer=answer)

    def parse(self, text: str, rule: AnswerRule) -> str | None:
        """The answer in a completion, or None. Thoughts (``<think>``) are not searched."""
        text = separate(text).rest
        return rule.first(text) if self.answer_prefix is None else rule.after(text, self.answer_prefix)

    def well_formed(self, text: str, rule: AnswerRule) -> bool:
        """Whether the completion has an answer, behind the answer prefix if the format has one."""
        text = separate(text).rest
        if self.answer_prefix is None:
            return rule.first(text) is not None
        _, prefix, answer = text.rpartition(self.answer_prefix)
        return bool(prefix) and rule.first(answer) is not None
