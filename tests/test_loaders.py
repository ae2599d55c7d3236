"""Loading problems from files and from the hub: all formats, all messages."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from fcot.base.errors import FcotError
from fcot.base.records import Problem
from fcot.prompts.answers import AnswerRule
from fcot.tasks import reading
from fcot.tasks.hub import HubSource
from fcot.tasks.loaders import Columns, load_problems
from fcot.tasks.reading import is_hub_id
from fcot.tasks.table import TASKS, Task, custom_task

MINE = custom_task("mine", AnswerRule("number"))
ROWS = [
    {"sample_index": 4, "question": 'How many, "all" in all?', "answer": "18", "rationale": "r", "template_id": "t"},
    {"sample_index": 2, "question": "Line one.\nLine two: 1,000?", "answer": "1,800.50", "rationale": "s", "template_id": "u"},
]
PROBLEMS = [Problem(**row) for row in reversed(ROWS)]  # by sample index


def write(path: Path, rows: list[dict]) -> Path:
    """Write the rows in the format of the file's suffix."""
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps({"metadata": {"dataset_key": "mine"}, "data": rows}))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path: Path, columns: Columns | None = None, task: Task = MINE) -> list[Problem]:
    return load_problems(task, str(path), columns or Columns())


# --- formats ------------------------------------------------------------------------------------------------------

