"""Rounds that continue each other: schedule, moments, replayed samples, solved problems; and each option's effect."""

from __future__ import annotations

import copy
import csv
import random
import re
from dataclasses import replace

import pytest
import torch
from configurations import make_run
from students import make_rows, make_student, weights_of
from trainings import recipe_of, student_of

from fcot.base.errors import ConfigFaults, FcotError
from fcot.base.files import read_json, read_jsonl, write_jsonl
from fcot.base.ranks import World
from fcot.base.records import Completion, CuratedCompletion, ExamResult, Problem, to_row
from fcot.curation.filters import Rules, curate
from fcot.decoding.engine import DecodingPrompt
from fcot.evaluation.scoring import score
from fcot.methods.tailored import critique, feedback, retry, sampler, stages
from fcot.methods.tailored.exam import solved
from fcot.methods.tailored.retry import _Beginning
from fcot.objectives.completion import CompletionLoss
from fcot.prompts.answers import AnswerRule
from fcot.prompts.steps import before_step
from fcot.prompts.teacher import TeacherPrompt
from fcot.reporting.finished import load
from fcot.reporting.settings import group
from fcot.reporting.tables import accuracy_table
from fcot.runs.pipeline import execute
from fcot.stages.table import TRAIN_ROUND, Context, Step
from fcot.stages.training import load_trained
from fcot.student import training
from fcot.student.continued import Continued, load_moments, save_moments
from fcot.student.decoding import decode
from fcot.student.likelihood import completion_logprobs
from fcot.student.tokenization import tokenize
from fcot.student.training import Hooks, train
from fcot.tasks.toy import TOY_TASKS

TINY = [
    "method=tailored", "dataset.n_problems=60", "diversity=2", "trainer.max_steps=30", "trainer.warmup_steps=5",
    "trainer.evaluate_every_steps=15", "student.width=16", "student.layers=1", "student.max_new_tokens=40", "method.rounds=3",
    "method.exam.samples=1", "method.reflection.weight=0", "method.feedback.max_requests=20",
]  # fmt: skip


def test_one_schedule_goes_over_all_rounds():
    recipe = recipe_of(lr=1.0, warmup_steps=4, schedule="linear")
    alone = Continued().learning_rate(recipe, 30)
    rates = [
        Continued(before, left).learning_rate(recipe, 10).at(step)
        for before, left in ((0, 3), (10, 2), (20, 1)) for step in range(1, 11)
    ]  # fmt: skip
    assert rates == [alone.at(step) for step in range(1, 31)]
    longer = Continued(10, 2).learning_rate(recipe, 20)
    assert longer.at(1) == pytest.approx(1 - 10 / 50), "the round after this one counts as being as long as this one"


def steps_of(student, n, continued=Continued(), seed=0, kept=None):  # noqa: B008 - frozen
    """Train for some steps at a constant rate; returns the moments after the last one."""
    recipe = recipe_of(max_steps=n, warmup_steps=0, schedule="constant", evaluate_every_epochs=None)
    rows = make_rows(student, 24)
    objective = CompletionLoss(rows, training.plan(student, rows, recipe, seed)[0])
    moments = {}
    hooks = Hooks(lambda _: {}, keep_moments=lambda history, entry, state: moments.update(copy.deepcopy(state)))
    train(student, rows, [objective], recipe, hooks, seed=seed, continued=continued)
    return moments


def test_moments_are_carried_over_and_change_the_next_training(tmp_path):
    student = student_of("gpt2")
    first = steps_of(student, 5)
    weights = copy.deepcopy(student.model.state_dict())
    without = steps_of(student, 1, seed=1)
    after_without = weights_of(student)
    student.model.load_state_dict(weights)
    save_moments(tmp_path / "optimizer.pt", first)
    carried = steps_of(student, 1, Continued(moments=load_moments(tmp_path / "optimizer.pt")), seed=1)
    assert {moments["step"].item() for moments in carried.values()} == {6.0}
    assert {moments["step"].item() for moments in without.values()} == {1.0}
    for name, moments in carried.items():
        torch.testing.assert_close(moments["exp_avg"], 0.9 * first[name]["exp_avg"] + without[name]["exp_avg"])
        torch.testing.assert_close(moments["exp_avg_sq"], 0.999 * first[name]["exp_avg_sq"] + without[name]["exp_avg_sq"])
    assert not torch.allclose(after_without, weights_of(student), atol=1e-5)


