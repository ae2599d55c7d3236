"""The report page in a real browser: no network requests, search and keyboard work, untrusted text is shown as text."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest

from fcot.base.files import write_jsonl
from fcot.base.records import Problem
from fcot.base.run_folder import RunDirectory
from fcot.reporting.document import Chart, Code, Document, Paragraph, RunFiles, Section
from fcot.reporting.page import write_page
from fcot.reporting.samples import read_samples
from fcot.reporting.table import Table

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
NASTY = {
    "script": "<script>alert(1)</script>", "end": "</script><!-- <img src=x onerror=alert(2)>", "control": "a\x00b\x07c\x1bd",
    "arabic": "\u202eabc \u05d0\u05d1\u05d2 \u200f", "emoji": "\U0001f9ee\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "latex": r"$\frac{1}{2}$ \textbf{x} \\ {{title}}", "surrogate": "half \ud83d pair",
}  # fmt: skip
LONG = "abcde fghij " * 9000  # 108 kB
SPEC = {
    "$schema": "https://vega.github.io/schema/vega-lite/v6.json", "mark": "bar", "height": 200,
    "data": {"values": [{"y": 2, "who": NASTY["end"]}]},
    "encoding": {"x": {"field": "who", "type": "nominal"}, "y": {"field": "y", "type": "quantitative"}},
}  # fmt: skip


def prediction(index: int, completion: str, correct: bool, **changes):
    return {
        "sample_index": index, "question": f"Question {index}: how many?", "answer": "7", "completion": completion,
        "prediction": "7" if correct else "8", "correct": correct, "complete": True, "n_tokens": 12,
    } | changes  # fmt: skip


def curated(index: int, number: int, rationale: str, reason: str | None = None, **changes):
    return {
        "sample_index": index, "completion_index": number, "prediction": "7", "correct": reason is None, "kept": reason is None,
        "reason": reason, "rationale": rationale, "answer": "7",
    } | changes  # fmt: skip


def a_run(folder: Path, label: str, predictions, completions=(), errors=(), **metrics) -> RunFiles:
    write_jsonl(folder / "predictions.jsonl", predictions)
    write_jsonl(folder / "errors.jsonl", errors)
    if completions:
        write_jsonl(folder / "curated.jsonl", completions)
    facts = {
        "run_id": folder.name,
        "task": "toy",
        "method": "fine_tune_cot",
        "questions_sha256": "abc",
        "completions_asked": len(completions),
    }
    return RunFiles(RunDirectory(folder), label, facts | metrics)


def three_runs(tmp_path: Path) -> list[RunFiles]:
    """Three runs with test problems 0 to 2 and train problems 10 and 11; the tailored run has a path of problem 10."""
    completions = [
        curated(10, 0, "Ten apples: 3 + 4 = 7."),
        curated(10, 1, "Ten pears: 3 + 5 = 8.", "wrong_answer"),
        curated(11, 0, "Eleven."),
    ]
    first = a_run(
        tmp_path / "first", "cot seed 0",
        [prediction(0, "Start with 3. Then 3 + 4 = 7. So 7.", True), prediction(1, "Both fail zebra", False), prediction(2, "fine", True)],
        completions, [{"sample_index": 1, "marks": ["arithmetic_slip"], "equation": "3 + 4 = 8"}],
    )  # fmt: skip
    second = a_run(
        tmp_path / "second", "cot seed 1",
        [prediction(0, "Begin with 3. Then 3 + 4 = 8. So 8.", False), prediction(1, "Both fail yak", False), prediction(2, "fine", True)],
        completions,
        [{"sample_index": 0, "marks": ["arithmetic_slip"], "equation": "3 + 4 = 8"}, {"sample_index": 1, "marks": [], "equation": None}],
    )  # fmt: skip
    tailored = a_run(
        tmp_path / "third", "tailored", [prediction(0, "tailored says 7", True)], [{"round": 1} | row for row in completions],
        method="tailored", rounds=[{"round": 1}, {"round": 2}, {"round": 3}],
    )  # fmt: skip
    for number, (mistakes, right) in {2: (["It is nine."], 0), 3: ([], 4)}.items():
        exam = {"sample_index": 10, "question": "Question 10?", "answer": "7", "n_answers": 4, "n_correct": right, "mistakes": mistakes,
                "right": ["It is seven."] if right else [], "unfinished": []}  # fmt: skip
        write_jsonl(tailored.directory.round(number).exam, [exam])
    feedback = {"sample_index": 10, "completion_index": 0, "mistakes": ["It is nine."], "rationale": "Not nine: 3 + 4.",
                "answer_text": " 7.", "finish_reason": "stop"}  # fmt: skip
    write_jsonl(tailored.directory.round(2).feedback, [feedback])
    write_jsonl(tailored.directory.round(2).curated, [curated(10, 0, "Not nine: 3 + 4.")])
    return [first, second, tailored]


def a_document(runs, label: str = "cot", sections=()) -> Document:
    table = Table("main", label, ("setting", "acc"), ("setting",), [(label, "12.30")], [label])
    placed = [
        Section("results", "Results", [table, Paragraph(label)]), Section("scaling", "Scaling", [Chart("scaling", label, SPEC)]),
        Section("samples", "Rationales"), Section("rounds", "Rounds"),
        Section("configs", "Configurations", [Code(label, label, folded=True), Code("run", "python -m fcot.run")]),
    ]  # fmt: skip
    return Document(f"Report {label}", f"What came out: {label}", ["1 of 4 runs"], sections or placed, runs)


@pytest.fixture(scope="module")  # while it is open, this thread has an event loop, which would disturb other tests
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright (pip install playwright)")
    if not CHROMIUM.exists():
        pytest.skip(f"the page's tests need {CHROMIUM} (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Open a document's page; console output, errors, dialogs and network requests fail the test."""
    complaints: list[str] = []
    contexts = []

    def open_page(document: Document, fragment: str = "", **options):
        path = tmp_path / "report.html"
        write_page(document, path, problems_of=lambda run: [Problem(11, "Question 11, from the data?", "7")])
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options))
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: None if request.url.startswith(path.as_uri()) else complaints.append(f"request: {request.url}"))
        page.goto(path.as_uri() + fragment)
        page.wait_for_selector(".plot svg")
        if document.runs:
            page.wait_for_selector("#sample-list .row")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


