"""Hints on own data that a run accepts, but that may be meant in another way: yes/no questions as text, options in their own columns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

from fcot.base.values import written
from fcot.prompts.answers import AnswerRule
from fcot.tasks.answers import YES_NO_WORDS
from fcot.tasks.loaders import Columns, Data
from fcot.tasks.table import Task

_OPTION_COLUMN = re.compile(r"(?:(?:options?|choices?|answers?|opt|antwort|auswahl)[\W_]*)?([A-J]|\d)", re.IGNORECASE)
_OPTION = re.compile(r"(?<!\w)([A-J])(?!\w)|(?<!\w)([a-j])\s?[).\]:]")  # a letter that may begin an option in a question
_FEWEST_OPTIONS = 2
_TWO_WORDS = 0.95  # share of the answers that two words have to make up
_MOST_WORDS = 1000
LETTERS = "ABCDEFGHIJ"  # of multiple choice


def hints(data: Data, task: Task, columns: Columns) -> list[str]:
    """All hints on own data.

    Args:
        data: The data.
        task: The task, with the run's answer rule.
        columns: The columns that are read.
    """
    return [*two_words(data, task, columns), *missing_options(data, task, columns)]


def two_words(data: Data, task: Task, columns: Columns) -> list[str]:
    """A hint on answers of the type text that are one of two words, such as ``Ja`` and ``Nein``, but for a few stray ones."""
    if task.rule.answer_type != "text":
        return []
    spelled: dict[str, str] = {}  # the first spelling, by the word without case and punctuation
    counts: Counter[str] = Counter()
    for problem in data.problems:
        if problem.labelled:
            answer = data.answer_of(problem).strip()
            word = re.sub(r"[\W_]+", " ", answer.casefold()).strip() or answer
            spelled.setdefault(word, answer)
            counts[word] += 1
            if len(counts) > _MOST_WORDS:
                return []
    frequent, total = counts.most_common(2), counts.total()
    n = sum(count for _, count in frequent)
    if len(frequent) < 2 or frequent[1][1] < max(2, total - n + 1) or n < _TWO_WORDS * total:
        return []
    first, second = sorted(spelled[word] for word, _ in frequent)
    title = f"{'all' if n == total else f'{n:,} of {total:,}'} answers are {first!r} or {second!r}: is it a yes/no question? "
    title += "With dataset.answer_type=text"
    if {AnswerRule("yes_no").gold(word) for word, _ in frequent} == {"yes", "no"}:
        return [f"{title}, a completion that ends with yes or no may be wrong: dataset.answer_type=yes_no reads these words as yes and no"]
    return [
        f"{title}, a completion is right only if its answer is exactly the gold word. If they mean yes and no, write yes and no "
        f"({YES_NO_WORDS}) into the column {columns.answer!r}, and set dataset.answer_type=yes_no. If not, each question has to name the "
        "two words"
    ]


def missing_options(data: Data, task: Task, columns: Columns) -> list[str]:
    """A hint on multiple choice whose questions do not list the options: the options would never be sent."""
    unread = option_columns([name for name in data.source.columns if name not in columns.named.values()])
    is_choice = task.rule.answer_type == "choice"
    if not data.problems or not (is_choice or unread):
        return []
    without = without_options([problem.question for problem in data.problems])
    if not without:
        return []
    title = f"{without:,} of {len(data.problems):,} questions list no options such as (A)"
    title += ", although the answers are letters" if is_choice else ""
    if not unread:
        return [f"{title}. Put the options into the question, as in 'Which one? Answer Choices: (A) red (B) blue'."]
    title += f"; the columns {', '.join(map(repr, unread))} look like options and are not read. Teacher and student would not see them: "
    override = f'"dataset.option_columns={written(unread)}"'
    if is_choice:
        override = override if len(unread) == len(task.rule.choices) else f"dataset.choices={LETTERS[: len(unread)]} {override}"
        return [f"{title}{override} writes them behind the question."]
    letters = f"dataset.answer_type=choice dataset.choices={LETTERS[: len(unread)]}"
    return [f"{title}use letters as answers, with {letters} {override}, or put the options into the question."]


def option_columns(names: Collection[str]) -> list[str]:
    """The columns that seem to hold the options of a multiple choice, such as ``A`` and ``option_b``; empty if there are fewer than two."""
    found = [name for name in names if _OPTION_COLUMN.fullmatch(name.strip())]
    return found if len(found) >= _FEWEST_OPTIONS else []


def without_options(questions: Sequence[str]) -> int:
    """Number of questions that list no options such as ``(A) red (B) blue``; 0 if at least half of them list some."""
    without = sum(not _lists_options(question) for question in questions)
    return without if 2 * without > len(questions) else 0


def _lists_options(question: str) -> bool:
    letters = {(upper or lower).upper() for upper, lower in _OPTION.findall(question)}
    return len(letters) >= _FEWEST_OPTIONS


def unread_yes_no(unread: Sequence[str]) -> str:
    """What to do about answers that are not read as yes or no. Completes the sentence "120 of 120 gold answers are not yes or no".

    Args:
        unread: The different answers that are not read.
    """
    return (
        f": {', '.join(map(repr, unread))}. Do these words mean yes and no? Then write yes and no ({YES_NO_WORDS}) into the file. "
        "Otherwise choose dataset.answer_type=text: there a completion is right only if its answer is exactly that word."
    )
