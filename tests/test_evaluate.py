"""A finished student on another task: it answers in its own format, its own training problems are left out, its run is like any other."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
from students import save_gpt2, save_t5
from test_run import QUICK, make_run

from fcot.base.errors import ConfigFaults, FcotError
from fcot.base.files import read_jsonl
from fcot.config.schema import register_schemas
from fcot.evaluate import main, overrides_of
from fcot.report import _files, report
from fcot.reporting.finished import load
from fcot.reporting.settings import group
from fcot.runs.origin import trained_note
from fcot.runs.pipeline import execute
from fcot.runs.run import data_notes

TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{{ eos_token }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run: its folder has a student."""
    register_schemas()
    run = make_run(tmp_path_factory.mktemp("trained"), *QUICK, "student.max_new_tokens=30")
    execute(run, "student: {name: tiny_gpt2}\n")
    return run


def evaluation(trained, outputs, *words: str):
    """The run of ``fcot evaluate STUDENT WORDS``, in this process."""
    return make_run(outputs, *overrides_of([str(trained.directory.path), *words]))


SAME = ("dataset=toy_arithmetic", "dataset.n_problems=60")


def test_on_its_own_test_problems_a_student_gives_the_answers_of_its_run(trained, tmp_path):
    run = evaluation(trained, tmp_path, *SAME)
    metrics = execute(run, "")
    assert run.split.test == trained.split.test
    rows, own = (list(read_jsonl(each.directory.predictions)) for each in (run, trained))
    assert rows == own
    assert metrics["trained_left_out"] == 0


def test_another_task_is_scored_with_all_files_of_a_run_and_the_students_origin(trained, tmp_path):
    run = evaluation(trained, tmp_path, "dataset=toy_coin_flip", "dataset.n_problems=40")
    metrics = execute(run, "")
    assert (metrics["task"], metrics["student"], metrics["method"]) == ("toy_coin_flip", "tiny_gpt2", "as_trained")
    assert (metrics["student_task"], metrics["student_method"]) == ("toy_arithmetic", "fine_tune_cot")
    assert (metrics["accuracy_checkpoint"], metrics["uses_seed"], metrics["n_test"]) == ("finished", True, 12)  # the seed of its training
    assert metrics["accuracy_ci95"][0] <= metrics["accuracy"] <= metrics["accuracy_ci95"][1]
    for path in (run.directory.predictions, run.directory.errors, run.directory.done, run.directory.split):
        assert path.exists()
    assert not run.directory.student.exists()


def test_an_evaluation_is_reported_beside_other_runs(trained, tmp_path, capsys):
    for words in (SAME, ("dataset=toy_coin_flip", "dataset.n_problems=40")):
        execute(evaluation(trained, tmp_path, *words), "")
    shutil.copytree(trained.directory.path, tmp_path / "runs" / trained.run_id)
    report([tmp_path / "runs"], export=True)
    shown = capsys.readouterr().out
    assert shown.count("Fine-tune-CoT on toy_arithmetic") >= 2
    assert "Fine-tune-CoT   " in shown
    assert "untrained" not in shown
    assert "Fine-tune-CoT on toy_arithmetic" in (tmp_path / "runs/report.html").read_text()


def test_problems_that_the_student_was_trained_on_are_not_scored(trained, tmp_path, capsys):
    run = evaluation(trained, tmp_path, *SAME, "split-mode=all")
    assert run.split.test == trained.split.test
    metrics = execute(run, "")
    n = len(trained.split.train) + len(trained.split.validation)
    assert metrics["trained_left_out"] == n == 60 - metrics["n_test"]
    report([run.directory.path])
    assert f"toy_arithmetic: {n} test problems are not scored: the student was trained on them." in capsys.readouterr().out


