"""Thoughts: what a reasoning model writes for itself, before what it says.

Servers without a reasoning parser return thoughts within the text, between tags such as ``<think>`` and ``</think>``. The opening tag
can be missing (chat templates write it into the prompt), and so can the closing one (the length limit came first). A thought never
holds an answer: it holds guesses.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MODES = ("strip", "keep", "only")  # what prompt.thinking makes of a thought

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
_LEFT_OVER = re.compile(r"<\|(?:end|return|start|(?:begin|end)_of_solution)\|>(?:assistant)?")


class Parts(NamedTuple):
    """A text taken apart.

    Attributes:
        thought: What stands between the tags; empty where there are none.
        said: The rest: the text itself where there are no tags.
        closed: Whether the last thought came to its end.
    """

    thought: str
    said: str
    closed: bool


def separate(text: str) -> Parts:
    """The thoughts of a text, and what it says beside them."""
    thoughts: list[str] = []
    said: list[str] = []
    thinks, position, tags = False, 0, 0
    for tag in _TAG.finditer(text):
        part, position, tags = text[position : tag.start()], tag.end(), tags + 1
        closes = _closes(tag)
        if thinks or (closes and tags == 1):  # a lone closing tag: the opening one stands in the prompt
            thoughts.append(part)
        else:
            said.append(part)
        thinks = not closes
    if not tags:
        return Parts("", text, True)
    (thoughts if thinks else said).append(text[position:])
    joined, rest = ("\n".join(part.strip() for part in parts if part.strip()) for parts in (thoughts, said))
    return Parts(_LEFT_OVER.sub("", joined).strip(), _LEFT_OVER.sub("", rest).strip(), not thinks)


def text_or_thought(text: str) -> str:
    """A rationale without the thought before it; the thought where there is nothing else."""
    thought, said, _ = separate(text)
    return said or thought


def _closes(tag: re.Match[str]) -> bool:
    """Whether a tag ends a thought."""
    if tag["name"]:
        return bool(tag["slash"]) or tag["name"].lower().startswith("end")
    if tag["channel"]:
        return tag["channel"].lower() == "final"
    return "/" in (tag["kimi"] or "", tag["mistral"] or "") or tag["gemma"] == "5"


_FORMULA = re.compile(
    r"\b(?:so|thus|hence|therefore|the|final|correct|right|answer|result|option|choice|is|are|it|equals|boxed|text)\b", re.IGNORECASE
)
_FEW_WORDS = 2  # a unit, a name


def only_an_answer(text: str) -> bool:
    """Whether a text states an answer and nothing else: ``**Answer:** 8 coins``. An equation is more than that."""
    return len(re.findall(r"\d+(?:[.,]\d+)*", text)) <= 1 and len(re.findall(r"[^\W\d_]{2,}", _FORMULA.sub(" ", text))) <= _FEW_WORDS
