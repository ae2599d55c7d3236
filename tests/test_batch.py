"""The Batch API back end over real HTTP: the same store, nothing lost and nothing bought twice, whatever a batch does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from fake_openai import FakeServer
from teachers import PROMPT, RULE, plan, problems

from fcot.errors import FcotError
from fcot.store import main as store_command
from fcot.teacher.batch import BatchTeacher, _failure
from fcot.teacher.generate import generate_completions
from fcot.teacher.money import Price
from fcot.teacher.openai import OpenAITeacher, Server
from fcot.teacher.store import StoreFolder
from fcot.teacher.throttle import Throttle


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def server_of(server):
    return Server(
        model="fake", model_id="fake", chat=True, temperature=0.7, parameters={}, max_tokens_parameter="max_tokens",
        base_url=server.base_url, timeout_s=20.0,
    )  # fmt: skip


def teacher(server, max_choices=4, **options):
    online = OpenAITeacher(server_of(server), Throttle(4, None, None), max_choices, 3)
    return BatchTeacher(server_of(server), online, poll_s=0.05, **options)


def generate(one, path, diversity=4, n=6, run_id="run", **options):
    generated = generate_completions(plan(one, diversity, run_id=run_id, **options), StoreFolder(path), problems(n))
    return list(generated), generated.usage()


def rows_of(path):
    return [json.loads(line) for shard in path.glob("?.*jsonl") for line in shard.read_text().splitlines()]


def assert_whole(completions, n, diversity):
    gold = {problem.sample_index: problem.answer for problem in problems(n)}
    assert [(c.sample_index, c.completion_index) for c in completions] == [(i, slot) for i in range(n) for slot in range(diversity)]
    assert all(RULE.same(PROMPT.parse(c, RULE), gold[c.sample_index]) for c in completions)


def test_two_steps_are_two_rounds_and_the_store_is_the_same_as_online(tmp_path):
    with FakeServer() as server:
        completions, usage = generate(teacher(server), tmp_path / "batch")
        stats = server.stats()
        online, online_usage = generate(teacher(server).online, tmp_path / "online")
        assert_whole(completions, 6, 4)
        assert (completions, usage | {"usd": 0}) == (online, online_usage | {"usd": 0})
        assert (stats["batches"], stats["requests"]) == (2, 0)
        before = server.stats()["good_choices"]
        assert generate(teacher(server).online, tmp_path / "batch", run_id="other")[0] == completions
        assert generate(teacher(server), tmp_path / "online", run_id="other")[1]["served_from_store"] == 2 * 24
        assert server.stats()["good_choices"] == before, "online and batch share the store"
    assert not list((tmp_path / "batch" / "batches").iterdir())
    assert {row["batch"] for row in rows_of(tmp_path / "batch")}.isdisjoint({None})


def test_more_diversity_and_problems_buy_only_what_is_missing(tmp_path):
    with FakeServer() as server:
        generate(teacher(server), tmp_path, diversity=2, n=3)
        generate(teacher(server), tmp_path, diversity=6, n=5, run_id="two")
        assert_whole(generate(teacher(server), tmp_path, diversity=6, n=5)[0], 5, 6)
        assert server.stats()["good_choices"] == 2 * 5 * 6


@pytest.mark.parametrize("fault", ["expired", "errors", "token_limit", "create_500", "slow:1"])
def test_what_a_batch_leaves_unanswered_is_asked_for_again(tmp_path, fault, capsys):
    with FakeServer(batch_faults=[fault, fault]) as server:
        completions, usage = generate(teacher(server), tmp_path, n=10)
        stats = server.stats()
    assert_whole(completions, 10, 4)
    assert stats["good_choices"] == 2 * 10 * 4
    assert usage["completion_tokens"] == stats["completion_tokens"]
    if fault == "token_limit":
        assert "limit on enqueued tokens is reached" in capsys.readouterr().err


def test_filtered_prompts_are_skipped_with_their_reason(tmp_path):
    with FakeServer(batch_faults=["filtered"]) as server:
        completions, _ = generate(teacher(server), tmp_path, n=20, diversity=1)
        asked = server.stats()["batch_requests"]
    skipped = [c for c in completions if c.finish_reason == "refused:prompt_filtered"]
    assert 0 < len(skipped) < 20
    assert asked == 2 * (20 - len(skipped))


@pytest.mark.parametrize(("fault", "said"), [("failed", "failed: invalid_json_line.*line 1"), ("cancelled", "was cancelled")])
def test_a_failed_or_cancelled_batch_ends_the_run_and_the_next_one_goes_on(tmp_path, fault, said):
    with FakeServer(batch_faults=[fault]) as server:
        with pytest.raises(FcotError, match=said):
            generate(teacher(server), tmp_path)
        assert_whole(generate(teacher(server), tmp_path)[0], 6, 4)
        assert server.stats()["good_choices"] == 2 * 6 * 4


def test_a_parameter_the_model_refuses_is_named_with_its_remedy(tmp_path):
    with FakeServer(refuse="max_tokens") as server, pytest.raises(FcotError, match="max_tokens_parameter=max_completion_tokens renames it"):
        generate(teacher(server), tmp_path)


def test_a_server_that_refuses_several_choices_is_asked_one_by_one(tmp_path, capsys):
    with FakeServer(refuse="n") as server:
        assert_whole(generate(teacher(server), tmp_path, n=3)[0], 3, 4)
        assert server.stats()["good_choices"] == 2 * 3 * 4
    assert capsys.readouterr().err.count("refuses several choices") == 1


def test_a_batch_that_the_server_does_not_know_is_named_with_what_forgets_it(tmp_path):
    with FakeServer(batch_faults=["slow:30"]) as server:
        process = buyer(server, tmp_path)
        wait_for(lambda: list((tmp_path / "batches").glob("*.state.json")))
        process.kill()
        process.wait()
    with FakeServer() as other:
        with pytest.raises(FcotError, match=r"does not know the batch .* `python -m fcot.store set-aside .*\.jobs\.jsonl` sets it aside"):
            generate(teacher(other), tmp_path)
        (jobs,) = (tmp_path / "batches").glob("*.jobs.jsonl")
        store_command(["set-aside", str(jobs)])
        assert_whole(generate(teacher(other), tmp_path)[0], 6, 4)


def test_the_key_is_in_no_message_about_a_batch(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-made-up-0123456789abcdefghij")
    error = SimpleNamespace(code="invalid_api_key", message="Incorrect key sk-made-up-0123456789abcdefghij", line=None)
    failed = SimpleNamespace(id="b", status="failed", errors=SimpleNamespace(data=[error]))
    server = teacher(SimpleNamespace(base_url=None))
    assert "sk-made-up" not in _failure(failed, server)
    assert "invalid_api_key: Incorrect key ***" in _failure(failed, server)


def test_files_keep_to_the_limits_of_the_api(tmp_path):
    with FakeServer(batch_max_requests=5) as server:
        assert_whole(generate(teacher(server, max_requests=5), tmp_path, n=12, diversity=1)[0], 12, 1)
        assert server.stats()["batches"] == 2 * 3
        generate(teacher(server, max_bytes=2500), tmp_path / "bytes", n=12, diversity=1)
        assert 2 * 3 < server.stats()["batches"] - 6 <= 2 * 12


def test_the_budget_bounds_what_is_submitted(tmp_path):
    price = Price(input=0.0, output=1e6 / 128, cached_input=0.0, batch=0.5)  # a rationale costs half a dollar at most
    with FakeServer() as server:
        with pytest.raises(FcotError, match=r"teacher\.budget_usd=3: .* the same command with a larger budget continues"):
            generate(teacher(server, max_choices=1), tmp_path, n=20, diversity=1, price=price, budget_usd=3.0)
        spent = server.stats()["completion_tokens"] * price.output / 1e6 * 0.5
        assert 2.0 < spent <= 3.0
        completions, usage = generate(teacher(server, max_choices=1), tmp_path, n=20, diversity=1, price=price, budget_usd=300.0)
        assert_whole(completions, 20, 1)
        assert usage["usd"] == pytest.approx(server.stats()["completion_tokens"] * price.output / 1e6 * 0.5)


def test_online_runs_do_not_buy_what_a_batch_will_bring(tmp_path):
    with FakeServer(batch_faults=["slow:30"]) as server:
        process = buyer(server, tmp_path)
        wait_for(lambda: list((tmp_path / "batches").glob("*.state.json")))
        process.kill()
        process.wait()
        with pytest.raises(FcotError, match="teacher=openai_batch collects them"):
            generate(teacher(server).online, tmp_path)


# --- kills ------------------------------------------------------------------------------------------------------------------


def buyer(server, path):
    """A process that generates through the Batch API until it is done."""
    command = [sys.executable, __file__, server.base_url, str(path)]
    return subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("moment", ["jobs", "state", "answers"])
def test_a_kill_between_upload_and_result_loses_and_repeats_nothing(tmp_path, moment):
    """Killed when the jobs are written (the upload may or may not have happened), when the batch runs, when answers are filed."""
    signs = {"jobs": "batches/*.jobs.jsonl", "state": "batches/*.state.json", "answers": "?.*jsonl"}
    with FakeServer(batch_seconds=0.5) as server:
        process = buyer(server, tmp_path)
        wait_for(lambda: [path for path in tmp_path.glob(signs[moment]) if path.stat().st_size])
        process.send_signal(signal.SIGKILL)
        process.wait()
        completions, usage = generate(teacher(server), tmp_path, n=40)
        stats = server.stats()
    assert_whole(completions, 40, 4)
    assert stats["good_choices"] == 2 * 40 * 4, "each bought once"
    rows = rows_of(tmp_path)
    assert len(rows) == len({(row["key"], row["slot"]) for row in rows}) == 2 * 40 * 4
    assert usage["completion_tokens"] == stats["completion_tokens"]


def test_kills_at_many_moments(tmp_path):
    with FakeServer(batch_seconds=0.1) as server:
        for i in range(8):
            process = buyer(server, tmp_path)
            time.sleep(1.0 + 0.12 * i)  # importing takes most of it
            process.kill()
            process.wait()
        assert_whole(generate(teacher(server), tmp_path, n=40)[0], 40, 4)
        assert server.stats()["good_choices"] == 2 * 40 * 4


if __name__ == "__main__":

    class _At:
        base_url = sys.argv[1]

    from pathlib import Path

    generate(teacher(_At), Path(sys.argv[2]), n=40)
