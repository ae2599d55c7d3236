"""The table of tasks and the splits: published sizes, verified order, disjoint parts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fcot.base.errors import FcotError
from fcot.base.records import Problem
from fcot.config.schema import Config
from fcot.methods.config import MethodConfig
from fcot.prompts.answers import AnswerRule
from fcot.runs.splitting import make_split
from fcot.student.config import TinyStudentConfig, TrainerConfig
from fcot.tasks.config import CustomDatasetConfig, PublishedDatasetConfig, SplitConfig
from fcot.tasks.loaders import load_problems
from fcot.tasks.splits import (  # fmt: skip
    Split,
    check_order,
    hold_out_validation,
    published_split,
    questions_hash,
    read_split_file,
    read_templates_file,
    sample_split,
    shared_questions,
    subsample,
    template_split,
)
from fcot.tasks.table import TASKS, custom_task, with_numbers
from fcot.tasks.toy import TOY_TASKS

SIZES = {
    "single_eq": (508, 356, 152),
    "addsub": (395, 276, 119),
    "multiarith": (600, 420, 180),
    "svamp": (1000, 700, 300),
    "date_understanding": (369, 258, 111),
    "tracking_shuffled_objects": (750, 525, 225),
    "last_letter_concatenation": (500, 350, 150),
    "coin_flip": (500, 350, 150),
    "strategy_qa": (2290, 1603, 687),
    "gsm8k": (8792, 7473, 1319),
    "aqua": (97721, 10000, 254),
    "commonsense_qa": (10962, 9741, 1221),
}
PUBLISHED = ("gsm8k", "aqua", "commonsense_qa")


def write_json(path, value):
    path.write_text(json.dumps(value))
    return path


# --- the table ----------------------------------------------------------------------------------------------------


def test_the_table_has_the_12_tasks_and_the_toy_tasks():
    assert set(TASKS) == set(SIZES) | set(TOY_TASKS)
    assert {name for name, task in TASKS.items() if task.split == "published"} == set(PUBLISHED)


@pytest.mark.parametrize("name", SIZES)
def test_split_sizes_are_the_papers(name):
    task, (n, n_train, n_test) = TASKS[name], SIZES[name]
    train, test = published_split(task, n) if task.split == "published" else sample_split(n)
    assert (task.n_rows, task.n_train, task.n_test) == (n, n_train, n_test)
    assert (len(train), len(test)) == (n_train, n_test)
    assert train == sorted(set(train))
    assert test == sorted(set(test))
    assert not set(train) & set(test)
    assert set(train + test) <= set(range(n))


@pytest.mark.parametrize("name", SIZES)
def test_real_files_have_the_papers_sizes_and_the_verified_order(name, shared_data):
    task, (n, n_train, n_test) = TASKS[name], SIZES[name]
    problems = load_problems(task, str(shared_data / "dataset" / f"{name}.json"))
    split, order_known = make_split(configuration(PublishedDatasetConfig(name), task.split), task, {p.sample_index: p for p in problems})
    if name == "aqua":  # the file holds the test problems only
        assert (len(problems), split, order_known) == (254, Split([], [], list(range(254))), False)
        return
    assert (len(problems), len(split.train), len(split.test)) == (n, n_train, n_test)
    assert order_known
    swapped = [replace(problem, sample_index=n - 1 - problem.sample_index) for problem in problems][::-1]
    with pytest.raises(FcotError, match="in another order"):
        check_order(task, swapped)


def test_a_custom_task_has_the_accuracy_of_guessing():
    assert custom_task("mine", AnswerRule("choice", "ABCD")).random_guess == 25
    assert custom_task("mine", AnswerRule("yes_no")).random_guess == 50
    assert custom_task("mine", AnswerRule("number")).random_guess == 0


def test_the_number_reading_of_a_task_can_be_replaced():
    task = TASKS["svamp"]
    assert with_numbers(task, "task") is task
    assert (task.rule.first("9/10"), with_numbers(task, "extended").rule.first("9/10")) == ("9", "0.9")


# --- sample and published -----------------------------------------------------------------------------------------


def test_the_sample_split_is_numpys_permutation():
    # RandomState(0).permutation(10) is 2 8 4 9 1 6 7 3 0 5
    assert sample_split(10) == ([1, 2, 4, 6, 7, 8, 9], [0, 3, 5])
    assert sample_split(10, 0.2) == ([2, 8], [0, 1, 3, 4, 5, 6, 7, 9])


@pytest.mark.parametrize("name", ["gsm8k", "commonsense_qa"])
def test_published_splits_are_the_upstream_splits(name):
    n, n_train, _ = SIZES[name]
    assert published_split(TASKS[name], n) == (list(range(n_train)), list(range(n_train, n)))


def test_aqua_train_is_a_subsample_of_upstream_train():
    train, test = published_split(TASKS["aqua"], 97721)
    assert test == list(range(97467, 97721))
    assert max(train) < 97467
    assert train != list(range(10000))


def test_a_published_split_needs_all_rows_or_exactly_the_test_rows():
    assert published_split(TASKS["gsm8k"], 1319) == ([], list(range(1319)))
    with pytest.raises(FcotError, match=r"needs all 8,792 .*or exactly its 1,319 .*has 100\."):
        published_split(TASKS["gsm8k"], 100)


def test_five_test_questions_of_multiarith_are_also_in_train(shared_data):
    problems = {p.sample_index: p for p in load_problems(TASKS["multiarith"], str(shared_data / "dataset" / "multiarith.json"))}
    assert shared_questions(problems, Split(sample_split(600)[0], [], sample_split(600)[1])) == 5


def test_questions_shared_with_train_or_validation_are_counted_regardless_of_white_space():
    problems = {i: Problem(i, question, "1") for i, question in enumerate(["a b", "c", "a  b ", "c", "d"])}
    assert shared_questions(problems, Split([0], [1], [2, 3, 4])) == 2


# --- order --------------------------------------------------------------------------------------------------------


def problems_of(*questions: str) -> list[Problem]:
    return [Problem(index, question, "1") for index, question in enumerate(questions)]


def test_rows_in_another_order_are_an_error_and_other_rows_are_not_verified():
    known = problems_of("a b", "c", "d")
    task = replace(TASKS["svamp"], order=questions_hash(known)[:16], rows=questions_hash(known, ordered=False)[:16])
    assert check_order(task, known)
    assert check_order(task, problems_of("a  b\n", "c", "d"))  # white space does not make another question
    assert not check_order(task, problems_of("a b", "c"))
    with pytest.raises(FcotError, match="in another order"):
        check_order(task, problems_of("c", "a b", "d"))


def test_the_hash_of_a_split_file_is_used_instead_of_the_tasks():
    known = problems_of("a", "b")
    assert check_order(TASKS["svamp"], known, questions_hash(known))
    with pytest.raises(FcotError, match="made for other rows, or the same rows in another order"):
        check_order(custom_task("mine", AnswerRule("number")), problems_of("b", "a"), questions_hash(known))


# --- template -----------------------------------------------------------------------------------------------------


def test_date_understanding_has_41_templates_of_9_and_none_is_split(shared_data):
    task = TASKS["date_understanding"]
    problems = {p.sample_index: p for p in load_problems(task, str(shared_data / "dataset" / "date_understanding.json"))}
    split, _ = make_split(configuration(PublishedDatasetConfig(task.name), "template"), task, problems)
    templates = [{problems[index].template_id for index in part} for part in (split.train, split.test)]
    assert (len(split.train), len(split.test)) == (261, 108)
    assert [len(part) for part in templates] == [29, 12]
    assert not templates[0] & templates[1]
    names = [problem.template_id for problem in problems.values()]
    assert {names.count(name) for name in names} == {9}


def test_template_split_applies_the_sample_split_to_templates():
    templates = [f"t{index // 3}" for index in range(30)]  # ten templates of three
    train, test = template_split(templates)
    assert test == [0, 1, 2, 9, 10, 11, 15, 16, 17]  # templates 0, 3, 5
    assert sorted(train + test) == list(range(30))


def test_problems_without_a_template_are_reported():
    problems = {0: Problem(0, "a", "1", template_id="t"), 1: Problem(1, "b", "1")}
    with pytest.raises(FcotError, match=r"1 of 2 problems of mine have no template.*split_mode\.templates=FILE"):
        make_split(configuration(CustomDatasetConfig("mine"), "template"), custom_task("mine", AnswerRule("number")), problems)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": [0, 1], "b": [1, 2]}, "sample index 1 is in the templates 'a' and 'b'"),
        ({"a": [0], "b": [2]}, "1 problems have no template, the first is sample index 1"),
        ({"a": [0, 1], "b": [2, 7]}, "1 sample indices do not exist in this data, the first is 7"),
        ({"a": 3}, '"a" holds no list'),
        ({"a": [0, [1]], "b": [2]}, r"sample indices are integers, not \[1\]"),
        ([0, 1], "expected"),
    ],
)
def test_a_malformed_template_file_is_reported(tmp_path, content, message):
    path = write_json(tmp_path / "templates.json", content)
    with pytest.raises(FcotError, match=message) as error:
        read_templates_file(path, [0, 1, 2])
    assert str(path) in str(error.value)


def test_a_template_file_defines_the_templates(tmp_path):
    path = write_json(tmp_path / "templates.json", {f"t{i}": [i, 9 - i] for i in range(5)})
    problems = {index: Problem(index, f"q{index}", "1") for index in range(10)}
    config = configuration(CustomDatasetConfig("mine"), "template", templates=str(path))
    split, order_known = make_split(config, custom_task("mine", AnswerRule("number")), problems)
    assert all(9 - index in split.test for index in split.test)
    assert (len(split.train), len(split.test)) == (8, 2)
    assert not order_known


# --- few-shot subsets and validation ------------------------------------------------------------------------------


def test_the_few_shot_subset_is_the_first_of_a_permutation():
    indices = [40, 10, 30, 20, 0, 50, 90, 80, 70, 60]
    assert subsample(indices, 3) == [20, 40, 80]  # positions 2, 8, 4 of the sorted list
    assert set(subsample(indices, 3)) < set(subsample(indices, 8))
    assert subsample(sorted(indices), 10) == sorted(indices)


def test_validation_problems_are_taken_from_train():
    train = list(range(0, 200, 2))
    remaining, validation = hold_out_validation(train, train, 0.1, None)
    assert (len(remaining), len(validation)) == (90, 10)
    assert sorted(remaining + validation) == train


def test_validation_of_a_subset_comes_from_unused_problems():
    train = list(range(100))
    chosen = subsample(train, 8)
    remaining, validation = hold_out_validation(train, chosen, 0.1, None)
    assert remaining == chosen
    assert len(validation) == 10
    assert not set(chosen) & set(validation)


@pytest.mark.parametrize("n_templates", [2, 3, 5, 20])
def test_validation_shares_no_template_with_train(n_templates):
    templates = {index: f"t{index % n_templates}" for index in range(60)}
    remaining, validation = hold_out_validation(range(60), range(60), 0.1, templates)
    assert validation
    assert sorted(remaining + validation) == list(range(60))
    assert not {templates[index] for index in remaining} & {templates[index] for index in validation}


def test_validation_of_a_subset_shares_no_template_with_it():
    templates = {index: f"t{index % 20}" for index in range(60)}
    remaining, validation = hold_out_validation(range(60), [0, 20, 1], 0.9, templates)
    assert remaining == [0, 1, 20]
    assert len(validation) == 54  # all but the six problems of two templates
    assert not {templates[index] for index in remaining} & {templates[index] for index in validation}


def test_validation_never_takes_all_of_train():
    assert hold_out_validation([3], [3], 0.1, None) == ([3], [])
    assert [len(part) for part in hold_out_validation([3, 4], [3, 4], 0.9, None)] == [1, 1]


# --- make_split: the configuration's split ------------------------------------------------------------------------


def configuration(dataset, mode, selection="last", limit=None, **split_mode) -> Config:
    dataset.limit = limit
    return Config(
        dataset=dataset,
        split_mode=SplitConfig(mode, **split_mode),
        trainer=TrainerConfig(selection=selection),
        method=MethodConfig("fine_tune_cot"),
        student=TinyStudentConfig("tiny_gpt2", "decoder"),
    )


@pytest.fixture
def own_data():
    problems = {index: Problem(index, f"question {index}", "1") for index in range(0, 200, 2)}  # sample indices with gaps
    return custom_task("mine", AnswerRule("number")), problems


def test_a_split_consists_of_sample_indices(own_data):
    split, _ = make_split(configuration(CustomDatasetConfig("mine"), "sample"), *own_data)
    assert (len(split.train), split.validation, len(split.test)) == (70, [], 30)
    assert sorted(split.train + split.test) == list(range(0, 200, 2))


@pytest.mark.parametrize(("options", "n_train"), [({}, 63), ({"subset": 8}, 8), ({"limit": 10}, 10), ({"subset": 8, "limit": 5}, 5)])
def test_train_validation_and_test_are_disjoint(own_data, options, n_train):
    split, _ = make_split(configuration(CustomDatasetConfig("mine"), "sample", "validation", **options), *own_data)
    assert (len(split.train), len(split.validation), len(split.test)) == (n_train, 7, 30)
    assert len(set(split.train + split.validation + split.test)) == n_train + 37


def test_limit_takes_the_first_train_problems(own_data):
    whole, _ = make_split(configuration(CustomDatasetConfig("mine"), "sample"), *own_data)
    limited, _ = make_split(configuration(CustomDatasetConfig("mine"), "sample", limit=10), *own_data)
    assert limited.train == whole.train[:10]
    assert limited.test == whole.test


def test_a_subset_larger_than_train_is_an_error(own_data):
    with pytest.raises(FcotError, match=r"split_mode\.subset=71: train has 70 problems"):
        make_split(configuration(CustomDatasetConfig("mine"), "sample", subset=71), *own_data)


# --- split files --------------------------------------------------------------------------------------------------


def test_a_split_file_defines_the_split_and_its_hash_is_checked(own_data, tmp_path):
    task, problems = own_data
    content = {"train": [6, 2, 4], "validation": [8], "test": [0, 198]}
    config = configuration(CustomDatasetConfig("mine"), "file", path=str(write_json(tmp_path / "split.json", content)))
    assert make_split(config, task, problems) == (Split([2, 4, 6, 8], [], [0, 198]), False)
    content["questions_sha256"] = questions_hash(list(problems.values()))
    write_json(tmp_path / "split.json", content)
    assert make_split(config, task, problems) == (Split([2, 4, 6, 8], [], [0, 198]), True)
    content["questions_sha256"] = "0" * 64
    write_json(tmp_path / "split.json", content)
    with pytest.raises(FcotError, match="made for other rows"):
        make_split(config, task, problems)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": [0, 1], "test": [1, 2]}, "1 sample indices are in both train and test, the first is 1"),
        ({"train": [0], "validation": [2], "test": [2]}, "1 sample indices are in both train and test, the first is 2"),
        ({"train": [0, 3], "test": [-1, 99]}, "2 sample indices do not exist in this data, the first is -1"),
        ({"train": [0, 0], "test": [1]}, "1 sample indices are repeated in one list"),
        ({"train": [0, "1"], "test": [2]}, "sample indices are integers, not '1'"),
        ({"train": [0, 1.0], "test": [2]}, "sample indices are integers, not 1.0"),
        ({"train": [0, True], "test": [2]}, "sample indices are integers, not True"),
        ({"train": [0, [1]], "test": [2]}, r"sample indices are integers, not \[1\]"),
        ({"train": [0]}, "a split file is"),
        ({"train": [0], "test": [1], "validation": 3}, "a split file is"),
        ({"train": [0], "test": [1], "valid": [2]}, "'valid' is no part of a split; the parts are train, validation and test"),
        ([0, 1], "expected"),
    ],
)
def test_a_malformed_split_file_is_reported(tmp_path, content, message):
    path = write_json(tmp_path / "split.json", content)
    with pytest.raises(FcotError, match=message) as error:
        read_split_file(path, range(10))
    assert str(path) in str(error.value)


def test_a_missing_or_damaged_split_file_is_reported(tmp_path):
    with pytest.raises(FcotError, match=r"split_mode\.path=.*nowhere\.json: No such file"):
        read_split_file(tmp_path / "nowhere.json", range(10))
    (tmp_path / "torn.json").write_text('{"train": [0,')
    with pytest.raises(FcotError, match=r"torn\.json: not JSON"):
        read_split_file(tmp_path / "torn.json", range(10))
