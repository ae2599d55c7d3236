"""One-request prompts: their parser reads the format that they request; exemplars from files and from runs."""

from __future__ import annotations

import json

import pytest
from test_formats import ANSWERS, QUESTIONS, RULES, teacher_prompt

from fcot.base.errors import FcotError
from fcot.base.records import Completion, Problem
from fcot.prompts.answers import AnswerRule
from fcot.prompts.exemplars import load_exemplars
from fcot.prompts.teacher import Exemplar, TeacherPrompt
from fcot.tasks.loaders import load_problems
from fcot.tasks.table import TASKS

ONE_REQUEST = ["zero_shot_cot_chat", "reasoning_chat", "few_shot_cot", "custom"]
TRIGGERS = {"number": "The answer is", "choice": "The answer is", "yes_no": "The answer is", "text": "The answer is"}


def prompt_of(name):
    return TeacherPrompt("custom", "{question} {trigger}", TRIGGERS, two_steps=False) if name == "custom" else teacher_prompt(name)


def parsed(prompt, text, rule):
    rationale, answer = prompt.split(text, rule)
    return rationale, prompt.parse(Completion(0, 0, rationale, answer), rule)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.answer_type}-{rule.numbers}")
@pytest.mark.parametrize("name", ONE_REQUEST)
def test_an_obedient_teachers_answer_parses_to_its_rationale_and_answer(name, rule):
    prompt, answer = prompt_of(name), ANSWERS[rule.answer_type]
    rationale = 'Take {7} and (A), yes.\nThen "no" {rationale} 9.'
    assert parsed(prompt, " " + prompt.answer(rationale, answer, rule), rule) == (f" {rationale}", answer)


@pytest.mark.parametrize(
    ("text", "rationale", "answer"),
    [
        ("2 + 3 = 5. Therefore, the answer (arabic numerals) is 5.", "2 + 3 = 5.", "5"),
        ("2 + 3 = 5.\n\n**Therefore, the answer (arabic numerals) is 5.**", "2 + 3 = 5.", "5"),
        ("2 + 3 = 5. therefore, the Answer (Arabic numerals)\nis: 5", "2 + 3 = 5.", "5"),
        ("2 + 3 = 5. So the final answer is 5.", "2 + 3 = 5.", "5"),
        ("2 + 3 = 5. Therefore, the answer is **5**. ", "2 + 3 = 5.", "5"),
        ("I thought the answer is 7. No: 2 + 3 = 5. Therefore, the answer (arabic numerals) is 5.", None, "5"),
        ("2 + 3 = 5. The answer is \\boxed{5}.", "2 + 3 = 5.", "5"),
        ("2 + 3 = 5. Therefore, the answer is 5. I checked that the answer is right.", "2 + 3 = 5.", "5"),
        ("2 + 3 = 5", "2 + 3 = 5", "5"),  # no closing sentence: the last candidate
        ("unclear", "unclear", None),
    ],
)
def test_closing_sentences_as_chat_models_word_them(text, rationale, answer):
    result = parsed(teacher_prompt("zero_shot_cot_chat"), text, AnswerRule("number"))
    assert result[1] == answer
    if rationale is not None:
        assert result[0] == rationale


@pytest.mark.parametrize("text", ['the answer is "nk".\n\nLet me know if you want more.', "The answer is \\(\\boxed{nk}\\)."])
def test_a_text_answer_ends_with_its_line(text):
    assert parsed(teacher_prompt("few_shot_cot"), f"n and k. {text}", AnswerRule("text"))[1] == "nk"


