"""A dry run estimates the cost without sending a request, and a preview buys only the completions that it shows."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from configurations import make_run
from fake_openai import FakeServer

from fcot.base.errors import FcotError
from fcot.estimate.dry_run import estimate
from fcot.estimate.needs import show
from fcot.estimate.preview import preview
from fcot.llm.generate import generate_completions

CONF = Path(__file__).parent.parent / "conf"
DEAD = "http://127.0.0.1:9/v1"
N = 10  # problems of every run here


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def openai_run(output, url, *overrides, model="gpt-4.1-mini", limit=N):
    """A run of ten train problems, at the price of a model that is in conf/prices.yaml."""
    small = ("dataset.n_problems=60", f"dataset.limit={limit}", "split_mode.validation_fraction=0.05")
    run = make_run(output, "teacher=openai", f"teacher.model={model}", f"teacher.base_url={url}", *small, *overrides)
    assert len(run.split.train) == limit
    return run


def complete(run, n=None):
    """Buy the missing completions of the first ``n`` problems (None: of all). Returns the usage."""
    return generate_completions(run.plan, run.store, run.select(run.split.train[:n])).usage()


def characters(run):
    """Number of characters of the step-1 prompts of all train problems."""
    prompts = [run.plan.step1(problem).prompt for problem in run.select(run.split.train)]
    return sum(len(prompt[0]["content"]) for prompt in prompts)


def width(interval):
    """Width of an interval, relative to its middle."""
    return (interval[2] - interval[0]) / interval[1]


def within(interval, number):
    return interval[0] <= number <= interval[2]


# --- nothing is sent ------------------------------------------------------------------------------------------------------------


def test_a_dry_run_sends_nothing_and_writes_nothing(run_fcot, tmp_path):
    arguments = ("teacher=openai", "teacher.model=gpt-4.1-mini", f"teacher.base_url={DEAD}", "dataset.n_problems=60", "dry_run=true")
    process = run_fcot(*arguments, "diversity=3")
    assert process.returncode == 0, process.stderr
    assert "dry run: no request was sent" in process.stdout
    assert "lengths: ASSUMED" in process.stdout
    assert re.search(r"price online\s+\$[\d.]+ \(\$[\d.]+-\$?[\d.]+\)", process.stdout)
    assert re.search(r"price through the Batch API\s+\$", process.stdout)
    assert not (tmp_path / "outputs" / "runs").exists()
    assert not (tmp_path / "outputs" / "store").exists()


def test_a_dry_run_shows_the_smallest_detectable_difference(tmp_path, capsys):
    def shown(*seeds: int) -> str:
        show([estimate(make_run(tmp_path, "method=fine_tune", "dataset.n_problems=60", f"seed={seed}"), {}) for seed in seeds])
        return capsys.readouterr().out

    one_seed, three_seeds = shown(0), shown(0, 1, 2)
    assert re.search(r"smallest difference that can be shown\s+[\d.]+ points \(power 80 %, 18 test problems, 1 seed\)", one_seed)
    assert "says nothing about other trainings" in one_seed
    assert "18 test problems, 3 seeds" in three_seeds
    assert "ASSUMED: a standard deviation of 3 points between seeds" in three_seeds
    show([estimate(make_run(tmp_path, "method=fine_tune", "dataset.n_problems=12"), {})])
    assert "none, not even 100 points (power 80 %, 4 test problems, 1 seed)" in capsys.readouterr().out
    zero_shot = estimate(make_run(tmp_path, "method=zero_shot", "dataset.n_problems=60"), {})
    show([zero_shot])
    assert "smallest difference" not in capsys.readouterr().out


def test_an_estimate_changes_no_file_of_the_store(tmp_path):
    with FakeServer() as server:
        complete(openai_run(tmp_path, server.base_url), 4)
        n_requests = server.stats()["requests"]
        before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()}
        estimate(openai_run(tmp_path, server.base_url), {})
        assert server.stats()["requests"] == n_requests
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()} == before


# --- numbers calculated by hand -------------------------------------------------------------------------------------------------


def test_the_estimate_for_one_step_prompts_equals_a_calculation_by_hand(tmp_path):
    run = openai_run(tmp_path, DEAD, "diversity=5", "teacher.max_choices_per_request=2", "trainer.epochs=3", "trainer.batch_size=8")
    result = estimate(run, {})
    assert (result.problems, result.diversity, result.requested, result.stored) == (N, 5, 50, 0)
    assert result.requests == N * 3, "2 + 2 + 1 choices"
    assert list(result.prompt_tokens) == pytest.approx([3 * characters(run) / assumed for assumed in (5, 4, 3)])
    assert list(result.shared_tokens) == pytest.approx([2 * characters(run) / assumed for assumed in (5, 4, 3)])
    assert list(result.completion_tokens) == pytest.approx([50 * tokens for tokens in (30, 120, 1024)])
    expected = [(0.4 * p + 1.6 * c) / 1e6 for p, c in zip(result.prompt_tokens, result.completion_tokens, strict=True)]
    assert list(result.usd) == pytest.approx(expected)
    assert list(result.usd_batch) == pytest.approx([usd / 2 for usd in expected])
    assert list(result.usd_shared) == pytest.approx([0.4 * tokens / 1e6 for tokens in result.shared_tokens])
    assert result.steps == min(3 * 7, run.config.trainer.max_steps or 10**9)


def test_the_estimate_for_two_step_prompts_equals_a_calculation_by_hand(tmp_path):
    run = openai_run(tmp_path, DEAD, "prompt=zero_shot_cot", "diversity=3", "teacher.max_choices_per_request=2")
    result = estimate(run, {})
    assert (result.requested, result.stored) == (30, 0)
    assert result.requests == N * (2 + 3), "two requests for the rationales, one request per answer"
    assert list(result.shared_tokens) == pytest.approx([characters(run) / assumed for assumed in (5, 4, 3)])
    rationale, answer = (30.0, 120.0, 128.0), (2.0, 8.0, 32.0)
    assert list(result.completion_tokens) == pytest.approx([30 * (r + a) for r, a in zip(rationale, answer, strict=True)])
    first = [2 * characters(run) / assumed for assumed in (5, 4, 3)]
    second = [3 * characters(run) / assumed + 30 * r for assumed, r in zip((5, 4, 3), rationale, strict=True)]
    for tokens, first_step, second_step in zip(result.prompt_tokens, first, second, strict=True):
        assert first_step + second_step <= tokens <= first_step + second_step + 30 * 20, "the rest is the trigger"


def test_stored_completions_of_a_partial_run_are_not_requested_again(tmp_path):
    with FakeServer() as server:
        complete(openai_run(tmp_path, server.base_url, "diversity=2"), 4)
    result = estimate(openai_run(tmp_path, DEAD, "diversity=5", "teacher.max_choices_per_request=2"), {})
    assert (result.requested, result.stored, result.requests) == (50, 8, 4 * 2 + 6 * 3)
    same_diversity = estimate(openai_run(tmp_path, DEAD, "diversity=2"), {})
    assert (same_diversity.requested, same_diversity.stored, same_diversity.requests) == (20, 8, 6)


def test_stored_rationales_without_answers_need_only_their_answers(tmp_path):
    with FakeServer([None, "401", "401", "401"]) as server:
        run = openai_run(tmp_path, server.base_url, "prompt=zero_shot_cot", "diversity=3", "teacher.concurrency=1")
        with pytest.raises(FcotError, match="key"):
            complete(run)
    result = estimate(openai_run(tmp_path, DEAD, "prompt=zero_shot_cot", "diversity=3"), {})
    assert (result.requested, result.stored) == (30, 3)
    assert result.requests == 3 + 9 * (1 + 3)


def test_a_run_whose_completions_are_stored_costs_nothing(tmp_path):
    with FakeServer() as server:
        complete(openai_run(tmp_path, server.base_url, "prompt=zero_shot_cot"))
    result = estimate(openai_run(tmp_path, DEAD, "prompt=zero_shot_cot"), {})
    assert (result.requested, result.stored, result.requests) == (40, 40, 0)
    assert not result.prompt_tokens.any()
    assert not result.completion_tokens.any()
    assert not result.usd.any()


def test_a_prompt_that_was_given_up_is_not_requested_again(tmp_path):
    with FakeServer(["too_long"]) as server:
        complete(openai_run(tmp_path, server.base_url, "teacher.concurrency=1"))
        n_requests = server.stats()["requests"]
        result = estimate(openai_run(tmp_path, server.base_url), {})
        complete(openai_run(tmp_path, server.base_url))
        assert server.stats()["requests"] == n_requests
    assert result.requests == 0


# --- measured lengths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["zero_shot_cot_chat", "zero_shot_cot"])
def test_after_a_preview_the_estimate_uses_measured_lengths(tmp_path, capsys, prompt):
    overrides = (f"prompt={prompt}", "diversity=4")
    before = estimate(openai_run(tmp_path, DEAD, *overrides, limit=30), {})
    assert any("ASSUMED" in note for note in before.notes)
    with FakeServer() as server:
        preview(openai_run(tmp_path, server.base_url, *overrides, limit=30), 5)
        previewed = server.stats()
        after = estimate(openai_run(tmp_path, DEAD, *overrides, limit=30), {})
        assert any("lengths: from 5 generations in the store" in note for note in after.notes)
        assert not any("ASSUMED" in note for note in after.notes)
        for name in ("prompt_tokens", "completion_tokens", "usd"):
            assert width(getattr(after, name)) < width(getattr(before, name))
        usage = complete(openai_run(tmp_path, server.base_url, *overrides, limit=30))
        stats = server.stats()
    assert stats["requests"] - previewed["requests"] == after.requests
    for name in ("prompt_tokens", "completion_tokens"):
        assert usage[name] == stats[name], "the run's usage counts what its preview bought"
        assert within(getattr(after, name), stats[name] - previewed[name]), name
    charged = {name: stats[name] - previewed[name] for name in ("prompt_tokens", "completion_tokens")}
    assert within(after.usd, (0.4 * charged["prompt_tokens"] + 1.6 * charged["completion_tokens"]) / 1e6)


def test_lengths_are_also_measured_on_requests_with_several_choices(tmp_path):
    with FakeServer() as server:
        complete(openai_run(tmp_path, server.base_url, "diversity=6", "teacher.max_choices_per_request=4"), 3)
        stats = server.stats()
    result = estimate(openai_run(tmp_path, DEAD, "diversity=6"), {})
    assert any("from 18 generations" in note for note in result.notes)
    assert result.completion_tokens[1] == pytest.approx(7 * 6 * stats["completion_tokens"] / 18)


def test_lengths_are_measured_if_some_rows_have_no_usage(tmp_path):
    with FakeServer(["no_usage", None, "odd_usage"]) as server:
        complete(openai_run(tmp_path, server.base_url, "teacher.concurrency=1"), 4)
        stats = server.stats()
    result = estimate(openai_run(tmp_path, DEAD), {})
    assert within(result.completion_tokens / 24, stats["completion_tokens"] / 8)


def test_lengths_are_assumed_if_no_row_has_usage(tmp_path):
    with FakeServer(["no_usage"] * 50) as server:
        complete(openai_run(tmp_path, server.base_url), 4)
    result = estimate(openai_run(tmp_path, DEAD), {})
    assert any("ASSUMED" in note for note in result.notes)
    assert result.stored == 16


# --- sweeps ---------------------------------------------------------------------------------------------------------------------


def estimates_of(runs):
    planned = {}
    return [estimate(run, planned, [f"run {i}"]) for i, run in enumerate(runs)]


def test_a_sweep_over_diversity_counts_each_completion_once(tmp_path, capsys):
    def runs(url, folder):
        return [openai_run(folder, url, f"diversity={d}", "prompt=zero_shot_cot", "teacher.temperature=0.7") for d in (1, 2, 4)]

    results = estimates_of(runs(DEAD, tmp_path / "a"))
    assert [result.requested for result in results] == [10, 20, 40]
    assert [result.requests for result in results] == [10 + 10, 10 + 10, 10 + 20]
    largest = estimate(runs(DEAD, tmp_path / "a")[-1], {})
    assert sum(result.completion_tokens for result in results) == pytest.approx(largest.completion_tokens)
    assert sum(result.requests for result in estimates_of(reversed(runs(DEAD, tmp_path / "a")))) == largest.requests
    with FakeServer() as server:
        for run in runs(server.base_url, tmp_path / "b"):
            complete(run)
        assert server.stats()["requests"] == sum(result.requests for result in results)
    show(results)
    printed = capsys.readouterr().out
    assert re.search(r"completions requested\s+70\n", printed)
    assert re.search(r"\n  requests\s+70\n", printed)
    assert printed.count("lengths: ASSUMED") == 1
    for number in (0, 1, 2):
        assert f"run {number}" in printed


def test_problems_with_the_same_question_are_bought_once(tmp_path):
    data = tmp_path / "twins.jsonl"
    data.write_text("".join(json.dumps({"question": f"How many are {i // 2} and 1?", "answer": str(i // 2 + 1)}) + "\n" for i in range(40)))
    overrides = ("dataset=custom", f"dataset.path={data}", "dataset.answer_type=number", "teacher=openai", "teacher.model=m", "diversity=2")
    run = make_run(tmp_path, *overrides, f"teacher.base_url={DEAD}")
    questions = {problem.question for problem in run.select(run.split.train)}
    assert len(questions) < len(run.split.train)
    result = estimate(run, {})
    assert result.requested == 2 * len(run.split.train)
    assert result.requests == len(questions)


def test_a_sweep_over_prompts_with_the_same_first_request_buys_each_prompts_rationales(tmp_path):
    def runs(url, folder):
        return [openai_run(folder, url, "diversity=2", f"prompt={name}") for name in ("zero_shot_cot", "zero_shot_cot_kojima")]

    with FakeServer() as server:
        for run in runs(server.base_url, tmp_path / "a"):
            complete(run)
        requests = server.stats()["requests"]
    assert requests == 2 * N * (1 + 2)
    assert sum(result.requests for result in estimates_of(runs(DEAD, tmp_path / "b"))) == requests


def test_a_sweep_over_second_steps_counts_the_answers_of_each(tmp_path):
    def runs(url, folder):
        return [openai_run(folder, url, "diversity=2", "prompt=zero_shot_cot", f"prompt.answer_tokens={n}") for n in (16, 32)]

    with FakeServer() as server:
        for run in runs(server.base_url, tmp_path / "a"):
            complete(run)
        requests = server.stats()["requests"]
    assert requests == N * (1 + 2) + N * 2
    assert sum(result.requests for result in estimates_of(runs(DEAD, tmp_path / "b"))) == requests


def test_a_sweep_counts_the_missing_answers_of_an_interrupted_run(tmp_path):
    def runs(url):
        return [
            openai_run(tmp_path, url, f"diversity={d}", "prompt=zero_shot_cot", "teacher.concurrency=1", "teacher.temperature=0.7")
            for d in (1, 4)
        ]

    with FakeServer([None, "401", "401", "401"]) as server, pytest.raises(FcotError, match="key"):
        complete(runs(server.base_url)[1])
    results = estimates_of(runs(DEAD))
    with FakeServer() as server:
        for run in runs(server.base_url):
            complete(run)
        assert sum(result.requests for result in results) == server.stats()["requests"]


# --- prices ---------------------------------------------------------------------------------------------------------------------


def test_an_unknown_price_is_reported_and_not_guessed(tmp_path, capsys):
    result = estimate(openai_run(tmp_path, DEAD, model="nobody-knows"), {})
    assert (result.usd, result.usd_batch, result.usd_shared) == (None, None, None)
    show([result])
    printed = capsys.readouterr().out
    assert re.search(r"price online\s+price unknown", printed)
    assert "prices.yaml has none for nobody-knows" in printed
    assert "Batch API" not in printed
    assert "$" not in printed


def test_the_sum_of_a_sweep_is_unknown_if_one_price_is(tmp_path, capsys):
    show(estimates_of([openai_run(tmp_path, DEAD), openai_run(tmp_path, DEAD, model="nobody-knows")]))
    assert re.search(r"price online\s+price unknown", capsys.readouterr().out)


def test_a_known_price_is_shown_with_its_source(tmp_path, capsys):
    prices = tmp_path / "mine.yaml"
    prices.write_text("m: {input: 1, output: 2}")
    show([estimate(openai_run(tmp_path, DEAD, f"teacher.prices={prices}", model="m"), {})])
    printed = capsys.readouterr().out
    assert f"price: $1 in, $1 cached, $2 out per million tokens, from {prices}" in printed
    assert "Batch API" not in printed, "the file has no batch price"


@pytest.mark.parametrize("options", [{}, {"ignore_n": True}, {"refuse": "n"}], ids=["supports n", "ignores n", "rejects n"])
def test_prompts_are_shared_only_at_a_server_that_has_returned_several_choices(tmp_path, options):
    """Nothing is known of a server before the first purchase; what is stored shows whether it returns several choices."""
    with FakeServer(**options) as server:
        run = openai_run(tmp_path, server.base_url, "diversity=4", "prompt=reasoning_chat")
        assert estimate(run, {}).requests == N
        complete(run, 3)
        n_bought = server.stats()["good_requests"]
        result = estimate(run, {})
        assert n_bought == (12 if options else 3)
        assert result.requests == (28 if options else 7)
        assert (result.shared_tokens[1] == 0) == bool(options)
        complete(run)
        assert server.stats()["good_requests"] - n_bought == result.requests


def test_a_missing_key_or_header_is_named_before_the_purchase(tmp_path, monkeypatch):
    """A dry run needs no key, and a run does: it is better known now."""
    monkeypatch.setenv("PRESENT", "value")
    monkeypatch.delenv("ABSENT", raising=False)
    before = "before a request can be sent: teacher."
    words = ("dry_run=true", "teacher.api_key_env=none", "teacher.headers={X-A: PRESENT}")
    assert not any(note.startswith(before) for note in estimate(openai_run(tmp_path, DEAD, *words), {}).notes)
    words = ("dry_run=true", "teacher.api_key_env=ABSENT", "teacher.headers={X-A: PRESENT, X-B: ABSENT}")
    key, header = (note for note in estimate(openai_run(tmp_path, DEAD, *words), {}).notes if note.startswith(before))
    assert "api_key_env=ABSENT: there is no such environment variable" in key
    assert "headers: the value of X-B must be the name of an environment variable that is set" in header


def test_a_budget_below_the_price_is_reported(tmp_path):
    result = estimate(openai_run(tmp_path, DEAD), {})
    half = estimate(openai_run(tmp_path, DEAD, f"teacher.budget_usd={result.usd[1] / 2}"), {})
    assert any("is less than the price online: it ends the purchase at about 50 % of that" in note for note in half.notes)
    enough = estimate(openai_run(tmp_path, DEAD, f"teacher.budget_usd={result.usd[1] * 2}"), {})
    assert not any("budget" in note for note in enough.notes)


@pytest.mark.parametrize("overrides", [["method=zero_shot"], ["method=fine_tune"], []], ids=["zero_shot", "fine_tune", "oracle"])
def test_a_free_teacher_costs_nothing(tmp_path, capsys, overrides):
    result = estimate(make_run(tmp_path, "dataset.n_problems=60", *overrides), {})
    assert (result.requests == 0) == bool(overrides)
    assert (result.requested == 0) == bool(overrides)
    assert (result.steps == 0) == (overrides == ["method=zero_shot"])
    show([result])
    assert re.search(r"price online\s+\$0\n", capsys.readouterr().out)


# --- previews -------------------------------------------------------------------------------------------------------------------


def test_a_preview_shows_each_completion_and_the_run_buys_the_rest(tmp_path, capsys):
    with FakeServer() as server:
        run = openai_run(tmp_path, server.base_url, "diversity=4", "teacher.max_choices_per_request=4")
        preview(run, 3)
        printed = " ".join(capsys.readouterr().out.split())
        assert server.stats()["requests"] == 3
        problems = run.select(run.split.train[:3])
        for problem, completion in zip(problems, generate_completions(replace(run.plan, diversity=1), run.store, problems), strict=True):
            assert problem.question in printed
            assert " ".join(completion.rationale.split()) in printed
            assert f"parsed {problem.answer!r}, gold {problem.answer!r} (correct): kept" in printed
            assert f"sample {problem.sample_index}" in printed
        assert printed.count("sample ") == printed.count("prompt:") == printed.count("rationale:") == printed.count("answer text:") == 3
        assert len(re.findall(r"\d+ prompt and \d+ completion tokens, \$0\.0\d+", printed)) == 3
        assert "the whole run: 40 completions, 3 of them in the store; the rest: $" in printed
        assert not (tmp_path / "runs").exists()

        preview(run, 3)
        assert server.stats()["requests"] == 3, "the second preview is served from the store"

        complete(run)
        stats = server.stats()
        assert stats["good_choices"] == 4 * N
        assert stats["requests"] == 3 + N


def test_a_preview_of_two_steps_shows_both_prompts(tmp_path, capsys):
    with FakeServer() as server:
        run = openai_run(tmp_path, server.base_url, "prompt=zero_shot_cot")
        preview(run, 2)
        assert server.stats()["requests"] == 4
    printed = capsys.readouterr().out
    assert printed.count("prompt 1:") == printed.count("prompt 2:") == printed.count("(correct)") == printed.count(": kept") == 2
    assert printed.count("Therefore, the answer is") == 2


def test_a_preview_shows_why_a_completion_is_missing(tmp_path, capsys):
    """The price is unknown, one answer is wrong, and the server rejects one prompt."""
    with FakeServer(["content_filter_400", "length"]) as server:
        preview(openai_run(tmp_path, server.base_url, "teacher.concurrency=1", model="nobody-knows"), 2)
    printed = capsys.readouterr().out
    assert "(none: refused:prompt_filtered)" in printed
    assert "parsed None, gold" in printed
    assert printed.count("(wrong)") == printed.count("rejected: ") == 2
    assert "ended: length" in printed
    assert "price unknown" in printed


def replayed(index, question, slot):
    """A completion in the format of the authors' files: correct in slot 0, wrong in slot 1."""
    return {
        "sample_index": index, "completion_index": slot, "question": question, "answer": str(index + 1), "prompt": "...",
        "completion": f" {index + 1 + slot}.", "reasoning_prompt": "...", "reasoning_completion": f" Because of {index} in {slot}.",
    }  # fmt: skip


