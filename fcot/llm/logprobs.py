"""Token distributions over an OpenAI-compatible server: what is sent, and how the answer is read.

While a server generates, it returns the likeliest tokens (``logprobs``; at most 20 at OpenAI). Afterwards, only servers that return the
distributions of a prompt's tokens can score a text: vLLM's ``prompt_logprobs``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from fcot.base.errors import FcotError
from fcot.llm.distributions import TopTokens, Vocabulary, from_server, top_tokens
from fcot.llm.requests import SCORED, Choice, Request

SCORING = "prompt_logprobs"  # the parameter that requests the distributions of a prompt's tokens


class LogprobReader:
    """Requests and reads distributions.

    Args:
        k: The number of likeliest tokens at each position.
        tokenizer: Folder or hub id of the teacher's tokenizer, loaded when the first answer is read.
    """

    def __init__(self, k: int, tokenizer: str) -> None:
        self.k = k
        self.tokenizer = tokenizer

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(teacher_tokenizer(self.tokenizer))

    def parameters(self, request: Request, chat: bool) -> dict[str, Any]:
        """The parameters that a request's body needs in addition; those of a scoring request replace its prompt."""
        if request.scored is not None:
            return {"max_tokens": 1, SCORING: self.k, "stop": None, **_with_answer(request, request.scored, chat)}
        if request.top_logprobs is None:
            return {}
        return {"logprobs": True, "top_logprobs": self.k} if chat else {"logprobs": self.k}

    def read(self, choice: Mapping[str, Any], text: str) -> TopTokens | None:
        """The distributions of a generated choice; None if the server sent none, or if its tokens do not spell the text."""
        entries = list(_entries(choice.get("logprobs")))
        return from_server(entries, self.k, self._vocabulary, text) if entries else None

    def read_scored(self, answer: Any, text: str) -> Choice:
        """The distributions of a scored text, in a choice without text."""
        choices = answer.get("choices") if isinstance(answer, dict) else None
        holder = next((part for part in (answer, *(choices or ())) if isinstance(part, dict) and part.get("prompt_logprobs")), {})
        positions = holder.get("prompt_logprobs") or ()
        return Choice("", None, SCORED, top=self._at_the_end(list(positions), text))

    def _at_the_end(self, positions: list[Any], text: str) -> TopTokens | None:
        """The distributions of the prompt's last tokens that spell the text; end tokens behind them are left out.

        Args:
            positions: For each token of the prompt, ``{"<id>": {"logprob": ...}, ...}``, the prompt's own token first.
            text: The scored text.
        """
        tokens, named = zip(*map(_position, positions), strict=True) if positions else ((), ())
        decode = self._vocabulary.tokenizer.decode
        end = len(tokens)
        while end and tokens[end - 1] >= 0 and not decode([tokens[end - 1]], skip_special_tokens=True).strip():
            end -= 1
        for begin in range(end - 1, -1, -1):
            if tokens[begin] < 0:
                break
            spelled = decode(tokens[begin:end], skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
            if spelled == text.strip():
                return top_tokens(tokens[begin:end], named[begin:end], self.k)
            if len(spelled) > len(text):
                break
        return None


def _position(position: Any) -> tuple[int, dict[int, float]]:
    """The prompt's own token at a position, -1 if the server did not name it, and log-probabilities by token id."""
    entries = position.items() if isinstance(position, dict) else ()
    values = {int(token): entry.get("logprob") for token, entry in entries if token.isdigit() and isinstance(entry, dict)}
    return next(iter(values), -1), {token: float(value) for token, value in values.items() if isinstance(value, int | float)}


def teacher_tokenizer(source: str) -> Any:
    """Load a server's tokenizer.

    Args:
        source: Folder or hub id (``teacher.tokenizer``).

    Raises:
        FcotError: There is none, or the hub cannot be reached.
    """
    from fcot.decoding.models import load_tokenizer_alone

    try:
        return load_tokenizer_alone(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FcotError(f"teacher.tokenizer={source}: not a tokenizer that transformers can load ({reason})") from error


def _with_answer(request: Request, answer: str, chat: bool) -> dict[str, Any]:
    """The prompt with an answer at its end."""
    if not chat:
        return {"prompt": f"{request.prompt}{answer}"}
    assert not isinstance(request.prompt, str)
    messages = [*request.prompt, {"role": "assistant", "content": answer}]
    return {"messages": messages, "add_generation_prompt": False, "continue_final_message": True}


def _entries(logprobs: Any) -> Iterator[Mapping[str, Any]]:
    """The tokens of a choice in the form of ``/chat/completions``, which some servers also use for ``/completions``."""
    if not isinstance(logprobs, dict):
        return
    if isinstance(content := logprobs.get("content"), list):
        yield from (entry for entry in content if isinstance(entry, dict))
        return
    columns = [logprobs.get(name) or () for name in ("tokens", "token_logprobs", "top_logprobs")]
    for token, logprob, alternatives in zip(*columns, strict=False):
        named = alternatives.items() if isinstance(alternatives, dict) else ()
        yield {"token": token, "logprob": logprob, "top_logprobs": [{"token": other, "logprob": value} for other, value in named]}
