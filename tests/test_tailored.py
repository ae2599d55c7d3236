"""Tailored learning: exam, feedback, rounds, why rounds end; and a kill at any point changes no result."""

from __future__ import annotations

import json
import random
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import zygote
from configurations import make_run
from fake_openai import FakeServer
from students import save_gpt2, save_t5

from fcot.base.errors import BudgetSpent, ConfigFaults, FcotError
from fcot.base.files import read_json, read_jsonl
from fcot.base.records import ExamResult, Prediction, Problem
from fcot.curation.filters import Rules, curate
from fcot.estimate.dry_run import estimate
from fcot.evaluation.patience import out_of_patience
from fcot.methods.table import METHODS
from fcot.methods.tailored.config import TailoredConfig
from fcot.methods.tailored.exam import examine, summarize
from fcot.methods.tailored.feedback import Case, as_question, cases, feedback_prompt
from fcot.methods.tailored.rounds import _stop_reason
from fcot.prompts.answers import AnswerRule
from fcot.prompts.student import Demonstration
from fcot.prompts.teacher import STUDENTS_ANSWER, TeacherPrompt
from fcot.runs.pipeline import execute
from fcot.tasks.toy import TOY_TASKS, make_problems
from fcot.teacher.oracle import Oracle

NUMBER = AnswerRule("number")
PROMPT = TeacherPrompt("p", "{question}", {"number": "The answer is"})
FORM = METHODS["tailored"].formats["decoder"]
TEMPLATE = 'Question: {question}\n\n{mistakes}\n\n{hint}Explain. End with one sentence that begins with "{trigger}".'
TINY = [
    "method=tailored", "dataset.n_problems=60", "diversity=2", "trainer.max_steps=30", "trainer.warmup_steps=5",
    "trainer.evaluate_every_steps=15", "student.width=16", "student.layers=1", "student.max_new_tokens=40", "method.rounds=2",
    "method.exam.samples=2",
]  # fmt: skip
PROBLEMS = {index: Problem(index, f"Question {index}?", "7") for index in range(4)}


def prediction(text, correct, index=0):
    return Prediction(index, "Why?", "7", text, None, correct, True, 3)


def result(index, n_correct, *mistakes):
    return ExamResult(index, "Why?", "7", 4, n_correct, mistakes, ())


# --- exam ---------------------------------------------------------------------------------------------------------------


def test_mistakes_are_the_distinct_wrong_answers():
    examined = examine(
        [prediction(" a", False), prediction("b", True), prediction("a", False), prediction("", False), prediction("b", True)]
    )
    assert (examined.mistakes, examined.right, examined.n_correct, examined.n_answers) == (["a", ""], ["b"], 2, 5)
    assert examine([prediction("a", False), replace(prediction("no end", False), complete=False)]).unfinished == ["no end"]
    assert summarize([examined, result(1, 4)]) == {"examined": 2, "pass_rate": (0.4 + 1) / 2, "failed_problems": 1, "mistakes": 2}


# --- feedback -----------------------------------------------------------------------------------------------------------


def requested(chosen):
    return [(case.problem.sample_index, *case.mistakes) for case in chosen]


def test_feedback_is_requested_for_mistakes_within_the_limits():
    results = [result(0, 1, "a", "b", "c"), result(1, 4), result(2, 0, "d"), result(3, 3, "e", "f")]
    assert requested(cases(results, PROBLEMS, 1, 1, None)) == [(0, "a"), (2, "d"), (3, "e")]
    assert requested(cases(results, PROBLEMS, 2, 1, None)) == [(0, "a", "b"), (2, "d"), (3, "e", "f")]
    assert requested(cases(results, PROBLEMS, 1, 2, None)) == [(0, "a"), (0, "b"), (2, "d"), (3, "e"), (3, "f")]
    assert requested(cases(results, PROBLEMS, 1, 3, 2)) == [(0, "a"), (2, "d")], "problems with the lowest pass rate, one request each"
    assert requested(cases(results, PROBLEMS, 1, 3, 4)) == [(0, "a"), (0, "b"), (2, "d"), (3, "e")], "second requests come last"


