"""Methods without training: prompting a student or the teacher itself, dropping exemplars that do not fit, scoring."""

from __future__ import annotations

import json

import pytest
from students import save_gpt2, save_t5

from fcot.base.errors import ConfigFaults
from fcot.base.files import read_json, read_jsonl
from fcot.base.ranks import World
from fcot.base.records import Problem
from fcot.decoding.engine import Sampling
from fcot.prompts.answers import AnswerRule
from fcot.prompts.teacher import Exemplar, TeacherPrompt
from fcot.runs.pipeline import execute
from fcot.stages.answering import SamplingParameters, fit_exemplars, prompt_student
from fcot.stages.training import build_student
from fcot.student.loading import load_student
from fcot.student.tokenization import encode_prompts

SMALL = ["dataset.n_problems=40", "student.vocab_size=400"]
RULE = AnswerRule("number")


@pytest.mark.parametrize(
    ("method", "accuracy"), [("zero_shot_cot", (0.75, 1.0)), ("few_shot_cot", (0.75, 1.0)), ("zero_shot", (0.75, 1.0))]
)
@pytest.mark.parametrize("task", ["toy_arithmetic", "toy_last_letter", "toy_coin_flip", "toy_comparison"])
def test_the_teacher_itself_answers_the_test_problems(task, method, accuracy, make_run, tmp_path):
    options = [f"dataset={task}", f"method={method}", "student=teacher", "dataset.n_problems=200", "prompt.exemplars=train"]
    run = make_run(tmp_path, *options)
    assert run.config.student.remote
    metrics = execute(run, "")
    assert accuracy[0] <= metrics["accuracy"] <= accuracy[1]
    assert (metrics["n_test"], metrics["n_train_problems"], metrics["diversity"]) == (60, 0, None)
    again = make_run(tmp_path, *options, "logger=none")
    assert again.run_id == run.run_id


def test_the_teachers_vote_beats_its_single_answers(make_run, tmp_path):
    options = ["method=zero_shot_cot", "student=teacher", "dataset.n_problems=200", "teacher.error_rate=0.4"]
    metrics = execute(make_run(tmp_path, *options, "student.self_consistency=9"), "")
    assert metrics["accuracy"] > metrics["accuracy_single_sample"] + 0.15


def test_training_the_teacher_is_an_error(make_run, tmp_path):
    with pytest.raises(ConfigFaults, match="student=teacher cannot be trained"):
        make_run(tmp_path, "student=teacher")
    with pytest.raises(ConfigFaults, match="holds rationales of Zero-shot-CoT"):
        make_run(tmp_path, "student=teacher", "method=zero_shot", "dataset=multiarith", "teacher=replay", f"teacher.path={tmp_path}")


@pytest.mark.parametrize("save", [save_gpt2, save_t5])
@pytest.mark.parametrize("method", ["zero_shot_cot", "few_shot_cot"])
def test_a_students_answers_do_not_depend_on_the_batch(method, save, make_run, tmp_path):
    save(tmp_path / "model")
    options = [f"method={method}", "student=gpt2" if save is save_gpt2 else "student=t5_small", f"student.path={tmp_path / 'model'}",
               "dataset.n_problems=30", "prompt.exemplars=train", "prompt.rationale_tokens=12", "prompt.answer_tokens=6",
               "student.max_prompt_tokens=96", "student.max_completion_tokens=16", "student.max_new_tokens=16"]  # fmt: skip
    run, other = (make_run(tmp_path, *options, f"trainer.eval_batch_tokens={n}") for n in (1, 30_000))
    assert run.run_id == other.run_id
    student = build_student(run)
    predictions, facts = prompt_student(run, student, run.split.test, World())
    assert prompt_student(other, student, run.split.test, World()) == (predictions, facts)
    assert [prediction.sample_index for (prediction,) in predictions] == run.split.test
    backwards, _ = prompt_student(other, student, run.split.test[::-1], World())
    assert backwards == predictions[::-1]
    if method == "zero_shot_cot":
        assert all("\nTherefore, the answer is" in prediction.completion for (prediction,) in predictions)


def test_samples_of_a_student_differ_and_are_reproducible(make_run, tmp_path):
    run = make_run(
        tmp_path, "method=zero_shot_cot", *SMALL, "student.self_consistency=3", "prompt.rationale_tokens=8", "prompt.answer_tokens=4"
    )
    student = build_student(run)
    drawn, _ = prompt_student(run, student, run.split.test, World(), SamplingParameters(3, Sampling(0.7)))
    assert all(len({prediction.completion for prediction in samples}) > 1 for samples in drawn)
    assert prompt_student(run, student, run.split.test, World(), SamplingParameters(3, Sampling(0.7)))[0] == drawn


@pytest.fixture
def few_shot() -> TeacherPrompt:
    exemplars = tuple(Exemplar(f"q{n}", f"Q: q{n}\nA: " + "word " * 20 + f"The answer is {n}.") for n in range(4))
    return TeacherPrompt(
        "few_shot_cot", "{exemplars}\nQ: {question}\nA:", {"number": "The answer is"}, two_steps=False, exemplars=exemplars
    )


