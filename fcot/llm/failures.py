"""Failed requests to an OpenAI-compatible server: parsing and classifying the errors of many vendors."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

_LONGEST_TEXT = 600  # characters of a body that are shown
_RETRY_STATUS = {408, 409, 425, 429}
_PUSH_BACK_STATUS = {429, 503, 529}
_GATEWAY_STATUS = {502, 504, *range(520, 530)} - {529}  # a gateway's; the model behind the gateway may have finished the request
_ABOUT_THE_PROMPT = {400, 403, 413, 422, 451, 500}  # statuses of errors that one prompt can cause
_REJECTED_PARAMETER = {400, 422, 500, 501}  # statuses with which servers reject a parameter
_TOO_LONG = re.compile(  # OpenAI, vLLM, llama.cpp, TGI, Mistral, Gemini, Anthropic, Groq, Cohere
    r"context[ _-](?:length|window|size)|(?:prompt|input|message|request|text|string)s?\W+(?:is |are |was )?too (?:long|large)"
    r"|too many (?:input |prompt )?tokens|(?:exceeds|exceeded|over) the (?:maximum|max|limit)[^.]{0,40}tokens|reduce the length"
    r"|inputs?`? (?:tokens \+|must have less than)|string_above_max_length|tokens? limit exceeded|exceeds?[^.]{0,30}max(?:imum)?[_ ]input",
    re.IGNORECASE,
)
_PER_MINUTE = re.compile(r"per (?:minute|min|second|day)\b|\b[TR]P[MD]\b")
_FILTERED = re.compile(
    r"content[ _-](?:management |filter|policy|moderation)|moderation|\bflagged\b|PROHIBITED_CONTENT|content_policy",
    re.IGNORECASE,
)
_QUOTA = re.compile(r"insufficient_quota|exceeded your current quota|insufficient (?:credit|balance|fund)", re.IGNORECASE)
_UNKNOWN_MODEL = re.compile(  # OpenAI, vLLM, Ollama, llama.cpp
    r"model_not_found|(?:unknown|no such|invalid) model\b"
    r"|\bmodel:?\s+\S{1,120}\s+(?:(?:is |was )?(?:not (?:found|served|loaded)|unknown)|does(?: not|n't) exist)",
    re.IGNORECASE,
)
_SEVERAL = re.compile(
    r"\bn\b\W|\bchoices?\b|(?:multiple|several|one|single|parallel) (?:completion|choice|sequence|sample)|best_of|num_return_sequences",
    re.IGNORECASE,
)
_HTML = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype html|html|head|body|title)\b", re.IGNORECASE | re.DOTALL)
_COMPLAINT = r"(?:parameter|param|argument|field|option|property|key|input|unknown|unsupported|unexpected|unrecogni[sz]ed|invalid)"
_IN_200 = (
    (re.compile(r"rate.?limit|too many requests", re.IGNORECASE), 429),
    (_QUOTA, 402),
    (re.compile(r"overload|unavailable|capacity", re.IGNORECASE), 503),
)


class Malformed(Exception):
    """An answer with status 200 that is not a completion.

    Attributes:
        body: The answer's text, if it is not JSON.
    """

    def __init__(self, reason: str, body: str | None = None) -> None:
        super().__init__(reason)
        self.body = body


def not_json(data: bytes) -> Malformed:
    """The error about an answer that is not JSON."""
    text = data.decode("utf-8", "replace")
    if _is_html(text):
        return Malformed(_shown(text) or "an empty page", text)
    return Malformed(f"an answer that is not JSON: {_shown(text, 200)}" if text.strip() else "an empty answer", text)


class ErrorInside(Exception):
    """An error inside an answer with status 200 or inside a line of a batch.

    Attributes:
        status: The HTTP status that the error names, or that its text implies; None if unknown.
        body: The error as JSON.
    """

    def __init__(self, status: int | None, body: Any) -> None:
        super().__init__(_shown(body))
        self.status = status
        self.body = body


@dataclass(frozen=True)
class Failure:
    """Why a request failed.

    Attributes:
        kind: The error's class, such as ``RateLimitError``.
        text: The error's text, with the fields of its body; may contain the API key.
        status: HTTP status; None if the server sent no answer.
        body: The answer's JSON, or its text; None if the server sent no answer.
        connected: Whether the request reached the server.
        retry_after_s: Seconds that the server asks to wait; None if it does not say.
        passing: Whether the error may be temporary: it has a status, or is an error of the connection.
        path: Path of the URL that was called; None if the server sent no answer.
        location: The address to which the server redirects; None if it does not redirect.
    """

    kind: str
    text: str
    status: int | None = None
    body: Any = None
    connected: bool = True
    retry_after_s: float | None = None
    passing: bool = True
    path: str | None = None
    location: str | None = None

    @property
    def html(self) -> bool:
        """Whether the answer is a web page, such as that of a gateway or a login."""
        return isinstance(self.body, str) and _is_html(self.body)

    @property
    def timed_out(self) -> bool:
        """Whether the server took the request and did not answer in time."""
        return self.status is None and self.connected and "Timeout" in self.kind

    @property
    def name(self) -> str:
        """The status, or the kind of error: its name in counters."""
        return str(self.status or self.kind.removeprefix("API"))

    @property
    def retriable(self) -> bool:
        """Whether another try may succeed."""
        if self.status is None:
            return self.passing
        return (self.status >= 500 or self.status in _RETRY_STATUS) and not self.out_of_quota

    @property
    def pushes_back(self) -> bool:
        """Whether the server asks for fewer requests at once."""
        return self.status in _PUSH_BACK_STATUS or "Timeout" in self.kind

    @property
    def out_of_quota(self) -> bool:
        """Whether the account's quota or credit is used up."""
        return self.status == 402 or (self.status == 429 and bool(_QUOTA.search(self._all)))

    @property
    def unknown_model(self) -> bool:
        """Whether the server says that it does not have the model, and not that it does not have the address."""
        return self.status in (400, 404) and not self.html and bool(_UNKNOWN_MODEL.search(self._all))

    @property
    def maybe_charged(self) -> bool:
        """Whether the server may charge for the request. False only for failures that are known to be free."""
        if self.status is None:
            return self.connected
        if self.status < 500 and self.status != 200:
            return False
        from_api = isinstance(self.body, Mapping) and bool(self.body)  # else it is a gateway's page
        return self.status in _GATEWAY_STATUS or self.status == 200 or not from_api

    def prompt_fault(self) -> str | None:
        """Why this prompt cannot be answered (``too_long``, ``prompt_filtered``); None if the prompt is not at fault."""
        if self.status not in _ABOUT_THE_PROMPT:
            return None
        if _FILTERED.search(self._all) and self.status != 500:
            return "prompt_filtered"
        if self.status != 403 and not _PER_MINUTE.search(self._all) and (_TOO_LONG.search(self._all) or self.status == 413):
            return "too_long"
        return None

    def parameter(self, sent: Collection[str]) -> str | None:
        """The request parameter that the server complains about; None if it names none.

        Args:
            sent: Names of the parameters that may be named.
        """
        if self.status not in _REJECTED_PARAMETER:
            return None
        names = [str(value).rpartition(".")[2] for key, value in _leaves(self.body) if key in ("param", "loc") and value]
        words = " ".join(str(value) for _, value in _leaves(self.body)) or self.text
        names += re.findall(r"[`'\"]([a-z_]+)[`'\"]", words)
        names += [name for name in sent if re.search(rf"{_COMPLAINT}\W+(?:\w+\W+)?{name}\b|\b{name}\b\W*(?:>|<|=|is not|must)", words)]
        return next((name for name in names if name in sent), None)

    def rejects_several(self) -> bool:
        """Whether the error is about the number of choices, though it does not name the parameter."""
        return self.status in _REJECTED_PARAMETER and bool(_SEVERAL.search(self.text))

    @property
    def may_reject_several(self) -> bool:
        """Whether several choices in one request can be the reason: the request was rejected, or the error is about several choices."""
        return self.status in (400, 422, 501) or self.rejects_several()

    @property
    def _all(self) -> str:
        return f"{self.text} {_shown(self.body, 10**6)}"


