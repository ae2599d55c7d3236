"""Decoding: texts equal those of transformers' ``generate``, whatever else is in the batch and even if memory runs out."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from students import DECODERS, ENCODER_DECODERS, logits_at_targets, make_rows, make_student

from fcot.base.errors import FcotError
from fcot.base.ranks import World
from fcot.decoding.cache import GrowingLayer
from fcot.objectives.completion import token_loss
from fcot.student.data import Layout
from fcot.student.decoding import Decoded, Decoder, DecodingPrompt, Sampling, decode
from fcot.student.loading import load_student, save_student

LIMIT = 20
N = 16
ALL = 10**9  # a token budget for all rows at once


def generated(student, prompt, **options):
    """The token ids that transformers generates for one prompt, and the logits of every step."""
    ids = torch.tensor([prompt.ids])
    out = student.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, return_dict_in_generate=True, output_logits=True,
        **(options or {"max_new_tokens": prompt.limit}),
    )  # fmt: skip
    token_ids = out.sequences[0, 1 if student.architecture == "encoder_decoder" else len(prompt.ids) :].tolist()
    return token_ids, torch.cat(out.logits)


def expected(student, prompt, **options):
    token_ids, _ = generated(student, prompt, **options)
    text = student.tokenizer.decode(token_ids, skip_special_tokens=True)
    ended = token_ids[-1] == student.tokenizer.eos_token_id
    return Decoded(text, ended, len(token_ids), ids=token_ids[:-1] if ended else token_ids)


def add_to_end_token(student, amount):
    """Add ``amount`` to the end token's logit in every step, for fcot and for ``generate``."""
    bias = torch.zeros(student.model.config.vocab_size)
    bias[student.tokenizer.eos_token_id] = amount
    student.model.get_output_embeddings().register_forward_hook(lambda module, inputs, logits: logits + bias)


