"""Servers of a company: headers, redirects, proxies, login pages, and models that think for minutes."""

from __future__ import annotations

import asyncio
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from fake_openai import FakeServer
from teachers import plan, problems

from fcot.base.errors import BudgetSpent, FcotError
from fcot.config.overrides import prepare
from fcot.llm.calls import Calls
from fcot.llm.failures import Failure
from fcot.llm.generate import generate_completions
from fcot.llm.money import Price
from fcot.llm.openai import OpenAIModel
from fcot.llm.server import Server, header_faults, unset_header_faults
from fcot.llm.store.folder import StoreFolder
from fcot.llm.throttle import Throttle

KEY = "sk-made-up-0123456789abcdefghij"
TEAM = "team-secret-value-17"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("TEAM_TOKEN", TEAM)
    monkeypatch.setattr("fcot.llm.openai._LONGEST_WAIT_S", 0.0)


def model_at(url, timeout_s=20.0, max_retries=20, **options):
    options = {"api_key_env": "MY_KEY", "headers": {"X-Team": "TEAM_TOKEN"}} | options
    server = Server(
        model="m", model_id="m", chat=True, temperature=0.7, parameters={}, max_tokens_parameter="max_tokens", base_url=url,
        timeout_s=timeout_s, **options,
    )  # fmt: skip
    return OpenAIModel(server, Throttle(2, None, None), 1, max_retries)


def buy(model, folder, n=1, **options):
    return list(generate_completions(plan(model, 1, **options), StoreFolder(folder), problems(n)))


def failure(faults, folder, **options):
    """The message of a purchase from a server with these faults, and the server's statistics."""
    with FakeServer(faults) as server:
        with pytest.raises(FcotError) as error:
            buy(model_at(server.base_url, **options), folder)
        return str(error.value), server.stats()


