"""maj@k and pass@k: the estimators against brute force, their intervals, and where runs and reports show them."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from fcot.curation.equations import n_calculations
from fcot.evaluation.at_k import at_k, pass_at_k, summarize
from fcot.evaluation.statistics import estimate, wilson_interval
from fcot.reporting.at_k import at_k_table
from fcot.reporting.difficulty import difficulty_tables
from fcot.reporting.finished import load
from fcot.reporting.settings import group
from fcot.runs.pipeline import execute


@pytest.mark.parametrize(("n", "n_right"), [(4, 0), (4, 1), (5, 3), (6, 6), (7, 2)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n, n_right):
    answers = [True] * n_right + [False] * (n - n_right)
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(answers, k))
        assert pass_at_k(n, n_right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_one_answer_is_its_accuracy_and_all_answers_are_the_vote():
    answers = [("5", False), ("7", True), (None, False), ("7", True), ("5", False), ("9", False)]
    result = at_k(answers)
    assert sorted(result) == [1, 2, 4, 6]
    assert result[1] == pytest.approx((2 / 6, 2 / 6))
    assert result[6] == (0.0, 1.0)  # 5 and 7 have two votes each, and 5 was drawn first
    assert result[2][0] == pytest.approx(1 / 3)  # 5 before 7; 7 alone votes; 5 before 9


def test_maj_at_k_of_many_samples_agrees_with_the_true_probability():
    generator = random.Random(0)
    answers = [("7", True) if generator.random() < 0.6 else ("5", False) for _ in range(4096)]
    p = sum(right for _, right in answers) / len(answers)
    true = p**4 + 4 * p**3 * (1 - p) + 6 * p**2 * (1 - p) ** 2 / 2  # a tie is won by the answer that was drawn first
    assert at_k(answers)[4][0] == pytest.approx(true, abs=0.02)


def test_a_summary_has_the_sizes_that_all_problems_share_and_none_for_single_answers():
    two, four = at_k([("7", True), ("5", False)]), at_k([("7", True)] * 4)
    assert summarize([two, four]).keys() == {"1", "2"}
    assert summarize([two, four])["2"]["pass"] == 1
    assert summarize([at_k([("7", True)])]) is None
    assert summarize([]) is None


def test_the_interval_of_shares_contains_the_truth_and_is_narrower_than_that_of_single_answers():
    """Problems of different difficulty; 16 answers each. The interval is over problems like these."""
    generator, covered, narrower = np.random.default_rng(0), 0, 0
    for _ in range(300):
        difficulty = generator.beta(2, 2, size=80)
        right = generator.random((80, 16)) < difficulty[:, None]
        shares = estimate(right.mean(axis=1)[None])
        low, high = wilson_interval(int(right[:, 0].sum()), 80)
        covered += shares.low <= 0.5 <= shares.high
        narrower += shares.high - shares.low < high - low
    assert covered >= 0.92 * 300
    assert narrower == 300


# --- in a report -------------------------------------------------------------------------------------------------------


def metrics(number: int, **changes):
    base = {
        "run_id": f"toy-{number:010d}", "method": "fine_tune_cot", "task": "gsm8k", "student": "tiny_gpt2", "diversity": 4, "seed": 0,
        "n_test": 6, "n_train_problems": 40, "teacher": "oracle-v2", "questions_sha256": "abc", "base_model": None, "data_file": None,
    }  # fmt: skip
    return base | changes


def setting_of(*runs, right=(True, True, False, False, True, True)):
    answers = dict(enumerate(right))
    return group((run, answers, dict.fromkeys(answers, 9)) for run in runs)


def test_a_setting_with_several_seeds_is_one_row_per_k():
    of_problem = {index: at_k([("7", index < 4), ("5", False)]) for index in range(6)}
    runs = [metrics(number, seed=number, setting="s", test_at_k=of_problem) for number in range(2)]
    table = at_k_table(setting_of(*runs))
    assert [row[1] for row in table.rows] == ["1", "2"]
    assert (table.rows[0][2], table.rows[0][4]) == ("33.33", "33.33")
    assert (table.rows[1][2], table.rows[1][4]) == ("66.67", "66.67")
    missing = [metrics(0, setting="s", test_at_k=of_problem), metrics(1, seed=1, setting="s", test_at_k={})]
    assert at_k_table(setting_of(*missing)) is None, "one of its runs has a single answer per problem"


def test_a_teacher_is_shown_once_however_many_students_learn_from_it():
    of_teacher = summarize([at_k([("7", index < 3), ("5", False)]) for index in range(6)])
    settings = setting_of(metrics(1, teacher_at_k=of_teacher), metrics(2, student="tiny_t5", teacher_at_k=of_teacher))
    table = at_k_table(settings)
    assert [row[1:3] for row in table.rows] == [("1", "25.00"), ("2", "50.00")]
    assert {row[0] for row in table.rows} == {"teacher oracle-v2 on 40 train problems of gsm8k"}


def test_accuracy_is_shown_by_the_calculations_of_the_gold_rationale():
    known = {0: 1, 1: 1, 2: 4, 3: 5, 4: 2}
    (table,) = difficulty_tables(setting_of(metrics(1, test_calculations=known), metrics(2, student="tiny_t5", test_calculations=known)))
    assert table.columns == ("setting", "1 (n=2)", "2 (n=1)", "4 (n=1)", "5 (n=1)")
    assert [cell.split(" ")[0] for cell in table.rows[0][1:]] == ["100.0", "100.0", "0.0", "0.0"]
    assert table.notes[1] == "Not in the table: 1 test problem with no calculation in the gold rationale."


def test_rare_numbers_of_calculations_are_joined():
    known = {index: 2 if index < 36 else 2 + index // 36 + (index > 37) for index in range(40)}
    run = metrics(1, n_test=40, test_calculations=known)
    (table,) = difficulty_tables(setting_of(run, right=[True] * 40))
    assert table.columns[1:] == ("2 (n=36)", "3-4 (n=4)")


def test_without_gold_rationales_the_teachers_right_answers_say_what_is_difficult():
    of_problem = {index: at_k([("7", draw < index) for draw in range(4)]) for index in range(6)}
    teacher = metrics(1, student="teacher", method="zero_shot_cot", base_model="big", test_at_k=of_problem)
    (table,) = difficulty_tables(setting_of(teacher, metrics(2)))
    assert "right answers of the teacher big" in table.title
    assert table.columns[1:] == ("never (n=1)", "in less than half (n=1)", "in half or more (n=2)", "always (n=2)")
    assert len(table.rows) == 1
    assert not list(difficulty_tables(setting_of(metrics(2)))), "nothing says what is difficult"


def test_problems_that_the_teacher_did_not_answer_are_counted_as_such():
    answers = {index: index % 2 == 0 for index in range(6)}
    runs = [(metrics(1, student="teacher", method="zero_shot_cot"), answers), (metrics(2), answers | {6: True})]
    (table,) = difficulty_tables(group((run, right, dict.fromkeys(right, 9)) for run, right in runs))
    assert table.notes[1] == "Not in the table: 1 test problem with no answer of the teacher."


@pytest.mark.parametrize(("rationale", "n"), [
    ("She sold 48/2 = <<48/2=24>>24 clips. 48+24 = <<48+24=72>>72 in all.", 2), ("3 + 4 = 7. 7 - 2 = 5.", 2), ("A coin is flipped.", 0),
])  # fmt: skip
def test_calculations_of_a_gold_rationale(rationale, n):
    assert n_calculations(rationale) == n


# --- in a run ----------------------------------------------------------------------------------------------------------


def test_a_run_and_its_report_have_maj_and_pass_at_k_of_student_and_teacher(make_run, tmp_path):
    run = make_run(
        tmp_path, "dataset.n_problems=60", "diversity=3", "teacher.error_rate=0.5", "trainer.max_steps=8", "student.self_consistency=4",
    )  # fmt: skip
    result = execute(run, "")
    assert result["at_k"].keys() == {"1", "2", "4"}
    assert result["at_k"]["1"]["pass"] == pytest.approx(result["accuracy_single_sample"])
    assert result["at_k"]["4"]["maj"] == pytest.approx(result["accuracy"])
    assert result["teacher_at_k"]["1"]["maj"] == pytest.approx(result["teacher_accuracy"])
    assert result["teacher_at_k"]["3"]["maj"] == pytest.approx(result["teacher_accuracy_voted"])
    assert result["teacher_at_k"]["3"]["pass"] > result["teacher_at_k"]["1"]["pass"]
    (setting,) = group([load(run.directory.metrics)])
    assert setting.at_k(4)[1].mean == pytest.approx(result["at_k"]["4"]["pass"])
    assert len(at_k_table([setting]).rows) == 6, "three k of the student and three of the teacher"
    assert setting["test_calculations"].keys() == set(run.split.test)
    assert not list(difficulty_tables([setting])), "all problems of the task have equally many calculations"
