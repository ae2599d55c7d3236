"""Sweeps on a real SLURM: results equal to local runs; jobs that fail or are killed, cancelled, preempted or requeued."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from slurm_cluster import all_ended, call, fcot, slurm, the_sweep, wait  # noqa: F401

from fcot.sweeps.job import read_record
from fcot.sweeps.slurm import submissions

SMALL = [
    "dataset.n_problems=60", "trainer.max_steps=12", "trainer.evaluate_every_steps=6", "trainer.warmup_steps=2",
    "student.width=32", "student.layers=1", "student.vocab_size=400", "student.max_new_tokens=40",
]  # fmt: skip
LONG = [option for option in SMALL if not option.startswith("trainer")] + ["trainer.warmup_steps=2", "trainer.evaluate_every_steps=300"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=10"]
VARYING = ("seconds", "train_samples_per_second", "teacher_usage", "devices", "padding_efficiency")


def metrics(folder: Path) -> dict[str, dict]:
    """Metrics of all runs by run id, without those that depend on the speed of the machine or on which run bought first."""
    by_run = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("outputs/runs/*/metrics.json")}
    return {name: {key: value for key, value in run_metrics.items() if key not in VARYING} for name, run_metrics in by_run.items()}


@pytest.mark.slow
def test_the_quickstart_as_a_job_array_equals_a_local_run(slurm, tmp_path):  # noqa: F811
    on_slurm, local = tmp_path / "on_slurm", tmp_path / "local"
    on_slurm.mkdir()
    local.mkdir()
    submitted = call(on_slurm, slurm, *fcot("run", "-m", "experiment=quickstart", *SMALL, *SLURM))
    assert "submitted: generation job" in submitted.stderr
    assert "6 jobs: 4 to run, 2 the same as another" in submitted.stderr
    call(local, {"OMP_NUM_THREADS": "1"}, *fcot("run", "-m", "experiment=quickstart", *SMALL))
    by_name = wait(the_sweep(on_slurm), slurm, all_ended)
    assert [by_name[number].state for number in range(6)] == ["done", "same", "done", "same", "done", "done"]
    assert by_name["generation"].state == "done"
    assert metrics(on_slurm) == metrics(local)
    report = call(tmp_path, {}, *fcot("report", str(the_sweep(on_slurm).folder), str(the_sweep(local).folder))).stdout
    assert report.partition("comparisons on the same problems")[0].count("  Fine-tune-CoT   ") == 2
    again = call(on_slurm, slurm, *fcot("run", "-m", "experiment=quickstart", *SMALL, *SLURM, "hydra.sweep.dir=outputs/again"))
    assert "nothing to submit" in again.stderr


@pytest.mark.slow
def test_rerun_starts_the_killed_the_cancelled_and_the_failed_job_of_a_sweep_and_no_other(slurm, tmp_path):  # noqa: F811
    rates = "teacher.error_rate=0,0.05,0.1,0.15,0.2,0.25,0.3,1"  # the last job has nothing to train on
    call(tmp_path, slurm, *fcot("run", "-m", rates, *LONG, "trainer.max_steps=300", *SLURM))
    sweep = the_sweep(tmp_path)
    _, array = submissions(sweep)  # the first submission is the generation job
    call(tmp_path, slurm, "scancel", array.jobs["6"])
    by_name = wait(sweep, slurm, lambda by_name: by_name[6].state == "cancelled")
    assert by_name[6].details == "before it started"
    by_name = wait(sweep, slurm, lambda by_name: by_name[0].state == "running" and "train" in by_name[0].details)
    assert "of 300 steps" in by_name[0].details
    os.kill(json.loads(sweep.record(0).read_text())["attempts"][-1]["process"], signal.SIGKILL)
    by_name = wait(sweep, slurm, lambda by_name: by_name[0].state == "failed")
    assert by_name[0].details == "it was killed"
    assert "Killed" in "".join(by_name[0].error)
    by_name = wait(sweep, slurm, all_ended)
    assert [by_name[number].state for number in range(8)] == ["failed", *["done"] * 5, "cancelled", "failed"]
    assert "no completion survives" in "".join(by_name[7].error)
    assert "no completion survives" in by_name[7].log.read_text()
    states = call(tmp_path, slurm, "sacct", "-n", "-P", "-X", "-o", "JobID,State,ExitCode").stdout
    assert f"{array.jobs['7']}|FAILED|1:0" in states
    assert f"{array.jobs['1']}|COMPLETED|0:0" in states
    status = call(tmp_path, slurm, *fcot("sweep", "status", str(sweep.folder))).stdout
    assert "5 done, 2 failed, 1 cancelled" in status
    output = call(tmp_path, slurm, *fcot("sweep", "rerun", str(sweep.folder), "timeout_min=9")).stderr
    assert "again: jobs 0, 6, 7" in output
    assert set(submissions(sweep)[-1].jobs) == {"0", "6", "7"}
    by_name = wait(sweep, slurm, all_ended)
    assert [by_name[number].state for number in range(8)] == ["done"] * 7 + ["failed"]
    assert len(json.loads(sweep.record(1).read_text())["attempts"]) == 1


@pytest.mark.slow
def test_a_sweep_continues_without_the_terminal_that_launched_it_and_can_be_cancelled(slurm, tmp_path):  # noqa: F811
    process = subprocess.Popen(
        fcot("run", "-m", "seed=0,1,2", *LONG, "trainer.max_steps=150", *SLURM), cwd=tmp_path, env={**os.environ, **slurm},
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    for line in process.stderr:
        if line.startswith("submitted"):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    sweep = the_sweep(tmp_path)
    wait(sweep, slurm, lambda by_name: by_name[0].state in ("running", "done"))
    # A machine without SLURM reads the files that the jobs wrote.
    status = call(tmp_path, {"PATH": os.environ["PATH"], "SLURM_CONF": "/nowhere"}, *fcot("sweep", "status", str(sweep.folder))).stdout
    states = dict(reversed(part.split()) for part in status.splitlines()[0].rpartition(": ")[2].split(", "))
    assert sum(map(int, states.values())) == 3
    assert set(states) <= {"done", "running", "unknown"}  # never guessed to be missing
    by_name = wait(sweep, slurm, all_ended)
    assert {by_name[number].state for number in range(3)} == {"done"}
    call(tmp_path, {}, *fcot("sweep", "collect", str(sweep.folder)))
    table = pq.read_table(sweep.folder / "jobs.parquet").to_pylist()
    assert [(row["job"], row["state"], row["seed"]) for row in table] == [(0, "done", 0), (1, "done", 1), (2, "done", 2)]
    assert all(0 <= row["accuracy_ci95.low"] <= row["accuracy"] <= row["accuracy_ci95.high"] <= 1 for row in table)
    shutil.rmtree(tmp_path / "outputs" / "sweeps")
    call(tmp_path, slurm, *fcot("run", "-m", "seed=3,4,5", *LONG, "trainer.max_steps=100000", *SLURM))
    sweep = the_sweep(tmp_path)
    wait(sweep, slurm, lambda by_name: by_name[0].state == "running" and by_name[0].details)
    assert "cancelled: 0, 1, 2" in call(tmp_path, slurm, *fcot("sweep", "cancel", str(sweep.folder))).stderr.replace("generation, ", "")
    by_name = wait(sweep, slurm, all_ended)
    assert {by_name[number].state for number in range(3)} == {"cancelled"}


@pytest.mark.slow
def test_a_job_of_two_tasks_equals_one_process(slurm, tmp_path):  # noqa: F811
    single_folder, double_folder = tmp_path / "single", tmp_path / "double"
    single_folder.mkdir()
    double_folder.mkdir()
    ddp = ["hydra/launcher=slurm_ddp", *SLURM[1:], "trainer.devices=2"]
    call(double_folder, slurm, *fcot("run", "-m", "seed=0", *SMALL, *ddp))
    call(single_folder, {"OMP_NUM_THREADS": "1"}, *fcot("run", "seed=0", *SMALL))
    wait(the_sweep(double_folder), slurm, lambda by_name: by_name[0].state == "done")
    (single,), (double,) = metrics(single_folder).values(), metrics(double_folder).values()
    histories = [
        [{key: value for key, value in entry.items() if key != "validation_loss"} for entry in run_metrics.pop("history")]
        for run_metrics in (single, double)
    ]
    assert single == double
    assert histories[0] == histories[1]
    log = next(the_sweep(double_folder).folder.glob("slurm/*_1_log.err")).read_text()  # the log of the second task
    assert "Traceback" not in log


def test_a_rejected_submission_gives_one_message(slurm, tmp_path):  # noqa: F811
    output = call(tmp_path, slurm, *fcot("run", "-m", "seed=0", *SMALL, *SLURM, "hydra.launcher.partition=gpu"), code=1).stderr
    assert "SLURM rejects the jobs" in output
    assert "invalid partition specified: gpu" in output
    assert "Traceback" not in output
    sweep = the_sweep(tmp_path)
    assert "1 missing" in call(tmp_path, slurm, *fcot("sweep", "status", str(sweep.folder))).stdout
    assert "no such parameter" in call(tmp_path, slurm, *fcot("sweep", "rerun", str(sweep.folder), "partitoin=main"), code=1).stderr
    call(tmp_path, slurm, *fcot("sweep", "rerun", str(sweep.folder), "partition=main"))
    wait(sweep, slurm, lambda by_name: by_name[0].state == "done")


@pytest.mark.slow
def test_a_job_preempted_by_sigterm_is_requeued_and_a_dependency_on_another_job_is_kept(slurm, tmp_path):  # noqa: F811
    blocking_job = call(tmp_path, slurm, "sbatch", "--parsable", "--hold", "--wrap", "true").stdout.strip()
    dependency = f"hydra.launcher.additional_parameters.dependency=afterok:{blocking_job}"
    call(tmp_path, slurm, *fcot("run", "-m", "seed=0", *LONG, "trainer.max_steps=300", *SLURM, dependency))
    sweep = the_sweep(tmp_path)
    generation, submission = submissions(sweep)
    details = call(tmp_path, slurm, "scontrol", "show", "job", submission.jobs["0"]).stdout
    assert f"afterok:{blocking_job}" in details
    assert f"afterany:{generation.generation}" in details
    call(tmp_path, slurm, "scontrol", "release", blocking_job)
    wait(sweep, slurm, lambda by_name: by_name[0].state == "running" and "train" in by_name[0].details)
    call(tmp_path, slurm, "scancel", "--signal=TERM", submission.jobs["0"])
    by_name = wait(sweep, slurm, all_ended)
    assert (by_name[0].state, by_name[0].preempted) == ("done", 1)


@pytest.mark.slow
def test_simultaneous_reruns_submit_once_and_a_cancelled_job_stays_cancelled(slurm, tmp_path):  # noqa: F811
    call(tmp_path, slurm, *fcot("run", "-m", "seed=0,1", *LONG, "trainer.max_steps=100000", *SLURM))
    sweep = the_sweep(tmp_path)
    wait(sweep, slurm, lambda by_name: by_name[0].state == "running" and "train" in by_name[0].details)
    slurm_id = submissions(sweep)[-1].jobs["0"]
    call(tmp_path, slurm, "scancel", "--signal=USR2", slurm_id)
    assert "0" in call(tmp_path, slurm, *fcot("sweep", "cancel", str(sweep.folder))).stderr
    by_name = wait(sweep, slurm, all_ended)
    time.sleep(8)
    assert [by_name[number].state for number in (0, 1)] == ["cancelled", "cancelled"]
    assert not call(tmp_path, slurm, "squeue", "--noheader", "--states=PENDING,RUNNING").stdout.strip()
    n = len(submissions(sweep))
    rejection = call(tmp_path, slurm, *fcot("sweep", "rerun", str(sweep.folder), "partition=nope"), code=1).stderr
    assert "as `sinfo` lists them" in rejection
    environment = {**os.environ, **slurm}
    reruns = [
        subprocess.Popen(fcot("sweep", "rerun", str(sweep.folder)), cwd=tmp_path, env=environment, stderr=subprocess.PIPE) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=600)[1].decode() for process in reruns]
    assert sum("submitted" in output for output in outputs) == 1, outputs
    assert sum("nothing to run again" in output for output in outputs) == 1
    assert [set(submission.jobs) for submission in submissions(sweep)[n:] if submission.jobs] == [{"0", "1"}]
    call(tmp_path, slurm, *fcot("sweep", "cancel", str(sweep.folder)))
    wait(sweep, slurm, all_ended)


# --- interrupted and continued -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Metrics of the long run without an interruption."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    call(folder, {"OMP_NUM_THREADS": "1"}, *fcot("run", "seed=0", *LONG, "trainer.max_steps=4000"))
    return metrics(folder)


@pytest.mark.slow
def test_a_run_longer_than_its_time_limit_is_requeued_until_it_is_done(slurm, uninterrupted, tmp_path):  # noqa: F811
    # SLURM warns up to 30 seconds early: here 15 to 45 seconds after the start, which leaves at least 75 seconds for saving.
    limit = ["hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=75"]
    call(tmp_path, slurm, *fcot("run", "-m", "seed=0", *LONG, "trainer.max_steps=4000", *SLURM, *limit))
    sweep = the_sweep(tmp_path)
    by_name = wait(sweep, slurm, all_ended)
    assert by_name[0].state == "done", (by_name[0], read_record(sweep.record(0)))
    assert by_name[0].preempted >= 1
    assert metrics(tmp_path) == uninterrupted
    assert len(list(tmp_path.glob("outputs/runs/*"))) == 1


@pytest.mark.slow
def test_a_run_that_a_higher_partition_preempts_continues(slurm, uninterrupted, tmp_path):  # noqa: F811
    call(tmp_path, slurm, *fcot("run", "-m", "seed=0", *LONG, "trainer.max_steps=4000", "logger=wandb", "logger.mode=offline", *SLURM))
    sweep = the_sweep(tmp_path)
    wait(sweep, slurm, lambda by_name: by_name[0].state == "running" and "train" in by_name[0].details)
    time.sleep(3)
    call(tmp_path, slurm, "srun", "--partition=high", "--exclusive", "true")
    by_name = wait(sweep, slurm, all_ended)
    assert by_name[0].state == "done"
    assert by_name[0].preempted == 1
    assert metrics(tmp_path) == uninterrupted
    parts = [path.name.rpartition("-")[2] for path in tmp_path.glob("outputs/runs/*/logs/wandb/offline-run-*")]
    assert len(parts) == 2, "before and after the preemption"
    assert len(set(parts)) == 1, "both parts belong to one W&B run"
