"""Predictions of a trained student: on the command line, from files, and by transformers; and the model card."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import yaml
from datasets import Dataset
from identities import run_of, write_files
from students import save_gpt2
from test_run import QUICK, make_run
from transformers import pipeline

from fcot.base.errors import FcotError
from fcot.base.files import write_jsonl
from fcot.config.schema import register_schemas
from fcot.evaluation.statistics import wilson_interval
from fcot.predict import Options, main, parse
from fcot.prompts.answers import AnswerRule
from fcot.prompts.student import StudentFormat
from fcot.reporting.card import how_to_use, public
from fcot.reporting.predicted import GROUP, scores
from fcot.runs.origin import base_model_of
from fcot.runs.pipeline import execute
from fcot.runs.questions import GOLD, as_in_its_run, read_questions
from fcot.student.config import PretrainedStudentConfig
from fcot.student.interface import StudentInterface, read_interface, write_interface


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


def test_rows_that_the_student_was_trained_on_are_marked_and_not_scored(run, tmp_path, capsys):
    known, new = run.select([*run.split.train[:3], *run.split.validation[:1]]), run.select(run.split.test[:5])
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps({"question": f" {row.question}", "answer": row.answer}) for row in [*known, *new]))
    main([str(run.directory.path), str(path), f"output={tmp_path / 'answers.jsonl'}"])
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [answer["trained_on"] for answer in answers] == [True] * 4 + [False] * 5
    assert all(isinstance(answer["correct"], bool) for answer in answers)
    shown = capsys.readouterr().out
    correct = sum(answer["correct"] for answer in answers[4:])
    assert re.search(rf"all +{100 * correct / 5:.2f} .* {correct} +5 *$", shown, re.MULTILINE)
    assert "Rows that the student was trained on, which are not scored: 4." in shown


def test_a_file_of_training_rows_alone_has_no_accuracy(run, tmp_path, capsys):
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps({"question": row.question, "answer": row.answer}) for row in run.select(run.split.train[:3])))
    main([str(run.directory.path), str(path), f"output={tmp_path / 'answers.jsonl'}"])
    shown = capsys.readouterr().out
    assert "no accuracy: the student was trained on all 3 rows with a gold answer" in shown
    assert "acc %" not in shown
    main([str(run.directory.path), run.problems[run.split.train[0]].question])
    assert "the student was trained on this question" in capsys.readouterr().out


def test_without_a_record_of_its_training_rows_the_accuracy_says_so(run, tmp_path, capsys):
    shutil.copytree(run.directory.student, tmp_path / "copy")
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps({"question": row.question, "answer": row.answer}) for row in run.select(run.split.train[:3])))
    main([str(tmp_path / "copy"), str(path), f"output={tmp_path / 'answers.jsonl'}"])
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert "trained_on" not in answers[0]
    assert "Which rows the student was trained on is not known" in " ".join(capsys.readouterr().out.split())


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
    config = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    assert (config["diversity"], config["trainer"]["max_steps"], config["dataset"]["n_problems"]) == (4, 12, 60)
    assert "fcot predict DIR" in card
    assert card.startswith("---\nlibrary_name: transformers\n")
    kind = {"tiny_gpt2": "GPT-2", "tiny_t5": "T5"}[run.config.student.name]
    assert f"# {kind} from scratch, Fine-tune-CoT on toy_arithmetic" in card


def test_the_code_of_the_model_card_gives_the_runs_answers(run, monkeypatch):
    """The prompt, the call of transformers and the reading of the answer are executed as the card has them."""
    card = (run.directory.student / "README.md").read_text()
    prompt, call = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[:2]
    (read,) = re.findall(r"`(answer = .*)`", card)
    row = next((row for row in predictions(run) if row["complete"]), predictions(run)[0])
    monkeypatch.chdir(run.directory.path)
    names: dict = {}
    exec("\n".join([prompt.replace("...", row["question"]), call.replace("DIR", "student"), read]), names)
    if run.config.student.name == "tiny_gpt2":  # the tokenizer of the tiny T5 adds no end token
        assert names["text"] == row["completion"]
        assert names["answer"] == row["completion"].rpartition("-->")[2].strip()
    else:
        assert names["answer"] == names["text"].rpartition("-->")[2].strip()


def test_the_model_card_says_how_to_serve_the_student():
    interface = StudentInterface("t", "fine_tune", StudentFormat("{question}", "{answer}", None), AnswerRule("number"), True, 256, 99)
    chat, text = (how_to_use("DIR", kind, interface, api=False) for kind in ("chat", "decoder"))
    for card in (chat, text):
        assert "vllm serve DIR --served-model-name student" in card
        assert "llama-server -m student.gguf" in card
        assert "max_tokens=99" in card
        assert "`answer = text.strip()`" in card
    assert "client.chat.completions.create" in chat
    assert "client.completions.create" in text
    assert "vLLM and llama-server serve decoders only" in how_to_use("DIR", "encoder_decoder", interface, api=False)
    assert "vllm" not in how_to_use("DIR", "chat", interface, api=True)


PRIVATE = {
    "dataset=custom": None, "dataset.path": "FILES/rows.jsonl", "dataset.answer_type": "number", "teacher=openai": None,
    "teacher.model": "m", "teacher.base_url": "http://company.example/v1", "teacher.api_key_env": "COMPANY_KEY",
    "teacher.prices": "FILES/prices.yaml", "teacher.parameters": "{top_p: 0.5, webhook: 'https://company.example/hook'}",
    "prompt=custom": None, "prompt.path": "FILES/prompt1.txt", "curation=golden": None, "curation.golden": "FILES/golden1.json",
    "split-mode=file": None, "split_mode.path": "FILES/split1.json", "student=gpt2": None, "student.path": "FILES/model1",
}  # fmt: skip


def test_the_configuration_of_the_model_card_has_no_paths_and_addresses(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANY_KEY", "x")
    (tmp_path / "company").mkdir()
    files = write_files(tmp_path / "company")
    overrides = [key if value is None else f"{key}={value}" for key, value in PRIVATE.items()]
    shown = str(public(run_of(files, *overrides).config))
    assert not re.search(r"company|COMPANY|http|\.json|\.txt|\.yaml|outputs|model1", shown)
    for kept in ("'top_p': 0.5", "'model': 'm'", "'answer_type': 'number'", "'name': 'custom'", "'lr'", "'filters': ['answer', 'golden']"):
        assert kept in shown, kept


def test_the_base_model_is_named_as_its_hub_id_or_its_folder(tmp_path):
    folder = save_gpt2(tmp_path / "my-gpt2")
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123abc"
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(folder, snapshot)
    named = base_model_of(PretrainedStudentConfig("gpt2", "openai-community/gpt2"))
    assert (named.name, named.hub_id) == ("openai-community/gpt2", "openai-community/gpt2")
    own = base_model_of(PretrainedStudentConfig("causal", None, path=str(folder)))
    assert (own.name, own.hub_id, "GPT2LMHeadModel" in own.note) == ("my-gpt2", None, True)
    assert base_model_of(PretrainedStudentConfig("causal", None, path=str(snapshot))).hub_id == "owner/name"
    (tmp_path / "run" / "student").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("student: {name: qwen3_0_6b}\n")
    assert base_model_of(PretrainedStudentConfig("causal", None, path=str(tmp_path / "run/student"))).name == "qwen3_0_6b"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["how many?"], "name the student first: fcot predict"),
        (["student=nowhere", "how many?"], r"nowhere: no such folder; name that of a run or of a student"),
        (["nobody/nothing", "how many?"], r"nobody/nothing: no such folder; name that of a run or of a student"),
        (["student=/", "how many?"], r"/: not a student that fcot trained, its fcot\.json is missing"),
        (["student=x"], "no question"),
        (["student=x", "samples=3", "q"], "samples: no such option; choose from student, file"),
        (["student=x", "dataset.question_column=q", "q"], "dataset.question_column: no such option; here it is question_column=..."),
        (["student=x", "foo.bar=1"], "foo.bar: no such option; choose from student, file"),
        (["student=x", "file=q.csv", "output=./q.csv"], "output=./q.csv is the file with the questions, and would replace it"),
        (["student=x", "q", "output=a.csv"], "output=a.csv: answers are written as JSON Lines; choose a name that ends with .jsonl"),
        (["student=x", "self_consistency=many", "q"], "self_consistency=many"),
        (["student=x", "self_consistency=0", "q"], "more than 0"),
        (["student=x", "temperature=nan", "q"], "more than 0"),
        (["student=x", "seed=-1", "q"], "at least 0"),
        (["student=x", "output=", "q"], "output=: the value is missing"),
        (["student=x", ""], "no question"),
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
def test_question_files_may_be_text_or_json(content, questions, student, tmp_path):
    path = tmp_path / "questions"
    path.write_text(content)
    assert [row["question"] for row in read_questions(Options(str(student), str(path)))] == questions


def test_lines_of_a_text_are_questions_whatever_their_column_is_called(student, tmp_path):
    path = tmp_path / "questions.md"
    path.write_text("one?\ntwo?\n")
    rows = read_questions(Options(str(student), str(path), question_column="Frage"))
    assert [row["question"] for row in rows] == ["one?", "two?"]


@pytest.mark.parametrize(("content", "message"), [
    ('{"q": 1}', r"has no column 'question'; it has q\. Name the columns: question_column=\.\.\."),
    ('{"question": "a"}\n{"question"', r"questions, line 2: malformed JSON \("),
    ('{"question": "a"}\n\n[1]', "questions, line 3: expected a JSON object with a cell per column"),
    (b"one?\nK\xf6ln?", "questions, line 2: not UTF-8 text. Save the file as UTF-8"),
    ('{"question": ["a"], "answer": "1"}\n{"question": " "}\n{"question": "b", "answer": "1-2"}',
     r"(?s)line 1: the question is a list.*\n.*line 2: empty question\nCorrect these rows, or leave them out with on_invalid=skip"),
])  # fmt: skip
def test_faulty_rows_are_reported_together_before_the_student_answers(content, message, student, tmp_path):
    path = tmp_path / "questions"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FcotError, match=message):
        read_questions(Options(str(student), str(path)))


# --- data files -------------------------------------------------------------------------------------------------------

ROWS = [
    {"id": "WH-1", "Frage": 'Ada says "7, or\n8". How many?', "Antwort": "8", "shop": "North"},
    {"id": "WH-2", "Frage": "\u00dcnal has 1; 2 more arrive. How many?", "Antwort": "3", "shop": "South"},
    {"id": "WH-3", "Frage": "How many are 2 + 2?", "Antwort": None, "shop": "South"},
]
COLUMNS = {"question_column": "Frage", "answer_column": "Antwort", "group_column": "shop"}


@pytest.fixture
def student(tmp_path):
    """A folder with the interface of a student, but without a model."""
    interface = StudentInterface(
        "shops", "fine_tune_cot", StudentFormat("{question}", "{rationale} --> {answer}", "-->"), AnswerRule("number"), False, 256, 30
    )
    (tmp_path / "student").mkdir()
    write_interface(tmp_path / "student", interface)
    return tmp_path / "student"


def write_csv(path, delimiter):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS = {
    "comma.csv": lambda path: write_csv(path, ","), "semicolon.csv": lambda path: write_csv(path, ";"),
    "tab.tsv": lambda path: write_csv(path, "\t"), "rows.jsonl": lambda path: write_jsonl(path, ROWS),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS)), "rows.parquet": lambda path: Dataset.from_list(ROWS).to_parquet(path),
    "folder": lambda path: Dataset.from_list(ROWS).save_to_disk(path),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_every_data_format_gives_the_questions_and_the_gold_answers_apart(name, student, tmp_path):
    WRITERS[name](tmp_path / name)
    rows = read_questions(Options(str(student), str(tmp_path / name), **COLUMNS))
    assert [row["question"] for row in rows] == [row["Frage"] for row in ROWS]
    assert [row.get(GOLD) for row in rows] == ["8", "3", None]
    assert [row["id"] for row in rows] == ["WH-1", "WH-2", "WH-3"]


@pytest.fixture
def of_a_run(student, tmp_path):
    """``of_a_run(**options) -> folder``: the student in the folder of a run on own data with these options."""

    def place(**options):
        shutil.copytree(student, tmp_path / "run/student")
        dataset = {"question_column": "question", "answer_column": "answer", "group_column": None, "decimal": "auto", "on_invalid": "error"}
        (tmp_path / "run/config.yaml").write_text(yaml.safe_dump({"dataset": dataset | options}))
        return str(tmp_path / "run/student")

    return place


def test_columns_and_faulty_rows_are_treated_as_in_the_students_run(of_a_run, tmp_path, capsys):
    rows = [*ROWS[:2], {"id": "WH-4", "Frage": "", "Antwort": "1,5", "shop": "South"}, {**ROWS[2], "Antwort": "2,5"}]
    write_jsonl(tmp_path / "q.jsonl", rows)
    folder = of_a_run(**COLUMNS, decimal="comma", on_invalid="skip")
    options = as_in_its_run(Options(folder, str(tmp_path / "q.jsonl")))
    questions = read_questions(options)
    assert [(row["id"], row[GOLD], row[GROUP]) for row in questions] == [
        ("WH-1", "8", "North"), ("WH-2", "3", "South"), ("WH-3", "2.5", "South"),
    ]  # fmt: skip
    said = capsys.readouterr().err
    taken = "question_column=Frage answer_column=Antwort group_column=shop decimal=comma on_invalid=skip"
    assert f"as in the student's run: {taken}\n" in said
    assert f"1 of 4 rows is left out (on_invalid=skip): {tmp_path / 'q.jsonl'}, line 3: empty question" in said


def test_options_and_the_files_own_columns_come_before_those_of_the_students_run(of_a_run, tmp_path, capsys):
    folder, path = of_a_run(**COLUMNS, on_invalid="skip"), str(tmp_path / "q.jsonl")
    write_jsonl(tmp_path / "q.jsonl", [{"question": "How many?", "answer": "1", "Antwort": "2", "Frage": "  "}])
    assert read_questions(as_in_its_run(Options(folder, path, question_column="question")))[0][GOLD] == "2"
    with pytest.raises(FcotError, match="line 1: empty question"):
        read_questions(as_in_its_run(Options(folder, path, on_invalid="error")))
    write_jsonl(tmp_path / "q.jsonl", [{"question": "How many?", "answer": "1"}])
    capsys.readouterr()
    assert read_questions(as_in_its_run(Options(folder, path)))[0][GOLD] == "1"
    assert capsys.readouterr().err == "as in the student's run: on_invalid=skip\n"
    (tmp_path / "lines.txt").write_text("How many?\n")
    assert [row["question"] for row in read_questions(as_in_its_run(Options(folder, str(tmp_path / "lines.txt"))))] == ["How many?"]


def test_the_options_of_a_multiple_choice_are_read_as_in_the_students_run(of_a_run, tmp_path, capsys):
    folder, file = of_a_run(option_columns=["a", "b"]), tmp_path / "q.jsonl"
    write_interface(Path(folder), replace(read_interface(Path(folder)), rule=AnswerRule("choice", "AB")))
    rows = [{"question": "Which?", "a": "red", "b": "blue", "c": "no", "answer": "B"}]
    write_jsonl(file, rows)
    assert read_questions(as_in_its_run(Options(folder, str(file))))[0]["question"] == "Which? Answer Choices: (A) red (B) blue"
    assert capsys.readouterr().err == "as in the student's run: option_columns=a,b\n"
    options = parse([folder, str(file), "option_columns=[b, c]"])[0]
    assert read_questions(as_in_its_run(options))[0]["question"] == "Which? Answer Choices: (A) blue (B) no"
    with pytest.raises(FcotError, match=r"option_columns=a,b,c: the student answers with the letters AB: name one column per letter"):
        read_questions(Options(folder, str(file), option_columns=["a", "b", "c"]))
    with pytest.raises(FcotError, match=r"option_columns: .* has no column 'd'; it has a, answer, b, c, question"):
        read_questions(Options(folder, str(file), option_columns=["a", "d"]))
    write_jsonl(file, [{"question": "Which? (A) red (B) blue", "answer": "B"}])
    assert read_questions(as_in_its_run(Options(folder, str(file))))[0]["question"] == "Which? (A) red (B) blue"
    assert "has no column 'a': the questions are answered as they are" in capsys.readouterr().err


def test_faulty_rows_can_be_left_out(student, tmp_path):
    write_jsonl(tmp_path / "q.jsonl", [{"question": "How many?", "answer": "1"}, {"question": "", "answer": "2"}])
    (row,) = read_questions(Options(str(student), str(tmp_path / "q.jsonl"), on_invalid="skip"))
    assert row[GOLD] == "1"
    write_jsonl(tmp_path / "q.jsonl", [{"question": "", "answer": "1"}])
    with pytest.raises(FcotError, match="empty question"):
        read_questions(Options(str(student), str(tmp_path / "q.jsonl"), on_invalid="skip"))


@pytest.mark.parametrize("on_invalid", ["error", "skip"])
def test_a_question_with_an_unreadable_gold_answer_is_answered_and_not_scored(on_invalid, student, tmp_path, capsys):
    rows = [{"question": f"How many are {cell}?", "answer": cell} for cell in ("1", "depends", ["2", "3"], None, "4,5")]
    write_jsonl(tmp_path / "q.jsonl", rows)
    questions = read_questions(Options(str(student), str(tmp_path / "q.jsonl"), on_invalid=on_invalid))
    assert [row.get(GOLD) for row in questions] == ["1", None, None, None, "4.5"]
    assert [row["answer"] for row in questions] == [row["answer"] for row in rows], "the columns of the file are written as they are"
    said = capsys.readouterr().err
    assert "note: 2 of 4 gold answers cannot be read. Their questions are answered, but not scored: " in said
    assert "q.jsonl, line 2: the gold answer 'depends' is not a number" in said


def test_gold_answers_that_are_all_of_another_type_are_an_error(student, tmp_path):
    write_jsonl(
        tmp_path / "q.jsonl", [{"question": "Is it?", "answer": "yes"}, {"question": "Is it?"}, {"question": "So?", "answer": "no"}]
    )
    message = (
        r"line 1: the gold answer 'yes' is not a number\nNo gold answer in the column 'answer' \(2 given\) is a number, as the "
        r"student answers. Name another column \(answer_column=NAME\), or answer without scores: answer_column=none$"
    )
    with pytest.raises(FcotError, match=message):
        read_questions(Options(str(student), str(tmp_path / "q.jsonl")))
    assert len(read_questions(Options(str(student), str(tmp_path / "q.jsonl"), answer_column="none"))) == 3


@pytest.mark.parametrize(
    ("files", "folder", "message"),
    [
        ([], "run/student", r"run/student: no such folder; name that of a run or of a student"),
        (["config.yaml"], "run/student", r"run: the run has no student yet\. It has not finished its first stage: the command"),
        (
            ["config.yaml", "stages/generate.json", "stages/curate.interrupted.json"], "run",
            r"run: the run has no student yet\. It has finished generate, and not the training: the command that began the run",
        ),
        (["config.yaml", "DONE.json"], "run", r"run: the run is finished and has no student: its method trains none"),
        (["plan.json"], "run", r"run: a sweep; name one of its runs"),
    ],
)  # fmt: skip
def test_a_student_that_does_not_exist_is_reported_before_the_questions(files, folder, message, tmp_path, capsys):
    for file in files:
        (tmp_path / "run" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / file).write_text("{}")
    write_jsonl(tmp_path / "q.jsonl", [{"Frage": "How many?"}])
    with pytest.raises(SystemExit):
        main([str(tmp_path / folder), str(tmp_path / "q.jsonl")])
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert "question" not in said


def test_the_gold_answer_changes_no_answer_of_the_student(run, tmp_path):
    """The same questions with right, wrong and no gold answers get the same completions."""
    questions = [row["question"] for row in predictions(run)[:3]]
    completions = []
    for number, golds in enumerate((["1", "2", "3"], ["44444", "55555", "66666"], None)):
        table = {"question": questions} | ({"answer": golds} if golds else {})
        pandas.DataFrame(table).to_csv(tmp_path / "q.csv", index=False)
        main([str(run.directory.path), str(tmp_path / "q.csv"), f"output={tmp_path / f'{number}.jsonl'}"])
        rows = [json.loads(line) for line in (tmp_path / f"{number}.jsonl").read_text().splitlines()]
        assert [row["question"] for row in rows] == questions
        assert all(("correct" in row) == bool(golds) for row in rows)
        completions.append([row["completion"] for row in rows])
    assert completions[0] == completions[1] == completions[2] == [row["completion"] for row in predictions(run)[:3]]


def test_labelled_rows_are_scored_with_an_interval_and_by_group(run, tmp_path, capsys):
    questions = [row["question"] for row in predictions(run)[:12]]
    shops = ["North"] * 4 + ["South"] * 7 + [""]
    pandas.DataFrame({"question": questions, "answer": 1, "shop": shops}).to_csv(tmp_path / "q.csv", index=False)
    main([f"student={run.directory.student}", f"file={tmp_path / 'q.csv'}", f"output={tmp_path / 'a.jsonl'}", "group_column=shop"])
    shown = capsys.readouterr().out
    written = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    right = sum(row["correct"] for row in written)
    low, high = wilson_interval(right, 12)
    assert re.search(rf"all +{100 * right / 12:.2f} +{100 * low:.1f}-{100 * high:.1f} +{right} +12 *\n", shown)
    assert [int(re.search(rf" {re.escape(shop)} .* (\d+) *\n", shown)[1]) for shop in ("North", "South", "(none)")] == [4, 7, 1]
    assert list(written[0])[:3] == ["question", "answer", "shop"]
    assert all(name.isidentifier() for row in written for name in row)


def test_scores_have_a_row_for_each_group_and_count_what_is_not_scored():
    answers = [
        {GROUP: group, "complete": True} | ({} if correct is None else {"correct": correct})
        for group, correct in (("North", True), ("North", False), ("South", True), ("South", None))
    ]
    table = scores(answers, "shop")
    assert [(row[0], row[1], row[3], row[4]) for row in table.rows] == [
        ("North", "50.00", "1", "2"), ("South", "100.00", "1", "1"), ("all", "66.67", "2", "3"),
    ]  # fmt: skip
    assert "Rows without a readable gold answer, which are not scored: 1." in table.notes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["STUDENT", "gone.csv"], r"^gone\.csv: no such file"),
        (["STUDENT", "file=missing.txt"], r"file=missing\.txt"),
        (["STUDENT", "FILE", "OTHER"], r"name one file"),
        (["STUDENT", "FILE", "decimal=dot"], r"decimal=dot: choose from auto, point, comma"),
        (["STUDENT", "FILE", "on_invalid=drop"], r"on_invalid=drop: choose from error, skip"),
        (["STUDENT", "FILE", "group_column=city"], r"no column 'question' or 'city'; it has Antwort, Frage, id, shop"),
        (["STUDENT", "FILE", "question_column=Frage", "group_column=shops"], r"no column 'shops'.*Did you mean group_column=shop\?"),
        (["STUDENT", "FILE", "question_column=Frage", "answer_column=Gold"], r"no column 'Gold'.*answer_column=\.\.\."),
    ],
)
def test_wrong_files_and_columns_are_reported(arguments, message, student, tmp_path, capsys):
    for name in ("FILE.csv", "OTHER.csv"):
        write_csv(tmp_path / name, ",")
    places = {"STUDENT": str(student), "FILE": str(tmp_path / "FILE.csv"), "OTHER": str(tmp_path / "OTHER.csv")}
    with pytest.raises(SystemExit):
        main([places.get(argument, argument) for argument in arguments])
    assert re.search(message, capsys.readouterr().err)


def test_without_student_the_first_argument_is_the_student_and_files_are_files(student, tmp_path):
    WRITERS["comma.csv"](tmp_path / "q.csv")
    options, questions = parse([str(student), str(tmp_path / "q.csv"), "And 2 + 2?", "seed=3"])
    assert (options.student, options.file, options.seed, questions) == (str(student), str(tmp_path / "q.csv"), 3, ["And 2 + 2?"])
    options, questions = parse(["And 2 + 2?", f"student={student}"])
    assert (options.student, options.file, questions) == (str(student), None, ["And 2 + 2?"])
