"""``fcot check``, and the same checks at the start of a run: every faulty row in one message, what may be wrong, and the split."""

from __future__ import annotations

import csv
import json
import shlex
from dataclasses import replace

import datasets
import pyarrow.parquet
import pytest
from students import save_gpt2

from fcot import check as command
from fcot.base import console
from fcot.base.errors import FcotError
from fcot.base.files import write_jsonl
from fcot.base.records import Prediction
from fcot.check import check
from fcot.estimate.dry_run import estimate
from fcot.evaluation.errors import mark
from fcot.methods.tailored.exam import examine
from fcot.prompts.answers import AnswerRule
from fcot.runs.run import data_notes
from fcot.tasks.config import read_once
from fcot.tasks.guesses import guess_rule
from fcot.tasks.loaders import Columns, load
from fcot.tasks.table import TASKS, custom_task
from fcot.tasks.toy import TOY_TASKS, make_problems

PROBLEMS = make_problems(TOY_TASKS["toy_arithmetic"], 120, seed=5)
ROWS = [{"question": problem.question, "answer": problem.answer} for problem in PROBLEMS]
NUMBER = custom_task("mine", AnswerRule("number"))


def write_csv(path, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def mine(tmp_path):
    """``mine(rows, delimiter) -> path`` of a CSV file of these rows."""
    return lambda rows, delimiter=",": write_csv(tmp_path / "mine.csv", rows, delimiter)


# --- formats ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mine.csv", "mine.tsv", "semicolons.csv", "mine.jsonl", "mine.json", "mine.parquet", "folder", "parts"])
def test_every_format_is_read_and_named(tmp_path, name):
    path = tmp_path / name
    if name in ("folder", "parts"):
        rows = datasets.Dataset.from_list(ROWS)
        (rows if name == "folder" else datasets.DatasetDict(train=rows)).save_to_disk(str(path))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        write_csv(path, ROWS, {"mine.csv": ",", "mine.tsv": "\t", "semicolons.csv": ";"}[name])
    report = check(str(path))
    formats = {
        "mine.csv": "CSV, cells separated by commas", "mine.tsv": "TSV", "semicolons.csv": "CSV, cells separated by semicolons",
        "mine.jsonl": "JSON Lines", "mine.json": "JSON", "mine.parquet": "Parquet", "folder": "datasets folder", "parts": "datasets folder",
    }  # fmt: skip
    assert report.format == formats[name]
    assert (report.n_rows, report.answer_type, report.faults, report.usable) == (120, "number", [], True)
    assert sum(report.split.values()) == 120
    assert f"{path}: 120 rows ({formats[name]})" in report.to_text()


def test_a_folder_with_parts_has_its_own_split(tmp_path):
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(
        train=rows.select(range(80)), validation=rows.select(range(80, 90)), test=rows.select(range(90, 120))
    ).save_to_disk(str(tmp_path / "parts"))
    report = check(str(tmp_path / "parts"), ["dataset.split_column=split"])
    assert report.split == {"train": 80, "validation": 10, "test": 30}
    assert report.split_by == "dataset.split_column=split"


def test_a_hub_id_without_the_columns_is_a_message(monkeypatch):
    monkeypatch.setattr("fcot.tasks.reading._load_dataset", lambda *_, **__: [{"q": "1 + 1?", "a": 2}] * 3)
    with pytest.raises(FcotError, match=r"me/columns has no column 'question' or 'answer'; it has a, q"):
        check("me/columns")


# --- columns and answer types -------------------------------------------------------------------------------------


def test_columns_and_answer_type_are_guessed_and_the_command_names_them(mine, capsys):
    rows = [{"Ticket": f"WH-{n}", "Frage": row["question"], "Antwort": row["answer"]} for n, row in enumerate(ROWS)]
    report = check(str(mine(rows, ";")))
    assert report.columns == {"question": "Frage", "answer": "Antwort"}
    assert report.unread == ["Ticket"]
    assert report.guessed == ["dataset.question_column=Frage", "dataset.answer_column=Antwort", "dataset.answer_type=number"]
    assert all(override in report.command for override in report.guessed)
    with pytest.raises(FcotError, match=r"name the columns: dataset.question_column=Frage dataset.answer_column=Antwort"):
        load(NUMBER, str(mine(rows)))


def test_a_column_that_was_named_and_is_missing_is_an_error(mine):
    path = str(mine(ROWS))
    for option in ("question", "index", "group", "split", "rationale", "template"):
        with pytest.raises(FcotError, match="has no column 'nowhere'; it has answer, question"):
            check(path, [f"dataset.{option}_column=nowhere"])


@pytest.mark.parametrize(
    ("answers", "answer_type", "choices"),
    [
        (["1", "$2,000", "3 boxes", "n/a", "4.5"], "number", ""), (["1,5", "2,5", "3"], "number", ""),
        (["yes", "No", "yes", "no.", "TRUE"], "yes_no", ""), (["Y", "n", "N.", "y"], "yes_no", ""), (["T", "F", "f", "T"], "yes_no", ""),
        (["Y", "N", "N", "N", "J"], "yes_no", ""), (["F", "f"], "choice", "ABCDEF"), (["N", "O", "P"], "text", ""),
        (["A", "(b)", "D", "a"], "choice", "ABCD"),
        (["Paris", "Rome", "3"], "text", ""), (["yes, because it rains", "no"], "text", ""), ([], "text", ""), (["", " "], "text", ""),
    ],
)  # fmt: skip
def test_the_answer_type_fits_most_answers(answers, answer_type, choices):
    rule = guess_rule(answers)
    assert (rule.answer_type, rule.choices) == (answer_type, choices)


def test_a_missing_or_wrong_answer_type_lists_the_types(mine, make_run, tmp_path):
    path = mine(ROWS)
    for overrides in ([], ["dataset.answer_type=words"]):
        with pytest.raises(FcotError, match=r"choose from number, choice, yes_no, text; fcot check FILE guesses it"):
            make_run(tmp_path, "dataset=custom", f"dataset.path={path}", "method=fine_tune", *overrides)
    with pytest.raises(FcotError) as error:
        make_run(tmp_path, "dataset=custom", f"dataset.path={path}", "method=fine_tune", "dataset.answer_type=yes_no")
    first, *others = str(error.value).split("\n")
    assert first == (
        "120 of 120 gold answers are not yes or no (or true or false, y or n, t or f): is dataset.answer_type=yes_no right? "
        "Choose from number, choice (with dataset.choices=ABCD), yes_no, text; text takes any answer."
    )
    assert others[5:] == ["and 115 more", "Correct these rows, or leave them out: dataset.on_invalid=skip."]
    report = check(str(path), ["dataset.answer_type=yes_no"])
    assert report.answers == [first]
    assert not any("answer_type" in remedy for remedy in report.remedies)


def answered(words):
    return [row | {"answer": words[number % len(words)]} for number, row in enumerate(ROWS)]


def test_letters_are_read_as_yes_and_no_and_the_student_learns_the_words(mine):
    """Before, Y and N were texts: the gold answer 'N' and the teacher's 'No' differed, and a whole purchase was rejected."""
    path = str(mine(answered(["Y", "N", "y", "n."])))
    report = check(path)
    assert (report.answer_type, report.usable) == ("yes_no", True)
    assert report.answers == ["read 'Y' as yes, 'N' as no, 'y' as yes, 'n.' as no"]
    assert not [note for note in report.notes if "spellings" in note]
    data = load(custom_task("mine", AnswerRule("yes_no")), path)
    assert {problem.answer for problem in data.problems} == {"yes", "no"}
    assert data.answer_of(data.problems[1]) == "N"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["Ja", "nein", "ja."], "write yes and no (or true or false, y or n, t or f) into the column 'answer'"),
        (["Y", "N"], "dataset.answer_type=yes_no reads these words as yes and no"),
        (["Yes", "no."], "dataset.answer_type=yes_no reads these words as yes and no"),
        ([*["Ja", "Nein"] * 29, "?", "depends"], "116 of 120 answers are 'Ja' or 'Nein'"),
        (["Ja", "Nein", "Vielleicht"], None), (["Ja"], None), ([*["Ja"] * 119, "Nein"], None), ([str(n) for n in range(120)], None),
    ],
)  # fmt: skip
def test_answers_of_two_words_as_text_are_said_to_look_like_yes_and_no(mine, make_run, tmp_path, words, expected):
    path = str(mine(answered(words)))
    notes = [note for note in check(path, ["dataset.answer_type=text"]).notes if "yes/no question" in note]
    assert len(notes) == (expected is not None)
    assert expected is None or expected in notes[0]
    run = make_run(tmp_path, "dataset=custom", f"dataset.path={path}", "method=fine_tune", "dataset.answer_type=text")
    assert [note for note in data_notes(run) if "yes/no question" in note] == [f"data: {note}" for note in notes]


