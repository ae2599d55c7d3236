"""A user's own filter, teacher, prompt and task: functions and YAML files in the user's folder, without a change to the package."""

from __future__ import annotations

import json
import sys

import pytest

SMALL = ["dataset.n_problems=40", "student.width=16", "student.layers=1", "student.heads=2", "trainer.max_steps=4"]
FILTER = """
def {name}(candidate, min_words=3):
    return "too_short" if len(candidate.rationale.split()) < min_words else None
"""
TEACHER = """
import re
from fcot.llm.requests import Choice


def answer(prompt, *, n, max_tokens, temperature, stop, seed, greeting="So"):
    question = prompt[-1]["content"]
    numbers = re.findall(r"[0-9]+", question)
    with open("calls.txt", "a") as calls:
        calls.write(f"{n} {seed} {temperature}\\n")
    return [Choice(f"{greeting} {len(numbers)} numbers stand there. The answer is {numbers[0]}.", "stop")] * n


async def wait(prompt, *, n, **_):
    return ["One. The answer is 1."] * n


def fail(prompt, **_):
    raise ConnectionError("no such host")


def talk(prompt, **_):
    return "a text"


def too_many(prompt, *, n, **_):
    return ["One."] * (n + 1)
"""


def curated(folder):
    (file,) = folder.glob("outputs/runs/*/curated.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


# --- filters ----------------------------------------------------------------------------------------------------------


def test_a_filter_of_your_own_rejects_with_its_reason(tmp_path, run_fcot):
    (tmp_path / "my_filters.py").write_text(
        'def without(candidate, word="nothing"):\n    return "has_the_word" if word in candidate.rationale else None\n'
    )
    chosen = "curation.filters=[answer,my_filters.without]"
    process = run_fcot(*SMALL, "until=curate", "diversity=4", chosen, "curation.settings.word=makes")
    assert process.returncode == 0, process.stderr
    rows = [row for row in curated(tmp_path) if row["reason"] != "wrong_answer"]
    assert {(row["kept"], row["reason"], "makes" in row["rationale"]) for row in rows} == {
        (True, None, False), (False, "has_the_word", True),
    }  # fmt: skip


@pytest.fixture
def own_filter(tmp_path, monkeypatch, make_run):
    """``own_filter(source, *overrides) -> run id`` of a run with the filter ``own.short``."""
    monkeypatch.chdir(tmp_path)

    def run_id(source: str, *overrides: str) -> str:
        from fcot.config.overrides import prepare
        from fcot.curation.filters import _settings_of

        (tmp_path / "own.py").write_text(source)
        sys.modules.pop("own", None)
        _settings_of.cache_clear()
        return make_run(tmp_path, *SMALL, "curation.filters=[answer,own.short]", *prepare(list(overrides))).run_id

    yield run_id
    sys.modules.pop("own", None)


def test_the_run_id_depends_on_the_setting_and_the_source_of_a_filter(own_filter, make_run, tmp_path):
    source = FILTER.format(name="short")
    plain = own_filter(source)
    assert own_filter(source, "curation.settings.min_words=3") == plain
    assert own_filter(source, "curation.settings.min_words=4") != plain
    assert own_filter(source.replace("<", "<=")) != plain
    assert make_run(tmp_path, *SMALL).run_id != plain


@pytest.mark.parametrize(
    ("filters", "settings", "message"),
    [
        ("nowhere.short", "", "curation.filters=nowhere.short: no module nowhere in"),
        ("my_filters.long", "", "curation.filters=my_filters.long: my_filters has no function long"),
        ("broken.short", "", "curation.filters=broken.short: importing broken failed with ZeroDivisionError"),
        ("shrot", "", "or name your own filter as module.function"),
        ("my_filters.short", "curation.settings.min_word=2", "curation.settings.min_word: none of the filters reads it"),
        ("my_filters.needs", "", "curation.filters=my_filters.needs needs curation.settings.limit=..."),
    ],
)
def test_an_invalid_filter_gets_one_message(tmp_path, run_fcot, filters, settings, message):
    (tmp_path / "my_filters.py").write_text(FILTER.format(name="short") + "\n\ndef needs(candidate, limit):\n    return None\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    process = run_fcot(*SMALL, "until=curate", f"curation.filters=[{filters}]", *([settings] if settings else []))
    assert process.returncode == 1
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "outputs").exists()


# --- a teacher ----------------------------------------------------------------------------------------------------------


def function_teacher(name: str, *overrides: str) -> list[str]:
    return [*SMALL, "teacher=function", f"teacher.function=my_teacher.{name}", "teacher.model_id=mine", "curation=none", *overrides]


def test_the_texts_of_a_function_teacher_are_stored_and_never_generated_twice(tmp_path, run_fcot):
    (tmp_path / "my_teacher.py").write_text(TEACHER)
    arguments = function_teacher("answer", "until=curate", "teacher.parameters={greeting: Well}", "teacher.max_choices_per_request=2")
    process = run_fcot(*arguments, "diversity=2")
    assert process.returncode == 0, process.stderr
    rows = curated(tmp_path)
    assert all(row["rationale"].startswith("Well") for row in rows)
    assert all(row["prediction"] for row in rows)
    calls = (tmp_path / "calls.txt").read_text().splitlines()
    assert len(calls) == len(rows) // 2
    assert set(calls) == {"2 0 0.7"}
    assert run_fcot(*arguments, "diversity=2", "curation=answer").returncode == 0
    assert len((tmp_path / "calls.txt").read_text().splitlines()) == len(calls)
    assert run_fcot(*arguments, "diversity=3").returncode == 0
    assert set((tmp_path / "calls.txt").read_text().splitlines()[len(calls) :]) == {"1 2 0.7"}


def test_a_coroutine_function_trains_a_student(tmp_path, run_fcot):
    (tmp_path / "my_teacher.py").write_text(TEACHER)
    process = run_fcot(*function_teacher("wait", "diversity=1"))
    assert process.returncode == 0, process.stderr
    (metrics,) = tmp_path.glob("outputs/runs/*/metrics.json")
    assert json.loads(metrics.read_text())["teacher"] == "mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fail", "teacher.function failed with ConnectionError: no such host"),
        ("talk", "has to return a list of 1 to 1 texts and returned a text"),
        ("too_many", "has to return a list of 1 to 1 texts and returned 2 texts"),
        ("absent", "my_teacher has no function absent"),
    ],
)
def test_an_invalid_teacher_function_gets_one_message(tmp_path, run_fcot, name, message):
    (tmp_path / "my_teacher.py").write_text(TEACHER)
    process = run_fcot(*function_teacher(name, "until=curate", "diversity=1"))
    assert process.returncode == 1
    assert message in process.stderr
    assert "Traceback" not in process.stderr


# --- a prompt and a task from the user's folder -----------------------------------------------------------------------


def test_yaml_files_of_a_folder_are_choices_like_any_other(tmp_path, run_fcot):
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    (tmp_path / "conf" / "prompt").mkdir()
    rows = [{"problem": f"What is {n} plus 1?", "result": str(n + 1)} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "conf" / "dataset" / "plus_one.yaml").write_text(
        "defaults: [custom, _self_]\npath: rows.jsonl\nanswer_type: number\nquestion_column: problem\nanswer_column: result\n"
    )
    (tmp_path / "conf" / "prompt" / "mine.yaml").write_text(
        "defaults: [reasoning_chat, _self_]\nname: mine\ntemplate: 'Add: {question} End with: {trigger}'\n"
    )
    (tmp_path / "my_teacher.py").write_text(TEACHER)
    process = run_fcot(
        f"hydra.searchpath=[file://{tmp_path}/conf]", "dataset=plus_one", "prompt=mine", *function_teacher("answer", "until=curate")[1:],
        "diversity=1",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert list(tmp_path.glob("outputs/store/*/mine/mine"))
