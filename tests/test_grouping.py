"""Grouping of problems into templates by their masked wording."""

from __future__ import annotations

from collections import Counter

import pytest

from fcot.base.records import Problem
from fcot.tasks.grouping import group_by_template, mask
from fcot.tasks.loaders import load_problems
from fcot.tasks.splits import template_split
from fcot.tasks.table import TASKS
from fcot.tasks.toy import TOY_TASKS, make_problems


def groups(*questions: str) -> list[str]:
    return list(group_by_template({index: Problem(index, question, "1") for index, question in enumerate(questions)}).values())


def test_numbers_names_and_objects_vary_within_a_template():
    assert groups(
        "Ada had 13 blue coins. If she gave 4 to Ben, how many would she have left?",
        "Cleo had 1,205 shells. If she gave 37 to her sister, how many would she have left?",
        "How many boxes does Dan need for 12 apples, if each box holds 3?",
    ) == ["T0", "T0", "T1"]


def test_the_mask_keeps_function_words_and_punctuation():
    assert mask("Ada's 3 big dogs had 2 bones, and the cat?") == ("_", "had", "_", ",", "and", "the", "_", "?")
    assert mask("") == ()


def test_questions_in_other_scripts_get_different_groups():
    assert groups(
        "リンゴが3個あります。2個食べると何個残りますか。",
        "リンゴが12個あります。4個食べると何個残りますか。",
        "列車は時速60kmで走ります。距離は？",
    ) == ["T0", "T0", "T1"]


def test_groups_do_not_depend_on_the_order_of_the_mapping():
    problems = {problem.sample_index: problem for problem in make_problems(TOY_TASKS["toy_arithmetic"], 200, seed=3)}
    reverse = dict(reversed(problems.items()))
    assert group_by_template(problems) == group_by_template(reverse)


@pytest.mark.parametrize("question", ["", "?", "5", "😀 ₹", "word " * 5000])
def test_unusual_questions_get_a_group(question):
    assert groups(question, "Ada had 3 coins. How many are left?")[0] == "T0"


def test_multiarith_has_about_as_many_groups_as_the_grouping_by_hand(shared_data):
    problems = {
        problem.sample_index: problem for problem in load_problems(TASKS["multiarith"], str(shared_data / "dataset" / "multiarith.json"))
    }
    templates = group_by_template(problems)
    sizes = Counter(templates.values())
    assert 115 <= len(sizes) <= 122
    assert min(sizes.values()) >= 2
    train, test = template_split([templates[index] for index in sorted(templates)])
    assert not {templates[index] for index in train} & {templates[index] for index in test}