def test_a_round_continues_schedule_and_moments_of_the_rounds_before(tmp_path, monkeypatch):
    seen, steps = [], []

    def watched(run, number, original=stages._continued):
        seen.append(original(run, number))
        steps.append({moments["step"].item() for moments in (seen[-1].moments or {}).values()})
        return seen[-1]

    monkeypatch.setattr(stages, "_continued", watched)
    run = make_run(tmp_path, *TINY, "method.one_schedule=true", "method.carry_optimizer=true", "logger=csv")
    metrics = execute(run, "")
    assert [(continued.steps_before, continued.trainings_left) for continued in seen] == [(0, 3), (30, 2), (60, 1)]
    best = [max(entry["step"] for entry in best_entries(run, number)) for number in (1, 2)]
    assert steps == [set(), {best[0]}, {best[0] + best[1]}], "the moments are those of the student that the round chose"
    with next((run.directory.round(3).logs).rglob("metrics.csv")).open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    peak = run.config.trainer.lr
    assert rates == pytest.approx([peak * 20 / 90, peak * 10 / 90, 0]), "the log has the rate of the step after"
    assert not list(run.directory.path.rglob("optimizer.pt")), "the moments are removed when no round needs them"
    assert metrics["rounds_ended"] == "rounds"


def best_entries(run, number):
    """The evaluations of a round with its best validation accuracy."""
    history = read_json(run.directory.round(number).stage("train"))["history"]
    best = max(entry["validation_accuracy"] for entry in history)
    return [entry for entry in history if entry["validation_accuracy"] == best]


def test_missing_moments_are_named(tmp_path):
    run = make_run(tmp_path, *TINY, "method.carry_optimizer=true")
    with pytest.raises(FcotError, match=r"round_1/optimizer\.pt is missing.*remove .* and run again"):
        stages._continued(run, 2)


def test_rounds_that_end_early_leave_no_moments(tmp_path):
    run = make_run(tmp_path, *TINY, "method.carry_optimizer=true", "method.min_mistakes=1000")
    assert execute(run, "")["rounds_ended"] == "few_mistakes"
    assert not list(run.directory.path.rglob("optimizer.pt"))


