"""Budgets under kills, restarts and several processes: the server never charges more."""

from __future__ import annotations

import errno
import json
import os
import time
import uuid
from collections import Counter
from pathlib import Path

import paying
import pytest
import zygote
from fake_openai import FakeServer
from paying import PRICE

from fcot.base.errors import FcotError
from fcot.llm.budget import SharedBudget

BUDGET = 0.05


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def start(store, server, *arguments):
    process = zygote.start([paying.__file__, store, server.base_url, *arguments])
    assert process.stdout.readline() == "buying\n", process.stderr.read()
    return process


def finish(process):
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return json.loads(out)


def kill_in_flight(process, server, requests, after=1):
    """Kill the process while requests are in flight: after ``after`` requests beyond the first ``requests``. False if it ended before."""
    while server.stats()["requests"] < requests + after and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.05)
    process.kill()
    process.communicate()
    return process.returncode < 0


def charged(server):
    stats = server.stats()
    return PRICE.usd(stats["prompt_tokens"], stats["completion_tokens"], stats["cached_tokens"])


def rows(store):
    return [json.loads(line) for path in Path(store).glob("?.*jsonl") for line in path.read_bytes().splitlines() if line.endswith(b"}")]


def run_with_kills(store, n_kills, *arguments):
    """Returns the charged cost, the usage that fcot reports, the number of choices bought but not stored, and of kills in flight."""
    with FakeServer(latency=0.25) as server:
        kills = 0
        for number in range(n_kills):
            process = start(store, server, "--budget", BUDGET, *arguments)
            kills += kill_in_flight(process, server, server.stats()["requests"], 1 + number % 2)  # the first request is sent alone
        time.sleep(0.4)  # answers that the server is still generating are charged too
        usage = finish(start(store, server, "--budget", BUDGET, *arguments))
        bought = server.stats()["good_choices"]
        slots = Counter((row["key"], row["slot"]) for row in rows(store) if row["slot"] is not None)
        assert set(slots.values()) <= {1}
        return charged(server), usage, bought - slots.total(), kills


@pytest.mark.parametrize("n_kills", [4])
def test_a_budget_holds_over_kills_with_requests_in_flight(tmp_path, n_kills):
    cost, usage, n_lost, kills = run_with_kills(tmp_path, n_kills)
    assert kills == n_kills
    assert 0 < n_lost <= 4 * kills, "only choices that were in flight are bought twice"
    assert cost <= usage["usd"] <= BUDGET
    assert usage["requests_lost"] >= n_lost
    assert usage["message"].startswith(f"teacher.budget_usd={BUDGET}: ${usage['usd']:.4f} spent")


@pytest.mark.slow
@pytest.mark.parametrize("store", range(20))
def test_ten_kills_of_twenty_stores(tmp_path, store):
    cost, usage, n_lost, kills = run_with_kills(tmp_path, 10)
    print(
        f"\nstore {store}: {kills} kills with requests in flight, charged ${cost:.4f}, reported ${usage['usd']:.4f}, bought twice {n_lost}"
    )
    assert kills == 10
    assert n_lost <= 4 * kills
    assert cost <= usage["usd"] <= BUDGET


def test_without_the_row_before_sending_the_same_kills_exceed_the_budget(tmp_path):
    """Shows that the two tests above would fail without the row."""
    cost, usage, _, _ = run_with_kills(tmp_path, 12, "--without-rows-before-sending")
    assert cost > usage["usd"]


def test_timeouts_count_at_their_maximum_cost_without_a_budget_too(tmp_path):
    with FakeServer(latency=1.0) as server:
        usage = finish(start(tmp_path, server, "--timeout", 0.3, "--problems", 1, "--diversity", 1))
        time.sleep(1.2)
        assert charged(server) <= usage["usd"]
    assert usage["requests_lost"] == 4, "one attempt and three retries"
    assert usage["usd"] > 0


@pytest.mark.parametrize("fault", ["gateway", "slow:3"])
def test_requests_that_a_gateway_or_a_timeout_ended_are_counted_as_the_server_counts_them(tmp_path, fault):
    with FakeServer([None, *[fault] * 3]) as server:
        usage = finish(start(tmp_path, server, "--problems", 2, "--diversity", 2, "--timeout", 1.0))
        time.sleep(3.0 if fault != "gateway" else 0.0)
        cost = charged(server)
    assert usage["requests_lost"] == 3
    assert usage["usd"] >= cost > PRICE.usd(usage["prompt_tokens"], usage["completion_tokens"]), "the recorded answers alone cost less"


