"""Outputs of earlier versions (``tests/compat``): they are read, reported, and nothing in their stores is bought again."""

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
def test_what_is_stored_is_not_bought_again(outputs, tmp_path, make_run, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    save_gpt2(tmp_path / "gpt2")
    run = make_run(outputs, *STORED[name])

    async def generate(*_, **__):
        raise AssertionError("something is bought again")

    monkeypatch.setattr(type(run.teacher), "generate", generate)
    problems = run.select(run.split.train)
    bought = list(generate_completions(run.plan, run.store, problems))
    assert len(bought) == run.config.diversity * len(problems)
    assert not [one for one in bought if (one.finish_reason or "").startswith(REFUSED)]


def test_the_store_is_listed_and_sound(outputs, run_fcot):
    for command in ("list", "verify"):
        done = run_fcot(command, str(outputs / "store"), module="fcot.store")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "toy_arithmetic/fake/zero_shot_cot_chat" in done.stdout


def test_runs_a_tailored_run_and_a_sweep_are_reported(outputs, run_fcot):
    done = run_fcot(str(outputs), module="fcot.report")
    assert done.returncode == 0, done.stderr
    assert "tailored" in done.stdout.lower()
    done = run_fcot(str(outputs / "sweeps" / "small"), module="fcot.report")
    assert done.returncode == 0, done.stderr
    assert "D=1" in done.stdout
    assert "D=2" in done.stdout


def test_a_sweep_is_known(outputs, run_fcot):
    done = run_fcot("status", str(outputs / "sweeps" / "small"), module="fcot.sweep")
    assert done.returncode == 0, done.stderr
    assert "4 done" in done.stdout


def test_a_student_answers(outputs, run_fcot):
    (student,) = (path.parent for path in outputs.glob("runs/*/student/model.safetensors"))
    done = run_fcot(f"student={student}", "Tom has 3 coins. Ann gives 2. How many coins does Tom have now?", module="fcot.predict")
    assert done.returncode == 0, done.stderr
    assert "answer:" in done.stdout


def test_the_metrics_keep_their_keys(outputs):
    """Other programs read them."""
    (path,) = outputs.glob("runs/*-D3-*17945b4c43/metrics.json")
    metrics = json.loads(path.read_text())
    assert {"run_id", "accuracy", "accuracy_ci95", "teacher_usage", "completions_kept", "setting"} <= set(metrics)
