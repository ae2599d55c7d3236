"""Checks the teacher side against a real server: estimates, choices, stop sequences, token limits, sampling, and a killed purchase.

    python benchmarks/live_teacher.py --model NAME --base-url URL --data FOLDER/multiarith.json --output FOLDER [-n 12]

The server is any OpenAI-compatible one, such as llama.cpp's or `transformers serve`. The output folder must not exist.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def command(options: argparse.Namespace, *overrides: str) -> list[str]:
    """The command of a purchase from the server."""
    return [
        sys.executable, "-m", "fcot.run", f"output_dir={options.output}", "dataset=multiarith", f"dataset.path={options.data}",
        f"dataset.limit={options.n}", "teacher=openai", f"teacher.model={options.model}", f"teacher.base_url={options.base_url}",
        "teacher.timeout_s=1200", "teacher.temperature=0.7", "until=generate", *overrides,
    ]  # fmt: skip


def run(options: argparse.Namespace, *overrides: str) -> tuple[str, float]:
    """Run a purchase; returns its output and its seconds."""
    start = time.perf_counter()
    done = subprocess.run(command(options, *overrides), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return done.stdout + done.stderr, time.perf_counter() - start


def answers(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of answers in the store."""
    files = (options.output / "store").rglob("*.jsonl")
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [row for row in rows if "text" in row]


def bought(options: argparse.Namespace, *overrides: str) -> tuple[list[dict[str, Any]], str, float]:
    """Run a purchase; returns the answers it adds to the store, its output, and its seconds."""
    before = {(row["key"], row["slot"]) for row in answers(options)}
    output, seconds = run(options, *overrides)
    return [row for row in answers(options) if (row["key"], row["slot"]) not in before], output, seconds


def tokens(rows: Sequence[dict[str, Any]]) -> int:
    """Sum of completion tokens; only one row of a request has its count."""
    return sum(row.get("completion_tokens") or 0 for row in rows)


def estimated(output: str) -> str:
    """The completion tokens that a dry run estimates, with their interval."""
    match = re.search(r"completion tokens\s+([\d,]+ \([\d,]+-[\d,]+\))", output)
    return match[1] if match else "?"


def dry_run(options: argparse.Namespace) -> None:
    """Compare the dry run's estimates with the tokens used: once with an empty store, once with stored completions."""
    first, _ = run(options, "diversity=2", "dry_run=true")
    rows, _, seconds = bought(options, "diversity=2")
    print(f"D = 2: estimated {estimated(first)} completion tokens, used {tokens(rows):,}, in {seconds:.0f} s")
    second, _ = run(options, "diversity=4", "dry_run=true")
    rows, output, seconds = bought(options, "diversity=4")
    print(f"D = 4: estimated {estimated(second)} more, used {tokens(rows):,}, in {seconds:.0f} s; {len(rows)} completions bought")
    in_flight = [int(count) for count in re.findall(r"of (\d+) in flight", output)]
    print(f"requests in flight, maximum: {max(in_flight, default=1)}")
    choices = Counter(row["request"] for row in rows)
    print(f"choices per request: {dict(Counter(choices.values()))}")
    texts: dict[str, list[str]] = {}
    for row in answers(options):
        texts.setdefault(row["key"], []).append(row["text"])
    different = sum(len(set(of_key)) for of_key in texts.values())
    print(f"different texts: {different} of {sum(map(len, texts.values()))}")


def stop_and_limit(options: argparse.Namespace) -> None:
    """Check stop sequences and the token limit."""
    rows, _, _ = bought(options, "diversity=1", "prompt.stop=[Therefore]", "dataset.limit=3")
    print(f"stop=Therefore: in {sum('Therefore' in row['text'] for row in rows)} of {len(rows)} texts")
    rows, _, _ = bought(options, "diversity=1", "prompt.rationale_tokens=16", "dataset.limit=3")
    print(f"limit of 16 tokens: {Counter((row['finish_reason'], row['completion_tokens']) for row in rows)}")


def kill(options: argparse.Namespace) -> None:
    """Kill a purchase half way, run it again, and count the completions that were bought twice."""
    n = len(answers(options))
    process = subprocess.Popen(command(options, "diversity=6"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(answers(options)) < n + options.n:
        time.sleep(0.5)
    process.kill()
    process.wait()
    kept = {(row["key"], row["slot"]) for row in answers(options)}
    rows, _, _ = bought(options, "diversity=6")
    pairs = [(row["key"], row["slot"]) for row in answers(options)]
    twice = len(pairs) - len({*pairs})
    print(f"killed after {len(kept) - n} of {2 * options.n} completions: {len(rows)} bought afterwards, {twice} of them a second time")


def main() -> None:
    """Run all checks and print their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("-n", type=int, default=12, help="problems")
    options = parser.parse_args()
    if options.output.exists():
        sys.exit(f"{options.output} exists already: choose another --output")
    for check in (dry_run, stop_and_limit, kill):
        check(options)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