def test_trained_problems_are_recognized_in_other_data_by_their_questions(trained, tmp_path):
    known = trained.select([*trained.split.train[:5], *trained.split.validation[:2]])
    rows = [{"question": "How many are 2 + 2?", "answer": "4"}, *({"question": f" {problem.question}", "answer": "1"} for problem in known)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = evaluation(trained, tmp_path, str(tmp_path / "mine.jsonl"))
    assert (run.split.test, run.trained_left_out) == ([0], 7)
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    with pytest.raises(FcotError, match="the student was trained on all 7 test problems: evaluate it on another task"):
        evaluation(trained, tmp_path, str(tmp_path / "mine.jsonl"))


def test_without_a_record_of_its_training_problems_a_student_is_refused_on_its_own_task(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained.directory.path, folder)
    split = json.loads((folder / "split.json").read_text())
    del split["trained_questions"]  # as earlier versions wrote it
    (folder / "split.json").write_text(json.dumps(split))

    def resolved(*words: str):
        return make_run(tmp_path, *overrides_of([str(folder), *words]))

    assert resolved(*SAME, "split-mode=all").split.test == trained.split.test  # the same rows: their indices are known
    with pytest.raises(FcotError, match="trained on other rows of toy_arithmetic by an earlier version"):
        resolved("dataset=toy_arithmetic", "dataset.n_problems=80")
    assert resolved("dataset=toy_coin_flip", "dataset.n_problems=40").split.test
    (folder / "split.json").unlink()
    assert len(resolved(*SAME, "split-mode=all").split.test) == 60
    assert "warning: the student was trained on toy_arithmetic too" in capsys.readouterr().err


def test_training_a_student_further_warns_of_test_problems_that_it_knows(trained, tmp_path):
    further = ("student=causal", "student.max_prompt_tokens=60", "student.max_completion_tokens=60")

    def notes(folder, *words):
        return data_notes(make_run(tmp_path, *further, f"student.path={folder}", *words))

    folder = trained.directory.student
    assert notes(folder, *SAME) == []
    (note,) = notes(folder, *SAME, "split_mode.train_fraction=0.5")
    assert re.match(rf"warning: student.path={folder} was trained on 12 of the 30 test problems: .* leave these rows out", note)
    known = [{"question": problem.question, "answer": "1"} for problem in trained.select(trained.split.train[:20])]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in known))
    data = (
        "dataset=custom",
        f"dataset.path={tmp_path / 'mine.jsonl'}",
        "dataset.answer_type=number",
        "split-mode=sample",
    )
    assert "was trained on 6 of the 6 test problems" in notes(folder, *data, "method=fine_tune")[0]
    assert notes(folder, "dataset=toy_coin_flip", "dataset.n_problems=40") == []
    plain = save_gpt2(tmp_path / "plain")
    assert notes(plain, *SAME) == []


def test_the_warning_counts_what_an_earlier_student_was_trained_on(trained, tmp_path):
    for name, path in (("second", trained.directory.student), ("third", tmp_path / "second/student")):
        (tmp_path / name / "student").mkdir(parents=True)
        shutil.copy(trained.directory.student / "fcot.json", tmp_path / name / "student")
        (tmp_path / name / "split.json").write_text('{"train": [], "validation": [], "trained_questions": []}')
        (tmp_path / name / "config.yaml").write_text(f"student:\n  path: {path}\n")
    split = replace(trained.split, train=trained.split.train[3:], test=[*trained.split.train[:3], *trained.split.test])
    note = trained_note(tmp_path / "third/student", "toy_arithmetic", trained.problems, split)
    assert f"was trained on 3 of the {len(split.test)} test problems" in note
    (tmp_path / "second/split.json").unlink()
    assert "no split.json says on which problems" in trained_note(tmp_path / "third/student", "toy_arithmetic", trained.problems, split)


def test_a_file_is_scored_as_a_whole_with_the_students_answer_type(trained, tmp_path):
    path = tmp_path / "my 'file', (2).csv"
    path.write_text('question,answer\n"How many are 2 + 2?","4"\nHow many are 1 + 2?,3\nAnd 2 + 5?,7\n')
    run = evaluation(trained, tmp_path, str(path))
    assert run.split.test == [0, 1, 2]
    assert (run.task.name, run.task.rule.answer_type) == ("custom", "number")


