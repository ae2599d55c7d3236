"""The losses of tailored learning: equal to a float64 reference, and independent of micro-batches, packing and processes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from students import make_rows, make_student, save_gpt2, tokenizer
from torch.nn import functional
from trainings import reflection_of, trained, trained_by
from transformers import GPTJConfig, GPTJForCausalLM, GPTNeoConfig, GPTNeoForCausalLM, OPTConfig, OPTForCausalLM

from fcot.methods.table import METHODS
from fcot.methods.tailored.self_reflection import build_reflection
from fcot.objectives.completion import token_loss
from fcot.objectives.reflection import TEXTS, Reflection, triplet_batch, triplet_loss
from fcot.prompts.student import Demonstration
from fcot.student.data import Layout
from fcot.student.decoding import DecodingPrompt, decode
from fcot.student.forward import Forward
from fcot.student.loading import Student, load_student
from fcot.student.tokenization import TokenizedSample, encode_questions, tokenize

FAMILIES = ["gpt2", "llama", "t5", "flan_t5"]
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
SHARES = {"demonstrations": 0.1, "question": 0.25, "completion": 1.0}


def layout_of(student, **options):
    start = student.tokenizer.pad_token_id if student.architecture == "encoder_decoder" else None
    return Layout(student.architecture, student.tokenizer.pad_token_id, start, **options)


# --- the reference: one row at a time, one token at a time, no code of the package ------------------------------------


def reference_token_loss(student, row, weight, shares):
    """Sum over tokens of weight x share x negative log-likelihood."""
    model, total = student.model, 0.0
    if student.architecture == "encoder_decoder":
        for i, token in enumerate(row.completion):
            before = torch.tensor([[student.tokenizer.pad_token_id, *row.completion[:i]]])
            logits = model(input_ids=torch.tensor([row.prompt]), decoder_input_ids=before).logits[0, -1]
            total = total - weight * logits.log_softmax(-1)[token]
        return total
    text = [*row.prompt, *row.completion]
    logits = model(input_ids=torch.tensor([text])).logits[0]
    for i in range(1, len(text)):
        part = "demonstrations" if i < row.demonstrations else "question" if i < len(row.prompt) else "completion"
        total = total - weight * shares[part] * logits[i - 1].log_softmax(-1)[text[i]]
    return total


def reference_state(student, prompt, completion, span):
    """Mean last-layer state of a completion's tokens, its question under stop-gradient."""
    model = student.model
    if student.architecture == "encoder_decoder":
        with torch.no_grad():
            encoded = model.encoder(input_ids=torch.tensor([prompt])).last_hidden_state
        inputs = torch.tensor([[student.tokenizer.pad_token_id, *completion]])
        states = model.decoder(input_ids=inputs, encoder_hidden_states=encoded).last_hidden_state[0, 1:]
    else:
        with torch.no_grad():
            cache = model(input_ids=torch.tensor([prompt]), use_cache=True).past_key_values
        output = model(input_ids=torch.tensor([completion]), past_key_values=cache, use_cache=True, output_hidden_states=True)
        states = output.hidden_states[-1][0]
    return states[slice(*span)].mean(0)


def cosine(a, b):
    return (a * b).sum() / (a.pow(2).sum().sqrt() * b.pow(2).sum().sqrt())


def reference_triplet_loss(student, reflection, rows, samples, step):
    total, n = 0.0, 0
    for sample in samples:
        if not len(reflection.positives[sample]) or not len(reflection.negatives[sample]):
            continue
        texts = reflection.triplet(sample, step)
        anchor, positive, negative = (
            reference_state(student, rows[sample].prompt, reflection.texts[text].completion, reflection.spans[text]) for text in texts
        )
        total = total + torch.clamp(reflection.margin - cosine(anchor, positive) + cosine(anchor, negative), min=0)
        n += 1
    return total, n


def gradients(student, loss):
    student.model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in student.model.named_parameters() if parameter.grad is not None}


def assert_alike(student, loss, reference):
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    actual, expected = gradients(student, loss), gradients(student, reference)
    assert set(actual) == set(expected)
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7, msg=name)


def double(family):
    student = make_student(family, noise=0.1)
    return replace(student, model=student.model.double())