def names(page, which: str = "#sample-list") -> list[str]:
    """Names of the samples in a list, after the short delay of the search."""
    page.wait_for_timeout(120)
    return [text.split(" · ")[-1] for text in page.locator(f"{which} .row span:last-child").all_inner_texts()]


def test_all_parts_of_the_page_are_in_order(opened, tmp_path):
    page = opened(a_document(three_runs(tmp_path)))
    order = ["h1", ".answer", ".missing", "nav", "#results table", "#scaling svg", "#samples .rows", "#rounds .rows", "#configs details"]
    tops = [page.locator(selector).first.bounding_box()["y"] for selector in order]
    assert tops == sorted(tops)
    assert page.locator("nav a").all_inner_texts() == ["Results", "Scaling", "Rationales", "Rounds", "Configurations"]
    assert page.evaluate("[typeof window.vegaEmbed, document.querySelectorAll('#data').length]") == ["function", 0]


def test_search_and_filters_find_exactly_the_matching_samples(opened, tmp_path):
    page = opened(a_document(three_runs(tmp_path)))
    assert names(page) == ["toy/0", "toy/1", "toy/2", "toy/10", "toy/11"]
    everything = ["toy/0", "toy/1", "toy/2", "toy/10", "toy/11"]
    expected_names = {
        "ZEBRA fail": ["toy/1"], "zebra apples": [], "pears": ["toy/10"], "from the data": ["toy/11"], "question": everything,
        '"fail zebra"': ["toy/1"], '"zebra fail"': [], "\u201cfail zebra\u201d": ["toy/1"], "toy/11": ["toy/11"], "11": ["toy/11"],
    }  # fmt: skip
    for query, expected in expected_names.items():
        page.fill("input[name=q]", query)
        assert names(page) == expected, query
    page.fill("input[name=q]", "")

    def filtered(**filters):
        for name in ("task", "method", "run", "verdict", "mark"):
            page.select_option(f"#samples select[name={name}]", filters.get(name, ""))
        return names(page)

    assert filtered(verdict="disagree") == ["toy/0"]
    assert filtered(verdict="all_wrong") == ["toy/1"]
    assert filtered(verdict="all_right") == ["toy/2"]
    assert filtered(verdict="right") == ["toy/0", "toy/2"]
    assert filtered(verdict="right", run="cot seed 1") == ["toy/2"]
    assert filtered(verdict="wrong", run="cot seed 1") == ["toy/0", "toy/1"]
    assert filtered(verdict="all_right", method="tailored") == ["toy/0"]
    assert filtered(verdict="kept") == ["toy/10", "toy/11"]
    assert filtered(verdict="refused:wrong_answer") == ["toy/10"]
    assert filtered(mark="arithmetic_slip") == ["toy/0", "toy/1"]
    assert filtered(mark="arithmetic_slip", run="cot seed 0") == ["toy/1"]
    assert filtered(task="toy", method="tailored") == ["toy/0", "toy/10", "toy/11"]