def test_two_words_that_are_not_read_as_yes_and_no_are_named_with_those_that_are(mine):
    """Before, the message advised other types only, and text then rejects the whole purchase."""
    report = check(str(mine(answered(["Ja", "Nein"]))), ["dataset.answer_type=yes_no"])
    assert report.answers == [
        "120 of 120 gold answers are not yes or no: 'Ja', 'Nein'. Do these words mean yes and no? Then write yes and no (or true or false, "
        "y or n, t or f) into the file. Otherwise choose dataset.answer_type=text: there a completion is right only if its answer is "
        "exactly that word."
    ]


CHOICES = [{"question": "What is wanted?", "answer": "ABC"[number % 3]} for number in range(60)]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [row | {"option_a": "red", "Option B": "blue", "C": "green", "shop": "X"} for row in CHOICES],
            "60 of 60 questions list no options such as (A), although the answers are letters; the columns 'option_a', 'Option B', 'C' "
            "look like options and are not read. Teacher and student would not see them: "
            "\"dataset.option_columns=[option_a,'Option B',C]\" writes them behind the question.",
        ),
        (CHOICES, "60 of 60 questions list no options such as (A), although the answers are letters. Put the options into the question"),
        (
            [row | {"A": "red", "B": "blue", "answer": "red green"} for row in CHOICES],
            "'A', 'B' look like options and are not read. Teacher and student would not see them: use letters as answers, with "
            "dataset.answer_type=choice dataset.choices=AB \"dataset.option_columns=[A,B]\", or put the options into the question.",
        ),
        ([row | {"question": "Which? (A) red (B) blue (C) green"} for row in CHOICES], None),
        ([row | {"question": "Which?\na) red\nb) blue\nc) green"} for row in CHOICES], None),
        ([row | {"question": "Which?\nA: red\nB: blue\nC: green", "A": "red", "B": "blue"} for row in CHOICES], None),
        ([row | {"A": "red", "answer": "red green"} for row in CHOICES], None),
    ],
)  # fmt: skip
def test_choices_without_options_in_the_question_are_named(mine, make_run, tmp_path, rows, expected):
    """The options were in columns of their own, and neither teacher nor student ever saw them."""
    path = str(mine([row | {"question": f"Case {number}: {row['question']}"} for number, row in enumerate(rows)]))
    report = check(path)
    own = ("dataset=custom", f"dataset.path={path}", "method=fine_tune")
    run = make_run(tmp_path, *own, *(word for word in report.guessed if word.startswith(("dataset.answer_type", "dataset.choices"))))
    notes = [note for note in data_notes(run) if "options" in note]
    assert len(notes) == (expected is not None)
    assert expected is None or expected in notes[0]
    if columns := [word for word in report.guessed if word.startswith("dataset.option_columns")]:
        assert not [note for note in report.notes if "options" in note], "the check reads what it proposes"
        assert run.problems[7].question == "Case 7: What is wanted?"
        run = make_run(tmp_path, *own, *report.guessed)
        assert run.problems[7].question == "Case 7: What is wanted? Answer Choices: (A) red (B) blue (C) green"
        assert not [note for note in data_notes(run) if "options" in note]
        assert columns[0] in shlex.split(report.command)
    else:
        assert notes == [f"data: {note}" for note in report.notes if "options" in note]


