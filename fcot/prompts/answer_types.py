"""The types of answers that a task can have."""

from __future__ import annotations

from typing import Literal, get_args

AnswerType = Literal["number", "choice", "yes_no", "text"]
ANSWER_TYPES: tuple[str, ...] = get_args(AnswerType)
