"""Tables and figures: they show how runs differ, their numbers are those of the metrics, and they fit into 80 columns."""

from __future__ import annotations

import csv
import json
import shlex
import shutil

import numpy as np
import pytest
from rich.console import Console

from fcot.base.errors import FcotError
from fcot.base.files import write_atomic, write_json, write_jsonl
from fcot.base.run_folder import RunDirectory
from fcot.report import find_jobs, report
from fcot.reporting import builder, failures, figures
from fcot.reporting.cost import cost_of, has_cost, pareto
from fcot.reporting.failures import aligned_table, error_table
from fcot.reporting.finished import _IRRELEVANT_KEYS, command_of
from fcot.reporting.published import find_published, published
from fcot.reporting.reference import reference_tables
from fcot.reporting.rounds import rounds_tables
from fcot.reporting.scaling import lines
from fcot.reporting.settings import group, label
from fcot.reporting.table import Table
from fcot.reporting.tables import accuracy_table, by_task, compare_settings, notes, stage_line
from fcot.runs.run import config_yaml
from fcot.sweeps.plan import PlannedJob, Sweep, write_plan

BASE = {
    "run_id": "toy-gpt-0000000001", "method": "fine_tune_cot", "task": "toy_arithmetic", "student": "tiny_gpt2", "diversity": 4, "seed": 0,
    "n_test": 405, "accuracy": 0.98272, "accuracy_ci95": [0.9648, 0.9916], "accuracy_best_epoch": None, "accuracy_checkpoint": "validation",
    "completions_asked": 3404, "completions_kept": 3059, "seconds": {"train": 70.2, "evaluate": 1.1}, "random_guess": 0.0,
    "test_questions_also_in_train": 0, "rows_in_published_order": None, "cut_completions": 0,
    "errors": {"other": 7}, "n_parameters": 212000,
    "n_train_problems": 851, "n_validation_problems": 94, "rationale_words": 54.0, "answer_tokens": 100.0, "questions_sha256": "abc",
}  # fmt: skip


def run(number: int, **changes):
    return BASE | {"run_id": f"toy-gpt-{number:010d}"} | changes


def predictions(metrics) -> dict[int, bool]:
    """Whether each test problem is answered correctly: the first are, as many as the accuracy implies."""
    return {index: index < round(metrics["accuracy"] * metrics["n_test"]) for index in range(metrics["n_test"])}


def settings(runs):
    return group((metrics, predictions(metrics), dict.fromkeys(range(metrics["n_test"]), 100)) for metrics in runs)


def text(runs, width=80) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(accuracy_table(settings(runs)))
    return console.export_text()


def test_the_quickstart_table_fits_80_columns_unabridged():
    runs = [
        run(1, method="zero_shot", diversity=None, accuracy=0.0, completions_asked=0, accuracy_checkpoint="untrained", seed=1),
        run(2, method="fine_tune", diversity=None, accuracy=0.0568, completions_asked=0),
        run(3, diversity=1, accuracy=0.879),
        run(4),
    ]
    table = text(runs)
    assert "…" not in table
    assert all(len(line) <= 80 for line in table.splitlines())
    for part in ("Zero-shot", "Fine-tune-CoT", "3,059/3,404", "98.27", "96.5-99.2", "405", "71", "5.68"):
        assert part in table


def test_a_varied_option_has_a_column_and_is_in_the_labels():
    runs = [run(1, varied={"trainer.lr": "1e-3"}), run(2, varied={"trainer.lr": "5e-3"})]
    assert "trainer.lr" in text(runs, 120)
    assert [label(setting, settings(runs)) for setting in settings(runs)] == [
        "Fine-tune-CoT D=4, trainer.lr=1e-3",
        "Fine-tune-CoT D=4, trainer.lr=5e-3",
    ]


def test_numbers_are_never_cut_and_hidden_columns_are_named():
    runs = [run(number, diversity=number, varied={"trainer.lr": "1e-3", "curation": "a_long_name_of_a_filter", "student.width": "64"})
              for number in (1, 2, 4)]  # fmt: skip
    for width in (50, 60, 80, 100, 200):
        table = text(runs, width)
        assert "…" not in table
        assert "98.27" in table
        assert all(len(line) <= width for line in table.splitlines())
        assert ("the terminal is too narrow" in table) == (width < 100)
    long = text([run(1, varied={"prompt.template": "word " * 30}), run(2, varied={"prompt.template": "x" * 90})], 60)
    assert "98.27" in long
    assert "96.5-99.2" in long


def test_square_brackets_are_shown_as_text():
    assert "a[/b]c" in text([run(1, task="a[/b]c"), run(2, task="[red]")], 120)
    assert "[red]" in text([run(2, task="[red]")], 120)


def test_result_columns_come_before_columns_that_explain_them():
    columns = list(accuracy_table(settings([run(1, rationale_words=40), run(2, diversity=1)])).columns)
    assert columns.index("acc %") < columns.index("95 % CI") < columns.index("n") < columns.index("kept/asked") < columns.index("words")


