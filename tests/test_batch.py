"""The Batch API back end over real HTTP: the same store as online, and no request lost or bought twice, however a batch ends."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import zygote
from fake_openai import FakeServer
from teachers import PROMPT, RULE, plan, problems

from fcot.base.errors import FcotError
from fcot.base.files import write_json, write_jsonl
from fcot.llm.batch import BatchModel, _Batches, _failure
from fcot.llm.generate import generate_completions
from fcot.llm.meter import Meter
from fcot.llm.money import Price
from fcot.llm.openai import OpenAIModel
from fcot.llm.plan import missing
from fcot.llm.server import Server
from fcot.llm.store.folder import StoreFolder
from fcot.llm.throttle import Throttle
from fcot.store import main as store_command


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def server_of(server):
    return Server(
        model="fake", model_id="fake", chat=True, temperature=0.7, parameters={}, max_tokens_parameter="max_tokens",
        base_url=server.base_url, timeout_s=20.0,
    )  # fmt: skip


def teacher(server, max_choices=4, **options):
    online = OpenAIModel(server_of(server), Throttle(4, None, None), max_choices, 3)
    return BatchModel(server_of(server), online, poll_s=0.05, **options)


def generate(model, path, diversity=4, n=6, run_id="run", **options):
    generated = generate_completions(plan(model, diversity, run_id=run_id, **options), StoreFolder(path), problems(n))
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
def test_requests_that_a_batch_leaves_unanswered_are_sent_again(tmp_path, fault, capsys):
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
        n_requests = server.stats()["batch_requests"]
    skipped = [c for c in completions if c.finish_reason == "refused:prompt_filtered"]
    assert 0 < len(skipped) < 20
    assert n_requests == 2 * (20 - len(skipped))


@pytest.mark.parametrize(("fault", "message"), [("failed", "failed: invalid_json_line.*line 1"), ("cancelled", "was cancelled")])
def test_a_failed_or_cancelled_batch_ends_the_run_and_the_next_run_continues(tmp_path, fault, message):
    with FakeServer(batch_faults=[fault]) as server:
        with pytest.raises(FcotError, match=message):
            generate(teacher(server), tmp_path)
        assert_whole(generate(teacher(server), tmp_path)[0], 6, 4)
        assert server.stats()["good_choices"] == 2 * 6 * 4


def test_the_message_about_a_rejected_parameter_names_the_override_that_removes_it(tmp_path):
    with FakeServer(refuse="max_tokens") as server, pytest.raises(FcotError, match="max_tokens_parameter=max_completion_tokens renames it"):
        generate(teacher(server), tmp_path)


def test_a_server_that_rejects_several_choices_gets_requests_for_one_choice_each(tmp_path, capsys):
    with FakeServer(refuse="n") as server:
        assert_whole(generate(teacher(server), tmp_path, n=3)[0], 3, 4)
        assert server.stats()["good_choices"] == 2 * 3 * 4
    assert capsys.readouterr().err.count("rejects several choices") == 1


def test_the_message_about_an_unknown_batch_names_the_command_that_sets_it_aside(tmp_path):
    with FakeServer(batch_faults=["slow:30"]) as server:
        process = buyer(server, tmp_path)
        wait_for(lambda: list((tmp_path / "batches").glob("*.state.json")))
        process.kill()
        process.wait()
    with FakeServer() as other_server:
        with pytest.raises(FcotError, match=r"does not know the batch .* `python -m fcot.store set-aside .*\.jobs\.jsonl` sets it aside"):
            generate(teacher(other_server), tmp_path)
        (jobs,) = (tmp_path / "batches").glob("*.jobs.jsonl")
        store_command(["set-aside", str(jobs)])
        assert_whole(generate(teacher(other_server), tmp_path)[0], 6, 4)


def test_no_message_about_a_batch_contains_the_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-made-up-0123456789abcdefghij")
    error = SimpleNamespace(code="invalid_api_key", message="Incorrect key sk-made-up-0123456789abcdefghij", line=None)
    failed = SimpleNamespace(id="b", status="failed", errors=SimpleNamespace(data=[error]))
    model = teacher(SimpleNamespace(base_url=None))
    assert "sk-made-up" not in _failure(failed, model)
    assert "invalid_api_key: Incorrect key ***" in _failure(failed, model)


def test_files_keep_to_the_limits_of_the_api(tmp_path):
    with FakeServer(batch_max_requests=5) as server:
        assert_whole(generate(teacher(server, max_requests=5), tmp_path, n=12, diversity=1)[0], 12, 1)
        assert server.stats()["batches"] == 2 * 3
        generate(teacher(server, max_bytes=2500), tmp_path / "bytes", n=12, diversity=1)
        assert 2 * 3 < server.stats()["batches"] - 6 <= 2 * 12


def test_the_budget_limits_the_submitted_batches(tmp_path):
    price = Price(input=0.0, output=1e6 / 128, cached_input=0.0, batch=0.5)  # a rationale costs half a dollar at most
    with FakeServer() as server:
        with pytest.raises(FcotError, match=r"teacher\.budget_usd=3: .* the same command with a larger budget continues"):
            generate(teacher(server, max_choices=1), tmp_path, n=20, diversity=1, price=price, budget_usd=3.0)
        spent = server.stats()["completion_tokens"] * price.output / 1e6 * 0.5
        assert 2.0 < spent <= 3.0
        completions, usage = generate(teacher(server, max_choices=1), tmp_path, n=20, diversity=1, price=price, budget_usd=300.0)
        assert_whole(completions, 20, 1)
        assert usage["usd"] == pytest.approx(server.stats()["completion_tokens"] * price.output / 1e6 * 0.5)


def test_online_runs_do_not_buy_completions_of_an_open_batch(tmp_path):
    with FakeServer(batch_faults=["slow:30"]) as server:
        process = buyer(server, tmp_path)
        wait_for(lambda: list((tmp_path / "batches").glob("*.state.json")))
        process.kill()
        process.wait()
        with pytest.raises(FcotError, match="collect them first, with teacher=openai_batch"):
            generate(teacher(server).online, tmp_path)


# --- kills ------------------------------------------------------------------------------------------------------------------


def buyer(server, path):
    """A process that buys 40 problems' completions through the Batch API."""
    return zygote.start([__file__, server.base_url, path])