OPTIONS = [row | {"A": "red", "B": 2, "C": "" if number % 2 else "green"} for number, row in enumerate(CHOICES)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("dataset.answer_type=text", "dataset.option_columns=[A,B]"), r"only dataset.answer_type=choice reads it"),
        (("dataset.answer_type=choice", "dataset.choices=ABC", "dataset.option_columns=[A,B]"),
         r"names 2 columns, and dataset.choices=ABC has 3 letters: one column per letter"),
        (("dataset.option_columns=[A,B,X]",), r"has no column 'X'; it has A, B, C, answer, question.*'dataset.option_columns=\[...\]'"),
    ],
)  # fmt: skip
def test_wrong_columns_of_options_are_errors(mine, overrides, message):
    with pytest.raises(FcotError, match=message):
        check(str(mine(OPTIONS)), overrides)


def test_an_empty_option_is_left_out_and_one_that_is_a_list_is_a_fault(mine, make_run, tmp_path):
    rows = [row | {"question": f"Case {number}?"} for number, row in enumerate(OPTIONS)]
    path = str(mine(rows))
    run = make_run(tmp_path, "dataset=custom", f"dataset.path={path}", "method=fine_tune", *check(path).guessed)
    assert [run.problems[index].question for index in (2, 3)] == [
        "Case 2? Answer Choices: (A) red (B) 2 (C) green", "Case 3? Answer Choices: (A) red (B) 2",
    ]  # fmt: skip
    write_jsonl(tmp_path / "mine.jsonl", [rows[0] | {"A": ["red"]}, *rows[1:]])
    assert check(str(tmp_path / "mine.jsonl")).faults[0].endswith("the option A is a list, not one value")