def test_whole_exemplars_are_dropped_from_the_beginning_never_the_question(few_shot, tmp_path):
    save_gpt2(tmp_path)
    student = load_student(str(tmp_path))
    problems = [Problem(0, "How many are left?", "1"), Problem(1, "Ada has 3 coins. " * 8 + "How many?", "1")]
    whole = [len(encode_prompts(student, [few_shot.first_request(problem.question, RULE, False)], 10_000)[0][0]) for problem in problems]
    fitted, facts = fit_exemplars(student, few_shot, RULE, problems, max(whole))
    assert [len(prompt.exemplars) for prompt in fitted] == [4, 4]
    assert facts == {"shortened_prompts": 0, "dropped_exemplars": 0}
    fitted, facts = fit_exemplars(student, few_shot, RULE, problems, whole[0])
    assert fitted[0] == few_shot
    assert 0 < len(fitted[1].exemplars) < 4
    assert fitted[1].exemplars == few_shot.exemplars[-len(fitted[1].exemplars) :]
    assert facts == {"shortened_prompts": 1, "dropped_exemplars": 4 - len(fitted[1].exemplars)}
    lengths = [
        len(encode_prompts(student, [prompt.first_request(problem.question, RULE, False)], 10_000)[0][0])
        for prompt, problem in zip(fitted, problems, strict=True)
    ]
    assert max(lengths) <= whole[0]
    fitted, _ = fit_exemplars(student, few_shot, RULE, problems, 3)
    assert [prompt.exemplars for prompt in fitted] == [(), ()]
    assert fitted[1].first_request(problems[1].question, RULE, False).endswith(f"Q: {problems[1].question}\nA:")


def test_a_shortened_prompt_is_flagged_in_the_metrics_and_the_table(make_run, run_fcot, tmp_path):
    result = run_fcot("method=few_shot_cot", *SMALL, "prompt.exemplars=train", "prompt.rationale_tokens=8")
    assert result.returncode == 0, result.stderr
    assert "SHORTENED: 12 of 12 prompts were too long and lost exemplars" in result.stdout
    (path,) = (tmp_path / "outputs" / "runs").glob("*/metrics.json")
    metrics = read_json(path)
    assert (metrics["shortened_prompts"], metrics["n_test"]) == (12, 12)
    assert metrics["dropped_exemplars"] >= 12


@pytest.mark.parametrize(("task", "n_test", "left_out"), [
    ("date_understanding", 109, 2), ("strategy_qa", 684, 3), ("coin_flip", 150, 0), ("last_letter_concatenation", 150, 0),
    ("multiarith", 180, 0),
])  # fmt: skip
def test_exemplars_in_the_test_split_are_left_out_as_the_published_fractions_imply(task, n_test, left_out, make_run, shared_data, tmp_path):
    run = make_run(
        tmp_path, f"dataset={task}", f"dataset.path={shared_data}/dataset/{task}.json", "method=few_shot_cot", "student=t5_small",
        f"prompt.exemplars={shared_data}/few_shot_cot_prompts.json",
    )  # fmt: skip
    assert (len(run.split.test), run.exemplars_left_out) == (n_test, left_out)


def test_an_exemplar_given_as_text_is_left_out_by_its_question(make_run, tmp_path):
    plain = make_run(tmp_path, "method=zero_shot_cot", *SMALL)
    problem = plain.problems[plain.split.test[0]]
    file = tmp_path / "exemplars.jsonl"
    file.write_text(json.dumps({"question": problem.question, "rationale": "Because.", "answer": problem.answer}) + "\n")
    run = make_run(tmp_path, "method=few_shot_cot", f"prompt.exemplars={file}", *SMALL)
    assert run.split.test == plain.split.test[1:]
    assert run.exemplars_left_out == 1


@pytest.mark.parametrize("task", ["multiarith", "svamp", "coin_flip"])
def test_the_real_teacher_reaches_its_published_accuracy(task, make_run, shared_data, tmp_path):
    folder = shared_data / "completion_data" / "B_text-davinci-002__C_zs_cot"
    run = make_run(
        tmp_path, f"dataset={task}", f"dataset.path={shared_data}/dataset/{task}.json", "method=zero_shot_cot", "student=teacher",
        "teacher=replay", f"teacher.path={folder}/D_{task}.json",
    )  # fmt: skip
    metrics = execute(run, "")
    assert metrics["accuracy"] == pytest.approx({"multiarith": 77.78, "svamp": 63.67, "coin_flip": 92.67}[task] / 100, abs=0.02)
    errors = list(read_jsonl(run.directory.path / "errors.jsonl"))
    assert len(errors) == round((1 - metrics["accuracy"]) * metrics["n_test"])
    assert all(row["marks"] for row in errors)
