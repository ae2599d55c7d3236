"""W&B: what a run logs, that a continued run stays one W&B run, that W&B never makes a run fail; and W&B Reports."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zygote
from pytorch_lightning.loggers import Logger
from test_run import SMALL, make_run
from test_sweeps import LONG, until
from wandb_stub import KEY, Stub, served, silent

from fcot.base.errors import FcotError
from fcot.base.run_folder import RunDirectory
from fcot.config.checks import faults_of
from fcot.reporting.document import Chart, Code, Document, Paragraph, RunFiles, Section
from fcot.reporting.table import Table
from fcot.reporting.wandb_report import blocks, publish
from fcot.runs.pipeline import execute
from fcot.stages.tracking import _label
from fcot.student import training
from fcot.student.loggers import lightning_logger

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def clean_environment(tmp_path):
    """Environment of a user who has no W&B key and whose home folder must stay empty."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return kept | {"HOME": str(home), "MPLCONFIGDIR": str(tmp_path / "matplotlib")}


def fcot(folder: Path, environment: dict[str, str], *arguments: str, module: str = "fcot.run") -> subprocess.CompletedProcess[str]:
    return zygote.run(["-m", module, *arguments], cwd=folder, env=environment)


def records(folder: Path) -> list[dict]:
    """The records in the folder of a W&B run, as wandb itself reads them."""
    return [json.loads(line) for line in zygote.run(["-m", "wandb", "leet", "inspect", "--json", folder]).stdout.splitlines()]


def records_of(kind: str, rows: list[dict]) -> list[dict]:
    return [row[kind] for row in rows if row["type"] == kind]


def history(rows: list[dict]) -> list[dict]:
    return [row["item"] for row in records_of("history", rows)]


def losses(folder: Path) -> list[int]:
    """The steps whose loss the files of a W&B run have."""
    return [row["train/step"] for row in history(records(folder)) if "train/loss" in row]


def summary(rows: list[dict]) -> dict:
    values: dict = {}
    for row in records_of("summary", rows):
        values |= row["update"]
    return values


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("outputs/runs/*/logs/wandb/offline-run-*"), key=lambda path: path.name)


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- a run -----------------------------------------------------------------------------------------------------------


