"""Sweeps without a cluster: the plan, the ledger after every kind of end, the pool of processes, stop signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zygote
from hydra import compose, initialize_config_dir

from fcot import sweep as command
from fcot.base.errors import FcotError
from fcot.base.files import exclusive, holder, write_json
from fcot.base.stopping import end_with_parent
from fcot.config.schema import register_schemas
from fcot.sweeps.collect import _flat, _table
from fcot.sweeps.controller import SlurmState
from fcot.sweeps.job import Attempt, JobRecord, _check_generation
from fcot.sweeps.ledger import Status, _preempted, _state_on_slurm, counts, statuses
from fcot.sweeps.plan import PlannedJob, Sweep, read_plan
from fcot.sweeps.pool import _places
from fcot.sweeps.slurm import _generation_parameters, submissions

ROOT = Path(__file__).parent.parent
SMALL = [
    "dataset.n_problems=60", "trainer.max_steps=12", "trainer.evaluate_every_steps=6", "trainer.warmup_steps=2",
    "student.width=32", "student.layers=1", "student.vocab_size=400", "student.max_new_tokens=40",
]  # fmt: skip
LONG = [*SMALL[:1], "trainer.max_steps=100000", "trainer.evaluate_every_steps=100000", *SMALL[3:]]


def the_sweep(folder: Path):
    (plan,) = folder.glob("outputs/sweeps/*/plan.json")
    return read_plan(plan.parent)


def states(sweep) -> list[str]:
    return [status.state for status in statuses(sweep) if isinstance(status.name, int)]


def start(folder: Path, *arguments: str):
    return zygote.start(["-m", "fcot.run", *arguments], cwd=folder, stdout=subprocess.DEVNULL)


def until(condition, seconds: float = 600):
    """Wait until ``condition()`` is true; returns its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return value


# --- launchers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf/hydra/launcher").glob("*.yaml")))
def test_every_launcher_composes_and_is_documented(name):
    register_schemas()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        launcher = compose("config", [f"hydra/launcher={name}", "trainer.devices=2"], return_hydra_config=True).hydra.launcher
    assert launcher._target_ == "hydra_plugins.fcot_launcher.FcotLauncher"
    assert launcher.kind == ("slurm" if "slurm" in name else name)
    assert launcher.get("tasks_per_node") == {"slurm": 1, "slurm_ddp": 2}.get(name)
    text = (ROOT / "docs/slurm.md").read_text() + zygote.run(["-m", "fcot.run", "--help"]).stdout
    assert text.count(f"`{name}`") >= 1
    assert f" {name} " in text


def test_the_launcher_plugin_imports_no_large_package():
    code = "import sys, hydra_plugins.fcot_launcher; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "submitit", "transformers", "fcot.sweeps.launch"} & set(loaded)


def test_a_slurm_job_sets_the_number_of_threads_before_torch_and_numpy_are_imported():
    code = "import sys, fcot.sweeps.slurm; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "transformers", "pytorch_lightning"} & set(loaded)


@pytest.mark.parametrize(("override", "message"), [
    ("hydra/launcher=slurm", "there is no SLURM on this machine"),
    ("hydra/launcher=basic", "sweeps run under hydra/launcher=serial, local, slurm or slurm_ddp"),
    ("hydra/launcher=submitit_local", "sweeps run under hydra/launcher=serial, local, slurm or slurm_ddp"),
    ("hydra.sweeper.max_batch_size=1", "array_parallelism"),
    ("hydra.launcher.partition=gpu", "hydra.launcher"),
    ("trainer.nodes=2", "start one process per device"),
    ("experiment=null", "experiment=null: a group cannot be null; leave the override out"),
    ("hydra/launcher=slrum", "Did you mean hydra/launcher=slurm?\nhydra/launcher has: local, serial, slurm, slurm_ddp"),
])  # fmt: skip
def test_a_sweep_that_cannot_be_launched_gives_one_message(override, message, run_fcot, tmp_path):
    (tmp_path / "bin").mkdir()
    programs = f"{tmp_path}/bin"  # without srun
    result = run_fcot("-m", "seed=0", *SMALL, override, PATH=programs)
    assert result.returncode == 1
    assert message in result.stderr + result.stdout
    assert "Traceback" not in result.stderr


