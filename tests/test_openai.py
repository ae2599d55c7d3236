"""The OpenAI client over real HTTP, against a server that misbehaves on purpose (``fake_openai.py``)."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from email.utils import formatdate
from types import SimpleNamespace

import fake_openai
import pytest
import zygote
from fake_openai import FakeServer
from teachers import PROMPT, RULE, plan, problems

from fcot.base.errors import FcotError
from fcot.llm.failures import retry_after
from fcot.llm.generate import generate_completions
from fcot.llm.openai import OpenAIModel
from fcot.llm.replies import to_reply
from fcot.llm.requests import Request, Usage
from fcot.llm.server import Server
from fcot.llm.store.folder import StoreFolder
from fcot.llm.throttle import Throttle

KEY = "sk-made-up-0123456789abcdefghij"
TEAM = "made-up-value-of-a-header"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def teacher(server, **options):
    """A model from keyword arguments of its server, its throttle and itself."""
    settings = {
        "model": "fake", "model_id": "fake", "chat": True, "temperature": 0.7, "base_url": server.base_url, "timeout_s": 20.0,
        "parameters": {}, "max_tokens_parameter": "max_tokens", "concurrency": 4, "max_choices": 1, "max_retries": 3,
        "api_key_env": "OPENAI_API_KEY",
    } | options  # fmt: skip
    rates = [settings.pop(name, None) for name in ("concurrency", "requests_per_minute", "tokens_per_minute")]
    limits = settings.pop("max_choices"), settings.pop("max_retries")
    return OpenAIModel(Server(**settings), Throttle(*rates), *limits)


def send(model, request=None, n=1, seed=0):
    """Send one request; returns its reply."""

    async def run():
        try:
            return await model.generate(request or step1(model), n, seed)
        finally:
            await model.close()

    return asyncio.run(run())


def step1(model):
    return Request(PROMPT.first_request(problems(1)[0].question, RULE, model.chat), 128, problem=problems(1)[0])


def generate(model, tmp_path, diversity=4, n=5, run_id="run", **options):
    purchase = plan(model, diversity, run_id=run_id, **options)
    generated = generate_completions(purchase, StoreFolder(tmp_path / "store"), problems(n))
    return list(generated), generated.usage()


def assert_right(completions, n, diversity):
    gold = {problem.sample_index: problem.answer for problem in problems(n)}
    assert len(completions) == n * diversity
    assert all(RULE.same(PROMPT.parse(c, RULE), gold[c.sample_index]) for c in completions)


# --- what goes over the wire ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_completion_takes_two_requests(tmp_path, endpoint):
    with FakeServer() as server:
        (completion,), usage = generate(teacher(server, chat=endpoint == "chat", model_id="other name"), tmp_path, diversity=1, n=1)
        stats = server.stats()
    first, second = stats["last"]
    prompt = f"Q: {problems(1)[0].question}\nA: Let's think step by step."
    shared = {"model": "fake", "temperature": 0.7, "n": 1, "seed": 0}
    if endpoint == "chat":
        user = {"role": "user", "content": prompt}
        turns = [user, {"role": "assistant", "content": completion.rationale}, {"role": "user", "content": "Therefore, the answer is"}]
        assert first["body"] == {"messages": [user], "max_tokens": 128, **shared}
        assert second["body"] == {"messages": turns, "max_tokens": 16, **shared}
    else:
        assert first["body"] == {"prompt": prompt, "max_tokens": 128, **shared}
        text = f"{prompt}{completion.rationale}\nTherefore, the answer is"
        assert second["body"] == {"prompt": text, "max_tokens": 16, **shared}
    assert {request["path"] for request in stats["last"]} == {"/v1/chat/completions" if endpoint == "chat" else "/v1/completions"}
    assert_right([completion], 1, 1)
    assert usage["requests"] == 2
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (stats["prompt_tokens"], stats["completion_tokens"])


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_one_request_returns_several_choices(tmp_path, endpoint):
    with FakeServer() as server:
        completions, usage = generate(teacher(server, chat=endpoint == "chat", max_choices=3), tmp_path, diversity=8)
        stats = server.stats()
    assert_right(completions, 5, 8)
    assert all(len({c.rationale for c in completions if c.sample_index == i}) == 8 for i in range(5))
    bodies = [request["body"] for request in stats["last"]]
    assert Counter((body["n"], body["seed"]) for body in bodies if body["max_tokens"] == 128) == {(3, 0): 5, (3, 3): 5, (2, 6): 5}
    assert usage["requests"] == stats["requests"] == len(bodies) == 5 * (3 + 8)
    assert usage["completion_tokens"] == stats["completion_tokens"]


def test_the_store_serves_another_url_and_concurrency_but_not_another_model(tmp_path):
    with FakeServer() as server:
        first, _ = generate(teacher(server), tmp_path)
    with FakeServer() as server:
        again, usage = generate(teacher(server, concurrency=1, max_choices=4, timeout_s=5.0, max_retries=0), tmp_path, run_id="two")
        assert server.stats()["requests"] == 0
        assert (again, usage["served_from_store"]) == (first, 2 * 20)
        generate(teacher(server, model_id="fake-2"), tmp_path)
        generate(teacher(server, chat=False), tmp_path)
        assert server.stats()["good_choices"] == 2 * 2 * 20


@pytest.mark.parametrize("concurrency", [1, 4])
def test_concurrency_limits_the_requests_in_flight(tmp_path, concurrency):
    with FakeServer(latency=0.02) as server:
        generate(teacher(server, concurrency=concurrency), tmp_path, diversity=4)
        peak = server.stats()["peak_in_flight"]
    assert peak == 1 if concurrency == 1 else 1 < peak <= concurrency


# --- transient errors are retried ---------------------------------------------------------------------------------------


TRANSIENT = [
    "408:0",
    "429:0",
    "429",
    "500:0",
    "503:0",
    "529:0",
    "html",
    "reset",
    "invalid_json",
    "invalid_utf8",
    "no_choices",
    "null_choice",
    "odd_content",
    "empty_body",
]


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_transient_fault_is_retried(endpoint, fault):
    with FakeServer([fault]) as server:
        model = teacher(server, chat=endpoint == "chat")
        reply = send(model)
        stats = server.stats()
    first, second = stats["last"]
    assert first["body"] == second["body"]
    assert (stats["requests"], stats["good_choices"], sum(stats["faulty"].values())) == (2, 1, 1)
    assert [choice.text for choice in reply.choices] == [fake_openai.write_choice(step1(model).prompt, 0)]
    assert reply.usage == Usage(stats["prompt_tokens"], stats["completion_tokens"])


def test_an_answer_that_takes_too_long_is_retried():
    with FakeServer(["slow:60"]) as server:
        assert send(teacher(server, timeout_s=0.5)).choices[0].refused is None
        assert server.stats()["requests"] == 2


def test_retry_after_is_honored():
    """The server counts requests that come before the time in its answer as early."""
    with FakeServer(["429:1", "503:1"]) as server:
        send(teacher(server))
        stats = server.stats()
    assert (stats["requests"], stats["early"]) == (3, 0)


def test_the_fake_server_counts_early_requests():
    with FakeServer(["429:60"]) as server:
        with pytest.raises(FcotError, match="1 tries of one request failed"):
            send(teacher(server, max_retries=0))
        send(teacher(server))
        assert server.stats()["early"] == 1


def test_a_request_is_retried_max_retries_times():
    with FakeServer(["500:0"] * 10) as server:
        with pytest.raises(
            FcotError,
            match=r"teacher\.model=fake at .*: 4 tries of one request failed, the last with InternalServerError.*server_error.*store",
        ):
            send(teacher(server))
        assert server.stats()["requests"] == 4


def test_an_unreachable_server_is_named_in_the_error():
    with FakeServer() as server:
        url = server.base_url
    with pytest.raises(
        FcotError, match=rf"no server answers at teacher.base_url={url} \(.*Connect call failed.*\): is it running\? 2 tries"
    ):
        send(teacher(server, max_retries=1))


@pytest.fixture
def impatient(monkeypatch):
    """Limit the wait between tries to a tenth of a second, unless the server requests a longer wait."""
    monkeypatch.setattr("fcot.llm.openai._LONGEST_WAIT_S", 0.0)


def test_an_unreachable_server_is_tried_four_times_and_a_busy_server_more_often(impatient):
    with FakeServer() as server:
        url = server.base_url
    with pytest.raises(FcotError, match=f"no server answers at teacher.base_url={url} .* 4 tries"):
        send(teacher(server, max_retries=20))
    with FakeServer(["429"] * 6) as server:
        send(teacher(server, max_retries=20))
        assert server.stats()["requests"] == 6 + 1


@pytest.mark.parametrize("fault", ["500", "reset", "429:0", "empty", "too_long", "slow:60"])
def test_every_answer_frees_its_place_in_the_throttle(impatient, fault):
    """The throttle has two places: if each of three faults lost its place, the next request would wait forever."""
    with FakeServer([None] + [fault] * 3) as server:
        model = teacher(server, concurrency=2, max_retries=8, timeout_s=0.2 if fault.startswith("slow") else 20.0)

        async def run():
            for _ in range(4):
                await asyncio.wait_for(model.generate(step1(model), 1, 0), 60)
            together = asyncio.gather(*(model.generate(step1(model), 1, 0) for _ in range(4)))
            replies = await asyncio.wait_for(together, 60)
            await model.close()
            return replies

        assert [choice.refused for reply in asyncio.run(run()) for choice in reply.choices] == [None] * 4


def stub(**headers):
    """An error like those of the client, with the headers of the server's answer."""
    return SimpleNamespace(response=SimpleNamespace(headers={name.replace("_", "-"): value for name, value in headers.items()}))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "0.25"}, 0.25),
        ({"retry_after": "-3"}, 0.0),
        ({"retry_after_ms": "1500"}, 1.5),
        ({"retry_after_ms": "1500", "retry_after": "7"}, 1.5),
        ({"retry_after": "soon"}, None),
        ({"retry_after_ms": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_in_seconds_or_milliseconds(headers, seconds):
    assert retry_after(stub(**headers).response) == seconds


def test_retry_after_as_a_date():
    seconds = retry_after(stub(retry_after=formatdate(time.time() + 90, usegmt=True)).response)
    assert 0 < seconds <= 90
    assert retry_after(stub(retry_after=formatdate(time.time() - 90, usegmt=True)).response) == 0


def test_a_wait_of_more_than_ten_minutes_ends_the_run_with_a_message(tmp_path):
    with FakeServer([None, "429:3600"]) as server:
        with pytest.raises(FcotError, match=r"the server asks to wait 3,600 s: RateLimitError.*store.*the same command continues"):
            generate(teacher(server, max_retries=20), tmp_path, diversity=2, n=2)
        assert server.stats()["good_choices"] >= 1


def test_the_servers_limit_on_concurrent_requests_is_found_and_costs_nothing(tmp_path, impatient):
    """The peak shows that the server's limit was reached. Requests that the server rejected were sent again and bought once."""
    with FakeServer(latency=0.02, max_in_flight=12) as server:
        completions, usage = generate(teacher(server, concurrency=None, max_retries=20), tmp_path, diversity=8, n=20)
        stats = server.stats()
    assert_right(completions, 20, 8)
    assert stats["peak_in_flight"] == 12
    assert stats["faulty"]["over_capacity"] > 0
    assert stats["good_choices"] == stats["good_requests"] == usage["requests"] == 2 * 20 * 8
    assert stats["requests"] < 2 * stats["good_requests"], "the server accepted most requests"


# --- unusual answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "refused"), [("empty", "empty"), ("content_filter", "content_filter"), ("length", None)])
def test_refusals_and_finish_reasons_are_kept(fault, refused):
    with FakeServer([fault]) as server:
        first, second = send(teacher(server, max_choices=2), n=2).choices
    assert (first.refused, second.refused) == (refused, None)
    assert first.finish_reason == ("stop" if fault == "empty" else fault)
    assert second.finish_reason == "stop"


@pytest.mark.parametrize(("fault", "usage"), [("no_usage", Usage(None, None)), ("odd_usage", Usage(None, 29))])
def test_usage_that_is_missing_or_no_number_is_unknown(fault, usage):
    with FakeServer([fault]) as server:
        reply = send(teacher(server))
    assert len(reply.choices) == 1
    assert reply.usage.prompt_tokens is None
    assert (reply.usage.completion_tokens is None) == (usage.completion_tokens is None)


@pytest.mark.parametrize(("reason", "refused"), [("length", "empty_at_limit"), ("stop", "empty"), (None, "empty")])
@pytest.mark.parametrize("content", ["", " \n", None])
def test_an_empty_answer_at_its_token_limit_has_its_own_reason(content, reason, refused):
    """A reasoning model that thought until its limit: a higher limit helps, a retry does not."""
    answer = {
        "choices": [{"message": {"content": content}, "finish_reason": reason}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 128},
    }
    reply = to_reply(answer)
    assert [choice.refused for choice in reply.choices] == [refused]
    assert reply.usage == Usage(3, 128)


def test_a_thought_without_a_reply_has_its_own_reason():
    """A server whose reasoning parser does not fit the model returns the whole text as a thought."""
    for message, refused in (({"content": "", "reasoning_content": "So 8."}, "no_reply"), ({"content": "8.", "reasoning": "So 8."}, None)):
        (choice,) = to_reply({"choices": [{"message": message, "finish_reason": "stop"}]}).choices
        assert (choice.refused, choice.reasoning) == (refused, "So 8.")


def test_cached_tokens_are_counted(tmp_path):
    with FakeServer(cached_tokens=True) as server:
        _, usage = generate(teacher(server), tmp_path)
        stats = server.stats()
    assert 0 < stats["cached_tokens"] < stats["prompt_tokens"]
    assert usage["cached_tokens"] == stats["cached_tokens"]


@pytest.mark.parametrize("options", [{"refuse": "n"}, {"ignore_n": True}], ids=["refused", "ignored"])
def test_a_server_that_returns_single_choices_gets_more_requests_and_causes_one_warning(tmp_path, capsys, options):
    with FakeServer(**options) as server:
        completions, usage = generate(teacher(server, max_choices=4, chat=False), tmp_path, diversity=8, n=5)
        stats = server.stats()
    assert_right(completions, 5, 8)
    assert all(len({c.rationale for c in completions if c.sample_index == i}) == 8 for i in range(5))
    assert stats["good_choices"] == stats["good_requests"] == usage["requests"] == 2 * 40
    stderr = capsys.readouterr().err
    if "refuse" in options:
        assert stderr.count("the server rejects several choices per request (parameter n): fcot requests them one by one") == 1
        assert stats["faulty"]["refused_parameter"] == 1, "the first request is sent alone"
    else:
        assert stderr.count("the server returned 1 of 4 requested choices: fcot requests the rest again") == 1
        assert stderr.count("requested choices") == 1, "also not with other numbers"


def test_a_server_that_refuses_several_choices_gets_single_requests_even_without_retries():
    with FakeServer(refuse="n") as server:
        reply = send(teacher(server, max_choices=4, max_retries=0), n=4)
    assert [choice.refused for choice in reply.choices] == [None]


def test_half_a_surrogate_pair_can_be_stored_and_sent_on(tmp_path):
    """Models cut in the middle of an emoji; such a text must survive the store and step 2."""
    with FakeServer(["surrogate"]) as server:
        completions, _ = generate(teacher(server), tmp_path, diversity=1, n=1)
    assert_right(completions, 1, 1)
    assert completions[0].rationale.startswith(" ?")


@pytest.mark.parametrize("max_choices", [1, 4])
def test_under_all_faults_every_completion_is_bought_once(tmp_path, max_choices):
    faults = {
        "seed": 7, "429:0": 0.04, "500:0": 0.04, "reset": 0.03, "invalid_json": 0.03, "no_usage": 0.05, "fewer": 0.1, "empty": 0.05,
        "content_filter": 0.04,
    }  # fmt: skip
    with FakeServer(faults) as server:
        completions, usage = generate(teacher(server, max_choices=max_choices, max_retries=8, concurrency=16), tmp_path, diversity=8, n=12)
        stats = server.stats()
        assert_right(completions, 12, 8)
        assert {*stats["faulty"]} == {fault.partition(":")[0] for fault in faults} - {"seed"}, "each fault of the plan must occur"
        assert stats["good_choices"] == 2 * 12 * 8
        prompts = {json.dumps(PROMPT.first_request(problem.question, RULE, True)) for problem in problems(12)}
        assert {count for prompt, count in stats["good"].items() if prompt in prompts} == {8}
        assert usage["requests"] == stats["good_requests"]
        assert usage["prompt_tokens"] == stats["prompt_tokens"]
        assert usage["completion_tokens"] == stats["completion_tokens"]
        assert generate(teacher(server), tmp_path, diversity=8, n=12)[0] == completions
        assert server.stats()["requests"] == stats["requests"]


# --- permanent errors stop the run with one message -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("401", r"the server rejects the key in \$OPENAI_API_KEY: AuthenticationError.*invalid_api_key"),
        ("404", r"^the server has no model teacher\.model=fake: NotFoundError: .*model_not_found"),
        ("quota", r"the account's quota is used up: RateLimitError.*insufficient_quota.*continues"),
        ("400", r"the server rejects the request: BadRequestError.*unsupported_parameter"),
    ],
)
def test_a_permanent_error_stops_at_once_and_keeps_what_was_bought(tmp_path, monkeypatch, fault, message):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeServer([None] * 10 + [fault] * 50) as server:
        with pytest.raises(FcotError, match=message) as error:
            generate(teacher(server, concurrency=2), tmp_path)
        stats = server.stats()
        assert {request["authorization"] for request in stats["last"]} == {f"Bearer {KEY}"}
        assert KEY not in str(error.value)
        assert stats["requests"] <= 12, "after a refusal no new requests are sent"
        assert stats["good_choices"] == 10
    rows = sum(len(shard.read_text().splitlines()) for shard in (tmp_path / "store").glob("*.jsonl"))
    assert rows >= 9, "one request may have been in flight"
    with FakeServer() as server:
        assert_right(generate(teacher(server), tmp_path)[0], 5, 4)
        assert server.stats()["good_choices"] <= 40 - 9


