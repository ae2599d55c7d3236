"""Measures whether concurrent purchases of different requests in one store folder slow each other down.

    python benchmarks/buyers.py [problems] [seconds per answer]

Each buyer is a process with its own temperature, so that no two buyers share a key. Its teacher answers after a fixed time. Prints the
seconds of the slowest buyer, and their ratio to the seconds of a single buyer.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import MappingProxyType

from fcot.llm.generate import generate_completions
from fcot.llm.plan import Plan
from fcot.llm.requests import NO_ACCOUNT, Choice, Reply, Usage
from fcot.llm.store.folder import StoreFolder
from fcot.prompts.answers import AnswerRule
from fcot.prompts.teacher import TeacherPrompt
from fcot.tasks.toy import TOY_TASKS, make_problems


class Slow:
    """A teacher that answers after a fixed time."""

    older_identities = ()
    chat = False
    concurrency = 64
    max_choices = 4

    def __init__(self, temperature: float, seconds: float) -> None:
        self.identity = MappingProxyType({"model": "slow", "temperature": temperature})
        self._seconds = seconds

    async def generate(self, request, n, seed, account=NO_ACCOUNT):  # type: ignore[no-untyped-def]  # noqa: D102
        await asyncio.sleep(self._seconds)
        return Reply([Choice(f"It is {number}. The answer is {number}.", "stop") for number in range(n)], Usage(10, 10))

    def status(self) -> str:  # noqa: D102
        return ""

    def halt(self) -> None: ...  # noqa: D102

    async def close(self) -> None: ...  # noqa: D102


def buy(folder: Path, temperature: float, n_problems: int, seconds: float) -> float:
    """Make one purchase; returns its seconds, without the start of the process."""
    prompt = TeacherPrompt("benchmark", "{question}", {"number": "The answer is"}, two_steps=False)
    problems = make_problems(TOY_TASKS["toy_arithmetic"], n_problems, 0)
    plan = Plan(Slow(temperature, seconds), prompt, AnswerRule("number"), 4, f"run{temperature}")
    began = time.perf_counter()
    generate_completions(plan, StoreFolder(folder), problems)
    return time.perf_counter() - began


def main() -> None:
    n_problems, seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 200, float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    alone = 0.0
    print("| buyers | slowest, s | ratio to one buyer |\n|---|---|---|")
    for n in (1, 2, 4):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--one", f"{folder}/store", str(n_problems), str(seconds)]
            buyers = [subprocess.Popen([*command, str(0.1 * (number + 1))], stdout=subprocess.PIPE, text=True) for number in range(n)]
            slowest = max(float(buyer.communicate()[0]) for buyer in buyers)
        alone = alone or slowest
        print(f"| {n} | {slowest:.2f} | {slowest / alone:.2f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(buy(Path(sys.argv[2]), float(sys.argv[5]), int(sys.argv[3]), float(sys.argv[4])))
    else:
        main()
