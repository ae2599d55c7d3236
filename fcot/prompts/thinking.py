"""Separates the thoughts of a reasoning model from the rest of its text.

Servers without a reasoning parser return thoughts within the text, between tags such as ``<think>`` and ``</think>``. The opening tag
is missing where a chat template writes it into the prompt. The closing tag is missing where the length limit cut the thought. Answers
are never read from a thought, because it holds guesses.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MODES = ("strip", "keep", "only")  # values of prompt.thinking: whether a thought is removed, is kept, or is the whole rationale

_NAMES = (
    r"think|thinking|thoughts?|reasoning|reflection|scratchpad|analysis|inner_monologue|antthinking|seed:think"
    r"|(?:begin|end|start)_(?:of_)?(?:thought|thinking|think)"
)
_TAG = re.compile(
    rf"<\s*(?P<slash>/?)\s*\|?(?P<name>{_NAMES})\|?(?:\s[^<>]*)?>"
    r"|◁(?P<kimi>/?)think▷|\[(?P<mistral>/?)THINK\]|<unused9(?P<gemma>[45])>(?:thought\n)?"
    r"|(?:<\|start\|>assistant)?<\|channel\|>(?P<channel>analysis|commentary|final)[^<]*<\|message\|>",
    re.IGNORECASE,
)
_STRAY_TAG = re.compile(r"<\|(?:end|return|start|(?:begin|end)_of_solution)\|>(?:assistant)?")


class Parts(NamedTuple):
    """The thought and the rest of a text.

    Attributes:
        thought: The text between the tags; empty where there are no tags.
        rest: Everything outside the tags; the whole text where there are no tags.
        closed: Whether the last thought has a closing tag.
    """

    thought: str
    rest: str
    closed: bool


def separate(text: str) -> Parts:
    """Separate the thoughts of a text from the rest."""
    thoughts: list[str] = []
    others: list[str] = []
    in_thought, position, tags = False, 0, 0
    for tag in _TAG.finditer(text):
        part, position, tags = text[position : tag.start()], tag.end(), tags + 1
        closes = _closes(tag)
        if in_thought or (closes and tags == 1):  # a closing tag comes first where the prompt has the opening tag
            thoughts.append(part)
        else:
            others.append(part)
        in_thought = not closes
    if not tags:
        return Parts("", text, True)
    (thoughts if in_thought else others).append(text[position:])
    thought, rest = ("\n".join(part.strip() for part in parts if part.strip()) for parts in (thoughts, others))
    return Parts(_STRAY_TAG.sub("", thought).strip(), _STRAY_TAG.sub("", rest).strip(), not in_thought)


def text_or_thought(text: str) -> str:
    """The text without its thoughts, or the thoughts where there is nothing else."""
    thought, rest, _ = separate(text)
    return rest or thought


def _closes(tag: re.Match[str]) -> bool:
    """Whether a tag ends a thought."""
    if tag["name"]:
        return bool(tag["slash"]) or tag["name"].lower().startswith("end")
    if tag["channel"]:
        return tag["channel"].lower() == "final"
    return "/" in (tag["kimi"] or "", tag["mistral"] or "") or tag["gemma"] == "5"


_ANSWER_PHRASE = re.compile(  # words that introduce an answer
    r"\b(?:so|thus|hence|therefore|the|final|correct|right|answer|result|option|choice|is|are|it|equals|boxed|text)\b", re.IGNORECASE
)
_FEW_WORDS = 2  # an answer has at most this many words, such as a unit or a name


def only_an_answer(text: str) -> bool:
    """Whether a text states an answer without any reasoning, such as ``**Answer:** 8 coins``. An equation counts as reasoning."""
    return len(re.findall(r"\d+(?:[.,]\d+)*", text)) <= 1 and len(re.findall(r"[^\W\d_]{2,}", _ANSWER_PHRASE.sub(" ", text))) <= _FEW_WORDS
