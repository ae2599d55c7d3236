"""Examines data before anything is paid."""

from __future__ import annotations

from fcot.prompts.answer_types import ANSWER_TYPES
from fcot.tasks.decimals import POINT
from fcot.tasks.loaders import Data
from fcot.tasks.table import Task


def remedies(data: Data, task: Task) -> list[str]:
    """What to do about the faulty rows of own data, in sentences."""
    sentences = ["Correct these rows, or leave them out: dataset.on_invalid=skip."]
    answers = data.answers
    if answers.n_missing:
        sentences.append("Rows without an answer can stay with curation=vote, which takes the answer that most completions give.")
    if answers.n_unread_otherwise:
        other = "comma" if answers.decimal == POINT else "point"
        sentences.append(f"dataset.decimal={other} reads {answers.n_unread_otherwise:,} of these answers as numbers.")
    if answers.n_unread > max(1, data.n_rows // 2):
        types = ", ".join(name + (" (with dataset.choices=ABCD)" if name == "choice" else "") for name in ANSWER_TYPES)
        sentences.append(f"Is dataset.answer_type={task.rule.answer_type} right? Choose from {types}; text takes any answer.")
    return sentences
