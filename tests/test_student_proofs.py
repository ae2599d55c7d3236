"""The long proof of student training: ``make test-slow``."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow
KILLS = 30
TRAINING = [
    "dataset.n_problems=300", "trainer.max_steps=1500", "trainer.evaluate_every_steps=150", "trainer.checkpoint_every_s=0",
    "trainer.best_epoch=true", "diversity=2",
]  # fmt: skip


ON_POLICY = [
    "method=on_policy", "method.steps=300", "method.renew_every=7", "method.own_share=0.7", "method.max_unfinished=1", "student.width=32",
    "student.max_new_tokens=40", "student.layers=1", "dataset.n_problems=100", "trainer.max_steps=20", "trainer.warmup_steps=2",
    "trainer.evaluate_every_steps=150", "trainer.checkpoint_every_s=0", "diversity=2",
]  # fmt: skip


def command(folder, *overrides):
    return [sys.executable, "-m", "fcot.run", f"output_dir={folder}", *overrides]


def result(folder):
    """Metrics without timings, weights, predictions and the names of files of the only run in a folder."""
    (path,) = (folder / "runs").glob("*/metrics.json")
    metrics = json.loads(path.read_text())
    for name in ("seconds", "train_samples_per_second", "teacher_usage"):
        metrics.pop(name)
    weights = (path.parent / "student" / "model.safetensors").read_bytes()
    return metrics, weights, (path.parent / "predictions.jsonl").read_bytes(), sorted(file.name for file in path.parent.iterdir())


def newest_checkpoint(folder):
    """Time of the newest checkpoint in an output folder; 0 without one."""
    times = [0.0]
    for path in folder.glob("runs/**/checkpoints/*"):
        with contextlib.suppress(FileNotFoundError):  # a newer one replaced it
            times.append(path.stat().st_mtime)
    return max(times)


@pytest.mark.parametrize("student", ["tiny_gpt2", "tiny_t5"])
def test_thirty_kills_change_no_metric_and_no_weight(student, tmp_path):
    subprocess.run(command(tmp_path / "alone", f"student={student}", *TRAINING), check=True, capture_output=True)
    rng, places = random.Random(4), []
    kills, trained = 0, False
    while kills < KILLS:
        before = newest_checkpoint(tmp_path / "killed")
        process = subprocess.Popen(command(tmp_path / "killed", f"student={student}", *TRAINING), stderr=subprocess.PIPE, text=True)
        in_training = kills % 3 > 0 and not trained  # the others fall anywhere from the start on
        while in_training and process.poll() is None and newest_checkpoint(tmp_path / "killed") == before:
            time.sleep(0.02)
        try:
            _, output = process.communicate(timeout=rng.uniform(0, 3) if in_training else rng.uniform(0, 12))
            assert process.returncode == 0, output
            # The run ended before the kill. Its last files are removed, so that the next kill comes near the end.
            (folder,) = (tmp_path / "killed" / "runs").iterdir()
            (folder / "DONE.json").unlink(missing_ok=True)
            (folder / "stages" / "evaluate.json").unlink(missing_ok=True)
            trained = True
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            output = process.communicate()[1]
            kills += 1
            places += [line for line in output.splitlines() if line.startswith("training continues")] or ["before or after training"]
        time.sleep(0.1)
    subprocess.run(command(tmp_path / "killed", f"student={student}", *TRAINING), check=True, capture_output=True)
    print("\n".join(places))
    assert len(set(places)) > 5, "too few kills hit the training, or all at the same step"
    assert result(tmp_path / "killed") == result(tmp_path / "alone")


@pytest.mark.parametrize("student", ["tiny_gpt2", "tiny_t5"])
def test_thirty_kills_of_an_on_policy_training_change_no_metric_and_no_weight(student, tmp_path):
    short = ("student.width=32", "student.layers=1", "dataset.n_problems=100", "trainer.max_steps=20", "trainer.warmup_steps=2")
    subprocess.run(command(tmp_path / "teacher", *short, f"student={student}"), check=True, capture_output=True)
    (teacher,) = (tmp_path / "teacher" / "runs").glob("*/student")
    training = (f"student={student}", *ON_POLICY, f"objective.teacher={teacher}", f"student.tokenizer={teacher}")
    subprocess.run(command(tmp_path / "alone", *training), check=True, capture_output=True)
    rng, places = random.Random(4), []
    for number in range(KILLS):
        before = newest_checkpoint(tmp_path / "killed")
        process = subprocess.Popen(command(tmp_path / "killed", *training), stderr=subprocess.PIPE, text=True)
        while process.poll() is None and newest_checkpoint(tmp_path / "killed") == before:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1.5))
        assert process.poll() is None, f"the run ended after {number} kills: train for more steps"
        process.send_signal(signal.SIGKILL)
        places += [line for line in process.communicate()[1].splitlines() if line.startswith("training continues")]
    subprocess.run(command(tmp_path / "killed", *training), check=True, capture_output=True)
    print("\n".join(places))
    assert len(set(places)) > KILLS // 2, "too few kills hit the training, or all at the same step"
    assert "300" in {place.split()[-1] for place in places}, "no kill hit the training on own samples"
    assert result(tmp_path / "killed") == result(tmp_path / "alone")
