"""Exported reasoning samples: what each format holds, and that the programs which read it do."""

from __future__ import annotations

import json
import re

import datasets
import pytest
from students import save_gpt2
from test_run import make_run

from fcot.base.errors import FcotError
from fcot.base.files import read_jsonl, write_jsonl
from fcot.config.schema import register_schemas
from fcot.export import export, main
from fcot.runs.pipeline import execute

TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{{ eos_token }}{% endfor %}<assistant>"
QUICK = ["dataset.n_problems=60", "teacher.error_rate=0.3", "until=curate"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has curated; the teacher is wrong in about 30 % of its completions."""
    register_schemas()
    run = make_run(tmp_path_factory.mktemp("outputs"), *QUICK)
    execute(run, _config(run))
    return run


def _config(run) -> str:
    """The configuration as a run's folder has it, as far as the export reads it."""
    return f"dataset: {{name: {run.task.name}}}\nteacher: {{name: oracle}}\nmethod: {{name: {run.config.method.name}}}\n"


def exported(run, tmp_path, format_name: str) -> list[dict]:
    export(run.directory.path, tmp_path / "rows.jsonl", format_name)
    return list(read_jsonl(tmp_path / "rows.jsonl"))


def ids_of(row: dict) -> tuple[int, int]:
    return row["sample_index"], row["completion_index"]


def test_messages_are_the_kept_completions_with_their_split_ids_teacher_and_terms(run, tmp_path):
    rows, curated = exported(run, tmp_path, "messages"), list(read_jsonl(run.directory.curated))
    kept = [row for row in curated if row["kept"]]
    assert 0 < len(kept) < len(curated)
    assert [ids_of(row) for row in rows] == [ids_of(row) for row in kept]
    for row, expected in zip(rows, kept, strict=True):
        question, answer = row["messages"]
        assert question == {"role": "user", "content": expected["question"]}
        assert answer == {"role": "assistant", "content": f"{expected['rationale']} --> {expected['answer']}"}
        assert all(row[name] == expected[name] for name in ("question", "rationale", "answer"))
        assert (row["split"], row["task"]) == ("train", "toy_arithmetic")
        assert "written by a program" in row["terms"]
    assert not {"id", "round"} & set(rows[0])


def test_a_row_keeps_the_id_of_the_users_data_and_no_test_problem_is_exported(run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    split = json.loads(run.directory.split.read_text())
    train, validation, test = split["train"][0], split["validation"][0], split["test"][0]
    first = next(row for row in read_jsonl(run.directory.curated) if row["kept"])
    rows = [first | {"sample_index": index, "id": f"WH-{index}"} for index in (train, validation, test)]
    write_jsonl(folder / "curated.jsonl", rows)
    (folder / "split.json").write_text(json.dumps(split))
    (folder / "config.yaml").write_text(_config(run))
    shown = [(row["sample_index"], row["id"], row["split"]) for row in exported_from(folder, tmp_path, "messages")]
    assert shown == [(train, f"WH-{train}", "train"), (validation, f"WH-{validation}", "validation")]
    export(folder, tmp_path / "data", "datasets")
    assert {name: len(part) for name, part in datasets.load_from_disk(tmp_path / "data").items()} == {"train": 1, "validation": 1}


def test_rows_of_tailored_learning_name_their_round_also_before_the_run_is_finished(run, tmp_path):
    folder = tmp_path / "run"
    (folder / "round_1").mkdir(parents=True)
    (folder / "round_2").mkdir()
    for name in ("split.json", "config.yaml"):
        (folder / name).write_bytes((run.directory.path / name).read_bytes())
    rows = list(read_jsonl(run.directory.curated))[:8]
    for number in (1, 2):
        write_jsonl(folder / f"round_{number}/curated.jsonl", rows)
    before = {name: exported_from(folder, tmp_path, name) for name in ("messages", "preference")}
    ids = [(row["round"], *ids_of(row)) for row in before["messages"]]
    assert len(set(ids)) == len(ids) == 2 * sum(row["kept"] for row in rows)
    assert {row["round"] for row in before["preference"]} <= {1, 2}
    write_jsonl(folder / "curated.jsonl", [{"round": number} | row for number in (1, 2) for row in rows])
    assert {name: exported_from(folder, tmp_path, name) for name in before} == before


def exported_from(folder, tmp_path, format_name: str) -> list[dict]:
    export(folder, tmp_path / "rows.jsonl", format_name)
    return list(read_jsonl(tmp_path / "rows.jsonl"))


def test_a_pair_has_a_kept_and_a_worse_completion_of_the_same_problem(run, tmp_path):
    pairs = exported(run, tmp_path, "preference")
    curated = {(row["sample_index"], row["completion_index"]): row for row in read_jsonl(run.directory.curated)}
    assert pairs
    used = set()
    for pair in pairs:
        index = pair["sample_index"]
        chosen, rejected = curated[index, pair["completion_index"]], curated[index, pair["rejected_completion_index"]]
        assert chosen["kept"]
        assert not rejected["kept"]
        assert pair["rejected_reason"] == rejected["reason"] == "wrong_answer"
        assert pair["chosen"][0]["content"] == pair["chosen_text"] == f"{chosen['rationale']} --> {chosen['answer']}"
        assert pair["rejected"][0]["content"] == pair["rejected_text"] == f"{rejected['rationale']} --> {rejected['prediction']}"
        assert pair["prompt"] == [{"role": "user", "content": chosen["question"]}]
        used |= {(index, pair["completion_index"]), (index, pair["rejected_completion_index"])}
    assert len(used) == 2 * len(pairs)


@pytest.mark.parametrize(("reason", "is_worse"), [
    ("wrong_answer", True), ("truncated", True), ("no_answer", True), ("duplicate_rationale", False), ("undersampled", False),
])  # fmt: skip
def test_a_completion_that_was_not_rejected_for_its_quality_is_in_no_pair(run, tmp_path, reason, is_worse):
    folder = tmp_path / "run"
    folder.mkdir()
    kept = next(row for row in read_jsonl(run.directory.curated) if row["kept"])
    other = kept | {"completion_index": 9, "kept": False, "reason": reason, "rationale": "Another.", "prediction": None}
    write_jsonl(folder / "curated.jsonl", [kept, other])
    (folder / "split.json").write_text(run.directory.split.read_text())
    (folder / "config.yaml").write_text(_config(run))
    if is_worse:
        (pair,) = exported_from(folder, tmp_path, "preference")
        assert pair["rejected_text"] == "Another."  # it has no readable answer
    else:
        with pytest.raises(FcotError, match="no problem has both a kept and a rejected completion"):
            exported_from(folder, tmp_path, "preference")


def test_every_format_is_loaded_by_datasets(run, tmp_path):
    n_kept = sum(row["kept"] for row in read_jsonl(run.directory.curated))
    options = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    for format_name in ("messages", "prompt_completion", "preference"):
        loaded = []
        for suffix, kind in (("jsonl", "json"), ("parquet", "parquet")):
            export(run.directory.path, file := tmp_path / f"{format_name}.{suffix}", format_name)
            loaded.append(datasets.load_dataset(kind, data_files=str(file), **options))
        assert loaded[0].to_list() == loaded[1].to_list()
        assert len(loaded[0]) == n_kept or format_name == "preference"
    export(run.directory.path, tmp_path / "data", "datasets")
    export(run.directory.path, tmp_path / "data", "datasets")  # replaces the first one
    plain = datasets.load_from_disk(tmp_path / "data")["train"]
    assert len(plain) == n_kept
    assert {"question", "rationale", "answer", "split", "sample_index", "completion_index", "task", "teacher", "terms"} == set(plain[0])


@pytest.mark.parametrize("format_name", ["messages", "prompt_completion", "preference"])
def test_trl_prepares_every_format(run, tmp_path, format_name):
    trl = pytest.importorskip("trl", reason="needs TRL (pip install trl)")
    from transformers import AutoTokenizer

    model = str(save_gpt2(tmp_path / "model", TEMPLATE))
    export(run.directory.path, file := tmp_path / "rows.jsonl", format_name)
    data = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    options = {"output_dir": str(tmp_path / "out"), "max_length": 512, "report_to": "none", "use_cpu": True, "bf16": False}
    if format_name == "preference":
        trainer = trl.DPOTrainer(model, args=trl.DPOConfig(**options), train_dataset=data)
    else:
        trainer = trl.SFTTrainer(model, args=trl.SFTConfig(**options), train_dataset=data)
    assert len(trainer.train_dataset) == len(data)
    prepared = trainer.train_dataset[0]
    tokens = prepared["input_ids"] if "input_ids" in prepared else prepared["prompt_ids"] + prepared["chosen_ids"]
    text = AutoTokenizer.from_pretrained(model).decode(tokens)
    assert data[0]["question"] in text
    assert f"{data[0]['rationale']} --> {data[0]['answer']}" in text
    assert ("<user>" in text) == (format_name != "prompt_completion")


def test_a_file_of_an_earlier_version_gets_its_questions_from_the_data(run_fcot, tmp_path):
    assert run_fcot(*QUICK, "output_dir=outputs").returncode == 0
    (folder,) = (tmp_path / "outputs/runs").iterdir()
    expected = exported_from(folder, tmp_path, "messages")
    rows = [{name: value for name, value in row.items() if name != "question"} for row in read_jsonl(folder / "curated.jsonl")]
    write_jsonl(folder / "curated.jsonl", rows)
    assert exported_from(folder, tmp_path, "messages") == expected
    (folder / "config.yaml").write_text("\n".join((folder / "config.yaml").read_text().splitlines()[1:]))
    with pytest.raises(FcotError, match=r"curated\.jsonl has no questions .* does not record its command"):
        exported_from(folder, tmp_path, "messages")


@pytest.mark.parametrize(
    ("folder", "file", "format_name", "message"),
    [
        ("RUN", "rows.csv", "messages", r"rows\.csv: the name must end with \.jsonl or \.parquet"),
        ("RUN", "rows.jsonl", "datasets", r"--format datasets writes a folder"),
        ("RUN", "full", "datasets", r"full: the folder has other files; name a new folder"),
        ("RUN", "full", "messages", r"full: a folder; name a file that ends"),
        ("none", "rows.jsonl", "messages", r"none: no such folder; name a run"),
        ("full", "rows.jsonl", "messages", r"full: not a run's folder: it has no config\.yaml"),
        ("sweep", "rows.jsonl", "messages", r"sweep: a sweep; name one of its runs"),
        ("untaught", "rows.jsonl", "messages", r"untaught: the run has no curated\.jsonl; its method uses no teacher"),
        ("damaged", "rows.jsonl", "messages", r"damaged/curated\.jsonl is damaged"),
    ],
)
def test_what_cannot_be_exported_is_explained(run, tmp_path, folder, file, format_name, message, capsys):
    for name, content in {"full": "notes.txt", "sweep": "plan.json", "untaught": "config.yaml", "damaged": "curated.jsonl"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / content).write_text("{")
    (tmp_path / "damaged/config.yaml").write_text(_config(run))
    source = str(run.directory.path) if folder == "RUN" else str(tmp_path / folder)
    with pytest.raises(SystemExit) as ended:
        main([source, str(tmp_path / file), "--format", format_name])
    assert ended.value.code == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize(("answer_type", "choices", "label", "value", "wrong"), [
    ("number", "", "$1,012.00", "1012", "1011"),
    ("choice", "ABCD", "(b)", "B", "C"),
    ("yes_no", "", "True", "yes", "no"),
])  # fmt: skip
def test_the_texts_of_a_pair_cannot_be_told_apart_by_the_spelling_of_their_answers(
    run, tmp_path, answer_type, choices, label, value, wrong
):
    folder = tmp_path / "run"
    folder.mkdir()
    kept = next(row for row in read_jsonl(run.directory.curated) if row["kept"]) | {"answer": label, "prediction": value}
    other = kept | {"completion_index": 9, "kept": False, "reason": "wrong_answer", "rationale": "Another.", "prediction": wrong}
    write_jsonl(folder / "curated.jsonl", [kept, other])
    (folder / "split.json").write_text(run.directory.split.read_text())
    dataset = f"{{name: mine, answer_type: {answer_type}, choices: '{choices}'}}"
    (folder / "config.yaml").write_text(f"dataset: {dataset}\nteacher: {{name: oracle}}\nmethod: {{name: fine_tune_cot}}\n")
    (pair,) = exported_from(folder, tmp_path, "preference")
    assert pair["chosen_text"] == f"{kept['rationale']} --> {value}"
    assert pair["rejected_text"] == f"Another. --> {wrong}"
    assert pair["answer"] == label
    summary = export(folder, tmp_path / "rows.jsonl", "preference")
    assert "in 1 of 1 pairs the chosen text ends with the answer's value" in summary
    assert f"({value} for {label!r})" in summary
    assert exported_from(folder, tmp_path, "messages")[0]["messages"][1]["content"].endswith(f"--> {label}")