SUFFIXES = ["json", "jsonl", "ndjson", "csv", "tsv", "parquet"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_problems(tmp_path, suffix):
    assert load(write(tmp_path / f"mine.{suffix}", ROWS)) == PROBLEMS


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_columns_can_have_other_names_and_rows_need_no_index(tmp_path, suffix):
    path = write(
        tmp_path / f"mine.{suffix}", [{"q": "a?", "a": "1", "why": "r", "form": "t"}, {"q": "b?", "a": "2", "why": "s", "form": "u"}]
    )
    problems = load(path, Columns(question="q", answer="a", rationale="why", template="form"))
    assert problems == [Problem(0, "a?", "1", "r", "t"), Problem(1, "b?", "2", "s", "u")]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
@pytest.mark.parametrize(("numbers", "texts"), [([18, 7], ["18", "7"]), ([18.0, 0.1], ["18", "0.1"])])
def test_whole_numbers_are_read_without_point_zero(tmp_path, suffix, numbers, texts):
    path = write(tmp_path / f"mine.{suffix}", [{"question": "q?", "answer": number} for number in numbers])
    assert [problem.answer for problem in load(path)] == texts


def test_answers_in_json_lines_may_be_numbers_or_texts(tmp_path):
    path = write(tmp_path / "mine.jsonl", [{"question": "q?", "answer": answer} for answer in (18, "$18.00", 0.5)])
    assert [MINE.rule.gold(problem.answer) for problem in load(path)] == ["18", "18", "0.5"]


def test_true_and_false_are_read_as_yes_and_no(tmp_path):
    path = write(tmp_path / "mine.jsonl", [{"question": "a?", "answer": True}, {"question": "b?", "answer": False}])
    assert [problem.answer for problem in load(path, task=custom_task("mine", AnswerRule("yes_no")))] == ["yes", "no"]


def test_csv_cells_are_read_as_text(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("\ufeffquestion,answer,rationale\nNA,007,\n\n1e-05,12,NaN\n")
    assert load(path) == [Problem(0, "NA", "007", None), Problem(1, "1e-05", "12", None)]


def test_json_may_be_a_plain_list_of_problems(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(ROWS))
    assert load(path) == PROBLEMS
    path.write_text(json.dumps({"version": 1, "data": ROWS}))
    assert load(path) == PROBLEMS


def test_a_template_pattern_assigns_templates(tmp_path):
    questions = ["Today is May 1. What is the date tomorrow? (A) 1", "Today is May 1. What is the date today? (A) 2", "No such words"]
    path = write(tmp_path / "dates.jsonl", [{"question": question, "answer": "A"} for question in questions])
    problems = load(path, task=TASKS["date_understanding"])
    assert [problem.template_id for problem in problems] == ["Today is May 1.", "Today is May 1.", "No such words"]


# --- bad files ----------------------------------------------------------------------------------------------------

CHOICE = custom_task("mine", AnswerRule("choice", "ABC"))
GOOD = '{"question": "a", "answer": 1}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.jsonl", GOOD + "\n" + '{"question": "b"', "{path}, line 3: malformed JSON"),
        ("mine.jsonl", GOOD + "[1]\n", "{path}, line 2: expected a JSON object"),
        ("mine.jsonl", GOOD + '{"question": " ", "answer": 1}\n', "{path}, line 2: empty question"),
        ("mine.jsonl", GOOD + '\n{"question": null, "answer": 1}\n', "{path}, line 3: empty question"),
        ("mine.jsonl", GOOD + '{"question": "b", "answer": "many"}\n', "{path}, line 2: the gold answer 'many' is not a number"),
        ("mine.jsonl", GOOD + '{"question": "b"}\n', "{path}, line 2: no gold answer (blank, NaN or null)"),
        ("mine.jsonl", GOOD + '{"sample_index": 0, "question": "b", "answer": 1}', "{path}, line 1: no sample_index; other rows have one"),
        ("mine.jsonl", '{"sample_index": 0, "question": "a", "answer": 1}\n{"sample_index": "0", "question": "b", "answer": 1}',
         "{path}, line 2: sample index 0 is repeated (first in line 1)"),
        ("mine.jsonl", '{"sample_index": [0, 1], "question": "a", "answer": 1}', "{path}, line 1: sample_index [0, 1] is not an integer"),
        ("mine.jsonl", GOOD + '{"question": NaN, "answer": 1}', "{path}, line 2: empty question"),
        ("mine.jsonl", GOOD + '{"question": "b", "answer": ["x", "y"]}', "{path}, line 2: the answer is a list, not one value"),
        ("mine.jsonl", GOOD + '{"question": {"text": "b"}, "answer": 1}', "{path}, line 2: the question is an object, not one value"),
        ("mine.jsonl", '{"sample_index": 1.5, "question": "b", "answer": 1}', "{path}, line 1: sample_index 1.5 is not an integer"),
        ("mine.jsonl", '{"text": "b", "label": 1}', "{path} has no column 'question' or 'answer'; it has label, text."),
        ("mine.jsonl", '{"question": "b", "label": 1}', "{path} has no column 'answer'; it has label, question."),
        ("mine.jsonl", "\n", "{path} holds no problems"),
        ("mine.json", '{"data": [', "{path}: not JSON"),
        ("mine.json", '{"questions": []}', "{path}: expected"),
        ("mine.json", '{"data": []}', "{path} holds no problems"),
        ("mine.json", '[{"question": "a", "answer": 1}, 2]', "{path}, row 2: expected a JSON object"),
        ("mine.json", '{"data": [{"question": "a", "answer": 1}, {"question": "", "answer": 1}]}', "{path}, row 2: empty question"),
        ("mine.csv", 'question,answer\n"a\nb",1\n,2\n', "{path}, line 4: empty question"),
        ("mine.csv", "question,answer\na,1\nb,2,3\n", "{path}, line 3: 3 cells, but the header has 2"),
        ("mine.csv", "question,answer\na,1\nb\n", "{path}, line 3: 1 cells, but the header has 2"),
        ("mine.csv", "question,answer\n\na,one\n", "{path}, line 3: the gold answer 'one' is not a number"),
        ("mine.csv", "sample_index,question,answer\n1,a,1\n2,b,1\n,c,1\n", "{path}, line 4: no sample_index; other rows have one"),
        ("mine.csv", f'question,answer\na,1\n"{"b" * 200_000}', "{path}, line 3: malformed CSV"),
        ("mine.csv", "Frage;answer\na;1\n", "{path} has no column 'question'; it has Frage, answer."),
        ("mine.csv", "question,question,answer\na,b,1\n", "{path}: the header has the column 'question' twice; rename one"),
        ("mine.csv", 'question,answer\nb,1\n"a,1\n', "{path}, line 3: malformed CSV (a quotation mark opens a cell"),
        ("mine.csv", "question,answer\n", "{path} holds no problems"),
        ("mine.csv", "", "{path} holds no problems"),
        ("mine.tsv", "question\tanswer\na,b\tmany\n", "{path}, line 2: the gold answer 'many' is not a number"),
        ("mine.parquet", "no parquet", "{path}: cannot be read as Parquet"),
        ("mine.txt", "a", "dataset.path={path}: unknown format; a data file ends with .json"),
    ],
)  # fmt: skip
def test_malformed_files_are_reported_in_one_message(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FcotError) as error:
        load(path)
    assert message.format(path=path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mine.csv", "mine.jsonl", "mine.json"])
def test_text_in_another_encoding_is_shown_as_the_likely_encodings_read_it(tmp_path, name):
    path = tmp_path / name
    question = "Ile żółtych kul?"
    content = {
        "mine.csv": f"question,answer\n{question},1\n",
        "mine.jsonl": f"{GOOD}{json.dumps({'question': question}, ensure_ascii=False)}",
    }
    path.write_text(content.get(name, f'[\n"{question}"]'), encoding="cp1250")
    with pytest.raises(FcotError, match=rf"{name}, line 2: not UTF-8 text(?s:.*)cp1250: .*żółtych(?s:.*)iconv -f ENCODING -t UTF-8 {name}"):
        load(path)


def test_utf16_which_excel_writes_is_read(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("question\tanswer\nżółw?\t1\n", encoding="utf-16")
    assert load(path) == [Problem(0, "żółw?", "1")]


def test_a_missing_file_and_a_folder_have_different_messages(tmp_path):
    with pytest.raises(FcotError, match=r"dataset\.path=.*nowhere\.csv: no such file"):
        load(tmp_path / "nowhere.csv")
    with pytest.raises(FcotError, match=r"dataset\.path=.*: a folder, but none that datasets' save_to_disk wrote"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("rule", "answer", "expected"),
    [
        (AnswerRule("choice", "ABC"), "D", "one of the letters A, B, C"),
        (AnswerRule("choice", "ABC"), "A Beautiful Cat"[2:], "one of the letters A, B, C"),
        (AnswerRule("yes_no"), "maybe", "yes or no (or true or false, y or n, t or f)"),
        (AnswerRule("number"), "1/0", "a number"),
        (AnswerRule("text"), '"."', "a text"),
    ],
)
def test_gold_answers_of_another_type_are_an_error(tmp_path, rule, answer, expected):
    path = write(tmp_path / "mine.jsonl", [{"question": "q?", "answer": answer}])
    with pytest.raises(FcotError) as error:
        load(path, task=custom_task("mine", rule))
    assert str(error.value) == f"{path}, line 1: the gold answer {answer!r} is not {expected}"


# --- the hub ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "is_id"),
    [
        ("openai/gsm8k", True),
        ("openai/gsm8k:main", True),
        ("a.b/c-d_e", True),
        ("data/mine.csv", False),
        ("mine", False),
        ("/a/b/c", False),
    ],
)
def test_hub_ids_are_recognized(source, is_id):
    assert is_hub_id(source) == is_id


def test_an_existing_folder_is_not_a_hub_id(tmp_path, monkeypatch):
    (tmp_path / "openai" / "gsm8k").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("openai/gsm8k")


class Hub:
    """Replaces ``datasets.load_dataset``: returns rows by split and records the calls."""

    def __init__(self, **splits: list[dict]) -> None:
        self.splits = splits
        self.calls: list[tuple] = []

    def __call__(self, id: str, *, split: str, **options) -> list[dict]:
        self.calls.append((id, split, options))
        return list(self.splits[split])


SVAMP_ROW = {"ID": "chal-{}", "Body": " Dan had $ 3. ", "Question": "How much is left?", "Answer": "3.0", "Type": "Subtraction"}
GSM8K_ROW = {"question": "How many clips? ", "answer": "Half is 48/2 = <<48/2=24>>24.\nIn all 72.\n#### 72"}
AQUA_ROW = {"question": "How fast?", "options": ["A)21", "B)2 (A) 1", "C) 3"], "rationale": "So it is 3.", "correct": "C"}
CSQA_ROW = {"question": "Where to?", "choices": {"label": ["A", "B"], "text": ["race track", "desert"]}, "answerKey": "B"}
STRATEGY_ROW = {"question": "Is it?", "answer": True, "facts": ["It was.", "It is."]}
OBJECTS_ROW = {
    "inputs": "Q: Alice has a ball. \n\nFirst, they swap. At the end, Alice has the "
              "\n  choice: red ball.\n  choice: blue ball.\n  choice: ball.\nA:",
    "multiple_choice_targets": ["red ball.", "blue ball.", "ball."],
    "multiple_choice_scores": [0, 1, 0],
}  # fmt: skip
FIVE_OBJECTS_ROW = {**OBJECTS_ROW, "multiple_choice_targets": list("vwxyz"), "multiple_choice_scores": [0, 0, 0, 0, 1]}


@pytest.mark.parametrize(
    ("name", "row", "problem"),
    [
        ("single_eq", {"input": " How many? ", "target": " 43 "}, Problem(0, "How many?", "43")),
        ("addsub", {"input": "How many?", "target": 43}, Problem(0, "How many?", "43")),
        ("multiarith", {"question": "How many? ", "final_ans": "39"}, Problem(0, "How many?", "39")),
        ("svamp", {**SVAMP_ROW, "ID": "chal-1"}, Problem(0, "Dan had $ 3. How much is left?", "3")),
        ("gsm8k", GSM8K_ROW, Problem(0, "How many clips?", "72", "Half is 48/2 = <<48/2=24>>24.\nIn all 72.")),
        ("aqua", AQUA_ROW, Problem(0, "How fast? Answer Choices: (A) 21 (B) 2 (A) 1 (C) 3", "C", "So it is 3.")),
        ("commonsense_qa", CSQA_ROW, Problem(0, "Where to? Answer Choices: (A) race track (B) desert", "B")),
        ("strategy_qa", STRATEGY_ROW, Problem(0, "Is it?", "yes", "It was. It is.")),
        ("strategy_qa", {**STRATEGY_ROW, "answer": False}, Problem(0, "Is it?", "no", "It was. It is.")),
        ("last_letter_concatenation", {"question": "Take.", "answer": "yajo"}, Problem(0, "Take.", "yajo")),
        (
            "tracking_shuffled_objects", OBJECTS_ROW,
            Problem(0, "Alice has a ball. \n\nFirst, they swap. At the end, Alice has the \nWhich choice is true ? "
                       "Answer Choices: (A) red ball. (B) blue ball. (C) ball.", "B"),
        ),
    ],
)  # fmt: skip
def test_upstream_rows_become_problems(name, row, problem):
    source: HubSource = TASKS[name].hub
    assert set(source.columns) <= set(row)
    question, answer, rationale = source.fields(row)
    assert Problem(0, question, answer, rationale) == problem
    assert TASKS[name].rule.gold(answer) == answer


def from_hub(monkeypatch, name: str, **splits: list[dict]) -> tuple[list[Problem], Hub]:
    hub = Hub(**splits)
    monkeypatch.setattr(reading, "_load_dataset", hub)
    return load_problems(TASKS[name], None), hub


def test_splits_are_concatenated_in_order(monkeypatch):
    train = [{"question": f"train {i}", "answer": f"#### {i}"} for i in range(7473)]
    test = [{"question": f"test {i}", "answer": f"#### {i}"} for i in range(1319)]
    problems, hub = from_hub(monkeypatch, "gsm8k", train=train, test=test)
    assert [problems[i].question for i in (0, 7472, 7473, 8791)] == ["train 0", "train 7472", "test 0", "test 1318"]
    assert [problem.sample_index for problem in problems] == list(range(8792))
    assert hub.calls == [("openai/gsm8k", "train", {"name": "main"}), ("openai/gsm8k", "test", {"name": "main"})]


def test_svamp_rows_are_sorted_into_their_original_order(monkeypatch):
    rows = [{**SVAMP_ROW, "ID": f"chal-{i}", "Answer": float(i)} for i in range(1, 1001)]
    problems, _ = from_hub(monkeypatch, "svamp", train=rows[::-2], test=rows[::2])
    assert [problem.answer for problem in problems] == [str(i) for i in range(1, 1001)]


def test_rows_with_five_shuffled_objects_are_left_out(monkeypatch):
    rows = [row for _ in range(750) for row in (OBJECTS_ROW, FIVE_OBJECTS_ROW)]
    problems, _ = from_hub(monkeypatch, "tracking_shuffled_objects", default=rows)
    assert len(problems) == 750


def test_a_task_can_be_one_file_of_a_hub_repository(monkeypatch):
    _, hub = from_hub(monkeypatch, "addsub", train=[{"input": f"q {i}", "target": "1"} for i in range(395)])
    assert hub.calls == [("HuggingFaceTB/math_tasks", "train", {"data_files": "data/mawps/addsub.jsonl"})]


HUB_ROWS = {
    "single_eq": {"input": "q", "target": "1"},
    "addsub": {"input": "q", "target": "1"},
    "multiarith": {"question": "q", "final_ans": "1"},
    "gsm8k": GSM8K_ROW,
    "aqua": AQUA_ROW,
    "svamp": {**SVAMP_ROW, "ID": "chal-1"},
    "tracking_shuffled_objects": OBJECTS_ROW,
    "last_letter_concatenation": {"question": "q", "answer": "a"},
    "commonsense_qa": CSQA_ROW,
    "strategy_qa": STRATEGY_ROW,
}


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.hub])
def test_an_unexpected_number_of_upstream_rows_is_an_error(monkeypatch, name):
    task = TASKS[name]
    with pytest.raises(FcotError) as error:
        from_hub(monkeypatch, name, **{split: [HUB_ROWS[name]] for split in task.hub.splits})
    n_splits = len(task.hub.splits)
    assert (
        str(error.value)
        == f"'{task.hub.id}' on the hub has {n_splits} rows of {task.title}, not {task.n_rows:,}: dataset.path=FILE instead"
    )


