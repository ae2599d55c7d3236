"""Predictions of a trained student: on the command line, from files, and by transformers; and the model card."""

from __future__ import annotations

import json
import re

import pytest
from test_run import QUICK, make_run
from transformers import pipeline

from fcot.base.errors import FcotError
from fcot.config.schema import register_schemas
from fcot.predict import main, parse, read_questions
from fcot.runs.pipeline import execute


@pytest.fixture(scope="module", params=["tiny_gpt2", "tiny_t5"])
def run(request, tmp_path_factory):
    register_schemas()
    finished = make_run(tmp_path_factory.mktemp("outputs"), *QUICK, f"student={request.param}", "student.max_new_tokens=30")
    execute(finished, "diversity: 4\n")
    return finished


def predictions(run):
    return [json.loads(line) for line in run.directory.predictions.read_text().splitlines()]


def test_predict_gives_the_answers_of_the_run(run, tmp_path):
    rows = predictions(run)[:9]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("\n".join(json.dumps({"question": row["question"], "answer": row["answer"], "id": 7}) for row in rows))
    main([f"student={run.directory.student}", f"file={questions}", f"output={tmp_path / 'answers.jsonl'}"])
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    for name in ("question", "completion", "prediction", "correct", "complete", "n_tokens"):
        assert [answer[name] for answer in answers] == [row[name] for row in rows]
    assert answers[0]["id"] == 7


def test_a_question_on_the_command_line_is_answered_on_the_terminal(run, capsys):
    row = predictions(run)[0]
    main([f"student={run.directory.student}", row["question"]])
    shown = capsys.readouterr().out
    assert row["question"] in shown
    assert row["completion"].strip() in shown
    assert f"answer: {row['prediction']}" in shown


def test_votes_are_counted_and_depend_on_the_seed_only(run, tmp_path):
    outputs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = tmp_path / f"{name}.jsonl"
        main([
            f"student={run.directory.student}", "self_consistency=5", "temperature=2.0", f"seed={seed}", f"output={path}",
            "Rosa has 7 coins. Ada gives 3. How many?",
        ])  # fmt: skip
        outputs.append(json.loads(path.read_text()))
    assert outputs[0] == outputs[1] != outputs[2]
    assert sum(outputs[0]["votes"].values()) <= 5


def test_transformers_loads_the_student_folder_and_gives_the_same_completions(run):
    row = predictions(run)[0]
    folder, form = str(run.directory.student), json.loads((run.directory.student / "fcot.json").read_text())["format"]
    prompt = form["prompt_template"].format(question=row["question"])
    if run.config.student.name == "tiny_gpt2":
        generated = pipeline("text-generation", model=folder)(prompt, max_new_tokens=30, do_sample=False, return_full_text=False)
        assert generated[0]["generated_text"] == row["completion"]
    else:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder)
        ids = tokenizer(prompt + tokenizer.eos_token, return_tensors="pt").input_ids
        generated = model.generate(ids, max_new_tokens=30, do_sample=False)[0]
        assert tokenizer.decode(generated, skip_special_tokens=True) == row["completion"]


def test_the_model_card_has_results_data_terms_and_configuration(run):
    card = (run.directory.student / "README.md").read_text()
    metrics = json.loads(run.directory.metrics.read_text())
    low, high = metrics["accuracy_ci95"]
    assert f"{100 * metrics['accuracy']:.2f} % (95 % interval {100 * low:.2f} % to {100 * high:.2f} %)" in card
    assert f"{metrics['completions_kept']:,} rationales kept of {metrics['completions_asked']:,} that oracle-v2 wrote (D = 4)" in card
    assert "## Terms" in card
    assert "```yaml\ndiversity: 4\n```" in card
    assert "python -m fcot.predict student=DIR" in card
    assert card.startswith("---\nlibrary_name: transformers\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["how many?"], "student=DIR is missing"),
        (["student=nowhere", "how many?"], r"nowhere: not a student that fcot trained, its fcot\.json is missing"),
        (["student=x"], "no question"),
        (["student=x", "samples=3", "q"], "samples: no such option; choose from student, file"),
        (["student=x", "self_consistency=many", "q"], "self_consistency=many"),
        (["student=x", "self_consistency=0", "q"], "more than 0"),
        (["student=x", "temperature=nan", "q"], "more than 0"),
        (["student=x", "seed=-1", "q"], "at least 0"),
        (["student=x", "output=", "q"], "output=: the value is missing"),
        (["student=x", ""], "no question"),
        (["student=x", "file=missing.txt"], r"file=missing\.txt"),
    ],
)
def test_wrong_arguments_are_reported_in_one_message(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    assert "Traceback" not in (text := capsys.readouterr().err)
    assert re.search(message, text)


def test_questions_may_contain_equals_signs_and_braces():
    options, questions = parse(["student=x", "If 2x = 6, what is x?", "x=3, what is x + 1?", "{a} = b?", "max_new_tokens=9"])
    assert questions == ["If 2x = 6, what is x?", "x=3, what is x + 1?", "{a} = b?"]
    assert options.max_new_tokens == 9


@pytest.mark.parametrize(
    ("content", "questions"),
    [
        ("one?\n\ntwo?\n", ["one?", "two?"]),
        ('{"question": "one?"}\n{"question": "two?", "answer": 3}\n', ["one?", "two?"]),
        ('[{"question": "one?"}, {"question": "two?"}]', ["one?", "two?"]),
        ('\ufeff{"question": "one\u2028?"}\n', ["one\u2028?"]),
    ],
)
def test_question_files_may_be_text_or_json(content, questions, tmp_path):
    path = tmp_path / "questions"
    path.write_text(content)
    assert [row["question"] for row in read_questions(str(path))] == questions


@pytest.mark.parametrize(
    ("content", "message"), [('{"q": 1}', "entry 1"), ('{"question": "a"}\n{"question"', "line 2"), ("[1]", "entry 1")]
)
def test_malformed_question_files_are_reported_with_the_place(content, message, tmp_path):
    path = tmp_path / "questions"
    path.write_text(content)
    with pytest.raises(FcotError, match=message):
        list(read_questions(str(path)))
