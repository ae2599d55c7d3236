"""Reports on a user's own data: titles, cost assumptions, and a Markdown file that reads well in its source."""

from __future__ import annotations

import json

import pytest
from markdown_it import MarkdownIt
from test_reporting import BASE, run, settings

from fcot.base.files import write_json, write_jsonl
from fcot.report import report
from fcot.reporting.builder import analyse, build, terminal_tables
from fcot.reporting.cost import cost_of, cost_table
from fcot.reporting.figures import cost_chart
from fcot.reporting.table import plain
from fcot.runs.metrics import _of_configuration

OWN = {"task": "stock", "base_model": "Qwen/Qwen3-0.6B-Base", "student": "causal", "data_file": "stock.csv"}
USAGE = {"used_prompt_tokens": 2_000_000, "used_completion_tokens": 1_000_000}


# --- titles -----------------------------------------------------------------------------------------------------------


def title(*changes):
    return build(analyse(settings([run(n, **OWN | change) for n, change in enumerate(changes)])), [], []).title


def test_a_title_names_the_data_and_the_base_model():
    assert title({}) == "stock: Qwen/Qwen3-0.6B-Base"
    assert title({"task": "custom"}) == "stock.csv: Qwen/Qwen3-0.6B-Base"
    assert title({}, {"student": "tiny_gpt2", "base_model": None}) == "stock: Qwen/Qwen3-0.6B-Base, tiny_gpt2"
    assert title({"base_model": None, "data_file": None}) == "stock: causal"  # a run of an earlier version


def test_the_main_table_names_them_too():
    assert terminal_tables(analyse(settings([run(1, **OWN)])))[0].title == "stock, Qwen/Qwen3-0.6B-Base"


def test_metrics_have_names_and_no_paths(make_run, tmp_path):
    folder = tmp_path / "private" / "my-model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    data = tmp_path / "private" / "stock.jsonl"
    data.write_text("".join(json.dumps({"question": f"{n} and 1?", "answer": n + 1}) + "\n" for n in range(20)))
    own = ("dataset=custom", f"dataset.path={data}", "dataset.answer_type=number", "method=fine_tune")
    metrics = _of_configuration(make_run(tmp_path, *own, "student=causal", f"student.path={folder}"))
    assert (metrics["base_model"], metrics["data_file"]) == ("my-model", "stock.jsonl")
    again = _of_configuration(make_run(tmp_path, *own, "student=flan_t5_base"))
    assert again["base_model"] == "google/flan-t5-base"
    toy = _of_configuration(make_run(tmp_path, "dataset.n_problems=40"))
    assert (toy["base_model"], toy["data_file"]) == (None, None)


# --- costs ------------------------------------------------------------------------------------------------------------


def own_settings(**changes):
    return settings([run(n, diversity=n, teacher_usage=USAGE, **OWN | changes) for n in (1, 2)])


def test_own_data_has_no_annotation_cost_unless_the_user_names_one():
    own = own_settings(teacher_price=(1.0, 4.0))
    cost = cost_of(own[0])
    assert (cost.annotation_usd, cost.usd) == (None, pytest.approx(6))
    table = cost_table(own)
    assert not {"annotation $", "total $"} & set(table.columns)
    assert "--hourly-usd" in table.notes[0]
    assert "$20" not in table.notes[0]
    counted = cost_of(own[0], 45.0)
    assert counted.annotation_usd == pytest.approx((851 + 94) * 45 / 30)
    priced = cost_table(own, 45.0)
    assert {"annotation $", "total $"} <= set(priced.columns)
    assert "$1.50 each ($45 per hour for 30 answers)" in priced.notes[0]


def test_an_unknown_price_of_an_own_teacher_is_no_price_of_2022():
    own = own_settings()
    assert cost_of(own[0]).usd is None
    table = cost_table(own)
    assert {row[table.columns.index("rationales $")].strip(" *") for row in table.rows} == {"-"}
    assert "price unknown" in table.notes[0]
    assert "per million" not in table.notes[0]
    document = build(analyse(own), [], [])
    (section,) = (section for section in document.sections if section.id == "cost")
    assert len(section.blocks) == 1, "a table and no chart"


def test_the_papers_tasks_keep_the_papers_assumption():
    toy = settings([run(1, teacher_usage=USAGE)])
    assert cost_of(toy[0]).annotation_usd == pytest.approx((851 + 94) * 20 / 30)
    assert "$20 per hour for 30 answers: paper A" in cost_table(toy).notes[0]
    mixed = [*toy, *own_settings(teacher_price=(1.0, 4.0))]
    table = cost_table(mixed)
    assert "none for own data" in table.notes[0]
    assert [row[table.columns.index("annotation $")] == "-" for row in table.rows] == [False, True, True]
    assert cost_chart([cost_of(setting) for setting in mixed]).spec


def test_the_hourly_rate_of_the_command_reaches_the_report(tmp_path):
    runs = {n: BASE | {"run_id": f"r{n}", "diversity": n, "teacher_usage": USAGE, "teacher_price": [1, 4]} | OWN for n in (1, 2)}
    for n, metrics in runs.items():
        folder = tmp_path / "runs" / metrics["run_id"]
        folder.mkdir(parents=True)
        write_json(folder / "metrics.json", metrics | {"n_test": 3, "accuracy": n / 3})
        write_jsonl(
            folder / "predictions.jsonl",
            ({"sample_index": index, "correct": index < n, "n_tokens": 5, "prediction": "1"} for index in range(3)),
        )
    report([tmp_path], export=True, hourly_usd=45.0)
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "# stock: Qwen/Qwen3-0.6B-Base" in markdown
    assert "\\$45 per hour" in markdown
    assert "&lt;" not in markdown
    assert "&gt;" not in markdown


# --- Markdown ---------------------------------------------------------------------------------------------------------

TEXTS = [
    "p < 0.05", "a -> b, --> 9", "5 > 3 & 2 < 4", "<b>bold</b> <!-- no --> <https://x.org>", "&lt; &amp; &#58;", "> quoted\n> again",
    "https://example.org/a_b", "*a* _b_ `c` [d](e) ![f](g) $h$ ~~i~~ \\",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_markdown_shows_any_text_verbatim(text):
    html = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(plain(text))
    shown = html.strip().removeprefix("<p>").removesuffix("</p>")
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        shown = shown.replace(entity, character)
    assert shown == text
    assert "<p>" not in shown


def test_usual_text_needs_no_escapes_in_the_source():
    for text in ("p < 0.05", "a -> b", "a --> 9", "R & D", "5 > 3"):
        assert plain(text) == text