def test_tries_that_were_certainly_not_charged_cost_nothing(tmp_path):
    with FakeServer(["429", "500", None] * 50) as server:
        usage = finish(start(tmp_path, server, "--problems", 3))
        assert usage["usd"] == pytest.approx(charged(server), abs=1e-6)
    assert usage["requests_lost"] == 0
    assert not [row for row in rows(tmp_path) if row.get("refused") == "lost"]


def test_a_rejected_key_leaves_no_cost(tmp_path):
    with FakeServer(["401"] * 9) as server:
        usage = finish(start(tmp_path, server))
    assert usage["usd"] == 0.0
    assert usage["requests_lost"] == 0


def test_processes_of_one_run_share_its_budget(tmp_path):
    """Two processes with the same run id and store, as from two output folders: the second waits, and counts the first one's costs."""
    with FakeServer(latency=0.02) as server:
        processes = [start(tmp_path, server, "--budget", 0.02, "--problems", 100) for _ in range(2)]
        usages = [finish(process) for process in processes]
        assert charged(server) <= 0.02
    assert all(usage["message"] for usage in usages)


def test_the_budget_message_names_the_price_file(tmp_path):
    from fcot.base.resources import PRICES
    from fcot.llm.money import read_price

    assert read_price(PRICES, "gpt-4.1-mini").source == str(PRICES)


# --- a budget that several runs share ---------------------------------------------------------------------------------


def test_a_shared_budget_holds_over_concurrent_processes(tmp_path):
    """Four runs with their own stores; each alone could spend more than the shared budget."""
    with FakeServer(latency=0.05) as server:
        shared = ("--shared", BUDGET, "--ledger", tmp_path / "ledger")
        usages = [finish(process) for process in [start(tmp_path / f"{i}", server, *shared, "--run", f"run{i}") for i in range(4)]]
        cost = charged(server)
    assert cost - 1e-9 <= sum(usage["usd"] for usage in usages) <= BUDGET + 1e-9
    assert SharedBudget(tmp_path / "ledger", BUDGET, "").spent_usd() == pytest.approx(sum(usage["usd"] for usage in usages), abs=1e-6)
    assert all(usage["message"].startswith(f"hydra.launcher.budget_usd={BUDGET}: $") for usage in usages)
    assert cost > 0.7 * BUDGET, "most of the budget is used"


def test_a_shared_budget_holds_over_kills(tmp_path):
    with FakeServer(latency=0.25) as server:
        shared = ("--shared", BUDGET, "--ledger", tmp_path / "ledger")
        for _ in range(4):
            processes = [start(tmp_path / f"{i}", server, *shared, "--run", f"run{i}") for i in range(2)]
            kill_in_flight(processes[0], server, server.stats()["requests"])
            processes[1].kill()
            processes[1].communicate()
        time.sleep(0.4)
        usages = [finish(start(tmp_path / f"{i}", server, *shared, "--run", f"run{i}")) for i in range(2)]
        cost = charged(server)
    assert cost - 1e-9 <= sum(usage["usd"] for usage in usages) <= BUDGET + 1e-9
    assert SharedBudget(tmp_path / "ledger", BUDGET, "").spent_usd() <= BUDGET + 1e-9


def test_other_purchases_can_spend_what_an_ended_one_did_not(tmp_path):
    budget = SharedBudget(tmp_path, 1.0, "")
    first, second = budget.open(), budget.open()
    assert first.covers(0.6)
    assert not second.covers(0.5)
    first.commit(0.1)
    assert not second.covers(0.5), "the first purchase may still spend the amount that it reserved"
    first.close()
    assert second.covers(0.5)
    assert second.covers(0.9)
    assert not second.covers(0.91)
    second.close()
    assert budget.spent_usd() == pytest.approx(0.1)


def test_a_purchase_that_fails_leaves_only_what_it_spent(tmp_path):
    """Each request reserves its maximum cost; requests with a rejected key were not charged."""
    with FakeServer([*[None] * 3, *["401"] * 20], latency=0.1) as server:
        usage = finish(start(tmp_path, server, "--shared", BUDGET, "--ledger", tmp_path / "ledger", "--problems", 9))
    assert "AuthenticationError" in usage["message"]
    assert SharedBudget(tmp_path / "ledger", BUDGET, "").spent_usd() == pytest.approx(usage["usd"], abs=1e-6)


