"""Compares purchases of fcot and curator from the same server.

    python benchmarks/peers.py --curator PYTHON [-n 400]

PYTHON is an interpreter whose environment has ``bespokelabs-curator``. Both buy D completions of N problems from the fake server of the
tests (250 ms per answer, 50 requests in flight). Then each is run again, and the table counts what it sends to the server:

* the same command;
* D = 8 instead of 4;
* with one problem added to the file;
* after the process was killed half way.

curator has no D: rows are repeated, as its users do. Its cache and fcot's store begin empty. All problems are train problems, because
with a random split an added problem would move others between train and test.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fake_openai import FakeServer

from fcot.tasks.toy import TOY_TASKS, make_problems

LATENCY, AT_ONCE = 0.25, 50
CURATOR = """
import json, sys
from bespokelabs import curator
from datasets import Dataset

class Reasoner(curator.LLM):
    def prompt(self, row):
        return row["question"] + "\\n\\nLet's think step by step. End with one sentence that begins with \\"The answer is\\"."

    def parse(self, row, response):
        return {**row, "completion": response}

file, url, diversity, at_once = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rows = [json.loads(line) | {"completion_index": index} for line in open(file) for index in range(diversity)]
model = Reasoner(
    model_name="openai/fake", backend="litellm", generation_params={"temperature": 0.7, "max_tokens": 512},
    backend_params={"base_url": url, "api_key": "none", "max_concurrent_requests": at_once, "max_requests_per_minute": 1000000,
                    "max_tokens_per_minute": 1000000000, "require_all_responses": False},
)
model(Dataset.from_list(rows))
"""
Command = Callable[[Path, int], list[str]]


def commands(folder: Path, server: FakeServer, curator: str) -> dict[str, Command]:
    """For each side, a function from problem file and D to the command that buys the completions."""
    script = folder / "curate.py"
    script.write_text(CURATOR)
    return {
        "fcot": lambda file, diversity: [
            sys.executable, "-m", "fcot.run", "dataset=custom", f"dataset.path={file}", "dataset.answer_type=number", "teacher=openai",
            "teacher.model=fake", f"teacher.base_url={server.base_url}", f"teacher.concurrency={AT_ONCE}", "teacher.temperature=0.7",
            f"diversity={diversity}", "trainer=paper",
            "split-mode=file", f"split_mode.path={file.with_suffix('.split.json')}", "until=generate",  f"output_dir={folder / 'outputs'}",
        ],
        "curator": lambda file, diversity: [curator, str(script), str(file), server.base_url, str(diversity), str(AT_ONCE)],
    }  # fmt: skip


def write(file: Path, first: int, last: int) -> Path:
    """Write toy problems ``first`` to ``last`` as JSON Lines, and a split that puts all of them into train."""
    problems = make_problems(TOY_TASKS["toy_arithmetic"], last, 0)[first:]
    file.write_text("".join(json.dumps({"question": problem.question, "answer": problem.answer}) + "\n" for problem in problems))
    file.with_suffix(".split.json").write_text(json.dumps({"train": [*range(len(problems))], "test": []}))
    return file


def run(command: Sequence[str], environment: dict[str, str], kill_at: Callable[[], bool] | None = None) -> float:
    """Run a command; returns its seconds. It is killed as soon as ``kill_at`` returns True."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if kill_at is not None:
        while process.poll() is None and not kill_at():
            time.sleep(0.05)
        process.kill()
    _, errors = process.communicate()
    if kill_at is None and process.returncode:
        sys.exit(errors[-2000:])
    return time.perf_counter() - start


def compare(side: str, n: int, curator: str) -> None:
    """Measure all purchases of one side, and print its rows of the table."""
    with tempfile.TemporaryDirectory() as name, FakeServer(latency=LATENCY, limit=3600) as server:
        folder, served = Path(name), (0, 0, 0)
        command = commands(folder, server, curator)[side]
        environment = os.environ | {"NO_PROXY": "127.0.0.1"}
        if side == "curator":
            environment |= {
                "CURATOR_CACHE_DIR": str(folder / "cache"), "TELEMETRY_ENABLED": "false", "CURATOR_DISABLE_RICH_DISPLAY": "1",
                "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OPENAI_API_KEY": "unused",
            }  # fmt: skip

        def measure(what: str, file: Path, diversity: int, kill_at: Callable[[], bool] | None = None) -> None:
            nonlocal served
            seconds = run(command(file, diversity), environment, kill_at)
            stats = server.stats()
            now = (stats["good_choices"], stats["requests"], stats["prompt_tokens"])
            cells = " | ".join(f"{after - before:,}" for after, before in zip(now, served, strict=True))
            print(f"| {side} | {what} | {seconds:.1f} | {cells} |", flush=True)
            served = now

        file = write(folder / "problems.jsonl", 0, n)
        measure("D = 4", file, 4)
        measure("the same again", file, 4)
        measure("D = 8", file, 8)
        measure("one problem added", write(file, 0, n + 1), 8)
        other = write(folder / "other.jsonl", n + 1, 2 * n + 1)
        half = served[0] + 4 * n // 2
        measure("other problems, D = 4, killed half way", other, 4, lambda: server.stats()["good_choices"] >= half)
        measure("the same after the kill", other, 4)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curator", required=True, help="an interpreter with bespokelabs-curator")
    parser.add_argument("-n", type=int, default=400, help="problems")
    options = parser.parse_args()
    print(f"{options.n} problems, {LATENCY * 1000:.0f} ms per answer, {AT_ONCE} in flight")
    print("| side | what | seconds | completions served | requests | prompt tokens |")
    print("|---|---|---|---|---|---|")
    for side in ("fcot", "curator"):
        compare(side, options.n, options.curator)


if __name__ == "__main__":
    main()