@pytest.mark.parametrize("hint", [True, False])
def test_a_feedback_request_has_question_mistakes_hint_and_trigger(hint):
    case = Case(PROBLEMS[1], ["So {x} 9.\nAnswer: 9", "no end"])
    text = as_question(case, TEMPLATE, hint, FORM, PROMPT, NUMBER).question
    assert text.startswith("Question: Question 1?\n\n" + STUDENTS_ANSWER + " 1: So {x} 9.\nThe student's conclusion: 9")
    assert f"{STUDENTS_ANSWER} 2: no end\nThe student's conclusion: none" in text
    assert ("the right answer is 7" in text) is hint
    assert text.endswith('begins with "The answer is".')
    chat, plain = (feedback_prompt(64, PROMPT, chat) for chat in (True, False))
    assert chat.first_request(text, NUMBER, True) == [{"role": "user", "content": text}]
    assert plain.first_request(text, NUMBER, False) == text + "\n\nReasoning:"
    assert plain.split("So 3 + 4 = 7. The answer is 7.", NUMBER) == ("So 3 + 4 = 7.", "7.")


@pytest.mark.parametrize("task", TOY_TASKS)
def test_the_oracle_explains_the_first_wrong_step(task):
    toy, oracle = TOY_TASKS[task], Oracle(task, 0.0, 0.7)
    for problem in make_problems(toy, 20, seed=5):
        plain = toy.rationale(problem.question, 3, None)
        assert toy.first_wrong(problem.question, plain) is None
        for seed in range(4):
            wrong = toy.rationale(problem.question, 3, random.Random(seed))
            place = toy.first_wrong(problem.question, wrong)
            same = [slipped == right for slipped, right in zip(toy.results(wrong), toy.results(plain), strict=True)]
            assert place == same.index(False)
            case = as_question(Case(problem, [wrong]), TEMPLATE, True, FORM, PROMPT, NUMBER).question
            reply = oracle._feedback(case, seed)
            assert reply.endswith(f" The answer is {problem.answer}.")
            explained = {len(toy.rationale(problem.question, wording, None, place)) for wording in range(toy.n_wordings)}
            assert len(reply.partition(" The answer is")[0]) - 1 in explained
            assert len(toy.rationale(problem.question, 3, None, place)) > len(plain)
            assert toy.results(toy.rationale(problem.question, 3, None, place)) == toy.results(plain)


def test_explained_steps_have_smaller_steps():
    toy = TOY_TASKS["toy_arithmetic"]
    question = "Ada has 4 coins. Ben gives 3. Cleo takes 2. How many coins are left?"
    assert toy.rationale(question, 0, None, 0) == (
        "Ada has 4. Ben gives 3: from 4 count up 3, that is 5, 6, 7. Ben gives 3, so 4 + 3 = 7. Cleo takes 2, so 7 - 2 = 5. So 5 are left."
    )
    assert "Cleo takes 2: from 7 count down 2, that is 6, 5." in toy.rationale(question, 0, None, 1)
    assert "Milo is spelt M, i, l, o." in TOY_TASKS["toy_last_letter"].rationale(
        'Take the last letters of the words in "Ada Milo" and concatenate them.', 0, None, 1
    )
    coin = TOY_TASKS["toy_coin_flip"].rationale("A coin is heads up. Ada flips the coin. Is it still heads up?", 0, None, 0)
    assert "Now look: Ada flips the coin, and the other side of heads is tails." in coin


def test_the_oracle_makes_no_slip_if_the_request_states_the_answer():
    toy, oracle = TOY_TASKS["toy_arithmetic"], Oracle("toy_arithmetic", 1.0, 0.7)
    problems = make_problems(toy, 10, seed=2)
    right = {}
    for hint in (True, False):
        requests = [as_question(Case(problem, ["?"]), TEMPLATE, hint, FORM, PROMPT, NUMBER).question for problem in problems]
        replies = [oracle._feedback(request, 0)[:-1] for request in requests]
        right[hint] = [toy.conclusion(reply) == problem.answer for reply, problem in zip(replies, problems, strict=True)]
    assert all(right[True])
    assert not any(right[False])
    with pytest.raises(FcotError, match='behind "Question: "'):
        oracle._feedback(f"What of this? {STUDENTS_ANSWER}: 5", 0)


