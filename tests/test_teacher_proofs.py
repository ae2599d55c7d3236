"""Generation from a server that misbehaves: every completion is bought once, whatever happens. Each test takes minutes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fake_openai import FakeServer

pytestmark = pytest.mark.slow
N, D = 500, 8
COMMAND = (
    "teacher=openai", "teacher.model=fake", "until=generate", "dataset.n_problems=900", f"dataset.limit={N}", f"diversity={D}",
    "teacher.max_choices_per_request=2", "teacher.timeout_s=12",
)  # fmt: skip
FAULTS = {
    "seed": 3, "429": 0.045, "429:1": 0.005, "500": 0.05, "503": 0.02, "slow:30": 0.01,
    "reset": 0.04, "invalid_json": 0.03, "no_usage": 0.03,
    "fewer": 0.03, "empty": 0.02, "length": 0.02,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def start(server, folder, *overrides, **environment):
    command = [sys.executable, "-m", "fcot.run", *COMMAND, f"teacher.base_url={server.base_url}", "teacher.api_key_env=none", *overrides]
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def rows_of(folder):
    """Number of good rows by (key, slot), and the number of unusable rows; incomplete lines are skipped."""
    good, n_unusable = Counter(), 0
    for shard in Path(folder).glob("outputs/store/*/*/*/?.*jsonl"):
        for line in shard.read_bytes().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # torn by a kill
            good[row["key"], row["slot"]] += row["slot"] is not None
            n_unusable += row["slot"] is None
    return +good, n_unusable


def assert_complete(folder, steps=1):
    good, _ = rows_of(folder)
    assert set(good.values()) == {1}, "no slot has two rows"
    slots = Counter(key for key, _ in good)
    if steps == 1:
        assert sorted(good) == sorted((key, slot) for key in slots for slot in range(D))
        assert len(slots) == N
    assert len(good) == steps * N * D
    return set(good)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_faulty_server_sells_every_completion_once(tmp_path, steps):
    with FakeServer(FAULTS, latency=0.05, limit=1800) as server:
        process = start(server, tmp_path, *(["prompt=zero_shot_cot"] if steps == 2 else []))
        _, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        stats = server.stats()
    assert_complete(tmp_path, steps)
    assert stats["good_choices"] == steps * N * D
    if steps == 1:
        assert set(stats["good"].values()) == {D}
    share = sum(stats["faulty"].values()) / stats["requests"]
    print(f"\n{stats['requests']} requests, {share:.1%} of them faulty: {stats['faulty']}")
    assert 0.25 < share < 0.35
    assert set(stats["faulty"]) == {fault.partition(":")[0] for fault in FAULTS} - {"seed"}


def test_fifty_kills_lose_no_row_and_repeat_only_requests_in_flight(tmp_path):
    rng = random.Random(0)
    concurrency, choices, in_flight = 8, 2, []
    uninterrupted = tmp_path / "uninterrupted"
    uninterrupted.mkdir()
    with FakeServer(FAULTS, latency=0.0, limit=1800) as server:
        process = start(server, uninterrupted)
        assert process.wait(timeout=900) == 0
        expected = assert_complete(uninterrupted)
    with FakeServer(FAULTS, latency=0.15, limit=1800) as server:
        before = set()
        while len(in_flight) < 50:
            requests = server.stats()["requests"]
            process = start(server, tmp_path, f"teacher.concurrency={concurrency}")
            while server.stats()["requests"] == requests and process.poll() is None:
                time.sleep(0.02)
            time.sleep(rng.uniform(0.0, 0.4))
            process.kill()
            assert process.wait() < 0, f"the work was done after {len(in_flight)} kills"
            time.sleep(0.3)  # the server finishes the replies that it is writing
            good, _ = rows_of(tmp_path)
            assert before <= set(good), "a stored row is lost"
            before = set(good)
            in_flight.append(server.stats()["good_choices"] - good.total() - sum(in_flight))
        process = start(server, tmp_path)
        assert process.wait(timeout=900) == 0
        assert assert_complete(tmp_path) == expected
        bought = server.stats()["good_choices"]
    print(f"\nin flight at the kills: {sum(in_flight)} choices, at most {max(in_flight)}")
    assert max(in_flight) <= concurrency * choices
    assert bought == N * D + sum(in_flight), "only choices in flight at a kill are bought again"


@pytest.mark.parametrize("n", [2, 4])
def test_several_processes_at_once_buy_each_completion_once(tmp_path, n):
    """Runs with different seeds need the same completions and have folders of their own."""
    with FakeServer(FAULTS, latency=0.05, limit=1800) as server:
        processes = [start(server, tmp_path, f"seed={i}", "split_mode.validation_fraction=0.1") for i in range(n)]
        for process in processes:
            _, err = process.communicate(timeout=900)
            assert process.returncode == 0, err
        stats = server.stats()
    assert_complete(tmp_path)
    assert stats["good_choices"] == N * D
    usages = [json.loads(path.read_text())["teacher_usage"] for path in tmp_path.glob("outputs/runs/*/stages/generate.json")]
    assert len(usages) == n
    print(f"\nserved from the store: {[usage['served_from_store'] for usage in usages]} of {N * D} each")
    assert sum(usage["served_from_store"] for usage in usages) == (n - 1) * N * D


def test_a_run_writes_the_api_key_nowhere_even_after_errors(tmp_path):
    key = "sk-made-up-0123456789abcdefghij"
    for number, faults in enumerate((["401"] * 9, ["500"] * 9, ["404"] * 9, ["400"] * 9, ["quota"] * 9, FAULTS)):
        with FakeServer(faults) as server:
            process = start(
                server, tmp_path, f"dataset.generator_seed={number}", "dataset.limit=20", "teacher.api_key_env=MY_KEY", MY_KEY=key
            )
            out, err = process.communicate(timeout=600)
            assert server.stats()["last"], err
            assert server.stats()["last"][0]["authorization"] == f"Bearer {key}"
        assert key not in out + err
    leaks = [path for path in tmp_path.rglob("*") if key in path.name or (path.is_file() and key.encode() in path.read_bytes())]
    assert not leaks