def bytes_below(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


# --- headers ----------------------------------------------------------------------------------------------------------


def test_headers_are_sent_with_values_from_the_environment_and_are_stored_nowhere(tmp_path):
    with FakeServer() as server:
        buy(model_at(server.base_url), tmp_path)
        sent = server.stats()["last"]
    assert {request["headers"]["x-team"] for request in sent} == {TEAM}
    assert TEAM.encode() not in bytes_below(tmp_path)
    assert KEY.encode() not in bytes_below(tmp_path)


def test_headers_are_no_part_of_a_request_in_the_store(tmp_path):
    with FakeServer() as server:
        buy(model_at(server.base_url), tmp_path)
        n = server.stats()["requests"]
        buy(model_at(server.base_url, headers={"X-Team": "MY_KEY", "X-Other": "MY_KEY"}), tmp_path)
        assert server.stats()["requests"] == n


@pytest.mark.parametrize("value", [TEAM, "x7"])
def test_a_header_that_the_server_repeats_in_an_error_is_masked(tmp_path, monkeypatch, value):
    monkeypatch.setenv("TEAM_TOKEN", value)
    message, _ = failure(["forbidden"], tmp_path)
    assert "Forbidden by corporate proxy for team ***" in message
    assert value not in message


@pytest.mark.parametrize(
    "argument",
    [
        "teacher.headers={X-Team: 9f8e-77}", "teacher.headers={X-Team: 'Bearer abc'}", "teacher.headers.X-Team=ab+cd=",
        "teacher.headers={A: GOOD_VAR, B: sk-proj1234567890abcdefgh}", "teacher.headers={X: ${oc.env:HOME}}",
    ],
)  # fmt: skip
def test_a_header_with_a_value_on_the_command_line_is_rejected_and_not_repeated(argument):
    with pytest.raises(FcotError, match="name of an environment variable") as error:
        prepare([argument])
    for secret in ("9f8e", "abc", "ab+cd", "1234567890", "HOME"):
        assert secret not in str(error.value)


@pytest.mark.parametrize("argument", ["teacher.headers={X-Api-Key: MY_KEY, X-Auth-Token: TEAM_TOKEN}", "teacher.headers.X-Api-Key=MY_KEY"])
def test_headers_with_names_of_variables_are_accepted(argument):
    assert prepare([argument]) == [f"++{argument}"]


def test_a_header_variable_that_is_not_set_is_named_where_it_cannot_be_a_secret(monkeypatch):
    monkeypatch.delenv("TEAM_TOKEN")
    unset = {"A": "TEAM_TOKEN", "B": "AKIAIOSFODNN7EXAMPLE", "C": "GHP_4X9QLM2", "D": "team_secret"}
    first, *others = unset_header_faults("teacher.headers", unset)
    message = "the environment variable TEAM_TOKEN with the value of A is not set or is empty: export TEAM_TOKEN=..."
    assert first == f"teacher.headers: {message}"
    assert all("export NAME=..." in fault for fault in others)
    assert not any(secret in "".join(others) for secret in list(unset.values())[1:])


def test_all_faults_of_headers_are_named_without_their_values(monkeypatch):
    monkeypatch.setenv("BROKEN", "a\nb")
    headers = {"X-A": "geheim123", "X-B": "BROKEN", "Host": "TEAM_TOKEN", "X C": "TEAM_TOKEN", "X-D": "not a name", "X-E": "TEAM_TOKEN"}
    faults = [*header_faults("teacher.headers", headers), *unset_header_faults("teacher.headers", headers)]
    assert len(faults) == 5
    for name, fault in zip(("Host", "X C", "X-D", "X-A", "X-B"), faults, strict=True):
        assert name in fault
        assert "geheim" not in fault
        assert "not a name" not in fault


# --- redirects --------------------------------------------------------------------------------------------------------


def test_a_redirect_takes_no_key_no_header_and_no_prompt_to_another_server(tmp_path):
    with FakeServer() as other:
        message, stats = failure([f"redirect:{other.base_url}"], tmp_path)
        assert other.stats()["requests"] == 0
    assert stats["requests"] == 1
    assert f"teacher.base_url={other.base_url}" in message
    assert "status 307" in message


def test_the_query_of_a_redirect_is_not_shown(tmp_path):
    message, _ = failure(["redirect:https://user:pw@login.example/start?ticket=s3cret&next="], tmp_path)
    assert "https://login.example/start" in message
    assert "address of the API itself" in message
    assert "s3cret" not in message
    assert "pw" not in message


class Redirecting(BaseHTTPRequestHandler):
    """Redirects every request to ``target``; counts those that arrive at ``target``."""

    target, arrived = "", 0

    def do_GET(self):
        if self.path.startswith("/stolen"):
            type(self).arrived += 1
        self.send_response(302)
        self.send_header("Location", f"{self.target}/stolen{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_calls_for_files_and_batches_follow_no_redirects_either():
    web = ThreadingHTTPServer(("127.0.0.1", 0), Redirecting)
    Thread(target=web.serve_forever, daemon=True).start()
    port = web.server_address[1]
    Redirecting.target = f"http://localhost:{port}"  # another host name
    calls = Calls(model_at(f"http://127.0.0.1:{port}/v1")._server, "the Batch API", 3)
    try:
        with pytest.raises(FcotError, match=r"the server redirects to http://localhost:\d+/stolen/v1/files \(status 302\)"):
            asyncio.run(calls(lambda client: client.files.list()))
    finally:
        web.shutdown()
        web.server_close()
    assert Redirecting.arrived == 0


# --- messages of proxies and servers ----------------------------------------------------------------------------------


def test_a_403_shows_its_body_and_names_the_values_of_headers_first(tmp_path):
    message, stats = failure(["forbidden"], tmp_path, api_key_env=None)
    assert "Forbidden by corporate proxy" in message
    assert "Either the value of $TEAM_TOKEN (header X-Team) is wrong, or a proxy in between forbids it (NO_PROXY" in message
    assert "requires another header" in message
    assert "NO_PROXY" in message
    assert "teacher.api_key_env=NAME" in message
    assert stats["requests"] == 1


def test_a_403_without_headers_names_the_proxy_first(tmp_path):
    message, _ = failure(["forbidden"], tmp_path, headers={})
    assert "Either a proxy in between forbids it" in message
    assert "requires a header" in message


@pytest.mark.parametrize(("key", "message"), [
    ("MY_KEY", r"rejects the key in \$MY_KEY: .*\. Or the value of \$TEAM_TOKEN \(header X-Team\) is wrong$"),
    (None, r"requires a key: .*\. The value of \$TEAM_TOKEN \(header X-Team\) is wrong\. Or: Put it into an environment variable"),
])  # fmt: skip
def test_a_401_doubts_the_values_of_headers_too(key, message, tmp_path):
    assert re.search(message, failure(["401"], tmp_path, api_key_env=key)[0])


def test_a_model_that_the_server_does_not_have_is_named_with_those_that_it_has(tmp_path):
    with FakeServer(only_model="m-thinking") as server:
        model = model_at(server.base_url)
        model._server.model = "m-thinkng"
        with pytest.raises(FcotError) as error:
            buy(model, tmp_path)
    message = str(error.value)
    assert message.startswith("the server has no model teacher.model=m-thinkng: NotFoundError: The model `m-thinkng` does not exist or")
    assert message.endswith("Did you mean teacher.model=m-thinking? It has embedding, m-thinking")
    assert "/v1" not in message


@pytest.mark.parametrize(
    ("status", "body", "url", "message"),
    [
        (404, {"detail": "Not Found"}, "http://host/api", r"or no endpoint teacher\.endpoint=chat at .*/api: does it end in /v1\?"),
        (404, {"detail": "Not Found"}, "http://host/v1", r"or no endpoint .*/v1: is that the address of the API\?"),
        (404, {"error": {"message": 'model "m" not found, try pulling it first'}}, "http://host/v1", r"^the server has no model teacher"),
        (404, {"message": "The model `m` does not exist.", "code": 404}, "http://host/v1", r"^the server has no model teacher"),
        (400, {"error": {"message": "unknown model m"}}, "http://host/v1", r"^the server has no model teacher"),
        (400, {"error": {"message": "this model takes no stop: option not found"}}, "http://host/v1", r"^the server rejects the request"),
    ],
)
def test_a_missing_model_and_a_missing_address_are_told_apart(status, body, url, message):
    text = json.dumps(body)
    assert re.search(message, model_at(url)._server.stop_message(Failure("NotFoundError", text, status, body)))


def test_an_unknown_field_names_the_override_that_leaves_it_out(tmp_path):
    message, stats = failure(["unknown_field:seed"], tmp_path)
    assert "Unknown field 'seed'" in message
    assert '"teacher.parameters={seed:null}" leaves it out' in message
    assert stats["requests"] == 1


def test_a_login_page_instead_of_the_first_answer_stops_the_run(tmp_path):
    message, stats = failure(["login"], tmp_path)
    assert "a page in HTML, not with the API's JSON: Sign in to Contoso Password:" in message
    assert "login page of a proxy" in message
    assert stats["requests"] == 1


def test_a_web_page_among_answers_is_retried(tmp_path):
    with FakeServer([None, "login", None]) as server:
        buy(model_at(server.base_url), tmp_path, n=2)
        stats = server.stats()
    assert stats["faulty"] == {"login": 1}


def test_an_answer_that_is_not_json_is_shown(tmp_path):
    message, _ = failure(["invalid_json"] * 2, tmp_path, max_retries=1)
    assert 'an answer that is not JSON: {"choices": [{"text": "oh' in message


# --- models that think for minutes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["slow:60", "trickle:60"])
def test_a_server_that_does_not_answer_in_time_is_named_with_the_override_before_much_is_spent(tmp_path, capsys, fault):
    """Whether it is silent or keeps the connection alive with blanks: 4 tries, each counted at its maximum cost."""
    message, stats = failure([fault] * 9, tmp_path, timeout_s=0.5)
    assert "4 tries of one request failed, the last with no answer within 0.5 s (teacher.timeout_s=2.5 waits longer)" in message
    assert stats["requests"] == 4
    assert capsys.readouterr().err.count("counts at its maximum cost and is sent again") == 1


def test_a_longer_timeout_waits_for_the_answer(tmp_path):
    with FakeServer(["slow:1", "slow:1"]) as server:
        (completion,) = buy(model_at(server.base_url, timeout_s=30), tmp_path)
        stats = server.stats()
    assert completion.answer_text
    assert stats["requests"] == 2


def test_requests_that_time_out_end_the_purchase_at_its_budget(tmp_path):
    price = Price(1.0, 1000.0, 1.0)
    with FakeServer(["slow:60"] * 9) as server:
        model = model_at(server.base_url, timeout_s=0.5)
        with pytest.raises(BudgetSpent):
            buy(model, tmp_path, price=price, budget_usd=0.3)  # at most 128 completion tokens: two tries of $0.128
        assert server.stats()["requests"] == 2
