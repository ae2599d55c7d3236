"""The first look at a purchase: unusual faults of the first completions are reported before the rest is bought."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fake_openai import FakeServer

from fcot.base.errors import FcotError
from fcot.base.ranks import World
from fcot.base.records import Completion, CuratedCompletion
from fcot.curation.outcomes import Outcomes, Remedies, advice
from fcot.estimate.preview import preview
from fcot.llm.meter import first_problems
from fcot.runs.pipeline import execute
from fcot.stages import first_look
from fcot.stages.first_look import FirstLook, remedies_of
from fcot.stages.table import GENERATE, Step
from fcot.tasks.toy import TOY_TASKS, make_problems


def generate(run):
    return Step(GENERATE).run(run, World())


SMALL = ("dataset.n_problems=120", "split_mode.validation_fraction=0.05", "until=curate")


@pytest.fixture
def messages(monkeypatch):
    """``messages(at) -> list``: collects the printed messages, each with the value of ``at()`` at that time."""
    printed = []

    def listen(at=lambda: None):
        monkeypatch.setattr(first_look, "say", lambda text: printed.append((text, at())))
        return printed

    return listen


@pytest.fixture
def openai_run(make_run, tmp_path):
    def make(url, *overrides):
        return make_run(tmp_path, "teacher=openai", "teacher.model=fake", f"teacher.base_url={url}", *SMALL, *overrides)

    return make


@pytest.mark.parametrize("diversity", [1, 3, 24])
def test_cut_completions_are_reported_before_the_rest_is_bought(openai_run, messages, diversity):
    with FakeServer({"length": 1.0, "seed": 0}) as server:
        run = openai_run(server.base_url, f"diversity={diversity}", "teacher.max_choices_per_request=1", "teacher.concurrency=50")
        printed = messages(lambda: server.stats()["requests"])
        generate(run)
        ((text, requests),) = printed
        n_problems = first_problems(diversity)
        n_completions = n_problems * diversity
        assert requests == n_completions < diversity * len(run.split.train)
        assert text.startswith(f"warning: the first {n_completions:,} completions: ")
        assert f"{n_completions:,} cut (100 %)" in text
        assert "prompt.rationale_tokens=1024" in text
        assert "prompt.rationale_tokens=2048" in text
        assert server.stats()["requests"] == diversity * len(run.split.train), "then the rest is bought"


@pytest.mark.parametrize(("faults", "override"), [
    ({"empty": 1.0, "seed": 0}, "prompt=custom prompt.path=FILE"),
    ({"length": 0.3, "seed": 1}, "prompt.rationale_tokens=2048"),
])  # fmt: skip
def test_the_report_of_each_fault_names_an_override(openai_run, messages, faults, override):
    with FakeServer(faults) as server:
        printed = messages()
        generate(openai_run(server.base_url, "diversity=1"))
        ((text, _),) = printed
        assert override in text


def test_usual_rates_of_faults_are_not_reported(openai_run, messages):
    with FakeServer() as server:
        printed = messages()
        generate(openai_run(server.base_url, "diversity=2"))
        assert not printed


def test_a_small_purchase_is_reported_at_its_end(openai_run, messages):
    with FakeServer({"length": 1.0, "seed": 0}) as server:
        printed = messages()
        generate(openai_run(server.base_url, "diversity=1", "dataset.limit=4"))
        ((text, _),) = printed
        assert "4 of 4 completions were cut" in text


def test_stored_completions_are_not_checked_again(openai_run, messages):
    with FakeServer({"length": 1.0, "seed": 0}) as server:
        run = openai_run(server.base_url, "diversity=1")
        generate(run)
        printed = messages()
        generate(openai_run(server.base_url, "diversity=1"))
        assert not printed


@pytest.mark.parametrize("same", [True, False])
def test_a_server_that_does_not_sample_is_reported(openai_run, messages, same):
    run, printed = openai_run("http://127.0.0.1:9/v1", "diversity=3"), messages()
    look = FirstLook(run, run.prompt.read, run.rules, remedies_of(run), 3)
    for index in run.split.train[:7]:
        answer = f"Therefore, the answer (arabic numerals) is {run.problems[index].answer}."
        look([Completion(index, draw, text, answer, "stop") for draw, text in enumerate(["a", *(("a", "a") if same else ("b", "c"))])])
    assert [("14 of 14" in text, "diversity=1" in text) for text, _ in printed] == [(True, True)] * same


def test_a_purchase_without_replies_stops_and_names_the_thoughts(openai_run, messages):
    """Before, repeated completions were blamed, and everything was bought at a kept rate of 0 %."""
    with FakeServer({"no_reply": 1.0, "seed": 0}) as server:
        run, printed = openai_run(server.base_url, "diversity=4", "teacher.max_choices_per_request=1"), messages()
        with pytest.raises(FcotError) as error:
            generate(run)
        assert server.stats()["requests"] < 4 * len(run.split.train)
        text = str(error.value)
        assert text.startswith("stopped before the rest was bought: the first 20 completions all have a thought and no reply")
        assert "teacher.parameters={chat_template_kwargs: {enable_thinking: false}}" in text
        assert "repeat" not in text
        with pytest.raises(FcotError, match=r"(?s)no completion survives curation.*no_reply 4.*have a thought and no reply"):
            execute(openai_run(server.base_url, "diversity=1", "dataset.limit=4"), "")
    assert not printed or "repeat" not in printed[0][0]


@pytest.mark.parametrize(("teacher", "n_replies", "stops"), [("openai", 0, True), ("openai", 1, False), ("openai_batch", 0, False)])
def test_a_purchase_stops_only_if_no_completion_has_a_reply_and_the_rest_is_not_bought_yet(
    make_run, tmp_path, messages, teacher, n_replies, stops
):
    run = make_run(tmp_path, f"teacher={teacher}", "teacher.model=fake", "teacher.base_url=http://127.0.0.1:9/v1", *SMALL, "diversity=4")
    look, printed = FirstLook(run, run.prompt.read, run.rules, remedies_of(run), 4), messages()
    replies = {run.split.train[0]} if n_replies else set()

    def judge():
        for index in run.split.train[:6]:
            reason = "stop" if index in replies else "refused:no_reply"
            look([Completion(index, draw, f"So {draw}." if index in replies else "", "", reason) for draw in range(4)])

    if stops:
        with pytest.raises(FcotError, match="stopped before the rest was bought: the first 20 completions all have a thought and no reply"):
            judge()
    else:
        judge()
    assert bool(printed) != stops


def test_thoughts_with_an_answer_are_not_called_repeated_and_are_reused(openai_run, messages):
    """The replies are equal and the thoughts differ: what is bought can be trained on with ``prompt.thinking=only``."""
    run, printed = openai_run("http://127.0.0.1:9/v1", "diversity=3"), messages()
    look = FirstLook(run, run.prompt.read, run.rules, remedies_of(run), 3)
    for index in run.split.train[:7]:
        answer = f" {run.problems[index].answer}."
        look([Completion(index, draw, "", answer, "stop", f"Thought {draw}.") for draw in range(3)])
    ((text, _),) = printed
    assert "21 of 21 completions have a thought and an answer, but no rationale: prompt.thinking=only trains on the thoughts" in text
    assert "what is stored is not bought again" in text
    assert "word for word" not in text
    other = openai_run("http://127.0.0.1:9/v1", "diversity=3", "prompt.thinking=only")
    assert other.plan.key(other.plan.step1(other.problems[0])) == run.plan.key(run.plan.step1(run.problems[0]))


def test_the_evaluation_of_a_teacher_is_checked_too(make_run, messages, tmp_path):
    with FakeServer({"length": 1.0, "seed": 0}) as server:
        printed = messages()
        settings = ("teacher=openai", "teacher.model=fake", f"teacher.base_url={server.base_url}", "dataset.n_problems=120")
        execute(make_run(tmp_path, *settings, "student=teacher", "method=zero_shot_cot"), "")
        ((text, _),) = printed
        assert "were cut at prompt.rationale_tokens=1024; prompt.rationale_tokens=2048" in text


def test_cut_completions_are_counted_and_rejected_unless_curation_is_paper_as(openai_run):
    with FakeServer({"length": 1.0, "seed": 0}) as server:
        result = execute(openai_run(server.base_url, "diversity=1", "curation=none"), "")
        assert (result["cut"], result["kept"]) == (result["asked"], result["asked"])
        with pytest.raises(FcotError, match=r"no completion survives curation: \d+ rejected[^§]*curation=answer keeps them"):
            execute(openai_run(server.base_url, "diversity=1"), "")


def test_a_preview_shows_the_verdict_of_curation(openai_run, capsys):
    with FakeServer({"empty": 1.0, "seed": 0}) as server:
        preview(openai_run(server.base_url, "diversity=1"), 3)
    output = " ".join(capsys.readouterr().out.split())
    assert output.count("rejected: empty") == 3
    assert "3 completions: 3 empty (100 %), 0 cut, 3 unanswered (100 %), 0 correct" in output
    assert "warning: 3 of 3 completions are an answer without a rationale" in output


def test_a_preview_says_that_no_answer_is_right(make_run, tmp_path, capsys):
    path = tmp_path / "own.jsonl"
    questions = [problem.question for problem in make_problems(TOY_TASKS["toy_arithmetic"], 40, seed=5)]
    path.write_text("".join(json.dumps({"question": question, "answer": "-777"}) + "\n" for question in questions))
    own = ("dataset=custom", f"dataset.path={path}", "dataset.answer_type=number", "teacher=openai", "teacher.model=fake")
    with FakeServer() as server:
        preview(make_run(tmp_path, *own, f"teacher.base_url={server.base_url}", "diversity=1"), 3)
    output = " ".join(capsys.readouterr().out.split())
    assert "warning: 3 of 3 completions have a readable answer, and none is right (gold '-777', read" in output


def test_completions_of_the_former_default_prompt_are_reported(openai_run, capsys):
    with FakeServer() as server:
        generate(openai_run(server.base_url, "diversity=1", "prompt=zero_shot_cot_chat", "dataset.limit=6"))
        capsys.readouterr()
        n_requests = server.stats()["requests"]
        generate(openai_run(server.base_url, "diversity=1", "dataset.limit=6"))
        assert "prompt=zero_shot_cot_chat uses them" in capsys.readouterr().err
        assert server.stats()["requests"] == 2 * n_requests
        generate(openai_run(server.base_url, "diversity=1", "prompt=zero_shot_cot_chat", "dataset.limit=6"))
        assert server.stats()["requests"] == 2 * n_requests
        assert "uses them" not in capsys.readouterr().err


@pytest.mark.parametrize(("n_right", "warned"), [(0, True), (1, False)])
def test_a_purchase_without_a_right_answer_is_reported_before_the_rest_is_bought(openai_run, messages, n_right, warned):
    """The gold answers were 'N' and the teacher wrote 'No': the whole purchase was rejected, and only then was it said."""
    run, printed = openai_run("http://127.0.0.1:9/v1", "diversity=4"), messages()
    look = FirstLook(run, run.prompt.read, run.rules, remedies_of(run), 4)
    for number, index in enumerate(run.split.train[:5]):
        gold = run.problems[index].answer
        answers = [gold if number * 4 + draw < n_right else "-777" for draw in range(4)]
        look([Completion(index, draw, f"So {draw}.", f"Therefore, the answer is {answer}.", "stop") for draw, answer in enumerate(answers)])
    assert bool(printed) == warned
    if warned:
        gold = run.problems[run.split.train[0]].answer
        assert f"20 of 20 completions have a readable answer, and none is right (gold {gold!r}, read '-777')" in printed[0][0]
        assert "fcot check" in printed[0][0]


def test_that_no_answer_is_right_is_said_of_three_readable_answers_on():
    remedies = replace(REMEDIES, wrong="Compare.")
    sentences = ["3 of 4 completions have a readable answer, and none is right (gold 'N', read 'No'). Compare."]
    for n_wrong, n_unread, expected in ((3, 1, sentences), (2, 0, []), (3, 4, [])):
        counts = outcomes(*["unanswered"] * n_unread, n_wrong=n_wrong)
        assert [sentence for sentence in advice(counts, remedies) if "right" in sentence] == expected
        assert not [sentence for sentence in advice(counts, replace(remedies, wrong=None)) if "right" in sentence]


REMEDIES = Remedies("are cut", "are empty", "are unanswered", "are thoughts", "have no reply")


def outcomes(*marks, n_wrong=0):
    counts = Outcomes()
    for _ in range(n_wrong):
        counts.count(Completion(0, 0, "x", "No", "stop"), CuratedCompletion(0, 0, "No", False, False, "wrong_answer", "x", "N"), "N")
    for mark in marks:
        reason = {"thought": "thought_only", "thought unanswered": "thought_only", "thought unanswered again": "no_reply"}.get(mark)
        prediction, rationale = None if "unanswered" in mark else "1", "" if mark.startswith(("empty", "thought")) else "x"
        row = CuratedCompletion(0, 0, prediction, prediction is not None, True, reason, rationale, "1")
        counts.count(Completion(0, 0, "x", "1", "length" if mark.startswith("cut") else "stop"), row)
    return counts


def test_a_fault_is_reported_from_a_tenth_and_two_completions_on():
    assert advice(outcomes("empty", *["good"] * 3), REMEDIES) == []
    assert advice(outcomes(*["empty"] * 2, *["good"] * 18), REMEDIES) == ["2 of 20 completions are empty"]
    assert advice(outcomes(*["empty"] * 2, *["good"] * 19), REMEDIES) == []


def test_each_completion_counts_for_its_main_fault():
    counts = outcomes(*["cut unanswered"] * 3, *["unanswered"] * 4, *["thought"] * 5)
    assert (counts.cut, counts.unanswered, counts.empty) == (3, 7, 5)
    assert counts.faults["no_reply"] == 0
    assert outcomes("thought unanswered", "thought unanswered again").faults == {"no_reply": 2}
    sentences = ["3 of 12 completions are cut", "5 of 12 completions are thoughts", "4 of 12 completions are unanswered"]
    assert advice(counts, REMEDIES) == sentences
