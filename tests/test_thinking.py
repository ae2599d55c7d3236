"""Thoughts of reasoning models: answers are never read from them, and ``prompt.thinking`` decides whether they are rationales."""

from __future__ import annotations

import pytest

from fcot.base.records import Completion, Problem
from fcot.curation.filters import Rules, curate
from fcot.methods.table import METHODS
from fcot.prompts.answers import AnswerRule
from fcot.prompts.teacher import TeacherPrompt
from fcot.prompts.thinking import only_an_answer, separate

NUMBER = AnswerRule("number")
PROMPT = TeacherPrompt("p", "{question}", {"number": "Therefore, the answer is"}, two_steps=False)
FORM = METHODS["fine_tune_cot"].formats["decoder"]
PROBLEMS = {0: Problem(0, "How many?", "8")}

REPLY = "5 + 3 = 8. Therefore, the answer is 8."
TAGS = [
    ("<think>", "</think>"),
    ("<THINK>", "</THINK>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<|think|>", "</|think|>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<unused94>thought\n", "<unused95>"),
]


@pytest.mark.parametrize(("opening", "closing"), TAGS)
def test_a_thought_is_separated_from_the_reply(opening, closing):
    guess = "Maybe the answer is 7."
    for text in (f"{opening}{guess}{closing}{REPLY}", f"{opening}\n{guess}\n{closing}\n\n{REPLY}", f"{guess}{closing}{REPLY}"):
        assert separate(text) == (guess, REPLY, True)
    assert separate(f"{opening}{guess}") == (guess, "", False)


def test_thoughts_are_joined_and_texts_without_tags_are_unchanged():
    assert separate("<think>a</think> b <think>c</think> d") == ("a\nc", "b\nd", True)
    for text in ("", " 5 < 7 and 9 > 3 ", "a <b>bold</b> word", "I think> so"):
        assert separate(text) == ("", text, True)


def completion(text: str, finish_reason: str = "stop") -> Completion:
    return Completion(0, 0, *PROMPT.split(text, NUMBER), finish_reason, separate(text).thought)


def verdict(text: str, thinking: str = "strip", finish_reason: str = "stop"):
    (row,) = curate([completion(text, finish_reason)], PROBLEMS, NUMBER, PROMPT.read, Rules(["answer"], thinking=thinking))
    return row.rationale, row.prediction, row.reason


THOUGHT = "It may be 7. No: 5 + 3 = 8."


@pytest.mark.parametrize(
    ("thinking", "rationale"),
    [("strip", "5 + 3 = 8."), ("keep", f"{THOUGHT}\n5 + 3 = 8."), ("only", THOUGHT)],
)
def test_prompt_thinking_selects_the_rationale(thinking, rationale):
    assert verdict(f"<think>{THOUGHT}</think>\n\n{REPLY}", thinking) == (rationale, "8", None)


@pytest.mark.parametrize("reply", ["Therefore, the answer is 8.", "**Final answer:** 8 coins", r"\boxed{8}", "8"])
def test_a_reply_with_only_an_answer_has_no_rationale_besides_its_thought(reply):
    text = f"<think>{THOUGHT}</think>{reply}"
    assert verdict(text) == ("", "8", "thought_only")
    assert verdict(text, "only") == (THOUGHT, "8", None)


@pytest.mark.parametrize("thinking", ["strip", "keep", "only"])
def test_a_thought_cut_at_the_length_limit_has_no_answer(thinking):
    _, prediction, reason = verdict(f"<think>{THOUGHT} So the answer is 8.", thinking, "length")
    assert prediction is None
    assert reason == ("truncated" if thinking == "strip" else "no_answer")


def test_a_completion_without_a_thought_is_rejected_where_only_thoughts_count():
    assert verdict(REPLY, "only") == ("", "8", "no_thought")


@pytest.mark.parametrize(
    ("text", "is_answer"), [("8 coins", True), ("The answer is **8**", True), ("5 + 3 = 8", False), ("She buys three more", False)]
)
def test_only_an_answer_distinguishes_answers_from_reasoning(text, is_answer):
    assert only_an_answer(text) == is_answer


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.formats])
def test_answers_of_students_are_not_read_from_thoughts(name):
    form = METHODS[name].formats["decoder"]
    completion = form.completion("8", "5 + 3 = 8.")
    for text in (f"<think>It may be --> 7. Answer: 7</think>{completion}", f"It may be 7.</think>{completion}"):
        assert form.parse(text, NUMBER) == "8"
        assert form.well_formed(text, NUMBER)
    assert form.parse("<think>It is --> 8 Answer: 8", NUMBER) is None
    assert FORM.split(f"<think>x</think>{FORM.completion('8', 'sum')}") == ("sum", "8")