def test_a_share_of_earlier_rounds_is_replayed(tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr(stages, "train_job", lambda _, job: jobs.append(job) or {})
    kept = {1: 21, 2: 7, 3: 5}

    def samples(*options):
        run = make_run(tmp_path, *TINY, *options)
        for number, n in kept.items():
            rows = [CuratedCompletion(index, 0, "1", True, True, None, f"round {number}", "1") for index in run.split.train[:n]]
            write_jsonl(run.directory.round(number).curated, map(to_row, rows))
        stages.train(Context(run, Step(TRAIN_ROUND, 3), World()))
        return jobs[-1].samples

    everything, half, least = samples(), samples("method.replay=0.5"), samples("method.replay=0.001")
    assert len(everything) == 21 + 7 + 5
    assert [sum(sample.rationale == f"round {number}" for sample in half) for number in kept] == [11, 4, 5]
    assert [sum(sample.rationale == f"round {number}" for sample in least) for number in kept] == [1, 1, 5]
    assert [sample for sample in everything if sample in half] == half, "in their order"
    assert samples("method.replay=0.5") == half
    assert samples("method.replay=0.5", "seed=1") != half


def exam_of(**n_correct):
    return [ExamResult(int(name[1:]), "Why?", "7", 2, n, (), ()) for name, n in n_correct.items()]


def test_a_problem_is_solved_after_enough_exams_in_a_row():
    exams = [exam_of(p0=2, p1=2, p2=1, p3=2), exam_of(p0=2, p1=1, p2=2, p3=2), exam_of(p1=2, p2=2)]
    assert solved(exams, None) == set()
    assert solved(exams[:1], 1) == {0, 1, 3}
    assert solved(exams[:2], 2) == {0, 3}
    assert solved(exams, 2) == {0, 2, 3}, "a problem that was left out stays left out"
    assert solved([], 1) == set()


def answer_with(monkeypatch, text_of):
    """Let students answer exams with texts, by sample index and number of the answer; returns the problems of each exam."""
    examined = []

    def answered(run, student, form, indices, world, parameters, advance):
        examined.append(list(indices))
        texts = {index: [text_of(index, number, run.problems[index].answer) for number in range(parameters.n)] for index in indices}
        return [[score(run.problems[index], text, True, 9, form, run.task.rule) for text in texts[index]] for index in indices], {}

    monkeypatch.setattr(stages, "answer_problems", answered)
    return examined


def test_solved_problems_are_left_out_of_later_exams(tmp_path, monkeypatch):
    examined = answer_with(monkeypatch, lambda index, number, gold: f"So.\nAnswer: {gold if index % 2 == 0 else 999}")
    run = make_run(tmp_path, *TINY, "method.skip_solved=1", "trainer.max_steps=5")
    metrics = execute(run, "")
    assert examined == [run.split.train, [index for index in run.split.train if index % 2]]
    left_out = sum(index % 2 == 0 for index in run.split.train)
    assert [row.get("left_out") for row in metrics["rounds"]] == [None, 0, left_out]
    assert [row["sample_index"] for row in read_jsonl(run.directory.round(3).exam)] == examined[1]


# --- the student's own answers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "settings", "texts", "reasons"), [
    ("near_copy", {}, ["a b c d", "A b c e", "a b c d e"], [None, None, "near_copy"]),
    ("near_copy", {"max_similarity": 0.5}, ["a b c d", "A b c e"], [None, "near_copy"]),
    ("same_equations", {}, ["1 + 1 = 2", "So 1+1 = 2, yes.", "1 + 1 = 2. 2 + 1 = 3.", "no sum", "no sum"],
     [None, "same_equations", None, None, None]),
    ("near_copy", {}, ["it is kept  before"], ["near_copy"]),
    ("same_equations", {}, ["8 + 1 = 9"], ["same_equations"]),
])  # fmt: skip
def test_copies_of_kept_rationales_are_rejected(name, settings, texts, reasons):
    rules = Rules((name,), settings=settings, kept_before={0: ["it is kept before", "8+1=9"], 1: [texts[0]]})
    drawn = [Completion(0, number, text, "7", "stop") for number, text in enumerate(texts)]
    prompt = TeacherPrompt("p", "{question}", {"number": "The answer is"})
    rows = curate(drawn, {0: Problem(0, "Why?", "7")}, AnswerRule("number"), prompt.read, rules)
    assert [row.reason for row in rows] == reasons


def own_answer(index, number, gold):
    """A right answer, and then a near copy of it; one with a wrong equation; or a mistake."""
    if index % 4 == 3:
        return "Who knows.\nAnswer: 999"
    equation = "1 + 1 = 2" if index % 4 < 2 else "1 + 1 = 3"
    return f"I know it. {equation}.{' Yes.' * number}\nAnswer: {gold}"


def test_both_learns_feedback_and_own_right_answers(tmp_path, monkeypatch):
    answer_with(monkeypatch, own_answer)
    options = ("method.feedback.source=both", "method.exam.samples=2", "trainer.max_steps=3", "method.rounds=3")
    run = make_run(tmp_path, *TINY, *options)
    metrics = execute(run, "")
    second, third = run.directory.round(2), run.directory.round(3)
    rows = [*read_jsonl(second.feedback)]
    reasons = {(row["sample_index"], row["completion_index"]): row["reason"] for row in read_jsonl(second.curated)}
    own = {(row["sample_index"], row["completion_index"]): row for row in rows if row["own"]}
    assert {index % 4 for index, _ in own} == {0, 1, 2}
    assert {row["sample_index"] % 4 for row in rows if not row["own"]} == {3}
    for place, row in own.items():
        wrong = "= 3" in row["rationale"]
        assert reasons[place] == ("wrong_equation" if wrong else "near_copy" if "Yes" in row["rationale"] else None)
    assert all(reasons[row["sample_index"], row["completion_index"]] is None for row in rows if not row["own"])
    rounds = metrics["rounds"]
    assert [row.get("own_kept") for row in rounds] == [None, sum(index % 4 < 2 for index in run.split.train), 0]
    assert {row["reason"] for row in read_jsonl(third.curated) if row["sample_index"] % 4 < 2} == {"near_copy"}, "as in round 2"
    assert rounds[1]["teacher_usage"]["requests"] == sum(not row["own"] for row in rows)
    assert make_run(tmp_path, *TINY, *options, "method.own.max_similarity=0.8").run_id != run.run_id
    assert make_run(tmp_path, *TINY, "method.own.max_similarity=0.8").run_id == make_run(tmp_path, *TINY).run_id, "feedback reads it not"