def failure_of(error: Exception) -> Failure:
    """The failure that an exception describes: one of the ``openai`` client, of a connection, or of this module."""
    if isinstance(error, ErrorInside):
        return Failure("an error", str(error), error.status, error.body)
    if isinstance(error, Malformed):
        return Failure("Malformed", str(error), 200, error.body)
    import openai

    response = getattr(error, "response", None)
    if isinstance(error, openai.APIStatusError) and response is not None:
        body, status = _body(error, response), error.status_code
        text, path = _shown(body) or f"status {status}", str(error.request.url.path)
        location = response.headers.get("location")
        return Failure(type(error).__name__, text, status, body, True, retry_after(response), True, path, location)
    passing = isinstance(error, openai.APIConnectionError | TimeoutError | json.JSONDecodeError | UnicodeDecodeError)
    text = " ".join(str(getattr(error, "message", None) or error).split())
    if error.__cause__ is not None:
        text = f"{text.rstrip('.')} ({' '.join(str(_root(error)).split())})"
    connected = type(error.__cause__).__name__ not in ("ConnectError", "ConnectTimeout", "PoolTimeout")
    root = _root(error)
    if not connected and isinstance(root, OSError) and not isinstance(root, TimeoutError):
        # The client calls every failed connection a timeout, also one that was refused at once.
        return Failure("APIConnectionError", f"no connection: {' '.join(str(root).split())}", None, None, False, None, True)
    return Failure(type(error).__name__, text, None, None, connected, None, passing)