def test_a_ledger_file_without_an_amount_counts_nothing(tmp_path):
    """Its process was killed between creating the file and writing to it."""
    budget = SharedBudget(tmp_path, BUDGET, "launch.budget_usd")
    lease = budget.open()
    lease.covers(0.01)
    lease.commit(0.01)
    (tmp_path / f"20260101T000000-{uuid.uuid4().hex}").touch()
    assert budget.spent_usd() >= 0.01
    lease.close()
    assert budget.spent_usd() == 0.01


def test_a_full_disk_under_the_ledger_gets_one_message(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    lease = SharedBudget(tmp_path, BUDGET, "launch.budget_usd").open()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(FcotError, match="no space left"):
            lease.commit(0.01)
    lease.close()


# --- a sweep's budget ------------------------------------------------------------------------------------------------


SWEEP = (
    "-m", "teacher=openai", "teacher.model=fake", "until=generate", "dataset.n_problems=200", "dataset.limit=40", "diversity=4",
    "prompt.rationale_tokens=40", "teacher.max_choices_per_request=1", "teacher.concurrency=4", "hydra.sweep.dir=outputs/sweeps/s",
)  # fmt: skip


@pytest.fixture
def prices(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text("fake: {input: 2, output: 8, cached_input: 0.5}\n")
    return f"teacher.prices={path}"


@pytest.mark.parametrize("launcher", ["serial", "local"])
def test_the_jobs_of_a_sweep_share_its_budget_and_a_rerun_may_raise_it(tmp_path, run_fcot, prices, launcher):
    """Jobs with different temperatures need different completions; each alone would spend more than the sweep's budget."""
    with FakeServer(latency=0.01) as server:
        overrides = (f"teacher.base_url={server.base_url}", prices, f"hydra/launcher={launcher}", "teacher.temperature=0.5,0.9")
        process = run_fcot(*SWEEP, *overrides, "hydra.launcher.budget_usd=0.03")
        assert "spending: at most $0.03 for all jobs together (hydra.launcher.budget_usd)" in process.stderr
        assert "hydra.launcher.budget_usd=0.03: $0.0" in process.stderr
        assert "rerun outputs/sweeps/s budget_usd=MORE` continues" in process.stderr
        first_cost = charged(server)
        assert 0.02 < first_cost <= 0.03
        process = run_fcot("rerun", "outputs/sweeps/s", "budget_usd=0.05", module="fcot.sweep")
        assert first_cost < charged(server) <= 0.05
        process = run_fcot("rerun", "outputs/sweeps/s", "budget_usd=10", module="fcot.sweep")
        assert process.returncode == 0, process.stderr
        assert server.stats()["good_choices"] == 2 * 40 * 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("teacher.budget_usd=5",), "spending: at most $10.00: teacher.budget_usd of 2 jobs. hydra.launcher.budget_usd limits them"),
        (("teacher.budget_usd=5", "hydra.launcher.budget_usd=7"), "spending: at most $7.00 for all jobs together"),
        ((), "spending: no limit is set: hydra.launcher.budget_usd for all jobs together, teacher.budget_usd for each of them"),
        (("hydra.launcher.budget_usd=0",), "hydra.launcher.budget_usd=0: it must be more than 0"),
    ],
)
def test_a_launch_prints_its_maximum_cost(run_fcot, prices, overrides, message):
    process = run_fcot(*SWEEP, "teacher.base_url=http://127.0.0.1:9/v1", prices, "teacher.temperature=0.5,0.9", "dry_run=true", *overrides)
    assert message in process.stdout + process.stderr


def test_a_sweeps_budget_needs_prices(run_fcot):
    process = run_fcot(*SWEEP, "teacher.base_url=http://127.0.0.1:9/v1", "teacher.temperature=0.5,0.9", "hydra.launcher.budget_usd=5")
    assert process.returncode == 1
    assert "hydra.launcher.budget_usd needs a price, and " in process.stderr
    assert "has none for fake: teacher.prices=FILE" in process.stderr


def test_a_sweeps_budget_excludes_batches(run_fcot, prices):
    process = run_fcot(*SWEEP, "teacher=openai_batch", "teacher.base_url=http://127.0.0.1:9/v1", prices, "hydra.launcher.budget_usd=5")
    assert process.returncode == 1
    assert "hydra.launcher.budget_usd does not count what batches cost" in process.stderr
