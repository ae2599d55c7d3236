"""The error replies of different servers, and the dialects of their completions."""

from __future__ import annotations

import asyncio
import json
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx
import openai
import pytest
from teachers import PROMPT, RULE, plan, problems

from fcot.base.errors import FcotError
from fcot.llm.failures import ErrorInside, Malformed, error_inside, failure_of
from fcot.llm.generate import generate_completions
from fcot.llm.openai import OpenAIModel
from fcot.llm.replies import to_reply
from fcot.llm.server import Server, key_fault, key_variable
from fcot.llm.store.folder import StoreFolder
from fcot.llm.throttle import Throttle

SENT = ["temperature", "top_p", "seed", "n", "max_tokens", "stop", "messages", "model"]


def failed(status, body, **headers):
    """The failure that an error of the official client becomes."""
    content = body if isinstance(body, str) else json.dumps(body)
    response = httpx.Response(status, text=content, headers=headers, request=httpx.Request("POST", "http://x/v1/chat/completions"))
    try:
        raise openai.AsyncOpenAI(api_key="k", base_url="http://x")._make_status_error_from_response(response)
    except openai.APIStatusError as error:
        return failure_of(error)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, {"error": {"message": "No such thing", "type": "invalid_request_error", "param": None, "code": None}}, "No such thing"),
        (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs"}]}, "Extra inputs"),
        (422, {"detail": "not so"}, "not so"),
        (422, {"error": "text alone", "error_type": "validation"}, "text alone"),
        (400, [{"error": {"code": 400, "message": "in a list"}}], "in a list"),
        (500, "<html><body><h1>Internal</h1></body></html>", "Internal"),
        (400, {"message": "flat", "object": "error"}, "flat"),
        (400, "plain text", "plain text"),
        (400, {"errors": {"field": ["bad"]}}, '"bad"'),
        (400, {"error": {"message": {"nested": "deep"}}}, "deep"),
    ],
)
def test_the_message_of_an_error_of_any_shape_is_shown(status, body, expected):
    assert expected in failed(status, body).text


def test_a_long_error_is_cut():
    assert len(failed(400, {"error": "x" * 5000}).text) < 700


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"error": {"message": "x", "param": "seed"}}, "seed"),
        ({"detail": [{"loc": ["body", "top_p"], "msg": "Extra inputs are not permitted"}]}, "top_p"),
        ([{"error": {"message": 'Unknown name "seed": Cannot find field.'}}], "seed"),
        ({"error": "Input validation error: `top_p` must be > 0.0 and < 1.0"}, "top_p"),
        ({"error": {"message": "'n' : number must be at most 1"}}, "n"),
        (
            {"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}},
            "max_tokens",
        ),
        ({"error": {"message": "Unrecognized request argument supplied: seed"}}, "seed"),
        ({"message": "temperature is not supported by this model"}, "temperature"),
        ({"error": {"message": "n > 1 is not supported"}}, "n"),
        ({"error": {"message": "parameter stop: at most 4 sequences"}}, "stop"),
        ({"error": {"message": "Only one completion choice is allowed"}}, None),
        ({"error": {"message": "The number 5 is wrong"}}, None),
        ({"error": {"message": "something", "param": "response_format"}}, None),
    ],
)
def test_the_rejected_parameter_is_identified(body, name):
    assert failed(400, body).parameter(SENT) == name


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
        "the request exceeds the available context size. try increasing the context size or enable context shift",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens and 512 `max_new_tokens`",
        "`inputs` must have less than 1024 tokens. Given: 2000",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "The input token count (40000) exceeds the maximum number of tokens allowed (32768).",
        "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
        "Please reduce the length of the messages or completion.",
        "input is too long for requested model",
        "too many tokens: size limit exceeded",
        "Your input exceeds the context window of this model.",
    ],
)
def test_a_prompt_that_is_too_long_is_recognised_in_any_words_and_shape(message):
    for body in ({"error": {"message": message}}, {"error": message}, {"detail": message}, message):
        failure = failed(400, body)
        assert failure.prompt_fault() == "too_long"
        assert not failure.maybe_charged


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (
            403,
            {"error": {"code": 403, "message": "needs moderation", "metadata": {"reasons": ["violence"]}}},
            True,
        ),
        (400, {"error": {"code": "content_filter", "message": "no"}}, True),
        (400, {"error": {"message": "Your request was flagged by our safety system"}}, True),
        (403, {"error": {"message": "You do not have access to this model"}}, False),
        (401, {"error": {"message": "moderation"}}, False),
    ],
)
def test_only_a_prompt_that_moderation_rejects_is_skipped(status, body, reason):
    assert failed(status, body).prompt_fault() == ("prompt_filtered" if reason else None)


def test_a_limit_of_tokens_per_minute_does_not_mean_a_long_prompt():
    body = {"error": {"message": "Request too large for model on tokens per minute (TPM): Limit 6000, Requested 7000", "code": "x"}}
    assert failed(413, body).prompt_fault() is None


OVERLOADED = {"error": {"message": "overloaded", "code": "x"}}


