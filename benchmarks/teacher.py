"""Measures the teacher side against the fake server of the tests.

    python benchmarks/teacher.py [throughput|shared|linear|store]    # without an argument: all

Compare ratios from one run on one machine: absolute numbers depend on the machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fake_openai import FakeServer

from fcot.base.files import fingerprint
from fcot.base.records import Problem
from fcot.llm.generate import generate_completions
from fcot.llm.openai import OpenAIModel
from fcot.llm.plan import Plan
from fcot.llm.server import Server
from fcot.llm.store.folder import StoreFolder
from fcot.llm.throttle import Throttle
from fcot.prompts.answers import AnswerRule
from fcot.prompts.teacher import TeacherPrompt
from fcot.tasks.toy import TOY_TASKS, make_problems
from fcot.teacher.oracle import Oracle

RULE = AnswerRule("number")
ONE_REQUEST = TeacherPrompt(
    "one", '{question}\n\nLet\'s think step by step. End with one sentence that begins with "{trigger}".', {"number": "The answer is"},
    two_steps=False, rationale_tokens=512,
)  # fmt: skip
TWO_REQUESTS = TeacherPrompt("two", "Q: {question}\nA: Let's think step by step.", {"number": "Therefore, the answer is"})
LATENCY, CEILING = 0.25, 50


def plan(server: FakeServer, prompt: TeacherPrompt, diversity: int, concurrency: int | None, choices: int = 1) -> Plan:
    settings = Server(
        model="fake", model_id="fake", chat=True, temperature=0.7, parameters={}, max_tokens_parameter="max_tokens",
        base_url=server.base_url, timeout_s=60.0,
    )  # fmt: skip
    return Plan(OpenAIModel(settings, Throttle(concurrency, None, None), choices, 20), prompt, RULE, diversity, "benchmark")


def buy(purchase: Plan, n: int, folder: str | Path) -> float:
    """Buy D completions of ``n`` problems into a store folder; returns seconds."""
    problems = make_problems(TOY_TASKS["toy_arithmetic"], n, 0)
    start = time.perf_counter()
    generate_completions(purchase, StoreFolder(Path(folder)), problems)
    return time.perf_counter() - start


def plain_loop(server: FakeServer, n: int, diversity: int, at_once: int) -> float:
    """Seconds of the usual loop: asyncio.gather with a semaphore and the official client; answers stay in memory."""
    import openai

    async def run() -> float:
        client = openai.AsyncOpenAI(api_key="unused", base_url=server.base_url)
        semaphore = asyncio.Semaphore(at_once)

        async def send(prompt: Any, seed: int) -> str | None:
            async with semaphore:
                answer = await client.chat.completions.create(
                    model="fake", messages=prompt, temperature=0.7, max_tokens=512, n=1, seed=seed
                )
                return answer.choices[0].message.content

        prompts = [
            ONE_REQUEST.first_request(problem.question, RULE, chat=True) for problem in make_problems(TOY_TASKS["toy_arithmetic"], n, 0)
        ]
        start = time.perf_counter()
        await asyncio.gather(*(send(prompt, slot) for prompt in prompts for slot in range(diversity)))
        seconds = time.perf_counter() - start
        await client.close()
        return seconds

    return asyncio.run(run())


def throughput() -> None:
    n, diversity = 1500, 8
    requests, ceiling = n * diversity, CEILING / LATENCY
    print(f"{requests:,} requests, {LATENCY * 1000:.0f} ms latency, {CEILING} in flight allowed: ceiling {ceiling:.0f}/s")
    for name, concurrency in (("limit configured", CEILING), ("limit discovered", None)):
        with tempfile.TemporaryDirectory() as folder, FakeServer(latency=LATENCY, max_in_flight=CEILING) as server:
            rate = requests / buy(plan(server, ONE_REQUEST, diversity, concurrency), n, folder)
            rejected = server.stats()["faulty"].get("over_capacity", 0)
        print(f"  {name}: {rate:.1f}/s, {rate / ceiling:.1%} of the ceiling ({rejected} rejected by the server)")
    with FakeServer(latency=LATENCY, max_in_flight=CEILING) as server:
        rate = requests / plain_loop(server, n, diversity, CEILING)
    print(f"  gather + semaphore: {rate:.1f}/s, {rate / ceiling:.1%} (keeps nothing on disk)")
    print("no latency: the sustained maximum with 50 requests at once; the two sides alternate")
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder, FakeServer() as server:
            ours = 4000 / buy(plan(server, ONE_REQUEST, 8, CEILING), 500, folder)
        with FakeServer() as server:
            theirs = 4000 / plain_loop(server, 500, 8, CEILING)
        print(f"  fcot {ours:,.0f}/s, gather + semaphore {theirs:,.0f}/s, ratio {ours / theirs:.2f}")


def shared() -> None:
    print("prompt tokens paid for D = 64: 16 choices per request, as a share of 1 choice per request (40 problems)")
    for name, prompt in (("one-request prompt", ONE_REQUEST), ("two-step prompt", TWO_REQUESTS)):
        paid = []
        for choices in (1, 16):
            with tempfile.TemporaryDirectory() as folder, FakeServer() as server:
                buy(plan(server, prompt, 64, 16, choices), 40, folder)
                rows = [json.loads(line) for path in Path(folder).glob("?.jsonl") for line in path.open()]
                assert sum(row.get("prompt_tokens", 0) for row in rows) == server.stats()["prompt_tokens"]
                paid.append([sum(row.get("prompt_tokens", 0) for row in rows if (row["root"] is None) == first) for first in (True, False)])
        step1 = paid[1][0] / paid[0][0]
        both = sum(paid[1]) / sum(paid[0])
        print(f"  {name}: first request {step1:.4f} (1/16 = {1 / 16:.4f}), both {both:.4f}: {sum(paid[0]):,} -> {sum(paid[1]):,} tokens")


def linear() -> None:
    print("tokens bought by D and number of problems (two-step prompt, 8 choices per request)")
    for n, diversity in ((100, 1), (100, 8), (100, 64), (400, 8), (1600, 8)):
        with tempfile.TemporaryDirectory() as folder, FakeServer() as server:
            buy(plan(server, TWO_REQUESTS, diversity, CEILING, 8), n, folder)
            stats = server.stats()
        tokens = stats["completion_tokens"] / (n * diversity)
        print(f"  {n:5} problems, D = {diversity:2}: {stats['requests']:6,} requests, {tokens:.2f} tokens per completion")
    print("a second run of the same 10,000 completions (two-step prompt, 1,250 problems, D = 8)")
    with tempfile.TemporaryDirectory() as folder, FakeServer() as server:
        first = buy(plan(server, TWO_REQUESTS, 8, CEILING, 8), 1250, folder)
        sent = server.stats()["requests"]
        purchase = replace(plan(server, TWO_REQUESTS, 8, CEILING, 8), run_id="second")
        start = time.perf_counter()
        problems = make_problems(TOY_TASKS["toy_arithmetic"], 1250, 0)
        generated = generate_completions(purchase, StoreFolder(Path(folder)), problems)
        usage = generated.usage()
        second = time.perf_counter() - start
        resent, served = server.stats()["requests"] - sent, usage["served_from_store"]
        print(f"  first {first:.1f} s; second {second:.2f} s, {resent} requests, {served:,} generations from the store")


# --- a large store --------------------------------------------------------------------------------------------------------


def problems_of(n: int) -> list[Problem]:
    return [Problem(i, f"Question number {i} of a task with many: how much is {i} and {i}?", str(2 * i)) for i in range(n)]


def fill(folder: Path, n: int, diversity: int) -> None:
    """Write the store folder of a finished purchase: D one-request completions for each of ``n`` problems."""
    identity = Oracle("toy_arithmetic", 0.0, 0.7).identity
    rng = random.Random(0)
    folder.mkdir(parents=True)
    files = {digit: (folder / f"{digit}.jsonl").open("w") for digit in "0123456789abcdef"}
    for problem in problems_of(n):
        request = {
            "prompt": ONE_REQUEST.first_request(problem.question, RULE, chat=False),
            "max_tokens": ONE_REQUEST.rationale_tokens,
            **identity,
        }
        key = fingerprint(request)
        for slot in range(diversity):
            row = {
                "key": key, "slot": slot, "root": None, "sample_index": problem.sample_index,
                "text": f" Adding {rng.random()} " + "gives so and so much, because it does. " * 10 + f"The answer is {problem.answer}.",
                "finish_reason": "stop", "request": f"{rng.getrandbits(64):016x}", "seed": slot, "n": 1, "run": "benchmark", "time": 1.0,
                "prompt_tokens": 40, "completion_tokens": 120,
            }  # fmt: skip
            files[key[0]].write(json.dumps(row | ({"asked": request} if slot == 0 else {})) + "\n")
    for file in files.values():
        file.close()


def store() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        for task in range(10):
            fill(root / f"task{task}" / "oracle" / "one", 12_500, 8)
        size = sum(path.stat().st_size for path in root.rglob("*.jsonl"))
        print(f"a store of 10 tasks with 100,000 completions each, {size / 1e6:,.0f} MB; each line is a separate process")
        for what in ("open", "served", "append"):
            subprocess.run([sys.executable, __file__, f"store-{what}", str(root / "task3" / "oracle" / "one")], check=True)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "fcot.store", "verify", str(root)], check=True, stdout=subprocess.DEVNULL)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        print(f"  verify 1,000,000 rows: {time.perf_counter() - start:.1f} s, peak at most {peak / 1024:,.0f} MB")


def store_step(what: str, path: Path) -> None:
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    purchase = Plan(Oracle("toy_arithmetic", 0.0, 0.7), ONE_REQUEST, RULE, 8, "other")
    problems = problems_of(12_500)
    folder = StoreFolder(path)
    start = time.perf_counter()
    if what == "store-open":
        for shard in folder.shards():
            shard.refresh()
        opened = time.perf_counter()
        keys = random.Random(1).sample([purchase.key(purchase.step1(problem)) for problem in problems], 10_000)
        began_reading = time.perf_counter()
        texts = sum(len(folder.shard(key).row(key, 3)["text"]) for key in keys)
        done = time.perf_counter()
        seconds = done - began_reading
        message = f"open (index 100,000): {opened - start:.2f} s; look up and read 10,000: {seconds:.2f} s ({texts:,} characters)"
    elif what == "store-served":
        generated = generate_completions(purchase, folder, problems)
        usage = generated.usage()
        message = f"a run that finds all 100,000: {time.perf_counter() - start:.2f} s, {usage['served_from_store']:,} served"
    else:
        shard = folder.shard("a")
        size = shard.path.stat().st_size
        shard.acquire(wait=True)
        opened = time.perf_counter()
        row = {"key": "a" * 64, "root": None, "text": "x" * 400, "finish_reason": "stop", "request": "r", "run": "r"}
        for _ in range(10_000):
            shard.append([row | {"slot": None, "refused": "benchmark"}])
        shard.release()
        message = f"lock and index one shard: {opened - start:.2f} s; append 10,000 answers: {time.perf_counter() - opened:.2f} s"
        os.truncate(shard.path, size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"  {message}; peak {peak / 1024:,.0f} MB, of which {base / 1024:,.0f} MB before", flush=True)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments and arguments[0].startswith("store-"):
        store_step(arguments[0], Path(arguments[1]))
    else:
        for name in arguments or ("throughput", "shared", "linear", "store"):
            {"throughput": throughput, "shared": shared, "linear": linear, "store": store}[name]()