# --- language-model loss ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count_weighted", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_weighted_loss_and_its_gradients_equal_the_reference(family, count_weighted):
    student = double(family)
    rows = [replace(row, demonstrations=n) for row, n in zip(make_rows(student, 4)[1:4], (0, 3, 5), strict=True)]
    weights, decoder = [1.0, 0.5, 2.0], student.architecture == "decoder"
    shares = SHARES if decoder else SHARES | {"demonstrations": 0, "question": 0}
    layout = layout_of(
        student, prompt_weight=shares["question"], demonstration_weight=shares["demonstrations"], count_weighted=count_weighted
    )
    tokens = np.array([[len(row.prompt), len(row.completion)] for row in rows])
    counted = layout.loss_tokens(tokens, np.array([row.demonstrations for row in rows]), np.array(weights))
    by_hand = 0.0
    for row, weight in zip(rows, weights, strict=True):
        parts = ["demonstrations" if i < row.demonstrations else "question" for i in range(1, len(row.prompt))] if decoder else []
        parts += ["completion"] * len(row.completion)
        by_hand += sum(weight * shares[part] if count_weighted else 1.0 for part in parts)
    assert counted == pytest.approx(by_hand)
    head = Forward(student.model)
    batch = layout.batch(rows, weights)
    loss = token_loss(head(batch).double(), batch | {"weights": batch["weights"].double()}) / counted
    head.remove()
    reference = sum(reference_token_loss(student, row, weight, shares) for row, weight in zip(rows, weights, strict=True)) / by_hand
    assert_alike(student, loss, reference)


def test_the_loss_of_a_uniform_model_is_the_sum_of_weights_times_log_v():
    """A uniform model has a loss of log V per target."""
    student = make_student("gpt2")
    with torch.no_grad():
        student.model.transformer.wte.weight.zero_()
    vocabulary = student.model.config.vocab_size
    row = TokenizedSample([5, 6, 7, 8, 9, 10], [11, 12, 13], demonstrations=4)  # targets: 3 of demonstrations, 2 of the question, 3
    layout = layout_of(student, prompt_weight=0.2, demonstration_weight=0.1, count_weighted=False)
    head = Forward(student.model)
    with torch.no_grad():
        batch = layout.batch([row], [2.0])
        loss = token_loss(head(batch), batch).item()
    head.remove()
    assert loss == pytest.approx(2 * (3 * 0.1 + 2 * 0.2 + 3) * math.log(vocabulary), rel=1e-5)
    assert layout.loss_tokens(np.array([[6, 3]]), np.array([4]), np.array([2.0])) == 8
    assert replace(layout, count_weighted=True).loss_tokens(np.array([[6, 3]]), np.array([4]), np.array([2.0])) == pytest.approx(7.4)
    assert replace(layout, demonstration_weight=0.0).loss_tokens(np.array([[6, 3]]), np.array([4])) == 5


def test_tokens_before_the_question_count_as_demonstrations(tmp_path):
    form = replace(METHODS["tailored"].formats["decoder"], demonstrations=(Demonstration("One?", "So.", "1"),))
    student = make_student("gpt2")
    plain, lengths, _ = encode_questions(student, form, ["Two?"], 100)
    assert student.tokenizer.decode(plain[0][lengths[0] :]) == "Question: Two?\nReasoning:"
    chat = load_student(str(save_gpt2(tmp_path, CHAT)), chat=True)
    turn = replace(METHODS["tailored"].formats["chat"], demonstrations=form.demonstrations)
    prompts, lengths, _ = encode_questions(chat, turn, ["Two?"], 100)
    assert chat.tokenizer.decode(prompts[0][lengths[0] :]).startswith("Question: Two?")
    assert "Answer: 1" in chat.tokenizer.decode(prompts[0][: lengths[0]])
    short, lengths, cut = encode_questions(student, form, ["Two?"], len(plain[0]) - 5)
    assert (lengths, cut, short) == ([0], 0, encode_questions(student, form.without_demonstrations, ["Two?"], 100)[0])


def test_half_precision_is_clipped(tmp_path):
    """Lightning does not clip for a fused optimizer, but fcot does."""
    free = trained(tmp_path / "free", precision="bf16-mixed", max_steps=6, clip_norm=None)
    clipped = trained(tmp_path / "clipped", precision="bf16-mixed", max_steps=6, clip_norm=1e-6)
    assert free.losses[0] == clipped.losses[0]
    assert not torch.equal(free.weights, clipped.weights)


