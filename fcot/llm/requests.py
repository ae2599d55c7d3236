"""The canonical request of a generation, its key, and what a teacher answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fcot.base.files import fingerprint
from fcot.base.records import Problem

Message = Mapping[str, str]
Prompt = str | Sequence[Message]

# Refusals that another try cannot mend: the prompt itself is at fault.
FINAL = frozenset({"too_long", "prompt_filtered"})
OWN_PARAMETERS = ("n", "best_of", "model", "messages", "prompt", "stop", "stream")  # nobody else may set these

_AROUND_TOKENS = 64  # what a server may put around a text or a message

# A row that is no answer: a try that broke off when the server may have charged it.
LOST = "lost"


@dataclass(frozen=True)
class Request:
    """One prompt, to be answered once or several times.

    Attributes:
        prompt: A text (plain completions) or chat messages.
        max_tokens: Limit on the answer, in tokens.
        stop: Strings that end the answer.
        root: Key of the step-1 request this one continues, None for step 1. Both steps of a completion live in one
            shard, so that one lock covers them.
        problem: What is asked about; not part of the key.
        rationale: Step 1's text for a step-2 request; not part of the key (the prompt contains it).
        rationale_slot: Its slot; not part of the key.
    """

    prompt: Prompt
    max_tokens: int
    stop: tuple[str, ...] = ()
    root: str | None = None
    problem: Problem | None = None
    rationale: str | None = None
    rationale_slot: int | None = None

    def canonical(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that changes the distribution of answers; ``identity`` is the teacher's.

        The gold answer, sample index, seed, number of choices, base URL and concurrency are left out on purpose.
        """
        stop = {"stop": list(self.stop)} if self.stop else {}
        return {"prompt": self.prompt, "max_tokens": self.max_tokens, **stop, **identity}

    def key(self, identity: Mapping[str, Any]) -> str:
        """SHA-256 (hex) of the canonical request."""
        return fingerprint(self.canonical(identity))

    def most_prompt_tokens(self) -> int:
        """An upper bound: no token is shorter than a byte, and a server adds some (a chat template, its own system message)."""
        if isinstance(self.prompt, str):
            return len(self.prompt.encode()) + _AROUND_TOKENS
        return sum(len(message["content"].encode()) + _AROUND_TOKENS for message in self.prompt)


@dataclass(frozen=True)
class Choice:
    """One returned text.

    Attributes:
        text: What was written.
        finish_reason: ``stop``, ``length`` or another word of the server's; None where it did not say.
        refused: Why the text cannot be used (``empty``, ``content_filter``...), None where it can.
        reasoning: What a reasoning model thought before, where the server returns it beside the text.
    """

    text: str
    finish_reason: str | None
    refused: str | None = None
    reasoning: str | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens of one request, all choices together; None where the server did not say.

    Attributes:
        prompt_tokens: Of the prompt, cached ones included.
        completion_tokens: Of all choices, reasoning tokens included.
        cached_tokens: Those of the prompt that the server had in its cache.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None

    @property
    def told(self) -> bool:
        """Whether the server said what it charges for."""
        return self.prompt_tokens is not None and self.completion_tokens is not None


@dataclass(frozen=True)
class Reply:
    """What one request bought.

    Attributes:
        choices: The returned texts.
        usage: Tokens of all choices together.
        model: The model's name as the server returned it, None where it did not; an alias may have moved.
        fingerprint: The server's ``system_fingerprint``, None where it has none.
    """

    choices: Sequence[Choice]
    usage: Usage = field(default_factory=Usage)
    model: str | None = None
    fingerprint: str | None = None


class Account(Protocol):
    """The money side of one request: told of each try that a server may charge for, before it is sent and after it failed.

    A teacher that costs nothing need not call it. A try that was answered is accounted for by whoever asked for the reply.
    """

    def sending(self) -> None:
        """A try is about to be sent: from here on it may be charged, whatever happens to this process.

        Raises:
            BudgetSpent: It may cost more than is left.
        """
        ...

    def not_charged(self) -> None:
        """The try failed and was certainly not charged, such as a 429: the next try takes its place."""
        ...

    def maybe_charged(self) -> None:
        """The try failed when the server may have charged it, such as a timeout: it counts at its maximum cost."""
        ...


class NoAccount:
    """For callers who do not count money."""

    def sending(self) -> None:
        """Nothing to do."""

    def not_charged(self) -> None:
        """Nothing to do."""

    def maybe_charged(self) -> None:
        """Nothing to do."""


NO_ACCOUNT = NoAccount()


class Teacher(Protocol):
    """Whatever writes rationales on demand.

    Attributes:
        identity: Model id and the parameters that change the distribution; part of every key.
        older_identities: What earlier versions put into the keys of the same requests, the likeliest first: rows that are stored
            under these keys are found and not bought again. Mostly empty.
        chat: Whether it is asked with messages rather than with a text.
        concurrency: Calls to keep outstanding at most; may change from one moment to the next.
        max_choices: Choices to ask for in one request at most.
    """

    identity: Mapping[str, Any]
    older_identities: Sequence[Mapping[str, Any]]
    chat: bool
    max_choices: int

    @property
    def concurrency(self) -> int: ...  # noqa: D102

    def status(self) -> str:
        """For the progress line: requests in flight and failed tries by kind, or nothing."""
        ...

    async def generate(self, request: Request, n: int, seed: int, account: Account) -> Reply:
        """Answer one request with up to ``n`` choices.

        ``seed`` is the first slot to fill, or a larger number where an earlier answer was unusable. Retries of a request
        that failed are the teacher's own; ``account`` is told of each try.

        Raises:
            FcotError: More requests are pointless.
        """
        ...

    def halt(self) -> None:
        """Send nothing more: calls that wait for their turn may raise ``FcotError``, those that were sent are answered."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
