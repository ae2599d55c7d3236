"""fcot in Python: the runs, folders and messages of the command line, in a process that it leaves as it was."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import fcot
from fcot import check, predict
from fcot.base.stopping import stop_requested

ROOT = Path(__file__).parent.parent
TINY = {
    "dataset.n_problems": 40, "trainer.max_steps": 6, "trainer.evaluate_every_steps": 6, "trainer.warmup_steps": 2, "student.width": 32,
    "student.layers": 1, "student.vocab_size": 300, "student.max_new_tokens": 10, "diversity": 2,
}  # fmt: skip
HEAVY = ("torch", "hydra", "numpy", "pandas", "transformers", "rich", "fcot.api")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run; tests change none of its files."""
    folder = tmp_path_factory.mktemp("trained")
    return fcot.run_experiment(output_dir=folder / "outputs", **TINY)


def test_importing_fcot_imports_nothing_heavy():
    code = f"import fcot, sys; print([name for name in {HEAVY!r} if name in sys.modules], fcot.__version__)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == f"[] {fcot.__version__}\n"


def test_the_package_offers_its_names_and_its_modules():
    assert set(fcot.__all__) <= set(dir(fcot))
    assert all(callable(getattr(fcot, name)) for name in fcot.__all__)
    assert importlib.import_module("fcot.run") is fcot.run
    with pytest.raises(AttributeError, match="has no attribute 'run_expriment'"):
        fcot.run_expriment  # noqa: B018


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_has_its_metrics_tables_and_student(trained):
    assert trained.is_finished
    assert trained.metrics["run_id"] == trained.name
    curated, predictions = trained.curated(), trained.predictions()
    assert len(curated) == trained.metrics["completions_asked"]
    assert curated["kept"].sum() == trained.metrics["completions_kept"]
    assert predictions["correct"].mean() == trained.metrics["accuracy"]
    assert list(predictions["question"])
    assert fcot.load_run(trained.folder).metrics == trained.metrics


def test_a_call_makes_the_same_run_as_the_command(run_fcot, tmp_path):
    options = {"dataset.n_problems": 30, "split-mode": "hash", "curation.filters": ["answer", "duplicate"], "student": "tiny_t5"}
    words = ["dataset.n_problems=30", "split-mode=hash", "curation.filters=[answer,duplicate]", "student=tiny_t5"]
    assert run_fcot(*words, "until=curate", "output_dir=shell").returncode == 0
    result = fcot.run_experiment(**options, until="curate", output_dir="python")
    (of_shell,) = (tmp_path / "shell/runs").iterdir()
    assert result.folder == tmp_path / "python/runs" / of_shell.name
    texts = [(folder / "config.yaml").read_text() for folder in (of_shell, result.folder)]
    assert texts[0].replace("=shell", "=python").replace(": shell", ": python") == texts[1]
    assert (of_shell / "curated.jsonl").read_bytes() == (result.folder / "curated.jsonl").read_bytes()
    assert result.metrics["kept"] == result.curated()["kept"].sum()
    assert not result.is_finished


def test_a_call_leaves_the_process_as_it_was(capsys):
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)

    def state():
        generators = torch.random.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
        loggers = {name: (logger.level, list(logger.handlers)) for name in ("pytorch_lightning", "lightning_fabric", "", "hydra")
                   for logger in [logging.getLogger(name)]}  # fmt: skip
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)]
        return dict(os.environ), list(sys.argv), generators, loggers, handlers, GlobalHydra.instance().hydra, os.getcwd()

    before = state()
    fcot.run_experiment(**TINY, seed=3)
    assert state() == before
    assert capsys.readouterr().out == ""


def test_the_same_call_loads_the_finished_run(trained, capsys):
    again = fcot.run_experiment(output_dir=trained.folder.parent.parent, **TINY)
    assert again == trained
    assert "is complete" in capsys.readouterr().err