def test_a_missing_upstream_column_is_reported(monkeypatch):
    with pytest.raises(FcotError, match=r"'openai/gsm8k' on the hub no longer has the column 'answer': dataset\.path=FILE"):
        from_hub(monkeypatch, "gsm8k", train=[{"question": "q", "solution": "1"}], test=[])


@pytest.mark.parametrize("name", ["coin_flip", "date_understanding"])
def test_tasks_without_a_hub_copy_ask_for_a_file(name):
    with pytest.raises(FcotError, match=rf"no hub copy .*dataset\.path=FILE \(the authors' {name}\.json\)"):
        load_problems(TASKS[name], None)


def test_problems_can_come_from_a_hub_id_of_the_user(monkeypatch):
    hub = Hub(train=[{"q": "a?", "a": 1.0}])
    monkeypatch.setattr(reading, "_load_dataset", hub)
    assert load_problems(MINE, "me/mine:small", Columns("q", "a")) == [Problem(0, "a?", "1")]
    assert hub.calls == [("me/mine", "train", {"name": "small"})]
    with pytest.raises(FcotError, match="me/mine has no column 'question' or 'answer'; it has a, q"):
        load_problems(MINE, "me/mine")


@pytest.mark.parametrize("error", [ConnectionError("no route to host\nmore"), ConnectionError()])
@pytest.mark.parametrize(("task", "source", "id"), [(TASKS["svamp"], None, "ChilleD/SVAMP"), (MINE, "me/mine", "me/mine")])
def test_an_unreachable_hub_is_reported_with_the_override_for_a_file(monkeypatch, task, source, id, error):
    def unreachable(*arguments, **options):
        raise error

    monkeypatch.setattr(reading, "_load_dataset", unreachable)
    with pytest.raises(FcotError) as caught:
        load_problems(task, source)
    assert f"could not load '{id}' from the hub (ConnectionError" in str(caught.value)
    assert "dataset.path=FILE" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_gsm8k_answers_are_separated_into_rationale_and_number(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "How many?", "answer": "Two and two are <<2+2=4>>4.\\n#### 1,004"}\n')
    (problem,) = load_problems(custom_task("custom", AnswerRule("number")), str(path))
    assert (problem.answer, problem.rationale) == ("1,004", "Two and two are <<2+2=4>>4.")