def test_questions_without_answers_are_sent_to_predict(mine):
    path = str(mine([{"question": row["question"]} for row in ROWS]))
    with pytest.raises(FcotError, match=r"(?s)has no column 'answer'.*fcot predict STUDENT FILE"):
        check(path)
    report = check(str(mine([row | {"answer": ""} for row in ROWS])))
    assert "fcot predict STUDENT FILE" in report.to_text()
    assert "fcot predict" not in check(str(mine([*ROWS, {"question": "a", "answer": ""}]))).to_text()


@pytest.mark.parametrize(
    ("column", "cell", "proposed"),
    [("Ticket", "T{}", True), ("orderId", "{}", True), ("case_no", "{}", True), ("Ticket", "T", False), ("Kunde", "K{}", False),
     ("idea", "{}", False)],
)  # fmt: skip
def test_a_column_of_ids_is_proposed(mine, column, cell, proposed):
    path = str(mine([row | {column: cell.format(number)} for number, row in enumerate(ROWS)]))
    assert any(f"dataset.index_column={column} writes it" in note for note in check(path).notes) == proposed
    assert not any("index_column" in note for note in check(path, [f"dataset.index_column={column}"]).notes)


# --- faulty rows --------------------------------------------------------------------------------------------------

FAULTY = [  # of newcomers' files: a line of JSON, and what is said about it
    ('{"question": "a", "answer": ""}', "no gold answer (blank, NaN or null)"),
    ('{"question": "a", "answer": null}', "no gold answer (blank, NaN or null)"),
    ('{"question": "a"}', "no gold answer (blank, NaN or null)"),
    ('{"question": "a", "answer": "n/a"}', "the gold answer 'n/a' is not a number"),
    ('{"question": "a", "answer": "€1.200,50"}', "the gold answer '€1.200,50' is not a number"),
    ('{"question": "a", "answer": "12-15"}', "the gold answer '12-15' is not a number"),
    ('{"question": "a", "answer": "12 or 13"}', "the gold answer '12 or 13' is not a number"),
    ('{"question": "a", "answer": "about a dozen"}', "the gold answer 'about a dozen' is not a number"),
    ('{"question": "a", "answer": "-"}', "the gold answer '-' is not a number"),
    ('{"question": "", "answer": 1}', "empty question"),
    ('{"question": NaN, "answer": 1}', "empty question"),
    ('{"question": "   ", "answer": "many"}', "empty question"),
    ('{"question": ["a", "b"], "answer": 1}', "the question is a list, not one value"),
    ('{"question": "a", "answer": {"text": 1}}', "the answer is an object, not one value"),
    ('{"question": "a", "answer": [1, 2]}', "the answer is a list, not one value"),
    ('{"question": "a", "answer": 1', "malformed JSON (Expecting ',' delimiter at column 30)"),
    ("question: a, answer: 1", "malformed JSON (Expecting value at column 1)"),
    ('["a", 1]', "expected a JSON object with a cell per column"),
    ('{"question": "a", "answer": "1/0"}', "the gold answer '1/0' is not a number"),
    ('{"question": "a", "answer": "5:30 PM"}', "the gold answer '5:30 PM' is not a number"),
]