def test_filtered_samples_are_not_shown_and_unknown_filters_of_a_link_are_ignored(opened, tmp_path):
    page = opened(a_document(three_runs(tmp_path)), "#run=renamed&verdict=all_wrong")
    detail = page.locator("#samples .detail")
    assert names(page) == ["toy/1"]
    assert detail.locator("h3").inner_text() == "toy/1"
    assert page.locator("#samples select[name=run]").input_value() == ""
    page.fill("input[name=q]", "no such words")
    assert names(page) == []
    assert detail.inner_text() == ""
    page.fill("input[name=q]", "")
    page.select_option("#samples select[name=run]", "cot seed 0")
    assert detail.locator("h3").inner_text() == "toy/1"
    assert detail.locator(".card header bdi").all_inner_texts() == ["cot seed 0"]


def test_a_sample_shows_answers_side_by_side_and_the_steps_that_differ(opened, tmp_path):
    page = opened(a_document(three_runs(tmp_path)), "#sample=toy/0")
    detail = page.locator("#samples .detail")
    assert detail.locator("h3").inner_text() == "toy/0"
    assert detail.locator(".card header bdi").all_inner_texts() == ["cot seed 0", "cot seed 1", "tailored"]
    assert detail.locator(".card .verdict").all_inner_texts() == ["right", "wrong", "right"]
    assert detail.locator(".card").nth(1).locator("mark").all_inner_texts() == ["Begin with 3.", "Then 3 + 4 = 8.", "So 8."]
    assert "arithmetic slip (3 + 4 = 8)" in detail.inner_text()
    page.get_by_role("button", name="Compare with this").first.click()
    assert detail.locator(".card").nth(0).locator("mark").all_inner_texts() == ["Start with 3.", "Then 3 + 4 = 7.", "So 7."]


def test_teacher_completions_are_shown_once_for_all_runs_that_share_them(opened, tmp_path):
    page = opened(a_document(three_runs(tmp_path)), "#sample=toy/10")
    detail = page.locator("#samples .detail")
    assert detail.locator(".card header").all_inner_texts() == ["completion 1\nkept", "completion 2\nrejected: wrong answer"]
    assert "Question 10?" in detail.inner_text()


def test_scores_and_verdicts_of_a_judge_are_shown(opened, tmp_path):
    completions = [
        curated(10, 0, "Best.", score=0.5, first_wrong_step=0), curated(10, 1, "Second.", "not_chosen", score=0.75),
        curated(10, 2, "Slip.", "wrong_step", first_wrong_step=2), curated(10, 3, "Wrong.", "wrong_answer"),
    ]  # fmt: skip
    page = opened(a_document([a_run(tmp_path / "run", "a run", [prediction(0, "x", True)], completions)]), "#sample=toy/10")
    cards = [card.inner_text() for card in page.locator("#samples .detail .card").all()]
    verdicts = ("kept", "rejected: not chosen", "rejected: wrong step", "rejected: wrong answer")
    assert all(verdict in card for verdict, card in zip(verdicts, cards, strict=True))
    assert ["score: 0.5 (lower is better)" in cards[0], "score: 0.75" in cards[1], "score" in cards[2] + cards[3]] == [True, True, False]
    judged = ["judge: all steps follow" in cards[0], "judge: step 2 is wrong" in cards[2], "judge" in cards[1] + cards[3]]
    assert judged == [True, True, False]


