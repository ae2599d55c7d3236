"""The toy tasks and their oracle: right in every wording, wrong with a slip, and no hint in the length of a question."""

from __future__ import annotations

import asyncio
import random
import re
from collections import defaultdict

import pytest

from fcot.base.errors import FcotError
from fcot.llm.requests import Request
from fcot.tasks.table import TASKS
from fcot.tasks.toy import NAMES, TOY_TASKS, make_problems
from fcot.teacher.oracle import Oracle

toy_tasks = pytest.mark.parametrize("name", TOY_TASKS)


@toy_tasks
def test_problems_are_distinct_and_a_pure_function_of_the_seed(name):
    task = TOY_TASKS[name]
    problems = make_problems(task, 300, seed=7)
    assert problems == make_problems(task, 300, seed=7)
    assert problems[:100] == make_problems(task, 100, seed=7)
    assert problems != make_problems(task, 300, seed=8)
    assert [problem.sample_index for problem in problems] == list(range(300))
    assert len({problem.question for problem in problems}) == 300


@toy_tasks
def test_gold_answers_are_of_the_tasks_type_in_canonical_form(name):
    problems = make_problems(TOY_TASKS[name], 300, seed=0)
    assert all(TASKS[name].rule.gold(problem.answer) == problem.answer for problem in problems)


def test_answers_are_in_range():
    problems = {name: make_problems(task, 500, seed=0) for name, task in TOY_TASKS.items()}
    assert {int(problem.answer) for problem in problems["toy_arithmetic"]} == set(range(21))
    assert {int(problem.answer) for problem in problems["toy_comparison"]} == set(range(21))
    assert {problem.answer for problem in problems["toy_coin_flip"]} == {"yes", "no"}
    assert all(len(problem.answer) == 4 and problem.answer.islower() for problem in problems["toy_last_letter"])


@toy_tasks
def test_every_problem_has_a_template_and_every_template_several_problems(name):
    problems = make_problems(TOY_TASKS[name], 1600, seed=0)
    templates = [problem.template_id for problem in problems]
    assert None not in templates
    assert len(set(templates)) >= 2
    assert all(templates.count(template) >= 2 for template in set(templates))


@toy_tasks
def test_at_least_64_wordings_are_distinct_and_right(name):
    task = TOY_TASKS[name]
    assert task.n_wordings >= 64
    for problem in make_problems(task, 30, seed=1):
        rationales = [task.rationale(problem.question, wording, None) for wording in range(task.n_wordings)]
        assert len({" ".join(rationale.split()) for rationale in rationales}) == task.n_wordings
        assert {task.conclusion(rationale) for rationale in rationales} == {problem.answer}


@toy_tasks
def test_a_slip_always_ends_in_a_wrong_answer(name):
    task = TOY_TASKS[name]
    for problem in make_problems(task, 30, seed=2):
        for wording in range(task.n_wordings):
            conclusion = task.conclusion(task.rationale(problem.question, wording, random.Random(wording)))
            assert conclusion != problem.answer
            assert TASKS[name].rule.first(conclusion) == conclusion  # wrong, but an answer


def test_arithmetic_rationales_name_everyone_and_sum_step_by_step():
    task = TOY_TASKS["toy_arithmetic"]
    question = "Ada has 4 coins. Ben gives 9. Cleo takes 3. How many coins are left?"
    assert task.rationale(question, 0, None) == "Ada has 4. Ben gives 9, so 4 + 9 = 13. Cleo takes 3, so 13 - 3 = 10. So 10 are left."


def test_a_comparison_that_starts_with_the_known_person_turns_the_operation():
    task = TOY_TASKS["toy_comparison"]
    question = "Ada has 4 coins. Ben has 3 fewer than Ada. Ben has 5 fewer than Cleo. How many coins has Cleo?"
    assert task.rationale(question, 0, None) == (
        "Ada has 4. Ben has 3 fewer than Ada, so Ben has 4 - 3 = 1. Ben has 5 fewer than Cleo, so Cleo has 1 + 5 = 6. So Cleo has 6."
    )
    assert "Read it from Cleo: Cleo has 5 more than Ben. Ben has 5 fewer than Cleo" in task.rationale(question, 0, None, 1)


