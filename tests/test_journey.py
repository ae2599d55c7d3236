"""The data of docs/getting_started.md and its stand-in server: a messy file, a teacher with mistakes and errors, and a file that grows."""

from __future__ import annotations

import csv
import random
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from configurations import make_run

from fcot.base.files import read_jsonl
from fcot.check import check
from fcot.estimate.dry_run import estimate
from fcot.estimate.preview import preview
from fcot.runs.pipeline import execute

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))
import tickets  # noqa: E402

OPTIONS = ("dataset.on_invalid=skip", "dataset.index_column=ticket")


@pytest.fixture
def teacher(monkeypatch):
    """The overrides of a teacher that the example's server stands in for."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with tickets.server(0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield (
            "teacher=openai", "teacher.model=tickets", f"teacher.base_url=http://127.0.0.1:{server.server_port}/v1",
            "teacher.api_key_env=none", "diversity=4",
        )  # fmt: skip
        server.shutdown()


def run_on(path, outputs, *overrides):
    return make_run(outputs, "dataset=custom", f"dataset.path={path}", "dataset.answer_type=number", "dataset.name=tickets",
                    "until=curate", *OPTIONS, *overrides)  # fmt: skip


def test_the_file_is_what_the_script_writes(tmp_path):
    tickets.write(tmp_path / "tickets.csv", 200)
    assert (EXAMPLES / "tickets.csv").read_text() == (tmp_path / "tickets.csv").read_text()


def test_the_check_finds_what_is_wrong_with_the_file():
    path = str(EXAMPLES / "tickets.csv")
    report = check(path, OPTIONS)
    assert report.faults == [f"{path}, line 130: no gold answer (blank, NaN or null)"]
    assert report.notes[0].endswith("line 37 ('3,810.00 USD') and line 233 ('3,820')")
    assert report.answers == ["read '1,026' as 1026, '3,173 units' as 3173, '$ 838' as 838, '1,453.00 USD' as 1453, '$1,376' as 1376"]
    assert (report.usable, check(path).usable) == (True, False)


def test_a_preview_names_the_ids_of_the_data(tmp_path, teacher, capsys):
    run = run_on(EXAMPLES / "tickets.csv", tmp_path, *teacher)
    preview(run, 1)
    index = run.split.train[0]
    assert f" sample {index}, id {run.problems[index].id} " in capsys.readouterr().out


def test_a_messy_file_is_bought_and_curated_once_and_a_grown_one_buys_only_its_new_train_problems(tmp_path, teacher):
    run = run_on(EXAMPLES / "tickets.csv", tmp_path, *teacher)
    execute(run, "")
    rows = list(read_jsonl(run.directory.curated))
    verdicts = Counter(row["reason"] for row in rows if not row["kept"])
    assert set(verdicts) == {"wrong_answer"}
    assert 0.1 < verdicts["wrong_answer"] / len(rows) < 0.3
    assert {row["id"] for row in rows} == {run.problems[index].id for index in run.split.train}
    sides = {problem.question: index in set(run.split.train) for index, problem in run.problems.items()}
    tickets.write(tmp_path / "grown.csv", 250)
    with (tmp_path / "grown.csv").open(newline="") as file:
        header, *grown = csv.reader(file)
    orders = {"appended": grown, "on top": grown[200:] + grown[:200], "shuffled": random.Random(0).sample(grown, 250)}
    for name, lines in orders.items():
        path = tmp_path / f"{name}.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([header, *lines])
        later = run_on(path, tmp_path, *teacher)
        trained = {later.problems[index].question for index in later.split.train}
        assert {question: question in trained for question in sides} == sides, name
        assert estimate(later, {}).bought == 4 * sum(question not in sides for question in trained), name
