"""``fcot ls`` and ``fcot rm``: what there is, and what may be removed; what was removed is named and can be made again."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fcot
from fcot import ls, rm
from fcot.base.files import exclusive, holder
from fcot.base.run_folder import RunDirectory
from fcot.sweeps.ledger import statuses
from fcot.sweeps.plan import read_plan

TINY = {
    "dataset.n_problems": 40, "trainer.max_steps": 4, "trainer.evaluate_every_steps": 4, "trainer.warmup_steps": 2, "student.width": 32,
    "student.layers": 1, "student.vocab_size": 300, "student.max_new_tokens": 10, "diversity": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A sweep of two runs that stopped after curation, a trained run, a run that needs it, a failed and a killed one; and their names."""
    folder = tmp_path_factory.mktemp("made")
    with contextlib.chdir(folder):
        sweep = fcot.run_sweep(**TINY | {"diversity": [2, 3]}, until="curate")
        trained = fcot.run_experiment(**TINY, seed=7)
        student = {"student": "causal", "student.path": "outputs/runs/" + trained.name + "/student"}
        needing = fcot.run_experiment(**student, **{"dataset.n_problems": 40, "diversity": 2}, until="curate")
        with pytest.raises(fcot.FcotError, match="no completion survives curation"):
            fcot.run_experiment(**TINY, **{"teacher.error_rate": 1.0})
        killed = fcot.run_experiment(**TINY, seed=8, until="curate")
        (killed.folder / "stages/curate.json").unlink()
    (failed,) = {path.name for path in (folder / "outputs/runs").iterdir()} - {run.name for run in (*sweep.runs, trained, needing, killed)}
    names = {"sweep": sweep.folder.name, "trained": trained.name, "needing": needing.name, "failed": failed, "killed": killed.name}
    return folder, names | {f"job {number}": run.name for number, run in enumerate(sweep.runs)}


@pytest.fixture
def names(made, tmp_path, monkeypatch):
    """The names of the runs, in a copy of the folder, which is the working folder."""
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FCOT_OUTPUT_DIR", raising=False)
    plan = tmp_path / "outputs/sweeps" / made[1]["sweep"] / "plan.json"
    plan.write_text(plan.read_text().replace(f'"cwd": "{made[0]}"', f'"cwd": "{tmp_path}"'))
    return made[1]


@pytest.fixture
def call(capsys):
    """``call(rm, "--yes", run) -> (exit code, stdout, stderr)``."""

    def run(module, *arguments):
        capsys.readouterr()
        code = 0
        try:
            module.main(list(arguments))
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


HOLD = """
import sys
from pathlib import Path
from fcot.base.files import exclusive

with exclusive(Path(sys.argv[1]), lambda _: print("waits", flush=True)):
    print("locked", flush=True)
    sys.stdin.read()
"""


def runs():
    return {path.name for path in Path("outputs/runs").iterdir()}