def test_a_dry_run_is_printed_and_makes_no_files(tmp_path, capsys):
    result = fcot.run_experiment(dry_run=True, **TINY)
    assert "dry run: no request was sent" in capsys.readouterr().out
    assert result.metrics == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("options", "message"), [
    ({"diversty": 2}, "there is no diversty. Did you mean diversity?"),
    ({"diversity": "two"}, "diversity=two: a whole number is expected"),
    ({"dry_run": "perhaps"}, "dry_run=perhaps: true or false is expected"),
    ({"teacher": "openai", "teacher.headers": "X:Y"}, "teacher.headers takes names and values"),
    ({"trainer.lr": -1}, "trainer.lr=-1.0: more than 0"),
    ({"student": "tiny_gpt"}, "Did you mean student=tiny_gpt2?"),
    ({"split_mode": "hash"}, "the choice is split-mode=hash"),
    ({"teacher.api_key": "x"}, "this looks like a secret"),
    ({"trainer__lr": 1e-4}, '**{"trainer.lr": ...}'),
    ({"student": {"width": 32}}, 'student takes the name of a choice; its options are set one by one: **{"student.KEY": VALUE}'),
    ({"hydra/launcher": "local"}, "hydra/launcher is for sweeps: fcot.run_sweep"),
    ({"diversity=2": 1}, "not the name of an option"),
    ({"seed": [0, 1]}, "fcot.run_sweep sweeps over a list of values"),
])  # fmt: skip
def test_a_fault_has_the_message_of_the_command_line(options, message, tmp_path):
    with pytest.raises(fcot.FcotError) as caught:
        fcot.run_experiment(**options)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_data_is_checked_as_the_command_does(tmp_path, capsys):
    (tmp_path / "my sums.csv").write_text(
        "id,Frage,Antwort\n" + "".join(f"a{n},Was ist {n} + 1?,{n + 1}\n" for n in range(20)) + "b,Was?,viel\n"
    )
    options = {"dataset.question_column": "Frage", "dataset.answer_column": "Antwort", "dataset.answer_type": "number"}
    report = fcot.check_data("my sums.csv", **options)
    assert (report.n_rows, report.n_faulty, report.usable) == (21, 1, False)
    with contextlib.suppress(SystemExit):
        check.main(["my sums.csv", *(f"{name}={value}" for name, value in options.items())])
    assert capsys.readouterr().out == report.to_text() + "\n"
    with pytest.raises(fcot.FcotError, match="no such file"):
        fcot.check_data(tmp_path / "nowhere.csv")


def test_a_folder_that_is_no_run_is_reported(tmp_path, trained):
    for folder, message in (("nowhere", "no such folder"), (tmp_path, "not the folder of a run")):
        with pytest.raises(fcot.FcotError, match=message):
            fcot.load_run(folder)
    unfinished = fcot.run_experiment(until="generate", **TINY)
    for missing in (unfinished.curated, unfinished.predictions, lambda: unfinished.student):
        with pytest.raises(fcot.FcotError, match=r"has no curated|has no predictions|has no student yet"):
            missing()


def test_a_run_works_in_a_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(fcot.run_experiment(**TINY, seed=4)))
    thread.start()
    thread.join()
    assert results[0].is_finished


# --- in a notebook, whose cells run inside an event loop --------------------------------------------------------------


def stopping_teacher(prompt, *, n, seed, **_):
    """Interrupts the process, as the stop button of a notebook does, while the first problems are bought."""
    if (button := Path("pressed")).exists():
        button.unlink()
        os.kill(os.getpid(), signal.SIGINT)
    return [f"{seed}: the answer (arabic numerals) is 1."] * n


def test_a_run_works_inside_an_event_loop_and_can_be_stopped_and_continued():
    options = {"teacher": "function", "teacher.function": stopping_teacher, "teacher.model_id": "m", "until": "generate"} | TINY
    Path("pressed").touch()

    async def cell():
        return fcot.run_experiment(**options)

    loop = asyncio.new_event_loop()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(cell())
    assert stop_requested() is None
    stored = sum(len(path.read_text().splitlines()) for path in Path("outputs/store").rglob("*.jsonl"))
    result = loop.run_until_complete(cell())
    loop.close()
    assert 0 < stored < result.metrics["asked"]