def test_a_number_of_ranks_that_slurm_would_not_start_is_reported_before_submission(run_fcot):
    result = run_fcot("-m", "seed=0", *SMALL, "hydra/launcher=slurm", "trainer.nodes=2", "dry_run=true")
    assert result.returncode == 1
    assert "trainer.devices=1 times trainer.nodes=2 is 2 processes, and a job of this launcher has 1 tasks" in result.stderr


def test_a_dry_run_with_a_faulty_job_reports_it_and_fails(run_fcot):
    result = run_fcot("-m", "diversity=1,0", *SMALL, "dry_run=true")
    assert result.returncode == 1
    assert "diversity=0" in result.stdout
    assert "2 jobs: 1 to run, 1 with a fault" in result.stdout
    assert "Traceback" not in result.stderr


def test_users_can_add_a_launcher_in_a_config_folder_of_their_own(run_fcot, tmp_path):
    (tmp_path / "conf/hydra/launcher").mkdir(parents=True)
    (tmp_path / "conf/hydra/launcher/mysite.yaml").write_text("defaults: [slurm, _self_]\npartition: mine\ntimeout_min: 90\n")
    (tmp_path / "conf/student").mkdir()
    (tmp_path / "conf/student/narrow.yaml").write_text("defaults: [tiny_gpt2, _self_]\nwidth: 16\n")
    config_dir = ["--config-dir", str(tmp_path / "conf"), "-m"]
    result = run_fcot(*config_dir, "seed=0,1", *SMALL, "hydra/launcher=mysite", "dry_run=true")
    assert result.returncode == 0, result.stderr
    assert "at most 2 jobs x 90 min x 1 GPU = 3.0 GPU-hours, without requeued jobs" in result.stdout
    result = run_fcot(*config_dir, "student=narrow", *[option for option in SMALL if "width" not in option], "until=curate")
    assert result.returncode == 0, result.stderr


# --- the plan --------------------------------------------------------------------------------------------------------


def test_faulty_jobs_are_reported_before_the_first_job_starts_and_do_not_stop_the_others(run_fcot, tmp_path):
    result = run_fcot("-m", "diversity=0,1", *SMALL, "until=curate")
    assert result.returncode == 1
    output = result.stderr
    assert output.index("job 0 (diversity=0) cannot be run") < output.index("job 1: diversity=1")
    sweep = the_sweep(tmp_path)
    assert states(sweep) == ["failed", "done"]
    assert "diversity=0" in "".join(statuses(sweep)[0].error)
    assert f"python -m fcot.sweep rerun {sweep.folder.relative_to(tmp_path)}" in output
    rerun = run_fcot("rerun", str(sweep.folder), module="fcot.sweep")
    assert rerun.returncode == 1
    assert "again: jobs 0" in rerun.stderr


def test_a_folder_contains_only_one_sweep(run_fcot, tmp_path):
    folder = "hydra.sweep.dir=outputs/mine"
    assert run_fcot("-m", "seed=0,1", *SMALL, folder, "until=generate").returncode == 0
    assert run_fcot("-m", "seed=0,1", *SMALL, folder, "until=generate").returncode == 0
    result = run_fcot("-m", "seed=0,2", *SMALL, folder, "until=generate")
    assert result.returncode == 1
    assert "outputs/mine holds another sweep" in result.stderr