def test_a_file_is_read_as_the_data_of_the_students_run(trained, tmp_path, capsys):
    """Columns that the file has, decimal marks and faulty rows, unless they are set; the overrides are part of the run's command."""
    folder = tmp_path / "run"
    shutil.copytree(trained.directory.path, folder)
    recorded = {
        "question_column": "Frage",
        "answer_column": "Antwort",
        "decimal": "comma",
        "on_invalid": "error",
        "normalize_answers": False,
    }
    (folder / "config.yaml").write_text(json.dumps({"student": {"name": "s"}, "dataset": recorded}))
    path = tmp_path / "mine.csv"
    path.write_text("Frage;Antwort\nHow many are 2 + 0,5?;2,5\nAnd 1 + 2?;3\n")
    words = overrides_of([str(folder), str(path)])
    assert [word for word in words if word.startswith("dataset.") and "path" not in word and "answer_type" not in word] == [
        "dataset.question_column=Frage", "dataset.answer_column=Antwort", "dataset.decimal=comma",
    ]  # fmt: skip
    assert capsys.readouterr().err == "as in the student's run: question_column=Frage answer_column=Antwort decimal=comma\n"
    assert [problem.answer for problem in make_run(tmp_path, *words).problems.values()] == ["2.5", "3"]
    assert overrides_of([str(folder), "dataset=custom", f"dataset.path='{path}'"])[-2:] == ["dataset=custom", f"dataset.path='{path}'"]
    assert "dataset.decimal=comma" not in overrides_of([str(folder), str(path), "dataset.decimal=point"])
    assert "dataset=custom" in overrides_of([str(folder), "dataset=custom"]), (
        "without a file, as in any run, its message is that of the run"
    )
    path.write_text("question,answer\nHow many are 2 + 2?,4\n")
    assert not any("column" in word for word in overrides_of([str(folder), str(path)]))


