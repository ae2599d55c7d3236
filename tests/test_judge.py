"""The judge of rationales: its request, its strict parser, and runs that store, resume, budget and price its requests."""

from __future__ import annotations

import pytest
from configurations import composed, make_run
from fake_openai import FakeServer
from test_reporting import run as reported
from test_reporting import settings
from test_run import SMALL

from fcot.base.errors import BudgetSpent, ConfigFaults, FcotError
from fcot.base.files import read_json, read_jsonl
from fcot.config.checks import to_config
from fcot.estimate.dry_run import estimate
from fcot.estimate.needs import show, sum_of
from fcot.prompts.judge import FIELDS, Verdict, default_request, read_verdict, request_text
from fcot.prompts.steps import before_step, steps_of
from fcot.reporting.builder import _verdicts
from fcot.runs.pipeline import execute
from fcot.tasks.toy import TOY_TASKS
from fcot.teacher.oracle import judged

HALF_WRONG = [*SMALL, "teacher.error_rate=0.5", "curation=none"]
FILTER = "curation.judge=filter"


# --- request and parser -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rationale", "steps"), [
    ("3 + 4 = 7. So 7 are left.", ["3 + 4 = 7.", "So 7 are left."]),
    ("First line\nSecond line; third step\n\n", ["First line", "Second line;", "third step"]),
    ("1. Add 3 and 4. 2) So 7.\nStep 3: Done", ["1. Add 3 and 4.", "2) So 7.", "Step 3: Done"]),
    ("It costs $3.50 in all.", ["It costs $3.50 in all."]),
    ("", []),
])  # fmt: skip
def test_steps_are_sentences_and_lines(rationale, steps):
    assert steps_of(rationale) == steps


def test_what_stands_before_a_step_keeps_its_form():
    text = "1. Add 3 and 4.\n2.\nSo 7;  then 8."
    assert [before_step(text, number) for number in (1, 2, 3, 4)] == ["", "1. Add 3 and 4.", "1. Add 3 and 4.\n2.\nSo 7;", text]


def test_the_request_shows_question_and_numbered_steps_and_fills_in_nothing_twice():
    text = request_text(default_request(), "What is {steps}?", "It is {question}. Done.")
    assert "Question: What is {steps}?\n" in text
    assert "\nStep 1: It is {question}.\nStep 2: Done.\n" in text
    assert all(field in default_request() for field in FIELDS)


@pytest.mark.parametrize(("reply", "verdict"), [
    ("Step 1 is fine.\n\nVerdict: all steps follow", Verdict(0)),
    ("Verdict: step 2 is wrong", Verdict(2)),
    ("**Verdict: Step 3 is wrong.**\n", Verdict(3)),
    ("- verdict:  all steps follow.", Verdict(0)),
    ("Verdict: step 4 is wrong", Verdict(None, "no_such_step")),
    ("Verdict: step 0 is wrong", Verdict(None, "no_such_step")),
    ("Verdict: step N is wrong", Verdict(None, "no_verdict")),
    ("Verdict: steps 1 and 2 are wrong", Verdict(None, "no_verdict")),
    ("All steps follow", Verdict(None, "no_verdict")),
    ("", Verdict(None, "no_verdict")),
    ("Verdict: all steps follow\nI hope this helps!", Verdict(None, "no_verdict")),
    ("Verdict: step 1 is wrong\nVerdict: all steps follow", Verdict(None, "several_verdicts")),
    ("Verdict: unclear\nVerdict: all steps follow", Verdict(None, "several_verdicts")),
    ("Verdict: step 2 is wrong\nTo repeat it:\nVerdict: step 2 is wrong", Verdict(2)),
    ("The verdict: all steps follow", Verdict(None, "no_verdict")),
])  # fmt: skip
def test_verdicts_are_read_strictly(reply, verdict):
    assert read_verdict(reply, 3) == verdict