@contextlib.contextmanager
def working_on(folder: Path):
    """Another process holds the lock of a run or sweep."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.communicate("")


# --- ls ---------------------------------------------------------------------------------------------------------------


def test_ls_lists_runs_with_their_states_and_sweeps(names, call):
    with working_on(RunDirectory(Path("outputs/runs") / names["needing"]).lock_file):
        code, out, _ = call(ls, "--json")
        assert code == 0
        listed = json.loads(out)
    entries = {entry["name"]: entry for entry in listed["runs"]}
    states = {
        key: (entries[names[key]]["state"], entries[names[key]]["until"]) for key in ("job 0", "trained", "needing", "failed", "killed")
    }
    assert states == {
        "job 0": ("finished", "curate"), "trained": ("finished", "evaluate"), "needing": ("running", "curate"),
        "failed": ("failed", "evaluate"), "killed": ("interrupted", "curate"),
    }  # fmt: skip
    trained = entries[names["trained"]]
    metrics = json.loads(Path(trained["folder"], "metrics.json").read_text())
    assert (trained["task"], trained["student"], trained["method"]) == ("toy_arithmetic", "tiny_gpt2", "fine_tune_cot")
    assert (trained["diversity"], trained["accuracy"]) == (2, metrics["accuracy"])
    assert trained["n_bytes"] == sum(path.stat().st_size for path in Path(trained["folder"]).rglob("*") if path.is_file())
    assert entries[names["job 1"]]["diversity"] == 3, "of an unfinished run, from its configuration"
    assert "no completion survives curation" in entries[names["failed"]]["error"]
    (sweep,) = listed["sweeps"]
    assert (sweep["name"], sweep["state"], sweep["n_jobs"], sweep["n_done"], sweep["varies"]) == (
        names["sweep"],
        "finished",
        2,
        2,
        ["diversity"],
    )


def test_ls_prints_a_line_per_run_and_the_messages_of_failed_runs(names, call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    config = Path("outputs/runs", names["killed"], "config.yaml")
    config.write_text(config.read_text().replace("\nmethod:\n", "\nmethod:\n  title: STaR\n"))
    code, out, _ = call(ls)
    assert code == 0
    assert all(name in out for name in names.values())
    assert [("STaR" in line) for line in out.splitlines() if names["killed"] in line] == [True], "the name of a preset"
    assert f"{names['failed']}: no completion survives curation" in out
    assert "finished (until curate)" in out


def test_ls_of_nothing_says_so(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    code, _, error = call(ls)
    assert (code, error) == (1, "outputs: no such folder; output_dir is where the runs are, or FCOT_OUTPUT_DIR names it\n")
    assert call(ls, str(tmp_path)) == (0, "", f"{tmp_path}: no runs and no sweeps\n")


# --- rm ---------------------------------------------------------------------------------------------------------------


def test_rm_keeps_what_a_sweep_or_another_run_needs(names, call):
    before = runs()
    code, _, error = call(rm, "--yes", names["job 0"], names["trained"], names["failed"])
    assert code == 1
    assert "nothing is removed:" in error
    assert f"{names['job 0']}: needed by job 0 of sweep {names['sweep']} (--force removes it" in error
    assert f"{names['trained']}: needed by student.path of run {names['needing']}" in error
    assert runs() == before
    assert call(rm, "--yes", "--student", names["trained"])[0] == 1, "the other run needs the weights"
    assert call(rm, "--yes", names["trained"], names["needing"])[0] == 0, "both together may go"
    assert call(rm, "--yes", "--force", names["job 0"])[0] == 0
    assert runs() == before - {names[key] for key in ("trained", "needing", "job 0")}
    assert not list(Path("outputs/runs").glob(".*"))


def test_rm_never_removes_what_is_running(names, call):
    run, sweep = Path("outputs/runs") / names["killed"], Path("outputs/sweeps") / names["sweep"]
    with working_on(RunDirectory(run).lock_file), working_on(read_plan(sweep).launch_lock):
        for path, message in ((run, "a process works on it"), (sweep, "it is running")):
            code, _, error = call(rm, "--yes", "--force", str(path))
            assert code == 1
            assert message in error
        assert call(rm, "--yes", "--unfinished")[0] == 0
        assert run.is_dir()
        assert sweep.is_dir()


def test_rm_unfinished_removes_failed_and_interrupted_runs_only(names, call):
    before = runs()
    assert call(rm, "--unfinished", "--yes")[0] == 0
    assert runs() == before - {names["failed"], names["killed"]}
    assert call(rm, "--unfinished", "--yes")[2] == "nothing to remove\n"


def test_rm_student_removes_the_weights_only_and_later_commands_say_so(names, call):
    assert call(rm, "--yes", names["needing"])[0] == 0
    folder = Path("outputs/runs") / names["trained"]
    kept = {path for path in folder.rglob("*") if folder / "student" not in (path, *path.parents)}
    assert call(rm, "--yes", "--student", str(folder))[0] == 0
    assert set(folder.rglob("*")) == kept
    result = fcot.load_run(names["trained"])
    assert len(result.predictions())
    with pytest.raises(fcot.FcotError, match="has no student"):
        result.student.answer("2+2?")
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        fcot.run_experiment(**TINY, seed=7)
    assert f"its student was removed; to train it again: fcot rm outputs/runs/{names['trained']}, then this command" in stderr.getvalue()


def test_rm_asks_and_without_a_terminal_removes_nothing(names, call, monkeypatch):
    before = runs()
    code, _, error = call(rm, names["failed"])
    assert code == 1
    assert f"outputs/runs/{names['failed']}" in error
    assert "add --yes" in error
    answers = io.StringIO("n\ny\n")
    monkeypatch.setattr(answers, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", answers)
    assert call(rm, names["failed"])[0] == 1
    assert runs() == before
    assert call(rm, names["failed"])[0] == 0
    assert runs() == before - {names["failed"]}


@pytest.mark.parametrize(("arguments", "code", "message"), [
    ((), 2, "name the runs to remove, or --unfinished"),
    (("--unfinished", "x"), 2, "name the runs to remove, or --unfinished"),
    (("nowhere", "outputs/store", "--yes"), 1,
     "nowhere: no such run or sweep\noutputs/store: neither a run nor a sweep\nfcot ls lists them\n"),
])  # fmt: skip
def test_what_rm_cannot_find_is_listed(names, call, arguments, code, message):
    result = call(rm, *arguments)
    assert result[0] == code
    assert message in result[2]


def test_a_removed_sweep_leaves_its_runs_which_may_then_be_removed(names, call):
    before = runs()
    assert call(rm, "--yes", names["sweep"])[0] == 0
    assert runs() == before
    assert list(Path("outputs/sweeps").iterdir()) == []
    assert call(rm, "--yes", names["job 0"])[0] == 0


def test_a_sweep_names_its_removed_runs_and_rerun_makes_them_again(names, call, run_fcot):
    sweep = read_plan(Path("outputs/sweeps") / names["sweep"])
    assert call(rm, "--yes", "--force", names["job 1"])[0] == 0
    assert [status.state for status in statuses(sweep)] == ["done", "missing"]
    assert statuses(sweep)[1].details == f"its run was removed: {names['job 1']}"
    result = run_fcot("rerun", names["sweep"], module="fcot.sweep")
    assert result.returncode == 0, result.stderr
    assert "running again: jobs 1" in result.stderr
    assert names["job 1"] in runs()
    assert [status.state for status in statuses(sweep)] == ["done", "done"]


def test_a_run_is_made_again_without_buying(names, call):
    store = {path: path.read_bytes() for path in Path("outputs/store").rglob("*.jsonl")}
    assert call(rm, "--yes", names["needing"], names["trained"])[0] == 0
    assert fcot.run_experiment(**TINY, seed=7).name == names["trained"]
    assert {path: path.read_bytes() for path in Path("outputs/store").rglob("*.jsonl")} == store


# --- folders and locks ------------------------------------------------------------------------------------------------


def test_a_run_that_fails_to_start_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(fcot.FcotError, match="gpt2"):
        fcot.run_experiment(student="gpt2", **{"dataset.n_problems": 20})  # the hub cannot be reached
    assert list(Path("outputs/runs").iterdir()) == []


def test_whoever_waits_for_a_removed_lock_file_locks_a_new_one(tmp_path):
    lock = tmp_path / "run" / "run.lock"
    with exclusive(lock, print):
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "waits\n"
        shutil.rmtree(lock.parent)
    assert process.stdout.readline() == "locked\n"
    assert holder(lock) == process.pid
    assert os.path.exists(lock)
    process.communicate("")
