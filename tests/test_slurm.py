"""Sweeps on a real SLURM: the same numbers as here, and every misfortune a job can meet."""

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
from slurm_cluster import call, fcot, over, slurm, the_sweep, wait  # noqa: F401

from fcot.sweeps.slurm import submissions

pytestmark = pytest.mark.xdist_group("slurm")
SMALL = [
    "dataset.n_problems=60", "trainer.max_steps=12", "trainer.evaluate_every_steps=6", "trainer.warmup_steps=2",
    "student.width=32", "student.layers=1", "student.vocab_size=400", "student.max_new_tokens=40",
]  # fmt: skip
LONG = [one for one in SMALL if not one.startswith("trainer")] + ["trainer.warmup_steps=2", "trainer.evaluate_every_steps=300"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=10"]
OF_TIME = ("seconds", "train_samples_per_second", "teacher_usage", "devices", "padding_efficiency")


def metrics(folder: Path) -> dict[str, dict]:
    """Of all runs by id, without what depends on the machine's pace or on who bought first."""
    found = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("outputs/runs/*/metrics.json")}
    return {name: {key: value for key, value in one.items() if key not in OF_TIME} for name, one in found.items()}


@pytest.mark.slow
def test_the_quickstart_as_an_array_equals_the_same_run_here(slurm, tmp_path):  # noqa: F811
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    submitted = call(there, slurm, *fcot("run", "-m", "experiment=quickstart", *SMALL, *SLURM))
    assert "submitted: generation job" in submitted.stderr
    assert "6 jobs: 4 to run, 2 the same as another" in submitted.stderr
    call(here, {"OMP_NUM_THREADS": "1"}, *fcot("run", "-m", "experiment=quickstart", *SMALL))
    found = wait(the_sweep(there), slurm, over)
    assert [found[number].state for number in range(6)] == ["done", "same", "done", "same", "done", "done"]
    assert found["generation"].state == "done"
    assert metrics(there) == metrics(here)
    report = call(tmp_path, {}, *fcot("report", str(the_sweep(there).folder), str(the_sweep(here).folder))).stdout
    assert report.partition("comparisons on the same problems")[0].count("  Fine-tune-CoT   ") == 2
    again = call(there, slurm, *fcot("run", "-m", "experiment=quickstart", *SMALL, *SLURM, "hydra.sweep.dir=outputs/again"))
    assert "nothing to submit" in again.stderr


@pytest.mark.slow
def test_of_eight_jobs_three_meet_with_misfortune_and_only_they_run_again(slurm, tmp_path):  # noqa: F811
    rates = "teacher.error_rate=0,0.05,0.1,0.15,0.2,0.25,0.3,1"  # the last one leaves nothing to train on
    call(tmp_path, slurm, *fcot("run", "-m", rates, *LONG, "trainer.max_steps=300", *SLURM))
    sweep = the_sweep(tmp_path)
    _, first = submissions(sweep)  # after the generation's
    call(tmp_path, slurm, "scancel", first.jobs["6"])
    found = wait(sweep, slurm, lambda found: found[6].state == "cancelled")
    assert found[6].details == "before it started"
    found = wait(sweep, slurm, lambda found: found[0].state == "running" and "train" in found[0].details)
    assert "of 300 steps" in found[0].details
    os.kill(json.loads(sweep.record(0).read_text())["attempts"][-1]["process"], signal.SIGKILL)
    found = wait(sweep, slurm, lambda found: found[0].state == "failed")
    assert found[0].details == "it was killed"
    assert "Killed" in "".join(found[0].error)
    found = wait(sweep, slurm, over)
    assert [found[number].state for number in range(8)] == ["failed", *["done"] * 5, "cancelled", "failed"]
    assert "no completion survives" in "".join(found[7].error)
    assert "no completion survives" in found[7].log.read_text()
    states = call(tmp_path, slurm, "sacct", "-n", "-P", "-X", "-o", "JobID,State,ExitCode").stdout
    assert f"{first.jobs['7']}|FAILED|1:0" in states
    assert f"{first.jobs['1']}|COMPLETED|0:0" in states
    shown = call(tmp_path, slurm, *fcot("sweep", "status", str(sweep.folder))).stdout
    assert "5 done, 2 failed, 1 cancelled" in shown
    told = call(tmp_path, slurm, *fcot("sweep", "rerun", str(sweep.folder), "timeout_min=9")).stderr
    assert "running again: jobs 0, 6, 7" in told
    assert set(submissions(sweep)[-1].jobs) == {"0", "6", "7"}
    found = wait(sweep, slurm, over)
    assert [found[number].state for number in range(8)] == ["done"] * 7 + ["failed"]
    assert len(json.loads(sweep.record(1).read_text())["attempts"]) == 1