def test_demonstrations_precede_the_question_and_never_contain_its_answer():
    form = METHODS["tailored"].formats["decoder"]
    demonstrations = (Demonstration("What?", "Because.", "3"), Demonstration("Why {not}?", "So.", "4"))
    with_demonstrations = type(form)(form.prompt_template, form.completion_template, form.answer_prefix, demonstrations)
    assert with_demonstrations.prompt("Who?") == (
        "Question: What?\nReasoning: Because.\nAnswer: 3\n\nQuestion: Why {not}?\nReasoning: So.\nAnswer: 4\n\nQuestion: Who?\nReasoning:"
    )
    assert with_demonstrations.prompt("What?") == "Question: Why {not}?\nReasoning: So.\nAnswer: 4\n\nQuestion: What?\nReasoning:"
    for layout, expected in (
        ("encoder_decoder", "Question: What? Reasoning: Because. Answer: 3\n\nQuestion: Who? Reasoning:"),
        ("chat", "Question: What?\nReasoning: Because.\nAnswer: 3\n\nQuestion: Who?"),
    ):
        assert replace(METHODS["tailored"].formats[layout], demonstrations=demonstrations[:1]).prompt("Who?") == expected
    assert form.split(" Because.\nAnswer: 3") == ("Because.", "3")
    assert form.split("endless") == ("endless", "")
    for layout in METHODS["tailored"].formats.values():
        assert layout.split(layout.completion("3", "Because so.")) == ("Because so.", "3")


# --- rounds -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """A run of ``TINY`` and its metrics."""
    run = make_run(tmp_path_factory.mktemp("tiny"), *TINY)
    return run, execute(run, "")


def test_a_tailored_run_writes_the_files_and_metrics_of_every_round(tiny_run):
    run, metrics = tiny_run
    folder = run.directory.path
    first, second = metrics["rounds"]
    assert not (folder / "round_1" / "exam.jsonl").exists(), "a student from scratch can answer nothing yet"
    assert {path.name for path in (folder / "round_2").iterdir()} >= {
        "exam.jsonl", "feedback.jsonl", "curated.jsonl", "predictions.jsonl", "metrics.json", "student",
    }  # fmt: skip
    exam = list(read_jsonl(folder / "round_2" / "exam.jsonl"))
    assert [row["sample_index"] for row in exam] == run.split.train
    failed = {row["sample_index"] for row in exam if row["mistakes"]}
    feedback = list(read_jsonl(folder / "round_2" / "feedback.jsonl"))
    assert {row["sample_index"] for row in feedback} == failed
    mistakes = {row["sample_index"]: set(row["mistakes"]) for row in exam}
    assert all(set(row["mistakes"]) <= mistakes[row["sample_index"]] for row in feedback)
    kept = {number: sum(row["kept"] for row in read_jsonl(folder / f"round_{number}" / "curated.jsonl")) for number in (1, 2)}
    assert (first["n_reasoning_samples"], second["n_reasoning_samples"]) == (kept[1], kept[1] + kept[2])
    assert 0 < second["reflection_share"] <= 1
    assert first["reflection_share"] is None
    assert metrics["completions_asked"] == first["completions_asked"] + len(feedback)
    assert [row["round"] for row in read_jsonl(run.directory.curated)].count(2) == len(feedback)
    verdicts = list(read_jsonl(run.directory.curated))
    assert metrics["completions_unanswered"] == sum(row["prediction"] is None for row in verdicts)
    assert metrics["completions_empty"] == sum(not row["rationale"] for row in verdicts)
    assert metrics["completions_cut"] == 0
    best = folder / f"round_{metrics['best_round']}"
    assert run.directory.predictions.read_bytes() == (best / "predictions.jsonl").read_bytes()
    assert (run.directory.student / "model.safetensors").read_bytes() == (best / "student" / "model.safetensors").read_bytes()
    assert metrics["accuracy"] == metrics["rounds"][metrics["best_round"] - 1]["accuracy"]
    assert metrics["rounds_ended"] == "rounds"
    assert metrics["test_questions_also_in_train"] == 0
    assert not set(run.split.test) & {row["sample_index"] for row in exam}