def test_a_reply_that_was_cut_has_no_verdict_but_one_that_was_cut_after_it_has():
    assert read_verdict("Step 1 follows. Step", 3, "length") == Verdict(None, "cut")
    assert read_verdict("Verdict: all steps follow", 3, "length") == Verdict(0)


@pytest.mark.parametrize("task", TOY_TASKS.values(), ids=TOY_TASKS)
def test_the_oracle_names_the_step_that_it_got_wrong(task):
    import random

    question, *_ = task.problem(random.Random(5))
    right, wrong = task.rationale(question, 1, None, None), task.rationale(question, 1, random.Random(2), None)
    first = next(number for number, pair in enumerate(zip(steps_of(right), steps_of(wrong), strict=True), 1) if pair[0] != pair[1])
    for rationale, expected in ((right, 0), (wrong, first)):
        reply = judged(task, request_text(default_request(), question, rationale))
        assert read_verdict(reply, len(steps_of(rationale))) == Verdict(expected)


# --- runs -------------------------------------------------------------------------------------------------------------


def rows_of(run):
    return list(read_jsonl(run.directory.curated))


def test_a_filtering_judge_rejects_what_it_calls_wrong(tmp_path):
    run = make_run(tmp_path, *HALF_WRONG, FILTER)
    metrics = execute(run, "")
    rows = rows_of(run)
    assert {(row["correct"], row["kept"], row["reason"]) for row in rows} == {(True, True, None), (False, False, "wrong_step")}
    assert all((row["first_wrong_step"] > 0) == (not row["correct"]) for row in rows), "a slip makes the oracle's answer wrong"
    wrong = sum(not row["correct"] for row in rows)
    counts = {name: metrics["judge"][name] for name in ("judged", "wrong_step", "unreadable")}
    assert counts == {"judged": len(rows), "wrong_step": wrong, "unreadable": {}}
    assert metrics["refused"] == {"wrong_step": wrong}
    assert metrics["n_reasoning_samples"] == metrics["completions_kept"] == len(rows) - wrong > 0
    generated = read_json(run.directory.stage("curate"))["teacher_usage"]["served_from_store"]
    assert metrics["teacher_usage"]["served_from_store"] == generated + metrics["judge"]["usage"]["served_from_store"]


def test_a_recording_judge_rejects_nothing_and_a_choice_follows_the_filter(tmp_path):
    recorded, chosen = (make_run(tmp_path, *HALF_WRONG, "until=curate", *more) for more in (
        ("curation.judge=record",), (FILTER, "curation.max_per_problem=1"),
    ))  # fmt: skip
    summary = execute(recorded, "")
    assert summary["kept"] == summary["asked"]
    assert summary["judge"]["wrong_step"] == sum(not row["correct"] for row in rows_of(recorded)) > 0
    summary = execute(chosen, "")
    rows = rows_of(chosen)
    assert all(row["correct"] for row in rows if row["kept"] or row["reason"] == "not_chosen")
    assert summary["kept"] == len({row["sample_index"] for row in rows if row["correct"]})
    assert summary["refused"]["wrong_step"] == summary["judge"]["wrong_step"]
    before = chosen.directory.curated.read_bytes()
    for stage in ("judge", "choose"):  # killed after either stage wrote its rows
        chosen.directory.stage(stage).unlink()
        execute(chosen, "")
        assert chosen.directory.curated.read_bytes() == before


def undecided(prompt, *, n, **_):
    """A teacher whose verdicts are no verdicts."""
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return ["The steps look good to me." if "Step 1: " in text else "One step. The answer is 1."] * n


def test_unreadable_verdicts_keep_their_rationales_and_are_counted(tmp_path, capsys):
    teacher = ["teacher=function", "teacher.function=test_judge.undecided", "teacher.model_id=undecided", "curation=none"]
    run = make_run(tmp_path, *SMALL, *teacher, FILTER, "until=curate")
    summary = execute(run, "")
    assert summary["kept"] == summary["asked"] == summary["judge"]["judged"]
    assert summary["judge"]["unreadable"] == {"no_verdict": summary["asked"]}
    assert not any("first_wrong_step" in row for row in rows_of(run))
    assert "verdicts of the judge are unreadable (no_verdict" in capsys.readouterr().err