# A refused prompt is skipped; the others continue.


@pytest.mark.parametrize(("fault", "reason"), [("content_filter_400", "refused:prompt_filtered"), ("too_long", "refused:too_long")])
@pytest.mark.parametrize(("diversity", "max_choices"), [(1, 1), (8, 8)])
def test_a_refused_prompt_costs_one_request_and_the_others_continue(tmp_path, fault, reason, diversity, max_choices):
    with FakeServer([fault]) as server:
        model = teacher(server, concurrency=1, max_choices=max_choices, chat=False)
        completions, usage = generate(model, tmp_path, diversity=diversity)
        stats = server.stats()
        bad = [c for c in completions if c.sample_index == 0]
        assert [(c.rationale, c.answer_text, c.finish_reason) for c in bad] == [("", "", reason)] * diversity
        prompts = [request["body"]["prompt"] for request in stats["last"]]
        assert prompts.count(step1(model).prompt) == 1
        assert stats["faulty"] == {fault: 1}
        gold = {problem.sample_index: problem.answer for problem in problems(5)}
        assert all(RULE.same(PROMPT.parse(c, RULE), gold[c.sample_index]) for c in completions if c.sample_index)
        assert stats["good_choices"] == 2 * 4 * diversity
        assert usage["requests"] == stats["good_requests"] + 1
        assert (usage["prompt_tokens"], usage["requests_without_usage"]) == (stats["prompt_tokens"], 0)
        again, _ = generate(teacher(server, chat=False), tmp_path, diversity=diversity, run_id="two")
        assert again == completions
        assert server.stats()["requests"] == stats["requests"]