def test_an_offline_run_contains_metrics_tables_and_artifacts_with_lineage(tmp_path, clean_environment):
    command = [sys.executable, "-m", "fcot.run", *SMALL, "logger=wandb", "logger.tags=[mine]", "logger.project=papers"]
    # A process of its own: libraries choose some of their folders when they are imported.
    done = subprocess.run(command, cwd=tmp_path, env=clean_environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    (part,) = parts(tmp_path)
    run_folder = part.parents[2]
    assert f"wandb sync outputs/runs/{run_folder.name}/logs/wandb/{part.name}" in done.stderr
    assert "no key in WANDB_API_KEY" in done.stderr
    rows = records(part)
    (run,) = records_of("run", rows)
    config = run["config"]["update"]
    assert run["project"] == "papers"
    assert run["display_name"] == run_folder.name == config["run_id"]
    assert run["run_id"] == json.loads((run_folder / "logs" / "wandb.json").read_text())["id"]
    assert {"fine_tune_cot", "toy_arithmetic", "tiny_gpt2", "oracle-v2", "D4", "mine"} == set(run["tags"])
    assert config["diversity"] == 4
    assert config["trainer"]["max_steps"] == 12
    # training and evaluations by step, spending and curation
    logged = history(rows)
    assert [(row["train/step"], "train/tokens_per_second" in row) for row in logged if "train/loss" in row] == [(10, True), (12, True)]
    metrics = json.loads((run_folder / "metrics.json").read_text())
    evaluated = [(row["train/step"], row["train/validation_accuracy"]) for row in logged if "train/epoch" in row]
    assert evaluated == [(row["step"], row["validation_accuracy"]) for row in metrics["history"]]
    assert records_of("metric", rows)[0]["step_metric"] == "train/step"
    (curated,) = [row for row in logged if "curate/kept" in row]
    assert curated["curate/kept"] == metrics["completions_kept"]
    assert curated["curate/refused/wrong_answer"] == metrics["refused"]["wrong_answer"]
    (bought,) = [row for row in logged if "generate/teacher_usage/usd" in row]
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
    artifacts = {row["type"]: row for row in records_of("artifact", rows)}
    assert artifacts["dataset"]["use_after_commit"]
    assert artifacts["dataset"]["manifest"]["contents"][0]["local_path"] == str(run_folder / "curated.jsonl")
    assert "use_after_commit" not in artifacts["model"]
    assert {"config.json", "README.md"} <= {row["path"] for row in artifacts["model"]["manifest"]["contents"]}
    # the CSV log is written as without W&B; nothing is written elsewhere
    assert "train_loss" in (run_folder / "logs" / "metrics.csv").read_text().splitlines()[0]
    assert {name.partition("/")[0] for name in files_of(tmp_path)} <= {"outputs", "matplotlib"}


def test_a_sweep_has_one_run_per_job_in_one_group(tmp_path, clean_environment):
    done = fcot(tmp_path, clean_environment, "-m", *SMALL, "logger=wandb", "logger.log_student=false", "diversity=1,2")
    assert done.returncode == 0, done.stderr
    runs = [records_of("run", records(part))[0] for part in parts(tmp_path)]
    (sweep,) = tmp_path.glob("outputs/sweeps/*")
    assert [run["run_group"] for run in runs] == [sweep.name] * 2
    assert len({run["run_id"] for run in runs}) == 2
    assert {run["config"]["update"]["diversity"] for run in runs} == {1, 2}
    assert "model" not in {row["type"] for part in parts(tmp_path) for row in records_of("artifact", records(part))}
    # the report of the sweep: the spec, and how to publish it
    report = fcot(tmp_path, clean_environment, "--wandb", str(sweep), module="fcot.report")
    assert report.returncode == 0, report.stderr
    assert f"python -m fcot.report --wandb {sweep}" in report.stdout
    spec = json.loads((sweep / "report_wandb.json").read_text())
    ids = [json.loads(path.read_text())["id"] for path in sorted(tmp_path.glob("outputs/runs/*/logs/wandb.json"))]
    grids = [block["metadata"] for block in spec["blocks"] if block["type"] == "panel-grid"]
    assert {json.dumps(grid["runSets"][0]["filters"]["filters"][0]["value"]) for grid in grids} == {json.dumps(ids)}
    kinds = {panel["viewType"] for grid in grids for panel in grid["panelBankSectionConfig"]["panels"]}
    assert kinds >= {"Scatter Plot", "Run Comparer", "Run History Line Plot", "Weave", "Bar Chart"}


def test_a_killed_run_continues_in_the_same_wandb_run(tmp_path, clean_environment):
    options = [*LONG, "trainer.checkpoint_every_s=0", "logger=wandb"]
    first = zygote.start(["-m", "fcot.run", *options], cwd=tmp_path, env=clean_environment, stderr=subprocess.DEVNULL)
    until(lambda: list(tmp_path.glob("outputs/runs/*/checkpoints/*")) and parts(tmp_path) and losses(parts(tmp_path)[0]))
    first.kill()
    first.wait()
    (part,) = parts(tmp_path)
    first_steps = losses(part)
    assert first_steps, "nothing of the killed part was kept"
    second = start_again(tmp_path, clean_environment, options)
    second.send_signal(signal.SIGTERM)  # as SLURM does before it requeues
    _, output = second.communicate(timeout=600)
    both_parts = parts(tmp_path)
    assert len(both_parts) == 2
    assert len({records_of("run", records(folder))[0]["run_id"] for folder in both_parts}) == 1
    assert all(folder.name in output for folder in both_parts), output
    assert {row["type"] for row in records(both_parts[1])} >= {"preempting", "exit"}
    later_steps = losses(both_parts[1])
    assert min(later_steps) > min(first_steps)
    # the printed command uploads both parts as one history, in order
    stub = Stub()
    command = next(line for line in output.splitlines() if "wandb sync" in line).partition("to upload it: ")[2].split()
    with served(stub) as url:
        environment = clean_environment | {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}
        assert command[0] == "wandb"
        assert zygote.run(["-m", *command], cwd=tmp_path, env=environment).returncode == 0
    (run_id,) = stub.runs
    synced = stub.history(run_id)
    assert [row["train/step"] for row in synced if "train/loss" in row] == [*first_steps, *later_steps]
    assert [row["_step"] for row in synced] == list(range(len(synced)))


def test_an_online_run_is_logged_while_it_trains_and_can_be_continued(tmp_path, clean_environment):
    stub = Stub()
    with served(stub) as url:
        environment = clean_environment | {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}
        first = fcot(tmp_path, environment, *SMALL, "logger=wandb", "until=curate")
        second = fcot(tmp_path, environment, *SMALL, "logger=wandb")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    ((run_id, run),) = stub.runs.items()
    assert f"W&B: {url}/us/fcot/runs/{run_id}" in second.stderr
    logged = stub.history(run_id)
    assert [row["train/step"] for row in logged if "train/loss" in row] == [10, 12]
    assert [row["_step"] for row in logged] == list(range(len(logged)))
    assert run["ended"]
    assert set(run["tags"]) >= {"fine_tune_cot", "D4"}
    assert second.stderr.count("warning: W&B") == 1, "for the artifacts, which this server rejects"
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert not list((tmp_path / "home").rglob("*"))


def start_again(folder: Path, environment: dict[str, str], options: list[str]):
    process = zygote.start(["-m", "fcot.run", *options], cwd=folder, env=environment)
    log = next(folder.glob("outputs/runs/*")) / "logs" / "metrics.csv"
    before = log.stat().st_mtime_ns
    until(lambda: len(parts(folder)) == 2 and log.stat().st_mtime_ns > before and losses(parts(folder)[1]))
    return process


@pytest.mark.parametrize("kind", ["rejects_key", "silent", "unreachable"])
def test_an_unusable_wandb_server_neither_fails_nor_blocks_a_run(kind, tmp_path, clean_environment):
    def run(url: str) -> None:
        begin = time.monotonic()
        done = fcot(tmp_path, clean_environment | {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}, *SMALL, "logger=wandb")
        assert done.returncode == 0, done.stderr
        assert "wandb sync outputs/" in done.stderr
        assert time.monotonic() - begin < 240, "a run takes some seconds, on a busy machine a minute"
        assert {"rejects_key": "rejects the key", "silent": "no answer within", "unreachable": "refused"}[kind] in done.stderr
        for path in tmp_path.rglob("*"):
            assert not path.is_file() or KEY.encode() not in path.read_bytes(), f"the key is in {path}"
        assert KEY not in done.stderr + done.stdout
        assert not list((tmp_path / "home").rglob("*"))

    if kind == "unreachable":
        run("http://127.0.0.1:9")
        return
    with silent() if kind == "silent" else served(Stub(reject_key=True)) as url:
        run(url)


def test_a_finished_run_is_uploaded_once(tmp_path, clean_environment):
    uploaded = []
    for overrides in ([], ["logger=wandb"], ["logger=wandb"]):
        done = fcot(tmp_path, clean_environment, *SMALL, *overrides)
        assert done.returncode == 0, done.stderr
        uploaded.append("uploading the finished run's results to W&B" in done.stderr)
    assert uploaded == [False, True, False]
    (part,) = parts(tmp_path)
    rows = records(part)
    assert {row["type"] for row in records_of("artifact", rows)} >= {"dataset", "model"}
    assert "accuracy" in summary(rows)


def test_an_error_in_wandb_does_not_fail_a_run(tmp_path, monkeypatch, capsys):
    import wandb

    def broken(**_):
        raise RuntimeError("no wandb today")

    monkeypatch.setattr(wandb, "init", broken)
    metrics = execute(make_run(tmp_path, *SMALL, "logger=wandb", "logger.mode=offline"), "")
    assert "accuracy" in metrics
    assert capsys.readouterr().err.count("no wandb today") == 1


def test_rounds_are_logged(tmp_path, clean_environment):
    tailored = ["method=tailored", "method.rounds=2", "method.exam.samples=1", "diversity=2"]
    done = fcot(tmp_path, clean_environment, *SMALL, *tailored, "logger=wandb")
    assert done.returncode == 0, done.stderr
    (part,) = parts(tmp_path)
    logged = history(records(part))
    assert {row["rounds/round"] for row in logged if "rounds/accuracy" in row} == {1, 2}
    assert {row["round_2/train/step"] for row in logged if "round_2/train/loss" in row} == {10, 12}
    assert any("round_2/curate/kept" in row for row in logged)


# --- choices ---------------------------------------------------------------------------------------------------------


def test_the_logger_does_not_change_the_run_id(tmp_path, monkeypatch):
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
    """A Lightning logger as a user may write it."""

    logged: list[tuple[int, dict]] = []  # noqa: RUF012

    def __init__(self, save_dir: str, word: str = "") -> None:
        super().__init__()
        self.save_dir_, self.word = save_dir, word
        Path(save_dir).mkdir(parents=True, exist_ok=True)

    name = version = property(lambda self: "remembering")

    def log_metrics(self, metrics, step=None):
        self.logged.append((step, dict(metrics)))

    def log_hyperparams(self, *_, **__):
        pass


def test_any_lightning_logger_can_be_named_by_its_class(monkeypatch, tmp_path):
    monkeypatch.setattr(training, "_LOG_EVERY", 10)
    Remembering.logged.clear()
    run = make_run(tmp_path, *SMALL, "logger=lightning", "logger.target=test_wandb.Remembering", "++logger.options.word=hello")
    execute(run, "")
    assert [(step, sorted(values)[0]) for step, values in Remembering.logged] == [(6, "epoch"), (10, "lr"), (12, "lr"), (12, "epoch")]
    assert (run.directory.logs / "metrics.csv").exists()
    logger = lightning_logger("test_wandb.Remembering", {"word": "hello"}, tmp_path / "logs")
    assert (logger.word, logger.save_dir_) == ("hello", str(tmp_path / "logs"))


@pytest.mark.parametrize(("target", "options", "message"), [
    ("nowhere.Logger", {}, "pip install nowhere"), ("pathlib.Path", {}, "not a Lightning logger"),
    ("test_wandb.Nobody", {}, "has no Nobody"), ("test_wandb.Remembering", {"strange": 1}, "strange"),
])  # fmt: skip
def test_a_logger_that_cannot_be_created_is_reported_before_any_work(target, options, message, tmp_path):
    with pytest.raises(FcotError, match=message):
        lightning_logger(target, options, tmp_path)
    overrides = [f"++logger.options.{name}={value}" for name, value in options.items()]
    run = make_run(tmp_path, *SMALL, "logger=lightning", f"logger.target={target}", *overrides)
    with pytest.raises(FcotError, match=message):
        execute(run, "")
    assert not run.directory.curated.exists()


def test_tensorboard_logs_or_a_message_says_how_to_install_it(tmp_path):
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


def test_a_report_is_created_and_then_updated(document, tmp_path, monkeypatch, capsys):
    stub = Stub()
    with served(stub) as url:
        environment = {**os.environ, "WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "HOME": str(tmp_path / "home")}
        (tmp_path / "home").mkdir()
        save_document(document, tmp_path)
        addresses = []
        for _ in range(2):
            done = zygote.run(["-c", PUBLISH, tmp_path], cwd=tmp_path, env=environment)
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


def save_document(document: Document, folder: Path) -> None:
    (folder / "document.pickle").write_bytes(pickle.dumps(document))


def check_spec(spec: dict) -> None:
    """Check the sections, the escaped text, the panels of the sweep's runs and the paper's numbers of a spec."""
    text = json.dumps(spec)
    titles = ["".join(child["text"] for child in block["children"]) for block in spec["blocks"] if block["type"] == "heading"]
    assert titles[:2] == ["Results", "Configurations"]
    assert {"Scaling", "Training", "Samples", "Rounds", "The paper's numbers"} <= set(titles)
    assert "An answer." in text
    assert '"config:trainer.value.lr"' in text  # an option that the sweep varies is an axis
    assert "config:curation" not in text  # its values are not numbers, so it is no axis
    assert "job 3 has failed" in text
    assert not re.search(r"(?<!\\)</?script>", text)
    assert json.dumps(r"\<script>alert(1)\</script>\|x")[1:-1] in text
    assert "python -m fcot.run" in text
    assert "accuracy by D" in text
    assert '["id1", "id8"]' in text, "the runs of the sweep and no others"


def test_without_a_key_the_spec_is_a_file(document, tmp_path, monkeypatch, capsys):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    assert publish(document, None, None, tmp_path, "python -m fcot.report --wandb DIR") == str(tmp_path / "report_wandb.json")
    output = capsys.readouterr().out
    assert "no key in WANDB_API_KEY" in output
    assert "python -m fcot.report --wandb DIR" in output
    check_spec(json.loads((tmp_path / "report_wandb.json").read_text()))


def test_a_report_has_the_runs_of_several_projects_and_no_empty_heading(document, tmp_path):
    wr = pytest.importorskip("wandb_workspaces.reports.v2")
    logged = [{"id": "a", "project": "p", "entity": "one", "group": "s", "url": None},
            {"id": "b", "project": "q", "entity": None, "group": None, "url": None}]  # fmt: skip
    grids = [block for block in blocks(wr, document, logged, "us", "p") if isinstance(block, wr.PanelGrid)]
    assert [(runset.entity, runset.project, runset.filters) for runset in grids[0].runsets] == [
        ("one", "p", "Metric('ID') in ['a']"), ("us", "q", "Metric('ID') in ['b']"),
    ]  # fmt: skip
    chart = Section("training", "Training", [Chart("training", "losses", {})])
    other = dataclasses.replace(document.runs[0], directory=RunDirectory(tmp_path))
    paragraphs = [block.text for block in blocks(wr, dataclasses.replace(document, runs=[*document.runs, other]), logged, "us", "p")
            if isinstance(block, wr.P)]  # fmt: skip
    assert "1 of 3 runs were not logged at W&B: the tables have them, the panels do not." in paragraphs
    unlogged = blocks(wr, dataclasses.replace(document, sections=[*document.sections, chart]), [], "", "")
    assert [block.text for block in unlogged if isinstance(block, wr.H2)] == ["Results", "Configurations", "The paper's numbers"]


def test_a_missing_package_gives_the_command_that_installs_it(document, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(FcotError, match="pip install 'fcot\\[wandb-report\\]'"):
        publish(document, None, None, tmp_path, "")


def test_fcot_does_not_import_wandb_at_the_start():
    code = "import sys, fcot.runs.pipeline, fcot.report; print([name for name in sys.modules if name.startswith('wandb')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "expected"), [("büro-D8", "buro-D8"), ("a b/c:1", "a-b-c-1"), ("数学", "--"), ("", "unnamed"), ("x" * 200, "x" * 128)]
)
def test_artifact_names_are_valid_in_wandb(name, expected):
    from fcot.reporting.wandb_run import artifact_name

    assert artifact_name(name) == expected


def test_the_name_of_a_preset_is_a_tag(tmp_path):
    run = make_run(tmp_path, "method=star", "logger=wandb")
    assert {"tailored", "STaR"} <= set(_label(run, run.config.logger, "", None).tags)