def test_twenty_faulty_rows_are_in_one_message_with_their_lines(tmp_path, make_run):
    path = tmp_path / "mine.jsonl"
    good = [json.dumps(row) for row in ROWS]
    lines = [line for number, (fault, _) in enumerate(FAULTY) for line in (good[2 * number], "", fault)] + good[40:]
    path.write_text("\n".join(lines) + "\n")
    expected = [f"{path}, line {3 * number + 3}: {text}" for number, (_, text) in enumerate(FAULTY)]
    expected.insert(12, f"{path}, line 36: the gold answer 'many' is not a number")  # a row may have two faults
    report = check(str(path), ["dataset.answer_type=number", "dataset.decimal=point"])
    assert report.faults == expected
    assert (report.n_faulty, report.usable) == (20, False)
    with pytest.raises(FcotError) as error:
        make_run(
            tmp_path, "dataset=custom", f"dataset.path={path}", "dataset.answer_type=number", "method=fine_tune", "dataset.decimal=point"
        )
    message = str(error.value).split("\n")
    assert message[:20] == expected[:20]
    assert message[20:] == [
        "and 1 more", "Correct these rows, or leave them out: dataset.on_invalid=skip.",
        "Rows without an answer can stay with curation=vote, which takes the answer that most completions give.",
        "1 of these would be numbers with a decimal comma: dataset.decimal=comma, if all answers have it.",
    ]  # fmt: skip


def test_faulty_rows_can_be_skipped_and_are_named(tmp_path, make_run):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join([json.dumps(ROWS[0]), *(line for line, _ in FAULTY), *map(json.dumps, ROWS[1:])]))
    overrides = ("dataset=custom", f"dataset.path={path}", "dataset.answer_type=number", "dataset.on_invalid=skip", "dataset.decimal=point")
    run = make_run(tmp_path, *overrides, "method=fine_tune")
    assert [problem.question for problem in run.problems.values()] == [row["question"] for row in ROWS]
    assert list(run.problems) == [0, *range(21, 140)]  # the position in the file, so that a corrected row changes no other
    (note,) = data_notes(run)
    assert note.startswith("data: 20 of 140 rows are left out (dataset.on_invalid=skip): ")
    assert f"{path}, line 2: no gold answer" in note
    assert note.endswith("; and 18 more")
    report = check(str(path), overrides[2:])
    assert (report.usable, report.skipped, report.n_faulty) == (True, True, 20)
    assert "20 of 140 rows; left out" in report.to_text()


def test_a_file_without_a_usable_row_is_an_error_even_if_rows_are_skipped(mine, make_run, tmp_path):
    path = mine([{"question": "a", "answer": "n/a"}] * 3)
    with pytest.raises(FcotError, match="is not a number"):
        make_run(
            tmp_path, "dataset=custom", f"dataset.path={path}", "dataset.answer_type=number", "dataset.on_invalid=skip", "method=fine_tune"
        )
    assert not check(str(path), ["dataset.answer_type=number", "dataset.on_invalid=skip"]).usable


def test_lines_are_right_where_rows_may_be_unanswered(mine, make_run, tmp_path):
    """With ``curation=vote`` unanswered rows are no faults, and the lines of later rows were once counted without them."""
    rows = [{"question": f"one\ntwo {row['question']}", "answer": row["answer"]} for row in ROWS]
    rows[18]["answer"], rows[40]["answer"] = "", "n/a"
    path = mine(rows)
    with pytest.raises(FcotError) as error:
        make_run(tmp_path, "dataset=custom", f"dataset.path={path}", "dataset.answer_type=number", "curation=vote", "teacher=openai",
                 "teacher.model=m", "teacher.base_url=http://127.0.0.1:9/v1")  # fmt: skip
    assert str(error.value).split("\n")[0] == f"{path}, line 82: the gold answer 'n/a' is not a number"
    assert "line 38" not in str(error.value)
    assert "curation=vote" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("question,answer\na,1\nb, or c,2\n",
         'line 3: 3 cells, but the header has 2; put a cell that contains commas in quotation marks ("...")'),
        ('question,answer\n"a "b" c",1\nd,2\n',
         'line 2: malformed CSV (a quotation mark within a cell in quotation marks is written twice: "")'),
        ('question,answer\na,1\n"b,2\n', "line 3: malformed CSV (a quotation mark opens a cell and no other one closes it)"),
    ],
)  # fmt: skip
def test_malformed_csv_says_what_to_write(tmp_path, text, fault):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    assert load(NUMBER, str(path)).faults == [f"{path}, {fault}"]


