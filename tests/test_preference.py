"""Preference losses: equal to a float64 reference and to TRL, and independent of micro-batches, packing and processes."""

from __future__ import annotations

import copy
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from configurations import make_run
from students import logits_by_token, make_rows, make_student
from trainings import preference_of, student_of, trained, trained_by

from fcot.base.errors import ConfigFaults
from fcot.base.files import read_json, read_jsonl
from fcot.base.records import TrainingSample
from fcot.methods.table import METHODS
from fcot.objectives.pairs import build_pairs, nearest_of
from fcot.objectives.preference import preference_loss
from fcot.runs.pipeline import execute
from fcot.student import forward as forward_module
from fcot.student import likelihood
from fcot.student.attention import allow_packing
from fcot.student.data import Layout, TrainingData
from fcot.student.forward import Forward
from fcot.student.likelihood import completion_logprobs
from fcot.student.tokenization import tokenize

FAMILIES = ["gpt2", "llama", "t5", "flan_t5"]
RIGHT = {0: ["one and two. So 3.", "two, so one"], 1: ["three"]}
WRONG = {0: ["one and two. So 4.", "no end"], 2: ["wrong"]}


def data_of(student, **options):
    """Four training samples: two of problem 0, and one each of problems 1 and 2, which have no pair."""
    form = METHODS["tailored"].formats[student.architecture]
    samples = [TrainingSample(index, f"How many {index}?", "3", text) for index, text in ((0, "a b"), (0, "c"), (1, "d"), (2, "e f g"))]
    rows = tokenize(
        student, form, [(sample.question, form.completion(sample.answer, sample.rationale)) for sample in samples], max_prompt=40,
        max_completion=40,
    )  # fmt: skip
    start = student.tokenizer.pad_token_id if student.architecture == "encoder_decoder" else None
    return TrainingData(
        student, form, samples, rows, Layout(student.architecture, student.tokenizer.pad_token_id, start, **options), seed=3
    )


def pairs_of(data, nearest=False, **options):
    return build_pairs(data, RIGHT, WRONG, nearest=nearest, max_tokens=40, **options)


def by_hand(model, student, row):
    """The log-probability of a completion, one token at a time, with no code of the package: in float64."""
    total = 0.0
    for token, logits in zip(row.completion, logits_by_token(model, student, row), strict=True):
        total = total + logits.log_softmax(-1)[token]
    return total