def test_a_link_opens_its_sample_and_back_works(opened, tmp_path):
    page = opened(a_document(three_runs(tmp_path)), "#sample=toy/2&verdict=all_right")
    heading = page.locator("#samples .detail h3")
    assert heading.inner_text() == "toy/2"
    assert names(page) == ["toy/2"]
    page.select_option("#samples select[name=verdict]", "")
    page.locator("#sample-list .row").nth(1).click()
    assert heading.inner_text() == "toy/1"
    assert page.evaluate("location.hash") == "#sample=toy/1"
    page.get_by_role("button", name="Next").click()
    page.get_by_role("button", name="Next").click()
    assert heading.inner_text() == "toy/10"
    page.click("nav a[href='#results']")
    for expected in ("toy/10", "toy/10", "toy/2", "toy/1")[1:]:
        page.go_back()
        assert heading.inner_text() == expected
    page.goto(page.url.split("#")[0] + "#sample=toy/999")
    assert "toy/999 is not on this page" in page.locator("#samples .detail").inner_text()


def test_a_problems_path_through_the_rounds_is_shown(opened, tmp_path):
    page = opened(a_document(three_runs(tmp_path)))
    assert names(page, "#path-list") == ["toy/10"]
    path = page.locator("#rounds .steps")
    assert path.locator("h4").all_text_contents() == [
        "Exam before round 2 0 of 4 right",
        "Learned in round 2",
        "Exam before round 3 4 of 4 right",
    ]
    assert path.locator("li").nth(1).locator(".card .text").all_inner_texts() == ["It is nine.", "Not nine: 3 + 4."]
    assert path.locator("li").nth(2).locator(".card .text").all_inner_texts() == ["It is seven."]
    page.select_option("#rounds select[name=change]", "-1")
    assert names(page, "#path-list") == []


