"""Training: the loss is exact, and micro-batches, packing and several processes do not change the result."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from shutil import which

import pytest
import torch
from students import logits_at_targets, make_rows, make_student
from trainings import recipe_of, student_of, trained, trained_by

from fcot.base.errors import FcotError
from fcot.objectives.completion import token_loss
from fcot.student.attention import allow_packing
from fcot.student.data import Layout
from fcot.student.forward import Forward
from fcot.student.loading import check_student, save_student
from fcot.student.module import LearningRate, StudentModule

PACKABLE = ("gpt2", "llama", "qwen2")


def layout_of(student, **options):
    return Layout(student.architecture, student.tokenizer.pad_token_id, student.tokenizer.pad_token_id, **options)


def loss_of(student, rows, **options):
    batch = layout_of(student, **options).batch(rows)
    return token_loss(logits_at_targets(student.model, batch), batch).item()


def reference_loss(student, row, weight):
    """One sample's loss as the papers write it, token by token."""
    total = 0.0
    if student.architecture == "encoder_decoder":
        for i, token in enumerate(row.completion):
            before = torch.tensor([[student.tokenizer.pad_token_id, *row.completion[:i]]])
            logits = student.model(input_ids=torch.tensor([row.prompt]), decoder_input_ids=before).logits[0, -1]
            total -= logits.log_softmax(-1)[token].item()
        return total
    text = [*row.prompt, *row.completion]
    for i in range(1, len(text)):
        logits = student.model(input_ids=torch.tensor([text[:i]])).logits[0, -1]
        total -= (weight if i < len(row.prompt) else 1) * logits.log_softmax(-1)[text[i]].item()
    return total


@pytest.mark.parametrize("weight", [0, 0.01, 1])
@pytest.mark.parametrize("family", ["t5", "flan_t5", "gpt2", "llama"])
def test_the_loss_is_the_weighted_sum_over_tokens(family, weight):
    student = make_student(family, noise=0.1)
    rows = make_rows(student, 4)[1:4]
    with torch.no_grad():
        expected = sum(reference_loss(student, row, weight) for row in rows)
        assert loss_of(student, rows, prompt_weight=weight) == pytest.approx(expected, rel=1e-5)
        if family in PACKABLE:
            allow_packing(student.model)
            assert loss_of(student, rows, prompt_weight=weight, packing=True) == pytest.approx(expected, rel=1e-5)
    lengths = make_rows(student, 4).lengths[1:4]
    counted = sum(len(row.completion) + weight * (len(row.prompt) - 1) for row in rows)
    if student.architecture == "decoder":
        assert layout_of(student, prompt_weight=weight).loss_tokens(lengths) == pytest.approx(counted)


@pytest.mark.parametrize("family", ["t5", "flan_t5", "gpt2", "llama", "qwen2", "qwen3", "mistral"])
def test_padding_and_neighbors_do_not_change_the_loss_of_a_sample(family):
    student = make_student(family, noise=0.1)
    rows = sorted(make_rows(student, 8), key=lambda row: len(row.prompt) + len(row.completion))
    with torch.no_grad():
        alone = sum(loss_of(student, [row]) for row in rows)
        assert loss_of(student, rows) == pytest.approx(alone, rel=1e-5)
        batch = layout_of(student).batch(rows)
    longest = max(len(row.prompt) + (0 if student.architecture == "encoder_decoder" else len(row.completion)) for row in rows)
    assert batch["inputs"]["input_ids"].shape == (8, longest)


@pytest.mark.parametrize("family", PACKABLE)
def test_a_packed_sample_does_not_see_its_neighbors(family):
    student = make_student(family, noise=0.1)
    rows = make_rows(student, 9)[3:]
    apart = [logits_at_targets(student.model, layout_of(student).batch([row])) for row in rows]
    allow_packing(student.model)
    with torch.no_grad():
        packed = layout_of(student, packing=True).batch(rows)
        assert packed["inputs"]["input_ids"].shape == (1, sum(len(row.prompt) + len(row.completion) for row in rows))
        together = logits_at_targets(student.model, packed)
        torch.testing.assert_close(together, torch.cat(apart), atol=1e-4, rtol=1e-4)
        others = [replace(row, prompt=[(token + 7) % 300 for token in row.prompt]) for row in rows]
        beside = logits_at_targets(student.model, layout_of(student, packing=True).batch([*others[:2], rows[2], *others[3:]]))
        span = slice(sum(len(row.completion) for row in rows[:2]), sum(len(row.completion) for row in rows[:3]))
        assert torch.equal(beside[span], together[span])
        assert not torch.equal(beside, together)


