"""Whole runs: they write their files, skip finished stages, and give the same result after a stop at any point."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zygote
from configurations import make_run
from students import save_gpt2, save_t5
from transformers import AutoModelForCausalLM, AutoTokenizer

from fcot.base.errors import FcotError
from fcot.reporting.finished import load
from fcot.runs.pipeline import execute

SMALL = [
    "dataset.n_problems=60", "trainer.max_steps=12", "trainer.evaluate_every_steps=6", "trainer.warmup_steps=2",
    "student.width=32", "student.layers=1", "student.vocab_size=400", "student.max_new_tokens=40",
]  # fmt: skip
QUICK = [override for override in SMALL if not override.startswith("student")]
CONTRACT = {"config.yaml", "curated.jsonl", "predictions.jsonl", "metrics.json", "student", "DONE.json"}
METRICS = set(
    "method task student teacher diversity split_mode seed n_train_problems n_reasoning_samples n_test accuracy accuracy_ci95 "
    "accuracy_best_epoch answer_in_completion well_formed complete teacher_usage seconds train_samples_per_second versions".split()
)


def timeless(metrics: dict) -> dict:
    return {key: value for key, value in metrics.items() if key not in ("seconds", "train_samples_per_second")}


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """One small run of the defaults: (run, metrics)."""
    run = make_run(tmp_path_factory.mktemp("outputs"), *SMALL)
    metrics = execute(run, "diversity: 4\n")
    return run, metrics


def test_a_run_writes_its_promised_files_and_metrics(default_run):
    run, metrics = default_run
    folder = run.directory.path
    assert {path.name for path in folder.iterdir()} >= CONTRACT
    assert set(metrics) >= METRICS
    assert metrics == json.loads((folder / "metrics.json").read_text())
    assert metrics["diversity"] == 4
    assert metrics["teacher"] == "oracle-v2"
    curated = [json.loads(line) for line in (folder / "curated.jsonl").read_text().splitlines()]
    assert {"sample_index", "completion_index", "prediction", "correct", "kept", "reason"} <= set(curated[0])
    assert len(curated) == metrics["completions_asked"] == 4 * metrics["n_train_problems"]
    assert sum(row["kept"] for row in curated) == metrics["completions_kept"] == metrics["n_reasoning_samples"]
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    expected = {"sample_index", "question", "answer", "completion", "prediction", "correct", "complete", "n_tokens"}
    assert set(predictions[0]) == expected
    assert sorted(row["sample_index"] for row in predictions) == run.split.test
    split = json.loads((folder / "split.json").read_text())
    assert split["questions_sha256"] == metrics["questions_sha256"]
    assert not set(split["train"]) & set(split["test"])
    assert split["test_templates"] == {str(index): run.problems[index].template_id for index in run.split.test}
    assert load(folder / "metrics.json")[0]["test_templates"] == {index: run.problems[index].template_id for index in run.split.test}
    golds = [run.problems[index].answer for index in run.split.train + run.split.validation]
    assert golds.count(metrics["majority_answer"]) == max(map(golds.count, golds))
    right = [run.problems[index].answer == metrics["majority_answer"] for index in run.split.test]
    assert metrics["majority_accuracy"] == sum(right) / len(right)


def test_the_trained_student_loads_in_transformers(default_run):
    folder = default_run[0].directory.student
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    output = model.generate(**tokenizer("Ada has 3 coins. ###", return_tensors="pt"), max_new_tokens=5)
    assert output.shape[1] > 5


def test_a_finished_run_is_skipped(default_run, capsys):
    run, metrics = default_run
    before = {path: path.stat().st_mtime_ns for path in run.directory.path.rglob("*") if path.name != "run.lock"}
    assert execute(run, "diversity: 4\n") == metrics
    assert "nothing to do" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in run.directory.path.rglob("*") if path.name != "run.lock"}


def test_the_same_configuration_gives_the_same_result(default_run, tmp_path):
    run, metrics = default_run
    again = make_run(tmp_path, *SMALL)
    assert again.run_id == run.run_id
    assert timeless(execute(again, "")) == timeless(metrics)
    assert again.directory.predictions.read_bytes() == run.directory.predictions.read_bytes()


def test_another_seed_shares_the_teachers_completions(default_run):
    run, metrics = default_run
    other = execute(make_run(run.outputs, *SMALL, "seed=1"), "")
    assert other["teacher_usage"]["requests"] == 0
    assert other["teacher_usage"]["served_from_store"] == 2 * metrics["completions_asked"]
    assert metrics["teacher_usage"]["requests"] > 0


@pytest.mark.parametrize("student", ["tiny_gpt2", "tiny_t5"])
@pytest.mark.parametrize("method", ["zero_shot", "fine_tune", "fine_tune_cot"])
def test_every_method_runs_on_both_architectures(student, method, tmp_path):
    metrics = execute(make_run(tmp_path, *SMALL, f"student={student}", f"method={method}", "diversity=2"), "")
    assert metrics["accuracy"] is not None
    assert metrics["accuracy_checkpoint"] == ("untrained" if method == "zero_shot" else "validation")
    assert metrics["diversity"] == (2 if method == "fine_tune_cot" else None)
    assert (metrics["n_reasoning_samples"] > 0) == (method == "fine_tune_cot")


def test_diversity_does_not_change_runs_of_methods_without_a_teacher(tmp_path):
    ids = {make_run(tmp_path, *SMALL, "method=fine_tune", f"diversity={d}").run_id for d in (1, 4)}
    assert len(ids) == 1


def test_trainer_paper_trains_on_all_of_train_and_reports_both_epochs(tmp_path):
    run = make_run(tmp_path, *SMALL[:1], *SMALL[4:], "trainer=paper", "trainer.epochs=2", "method=fine_tune")
    metrics = execute(run, "")
    assert run.split.validation == []
    assert len(run.split.train) == 42
    assert metrics["accuracy_checkpoint"] == "last"
    tests = [entry["test_accuracy"] for entry in metrics["history"]]
    assert [entry["epoch"] for entry in metrics["history"]] == [1, 2]
    assert metrics["accuracy_best_epoch"] == max(tests)
    assert metrics["accuracy"] == tests[-1]


def test_until_stops_after_a_stage_and_the_rest_continues_there(tmp_path):
    folders = set()
    for until, file in (("generate", "stages/generate.json"), ("curate", "curated.jsonl"), ("train", "student"), ("evaluate", "DONE.json")):
        run = make_run(tmp_path, *SMALL, f"until={until}")
        assert not (run.directory.path / file).exists()
        execute(run, "")
        assert (run.directory.path / file).exists()
        folders.add(run.directory.path)
    assert len(folders) == 1


def test_only_options_that_change_predictions_change_the_run_id(tmp_path):
    base = make_run(tmp_path).run_id
    for override in ("logger=none", f"output_dir={tmp_path}/other", "trainer.eval_batch_tokens=7", "until=train", "curation.max_words=9"):
        assert make_run(tmp_path, override).run_id == base, override
    changing = ("seed=1", "diversity=5", "trainer.lr=1e-3", "trainer.precision=bf16-mixed", "dataset.generator_seed=1", "dataset.limit=50",
                "teacher.error_rate=0.2", "curation=strict", "prompt.rationale_tokens=64", "student.width=32", "student.max_new_tokens=9",
                "split_mode.train_fraction=0.5", "method=fine_tune")  # fmt: skip
    ids = [make_run(tmp_path, override).run_id for override in changing]
    assert len({base, *ids}) == len(changing) + 1


def test_contents_identify_a_run_and_paths_do_not(tmp_path):
    for name in ("one", "two"):
        rows = [{"question": f"What is {i} + {i}?", "answer": 2 * i} for i in range(30)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        save_gpt2(tmp_path / name)
    common = ["dataset=custom", "dataset.answer_type=number", "method=fine_tune", "student=gpt2"]

    def run_id(data: str, student: str) -> str:
        return make_run(tmp_path, *common, f"dataset.path={tmp_path / data}.jsonl", f"student.path={tmp_path / student}").run_id

    same = run_id("one", "one")
    assert run_id("two", "two") == same
    (tmp_path / "two" / ".cache").mkdir()
    (tmp_path / "two" / ".cache" / "config.json.metadata").write_text("what a download leaves")
    assert run_id("two", "two") == same
    (tmp_path / "two" / "generation_config.json").write_text('{"eos_token_id": 0}')
    assert run_id("two", "two") != same
    (tmp_path / "one.jsonl").write_text((tmp_path / "one.jsonl").read_text().replace('"answer": 2}', '"answer": 3}'))
    assert run_id("one", "one") != same


def test_one_rationale_per_problem_is_greedy_unless_a_temperature_is_set(tmp_path):
    assert make_run(tmp_path, "diversity=1").temperature == 0.0
    assert make_run(tmp_path, "diversity=1", "teacher.temperature=0.7").temperature == 0.7
    assert make_run(tmp_path, "diversity=2").temperature == 0.7
    assert make_run(tmp_path, "diversity=2", "teacher.temperature=0.3").temperature == 0.3


def test_subsets_and_limits_choose_train_problems(tmp_path):
    whole = make_run(tmp_path, "trainer.selection=last").split
    subset = make_run(tmp_path, "split_mode.subset=32").split
    limit = make_run(tmp_path, "dataset.limit=50").split
    assert len(subset.train) == 32
    assert limit.train == whole.train[:50]
    for split in (subset, limit):
        assert split.test == whole.test
        assert split.validation
        assert set(split.train + split.validation) <= set(whole.train)
        assert not set(split.train) & set(split.validation)


def test_a_run_without_any_kept_completion_ends_with_examples(tmp_path):
    with pytest.raises(FcotError, match=r"no completion survives curation: .*wrong_answer") as caught:
        execute(make_run(tmp_path, *SMALL, "teacher.error_rate=1"), "")
    assert str(caught.value).count("gold") == 3


def test_a_low_kept_rate_is_warned_about_with_three_examples(tmp_path, capsys):
    execute(make_run(tmp_path, *SMALL, "teacher.error_rate=0.98", "until=curate", "dataset.n_problems=300"), "")
    warning = capsys.readouterr().err
    assert "completions were kept" in warning
    assert warning.count("rationale:") == 3


@pytest.mark.parametrize(
    ("student", "save"), [("gpt2", save_gpt2), ("t5_small", save_t5), ("flan_t5_base", lambda f: save_t5(f, gated=True))]
)
def test_pretrained_students_are_trained_from_a_folder(student, save, tmp_path):
    """The literal command of docs/getting_started.md, on a small random student, cut short."""
    folder = save(tmp_path / "weights")
    shorter = ["dataset.n_problems=40", "trainer.max_steps=4", "trainer.evaluate_every_steps=2", "trainer.batch_size=8"]
    run = make_run(tmp_path, *QUICK, *shorter, f"student={student}", "diversity=64", f"student.path={folder}", "student.max_new_tokens=20")
    metrics = execute(run, "")
    assert metrics["completions_asked"] == 64 * metrics["n_train_problems"]
    rationales = {(row["sample_index"], row["rationale"]) for row in map(json.loads, run.directory.curated.read_text().splitlines())}
    assert len(rationales) == metrics["completions_asked"], "64 different wordings per problem"
    assert metrics["accuracy_checkpoint"] == "validation"


def start(folder: Path, *overrides: str):
    return zygote.start(["-m", "fcot.run", *overrides], cwd=folder)


def the_run(folder: Path) -> Path:
    (run,) = (folder / "outputs" / "runs").iterdir()
    return run


def test_kills_in_every_stage_do_not_change_the_result(default_run, tmp_path):
    """Kill the run at a random moment after each of these files appears, then run it to the end."""
    rng = random.Random(0)
    for landmark in ("config.yaml", "stages/generate.json", "curated.jsonl", "student/config.json", "stages/train.json"):
        process = start(tmp_path, *SMALL)
        while process.poll() is None and not list((tmp_path / "outputs" / "runs").glob(f"*/{landmark}")):
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3 if "train" not in landmark else 0)
        process.kill()
        process.communicate()
    run, metrics = default_run
    folder = the_run(tmp_path)
    assert folder.name == run.run_id
    assert not (folder / "DONE.json").exists(), "the last kill came too late"
    assert start(tmp_path, *SMALL).wait() == 0
    # Completions that an earlier attempt bought with the same run id count as bought by this run.
    assert timeless(json.loads((folder / "metrics.json").read_text())) == timeless(metrics)
    assert (folder / "predictions.jsonl").read_bytes() == run.directory.predictions.read_bytes()
    assert not list(folder.rglob("*.partial*"))


@pytest.mark.parametrize("landmark", ["stages/generate.json", "student/config.json"])
def test_ctrl_c_leaves_nothing_half_written(landmark, tmp_path):
    """Also in the middle of training, where Lightning would swallow it."""
    process = start(tmp_path, *SMALL, "trainer.max_steps=100000")
    while process.poll() is None and not list((tmp_path / "outputs" / "runs").glob(f"*/{landmark}")):
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=600)
    # A shell shows 130 for both: after an interrupt inside eval(), the interpreter ends itself by the signal.
    assert process.returncode in (130, -signal.SIGINT), stderr
    assert "continues" in stderr
    assert "Traceback" not in stderr
    assert not list(tmp_path.rglob("*.partial*"))


def test_an_interrupted_job_of_a_sweep_is_not_called_failed(tmp_path):
    process = start(tmp_path, "-m", "seed=0,1", *SMALL, "trainer.max_steps=100000")
    while process.poll() is None and not list((tmp_path / "outputs" / "runs").glob("*/student/config.json")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "interrupted" in stderr
    (job,) = (tmp_path / "outputs" / "sweeps").glob("*/jobs/*.json")
    assert json.loads(job.read_text())["status"] == "interrupted"


def test_a_second_process_waits_and_names_the_first(tmp_path):
    first = start(tmp_path, *SMALL, "trainer.max_steps=60")
    lock = tmp_path / "outputs"
    while not list(lock.glob("runs/*/config.yaml")):
        time.sleep(0.05)
    second = start(tmp_path, *SMALL, "trainer.max_steps=60")
    assert first.wait(120) == 0
    _, stderr = second.communicate(timeout=600)
    assert second.returncode == 0
    assert f"process {first.pid}" in stderr
    assert "nothing to do" in stderr


def test_a_full_disk_is_reported_in_one_message(tmp_path):
    def no_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    process = subprocess.Popen(
        [sys.executable, "-m", "fcot.run", *SMALL], cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=no_room
    )
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "no space left" in stderr
    assert "Traceback" not in stderr
    assert not list(tmp_path.rglob("*.partial*"))
    assert start(tmp_path, *SMALL).wait(120) == 0
    assert (the_run(tmp_path) / "DONE.json").exists()


def test_a_sweep_ends_in_one_table_and_one_page(run_fcot, tmp_path):
    result = run_fcot("-m", "method=zero_shot,fine_tune,fine_tune_cot", "diversity=1,2", *SMALL)
    assert result.returncode == 0, result.stderr
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert len(json.loads((sweep / "plan.json").read_text())["jobs"]) == 6
    jobs = [json.loads(path.read_text()) for path in (sweep / "jobs").iterdir()]
    assert len({job["run_id"] for job in jobs}) == len(jobs) == 4
    assert {job["status"] for job in jobs} == {"done"}
    assert "vegaEmbed" in (sweep / "report.html").read_text()
    assert result.stdout.partition("comparisons on the same problems")[0].count("  Fine-tune-CoT   ") == 2
    assert "only by chance" in result.stdout
    report = run_fcot(str(sweep), module="fcot.report")
    assert report.stdout.split("tables and figures")[0] == result.stdout.split("tables and figures")[0]


def test_an_error_of_every_job_ends_a_sweep_at_once(run_fcot, tmp_path):
    result = run_fcot("-m", "experiment=table9", "dry_run=true", OPENAI_API_KEY="not-a-real-key")
    assert result.returncode == 1
    assert result.stderr.count("teacher.model is not set: teacher.model=...") == 1
    assert "this holds for every job of the sweep" in result.stderr
    assert "job 1" not in result.stderr


def test_one_failure_does_not_hide_the_other_jobs(run_fcot, tmp_path):
    result = run_fcot("-m", "teacher.error_rate=1,0", "method=fine_tune_cot", *SMALL, "until=curate")
    assert result.returncode == 1
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    jobs = {path.stem: json.loads(path.read_text()) for path in (sweep / "jobs").iterdir()}
    assert jobs["0"]["status"] == "failed"
    assert "no completion survives" in jobs["0"]["error"]
    assert jobs["1"]["status"] == "done"
    assert "Traceback" not in result.stderr
    assert result.stderr.count("job 0 failed: no completion survives") == 1


def test_real_completions_run_through_the_whole_pipeline(shared_data, tmp_path):
    run = make_run(
        tmp_path, "dataset=multiarith", f"dataset.path={shared_data}/dataset/multiarith.json", "teacher=replay",
        f"teacher.path={shared_data}/completion_data/B_text-davinci-002__C_zs_cot/D_multiarith.json", "student=tiny_t5", "diversity=1",
        *SMALL[1:4], *SMALL[4:],
    )  # fmt: skip
    metrics = execute(run, "")
    assert metrics["teacher"] == "text-davinci-002"
    assert metrics["n_test"] == 180
    assert metrics["rows_in_published_order"]
    assert metrics["test_questions_also_in_train"] > 0
    assert 0.7 < metrics["completions_kept"] / metrics["completions_asked"] < 0.9


def test_a_missing_student_is_an_error_before_the_teacher_is_paid(tmp_path):
    with pytest.raises(FcotError, match=r"student\.path=FOLDER"):
        execute(make_run(tmp_path, *QUICK, "student=t5_small"), "")
    assert not (tmp_path / "store").exists()


def test_selection_looks_at_validation_only_and_the_test_set_is_read_once(monkeypatch, tmp_path):
    """Validation problems are decoded during training, test problems after it."""
    from fcot.stages import answering
    from fcot.stages import training as stage

    decoded = []
    real = answering.answer_problems

    def recorded(run, student, form, indices, *arguments):
        decoded.append((list(indices), student.model.training))
        return real(run, student, form, indices, *arguments)

    monkeypatch.setattr(answering, "answer_problems", recorded)
    monkeypatch.setattr(stage, "answer_problems", recorded)
    run = make_run(tmp_path, *SMALL, "method=fine_tune")
    execute(run, "")
    assert [indices for indices, _ in decoded] == [run.split.validation, run.split.validation, run.split.test]
    assert [training for _, training in decoded] == [True, True, False], "training continues in training mode"


def test_the_latest_of_equal_checkpoints_is_kept(monkeypatch, tmp_path):
    from fcot.stages import training as stage

    accuracies = iter([0.5, 0.2, 0.5, 0.1])
    saved = []
    monkeypatch.setattr(stage.scoring, "accuracy", lambda predictions: next(accuracies))
    real = stage.save
    monkeypatch.setattr(stage, "save", lambda *arguments: (saved.append(next(steps)), real(*arguments)))
    steps = iter(range(10))
    run = make_run(tmp_path, *SMALL, "trainer.evaluate_every_steps=3", "method=fine_tune", "until=train")
    summary = execute(run, "")
    assert len(saved) == 2, "the first and the third are saved; the second and the fourth are worse"
    assert summary["validation_accuracy"] == 0.5


def test_prompt_numbers_is_part_of_the_run_id_without_a_teacher_too(tmp_path):
    ids = {make_run(tmp_path, "method=fine_tune", f"prompt.numbers={numbers}").run_id for numbers in ("paper", "extended")}
    assert len(ids) == 2


def test_a_missing_file_of_a_finished_stage_is_written_again(tmp_path):
    run = make_run(tmp_path, *SMALL, "until=train")
    execute(run, "")
    shutil.rmtree(run.directory.student)
    execute(make_run(tmp_path, *SMALL), "")
    assert (run.directory.student / "config.json").exists()


def test_folder_names_cannot_leave_the_outputs(tmp_path):
    rows = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(30)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = make_run(tmp_path, "dataset=custom", f"dataset.path={tmp_path}/mine.jsonl", "dataset.answer_type=number",
                   "dataset.name=../../evil", "method=fine_tune")  # fmt: skip
    assert run.directory.path.resolve().parent == (tmp_path / "runs").resolve()


def test_the_saved_configuration_has_the_temperature_that_was_used(run_fcot, tmp_path):
    result = run_fcot("-m", "diversity=1,2", *SMALL, "until=generate")
    assert result.returncode == 0, result.stderr
    configs = [path.read_text() for path in (tmp_path / "outputs" / "runs").glob("*/config.yaml")]
    assert len(configs) == 2
    assert all("temperature: 0.7" in text for text in configs)