def test_the_example_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "launch"), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(ROOT / "examples/own_data.ipynb", 4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is kept without outputs"
    for cell in notebook.cells:
        cell.source = cell.source.replace('"trainer.max_steps": 600', '"trainer.max_steps": 20')
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [str(output.get("text") or output.get("data")) for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("dry run: no request was sent" in text for text in shown)
    assert any("train: 20/20 steps" in text for text in shown), "progress is shown in the cell"
    assert not any("TqdmWarning" in text for text in shown)
    assert len(list((tmp_path / "outputs/runs").iterdir())) == 2


# --- students ---------------------------------------------------------------------------------------------------------


def test_a_student_answers_as_predict_does_and_loads_its_model_once(trained, tmp_path):
    folder = tmp_path / "student"
    shutil.copytree(trained.folder / "student", folder)
    questions = ["Ada has 3 coins. Ben gives 4. How many coins are left?", "How many?"]
    expected = predict.answer(predict.Options(str(folder)), [{"question": question} for question in questions])
    student = fcot.Student(folder)
    answers = student.answer(questions)
    assert [(answer.question, answer.completion, answer.prediction) for answer in answers] == [
        (row["question"], row["completion"], row["prediction"]) for row in expected
    ]
    (folder / "model.safetensors").unlink()
    assert student.answer(questions[0]) == answers[:1], "one question is a list of one, and the model is loaded already"
    assert student.answer([]) == []
    assert sum(student.answer(questions[0], self_consistency=3)[0].votes.values()) <= 3


def test_a_student_is_found_by_its_run(trained, monkeypatch):
    monkeypatch.setenv("FCOT_OUTPUT_DIR", str(trained.folder.parent.parent))
    assert fcot.Student(trained.name).folder == trained.student.folder == trained.folder / "student"
    with pytest.raises(fcot.FcotError, match="no such folder; name that of a run or of a student"):
        fcot.Student("nowhere")


# --- sweeps -----------------------------------------------------------------------------------------------------------


def test_a_list_is_swept_over_and_a_list_of_lists_sweeps_over_lists(capsys):
    axes = {"curation.filters": [["answer"], ["answer", "duplicate"]], "split_mode.subset": (5, 8)}
    sweep = fcot.run_sweep(**TINY, **axes, until="curate")
    jobs = sweep.jobs()
    assert list(jobs["override.curation.filters"]) == ['["answer"]', '["answer"]', '["answer", "duplicate"]', '["answer", "duplicate"]']
    assert list(jobs["override.split_mode.subset"]) == [5, 8, 5, 8]
    assert len(sweep.runs) == 4
    assert capsys.readouterr().out == ""
    with pytest.raises(fcot.FcotError, match="an empty list of values"):
        fcot.run_sweep(seed=[])


def test_a_sweep_has_the_jobs_of_the_command_with_the_experiments_axes(run_fcot, tmp_path, capsys):
    options = {"experiment": "toy/cost", "dataset.n_problems": 400, "dry_run": True, "seed": [0, 1]}
    fcot.run_sweep(**options)
    printed = capsys.readouterr().out
    result = run_fcot("-m", "experiment=toy/cost", "dataset.n_problems=400", "dry_run=true", "seed=0,1")
    assert result.stdout == printed
    assert "jobs: " in printed
    assert not list(tmp_path.rglob("*.json"))


def test_an_unknown_choice_among_those_of_a_sweep_has_the_message_of_the_command_line(tmp_path):
    with pytest.raises(fcot.FcotError, match=r"there is no student=tiny_t6. Did you mean student=tiny_t5\?"):
        fcot.run_sweep(**TINY, student=["tiny_gpt2", "tiny_t6"])
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_uses_configurations_of_a_folder_of_ones_own(tmp_path):
    (tmp_path / "conf/student").mkdir(parents=True)
    (tmp_path / "conf/student/narrow.yaml").write_text("defaults: [tiny_gpt2, _self_]\nname: narrow\nwidth: 16\n")
    options = TINY | {"student": ["narrow", "tiny_t5"], "student.width": 32, "hydra.searchpath": [[f"file://{tmp_path}/conf"]]}
    sweep = fcot.run_sweep(**options, until="curate")
    assert sorted(run.name.split("-")[1] for run in sweep.runs) == ["narrow", "tiny_t5"]


def test_a_sweep_with_a_failed_job_finishes_the_others_and_raises():
    with pytest.raises(fcot.FcotError, match=r"1 job failed:\n  0 \(diversity=0\): 1 fault in the configuration: diversity=0: at least 1"):
        fcot.run_sweep(**TINY | {"diversity": [0, 2]}, until="curate")
    assert len(list(Path("outputs/runs").iterdir())) == 1