def test_a_refused_prompt_is_not_sent_for_each_of_its_completions(tmp_path):
    with FakeServer(["too_long"]) as server:
        model = teacher(server, concurrency=1, max_choices=2, chat=False)
        generate(model, tmp_path, diversity=16, n=1)
        prompts = [request["body"]["prompt"] for request in server.stats()["last"]]
    assert prompts.count(step1(model).prompt) <= 2, "the refused request, and another that was already waiting for its place"


def test_a_second_step_that_is_too_long_loses_one_answer(tmp_path):
    with FakeServer([None, "too_long"]) as server:
        completions, _ = generate(teacher(server, concurrency=1, max_choices=3), tmp_path, diversity=3, n=1)
        assert server.stats()["requests"] == 1 + 3
    assert [c.finish_reason for c in completions] == ["refused:too_long", "stop", "stop"]
    assert [bool(c.answer_text) for c in completions] == [False, True, True]
    assert all(c.rationale for c in completions)


# --- parameters ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refused", "advice", "override"),
    [
        ("temperature", r'"teacher\.parameters=\{temperature:null\}" leaves it out', {"parameters": {"temperature": None}}),
        ("seed", r'"teacher\.parameters=\{seed:null\}" leaves it out', {"parameters": {"seed": None}}),
        (
            "max_tokens",
            r"teacher\.max_tokens_parameter=max_completion_tokens renames it",
            {"max_tokens_parameter": "max_completion_tokens"},
        ),
        ("top_k", r'"teacher\.parameters=\{top_k:null\}" leaves it out', {"parameters": {"top_k": None}}),
    ],
)
@pytest.mark.parametrize("concurrency", [None, 16])
def test_a_refused_parameter_costs_one_request_and_the_suggested_override_works(tmp_path, refused, advice, override, concurrency):
    extra = {"parameters": {"top_k": 5}} if refused == "top_k" else {}
    with FakeServer(refuse=refused) as server:
        with pytest.raises(FcotError, match=rf"the server rejects the request: BadRequestError.*{advice}"):
            generate(teacher(server, concurrency=concurrency, max_retries=20, **extra), tmp_path)
        assert server.stats()["requests"] == 1
        completions, _ = generate(teacher(server, concurrency=concurrency, **override), tmp_path)
        bodies = [request["body"] for request in server.stats()["last"]][1:]
    assert_right(completions, 5, 4)
    assert len(bodies) == 2 * 20
    limits = {body.get("max_tokens"): 0 for body in bodies} if refused != "max_tokens" else {b["max_completion_tokens"]: 0 for b in bodies}
    assert set(limits) == {128, 16}
    assert not any(refused in body for body in bodies)


