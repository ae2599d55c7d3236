"""What a teacher is asked, together with the parser of what it answers.

``zero_shot_cot`` is paper A's two-step prompt (Kojima et al. 2022): the first request elicits a rationale, the second
continues it with an answer trigger. Its parser takes the first candidate of the second answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fcot.prompts.answers import AnswerRule
from fcot.records import Completion


@dataclass(frozen=True)
class TeacherPrompt:
    """A two-step prompt.

    Attributes:
        name: The config choice; names the store's folder.
        question: Template around ``{question}``, the trigger included.
        answer_triggers: By answer type, what follows the rationale; ``{last}`` is the task's last choice letter.
        rationale_tokens: Limit of step 1, in tokens.
        answer_tokens: Limit of step 2, in tokens.
    """

    name: str
    question: str
    answer_triggers: Mapping[str, str]
    rationale_tokens: int
    answer_tokens: int

    def ask(self, question: str, chat: bool) -> str | list[dict[str, str]]:
        """Step 1: the question and "Let's think step by step.", as text or as one user turn."""
        text = self.question.replace("{question}", question)
        return [{"role": "user", "content": text}] if chat else text

    def ask_answer(self, question: str, rationale: str, rule: AnswerRule, chat: bool) -> str | list[dict[str, str]]:
        """Step 2: step 1 with its rationale and the answer trigger; on chat endpoints a further user turn."""
        trigger = self.answer_triggers[rule.answer_type].replace("{last}", rule.choices[-1:])
        text = self.question.replace("{question}", question)
        if chat:
            return [
                {"role": "user", "content": text},
                {"role": "assistant", "content": rationale},
                {"role": "user", "content": trigger},
            ]
        return f"{text}{rationale}\n{trigger}"

    def parse(self, completion: Completion, rule: AnswerRule) -> str | None:
        """The answer of a completion: the first candidate of what follows the trigger, or None."""
        return rule.first(completion.answer_text)
