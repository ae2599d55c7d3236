"""The benchmarks run, each at its smallest size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zygote

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run(*command: str) -> str:
    script, *arguments = command
    process = zygote.run([script if script == "-m" else BENCHMARKS / script, *arguments], cwd=BENCHMARKS)
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


@pytest.mark.parametrize("command", ["training", "evaluation"])
def test_students(command):
    limit = ["--steps", "2"] if command == "training" else ["--rows", "2"]
    model = ["--task", "toy_arithmetic", "--width", "64", "--layers", "1", "--turns", "1", "--model", "gpt2"]
    assert "| fcot" in run("students.py", command, *model, *limit)


def test_contamination_writes_renumbered_questions_with_new_answers(tmp_path):
    """The new answer follows from the new numbers by the same rule; a question whose rule is ambiguous is left out."""
    data = tmp_path / "multiarith.json"
    rows = [("Ann has 12 pens and buys 3 boxes of 5. How many pens has she?", "27"), ("Tom had 2 cats and got 2. How many?", "4")] * 5
    data.write_text(json.dumps({"data": [{"sample_index": index, "question": q, "answer": a} for index, (q, a) in enumerate(rows)]}))
    run("contamination.py", str(data), str(tmp_path / "out"))
    lines = [json.loads(line) for line in (tmp_path / "out" / "renumbered.jsonl").read_text().splitlines()]
    assert lines
    for line in lines:
        pens, boxes, size = (int(word.strip(".")) for word in line["question"].split() if word.strip(".").isdigit())
        assert int(line["answer"]) == pens + boxes * size != 27


def test_the_loss_of_a_large_vocabulary():
    table = run("loss.py", "--vocabulary", "300", "--width", "8", "--targets", "20", "--repeats", "1")
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["all logits", "in chunks"]


def test_the_judge_is_compared_with_the_arithmetic_checker(tmp_path):
    """The toy oracle's slips are wrong equations, and its judge names their step."""
    options = [
        "dataset.n_problems=60", "teacher.error_rate=0.5", "curation=none", "curation.judge=record", "until=curate",
        f"output_dir={tmp_path}",
    ]  # fmt: skip
    run("-m", "fcot.run", *options)
    (folder,) = (tmp_path / "runs").iterdir()
    text = run("judge.py", str(folder), "--quoted", "2")
    assert "| right | equations hold |" in text
    assert "judge: calls 0 of" in text
    assert "100.0 %" in text