def wait_for(condition):
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("moment", ["jobs", "state", "answers"])
def test_a_kill_between_upload_and_result_loses_and_repeats_no_request(tmp_path, moment):
    """Kills when the jobs are written (before or after the upload), while the batch runs, and when answers are stored."""
    signs = {"jobs": "batches/*.jobs.jsonl", "state": "batches/*.state.json", "answers": "?.*jsonl"}
    with FakeServer(batch_seconds=0.5) as server:
        process = buyer(server, tmp_path)
        wait_for(lambda: [path for path in tmp_path.glob(signs[moment]) if path.stat().st_size])
        process.send_signal(signal.SIGKILL)
        process.wait()
        completions, usage = generate(teacher(server), tmp_path, n=40)
        stats = server.stats()
    assert_whole(completions, 40, 4)
    assert stats["good_choices"] == 2 * 40 * 4, "each choice is bought once"
    rows = rows_of(tmp_path)
    assert len(rows) == len({(row["key"], row["slot"]) for row in rows}) == 2 * 40 * 4
    assert usage["completion_tokens"] == stats["completion_tokens"]


def test_kills_at_many_moments_repeat_no_request(tmp_path):
    with FakeServer(batch_seconds=0.1) as server:
        for i in range(8):
            process = buyer(server, tmp_path)
            time.sleep(1.0 + 0.12 * i)  # most of this time goes to imports
            process.kill()
            process.wait()
        assert_whole(generate(teacher(server), tmp_path, n=40)[0], 40, 4)
        assert server.stats()["good_choices"] == 2 * 40 * 4


if __name__ == "__main__":

    class _At:
        base_url = sys.argv[1]

    from pathlib import Path

    generate(teacher(_At), Path(sys.argv[2]), n=40)


# --- unusual results of a batch -----------------------------------------------------------------------------------------


def open_batch(tmp_path, n=1):
    """The batches of a purchase with one submitted batch of ``n`` requests, its file of jobs, and the key of the prompt."""
    model = teacher(SimpleNamespace(base_url="http://127.0.0.1:9/v1"), max_choices=1)
    purchase, folder = plan(model, n, PROMPT, price=Price(2.0, 8.0, 0.5), budget_usd=1.0), StoreFolder(tmp_path)
    batches = _Batches(purchase, folder, Meter(n, lambda _: None))
    batches.meter.paid_usd = 0.0
    key = purchase.key(purchase.step1(problems(1)[0]))
    jobs = missing(purchase, folder.shard(key), key, problems(1)[0])
    path = tmp_path / "batches" / "20260131-120000-deadbeef.jobs.jsonl"
    write_jsonl(path, (batches._to_row(job, f"{path.name[:24]}-{i}") for i, job in enumerate(jobs)))
    write_json(path.with_name("20260131-120000-deadbeef.state.json"), {"batch": "b1"})
    return batches, path, key