@pytest.mark.parametrize("index", ["q-17", "²", "1a"])
def test_rows_with_names_as_indices_are_numbered_in_order(tmp_path, index):
    path = write(
        tmp_path / "mine.jsonl",
        [{"sample_index": index, "question": "a", "answer": 1}, {"sample_index": "7", "question": "b", "answer": 2}],
    )
    assert [problem.sample_index for problem in load(path)] == [0, 1]


def test_a_repeated_name_is_an_error(tmp_path):
    path = write(tmp_path / "mine.jsonl", [{"sample_index": name, "question": name, "answer": 1} for name in ("q-1", "q-2", "q-1")])
    with pytest.raises(FcotError, match=r"mine.jsonl, line 3: the id 'q-1' is repeated \(first in line 1\)"):
        load(path)


@pytest.mark.parametrize("missing", ["NaN", "null", '""', '"NaN"'])
def test_all_spellings_of_a_missing_value_are_recognized(tmp_path, missing):
    path = tmp_path / "mine.jsonl"
    path.write_text(f'{{"sample_index": {missing}, "question": "a", "answer": 1, "rationale": {missing}, "template_id": {missing}}}\n')
    (problem,) = load(path)
    assert problem.sample_index == 0
    assert not problem.rationale
    assert not problem.template_id