@pytest.mark.parametrize(
    ("status", "body", "charged"),
    [
        (400, OVERLOADED, False), (401, "", False), (429, OVERLOADED, False), (500, OVERLOADED, False), (503, OVERLOADED, False),
        (529, OVERLOADED, False), (502, OVERLOADED, True), (504, OVERLOADED, True), (524, "", True),
        (500, "<html>", True), (503, "<html>", True), (500, "", True),
    ],
)  # fmt: skip
def test_which_failed_requests_may_be_charged(status, body, charged):
    assert failed(status, body).maybe_charged == charged


@pytest.mark.parametrize(("error", "charged"), [(TimeoutError(), True), (Malformed("x"), True), (json.JSONDecodeError("x", "", 0), True)])
def test_a_request_whose_answer_breaks_off_may_be_charged(error, charged):
    assert failure_of(error).maybe_charged == charged
    assert failure_of(error).retriable or failure_of(error).status == 200


def test_a_request_without_a_connection_is_free():
    error = openai.APIConnectionError(request=httpx.Request("POST", "http://x"))
    error.__cause__ = httpx.ConnectError("refused")
    assert not failure_of(error).maybe_charged
    assert failure_of(error).retriable


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"choices": None, "error": {"message": "Insufficient credits", "code": 402}}, 402),
        ({"error": {"message": "Rate limit exceeded: free tier", "code": "429"}}, 429),
        ({"error": {"message": "rate_limit reached"}}, 429),
        ({"error": "the model is overloaded"}, 503),
        ({"choices": [], "error": {"code": 502, "message": "x"}}, 502),
        ({"error": {"message": "who knows"}}, 200),
    ],
)
def test_an_error_inside_an_answer_has_its_own_status(answer, status):
    assert error_inside(answer).status == status
    with pytest.raises(ErrorInside):
        to_reply(answer)


# --- completions ------------------------------------------------------------------------------------------------------


def message(content, reason="stop", **fields):
    return {
        "choices": [{"message": {"content": content, **fields}, "finish_reason": reason}],
        "model": "m-2025",
        "system_fingerprint": "fp",
    }


@pytest.mark.parametrize(
    ("content", "fields", "text", "reasoning"),
    [
        ("plain", {}, "plain", None),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], {}, "ab", None),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "a"}], {}, "a", "hm"),
        ([{"type": "reasoning", "text": "hm"}, "a"], {}, "a", "hm"),
        ([{"text": "a"}], {}, "a", None),
        ("a", {"reasoning_content": "hm"}, "a", "hm"),
        ("a", {"reasoning": "hm"}, "a", "hm"),
        ("a", {"reasoning": {"content": "hm"}}, "a", "hm"),
        ("a", {"reasoning_details": [{"type": "reasoning.text", "text": "h"}, {"type": "reasoning.summary", "summary": "m"}]}, "a", "hm"),
        (None, {"reasoning_content": "hm"}, "", "hm"),
    ],
)
def test_content_in_parts_is_joined_and_reasoning_is_kept_apart(content, fields, text, reasoning):
    reply = to_reply(message(content, **fields))
    assert (reply.choices[0].text, reply.choices[0].reasoning) == (text, reasoning)
    assert (reply.model, reply.fingerprint) == ("m-2025", "fp")


@pytest.mark.parametrize(
    ("reason", "meaning"),
    [
        ("stop", "stop"), ("eos_token", "stop"), ("end_turn", "stop"), ("STOP", "stop"), ("stop_sequence", "stop"), ("length", "length"),
        ("MAX_TOKENS", "length"), ("max_tokens", "length"), ("model_length", "length"),
        ("SAFETY", "content_filter"), ("odd", "odd"), (None, None),
    ],
)  # fmt: skip
def test_the_finish_reasons_of_other_vendors_are_translated(reason, meaning):
    assert to_reply(message("a", reason)).choices[0].finish_reason == meaning


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base_url", "api_key_env", "environment", "variable", "fault"),
    [
        (None, None, {"OPENAI_API_KEY": "k"}, "OPENAI_API_KEY", None),
        (None, None, {}, "OPENAI_API_KEY", "needs the environment variable OPENAI_API_KEY"),
        ("https://api.openai.com/v1", None, {"OPENAI_API_KEY": "k"}, "OPENAI_API_KEY", None),
        ("http://127.0.0.1:1/v1", None, {}, None, None),
        ("http://127.0.0.1:1/v1", None, {"OPENAI_API_KEY": "k"}, None, "t.api_key_env=OPENAI_API_KEY sends this key to the server"),
        ("http://127.0.0.1:1/v1", "none", {"OPENAI_API_KEY": "k"}, None, None),
        ("http://127.0.0.1:1/v1", "OPENAI_API_KEY", {"OPENAI_API_KEY": "k"}, "OPENAI_API_KEY", None),
        ("http://127.0.0.1:1/v1", "MINE", {"MINE": "k", "OPENAI_API_KEY": "k"}, "MINE", None),
        ("http://127.0.0.1:1/v1", "MINE", {}, "MINE", "t.api_key_env=MINE: there is no such environment variable"),
        (None, None, {"OPENAI_BASE_URL": "http://a/v1", "OPENAI_API_KEY": "k"}, "OPENAI_API_KEY", None),
        (None, None, {"OPENAI_BASE_URL": "http://a/v1"}, "OPENAI_API_KEY", None),
        ("http://a/v1", None, {"OPENAI_BASE_URL": "http://a/v1", "OPENAI_API_KEY": "k"}, "OPENAI_API_KEY", None),
        ("http://b/v1", None, {"OPENAI_BASE_URL": "http://a/v1", "OPENAI_API_KEY": "k"}, None, "is not the server that OPENAI_API_KEY"),
    ],
)
def test_a_key_goes_only_to_the_server_it_belongs_to(monkeypatch, base_url, api_key_env, environment, variable, fault):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "MINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert key_variable(base_url, api_key_env) == variable
    reported = key_fault("t.", base_url, api_key_env)
    assert (reported is None) == (fault is None)
    assert fault is None or fault in reported


