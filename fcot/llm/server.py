"""A server with OpenAI's API: its address, its key, and the messages about its failures."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any
from urllib.parse import urlsplit

from fcot.llm.failures import Failure
from fcot.llm.logprobs import SCORING, LogprobReader
from fcot.llm.requests import OWN_PARAMETERS, Choice, Request

OPENAI_URL = "https://api.openai.com"
OPENAI_KEY = "OPENAI_API_KEY"  # the environment variable with OpenAI's own key
NO_KEY = "none"  # the value of api_key_env that sends no key
_CONNECT_S = 30.0  # longest wait for a connection: an address that nothing answers is reported before a model's thinking time is over
_SHOWN_MODELS = 8  # in the message on a model that the server does not have
_OWN_HEADERS = ("host", "content-type", "content-length", "transfer-encoding", "connection", "accept-encoding")
_VARIABLE = re.compile(r"[A-Za-z_]\w*")
_PLAIN_NAME = re.compile(r"[A-Z]{2,16}(_[A-Z]{1,16})+")  # the name of a variable that is certainly no secret typed by mistake: TEAM_TOKEN
_SHORT_SECRET = 8  # characters below which a secret is masked as a whole word only, because it may occur inside other words


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


def header_faults(option: str, headers: Mapping[str, str]) -> Iterator[str]:
    """Messages about invalid names of headers, and about values that are not names of environment variables.

    No message shows a value: it may be a secret that was typed by mistake.

    Args:
        option: The option's name, such as ``teacher.headers``.
        headers: Names of environment variables by header name.
    """
    for name, variable in headers.items():
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
            yield f"{option}: {name!r} is not the name of a header"
        elif name.lower() in _OWN_HEADERS:
            yield f"{option}: fcot sets the header {name} itself; leave it out"
        elif not _VARIABLE.fullmatch(variable):
            yield f"{option}: {name} takes the NAME of an environment variable, never the header's value itself: {{{name}: MY_VAR}}"


def unset_header_faults(option: str, headers: Mapping[str, str]) -> Iterator[str]:
    """Messages about headers whose environment variable is missing, empty, or has a value that no header can have."""
    for name, variable in headers.items():
        value = os.environ.get(variable, "").strip()
        if not value and _PLAIN_NAME.fullmatch(variable):
            yield f"{option}: the environment variable {variable} with the value of {name} is not set or is empty: export {variable}=..."
        elif not value and _VARIABLE.fullmatch(variable):
            yield (
                f"{option}: the value of {name} must be the name of an environment variable that is set and not empty: export NAME=... "
                "(it is not shown here, because it may be the secret itself)"
            )
        elif value and not (value.isascii() and value.isprintable()):
            yield f"{option}: the value of {name} has line breaks or characters outside ASCII, which no header can have"


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
        headers: Further headers: names of environment variables with their values, by header name.
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
        headers: Mapping[str, str] | None = None,
        logprobs: LogprobReader | None = None,
    ) -> None:
        self.logprobs = logprobs
        self.group = group
        self.model = model
        self.chat = chat
        self.path = "/chat/completions" if chat else "/completions"
        self.base_url = server_url(base_url)
        self.timeout_s = timeout_s
        self._key_variable = key_variable(base_url, api_key_env)
        self._header_variables = dict(headers or {})
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

    @property
    def _headers(self) -> dict[str, str]:
        """The further headers with their values from the environment."""
        return {name: os.environ.get(variable, "").strip() for name, variable in self._header_variables.items()}

    def client(self, **http: Any) -> Any:
        """A new client; each event loop needs its own. It follows no redirects: they would take headers and prompts to another server."""
        import openai

        timeout = openai.Timeout(self.timeout_s, connect=min(self.timeout_s, _CONNECT_S))
        return openai.AsyncOpenAI(
            api_key=self._key or "unused", base_url=self.base_url, max_retries=0, timeout=timeout, default_headers=self._headers,
            http_client=openai.DefaultAioHttpClient(timeout=timeout, follow_redirects=False, **http),
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
        scoring = (SCORING,) if self.logprobs else ()
        return [*self._parameters, *scoring, "seed", "n", self._max_tokens_parameter, "stop", "messages", "prompt", "model"]

    # --- failures ---

    def masked(self, text: str) -> str:
        """A text with the key and the values of headers replaced by ``***``: some servers repeat them in errors."""
        for secret in sorted(filter(None, (self._key, *self._headers.values())), key=len, reverse=True):
            word = r"(?<!\w){}(?!\w)" if len(secret) < _SHORT_SECRET else "{}"
            text = re.sub(word.format(re.escape(secret)), "***", text)
        return text

    def describe(self, failure: Failure) -> str:
        """One line about a failure. It contains neither the request nor the key or the value of a header."""
        if failure.timed_out:
            return f"no answer within {self.timeout_s:g} s ({self.group}.timeout_s={5 * self.timeout_s:g} waits longer)"
        text = self.masked(failure.text).rstrip(".")
        return f"{failure.kind}: " + (f"a page in HTML, not the API's JSON ({text})" if failure.html else text)

    def refusal(self, failure: Failure) -> Choice | None:
        """The unusable answer to a prompt that is itself at fault; None for other failures."""
        reason = failure.prompt_fault()
        return None if reason is None else Choice("", None, refused=reason)

    def names_n(self, failure: Failure) -> bool:
        """Whether the server rejects the parameter ``n``: several choices in one request."""
        return failure.parameter(self.sent) == "n"

    def stop_message(self, failure: Failure, models: Sequence[str] = ()) -> str | None:
        """Why further requests would fail too; None if the reason may be temporary.

        Args:
            failure: Why the last request failed.
            models: Names of the models that the server has; empty if it does not list them.
        """
        status, reason = failure.status, self.describe(failure)
        if failure.retriable or status == 200:
            return None
        if status is None:
            return f"{reason} while sending to {self.group}.model={self.model}"
        if 300 <= status < 400:
            return self._redirected(failure)
        key, header = f"${self._key_variable}", self._header_doubt
        if status == 401:
            if self._key:
                return f"the server rejects the key in {key}: {reason}" + (f". Or {header}" if header else "")
            return f"the server requires a key: {reason}. " + (
                f"{header[0].upper()}{header[1:]}. Or: {self._set_key}" if header else self._set_key
            )
        if status == 403:
            access = f"the key in {key} has no access" if self._key else f"the server requires a key ({self._set_key})"
            required = f"the server requires {'another' if header else 'a'} header ('{self.group}.headers={{NAME: VARIABLE}}')"
            return (
                f"access is forbidden: {reason}. Either {header + ', or ' if header else ''}a proxy in between forbids it (NO_PROXY=HOST "
                f"bypasses a proxy), or {access}, or {required}, or {self.group}.model={self.model} is not open to you"
            )
        if failure.unknown_model:
            return f"the server has no model {self.group}.model={self.model}: {reason}.{self._other_models(models)}"
        if status == 404:
            check = "is that the address of the API?" if re.search(r"/v\d+/?$", self.base_url or "") else "does it end in /v1?"
            where = f"{self.group}.base_url={self.base_url}: {check}" if self.base_url else "OpenAI"
            endpoint = f"teacher.endpoint={'chat' if self.chat else 'completions'}" if self.group == "teacher" else failure.path
            return f"no model {self.group}.model={self.model} or no endpoint {endpoint} at {where} ({reason})"
        if failure.out_of_quota:
            return f"the account's quota is used up: {reason}. Raise it; the same command then continues"
        return f"the server rejects the request: {reason}{self.remedy(failure)}"

    @property
    def _header_doubt(self) -> str:
        """The doubt about the values of the configured headers; empty if there are none."""
        named = [f"${variable} (header {name})" for name, variable in self._header_variables.items()]
        return f"the value of {' or '.join(named)} is wrong" if named else ""

    def _other_models(self, models: Sequence[str]) -> str:
        """What to do about a model that the server does not have."""
        if self.model.startswith("ft:"):
            return " A model just trained may need some minutes: the same command continues"
        if not models:
            return ""
        close = get_close_matches(self.model, models, 1)
        others = ", ".join([*sorted(models)[:_SHOWN_MODELS], *(["..."] if len(models) > _SHOWN_MODELS else [])])
        return self.masked(f" Did you mean {self.group}.model={close[0]}?" if close else "") + self.masked(f" It has {others}")

    @property
    def _set_key(self) -> str:
        """How to set the key."""
        if self._key_variable:
            return f"Set the environment variable {self._key_variable}"
        return f"Put it into an environment variable NAME and set {self.group}.api_key_env=NAME"

    def _redirected(self, failure: Failure) -> str:
        """The message about a redirect. It shows the new address without its query, which may contain a secret."""
        url = urlsplit(failure.location or "")
        address = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}" if url.netloc else url.path or "an unknown address"
        base_url = address.rstrip("/").removesuffix(self.path)
        message = (
            f"the server redirects to {self.masked(address)} (status {failure.status}). fcot follows none: keys, headers and prompts go to "
            f"{self.group}.base_url={self.base_url or OPENAI_URL} only. "
        )
        if url.netloc and base_url != address.rstrip("/"):
            return message + f"If that server is yours, set {self.group}.base_url={self.masked(base_url)}"
        return message + f"If that is a login page: is {self.group}.base_url the address of the API itself?"

    def not_the_api(self, failure: Failure) -> str:
        """The message about a web page in the place of the first answer."""
        return (
            f"{self.group}.base_url={self.base_url or 'OpenAI'} answers with a page in HTML, not with the API's JSON: "
            f"{self.masked(failure.text)}. It may be the login page of a proxy (NO_PROXY=HOST bypasses a proxy) or of the server: "
            f"is it the address of the API itself, and does it end in /v1?"
        )

    def remedy(self, failure: Failure) -> str:
        """The override that leaves out or renames the parameter that an error names; empty if there is none."""
        name = failure.parameter(self.sent)
        if name == SCORING:
            return f". Scoring a text needs a server with vLLM's {SCORING}; a local model needs none (objective.teacher=FOLDER, teacher=hf)"
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
