"""Critiques: numbered steps of a mistake, and the number of the first wrong one."""

from __future__ import annotations

import re

from fcot.base.records import Completion
from fcot.prompts.answers import AnswerRule
from fcot.prompts.numbers import Reading
from fcot.prompts.steps import steps_of
from fcot.prompts.teacher import FIRST_WRONG_STEP

_WRONG_STEP = re.compile(rf"{FIRST_WRONG_STEP}\W{{1,8}}(?:step\W{{0,3}})?(\d+)", re.IGNORECASE)


def numbered(rationale: str) -> str:
    """A rationale with a number before each step, one per line."""
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps_of(rationale), 1))


def wrong_step(critique: str) -> int | None:
    """The number of the step that a critique calls the first wrong one, from 1; of several, the last one. None if it names none."""
    numbers = _WRONG_STEP.findall(critique)
    return int(numbers[-1]) if numbers and int(numbers[-1]) > 0 else None


def read_critique(completion: Completion, _rule: AnswerRule) -> Reading:
    """The number of the first wrong step as the completion's answer."""
    number = wrong_step(f"{completion.rationale} {completion.answer_text}")
    return Reading(None, "no_answer") if number is None else Reading(str(number))