def strict(prompt, *, n, **_):
    """A teacher whose verdicts are all against the first step."""
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return ["Verdict: step 1 is wrong" if "Step 1: " in text else "One step. The answer is 1."] * n


def test_a_judge_that_leaves_nothing_is_an_error(tmp_path):
    teacher = ["teacher=function", "teacher.function=test_judge.strict", "teacher.model_id=strict", "curation=none"]
    with pytest.raises(FcotError, match="the judge finds a wrong step in each of"):
        execute(make_run(tmp_path, *SMALL, *teacher, FILTER), "")


# --- money ------------------------------------------------------------------------------------------------------------


def paid(folder, server, *more):
    (folder / "prices.yaml").write_text("fake: {input: 2.0, output: 8.0}\n")
    return [
        *SMALL, "teacher=openai", "teacher.model=fake", f"teacher.base_url={server.base_url}", f"teacher.prices={folder}/prices.yaml",
        "diversity=2", "until=curate", FILTER, *more,
    ]  # fmt: skip


def test_verdicts_are_stored_and_bought_once(tmp_path):
    with FakeServer() as server:
        run = make_run(tmp_path, *paid(tmp_path, server))
        summary = execute(run, "")
        requests = server.stats()["requests"]
        usage = summary["judge"]["usage"]
        assert usage["requests"] == summary["judge"]["judged"] == summary["kept"] + summary["judge"]["wrong_step"] > 0
        assert usage["usd"] > 0
        last = [entry["body"] for entry in server.stats()["last"] if "Step 1: " in entry["body"]["messages"][-1]["content"]]
        assert {body["temperature"] for body in last} == {0.0}
        run.directory.stage("judge").unlink()  # killed after the purchase
        assert execute(run, "")["judge"] == summary["judge"]
        other = make_run(tmp_path, *paid(tmp_path, server, "curation.judge=record"))
        assert other.run_id != run.run_id
        shared = execute(other, "")["judge"]["usage"]
        assert (shared["usd"], shared["served_from_store"]) == (0.0, usage["requests"])
        assert server.stats()["requests"] == requests


def test_completions_and_verdicts_have_one_budget(tmp_path):
    folder = tmp_path / "free"
    folder.mkdir()
    with FakeServer() as server:
        unbounded = execute(make_run(folder, *paid(folder, server)), "")
        costs = [unbounded["teacher_usage"]["usd"], unbounded["judge"]["usage"]["usd"]]
        budget = costs[0] + costs[1] / 2 + 0.002
        options = paid(tmp_path, server)
        bounded = make_run(tmp_path, *options, f"teacher.budget_usd={budget}")
        with pytest.raises(BudgetSpent) as error:
            execute(bounded, "")
        assert 0 < error.value.usage["usd"] <= budget - costs[0]
        assert f"teacher.budget_usd={budget:g}: ${costs[0] + error.value.usage['usd']:,.4f} spent" in str(error.value)
        enough = make_run(tmp_path, *options, "teacher.budget_usd=10")
        assert enough.run_id == bounded.run_id
        summary = execute(enough, "")
        assert summary["judge"]["usage"]["usd"] == pytest.approx(costs[1])
        assert summary["judge"]["judged"] == unbounded["judge"]["judged"]


def test_a_dry_run_prices_the_judge(tmp_path, capsys):
    with FakeServer() as server:
        options = paid(tmp_path, server)
        run = make_run(tmp_path, *options)
        before = estimate(run, {}, ())
        n = 2 * len(run.split.train)
        assert before.judge.requests.tolist() == [n / 2, n, n]
        assert before.judge.usd[1] > 0
        assert make_run(tmp_path, *options, "curation.judge=none").config.curation.judge == "none"
        assert estimate(make_run(tmp_path, *options, "curation.judge=none"), {}, ()).judge is None
        show([before])
        assert "judge: price online" in capsys.readouterr().out
        execute(run, "")
        after = estimate(run, {}, ())
        assert after.judge.requests.tolist() == [0, 0, 0]
        assert not after.buys