@pytest.mark.parametrize("family", PACKABLE)
def test_a_mask_of_ones_would_mix_packed_samples(family):
    """A known mistake: positions restart with each sample, but a mask of ones lets every sample attend to its neighbors."""
    student = make_student(family, noise=0.1)
    rows = make_rows(student, 9)[3:]
    batch = layout_of(student, packing=True).batch(rows)
    del batch["inputs"]["segments"]
    batch["inputs"]["attention_mask"] = torch.ones_like(batch["inputs"]["input_ids"])
    with torch.no_grad():
        naive = logits_at_targets(student.model, batch)
        apart = torch.cat([logits_at_targets(student.model, layout_of(student).batch([row])) for row in rows])
    n = len(rows[0].completion)
    torch.testing.assert_close(naive[:n], apart[:n], atol=1e-4, rtol=1e-4)
    assert (naive[n:] - apart[n:]).abs().max() > 0.1


def test_sliding_window_layers_cannot_be_packed(tmp_path):
    student = make_student("mistral")
    save_student(student, tmp_path)
    check_student(str(tmp_path), None, 8, 8)
    with pytest.raises(FcotError, match=r"trainer\.packing.*plain full attention in every layer; trainer\.packing=false"):
        check_student(str(tmp_path), None, 8, 8, packing=True)


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_micro_batches_change_nothing(family, tmp_path):
    whole = trained(tmp_path / "1", family)
    parts = trained(tmp_path / "4", family, micro_batches=4)
    assert len(whole.losses) == 50
    assert parts.losses == pytest.approx(whole.losses, abs=1e-4)
    assert whole.losses[-1] < whole.losses[0] - 0.5, "training lowers the loss"
    assert parts.report.n_samples == whole.report.n_samples
    assert parts.report.n_tokens == whole.report.n_tokens
    assert parts.report.n_padded < whole.report.n_padded
    few = trained(tmp_path / "empty", family, batch_size=2, micro_batches=3, max_steps=10)
    assert few.losses == pytest.approx(trained(tmp_path / "few", family, batch_size=2, max_steps=10).losses, abs=1e-4)


@pytest.mark.parametrize("family", PACKABLE)
def test_packing_changes_nothing(family, tmp_path):
    options = {"micro_batches": 2, "prompt_loss_weight": 0.1 if family == "llama" else 0.0}
    plain, packed = trained(tmp_path / "plain", family, **options), trained(tmp_path / "packed", family, packing=True, **options)
    assert packed.losses == pytest.approx(plain.losses, abs=1e-4)
    assert len(plain.losses) == 50
    assert packed.report.n_padded == packed.report.n_tokens < plain.report.n_padded


def test_two_processes_train_and_decode_like_one_process(tmp_path):
    """Also where a micro-batch has fewer samples than there are ranks: 3 samples in 2 x 2 parts."""
    options = {"batch_size": 3, "micro_batches": 2, "ask": True}
    single, double = trained(tmp_path / "one", **options), trained_by(2, tmp_path / "two", **options)
    assert double.losses == pytest.approx(single.losses, abs=1e-4)
    assert len(double.losses) == 50
    torch.testing.assert_close(double.weights, single.weights, atol=1e-4, rtol=0)
    assert double.answers == single.answers
    assert (double.report.n_samples, double.report.n_tokens) == (single.report.n_samples, single.report.n_tokens)


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {"family": "t5", "strategy": "fsdp"}, {"family": "gpt2", "strategy": "fsdp", "micro_batches": 2, "batch_size": 3},
    {"family": "llama", "packing": True}, {"family": "gpt2", "lora": True},
], ids=str)  # fmt: skip
def test_two_processes_train_like_one_process_with_other_options(options, tmp_path):
    options = options | {"ask": True}
    single, double = trained(tmp_path / "one", **options), trained_by(2, tmp_path / "two", **options)
    assert double.losses == pytest.approx(single.losses, abs=1e-4)
    torch.testing.assert_close(double.weights, single.weights, atol=1e-4, rtol=0)
    assert double.answers == single.answers


@pytest.mark.parametrize(("family", "options"), [("t5", {}), ("gpt2", {"packing": True}), ("llama", {})])
def test_gradient_checkpointing_changes_nothing(family, options, tmp_path):
    plain = trained(tmp_path / "plain", family, max_steps=8, **options)
    saving = trained(tmp_path / "saving", family, max_steps=8, gradient_checkpointing=True, **options)
    torch.testing.assert_close(saving.weights, plain.weights, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "gpt2", "llama"])
def test_compiling_changes_nothing(family, tmp_path):
    if which("g++") is None and which("clang++") is None:
        pytest.skip("no C++ compiler")
    plain = trained(tmp_path / "plain", family, max_steps=10)
    assert trained(tmp_path / "compiled", family, max_steps=10, compile=True).losses == pytest.approx(plain.losses, abs=1e-4)


def test_seed_dropout_clipping_and_weight_decay_change_the_weights(tmp_path):
    def weights(**options):
        return trained(tmp_path / str(len(results)), max_steps=4, **options).weights

    results = []
    for options in ({}, {"seed": 1}, {"clip_norm": 1e-3}, {"dropout": 0.1}, {"dropout": 0.1, "seed": 1}, {"weight_decay": 0.9}):
        results.append(weights(**options))
        assert torch.equal(results[-1], weights(**options)), f"{options}: not repeatable"
    assert all(not torch.equal(later, earlier) for i, later in enumerate(results) for earlier in results[:i])