SAMPLER = (
    "method.feedback.source=self", "method.sampler.objective=dpo", "method.sampler.steps=20", "method.sampler.lr=3e-3",
    "method.exam.samples=2", "trainer.max_steps=20", "method.rounds=2",
)  # fmt: skip


def half_right(index, number, gold):
    return f"I know {index}.\nAnswer: {gold if number == 0 and index % 2 == 0 else 999}"


def test_a_sampler_writes_the_own_answers(tmp_path, monkeypatch):
    answer_with(monkeypatch, half_right)
    writers = []

    def answered(run, student, form, indices, world, parameters, advance):
        writers.append(student)
        texts = [[f"Now I know.\nAnswer: {run.problems[index].answer}"] * parameters.n for index in indices]
        answers = zip(indices, texts, strict=True)
        return [[score(run.problems[index], text, True, 9, form, run.task.rule) for text in of_one] for index, of_one in answers], {}

    monkeypatch.setattr(sampler, "answer_problems", answered)
    run = make_run(tmp_path, *TINY, *SAMPLER)
    metrics = execute(run, "")
    second = run.directory.round(2)
    tuned = read_json(second.stage("sampler"))
    evens = [index for index in run.split.train if index % 2 == 0]
    assert (tuned["n_steps"], tuned["n_pairs_of_problems"], tuned["sampler_share"]) == (20, len(evens), 1.0)
    own = [*read_jsonl(second.own)]
    assert [(row["sample_index"], row["n_answers"]) for row in own] == [(index, 3) for index in run.split.train]
    feedback = [*read_jsonl(second.feedback)]
    assert {row["rationale"] for row in feedback} == {"Now I know."}
    assert all(row["own"] for row in feedback)
    assert metrics["rounds"][1]["own_kept"] == len(run.split.train)
    before, wrong_before = mean_logprobs(load_trained(run, run.directory.round(1)), evens, run)
    after, wrong_after = mean_logprobs(writers[0], evens, run)
    assert after - wrong_after > before - wrong_before + 0.5, "right answers are preferred to wrong ones"
    assert not (second.sampler.checkpoints).exists()


def mean_logprobs(student, indices, run):
    """Mean log-probability of the right and of the wrong answers of ``half_right``."""
    form = run.method.formats[student.architecture]
    means = []
    for number in (0, 1):
        texts = [(run.problems[index].question, " " + half_right(index, number, run.problems[index].answer)) for index in indices]
        rows = tokenize(student, form, texts, max_prompt=400, max_completion=99)
        layout = training.plan(student, rows, recipe_of(), 0)[0]
        means.append(completion_logprobs(student, [*rows], layout, "32-true", World()).mean())
    return means


def test_without_pairs_the_student_samples_as_it_is(tmp_path, monkeypatch, capsys):
    answer_with(monkeypatch, lambda index, number, gold: f"So.\nAnswer: {gold}" if index % 2 else "So.\nAnswer: 999")
    run = make_run(tmp_path, *TINY, *SAMPLER, "method.sampler.samples=1", "trainer.max_steps=5")
    execute(run, "")
    first, second = run.directory.round(1), run.directory.round(2)
    assert "the student samples as it is" in capsys.readouterr().err
    assert (second.sampler.student / "model.safetensors").read_bytes() == (first.student / "model.safetensors").read_bytes()
    assert second.own.exists()


@pytest.mark.parametrize(("preset", "title"), [("star", "STaR"), ("rft", "RFT"), ("dpo_st", "DPO-ST")])
def test_presets_of_self_training_run_and_reports_name_them(preset, title, tmp_path, monkeypatch):
    answer_with(monkeypatch, own_answer)
    monkeypatch.setattr(sampler, "answer_problems", stages.answer_problems)
    small = [override for override in TINY if not override.startswith(("method=", "method.r"))]
    run = make_run(tmp_path, f"method={preset}", *small, "trainer.max_steps=3", "method.rounds=2", "method.exam.samples=1")
    metrics = execute(run, "")
    first, second = metrics["rounds"]
    assert metrics["method"] == "tailored"
    assert title in accuracy_table(group([load(run.directory.metrics)])).rows[0]
    assert f", {title} on " in (run.directory.student / "README.md").read_text()
    assert second["own_kept"] > 0
    own_only = run.config.method.feedback.source == "self"
    assert (run.directory.round(2).sampler.student.exists()) is (preset == "dpo_st")
    assert (second["teacher_usage"]["requests"] == 0) is own_only
    assert second["n_reasoning_samples"] == second["completions_kept"] + (0 if preset == "star" else first["completions_kept"])
    assert run.config.method.reflection.active is False


