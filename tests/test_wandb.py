"""W&B: what a run tells of itself, that it stays one run, that nothing of it hurts; and the W&B Report."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pytorch_lightning.loggers import Logger
from test_run import SMALL, make_run, schemas  # noqa: F401 - a fixture
from test_sweeps import LONG, ONE_THREAD, until
from wandb_stub import KEY, Stub, served, silent

from fcot.base.errors import FcotError
from fcot.base.run_folder import RunDirectory
from fcot.config.checks import faults_of
from fcot.reporting.document import Chart, Code, Document, Paragraph, RunFiles, Section
from fcot.reporting.table import Table
from fcot.reporting.wandb_report import blocks, publish
from fcot.runs.pipeline import execute
from fcot.student import training
from fcot.student.loggers import lightning_logger

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def clean(tmp_path):
    """Environment of a user without a key whose home stays empty."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return kept | ONE_THREAD | {"HOME": str(home), "MPLCONFIGDIR": str(tmp_path / "matplotlib")}


def fcot(folder: Path, environment: dict[str, str], *arguments: str, module: str = "fcot.run") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def records(folder: Path) -> list[dict]:
    """What a W&B run's folder holds, as wandb itself reads it."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(folder)]
    return [json.loads(line) for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()]


def of(kind: str, rows: list[dict]) -> list[dict]:
    return [row[kind] for row in rows if row["type"] == kind]


def history(rows: list[dict]) -> list[dict]:
    return [one["item"] for one in of("history", rows)]


def summary(rows: list[dict]) -> dict:
    found: dict = {}
    for one in of("summary", rows):
        found |= one["update"]
    return found


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("outputs/runs/*/logs/wandb/offline-run-*"), key=lambda path: path.name)


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- a run -----------------------------------------------------------------------------------------------------------


def test_an_offline_run_holds_metrics_tables_and_artifacts_with_lineage(tmp_path, clean):
    done = fcot(tmp_path, clean, *SMALL, "logger=wandb", "logger.tags=[mine]", "logger.project=papers")
    assert done.returncode == 0, done.stderr
    (part,) = parts(tmp_path)
    run_folder = part.parents[2]
    assert f"wandb sync outputs/runs/{run_folder.name}/logs/wandb/{part.name}" in done.stderr
    assert "no key in WANDB_API_KEY" in done.stderr
    rows = records(part)
    (run,) = of("run", rows)
    config = run["config"]["update"]
    assert run["project"] == "papers"
    assert run["display_name"] == run_folder.name == config["run_id"]
    assert run["run_id"] == json.loads((run_folder / "logs" / "wandb.json").read_text())["id"]
    assert {"fine_tune_cot", "toy_arithmetic", "tiny_gpt2", "oracle-v2", "D4", "mine"} == set(run["tags"])
    assert config["diversity"] == 4
    assert config["trainer"]["max_steps"] == 12
    # training by step, evaluations by step, spend and curation
    told = history(rows)
    assert [(one["train/step"], "train/tokens_per_second" in one) for one in told if "train/loss" in one] == [(10, True), (12, True)]
    metrics = json.loads((run_folder / "metrics.json").read_text())
    evaluated = [(one["train/step"], one["train/validation_accuracy"]) for one in told if "train/epoch" in one]
    assert evaluated == [(one["step"], one["validation_accuracy"]) for one in metrics["history"]]
    assert of("metric", rows)[0]["step_metric"] == "train/step"
    (curated,) = [one for one in told if "curate/kept" in one]
    assert curated["curate/kept"] == metrics["completions_kept"]
    assert curated["curate/refused/wrong_answer"] == metrics["refused"]["wrong_answer"]
    (bought,) = [one for one in told if "generate/teacher_usage/usd" in one]
    assert bought["generate/teacher_usage/requests"] == metrics["teacher_usage"]["requests"]
    final = summary(rows)
    assert final["accuracy"] == metrics["accuracy"]
    assert final.get("teacher_usage", {}).get("usd", final.get("teacher_usage.usd")) == metrics["teacher_usage"]["usd"]
    # samples
    (table,) = part.glob("files/media/table/samples/test_*.json")
    table = json.loads(table.read_text())
    assert table["columns"] == ["sample_index", "question", "answer", "completion", "prediction", "correct", "complete", "marks"]
    assert len(table["data"]) == metrics["n_test"]
    (table,) = part.glob("files/media/table/samples/rationales_*.json")
    reasons = {row[-1] for row in json.loads(table.read_text())["data"]}
    assert reasons == {None, "wrong_answer"}
    # lineage
    artifacts = {one["type"]: one for one in of("artifact", rows)}
    assert artifacts["dataset"]["use_after_commit"]
    assert artifacts["dataset"]["manifest"]["contents"][0]["local_path"] == str(run_folder / "curated.jsonl")
    assert "use_after_commit" not in artifacts["model"]
    assert {"config.json", "README.md"} <= {one["path"] for one in artifacts["model"]["manifest"]["contents"]}
    # the CSV log as ever; nothing outside
    assert "train_loss" in (run_folder / "logs" / "metrics.csv").read_text().splitlines()[0]
    assert {name.partition("/")[0] for name in files_of(tmp_path)} <= {"outputs", "matplotlib"}


def test_a_sweep_has_one_run_a_job_and_they_are_grouped(tmp_path, clean):
    done = fcot(tmp_path, clean, "-m", *SMALL, "logger=wandb", "logger.log_student=false", "diversity=1,2")
    assert done.returncode == 0, done.stderr
    runs = [of("run", records(part))[0] for part in parts(tmp_path)]
    (sweep,) = tmp_path.glob("outputs/sweeps/*")
    assert [run["run_group"] for run in runs] == [sweep.name] * 2
    assert len({run["run_id"] for run in runs}) == 2
    assert {run["config"]["update"]["diversity"] for run in runs} == {1, 2}
    assert "model" not in {one["type"] for part in parts(tmp_path) for one in of("artifact", records(part))}
    # its report: the spec, and how to publish it
    told = fcot(tmp_path, clean, "--wandb", str(sweep), module="fcot.report")
    assert told.returncode == 0, told.stderr
    assert f"python -m fcot.report --wandb {sweep}" in told.stdout
    spec = json.loads((sweep / "report_wandb.json").read_text())
    ids = [json.loads(path.read_text())["id"] for path in sorted(tmp_path.glob("outputs/runs/*/logs/wandb.json"))]
    grids = [block["metadata"] for block in spec["blocks"] if block["type"] == "panel-grid"]
    assert {json.dumps(grid["runSets"][0]["filters"]["filters"][0]["value"]) for grid in grids} == {json.dumps(ids)}
    kinds = {panel["viewType"] for grid in grids for panel in grid["panelBankSectionConfig"]["panels"]}
    assert kinds >= {"Scatter Plot", "Run Comparer", "Run History Line Plot", "Weave", "Bar Chart"}


def test_a_killed_run_goes_on_in_the_same_one(tmp_path, clean):
    options = [*LONG, "trainer.checkpoint_every_s=0", "logger=wandb"]
    first = subprocess.Popen([sys.executable, "-m", "fcot.run", *options], cwd=tmp_path, env=clean, stderr=subprocess.DEVNULL)
    until(lambda: list(tmp_path.glob("outputs/runs/*/checkpoints/*")) and parts(tmp_path))
    time.sleep(4)  # two flushes of wandb
    first.kill()
    first.wait()
    (part,) = parts(tmp_path)
    seen = [one["train/step"] for one in history(records(part)) if "train/loss" in one]
    assert seen, "nothing of the killed part was kept"
    second = start_again(tmp_path, clean, options)
    second.send_signal(signal.SIGTERM)  # as SLURM does before it requeues
    _, said = second.communicate(timeout=100)
    both = parts(tmp_path)
    assert len(both) == 2
    assert len({of("run", records(one))[0]["run_id"] for one in both}) == 1
    assert all(one.name in said for one in both), said
    assert {row["type"] for row in records(both[1])} >= {"preempting", "exit"}
    later = [one["train/step"] for one in history(records(both[1])) if "train/loss" in one]
    assert min(later) > min(seen)
    # uploaded by the command that was printed, it is one history, in order
    stub = Stub()
    command = next(line for line in said.splitlines() if "wandb sync" in line).partition("to upload it: ")[2].split()
    with served(stub) as url:
        environment = clean | {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}
        wandb = str(Path(sys.executable).with_name("wandb"))
        subprocess.run([wandb, *command[1:]], cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=100)
    (run_id,) = stub.runs
    synced = stub.history(run_id)
    assert [one["train/step"] for one in synced if "train/loss" in one] == [*seen, *later]
    assert [one["_step"] for one in synced] == list(range(len(synced)))


def test_a_run_online_is_told_of_while_it_trains_and_continued(tmp_path, clean):
    stub = Stub()
    with served(stub) as url:
        environment = clean | {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}
        first = fcot(tmp_path, environment, *SMALL, "logger=wandb", "until=curate")
        second = fcot(tmp_path, environment, *SMALL, "logger=wandb")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    ((run_id, run),) = stub.runs.items()
    assert f"W&B: {url}/us/fcot/runs/{run_id}" in second.stderr
    told = stub.history(run_id)
    assert [one["train/step"] for one in told if "train/loss" in one] == [10, 12]
    assert [one["_step"] for one in told] == list(range(len(told)))
    assert run["ended"]
    assert set(run["tags"]) >= {"fine_tune_cot", "D4"}
    assert second.stderr.count("warning: W&B") == 1, "of the artifacts, which this server does not take"
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert not list((tmp_path / "home").rglob("*"))


def start_again(folder: Path, environment: dict[str, str], options: list[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-m", "fcot.run", *options], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    log = next(folder.glob("outputs/runs/*")) / "logs" / "metrics.csv"
    before = log.stat().st_mtime_ns
    until(lambda: len(parts(folder)) == 2 and log.stat().st_mtime_ns > before)
    time.sleep(3)
    return process


@pytest.mark.parametrize("kind", ["refused", "silent", "nobody"])
def test_a_server_that_is_not_for_us_neither_fails_nor_holds_a_run(kind, tmp_path, clean):
    def run(url: str) -> None:
        begin = time.monotonic()
        done = fcot(tmp_path, clean | {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}, *SMALL, "logger=wandb")
        assert done.returncode == 0, done.stderr
        assert "wandb sync outputs/" in done.stderr
        assert time.monotonic() - begin < 240, "a run takes some seconds, on a busy machine a minute"
        assert {"refused": "rejects the key", "silent": "no answer within", "nobody": "refused"}[kind] in done.stderr
        for path in tmp_path.rglob("*"):
            assert not path.is_file() or KEY.encode() not in path.read_bytes(), f"the key is in {path}"
        assert KEY not in done.stderr + done.stdout
        assert not list((tmp_path / "home").rglob("*"))

    if kind == "nobody":
        run("http://127.0.0.1:9")
        return
    with silent() if kind == "silent" else served(Stub(refuse=True)) as url:
        run(url)


def test_a_run_that_was_finished_before_is_told_of_once(tmp_path, clean):
    told = []
    for more in ([], ["logger=wandb"], ["logger=wandb"]):
        done = fcot(tmp_path, clean, *SMALL, *more)
        assert done.returncode == 0, done.stderr
        told.append("uploading the finished run's results to W&B" in done.stderr)
    assert told == [False, True, False]
    (part,) = parts(tmp_path)
    rows = records(part)
    assert {one["type"] for one in of("artifact", rows)} >= {"dataset", "model"}
    assert "accuracy" in summary(rows)


def test_wandb_itself_breaking_does_not_fail_a_run(tmp_path, monkeypatch, capsys):
    import wandb

    def broken(**_):
        raise RuntimeError("no wandb today")

    monkeypatch.setattr(wandb, "init", broken)
    metrics = execute(make_run(tmp_path, *SMALL, "logger=wandb", "logger.mode=offline"), "")
    assert "accuracy" in metrics
    assert capsys.readouterr().err.count("no wandb today") == 1


def test_rounds_are_told_of(tmp_path, clean):
    done = fcot(tmp_path, clean, *SMALL, "method=tailored", "method.rounds=2", "method.exam.samples=1", "diversity=2", "logger=wandb")
    assert done.returncode == 0, done.stderr
    (part,) = parts(tmp_path)
    told = history(records(part))
    assert {one["rounds/round"] for one in told if "rounds/accuracy" in one} == {1, 2}
    assert {one["round_2/train/step"] for one in told if "round_2/train/loss" in one} == {10, 12}
    assert any("round_2/curate/kept" in one for one in told)


# --- choices ---------------------------------------------------------------------------------------------------------


def test_the_logger_does_not_name_a_run(tmp_path, monkeypatch):
    plain = make_run(tmp_path, *SMALL)
    for choice in (["logger=wandb", "logger.project=other"], ["logger=tensorboard"], ["logger=none"]):
        assert make_run(tmp_path, *SMALL, *choice).run_id == plain.run_id
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(FcotError, match="no key in WANDB_API_KEY"):
        make_run(tmp_path, "logger=wandb", "logger.mode=online")
    config = make_run(tmp_path, "logger=wandb").config
    config.logger.mode, config.logger.wait_s = "sometimes", 0
    assert len(list(faults_of(config))) == 2


class Remembering(Logger):
    """A logger of Lightning as a user may write one."""

    told: list[tuple[int, dict]] = []  # noqa: RUF012

    def __init__(self, save_dir: str, word: str = "") -> None:
        super().__init__()
        self.save_dir_, self.word = save_dir, word
        Path(save_dir).mkdir(parents=True, exist_ok=True)

    name = version = property(lambda self: "remembering")

    def log_metrics(self, metrics, step=None):
        self.told.append((step, dict(metrics)))

    def log_hyperparams(self, *_, **__):
        pass


def test_any_logger_of_lightning_by_its_class(monkeypatch, tmp_path):
    monkeypatch.setattr(training, "_LOG_EVERY", 10)
    Remembering.told.clear()
    run = make_run(tmp_path, *SMALL, "logger=lightning", "logger.target=test_wandb.Remembering", "++logger.options.word=hello")
    execute(run, "")
    assert [(step, sorted(values)[0]) for step, values in Remembering.told] == [(6, "epoch"), (10, "lr"), (12, "lr"), (12, "epoch")]
    assert (run.directory.logs / "metrics.csv").exists()
    made = lightning_logger("test_wandb.Remembering", {"word": "hello"}, tmp_path / "logs")
    assert (made.word, made.save_dir_) == ("hello", str(tmp_path / "logs"))


@pytest.mark.parametrize(("target", "options", "message"), [
    ("nowhere.Logger", {}, "pip install nowhere"), ("pathlib.Path", {}, "not a Lightning logger"),
    ("test_wandb.Nobody", {}, "has no Nobody"), ("test_wandb.Remembering", {"strange": 1}, "strange"),
])  # fmt: skip
def test_a_logger_that_cannot_be_made_says_why_before_anything_is_done(target, options, message, tmp_path):
    with pytest.raises(FcotError, match=message):
        lightning_logger(target, options, tmp_path)
    overrides = [f"++logger.options.{name}={value}" for name, value in options.items()]
    run = make_run(tmp_path, *SMALL, "logger=lightning", f"logger.target={target}", *overrides)
    with pytest.raises(FcotError, match=message):
        execute(run, "")
    assert not run.directory.curated.exists()


def test_tensorboard_or_how_to_install_it(tmp_path):
    run = make_run(tmp_path, *SMALL, "logger=tensorboard")
    try:
        import tensorboard  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(FcotError, match="pip install tensorboard"):
            execute(run, "")
        return
    execute(run, "")
    assert list((run.directory.logs / "tensorboard").glob("events.*"))


# --- the report ------------------------------------------------------------------------------------------------------


@pytest.fixture
def document(tmp_path):
    table = Table("main", "all", ("method", "acc %"), ("method",), [("<script>alert(1)</script>|x", "50.0")])
    sections = [
        Section("results", "Results", [Paragraph("It <b>works</b>."), table]),
        Section("configs", "Configurations", [Code("config.yaml", "seed: 0", folded=True), Code("again", "python -m fcot.run")]),
    ]
    runs = []
    for diversity in (1, 8):
        run = make_run(tmp_path / "outputs", *SMALL, f"diversity={diversity}")
        run.directory.wandb.parent.mkdir(parents=True)
        run.directory.wandb.write_text(
            json.dumps({"id": f"id{diversity}", "project": "p", "entity": None, "group": "sweep's", "url": None})
        )
        facts = {"task": "svamp", "student": "t5_small", "diversity": diversity, "accuracy": 0.5, "n_steps": 10, "rounds": [{"round": 1}]}
        facts["varied"] = {"trainer.lr": f"{diversity}e-3", "curation": "none" if diversity == 1 else "answer"}
        runs.append(RunFiles(run.directory, f"D{diversity}", facts))
    return Document("A title", "An answer.", ["job 3 has failed"], sections, runs)


def test_a_report_is_made_and_then_updated(document, tmp_path, monkeypatch, capsys):
    stub = Stub()
    with served(stub) as url:
        again = [sys.executable, "-c", PUBLISH, str(tmp_path)]
        environment = {**os.environ, "WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "HOME": str(tmp_path / "home")}
        (tmp_path / "home").mkdir()
        document_of(document, tmp_path)
        addresses = []
        for _ in range(2):
            done = subprocess.run(again, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            addresses.append(done.stdout.splitlines()[-1])
    assert addresses[0] == addresses[1]
    assert addresses[0].startswith(f"{url}/us/p/reports/A-title--")
    assert stub.calls.count("upsertView") == 2
    assert stub.calls.index("CreateProject") < stub.calls.index("upsertView")
    ((_, view),) = stub.views.items()
    assert view["displayName"] == "A title"
    check_spec(json.loads(view["spec"]))
    assert not any(KEY in path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    assert not list((tmp_path / "home").rglob("*"))


PUBLISH = """
import pickle, sys
from pathlib import Path
from fcot.reporting.wandb_report import publish
folder = Path(sys.argv[1])
print(publish(pickle.loads((folder / "document.pickle").read_bytes()), None, None, folder, "again"))
"""


def document_of(document: Document, folder: Path) -> None:
    (folder / "document.pickle").write_bytes(pickle.dumps(document))


def check_spec(spec: dict) -> None:
    """The same sections, text as text, panels over the sweep's runs, the paper's numbers."""
    text = json.dumps(spec)
    titles = ["".join(child["text"] for child in block["children"]) for block in spec["blocks"] if block["type"] == "heading"]
    assert titles[:2] == ["Results", "Configurations"]
    assert {"Scaling", "Training", "Samples", "Rounds", "The paper's numbers"} <= set(titles)
    assert "An answer." in text
    assert '"config:trainer.value.lr"' in text  # an axis of the sweep's own
    assert "config:curation" not in text  # no axis
    assert "job 3 has failed" in text
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\\\|x" in text
    assert "python -m fcot.run" in text
    assert "accuracy by D" in text
    assert '["id1", "id8"]' in text, "its own runs and no others"


def test_without_a_key_the_spec_is_a_file(document, tmp_path, monkeypatch, capsys):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    assert publish(document, None, None, tmp_path, "python -m fcot.report --wandb DIR") == str(tmp_path / "report_wandb.json")
    said = capsys.readouterr().out
    assert "no key in WANDB_API_KEY" in said
    assert "python -m fcot.report --wandb DIR" in said
    check_spec(json.loads((tmp_path / "report_wandb.json").read_text()))


def test_runs_of_several_projects_are_all_in_it_and_no_heading_is_empty(document, tmp_path):
    wr = pytest.importorskip("wandb_workspaces.reports.v2")
    told = [{"id": "a", "project": "p", "entity": "one", "group": "s", "url": None},
            {"id": "b", "project": "q", "entity": None, "group": None, "url": None}]  # fmt: skip
    grids = [block for block in blocks(wr, document, told, "us", "p") if isinstance(block, wr.PanelGrid)]
    assert [(one.entity, one.project, one.filters) for one in grids[0].runsets] == [
        ("one", "p", "Metric('ID') in ['a']"), ("us", "q", "Metric('ID') in ['b']"),
    ]  # fmt: skip
    chart = Section("training", "Training", [Chart("training", "losses", {})])
    other = dataclasses.replace(document.runs[0], directory=RunDirectory(tmp_path))
    said = [block.text for block in blocks(wr, dataclasses.replace(document, runs=[*document.runs, other]), told, "us", "p")
            if isinstance(block, wr.P)]  # fmt: skip
    assert "1 of 3 runs were not logged at W&B: the tables have them, the panels do not." in said
    unlogged = blocks(wr, dataclasses.replace(document, sections=[*document.sections, chart]), [], "", "")
    assert [block.text for block in unlogged if isinstance(block, wr.H2)] == ["Results", "Configurations", "The paper's numbers"]


def test_without_the_package_the_command_that_installs_it(document, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(FcotError, match="pip install 'fcot\\[wandb-report\\]'"):
        publish(document, None, None, tmp_path, "")


def test_the_package_needs_no_wandb_to_start():
    code = "import sys, fcot.runs.pipeline, fcot.report; print([name for name in sys.modules if name.startswith('wandb')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "taken"), [("büro-D8", "buro-D8"), ("a b/c:1", "a-b-c-1"), ("数学", "--"), ("", "unnamed"), ("x" * 200, "x" * 128)]
)
def test_an_artifacts_name_is_one_that_wandb_takes(name, taken):
    from fcot.reporting.wandb_run import artifact_name

    assert artifact_name(name) == taken