@pytest.mark.slow
def test_a_sweep_outlives_the_terminal_that_launched_it_and_can_be_cancelled(slurm, tmp_path):  # noqa: F811
    process = subprocess.Popen(
        fcot("run", "-m", "seed=0,1,2", *LONG, "trainer.max_steps=150", *SLURM), cwd=tmp_path, env={**os.environ, **slurm},
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    for line in process.stderr:
        if line.startswith("submitted"):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    sweep = the_sweep(tmp_path)
    wait(sweep, slurm, lambda found: found[0].state in ("running", "done"))
    moved = call(tmp_path, {"PATH": os.environ["PATH"], "SLURM_CONF": "/nowhere"}, *fcot("sweep", "status", str(sweep.folder))).stdout
    assert "2 unknown" in moved or "3 done" in moved or "1 unknown" in moved  # a machine without SLURM reads what the jobs left
    found = wait(sweep, slurm, over)
    assert {found[number].state for number in range(3)} == {"done"}
    call(tmp_path, {}, *fcot("sweep", "collect", str(sweep.folder)))
    table = pq.read_table(sweep.folder / "jobs.parquet").to_pylist()
    assert [(row["job"], row["state"], row["seed"]) for row in table] == [(0, "done", 0), (1, "done", 1), (2, "done", 2)]
    assert all(0 <= row["accuracy_ci95.low"] <= row["accuracy"] <= row["accuracy_ci95.high"] <= 1 for row in table)
    shutil.rmtree(tmp_path / "outputs" / "sweeps")
    call(tmp_path, slurm, *fcot("run", "-m", "seed=3,4,5", *LONG, "trainer.max_steps=100000", *SLURM))
    sweep = the_sweep(tmp_path)
    wait(sweep, slurm, lambda found: found[0].state == "running" and found[0].details)
    assert "cancelled: 0, 1, 2" in call(tmp_path, slurm, *fcot("sweep", "cancel", str(sweep.folder))).stderr.replace("generation, ", "")
    found = wait(sweep, slurm, over)
    assert {found[number].state for number in range(3)} == {"cancelled"}


@pytest.mark.slow
def test_two_tasks_of_one_job_equal_one_process(slurm, tmp_path):  # noqa: F811
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    ddp = ["hydra/launcher=slurm_ddp", *SLURM[1:], "trainer.devices=2"]
    call(two, slurm, *fcot("run", "-m", "seed=0", *SMALL, *ddp))
    call(one, {"OMP_NUM_THREADS": "1"}, *fcot("run", "seed=0", *SMALL))
    wait(the_sweep(two), slurm, lambda found: found[0].state == "done")
    (single,), (double,) = metrics(one).values(), metrics(two).values()
    ways = [
        [{key: value for key, value in entry.items() if key != "validation_loss"} for entry in way.pop("history")]
        for way in (single, double)
    ]
    assert single == double
    assert ways[0] == ways[1]
    log = next(the_sweep(two).folder.glob("slurm/*_1_log.err")).read_text()  # of the second task
    assert "Traceback" not in log


def test_what_slurm_refuses_is_one_message(slurm, tmp_path):  # noqa: F811
    told = call(tmp_path, slurm, *fcot("run", "-m", "seed=0", *SMALL, *SLURM, "hydra.launcher.partition=gpu"), code=1).stderr
    assert "SLURM rejects the jobs" in told
    assert "invalid partition specified: gpu" in told
    assert "Traceback" not in told
    sweep = the_sweep(tmp_path)
    assert "1 missing" in call(tmp_path, slurm, *fcot("sweep", "status", str(sweep.folder))).stdout
    assert "no such parameter" in call(tmp_path, slurm, *fcot("sweep", "rerun", str(sweep.folder), "partitoin=main"), code=1).stderr
    call(tmp_path, slurm, *fcot("sweep", "rerun", str(sweep.folder), "partition=main"))
    wait(sweep, slurm, lambda found: found[0].state == "done")


@pytest.mark.slow
def test_a_site_that_preempts_with_sigterm_alone_and_a_job_that_waits_for_another_one(slurm, tmp_path):  # noqa: F811
    first = call(tmp_path, slurm, "sbatch", "--parsable", "--hold", "--wrap", "true").stdout.strip()
    waits = f"hydra.launcher.additional_parameters.dependency=afterok:{first}"
    call(tmp_path, slurm, *fcot("run", "-m", "seed=0", *LONG, "trainer.max_steps=300", *SLURM, waits))
    sweep = the_sweep(tmp_path)
    generation, submission = submissions(sweep)
    shown = call(tmp_path, slurm, "scontrol", "show", "job", submission.jobs["0"]).stdout
    assert f"afterok:{first}" in shown
    assert f"afterany:{generation.generation}" in shown
    call(tmp_path, slurm, "scontrol", "release", first)
    wait(sweep, slurm, lambda found: found[0].state == "running" and "train" in found[0].details)
    call(tmp_path, slurm, "scancel", "--signal=TERM", submission.jobs["0"])
    found = wait(sweep, slurm, over)
    assert (found[0].state, found[0].preempted) == ("done", 1)


@pytest.mark.slow
def test_reruns_at_once_submit_once_and_a_cancelled_job_stays_cancelled(slurm, tmp_path):  # noqa: F811
    call(tmp_path, slurm, *fcot("run", "-m", "seed=0,1", *LONG, "trainer.max_steps=100000", *SLURM))
    sweep = the_sweep(tmp_path)
    wait(sweep, slurm, lambda found: found[0].state == "running" and "train" in found[0].details)
    slurm_id = submissions(sweep)[-1].jobs["0"]
    call(tmp_path, slurm, "scancel", "--signal=USR2", slurm_id)
    assert "0" in call(tmp_path, slurm, *fcot("sweep", "cancel", str(sweep.folder))).stderr
    found = wait(sweep, slurm, over)
    time.sleep(8)
    assert [found[number].state for number in (0, 1)] == ["cancelled", "cancelled"]
    assert not call(tmp_path, slurm, "squeue", "--noheader", "--states=PENDING,RUNNING").stdout.strip()
    n = len(submissions(sweep))
    refused = call(tmp_path, slurm, *fcot("sweep", "rerun", str(sweep.folder), "partition=nope"), code=1).stderr
    assert "as `sinfo` lists them" in refused
    environment = {**os.environ, **slurm}
    both = [
        subprocess.Popen(fcot("sweep", "rerun", str(sweep.folder)), cwd=tmp_path, env=environment, stderr=subprocess.PIPE) for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[1].decode() for process in both]
    assert sum("submitted" in one for one in said) == 1, said
    assert sum("nothing to run again" in one for one in said) == 1
    assert [set(one.jobs) for one in submissions(sweep)[n:] if one.jobs] == [{"0", "1"}]
    call(tmp_path, slurm, *fcot("sweep", "cancel", str(sweep.folder)))
    wait(sweep, slurm, over)


# --- interrupted and going on ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The metrics of the long run, done in one piece."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    call(folder, {"OMP_NUM_THREADS": "1"}, *fcot("run", "seed=0", *LONG, "trainer.max_steps=3000"))
    return metrics(folder)


@pytest.mark.slow
def test_a_run_longer_than_its_time_limit_is_requeued_until_it_is_done(slurm, uninterrupted, tmp_path):  # noqa: F811
    limit = ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=35"]
    call(tmp_path, slurm, *fcot("run", "-m", "seed=0", *LONG, "trainer.max_steps=3000", *SLURM, *limit))
    found = wait(the_sweep(tmp_path), slurm, over)
    assert found[0].state == "done"
    assert found[0].preempted >= 1
    assert metrics(tmp_path) == uninterrupted
    assert len(list(tmp_path.glob("outputs/runs/*"))) == 1


@pytest.mark.slow
def test_a_run_that_a_higher_partition_preempts_goes_on(slurm, uninterrupted, tmp_path):  # noqa: F811
    call(tmp_path, slurm, *fcot("run", "-m", "seed=0", *LONG, "trainer.max_steps=3000", "logger=wandb", "logger.mode=offline", *SLURM))
    sweep = the_sweep(tmp_path)
    wait(sweep, slurm, lambda found: found[0].state == "running" and "train" in found[0].details)
    time.sleep(3)
    call(tmp_path, slurm, "srun", "--partition=high", "--exclusive", "true")
    found = wait(sweep, slurm, over)
    assert found[0].state == "done"
    assert found[0].preempted == 1
    assert metrics(tmp_path) == uninterrupted
    parts = [path.name.rpartition("-")[2] for path in tmp_path.glob("outputs/runs/*/logs/wandb/offline-run-*")]
    assert len(parts) == 2, "before and after"
    assert len(set(parts)) == 1, "of one W&B run"