# --- answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "decimal", "values"),
    [
        (["1,5", "1.200,50", "7", "12,-", "€ 3.000"], "comma", ["1.5", "1200.5", "7", "12", "3000"]),
        (["1.5", "1,200.50", "7"], "point", ["1.5", "1200.5", "7"]),
        (["1.200", "7"], "point", ["1.2", "7"]),  # undecided
        (["1,5", "1.200"], "comma", ["1.5", "1200"]),
        (["1.234.567,8", "1"], "comma", ["1234567.8", "1"]),
    ],
)
def test_the_decimal_mark_is_detected(mine, written, decimal, values):
    data = load(NUMBER, str(mine([{"question": f"q{n}", "answer": text} for n, text in enumerate(written)])), decimal="auto")
    assert data.answers.decimal == decimal
    assert [NUMBER.rule.gold(problem.answer) for problem in data.problems] == values
    assert not data.faults


def test_one_answer_with_a_comma_does_not_change_the_reading_of_all_others(mine):
    data = load(
        NUMBER, str(mine([{"question": f"q{n}", "answer": text} for n, text in enumerate(["€1.200,50", "3,800", "4"])])), decimal="auto"
    )
    assert data.answers.decimal == "point"
    assert [problem.answer for problem in data.problems] == ["3,800", "4"]
    assert data.answers.n_unread_otherwise == 1


def test_numbers_that_can_be_read_in_two_ways_are_named(mine, make_run, tmp_path):
    rows = [*ROWS, {"question": "How much is it?", "answer": "1.200"}]
    path = str(mine(rows))
    (note,) = (note for note in check(path).notes if "two ways" in note)
    assert note.startswith("1 answer such as '1.200' can be read in two ways")
    overrides = ("dataset=custom", f"dataset.path={path}", "dataset.answer_type=number", "method=fine_tune")
    assert f"data: {note}" in data_notes(make_run(tmp_path, *overrides))
    for decimal, value in (("point", "1.200"), ("comma", "1,200")):
        run = make_run(tmp_path, *overrides, f"dataset.decimal={decimal}")
        assert run.problems[120].answer == value
        assert not any("two ways" in text for text in data_notes(run))
    assert not any("two ways" in note for note in check(str(mine([*rows, {"question": "And now?", "answer": "2.5"}]))).notes)


def test_the_report_shows_how_answers_are_read(mine):
    written = ["3,800", "$180", "57 boxes", "50%", "46"]
    report = check(str(mine([*ROWS, *({"question": f"q{n}", "answer": text} for n, text in enumerate(written))])))
    assert report.answers == ["read '3,800' as 3800, '$180' as 180, '57 boxes' as 57, '50%' as 50"]


def test_several_spellings_of_gold_answers_are_advised_against(mine, make_run, tmp_path):
    """The student learns each of them, and a preference loss learns the difference between spelled and plain answers."""
    written = ["3,800", "$180", "57 boxes", "46"]
    path = mine([*ROWS, *({"question": f"q{n}", "answer": text} for n, text in enumerate(written))])
    (note,) = (note for note in check(str(path)).notes if "spellings" in note)
    assert note == (
        "the answers have 4 spellings, and the student learns all of them ('3,800' for 3800, '$180' for 180, '57 boxes' for 57): "
        "dataset.normalize_answers=true trains on the values instead"
    )
    overrides = ("dataset=custom", f"dataset.path={path}", "dataset.answer_type=number", "teacher=openai", "teacher.model=m",
                 "teacher.base_url=http://127.0.0.1:9/v1")  # fmt: skip
    assert data_notes(make_run(tmp_path, *overrides)) == [f"data: {note}"]
    _, about_pairs = data_notes(make_run(tmp_path, *overrides, "objective=preference"))
    assert "objective=preference compares kept completions" in about_pairs
    assert about_pairs.endswith("Add dataset.normalize_answers=true")
    for further in ([], ["objective=preference"]):
        assert data_notes(make_run(tmp_path, *overrides, *further, "dataset.normalize_answers=true")) == []


