"""Outputs of earlier versions (``tests/compat``) can be read and reported, and nothing in their stores is bought again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_hf_teacher import save_gpt2

from fcot.base.records import REFUSED
from fcot.llm.generate import generate_completions

VERSIONS = sorted(path for path in (Path(__file__).parent / "compat").iterdir() if path.is_dir())
TINY = (
    "dataset.n_problems=40", "student.width=16", "student.layers=1", "student.heads=2", "student.max_new_tokens=48",
    "trainer.max_steps=6", "trainer.warmup_steps=1", "trainer.evaluate_every_epochs=null",
)  # fmt: skip
SERVER = (
    "teacher=openai", "teacher.model=fake", "teacher.base_url=http://127.0.0.1:9/v1", "dataset.n_problems=40", "dataset.limit=10",
)  # fmt: skip
HF = (
    "teacher=hf", "teacher.path=gpt2", "teacher.model_id=tiny-hf", "dataset.n_problems=40", "dataset.limit=4", "diversity=2",
    "prompt.rationale_tokens=12", "prompt.answer_tokens=4",
)  # fmt: skip
STORED = {
    "oracle": (*TINY, "diversity=3"),
    "chat": (*SERVER, "diversity=4", "prompt=zero_shot_cot_chat"),
    "two_steps_chat": (*SERVER, "diversity=3", "prompt=zero_shot_cot"),
    "two_steps_text": (*SERVER, "diversity=2", "prompt=zero_shot_cot", "teacher.endpoint=completions"),
    "hf": HF,
}


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def outputs(request, tmp_path):
    """A copy of a version's outputs."""
    return Path(shutil.copytree(request.param / "outputs", tmp_path / "outputs"))


@pytest.mark.parametrize("name", STORED)
def test_stored_completions_are_not_bought_again(outputs, tmp_path, make_run, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    save_gpt2(tmp_path / "gpt2")
    run = make_run(outputs, *STORED[name])

    async def generate(*_, **__):
        raise AssertionError("a request was sent")

    monkeypatch.setattr(type(run.teacher), "generate", generate)
    problems = run.select(run.split.train)
    bought = list(generate_completions(run.plan, run.store, problems))
    assert len(bought) == run.config.diversity * len(problems)
    assert not [completion for completion in bought if (completion.finish_reason or "").startswith(REFUSED)]


def test_the_store_is_listed_and_verified(outputs, run_fcot):
    for command in ("list", "verify"):
        process = run_fcot(command, str(outputs / "store"), module="fcot.store")
        assert process.returncode == 0, process.stdout + process.stderr
        assert "toy_arithmetic/fake/zero_shot_cot_chat" in process.stdout


def test_runs_a_tailored_run_and_a_sweep_are_reported(outputs, run_fcot):
    process = run_fcot(str(outputs), module="fcot.report")
    assert process.returncode == 0, process.stderr
    assert "tailored" in process.stdout.lower()
    process = run_fcot(str(outputs / "sweeps" / "small"), module="fcot.report")
    assert process.returncode == 0, process.stderr
    assert "D=1" in process.stdout
    assert "D=2" in process.stdout


def test_the_status_of_a_sweep_is_shown(outputs, run_fcot):
    process = run_fcot("status", str(outputs / "sweeps" / "small"), module="fcot.sweep")
    assert process.returncode == 0, process.stderr
    assert "4 done" in process.stdout


def test_a_saved_student_answers_a_question(outputs, run_fcot):
    (student,) = (path.parent for path in outputs.glob("runs/*/student/model.safetensors"))
    process = run_fcot(f"student={student}", "Tom has 3 coins. Ann gives 2. How many coins does Tom have now?", module="fcot.predict")
    assert process.returncode == 0, process.stderr
    assert "answer:" in process.stdout


def test_the_metrics_keep_their_keys(outputs):
    """Other programs read them."""
    (path,) = outputs.glob("runs/*-D3-*17945b4c43/metrics.json")
    metrics = json.loads(path.read_text())
    assert {"run_id", "accuracy", "accuracy_ci95", "teacher_usage", "completions_kept", "setting"} <= set(metrics)