def test_options_that_are_given_replace_the_defaults(trained, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("question,answer\n" + "".join(f"How many are {n} + 2?,{n + 2}\n" for n in range(40)))
    run = evaluation(trained, tmp_path, str(path), "split-mode=sample", "dataset.name=mine", "student.self_consistency=3")
    assert run.task.name == "mine"
    assert 0 < len(run.split.test) < 40
    assert run.config.student.self_consistency == 3


def test_a_model_that_fcot_did_not_train_is_prompted(tmp_path):
    plain, chat, seq2seq = (
        save_gpt2(tmp_path / "plain"), save_gpt2(tmp_path / "chat", TEMPLATE), save_t5(tmp_path / "t5"),
    )  # fmt: skip
    for folder, prompt, template in ((plain, "zero_shot_cot", False), (chat, "reasoning_chat", True), (seq2seq, "zero_shot_cot", False)):
        run = make_run(tmp_path, *overrides_of([str(folder), *SAME]))
        assert (run.config.method.name, run.prompt.name, run.config.student.chat_template) == ("zero_shot_cot", prompt, template)
        assert run.config.student.name == folder.name
    run = make_run(tmp_path, *overrides_of([str(seq2seq), *SAME, "method=zero_shot", "student.max_new_tokens=8"]))
    metrics = execute(run, "")
    assert (metrics["student"], metrics["method"], "student_task" in metrics) == ("t5", "zero_shot", False)


def test_a_student_needs_the_chat_template_of_its_training_and_a_finished_student_is_needed(trained, tmp_path):
    words = overrides_of([str(trained.directory.student), *SAME])
    with pytest.raises(FcotError, match=r"chat_template=true: the student was trained with student\.chat_template=false"):
        make_run(tmp_path, *words, "student.chat_template=true")
    with pytest.raises(ConfigFaults, match=r"method=as_trained evaluates a finished student, not student=tiny_gpt2"):
        make_run(tmp_path, "method=as_trained")
    with pytest.raises(FcotError, match="not a student that fcot trained"):
        make_run(tmp_path, "method=as_trained", "student=causal", f"student.path={save_gpt2(tmp_path / 'plain')}")


def test_another_student_is_another_run_and_the_same_one_elsewhere_is_not(trained, tmp_path):
    shutil.copytree(trained.directory.path, tmp_path / "copy")
    changed = tmp_path / "changed"
    shutil.copytree(trained.directory.path, changed)
    interface = json.loads((changed / "student/fcot.json").read_text())
    interface["format"]["prompt_template"] = "Q: {question}"
    (changed / "student/fcot.json").write_text(json.dumps(interface))
    ids = [
        make_run(tmp_path, *overrides_of([str(folder), *SAME])).run_id for folder in (trained.directory.path, tmp_path / "copy", changed)
    ]
    assert ids[0] == ids[1] != ids[2]


@pytest.fixture(scope="module")
def of_two_seeds(trained, tmp_path_factory):
    """The finished run with another seed."""
    register_schemas()
    run = make_run(tmp_path_factory.mktemp("second"), *QUICK, "student.max_new_tokens=30", "seed=1")
    execute(run, "student: {name: tiny_gpt2}\n")
    return [trained, run]


def test_the_students_of_several_seeds_are_one_setting_on_another_task(of_two_seeds, tmp_path, capsys):
    """As they are on the task of their training: with an interval over trainings. Students of other trainings are another setting."""
    runs = [evaluation(trained, tmp_path, "dataset=toy_last_letter", "dataset.n_problems=60") for trained in of_two_seeds]
    for run in runs:
        execute(run, f"student: {{name: tiny_gpt2, path: {run.config.student.path}}}\n")
    metrics = [json.loads(run.directory.metrics.read_text()) for run in runs]
    assert [row["seed"] for row in metrics] == [0, 1]
    assert all(row["uses_seed"] for row in metrics)
    assert runs[0].setting == runs[1].setting
    assert runs[0].run_id != runs[1].run_id
    varied = [{"student.path": str(run.config.student.path)} for run in runs]
    (setting,) = group([load(run.directory.metrics, paths) for run, paths in zip(runs, varied, strict=True)])
    assert [row["seed"] for row in setting.runs] == [0, 1]
    assert not setting.fixed
    assert re.fullmatch(r".+\*.*/student", setting.varied["student.path"])
    of_one_seed = replace(setting, runs=[row | {"seed": 0} for row in metrics])
    labels = [run.label for run in _files([of_one_seed], {run.run_id: run.directory.path for run in runs})]
    assert len(set(labels)) == 2, "students that are trained further with one seed are told apart by their runs"
    capsys.readouterr()
    report([tmp_path])
    shown = capsys.readouterr().out
    assert "seeds" in shown
    assert "with one seed" not in shown
    shutil.copytree(of_two_seeds[1].directory.path, tmp_path / "other")
    row = json.loads((tmp_path / "other/metrics.json").read_text())
    (tmp_path / "other/metrics.json").write_text(json.dumps(row | {"setting": "another"}))
    words = [str(tmp_path / "other"), "dataset=toy_last_letter", "dataset.n_problems=60"]
    assert make_run(tmp_path, *overrides_of(words)).setting != runs[1].setting
    (tmp_path / "other/metrics.json").unlink()
    alone = make_run(tmp_path, *overrides_of(words))
    assert alone.setting not in {run.setting for run in runs}, "whose training is not known: by its content"
    assert alone.run_id == runs[1].run_id


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset=svamp"], "name the student first: fcot evaluate"),
        (["STUDENT"], "name the task: dataset=svamp, or a labelled file"),
        (["nowhere", "dataset=svamp"], "nowhere: no such folder, and no hub id OWNER/NAME"),
        (["STUDENT", "mine.csv"], "mine.csv: no such file"),
        (["STUDENT", "a.csv", "b.csv"], "a.csv and b.csv: name one data file"),
        (["API", "dataset=svamp"], "api: not a student that fcot trained, its fcot.json is missing"),
        (["owner/name", "dataset=svamp"], "is this machine offline"),
    ],
)
def test_wrong_arguments_are_explained(words, message, trained, tmp_path, capsys):
    (tmp_path / "api").mkdir()
    (tmp_path / "api/openai.json").write_text("{}")
    places = {"STUDENT": str(trained.directory.student), "API": str(tmp_path / "api")}
    with pytest.raises(SystemExit) as ended:
        main([places.get(word, word) for word in words])
    assert ended.value.code == 1
    assert message in capsys.readouterr().err


def test_the_command_makes_a_run_that_its_recorded_command_makes_again(trained, run_fcot, tmp_path):
    result = run_fcot(str(trained.directory.path), *SAME, "logger=none", module="fcot.evaluate")
    assert result.returncode == 0, result.stderr
    assert "Fine-tune-CoT on toy_arithmetic" in result.stdout
    (folder,) = (tmp_path / "outputs/runs").iterdir()
    command = (folder / "config.yaml").read_text().splitlines()[0]
    assert command.startswith("# python -m fcot.run student=causal student.path=")
    assert "method=as_trained" in command