# --- self-reflection --------------------------------------------------------------------------------------------------


def contrasted(student, representation="last"):
    """Rows and their reflection data. The third sample has no mistake, the fourth no other rationale."""
    form = METHODS["tailored"].formats[student.architecture]
    anchors = [(0, "one and two"), (0, "two, so one"), (1, "three"), (2, "four five")]
    texts = [(index, form.completion("7", text)) for index, text in anchors]
    others = {0: [texts[0][1], texts[1][1], form.completion("7", "another way")], 1: [texts[2][1], form.completion("7", "x")], 2: []}
    mistakes = {0: [form.completion("9", "one one").strip(), "no end"], 2: ["wrong"]}
    rows = tokenize(student, form, [(f"How many {index}?", text) for index, text in texts], max_prompt=40, max_completion=40)
    reflection = build_reflection(
        student, form, texts, others, mistakes, {0: ["no end"]}, weight=0.5, margin=1.0, representation=representation, max_tokens=40,
        seed=3,
    )  # fmt: skip
    return rows, reflection


@pytest.mark.parametrize("representation", ["last", "rationale", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_triplet_loss_and_its_gradients_equal_the_reference(family, representation):
    student = double(family)
    rows, reflection = contrasted(student, representation)
    layout = layout_of(student)
    head = Forward(student.model)
    batch = triplet_batch(reflection, rows, [0, 1, 2, 3], 5, layout.pad_id, layout.start_id)
    loss = triplet_loss(head.text_states(batch, TEXTS).double(), batch["weights"].double(), reflection.margin)
    head.remove()
    reference, n = reference_triplet_loss(student, reflection, rows, [0, 1, 2, 3], 5)
    assert len(batch["weights"]) == n == 2
    # Forward computes in float32 from the head's input on.
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    actual, expected = gradients(student, loss), gradients(student, reference)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", ["gptj", "gpt_neo", "opt"])
def test_reflection_of_paper_bs_models_equals_the_reference(family):
    """GPT-J, GPT-Neo (with local attention in half of its layers) and OPT; decoding does not depend on the batch either."""
    words = tokenizer()
    ids = {"vocab_size": len(words), "pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id}
    torch.manual_seed(0)
    model = {
        "gptj": lambda: GPTJForCausalLM(GPTJConfig(
            **ids, n_positions=128, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        )),
        "gpt_neo": lambda: GPTNeoForCausalLM(GPTNeoConfig(
            **ids, max_position_embeddings=128, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
            window_size=8, resid_dropout=0, embed_dropout=0, attention_dropout=0,
        )),
        "opt": lambda: OPTForCausalLM(OPTConfig(
            **ids, max_position_embeddings=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
            word_embed_proj_dim=32, dropout=0,
        )),
    }[family]().eval()  # fmt: skip
    student = Student(model, words, "decoder")
    rows, reflection = contrasted(student)
    head = Forward(student.model)
    batch = triplet_batch(reflection, rows, [0, 1, 2, 3], 5, words.pad_token_id, None)
    loss = triplet_loss(head.text_states(batch, TEXTS), batch["weights"], reflection.margin)
    head.remove()
    assert loss.item() == pytest.approx(reference_triplet_loss(student, reflection, rows, [0, 1, 2, 3], 5)[0].item(), rel=1e-5)
    prompts = [DecodingPrompt(row.prompt, 8) for row in rows]
    assert decode(student, prompts, max_tokens=400) == [decode(student, [prompt], max_tokens=400)[0] for prompt in prompts]


def test_questions_get_no_gradient_from_reflection():
    """Embeddings of tokens that are only in questions do not change."""
    student = make_student("gpt2", noise=0.1)
    rows, reflection = contrasted(student)
    layout = layout_of(student)
    head = Forward(student.model)
    batch = triplet_batch(reflection, rows, [0, 1], 0, layout.pad_id, layout.start_id)
    gradient = gradients(student, triplet_loss(head.text_states(batch, TEXTS), batch["weights"], 1.0))["transformer.wte.weight"]
    head.remove()
    questions = {token for row in rows for token in row.prompt}
    written = {token for row in reflection.texts for token in row.completion}
    assert questions - written
    assert not gradient[sorted(questions - written)].any()
    assert gradient[sorted(written)].any()


def test_mistakes_are_negatives_and_other_rationales_are_positives():
    student = make_student("gpt2")
    _, reflection = contrasted(student)
    texts = [student.tokenizer.decode(row.completion) for row in reflection.texts]
    negatives = {texts[number] for numbers in reflection.negatives for number in numbers}
    assert {text.replace(student.tokenizer.eos_token, "") for text in negatives} == {" one one\nAnswer: 9", " no end", " wrong"}
    assert all(text.endswith(student.tokenizer.eos_token) for text in texts)
    assert reflection.contributes.tolist() == [True, True, False, False]
    for sample, own in enumerate(reflection.anchors):
        assert own not in reflection.positives[sample]
    assert sorted(map(len, reflection.positives)) == [0, 1, 2, 2]


def test_representations_select_their_tokens():
    student = make_student("gpt2")
    last, rationale, mean = (contrasted(student, name)[1] for name in ("last", "rationale", "mean"))
    unfinished = [student.tokenizer.decode(row.completion).startswith(" no end") for row in last.texts]
    lengths = last.texts.lengths[:, 1] - np.array(unfinished)  # an unfinished mistake has no end token
    assert sum(unfinished) == 1
    assert (last.spans == np.stack([lengths - 1, lengths], 1)).all()
    assert (mean.spans == np.stack([np.zeros_like(lengths), lengths], 1)).all()
    for row, (start, end) in zip(rationale.texts, rationale.spans, strict=True):
        text = student.tokenizer.decode(row.completion[:end])
        assert end == start + 1
        assert "Answer" not in text
        assert student.tokenizer.decode(row.completion).startswith(text)


def test_random_choices_are_a_function_of_seed_step_and_sample():
    _, reflection = contrasted(make_student("gpt2"))
    triplets = [reflection.triplet(0, step) for step in range(40)]
    assert triplets == [reflection.triplet(0, step) for step in range(40)]
    assert len(set(triplets)) == len(reflection.positives[0]) * len(reflection.negatives[0])
    assert triplets != [replace(reflection, seed=4).triplet(0, step) for step in range(40)]


# --- micro-batches, packing, processes ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_reflection_does_not_depend_on_micro_batches_or_packing(family, tmp_path):
    whole = trained(tmp_path / "8x1", family, reflects=True, batch_size=8)
    parts = trained(tmp_path / "2x4", family, reflects=True, batch_size=8, micro_batches=4)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)
    without = trained(tmp_path / "without", family, batch_size=8)
    assert without.losses[0] != pytest.approx(whole.losses[0], rel=1e-2)
    if family == "gpt2":
        packed = trained(tmp_path / "packed", family, reflects=True, batch_size=8, packing=True)
        assert packed.losses == pytest.approx(whole.losses, rel=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_reflection_on_two_processes_equals_one_process(strategy, tmp_path):
    alone = trained(tmp_path / "one", reflects=True, batch_size=8, max_steps=20)
    both = trained_by(2, tmp_path / "two", reflects=True, batch_size=8, max_steps=20, strategy=strategy)
    assert both.losses == pytest.approx(alone.losses, rel=1e-4)
    torch.testing.assert_close(both.weights, alone.weights, rtol=1e-3, atol=1e-5)


def test_gradient_checkpointing_does_not_change_reflection(tmp_path):
    plain = trained(tmp_path / "plain", reflects=True, batch_size=8, max_steps=10)
    saving = trained(tmp_path / "saving", reflects=True, batch_size=8, max_steps=10, gradient_checkpointing=True)
    assert saving.losses == pytest.approx(plain.losses, rel=1e-5)


def test_a_micro_batch_without_triplets_contributes():
    student = make_student("gpt2")
    rows = make_rows(student, 6)
    reflection: Reflection = reflection_of(rows)
    batch = triplet_batch(reflection, rows, [0, 2], 0, 0, None)  # even samples have no mistakes
    assert batch["weights"].tolist() == [0.0]
    head = Forward(student.model)
    loss = triplet_loss(head.text_states(batch, TEXTS), batch["weights"], 1.0)
    head.remove()
    assert loss.item() == 0
    assert functional.relu(loss).requires_grad