def test_small_numbers_keep_their_digits(tmp_path):
    path = write(tmp_path / "mine.jsonl", [{"question": "a", "answer": 0.00001}, {"question": "b", "answer": 1e21}])
    assert [problem.answer for problem in load(path)] == ["0.00001", "1000000000000000000000"]


@pytest.mark.parametrize("name", ["mine.json", "mine.jsonl", "mine.csv"])
def test_every_json_format_ignores_a_byte_order_mark_and_reads_true_as_yes(tmp_path, name):
    path = tmp_path / name
    content = {
        "mine.json": '[{"question": "a", "answer": true}]',
        "mine.jsonl": '{"question": "a", "answer": true}',
        "mine.csv": "question,answer\na,True",
    }
    path.write_text("\ufeff" + content[name] + "\n", encoding="utf-8")
    (problem,) = load(path, task=custom_task("mine", AnswerRule("yes_no")))
    assert AnswerRule("yes_no").gold(problem.answer) == "yes"


def test_only_a_newline_ends_a_line(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("question,answer\na\u2028b\x0cc\x85d,1\n", encoding="utf-8")
    assert load(path)[0].question == "a\u2028b\x0cc\x85d"


def test_all_faulty_rows_are_reported_in_one_message(tmp_path):
    path = write(tmp_path / "mine.jsonl", [{"question": "a", "answer": "many"}] * 30)
    with pytest.raises(FcotError) as error:
        load(path)
    lines = str(error.value).split("\n")
    assert lines[:2] == [f"{path}, line {n}: the gold answer 'many' is not a number" for n in (1, 2)]
    assert lines[20:] == ["and 10 more"]