def test_a_fifth_of_the_comparisons_is_turned_and_the_word_alone_misleads_there():
    turned, sentences, misread = 0, 0, 0
    for problem in make_problems(TOY_TASKS["toy_comparison"], 500, seed=0):
        known, total = problem.question.split()[0], int(problem.question.split()[2])
        for one, amount, word, two in re.findall(r"(\w+) has (\d+) (more|fewer) than (\w+)", problem.question):
            turned, sentences = turned + (one == known), sentences + 1
            known, total = two if one == known else one, total + int(amount) * (1 if word == "more" else -1)
        misread += str(total) != problem.answer
    assert 0.17 < turned / sentences < 0.23
    assert 0.5 < misread / 500 < 0.65  # a student that reads the word alone


@pytest.mark.parametrize("name", ["toy_arithmetic", "toy_comparison", "toy_coin_flip", "toy_last_letter"])
def test_the_length_of_a_question_does_not_reveal_its_answer(name):
    lengths = defaultdict(set)
    for problem in make_problems(TOY_TASKS[name], 500, seed=3):
        lengths[problem.template_id].add(len(problem.question.split()))
    assert all(len(of_template) == 1 for of_template in lengths.values())


def test_yes_and_no_are_balanced_in_every_coin_template():
    answers = defaultdict(list)
    for problem in make_problems(TOY_TASKS["toy_coin_flip"], 1600, seed=4):
        answers[problem.template_id].append(problem.answer)
    assert len(answers) == 8
    assert all(0.35 < of_template.count("yes") / len(of_template) < 0.65 for of_template in answers.values())


def test_names_are_distinct_words():
    assert len(set(NAMES)) == len(NAMES)
    assert all(name.isalpha() for name in NAMES)


# --- the oracle as a teacher --------------------------------------------------------------------------------------


def rationales(oracle: Oracle, problem, n: int, first_slot: int = 0) -> list[str]:
    reply = asyncio.run(oracle.generate(Request(problem.question, 128, problem=problem), n, first_slot))
    assert {choice.finish_reason for choice in reply.choices} == {"stop"}
    return [choice.text for choice in reply.choices]


def conclusion(oracle: Oracle, rationale: str) -> str:
    (choice,) = asyncio.run(oracle.generate(Request("", 128, root="r", rationale=rationale), 1, 0)).choices
    return choice.text


@toy_tasks
def test_64_completions_of_a_problem_have_64_wordings_and_step_2_concludes_them(name):
    oracle = Oracle(name, error_rate=0.0, temperature=0.7)
    for problem in make_problems(TOY_TASKS[name], 10, seed=5):
        drawn = rationales(oracle, problem, 64)
        assert len(set(drawn)) == 64
        assert {TASKS[name].rule.first(conclusion(oracle, rationale)) for rationale in drawn} == {problem.answer}


@toy_tasks
def test_completions_do_not_depend_on_how_they_are_requested(name):
    oracle = Oracle(name, error_rate=0.3, temperature=0.7)
    problem = make_problems(TOY_TASKS[name], 1, seed=6)[0]
    at_once = rationales(oracle, problem, 64)
    assert at_once == [text for slot in range(64) for text in rationales(Oracle(name, 0.3, 0.7), problem, 1, slot)]


@pytest.mark.parametrize("error_rate", [0.0, 0.25, 1.0])
@toy_tasks
def test_the_error_rate_is_the_share_of_wrong_answers(name, error_rate):
    oracle = Oracle(name, error_rate, temperature=0.7)
    problems = make_problems(TOY_TASKS[name], 40, seed=8)
    wrong = [
        TASKS[name].rule.first(conclusion(oracle, rationale)) != problem.answer
        for problem in problems
        for rationale in rationales(oracle, problem, 20)
    ]
    assert sum(wrong) / len(wrong) == pytest.approx(error_rate, abs=0.05 if 0 < error_rate < 1 else 0)


def test_the_error_rate_and_the_version_are_in_the_oracles_keys():
    assert Oracle("toy_arithmetic", 0.1, 0.7).identity != Oracle("toy_arithmetic", 0.2, 0.7).identity
    assert Oracle("toy_arithmetic", 0.1, 0.7).identity["model"].startswith("oracle-v")


def test_the_oracle_knows_the_toy_tasks_only():
    with pytest.raises(FcotError, match=r"toy tasks only \(toy_arithmetic, toy_comparison, toy_coin_flip, toy_last_letter\), not svamp"):
        Oracle("svamp", 0.1, 0.7)