# --- forms of feedback -----------------------------------------------------------------------------------------------------

WRONG = "Ada has 4. Ben gives 3, so 4 + 3 = 8.\n So 8 are left."


def test_a_critique_names_the_step_from_which_the_student_goes_on():
    assert critique.numbered(WRONG) == "1. Ada has 4.\n2. Ben gives 3, so 4 + 3 = 8.\n3. So 8 are left."
    beginnings = [before_step(WRONG, number) for number in (1, 2, 3, 4)]
    assert beginnings == ["", "Ada has 4.", "Ada has 4. Ben gives 3, so 4 + 3 = 8.", WRONG]
    for text, number in (
        ("It adds wrongly. First wrong step: 2", 2), ("**First wrong step:** 12.", 12), ("first wrong step is step 3", None),
        ("First wrong step: Step 3", 3), ("The second step.", None), ("First wrong step: 0", None),
        ("Not First wrong step: 1, but First wrong step: 2", 2),
    ):  # fmt: skip
        assert critique.wrong_step(text) == number, text


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_second_try_has_the_beginning_and_the_most_likely_rest(family):
    student = make_student(family, noise=0.1)
    beginning = student.tokenizer("one and two", add_special_tokens=False)["input_ids"]
    prompt = student.tokenizer("How many?", add_special_tokens=False)["input_ids"]
    limit = len(beginning) + 6
    (answer,) = decode(student, [DecodingPrompt(prompt, limit, reviser=lambda: _Beginning(beginning))], max_tokens=400)
    assert list(answer.ids[: len(beginning)]) == beginning
    written = list(beginning)
    with torch.no_grad():
        while len(written) < len(answer.ids):
            if family == "t5":
                before = torch.tensor([[student.tokenizer.pad_token_id, *written]])
                logits = student.model(input_ids=torch.tensor([prompt]), decoder_input_ids=before).logits[0, -1]
            else:
                logits = student.model(input_ids=torch.tensor([[*prompt, *written]])).logits[0, -1]
            written.append(int(logits.argmax()))
    assert written == list(answer.ids)


def slip(index, number, gold, problems):
    """The task's rationale with a slip in its second step."""
    toy = TOY_TASKS["toy_arithmetic"]
    for seed in range(99):
        text = toy.rationale(problems[index].question, 0, random.Random(seed))
        if toy.first_wrong(problems[index].question, text) == 1:
            return f"{text}\nAnswer: 999"
    raise AssertionError(problems[index].question)


@pytest.mark.parametrize("source", ["feedback", "both"])
def test_after_a_critique_the_student_tries_again(source, tmp_path, monkeypatch):
    options = ("method.feedback.form=critique", f"method.feedback.source={source}", "method.rounds=2", "method.feedback.retries=2")
    run = make_run(tmp_path, *TINY, *options, "trainer.max_steps=5")
    answer_with(monkeypatch, lambda index, number, gold: own_answer(index, 0, gold) if index % 4 < 2 else
                slip(index, number, gold, run.problems))  # fmt: skip
    prompts, decoded = [], retry.decode_prompts

    def decode_prompts(run, student, given, world, sampling, advance):
        prompts.extend(given)
        answers = decoded(run, student, given, world, sampling, advance)
        golds = [run.problems[prompt.noise[1]].answer for prompt in given]
        return [
            replace(answer, text=f"Second try {prompt.noise[2]}.\nAnswer: {gold if prompt.noise[1] % 4 == 2 else 999}")
            for answer, prompt, gold in zip(answers, given, golds, strict=True)
        ]

    monkeypatch.setattr(retry, "decode_prompts", decode_prompts)
    metrics = execute(run, "")
    second = run.directory.round(2)
    critiques = [row for row in read_jsonl(second.feedback) if not row["own"]]
    assert all(re.search(r"First wrong step: \d+$", f"{row['rationale']} {row['answer_text']}".strip()) for row in critiques)
    summary = read_json(second.stage("retry"))
    assert (summary["critiques"], summary["critiques_read"], summary["retries"]) == (len(critiques),) * 2 + (2 * len(critiques),)
    toy = TOY_TASKS["toy_arithmetic"]
    for row in critiques:
        number = critique.wrong_step(f"{row['rationale']} {row['answer_text']}")
        rationale = row["mistakes"][0].partition("\n")[0]
        beginning = before_step(rationale, number)
        right = toy.results(toy.rationale(run.problems[row["sample_index"]].question, 0, None))
        assert toy.results(beginning) == right[: len(toy.results(beginning))], "what comes before the wrong step is right"
        assert toy.first_wrong(run.problems[row["sample_index"]].question, beginning) == 1
    assert len({prompt.noise for prompt in prompts}) == len(prompts)
    evens = {row["sample_index"] for row in critiques if row["sample_index"] % 4 == 2}
    tries = [*read_jsonl(second.retries)]
    assert sorted((row["sample_index"], row["rationale"]) for row in tries) == [
        (i, f"Second try {n}.") for i in sorted(evens) for n in (0, 1)
    ]
    verdicts = [*read_jsonl(second.curated)]
    own = {row["sample_index"] for row in verdicts} - evens
    assert {index % 4 for index in own} == ({0, 1} if source == "both" else set())
    assert {row["sample_index"] for row in verdicts if row["kept"]} == evens | own
    assert metrics["rounds"][1]["teacher_usage"]["requests"] == len(critiques)