# --- a server with quirks ---------------------------------------------------------------------------------------------


class Quirky:
    """Answers with ``answer(body) -> (status, object)`` on 127.0.0.1, and records bodies and keys in ``received``."""

    def __init__(self, answer):
        received = self.received = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                received.append((body, self.headers.get("Authorization")))
                status, reply = answer(body)
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self):
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def good(body, n):
    usage = {"prompt_tokens": 5, "completion_tokens": 3 * n}
    return 200, {"choices": [{"message": {"content": f" {i}"}, "finish_reason": "stop"} for i in range(n)], "usage": usage, "model": "m"}


def buy(url, tmp_path, n=3, diversity=4, **options):
    server = Server(
        model="m", model_id="m", chat=True, temperature=0.7, parameters={}, max_tokens_parameter="max_tokens", base_url=url,
        timeout_s=20.0, **options,
    )  # fmt: skip
    purchase = plan(OpenAIModel(server, Throttle(4, None, None), 4, 2), diversity, PROMPT)
    return list(generate_completions(purchase, StoreFolder(tmp_path), problems(n)))


@pytest.mark.parametrize("error", [(400, "sampling more than one is off"), (500, "Only one completion choice is allowed"), (422, "bad")])
def test_after_an_unclear_error_about_several_choices_one_choice_is_tried_once(tmp_path, capsys, monkeypatch, error):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    status, text = error
    with Quirky(lambda body: good(body, 1) if body.get("n", 1) == 1 else (status, {"error": {"message": text}})) as quirky:
        completions = buy(quirky.url, tmp_path)
    assert len(completions) == 12
    assert all(RULE.first(completion.answer_text) for completion in completions)
    assert sum(body.get("n", 1) > 1 for body, _ in quirky.received) == 1
    assert capsys.readouterr().err.count("rejects several choices per request") == 1


def test_an_error_that_remains_with_one_choice_is_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Quirky(lambda body: (400, {"detail": "the moon is wrong"})) as quirky, pytest.raises(FcotError, match="the moon is wrong"):
        buy(quirky.url, tmp_path)
    assert [body.get("n") for body, _ in quirky.received] == [4, 1]


def test_a_key_reaches_its_own_server_only(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-own")
    monkeypatch.setenv("OTHER", "sk-other")
    with Quirky(lambda body: good(body, body["n"])) as default, Quirky(lambda body: good(body, body["n"])) as other:
        buy(default.url, tmp_path / "1")
        buy(other.url, tmp_path / "2", api_key_env="OTHER")
    assert {key for _, key in default.received} == {"Bearer unused"}
    assert {key for _, key in other.received} == {"Bearer sk-other"}


def test_rows_record_the_model_and_the_fingerprint_that_the_server_reports(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def answer(body):
        status, reply = good(body, body["n"])
        for choice in reply["choices"]:
            choice["message"]["reasoning_content"] = "because"
        return status, reply | {"model": "m-2025-11", "system_fingerprint": "fp_1"}

    with Quirky(answer) as quirky:
        buy(quirky.url, tmp_path, n=1)
    rows = [json.loads(line) for path in tmp_path.glob("?.jsonl") for line in path.read_text().splitlines()]
    assert {(row["model"], row["fingerprint"], row["reasoning"]) for row in rows} == {("m-2025-11", "fp_1", "because")}


def test_a_refused_connection_is_not_called_a_timeout(monkeypatch):
    """The client raises the same exception for both."""
    monkeypatch.setenv("NO_PROXY", "*")

    async def refused(url):
        client = openai.AsyncOpenAI(api_key="x", base_url=url, max_retries=0, http_client=openai.DefaultAioHttpClient(timeout=30))
        try:
            await client.post("/chat/completions", cast_to=bytes, body={})
        finally:
            await client.close()

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(openai.APIConnectionError) as caught:
            asyncio.run(refused(f"http://127.0.0.1:{closed.getsockname()[1]}/v1"))
    failure = failure_of(caught.value)
    assert failure.text.startswith("no connection: [Errno 111]")
    assert "imed out" not in f"{failure.kind} {failure.text}"
    assert (failure.connected, failure.retriable, failure.pushes_back, failure.maybe_charged) == (False, True, False, False)
