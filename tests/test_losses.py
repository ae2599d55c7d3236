"""The loss of large vocabularies, in chunks: the same value and gradients as from all logits, and when chunks are used."""

from __future__ import annotations

import pytest
import torch
from students import make_rows, make_student
from transformers import Gemma2Config, Gemma2ForCausalLM

from fcot.objectives import completion
from fcot.objectives.completion import chunked_token_loss, token_loss
from fcot.student import forward
from fcot.student.data import Layout
from fcot.student.forward import Forward


@pytest.fixture(autouse=True, params=["one product of the gradients for each chunk", "one for all chunks"])
def small_chunks(request, monkeypatch):
    monkeypatch.setattr(forward, "CHUNKED_FROM", 0)
    monkeypatch.setattr(completion, "CHUNK", 1)  # 16 targets at once
    if "each" in request.param:
        monkeypatch.setattr(completion, "GRADIENT_BYTES", 1)


def loss_in_chunks(head, batch):
    inputs = head.head_inputs(batch)
    return None if inputs is None else chunked_token_loss(inputs[0], inputs[1].weight, inputs[1].bias, batch)


def batch_of(student, weight=0.0):
    layout = Layout(student.architecture, student.tokenizer.pad_token_id, student.tokenizer.pad_token_id, weight)
    return layout.batch(make_rows(student, 6))


def gradients(model, loss):
    model.zero_grad()
    (loss / 7).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(("name", "weight"), [("gpt2", 0.0), ("gpt2", 0.3), ("llama", 0.0), ("t5", 0.0), ("flan_t5", 0.0)])
def test_chunks_give_the_same_loss_and_gradients(name, weight):
    student = make_student(name)
    student.model.eval()
    batch, head = batch_of(student, weight), Forward(student.model)
    assert (batch["weights"] is None) == (weight == 0)
    whole, chunked = token_loss(head(batch), batch), loss_in_chunks(head, batch)
    torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=0)
    expected, actual = gradients(student.model, whole), gradients(student.model, chunked)
    assert actual.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(actual[key], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_under_bf16_the_loss_in_chunks_is_as_exact_as_the_loss_of_all_logits():
    student = make_student("gpt2")
    student.model.eval()
    batch, head = batch_of(student), Forward(student.model)
    exact = token_loss(head(batch), batch)
    with torch.autocast("cpu", torch.bfloat16):
        whole, chunked = token_loss(head(batch), batch), loss_in_chunks(head, batch)
    assert abs(chunked - exact) <= 2 * abs(whole - exact) + 1e-3 * exact


def test_capped_logits_are_not_computed_in_chunks():
    config = Gemma2Config(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        final_logit_softcapping=0.01,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config)
    batch = {"inputs": {"input_ids": torch.arange(1, 9)[None]}, "positions": torch.arange(8), "targets": torch.arange(8), "weights": None}
    assert loss_in_chunks(Forward(model), batch) is None


def test_small_batches_and_compiled_models_use_all_logits(monkeypatch):
    student = make_student("gpt2")
    batch = batch_of(student)
    assert loss_in_chunks(Forward(student.model, compile=True), batch) is None
    n = len(batch["targets"]) * student.model.lm_head.weight.shape[0]
    monkeypatch.setattr(forward, "CHUNKED_FROM", n + 1)
    assert loss_in_chunks(Forward(student.model), batch) is None
    monkeypatch.setattr(forward, "CHUNKED_FROM", n)
    assert loss_in_chunks(Forward(student.model), batch) is not None
