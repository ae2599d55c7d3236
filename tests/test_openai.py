"""The OpenAI client over real HTTP, against a server that misbehaves on purpose (``fake_openai.py``)."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import fake_openai
import pytest
from fake_openai import FakeServer
from teachers import PROMPT, RULE, plan, problems

from fcot.errors import FcotError
from fcot.teacher.generate import generate_completions
from fcot.teacher.openai import OpenAITeacher, Server
from fcot.teacher.requests import Request, Usage
from fcot.teacher.store import StoreFolder
from fcot.teacher.throttle import Throttle

KEY = "sk-made-up-0123456789abcdefghij"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def teacher(server, **options):
    """Of keyword arguments of the server, the throttle and the teacher together."""
    wanted = {
        "model": "fake", "model_id": "fake", "chat": True, "temperature": 0.7, "base_url": server.base_url, "timeout_s": 20.0,
        "parameters": {}, "max_tokens_parameter": "max_tokens", "concurrency": 4, "max_choices": 1, "max_retries": 3,
    } | options  # fmt: skip
    rates = [wanted.pop(name, None) for name in ("concurrency", "requests_per_minute", "tokens_per_minute")]
    last = wanted.pop("max_choices"), wanted.pop("max_retries")
    return OpenAITeacher(Server(**wanted), Throttle(*rates), *last)


def ask(one, request=None, n=1, seed=0):
    """One request and its reply."""

    async def run():
        try:
            return await one.generate(request or step1(one), n, seed)
        finally:
            await one.close()

    return asyncio.run(run())


def step1(one):
    return Request(PROMPT.ask(problems(1)[0].question, RULE, one.chat), 128, problem=problems(1)[0])


def generate(one, tmp_path, diversity=4, n=5, run_id="run", **options):
    made = plan(one, diversity, run_id=run_id, **options)
    generated = generate_completions(made, StoreFolder(tmp_path / "store"), problems(n))
    return list(generated), generated.usage()


def assert_right(completions, n, diversity):
    gold = {problem.sample_index: problem.answer for problem in problems(n)}
    assert len(completions) == n * diversity
    assert all(RULE.same(PROMPT.parse(c, RULE), gold[c.sample_index]) for c in completions)


# --- what goes over the wire ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_two_steps_of_one_completion(tmp_path, endpoint):
    with FakeServer() as server:
        (completion,), usage = generate(teacher(server, chat=endpoint == "chat", model_id="other name"), tmp_path, diversity=1, n=1)
        stats = server.stats()
    first, second = stats["last"]
    ask_text = f"Q: {problems(1)[0].question}\nA: Let's think step by step."
    shared = {"model": "fake", "temperature": 0.7, "n": 1, "seed": 0}
    if endpoint == "chat":
        user = {"role": "user", "content": ask_text}
        turns = [user, {"role": "assistant", "content": completion.rationale}, {"role": "user", "content": "Therefore, the answer is"}]
        assert first["body"] == {"messages": [user], "max_tokens": 128, **shared}
        assert second["body"] == {"messages": turns, "max_tokens": 16, **shared}
    else:
        assert first["body"] == {"prompt": ask_text, "max_tokens": 128, **shared}
        text = f"{ask_text}{completion.rationale}\nTherefore, the answer is"
        assert second["body"] == {"prompt": text, "max_tokens": 16, **shared}
    assert {request["path"] for request in stats["last"]} == {"/v1/chat/completions" if endpoint == "chat" else "/v1/completions"}
    assert_right([completion], 1, 1)
    assert usage["requests"] == 2
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (stats["prompt_tokens"], stats["completion_tokens"])


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_several_choices_in_one_request(tmp_path, endpoint):
    with FakeServer() as server:
        completions, usage = generate(teacher(server, chat=endpoint == "chat", max_choices=3), tmp_path, diversity=8)
        stats = server.stats()
    assert_right(completions, 5, 8)
    assert all(len({c.rationale for c in completions if c.sample_index == i}) == 8 for i in range(5))
    asked = [request["body"] for request in stats["last"]]
    assert Counter((body["n"], body["seed"]) for body in asked if body["max_tokens"] == 128) == {(3, 0): 5, (3, 3): 5, (2, 6): 5}
    assert usage["requests"] == stats["requests"] == len(asked) == 5 * (3 + 8)
    assert usage["completion_tokens"] == stats["completion_tokens"]


def test_the_same_store_serves_another_url_concurrency_and_chunk_and_not_another_model(tmp_path):
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
def test_no_more_requests_at_once_than_allowed(tmp_path, concurrency):
    with FakeServer(latency=0.02) as server:
        generate(teacher(server, concurrency=concurrency), tmp_path, diversity=4)
        peak = server.stats()["peak_in_flight"]
    assert peak == 1 if concurrency == 1 else 1 < peak <= concurrency


# --- what passes is tried again -----------------------------------------------------------------------------------------


PASSING = [
    "408:0",
    "429:0",
    "429",
    "500:0",
    "503:0",
    "reset",
    "invalid_json",
    "invalid_utf8",
    "no_choices",
    "null_choice",
    "odd_content",
    "empty_body",
]


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_is_tried_again(endpoint, fault):
    with FakeServer([fault]) as server:
        one = teacher(server, chat=endpoint == "chat")
        reply = ask(one)
        stats = server.stats()
    first, second = stats["last"]
    assert first["body"] == second["body"]
    assert (stats["requests"], stats["good_choices"], sum(stats["faulty"].values())) == (2, 1, 1)
    assert [choice.text for choice in reply.choices] == [fake_openai.write_choice(step1(one).prompt, 0)]
    assert reply.usage == Usage(stats["prompt_tokens"], stats["completion_tokens"])


def test_an_answer_that_takes_too_long_is_tried_again():
    with FakeServer(["slow:60"]) as server:
        assert ask(teacher(server, timeout_s=0.5)).choices[0].refused is None
        assert server.stats()["requests"] == 2


def test_retry_after_is_honoured():
    """The server tells: whoever comes back before the second it asked for is counted as early."""
    with FakeServer(["429:1", "503:1"]) as server:
        ask(teacher(server))
        stats = server.stats()
    assert (stats["requests"], stats["early"]) == (3, 0)


def test_the_server_would_have_counted_who_comes_back_early():
    with FakeServer(["429:60"]) as server:
        with pytest.raises(FcotError, match="1 tries of one request failed"):
            ask(teacher(server, max_retries=0))
        ask(teacher(server))
        assert server.stats()["early"] == 1


def test_tries_come_to_an_end():
    with FakeServer(["500:0"] * 10) as server:
        with pytest.raises(
            FcotError,
            match=r"teacher\.model=fake at .*: 4 tries of one request failed, the last with InternalServerError.*server_error.*store",
        ):
            ask(teacher(server))
        assert server.stats()["requests"] == 4


def test_a_server_that_is_not_there_is_named():
    with FakeServer() as server:
        url = server.base_url
    with pytest.raises(FcotError, match=f"teacher.base_url={url}: 2 tries of one request failed, .*Cannot connect to host"):
        ask(teacher(server, max_retries=1))


# --- answers that are completions, but odd ones ---------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "refused"), [("empty", "empty"), ("content_filter", "content_filter"), ("length", None)])
def test_the_end_of_an_answer_is_told(fault, refused):
    with FakeServer([fault]) as server:
        first, second = ask(teacher(server, max_choices=2), n=2).choices
    assert (first.refused, second.refused) == (refused, None)
    assert first.finish_reason == ("stop" if fault == "empty" else fault)
    assert second.finish_reason == "stop"


@pytest.mark.parametrize(("fault", "usage"), [("no_usage", Usage(None, None)), ("odd_usage", Usage(None, 29))])
def test_usage_that_is_missing_or_no_number_is_unknown(fault, usage):
    with FakeServer([fault]) as server:
        reply = ask(teacher(server))
    assert len(reply.choices) == 1
    assert reply.usage.prompt_tokens is None
    assert (reply.usage.completion_tokens is None) == (usage.completion_tokens is None)


def test_half_a_surrogate_pair_can_be_stored_and_sent_on(tmp_path):
    """Models cut in the middle of an emoji; what comes back must survive the store and step 2."""
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
        assert {*stats["faulty"]} == {fault.partition(":")[0] for fault in faults} - {"seed"}, "a plan that never struck proves nothing"
        assert stats["good_choices"] == 2 * 12 * 8
        asked = {json.dumps(PROMPT.ask(problem.question, RULE, True)) for problem in problems(12)}
        assert {count for prompt, count in stats["good"].items() if prompt in asked} == {8}
        assert usage["requests"] == stats["good_requests"]
        assert usage["prompt_tokens"] == stats["prompt_tokens"]
        assert usage["completion_tokens"] == stats["completion_tokens"]
        assert generate(teacher(server), tmp_path, diversity=8, n=12)[0] == completions
        assert server.stats()["requests"] == stats["requests"]


# --- what does not pass stops the run, with one message -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("401", r"the server refuses the key in \$OPENAI_API_KEY: AuthenticationError.*invalid_api_key"),
        ("404", r"teacher\.model=fake .* does it end in /v1\? \(NotFoundError.*model_not_found"),
        ("quota", r"the account's quota is used up: RateLimitError.*insufficient_quota.*continues"),
        ("400", r"the server refuses the request: BadRequestError.*unsupported_parameter"),
    ],
)
def test_what_does_not_pass_stops_at_once_and_keeps_what_was_bought(tmp_path, monkeypatch, fault, message):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeServer([None] * 10 + [fault] * 50) as server:
        with pytest.raises(FcotError, match=message) as error:
            generate(teacher(server, concurrency=2), tmp_path)
        stats = server.stats()
        assert {request["authorization"] for request in stats["last"]} == {f"Bearer {KEY}"}
        assert KEY not in str(error.value)
        assert stats["requests"] <= 12, "only what was in flight goes out after a refusal"
        assert stats["good_choices"] == 10
    assert sum(len(shard.read_text().splitlines()) for shard in (tmp_path / "store").glob("*.jsonl")) >= 9  # one may have been in flight
    with FakeServer() as server:
        assert_right(generate(teacher(server), tmp_path)[0], 5, 4)
        assert server.stats()["good_choices"] <= 40 - 9


def test_a_key_with_a_newline_from_its_file_works(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    with FakeServer() as server:
        ask(teacher(server))
        assert server.stats()["last"][0]["authorization"] == f"Bearer {KEY}"


def test_a_server_of_ones_own_needs_no_key():
    with FakeServer() as server:
        ask(teacher(server))
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


def wrote(folder):
    """Every byte under a folder, names included."""
    return b"".join(str(path).encode() + (path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*"))


def curated(tmp_path):
    (path,) = (tmp_path / "outputs" / "runs").glob("*/curated.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def n_train(tmp_path):
    (path,) = (tmp_path / "outputs" / "runs").glob("*/split.json")
    return len(json.loads(path.read_text())["train"])


def test_a_whole_run_under_faults_and_the_key_is_nowhere(run_fcot, tmp_path):
    faults = {"seed": 1, "429:0": 0.05, "500:0": 0.05, "reset": 0.05, "invalid_json": 0.05, "no_usage": 0.05, "fewer": 0.1, "empty": 0.03}
    with FakeServer(faults) as server:
        arguments = (*COMMAND, f"teacher.base_url={server.base_url}", "teacher.max_choices_per_request=2")
        done = run_fcot(*arguments, OPENAI_API_KEY=KEY)
        assert done.returncode == 0, done.stderr
        stats = server.stats()
        rows = curated(tmp_path)
        assert {(r["sample_index"], r["completion_index"]) for r in rows} == {(r["sample_index"], slot) for r in rows for slot in range(4)}
        assert len(rows) == 4 * n_train(tmp_path) > 80
        assert all(r["kept"] and r["correct"] for r in rows)
        assert stats["good_choices"] == 2 * len(rows)
        assert sum(stats["faulty"].values()) > 10
        assert stats["last"][0]["authorization"] == f"Bearer {KEY}"
        (summary,) = (tmp_path / "outputs" / "runs").glob("*/stages/generate.json")
        usage = json.loads(summary.read_text())["teacher_usage"]
        assert usage["requests"] == stats["good_requests"]
        assert usage["prompt_tokens"] == stats["prompt_tokens"]
        shutil.rmtree(tmp_path / "outputs" / "runs")
        again = run_fcot(*arguments, OPENAI_API_KEY=KEY)
        assert again.returncode == 0, again.stderr
        assert server.stats()["requests"] == stats["requests"], "the store had it all"
        assert curated(tmp_path) == rows
    assert KEY not in done.stdout + done.stderr + again.stdout + again.stderr
    assert KEY.encode() not in wrote(tmp_path)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_run_that_is_refused_ends_with_one_message_without_the_key(run_fcot, tmp_path, endpoint):
    """The server repeats the key in its refusal, as some do."""
    with FakeServer([None] * 20 + ["401"] * 100) as server:
        done = run_fcot(*COMMAND, f"teacher.base_url={server.base_url}", f"teacher.endpoint={endpoint}", OPENAI_API_KEY=KEY)
    assert done.returncode == 1
    assert "the server refuses the key in $OPENAI_API_KEY" in done.stderr
    assert "Traceback" not in done.stderr
    assert KEY not in done.stdout + done.stderr
    assert KEY.encode() not in wrote(tmp_path)
    assert b".partial" not in wrote(tmp_path)


def test_a_run_killed_twice_ends_like_one_that_was_not(run_fcot, tmp_path):
    with FakeServer(latency=0.05) as server:
        arguments = (*COMMAND, f"teacher.base_url={server.base_url}", "teacher.concurrency=4", "teacher.max_choices_per_request=1")
        for target in (30, 90):
            command = [sys.executable, "-m", "fcot.run", *arguments]
            process = subprocess.Popen(command, cwd=tmp_path, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while server.stats()["requests"] < target and process.poll() is None:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        done = run_fcot(*arguments)
        assert done.returncode == 0, done.stderr
        rows = curated(tmp_path)
        assert len(rows) == 4 * n_train(tmp_path)
        assert all(r["kept"] for r in rows)
        assert 2 * len(rows) <= server.stats()["good_choices"] <= 2 * len(rows) + 2 * 4
