"""A server with OpenAI's API: its address, its key, and the messages about its failures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fcot.llm.failures import Failure
from fcot.llm.logprobs import TopLogprobs
from fcot.llm.requests import OWN_PARAMETERS, Choice, Request

OPENAI_URL = "https://api.openai.com"
OPENAI_KEY = "OPENAI_API_KEY"  # the environment variable with OpenAI's own key
NO_KEY = "none"  # the value of api_key_env that sends no key


def server_url(base_url: str | None) -> str | None:
    """The address of a server: ``base_url``, else the one in ``OPENAI_BASE_URL``; None for OpenAI's own."""
    return base_url or os.environ.get("OPENAI_BASE_URL") or None


def key_variable(base_url: str | None, api_key_env: str | None) -> str | None:
    """The environment variable with the key that is sent to a server; None if no key is sent.

    A key is only sent to the server it belongs to. ``OPENAI_API_KEY`` is sent to OpenAI's own address and to the one in
    ``OPENAI_BASE_URL``. Any other server gets the key in the variable that ``api_key_env`` names.

    Args:
        base_url: The configured address; None for the default.
        api_key_env: The configured variable; ``none`` sends no key, None is the default described above.
    """
    if api_key_env is not None:
        return None if api_key_env == NO_KEY else api_key_env
    own = base_url is None or base_url.startswith(OPENAI_URL) or base_url == os.environ.get("OPENAI_BASE_URL")
    return OPENAI_KEY if own else None


def key_fault(prefix: str, base_url: str | None, api_key_env: str | None) -> str | None:
    """What is wrong with the key for a server, and the override that corrects it; None if nothing is wrong.

    Args:
        prefix: Prefix of the options in the message, such as ``teacher.``.
        base_url: The configured address; None for the default.
        api_key_env: The configured variable; ``none`` sends no key, None is the default of :func:`key_variable`.
    """
    variable, url = key_variable(base_url, api_key_env), server_url(base_url)
    if variable is not None and not os.environ.get(variable, "").strip():
        if api_key_env is not None:
            return f"{prefix}api_key_env={api_key_env}: there is no such environment variable, or it is empty"
        openai_itself = url is None or url.startswith(OPENAI_URL)
        fault = f"needs the environment variable {variable} (for a server of your own, set {prefix}base_url=...)"
        return fault if openai_itself else None
    if variable is None and api_key_env is None and os.environ.get(OPENAI_KEY):
        return (
            f"{prefix}base_url={base_url} is not the server that {OPENAI_KEY} belongs to, and that variable is set: "
            f"{prefix}api_key_env={OPENAI_KEY} sends this key to the server, {prefix}api_key_env={NO_KEY} sends no key, "
            f"{prefix}api_key_env=NAME sends the key in another variable"
        )
    return None


