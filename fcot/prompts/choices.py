"""Reads choice letters: the letter that a text chooses, not every letter that it mentions.

A letter at the beginning counts: "D. Option (B) is wrong" is D. "A or B" has no answer. Letters that are words ("A dog", "I") or that the
text rejects ("not (A)", "(A) is wrong") do not count.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from fcot.prompts.numbers import NOTHING, SEVERAL, Reading

_LETTER = re.compile(r"[(\[{<]\s*([A-Za-z])\s*[)\]}>]|(?<!\w)([A-Za-z])\)|(?<![\w'’])([A-Z])(?![\w'’])")
_LOWER_FIRST = re.compile(r"\W*([a-z])(?:[.:)](?=\s)|\W*$)")
_LEAD = re.compile(r"\W*(?:(?:the\s+)?(?:final\s+|correct\s+|best\s+|right\s+)?(?:answer|option|choice)\b\W*(?:is\b)?\W*)*", re.IGNORECASE)
_CHOSEN = re.compile(r"\b(?:is|are|be|option|choice|answer|choose|pick|select|case)\W*$", re.IGNORECASE)
_WORD = re.compile(r"\s+(?!(?:or|and|to|through)\b)[a-z]")  # a word that follows an article or a pronoun
_BEFORE_SENTENCE = re.compile(r"(?:^|[.!?:;,\n])\W*$")
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|neither|nor|except|excludes?|excluding|eliminates?|eliminating|than|instead\s+of|rules?\s+out|ruling\s+out)|n['’]t)"
    r"\s+(?:be\s+)?(?:the\s+)?(?:options?|choices?|answers?)?\s*$",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"\s*(?:(?:is|are|was|were|can|could|would)(?:\s+not|n['’]t|not)\b"
    r"|(?:is|are|was|were|seems?)\s+(?:clearly\s+|also\s+)?(?:wrong|incorrect|false|impossible|ruled|eliminated|excluded|out)\b)",
    re.IGNORECASE,
)
_JOIN = re.compile(r"\s*(?:[,;/&]|(?:,\s*)?(?:and|or|to|through)\b|-)\s*(?:options?\s+|choices?\s+)?", re.IGNORECASE)


@dataclass(frozen=True)
class _Mention:
    """A letter in a text, with its position."""

    letter: str
    start: int
    end: int


def candidates(text: str, letters: str) -> list[str]:
    """The letters that a text mentions and does not reject, in their order.

    Args:
        text: The text.
        letters: The task's letters.
    """
    text = unicodedata.normalize("NFKC", text)
    mentioned = [mention.letter for mention in _mentions(text, letters)]
    lower = _lower_first(text, letters)
    return mentioned or ([lower] if lower else [])


def first(text: str, letters: str) -> Reading:
    """The letter at the beginning of a text, or else the only letter that it mentions."""
    text = unicodedata.normalize("NFKC", text)
    mentions = _mentions(text, letters)
    if not mentions or _LOWER_FIRST.match(text):
        lower = _lower_first(text, letters)
        return Reading(lower) if lower else NOTHING if not mentions else _only(mentions)
    if _LEAD.fullmatch(text[: mentions[0].start]):
        return _only(_joined(text, mentions, 0))
    return _only(mentions)


def last(text: str, letters: str) -> Reading:
    """The letter that a text mentions last."""
    text = unicodedata.normalize("NFKC", text)
    mentions = _mentions(text, letters)
    if not mentions:
        return first(text, letters)
    return _only(_list_ending(text, mentions))


def _lower_first(text: str, letters: str) -> str | None:
    """The lower-case letter that is the whole text or begins it, as in "b. the dog", in upper case."""
    match = _LOWER_FIRST.match(text)
    return match[1].upper() if match and match[1].upper() in letters else None


def _only(mentions: Sequence[_Mention]) -> Reading:
    """The letter of the mentions; a reading without a value where they have several letters."""
    letters = {mention.letter for mention in mentions}
    return Reading(letters.pop()) if len(letters) == 1 else Reading(None, SEVERAL)


def _joined(text: str, mentions: Sequence[_Mention], begin: int) -> Sequence[_Mention]:
    """The mention at ``begin``, and those that a list such as "A, B or D" joins to it."""
    end = begin + 1
    while end < len(mentions) and _JOIN.fullmatch(text[mentions[end - 1].end : mentions[end].start]):
        end += 1
    return mentions[begin:end]


def _mentions(text: str, letters: str) -> list[_Mention]:
    """The mentions of a task's letters that a text does not reject. In "(A) to (D) are ruled out" it rejects both."""
    mentions: list[_Mention] = []
    denied: list[bool] = []  # by mention
    for match in _LETTER.finditer(text):
        letter, alone = (match[1] or match[2] or match[3]).upper(), match[3] is not None
        before, after = text[max(0, match.start() - 40) : match.start()], text[match.end() : match.end() + 40]
        if letter not in letters or (alone and letter in "AI" and _is_word(letter, before, after)):
            continue
        mentions.append(_Mention(letter, match.start(), match.end()))
        joined = len(mentions) > 1 and _JOIN.fullmatch(text[mentions[-2].end : match.start()])
        denied.append(bool(_DENIED_BEFORE.search(before) or (joined and denied[-1])))
        if _DENIED_AFTER.match(after):
            denied[-len(_list_ending(text, mentions)) :] = [True] * len(_list_ending(text, mentions))
    return [mention for mention, is_denied in zip(mentions, denied, strict=True) if not is_denied]


def _list_ending(text: str, mentions: Sequence[_Mention]) -> Sequence[_Mention]:
    """The last mention, and those before it that a list joins to it."""
    begin = len(mentions) - 1
    while begin and _JOIN.fullmatch(text[mentions[begin - 1].end : mentions[begin].start]):
        begin -= 1
    return mentions[begin:]


def _is_word(letter: str, before: str, after: str) -> bool:
    """Whether a capital A or I is the article or the pronoun, judged by the text before and after it."""
    if not _WORD.match(after) or _CHOSEN.search(before):
        return False
    return letter == "I" or _BEFORE_SENTENCE.search(before) is not None
