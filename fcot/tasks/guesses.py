"""Guesses from the data itself: which column has the questions, and of which type the answers are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from fcot.prompts.answers import AnswerRule
from fcot.tasks.decimals import with_point

_FITS = 0.8  # share of the answers that have to be of a guessed type
_LONGEST_YES = 5  # characters of "false"
_QUESTION_NAMES = ("question", "problem", "prompt", "instruction", "input", "query", "frage", "aufgabe", "pytanie", "pregunta", "text")
_ID_NAME = re.compile(r"(?:.*[\W_])?(?:ids?|uuid|guid|key|ticket|case|nr|no|number|nummer|ref|reference)")
_ANSWER_NAMES = (
    "answer",
    "gold",
    "target",
    "label",
    "output",
    "response",
    "solution",
    "result",
    "antwort",
    "lösung",
    "odpowied",
    "respuesta",
)


def guess_column(names: Sequence[str], meaning: str) -> str | None:
    """The column that probably has the questions (``question``) or the answers (``answer``); None if no name suggests it.

    Args:
        names: The columns.
        meaning: ``question``, ``answer`` or any other meaning, which no name suggests.
    """
    words = {"question": _QUESTION_NAMES, "answer": _ANSWER_NAMES}.get(meaning, ())
    folded_names = {name: name.strip().casefold() for name in names}
    equal = (name for word in words for name, text in folded_names.items() if text == word)
    contains = (name for word in words for name, text in folded_names.items() if word in text)
    return next(equal, None) or next(contains, None)


def is_id_name(name: str) -> bool:
    """Whether a column's name suggests ids, such as ``id``, ``Ticket`` or ``order_no``."""
    return _ID_NAME.fullmatch(name.strip().casefold()) is not None or re.fullmatch(r".+[a-z]I[Dd]", name.strip()) is not None


def guess_rule(answers: Iterable[str]) -> AnswerRule:
    """The answer rule that fits at least four of five answers; ``text`` if no other does."""
    written = [answer for answer in answers if answer.strip()]
    letters = sorted({letter for answer in written if (letter := _lone_letter(answer))})
    choices = "".join(chr(code) for code in range(ord("A"), ord(letters[-1]) + 1)) if letters else ""

    def is_choice(answer: str) -> bool:  # also F, which is a choice among A to F, and false beside T
        return choices <= "ABCDEFGHIJ" and bool(_lone_letter(answer))

    yes_no, number, choice = AnswerRule("yes_no"), AnswerRule("number"), AnswerRule("choice", choices)
    tests: list[tuple[AnswerRule, Callable[[str], object]]] = [
        (yes_no, lambda answer: len(answer.strip(" .!")) <= _LONGEST_YES and not is_choice(answer) and yes_no.gold(answer)),
        (choice, is_choice),
        (number, lambda answer: number.gold(answer) or number.gold(with_point(answer))),
    ]
    for rule, fits in tests:
        if written and sum(bool(fits(answer)) for answer in written) >= _FITS * len(written):
            return rule
    return AnswerRule("text")


def _lone_letter(answer: str) -> str:
    """The letter that is the whole answer, such as B in ``(b)``, in upper case; empty for other answers."""
    match = re.fullmatch(r"\W*([A-Za-z])\W*", answer, re.ASCII)
    return match[1].upper() if match else ""
