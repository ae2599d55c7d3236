"""A small OpenAI-compatible server for tests, as a process of its own: ``python tests/fake_openai.py --port 0`` prints its port.

It listens on 127.0.0.1 only and ends with its parent process, or after ``--limit`` seconds. It answers toy_arithmetic questions
on ``/v1/chat/completions`` and ``/v1/completions``. The wording of a rationale depends on the seed and the index of the choice.

``--faults`` is JSON. A list has one entry per request, in order of arrival (null: no fault); later requests have no fault. An
object gives the probability of each fault per request, and a ``seed``. A fault is a name of ``FAULTS`` with an optional
argument: ``429`` has no Retry-After, ``429:1`` demands one second, ``slow:2`` stalls for two. ``trickle:2`` begins an answer and sends
blanks for two seconds, ``redirect:URL`` redirects (307), ``unknown_field:seed`` is a 422 about that field. A stalled request is
charged even if its client has disconnected, and so is a ``gateway`` timeout (504). Requests that an option rejects
(``--max-in-flight``, ``--requests-per-minute``, ``--refuse``...; see ``--help``) use up no fault.

It has the Batch API too (``/v1/files``, ``/v1/batches``). A batch has the same answers and takes ``--batch-seconds``.
``--batch-faults`` is a JSON list of ``BATCH_FAULTS`` with one entry per batch; an argument is the duration of that batch in seconds.

It has fine-tuning too (``/v1/fine_tuning/jobs`` and uploads for it). A job advances by one status with each request for it and ends
with request number ``--tuning-looks``. Its model then answers like its training file, with a rationale and ``-->`` or without.
``--tuning-faults`` is JSON: for each call (``upload``, ``file``, ``list``, ``create``, ``look``) a list as in ``--faults``, of
``STATUS``, ``BODIES``, ``reset`` and ``slow:2`` (does nothing for two seconds). Two more do their work immediately: ``lost`` drops
the answer, ``late:2`` sends it after two seconds.
``--job-faults`` is a list with one entry per job: ``failed`` or ``cancelled``.

``GET /stats`` reports: ``good`` usable choices by prompt, ``faulty`` answers by fault, the tokens that were charged,
the largest number of requests in flight, how many were repeated before their Retry-After, and the last requests in full.
For batches: ``batches`` created, ``batch_requests`` answered, ``batch_faults`` (planned ones, and error codes of invalid input).
For fine-tuning: its ``uploads``, the requests for the status of a job (``looks``), the ``jobs`` and ``tuning_faulty``.
Answers of batches are in the choices and the tokens too, but not in ``requests``, ``good_requests`` and ``faulty``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import re
import time
import urllib.parse
import urllib.request
import uuid
import zlib
from collections import Counter, deque
from typing import Any

import zygote

from fcot.prompts.teacher import FIRST_WRONG_STEP, STUDENTS_ANSWER
from fcot.tasks.toy import TOY_TASKS
from fcot.teacher.oracle import is_judged, judged

TASK = TOY_TASKS["toy_arithmetic"]
STATUS = {  # fault -> status, code of the error object
    "408": (408, "timeout"), "429": (429, "rate_limit_exceeded"), "500": (500, "server_error"), "503": (503, "overloaded"),
    "400": (400, "unsupported_parameter"), "401": (401, "invalid_api_key"), "404": (404, "model_not_found"),
    "quota": (429, "insufficient_quota"), "529": (529, "overloaded"), "content_filter_400": (400, "content_filter"),
    "too_long": (400, "context_length_exceeded"),
}  # fmt: skip
MESSAGES = {  # code -> message, where the error is of type invalid_request_error
    "content_filter": "The response was filtered due to the prompt triggering the content management policy.",
    "context_length_exceeded": "This model's maximum context length is 4097 tokens. However, your messages resulted in 5000 tokens.",
}
BODIES = {  # status 200 without a completion
    "invalid_json": b'{"choices": [{"text": "oh',
    "invalid_utf8": b'{"choices": [{"text": "\xff\xfe"}]}',
    "no_choices": b'{"object": "chat.completion", "choices": []}',
    "null_choice": b'{"choices": [null]}',
    "odd_content": b'{"choices": [{"text": 7, "message": {"content": 7}, "finish_reason": "stop"}]}',
    "empty_body": b"",
    "login": b"<!DOCTYPE html><html><head><title>Sign in to Contoso</title><style>p {}</style></head><body><p>Password:</p></body></html>",
}
FAULTS = {
    *STATUS,
    *BODIES,
    "reset",
    "slow",
    "no_usage",
    "odd_usage",
    "fewer",
    "more",
    "empty",
    "content_filter",
    "length",
    "surrogate",
    "no_reply",
}
FAULTS |= {"html", "gateway", "forbidden", "redirect", "unknown_field", "trickle"}
BATCH_FAULTS = {"create_500", "failed", "token_limit", "expired", "cancelled", "errors", "filtered", "slow"}
COMPLETIONS = ("/v1/chat/completions", "/v1/completions")
FAILED_BATCH = {  # fault -> the error of a batch that fails
    "failed": {"code": "invalid_json_line", "message": "This line is not parseable as valid JSON.", "line": 1},
    "token_limit": {
        "code": "token_limit_exceeded",
        "message": "Enqueued token limit reached for fake in organization org-x. Limit: 90,000 enqueued tokens. "
        "Please try again once some in_progress batches have been completed.",
    },
}
UNFINISHED = {  # status -> code and message of the requests that a batch did not execute
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed because the batch was cancelled."),
}


def write_choice(prompt: str | list[dict[str, str]], wording: int) -> str:
    """The answer to one prompt: a rationale, the conclusion of a rationale in the prompt, or both for a one-step prompt."""
    text = prompt if isinstance(prompt, str) else next(m["content"] for m in prompt if m["role"] == "user")
    if is_judged(text):
        return f"Each step was checked.\n\n{judged(TASK, text)}"
    if STUDENTS_ANSWER in text:  # a request for feedback
        case, _, mistakes = text.partition(STUDENTS_ANSWER)
        if FIRST_WRONG_STEP in text:
            return f"This does not follow. {FIRST_WRONG_STEP}: 2"
        question, trigger = re.search(r"Question: (.+)", case)[1], re.search(r'begins with "([^"]+)"', text)[1]  # type: ignore[index]
        rationale = TASK.rationale(question, wording % TASK.n_wordings, None, TASK.first_wrong(question, mistakes))
        return f"{rationale} {trigger} {TASK.conclusion(rationale)}."
    trigger_match = re.search(r"\n\n[^\n]*?begins with \"([^\"]+)\"", text)
    trigger = trigger_match[1] if trigger_match else "The answer is" if text.endswith("\nA:") else ""
    if trigger and (isinstance(prompt, str) or all(m["role"] != "assistant" for m in prompt)):
        question = text[: trigger_match.start()] if trigger_match else text.removesuffix("\nA:").rpartition("Q: ")[2]
        rationale = TASK.rationale(question.removeprefix("Q: "), wording % TASK.n_wordings, None)
        return f" {rationale} {trigger} {TASK.conclusion(rationale)}."
    question, _, continuation = text.partition("\nA: Let's think step by step.")
    rationale = (
        continuation.rpartition("\n")[0] if isinstance(prompt, str) else "".join(m["content"] for m in prompt if m["role"] == "assistant")
    )
    if rationale:
        return f" {TASK.conclusion(rationale) if re.search(r'[0-9]', rationale) else 0}."
    if not re.search("[0-9]", question):
        return " I can only do sums."
    return " " + TASK.rationale(question.removeprefix("Q: "), wording % TASK.n_wordings, None)


def error_body(code: str | None, message: str, type: str = "invalid_request_error", param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


class Bucket:
    """A token bucket with the rate ``per_minute`` and a capacity of ``burst`` seconds."""

    def __init__(self, per_minute: float, burst: float) -> None:
        self.per_minute, self.rate = per_minute, per_minute / 60
        self.level = self.capacity = max(1.0, self.rate * burst)
        self.at = time.monotonic()

    def wait(self, cost: float) -> float:
        """Seconds until ``cost`` may be taken; a cost above the capacity waits for a full bucket."""
        now = time.monotonic()
        self.level, self.at = min(self.capacity, self.level + (now - self.at) * self.rate), now
        return max(0.0, (min(cost, self.capacity) - self.level) / self.rate)

    def headers(self, kind: str) -> dict[str, str]:
        reset = duration(self.wait(self.capacity))
        values = {"limit": f"{self.per_minute:g}", "remaining": str(max(0, int(self.level))), "reset": reset}
        return {f"x-ratelimit-{name}-{kind}": value for name, value in values.items()}


def duration(seconds: float) -> str:
    """A duration in OpenAI's notation: ``20ms``, ``1.5s``, ``6m0s``."""
    milliseconds = math.ceil(seconds * 1000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{milliseconds / 1000:g}s"


class FakeOpenAI:
    """The server's state: its fault plan and its statistics."""

    def __init__(self, options: argparse.Namespace) -> None:
        faults = options.faults
        assert {str(fault).partition(":")[0] for fault in faults} <= FAULTS | {"seed", "None"}, faults
        self.options = options
        self.probabilities = {name: share for name, share in faults.items() if name != "seed"} if isinstance(faults, dict) else {}
        self.random = random.Random(faults.get("seed") if isinstance(faults, dict) else 0)
        self.plan = deque(faults if isinstance(faults, list) else ())
        self.good: Counter[str] = Counter()
        self.faulty: Counter[str] = Counter()
        self.numbers: Counter[str] = Counter()
        self.last: deque[dict[str, Any]] = deque(maxlen=500)
        self.in_flight = 0
        self.not_before: dict[str, float] = {}
        limits = {"requests": options.requests_per_minute, "tokens": options.tokens_per_minute}
        self.buckets = {kind: Bucket(limit, options.burst_seconds) for kind, limit in limits.items() if limit}
        self.batches = Batches(self)
        self.tuning = Tuning(self)

    def stats(self) -> dict[str, Any]:
        names = ("requests", "good_requests", "prompt_tokens", "completion_tokens", "cached_tokens", "peak_in_flight", "early")
        numbers = {name: self.numbers[name] for name in (*names, "batches", "batch_requests", "uploads", "looks")}
        tuning = {"jobs": list(self.tuning.jobs.values()), "tuning_faulty": self.tuning.faulty, "tuning_headers": list(self.tuning.headers)}
        good = {"good_choices": self.good.total(), "good": self.good}
        return numbers | good | tuning | {"faulty": self.faulty, "batch_faults": self.batches.faults, "last": list(self.last)}

    def next_fault(self) -> tuple[str, str]:
        """Name and argument of the next request's fault; empty without one."""
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
        """Serve one connection, which is kept alive between requests."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                request_line, *lines = head.decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await read_body(reader, headers)
                method, path, _ = request_line.split()
                if path == "/stats":
                    await send(writer, 200, json.dumps(self.stats()).encode())
                    continue
                if path not in COMPLETIONS:
                    await self.tuning.serve(writer, method, path, headers, body)
                    continue
                full = 0 < self.options.max_in_flight <= self.in_flight
                self.in_flight += not full
                self.numbers["peak_in_flight"] = max(self.numbers["peak_in_flight"], self.in_flight)
                try:
                    await self.answer(reader, writer, path, headers, json.loads(body), full)
                finally:
                    self.in_flight -= not full
        writer.close()

    async def answer(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        path: str,
        headers: dict[str, str],
        body: dict[str, Any],
        full: bool,
    ) -> None:
        """Answer one request according to the fault plan, and count it."""
        prompt, key = read_prompt(body)
        error_reply = (
            ("over_capacity", 429, error_body("rate_limit_exceeded", "Too many requests at once", "requests"), 0.0) if full else None
        )
        error_reply = error_reply or self.over_rate(key, body) or self.permanent_error(body)
        fault, argument = (error_reply[0], "") if error_reply else self.next_fault()
        self.numbers["requests"] += 1
        self.last.append({"path": path, "body": body, "headers": headers, "authorization": headers.get("authorization"), "fault": fault})
        self.numbers["early"] += time.monotonic() < self.not_before.pop(f"{body.get('seed')} {key}", 0.0)
        if fault:
            self.faulty[fault] += 1
        if not fault.startswith("over_"):
            await asyncio.sleep(self.options.latency + (float(argument) if fault == "slow" else 0))
        if fault == "slow" and reader.at_eof():  # the client did not wait; providers charge for the generated tokens
            self.charge(self.write(key, prompt, body, fault)[1])
            return
        if error_reply:
            _, status, error, wait = error_reply
            if wait:
                self.not_before[f"{body.get('seed')} {key}"] = time.monotonic() + wait
            retry_after = {"Retry-After": f"{math.ceil(wait * 1000) / 1000:g}"} if wait else {}
            await send(writer, status, json.dumps(error).encode(), retry_after | self.rate_headers())
        elif fault in STATUS:
            if argument:
                self.not_before[f"{body.get('seed')} {key}"] = time.monotonic() + float(argument)
            status, code = STATUS[fault]
            error = (
                error_body(code, MESSAGES[code])
                if code in MESSAGES
                else error_body(code, f"{code} for {headers.get('authorization')}", code)
            )
            await send(writer, status, json.dumps(error).encode(), ({"Retry-After": argument} if argument else {}) | self.rate_headers())
        elif fault == "forbidden":  # a proxy's message, which repeats a header
            text = f"Forbidden by corporate proxy for team {headers.get('x-team')}"
            await send(writer, 403, text.encode(), {"Content-Type": "text/plain"})
        elif fault == "redirect":
            await send(writer, 307, b"", {"Location": argument + path.removeprefix("/v1")})
        elif fault == "unknown_field":
            await send(writer, 422, json.dumps({"detail": f"Unknown field '{argument}'"}).encode())
        elif fault == "trickle":
            await trickle(writer, float(argument))
        elif fault == "html":
            await send(writer, 502, b"<html><body><h1>502 Bad Gateway</h1></body></html>", {"Content-Type": "text/html"})
        elif fault == "gateway":  # the gateway timed out, but the model generated the answer
            self.charge(self.write(key, prompt, body, fault)[1])
            await send(writer, 504, b"<html><body><h1>504 Gateway Time-out</h1></body></html>", {"Content-Type": "text/html"})
        elif fault in BODIES:
            await send(writer, 200, BODIES[fault], self.rate_headers())
        else:
            await self.complete(writer, key, prompt, body, fault)

    def over_rate(self, key: str, body: dict[str, Any]) -> tuple[str, int, dict[str, Any], float] | None:
        """The error of a request that must wait, and the seconds; without one the request's cost is taken from the buckets."""
        tokens = len(key.split()) + (body.get("n") or 1) * (body.get("max_tokens") or body.get("max_completion_tokens") or 16)
        costs = {"requests": 1, "tokens": tokens}
        wait, kind = max(((bucket.wait(costs[kind]), kind) for kind, bucket in self.buckets.items()), default=(0.0, ""))
        if wait > 1e-6:
            message = f"Rate limit reached for {body['model']} on {kind} per min. Please try again in {duration(wait)}."
            return "over_rate", 429, error_body("rate_limit_exceeded", message, kind), wait
        for kind, bucket in self.buckets.items():
            bucket.level -= costs[kind]
        return None

    def rate_headers(self) -> dict[str, str]:
        buckets = {} if self.options.no_rate_headers else self.buckets
        return {name: value for kind, bucket in buckets.items() for name, value in bucket.headers(kind).items()}

    def permanent_error(self, body: dict[str, Any]) -> tuple[str, int, dict[str, Any], float] | None:
        """The error of a request that this server never answers; None for a valid request."""
        if self.options.only_model and body["model"] != self.options.only_model:
            return "model_not_found", 404, no_model(body["model"]), 0.0
        if body["model"].startswith("ft:") and body["model"] not in self.tuning.rationales:
            return "model_not_found", 404, no_model(body["model"]), 0.0
        for name in self.options.refuse:
            if name in body and (name != "n" or (body["n"] or 1) > 1):
                message = f"Unsupported parameter: '{name}' is not supported with this model."
                return "refused_parameter", 400, error_body("unsupported_parameter", message, param=name), 0.0
        return None

    def write(self, key: str, prompt: Any, body: dict[str, Any], fault: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The choices and the usage of a completion."""
        n = 1 if self.options.ignore_n else body.get("n") or 1
        n = max(1, n // 2) if fault == "fewer" else n + 1 if fault == "more" else n
        n_requests = self.numbers["requests"] + self.numbers["batch_requests"]
        seed = body["seed"] if body.get("seed") is not None else n_requests
        wordings = [zlib.crc32(key.encode())] * n if self.options.ignore_seed else range(seed, seed + n)
        answer_prompt = (
            self.tuning.write_choice if body["model"].startswith("ft:") else lambda prompt, wording, _: write_choice(prompt, wording)
        )
        texts = [answer_prompt(prompt, wording, body["model"]) for wording in wordings]
        choices = [{"index": i, "text": text, "finish_reason": "stop"} for i, text in enumerate(texts)]
        first_choice = choices[0]
        if fault in ("empty", "content_filter"):
            first_choice.update(text="", finish_reason="stop" if fault == "empty" else fault)
        elif fault == "length":
            first_choice.update(text=str(first_choice["text"])[: max(4, len(str(first_choice["text"])) // 2)], finish_reason="length")
        elif fault == "no_reply":
            first_choice.update(text="", reasoning_content=first_choice["text"])
        elif fault == "surrogate":
            first_choice["text"] = f" \ud83d{first_choice['text']}"
        usage: dict[str, Any] = {"prompt_tokens": len(key.split()), "completion_tokens": sum(len(str(c["text"]).split()) for c in choices)}
        if self.options.cached_tokens:
            usage["prompt_tokens_details"] = {"cached_tokens": usage["prompt_tokens"] // 2}
        if fault == "odd_usage":
            usage["prompt_tokens"] = "many"
        if "messages" in body:
            moved = ("reasoning_content",)
            messages = [
                {"role": "assistant", "content": c.pop("text"), **{name: c.pop(name) for name in moved if name in c}} for c in choices
            ]
            choices = [{**choice, "message": message} for choice, message in zip(choices, messages, strict=True)]
        return choices, usage

    def charge(self, usage: dict[str, Any]) -> None:
        self.numbers.update({name: usage[name] for name in ("prompt_tokens", "completion_tokens")})
        self.numbers["cached_tokens"] += usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)

    async def complete(self, writer: asyncio.StreamWriter, key: str, prompt: Any, body: dict[str, Any], fault: str) -> None:
        choices, usage = self.write(key, prompt, body, fault)
        answer = {"id": "fake", "object": "fake", "created": 0, "model": body["model"], "choices": choices}
        data = json.dumps(answer if fault == "no_usage" else {**answer, "usage": usage}).encode()
        if fault == "reset":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data))
            writer.write(data[: len(data) // 2])
            await writer.drain()
            writer.transport.abort()
            return
        self.good[key] += len(choices) - (fault in ("empty", "content_filter", "no_reply"))
        self.numbers["good_requests"] += 1
        if fault not in ("no_usage", "odd_usage"):
            self.charge(usage)
        await send(writer, 200, data, self.rate_headers())


class Batches:
    """Files and batches, in memory."""

    def __init__(self, fake: FakeOpenAI) -> None:
        assert {str(fault).partition(":")[0] for fault in fake.options.batch_faults} <= BATCH_FAULTS | {"None"}, fake.options.batch_faults
        self.fake = fake
        self.plan = deque(fake.options.batch_faults)
        self.random = random.Random(0)
        self.faults: Counter[str] = Counter()
        self.files: dict[str, tuple[dict[str, Any], bytes]] = {}
        self.all: dict[str, dict[str, Any]] = {}
        self.at_work: set[asyncio.Task[None]] = set()

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Status, content and headers of the reply to one request for files or batches."""
        url = urllib.parse.urlsplit(target)
        status, reply = 404, error_body(None, f"No such file, batch or URL: {method} {url.path}")
        match [method, *url.path.strip("/").split("/")]:
            case ["POST", "v1", "files"]:
                status, reply = self.upload(headers, body)
            case ["GET", "v1", "files", file_id, *suffix] if file_id in self.files and suffix in ([], ["content"]):
                if suffix:
                    return 200, self.files[file_id][1], {"Content-Type": "application/octet-stream"}
                status, reply = 200, self.files[file_id][0]
            case ["POST", "v1", "batches"]:
                status, reply = self.create(json.loads(body))
            case ["GET", "v1", "batches"]:
                status, reply = self.page(dict(urllib.parse.parse_qsl(url.query)))
            case ["GET", "v1", "batches", batch_id] if batch_id in self.all:
                status, reply = 200, self.all[batch_id]
            case ["POST", "v1", "batches", batch_id, "cancel"] if batch_id in self.all:
                status, reply = 200, self.all[batch_id]
                if reply["status"] in ("validating", "in_progress", "finalizing"):
                    advance(reply, "cancelling")
                elif reply["status"] != "cancelling":
                    status, reply = 409, error_body(None, f"Cannot cancel a batch with status '{reply['status']}'.")
        return status, json.dumps(reply).encode(), {}

    def upload(self, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, Any]]:
        boundary = headers.get("content-type", "").partition("boundary=")[2].strip('"')
        form = {}
        for part in (b"\r\n" + body).split(f"\r\n--{boundary}".encode())[1:-1]:
            head, _, content = part.partition(b"\r\n\r\n")
            form.update(dict.fromkeys(re.findall(rb'\bname="([^"]*)"', head), (content, head)))
        purpose = form.get(b"purpose", (b"",))[0].decode()
        if b"file" not in form or purpose not in ("batch", "fine-tune"):
            return 400, error_body(None, "A file with the purpose 'batch' or 'fine-tune' is needed.", param="purpose")
        content, head = form[b"file"]
        name = re.search(rb'filename="([^"]*)"', head)
        self.fake.numbers["uploads"] += purpose == "fine-tune"
        return 200, self.keep(content, name[1].decode() if name else "file", purpose)

    def keep(self, content: bytes, name: str, purpose: str) -> dict[str, Any]:
        file = {"id": f"file-{uuid.uuid4().hex}", "object": "file", "bytes": len(content), "created_at": int(time.time())}
        file |= {"filename": name, "purpose": purpose, "status": "uploaded" if purpose == "fine-tune" else "processed"}
        self.files[file["id"]] = (file, content)
        return file

    def page(self, query: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """One page of the list of batches, newest first, of 20 unless the client sets a limit."""
        ids = [*reversed(self.all)]
        ids = ids[ids.index(query["after"]) + 1 :] if query.get("after") in ids else ids
        page_ids = ids[: int(query.get("limit", 20))]
        ends = {"first_id": page_ids[0], "last_id": page_ids[-1]} if page_ids else {"first_id": None, "last_id": None}
        return 200, {"object": "list", "data": [self.all[i] for i in page_ids], "has_more": len(ids) > len(page_ids), **ends}

    def create(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        endpoint, metadata, file_id = request["endpoint"], request.get("metadata"), request["input_file_id"]
        if endpoint not in COMPLETIONS or request["completion_window"] != "24h":
            return 400, error_body("invalid_value", "Invalid value: 'endpoint' or 'completion_window'.")
        if len(metadata or {}) > 16 or any(len(k) > 64 or not isinstance(v, str) or len(v) > 512 for k, v in (metadata or {}).items()):
            return 400, error_body(
                "invalid_value", "At most 16 pairs of strings, keys to 64 characters and values to 512.", param="metadata"
            )
        if file_id not in self.files:
            return 400, error_body("invalid_value", f"No such File object: {file_id}", param="input_file_id")
        fault, _, seconds = ((self.plan.popleft() if self.plan else "") or "").partition(":")
        if fault == "create_500":
            self.faults[fault] += 1
            return 500, error_body("server_error", "The server had an error while processing your request.", "server_error")
        times = dict.fromkeys(f"{name}_at" for name in "in_progress finalizing completed failed expired cancelling cancelled".split())
        batch = {
            "id": f"batch_{uuid.uuid4().hex}", "object": "batch", "endpoint": endpoint, "errors": None, "input_file_id": file_id,
            "completion_window": "24h", "status": "validating", "output_file_id": None, "error_file_id": None,
            "created_at": int(time.time()), "expires_at": int(time.time()) + 86400, **times,
            "request_counts": {"total": 0, "completed": 0, "failed": 0}, "metadata": metadata,
        }  # fmt: skip
        self.all[batch["id"]] = batch
        self.fake.numbers["batches"] += 1
        task = asyncio.create_task(self.work(batch, fault, float(seconds or self.fake.options.batch_seconds)))
        self.at_work.add(task)
        task.add_done_callback(self.at_work.discard)
        return 200, batch

    def read(self, batch: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The requests of a batch's input file, and the errors in the file."""
        content, options = self.files[batch["input_file_id"]][1], self.fake.options
        if len(content) > options.batch_max_bytes:
            return [], [{"code": "file_too_large", "message": f"The file is larger than {options.batch_max_bytes} bytes."}]
        lines = content.removesuffix(b"\n").split(b"\n") if content else []
        if not lines or len(lines) > options.batch_max_requests:
            message = f"A batch has 1 to {options.batch_max_requests} requests, this one has {len(lines)}."
            return [], [{"code": "too_many_tasks" if lines else "empty_file", "message": message}]
        requests: dict[str, dict[str, Any]] = {}
        errors, models = [], {options.only_model} - {""}
        for number, line in enumerate(lines, 1):
            code, request = "", {}
            try:
                request = json.loads(line)
                custom_id, model, _ = request["custom_id"], request["body"]["model"], read_prompt(request["body"])
            except (ValueError, TypeError):
                code, message = "invalid_json_line", "This line is not parseable as valid JSON."
            except KeyError as error:
                code, message = "missing_required_parameter", f"Missing required parameter: {error}."
            else:
                models = models or {model}
                if custom_id in requests:
                    code, message = "duplicate_custom_id", "The custom_id for this request is a duplicate of another request."
                elif request.get("method") != "POST" or request.get("url") != batch["endpoint"]:
                    code, message = "url_mismatch", "The URL of this request is not the endpoint of the batch."
                elif model not in models:
                    code = "model_not_found" if options.only_model else "mismatched_model"
                    message = f"The model {model} is not {next(iter(models))}."
                else:
                    requests[custom_id] = request
            errors += [{"code": code, "message": message, "line": number}] if code else []
        return [*requests.values()], errors

    async def work(self, batch: dict[str, Any], fault: str, seconds: float) -> None:
        """Run one batch: check its file, answer its requests in random order, write its output files."""
        begin = time.monotonic()

        async def until(share: float) -> None:
            while (remaining_s := begin + share * seconds - time.monotonic()) > 0 and batch["status"] != "cancelling":
                await asyncio.sleep(min(remaining_s, 0.05))
            await asyncio.sleep(0)

        if fault:
            self.faults[fault] += 1
        await until(0.1)
        requests, errors = self.read(batch)
        if not fault and errors:
            self.faults[errors[0]["code"]] += 1
        errors = [FAILED_BATCH[fault]] if fault in FAILED_BATCH else errors
        if errors:
            batch["errors"] = {"object": "list", "data": [{"line": None, "param": None, **error} for error in errors[:100]]}
            advance(batch, "failed")
            return
        if batch["status"] != "cancelling":
            advance(batch, "in_progress")
        self.random.shuffle(requests)
        counts, good, bad, n_done = batch["request_counts"], [], [], 0
        counts["total"] = len(requests)
        n_faulty = math.ceil(len(requests) / 5) if fault in ("errors", "filtered") else 0
        end = len(requests) // 2 if fault == "expired" else 0 if fault == "cancelled" else len(requests)
        while n_done < end and batch["status"] != "cancelling":
            status, body = self.complete(requests[n_done]["body"], fault if n_done < n_faulty else "")
            response = {"status_code": status, "request_id": uuid.uuid4().hex, "body": body}
            (good if status == 200 else bad).append(result(requests[n_done], response, None))
            counts["completed" if status == 200 else "failed"] += 1
            n_done += 1
            await until(0.1 + 0.8 * n_done / len(requests))
        await until(0.9)
        if batch["status"] != "cancelling" and fault not in UNFINISHED:
            advance(batch, "finalizing")
        await until(1.0)
        final = "cancelled" if batch["status"] == "cancelling" else fault if fault in UNFINISHED else "completed"
        if final in UNFINISHED and fault != "cancelled":
            code, message = UNFINISHED[final]
            bad += [result(request, None, {"code": code, "message": message}) for request in requests[n_done:]]
            counts["failed"] = len(bad)
        for name, rows in (("output", good), ("error", bad)):
            content = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
            batch[f"{name}_file_id"] = self.keep(content, f"{batch['id']}_{name}.jsonl", "batch_output")["id"] if rows else None
        advance(batch, final)

    def complete(self, body: dict[str, Any], fault: str) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer to one request of a batch."""
        if fault == "errors":
            return 500, error_body("server_error", "The server had an error while processing your request.", "server_error")
        if fault == "filtered":
            return 400, error_body("content_filter", MESSAGES["content_filter"])
        if error_reply := self.fake.permanent_error(body):
            return error_reply[1], error_reply[2]
        prompt, key = read_prompt(body)
        try:
            choices, usage = self.fake.write(key, prompt, body, "")
        except Exception as error:  # a prompt this server cannot answer must not end the whole batch
            return 400, error_body("invalid_prompt", repr(error))
        self.fake.numbers["batch_requests"] += 1
        self.fake.good[key] += len(choices)
        self.fake.charge(usage)
        return 200, {"id": "fake", "object": "fake", "created": 0, "model": body["model"], "choices": choices, "usage": usage}


class Tuning:
    """Fine-tuning jobs; requests for anything else are passed on to the batches."""

    def __init__(self, fake: FakeOpenAI) -> None:
        self.fake = fake
        self.plan = {call: deque(faults) for call, faults in fake.options.tuning_faults.items()}
        assert set(self.plan) <= {"upload", "file", "list", "create", "look"}, self.plan
        self.job_plan = deque(fake.options.job_faults)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.rationales: dict[str, bool] = {}  # trained model -> whether its training file has rationales
        self.faulty: Counter[str] = Counter()
        self.headers: deque[dict[str, str]] = deque(maxlen=100)

    async def serve(self, writer: asyncio.StreamWriter, method: str, target: str, headers: dict[str, str], body: bytes) -> None:
        """Answer one request according to the fault plan."""
        self.headers.append(headers)
        path = urllib.parse.urlsplit(target).path
        call = {"POST /v1/files": "upload", "GET /v1/fine_tuning/jobs": "list", "POST /v1/fine_tuning/jobs": "create"}.get(
            f"{method} {path}", "look" if path.startswith("/v1/fine_tuning/jobs/") else "file" if path.startswith("/v1/files/") else ""
        )
        plan = self.plan.get(call)
        fault, _, argument = ((plan.popleft() if plan else None) or "").partition(":")
        self.faulty.update([fault] if fault else ())
        if fault in STATUS:
            status, code = STATUS[fault]
            error = error_body(code, f"{code} for {headers.get('authorization')}", code)
            await send(writer, status, json.dumps(error).encode(), {"Retry-After": argument} if argument else {})
        elif fault in BODIES:
            await send(writer, 200, BODIES[fault])
        elif fault == "reset":
            writer.transport.abort()
        else:
            await asyncio.sleep(float(argument) if fault == "slow" else 0)
            answer = self.answer(method, target, headers, body)
            if fault == "lost":
                writer.transport.abort()
                return
            await asyncio.sleep(float(argument) if fault == "late" else 0)
            await send(writer, *answer)

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes, dict[str, str]]:
        url = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(url.query))
        match [method, *url.path.strip("/").split("/")]:
            case ["POST", "v1", "fine_tuning", "jobs"]:
                status, reply = self.create(json.loads(body))
            case ["GET", "v1", "fine_tuning", "jobs"]:
                jobs = [*reversed(self.jobs.values())]
                ids = [job["id"] for job in jobs]
                jobs = jobs[ids.index(query["after"]) + 1 :] if query.get("after") in ids else jobs
                page_jobs = jobs[: min(int(query.get("limit", 20)), self.fake.options.job_page)]  # metadata filters are not supported
                status, reply = 200, {"object": "list", "data": page_jobs, "has_more": len(jobs) > len(page_jobs)}
            case ["GET", "v1", "fine_tuning", "jobs", job_id] if job_id in self.jobs:
                status, reply = 200, self.look(self.jobs[job_id])
            case ["GET", "v1", "files", file_id] if file_id in self.fake.batches.files:
                file = self.fake.batches.files[file_id][0]
                status, reply = 200, dict(file)
                file["status"] = "processed"  # from the next request on
            case ["GET", "v1", "models"] if self.fake.options.only_model:
                names = [self.fake.options.only_model, "embedding"]
                status, reply = 200, {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}
            case _:
                return self.fake.batches.answer(method, target, headers, body)
        return status, json.dumps(reply).encode(), {}

    def create(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Create a job; requests that the real API rejects get an error."""
        unknown = set(request) - {"model", "training_file", "method", "seed", "suffix", "metadata"}
        metadata = request.get("metadata") or {}
        if unknown or request["method"]["type"] != "supervised" or not 0 <= request["seed"] < 2**31 or len(request["suffix"]) > 64:
            return 400, error_body("invalid_value", f"Invalid value: {sorted(unknown) or request}")
        if len(metadata) > 16 or any(len(k) > 64 or not isinstance(v, str) or len(v) > 512 for k, v in metadata.items()):
            return 400, error_body(
                "invalid_value", "At most 16 pairs of strings, keys to 64 characters and values to 512.", param="metadata"
            )
        if self.fake.options.only_model and request["model"] != self.fake.options.only_model:
            message = f"Model {request['model']} is not available for fine-tuning or does not exist."
            return 400, error_body("model_not_available", message, param="model")
        file, content = self.fake.batches.files.get(request["training_file"], ({"status": "missing"}, b""))
        if file["status"] != "processed":
            return 400, error_body("invalid_value", f"File '{request['training_file']}' is {file['status']}.", param="training_file")
        rows = [[message["content"] for message in json.loads(line)["messages"]] for line in content.splitlines()]
        fault = (self.job_plan.popleft() if self.job_plan else None) or ""
        if len(rows) < 10:
            fault = "failed"
        epochs = request["method"]["supervised"]["hyperparameters"]["n_epochs"]
        job_id = f"ftjob-{uuid.uuid4().hex[:12]}"
        job = {
            "id": job_id, "object": "fine_tuning.job", "created_at": int(time.time()), "error": None, "fine_tuned_model": None,
            "finished_at": None, "hyperparameters": {"n_epochs": epochs, "batch_size": 4, "learning_rate_multiplier": 1.8},
            "model": request["model"], "organization_id": "org-x", "result_files": [], "status": "validating_files",
            "trained_tokens": None, "training_file": request["training_file"], "validation_file": None, "seed": request["seed"],
            "method": request["method"], "metadata": metadata, "estimated_finish": None,
            "_": {"looks": 0, "fault": fault, "tokens": epochs * sum(len(text.split()) for row in rows for text in row),
                  "name": f"ft:{request['model']}:org-x:{request['suffix']}:{job_id[6:]}",
                  "rationales": any("-->" in row[1] for row in rows)},
        }  # fmt: skip
        self.jobs[job_id] = job
        return 200, job

    def look(self, job: dict[str, Any]) -> dict[str, Any]:
        """The job, advanced by one status."""
        self.fake.numbers["looks"] += 1
        hidden = job["_"]
        hidden["looks"] += 1
        end = self.fake.options.tuning_looks
        if hidden["looks"] < end:
            job["status"] = ("validating_files", "queued")[hidden["looks"] - 1] if hidden["looks"] <= 2 else "running"
            job["estimated_finish"] = int(time.time()) + 60 if job["status"] == "running" else None
        elif hidden["fault"]:
            error = {"code": "invalid_n_examples", "message": "Training file has too few examples.", "param": "training_file"}
            job |= {"status": hidden["fault"], "error": error if hidden["fault"] == "failed" else {}}
        else:
            job |= {"status": "succeeded", "fine_tuned_model": hidden["name"], "trained_tokens": hidden["tokens"], "estimated_finish": None}
            self.rationales[hidden["name"]] = hidden["rationales"]
        return job

    def write_choice(self, prompt: Any, wording: int, model: str) -> str:
        """The answer of a trained model to a question in the format of its training file."""
        assert [message["role"] for message in prompt] == ["user"], prompt
        rationale = TASK.rationale(prompt[0]["content"], wording % TASK.n_wordings, None)
        return f"{rationale} --> {TASK.conclusion(rationale)}" if self.rationales[model] else TASK.conclusion(rationale)


def no_model(name: str) -> dict[str, Any]:
    return error_body("model_not_found", f"The model `{name}` does not exist or you do not have access to it.")


def advance(batch: dict[str, Any], status: str) -> None:
    batch.update({"status": status, f"{status}_at": int(time.time())})


def result(request: dict[str, Any], response: dict[str, Any] | None, error: dict[str, str] | None) -> dict[str, Any]:
    """One line of a batch's output or error file."""
    return {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": request["custom_id"], "response": response, "error": error}


async def read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    chunks = []
    while size := int((await reader.readline()).partition(b";")[0], 16):
        chunks.append((await reader.readexactly(size + 2))[:-2])
    await reader.readexactly(2)
    return b"".join(chunks)


def read_prompt(body: dict[str, Any]) -> tuple[Any, str]:
    """A request's prompt, and its key in the statistics."""
    prompt = body["messages"] if "messages" in body else body["prompt"]
    return prompt, prompt if isinstance(prompt, str) else json.dumps(prompt)


async def send(writer: asyncio.StreamWriter, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
    all_headers = {"Content-Type": "application/json", "Content-Length": len(data), **(headers or {})}
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in all_headers.items())]
    writer.write("\r\n".join([*lines, "\r\n"]).encode() + data)
    await writer.drain()


async def trickle(writer: asyncio.StreamWriter, seconds: float) -> None:
    """Begin an answer, keep the connection alive with blanks, and never end it."""
    end = time.monotonic() + seconds
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n")
    while time.monotonic() < end:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.05)
    writer.transport.abort()


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add = parser.add_argument
    add("--port", type=int, default=0)
    add("--faults", type=json.loads, default=[])
    add("--latency", type=float, default=0.0, help="seconds before each answer")
    add("--limit", type=float, default=300.0, help="seconds until the server ends")
    add("--max-in-flight", type=int, default=0, help="completion requests beyond so many in flight get an immediate 429 (over_capacity)")
    add("--requests-per-minute", type=float, default=0.0, help="requests above this rate get a 429 with Retry-After (over_rate)")
    add("--tokens-per-minute", type=float, default=0.0, help="likewise; a request costs its prompt's words + n * max_tokens")
    add("--burst-seconds", type=float, default=1.0, help="burst that the limits per minute allow, in seconds")
    add("--no-rate-headers", action="store_true", help="do not report the limits per minute in headers")
    add("--refuse", type=lambda names: names.split(","), default=[], help="parameters that get a 400, separated by commas (n: above 1)")
    add("--ignore-n", action="store_true", help="always one choice")
    add("--ignore-seed", action="store_true", help="one wording per prompt, for every seed and choice")
    add("--cached-tokens", action="store_true", help="the usage counts half of the prompt as cached")
    add("--only-model", default="", help="all other models get a 404")
    add("--batch-seconds", type=float, default=0.3, help="duration of a batch")
    add("--batch-faults", type=json.loads, default=[])
    add("--batch-max-requests", type=int, default=50_000)
    add("--batch-max-bytes", type=int, default=200 * 10**6)
    add("--tuning-looks", type=int, default=4, help="number of the status request at which a fine-tuning job has ended")
    add("--tuning-faults", type=json.loads, default={})
    add("--job-faults", type=json.loads, default=[])
    add("--job-page", type=int, default=100, help="largest number of jobs on one page of their list")
    return parser.parse_args()


async def main() -> None:
    options = read_options()
    fake, parent, end = FakeOpenAI(options), os.getppid(), time.monotonic() + options.limit
    server = await asyncio.start_server(fake.serve, "127.0.0.1", options.port, limit=2**20)
    print(server.sockets[0].getsockname()[1], flush=True)
    while os.getppid() == parent and time.monotonic() < end:
        await asyncio.sleep(0.2)


class FakeServer:
    """The server as a child process in a ``with`` block. Options as on the command line: ``max_in_flight=50``."""

    def __init__(self, faults: Any = (), latency: float = 0.0, **options: Any) -> None:
        plan = faults if isinstance(faults, dict) else list(faults)
        command = [__file__]
        for name, value in {"port": 0, "faults": plan, "latency": latency, **options}.items():
            if value is not None and value is not False:
                text = json.dumps(value) if isinstance(value, list | dict) else str(value)
                command += [f"--{name.replace('_', '-')}"] + ([] if value is True else [text])
        self._process = zygote.start(command, stderr=None)
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
