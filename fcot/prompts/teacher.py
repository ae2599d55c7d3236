"""Prompts of the teacher, together with the parser of its completions.

There are two kinds of prompt. ``zero_shot_cot`` is paper A's (Kojima et al. 2022) and takes two requests: the first elicits a rationale,
the second appends an answer trigger to it. The other prompts take one request: the teacher itself writes the trigger before its answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fcot.base.records import Completion
from fcot.prompts.answers import AnswerRule
from fcot.prompts.numbers import Reading
from fcot.prompts.thinking import separate

Text = str | list[dict[str, str]]  # a plain prompt, or chat messages

STUDENTS_ANSWER = "The student's answer"  # before a mistake in a request for feedback (paper B)
HINT = "Hint: the right answer is"
FIRST_WRONG_STEP = "First wrong step"  # before its number in a critique
_CONNECTIVE = re.compile(r"(?:\b(?:so|thus|hence|therefore)\b[,:]?)?[\s*_]*$", re.IGNORECASE)


@dataclass(frozen=True)
class Exemplar:
    """A worked problem that stands before the question (few-shot).

    Attributes:
        question: The bare question. A prompt leaves out exemplars of its own question.
        text: Question and answer as they stand in the prompt.
        sample_index: Sample index of the problem; None where it is unknown.
    """

    question: str
    text: str
    sample_index: int | None = None


@dataclass(frozen=True)
class TeacherPrompt:
    """A prompt and its parser.

    Attributes:
        name: The choice of ``prompt``; names a folder of the store.
        template: Text around ``{question}``; may contain ``{exemplars}`` and ``{trigger}``.
        answer_triggers: The text before the answer, by answer type. ``{last}`` stands for the task's last choice letter.
        two_steps: Whether a second request elicits the answer; otherwise the teacher writes trigger and answer itself.
        rationale_tokens: Limit of the first reply, in tokens.
        answer_tokens: Limit of the second reply, in tokens.
        stop: Strings that end a reply.
        exemplars: Exemplars for ``{exemplars}``, in order.
        system: The text of a system turn before each chat request; empty for none.
    """

    name: str
    template: str
    answer_triggers: Mapping[str, str]
    two_steps: bool = True
    rationale_tokens: int = 128
    answer_tokens: int = 128
    stop: tuple[str, ...] = ()
    exemplars: tuple[Exemplar, ...] = ()
    system: str = ""

    def trigger(self, rule: AnswerRule) -> str:
        """The text that introduces the answer, such as "Therefore, the answer is", for the rule's answer type."""
        return self.answer_triggers[rule.answer_type].replace("{last}", rule.choices[-1:])

    def first_request(self, question: str, rule: AnswerRule, chat: bool) -> Text:
        """The first request, as text or as a user message, which follows the system turn if there is one.

        An exemplar of the same question is left out, because it contains the answer.
        """
        text = self._render(question, rule)
        return [*self._system_turn, {"role": "user", "content": text}] if chat else text

    def second_request(self, question: str, rationale: str, rule: AnswerRule, chat: bool) -> Text:
        """The second request: the first request, the rationale and the trigger; in a chat, the trigger is a further user message."""
        text, trigger = self._render(question, rule), self.trigger(rule)
        if chat:
            return [
                *self._system_turn,
                {"role": "user", "content": text},
                {"role": "assistant", "content": rationale},
                {"role": "user", "content": trigger},
            ]
        return f"{text}{rationale}\n{trigger}"

    @property
    def _system_turn(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _render(self, question: str, rule: AnswerRule) -> str:
        exemplars = "\n".join(exemplar.text for exemplar in self.exemplars if exemplar.question.split() != question.split())
        values = {"question": question, "exemplars": exemplars, "trigger": self.trigger(rule)}
        return re.sub(r"\{(question|exemplars|trigger)\}", lambda match: values[match[1]], self.template)

    def answer(self, rationale: str, answer: str, rule: AnswerRule) -> str:
        """A well-formed completion of a one-request prompt: rationale, trigger and answer. Exemplars have this form."""
        return f"{rationale} {self.trigger(rule)} {answer}."

    def cut(self, text: str) -> str:
        """A text up to its first stop string."""
        for stop in self.stop:
            text = text.partition(stop)[0]
        return text

    def split(self, text: str, rule: AnswerRule) -> tuple[str, str]:
        """Rationale and answer text of a completion of a one-request prompt.

        The last trigger that an answer follows counts. Case, spacing and emphasis of the trigger may differ, and "the answer is" counts as
        well. Without a trigger the answer text is empty. Thoughts are left out (:mod:`fcot.prompts.thinking`).
        """
        text = self.cut(separate(text).rest)
        literal = r"[\s*_]+".join(re.escape(word) for word in self.trigger(rule).split())
        triggers = list(re.finditer(rf"{literal}|\bthe[\s*_]+(?:final[\s*_]+|correct[\s*_]+)?answer[\s*_]+is\b", text, re.IGNORECASE))
        if not triggers:
            return text, ""
        text_after = {match: text[match.end() :].lstrip(":*_ ") for match in triggers}
        if rule.answer_type == "text":  # a free answer is the rest of the trigger's line
            text_after = {match: answer.partition("\n")[0] for match, answer in text_after.items()}
        last = next((match for match in reversed(triggers) if rule.first(text_after[match]) is not None), triggers[-1])
        return _CONNECTIVE.sub("", text[: last.start()]).rstrip(), text_after[last]

    def text(self, completion: Completion, rule: AnswerRule) -> str:
        """Thought, rationale, trigger and answer of a completion as one text."""
        thought = f"<think>\n{completion.thought}\n</think>\n\n" if completion.thought else ""
        between = f"\n{self.trigger(rule)}" if self.two_steps else f" {self.trigger(rule)} "
        return thought + completion.rationale + (between + completion.answer_text if completion.answer_text else "")

    def well_formed(self, text: str, rule: AnswerRule) -> bool:
        """Whether a text has the trigger, followed by an answer."""
        return rule.first(self.split(text, rule)[1]) is not None

    def read(self, completion: Completion, rule: AnswerRule) -> Reading:
        """The answer of a completion: the first answer behind the trigger.

        If the completion of a one-request prompt lacks the trigger, its last answer counts (paper A's rule for a missing prefix).
        """
        if self.two_steps or completion.answer_text:
            return rule.read(completion.answer_text)
        return rule.read_last(completion.rationale)

    def parse(self, completion: Completion, rule: AnswerRule) -> str | None:
        """The value of :meth:`read`."""
        return self.read(completion, rule).value