def round_files(run):
    """Contents of the files of all rounds, by name."""
    folder = run.directory.path
    numbers = range(1, 1 + len(list(folder.glob("round_*"))))
    names = (
        "exam.jsonl",
        "own.jsonl",
        "retries.jsonl",
        "sampler/student/model.safetensors",
        "feedback.jsonl",
        "curated.jsonl",
        "predictions.jsonl",
        "student/model.safetensors",
    )
    files = [folder / f"round_{number}" / name for number in numbers for name in names]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.exists()}


def test_rounds_are_reproducible_and_depend_on_their_options(tiny_run, tmp_path):
    once, _ = tiny_run
    again = make_run(tmp_path, *TINY)
    execute(again, "")
    assert round_files(once) == round_files(again)
    without = make_run(tmp_path, *TINY, "method.reflection.weight=0")
    execute(without, "")
    assert without.run_id != once.run_id
    with_reflection, without_reflection = round_files(once), round_files(without)
    same = {name for name in with_reflection if with_reflection[name] == without_reflection[name]}
    assert {"round_1/student/model.safetensors", "round_2/exam.jsonl", "round_2/feedback.jsonl"} <= same
    assert "round_2/student/model.safetensors" not in same


def test_options_choose_the_samples_and_the_first_student_of_a_round(tmp_path):
    metrics = execute(make_run(tmp_path, *TINY, "method.accumulate=false"), "")
    assert metrics["rounds"][1]["n_reasoning_samples"] == metrics["rounds"][1]["completions_kept"]
    restarted = make_run(tmp_path, *TINY, "method.start=pretrained", "method.round_weights=[1,0]", "method.reflection.weight=0")
    execute(restarted, "")
    files = round_files(restarted)
    assert files["round_1/student/model.safetensors"] == files["round_2/student/model.safetensors"], "the same training twice"


@pytest.mark.parametrize("source", ["plain", "self"])
def test_plain_rationales_or_own_answers_can_replace_feedback(source, tiny_run, tmp_path):
    settings = [*TINY]
    if source == "self":  # a guess about a coin is right half of the time
        settings += [
            "dataset=toy_coin_flip",
            "trainer.max_steps=200",
            "student.width=32",
            "student.max_new_tokens=80",
            "method.reflection.weight=0",
        ]
    run = make_run(tmp_path, *settings, f"method.feedback.source={source}")
    metrics = execute(run, "")
    folder = run.directory.path
    rows = list(read_jsonl(folder / "round_2" / "feedback.jsonl"))
    exam = {row["sample_index"]: row for row in read_jsonl(folder / "round_2" / "exam.jsonl")}
    assert all(row["mistakes"] == [] for row in rows)
    second = metrics["rounds"][1]
    if source == "plain":
        tailored = tiny_run[1]
        assert second["completions_asked"] == tailored["rounds"][1]["completions_asked"], "as many plain rationales as feedback replies"
        assert second["teacher_usage"]["requests"] == 2 * len(rows), "rationale and answer"
        first = {(row["sample_index"], row["rationale"]) for row in read_jsonl(folder / "round_1" / "curated.jsonl")}
        assert not first & {(row["sample_index"], row["rationale"].strip()) for row in rows}
        assert second["teacher_usage"]["served_from_store"] == 0
        again = make_run(tmp_path, *TINY, "method.feedback.source=plain", "method.reflection.weight=0")
        assert execute(again, "")["rounds"][1]["teacher_usage"]["requests"] == 0, "what is in the store is not bought again"
    else:
        assert second["teacher_usage"]["requests"] == 0
        assert second["completions_kept"] == second["completions_asked"] == len(rows) > 0
        for row in rows:
            assert any(text.startswith(row["rationale"]) for text in exam[row["sample_index"]]["right"])