def gradients(student, loss):
    student.model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in student.model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("kind", ["dpo", "simpo"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_and_its_gradients_equal_the_reference(family, kind):
    first, student = make_student(family, noise=0.1), make_student(family, noise=0.1)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.mul_(1.05)
    student = replace(student, model=student.model.double())
    data = data_of(first)
    beta, gamma, nll = 0.5, 0.3, 0.7
    objective = preference_loss(data, pairs_of(data), kind, beta=beta, gamma=gamma, nll=nll, weight=1.0)
    head, start = Forward(student.model), first.model.double()
    loss = objective.loss(head, objective.collate(np.arange(4), 5)).total
    head.remove()
    expected, watched = 0.0, []
    for sample in (0, 1):
        rows = [objective.pairs.row(number) for number in objective.pairs.draw(sample, 5, 3)]
        logprobs = [by_hand(student.model, student, row) for row in rows]
        if kind == "dpo":
            with torch.no_grad():
                before = [by_hand(start, first, row) for row in rows]
            margin = beta * ((logprobs[0] - before[0]) - (logprobs[1] - before[1]))
            expected = expected - torch.log(1 / (1 + torch.exp(-margin)))
        else:
            margin = beta * logprobs[0] / len(rows[0].completion) - beta * logprobs[1] / len(rows[1].completion)
            expected = expected - torch.log(1 / (1 + torch.exp(-(margin - gamma))))
        expected = expected - nll * logprobs[0] / len(rows[0].completion)
        watched.append([margin.item(), float(margin > 0), logprobs[0].item(), logprobs[1].item()])
    assert objective.denominator(np.arange(4)) == 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    actual, reference = gradients(student, loss), gradients(student, expected)
    assert set(actual) == set(reference)
    for name, gradient in actual.items():
        atol = 1e-5 * reference[name].abs().max().item()  # the package computes log-probabilities in float32
        torch.testing.assert_close(gradient, reference[name], rtol=1e-4, atol=atol, msg=name)
    head = Forward(student.model)
    logged = objective.loss(head, objective.collate(np.arange(4), 5)).watched
    head.remove()
    names = ["reward_margin", "reward_accuracy", "chosen_logprob", "rejected_logprob"]
    assert [float(logged[name]) for name in names] == pytest.approx(np.sum(watched, 0).tolist(), rel=1e-4, abs=1e-4)


def test_a_student_that_has_not_changed_has_no_margin():
    student = make_student("gpt2")
    data = data_of(student)
    objective = preference_loss(data, pairs_of(data), "dpo", beta=0.5, gamma=9.0, nll=0.0, weight=1.0)
    head = Forward(student.model)
    loss = objective.loss(head, objective.collate(np.arange(2), 0))
    head.remove()
    assert float(loss.watched["reward_margin"]) == pytest.approx(0, abs=1e-4)
    assert loss.total.item() == pytest.approx(2 * np.log(2), rel=1e-4)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_log_probabilities_do_not_depend_on_the_batch_or_on_fresh_adapters(family, lora, monkeypatch):
    student, bare = student_of(family, 0.1, lora), student_of(family)
    layout = data_of(bare).layout
    rows = list(make_rows(bare, 12))
    monkeypatch.setattr(likelihood, "_TOKENS", 100)
    student.model.train()
    values = completion_logprobs(student, rows, layout)
    assert student.model.training, "the model keeps its mode"
    assert values.tolist() == pytest.approx([by_hand(bare.model, bare, row).item() for row in rows], rel=1e-4)


def test_half_precision_is_that_of_the_training():
    student = student_of("gpt2")
    rows, layout = list(make_rows(student, 4)), data_of(student).layout
    exact, half = (completion_logprobs(student, rows, layout, precision) for precision in ("32-true", "bf16-mixed"))
    assert not np.array_equal(exact, half)
    assert half.tolist() == pytest.approx(exact.tolist(), rel=1e-2)


def test_chunks_of_logits_change_no_gradient(monkeypatch):
    student = make_student("gpt2")
    data = data_of(student)
    objective = preference_loss(data, pairs_of(data), "dpo", beta=0.5, gamma=0, nll=0.7, weight=1.0)
    results = []
    for chunked_from in (1 << 40, 1):
        monkeypatch.setattr(forward_module, "CHUNKED_FROM", chunked_from)
        monkeypatch.setattr(likelihood, "CHUNK", 16 * student.model.config.vocab_size)
        head = Forward(student.model)
        part = objective.collate(np.arange(2), 0)
        assert (head.head_inputs(part) is None) == (chunked_from > 1)
        loss = objective.loss(head, part).total
        results.append((loss.item(), gradients(student, loss)))
        head.remove()
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], rtol=1e-3, atol=1e-5, msg=name)


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_pairs_are_right_and_wrong_completions_of_one_problem():
    data = data_of(make_student("gpt2"))
    texts = data.student.tokenizer.decode
    everything, nearest = pairs_of(data), pairs_of(data, nearest=True, unfinished={0: ["no end"]})
    assert [len(pairs) for pairs in everything.pairs] == [4, 4, 0, 0]
    assert [len(pairs) for pairs in nearest.pairs] == [2, 2, 0, 0]
    written = [tuple(texts(nearest.row(number).completion) for number in pair) for pair in nearest.pairs[0]]
    end = data.student.tokenizer.eos_token
    assert written[0] == ("one and two. So 3." + end, "one and two. So 4." + end)
    assert written[1][1] == "no end", "an unfinished mistake has no end token"
    assert nearest.row(0).prompt == data.rows[0].prompt
    drawn = {everything.draw(0, step, 3) for step in range(60)}
    assert len(drawn) == 4
    assert [everything.draw(0, 7, 3)] * 2 == [everything.draw(0, 7, 3), pairs_of(data).draw(0, 7, 3)]


def test_the_nearest_completion_shares_most_steps_and_then_most_words():
    wrong = "3 + 4 = 7. 7 * 2 = 15. Answer: 15"
    assert nearest_of(["7 * 2 = 14. Answer: 14", "3 + 4 = 7. 7 * 2 = 14. Answer: 14"], wrong).startswith("3 + 4")
    assert nearest_of(["first. Answer: 1", "the sum is 15"], "15 is the sum") == "the sum is 15"


def test_completions_fit_the_models_positions():
    student = make_student("gpt2", positions=30)
    pairs = build_pairs(data_of(student), {0: ["long " * 60]}, {0: ["wrong " * 60]}, nearest=True, max_tokens=192)
    assert {len(pairs.row(number).prompt) + len(pairs.row(number).completion) for number in (0, 1)} == {30}


def test_without_pairs_the_loss_counts_nothing_and_a_warning_says_so(capsys):
    data = data_of(make_student("gpt2"))
    pairs = build_pairs(data, RIGHT, {0: RIGHT[0]}, nearest=True, max_tokens=40)
    objective = preference_loss(data, pairs, "dpo", beta=1, gamma=0, nll=1, weight=1)
    assert (objective.denominator(np.arange(4)), objective.facts()) == (0, {"preference_share": 0.0})
    assert "no train problem has both a right and a wrong completion" in capsys.readouterr().err