def test_a_preview_of_replayed_completions_sends_nothing(tmp_path, capsys):
    questions = [f"What are {i} and 1?" for i in range(20)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"question": q, "answer": str(i + 1)}) + "\n" for i, q in enumerate(questions)))
    rows = {str(i): [replayed(i, q, slot) for slot in (1, 0)] for i, q in enumerate(questions)}
    (tmp_path / "D_mine.json").write_text(json.dumps({"metadata": {"dataset_key": "custom", "base_model": "m"}, "data": rows}))
    run = make_run(
        tmp_path, "dataset=custom", f"dataset.path={tmp_path}/mine.jsonl", "dataset.answer_type=number", "teacher=replay",
        f"teacher.path={tmp_path}/D_mine.json", "diversity=2",
    )  # fmt: skip
    preview(run, 3)
    printed = capsys.readouterr().out
    assert printed.count("sample ") == printed.count("(correct)") == printed.count(": kept") == 3
    for index in run.split.train[:3]:
        assert f"Because of {index} in 0." in printed
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("method", ["zero_shot", "fine_tune"])
def test_a_preview_of_a_method_without_a_teacher_is_one_clear_message(tmp_path, method):
    with pytest.raises(FcotError, match=rf"^preview=2: method={method} uses no teacher, so there are no completions to show$"):
        preview(make_run(tmp_path, f"method={method}", "dataset.n_problems=60"), 2)