def collect(batches, path, lines=(), output_file_id="f", error=None):
    """Collect the open batch: its output file has these lines, or the download fails with ``error``."""

    async def download(_, to):
        if error is not None:
            raise FcotError("gone") from error
        to.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))

    batches.teacher.download = download
    batch = SimpleNamespace(id="b1", status="completed", output_file_id=output_file_id, error_file_id=None, errors=None)

    async def run():
        with batches.folder.exclusive(print):
            return await batches._collect(path, batch)

    return asyncio.run(run())


@pytest.mark.parametrize("file_id", ["", None])
def test_a_batch_without_files_is_collected_and_its_requests_are_sent_again(tmp_path, file_id):
    batches, path, _ = open_batch(tmp_path)
    assert collect(batches, path, output_file_id=file_id) == 0
    assert not batches.folder.open_batches()


@pytest.mark.parametrize(
    "line",
    [
        {"error": "text"}, {"response": {"status_code": 500, "body": "text"}}, {"response": "text"}, {"response": None, "error": None},
        {"response": {"status_code": 429, "body": {"error": {"message": "slow down"}}}}, {"response": {"status_code": None}}, {},
    ],
)  # fmt: skip
def test_the_request_of_a_line_without_an_answer_is_sent_again(tmp_path, line):
    batches, path, key = open_batch(tmp_path)
    assert collect(batches, path, [{"custom_id": "20260131-120000-deadbeef-0", **line}, "odd", 3]) == 0
    assert not batches.folder.open_batches()
    assert not batches.folder.shard(key).refresh().all_rows(key)


def test_a_charged_answer_without_a_completion_counts_at_its_maximum_cost(tmp_path):
    batches, path, key = open_batch(tmp_path)
    line = {"custom_id": "20260131-120000-deadbeef-0", "response": {"status_code": 200, "body": {"choices": []}}}
    assert collect(batches, path, [line, line]) == 0
    (row,) = batches.folder.shard(key).refresh().cost_only_rows(key)
    assert row["refused"] == "lost"
    assert row["bound_usd"] == batches.meter.paid_usd > 0


def test_the_message_about_deleted_answers_names_the_command_that_continues(tmp_path, capsys):
    batches, path, _ = open_batch(tmp_path)
    not_found = type("Gone", (Exception,), {"status_code": 404})()
    with pytest.raises(FcotError, match=r"the answers of batch b1 \(file f\) are not at the server any more.*set-aside") as error:
        collect(batches, path, error=not_found)
    assert batches.folder.open_batches() == [path]
    store_command(str(error.value).split("`")[1].split()[3:])
    assert "bought again" not in capsys.readouterr().err
    assert not batches.folder.open_batches()
    assert (path.parent / "set_aside" / path.name).exists()


@pytest.mark.parametrize("submitted", ["UTC", "Europe/Berlin", "America/Los_Angeles", "Asia/Tokyo"])
@pytest.mark.parametrize("resumed", ["UTC", "Pacific/Honolulu", "Pacific/Auckland"])
def test_a_batch_is_found_in_any_time_zone(monkeypatch, submitted, resumed):
    """Names contain the time in UTC, and in older versions the local time. Other batches were created before and after."""
    monkeypatch.setenv("TZ", submitted)
    time.tzset()
    try:
        created = time.time()
        names = [f"{time.strftime('%Y%m%d-%H%M%S', clock(created))}-deadbeef" for clock in (time.gmtime, time.localtime)]
        monkeypatch.setenv("TZ", resumed)
        time.tzset()
        for name in names:
            searched = SimpleNamespace(id="mine", metadata={"fcot": name}, status="in_progress", created_at=created)
            other_batches = [
                SimpleNamespace(id="x", metadata={}, status="completed", created_at=created + offset) for offset in (60, -60, -7200)
            ]

            async def listed(limit, all_batches=(*other_batches, searched)):
                for batch in all_batches:
                    yield batch

            async def call(send, listed=listed):
                return await send(SimpleNamespace(batches=SimpleNamespace(list=listed)))

            batches = object.__new__(_Batches)
            batches.teacher = SimpleNamespace(call=call)
            assert asyncio.run(batches._find(name)).id == "mine"
    finally:
        monkeypatch.undo()
        time.tzset()