@pytest.mark.parametrize("kind", NASTY)
def test_untrusted_text_is_shown_as_text(opened, tmp_path, kind):
    text = NASTY[kind]
    path = tmp_path / "run"
    path.mkdir()
    rows = [prediction(0, f"{text} one", True, question=text), prediction(1, LONG + text, False, prediction=text)]
    for name, lines in {"predictions": rows, "curated": [curated(0, 0, text), curated(0, 1, text, text)], "errors": [
        {"sample_index": 1, "marks": [text], "equation": text}]}.items():  # fmt: skip
        (path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = RunFiles(RunDirectory(path), text, {"task": text, "method": text, "completions_asked": 2})
    page = opened(a_document([run], text))
    shown = text.replace("\ud83d", "\ufffd").replace("\x00", "\u2400").replace("\x07", "\u2407").replace("\x1b", "\u241b")
    for place in (
        "h1",
        "caption",
        "td",
        ".table .note",
        "figcaption",
        "summary",
        "#configs code",
        ".question",
        ".card .text",
        ".card .verdict",
    ):
        assert any(shown in content for content in page.locator(place).all_text_contents()), place
    options = page.locator("#samples option").all_text_contents()
    assert [shown in content for content in options].count(True) == 5  # task, method, run, reason, mark
    assert page.locator("img").count() == page.locator("script[src]").count() == 0
    page.locator("#sample-list .row").nth(1).click()
    assert len(page.locator("#samples .card .text").inner_text()) < 5000
    page.get_by_role("button", name="Show all").click()
    assert len(page.locator("#samples .card .text").inner_text()) > 100_000
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_page_can_be_used_by_keyboard(opened, tmp_path):
    page = opened(a_document(three_runs(tmp_path)))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "q":
            break
    page.keyboard.type("fail")
    assert names(page) == ["toy/1"]
    page.keyboard.press("Control+A")
    page.keyboard.type("question")
    assert len(names(page)) == 5
    for key in ("ArrowDown", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    opened_sample = page.evaluate("document.activeElement.textContent")
    assert (opened_sample, page.evaluate("location.hash")) == ("toy/1", "#sample=toy/1&q=question")
    page.keyboard.press("Escape")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "toy/11"
    outline = page.evaluate(
        "(() => { const button = document.querySelector('#theme'); button.focus(); return getComputedStyle(button).outlineStyle; })()"
    )
    assert outline == "solid"


def test_charts_of_several_views_are_drawn_and_scroll_in_their_box(opened, tmp_path):
    bars = {"data": {"values": [{"f": letter, "y": 3} for letter in "abcdef"]}, "mark": "bar", "width": 200}
    y = {"field": "y", "type": "quantitative"}
    specs = [
        bars | {"encoding": {"y": y, "column": {"field": "f"}}},
        {"data": bars["data"], "hconcat": [{"mark": "bar", "width": 300, "encoding": {"y": y}}] * 3},
        bars | {"width": {"step": 90}, "encoding": {"x": {"field": "f"}, "y": y}},
        bars | {"encoding": {"x": y, "y": {"field": "f"}}},
    ]
    charts = [Chart(str(number), f"chart {number}", spec) for number, spec in enumerate(specs)]
    page = opened(a_document([], sections=[Section("scaling", "Scaling", charts)]), viewport={"width": 390, "height": 800})
    page.wait_for_function("() => document.querySelectorAll('.plot svg').length === 4")
    assert all(page.locator(f"figure:nth-of-type({number}) .mark-rect path").count() >= 3 for number in range(1, 5))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    scrolls = page.evaluate("[...document.querySelectorAll('.plot')].map((plot) => plot.scrollWidth > plot.clientWidth)")
    assert scrolls == [True, True, True, False]


def test_search_words_are_highlighted(opened, tmp_path):
    page = opened(a_document(three_runs(tmp_path)))
    marked = "[...CSS.highlights.get('search')].map((range) => range.startContainer.data.slice(range.startOffset, range.endOffset))"
    page.fill("input[name=q]", "FAIL zebra")
    assert names(page) == ["toy/1"]
    assert page.evaluate(marked) == ["fail", "zebra", "fail"]
    page.fill("input[name=q]", "")
    assert len(names(page)) == 5
    assert page.evaluate(marked) == []


def test_an_opened_sample_stays_open_during_a_search(opened, tmp_path):
    page = opened(a_document(three_runs(tmp_path)))
    title = page.locator("#samples .detail h3")
    page.locator("#sample-list .row").nth(3).click()
    page.fill("input[name=q]", "no such words")
    assert names(page) == []
    assert title.inner_text() == "toy/10"
    assert [page.get_by_role("button", name=name).is_disabled() for name in ("Previous", "Next")] == [True, True]
    page.fill("input[name=q]", "fail")
    assert names(page) == ["toy/1"]
    page.get_by_role("button", name="Next").click()
    assert title.inner_text() == "toy/1"


def test_panels_of_a_chart_are_side_by_side_if_there_is_room(opened, tmp_path):
    for width, beside, words in ((1280, True, 1), (390, False, 9)):
        long, number = {"field": "long", "type": "nominal"}, {"field": "y", "type": "quantitative"}
        panel = {"width": 390, "height": 100, "mark": "point", "title": {"text": "a title " * words, "anchor": "start"}}
        bars = panel | {"encoding": {"x": number, "y": long}}
        lines = panel | {"encoding": {"x": number, "y": number, "color": long | {"legend": {"orient": "bottom"}}}}
        data = {"values": [{"y": 2, "long": "a label " * words}]}
        chart = Chart("scaling", "two", {"data": data, "concat": [bars, lines], "columns": 2})
        page = opened(a_document([], sections=[Section("scaling", "Scaling", [chart])]), viewport={"width": width, "height": 800})
        page.wait_for_function("() => document.querySelectorAll('.plot svg').length === 2")
        page.wait_for_timeout(300)  # the charts may be drawn again, narrower
        first, second = (page.locator(".plot svg").nth(number).bounding_box() for number in range(2))
        assert (first["y"] == second["y"]) == beside
        assert max(first["x"] + first["width"], second["x"] + second["width"]) <= width


def test_code_and_links_are_copied(opened, tmp_path):
    page = opened(a_document(three_runs(tmp_path)), permissions=["clipboard-read", "clipboard-write"])
    page.locator("#configs .copied > button").last.click()
    assert page.evaluate("navigator.clipboard.readText()") == "python -m fcot.run"
    page.locator("#sample-list .row").nth(3).click()
    page.get_by_role("button", name="Copy link").click()
    page.goto(page.evaluate("navigator.clipboard.readText()"))
    assert page.locator("#samples .detail h3").inner_text() == "toy/10"


def test_dark_mode_follows_the_system_and_the_switch(opened, tmp_path):
    page = opened(a_document(three_runs(tmp_path)), color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.click("#theme")
    light = page.evaluate(ground)
    assert dark == "rgb(21, 23, 26)"
    assert light == "rgb(251, 251, 250)"
    assert page.locator("#theme").inner_text() == "Dark mode"
    page.reload()
    assert page.evaluate(ground) == light  # the choice is remembered


def test_a_printed_page_is_light_unfolded_and_without_controls(opened, tmp_path):
    page = opened(a_document(three_runs(tmp_path)), color_scheme="dark")
    assert not page.locator("#configs details code").is_visible()
    page.emulate_media(media="print")
    assert page.locator("#configs details code").is_visible()
    assert not any(control.is_visible() for control in page.locator("button, select, input, nav, .rows").all())
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 30, 33)"
    assert page.pdf().startswith(b"%PDF")


def test_a_phone_scrolls_in_one_direction(opened, tmp_path):
    wide = Table("wide", "wide", tuple(f"column {number}" for number in range(30)), (), [tuple("1234567.89" for _ in range(30))])
    sections = [Section("results", "Results", [wide, Chart("scaling", "chart", SPEC), Code("long", "x" * 500)])]
    page = opened(a_document(three_runs(tmp_path), sections=sections), viewport={"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.querySelector('.scroll').scrollWidth > innerWidth")
    assert page.evaluate("document.querySelector('.plot').scrollWidth <= document.querySelector('.plot').clientWidth")


def test_twenty_thousand_completions_are_searched(opened, tmp_path):
    rows = [prediction(index, f"Answer number {index} is long enough. " * 4, index % 3 == 0) for index in range(20_000)]
    page = opened(a_document([a_run(tmp_path / "run", "one", rows)]))
    status = page.locator("#samples [role=status]")
    assert status.inner_text() == "20,000 problems"
    page.fill("input[name=q]", "number 1999")
    page.get_by_text("12 problems of 20,000", exact=True).wait_for()
    assert names(page) == ["toy/1999", "toy/11999", *(f"toy/{index}" for index in range(19990, 20000))]
    page.fill("input[name=q]", "")
    page.get_by_text("20,000 problems", exact=True).wait_for()
    page.select_option("#samples select[name=verdict]", "right")
    assert status.inner_text() == "6,667 problems of 20,000"
    assert page.locator("#sample-list .row").count() < 30  # the others are created when they are scrolled into view


def test_rows_with_unexpected_values_are_shown_or_left_out(opened, tmp_path):
    strange = prediction(3, None, False, question=None, answer=5, prediction=3, complete=None, n_tokens=None)
    runs = three_runs(tmp_path)
    for run in runs[:2]:
        with run.directory.predictions.open("a") as file:
            file.write(json.dumps(strange) + "\n")
    with runs[0].directory.errors.open("a") as file:
        file.write('{"sample_index": 3, "marks": null, "equation": 7}\n')
    page = opened(a_document(runs), "#sample=toy/3")
    detail = page.locator("#samples .detail").inner_text()
    assert "The question is not in the files" in detail
    assert "answer: 3 · 0 tokens, cut off" in detail
    assert "problem 3: a row of kind marks is left out" in page.locator(".warnings").inner_text()


def unpacked(samples) -> dict:
    return json.loads(zlib.decompress(samples.packed))


def test_damaged_and_missing_files_are_reported(tmp_path):
    runs = three_runs(tmp_path)
    with runs[0].directory.predictions.open("a") as file:
        file.write('{"sample_index": 5, "question"\n{"sample_index": 6}\n[1]\n')
    runs[1].directory.predictions.unlink()
    runs[2].directory.curated.write_bytes(b"\xff\xfe\n")
    samples = read_samples(runs, 1_000_000)
    warnings = " ".join(samples.warnings)
    assert "first/predictions.jsonl: 3 damaged lines are left out" in warnings
    assert "second/predictions.jsonl is missing" in warnings
    assert "third/curated.jsonl: 1 damaged line is left out" in warnings
    assert samples.shown == samples.total == 5
    assert read_samples([RunFiles(RunDirectory(tmp_path / "none"), "none", {})], 1_000_000).total == 0


def test_unknown_questions_stay_empty(tmp_path):
    runs = three_runs(tmp_path)
    questions = {problem[1]: problem[2] for problem in unpacked(read_samples(runs, 1_000_000))["problems"]}
    assert questions["toy/11"] is None
    assert questions["toy/10"] == "Question 10?"  # from the exam of another run


def test_runs_with_other_data_of_the_same_task_have_other_problems(tmp_path):
    runs = [
        a_run(tmp_path / str(number), f"run {number}", [prediction(0, f"answer {number}", True)], questions_sha256=number)
        for number in (1, 2)
    ]
    assert [problem[1] for problem in unpacked(read_samples(runs, 1_000_000))["problems"]] == ["toy/0", "toy/0~2"]


def test_a_size_limit_keeps_the_most_informative_problems_whole(tmp_path):
    def noise(seed: int) -> str:
        return " ".join(str(hash((seed, position)) % 10**9) for position in range(60))

    runs = []
    for task in ("one", "two"):
        for seed in (0, 1):
            rows = [prediction(index, noise(index + 1000 * seed), index % 4 != 0 or seed == 0) for index in range(200)]
            runs.append(a_run(tmp_path / f"{task}{seed}", f"{task} {seed}", rows, task=task))
    samples = read_samples(runs, 40_000)
    assert len(samples.packed) <= 40_000
    data = unpacked(samples)
    assert 20 < samples.shown == len(data["problems"]) < samples.total == 400
    assert all(len(problem[5]) == 2 for problem in data["problems"])
    indices = [[int(problem[1].split("/")[1]) for problem in data["problems"] if problem[0] == task] for task in (0, 1)]
    assert abs(len(indices[0]) - len(indices[1])) <= 1
    assert indices[0][:5] == [0, 4, 8, 12, 16]  # the seeds disagree on every fourth problem
    assert samples.packed == read_samples(runs, 40_000).packed


def test_a_page_keeps_its_size_limit_and_says_how_much_it_shows(tmp_path):
    rows = [prediction(index, f"{index} " + " ".join(str(hash((index, place))) for place in range(100)), False) for index in range(500)]
    document = Document("Report", "Answer", [], [], [a_run(tmp_path / "run", "one", rows)])
    write_page(document, tmp_path / "all.html")
    write_page(document, tmp_path / "some.html", limit_bytes=250_000)
    assert (tmp_path / "some.html").stat().st_size <= 250_000 < (tmp_path / "all.html").stat().st_size
    assert " of 500 problems, to keep the file small" in (tmp_path / "some.html").read_text()
    assert "to keep the file small:" not in (tmp_path / "all.html").read_text()


# --- marks ------------------------------------------------------------------------------------------------------------


def saved_rows(page, path: Path) -> list[dict]:
    """The rows of the file that the page saves."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Save marks").click()
    download.value.save_as(path)
    return [json.loads(line) for line in path.read_text().splitlines()]


def mark(page, *numbers: int) -> None:
    """Mark completions of the open problem by their places on the page."""
    for number in numbers:
        page.locator("#samples .card button[aria-pressed]").nth(number).click()


def test_marked_completions_are_saved_and_curation_keeps_exactly_these(browser, run_fcot, tmp_path):
    """From a run that has only curated to the next curation, through the page and the file that it saves."""
    words = ["dataset.n_problems=60", "teacher.error_rate=0.3", "until=curate"]
    assert run_fcot(*words).returncode == 0
    (folder,) = (tmp_path / "outputs/runs").iterdir()
    reported = run_fcot(str(folder), module="fcot.report")
    assert "page with all rationales" in reported.stdout
    curated = [json.loads(line) for line in (folder / "curated.jsonl").read_text().splitlines()]
    context = browser.new_context()
    page = context.new_page()
    page.goto((folder / "report.html").as_uri())
    page.wait_for_selector("#sample-list .row")
    assert "curation kept" in page.locator(".answer").inner_text()
    assert page.locator("#samples [role=status]").first.inner_text() == "0 completions of 0 problems marked"
    for place in (1, 4):
        page.locator("#sample-list .row").nth(place).click()
        mark(page, 0, 1)
    mark(page, 1)  # not this one after all
    rows = saved_rows(page, tmp_path / "golden.jsonl")
    assert len(rows) == 3
    context.close()
    chosen = {(row["sample_index"], row["completion_index"]) for row in rows}
    by_id = {(row["sample_index"], row["completion_index"]): row for row in curated}
    assert all(by_id[row["sample_index"], row["completion_index"]]["question"] == row["question"] for row in rows)
    golden = [*words, "curation=golden", "curation.golden=golden.jsonl"]
    assert "kept 3 of 152" in run_fcot(*golden).stdout
    (other,) = set((tmp_path / "outputs/runs").iterdir()) - {folder}
    kept = [row for row in map(json.loads, (other / "curated.jsonl").read_text().splitlines()) if row["kept"]]
    assert {(row["sample_index"], row["completion_index"]) for row in kept} == chosen


def test_marks_stay_and_are_filtered_and_cleared(opened, tmp_path):
    page = opened(a_document(three_runs(tmp_path)), "#sample=toy/10")
    status = page.locator(".marks [role=status]")
    mark(page, 1)
    assert status.inner_text() == "1 completion of 1 problem marked"
    assert names(page) == ["toy/0", "toy/1", "toy/2", "toy/10", "toy/11"]
    assert "1 marked" in page.locator("#sample-list .row").nth(3).inner_text()
    page.reload()
    page.wait_for_selector("#sample-list .row")
    assert page.locator("#samples .card button[aria-pressed=true]").count() == 1
    page.select_option("#samples select[name=verdict]", "marked")
    assert names(page) == ["toy/10"]
    page.select_option("#samples select[name=verdict]", "")
    page.get_by_role("button", name="Mark what curation kept").click()
    assert status.inner_text() == "3 completions of 2 problems marked"
    rows = saved_rows(page, tmp_path / "golden.jsonl")
    assert [(row["sample_index"], row["completion_index"]) for row in rows] == [(10, 0), (10, 1), (11, 0)]
    assert 'curation=golden curation.golden=golden-toy.jsonl "curation.filters=[golden]" (curation had rejected 1' in status.inner_text()
    page.get_by_role("button", name="Clear marks").click()
    assert status.inner_text() == "0 completions of 0 problems marked"
    assert page.locator("#samples .card button[aria-pressed=true]").count() == 0
    page.get_by_role("button", name="Save marks").click()
    assert "Nothing is marked" in status.inner_text()


def test_marks_of_runs_with_different_completions_are_saved_one_run_at_a_time(opened, tmp_path):
    runs = [
        a_run(tmp_path / name, name, [], [curated(10, 0, f"The teacher {name}.", question="Question 10?", id="WH-1000")])
        for name in ("one", "two")
    ]  # fmt: skip
    page = opened(a_document(runs), "#sample=toy/10")
    mark(page, 0, 1)
    page.get_by_role("button", name="Save marks").click()
    assert "of several runs: choose one under Run" in page.locator(".marks [role=status]").inner_text()
    page.select_option("#samples select[name=run]", "two")
    expected = {"sample_index": 10, "completion_index": 0, "question": "Question 10?", "id": "WH-1000"}
    assert saved_rows(page, tmp_path / "golden.jsonl") == [expected]
    assert "WH-1000" in page.locator("#samples .gold").inner_text()
    page.select_option("#samples select[name=run]", "")
    page.fill("input[name=q]", "wh-1000")
    assert names(page) == ["toy/10"]


def test_a_mark_belongs_to_its_text_although_the_page_is_made_again(opened, tmp_path):
    rows = [curated(10, 0, "First.", question="Question 10?"), curated(10, 1, "Second.", question="Question 10?")]
    page = opened(a_document([a_run(tmp_path / "run", "one", [], rows)]), "#sample=toy/10")
    mark(page, 0)
    for question, n_marked in (("Question 10?", 1), ("Another question?", 0)):
        rows = [row | {"question": question} for row in rows]
        write_page(a_document([a_run(tmp_path / "run", "one", [], rows)]), tmp_path / "report.html")
        page.reload()
        page.wait_for_selector("#sample-list .row")
        assert page.locator("#samples .card button[aria-pressed=true]").count() == n_marked
