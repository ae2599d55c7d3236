"""Environment variables name the folders that a command does not, and what they named is recorded with the run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcot import store, sweep
from fcot.base.errors import FcotError
from fcot.base.locations import locate, output_dir, store_dir
from fcot.base.values import written
from fcot.config.overrides import prepare
from fcot.sweeps.plan import composer, read_plan

SMALL = ("dataset.n_problems=20", "until=curate")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("FCOT_OUTPUT_DIR", "FCOT_STORE"):
        monkeypatch.delenv(name, raising=False)


def test_an_override_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("FCOT_OUTPUT_DIR", "there")
    monkeypatch.setenv("FCOT_STORE", "/kept/store")
    assert prepare(["seed=1"]) == [f"output_dir={os.getcwd()}/there", "store_dir=/kept/store", "seed=1"]
    assert prepare(["output_dir=here"]) == ["store_dir=/kept/store", "output_dir=here"]
    assert prepare(["store_dir=null"]) == [f"output_dir={os.getcwd()}/there", "store_dir=null"]
    assert (output_dir(), store_dir()) == (Path("there"), Path("/kept/store"))
    monkeypatch.delenv("FCOT_STORE")
    assert store_dir() == Path("there/store")


def test_an_empty_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("FCOT_OUTPUT_DIR", "")
    assert prepare(["seed=1"]) == ["seed=1"]
    assert (output_dir(), store_dir()) == (Path("outputs"), Path("outputs/store"))


def test_runs_of_several_folders_share_a_store_and_keep_their_names(make_run, tmp_path):
    runs = [make_run(tmp_path / name, f"store_dir={tmp_path}/shared", *SMALL) for name in ("a", "b")]
    assert runs[0].store.path == runs[1].store.path
    assert runs[0].run_id == runs[1].run_id == make_run(tmp_path / "a", *SMALL).run_id


def test_a_sweep_planned_with_the_variables_is_continued_without_them(run_fcot, tmp_path, monkeypatch, capsys):
    elsewhere = {"FCOT_OUTPUT_DIR": "my runs", "FCOT_STORE": str(tmp_path / "kept")}
    result = run_fcot("-m", "seed=0,1", *SMALL, **elsewhere)
    assert result.returncode == 0, result.stderr
    assert f"run {tmp_path}/my runs/runs/toy_arithmetic" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "my runs"]
    (folder,) = (tmp_path / "my runs/sweeps").iterdir()
    plan = read_plan(folder)
    for job in plan.jobs:
        (plan.directory(job).stage("curate")).unlink()
        (folder / f"jobs/{job.number}.json").unlink()
    assert run_fcot("rerun", str(folder), module="fcot.sweep").returncode == 0
    assert all(plan.is_complete(job) for job in plan.jobs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "my runs"]

    for name, value in elsewhere.items():
        monkeypatch.setenv(name, value)
    sweep.main(["status", folder.name])  # by its name
    store.main(["list"])
    assert "toy_arithmetic/oracle-v2" in capsys.readouterr().out
    assert run_fcot(next((tmp_path / "my runs/runs").iterdir()).name, module="fcot.report", **elsewhere).returncode == 0


def test_a_folder_is_found_by_its_name_in_the_output_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FCOT_OUTPUT_DIR", "out")
    for name in ("runs/r", "sweeps/s", "runs/both", "both"):
        (tmp_path / "out" / name).mkdir(parents=True)
    assert locate(Path("r")) == Path("out/runs/r")
    assert locate(Path("s")) == Path("out/sweeps/s")
    assert locate(Path("runs")) == Path("out/runs")
    assert locate(Path("missing")) == Path("missing")
    (tmp_path / "both").mkdir()
    assert locate(Path("both")) == Path("both")


# --- Python values as overrides ---------------------------------------------------------------------------------------


def read_back(value):
    """The value in a configuration that was composed from the override."""
    with composer([]) as compose:
        key = "++teacher.parameters.x" if not isinstance(value, str) else "teacher.model"
        teacher = compose([f"{key}={written(value)}", "teacher=openai"]).teacher
    return teacher.parameters.x if not isinstance(value, str) else teacher.model


@pytest.mark.parametrize("value", [
    None, True, 3, 1e-4, -2.5, 1e22, [1, "a b", None], {"a": [1, {"b c": "x,y"}]}, "null", "1e3", "007", "it's", 'say "x"',
     "a\nb", "${seed}",
    r"\${seed}", "C:\\", "größer = gut, [x]", "~/x", "", "a/b-c.d",
])  # fmt: skip
def test_a_value_of_python_arrives_unchanged(value):
    assert read_back(value) == value


@given(st.text(alphabet="ab'\"\\${}[](),:= \n#é", max_size=8))
def test_any_text_arrives_unchanged(text):
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    parsed = OverridesParser.create().parse_override(f"x={written(text)}")
    assert OmegaConf.create({"x": parsed.value()}).x == text


def test_a_plain_text_is_written_without_quotes():
    assert written("flan_t5_base") == "flan_t5_base"
    assert written(Path("/data/x.csv")) == "/data/x.csv"
    assert written(read_back) == "test_locations.read_back"


def test_a_value_that_no_option_takes_is_an_error():
    with pytest.raises(FcotError, match="no option takes a object"):
        written(object())