def test_exemplars_of_a_run_come_from_this_runs_train_problems(tmp_path):
    rows = [{"sample_index": i, "kept": True, "rationale": f"r{i}.", "answer": "1"} for i in range(20)]
    (tmp_path / "curated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = {i: Problem(i, f"Question {i}?", "1") for i in range(0, 20, 2)}
    drawn = load_exemplars(str(tmp_path), 10, "t", teacher_prompt("few_shot_cot"), AnswerRule("number"), train)
    assert {exemplar.question for exemplar in drawn} == {problem.question for problem in train.values()}


@pytest.mark.parametrize("question", QUESTIONS)
def test_one_request_prompts_contain_the_trigger_of_the_answer_type(question):
    prompt = teacher_prompt("zero_shot_cot_chat")
    rule = TASKS["aqua"].rule
    (message,) = prompt.first_request(question, rule, chat=True)
    assert message == {"role": "user", "content": prompt.first_request(question, rule, chat=False)}
    assert message["content"].startswith(f"{question}\n\nLet's think step by step.")
    assert 'begins with "Therefore, among A through E, the answer is".' in message["content"]


# --- exemplars ----------------------------------------------------------------------------------------------------------


N_EXEMPLARS = {  # paper A
    "single_eq": 8,
    "addsub": 8, "multiarith": 8, "gsm8k": 8, "svamp": 8, "aqua": 4, "date_understanding": 6, "last_letter_concatenation": 8,
    "coin_flip": 8, "commonsense_qa": 7, "strategy_qa": 6,
}  # fmt: skip


@pytest.mark.parametrize("task", sorted(N_EXEMPLARS))
def test_the_authors_exemplars_are_cut_into_blocks_that_parse(task, shared_data):
    prompt, rule = teacher_prompt("few_shot_cot"), TASKS[task].rule
    source = shared_data / "few_shot_cot_prompts.json"
    exemplars = load_exemplars(str(source), None, task, prompt, rule, {})
    assert len(exemplars) == N_EXEMPLARS[task]
    few = TeacherPrompt("few_shot_cot", prompt.template, prompt.answer_triggers, two_steps=False, exemplars=exemplars)
    text = json.loads(source.read_text())[task]["prompt"]
    assert few.first_request("New?", rule, chat=False) == f"{text}\nQ: New?\nA:"
    for exemplar in exemplars:
        assert exemplar.question in exemplar.text
        rationale, answer = parsed(few, exemplar.text.partition("\nA:")[2], rule)
        assert rationale.strip()
        assert answer is not None
    assert len(load_exemplars(str(source), 3, task, prompt, rule, {})) == 3


def test_the_prompt_of_a_problem_leaves_out_the_problem_as_an_exemplar(shared_data):
    """Otherwise its answer would be in the prompt: the authors drew Coin Flip's exemplars from the data."""
    task = TASKS["coin_flip"]
    problems = {p.sample_index: p for p in load_problems(task, str(shared_data / "dataset" / "coin_flip.json"))}
    prompt = teacher_prompt("few_shot_cot")
    source = shared_data / "few_shot_cot_prompts.json"
    exemplars = load_exemplars(str(source), None, "coin_flip", prompt, task.rule, problems)
    few = TeacherPrompt("few_shot_cot", prompt.template, prompt.answer_triggers, two_steps=False, exemplars=exemplars)
    own = [
        few.first_request(problems[index].question, task.rule, chat=False).count("\nA:") for index in (7, 66, 76, 166, 271, 274, 383, 418)
    ]
    assert own == [8] * 8
    assert few.first_request(problems[0].question, task.rule, chat=False).count("\nA:") == 9


def test_exemplars_from_json_lines_and_from_a_run(tmp_path):
    rule, prompt = AnswerRule("number"), teacher_prompt("few_shot_cot")
    source = tmp_path / "mine.jsonl"
    source.write_text(json.dumps({"question": "One?", "rationale": " It is 1.", "answer": "1"}) + "\n")
    assert load_exemplars(str(source), None, "t", prompt, rule, {}) == (Exemplar("One?", "Q: One?\nA: It is 1. The answer is 1."),)
    problems = {i: Problem(i, f"Question {i}?", str(i)) for i in range(20)}
    rows = [{"sample_index": i // 2, "kept": i % 3 > 0, "rationale": f"r{i}.", "answer": str(i // 2)} for i in range(40)]
    (tmp_path / "curated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = load_exemplars(str(tmp_path), None, "t", prompt, rule, problems)
    assert len({exemplar.question for exemplar in drawn}) == 8
    assert drawn == load_exemplars(str(tmp_path), None, "t", prompt, rule, problems)
    kept = {(problems[row["sample_index"]].question, row["rationale"]) for row in rows if row["kept"]}
    assert all(any(q == e.question and e.text == f"Q: {q}\nA: {r} The answer is {q[9:-1]}." for q, r in kept) for e in drawn)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "{", "JSONDecodeError"),
        ("x.json", '{"other": {"prompt": "Q: a\\nA: b"}}', "has no exemplars of t; it has those of other"),
        ("x.json", '{"t": {}}', 'expected {task: {"prompt"'),
        ("x.jsonl", '{"question": "q"}\n', 'each line is {"question": TEXT'),
        ("x.jsonl", "", "has 0 exemplars of t"),
        ("curated.jsonl", '{"sample_index": 9, "kept": true, "rationale": "r"}\n', "0 train problems have a rationale"),
    ],
)
def test_malformed_exemplars_are_reported_in_one_message(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    source = tmp_path if name == "curated.jsonl" else tmp_path / name
    with pytest.raises(FcotError, match=message):
        load_exemplars(str(source), None, "t", teacher_prompt("few_shot_cot"), AnswerRule("number"), {})


def test_a_run_with_its_own_template(run_fcot, tmp_path):
    (tmp_path / "mine.txt").write_text("Solve: {question}\nShow your steps, then write: {trigger} N.")
    result = run_fcot("prompt=custom", "prompt.path=mine.txt", "preview=1", "dataset.n_problems=40")
    assert result.returncode == 0, result.stderr
    assert "Solve: " in result.stdout
    assert "then write: The answer is N." in result.stdout
    assert "correct" in result.stdout
    (tmp_path / "mine.txt").write_text("no place for it")
    failed = run_fcot("prompt=custom", "prompt.path=mine.txt", "preview=1")
    assert (failed.returncode, "prompt.path=mine.txt: the template must contain {question}" in failed.stderr) == (1, True)
