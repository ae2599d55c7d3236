"""A teacher's token distributions: the likeliest tokens at each position of a completion, and their form in a file.

A server names tokens by their ids or by their text. Texts are turned into ids with the teacher's tokenizer.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

NO_TOKEN = -1  # the id of an alternative that the teacher did not name


@dataclass(frozen=True)
class TopTokens:
    """The likeliest tokens at each position of a completion.

    Attributes:
        tokens: Ids of the completion's tokens, (n,) int32. An end-of-sequence token may be the last one.
        ids: Ids of the likeliest tokens at each position, (n, k) int32; :data:`NO_TOKEN` where the teacher named fewer than k.
        logprobs: Their natural log-probabilities, (n, k) float16; minus infinity where there is no token.
    """

    tokens: NDArray[np.int32]
    ids: NDArray[np.int32]
    logprobs: NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.tokens)


def top_tokens(tokens: Sequence[int], alternatives: Sequence[Mapping[int, float]], k: int) -> TopTokens:
    """The record of a completion's tokens.

    Args:
        tokens: Token ids of the completion.
        alternatives: Log-probabilities by token id at each position. At most k of them are kept, the likeliest.
        k: Number of tokens to keep at each position.
    """
    ids = np.full((len(tokens), k), NO_TOKEN, np.int32)
    logprobs = np.full((len(tokens), k), -np.inf, np.float16)
    for position, named in enumerate(alternatives):
        likeliest = sorted(named.items(), key=lambda item: -item[1])[:k]
        ids[position, : len(likeliest)] = [token for token, _ in likeliest]
        logprobs[position, : len(likeliest)] = [logprob for _, logprob in likeliest]
    return TopTokens(np.array(tokens, np.int32), ids, logprobs)


def within(top: TopTokens | None, vocabulary: int) -> TopTokens | None:
    """Distributions without tokens that a vocabulary does not have: a wider model may name its padding.

    Args:
        top: The distributions; None if there are none.
        vocabulary: Number of tokens.
    """
    if top is None or not (outside := top.ids >= vocabulary).any():
        return top
    order = outside.argsort(-1, kind="stable")  # the named ones stay first
    parts = np.where(outside, NO_TOKEN, top.ids), np.where(outside, -np.inf, top.logprobs).astype(np.float16)
    return TopTokens(top.tokens, *(np.take_along_axis(part, order, -1) for part in parts))


# --- the form in a file -----------------------------------------------------------------------------------------------

# Mark, 16 bytes of the request's key, slot, 8 bytes of the text's hash, tokens, alternatives per token, checksum of the content.
_HEADER = struct.Struct("<4s16sI8sIHI")
_MARK = b"top1"


@dataclass(frozen=True)
class Header:
    """What a record says about its content.

    Attributes:
        key: The first 16 bytes of the request's key.
        slot: The completion's slot.
        text: The first 8 bytes of the hash of the completion's text.
        n: Number of tokens.
        k: Alternatives per token.
        checksum: CRC-32 of the content.
    """

    key: bytes
    slot: int
    text: bytes
    n: int
    k: int
    checksum: int

    SIZE = _HEADER.size

    @property
    def content_bytes(self) -> int:
        """Bytes of the content: four per token, and six per alternative."""
        return self.n * (4 + 6 * self.k)


def read_header(data: bytes) -> Header | None:
    """The header at the beginning of some bytes; None if there is no valid one."""
    if len(data) < _HEADER.size:
        return None
    mark, *fields = _HEADER.unpack_from(data)
    return Header(*fields) if mark == _MARK else None


def encode(key: bytes, slot: int, text: bytes, top: TopTokens) -> bytes:
    """A record, with its header."""
    content = b"".join([top.tokens.astype("<i4").tobytes(), top.ids.astype("<i4").tobytes(), top.logprobs.astype("<f2").tobytes()])
    return _HEADER.pack(_MARK, key[:16], slot, text[:8], len(top), top.ids.shape[1], zlib.crc32(content)) + content


def decode(header: Header, content: bytes) -> TopTokens | None:
    """The distributions of a record; None if its content is damaged."""
    if len(content) != header.content_bytes or zlib.crc32(content) != header.checksum:
        return None
    n, k = header.n, header.k
    ids_end = 4 * n * (1 + k)
    tokens, ids = np.frombuffer(content[: 4 * n], "<i4"), np.frombuffer(content[4 * n : ids_end], "<i4")
    return TopTokens(tokens, ids.reshape(n, k), np.frombuffer(content[ids_end:], "<f2").reshape(n, k))


# --- from a server's words to ids -------------------------------------------------------------------------------------


class Vocabulary:
    """Token ids by the bytes that a token stands for.

    Args:
        tokenizer: The teacher's tokenizer, of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._special = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
        byte_level = _is_byte_level(tokenizer)
        self._ids: dict[bytes, int] = {}
        for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
            if token not in self._special:
                self._ids.setdefault(_bytes_of(token, byte_level), number)

    def id_of(self, token: Mapping[str, Any]) -> int | None:
        """The id of a token as a server describes it; None if it has none.

        Args:
            token: Has ``id`` (llama.cpp), or ``token``, which is ``token_id:<id>`` (vLLM) or a text, with ``bytes`` where the text is not
                valid UTF-8.
        """
        if type(number := token.get("id")) is int:
            return number
        text = str(token.get("token", ""))
        if text.startswith("token_id:") and text[9:].isdigit():
            return int(text[9:])
        if text in self._special:
            return int(self._special[text])
        values = token.get("bytes")
        return self._ids.get(bytes(values) if isinstance(values, list) and values else text.encode("utf-8", "replace"))


def _is_byte_level(tokenizer: Any) -> bool:
    """Whether tokens are written in GPT-2's alphabet of 256 characters, one per byte."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and "ByteLevel" in str(type(backend.decoder)) + str(backend.decoder)


@cache
def _alphabet() -> dict[str, int]:
    """The byte of each character of GPT-2's alphabet."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: value for value, character in bytes_to_unicode().items()}


def _bytes_of(token: str, byte_level: bool) -> bytes:
    if byte_level:
        alphabet = _alphabet()
        if all(character in alphabet for character in token):
            return bytes(alphabet[character] for character in token)
    elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):  # SentencePiece's token of a single byte
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode("utf-8", "replace")


def from_server(entries: Sequence[Mapping[str, Any]], k: int, vocabulary: Vocabulary, text: str) -> TopTokens | None:
    """The record of a completion from a server's list of tokens.

    Args:
        entries: The tokens in order. Each has ``logprob``, a description of the token as :meth:`Vocabulary.id_of` takes it, and
            ``top_logprobs``, a list of alternatives of the same form.
        k: Number of alternatives to keep.
        vocabulary: The teacher's vocabulary.
        text: The completion's text, which the tokens have to spell: servers hide tokens of thoughts, and some name others.

    Returns:
        None if a token has no id, or if the tokens do not spell the text.
    """
    tokens: list[int] = []
    alternatives: list[dict[int, float]] = []
    for entry in entries:
        token = vocabulary.id_of(entry)
        if token is None:
            return None
        named = [*(entry.get("top_logprobs") or ()), entry]
        ids = [(vocabulary.id_of(other), other.get("logprob")) for other in named]
        tokens.append(token)
        alternatives.append(
            {number: float(value) for number, value in reversed(ids) if number is not None and isinstance(value, int | float)}
        )
    spelled = vocabulary.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return top_tokens(tokens, alternatives, k) if tokens and spelled.strip() == text.strip() else None