def test_a_repeated_mistake_gets_a_new_reply_and_is_paid_once(tmp_path):
    """The student learns nothing and always takes the likeliest token, so it makes the same mistakes in every round."""
    run = make_run(tmp_path, *TINY, "method.rounds=3", "trainer.lr=1e-12", "method.exam.top_k=1", "method.exam.samples=1")
    metrics = execute(run, "")
    second, third = ([*read_jsonl(run.directory.round(number).feedback)] for number in (2, 3))
    assert [(row["sample_index"], row["mistakes"]) for row in second] == [(row["sample_index"], row["mistakes"]) for row in third]
    assert sum(earlier["rationale"] == later["rationale"] for earlier, later in zip(second, third, strict=True)) < len(third) / 4
    usages = [round_metrics["teacher_usage"] for round_metrics in metrics["rounds"]]
    assert [usage["requests"] for usage in usages[1:]] == [len(second), len(third)]
    assert [usage["served_from_store"] for usage in usages[1:]] == [0, 0]
    rows = [line for path in (tmp_path / "store").glob("*/*/*/*.jsonl") for line in path.read_text().splitlines()]
    assert metrics["teacher_usage"]["requests"] == len({json.loads(line)["request"] for line in rows})
    assert metrics["completions_correct"] >= metrics["completions_kept"]


def test_rounds_end_by_patience_few_mistakes_or_nothing_kept(tmp_path):
    for accuracies, ends in (
        ([0.5], False),
        ([0.5, 0.4], False),
        ([0.5, 0.4, 0.3], True),
        ([0.5, 0.5, 0.5], True),
        ([0.5, 0.4, 0.6], False),
        ([None, None, None], False),  # too few problems for a validation part
    ):
        metrics = [{"validation_accuracy": accuracy, "round": number} for number, accuracy in enumerate(accuracies, 1)]
        assert out_of_patience(metrics, 2) is ends
    method = TailoredConfig(min_mistakes=5)
    assert _stop_reason(method, "exam", {"failed_problems": 4}) == "few_mistakes"
    assert _stop_reason(method, "exam", {"failed_problems": 5}) is None
    assert _stop_reason(method, "curate", {"kept": 0}) == "nothing_kept"
    ended = execute(make_run(tmp_path, *TINY, "method.min_mistakes=1000"), "")
    assert (ended["rounds_ended"], len(ended["rounds"])) == ("few_mistakes", 1)
    assert ended["exam_of_no_round"]["failed_problems"] < 1000
    assert ended["seconds"]["exam"] > 0
    rejected = execute(
        make_run(tmp_path, *TINY, "method.feedback.hint=false", "teacher.error_rate=0.9", "method.feedback.max_requests=1"), ""
    )
    assert (rejected["rounds_ended"], len(rejected["rounds"])) == ("nothing_kept", 1)
    assert rejected["completions_asked"] == rejected["rounds"][0]["completions_asked"] + 1
    assert rejected["teacher_usage"]["requests"] == rejected["rounds"][0]["teacher_usage"]["requests"] + 1
    ended = execute(make_run(tmp_path, *TINY, "method.feedback.hint=false", "teacher.error_rate=0.9", "method.feedback.max_requests=1",
                             "teacher.error_rate=0.999", "curation=none", "curation.filters=[golden]",
                             f"curation.golden={golden(tmp_path)}"), "")  # fmt: skip
    assert len(ended["rounds"]) == 2, "golden ids name the completions of round 1"


def golden(folder):
    path = folder / "golden.json"
    path.write_text(json.dumps(list(range(60))))
    return path


