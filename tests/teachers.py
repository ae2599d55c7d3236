"""Teachers that record their requests, and a process that buys from one: ``python tests/teachers.py STORE LOG ...``."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import resource
import signal
import sys
from pathlib import Path
from types import MappingProxyType

from fcot.base.errors import FcotError
from fcot.base.files import fingerprint
from fcot.base.records import to_row
from fcot.llm.generate import Plan, generate_completions
from fcot.llm.requests import NO_ACCOUNT, Choice, Reply, Request, Usage
from fcot.llm.store.folder import StoreFolder
from fcot.prompts.answers import AnswerRule
from fcot.prompts.teacher import TeacherPrompt
from fcot.tasks.toy import TOY_TASKS, make_problems

RULE = AnswerRule("number")
PROMPT = TeacherPrompt(
    "zero_shot_cot", "Q: {question}\nA: Let's think step by step.", {"number": "Therefore, the answer is"}, answer_tokens=16
)


def problems(n: int) -> list:
    return make_problems(TOY_TASKS["toy_arithmetic"], n, seed=0)


def plan(teacher, diversity: int, prompt: TeacherPrompt = PROMPT, run_id: str = "run", **options) -> Plan:
    return Plan(teacher, prompt, RULE, diversity, run_id, **options)


class Scripted:
    """Replies with ``answer(request, n, first_slot)``: a list of texts and choices, or a whole reply. Records every call."""

    identity = MappingProxyType({"model": "scripted", "temperature": 0.7})
    older_identities = ()
    chat = False

    def __init__(self, answer, concurrency: int = 4, max_choices: int = 1) -> None:
        self.answer, self.concurrency, self.max_choices = answer, concurrency, max_choices
        self.calls: list[tuple[Request, int, int]] = []

    async def generate(self, request: Request, n: int, first_slot: int, account=NO_ACCOUNT) -> Reply:
        self.calls.append((request, n, first_slot))
        await asyncio.sleep(0)
        reply = self.answer(request, n, first_slot)
        if isinstance(reply, Reply):
            return reply
        return Reply([c if isinstance(c, Choice) else Choice(c, "stop") for c in reply], Usage(10, len(reply)))

    def status(self) -> str:
        return ""

    def halt(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def asked(self, step: int) -> int:
        """Number of choices that were requested in one step."""
        return sum(n for request, n, _ in self.calls if (request.root is not None) == (step == 2))


class Slow:
    """Sells unique texts. Logs each sale when the request arrives: from then on it must be paid."""

    identity = MappingProxyType({"model": "slow", "temperature": 0.7})
    older_identities = ()
    chat = False
    concurrency = 4
    max_choices = 2

    def __init__(self, log: Path, delay: float) -> None:
        self.log, self.delay, self.serial = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), delay, itertools.count()

    async def generate(self, request: Request, n: int, first_slot: int, account=NO_ACCOUNT) -> Reply:
        names = [f"{os.getpid()}-{next(self.serial)}" for _ in range(n)]
        os.write(self.log, "".join(f"{name}\n" for name in names).encode())
        await asyncio.sleep(self.delay)
        return Reply([Choice(f" sold as {name}", "stop") for name in names], Usage(10, n))

    def status(self) -> str:
        return ""

    def halt(self) -> None:
        pass

    async def close(self) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("log", type=Path)
    parser.add_argument("--problems", type=int, default=30)
    parser.add_argument("--diversity", type=int, default=6)
    parser.add_argument("--delay", type=float, default=0.01, help="seconds per request")
    parser.add_argument("--concurrency", type=int, default=Slow.concurrency)
    parser.add_argument("--temperature", type=float, default=0.7, help="a different temperature means different requests")
    parser.add_argument("--file-limit", type=int, help="largest file in bytes, to simulate a full disk")
    arguments = parser.parse_args()
    if arguments.file_limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (arguments.file_limit, arguments.file_limit))
    print("buying", flush=True)
    teacher = Slow(arguments.log, arguments.delay)
    teacher.concurrency, teacher.identity = arguments.concurrency, MappingProxyType({"model": "slow", "temperature": arguments.temperature})
    try:
        bought = generate_completions(plan(teacher, arguments.diversity), StoreFolder(arguments.store), problems(arguments.problems))
    except FcotError as error:
        sys.exit(str(error))
    print(fingerprint([to_row(completion) for completion in bought]))


if __name__ == "__main__":
    main()
