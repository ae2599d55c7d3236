"""The fake server's limits, errors and batches, as the official client sees them."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from fake_openai import TASK, FakeServer, duration, write_choice
from teachers import problems

QUESTIONS, GOLD = zip(*((problem.question, problem.answer) for problem in problems(10)), strict=True)
URL = "/v1/chat/completions"
CHAT = '{}\n\nLet\'s think step by step. End with one sentence that begins with "So it is".'


def connect(server):
    return openai.OpenAI(base_url=server.base_url, api_key="x", max_retries=0, http_client=openai.DefaultHttpxClient(trust_env=False))


def body(number, **parameters):
    return {
        "model": "fake",
        "messages": [{"role": "user", "content": CHAT.format(QUESTIONS[number])}],
        "max_tokens": 8,
        "seed": 0,
        **parameters,
    }


def submit(client, requests):
    lines = [json.dumps({"custom_id": f"r{i}", "method": "POST", "url": URL, "body": b}) for i, b in requests]
    file = client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h", metadata={"run": "a"})


def finish(client, batch):
    """Wait for the end of a batch. Returns the batch, the rows of its two files by custom_id, and its successive statuses."""
    statuses = {batch.status: None}
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.01)
        batch = client.batches.retrieve(batch.id)
        statuses[batch.status] = None
    files = [client.files.content(name).text.splitlines() if name else [] for name in (batch.output_file_id, batch.error_file_id)]
    return batch, *({row["custom_id"]: row for row in map(json.loads, lines)} for lines in files), [*statuses]


def test_replies_to_one_step_prompts_contain_the_answer():
    for template, trigger in ((CHAT, "So it is"), ("Q: a\nA: b\n\nQ: {}\nA:", "The answer is")):
        text = template.format(QUESTIONS[0])
        assert write_choice(text, 3) == f" {TASK.rationale(QUESTIONS[0], 3, None)} {trigger} {GOLD[0]}."
        assert write_choice([{"role": "user", "content": text}], 3) == write_choice(text, 3)


def test_errors_and_ignored_parameters():
    faults = {"content_filter_400": (400, "content_filter"), "too_long": (400, "context_length_exceeded")}
    faults |= {"529": (529, "overloaded"), "html": (502, None)}
    options = {"refuse": "logprobs,n", "only_model": "fake", "ignore_seed": True, "cached_tokens": True}
    with FakeServer(faults.keys(), **options) as server:
        create = connect(server).chat.completions.create
        requests = [({}, *error, None) for error in faults.values()]
        requests += [({"logprobs": True}, 400, "unsupported_parameter", "logprobs"), ({"n": 2}, 400, "unsupported_parameter", "n")]
        for parameters, *error in [*requests, ({"model": "b"}, 404, "model_not_found", None)]:
            with pytest.raises(openai.APIStatusError) as raised:
                create(**body(0, **parameters))
            assert [raised.value.status_code, raised.value.code, raised.value.param] == error
        first, second = create(**body(0, n=1)), create(**body(0, seed=1))
        assert server.stats()["faulty"] == {**dict.fromkeys(faults, 1), "refused_parameter": 2, "model_not_found": 1}
    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.usage.prompt_tokens_details.cached_tokens == first.usage.prompt_tokens // 2


def test_requests_above_the_limit_in_flight_get_an_error():
    def send(number):
        try:
            return client.chat.completions.create(**body(number)).choices[0].finish_reason
        except openai.RateLimitError as error:
            return error.code

    with FakeServer(latency=0.6, max_in_flight=3) as server, ThreadPoolExecutor(8) as pool:
        client = connect(server)
        assert sorted(pool.map(send, range(8))) == ["rate_limit_exceeded"] * 5 + ["stop"] * 3
        assert (server.stats()["peak_in_flight"], server.stats()["faulty"]) == (3, {"over_capacity": 5})


def test_rate_limits_are_in_the_headers_and_enforced():
    with FakeServer(requests_per_minute=60, burst_seconds=2, ignore_n=True) as server:
        create = connect(server).chat.completions.with_raw_response.create
        rate_headers = [create(**body(i)).headers for i in range(2)]
        assert [rate_headers[i]["x-ratelimit-remaining-requests"] for i in range(2)] == ["1", "0"]
        assert (rate_headers[0]["x-ratelimit-limit-requests"], rate_headers[1]["x-ratelimit-reset-requests"][:2]) == ("60", "1.")
        with pytest.raises(openai.RateLimitError) as error:
            create(**body(2))
        time.sleep(float(error.value.response.headers["retry-after"]))
        assert len(create(**body(2, n=3)).parse().choices) == 1
        assert (server.stats()["faulty"], server.stats()["early"]) == ({"over_rate": 1}, 0)
    with FakeServer(tokens_per_minute=6000, no_rate_headers=True) as server:
        create = connect(server).chat.completions.with_raw_response.create
        headers = create(**body(0, max_tokens=1000)).headers  # more than the bucket's capacity: every later request must wait
        assert "ratelimit" not in str(headers)
        with pytest.raises(openai.RateLimitError, match="tokens per min"):
            create(**body(1))
    assert [duration(s) for s in (0, 0.02, 1, 8.64, 360)] == ["0s", "20ms", "1s", "8.64s", "6m0s"]


def test_a_batch_gives_the_answers_of_single_requests():
    with FakeServer(batch_seconds=1) as server:
        client = connect(server)
        batch, good, bad, statuses = finish(client, submit(client, [(i, body(i, n=2)) for i in range(10)]))
        stats = server.stats()
        assert connect(server).batches.list().data == [batch]
        single = client.chat.completions.create(**body(7, n=2))
    assert (statuses, bad, batch.metadata) == (["validating", "in_progress", "finalizing", "completed"], {}, {"run": "a"})
    assert ([*good] != sorted(good), {*good}) == (True, {f"r{i}" for i in range(10)})
    assert [c["message"]["content"] for c in good["r7"]["response"]["body"]["choices"]] == [c.message.content for c in single.choices]
    assert [stats[name] for name in ("batches", "batch_requests", "good_choices", "requests")] == [1, 10, 20, 0]
    usages = [row["response"]["body"]["usage"] for row in good.values()]
    assert all(stats[name] == sum(usage[name] for usage in usages) for name in ("prompt_tokens", "completion_tokens"))


def test_batches_fail_as_planned():
    cases = [
        ("failed", "failed", (0, 0, 0), "invalid_json_line"), ("token_limit", "failed", (0, 0, 0), "token_limit_exceeded"),
        ("expired", "expired", (10, 5, 5), "batch_expired"), ("errors", "completed", (10, 8, 2), "server_error"),
        ("filtered", "completed", (10, 8, 2), "content_filter"), ("cancelled", "cancelled", (10, 0, 0), None),
        ("slow:0.6", "completed", (10, 10, 0), None),
    ]  # fmt: skip
    with FakeServer(batch_faults=[fault for row in cases for fault in ("create_500", row[0])], batch_seconds=0.1) as server:
        client = connect(server)
        for fault, status, numbers, reason in cases:
            with pytest.raises(openai.InternalServerError):
                submit(client, [(0, body(0))])
            begin = time.monotonic()
            batch, good, bad, _ = finish(client, submit(client, [(i, body(i)) for i in range(10)]))
            counts = batch.request_counts
            assert (batch.status, counts.total, counts.completed, counts.failed, len(good), len(bad)) == (status, *numbers, *numbers[1:])
            reasons = {(row["error"] or row["response"]["body"]["error"])["code"] for row in bad.values()}
            assert reasons | {error.code for error in (batch.errors.data if batch.errors else ())} == {reason} - {None}
            assert time.monotonic() - begin > (0.6 if fault.startswith("slow") else 0.1 if status != "failed" else 0)
        assert server.stats()["batch_faults"] == {"create_500": 7, **{row[0].partition(":")[0]: 1 for row in cases}}


def test_invalid_batches_fail_and_batches_can_be_cancelled():
    invalid = {"duplicate_custom_id": [(0, body(0)), (0, body(1))], "mismatched_model": [(0, body(0)), (1, body(1, model="b"))]}
    invalid |= {"too_many_tasks": [(i, body(i)) for i in range(4)], "file_too_large": [(0, body(0, user="x" * 2000))]}
    with FakeServer(batch_max_requests=3, batch_max_bytes=2000, batch_faults=[None] * 5 + ["slow:60"], refuse="logprobs") as server:
        client = connect(server)
        assert all(finish(client, submit(client, requests))[0].errors.data[0].code == code for code, requests in invalid.items())
        _, good, bad, _ = finish(client, submit(client, [(0, body(0)), (1, body(1, logprobs=True))]))
        assert ([*good], bad["r1"]["response"]["status_code"]) == (["r0"], 400)
        batch, _, bad, _ = finish(client, client.batches.cancel(submit(client, [(0, body(0))]).id))
        assert (batch.status, bad["r0"]["error"]["code"], server.stats()["batch_requests"]) == ("cancelled", "batch_cancelled", 1)
        assert [b.id == batch.id for b in client.batches.list(limit=2)] == [True] + [False] * 5  # newest first, in three pages