# --- micro-batches, packing, processes --------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "dpo"), ("gpt2", "simpo"), ("t5", "dpo")])
def test_the_loss_does_not_depend_on_micro_batches_or_packing(family, kind, tmp_path):
    whole = trained(tmp_path / "8x1", family, prefers=kind, max_steps=12)
    parts = trained(tmp_path / "2x4", family, prefers=kind, max_steps=12, micro_batches=4)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)
    assert (parts.weights - whole.weights).norm() < 1e-4 * whole.weights.norm()  # AdamW moves a weight with a gradient of 0 either way
    without = trained(tmp_path / "without", family, max_steps=2)
    assert without.losses[0] != pytest.approx(whole.losses[0], rel=1e-2)
    if family == "gpt2":
        packed = trained(tmp_path / "packed", family, prefers=kind, max_steps=12, packing=True)
        assert packed.losses == pytest.approx(whole.losses, rel=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_equal_one_process(strategy, tmp_path):
    alone = trained(tmp_path / "one", prefers="dpo", max_steps=10)
    both = trained_by(2, tmp_path / "two", prefers="dpo", max_steps=10, strategy=strategy)
    assert both.losses == pytest.approx(alone.losses, rel=1e-4)
    torch.testing.assert_close(both.weights, alone.weights, rtol=1e-3, atol=1e-5)


def test_a_micro_batch_without_pairs_counts_nothing_and_reaches_the_model():
    student = make_student("gpt2")
    objective = preference_of(student, make_rows(student, 6), data_of(student, packing=True).layout, "dpo")
    allow_packing(student.model)
    head = Forward(student.model)
    loss = objective.loss(head, objective.collate(np.array([0, 2]), 0)).total
    head.remove()
    assert loss.item() == 0
    assert loss.requires_grad


# --- runs -------------------------------------------------------------------------------------------------------------

TINY = (
    "dataset.n_problems=60", "diversity=4", "trainer.max_steps=20", "trainer.warmup_steps=2", "trainer.evaluate_every_steps=20",
    "student.width=16", "student.layers=1", "student.max_new_tokens=40", "teacher.error_rate=0.3", "logger=csv",
)  # fmt: skip
TAILORED = (*TINY, "method=tailored", "method.rounds=2", "method.exam.samples=2")


def log_of(folder):
    lines = (folder / "logs/metrics.csv").read_text().splitlines()
    return dict(zip(lines[0].split(","), map(float, lines[-1].split(",")), strict=True))


@pytest.mark.parametrize("loss", ["dpo", "simpo"])
def test_fine_tune_cot_prefers_kept_rationales_to_wrong_ones(loss, tmp_path):
    run = make_run(tmp_path, *TINY, "objective=preference", f"objective.loss={loss}")
    metrics = execute(run, "")
    rows = [row for row in read_jsonl(run.directory.curated) if row["reason"] == "wrong_answer"]
    kept = {row["sample_index"] for row in read_jsonl(run.directory.curated) if row["kept"]}
    assert {row["sample_index"] for row in rows} & kept
    assert 0 < read_json(run.directory.stage("train"))["preference_share"] < 1
    assert metrics["n_steps"] == 20
    logged = log_of(run.directory.path)
    assert logged["reward_accuracy"] > 0.5
    assert {"reward_margin", "chosen_logprob", "rejected_logprob", "preference_loss"} <= set(logged)


def test_pairs_of_the_teacher_need_no_exam_and_those_of_the_exam_do(tmp_path):
    """A student from scratch takes no exam before round 1."""
    shares = {}
    for pairs in ("exam", "teacher", "both"):
        run = make_run(tmp_path, *TAILORED, "method.reflection.objective=dpo", f"method.reflection.pairs={pairs}")
        execute(run, "")
        shares[pairs] = [read_json(run.directory.round(number).stage("train")).get("reflection_share") for number in (1, 2)]
    assert shares["exam"][0] is shares["both"][0] is None
    assert 0 < shares["teacher"][0] <= shares["teacher"][1] < shares["both"][1]


def test_an_objective_of_none_is_a_weight_of_zero(tmp_path):
    none, zero = (make_run(tmp_path, *TAILORED, f"method.reflection.{option}") for option in ("objective=none", "weight=0"))
    assert none.run_id == zero.run_id


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=fine_tune", "objective=preference"], "objective=preference: method=fine_tune has no rejected rationales"),
        (["method=tailored", "objective=preference"], "method=tailored has method.reflection.objective=dpo"),
        (["method=tailored", "method.reflection.objective=ppo"], "choose from triplet, dpo, simpo, none"),
        (["objective=preference", "curation=none"], "curation.filters"),
        (["method=tailored", "method.reflection.objective=dpo", "method.reflection.pairs=teacher", "curation=none"], "curation.filters"),
    ],
)
def test_options_without_pairs_are_reported_before_any_request(overrides, message, tmp_path):
    with pytest.raises(ConfigFaults) as faults:
        make_run(tmp_path, *overrides)
    assert message in str(faults.value)


# --- TRL --------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs TRL (pip install trl)")
@pytest.mark.parametrize("nll", [0.0, 1.0])
def test_losses_and_weights_are_those_of_trl(nll, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    sys.modules.pop("preference", None)
    import preference

    student = make_student("gpt2", noise=0.1)
    ours, theirs = preference.compare(copy.deepcopy(student), make_rows(student, 12), nll, steps=4)
    assert ours.losses == pytest.approx(theirs.losses, abs=1e-4)
    assert ours.margins == pytest.approx(theirs.margins, abs=1e-4)
    torch.testing.assert_close(ours.weights, theirs.weights, rtol=0, atol=1e-4)
