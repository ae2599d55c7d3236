"""Leaks between train and test are counted and reported, and examples in prompts are not test problems."""

from __future__ import annotations

import json

import pytest
from test_reporting import run as metrics_of
from test_reporting import settings
from test_run import SMALL

from fcot.base.files import read_json
from fcot.base.records import CuratedCompletion, Problem, to_row
from fcot.methods.tailored.stages import _demonstrations
from fcot.reporting.tables import notes
from fcot.runs.pipeline import execute
from fcot.tasks.leaks import near_duplicates
from fcot.tasks.splits import Split, shared_questions

TEACHER = ["teacher=openai", "teacher.base_url=http://127.0.0.1:9/v1", "teacher.model=m"]  # no request is sent to it
NUMBERS, TEMPLATE = "test_questions_in_train_but_for_numbers", "test_questions_of_a_train_template"


def problems(*questions):
    return {index: Problem(index, question, "1") for index, question in enumerate(questions)}


def test_near_duplicates_are_counted():
    known = problems(
        "Ada had 3 apples and ate 1,000.50. How many are left?",
        "Ada had 5 apples  and ate 2. How many are left?",  # other numbers, and other white space
        "Ben had 5 plums and ate 2. How many are left?",  # another name, and another object
        "What did Ben eat with 5 friends?",
        "What day is 05/01/2021? Answer Choices: (A) Monday (B) Friday",
        "What day is 06/01/2021? Answer Choices: (A) Sunday (B) Friday",
    )
    split = Split([0, 4], [], [1, 2, 3, 5])
    assert near_duplicates(known, split) == {NUMBERS: 2, TEMPLATE: 3}
    assert near_duplicates(known, Split([], [0, 4], [1, 2, 3, 5])) == {NUMBERS: 2, TEMPLATE: 3}, "validation counts as train"
    assert near_duplicates(known, Split([], [], [1])) == {NUMBERS: 0, TEMPLATE: 0}
    assert shared_questions(known, split) == 0


@pytest.mark.parametrize(("task", "overrides", "n", "same", "numbers", "template"), [
    ("multiarith", [], 180, 5, 77, 179), ("multiarith", ["split-mode=template"], 182, 0, 0, 0),
    ("date_understanding", [], 111, 0, 5, 97), ("date_understanding", ["split-mode=template"], 108, 0, 9, 27),
    ("svamp", [], 300, 0, 0, 95), ("single_eq", [], 152, 0, 5, 46), ("strategy_qa", [], 687, 1, 1, 189),
])  # fmt: skip
def test_near_duplicates_of_the_papers_tasks_are_counted(task, overrides, n, same, numbers, template, make_run, shared_data, tmp_path):
    run = make_run(tmp_path, f"dataset={task}", f"dataset.path={shared_data}/dataset/{task}.json", "method=fine_tune", *overrides)
    assert len(run.split.test) == n
    assert shared_questions(run.problems, run.split) == same
    assert near_duplicates(run.problems, run.split) == {NUMBERS: numbers, TEMPLATE: template}


def test_a_report_states_the_number_of_near_duplicates():
    def notes_of(**changes):
        return " ".join(notes(settings([metrics_of(1, task="multiarith", n_test=180, accuracy=0.5, **changes)])))

    counts = {NUMBERS: 77, TEMPLATE: 179}
    assert (
        "multiarith: 77 of 180 test problems (43 %) are in train with the same or other numbers, 179 of 180 (99 %) have the wording of "
        "a train problem except for names, objects and numbers; split-mode=template keeps templates apart."
    ) in notes_of(split_mode="sample", **counts)
    for changes in ({"split_mode": "template"}, {"split_mode": "all"}, {"split_mode": "hash", "data_file": "mine.csv"}):
        assert "keeps templates apart" not in notes_of(**changes, **counts)
    assert "dataset.group_column keeps problems of one kind on one side, if a column names 20 kinds or more" in notes_of(
        split_mode="hash", data_file="mine.csv", **counts
    )
    assert "group_column" not in notes_of(split_mode="hash", data_file="mine.csv", test_templates={0: "North"}, **counts)
    assert "are in train" not in notes_of(split_mode="sample", **{NUMBERS: 0, TEMPLATE: 0})
    assert "are in train" not in notes_of(), "metrics of older versions"
    assert "wording" not in notes_of(split_mode="sample", **{NUMBERS: 3, TEMPLATE: 3})


# --- examples in prompts ---