def test_dropout_is_drawn_anew_in_every_step_and_micro_batch(tmp_path):
    """With a learning rate near 0 the weights stay, so that the loss of the same batch differs between steps by dropout alone."""
    same = trained(tmp_path / "off", n=4, batch_size=4, lr=1e-30, weight_decay=0.0, max_steps=5)
    drawn = trained(tmp_path / "on", n=4, batch_size=4, lr=1e-30, weight_decay=0.0, max_steps=5, dropout=0.2)
    assert max(same.losses) - min(same.losses) < 1e-5
    assert len({round(loss, 6) for loss in drawn.losses}) == 5


def factors(first, last, **options):
    recipe = recipe_of(**options)
    module = StudentModule(
        student_of("gpt2").model, [], LearningRate(0.01, recipe.schedule, recipe.warmup_steps, 10), weight_decay=0.3, seed=0,
        first_step=first,
    )  # fmt: skip
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert optimizer.param_groups[0]["weight_decay"] == 0.3
    rates = []
    for _ in range(first, last):
        rates.append(optimizer.param_groups[0]["lr"] / 0.01)
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(("schedule", "warmup", "expected"), [
    ("constant", 0, [1, 1, 1]), ("constant", 4, [0.25, 0.75, 1]), ("linear", 4, [0.25, 0.6, 0.1]), ("linear", 0, [1, 0.8, 0.1]),
    ("cosine", 0, [1, 0.904508, 0.024472]), ("cosine", 4, [0.25, 0.75 * 0.904508, 0.024472]),
])  # fmt: skip
def test_the_learning_rate_follows_its_schedule(schedule, warmup, expected):
    """At steps 0, 2 and 9 of 10; a training that continues at step 3 continues with the rate of that step."""
    rates = factors(0, 10, schedule=schedule, warmup_steps=warmup)
    assert [rates[0], rates[2], rates[9]] == pytest.approx(expected, abs=1e-6)
    assert factors(3, 10, schedule=schedule, warmup_steps=warmup) == pytest.approx(rates[3:])


@pytest.mark.parametrize(("options", "steps"), [
    ({"max_steps": 7, "evaluate_every_steps": 3}, [3, 6, 7]),
    ({"max_steps": 6, "evaluate_every_steps": 3}, [3, 6]),
    ({"max_steps": None, "epochs": 4, "evaluate_every_epochs": 1}, [3, 6, 9, 12]),
    ({"max_steps": None, "epochs": 5, "evaluate_every_epochs": 2}, [6, 12, 15]),
    ({"max_steps": 10, "epochs": 5, "evaluate_every_epochs": 1}, [3, 6, 9, 10]),
    ({"max_steps": 7, "evaluate_every_epochs": None}, [7]),
])  # fmt: skip
def test_evaluations_run_at_the_configured_steps(options, steps, tmp_path):
    advances = []
    run = trained(tmp_path, n=10, batch_size=4, evaluate=lambda history: {"before": len(history)}, advance=advances.append, **options)
    assert [entry["step"] for entry in run.report.history] == steps
    assert [entry["before"] for entry in run.report.history] == list(range(len(steps)))
    assert [entry["epoch"] for entry in run.report.history] == [round(step / 3, 3) for step in steps]
    assert sum(advances) == run.report.n_steps == len(run.losses) == steps[-1]


def test_a_training_ends_early_if_stop_returns_true(tmp_path):
    run = trained(tmp_path, evaluate_every_steps=2, stop=lambda history: len(history) == 3, max_steps=20)
    assert run.report.n_steps == len(run.losses) == 6
    assert [entry["step"] for entry in run.report.history] == [2, 4, 6]
    assert run.report.n_samples == 8 * 3 + 6 + 8 * 2, "30 samples are 3 batches of 8 and one of 6"


@pytest.mark.parametrize("batch_tokens", [150, 400])
def test_batches_by_tokens_train_on_every_sample(batch_tokens, tmp_path):
    run = trained(tmp_path, batch_tokens=batch_tokens, max_steps=None, epochs=2)
    assert run.report.n_samples == 60
    assert run.report.n_padded <= batch_tokens * run.report.n_steps


@pytest.mark.slow
def test_compiling_happens_once_not_at_every_step(monkeypatch):
    student, graphs = make_student("gpt2"), []
    rows = make_rows(student, 12)
    compile_with = partial(torch.compile, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    monkeypatch.setattr(torch, "compile", compile_with)
    head, counts = Forward(student.model, compile=True), []
    for size in range(4, 10):
        head(layout_of(student).batch(rows[:size]))
        counts.append(len(graphs))
    assert counts[-1] == counts[2], counts