def test_faulty_completions_have_a_column_if_there_are_any():
    faulty = {"completions_asked": 200, "completions_empty": 0, "completions_cut": 30, "completions_unanswered": 1}
    table = accuracy_table(settings([run(1, **faulty), run(2, diversity=1)]))
    cells = {dict(zip(table.columns, row, strict=True))["D"]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert (cells["4"]["cut %"], cells["4"]["unanswered %"]) == ("15.0", "0.5")
    assert cells["1"]["cut %"] == "-", "a run of an earlier version"
    assert "empty %" not in table.columns
    assert not [
        name for name in accuracy_table(settings([run(1), run(2, diversity=1)])).columns if name in ("cut %", "empty %", "unanswered %")
    ]


def test_several_tasks_have_a_table_in_the_papers_layout():
    assert by_task(settings([run(1), run(2, diversity=1)])) is None
    published = {"as_published": True, "sampled": True, "subset": None, "student": "flan_t5_base", "n_parameters": 250_000_000}
    ours = [run(3, task="svamp", diversity=8, accuracy=0.5, **published, accuracy_best_epoch=0.6)]
    ours += [run(4, task="svamp", diversity=64, accuracy=0.5, **published)]
    table = by_task(settings([run(1), run(2, task="svamp", accuracy=0.5), *ours]))
    assert table is not None
    assert list(table.columns) == ["student", "method", "svamp", "toy_arithmetic"]
    assert table.rows == [
        ("tiny_gpt2", "Fine-tune-CoT D=4", "49.88", "98.27"),
        ("flan_t5_base", "Fine-tune-CoT D=8", f"49.88; best epoch 60.00 ({find_published(ours[0]).percent:.2f})", "-"),
        ("flan_t5_base", "Fine-tune-CoT D=64", "49.88", "-"),
    ]


def test_lines_of_one_color_differ_in_their_dashes():
    names = [f"run {number}" for number in range(40)]
    spec = json.dumps(figures.training_chart({name: [{"step": 1, "train_loss": 1.0}] for name in names}).spec)
    encoding = json.loads(spec)["encoding"]
    looks = zip(encoding["color"]["scale"]["range"], map(str, encoding["strokeDash"]["scale"]["range"]), strict=True)
    assert encoding["color"]["scale"]["domain"] == encoding["strokeDash"]["scale"]["domain"] == names
    assert len(set(looks)) == 40


def test_runs_that_look_alike_show_their_hashes():
    runs = [run(1), run(2)]
    assert "0000000001" in text(runs)
    assert label(settings(runs)[1], settings(runs)).endswith("0000000002")
    assert "0000000001" not in text([run(1, setting="same"), run(3, seed=1, setting="same")])


def test_seeds_of_a_setting_are_one_line():
    table = text(
        [run(1, setting="same", accuracy=0.8), run(2, setting="same", seed=1, accuracy=0.9), run(3, diversity=1, accuracy=0.5)], 120
    )
    assert "84.94" in table  # 324 and 364 of 405
    assert "6.98" in table  # their standard deviation
    assert "49.88" in table
    assert len([line for line in table.splitlines() if "Fine-tune-CoT" in line]) == 2


def test_a_run_without_a_seed_is_compared_as_a_run_with_every_seed():
    trained = [run(number, accuracy=0.5 + 0.02 * number, seed=number, setting="trained") for number in range(3)]
    zero_shot = {"method": "zero_shot", "accuracy": 0.48, "accuracy_checkpoint": "untrained", "setting": "zero_shot"}

    def p(*untrained):
        ((_, _, compared),) = compare_settings(settings([*trained, *untrained]))
        return compared.p

    fixed = {"uses_seed": False}
    thrice = p(*(run(5 + seed, **zero_shot, **fixed, seed=seed) for seed in range(3)))
    assert p(run(5, **zero_shot, **fixed)) == thrice
    assert thrice > 0
    assert p(run(5, **zero_shot)) is None, "the spread of a single training is unknown"


def test_runs_that_do_not_depend_on_the_seed_count_once():
    untrained = {"method": "zero_shot", "diversity": None, "accuracy_checkpoint": "untrained", "setting": "same", "accuracy": 0.5}

    def counted(**kind) -> int:
        (setting,) = settings([run(seed, seed=seed, **untrained, **kind) for seed in range(3)])
        return len(setting.runs)

    assert counted(uses_seed=False) == 1
    assert counted(uses_seed=True) == 3
    # Metrics of older versions have no uses_seed.
    assert counted(student="flan_t5_base", precision="32-true") == 1
    assert counted(student="teacher", precision=None) == 1
    assert counted(student="flan_t5_base", precision="32-true", accuracy_single_sample=0.5) == 3, "sampled answers"
    assert counted(student="tiny_gpt2") == 3, "random weights"
    trained = [run(seed, seed=seed, setting="same", student="flan_t5_base", precision="32-true") for seed in range(3)]
    assert len(settings(trained)[0].runs) == 3
    copies = [run(3 * level + seed, seed=seed, varied={"teacher.error_rate": f"0.{level}"}, student="teacher", precision=None,
                  **untrained | {"setting": f"s{level}", "accuracy": 0.5 + level / 100})
              for level in range(3) for seed in range(3)]  # fmt: skip
    (line,) = lines(settings(copies))
    assert line.trend.over == "problems"
    once = [metrics for metrics in copies if metrics["seed"] == 0]
    assert line.trend.p == lines(settings(once))[0].trend.p


def test_each_run_is_shown_once_and_in_the_papers_order():
    runs = [run(4, diversity=16), run(1, method="fine_tune", diversity=None), run(2, diversity=2), run(2, diversity=2)]
    assert [(setting["method"], setting["diversity"]) for setting in settings(runs)] == [
        ("fine_tune", None), ("fine_tune_cot", 2), ("fine_tune_cot", 16),
    ]  # fmt: skip


def test_notes_state_what_a_reader_must_know():
    all_notes = " ".join(notes(settings([
        run(1, accuracy_checkpoint="last", accuracy_best_epoch=0.99), run(2, method="zero_shot", accuracy_checkpoint="untrained"),
        run(3, task="coin_flip", random_guess=0.5, test_questions_also_in_train=5, rows_in_published_order=False, cut_completions=7),
    ])))  # fmt: skip
    for part in ("last step's weights", "chosen on the test set", "only by chance", "guessing gives 50.0 %", "5 test questions",
                 "not the rows of the authors' file", "7 training completions were cut"):  # fmt: skip
        assert part in all_notes
    (one_seed,) = notes(settings([run(1)]))
    assert "another training may differ by more" in one_seed
    assert "may differ by more" not in " ".join(notes(settings([run(1, setting="same"), run(2, setting="same", seed=1)])))
    assert "only 20% of the answers ended by themselves" in " ".join(notes(settings([run(1, complete=0.2)])))


def test_answers_of_equal_length_are_not_sorted_by_correctness():
    (setting,) = settings([run(1, accuracy=0.5)])
    cells = failures._quarters(np.array([[38.0, index % 2] for index in range(400)]))
    assert cells == ["-", "-", "50 (38; 400)", "-"]
    mixed = failures._quarters(np.array([[length, length > 30] for length in (10, 20, 30, 40) for _ in range(10)], dtype=float))
    assert mixed == ["0 (10; 10)", "0 (20; 10)", "0 (30; 10)", "100 (40; 10)"]
    assert setting.problems


def test_settings_with_other_data_hide_no_comparison():
    runs = [run(1, diversity=1), run(2, diversity=2, questions_sha256="b"), run(3, diversity=4)]
    assert [(a["diversity"], b["diversity"]) for a, b, _ in compare_settings(settings(runs))] == [(1, 4)]


def test_runs_of_several_commands_are_distinguished_by_their_configurations(tmp_path, capsys):
    for number, filters in ((1, "answer"), (2, "none")):
        folder = tmp_path / "runs" / f"r{number}"
        metrics = run(number)
        write_json(folder / "metrics.json", metrics)
        rows = [{"sample_index": index, "correct": right, "n_tokens": 9} for index, right in predictions(metrics).items()]
        write_jsonl(folder / "predictions.jsonl", rows)
        config = f"seed: {number}\ncuration:\n  name: {filters}\n  filters: [{filters}]\ntrainer:\n  lr: 0.1\n"
        (folder / "config.yaml").write_text(config)
    report([tmp_path])
    printed = capsys.readouterr().out
    assert "curation" in printed
    assert "answer" in printed
    assert "trainer.lr" not in printed
    (tmp_path / "runs" / "r2" / "predictions.jsonl").write_text('{"sample_index": 1')
    report([tmp_path])
    assert "r2/predictions.jsonl is damaged" in capsys.readouterr().out
    assert "last" in text([run(1, accuracy_checkpoint="last")])


def write_version(folder, number: int, path: str, questions: range, **changes) -> None:
    """A run on one version of a user's data, whose test problems are these."""
    metrics = run(number, n_test=len(questions), accuracy=0.5, task="own", questions_sha256=path, **changes)
    rows = [
        {"sample_index": index, "question": f"Question {n}?", "correct": index % 2 == 0, "n_tokens": 9} for index, n in enumerate(questions)
    ]
    write_json(folder / "metrics.json", metrics)
    write_jsonl(folder / "predictions.jsonl", rows)
    (folder / "config.yaml").write_text(f"dataset:\n  name: own\n  path: {path}\n")


def test_runs_with_other_test_problems_are_not_compared_and_the_report_says_so(tmp_path, capsys):
    write_version(tmp_path / "r1", 1, "old.csv", range(60), n_train_problems=120)
    write_version(tmp_path / "r2", 2, "new.csv", range(10, 85), n_train_problems=151)
    document = report([tmp_path])
    printed = " ".join(capsys.readouterr().out.split())
    said = "not compared: other test problems (50 shared of 75 and 60)"
    assert said in printed
    sentence = f"own, tiny_gpt2: {said}: Fine-tune-CoT D=4, dataset.path=new.csv and Fine-tune-CoT D=4, dataset.path=old.csv."
    assert sentence in document.answer
    assert "comparisons on the same problems" not in printed
    (table,) = (block for section in document.sections if section.id == "results" for block in section.blocks if isinstance(block, Table))
    columns = dict(zip(table.columns, zip(*table.rows, strict=True), strict=True))
    assert columns["dataset.path"] == ("new.csv", "old.csv")
    assert columns["train"] == ("151", "120")


def test_another_name_of_the_same_data_is_not_shown(tmp_path, capsys):
    for number, path in ((1, "here.csv"), (2, "there.csv")):
        write_version(tmp_path / f"r{number}", number, path, range(60), diversity=number)
        metrics = json.loads((tmp_path / f"r{number}" / "metrics.json").read_text())
        write_json(tmp_path / f"r{number}" / "metrics.json", metrics | {"questions_sha256": "same"})
    report([tmp_path])
    printed = capsys.readouterr().out
    assert "comparisons on the same problems" in printed
    assert "here.csv" not in printed
    assert "not compared" not in printed


def test_settings_of_one_data_set_are_compared_on_the_problems_that_both_answered():
    both = settings([run(1, diversity=1, accuracy=0.5), run(2, accuracy=0.6, n_test=400)])
    assert any("compared on the test problems that both answered (400 shared of 405 and 400)" in note for note in notes(both))
    assert [len(first.problems & second.problems) for first, second, _ in compare_settings(both)] == [400]


def test_train_sizes_are_shown_only_where_no_limit_explains_them():
    cells = [run(1, n_train_problems=100, diversity=1), run(2, n_train_problems=200)]
    assert "train" in accuracy_table(settings(cells)).columns
    limited = [cell | {"varied": {"split_mode.subset": str(cell["n_train_problems"])}} for cell in cells]
    assert "train" not in accuracy_table(settings(limited)).columns
    assert "train" not in accuracy_table(settings([run(1, diversity=1), run(2)])).columns


def test_an_option_that_one_sweep_varied_is_shown_for_runs_of_other_sweeps(tmp_path):
    sweeps: dict[str, list[PlannedJob]] = {"first": [], "second": []}
    for number, sweep, lr in ((1, "first", 0.1), (2, "first", 0.2), (3, "second", 0.3)):
        folder = write_run(tmp_path / "runs" / f"r{number}", number, diversity=number)
        (folder / "config.yaml").write_text(f"trainer:\n  lr: {lr}\n")
        override = f"trainer.lr={lr}" if sweep == "first" else "seed=0"
        sweeps[sweep].append(PlannedJob(len(sweeps[sweep]), [override], f"{number}", f"../runs/r{number}", "evaluate"))
    for sweep, jobs in sweeps.items():
        write_plan(Sweep(tmp_path / sweep, "2026-01-31", "/", [], {"kind": "serial"}, jobs))
    document = report([tmp_path / "first", tmp_path / "second"])
    assert document is not None
    assert [run.metrics["varied"] for run in document.runs] == [{"trainer.lr": value} for value in ("0.1", "0.2", "0.3")]


def test_runs_that_differ_in_more_than_diversity_are_no_scaling_line(tmp_path):
    for number, steps in ((1, 10), (2, 25), (4, 150)):
        folder = write_run(tmp_path / "runs" / f"r{number}", number, diversity=number, accuracy=0.2 * number)
        (folder / "config.yaml").write_text(f"diversity: {number}\ntrainer:\n  name: tiny\n  max_steps: {steps}\n")
    document = report([tmp_path])
    assert document is not None
    assert [run.metrics["varied"] for run in document.runs] == [{"trainer.max_steps": value} for value in ("10", "25", "150")]
    assert "rises" not in document.answer
    assert "scaling" not in [section.id for section in document.sections]


def write_configured_run(folder, number: int, config: str, **changes):
    write_run(folder / "runs" / f"r{number}", number, **changes)
    (folder / "runs" / f"r{number}" / "config.yaml").write_text(config)


def test_options_that_differ_within_a_group_are_shown_with_its_name_and_neutral_options_are_not(tmp_path):
    template = "curation:\n  name: {}\n  max_samples: {}\ntrainer:\n  name: tiny\n  max_steps: {}\n  eval_batch_tokens: {}\n"
    write_configured_run(tmp_path, 1, template.format("answer", "null", 9, 1), diversity=1)
    write_configured_run(tmp_path, 2, template.format("answer", 20, 9, 2), diversity=2)
    write_configured_run(tmp_path, 3, template.format("strict", "null", 9, 3), diversity=3)
    write_configured_run(tmp_path, 4, template.format("answer", "null", 9, 4), diversity=4)
    write_configured_run(
        tmp_path, 5, template.format("answer", "null", 7, 5), method="zero_shot", diversity=None, accuracy_checkpoint="untrained"
    )
    document = report([tmp_path])
    assert document is not None
    varied = {run.metrics["run_id"][-1]: run.metrics["varied"] for run in document.runs}
    assert varied == {
        "1": {"curation": "answer", "curation.max_samples": "null"}, "2": {"curation": "answer", "curation.max_samples": "20"},
        "3": {"curation": "strict", "curation.max_samples": "null"}, "4": {"curation": "answer", "curation.max_samples": "null"}, "5": {},
    }  # fmt: skip


def test_the_papers_numbers_are_shown_if_commands_differ(tmp_path):
    kind = {"as_published": True, "subset": None, "task": "multiarith", "student": "flan_t5_small", "accuracy_best_epoch": 0.99}
    write_configured_run(tmp_path, 1, "teacher:\n  name: replay\n  temperature: 0.0\n", diversity=1, sampled=False, **kind)
    write_configured_run(tmp_path, 2, "teacher:\n  name: replay\n  temperature: 0.7\n", diversity=64, sampled=True, **kind)
    document = report([tmp_path])
    assert document is not None
    (table,) = (block for block in document.sections[0].blocks if isinstance(block, Table) and block.name == "accuracy")
    assert [row[list(table.columns).index("paper %")] for row in table.rows] == [
        f"{find_published(run.metrics).percent:.2f}" for run in document.runs
    ]


@pytest.mark.parametrize("override", [
    "trainer.eval_batch_tokens=64", "trainer.checkpoint_every_s=3", "teacher.base_url=http://127.0.0.1:9/v1", "teacher.concurrency=3",
    "teacher.budget_usd=3", "teacher.max_choices_per_request=2", "teacher.requests_per_minute=9", "teacher.poll_s=9",
])  # fmt: skip
def test_options_that_reports_ignore_do_not_change_the_run_id(override, tmp_path, make_run, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    common = ("teacher=openai", "teacher.model=gpt-4.1-mini", "teacher.api_key_env=OPENAI_API_KEY", "diversity=1")
    assert make_run(tmp_path, *common, override).run_id == make_run(tmp_path, *common).run_id
    assert override.startswith(_IRRELEVANT_KEYS)


@pytest.mark.parametrize("end", ["\n", "\n\n", "\r\n", "\r", "\x85", "\u2028", "\u2029"])
def test_the_saved_command_is_read_as_it_was_written(end, tmp_path, make_run):
    from omegaconf import OmegaConf

    template = f"Q: {{question}}{end}A: {{trigger}}"
    run_of = make_run(tmp_path)
    config = config_yaml(
        OmegaConf.create({"teacher": {}, "x": 1}), run_of, ["diversity=1", f"prompt.template='{template}'"], ["file:///conf"]
    )
    assert OmegaConf.create(config)["x"] == 1
    directory = RunDirectory(tmp_path)
    write_atomic(directory.config, config)
    words = shlex.split(command_of(directory))
    assert words == ["python", "-m", "fcot.run", "hydra.searchpath=[file:///conf]", "diversity=1", f"prompt.template='{template}'"]
    directory.config.write_text("x: 1\n")
    assert command_of(directory) == ""


def test_the_papers_curves_are_drawn_for_its_own_settings_only():
    def curves(axis: str, runs) -> list[list[tuple[float, float]]]:
        return [figures._curve(line) for line in lines(settings(runs)) if line.axis == axis]

    kind = {"as_published": True, "sampled": True, "subset": None, "task": "multiarith", "student": "t5_base", "accuracy_best_epoch": 0.99}
    over_d = [run(number, diversity=d, **kind) for number, d in enumerate((1, 8, 64))]
    (curve,) = curves("diversity", over_d)
    assert len(curve) >= 3
    assert curve == sorted(curve)
    (line,) = lines(settings(over_d))
    assert figures._best_epochs(line) == [(1.0, 99.0), (8.0, 99.0), (64.0, 99.0)]
    assert curves("diversity", [metrics | {"accuracy_best_epoch": None} for metrics in over_d]) == [[]], (
        "best epochs beside best epochs only"
    )
    assert curves("diversity", [metrics | {"method": "tailored"} for metrics in over_d]) == [[]]
    assert curves("diversity", [metrics | {"swept": ("trainer.lr",)} for metrics in over_d]) == [[]]
    assert curves("diversity", [metrics | {"as_published": False} for metrics in over_d]) == [[]]
    figure = next(value for value in published() if value.source == "figure4")
    cell = kind | {"task": figure.task, "student": figure.student, "method": figure.method, "diversity": figure.diversity}
    sizes = [value.subset for value in published() if (value.source, value.task, value.method) == ("figure4", figure.task, figure.method)]
    over_problems = [run(n, **cell | {"subset": n}, varied={"split_mode.subset": str(n)}) for n in sizes[:3]]
    (curve,) = curves("split_mode.subset", over_problems)
    assert [x for x, _ in curve] == sorted(sizes)


def test_an_export_deletes_only_its_own_files(tmp_path):
    write_run(tmp_path / "runs" / "r1", 1)
    other_file = tmp_path / "paper" / "report" / "figures" / "mine.pdf"
    other_file.parent.mkdir(parents=True)
    other_file.write_text("mine")
    report([tmp_path], tmp_path / "paper", export=True)
    stale = tmp_path / "paper/report/tables/by_task.csv"
    assert not stale.exists()
    (tmp_path / "paper/report/files.json").write_text('{"x')
    write_run(tmp_path / "runs" / "r2", 2, task="other")
    report([tmp_path], tmp_path / "paper", export=True)
    assert stale.exists()
    rows = list(csv.DictReader((tmp_path / "paper/report/settings.csv").open()))
    assert [float(row["accuracy"]) for row in rows] == pytest.approx([398 / 405] * 2)
    assert {(row["task"], row["n"], row["runs"]) for row in rows} >= {("other", "405", "toy-gpt-0000000002")}
    shutil.rmtree(tmp_path / "runs" / "r2")
    report([tmp_path], tmp_path / "paper", export=True)
    assert not stale.exists()
    assert other_file.read_text() == "mine"


def test_the_figure_draws_the_metrics_numbers(tmp_path):
    chart = figures.accuracy_chart(settings([run(1), run(2, diversity=1, accuracy=0.5, n_test=90)]))
    rows = chart.spec["data"]["values"]
    assert [row["accuracy"] for row in rows] == pytest.approx([50.0, 100 * 398 / 405])
    assert [row["setting"] for row in rows] == ["Fine-tune-CoT D=1", "Fine-tune-CoT D=4"]
    assert "n = 90 to 405" in json.dumps(chart.spec)
    paths = figures.save(chart, tmp_path)
    assert [path.name for path in paths] == ["accuracy.svg", "accuracy.pdf", "accuracy.png"]
    assert paths[0].read_text().startswith("<svg")
    assert paths[1].read_bytes().startswith(b"%PDF")
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_reports_find_runs_in_sweeps_anywhere(tmp_path, capsys):
    jobs = []
    for number, lr in ((0, "1e-3"), (1, "5e-3"), (2, "1")):
        folder = tmp_path / "elsewhere" / f"run{number}"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("")
        if number < 2:
            (folder / "metrics.json").write_text(json.dumps(run(number)))
            rows = [{"sample_index": index, "correct": right, "n_tokens": 9} for index, right in predictions(run(number)).items()]
            (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        jobs.append(PlannedJob(number, [f"trainer.lr={lr}", "seed=0"], f"{number}", f"../elsewhere/run{number}", "evaluate"))
    jobs.append(PlannedJob(3, ["trainer.lr=9", "seed=0"], None, None, "evaluate", fault="trainer.lr=9 is too much"))
    write_plan(Sweep(tmp_path / "sweep", "2026-01-31", "/", [], {"kind": "serial"}, jobs))
    report([tmp_path / "sweep"], export=True)
    printed = capsys.readouterr().out
    assert "1e-3" in printed
    assert "2 of 4 runs are not in the report" in printed
    assert "job 3 (trainer.lr=9): failed: trainer.lr=9 is too much" in printed
    page, exported = (tmp_path / "sweep" / "report.html").read_text(), tmp_path / "sweep" / "report"
    assert "job 2 (trainer.lr=1): missing: never started" in page
    assert "job 2 (trainer.lr=1): missing: never started" in (exported / "report.md").read_text()
    assert "98.27" in (exported / "tables" / "accuracy.csv").read_text()
    assert r"98.27" in (exported / "tables" / "accuracy.tex").read_text()
    assert (exported / "figures" / "accuracy.svg").exists()
    assert len(find_jobs(tmp_path / "elsewhere")) == 3
    kept = (tmp_path / "sweep" / "report.html").stat().st_mtime_ns
    report([tmp_path / "sweep"], tmp_path / "other", export=True)
    assert {path.name for path in (tmp_path / "other").iterdir()} == {"report", "report.html", "comparisons.json"}
    assert (tmp_path / "sweep" / "report.html").stat().st_mtime_ns == kept
    with pytest.raises(FcotError, match="no evaluated run"):
        report([tmp_path / "elsewhere" / "run2"])
    with pytest.raises(FcotError, match=r"nowhere: no such folder \(fcot ls lists runs and sweeps\)$"):
        find_jobs(tmp_path / "nowhere")


def test_the_result_of_each_stage_is_one_line():
    usage = {"requests": 5, "served_from_store": 3, "prompt_tokens": 10, "completion_tokens": 20, "usd": 0.25, "identical_rationales": 1}
    line = stage_line("generate", {"asked": 4, "teacher_usage": usage}, "x")
    assert "5 requests sent, 10 prompt and 20 completion tokens, $0.2500; 3 generations from the store; 1 rationales repeat" in line
    assert "price unknown" in stage_line("generate", {"asked": 4, "teacher_usage": usage | {"usd": None}}, "x")
    line = stage_line("curate", {"asked": 4, "kept": 3, "refused": {"wrong_answer": 1}}, "outputs/runs/x")
    assert line == "kept 3 of 4 completions (75.0%); rejected: wrong_answer 1; see outputs/runs/x/curated.jsonl"
    assert "outputs/runs/x/student" in stage_line("train", {"n_steps": 7}, "outputs/runs/x")


def test_settings_are_compared_in_pairs_with_the_repaired_problems():
    first, second = settings([run(1, diversity=1, accuracy=0.5), run(2, accuracy=0.6)])
    ((_, _, comparison),) = compare_settings([first, second])
    assert (len(comparison.repaired), comparison.broken) == (41, [])  # 243 against 202 of 405
    several = settings([run(number, diversity=number, accuracy=0.5) for number in range(1, 5)])
    assert len(compare_settings(several)) == 6
    many = settings([run(number, diversity=number, accuracy=0.5) for number in range(1, 8)])
    pairs = [(a["diversity"], b["diversity"]) for a, b, _ in compare_settings(many)]
    assert sorted(pairs) == sorted([*((1, number) for number in range(2, 8)), *((number, number + 1) for number in range(2, 7))])


def test_many_settings_are_compared_with_neighbors_that_differ_in_one_option():
    cells = [{"method": "zero_shot", "diversity": None}, {"method": "fine_tune", "diversity": None}]
    cells += [{"diversity": diversity} for diversity in (1, 4)]
    runs = [
        run(number, varied={"split_mode.subset": subset}, accuracy=0.5, **cell)
        for number, (subset, cell) in enumerate(((subset, cell) for subset in ("64", "null") for cell in cells), 1)
    ]
    compared = {(a.title, b.title) for a, b, _ in compare_settings(settings(runs))}
    assert ("Fine-tune, split_mode.subset=null", "Fine-tune-CoT D=1, split_mode.subset=null") in compared
    assert ("Fine-tune, split_mode.subset=64", "Fine-tune-CoT D=4, split_mode.subset=64") in compared
    assert ("Fine-tune-CoT D=1, split_mode.subset=64", "Fine-tune-CoT D=4, split_mode.subset=64") in compared
    assert ("Fine-tune-CoT D=4, split_mode.subset=64", "Fine-tune-CoT D=4, split_mode.subset=null") in compared
    assert ("Fine-tune, split_mode.subset=64", "Fine-tune-CoT D=4, split_mode.subset=null") not in compared


def test_problems_of_different_data_are_never_paired():
    assert compare_settings(settings([run(1, questions_sha256="a"), run(2, questions_sha256="b", diversity=1)])) == []
    swept = [run(n, diversity=n, questions_sha256=f"{n % 2}") for n in range(1, 5)]
    assert lines(settings(swept)) == []


def test_a_scaling_line_needs_three_points_of_one_family():
    sizes = {"t5_small": 60e6, "t5_base": 220e6, "t5_large": 700e6, "gpt2": 124e6, "gpt2_medium": 355e6}
    runs = [run(n, student=name, n_parameters=size, accuracy=0.1 * n) for n, (name, size) in enumerate(sizes.items(), 1)]
    (line,) = lines(settings(runs))
    assert (line.axis, [x for x, _ in line.points]) == ("n_parameters", [60e6, 220e6, 700e6])
    assert (line.trend.direction, line.trend.p < 0.01) == (1, True)
    assert "t5" in line.label
    assert lines(settings(runs[:2])) == []


def test_a_subset_of_null_is_drawn_at_the_number_of_train_problems():
    runs = [run(n, varied={"split_mode.subset": value}, accuracy=0.2 * n) for n, value in enumerate(("64", "256", "null"), 1)]
    (line,) = lines(settings(runs))
    assert [x for x, _ in line.points] == [64, 256, 851]


def test_the_paper_is_compared_with_best_epochs_if_they_were_measured():
    cell = {"task": "multiarith", "student": "t5_base", "method": "fine_tune", "diversity": None, "as_published": True, "sampled": False,
            "subset": None, "n_test": 180, "accuracy": 0.1, "completions_asked": 0}  # fmt: skip
    table = text([run(1, **cell, accuracy_best_epoch=0.15, accuracy_checkpoint="last")], 140)
    assert all(part in table for part in ("15.00", "+0.00", "yes"))
    unmeasured = text([run(1, **cell)], 140)
    assert "15.00" not in unmeasured
    assert "trainer.best_epoch=true" in unmeasured
    remote = cell | {"student": "gpt3_ada", "method": "fine_tune", "accuracy": 0.1}
    assert "+1.11" in text([run(1, **remote)], 140), "behind an API the paper had only one evaluation too"
    charts = json.dumps(
        figures.accuracy_chart(settings([run(1, **cell, accuracy_best_epoch=0.2), run(2, **cell | {"task": "svamp"})])).spec
    )
    assert '"best epoch": 20.0' in charts
    assert charts.count('"paper A": null') == 1


def test_the_comparison_with_the_paper_allows_for_its_sampling_error():
    cell = {"task": "multiarith", "student": "gpt3_ada", "method": "fine_tune", "diversity": None, "as_published": True, "sampled": False,
            "subset": None, "n_test": 180, "completions_asked": 0}  # fmt: skip
    measured = run(1, **cell, accuracy=0.15)  # 27 of 180: its own interval ends at 10.5 %, and 8.89 % is published
    assert settings([measured])[0].accuracy.low > 0.0889
    assert "yes" in text([measured], 140)
    assert " no " in text([run(1, **cell, accuracy=0.2)], 140)
    seeds = [run(number, **cell, setting="same", seed=number, accuracy=share) for number, share in enumerate((0.17, 0.2, 0.23))]
    assert "yes" in text(seeds, 140), "trainings differ by 3 points, and the paper's is one of them"


def test_costs_are_computed_from_measured_or_estimated_usage_and_drawn(tmp_path):
    usage = {"used_prompt_tokens": 2_000_000, "used_completion_tokens": 1_000_000}
    runs = [
        run(1, diversity=1, n_train_problems=100, n_validation_problems=20, accuracy=0.5, teacher_usage=usage, teacher_price=(1.0, 4.0)),
        run(
            2,
            diversity=4,
            accuracy=0.9,
            teacher_characters=4_000_000,
            teacher_prompt_characters=400_000,
            answer_tokens=None,
            devices=2,
            seconds={"generate": 9.0, "fine_tune": 100.0, "exam": 60.0, "train": 200.0, "evaluate": 5.0},
        ),
        run(3, diversity=2, accuracy=0.6, n_train_problems=1000, n_validation_problems=0, teacher_characters=4_000_000),
    ]
    d1, d2, d4 = (cost_of(setting) for setting in settings(runs))
    assert (d1.problems, d1.annotation_usd, d1.teacher_usd, d1.measured) == (120, pytest.approx(80), pytest.approx(6), True)
    assert (d4.teacher_usd, d4.measured) == (pytest.approx(20 * 1.1), False)
    assert pareto([d1, d2, d4], lambda cost: cost.usd) == [True, False, True]
    assert pareto([d1, d2, d4], lambda cost: cost.answer_tokens) == [False, True, False], "an unknown cost is on no front"
    assert (d1.training_hours, d4.training_hours) == (pytest.approx(70.2 / 3600), pytest.approx(2 * 360 / 3600))
    assert has_cost(settings(runs))
    assert figures.save(figures.cost_chart([d1, d2, d4]), tmp_path)[2].stat().st_size > 5000


def test_failures_shared_with_the_teacher_are_counted():
    table = aligned_table(settings([run(1, student="teacher", method="zero_shot_cot", diversity=None, accuracy=0.5), run(2, accuracy=0.6)]))
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    shown = console.export_text()
    assert "162" in shown  # all of the student's failures are the teacher's
    assert aligned_table(settings([run(2)])) is None


def test_older_runs_without_marks_are_reported_too():
    older = {key: value for key, value in run(1).items() if key not in ("errors", "setting", "answer_tokens", "rationale_words")}
    assert "98.27" in text([older])
    assert error_table(settings([older])) is None


def test_reference_tables_show_the_papers_numbers_beside_new_students():
    ours = run(1, task="date_understanding", student="openai_gpt4_1_nano", diversity=1, varied={"curation": "golden", "teacher.model": "m"})
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in reference_tables(settings([ours])):
        console.print(table)
    shown = console.export_text()
    for part in ("gpt3_curie", "60.36", "t5_small", "Table 6", "golden", "54.95", "Figure 5", "text-davinci-003", "74.77"):
        assert part in shown
    assert not any(reference_tables(settings([run(1)])))


def test_the_size_of_a_vocabulary_does_not_change_the_order():
    runs = [
        run(n, diversity=d, n_parameters=200_000 - d, student=s) for n, (s, d) in enumerate([("tiny_gpt2", 4), ("tiny_gpt2", 1), ("a", 2)])
    ]
    assert [(setting["student"], setting["diversity"]) for setting in settings(runs)] == [("tiny_gpt2", 1), ("tiny_gpt2", 4), ("a", 2)]


def test_widths_and_the_resulting_sizes_are_one_scaling_line():
    runs = [run(n, varied={"student.width": str(16 * n)}, n_parameters=1000 * n, accuracy=0.2 * n) for n in (1, 2, 3)]
    assert [line.axis for line in lines(settings(runs))] == ["student.width"]


def write_run(folder, number: int, **changes):
    """Write the files of an evaluated run; returns its folder."""
    metrics = run(number, **changes)
    write_json(folder / "metrics.json", metrics)
    write_jsonl(
        folder / "predictions.jsonl",
        ({"sample_index": index, "correct": right, "n_tokens": 9} for index, right in predictions(metrics).items()),
    )
    (folder / "config.yaml").write_text("seed: 0\n")
    return folder


def test_a_damaged_run_is_named_and_the_others_are_reported(tmp_path, capsys):
    for number in range(1, 6):
        write_run(tmp_path / "runs" / f"r{number}", number, diversity=number)
    (tmp_path / "runs/r1/metrics.json").write_text("{")
    (tmp_path / "runs/r2/predictions.jsonl").unlink()
    (tmp_path / "runs/r3/predictions.jsonl").write_text('{"sample_index": 1, "correct": "yes", "n_tokens": 2}\n')
    write_run(tmp_path / "runs" / "r6", 6, n_test=300)
    write_json(tmp_path / "runs/r6/metrics.json", run(6))
    (tmp_path / "runs/r4/metrics.json").unlink()
    report([tmp_path / "runs"])
    printed = capsys.readouterr().out
    assert "98.27" in printed
    assert "5 of 6 runs are not in the report" in printed
    for part in (
        "r1: ",
        "metrics.json is damaged",
        "predictions.jsonl is missing",
        "correct: 'yes'",
        "it has 300 of 405 answers",
        "r4: not finished",
    ):
        assert part in printed
    (tmp_path / "runs/r5/metrics.json").unlink()
    write_json(tmp_path / "runs/r5/stages/curate.json", {})
    with pytest.raises(FcotError, match=r"(?s)no evaluated run.*r5: not finished, last finished stage: curate"):
        report([tmp_path / "runs"])
    kept = {"sample_index": 3, "kept": True, "rationale": "two words"}
    rows = [kept, kept | {"kept": False, "reason": "truncated", "rationale": ""}]
    write_jsonl(tmp_path / "runs/r5/curated.jsonl", rows)
    (tmp_path / "runs/r5/config.yaml").write_text("dataset:\n  name: toy\nteacher:\n  name: oracle\ndiversity: 3\n")
    (tmp_path / "runs/r4/curated.jsonl").write_text('{"kept')
    report([tmp_path / "runs"], export=True)
    printed = " ".join(capsys.readouterr().out.split())
    assert "toy, oracle, D=3 2 1 50.0 1/1 1" in printed
    page = (tmp_path / "runs/report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "curation kept 1 of 2 completions (50.0 %), of 1 of 1 problems. Rejected: truncated 1." in page
    assert "r4/curated.jsonl is damaged" in page
    assert "r5/predictions.jsonl is missing" not in page
    assert {path.name for path in (tmp_path / "runs/report").iterdir()} == {"figures", "files.json", "report.md", "tables"}
    assert "r4/curated.jsonl is damaged" in printed
    assert "r5: " not in printed


def test_a_training_that_diverged_has_a_chart(tmp_path):
    folder = write_run(tmp_path / "r1", 1)
    (folder / "logs").mkdir()
    rows = [f"{step},{'nan' if step == 3 else 1 / step}" for step in range(1, 5000)]
    (folder / "logs/metrics.csv").write_text("\n".join(["step,train_loss", *rows, "5000,in"]))
    report([tmp_path])
    assert '"train_loss":NaN' not in (tmp_path / "report.html").read_text().replace(" ", "")
    points = builder._losses(folder / "logs/metrics.csv")
    assert 100 < len(points) <= 400
    assert all(row["step"] != 3 for row in points)


def answer_of(runs) -> str:
    analysis = builder.analyse(settings(runs))
    return builder.answer(analysis.settings, analysis.scaling, analysis.compared)


def test_the_answer_states_only_what_the_runs_support():
    once, repeated = run(1, accuracy=0.9), [run(2, setting="s", diversity=1), run(3, setting="s", diversity=1, seed=1)]
    assert "Every trained setting was trained once" in answer_of([once])
    assert "1 of 2 trained settings was trained once" in answer_of([once, *repeated])
    assert "trained once" not in answer_of(repeated)
    assert "all settings have 49.9 %" in answer_of([run(1, accuracy=0.5), run(2, accuracy=0.5, diversity=1)])
    apart = answer_of([run(1, accuracy=0.9), run(2, accuracy=0.1, diversity=1, questions_sha256="other")])
    assert "the next" not in apart  # the questions differ
    best = answer_of([run(1, accuracy=0.9), run(2, accuracy=0.5, diversity=1), run(3, accuracy=0.0, method="zero_shot", diversity=None)])
    assert "Fine-tune-CoT D=4 has the highest accuracy, 89.9 %" in best
    assert "the next, Fine-tune-CoT D=1, has 49.9 %: a difference of +40.0 points (+35" in best
    assert "3 of 3 comparisons on the same problems are significant" in best
    assert "not significant" in answer_of([run(1, accuracy=0.5), run(2, accuracy=0.51, diversity=1)])
    guessed = "guessing gives 50.0 %, which the interval does not exclude"
    assert guessed in answer_of([run(1, accuracy=0.51, random_guess=0.5)])
    assert guessed not in answer_of([run(1, accuracy=0.9, random_guess=0.5)])
    assert "guessing gives 50.0 %, which is more" in answer_of([run(1, accuracy=0.2, random_guess=0.5)])
    many = [run(n, diversity=d, varied={"trainer.lr": lr, "x": f"{n}"}, accuracy=a) for n, (d, lr, a) in enumerate(
        (d, lr, 0.1 + 0.05 * d + (0.2 if lr == "2" and d == 4 else 0)) for d in (1, 2, 4) for lr in ("1", "2", "3"))]  # fmt: skip
    assert "the next, Fine-tune-CoT D=4" in answer_of(many)
    assert "points (" in answer_of(many)
    seeds = answer_of(
        [run(1, accuracy=0.5), run(2, setting="s", diversity=1, accuracy=0.5), run(3, setting="s", diversity=1, seed=1, accuracy=0.5)]
    )
    assert "all settings have 49.9 %." in seeds
    tied = answer_of([run(1, accuracy=0.5), run(2, accuracy=0.5, diversity=1), run(3, accuracy=0.1, diversity=2)])
    assert "Fine-tune-CoT D=1, Fine-tune-CoT D=4 have 49.9 %" in tied


def test_the_best_setting_is_chosen_on_validation_problems_if_there_are_any():
    history = [{"step": step, "validation_accuracy": 0.1} for step in range(20)]
    rates = [run(number, varied={"trainer.lr": f"{number}e-3"}, accuracy=accuracy, validation_accuracy=validation, history=history)
             for number, (accuracy, validation) in enumerate(((0.9, 0.5), (0.8, 0.7), (0.7, 0.6)), 1)]  # fmt: skip
    best = answer_of(rates)
    assert "trainer.lr=2e-3 has the highest validation accuracy (best of 20 evaluations), 70.0 %" in best
    assert "it answers 80.0 % (95 % interval" in best
    assert "the next, Fine-tune-CoT D=4, trainer.lr=3e-3, has 70.1 %" in best
    assert "highest accuracy" not in best
    tied = answer_of([metrics | {"validation_accuracy": 0.5} for metrics in rates])
    assert "have the highest validation accuracy" in tied
    assert "the next" not in tied
    without = answer_of([metrics | {"validation_accuracy": None} for metrics in rates])
    assert "trainer.lr=1e-3 has the highest accuracy" in without
    assert "chosen by this test accuracy, which is therefore optimistic" in without
    assert "a maximum (best of 20 evaluations)" in " ".join(notes(settings(rates)))
    many = [run(number, varied={"trainer.lr": f"{number}e-3", "x": f"{number}"}, accuracy=number / 10, validation_accuracy=1 - number / 10)
            for number in range(1, 9)]  # fmt: skip
    pairs = [{a["accuracy"], b["accuracy"]} for a, b, _ in compare_settings(settings(many))]
    assert {0.7, 0.8} not in pairs, "the two highest test accuracies are not compared"


def test_the_most_frequent_answer_is_reported_beside_guessing():
    kind = {"random_guess": 0.5, "majority_answer": "yes", "majority_accuracy": 0.56}
    assert "always answering 'yes', the most frequent answer of train, gives 56.0 %" in " ".join(notes(settings([run(1, **kind)])))
    assert "most frequent answer of train gives 56.0 %, which the interval does not exclude" in answer_of([run(1, accuracy=0.55, **kind)])
    assert "most frequent" not in answer_of([run(1, accuracy=0.9, **kind)])


def test_limits_of_single_trainings_are_stated():
    levels = [run(number, diversity=number, accuracy=0.2 * number) for number in (1, 2, 4)]
    assert "Among these trained students (one training per value; new trainings may differ), accuracy rises" in answer_of(levels)
    twice = [
        metrics | {"run_id": f"{metrics['run_id']}{seed}", "seed": seed, "setting": f"D{metrics['diversity']}"}
        for metrics in levels
        for seed in (0, 1)
    ]
    assert " Accuracy rises with rationales per problem (D)" in answer_of(twice)
    mixed = answer_of(twice[1:])
    assert "1 of 1 scaling lines mix single and repeated trainings: no test." in mixed
    assert "No test in 2 of 3 comparisons: one training on one side" in mixed
    (line,) = lines(settings(twice[1:]))
    assert (line.trend.p, line.trend.over) == (None, "none")
    assert "no test" in str(builder.trend_table([line]).rows)


def a_round(number: int, right: set[int]) -> dict:
    return {
        "round": number, "accuracy": len(right) / 100, "answers": {index: index in right for index in range(100)},
        "validation_accuracy": 0.5, "failed_problems": 1, "pass_rate": 0.5, "mistakes": 1, "completions_asked": 1, "completions_kept": 1,
        "n_reasoning_samples": 1, "reflection_share": None, "teacher_usage": {"usd": 0.0}, "seconds": {},
    }  # fmt: skip


def test_gains_of_rounds_are_paired_by_run_and_corrected_over_settings():
    def tailored(name: str, gained: int) -> list[dict]:
        kind = {"method": "tailored", "setting": name, "varied": {"x": name}, "best_round": 2, "rounds_ended": "rounds"}
        starts = enumerate((20, 40, 60))
        rounds = [(seed, [a_round(1, set(range(start))), a_round(2, set(range(start + gained + seed)))]) for seed, start in starts]
        return [run(100 * ord(name) + seed, seed=seed, rounds=both_rounds, **kind) for seed, both_rounds in rounds]

    def gains(*members) -> list[str]:
        return [
            note
            for table in rounds_tables(settings([metrics for runs in members for metrics in runs]))
            for note in table.notes
            if "against the first" in note
        ]

    (alone,) = gains(tailored("a", 1))
    assert "+2.00 points" in alone
    assert "Holm" not in alone
    both = gains(tailored("a", 1), tailored("b", 1))
    assert all("after Holm's correction over the settings" in note for note in both)
    p, corrected = (float(note.partition("p = ")[2].split()[0]) for note in (alone, both[0]))
    assert p < 0.05
    assert corrected == pytest.approx(2 * p, rel=0.1)


def test_intervals_and_tests_are_clustered_by_template():
    by_tens = {index: f"t{index // 40}" for index in range(405)}
    plain, grouped = (settings([run(1, test_templates=names, accuracy=0.5)])[0] for names in ({}, by_tens))
    assert grouped.accuracy.high - grouped.accuracy.low > 2 * (plain.accuracy.high - plain.accuracy.low)
    assert "clustered by template" in " ".join(notes([grouped]))
    few = settings([run(1, test_templates={index: f"t{index % 9}" for index in range(405)})])
    assert few[0].accuracy == settings([run(1)])[0].accuracy
    assert "fewer than 10" in " ".join(notes(few))
    pair = compare_settings(settings([run(n, test_templates=by_tens, diversity=n, accuracy=0.4 + 0.1 * n) for n in (1, 2)]))
    assert pair[0][2].p > 0.05, "a single template of ten decides the difference"


def test_tables_are_escaped_in_every_format():
    table = Table("t", "a & b", ("x", "y"), ("x",), [("<script>|\n2", "[1]"), ("50 %", "a_b")], ["note <b>"])
    markdown, tex = table.to_markdown(), table.to_latex()
    assert "| \\<script>\\|<br>2 | \\[1\\] |" in markdown
    assert "note \\<b>" in markdown
    assert r"50 \% & a\_b \\" in tex
    numbers = Table("t", None, ("n",), rows=[("0.8-11.7",), ("-1.5",), ("+2.0 to -3.0",), ("4.1e-11",), ("gpt-4.1-2025-04",)]).to_latex()
    for cell in ("0.8--11.7", "$-$1.5", "+2.0 to $-$3.0", "4.1e-11", "gpt-4.1-2025-04"):
        assert f"{cell} \\\\" in numbers
    assert r"a \& b." in tex
    assert table.to_csv().splitlines()[0] == "x,y"
    assert "&lt;script&gt;" in table.to_html()
