"""Choice letters in a text: the one that is chosen, not every letter that is named.

In "D. Option (B) is wrong" the answer is D: a letter that begins an answer counts. In "A or B" there is none. A letter that is a word
(the article in "A dog", "I") or that is denied ("not (A)", "(A) is wrong") is not counted.
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
_WORD = re.compile(r"\s+(?!(?:or|and|to|through)\b)[a-z]")  # behind an article or a pronoun
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
    letter: str
    start: int
    end: int


def candidates(text: str, letters: str) -> list[str]:
    """The letters of a task that a text names and does not deny, in their order."""
    text = unicodedata.normalize("NFKC", text)
    found = [mention.letter for mention in _mentions(text, letters)]
    lower = _lower_first(text, letters)
    return found or ([lower] if lower else [])


def first(text: str, letters: str) -> Reading:
    """The letter that begins a text, or else the only one that it names."""
    text = unicodedata.normalize("NFKC", text)
    mentions = _mentions(text, letters)
    if not mentions or _LOWER_FIRST.match(text):
        lower = _lower_first(text, letters)
        return Reading(lower) if lower else NOTHING if not mentions else _only(mentions)
    if _LEAD.fullmatch(text[: mentions[0].start]):
        return _only(_joined(text, mentions, 0))
    return _only(mentions)


def last(text: str, letters: str) -> Reading:
    """The letter that a text names last."""
    text = unicodedata.normalize("NFKC", text)
    mentions = _mentions(text, letters)
    if not mentions:
        return first(text, letters)
    return _only(_list_ending(text, mentions))


def _lower_first(text: str, letters: str) -> str | None:
    """``b`` alone, or "b. the dog"."""
    found = _LOWER_FIRST.match(text)
    return found[1].upper() if found and found[1].upper() in letters else None


def _only(mentions: Sequence[_Mention]) -> Reading:
    letters = {mention.letter for mention in mentions}
    return Reading(letters.pop()) if len(letters) == 1 else Reading(None, SEVERAL)


def _joined(text: str, mentions: Sequence[_Mention], begin: int) -> Sequence[_Mention]:
    """A mention and those that follow it in a list: "A, B or D"."""
    end = begin + 1
    while end < len(mentions) and _JOIN.fullmatch(text[mentions[end - 1].end : mentions[end].start]):
        end += 1
    return mentions[begin:end]


def _mentions(text: str, letters: str) -> list[_Mention]:
    """The letters that a text names as options and does not deny: in "(A) to (D) are ruled out" it denies both."""
    mentions: list[_Mention] = []
    denied: list[bool] = []
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
    return [mention for mention, out in zip(mentions, denied, strict=True) if not out]


def _list_ending(text: str, mentions: Sequence[_Mention]) -> Sequence[_Mention]:
    """The last mention with those before it that are joined to it."""
    begin = len(mentions) - 1
    while begin and _JOIN.fullmatch(text[mentions[begin - 1].end : mentions[begin].start]):
        begin -= 1
    return mentions[begin:]


def _is_word(letter: str, before: str, after: str) -> bool:
    """Whether a capital A or I is the article or the pronoun."""
    if not _WORD.match(after) or _CHOSEN.search(before):
        return False
    return letter == "I" or _BEFORE_SENTENCE.search(before) is not None