def test_a_preview_keeps_to_the_budget(tmp_path):
    with FakeServer() as server:
        with contextlib.suppress(FcotError):
            preview(openai_run(tmp_path, server.base_url, "teacher.budget_usd=0.000001"), 3)
        assert server.stats()["requests"] == 0


def test_resampling_of_identical_rationales_is_in_the_interval(tmp_path):
    overrides = ("diversity=4", "teacher.resample_identical=true")
    with FakeServer(ignore_seed=True) as server:
        preview(openai_run(tmp_path, server.base_url, *overrides), 3)
        previewed = server.stats()["completion_tokens"]
        result = estimate(openai_run(tmp_path, DEAD, *overrides), {})
        complete(openai_run(tmp_path, server.base_url, *overrides))
        assert within(result.completion_tokens, server.stats()["completion_tokens"] - previewed)


def test_stored_completions_of_another_temperature_are_reported(tmp_path):
    with FakeServer() as server:
        sampled = openai_run(tmp_path, server.base_url, "diversity=1", "teacher.temperature=0.7")
        n = len(sampled.split.train)
        list(generate_completions(sampled.plan, sampled.store, sampled.select(sampled.split.train)))
        greedy = estimate(openai_run(tmp_path, server.base_url, "diversity=1"), {})
        assert greedy.stored == 0
        assert (
            f"{n} rationales of these problems are stored at temperature 0.7, and not used: teacher.temperature=0.7 uses them"
            in greedy.notes
        )
        assert not [note for note in estimate(sampled, {}).notes if "not used" in note]


def test_a_method_without_a_teacher_requests_nothing_and_names_no_diversity(tmp_path, capsys):
    show([estimate(make_run(tmp_path, "method=zero_shot", "dataset.n_problems=60"), {})])
    assert re.search(r"completions requested +0\n", capsys.readouterr().out)
