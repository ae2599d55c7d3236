"""A user's own teacher: a Python function, named by ``module.function``."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fcot.base.errors import FcotError
from fcot.llm.requests import NO_ACCOUNT, Account, Choice, Reply, Request


class FunctionTeacher:
    """Calls a function for each request.

    Args:
        function: Called as ``function(prompt, n=..., max_tokens=..., temperature=..., stop=..., seed=..., **parameters)``. ``prompt`` is a
            list of chat messages or a text, ``n`` the largest number of texts, ``stop`` the strings that end a text, and ``seed``
            the number of the first text within its problem. The function returns a list of 1 to ``n`` texts, or of
            :class:`fcot.llm.requests.Choice` objects if it knows why a text ended. It may be a coroutine function; a plain function
            runs in a thread.
        model_id: The teacher's name in the store's keys. Change it whenever a change of the function changes its answers.
        chat: Whether prompts are chat messages.
        temperature: Passed to the function.
        parameters: Passed to the function; part of the store's keys.
        concurrency: The most calls at the same time.
        max_choices: The largest ``n``.
    """

    older_identities: Sequence[Mapping[str, Any]] = ()

    def __init__(
        self, function: Callable[..., Any], model_id: str, chat: bool, temperature: float, parameters: Mapping[str, Any], concurrency: int,
        max_choices: int,
    ) -> None:  # fmt: skip
        self._function = function
        self._temperature = temperature
        self._parameters = dict(parameters)
        self.chat = chat
        self.concurrency = concurrency
        self.max_choices = max_choices
        self.identity: Mapping[str, Any] = {"model": model_id, "temperature": temperature, **self._parameters}

    async def generate(self, request: Request, n: int, seed: int, account: Account = NO_ACCOUNT) -> Reply:
        """Answer one request with up to ``n`` choices.

        Raises:
            FcotError: The function raised an exception, or did not return a list of 1 to ``n`` texts.
        """
        arguments = {
            "n": n, "max_tokens": request.max_tokens, "temperature": self._temperature, "stop": list(request.stop), "seed": seed,
        }  # fmt: skip
        try:
            if inspect.iscoroutinefunction(self._function):
                texts = await self._function(request.prompt, **arguments, **self._parameters)
            else:
                texts = await asyncio.to_thread(self._function, request.prompt, **arguments, **self._parameters)
        except Exception as error:
            raise FcotError(
                f"teacher.function failed with {type(error).__name__}: {error}; run the same command again to continue"
            ) from error
        if isinstance(texts, str) or not texts or len(texts) > n:
            returned = "a text" if isinstance(texts, str) else "nothing" if not texts else f"{len(texts)} texts"
            raise FcotError(f"teacher.function has to return a list of 1 to {n} texts and returned {returned}")
        return Reply([text if isinstance(text, Choice) else _choice(str(text)) for text in texts])

    def status(self) -> str:
        """An empty text: there is nothing to show."""
        return ""

    def halt(self) -> None:
        """Do nothing: no call waits for its turn."""

    async def close(self) -> None:
        """Do nothing: there are no connections."""


def _choice(text: str) -> Choice:
    return Choice(text, None, None if text.strip() else "empty")
