"""Tokenizes texts so that a special token's name within a text is ordinary text, never a control token.

Tokenizers turn ``</s>`` or ``<|im_end|>`` within a question into the special token of that name. Such a text is encoded by a copy of the
tokenizer whose special tokens have names that nobody can type. All other texts get the ids that the tokenizer itself gives them.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from fcot.base.errors import FcotError

Turns = Sequence[Mapping[str, str]]

_ALIAS = "\ufdd0{}\ufdd1"  # new name of a special token, around its id; Unicode noncharacters: no text needs them
_BREAK = "\ufdd2"  # splits a special token's name within a text
_RESERVED = dict.fromkeys(map(ord, "\ufdd0\ufdd1\ufdd2"), "\ufffd")
_encoders: WeakKeyDictionary[Any, Encoder] = WeakKeyDictionary()


def encoder_of(tokenizer: Any) -> Encoder:
    """The encoder of a transformers tokenizer; there is one per tokenizer."""
    if (encoder := _encoders.get(tokenizer)) is None:
        encoder = _encoders[tokenizer] = Encoder(tokenizer)
    return encoder


class Encoder:
    """Encodes texts and chat turns.

    Args:
        tokenizer: A transformers tokenizer that has an end-of-sequence token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._special: dict[str, int] = {token.content: number for number, token in added.items() if token.special}
        self._special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        self._unknown = tokenizer.unk_token_id if tokenizer.unk_token_id != tokenizer.eos_token_id else None
        self._ids = frozenset(self._special.values()) - {self._unknown}
        self._lengths: dict[str, list[int]] = {}
        for name in self._special:
            lengths = self._lengths.setdefault(name[0], [])
            lengths += [len(name)] if len(name) not in lengths else []
        self._begins = re.compile("[" + re.escape("".join(self._lengths)) + "]")

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, without special tokens. The unknown token may occur, if the vocabulary lacks a character."""
        encoded = self._plain(texts) if texts else []
        for place, (text, ids) in enumerate(zip(texts, encoded, strict=True)):
            if self._has_special(text, ids):
                encoded[place] = self._guard(text)
        return encoded

    def prompt(self, text: str) -> list[int]:
        """Token ids of a text, with the tokens that the tokenizer adds to every text, such as a beginning-of-sequence token."""
        before, after = self._frame
        return [*before, *self.texts([text])[0], *after]

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """The token ids that the tokenizer adds before and after every text."""
        framed, bare = list(self._tokenizer("a", verbose=False)["input_ids"]), self._plain(["a"])[0]
        start = next((place for place in range(len(framed)) if framed[place : place + len(bare)] == bare), 0)
        return framed[:start], framed[start + len(bare) :]

    def turns(self, conversations: Sequence[Turns]) -> list[list[int]]:
        """Token ids of conversations in the tokenizer's chat template, up to where the answer begins.

        Only the template contributes special tokens.

        Raises:
            FcotError: The template has no system turn, and a conversation has one.
            jinja2.exceptions.TemplateError: The template does not accept these turns.
        """
        rendered = [self._rendered(turns) for turns in conversations]
        encoded = self._plain(rendered) if rendered else []
        for place, turns in enumerate(conversations):
            if any(self._has_special(turn["content"]) for turn in turns):
                encoded[place] = self._guarded_turns(turns)
        return encoded

    def representable(self, text: str) -> bool:
        """Whether ordinary tokens can represent the names of special tokens within a text."""
        return self._unknown is None or not self._has_special(text) or self._unknown not in self._guard(text)

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[no-any-return]

    def _rendered(self, turns: Turns) -> str:
        from jinja2.exceptions import TemplateError

        system = [turn["content"].strip() for turn in turns if turn["role"] == "system"]
        try:
            text = str(self._tokenizer.apply_chat_template([dict(turn) for turn in turns], add_generation_prompt=True, tokenize=False))
        except TemplateError as error:
            if not system:
                raise
            reason = f" ({error})"
        else:
            if all(content in text for content in system):
                return text
            reason = ""  # some templates leave out what they do not know
        raise FcotError(
            f"prompt.system: the model's chat template has no system turn{reason}; put the text into the prompt itself: prompt=custom "
            "prompt.path=FILE"
        )

    def _has_special(self, text: str, ids: Sequence[int] | None = None) -> bool:
        """Whether the tokenizer finds a special token in a text: its name, or characters that it normalizes to this name.

        Args:
            text: The text.
            ids: The tokenizer's own ids of the text, if known.
        """
        if not (self._begins.search(text) or (not text.isascii() and self._begins.search(unicodedata.normalize("NFKC", text)))):
            return False
        ids = self._plain([text])[0] if ids is None else ids
        return not self._ids.isdisjoint(ids) or (self._unknown in ids and bool(self._names(text)))

    def _names(self, text: str) -> list[tuple[int, int]]:
        """Begin and end of each special token's name in a text; where several names begin at one place, the longest counts."""
        spans: list[tuple[int, int]] = []
        for match in self._begins.finditer(text):
            begin = match.start()
            lengths = [n for n in self._lengths[text[begin]] if text[begin : begin + n] in self._special]
            if lengths and (not spans or begin >= spans[-1][1]):
                spans.append((begin, begin + max(lengths)))
        return spans

    def _guard(self, text: str) -> list[int]:
        """Token ids of a text by the renamed copy; if there is no copy, by the tokenizer itself, with special tokens removed."""
        text = text.translate(_RESERVED)
        if self._copy is not None:
            return list(self._copy.encode(text, add_special_tokens=False).ids)
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False, split_special_tokens=True)["input_ids"]
        return [number for number in ids if number not in self._ids]

    def _guarded_turns(self, turns: Turns) -> list[int]:
        """Token ids of turns that contain names of special tokens. Only the template's own special tokens become aliases."""
        if self._copy is None:
            return self._spliced_turns(turns)
        text = self._rendered([{**turn, "content": self._broken(turn["content"].translate(_RESERVED))} for turn in turns])
        for begin, end in reversed(self._names(text)):
            text = text[:begin] + _ALIAS.format(self._special[text[begin:end]]) + text[end:]
        return list(self._copy.encode(text.replace(_BREAK, ""), add_special_tokens=False).ids)

    def _spliced_turns(self, turns: Turns) -> list[int]:
        """Token ids of turns, where there is no renamed copy: the template's parts and the turns are encoded separately."""
        text = self._rendered([{**turn, "content": _ALIAS.format(place)} for place, turn in enumerate(turns)])
        ids: list[int] = []
        for place, turn in enumerate(turns):
            before, _, text = text.partition(_ALIAS.format(place))
            ids += self._plain([before])[0] + self._guard(turn["content"])
        return ids + self._plain([text])[0]

    def _broken(self, text: str) -> str:
        """Split each special token's name in a text in two, so that it differs from the template's special tokens."""
        for begin, _ in reversed(self._names(text)):
            text = text[: begin + 1] + _BREAK + text[begin + 1 :]
        return text

    @cached_property
    def _copy(self) -> Any:
        """A copy of the tokenizer with renamed special tokens; None for tokenizers written in Python."""
        from tokenizers import Tokenizer

        if (backend := getattr(self._tokenizer, "backend_tokenizer", None)) is None:
            return None
        data = json.loads(backend.to_str())
        names = {name: _ALIAS.format(number) for name, number in self._special.items()}
        for token in data["added_tokens"]:
            if token["content"] in names:
                token |= {"content": names[token["content"]], "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
        model = data["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
        else:  # Unigram: pairs of piece and score
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
        if "merges" in model:
            model["merges"] = [pair for pair in model["merges"] if not names.keys() & _pieces_of_merge(pair)]
        copy = Tokenizer.from_str(json.dumps(data | {"post_processor": None, "truncation": None, "padding": None}))
        same = all(copy.token_to_id(alias) == self._special[name] for name, alias in names.items())
        return copy if same else None


def _pieces_of_merge(pair: Any) -> set[str]:
    """The two pieces that a merge joins, and the piece that it makes."""
    left, right = pair.split(" ") if isinstance(pair, str) else pair
    return {left, right, left + right}