@pytest.mark.parametrize(("task", "n_test", "left_out"), [
    ("date_understanding", 109, [53, 143]), ("strategy_qa", 684, [0, 3, 7]), ("coin_flip", 150, []),
])  # fmt: skip
@pytest.mark.parametrize("method", ["fine_tune_cot", "tailored", "few_shot_cot"])
def test_no_method_tests_the_authors_exemplars(method, task, n_test, left_out, make_run, shared_data, tmp_path):
    options = [f"dataset={task}", f"dataset.path={shared_data}/dataset/{task}.json", "student=t5_small", *TEACHER]
    exemplar_options = ["prompt=few_shot_cot", f"prompt.exemplars={shared_data}/few_shot_cot_prompts.json"]
    run = make_run(tmp_path, *options, f"method={method}", *exemplar_options)
    plain = make_run(tmp_path, *options, "method=fine_tune")
    assert (len(run.split.test), run.exemplars_left_out) == (n_test, len(left_out))
    assert set(plain.split.test) - set(run.split.test) == set(left_out)
    assert sorted(run.split.train + run.split.validation) == sorted(plain.split.train + plain.split.validation)
    without_prompt = make_run(tmp_path, *options, "method=fine_tune", *exemplar_options)
    assert without_prompt.split == plain.split, "fine_tune does not read the prompt"


@pytest.fixture
def run_and_test_problem(make_run, tmp_path):
    """A run of the toy task and one of its test problems."""
    plain = make_run(tmp_path, *SMALL)
    return plain, plain.problems[plain.split.test[1]]


def test_templates_are_searched_for_test_problems(run_and_test_problem, make_run, tmp_path):
    plain, problem = run_and_test_problem
    template = tmp_path / "template.txt"
    template.write_text(f"Q: {problem.question.replace(' ', chr(10), 1)}\nA: Because.\n\nQ: {{question}}\nA:")
    run = make_run(tmp_path, *SMALL, "prompt=custom", f"prompt.path={template}")
    assert (set(plain.split.test) - set(run.split.test), run.exemplars_left_out) == ({problem.sample_index}, 1)
    feedback = tmp_path / "feedback.txt"
    feedback.write_text(f"Such as: {problem.question}\n{{question}}\n{{mistakes}}\n{{hint}}{{trigger}}")
    run = make_run(tmp_path, *SMALL, "method=tailored", f"method.feedback.path={feedback}")
    assert (set(plain.split.test) - set(run.split.test), run.exemplars_left_out) == ({problem.sample_index}, 1)


@pytest.mark.parametrize("source", ["train", "run"])
def test_exemplars_of_train_are_not_tested_under_another_index(source, make_run, tmp_path):
    """The same question is in both train and test."""
    rows = [{"question": f"How many are {n} and {n}?", "answer": str(2 * n), "rationale": "Add them."} for n in range(20)]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    options = [
        "dataset=custom", f"dataset.path={data}", "dataset.answer_type=number", "trainer.selection=last", "prompt=few_shot_cot",
        "split-mode=sample", *TEACHER,
    ]  # fmt: skip
    first = make_run(tmp_path, *options, "prompt.exemplars=train", "prompt.n_exemplars=14")
    train, test = first.split.train[0], first.split.test[0]
    rows[test] = rows[train]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    exemplars = "train"
    if source == "run":
        folder = tmp_path / "earlier"
        folder.mkdir()
        kept = (CuratedCompletion(index, 0, "1", True, True, None, "Add them.", "1") for index in (*first.split.train, test))
        (folder / "curated.jsonl").write_text("\n".join(json.dumps(to_row(row)) for row in kept))
        exemplars = str(folder)
    run = make_run(tmp_path, *options, f"prompt.exemplars={exemplars}", "prompt.n_exemplars=14")
    assert run.split.train == first.split.train
    assert set(first.split.test) - set(run.split.test) == {test}
    assert {exemplar.sample_index for exemplar in run.prompt.exemplars} == set(run.split.train)


def test_demonstrations_are_never_test_problems(make_run, tmp_path):
    run = make_run(tmp_path, *SMALL, "method=tailored", "method.demonstrations=2")
    run.problems[run.split.test[0]] = Problem(run.split.test[0], run.problems[run.split.train[0]].question, "1")
    path = run.directory.round(1).curated
    path.parent.mkdir(parents=True)
    rows = [CuratedCompletion(index, 0, "1", True, True, None, "Because.", "1") for index in run.split.train[:4]]
    path.write_text("\n".join(json.dumps(to_row(row)) for row in rows))
    shown = [demonstration.question for demonstration in _demonstrations(run, 2)]
    assert shown == [run.problems[index].question for index in run.split.train[1:3]]


def test_metrics_contain_the_counts(make_run, tmp_path):
    run = make_run(tmp_path, *SMALL, "method=fine_tune")
    execute(run, "")
    metrics = read_json(run.directory.metrics)
    assert {name: metrics[name] for name in (NUMBERS, TEMPLATE)} == near_duplicates(run.problems, run.split)