@pytest.mark.parametrize(("save", "examined"), [(save_gpt2, True), (save_t5, True), (save_gpt2, False)])
def test_a_pretrained_student_takes_its_first_exam_with_demonstrations(save, examined, tmp_path, monkeypatch):
    from fcot.stages import answering

    folder = save(tmp_path / "model")
    student = "gpt2" if save is save_gpt2 else "t5_small"
    overrides = [] if examined else ["method.reflection.weight=0"]
    run = make_run(
        tmp_path, "method=tailored", f"student={student}", f"student.path={folder}", "dataset.n_problems=40", "diversity=2",
        "trainer.max_steps=2", "trainer.batch_size=4", "trainer.evaluate_every_steps=null", "student.max_new_tokens=12",
        "method.rounds=1", "method.demonstrations=2", "method.exam.samples=2", "trainer.precision=32-true", *overrides,
    )  # fmt: skip
    encoded = []
    encode = answering.encode_questions

    def watched(student, form, questions, limit):
        encoded.append((form, questions))
        return encode(student, form, questions, limit)

    monkeypatch.setattr(answering, "encode_questions", watched)
    metrics = execute(run, "")
    assert (run.directory.round(1).exam.exists()) is examined
    assert all(len(form.demonstrations) == 2 for form, _ in encoded)
    kept = [row for row in read_jsonl(run.directory.round(1).curated) if row["kept"]]
    assert {demonstration.rationale for form, _ in encoded for demonstration in form.demonstrations} <= {row["rationale"] for row in kept}
    if examined:
        assert encoded[0][1] == [problem.question for problem in run.select(run.split.train)]
        assert metrics["rounds"][0]["reflection_share"] > 0
        for row in read_jsonl(run.directory.round(1).exam):
            assert not any("Question:" in text for text in row["mistakes"])
    interface = read_json(run.directory.student / "fcot.json")
    assert len(interface["format"]["demonstrations"]) == 2
    assert "Reasoning:" in (run.directory.student / "README.md").read_text()


@pytest.mark.parametrize(("overrides", "message"), [
    (["student=openai_gpt4_1_nano"], "method=tailored trains local students"),
    (["teacher=replay", "teacher.path=x", "dataset=svamp"], "cannot reply to feedback requests: method.feedback.source=self"),
    (["until=train"], "use until=curate or until=evaluate"),
    (["method.round_weights=[1,2]"], "one weight for each of method.rounds=3"),
    (["method.round_weights=[0,1,1]"], "a round would have nothing to train on"),
    (["method.round_weights=[1,0,1]", "method.accumulate=false"], "a round would have nothing to train on"),
    (["method.feedback.source=other"], "method.feedback.source=other: choose from feedback, plain, self, both"),
    (["method.reflection.representation=first"], "choose from last, rationale, mean"),
    (["method.exam.temperature=0"], "an exam's answers are sampled"),
    (["method.feedback.template=Why?"], "the template must contain {question}"),
    (["method.feedback.path=nowhere.txt"], "method.feedback.path=nowhere.txt: no such file"),
    (["method.patience=1", "trainer.selection=last"], "method.patience needs validation problems"),
    (["method.rounds=0"], "method.rounds=0: at least 1"),
    (["method.feedback.template='{question} {mistakes}'"], "requests would not state the answer. Add {hint}, or set method.feedback.hint"),
    (["curation.labels=vote_all"], "curation.labels=vote_all: an exam needs gold answers"),
    (["trainer.loss_mean=other"], "choose from weighted, counted"),
])  # fmt: skip
def test_wrong_options_are_reported_before_any_request(overrides, message, tmp_path):
    with pytest.raises(ConfigFaults, match=re.escape(message)):
        make_run(tmp_path, "method=tailored", *overrides)


