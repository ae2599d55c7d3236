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
ONE = {"OMP_NUM_THREADS": "1"}


def the_sweep(folder: Path):
    (plan,) = folder.glob("outputs/sweeps/*/plan.json")
    return read_plan(plan.parent)


def states(sweep) -> list[str]:
    return [one.state for one in statuses(sweep) if isinstance(one.name, int)]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fcot.run", *arguments], cwd=folder, env={**os.environ, **ONE}, stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


def until(condition, seconds: float = 120):
    """What ``condition`` returns, as soon as it is something."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


# --- launchers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf/hydra/launcher").glob("*.yaml")))
def test_every_launcher_composes_and_is_documented(name):
    register_schemas()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        launcher = compose("config", [f"hydra/launcher={name}", "trainer.devices=2"], return_hydra_config=True).hydra.launcher
    assert launcher._target_ == "hydra_plugins.fcot_launcher.FcotLauncher"
    assert launcher.kind == ("slurm" if "slurm" in name else name)
    assert launcher.get("tasks_per_node") == {"slurm": 1, "slurm_ddp": 2}.get(name)
    text = (ROOT / "docs/slurm.md").read_text() + subprocess.run(
        [sys.executable, "-m", "fcot.run", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert text.count(f"`{name}`") >= 1
    assert f" {name} " in text


def test_the_plugin_imports_nothing_heavy():
    code = "import sys, hydra_plugins.fcot_launcher; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "submitit", "transformers", "fcot.sweeps.launch"} & set(loaded)


def test_what_slurm_unpickles_sets_the_number_of_threads_before_torch_and_numpy_come():
    code = "import sys, fcot.sweeps.slurm; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "transformers", "pytorch_lightning"} & set(loaded)


@pytest.mark.parametrize(("override", "said"), [
    ("hydra/launcher=slurm", "there is no SLURM on this machine"),
    ("hydra/launcher=basic", "sweeps run under hydra/launcher=serial, local, slurm or slurm_ddp"),
    ("hydra/launcher=submitit_local", "sweeps run under hydra/launcher=serial, local, slurm or slurm_ddp"),
    ("hydra.sweeper.max_batch_size=1", "array_parallelism"),
    ("hydra.launcher.partition=gpu", "hydra.launcher"),
    ("trainer.nodes=2", "start one process per device"),
    ("experiment=null", "experiment=null: leave it out"),
    ("hydra/launcher=slrum", "Did you mean hydra/launcher=slurm?\nhydra/launcher has: local, serial, slurm, slurm_ddp"),
])  # fmt: skip
def test_what_cannot_be_launched_is_one_message(override, said, run_fcot, tmp_path):
    (tmp_path / "bin").mkdir()
    path = f"{tmp_path}/bin"  # without srun
    result = run_fcot("-m", "seed=0", *SMALL, override, PATH=path)
    assert result.returncode == 1
    assert said in result.stderr + result.stdout
    assert "Traceback" not in result.stderr


def test_ranks_that_slurm_will_not_start_are_found_out_before_submission(run_fcot):
    result = run_fcot("-m", "seed=0", *SMALL, "hydra/launcher=slurm", "trainer.nodes=2", "dry_run=true")
    assert result.returncode == 1
    assert "trainer.devices=1 times trainer.nodes=2 is 2 processes, and a job of this launcher has 1 tasks" in result.stderr


def test_a_dry_run_with_a_job_that_cannot_be_run_says_so_and_fails(run_fcot):
    result = run_fcot("-m", "diversity=1,0", *SMALL, "dry_run=true")
    assert result.returncode == 1
    assert "diversity=0" in result.stdout
    assert "2 jobs: 1 to run, 1 with a fault" in result.stdout
    assert "Traceback" not in result.stderr


def test_a_launcher_of_ones_own_from_a_folder_of_ones_own(run_fcot, tmp_path):
    (tmp_path / "conf/hydra/launcher").mkdir(parents=True)
    (tmp_path / "conf/hydra/launcher/mysite.yaml").write_text("defaults: [slurm, _self_]\npartition: mine\ntimeout_min: 90\n")
    (tmp_path / "conf/student").mkdir()
    (tmp_path / "conf/student/narrow.yaml").write_text("defaults: [tiny_gpt2, _self_]\nwidth: 16\n")
    site = ["--config-dir", str(tmp_path / "conf"), "-m"]
    result = run_fcot(*site, "seed=0,1", *SMALL, "hydra/launcher=mysite", "dry_run=true")
    assert result.returncode == 0, result.stderr
    assert "at most 2 jobs x 90 min x 1 GPU = 3.0 GPU-hours, without requeued jobs" in result.stdout
    result = run_fcot(*site, "student=narrow", *[one for one in SMALL if "width" not in one], "until=curate")
    assert result.returncode == 0, result.stderr


# --- the plan --------------------------------------------------------------------------------------------------------


def test_faulty_jobs_are_told_before_the_first_one_starts_and_do_not_keep_the_others(run_fcot, tmp_path):
    result = run_fcot("-m", "diversity=0,1", *SMALL, "until=curate", **ONE)
    assert result.returncode == 1
    said = result.stderr
    assert said.index("job 0 (diversity=0) cannot be run") < said.index("job 1: diversity=1")
    sweep = the_sweep(tmp_path)
    assert states(sweep) == ["failed", "done"]
    assert "diversity=0" in "".join(statuses(sweep)[0].error)
    assert f"python -m fcot.sweep rerun {sweep.folder.relative_to(tmp_path)}" in said
    again = run_fcot("rerun", str(sweep.folder), module="fcot.sweep", **ONE)
    assert again.returncode == 1
    assert "running again: jobs 0" in again.stderr


def test_a_folder_holds_one_sweep(run_fcot, tmp_path):
    folder = "hydra.sweep.dir=outputs/mine"
    assert run_fcot("-m", "seed=0,1", *SMALL, folder, "until=generate").returncode == 0
    assert run_fcot("-m", "seed=0,1", *SMALL, folder, "until=generate").returncode == 0
    result = run_fcot("-m", "seed=0,2", *SMALL, folder, "until=generate")
    assert result.returncode == 1
    assert "outputs/mine holds another sweep" in result.stderr


def test_a_job_that_has_become_another_run_stops_and_says_so(run_fcot, tmp_path):
    rows = [{"question": f"What is {n} + 1?", "answer": n + 1} for n in range(30)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = ["dataset=custom", f"dataset.path={data}", "dataset.answer_type=number", "method=fine_tune"]
    small = [one for one in SMALL if not one.startswith("dataset")]
    assert run_fcot("-m", "seed=0", *mine, *small, **ONE).returncode == 0
    sweep = the_sweep(tmp_path)
    before = sweep.jobs[0].run_id
    data.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    (sweep.directory(sweep.jobs[0]).done).unlink()
    told = run_fcot("job", str(sweep.folder), "0", module="fcot.sweep", **ONE)
    assert told.returncode == 1
    assert f"was planned at {sweep.created} as {before}, and is" in told.stderr
    assert states(the_sweep(tmp_path)) == ["failed"]
    again = run_fcot("rerun", str(sweep.folder), module="fcot.sweep", **ONE)
    assert again.returncode == 0, again.stderr
    assert f"job 0 was {before} and is" in again.stderr
    assert states(the_sweep(tmp_path)) == ["done"]


def test_plans_that_are_none(run_fcot, tmp_path):
    for folder, said in (("nowhere", "no such folder"), (".", "it has no plan.json")):
        result = run_fcot("status", folder, module="fcot.sweep")
        assert (result.returncode, said in result.stderr) == (1, True)
    (tmp_path / "plan.json").write_text('{"jobs": [')
    result = run_fcot("status", ".", module="fcot.sweep")
    assert "plan.json is damaged" in result.stderr
    assert result.returncode == 1


def test_a_sweep_that_ends_before_evaluation_is_not_run_again(run_fcot, tmp_path):
    sweep = ["-m", "diversity=1,2", *SMALL, "until=curate", "hydra.sweep.dir=outputs/sweeps/s"]
    assert "job 0: diversity=1" in run_fcot(*sweep, **ONE).stderr
    again = run_fcot(*sweep, **ONE)
    assert (again.returncode, again.stderr) == (0, ""), "no job is started"
    assert states(the_sweep(tmp_path)) == ["done", "done"]


# --- a pool of processes ---------------------------------------------------------------------------------------------


def test_a_pool_leaves_what_one_process_leaves(run_fcot, tmp_path):
    sweep = ["-m", "method=fine_tune,fine_tune_cot", "diversity=1,2", *SMALL]
    local = run_fcot(*sweep, "hydra/launcher=local", "output_dir=local", **ONE)
    assert local.returncode == 0, local.stderr
    serial = run_fcot(*sweep, "output_dir=serial", **ONE)
    rows = [[line for line in result.stdout.splitlines() if line.strip().startswith(("Fine", "Zero"))] for result in (local, serial)]
    times = [[line.split()[:-1] for line in lines if "kept" not in line] for lines in rows]
    assert times[0] == times[1]
    for run in (tmp_path / "serial/runs").iterdir():
        assert (tmp_path / "local/runs" / run.name / "predictions.jsonl").read_bytes() == (run / "predictions.jsonl").read_bytes()
    (plan,) = (tmp_path / "local/sweeps").glob("*/plan.json")
    assert read_plan(plan.parent).launcher["processes"] is None
    assert [one.state for one in statuses(read_plan(plan.parent))] == ["done", "done", "same", "done", "done"]  # the generation first
    collected = run_fcot("collect", str(plan.parent), module="fcot.sweep")
    assert collected.returncode == 0, collected.stderr
    table = pq.read_table(plan.parent / "jobs.parquet").to_pylist()
    assert [(row["state"], row["same_as"]) for row in table] == [("done", None), ("same", 0), ("done", None), ("done", None)]
    assert table[0]["accuracy"] == table[1]["accuracy"]
    assert table[0]["override.diversity"] == 1
    assert (plan.parent / "jobs.csv").read_text().count("\n") >= 5


@pytest.mark.slow
def test_of_a_pool_one_is_killed_and_the_others_go_on(tmp_path, run_fcot):
    process = start(
        tmp_path, "-m", "seed=0,1,2", *SMALL[:1], "trainer.max_steps=400", *SMALL[2:], "hydra/launcher=local", "hydra.launcher.processes=2"
    )
    until(lambda: list(tmp_path.glob("outputs/sweeps/*/plan.json")))
    sweep = the_sweep(tmp_path)
    until(lambda: "of 400 steps" in next(one.details for one in statuses(sweep) if one.name == 0))
    os.kill(json.loads(sweep.record(0).read_text())["attempts"][0]["process"], signal.SIGKILL)
    until(lambda: states(sweep)[0] == "failed", 5)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "job 0 (seed=0) was killed" in said
    assert states(sweep) == ["failed", "done", "done"]
    assert statuses(sweep)[1].details == "it was killed"
    result = run_fcot("rerun", str(sweep.folder), module="fcot.sweep", **ONE)
    assert result.returncode == 0, result.stderr
    assert "running again: jobs 0\n" in result.stderr
    assert states(sweep) == ["done"] * 3
    assert "nothing to run again" in run_fcot("rerun", str(sweep.folder), module="fcot.sweep").stderr


def test_a_cancelled_pool_saves_and_goes_on_later(tmp_path, run_fcot):
    process = start(tmp_path, "-m", "seed=0,1,2", *LONG, "hydra/launcher=local", "hydra.launcher.processes=1")
    until(lambda: list(tmp_path.glob("outputs/sweeps/*/plan.json")))
    sweep = the_sweep(tmp_path)
    until(lambda: sweep.progress(0).exists())
    assert states(sweep) == ["running", "queued", "queued"]
    assert "is being run by process" in run_fcot("rerun", str(sweep.folder), module="fcot.sweep").stderr
    assert "cancelled: 0, 1, 2" in run_fcot("cancel", str(sweep.folder), module="fcot.sweep").stderr
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert states(sweep) == ["interrupted", "missing", "missing"]
    assert "nothing to cancel: no job is queued or running" in run_fcot("cancel", str(sweep.folder), module="fcot.sweep").stderr


def test_a_killed_sweep_leaves_a_true_ledger(tmp_path):
    process = start(tmp_path, "-m", "seed=0,1", *LONG)
    until(lambda: list(tmp_path.glob("outputs/sweeps/*/running/0.json")))
    sweep = the_sweep(tmp_path)
    assert states(sweep) == ["running", "queued"]
    process.kill()
    process.communicate()
    assert states(sweep) == ["failed", "missing"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a killed pool's jobs run on")
def test_a_killed_pool_leaves_no_job_behind(tmp_path):
    process = start(tmp_path, "-m", "seed=0,1", *LONG, "hydra/launcher=local", "hydra.launcher.processes=1")
    until(lambda: list(tmp_path.glob("outputs/sweeps/*/running/0.json")))
    sweep = the_sweep(tmp_path)
    assert holder(sweep.lock(0)) is not None
    process.kill()
    process.communicate()
    until(lambda: holder(sweep.lock(0)) is None, 60)
    assert states(sweep) == ["interrupted", "missing"]  # it was told to stop, and has saved


# --- the ledger ------------------------------------------------------------------------------------------------------


def record(status: str, slurm: str = "7_0", ended: float | None = 2.0) -> JobRecord:
    return JobRecord(0, [], "r", "../r", status, attempts=[Attempt(1.0, "node", 1, slurm, ended, None if status == "running" else status)])


RUNNING, PENDING, GONE = SlurmState("RUNNING"), SlurmState("PENDING", "Priority"), None


@pytest.mark.parametrize(("left", "slurm", "expected"), [
    (None, PENDING, ("queued", "Priority")),
    (None, RUNNING, ("starting", "")),
    (None, GONE, ("missing", "SLURM has forgotten it, and it left no files")),
    (None, SlurmState("CANCELLED"), ("cancelled", "before it started")),
    (None, SlurmState("NODE_FAIL"), ("failed", "it did not start: NODE_FAIL")),
    (record("running", ended=None), RUNNING, ("running", "")),  # its lock cannot be seen from here
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
    (record("failed", slurm="3_0"), PENDING, ("queued", "Priority")),  # of an earlier submission
    (record("failed", slurm="3_0"), GONE, ("missing", "SLURM has forgotten it, and it left no files")),
])  # fmt: skip
def test_what_became_of_a_submitted_job(left, slurm, expected):
    last = left.attempts[-1] if left else None
    assert _state_on_slurm(left, last, "7_0", {} if slurm is None else {"7_0": slurm}) == expected


def test_without_slurm_nothing_is_known_of_jobs_that_left_nothing():
    assert _state_on_slurm(None, None, "7_0", None)[0] == "unknown"
    assert _state_on_slurm(record("running"), record("running").attempts[0], "7_0", None)[0] == "unknown"
    assert _state_on_slurm(record("failed"), record("failed").attempts[0], "7_0", None) == ("failed", "")


def test_preemptions_are_counted():
    attempts = [Attempt(1, "n", 1, "7", 2, "requeued"), Attempt(3, "n", 1, "7", None, None), Attempt(5, "n", 1, "7", 6, "done")]
    assert _preempted(JobRecord(0, [], None, None, "done", attempts=attempts)) == 2
    assert _preempted(JobRecord(0, [], None, None, "requeued", attempts=attempts[:1])) == 1
    again = [Attempt(1, "n", 1, "7", 2, "failed"), Attempt(3, "n", 1, "8", 6, "done")]
    assert _preempted(JobRecord(0, [], None, None, "done", attempts=again)) == 0
    assert _preempted(None) == 0


def test_a_lock_tells_who_holds_it(tmp_path):
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


def test_what_a_disk_has_damaged_is_left_out(tmp_path, capsys):
    jobs = [PlannedJob(0, ["seed=0"], "r", "../r", "evaluate")]
    sweep = Sweep(tmp_path, "2026-01-31", "/", [], {"kind": "slurm"}, jobs)
    sweep.record(0).parent.mkdir()
    sweep.record(0).write_text('{"job": 0, "atte')
    sweep.progress(0).parent.mkdir()
    sweep.progress(0).write_text('{"what": "tr"}')
    whole = '{"time": 1.0, "host": "h", "generation": null, "jobs": {"0": "7_0"}}'
    (tmp_path / "submissions.jsonl").write_text(f'{whole}\n{{"time": 2.0, "ho')
    assert [one.jobs for one in submissions(sweep)] == [{"0": "7_0"}]
    assert states(sweep) in (["unknown"], ["missing"])
    assert capsys.readouterr().err.count("is damaged and is left out") >= 3


def test_a_generation_is_asked_about_by_its_own_number(tmp_path):
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


def test_what_the_generation_job_has_of_the_array():
    launcher = {
        "name": "fcot", "partition": "gpu", "constraint": "a100", "gpus_per_node": 4, "nodes": 2, "tasks_per_node": 4, "mem_per_gpu": "8G",
        "account": "mine", "additional_parameters": {"gres": "gpu:1", "reservation": "r"}, "generation": {"partition": "web", "qos": None},
    }  # fmt: skip
    without = _generation_parameters(launcher, False)
    assert (without["partition"], without["account"], without["nodes"], without["tasks_per_node"]) == ("web", "mine", 1, 1)
    assert not {"constraint", "gpus_per_node", "mem_per_gpu"} & set(without)
    assert without["additional_parameters"] == {"reservation": "r"}
    assert _generation_parameters(launcher, True)["gpus_per_node"] == 1


def test_a_pool_s_places_are_among_the_gpus_it_was_given(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-bb")
    places = _places(None, 1)
    assert {places.get()["CUDA_VISIBLE_DEVICES"] for _ in range(places.qsize())} == {"2", "GPU-bb"}
    assert _places(None, 2).get()["CUDA_VISIBLE_DEVICES"] == "2,GPU-bb"
    with pytest.raises(FcotError, match="this machine has 2 GPUs"):
        _places(None, 3)


def test_a_stopped_pool_asks_its_jobs_to_stop(tmp_path):
    process = start(tmp_path, "-m", "seed=0,1", *LONG, "hydra/launcher=local", "hydra.launcher.processes=1")
    until(lambda: list(tmp_path.glob("outputs/sweeps/*/running/0.json")))
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "to continue: python -m fcot.sweep rerun outputs/sweeps/" in said
    assert states(the_sweep(tmp_path)) == ["interrupted", "missing"]


def test_rows_of_unlike_runs_make_one_table():
    flat = _flat({"accuracy_ci95": [0.1, 0.2], "seconds": {"train": 3.5}, "history": [{"step": 1}], "run_id": "x", "subset": None})
    assert flat == {"accuracy_ci95.low": 0.1, "accuracy_ci95.high": 0.2, "seconds.train": 3.5, "history": '[{"step": 1}]', "subset": None}
    rows = [{"a": 1, "b": 1, "c": True, "d": [1, 2], "e": None, "f": 3}, {"a": 2.5, "b": "x", "e": None}, {"f": 4}]
    table = pa.Table.from_pandas(_table(rows), preserve_index=False)
    assert table.to_pydict() == {
        "a": [1.0, 2.5, None], "b": ["1", "x", None], "c": [True, None, None], "d": ["[1, 2]", None, None], "e": [None] * 3,
        "f": [3, None, 4],
    }  # fmt: skip
    assert [str(table.schema.field(name).type) for name in "acf"] == ["double", "bool", "int64"]
    assert counts([Status(0, "done"), Status(1, "failed"), Status(2, "done"), Status("generation", "done")]) == "2 done, 1 failed"


@pytest.mark.parametrize("word", ["mem_gb=64GB", "setup=[export OPENAI_API_KEY=sk-proj-0123456789abcdefgh]"])
def test_rerun_refuses_what_would_do_harm(word):
    with pytest.raises(FcotError, match=r"is a whole number|looks like a secret"):
        command._launcher_parameters({"mem_gb": 3, "setup": []}, [word])


@pytest.mark.parametrize("word", ["mem_gb", "nothing=1", "kind=serial", "generation=1", "generation.nothing=1", "a.b=1"])
def test_rerun_takes_parameters_of_the_launcher_only(word):
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
time.sleep(600)
"""
PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], stdout=subprocess.PIPE)
print(child.pid, child.stdout.readline().decode(), flush=True)
time.sleep(600)
"""


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part")
def test_a_process_ends_with_its_parent():
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True)
    child, said = parent.stdout.readline().split()
    assert said == "lives"
    assert alive(int(child))
    parent.kill()
    parent.wait()
    until(lambda: not alive(int(child)), 30)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part")
def test_a_process_whose_parent_has_ended_already_ends_at_once():
    done = subprocess.run([sys.executable, "-c", CHILD, "1"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "")


def test_elsewhere_than_on_linux_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    end_with_parent(signal.SIGKILL, parent=1)


def test_no_code_runs_between_fork_and_exec():
    assert not [path for path in (ROOT / "fcot").rglob("*.py") if "preexec_fn" in path.read_text()]


# --- stop signals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_warned_training_saves_ends_and_goes_on_from_there(number, tmp_path):
    steady = [*LONG, "trainer.checkpoint_every_s=1000000"]
    process = start(tmp_path, *steady)
    until(lambda: list(tmp_path.glob("outputs/runs/*/logs/metrics.csv")))
    time.sleep(1)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}; the same command continues" in said
    assert "Traceback" not in said
    (saved,) = tmp_path.glob("outputs/runs/*/checkpoints/step_*.ckpt")
    step = int(saved.name.split(".")[0].removeprefix("step_"))
    assert step > 0
    (spent,) = tmp_path.glob("outputs/runs/*/stages/train.interrupted.json")
    assert json.loads(spent.read_text())["seconds"] > 0
    process = start(tmp_path, *steady)
    for line in process.stderr:
        if "training continues" in line:
            break
    process.kill()
    process.wait()
    assert f"training continues at step {step:,} of 100,000" in line


DEAF = """
import time
from fcot.base import stopping
stopping.listen()
print("listens", flush=True)
while stopping.stop_requested() is None:
    time.sleep(0.01)
print("asked", flush=True)
time.sleep(600)
"""


def test_a_later_sigterm_ends_the_process_and_one_that_comes_with_the_first_does_not():
    """The kernel sends one for each thread of a parent that was killed; SLURM sends one to every process of a job."""
    process = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "listens\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