@pytest.mark.parametrize(("written", "advised"), [
    (["1,5", "2,5", "3,25"], False),  # learned with points, as their values
    (["1,5", "2,5", "3,25 €"], True),
    (["$1", "$2", "$30"], False),  # one spelling
    (["1", "2", "30"], False),
])  # fmt: skip
def test_one_spelling_of_gold_answers_is_no_fault(mine, written, advised):
    report = check(str(mine([{"question": f"question {n}", "answer": text} for n, text in enumerate(written * 20)])))
    assert any("spellings" in note for note in report.notes) == advised


@pytest.mark.parametrize(
    ("rule", "written", "learned"),
    [
        (AnswerRule("number"), ["3,800", "$180", "1,608.50", "46"], ["3800", "180", "1608.5", "46"]),
        (AnswerRule("yes_no"), ["Yes.", "TRUE", "no"], ["yes", "yes", "no"]),
        (AnswerRule("choice", "ABC"), ["(b)", "C.", "A"], ["B", "C", "A"]),
        (AnswerRule("text"), [" New   York ", "Rome."], ["New York", "Rome."]),
    ],
)
def test_normalized_answers_have_one_spelling(mine, rule, written, learned):
    path = str(mine([{"question": f"q{n}", "answer": text} for n, text in enumerate(written)]))
    task = custom_task("mine", rule)
    assert [problem.answer for problem in load(task, path).problems] == written
    data = load(task, path, normalize=True)
    assert [problem.answer for problem in data.problems] == learned
    assert [data.answer_of(problem) for problem in data.problems] == written


# --- ids ----------------------------------------------------------------------------------------------------------


def test_ids_of_any_column_are_texts_and_unique(mine):
    rows = [{"ticket": f"00{n}", "question": f"q{n}", "answer": n} for n in range(3)]
    data = load(NUMBER, str(mine(rows)), Columns(index="ticket"))
    assert [(problem.sample_index, problem.id) for problem in data.problems] == [(0, "000"), (1, "001"), (2, "002")]
    rows += [{"ticket": "001", "question": "again", "answer": 1}, {"ticket": "", "question": "none", "answer": 1}]
    path = mine(rows)
    assert load(NUMBER, str(path), Columns(index="ticket")).faults == [
        f"{path}, line 5: the id '001' is repeated (first in line 3)", f"{path}, line 6: no id in the column 'ticket'",
    ]  # fmt: skip


def test_names_in_the_column_sample_index_are_ids(mine):
    rows = [{"sample_index": f"WH-{n}", "question": f"q{n}", "answer": n} for n in range(3)]
    assert [problem.id for problem in load(NUMBER, str(mine(rows))).problems] == ["WH-0", "WH-1", "WH-2"]


def test_ids_are_in_exams_and_error_marks():
    prediction = Prediction(7, "q?", "3", "So 4. --> 4", "4", False, True, 5, id="WH-7")
    assert examine([prediction, replace(prediction, completion="5")]).id == "WH-7"
    assert mark(prediction, AnswerRule("number"), "-->").id == "WH-7"


# --- duplicates and leaks -----------------------------------------------------------------------------------------


def test_contradictions_and_duplicates_are_named_with_lines_and_cells(mine, make_run, tmp_path):
    rows = [
        *ROWS,
        {"question": f"  {ROWS[4]['question']}", "answer": "999"},
        dict(ROWS[7]),
        {**ROWS[8], "answer": f"{ROWS[8]['answer']}.0"},
    ]
    path = mine(rows)
    notes = check(str(path)).notes
    assert (
        f"1 question with different gold answers, of which at most one is right: line 6 ('{ROWS[4]['answer']}') and line 122 ('999')"
        in notes
    )
    assert "2 rows with the question and answer of an earlier row: line 123, line 124" in notes
    run = make_run(tmp_path, "dataset=custom", f"dataset.path={path}", "dataset.answer_type=number", "method=fine_tune")
    assert data_notes(run) == [f"data: {note}" for note in notes[:3]]
    assert set(data_notes(run)) <= set(estimate(run, {}).notes)


