"""The formats of students and the prompts of teachers, each with the parser of its answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fcot.base.records import Completion
from fcot.methods.table import METHODS
from fcot.prompts.answers import AnswerRule
from fcot.prompts.teacher import TeacherPrompt
from fcot.tasks.table import TASKS

FORMATS = {(name, architecture): form for name, method in METHODS.items() for architecture, form in method.formats.items()}
CONF = Path(__file__).parent.parent / "conf" / "prompt"
QUESTIONS = ["How many?", 'What does {x} in "{}" say?\n\nLine two of {question} {answer}.']
ANSWERS = {"number": "-1.5", "choice": "B", "yes_no": "no", "text": "yajo"}
RULES = [AnswerRule("number"), AnswerRule("number", numbers="paper"), AnswerRule("choice", "ABC"), AnswerRule("yes_no"), AnswerRule("text")]


def teacher_prompt(name: str) -> TeacherPrompt:
    conf = OmegaConf.load(CONF / f"{name}.yaml")
    return TeacherPrompt(name, conf.template, conf.answer_triggers, conf.two_steps, stop=tuple(conf.get("stop", ())))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.answer_type}-{rule.numbers}")
@pytest.mark.parametrize("key", sorted(FORMATS), ids="-".join)
def test_the_completion_of_a_training_sample_parses_to_its_answer(key, rule):
    text_format, answer = FORMATS[key], ANSWERS[rule.answer_type]
    completion = text_format.completion(answer, 'Take {7} and (A), yes.\nThen "no" {rationale} 9.')
    assert text_format.parse(completion, rule) == answer
    assert text_format.well_formed(completion, rule)
    assert ("{rationale} 9." in completion) == METHODS[key[0]].uses_rationales


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("key", sorted(FORMATS), ids="-".join)
def test_prompts_contain_the_question_unchanged(key, question):
    text_format = FORMATS[key]
    assert question in text_format.prompt(question)
    assert text_format.prompt(question).replace(question, "q") == text_format.prompt("q")


@pytest.mark.parametrize(
    ("key", "prompt", "completion"),
    [
        (("fine_tune", "encoder_decoder"), "q?", "5"),
        (("fine_tune", "decoder"), "q? ###", " 5"),
        (("fine_tune_cot", "encoder_decoder"), "q?", "r. --> 5"),
        (("fine_tune_cot", "decoder"), "q? ###", " r. --> 5"),
        (("fine_tune", "chat"), "q?", "5"),  # GPT-3's "q? ###" and " 5 END": turns replace the separators
        (("fine_tune_cot", "chat"), "q?", "r. --> 5"),
        (("zero_shot", "chat"), "Q: q?\n\nA:", "5"),
    ],
)
def test_the_formats_of_paper_a(key, prompt, completion):
    assert FORMATS[key].prompt("q?") == prompt
    assert FORMATS[key].completion("5", "r.") == completion


@pytest.mark.parametrize(
    ("text", "expected"),
    [("r --> 5", True), ("r 5", False), ("r -->", False), ("r --> none", False), ("r --> 5 --> 5", True), ("r --> 5 -->", False)],
)
def test_a_well_formed_completion_ends_with_a_prefix_and_an_answer(text, expected):
    assert METHODS["fine_tune_cot"].formats["decoder"].well_formed(text, AnswerRule("number")) == expected


@pytest.mark.parametrize("question", QUESTIONS)
def test_zero_shot_cot_for_completion_endpoints_continues_the_text(question):
    prompt = teacher_prompt("zero_shot_cot")
    first = f"Q: {question}\nA: Let's think step by step."
    assert prompt.first_request(question, RULES[0], chat=False) == first
    for rule in RULES:
        second = prompt.second_request(question, " {r} First, ...", rule, chat=False)
        assert second == first + " {r} First, ...\nTherefore, the answer is"


def test_zero_shot_cot_as_a_chat_has_a_further_turn():
    prompt = teacher_prompt("zero_shot_cot")
    first = {"role": "user", "content": "Q: q?\nA: Let's think step by step."}
    assert prompt.first_request("q?", AnswerRule("text"), chat=True) == [first]
    assert prompt.second_request("q?", "r.", AnswerRule("text"), chat=True) == [
        first,
        {"role": "assistant", "content": "r."},
        {"role": "user", "content": "Therefore, the answer is"},
    ]


@pytest.mark.parametrize(
    ("task", "trigger"),
    [
        ("multiarith", "Therefore, the answer (arabic numerals) is"),
        ("aqua", "Therefore, among A through E, the answer is"),
        ("date_understanding", "Therefore, among A through F, the answer is"),
        ("tracking_shuffled_objects", "Therefore, among A through C, the answer is"),
        ("strategy_qa", "Therefore, the answer (Yes or No) is"),
        ("last_letter_concatenation", "Therefore, the answer is"),
    ],
)
def test_kojimas_triggers(task, trigger):
    prompt = teacher_prompt("zero_shot_cot_kojima")
    assert prompt.second_request("q?", " r.", TASKS[task].rule, chat=False) == f"Q: q?\nA: Let's think step by step. r.\n{trigger}"
    assert prompt.second_request("q?", "r.", TASKS[task].rule, chat=True)[-1] == {"role": "user", "content": trigger}


def test_kojimas_prompts_equal_those_of_the_real_completions(shared_data):
    prompt = teacher_prompt("zero_shot_cot_kojima")
    files = sorted((shared_data / "completion_data").rglob("*.json"))
    assert len(files) == 8
    for file in files:
        content = json.loads(file.read_text())
        rule = TASKS[content["metadata"]["dataset_key"]].rule
        for row in (row for rows in content["data"].values() for row in rows):
            assert prompt.first_request(row["question"], rule, chat=False) == row["reasoning_prompt"]
            assert prompt.second_request(row["question"], row["reasoning_completion"], rule, chat=False) == row["prompt"]


def test_a_teachers_answer_is_the_first_candidate_of_step_2():
    prompt = teacher_prompt("zero_shot_cot")
    assert prompt.parse(Completion(0, 0, "2 + 2 = 5", " 4, not 5."), AnswerRule("number")) == "4"
    assert prompt.parse(Completion(0, 0, "2 + 2 = 5", " unclear."), AnswerRule("number")) is None