def test_a_template_file_without_its_parts_is_an_error(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("Look: {question}")
    with pytest.raises(FcotError, match=r"method\.feedback\.path=.*must contain \{mistakes\}"):
        make_run(tmp_path, *TINY, f"method.feedback.path={path}")
    path.write_text(TEMPLATE)
    run_id = make_run(tmp_path, *TINY, f"method.feedback.path={path}").run_id
    path.write_text(TEMPLATE + " Please.")
    assert make_run(tmp_path, *TINY, f"method.feedback.path={path}").run_id != run_id


def test_replies_are_curated_like_other_completions():
    from fcot.base.records import Completion

    prompt = feedback_prompt(64, PROMPT, True)
    drawn = [Completion(1, n, *prompt.split(text, NUMBER), "stop") for n, text in enumerate(
        ["So 3 + 4 = 7. The answer is 7.", "So 3 + 4 = 8. The answer is 8.", "So 3 + 4 = 8. The answer is 7."])]  # fmt: skip
    rows = list(curate(drawn, PROBLEMS, NUMBER, prompt.read, Rules(("answer", "arithmetic"))))
    assert [row.reason for row in rows] == [None, "wrong_answer", "wrong_equation"]


# --- money and kills ------------------------------------------------------------------------------------------------------


def paid(folder, server, *overrides):
    return [
        *TINY, "teacher=openai", "teacher.model=gpt-4.1-mini", f"teacher.base_url={server.base_url}", f"output_dir={folder}",
        "prompt.rationale_tokens=256", "dataset.n_problems=40", *overrides,
    ]  # fmt: skip


def test_the_dry_run_estimates_the_cost_of_later_rounds(tmp_path, run_fcot):
    settings = [
        *TINY,
        "method.rounds=3",
        "teacher=openai",
        "teacher.model=gpt-4.1-mini",
        "teacher.base_url=http://127.0.0.1:9",
        "dry_run=true",
    ]
    run = make_run(tmp_path, *settings)
    needs = estimate(run, {}).round
    n = len(run.split.train)
    assert needs.rounds == 2
    assert needs.requests.tolist() == [0, n / 2, n]
    assert needs.usd[0] == 0 < needs.usd[1] < needs.usd[2]
    plain = estimate(
        make_run(tmp_path, *settings, "method.feedback.source=plain", "prompt=zero_shot_cot", "teacher.endpoint=completions"), {}
    ).round
    assert plain.requests.tolist() == [0, n, 2 * n], "rationale and answer"
    assert plain.prompt_tokens[1] > 2 * plain.requests[1] * 20
    capped = make_run(tmp_path, *settings, "method.feedback.requests=2", "method.feedback.max_requests=5")
    assert estimate(capped, {}).round.requests.tolist() == [0, 5, 5]
    assert estimate(make_run(tmp_path, *settings, "method.feedback.source=self"), {}).round.usd.tolist() == [0, 0, 0]
    output = run_fcot(*settings).stdout
    assert re.search(r"later rounds \(2\): requests\s+\d", output)
    assert re.search(r"later rounds: price online\s+\$", output)


def test_a_spent_budget_ends_the_rounds_and_a_larger_budget_continues_them(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FakeServer() as server:
        free = make_run(tmp_path / "free", *paid(tmp_path / "free", server)[:-1])
        unbounded = execute(free, "")
        spent = [round_metrics["teacher_usage"]["usd"] for round_metrics in unbounded["rounds"]]
        assert all(spent)
        between = spent[0] + spent[1] / 3
        bounded = make_run(tmp_path, *paid(tmp_path, server)[:-1], f"teacher.budget_usd={between + 0.001}")
        # The bound on the cost of a request exceeds its actual cost, so that round 2 cannot be paid.
        ended = execute(bounded, "")
        assert (ended["rounds_ended"], len(ended["rounds"])) == ("budget", 1)
        assert bounded.directory.done.exists()
        assert spent[0] <= ended["teacher_usage"]["usd"] <= between + 0.001, "the usage of the aborted round counts"
        larger = make_run(tmp_path, *paid(tmp_path, server)[:-1], "teacher.budget_usd=10")
        assert larger.run_id == bounded.run_id
        continued = execute(larger, "")
        assert continued["rounds_ended"] == "rounds"
        assert continued["teacher_usage"]["usd"] == pytest.approx(unbounded["teacher_usage"]["usd"])
        assert round_files(larger) == round_files(free)
        too_small = make_run(tmp_path / "none", *paid(tmp_path / "none", server)[:-1], "teacher.budget_usd=0.00001")
        with pytest.raises(BudgetSpent):
            execute(too_small, "")


FAULTS = {"seed": 3, "429": 0.05, "500": 0.05, "503": 0.03, "reset": 0.05, "invalid_json": 0.03, "slow:1": 0.02}
PLACES = [
    "round_1/curated.jsonl", "round_1/checkpoints/step_*", "round_1/student/config.json", "round_1/predictions.jsonl",
    "round_2/exam.jsonl", "store", "round_2/feedback.jsonl", "round_2/curated.jsonl", "round_2/checkpoints/step_*",
    "round_2/student/config.json", "round_2/predictions.jsonl", "round_2/metrics.json",
]  # fmt: skip
SOME = ["store", "round_2/checkpoints/step_*"]


def reached(folder: Path, place: str) -> bool:
    if place == "store":
        return any(path.stat().st_size > 0 for path in folder.glob("store/*/*/feedback/*.jsonl"))
    return bool(list(folder.glob(f"runs/*/{place}")))


@pytest.mark.parametrize(
    ("places", "options"),
    [
        (SOME, ()),
        (SOME[1:], ("method.reflection.objective=dpo", "method.reflection.pairs=both")),
        (
            ["round_1/optimizer.pt", "round_2/checkpoints/step_*"],
            ("method.one_schedule=true", "method.carry_optimizer=true", "method.replay=0.5", "method.skip_solved=1"),
        ),
        (
            ["round_2/sampler/checkpoints/step_*", "round_2/sampler/student/config.json", "round_2/own.jsonl"],
            ("method.feedback.source=both", "method.sampler.objective=dpo", "method.sampler.steps=12", "method.exam.samples=8"),
        ),
        (
            ["round_2/feedback.jsonl", "round_2/retries.jsonl"],
            ("method.feedback.form=critique", "method.feedback.source=both", "method.exam.samples=8"),
        ),
        pytest.param(PLACES, (), marks=pytest.mark.slow),
    ],
    ids=["some", "dpo", "continued", "sampler", "critique", "all"],
)
def test_kills_in_any_stage_change_no_result_and_nothing_is_bought_twice(places, options, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FakeServer(FAULTS, latency=0.03, limit=900) as server:
        settings = paid(
            tmp_path / "killed", server, "trainer.max_steps=45", "trainer.checkpoint_every_s=0", "teacher.timeout_s=3", *options
        )
        for place in places:
            process = zygote.start(["-m", "fcot.run", *settings])
            while process.poll() is None and not reached(tmp_path / "killed", place):
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            _, messages = process.communicate(timeout=600)
            assert reached(tmp_path / "killed", place), messages
        run = make_run(tmp_path / "killed", *settings)
        assert not run.directory.done.exists()
        metrics = execute(run, "")
        bought = server.stats()
    with FakeServer() as server:
        kept = [option for option in settings if not option.startswith(("output_dir", "teacher.base_url"))]
        alone = make_run(tmp_path / "alone", *kept, f"teacher.base_url={server.base_url}", f"output_dir={tmp_path / 'alone'}")
        uninterrupted = execute(alone, "")
        needed = server.stats()
    assert round_files(run) == round_files(alone)
    assert [row["accuracy"] for row in metrics["rounds"]] == [row["accuracy"] for row in uninterrupted["rounds"]]
    in_flight = sum(bought["good"].values()) - sum(needed["good"].values())
    assert set(bought["good"]) == set(needed["good"])
    assert in_flight <= 32 * len(places), "only requests in flight at a kill may be paid again"
    lines = [line for path in (tmp_path / "killed").glob("store/*/*/*/*.jsonl") for line in path.read_text().splitlines()]
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    slots = [(row["key"], row["slot"]) for row in rows if row["slot"] is not None]
    assert len(slots) == len(set(slots)), "no slot was bought twice"