def test_test_problems_that_resemble_train_problems_are_counted(mine):
    rows = [{**row, "part": "test" if n >= 100 else "train"} for n, row in enumerate(ROWS)]
    rows += [{**ROWS[3], "part": "test"}, {"question": ROWS[5]["question"].replace(" 1", " 2"), "answer": "1", "part": "test"}]
    report = check(str(mine(rows)), ["dataset.split_column=part"])
    assert "1 test problem also in train or validation: line 122" in report.notes
    assert any("are in train with the same or other numbers" in note for note in report.notes)


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_ends_with_1_if_a_run_cannot_use_the_data(mine, capsys):
    for rows, code in ((ROWS, 0), ([*ROWS, {"question": "", "answer": 1}], 1)):
        path = mine(rows)
        with pytest.raises(SystemExit) as exit_code:
            command.main([str(path)])
        assert exit_code.value.code == code
        printed = capsys.readouterr().out
        assert ("next     fcot run dataset=custom" in printed) == (code == 0)
    for words, message in (
        ([str(path), str(path)], "one file at a time"),
        (["--all"], "takes a file and overrides"),
        (["nowhere.csv"], "no such file"),
    ):
        with pytest.raises(SystemExit):
            command.main(words)
        assert message in capsys.readouterr().err


def test_the_proposed_command_names_the_data(mine, tmp_path):
    """The name is part of what is paid for: ``custom``, the default, would be shared by all files."""
    assert " dataset=custom dataset.name=mine dataset.path=" in check(str(mine(ROWS))).command
    assert check(str(mine(ROWS)), ["dataset.name=coins"]).command.count("dataset.name=") == 1
    named = {"Kisten & Kästen (2).csv": "kisten_k_sten_2", "svamp.csv": "my_svamp", "数.csv": "my_data"}
    for file, name in named.items():
        assert f" dataset.name={name} " in check(str(write_csv(tmp_path / file, ROWS))).command
    assert "dataset.name=" not in check(None, ["dataset=toy_arithmetic"]).command


def test_a_file_may_have_any_name(tmp_path):
    path = write_csv(tmp_path / "müller's (v2), a=b.csv", ROWS)
    assert check(*command.parse([str(path)])).usable


def test_too_few_problems_to_split_are_a_fault(mine):
    report = check(str(mine(ROWS[:1])))
    assert not report.usable
    assert report.faults[0].startswith("split-mode=hash: mine has too few different problems")
    assert f"{mine(ROWS[:1])}: 1 row (" in report.to_text()


def test_lengths_are_counted_in_the_students_tokens(mine, tmp_path):
    folder = save_gpt2(tmp_path / "student")
    overrides = ["student=causal", f"student.path={folder}", "student.max_prompt_tokens=40", "student.max_completion_tokens=20"]
    report = check(str(mine(ROWS)), overrides)
    assert any("student.max_prompt_tokens=40 cuts" in line and "the longest is line" in line for line in report.tokens)
    assert check(str(mine(ROWS))).tokens == []


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.n_rows])
def test_the_gold_answers_of_every_published_task_pass_its_own_parser(name, shared_data):
    report = check(None, [f"dataset={name}", f"dataset.path={shared_data / 'dataset' / name}.json"])
    assert report.faults == []
    assert report.answer_type == TASKS[name].rule.answer_type
    assert report.split["test"] == TASKS[name].n_test


@pytest.mark.parametrize("name", TOY_TASKS)
def test_the_gold_answers_of_every_toy_task_pass_its_own_parser(name):
    assert check(None, [f"dataset={name}", "dataset.n_problems=50"]).usable


def test_a_large_file_shows_progress_and_a_small_one_does_not(mine, capsys, monkeypatch):
    monkeypatch.setattr(console, "PLAIN_EVERY_S", 0.0)
    monkeypatch.setattr(console, "_CHUNK", 10)
    path = mine([{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(40)])
    check(str(path))
    assert "rows" not in capsys.readouterr().err
    monkeypatch.setattr(console, "_MANY", 20)
    read_once.cache_clear()
    check(str(path))
    shown = capsys.readouterr().err
    assert "read: 10/40 rows" in shown
    assert "compare wordings: 10/" in shown
