"""A small OpenAI-compatible server for tests, as a process of its own: ``python tests/fake_openai.py --port 0`` prints its port.

It listens on 127.0.0.1 only and ends with its parent, or after ``--limit`` seconds. It answers toy_arithmetic questions
on ``/v1/chat/completions`` and ``/v1/completions``: the rationale's wording follows from the seed and the choice.

``--faults`` is JSON. A list is used up one entry a request, in order of arrival (null: no fault), then all is well. An
object gives each fault's probability a request, and a ``seed``. A fault is a name of ``FAULTS`` with an optional
argument: ``429`` has no Retry-After, ``429:1`` asks for one second, ``slow:2`` stalls for two.

``GET /stats`` tells what the server did: ``good`` usable choices by prompt, ``faulty`` answers by fault, tokens of what it
charged for, the most requests it had at once, how many came back before their Retry-After, and the last requests in full.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter, deque
from typing import Any

from fcot.tasks.toy import TOY_TASKS

TASK = TOY_TASKS["toy_arithmetic"]
STATUS = {  # fault -> status, code of the error object
    "408": (408, "timeout"), "429": (429, "rate_limit_exceeded"), "500": (500, "server_error"), "503": (503, "overloaded"),
    "400": (400, "unsupported_parameter"), "401": (401, "invalid_api_key"), "404": (404, "model_not_found"),
    "quota": (429, "insufficient_quota"),
}  # fmt: skip
BODIES = {  # status 200, and no completion inside
    "invalid_json": b'{"choices": [{"text": "oh',
    "invalid_utf8": b'{"choices": [{"text": "\xff\xfe"}]}',
    "no_choices": b'{"object": "chat.completion", "choices": []}',
    "null_choice": b'{"choices": [null]}',
    "odd_content": b'{"choices": [{"text": 7, "message": {"content": ["a"]}, "finish_reason": "stop"}]}',
    "empty_body": b"",
}
FAULTS = {*STATUS, *BODIES, "reset", "slow", "no_usage", "odd_usage", "fewer", "more", "empty", "content_filter", "length", "surrogate"}


def write_choice(prompt: str | list[dict[str, str]], wording: int) -> str:
    """The answer to one prompt: a rationale, or where the prompt holds one, what it concludes."""
    text = prompt if isinstance(prompt, str) else prompt[0]["content"]
    question, _, rest = text.partition("\nA: Let's think step by step.")
    rationale = rest.rpartition("\n")[0] if isinstance(prompt, str) else "".join(m["content"] for m in prompt if m["role"] == "assistant")
    if rationale:
        return f" {TASK.conclusion(rationale) if re.search(r'[0-9]', rationale) else 0}."
    return " " + TASK.rationale(question.removeprefix("Q: "), wording % TASK.n_wordings, None)


class FakeOpenAI:
    """The server's state: its fault plan and its account of what it did."""

    def __init__(self, faults: Any, latency: float) -> None:
        assert {str(fault).partition(":")[0] for fault in faults} <= FAULTS | {"seed", "None"}, faults
        self.latency = latency
        self.probabilities = {name: share for name, share in faults.items() if name != "seed"} if isinstance(faults, dict) else {}
        self.random = random.Random(faults.get("seed") if isinstance(faults, dict) else 0)
        self.plan = deque(faults if isinstance(faults, list) else ())
        self.good: Counter[str] = Counter()
        self.faulty: Counter[str] = Counter()
        self.numbers: Counter[str] = Counter()
        self.last: deque[dict[str, Any]] = deque(maxlen=500)
        self.in_flight = 0
        self.not_before: dict[str, float] = {}

    def stats(self) -> dict[str, Any]:
        names = ("requests", "good_requests", "prompt_tokens", "completion_tokens", "peak_in_flight", "early")
        numbers = {name: self.numbers[name] for name in names}
        return numbers | {"good_choices": self.good.total(), "good": self.good, "faulty": self.faulty, "last": list(self.last)}

    def next_fault(self) -> tuple[str, str]:
        """Name and argument of the next request's fault; empty where it has none."""
        if self.plan:
            fault = self.plan.popleft() or ""
        else:
            point, fault = self.random.random(), ""
            for name, share in self.probabilities.items():
                if 0 <= point < share:
                    fault = name
                point -= share
        name, _, argument = fault.partition(":")
        return name, argument

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, kept alive from request to request."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                path = first.split()[1]
                if path == "/stats":
                    await send(writer, 200, json.dumps(self.stats()).encode())
                    continue
                self.in_flight += 1
                self.numbers["peak_in_flight"] = max(self.numbers["peak_in_flight"], self.in_flight)
                try:
                    await self.answer(writer, path, headers, json.loads(body))
                finally:
                    self.in_flight -= 1
        writer.close()

    async def answer(self, writer: asyncio.StreamWriter, path: str, headers: dict[str, str], body: dict[str, Any]) -> None:
        """Answer one request as the plan says, and keep the account."""
        prompt = body["messages"] if path == "/v1/chat/completions" else body["prompt"]
        key = prompt if isinstance(prompt, str) else json.dumps(prompt)
        fault, argument = self.next_fault()
        self.numbers["requests"] += 1
        self.last.append({"path": path, "body": body, "authorization": headers.get("authorization"), "fault": fault})
        self.numbers["early"] += time.monotonic() < self.not_before.pop(f"{body.get('seed')} {key}", 0.0)
        await asyncio.sleep(self.latency + (float(argument) if fault == "slow" else 0))
        if fault:
            self.faulty[fault] += 1
        if fault in STATUS:
            if argument:
                self.not_before[f"{body.get('seed')} {key}"] = time.monotonic() + float(argument)
            status, code = STATUS[fault]
            error = {"message": f"{code} for {headers.get('authorization')}", "type": code, "code": code, "param": None}
            await send(writer, status, json.dumps({"error": error}).encode(), {"Retry-After": argument} if argument else {})
        elif fault in BODIES:
            await send(writer, 200, BODIES[fault])
        else:
            await self.complete(writer, key, prompt, body, fault)

    async def complete(self, writer: asyncio.StreamWriter, key: str, prompt: Any, body: dict[str, Any], fault: str) -> None:
        n = body.get("n") or 1
        n = max(1, n // 2) if fault == "fewer" else n + 1 if fault == "more" else n
        seed = body["seed"] if body.get("seed") is not None else self.numbers["requests"]
        choices = [{"index": i, "text": write_choice(prompt, seed + i), "finish_reason": "stop"} for i in range(n)]
        first = choices[0]
        if fault in ("empty", "content_filter"):
            first.update(text="", finish_reason="stop" if fault == "empty" else fault)
        elif fault == "length":
            first.update(text=str(first["text"])[: max(4, len(str(first["text"])) // 2)], finish_reason="length")
        elif fault == "surrogate":
            first["text"] = f" \ud83d{first['text']}"
        usage: dict[str, Any] = {"prompt_tokens": len(key.split()), "completion_tokens": sum(len(str(c["text"]).split()) for c in choices)}
        if fault == "odd_usage":
            usage["prompt_tokens"] = "many"
        if "messages" in body:
            choices = [{**c, "message": {"role": "assistant", "content": c.pop("text")}} for c in choices]
        answer = {"id": "fake", "object": "fake", "created": 0, "model": body["model"], "choices": choices}
        data = json.dumps(answer if fault == "no_usage" else {**answer, "usage": usage}).encode()
        if fault == "reset":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data))
            writer.write(data[: len(data) // 2])
            await writer.drain()
            writer.transport.abort()
            return
        self.good[key] += n - (fault in ("empty", "content_filter"))
        self.numbers["good_requests"] += 1
        if fault not in ("no_usage", "odd_usage"):
            self.numbers.update(usage)
        await send(writer, 200, data)


async def send(writer: asyncio.StreamWriter, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
    lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write("\r\n".join([*lines, "\r\n"]).encode() + data)
    await writer.drain()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--faults", type=json.loads, default=[])
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds until the server ends")
    arguments = parser.parse_args()
    fake, parent, end = FakeOpenAI(arguments.faults, arguments.latency), os.getppid(), time.monotonic() + arguments.limit
    server = await asyncio.start_server(fake.serve, "127.0.0.1", arguments.port, limit=2**20)
    print(server.sockets[0].getsockname()[1], flush=True)
    while os.getppid() == parent and time.monotonic() < end:
        await asyncio.sleep(0.2)


class FakeServer:
    """The server as a child process, for ``with``; ends with the block."""

    def __init__(self, faults: Any = (), latency: float = 0.0) -> None:
        plan = json.dumps(faults if isinstance(faults, dict) else list(faults))
        command = [sys.executable, __file__, "--port", "0", "--faults", plan, "--latency", str(latency)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.base_url = f"http://127.0.0.1:{int(self._process.stdout.readline())}/v1"

    def stats(self) -> dict[str, Any]:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(self.base_url.replace("/v1", "/stats"), timeout=30) as answer:
            return json.load(answer)

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


if __name__ == "__main__":
    asyncio.run(main())