def test_a_job_whose_run_id_has_changed_since_the_plan_stops_with_a_message(run_fcot, tmp_path):
    rows = [{"question": f"What is {n} + 1?", "answer": n + 1} for n in range(30)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = ["dataset=custom", f"dataset.path={data}", "dataset.answer_type=number", "method=fine_tune"]
    small = [option for option in SMALL if not option.startswith("dataset")]
    assert run_fcot("-m", "seed=0", *dataset, *small).returncode == 0
    sweep = the_sweep(tmp_path)
    before = sweep.jobs[0].run_id
    data.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    (sweep.directory(sweep.jobs[0]).done).unlink()
    stopped = run_fcot("job", str(sweep.folder), "0", module="fcot.sweep")
    assert stopped.returncode == 1
    assert f"was planned at {sweep.created} as {before}, and is" in stopped.stderr
    assert states(the_sweep(tmp_path)) == ["failed"]
    rerun = run_fcot("rerun", str(sweep.folder), module="fcot.sweep")
    assert rerun.returncode == 0, rerun.stderr
    assert f"job 0 was {before} and is" in rerun.stderr
    assert states(the_sweep(tmp_path)) == ["done"]


def test_a_missing_or_damaged_plan_is_reported(run_fcot, tmp_path):
    for folder, message in (("nowhere", "no such folder"), (".", "it has no plan.json")):
        result = run_fcot("status", folder, module="fcot.sweep")
        assert (result.returncode, message in result.stderr) == (1, True)
    (tmp_path / "plan.json").write_text('{"jobs": [')
    result = run_fcot("status", ".", module="fcot.sweep")
    assert "plan.json is damaged" in result.stderr
    assert result.returncode == 1


def test_a_sweep_that_ends_before_evaluation_is_not_run_again(run_fcot, tmp_path):
    sweep = ["-m", "diversity=1,2", *SMALL, "until=curate", "hydra.sweep.dir=outputs/sweeps/s"]
    assert "job 0: diversity=1" in run_fcot(*sweep).stderr
    again = run_fcot(*sweep)
    assert (again.returncode, again.stderr) == (0, ""), "no job is started"
    assert states(the_sweep(tmp_path)) == ["done", "done"]


# --- a pool of processes ---------------------------------------------------------------------------------------------


def test_a_pool_of_processes_gives_the_results_of_a_single_process(run_fcot, tmp_path):
    sweep = ["-m", "method=fine_tune,fine_tune_cot", "diversity=1,2", *SMALL]
    local = run_fcot(*sweep, "hydra/launcher=local", "output_dir=local")
    assert local.returncode == 0, local.stderr
    serial = run_fcot(*sweep, "output_dir=serial")
    rows = [[line for line in result.stdout.splitlines() if line.strip().startswith(("Fine", "Zero"))] for result in (local, serial)]
    without_times = [[line.split()[:-1] for line in lines if "kept" not in line] for lines in rows]
    assert without_times[0] == without_times[1]
    for run in (tmp_path / "serial/runs").iterdir():
        assert (tmp_path / "local/runs" / run.name / "predictions.jsonl").read_bytes() == (run / "predictions.jsonl").read_bytes()
    (plan,) = (tmp_path / "local/sweeps").glob("*/plan.json")
    assert read_plan(plan.parent).launcher["processes"] is None
    assert [status.state for status in statuses(read_plan(plan.parent))] == ["done", "done", "same", "done", "done"]  # generation first
    collected = run_fcot("collect", str(plan.parent), module="fcot.sweep")
    assert collected.returncode == 0, collected.stderr
    table = pq.read_table(plan.parent / "jobs.parquet").to_pylist()
    assert [(row["state"], row["same_as"]) for row in table] == [("done", None), ("same", 0), ("done", None), ("done", None)]
    assert table[0]["accuracy"] == table[1]["accuracy"]
    assert table[0]["override.diversity"] == 1
    assert (plan.parent / "jobs.csv").read_text().count("\n") >= 5


@pytest.mark.slow
def test_the_other_jobs_of_a_pool_continue_after_one_is_killed(tmp_path, run_fcot):
    process = start(
        tmp_path, "-m", "seed=0,1,2", *SMALL[:1], "trainer.max_steps=400", *SMALL[2:], "hydra/launcher=local", "hydra.launcher.processes=2"
    )
    until(lambda: list(tmp_path.glob("outputs/sweeps/*/plan.json")))
    sweep = the_sweep(tmp_path)
    until(lambda: "of 400 steps" in next(status.details for status in statuses(sweep) if status.name == 0))
    os.kill(json.loads(sweep.record(0).read_text())["attempts"][0]["process"], signal.SIGKILL)
    until(lambda: states(sweep)[0] == "failed", 5)
    _, output = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "job 0 (seed=0) was killed" in output
    assert states(sweep) == ["failed", "done", "done"]
    assert statuses(sweep)[1].details == "it was killed"
    result = run_fcot("rerun", str(sweep.folder), module="fcot.sweep")
    assert result.returncode == 0, result.stderr
    assert "running again: jobs 0\n" in result.stderr
    assert states(sweep) == ["done"] * 3
    assert "nothing to run again" in run_fcot("rerun", str(sweep.folder), module="fcot.sweep").stderr


def test_a_cancelled_pool_interrupts_its_running_job_and_starts_no_other(tmp_path, run_fcot):
    process = start(tmp_path, "-m", "seed=0,1,2", *LONG, "hydra/launcher=local", "hydra.launcher.processes=1")
    until(lambda: list(tmp_path.glob("outputs/sweeps/*/plan.json")))
    sweep = the_sweep(tmp_path)
    until(lambda: sweep.progress(0).exists())
    assert states(sweep) == ["running", "queued", "queued"]
    assert "is being run by process" in run_fcot("rerun", str(sweep.folder), module="fcot.sweep").stderr
    assert "cancelled: 0, 1, 2" in run_fcot("cancel", str(sweep.folder), module="fcot.sweep").stderr
    _, output = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "Traceback" not in output
    assert states(sweep) == ["interrupted", "missing", "missing"]
    assert "nothing to cancel: no job is queued or running" in run_fcot("cancel", str(sweep.folder), module="fcot.sweep").stderr


def test_the_ledger_is_correct_after_a_sweep_is_killed(tmp_path):
    process = start(tmp_path, "-m", "seed=0,1", *LONG)
    until(lambda: list(tmp_path.glob("outputs/sweeps/*/running/0.json")))
    sweep = the_sweep(tmp_path)
    assert states(sweep) == ["running", "queued"]
    process.kill()
    process.communicate()
    assert states(sweep) == ["failed", "missing"]


@pytest.mark.skipif(sys.platform != "linux", reason="on other systems the jobs of a killed pool continue")
def test_a_killed_pool_leaves_no_job_running(tmp_path):
    process = start(tmp_path, "-m", "seed=0,1", *LONG, "hydra/launcher=local", "hydra.launcher.processes=1")
    until(lambda: list(tmp_path.glob("outputs/sweeps/*/running/0.json")))
    sweep = the_sweep(tmp_path)
    assert holder(sweep.lock(0)) is not None
    process.kill()
    process.communicate()
    until(lambda: holder(sweep.lock(0)) is None, 60)
    assert states(sweep) == ["interrupted", "missing"]  # it received a signal and saved


# --- the ledger ------------------------------------------------------------------------------------------------------


def record(status: str, slurm: str = "7_0", ended: float | None = 2.0) -> JobRecord:
    return JobRecord(0, [], "r", "../r", status, attempts=[Attempt(1.0, "node", 1, slurm, ended, None if status == "running" else status)])


RUNNING, PENDING, GONE = SlurmState("RUNNING"), SlurmState("PENDING", "Priority"), None


@pytest.mark.parametrize(("job_record", "slurm", "expected"), [
    (None, PENDING, ("queued", "Priority")),
    (None, RUNNING, ("starting", "")),
    (None, GONE, ("missing", "SLURM has forgotten it, and it left no files")),
    (None, SlurmState("CANCELLED"), ("cancelled", "before it started")),
    (None, SlurmState("NODE_FAIL"), ("failed", "it did not start: NODE_FAIL")),
    (record("running", ended=None), RUNNING, ("running", "")),  # its lock is not visible on this machine
    (record("running", ended=None), SlurmState("OUT_OF_MEMORY"), ("failed", "it was killed: OUT_OF_MEMORY")),
    (record("running", ended=None), SlurmState("FAILED"), ("failed", "it was killed")),
    (record("running", ended=None), SlurmState("CANCELLED"), ("cancelled", "while it ran")),
    (record("running", ended=None), PENDING, ("queued", "Priority")),  # SLURM requeued it
    (record("running", ended=None), GONE, ("failed", "it was killed")),
    (record("requeued"), PENDING, ("queued", "Priority")),
    (record("requeued"), SlurmState("COMPLETING"), ("queued", "being requeued")),
    (record("requeued"), GONE, ("interrupted", "requeued; SLURM has forgotten it")),
    (record("requeued"), SlurmState("FAILED"), ("failed", "requeued, and did not start again: FAILED")),  # killed at its next start
    (record("requeued"), SlurmState("NODE_FAIL"), ("failed", "requeued, and did not start again: NODE_FAIL")),
    (record("stopped"), SlurmState("COMPLETING"), ("running", "ending")),
    (record("stopped"), SlurmState("CANCELLED"), ("cancelled", "while it ran")),
    (record("stopped"), SlurmState("FAILED"), ("interrupted", "by a signal")),
    (record("failed"), SlurmState("FAILED"), ("failed", "")),
    (record("failed"), GONE, ("failed", "")),
    (record("failed", slurm="3_0"), PENDING, ("queued", "Priority")),  # the record of an earlier submission
    (record("failed", slurm="3_0"), GONE, ("missing", "SLURM has forgotten it, and it left no files")),
])  # fmt: skip
def test_the_state_of_a_submitted_job_follows_from_its_record_and_from_slurm(job_record, slurm, expected):
    last = job_record.attempts[-1] if job_record else None
    assert _state_on_slurm(job_record, last, "7_0", {} if slurm is None else {"7_0": slurm}) == expected


def test_without_slurm_the_state_of_unfinished_jobs_is_unknown():
    assert _state_on_slurm(None, None, "7_0", None)[0] == "unknown"
    assert _state_on_slurm(record("running"), record("running").attempts[0], "7_0", None)[0] == "unknown"
    assert _state_on_slurm(record("failed"), record("failed").attempts[0], "7_0", None) == ("failed", "")


def test_preemptions_are_counted():
    attempts = [Attempt(1, "n", 1, "7", 2, "requeued"), Attempt(3, "n", 1, "7", None, None), Attempt(5, "n", 1, "7", 6, "done")]
    assert _preempted(JobRecord(0, [], None, None, "done", attempts=attempts)) == 2
    assert _preempted(JobRecord(0, [], None, None, "requeued", attempts=attempts[:1])) == 1
    resubmitted = [Attempt(1, "n", 1, "7", 2, "failed"), Attempt(3, "n", 1, "8", 6, "done")]
    assert _preempted(JobRecord(0, [], None, None, "done", attempts=resubmitted)) == 0
    assert _preempted(None) == 0


def test_the_holder_of_a_lock_can_be_read(tmp_path):
    lock = tmp_path / "a.lock"
    assert holder(lock) is None
    code = "from pathlib import Path\nfrom fcot.base.files import exclusive\n"
    code += f"with exclusive(Path({str(lock)!r}), print): print('held', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    assert holder(lock) == process.pid
    process.kill()
    process.wait()
    assert holder(lock) is None
    with exclusive(lock, print):
        pass


def test_damaged_files_are_skipped_with_a_warning(tmp_path, capsys):
    jobs = [PlannedJob(0, ["seed=0"], "r", "../r", "evaluate")]
    sweep = Sweep(tmp_path, "2026-01-31", "/", [], {"kind": "slurm"}, jobs)
    sweep.record(0).parent.mkdir()
    sweep.record(0).write_text('{"job": 0, "atte')
    sweep.progress(0).parent.mkdir()
    sweep.progress(0).write_text('{"what": "tr"}')
    complete_line = '{"time": 1.0, "host": "h", "generation": null, "jobs": {"0": "7_0"}}'
    (tmp_path / "submissions.jsonl").write_text(f'{complete_line}\n{{"time": 2.0, "ho')
    assert [submission.jobs for submission in submissions(sweep)] == [{"0": "7_0"}]
    assert states(sweep) in (["unknown"], ["missing"])
    assert capsys.readouterr().err.count("is damaged and is left out") >= 3


def test_a_job_checks_the_generation_job_of_its_own_submission(tmp_path):
    sweep = Sweep(tmp_path, "2026-01-31", "/", [], {"kind": "slurm"}, [])
    first = Attempt(1, "n", 1, "35", 2, "failed", {"3": "no such model"})
    second = Attempt(3, "n", 1, "40", None, None)
    write_json(sweep.record("generation"), asdict(JobRecord("generation", [], None, None, attempts=[first, second])))
    _check_generation(sweep, 4, "35")
    with pytest.raises(FcotError, match="no such model"):
        _check_generation(sweep, 3, "35")
    with pytest.raises(FcotError, match="40 was killed"):
        _check_generation(sweep, 4, "40")
    with pytest.raises(FcotError, match="50 never started"):
        _check_generation(sweep, 4, "50")


def test_the_generation_job_takes_the_parameters_of_the_array_without_its_gpus():
    launcher = {
        "name": "fcot", "partition": "gpu", "constraint": "a100", "gpus_per_node": 4, "nodes": 2, "tasks_per_node": 4, "mem_per_gpu": "8G",
        "account": "mine", "additional_parameters": {"gres": "gpu:1", "reservation": "r"}, "generation": {"partition": "web", "qos": None},
    }  # fmt: skip
    parameters = _generation_parameters(launcher, False)
    assert (parameters["partition"], parameters["account"], parameters["nodes"], parameters["tasks_per_node"]) == ("web", "mine", 1, 1)
    assert not {"constraint", "gpus_per_node", "mem_per_gpu"} & set(parameters)
    assert parameters["additional_parameters"] == {"reservation": "r"}
    assert _generation_parameters(launcher, True)["gpus_per_node"] == 1


def test_a_pool_uses_only_visible_gpus(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-bb")
    places = _places(None, 1)
    assert {places.get()["CUDA_VISIBLE_DEVICES"] for _ in range(places.qsize())} == {"2", "GPU-bb"}
    assert _places(None, 2).get()["CUDA_VISIBLE_DEVICES"] == "2,GPU-bb"
    with pytest.raises(FcotError, match="this machine has 2 GPUs"):
        _places(None, 3)


def test_a_stopped_pool_stops_its_jobs(tmp_path):
    process = start(tmp_path, "-m", "seed=0,1", *LONG, "hydra/launcher=local", "hydra.launcher.processes=1")
    until(lambda: list(tmp_path.glob("outputs/sweeps/*/running/0.json")))
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM
    assert "to continue: python -m fcot.sweep rerun outputs/sweeps/" in output
    assert states(the_sweep(tmp_path)) == ["interrupted", "missing"]


def test_runs_with_different_fields_make_one_table():
    flat = _flat({"accuracy_ci95": [0.1, 0.2], "seconds": {"train": 3.5}, "history": [{"step": 1}], "run_id": "x", "subset": None})
    assert flat == {"accuracy_ci95.low": 0.1, "accuracy_ci95.high": 0.2, "seconds.train": 3.5, "history": '[{"step": 1}]', "subset": None}
    rows = [{"a": 1, "b": 1, "c": True, "d": [1, 2], "e": None, "f": 3}, {"a": 2.5, "b": "x", "e": None}, {"f": 4}]
    assert _table([{"a": [1, 2]}, {"a": [3, 4]}])["a"].tolist() == ["[1, 2]", "[3, 4]"], "lists of one length"
    table = pa.Table.from_pandas(_table(rows), preserve_index=False)
    assert table.to_pydict() == {
        "a": [1.0, 2.5, None], "b": ["1", "x", None], "c": [True, None, None], "d": ["[1, 2]", None, None], "e": [None] * 3,
        "f": [3, None, 4],
    }  # fmt: skip
    assert [str(table.schema.field(name).type) for name in "acf"] == ["double", "bool", "int64"]
    assert counts([Status(0, "done"), Status(1, "failed"), Status(2, "done"), Status("generation", "done")]) == "2 done, 1 failed"


@pytest.mark.parametrize("word", ["mem_gb=64GB", "setup=[export OPENAI_API_KEY=sk-proj-0123456789abcdefgh]"])
def test_rerun_rejects_wrong_types_and_secrets(word):
    with pytest.raises(FcotError, match=r"is a whole number|looks like a secret"):
        command._launcher_parameters({"mem_gb": 3, "setup": []}, [word])


@pytest.mark.parametrize("word", ["nothing", "nothing=1", "kind=serial", "generation=1", "generation.nothing=1", "a.b=1"])
def test_rerun_accepts_only_parameters_of_the_launcher(word):
    with pytest.raises(FcotError, match="the launcher has no such parameter"):
        command._launcher_parameters({"kind": "slurm", "mem_gb": 3, "generation": {"partition": None}}, [word])
    changed = command._launcher_parameters(
        {"mem_gb": 3, "generation": {"partition": None, "qos": "a"}}, ["mem_gb=64", "generation.partition=web"]
    )
    assert changed == {"mem_gb": 64, "generation": {"partition": "web", "qos": "a"}}


# --- the end of a parent --------------------------------------------------------------------------------------------

CHILD = """
import signal, sys, time
from fcot.base.stopping import end_with_parent
end_with_parent(signal.SIGTERM, int(sys.argv[1]))
print("lives", flush=True)
time.sleep(10000)
"""
PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], stdout=subprocess.PIPE)
print(child.pid, child.stdout.readline().decode(), flush=True)
time.sleep(10000)
"""


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_a_process_ends_with_its_parent():
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True)
    child, message = parent.stdout.readline().split()
    assert message == "lives"
    assert alive(int(child))
    parent.kill()
    parent.wait()
    until(lambda: not alive(int(child)))


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_a_process_whose_parent_has_already_ended_ends_at_once():
    done = subprocess.run([sys.executable, "-c", CHILD, "1"], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "")


def test_end_with_parent_does_nothing_outside_linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    end_with_parent(signal.SIGKILL, parent=1)


def test_no_code_runs_between_fork_and_exec():
    assert not [path for path in (ROOT / "fcot").rglob("*.py") if "preexec_fn" in path.read_text()]


# --- stop signals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_training_saves_and_ends_after_a_signal_and_the_same_command_continues_it(number, tmp_path):
    options = [*LONG, "trainer.checkpoint_every_s=1000000"]
    process = start(tmp_path, *options)
    until(lambda: list(tmp_path.glob("outputs/runs/*/logs/metrics.csv")))
    time.sleep(1)
    process.send_signal(number)
    _, output = process.communicate(timeout=600)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}; the same command continues" in output
    assert "Traceback" not in output
    (saved,) = tmp_path.glob("outputs/runs/*/checkpoints/step_*.ckpt")
    step = int(saved.name.split(".")[0].removeprefix("step_"))
    assert step > 0
    (interrupted,) = tmp_path.glob("outputs/runs/*/stages/train.interrupted.json")
    assert json.loads(interrupted.read_text())["seconds"] > 0
    process = start(tmp_path, *options)
    for line in process.stderr:
        if "training continues" in line:
            break
    process.kill()
    process.wait()
    assert f"training continues at step {step:,} of 100,000" in line


UNRESPONSIVE = """
import time
from fcot.base import stopping
stopping.listen()
print("listens", flush=True)
while stopping.stop_requested() is None:
    time.sleep(0.01)
print("stopping", flush=True)
time.sleep(10000)
"""


def test_a_second_sigterm_ends_the_process_only_if_it_comes_later_than_the_first():
    """Some come together: the kernel sends one for each thread of a killed parent, and SLURM sends one to every process of a job."""
    process = subprocess.Popen([sys.executable, "-c", UNRESPONSIVE], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "listens\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "stopping\n"
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
