"""What the fake server adds to plain completions is real: the official client sees limits, refusals and batches."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from fake_openai import TASK, FakeServer, duration, write_choice
from teachers import problems

QUESTIONS = [problem.question for problem in problems(10)]
GOLD = [problem.answer for problem in problems(10)]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def connect(server):
    return openai.OpenAI(base_url=server.base_url, api_key="x", max_retries=0)


def body(number, **more):
    text = f"Q: {QUESTIONS[number]}\nA: Let's think step by step."
    return {"model": "fake", "messages": [{"role": "user", "content": text}], "max_tokens": 8, "seed": 0, **more}


def submit(client, requests, **more):
    lines = [json.dumps({"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions", "body": b}) for i, b in requests]
    file = client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **more)


def finish(client, batch):
    """The batch at its end, the rows of its two files by custom_id, and the states seen on the way."""
    seen = [batch.status]
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.01)
        batch = client.batches.retrieve(batch.id)
        seen += [batch.status] if batch.status != seen[-1] else []
    files = [client.files.content(name).text.splitlines() if name else [] for name in (batch.output_file_id, batch.error_file_id)]
    good, bad = ({row["custom_id"]: row for row in map(json.loads, lines)} for lines in files)
    return batch, good, bad, seen


def counts(batch):
    return tuple(getattr(batch.request_counts, name) for name in ("total", "completed", "failed"))


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(
    ("template", "trigger"),
    [('{}\n\nLet\'s think step by step. End with one sentence that begins with "So it is".', "So it is"), ("Q: a\nA: b\n\nQ: {}\nA:", "The answer is")],
)  # fmt: skip
def test_one_request_answers_hold_the_answer(template, trigger, chat):
    text = template.format(QUESTIONS[0])
    answer = write_choice([{"role": "user", "content": text}] if chat else text, 3)
    assert answer == f" {TASK.rationale(QUESTIONS[0], 3, None)} {trigger} {GOLD[0]}."


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [("content_filter_400", 400, "content_filter"), ("too_long", 400, "context_length_exceeded"), ("529", 529, "overloaded"), ("html", 502, None)],
)  # fmt: skip
def test_refused_requests(fault, status, code):
    with FakeServer([fault]) as server:
        with pytest.raises(openai.APIStatusError) as error:
            connect(server).chat.completions.create(**body(0))
        assert (error.value.status_code, error.value.code) == (status, code)
        assert server.stats()["faulty"] == {fault: 1}


def test_more_at_once_than_allowed():
    def one(number):
        return client.chat.completions.with_raw_response.create(**body(number)).status_code

    def safe(number):
        try:
            return one(number)
        except openai.RateLimitError as error:
            return error.code

    with FakeServer(latency=0.3, max_in_flight=3) as server, ThreadPoolExecutor(8) as pool:
        client = connect(server)
        answers = sorted(map(str, pool.map(safe, range(8))))
        stats = server.stats()
    assert answers == ["200"] * 3 + ["rate_limit_exceeded"] * 5
    assert (stats["peak_in_flight"], stats["faulty"]) == (3, {"over_capacity": 5})


def test_rates_are_told_and_enforced():
    with FakeServer(requests_per_minute=300, tokens_per_minute=60_000, burst_seconds=0.4) as server:
        create = connect(server).chat.completions.with_raw_response.create
        assert create(**body(0)).headers["x-ratelimit-remaining-requests"] == "1"
        headers = create(**body(1)).headers
        assert [headers[f"x-ratelimit-{name}"] for name in ("limit-requests", "limit-tokens", "remaining-requests")] == [
            "300",
            "60000",
            "0",
        ]
        assert re.fullmatch(r"3\d\dms|400ms", headers["x-ratelimit-reset-requests"])
        with pytest.raises(openai.RateLimitError) as error:
            create(**body(2))
        time.sleep(float(error.value.response.headers["retry-after"]))
        create(**body(2))
        time.sleep(0.4)
        create(**body(3, max_tokens=1000))  # more than the bucket holds: passes when it is full, and all wait after it
        with pytest.raises(openai.RateLimitError, match="tokens per min"):
            create(**body(4))
        assert (server.stats()["faulty"], server.stats()["early"]) == ({"over_rate": 2}, 0)
    with FakeServer(requests_per_minute=60, no_rate_headers=True) as server:
        assert not [n for n in connect(server).chat.completions.with_raw_response.create(**body(0)).headers if "ratelimit" in n]
    assert [duration(s) for s in (0, 0.02, 1, 8.64, 360)] == ["0s", "20ms", "1s", "8.64s", "6m0s"]


def test_models_that_know_less():
    with FakeServer(refuse="max_tokens,n", only_model="fake", ignore_n=True, ignore_seed=True, cached_tokens=True) as server:
        create = connect(server).chat.completions.create
        with pytest.raises(openai.BadRequestError, match="unsupported_parameter") as refused:
            create(**body(0))
        with pytest.raises(openai.NotFoundError, match="model_not_found"):
            create(**body(0, model="other"))
        less = {name: value for name, value in body(0, n=1).items() if name != "max_tokens"}
        one, two = create(**less), create(**{**less, "seed": 1})
        assert server.stats()["faulty"] == {"refused_parameter": 1, "model_not_found": 1}
    assert refused.value.param == "max_tokens"
    assert one.choices[0].message.content == two.choices[0].message.content
    assert one.usage.prompt_tokens_details.cached_tokens == one.usage.prompt_tokens // 2


def test_a_batch_answers_what_single_requests_get():
    with FakeServer() as server:
        client = connect(server)
        batch, good, bad, seen = finish(client, submit(client, [(i, body(i, n=2)) for i in range(10)], metadata={"a": "b"}))
        stats = server.stats()
        assert connect(server).batches.list().data == [batch]
        single = client.chat.completions.create(**body(7, n=2))
    assert (seen, counts(batch)) == (["validating", "in_progress", "finalizing", "completed"], (10, 10, 0))
    assert ([*good] != sorted(good), {*good}, bad, batch.metadata) == (True, {f"r{i}" for i in range(10)}, {}, {"a": "b"})
    assert [c["message"]["content"] for c in good["r7"]["response"]["body"]["choices"]] == [c.message.content for c in single.choices]
    assert [stats[name] for name in ("batches", "batch_requests", "good_choices", "requests")] == [1, 10, 20, 0]
    usages = [row["response"]["body"]["usage"] for row in good.values()]
    assert all(stats[name] == sum(usage[name] for usage in usages) for name in ("prompt_tokens", "completion_tokens"))


@pytest.mark.parametrize(
    ("fault", "status", "numbers", "reason"),
    [
        ("failed", "failed", (0, 0, 0), "invalid_json_line"), ("token_limit", "failed", (0, 0, 0), "token_limit_exceeded"),
        ("expired", "expired", (10, 5, 5), "batch_expired"), ("errors", "completed", (10, 8, 2), "server_error"),
        ("filtered", "completed", (10, 8, 2), "content_filter"), ("cancelled", "cancelled", (10, 0, 0), None),
        ("slow:0.6", "completed", (10, 10, 0), None),
    ],
)  # fmt: skip
def test_batches_that_go_wrong(fault, status, numbers, reason):
    with FakeServer(batch_faults=["create_500", fault], batch_seconds=0.1) as server:
        client, begin = connect(server), time.monotonic()
        with pytest.raises(openai.InternalServerError):
            submit(client, [(0, body(0))])
        batch, good, bad, _ = finish(client, submit(client, [(i, body(i)) for i in range(10)]))
        took = time.monotonic() - begin
        assert server.stats()["batch_faults"] == {"create_500": 1, fault.partition(":")[0]: 1}
        assert finish(client, submit(client, [(0, body(0))]))[0].status == "completed"
    assert (batch.status, counts(batch), len(good), len(bad)) == (status, numbers, numbers[1], numbers[2])
    reasons = {(row["error"] or row["response"]["body"]["error"])["code"] for row in bad.values()}
    assert reasons | {error.code for error in (batch.errors.data if batch.errors else ())} == ({reason} if reason else set())
    assert (took > 0.6) == fault.startswith("slow")


def test_bad_input_and_cancelling():
    with FakeServer(batch_max_requests=3, batch_max_bytes=2000, batch_faults=[None] * 5 + ["slow:60"], refuse="logprobs") as server:
        client = connect(server)
        wrong = {
            "duplicate_custom_id": [(0, body(0)), (0, body(1))], "too_many_tasks": [(i, body(i)) for i in range(4)],
            "file_too_large": [(0, body(0, user="x" * 2000))], "mismatched_model": [(0, body(0)), (1, body(1, model="b"))],
        }  # fmt: skip
        for code, requests in wrong.items():
            batch, *_ = finish(client, submit(client, requests))
            assert (batch.status, batch.errors.data[0].code) == ("failed", code)
        _, good, bad, _ = finish(client, submit(client, [(0, body(0)), (1, body(1, logprobs=True))]))
        assert ([*good], bad["r1"]["response"]["status_code"]) == (["r0"], 400)
        batch, _, bad, _ = finish(client, client.batches.cancel(submit(client, [(0, body(0))]).id))
        assert (batch.status, bad["r0"]["error"]["code"], server.stats()["batch_requests"]) == ("cancelled", "batch_cancelled", 1)
        assert [b.id for b in client.batches.list(limit=2)][0] == batch.id
        assert len([*client.batches.list(limit=2)]) == server.stats()["batches"] == 6
