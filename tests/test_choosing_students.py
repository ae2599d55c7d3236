"""Choosing a student: the table of students, the warning about toys, and the advice after a run without right answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fcot.base.resources import CONF
from fcot.estimate import toy
from fcot.estimate.dry_run import estimate
from fcot.estimate.preview import preview
from fcot.run import main
from fcot.runs import nothing_right
from fcot.runs.nothing_right import advice_without_right_answers
from fcot.runs.pipeline import execute
from fcot.student.catalogue import PRETRAINED, TOYS, fitting, help_table, markdown_table
from fcot.sweeps.launch import launch

ROOT = Path(__file__).parent.parent


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_has_every_student_of_conf_that_trains_on_this_machine():
    choices = {path.stem: OmegaConf.load(path) for path in (CONF / "student").glob("*.yaml")}
    schemas = {name: next(iter(choice.defaults[0].values())) for name, choice in choices.items()}
    hub_ids = {name for name, schema in schemas.items() if schema == "pretrained" and choices[name].get("hub_id")}
    assert {student.name for student in PRETRAINED} == hub_ids
    assert set(TOYS) == {name for name, schema in schemas.items() if schema == "tiny"}
    assert [student.parameters for student in PRETRAINED] == sorted(student.parameters for student in PRETRAINED)


@pytest.mark.parametrize("name", ["t5_small", "gpt2"])
def test_the_numbers_of_the_table_are_those_of_the_memory_estimate(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import student_memory

    parameters, few, many = student_memory.measure(name, tmp_path)
    student = next(student for student in PRETRAINED if student.name == name)
    assert student.parameters == parameters
    assert student.training_bytes(student_memory.FEW) == pytest.approx(few, rel=0.1)
    assert student.training_bytes(student_memory.MANY) == pytest.approx(many, rel=0.05)


def test_the_table_is_in_the_help_and_in_the_documentation(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fcot.run", "--help"])
    main()
    assert help_table() in capsys.readouterr().out
    assert markdown_table() in (ROOT / "docs/training.md").read_text(), "replace the table by fcot.student.catalogue.markdown_table()"


def test_students_that_fit_have_the_fewest_micro_batches_that_fit():
    assert fitting(1e9) == []
    small = fitting(5e9)
    assert [fit.student.name for fit in small] == ["flan_t5_small", "smollm2_135m"]
    for fit in small:
        assert fit.needed < 5e9
        assert fit.micro_batches == 1 or fit.student.training_bytes(2 * 32 // fit.micro_batches) >= 5e9
    assert [fit.micro_batches for fit in fitting(1e12)] == [1] * 6
    assert "student=flan_t5_small trainer.micro_batches=" in small[0].overrides


# --- toys -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_data(tmp_path):
    rows = [{"question": f"Ann has {n} pens and buys {n + 1}. How many now?", "answer": 2 * n + 1} for n in range(30)]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ("dataset=custom", f"dataset.path={path}", "dataset.answer_type=number")


@pytest.fixture
def machine(monkeypatch):
    """``machine(gpu, free bytes)`` sets what the machine has."""

    def set_machine(gpu, free):
        monkeypatch.setattr(toy, "has_gpu", lambda: gpu)
        monkeypatch.setattr(toy, "free_host_memory", lambda: free)
        monkeypatch.setattr("fcot.student.memory.free_memory", lambda: free)

    return set_machine


TEACHER = ("teacher=function", "teacher.function=test_choosing_students.teacher", "teacher.model_id=m")


def teacher(prompt, *, n, **_):
    return ["Count. Therefore, the answer (arabic numerals) is 3."] * n


def test_a_student_from_scratch_on_own_data_is_called_a_toy_and_others_that_fit_are_named(own_data, machine, make_run, tmp_path):
    machine(False, 8e9)
    note = toy.toy_note(make_run(tmp_path, *own_data, *TEACHER))
    assert "student=tiny_gpt2 is a toy: about 0.2 M parameters" in note
    assert "no GPU" in note
    assert "student=flan_t5_small" in note
    assert "llama" not in note
    machine(True, 80e9)
    note = toy.toy_note(make_run(tmp_path, *own_data, *TEACHER, "student=tiny_t5"))
    assert "student=tiny_t5 is a toy: about 0.3 M parameters" in note
    assert "student=llama3_2_1b (1.2 B parameters" in note
    assert "flan_t5_small" not in note


@pytest.mark.parametrize(
    "overrides", [("student=flan_t5_small",), ("until=curate",), ("method=zero_shot",)],
)  # fmt: skip
def test_other_runs_on_own_data_have_no_such_note(own_data, make_run, tmp_path, overrides):
    assert toy.toy_note(make_run(tmp_path, *own_data, *TEACHER, *overrides)) is None


def test_a_toy_task_has_no_such_note(make_run, tmp_path):
    assert toy.toy_note(make_run(tmp_path, "dataset.n_problems=40")) is None


def test_dry_run_preview_and_run_say_it_before_the_teacher_gets_a_request(own_data, machine, make_run, tmp_path, monkeypatch, capsys):
    machine(False, 8e9)
    run = make_run(tmp_path, *own_data, *TEACHER, "diversity=1")
    assert toy.toy_note(run) in estimate(run, {}).notes

    said = []

    async def generate(*_):
        said.append(capsys.readouterr())
        raise RuntimeError("a request")

    monkeypatch.setattr(type(run.teacher), "generate", generate)
    for show in (preview, execute):
        argument = 1 if show is preview else ""
        other = make_run(tmp_path / show.__name__, *own_data, *TEACHER, "diversity=1")
        with pytest.raises(RuntimeError, match="a request"):
            show(other, argument)
        assert said[-1].err.count("tiny_gpt2 is a toy") == 1


def test_the_commands_after_the_first_one_do_not_repeat_the_notes(tmp_path, machine, make_run, monkeypatch, capsys):
    """Preview, curation and training are steps of one journey; a note that changed is said."""
    machine(False, 8e9)
    path = tmp_path / "rows.csv"
    rows = [f"What is {n} + 1?,{n + 1}" for n in range(60)]
    path.write_text("\n".join(["question,answer", *rows, "What is 3 + 1?,5"]) + "\n")
    own = ("dataset=custom", f"dataset.path={path}", "dataset.answer_type=number", *TEACHER, "diversity=1", "curation=none")

    def said(show, *overrides):
        capsys.readouterr()
        show(make_run(tmp_path, *own, *overrides))
        printed = capsys.readouterr()
        return ["different gold answers" in printed.err, "is a toy" in printed.err]

    assert said(lambda run: preview(run, 1)) == [True, True]
    assert said(lambda run: preview(run, 2)) == [False, False]
    assert said(lambda run: execute(run, ""), "until=curate") == [False, False]
    machine(False, 7e9)  # another free memory, which the warning names
    assert said(lambda run: preview(run, 2)) == [False, False]
    assert said(lambda run: preview(run, 2), "student=tiny_t5") == [False, True]
    path.write_text("\n".join(["question,answer", *rows, "What is 4 + 1?,6"]) + "\n")
    assert said(lambda run: preview(run, 2)) == [True, False]


def test_a_sweep_says_it_once_where_it_is_launched(own_data, machine, tmp_path, monkeypatch, capsys):
    machine(False, 8e9)
    for name in ("run_in_pool", "report_sweep", "_list_failures"):
        monkeypatch.setattr(f"fcot.sweeps.launch.{name}", lambda *_, **__: None)
    jobs = [[*own_data, *TEACHER, f"output_dir={tmp_path}/outputs", f"diversity={n}"] for n in (1, 2)]
    launch(tmp_path / "outputs" / "sweeps" / "s", jobs, [], {"kind": "local", "processes": 1, "gpus_per_job": 0})
    assert capsys.readouterr().err.count("tiny_gpt2 is a toy") == 1


# --- nothing right ----------------------------------------------------------------------------------------------------

METRICS = {
    "n_test": 20, "accuracy": 0.0, "errors": {}, "answer_in_completion": 0.0, "n_reasoning_samples": 500, "n_train_problems": 100,
    "cut_completions": 0, "cut_prompts": 0, "n_steps": 300,
}  # fmt: skip


@pytest.mark.parametrize(
    ("figures", "advice"),
    [
        ({"errors": {"truncated": 15, "loops": 2}}, "15 of 20 answers were cut at student.max_new_tokens=256: student.max_new_tokens=512"),
        ({"errors": {"truncated": 15, "loops": 14}}, "15 of 20 answers were cut at student.max_new_tokens=256: most of these repeat"),
        ({"errors": {"no_answer": 9}}, "9 of 20 answers have no readable answer of the type number"),
        ({"answer_in_completion": 0.25}, "5 of 20 answers contain the right answer"),
        (
            {"cut_completions": 400},
            "400 of 500 training samples lost their end, and with it their answer, at student.max_completion_tokens=",
        ),
        ({"cut_prompts": 400}, "400 of 500 training samples lost their beginning at student.max_prompt_tokens="),
        ({"n_steps": 40}, "and the training had 40 steps: try trainer.warmup_steps=4, or more steps"),
        ({"n_reasoning_samples": 7}, "it was trained on 7 samples"),
    ],
)
def test_a_run_without_right_answers_says_what_to_look_at_from_its_figures(own_data, machine, make_run, tmp_path, figures, advice):
    machine(False, 8e9)
    run = make_run(tmp_path, *own_data, *TEACHER)
    text = advice_without_right_answers(run, METRICS | figures)
    assert text.startswith("0 of 20 test answers are right")
    assert advice in text
    assert "student=tiny_gpt2 is a toy" in text
    assert advice not in advice_without_right_answers(run, METRICS)


def test_a_loss_that_hardly_fell_names_the_learning_rate(make_run, tmp_path):
    run = make_run(tmp_path, "dataset.n_problems=40")
    log = run.directory.logs / "metrics.csv"
    log.parent.mkdir(parents=True)
    log.write_text("step,train_loss,validation_accuracy\n1,4.0,\n2,,0.0\n3,3.9,\n")
    text = advice_without_right_answers(run, METRICS)
    assert (
        "the training loss went from 4.00 to 3.90 in 300 steps with trainer.lr=0.005: try trainer.lr=0.015 and trainer.lr=0.0017," in text
    )
    assert "is a toy" not in text
    log.write_text("step,train_loss,validation_accuracy\n1,4.0,\n3,0.1,\n")
    assert "training loss" not in advice_without_right_answers(run, METRICS)


def test_a_run_with_a_right_answer_or_without_test_problems_says_nothing(make_run, tmp_path):
    run = make_run(tmp_path, "dataset.n_problems=40")
    assert advice_without_right_answers(run, METRICS | {"accuracy": 0.05}) is None
    assert advice_without_right_answers(run, METRICS | {"accuracy": None, "n_test": 0}) is None


def test_a_finished_run_without_right_answers_ends_with_the_advice(make_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(nothing_right, "alternatives", lambda run: "")
    run = make_run(tmp_path, "dataset.n_problems=40", "diversity=1", "trainer.max_steps=2", "student.max_new_tokens=8")
    assert execute(run, "")["accuracy"] == 0.0
    said = capsys.readouterr().err
    assert "test answers are right. What to look at:" in said
    assert "were cut at student.max_new_tokens=8" in said
    assert "predictions.jsonl" in said