def make_ending(family):
    """A student that ends about half of its answers before the limit, prompts, and the answers of ``generate``."""
    student = make_student(family)
    prompts = list({tuple(row.prompt): DecodingPrompt(row.prompt, LIMIT) for row in make_rows(student, 2 * N)}.values())[:N]
    end = student.tokenizer.eos_token_id
    gaps = []
    for prompt in prompts:
        logits = generated(student, prompt, max_new_tokens=LIMIT, min_new_tokens=LIMIT)[1]
        logits = logits.masked_fill(logits == -torch.inf, -99.0)
        gaps.append(float((logits.max(1).values - logits[:, end]).min()))
    gaps.sort()
    add_to_end_token(student, sum(gaps[N // 2 - 1 : N // 2 + 1]) / 2)  # between two gaps: no ties
    return student, prompts, [expected(student, prompt) for prompt in prompts]


@pytest.fixture(scope="module", params=ENCODER_DECODERS + DECODERS)
def case(request):
    return make_ending(request.param)


@pytest.fixture(scope="module", params=["t5", "gpt2", "llama"])
def some_case(request):
    return make_ending(request.param)


@pytest.fixture
def rows_per_pass():
    """``seen_rows(student)``: a list that grows by the rows of every forward pass through the model's last layer."""
    handles = []

    def watch(student, limit=None, calls_before=0):
        rows = []

        def before(module, inputs, options):
            hidden = inputs[0] if inputs else options["hidden_states"]
            rows.append(len(hidden))
            if limit is not None and len(rows) > calls_before and len(hidden) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")

        handles.append(last_layer(student).register_forward_pre_hook(before, with_kwargs=True))
        return rows

    yield watch
    for handle in handles:
        handle.remove()


def last_layer(student):
    model = student.model
    if student.architecture == "encoder_decoder":
        return model.decoder.block[-1]
    return model.transformer.h[-1] if hasattr(model, "transformer") else model.model.layers[-1]


def budget_for(n, prompts):
    """A token budget for ``n`` rows."""
    return n * (max(len(prompt.ids) for prompt in prompts) + 64)


def test_the_cases_have_both_finished_and_cut_rows(case):
    _, prompts, texts = case
    assert 2 < sum(answer.complete for answer in texts) < N
    assert {answer.n_tokens for answer in texts if not answer.complete} <= {LIMIT}
    assert len({answer.n_tokens for answer in texts}) > 2
    assert len({answer.text for answer in texts}) > N / 4, "the texts differ: equal ones would prove nothing"
    assert len({len(prompt.ids) for prompt in prompts}) > 4


@pytest.mark.parametrize("n", [1, 7, 64])
def test_texts_equal_those_of_generate_whatever_else_is_in_the_batch(case, n, rows_per_pass):
    student, prompts, texts = case
    rows = rows_per_pass(student)
    assert decode(student, prompts, max_tokens=budget_for(n, prompts)) == texts
    if n == 7:  # more than 7 if the other rows are short
        assert 7 <= max(rows) < N
        assert sum(count >= 6 for count in rows) >= LIMIT, "freed places are filled again"
    else:
        assert max(rows) == min(n, N)


def test_the_order_of_prompts_does_not_matter(case):
    student, prompts, texts = case
    order = random.Random(0).sample(range(N), N)
    assert decode(student, [prompts[i] for i in order], max_tokens=budget_for(5, prompts)) == [texts[i] for i in order]


@pytest.mark.parametrize("limit", [4, 1])
@pytest.mark.parametrize("calls_before", [0, 3], ids=["when rows enter", "within a step"])
def test_memory_running_out_changes_no_text(case, calls_before, limit, rows_per_pass):
    student, prompts, texts = case
    rows = rows_per_pass(student, limit, calls_before)
    assert decode(student, prompts, max_tokens=ALL) == texts
    assert rows[calls_before] > limit, "memory did run out"
    assert all(n <= limit for n in rows[-5:])


def test_a_row_that_does_not_fit_alone_is_an_error(some_case, rows_per_pass):
    student, prompts, _ = some_case
    for calls_before in (0, 4):
        rows_per_pass(student, 0, calls_before)
        with pytest.raises(FcotError, match=r"one row does not fit into memory, a prompt of \d+ tokens with up to 20 to write"):
            decode(student, prompts, max_tokens=ALL)


def test_equal_prompts_are_decoded_once(some_case, rows_per_pass):
    student, prompts, texts = some_case
    rows, steps = rows_per_pass(student), []
    many = [*prompts[:4], *prompts[:4], prompts[0]]
    assert decode(student, many, max_tokens=ALL, advance=steps.append) == [*texts[:4], *texts[:4], texts[0]]
    assert max(rows) == 4
    assert (sum(steps), sorted(steps)) == (9, [2, 2, 2, 3])
    shorter = [prompts[0], replace(prompts[0], limit=2)]
    assert decode(student, shorter, max_tokens=ALL)[1].n_tokens <= 2, "another limit is another row"


def test_sampled_texts_depend_on_seed_sample_and_draw_only(some_case):
    student, prompts, _ = some_case
    sampling = Sampling(0.9)

    def texts(seed, budget, order=range(N)):
        rows = [replace(prompts[i], noise=(seed, i, draw)) for i in order for draw in range(2)]
        answers = decode(student, rows, max_tokens=budget, sampling=sampling)
        return {row.noise[1:]: answer for row, answer in zip(rows, answers, strict=True)}

    alone = texts(0, 1)
    assert texts(0, ALL) == alone
    assert texts(0, budget_for(7, prompts), order=random.Random(1).sample(range(N), N)) == alone
    few = texts(0, ALL, order=[3, 8])
    assert few == {name: alone[name] for name in few}
    assert texts(1, ALL) != alone
    assert sum(alone[i, 0] != alone[i, 1] for i in range(N)) > N / 2


def test_draws_are_distributed_as_the_softmax_says():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5, 0.3, -0.5, 1.5])
    n = 20_000
    uniforms = np.random.default_rng(0).random(n)
    for temperature, top_k in ((1.0, None), (0.5, None), (2.0, None), (1.0, 3), (0.7, 20), (1.0, 1)):
        counts = np.bincount(Sampling(temperature, top_k).choose(logits.expand(n, -1), uniforms), minlength=8)
        weights = torch.softmax(logits.double() / temperature, 0)
        likeliest = logits.topk(min(top_k or 8, 8)).indices
        assert counts.sum() == counts[likeliest].sum() == n, "no token outside the top k is drawn"
        share = (weights[likeliest] / weights[likeliest].sum()).numpy()
        assert len(likeliest) == 1 or chisquare(counts[likeliest], share * n).pvalue > 0.01
    assert Sampling(1.0).choose(logits[None], [0.0]) == [0]
    assert Sampling(1.0).choose(logits[None], [1 - 2**-53]) == [7]


def test_first_tokens_of_many_draws_follow_the_model():
    student = make_student("llama", noise=0.1)
    row = make_rows(student, 1)[0]
    n = 4000
    prompts = [DecodingPrompt(row.prompt, 1, (5, 17, draw)) for draw in range(n)]
    decoder = Decoder(student.model, [], Sampling(1.0), 10**6)
    counts = np.bincount([written.ids[0] for _, written in decoder.run(enumerate(prompts))], minlength=len(student.tokenizer))
    with torch.inference_mode():
        share = student.model(torch.tensor([row.prompt])).logits[0, -1].double().softmax(-1).numpy()
    likely = share * n > 5
    groups = [np.append(values[likely], values[~likely].sum()) for values in (counts, share * n)]
    assert len(groups[0]) > 20
    assert chisquare(*groups).pvalue > 0.01


def test_rows_are_decoded_until_their_own_positions_are_used_up():
    """A GPT-2 that never ends its answers, with different rows beside it."""
    student = make_student("gpt2", positions=64)
    add_to_end_token(student, -1e9)
    prompts = [DecodingPrompt(row.prompt, 1000) for row in make_rows(student, 12)]
    texts = [expected(student, prompt, max_length=64) for prompt in prompts]
    for budget in (1, budget_for(5, prompts), ALL):
        assert decode(student, prompts, max_tokens=budget) == texts
    assert all(len(prompt.ids) + answer.n_tokens == 64 and not answer.complete for prompt, answer in zip(prompts, texts, strict=True))
    assert len({len(prompt.ids) for prompt in prompts}) > 3


def test_every_row_has_its_own_limit(some_case):
    student, prompts, _ = some_case
    limited = [replace(prompt, limit=1 + index % 5) for index, prompt in enumerate(prompts)]
    assert decode(student, limited, max_tokens=budget_for(7, prompts)) == [expected(student, prompt) for prompt in limited]


def test_a_row_ends_where_it_is_halted(some_case):
    student, prompts, texts = some_case
    lengths = []

    def halt(written):
        lengths.append(len(written))
        return len(written) == 3

    decoder = Decoder(student.model, [student.tokenizer.eos_token_id], Sampling(), ALL)
    completions = dict(decoder.run((i, replace(prompt, halt=halt)) for i, prompt in enumerate(prompts)))
    for i, answer in enumerate(texts):
        assert completions[i].complete
        assert len(completions[i].ids) == min(3, answer.n_tokens - answer.complete)
    assert set(lengths) == {1, 2, 3}


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_dropout_is_off_while_decoding_and_on_again_afterwards(family):
    student = make_student(family, dropout=0.3)
    rows = make_rows(student, 6)
    prompts = [DecodingPrompt(row.prompt, 8) for row in rows]
    plain = decode(student, prompts, max_tokens=ALL)
    assert not student.model.training
    student.model.train()
    assert decode(student, prompts, max_tokens=ALL) == plain
    assert student.model.training
    layout = Layout(student.architecture, student.tokenizer.pad_token_id, student.tokenizer.pad_token_id)
    batch = layout.batch(rows)
    losses = {token_loss(logits_at_targets(student.model, batch), batch).item() for _ in range(3)}
    assert len(losses) == 3, "dropout is on in training"


def test_an_abandoned_generator_leaves_a_clean_decoder(some_case):
    student, prompts, texts = some_case
    decoder = Decoder(student.model, [student.tokenizer.eos_token_id], Sampling(), budget_for(5, prompts))
    abandoned = decoder.run(enumerate(prompts))
    next(abandoned)
    abandoned.close()
    completions = dict(decoder.run(enumerate(prompts)))
    assert [completions[i].complete for i in range(N)] == [answer.complete for answer in texts]
    assert [len(completions[i].ids) + completions[i].complete for i in range(N)] == [answer.n_tokens for answer in texts]


def test_no_prompts_give_no_texts(some_case):
    assert decode(some_case[0], [], max_tokens=100) == []


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [0, 1, 7, 16])
def test_every_item_goes_to_exactly_one_rank(n, size, monkeypatch):
    items = [f"item {index}" for index in range(n)]
    shares = [World(rank, size).share(items) for rank in range(size)]
    assert sorted(item for share in shares for item in share) == sorted(items)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1

    def all_gather(parts, mine):
        parts[:] = [[f"done {item}" for item in share] for share in shares]

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather)
    for rank in range(size):
        results = [f"done {item}" for item in shares[rank]]
        assert World(rank, size).gather(results, n) == [f"done {item}" for item in items]