def error_inside(answer: Any) -> ErrorInside | None:
    """The error that an answer with status 200 contains instead of choices; None if it contains none."""
    error = answer.get("error") if isinstance(answer, dict) else None
    if not error or answer.get("choices"):
        return None
    code = error.get("code", error.get("status")) if isinstance(error, dict) else None
    with contextlib.suppress(TypeError, ValueError):
        if 400 <= int(str(code)) < 600:
            return ErrorInside(int(str(code)), answer)
    status = next((status for words, status in _IN_200 if words.search(_shown(answer))), 200)
    return ErrorInside(status, answer)


def retry_after(response: Any) -> float | None:
    """Seconds that an answer's headers ask to wait; None if they do not."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        with contextlib.suppress(KeyError, ValueError):
            return max(0.0, float(response.headers[name]) / unit)
    with contextlib.suppress(KeyError, ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(response.headers["retry-after"]).timestamp() - time.time())
    return None


def _body(error: Any, response: Any) -> Any:
    """The complete body of an error. The client's exception keeps only a part of it."""
    with contextlib.suppress(Exception):  # not read, or not text
        text = response.text
        with contextlib.suppress(ValueError):
            return json.loads(text)
        return text
    return error.body


def _shown(body: Any, longest: int = _LONGEST_TEXT) -> str:
    """A body in one line of at most ``longest`` characters: its message with the error's other fields, or the body if it has no message."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict) and isinstance(message := error.get("message"), str):
        fields = {name: value for name, value in error.items() if name not in ("message", "object") and value not in (None, "")}
        words = [message, *(f"{name}: {_plain(value)}" for name, value in fields.items() if str(value) not in message)]
        text = f"{words[0].rstrip('.')} ({', '.join(words[1:])})" if words[1:] else message
    else:
        text = _plain(error) if error is not None else ""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[:longest].rstrip() + "..."


def _is_html(text: str) -> bool:
    return _HTML.match(text) is not None


def _plain(value: Any) -> str:
    """A value as text; of a web page, the text that a browser shows."""
    if isinstance(value, str):
        if not value.lstrip().startswith("<"):
            return value
        return re.sub(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->|<[^>]+>", " ", value, flags=re.IGNORECASE | re.DOTALL)
    return json.dumps(value, ensure_ascii=False)


def _leaves(body: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The key and value of each leaf of nested JSON. The items of a list have the list's key."""
    if isinstance(body, dict):
        for name, value in body.items():
            yield from _leaves(value, name)
    elif isinstance(body, list):
        for value in body:
            yield from _leaves(value, key)
    else:
        yield key, body


def _root(error: BaseException) -> BaseException:
    """The first cause of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