class Server:
    """A server's address, key and request parameters, shared by the online and the batch back end.

    Args:
        model: The name sent to the server.
        model_id: The name in the store's keys; the same weights behind two names share completions.
        chat: Whether ``/chat/completions`` is used instead of ``/completions``.
        temperature: Sampling temperature.
        parameters: Further request parameters. A value of None leaves out a parameter that would be sent (``temperature``, ``seed``).
        max_tokens_parameter: The parameter that limits answers of this model: ``max_tokens`` or ``max_completion_tokens``.
        base_url: The server's address; None for the one in ``OPENAI_BASE_URL``, else OpenAI's own.
        timeout_s: Limit on one request, in seconds.
        group: The config group that messages name: ``teacher``, or ``student`` for API-backed students.
        api_key_env: The environment variable with the server's key; see :func:`key_variable`.
        logprobs: Requests and reads distributions; None: none are requested.
    """

    def __init__(
        self,
        *,
        model: str,
        model_id: str,
        chat: bool,
        temperature: float,
        parameters: Mapping[str, Any],
        max_tokens_parameter: str,
        base_url: str | None,
        timeout_s: float,
        group: str = "teacher",
        api_key_env: str | None = None,
        logprobs: TopLogprobs | None = None,
    ) -> None:
        self.logprobs = logprobs
        self.group = group
        self.model = model
        self.chat = chat
        self.path = "/chat/completions" if chat else "/completions"
        self.base_url = server_url(base_url)
        self.timeout_s = timeout_s
        self._key_variable = key_variable(base_url, api_key_env)
        self._parameters = {"temperature": temperature, **parameters}
        self._max_tokens_parameter = max_tokens_parameter
        # Leaving out a limit changes the answers. The parameters user, service_tier, metadata and store do not.
        changing = {
            name: value for name, value in parameters.items()
            if name not in ("temperature", "seed", "user", "service_tier", "metadata", "store") and (value is not None or "max_" in name)
        }  # fmt: skip
        self.identity: Mapping[str, Any] = {
            "model": model_id, "temperature": self._parameters["temperature"], **({"parameters": changing} if changing else {}),
        }  # fmt: skip

    @property
    def _key(self) -> str:
        """The key from the environment; empty if none is sent. It is stripped, because keys from files often end in a newline."""
        return os.environ.get(self._key_variable, "").strip() if self._key_variable else ""

    def client(self, **http: Any) -> Any:
        """A new client; each event loop needs its own."""
        import openai

        return openai.AsyncOpenAI(
            api_key=self._key or "unused", base_url=self.base_url, max_retries=0, timeout=self.timeout_s,
            http_client=openai.DefaultAioHttpClient(timeout=self.timeout_s, **http),
        )  # fmt: skip

    def body(self, request: Request, n: int, seed: int) -> dict[str, Any]:
        """The JSON body of a request."""
        body = {
            "model": self.model, ("messages" if self.chat else "prompt"): request.prompt, "n": n, "seed": seed,
            self._max_tokens_parameter: request.max_tokens, **({"stop": list(request.stop)} if request.stop else {}),
            **self._parameters, **(self.logprobs.parameters(request, self.chat) if self.logprobs else {}),
        }  # fmt: skip
        return {name: value for name, value in body.items() if value is not None}

    @property
    def sent(self) -> list[str]:
        """Names of the parameters that requests may have. Those that servers reject most often come first."""
        return [*self._parameters, "seed", "n", self._max_tokens_parameter, "stop", "messages", "prompt", "model"]

    # --- failures ---

    def masked(self, text: str) -> str:
        """A text with the key replaced by ``***``: some servers repeat the key in errors."""
        return text.replace(self._key, "***") if self._key else text

    def describe(self, failure: Failure) -> str:
        """One line about a failure. It contains neither the key nor the request."""
        return f"{failure.kind}: {self.masked(failure.text).rstrip('.')}"

    def refusal(self, failure: Failure) -> Choice | None:
        """The unusable answer to a prompt that is itself at fault; None for other failures."""
        reason = failure.prompt_fault()
        return None if reason is None else Choice("", None, refused=reason)

    def names_n(self, failure: Failure) -> bool:
        """Whether the server rejects the parameter ``n``: several choices in one request."""
        return failure.parameter(self.sent) == "n"

    def stop_message(self, failure: Failure) -> str | None:
        """Why further requests would fail too; None if the reason may be temporary."""
        status, reason = failure.status, self.describe(failure)
        if failure.retriable or status == 200:
            return None
        if status is None:
            return f"{reason} while sending to {self.group}.model={self.model}"
        if status in (401, 403):
            if self._key:
                return f"the server rejects the key in ${self._key_variable}: {reason}"
            remedy = f"Set the environment variable {self._key_variable}"
            if not self._key_variable:
                remedy = f"Put it into an environment variable NAME and set {self.group}.api_key_env=NAME"
            return f"the server requires a key: {reason}. {remedy}"
        if status == 404:
            where = f"{self.group}.base_url={self.base_url}: does it end in /v1?" if self.base_url else "OpenAI"
            endpoint = f"teacher.endpoint={'chat' if self.chat else 'completions'}" if self.group == "teacher" else failure.path
            new_model = ". A model just trained may need some minutes: the same command continues" if self.model.startswith("ft:") else ""
            return f"no model {self.group}.model={self.model} or no endpoint {endpoint} at {where} ({reason}){new_model}"
        if failure.out_of_quota:
            return f"the account's quota is used up: {reason}. Raise it; the same command then continues"
        return f"the server rejects the request: {reason}{self.remedy(failure)}"

    def remedy(self, failure: Failure) -> str:
        """The override that leaves out or renames the parameter that an error names; empty if there is none."""
        name = failure.parameter(self.sent)
        if name == "stop":
            return ". prompt.stop=[] leaves it out"
        if name == self._max_tokens_parameter:
            other_name = "max_completion_tokens" if name == "max_tokens" else "max_tokens"
            return f". {self.group}.max_tokens_parameter={other_name} renames it"
        if self.group == "student":
            return f" (student.model={self.model})"
        if name is None or name in OWN_PARAMETERS:
            return ""
        return f'. "teacher.parameters={{{name}:null}}" leaves it out (or give another value instead of null)'

    def no_answer(self, failure: Failure, tries: int) -> str:
        """The message about a request that reached no server in any of its ``tries``."""
        where = f"{self.group}.base_url={self.base_url or 'OpenAI'}"
        return f"no server answers at {where} ({self.masked(failure.text)}): is it running? {tries} tries failed"
