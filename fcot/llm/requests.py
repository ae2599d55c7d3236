"""The canonical request of a generation, its key, and a teacher's reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fcot.base.files import fingerprint
from fcot.base.records import Problem
from fcot.llm.distributions import TopTokens

Message = Mapping[str, str]
Prompt = str | Sequence[Message]

# Refusals that no other try can change: the prompt itself is at fault.
FINAL = frozenset({"too_long", "prompt_filtered"})
OWN_PARAMETERS = ("n", "best_of", "model", "messages", "prompt", "stop", "stream")  # request parameters that only fcot sets

_AROUND_TOKENS = 64  # tokens that a server may add around a text or a message

# The value of ``refused`` in a row without an answer: its request failed, and the server may have charged it.
LOST = "lost"
# The value of ``refused`` in the row of a request that only scored a stored text (``Request.scored``).
SCORED = "scored"


@dataclass(frozen=True)
class Request:
    """A prompt and the limits on its answers. It may be answered several times.

    Attributes:
        prompt: A text (plain completions) or chat messages.
        max_tokens: Limit on the answer, in tokens.
        stop: Strings that end the answer.
        root: Key of the step-1 request that this one continues; None for step 1. Both steps of a completion are in one
            shard, so one lock covers them.
        problem: The problem that the prompt is about; not part of the key.
        rationale: The text of step 1 in a step-2 request; not part of the key (the prompt contains it).
        rationale_slot: The slot of that text; not part of the key.
        top_logprobs: How many of the likeliest tokens to return at each position (``Choice.top``); part of the key only if ``scored`` is.
            None: none.
        scored: An answer to this request. Nothing is generated: the reply's one choice has no text, and the distributions at the tokens
            of this answer. It is part of the key, except where it is the stored answer in ``rationale_slot``. None: a request for new
            answers.
    """

    prompt: Prompt
    max_tokens: int
    stop: tuple[str, ...] = ()
    root: str | None = None
    problem: Problem | None = None
    rationale: str | None = None
    rationale_slot: int | None = None
    top_logprobs: int | None = None
    scored: str | None = None

    def canonical(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that changes the distribution of answers.

        The gold answer, sample index, seed, number of choices, base URL and concurrency are left out on purpose.

        Args:
            identity: The teacher's model id and the parameters that change the distribution.
        """
        stop = {"stop": list(self.stop)} if self.stop else {}
        scored = {} if self.scored is None else {"scored": self.scored, "top_logprobs": self.top_logprobs}
        return {"prompt": self.prompt, "max_tokens": self.max_tokens, **stop, **scored, **identity}

    def key(self, identity: Mapping[str, Any]) -> str:
        """SHA-256 (hex) of the canonical request."""
        return fingerprint(self.canonical(identity))

    def most_prompt_tokens(self) -> int:
        """An upper bound on the tokens of the prompt.

        It counts each byte as a token, because no token is shorter, and a margin for what a server adds: a chat template or its own
        system message.
        """
        scored = len((self.scored or "").encode())  # sent as a part of the prompt
        if isinstance(self.prompt, str):
            return scored + len(self.prompt.encode()) + _AROUND_TOKENS
        return scored + sum(len(message["content"].encode()) + _AROUND_TOKENS for message in self.prompt)


@dataclass(frozen=True)
class Choice:
    """One returned text.

    Attributes:
        text: The text.
        finish_reason: ``stop``, ``length`` or another word of the server's; None if the server gave none.
        refused: Why the text cannot be used (``empty``, ``content_filter``...); None if it can.
        reasoning: A reasoning model's thoughts, if the server returns them separately from the text.
        top: The teacher's distributions at the text's tokens; None if they were not requested, or cannot be used.
    """

    text: str
    finish_reason: str | None
    refused: str | None = None
    reasoning: str | None = None
    top: TopTokens | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens of one request, all choices together; None where the server reported none.

    Attributes:
        prompt_tokens: Tokens of the prompt, cached ones included.
        completion_tokens: Tokens of all choices, reasoning tokens included.
        cached_tokens: Tokens of the prompt that the server had in its cache.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None

    @property
    def complete(self) -> bool:
        """Whether the server reported all the tokens that it charges for."""
        return self.prompt_tokens is not None and self.completion_tokens is not None


@dataclass(frozen=True)
class Reply:
    """A server's or model's reply to one request.

    Attributes:
        choices: The returned texts.
        usage: Tokens of all choices together.
        model: The model's name as the server returned it, which shows whether an alias has moved; None if it returned none.
        fingerprint: The server's ``system_fingerprint``; None if it returned none.
    """

    choices: Sequence[Choice]
    usage: Usage = field(default_factory=Usage)
    model: str | None = None
    fingerprint: str | None = None


class Account(Protocol):
    """Counts the cost of the tries of one request. A teacher calls it before it sends a try and after a try has failed.

    A teacher that costs nothing need not call it. The caller of :meth:`Teacher.generate` counts the try that was answered.
    """

    def sending(self) -> None:
        """A try is about to be sent. From here on it may be charged, whatever happens to this process.

        Raises:
            BudgetSpent: The try may cost more than the rest of the budget.
        """
        ...

    def not_charged(self) -> None:
        """The try failed and was certainly not charged, as with status 429. The next try uses its row in the store."""
        ...

    def maybe_charged(self) -> None:
        """The try failed and may have been charged, as after a timeout. It counts at its maximum cost."""
        ...


class NoAccount:
    """For callers that do not count costs."""

    def sending(self) -> None:
        """Nothing to do."""

    def not_charged(self) -> None:
        """Nothing to do."""

    def maybe_charged(self) -> None:
        """Nothing to do."""


NO_ACCOUNT = NoAccount()


class Teacher(Protocol):
    """A model or program that writes rationales on request.

    Attributes:
        identity: Model id and the parameters that change the distribution; part of every key.
        older_identities: The identities that earlier versions used for the same requests, the likeliest first; usually empty. Rows
            stored under the keys of these identities are used and not bought again.
        chat: Whether prompts are chat messages instead of a text.
        concurrency: How many calls of :meth:`generate` may be outstanding; may change at any time.
        max_choices: The largest number of choices in one request.
    """

    identity: Mapping[str, Any]
    older_identities: Sequence[Mapping[str, Any]]
    chat: bool
    max_choices: int

    @property
    def concurrency(self) -> int: ...  # noqa: D102

    def status(self) -> str:
        """Text for the progress line, such as requests in flight and failed tries by kind; may be empty."""
        ...

    async def generate(self, request: Request, n: int, seed: int, account: Account) -> Reply:
        """Answer one request with up to ``n`` choices.

        The teacher retries failed requests itself.

        Args:
            request: The request.
            n: The most choices to return, at least 1.
            seed: The number of the first slot to fill, or a larger number if an earlier answer was unusable.
            account: Counts the cost of each try.

        Raises:
            FcotError: The request failed for a reason that would make further requests fail too.
        """
        ...

    def halt(self) -> None:
        """Send no further requests. Calls that wait for their turn may raise ``FcotError``; requests that were sent are answered."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
