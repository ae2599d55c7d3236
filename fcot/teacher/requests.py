"""The canonical request of a generation, its key, and what a teacher answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fcot.artifacts import fingerprint
from fcot.records import Problem

Message = Mapping[str, str]
Prompt = str | Sequence[Message]


@dataclass(frozen=True)
class Request:
    """One prompt, to be answered once or several times.

    Attributes:
        prompt: A text (plain completions) or chat messages.
        max_tokens: Limit on the answer, in tokens.
        root: Key of the step-1 request this one continues, None for step 1. Both steps of a completion live in one
            shard, so that one lock covers them.
        problem: What is asked about; not part of the key.
        rationale: Step 1's text for a step-2 request; not part of the key (the prompt contains it).
    """

    prompt: Prompt
    max_tokens: int
    root: str | None = None
    problem: Problem | None = None
    rationale: str | None = None

    def key(self, identity: Mapping[str, Any]) -> str:
        """SHA-256 (hex) of everything that changes the distribution of answers.

        ``identity`` is the teacher's: model id and decoding parameters. The gold answer, sample index, seed, number of
        choices, base URL and concurrency are left out on purpose.
        """
        return fingerprint({"prompt": self.prompt, "max_tokens": self.max_tokens, **identity})


@dataclass(frozen=True)
class Choice:
    """One returned text; ``refused`` says why it cannot be used (``empty``, ``content_filter``), None where it can."""

    text: str
    finish_reason: str | None
    refused: str | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens of one request, all choices together; None where the server did not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True)
class Reply:
    """What one request bought."""

    choices: Sequence[Choice]
    usage: Usage = field(default_factory=Usage)


class Teacher(Protocol):
    """Whatever writes rationales on demand.

    Attributes:
        identity: Model id and the parameters that change the distribution; part of every key.
        concurrency: Requests in flight at most.
        max_choices: Choices to ask for in one request at most.
    """

    identity: Mapping[str, Any]
    concurrency: int
    max_choices: int

    async def generate(self, request: Request, n: int, first_slot: int) -> Reply:
        """Answer one request with up to ``n`` choices.

        ``first_slot`` seeds the draw: the first slot to fill, or a larger number where an earlier answer was refused.
        Retries of a request that failed are the teacher's own.

        Raises:
            FcotError: More requests are pointless.
        """
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