@pytest.mark.parametrize("refused", ["stop", "model", "messages"])
def test_the_message_suggests_no_override_that_the_configuration_rejects(refused):
    with FakeServer(refuse=refused) as server:
        model = teacher(server)
        with pytest.raises(FcotError, match="the server rejects the request") as error:
            send(model, Request(step1(model).prompt, 128, stop=("\nQ:",)))
    assert f"teacher.parameters={{{refused}:null}}" not in str(error.value)


def test_parameters_are_sent_as_they_are(tmp_path):
    parameters = {"reasoning_effort": "low", "top_p": 0.9, "logit_bias": {"50256": -100}, "temperature": 1.0, "seed": None}
    with FakeServer() as server:
        generate(teacher(server, parameters=parameters), tmp_path, diversity=1, n=1)
        bodies = [request["body"] for request in server.stats()["last"]]
    assert len(bodies) == 2
    for body in bodies:
        assert {name: body.get(name) for name in parameters} == parameters
        assert "seed" not in body
        assert set(body) == {"model", "messages", "n", "max_tokens", *parameters} - {"seed"}


def test_only_parameters_that_change_the_answers_buy_new_completions(tmp_path):
    def requests_of(**options):
        before = server.stats()["requests"]
        generate(teacher(server, **options), tmp_path, diversity=2, n=2)
        return server.stats()["requests"] - before

    with FakeServer() as server:
        bought = 2 * 2 * 2
        assert requests_of() == bought
        for same in (
            {"max_tokens_parameter": "max_completion_tokens"}, {"parameters": {"seed": None}}, {"parameters": {"top_p": None}},
            {"parameters": {"temperature": 0.7}}, {"model": "another name", "model_id": "fake"},
        ):  # fmt: skip
            assert requests_of(**same) == 0, same
        for other in (
            {"parameters": {"top_p": 0.9}}, {"parameters": {"top_p": 0.8}}, {"parameters": {"reasoning_effort": "low"}},
            {"parameters": {"temperature": None}}, {"parameters": {"temperature": 1.0}}, {"temperature": 0.8}, {"model_id": "other"},
        ):  # fmt: skip
            assert requests_of(**other) == bought, other
            assert requests_of(**other) == 0, other


