"""Parsing completion objects, chat or plain, in OpenAI's format and other vendors' variants of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fcot.base.records import NO_REPLY
from fcot.llm.failures import Malformed, error_inside
from fcot.llm.logprobs import LogprobReader
from fcot.llm.requests import Choice, Reply, Request, Usage

_FINISH = {  # finish reasons of all vendors, in lower case
    "max_tokens": "length", "model_length": "length", "max_length": "length", "length": "length", "max_output_tokens": "length",
    "stop": "stop", "eos": "stop", "eos_token": "stop", "end_turn": "stop", "stop_sequence": "stop", "end_of_sequence": "stop",
    "completed": "stop", "complete": "stop", "finish_reason_stop": "stop",
    "content_filter": "content_filter", "safety": "content_filter", "recitation": "content_filter", "refusal": "content_filter",
    "blocklist": "content_filter", "prohibited_content": "content_filter", "spii": "content_filter",
}  # fmt: skip
_THOUGHTS = ("thinking", "reasoning", "thought")  # words in the type of a part, and fields of a part, that contain thoughts
_REASONING = ("reasoning_content", "reasoning", "reasoning_details", "thinking")  # fields of a message that contain thoughts


def to_reply(answer: Any, request: Request | None = None, logprobs: LogprobReader | None = None) -> Reply:
    """A completion object as a reply.

    Args:
        answer: The parsed JSON.
        request: The request, if its distributions are to be read.
        logprobs: Reads distributions; None: they are not read.

    Raises:
        ErrorInside: The answer is an error.
        Malformed: The answer is not a completion.
    """
    if (error := error_inside(answer)) is not None:
        raise error
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not choices or not isinstance(choices, list):
        raise Malformed("an answer without choices")
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"), cached)
    if request is not None and logprobs is not None and request.scored is not None:
        converted = [logprobs.read_scored(answer, request.scored)]
    else:
        converted = [_to_choice(choice) for choice in choices]
        if request is not None and logprobs is not None and request.top_logprobs:
            pairs = zip(converted, choices, strict=True)
            converted = [choice if choice.refused else replace(choice, top=logprobs.read(sent, choice.text)) for choice, sent in pairs]
    return Reply(
        converted, Usage(*(count if type(count) is int else None for count in counts)),
        _name(answer.get("model")), _name(answer.get("system_fingerprint")),
    )  # fmt: skip


def _to_choice(choice: Any) -> Choice:
    if not isinstance(choice, dict):
        raise Malformed("a choice that is not a JSON object")
    holder = choice["message"] if isinstance(choice.get("message"), dict) else choice
    content = holder["content"] if "content" in holder else holder.get("text", 0)
    if isinstance(content, list):
        thoughts, text = "".join(_texts(content, True)), "".join(_texts(content, False))
        if not thoughts and not text and content:
            raise Malformed("a choice whose parts have no text")
    elif isinstance(content, str | None):
        thoughts, text = "", content or ""
    else:
        raise Malformed("a choice without text")
    reason = choice.get("finish_reason")
    if choice.get("error") or not isinstance(reason, str | None) or reason == "error":
        raise Malformed("a choice that ended with an error" + (f": {choice['error']}" if choice.get("error") else ""))
    reason = reason and _FINISH.get(reason.lower(), reason)
    reasoning = thoughts or next((thought for name in _REASONING if (thought := "".join(_texts(holder.get(name), None)))), "")
    return _judged(_storable(text), reason, _storable(reasoning) or None)


def _judged(text: str, reason: str | None, reasoning: str | None) -> Choice:
    """A choice, marked as unusable if it is filtered, or if it has no text outside its thoughts."""
    if reason == "content_filter":
        return Choice(text, reason, "content_filter", reasoning)
    refused = None if text.strip() else "empty_at_limit" if reason == "length" else NO_REPLY if reasoning else "empty"
    return Choice(text, reason, refused, reasoning)


def _texts(part: Any, thoughts: bool | None) -> Iterator[str]:
    """The texts in nested parts.

    Args:
        part: A string, or nested parts as JSON.
        thoughts: True for thoughts only, False for everything else only, None for both.
    """
    if isinstance(part, str):
        if not thoughts:
            yield part
    elif isinstance(part, list):
        for item in part:
            yield from _texts(item, thoughts)
    elif isinstance(part, dict):
        thought = any(word in str(part.get("type", "")) for word in _THOUGHTS)
        if thoughts is not None and thought != thoughts and "type" in part:
            return
        inside = None if thought else thoughts
        for name in ("text", "content", "summary", *_THOUGHTS):
            if part.get(name) and (inside is None or name not in _THOUGHTS):
                yield from _texts(part[name], inside)
                return


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be stored


def _name(value: Any) -> str | None:
    return _storable(value) if isinstance(value, str) and value else None