def test_runs_that_share_completions_plan_their_verdicts_once(tmp_path):
    with FakeServer() as server:
        planned: dict = {}
        runs = [make_run(tmp_path, *paid(tmp_path, server, f"seed={seed}")) for seed in (0, 1)]
        first, second = (estimate(run, planned, ()) for run in runs)
        assert first.judge.requests[1] > 0
        assert second.judge.requests.tolist() == [0, 0, 0]
        total = sum_of([first, second, estimate(make_run(tmp_path, *SMALL), planned, ())])
        assert total.judge.requests.tolist() == first.judge.requests.tolist()
        assert total.judge.usd.tolist() == first.judge.usd.tolist()


def test_a_sweep_says_what_its_judge_would_buy(run_fcot):
    teacher = ["teacher=openai", "teacher.model=gpt-4.1-mini", "teacher.base_url=http://127.0.0.1:9"]
    result = run_fcot("-m", *SMALL, *teacher, FILTER, "teacher.temperature=0.7", "diversity=1,2", "dry_run=true")
    assert result.returncode == 0, result.stderr
    n = 2 * 38  # D = 1 is a part of D = 2
    assert f"judge: about {n} verdicts to be bought once for all jobs, $" in result.stdout


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("overrides", "message"), [
    ([FILTER, "teacher=replay", "teacher.path=."], "teacher=replay answers no requests"),
    ([FILTER, "teacher=hf", "teacher.model=m", "teacher.endpoint=completions"], "needs a chat model: teacher.endpoint=chat"),
    ([FILTER, "method=tailored"], "curation.judge: not with method=tailored"),
    ([FILTER, "curation.max_samples=9"], "curation.judge=filter may reject what curation.max_samples leaves"),
    ([FILTER, "curation=concise"], "curation.judge=filter may reject what the filter concise leaves"),
    (["curation.judge=strict"], "choose from none, filter, record"),
    ([FILTER, "curation.judge_path=FILE"], "the text must contain {steps}"),
    ([FILTER, "curation.judge_path=missing.txt"], "no such file"),
])  # fmt: skip
def test_a_judge_that_cannot_judge_is_rejected(overrides, message, tmp_path):
    (tmp_path / "request.txt").write_text("{question}")
    with pytest.raises(ConfigFaults) as error:
        to_config(composed(*(override.replace("FILE", str(tmp_path / "request.txt")) for override in overrides)))
    assert message in str(error.value)


def test_the_request_names_the_run_and_its_path_does_not(tmp_path):
    texts = [default_request(), default_request(), "Question: {question}\n{steps}\nVerdict: all steps follow, or step N is wrong"]
    paths = [tmp_path / f"{number}.txt" for number in range(3)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    ids = [make_run(tmp_path, *SMALL, FILTER, *more).run_id for more in ([], *([f"curation.judge_path={path}"] for path in paths))]
    assert ids[0] == ids[1] == ids[2] != ids[3]
    assert make_run(tmp_path, *SMALL, "curation.judge_tokens=9").run_id == make_run(tmp_path, *SMALL).run_id


# --- report -----------------------------------------------------------------------------------------------------------


def test_the_report_shows_what_the_judge_said():
    judge = {"judged": 90, "wrong_step": 12, "unreadable": {"cut": 3, "no_verdict": 1}}
    runs = [reported(1, completions_asked=100, completions_kept=90, refused={"wrong_answer": 10}, judge=judge)]
    table = _verdicts(settings([*runs, reported(2, method="fine_tune", diversity=None, completions_asked=0)]))
    assert table.columns[1:] == ("asked", "kept", "kept %", "wrong answer", "judge: wrong", "judge: unreadable")
    assert [row[1:] for row in table.rows] == [("100", "90", "90.0", "10", "12", "4")]