def test_a_key_with_a_newline_from_its_file_works(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    with FakeServer() as server:
        send(teacher(server))
        assert server.stats()["last"][0]["authorization"] == f"Bearer {KEY}"


def test_a_server_of_the_user_needs_no_key():
    with FakeServer() as server:
        send(teacher(server))
        assert server.stats()["last"][0]["authorization"] == "Bearer unused"


# --- whole runs -------------------------------------------------------------------------------------------------------------


COMMAND = (
    "dataset=toy_arithmetic",
    "teacher=openai",
    "prompt=zero_shot_cot",
    "teacher.model=fake",
    "until=curate",
    "dataset.n_problems=40",
)


def bytes_under(folder):
    """Every byte under a folder, names included."""
    return b"".join(str(path).encode() + (path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*"))


def curated(tmp_path):
    (path,) = (tmp_path / "outputs" / "runs").glob("*/curated.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def n_train(tmp_path):
    (path,) = (tmp_path / "outputs" / "runs").glob("*/split.json")
    return len(json.loads(path.read_text())["train"])


def test_a_whole_run_under_faults_succeeds_and_writes_the_key_and_headers_nowhere(run_fcot, tmp_path):
    faults = {"seed": 1, "429:0": 0.05, "500:0": 0.05, "reset": 0.05, "invalid_json": 0.05, "no_usage": 0.05, "fewer": 0.1, "empty": 0.03}
    with FakeServer(faults) as server:
        arguments = (*COMMAND, f"teacher.base_url={server.base_url}", "teacher.max_choices_per_request=2", "teacher.api_key_env=MY_KEY",
                     "teacher.headers={X-Team: TEAM}")  # fmt: skip
        result = run_fcot(*arguments, MY_KEY=KEY, TEAM=TEAM)
        assert result.returncode == 0, result.stderr
        stats = server.stats()
        rows = curated(tmp_path)
        assert {(r["sample_index"], r["completion_index"]) for r in rows} == {(r["sample_index"], slot) for r in rows for slot in range(4)}
        assert len(rows) == 4 * n_train(tmp_path) > 80
        assert all(r["kept"] and r["correct"] for r in rows)
        assert stats["good_choices"] == 2 * len(rows)
        assert sum(stats["faulty"].values()) > 10
        assert stats["last"][0]["authorization"] == f"Bearer {KEY}"
        assert stats["last"][0]["headers"]["x-team"] == TEAM
        (summary,) = (tmp_path / "outputs" / "runs").glob("*/stages/generate.json")
        usage = json.loads(summary.read_text())["teacher_usage"]
        assert usage["requests"] == stats["good_requests"]
        assert usage["prompt_tokens"] == stats["prompt_tokens"]
        shutil.rmtree(tmp_path / "outputs" / "runs")
        again = run_fcot(*arguments, MY_KEY=KEY, TEAM=TEAM)
        assert again.returncode == 0, again.stderr
        assert server.stats()["requests"] == stats["requests"], "the store had all completions"
        assert curated(tmp_path) == rows
    for secret in (KEY, TEAM):
        assert secret not in result.stdout + result.stderr + again.stdout + again.stderr
        assert secret.encode() not in bytes_under(tmp_path)


def test_the_suggested_overrides_for_refused_parameters_can_be_typed(run_fcot, tmp_path):
    with FakeServer(refuse="temperature,max_tokens,seed") as server:
        arguments = [*COMMAND, f"teacher.base_url={server.base_url}", "dataset.limit=3"]
        for _ in range(4):
            result = run_fcot(*arguments)
            if result.returncode == 0:
                break
            (override,) = re.findall(r'"?(teacher\.[a-z_]+=[^"\s]+)"? (?:leaves it out|renames it)', result.stderr)
            merged = [argument for argument in arguments if argument.startswith("teacher.parameters")]
            if merged and override.startswith("teacher.parameters"):
                override = merged[0][:-1] + "," + override.partition("{")[2]
                arguments.remove(merged[0])
            arguments.append(override)
        assert result.returncode == 0, result.stderr
        body = server.stats()["last"][-1]["body"]
    assert body.keys().isdisjoint({"temperature", "max_tokens", "seed"})
    assert "max_completion_tokens" in body


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_run_whose_key_is_refused_ends_with_one_message_without_the_key(run_fcot, tmp_path, endpoint):
    """The server repeats the key in its refusal, as some do."""
    with FakeServer([None] * 20 + ["401"] * 100) as server:
        result = run_fcot(
            *COMMAND,
            f"teacher.base_url={server.base_url}",
            f"teacher.endpoint={endpoint}",
            "teacher.api_key_env=OPENAI_API_KEY",
            OPENAI_API_KEY=KEY,
        )
    assert result.returncode == 1
    assert "the server rejects the key in $OPENAI_API_KEY" in result.stderr
    assert "Traceback" not in result.stderr
    assert KEY not in result.stdout + result.stderr
    assert KEY.encode() not in bytes_under(tmp_path)
    assert b".partial" not in bytes_under(tmp_path)


def test_a_run_killed_twice_gives_the_result_of_an_uninterrupted_run(run_fcot, tmp_path):
    with FakeServer(latency=0.05) as server:
        arguments = (*COMMAND, f"teacher.base_url={server.base_url}", "teacher.concurrency=4", "teacher.max_choices_per_request=1")
        for target in (30, 90):
            process = zygote.start(["-m", "fcot.run", *arguments], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while server.stats()["requests"] < target and process.poll() is None:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        result = run_fcot(*arguments)
        assert result.returncode == 0, result.stderr
        rows = curated(tmp_path)
        assert len(rows) == 4 * n_train(tmp_path)
        assert all(r["kept"] for r in rows)
        assert 2 * len(rows) <= server.stats()["good_choices"] <= 2 * len(rows) + 2 * 4


def stored(folder):
    """Good generations in the shards of a folder."""
    return sum(json.loads(line)["slot"] is not None for shard in folder.rglob("?.jsonl") for line in shard.read_text().splitlines())


def start_and_wait_for(n, server, command, folder):
    """Start a process and wait until it has sent ``n`` requests."""
    process = zygote.start(command, cwd=folder)
    while server.stats()["requests"] < n:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


def test_an_interrupted_run_waits_for_requests_in_flight_and_loses_nothing(tmp_path):
    with FakeServer(latency=0.3) as server:
        rate = ("teacher.concurrency=6", "teacher.max_choices_per_request=2", "until=generate")
        command = ("-m", "fcot.run", *COMMAND, f"teacher.base_url={server.base_url}", *rate)
        process = start_and_wait_for(14, server, command, tmp_path)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=600)
        stats = server.stats()
    assert process.returncode == 130, err
    assert "stopping: waiting for" in err
    assert "interrupted; the same command continues" in err
    said = re.search(r"(\d+) of (\d+) completions are complete and stored; what they cost is unknown, because there is no price\n", err)
    assert 2 * int(said[1]) <= stats["good_choices"] < 2 * int(said[2]), "a completion of this prompt is complete after two requests"
    assert "Traceback" not in out + err
    assert stored(tmp_path / "outputs" / "store") == stats["good_choices"] > 14
    assert stats["requests"] == stats["good_requests"] <= 14 + 3 * 6, "requests in flight were answered, and few were sent after the signal"


BUY_FORTY = """
import sys, pathlib, types, test_openai
server = types.SimpleNamespace(base_url=sys.argv[1])
test_openai.generate(test_openai.teacher(server, concurrency=2, timeout_s=900.0), pathlib.Path(sys.argv[2]), n=40)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_signals_wait_for_requests_in_flight(tmp_path, number):
    with FakeServer([None] * 9 + ["slow:0.5"] * 500) as server:
        process = start_and_wait_for(10, server, ("-c", BUY_FORTY, server.base_url, str(tmp_path)), os.path.dirname(__file__))
        process.send_signal(number)
        _, err = process.communicate(timeout=600)
        stats = server.stats()
    assert process.returncode == -signal.SIGINT, "it ends with KeyboardInterrupt"
    assert "stopping: waiting for" in err
    assert stats["faulty"]["slow"] > 0
    assert stored(tmp_path) == stats["good_choices"] == stats["requests"]


def test_a_second_interrupt_does_not_wait_for_requests_in_flight(tmp_path):
    """The server takes ten minutes to answer."""
    with FakeServer([None] * 4 + ["slow:600"] * 50) as server:
        process = start_and_wait_for(5, server, ("-c", BUY_FORTY, server.base_url, str(tmp_path)), os.path.dirname(__file__))
        process.send_signal(signal.SIGINT)
        assert any("stopping: waiting for" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=600)
        assert process.returncode == -signal.SIGINT
        assert stored(tmp_path) == server.stats()["good_choices"] == 4