@pytest.mark.parametrize("place", ["join", "select"])
def test_memory_running_out_while_the_cache_is_copied_changes_no_text(place, some_case, monkeypatch):
    student, prompts, texts = some_case
    calls, real = [], getattr(GrowingLayer, place)

    def full(layer, *arguments):
        calls.append(layer)
        if len(calls) == 2:  # the second layer of the first copy
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(layer, *arguments)

    monkeypatch.setattr(GrowingLayer, place, full)
    assert decode(student, prompts, max_tokens=budget_for(7, prompts)) == texts
    assert len(calls) > 2


@pytest.mark.parametrize("n", [1, 4])
def test_memory_running_out_while_a_token_is_chosen_decodes_no_row_twice(n, some_case, monkeypatch):
    student, prompts, _texts = some_case
    real, failures = Sampling.choose, [torch.OutOfMemoryError("CUDA out of memory")]

    def choose(self, logits, uniforms):
        if failures:
            raise failures.pop()
        return real(self, logits, uniforms)

    monkeypatch.setattr(Sampling, "choose", choose)
    if n == 1:
        with pytest.raises(FcotError, match="does not fit into memory"):
            decode(student, prompts[:1], max_tokens=10**6)
        return
    advances = []
    assert len(decode(student, prompts[:n], max_tokens=10**6, advance=advances.append)) == n
    assert sum(advances) == n


def test_a_folder_may_name_several_end_tokens(tmp_path):
    """Chat models may end their turn with another token than their tokenizer's end token."""
    student = make_student("gpt2")
    save_student(student, tmp_path)
    prompt = DecodingPrompt(make_rows(student, 2)[0].prompt, 12)
    full = decode(student, [prompt], max_tokens=400)[0]
    token_ids = next(Decoder(student.model, student.ends, Sampling(), 400).run(iter([(0, prompt)])))[1].ids
    config = tmp_path / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": [student.tokenizer.eos_token_id, token_ids[3]]}))
    reloaded = load_student(str(tmp_path))
    short = decode(reloaded, [prompt], max_tokens=400)[0]
    assert short.complete
    assert short.n_tokens == token_ids.index(token_ids[3]) + 1 <= 4 < full.n_tokens