def test_a_rewrite_has_the_first_kept_rationale_in_view(tmp_path, monkeypatch):
    run = make_run(tmp_path, *TINY, "method.feedback.form=rewrite", "trainer.max_steps=5", "method.exam.top_k=1", "trainer.lr=1e-12")
    seen = []
    generate = feedback._generate_further

    def generate_further(run, number, plan, folder, requests, first_look):
        seen.append({problem.sample_index: (problem.question, n_earlier) for problem, n_earlier, _ in requests})
        return generate(run, number, plan, folder, requests, first_look)

    monkeypatch.setattr(feedback, "_generate_further", generate_further)
    execute(run, "")
    first = {row["sample_index"]: row["rationale"] for row in reversed([*read_jsonl(run.directory.round(1).curated)]) if row["kept"]}
    assert len(seen) == 2
    for index, (question, _) in seen[0].items():
        assert f"Your earlier reasoning: {first[index]}\n\nThe student's answer" in question
        assert "Rewrite your reasoning" in question
    repeated = [index for index in seen[0] if index in seen[1] and seen[1][index][0] == seen[0][index][0]]
    assert repeated
    assert all((seen[0][index][1], seen[1][index][1]) == (0, 1) for index in repeated), "a repeated request gets a further reply"


@pytest.mark.parametrize(("overrides", "message"), [
    (["method.one_schedule=true", "method.start=pretrained"], "method.one_schedule=true: with method.start=pretrained no round continues"),
    (["method.carry_optimizer=true", "method.start=pretrained"], "method.carry_optimizer=true: with method.start=pretrained"),
    (["method.carry_optimizer=true", "student=gpt2", "student.lora.rank=4"], "each round has new adapters; use student.lora.rank=null"),
    (["method.carry_optimizer=true", "trainer.strategy=fsdp"], "use trainer.strategy=ddp or method.carry_optimizer=false"),
    (["method.replay=0"], "method.replay=0.0: more than 0 and at most 1; method.accumulate=false trains on no earlier rounds"),
    (["method.replay=0.5", "method.accumulate=false"], "method.accumulate=false trains on no earlier rounds; remove one of the two"),
    (["method.sampler.objective=dpo"], "no round learns its answers; method.feedback.source=self or both"),
    (["method.feedback.form=critique", "method.feedback.mistakes=2"], "method.feedback.form=critique is about one mistake; use 1"),
    (["method.feedback.form=critique", "student=gpt2", "student.calculator=true"], "and no calculator; use student.calculator=false"),
    (["method.feedback.form=rewrite", "method.feedback.rewrite_template='{question} {mistakes} {hint}'"],
     "method.feedback.rewrite_template: the template must contain {earlier}"),
    (["method.feedback.form=other"], "choose from tailored, rewrite, critique"),
    (["method.skip_solved=0"], "method.skip_solved=0: at least 1"),
])  # fmt: skip
def test_wrong_options_are_reported(overrides, message, tmp_path):
    with pytest.raises(ConfigFaults, match=re.escape(message)):
        make_run(tmp_path, "method=tailored", *overrides)
