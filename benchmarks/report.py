"""Measures the report of a large sweep: time, memory, file size, and the delay of a keystroke in Chromium.

    python benchmarks/report.py [RUNS] [PREDICTIONS]

The default is 200 runs with 1,000 predictions each.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from fcot.base.files import write_json, write_jsonl
from fcot.base.run_folder import RunDirectory
from fcot.sweeps.plan import PlannedJob, Sweep, write_plan

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
WORDS = [f"{a}{b}{c}" for a in ("ba", "ke", "mi", "to", "su") for b in ("ran", "lin", "dor", "ves") for c in ("", "a", "o", "ed", "ing")]
QUERY = "keran marks 12"
# Milliseconds from each key to the updated screen: until the task after the next frame.
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


def real_run(folder: Path) -> tuple[dict[str, Any], str]:
    """Metrics and configuration of a short real run, which all runs of the sweep copy."""
    command = [sys.executable, "-m", "fcot.run", "diversity=1", "trainer.max_steps=20", f"output_dir={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (run,) = (folder / "runs").iterdir()
    return json.loads((run / "metrics.json").read_text()), (run / "config.yaml").read_text()


def build(folder: Path, n_runs: int, n_predictions: int) -> Path:
    """Write a sweep over tasks, D, learning rates and seeds; each run has predictions, error marks, a log and curated completions."""
    metrics, config = real_run(folder / "real")
    jobs = []
    for number in range(n_runs):
        rng = random.Random(number)
        task, diversity, lr, seed = (
            f"task_{number % 4}",
            (1, 2, 4, 8, 16)[number // 4 % 5],
            ("1e-4", "3e-4")[number // 20 % 2],
            number // 40,
        )
        directory = RunDirectory(folder / "runs" / f"run-{number}")
        right = [rng.random() < 0.4 + 0.02 * diversity for _ in range(n_predictions)]
        write_jsonl(directory.predictions, ({
            "sample_index": index, "question": f"Question {index} of {task}: " + " ".join(random.Random(index).choices(WORDS, k=30)),
            "answer": "12", "completion": f"{rationale(rng)}\nAnswer: {12 if correct else 13}", "prediction": "12" if correct else "13",
            "correct": correct, "complete": True, "n_tokens": rng.randrange(60, 120),
        } for index, correct in enumerate(right)))  # fmt: skip
        wrong = [index for index, correct in enumerate(right) if not correct]
        write_jsonl(directory.errors, ({"sample_index": index, "marks": ["arithmetic_slip"], "equation": "1 + 1 = 3"} for index in wrong))
        rng = random.Random(task)
        write_jsonl(directory.curated, ({
            "sample_index": n_predictions + index // 4, "completion_index": index % 4, "prediction": "12", "correct": index % 9 > 0,
            "kept": index % 9 > 0, "reason": None if index % 9 else "wrong_answer", "rationale": rationale(rng), "answer": "12",
        } for index in range(4 * n_predictions)))  # fmt: skip
        write_json(directory.metrics, metrics | {
            "run_id": f"{task}-tiny_gpt2-{number:010d}", "task": task, "diversity": diversity, "seed": seed,
            "setting": f"{task} {diversity} {lr}", "n_test": n_predictions,
            "accuracy": sum(right) / n_predictions, "questions_sha256": task,
        })  # fmt: skip
        directory.config.write_text(config)
        directory.logs.mkdir()
        directory.logs.joinpath("metrics.csv").write_text("step,train_loss\n" + "".join(f"{step},{9 / step}\n" for step in range(1, 2000)))
        overrides = [f"dataset={task}", f"diversity={diversity}", f"trainer.lr={lr}", f"seed={seed}"]
        jobs.append(PlannedJob(number, overrides, str(number), f"../runs/run-{number}", "evaluate"))
    write_plan(Sweep(folder / "sweep", "2026-01-31", "/", [], {"kind": "serial"}, jobs))
    return folder / "sweep"


def write_report(sweep: Path) -> None:
    """Write the report in a separate process, and print its time, peak memory and file sizes."""
    began = time.perf_counter()
    done = subprocess.Popen([sys.executable, "-m", "fcot.report", str(sweep)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(done.pid, 0)
    assert status == 0
    size = sum(path.stat().st_size for path in (sweep / "report").rglob("*") if path.is_file())
    print(f"python -m fcot.report: {time.perf_counter() - began:.1f} s, peak memory {usage.ru_maxrss / 1024:,.0f} MB")
    print(f"report.html: {(sweep / 'report.html').stat().st_size / 1e6:.1f} MB; tables and figures: {size / 1e6:.1f} MB")


def main(n_runs: int, n_predictions: int) -> None:
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        sweep = build(Path(name), n_runs, n_predictions)
        print(f"{n_runs} runs x {n_predictions:,} predictions")
        write_report(sweep)
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = browser.new_page()
        began = time.perf_counter()
        page.goto((sweep / "report.html").as_uri())
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
