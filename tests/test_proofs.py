"""Tests of whole experiments that take minutes each: ``make test-slow``."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.slow
REAL = ("multiarith", "svamp", "tracking_shuffled_objects", "coin_flip", "last_letter_concatenation", "addsub", "single_eq")


def test_the_quickstart_shows_the_papers_order_for_three_seeds(run_fcot, tmp_path):
    result = run_fcot("-m", "experiment=quickstart", "seed=0,1,2", timeout=3600)
    assert result.returncode == 0, result.stderr
    accuracies = {}
    for path in (tmp_path / "outputs" / "runs").glob("*/metrics.json"):
        metrics = json.loads(path.read_text())
        accuracies[metrics["method"], metrics["diversity"], metrics["seed"]] = metrics["accuracy"]
    assert len(accuracies) == 12
    for seed in (0, 1, 2):
        zero_shot, fine_tune = accuracies["zero_shot", None, seed], accuracies["fine_tune", None, seed]
        diversity_1, diversity_4 = accuracies["fine_tune_cot", 1, seed], accuracies["fine_tune_cot", 4, seed]
        assert zero_shot == 0
        assert fine_tune < 0.25
        assert 0.70 < diversity_1 < diversity_4
        assert diversity_4 > 0.90


@pytest.mark.parametrize("task", REAL)
def test_real_completions_of_every_task_train_a_student(task, run_fcot, shared_data, tmp_path):
    result = run_fcot(
        f"dataset={task}", f"dataset.path={shared_data}/dataset/{task}.json", "teacher=replay",
        f"teacher.path={shared_data}/completion_data/B_text-davinci-002__C_zs_cot/D_{task}.json", "student=tiny_t5", "diversity=1",
        "trainer.max_steps=60", "trainer.evaluate_every_steps=60",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (path,) = (tmp_path / "outputs" / "runs").glob("*/metrics.json")
    metrics = json.loads(path.read_text())
    assert metrics["rows_in_published_order"]
    assert metrics["completions_asked"] == metrics["n_train_problems"]
    assert metrics["n_reasoning_samples"] == metrics["completions_kept"] > 0
