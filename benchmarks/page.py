"""The page over a large sweep: python benchmarks/page.py [RUNS] [PREDICTIONS]: time, memory, file size, a keystroke in Chromium."""

from __future__ import annotations

import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from fcot.artifacts import RunDirectory, write_jsonl
from fcot.reporting.document import Document, RunFiles, Section
from fcot.reporting.page import write_page

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
WORDS = [f"{a}{b}{c}" for a in ("ba", "ke", "mi", "to", "su") for b in ("ran", "lin", "dor", "ves") for c in ("", "a", "o", "ed", "ing")]
QUERY = "keran marks 12"
# From the key to what is on the screen: the task after the next frame.
TYPE = """async (text) => {
  const box = document.querySelector('input[name=q]'), status = document.querySelector('#samples [role=status]'), times = [];
  for (let end = 1; end <= text.length; end++) {
    const began = performance.now();
    const changed = new Promise((done) => new MutationObserver(done).observe(status, { childList: true }));
    box.value = text.slice(0, end);
    box.dispatchEvent(new Event('input'));
    await changed;
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    times.push(performance.now() - began);
  }
  return times;
}"""


def rationale(rng: random.Random) -> str:
    return " ".join(
        f"{' '.join(rng.choices(WORDS, k=6))} {(a := rng.randrange(99))} + {(b := rng.randrange(99))} = {a + b}." for _ in range(7)
    )


def build(folder: Path, n_runs: int, n_predictions: int) -> list[RunFiles]:
    """Runs of four tasks, each with predictions, marks, and the completions of a D that runs of a task share."""
    runs = []
    for number in range(n_runs):
        rng = random.Random(number)
        directory, task = RunDirectory(folder / f"run-{number}"), f"task_{number % 4}"
        right = [rng.random() < 0.6 for _ in range(n_predictions)]
        write_jsonl(directory.predictions, ({
            "sample_index": index, "question": f"Question {index} of {task}: " + " ".join(random.Random(index).choices(WORDS, k=30)),
            "answer": "12", "completion": f"{rationale(rng)}\nAnswer: {12 if one else 13}", "prediction": "12" if one else "13",
            "correct": one, "complete": True, "n_tokens": 90,
        } for index, one in enumerate(right)))  # fmt: skip
        wrong = [index for index, one in enumerate(right) if not one]
        write_jsonl(directory.errors, ({"sample_index": index, "marks": ["arithmetic_slip"], "equation": "1 + 1 = 3"} for index in wrong))
        rng = random.Random(task)
        write_jsonl(directory.curated, ({
            "sample_index": n_predictions + index // 4, "completion_index": index % 4, "prediction": "12", "correct": index % 9 > 0,
            "kept": index % 9 > 0, "reason": None if index % 9 else "wrong_answer", "rationale": rationale(rng), "answer": "12",
        } for index in range(4 * n_predictions)))  # fmt: skip
        metrics: dict[str, Any] = {"task": task, "method": "fine_tune_cot", "questions_sha256": task, "completions_asked": 4}
        runs.append(RunFiles(directory, f"{task}, seed {number // 4}", metrics))
    return runs


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(n_runs: int, n_predictions: int) -> None:
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        runs, page_file = build(Path(name), n_runs, n_predictions), Path(name) / "report.html"
        before = peak()
        began = time.perf_counter()
        write_page(Document("Benchmark", "A large sweep.", [], [Section("samples", "Rationales")], runs), page_file)
        seconds = time.perf_counter() - began
        print(f"{n_runs} runs x {n_predictions:,} predictions: {seconds:.1f} s, peak memory {peak():,.0f} MB (before {before:,.0f})")
        print(f"file: {page_file.stat().st_size / 1e6:.1f} MB")
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = browser.new_page()
        began = time.perf_counter()
        page.goto(page_file.as_uri())
        page.wait_for_selector("#sample-list .row", timeout=120_000)
        seconds = time.perf_counter() - began
        print(f"open until the list is there: {seconds:.1f} s; {page.locator('#samples .note').first.inner_text()}")
        times = sorted(page.evaluate(TYPE, QUERY))
        print(f"a keystroke: median {times[len(times) // 2]:.0f} ms, slowest {times[-1]:.0f} ms, of which it waits 30 for the next one")
        heap = page.evaluate("performance.memory.usedJSHeapSize") / 2**20
        print(f"the browser's JavaScript heap: {heap:,.0f} MB")
        browser.close()


if __name__ == "__main__":
    main(*(map(int, sys.argv[1:]) if sys.argv[1:] else (200, 1000)))
