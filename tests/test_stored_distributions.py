"""A teacher's likeliest tokens: in the store, over servers, from a local model, and in the loss."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from scoring_server import entry, served, teacher_at
from students import make_rows, make_student, tokenizer
from trainings import assert_equal_in_chunks
from transformers import AutoTokenizer

from fcot.base.errors import FcotError
from fcot.base.records import TrainingSample
from fcot.llm.distributions import NO_TOKEN, Header, TopTokens, Vocabulary, decode, encode, from_server, read_header, top_tokens, within
from fcot.llm.logprobs import LogprobReader
from fcot.llm.requests import Request
from fcot.llm.store.inventory import compact, merge
from fcot.llm.store.shard import Shard
from fcot.objectives.completion import CompletionLoss
from fcot.objectives.config import DistributionConfig
from fcot.objectives.stored import Covered, StoredDistributionLoss, cover
from fcot.student.data import Layout, StoredDistributions, TrainingData
from fcot.student.forward import Forward

KEY = "a" * 64


def random_top(n, k, seed, tokens=None):
    draw = np.random.default_rng(seed)
    ids = np.stack([draw.permutation(len(tokenizer()))[:k] for _ in range(n)])
    probabilities = np.sort(draw.dirichlet(np.ones(k + 1), n)[:, :k])[:, ::-1]
    tokens = draw.integers(0, 300, n) if tokens is None else tokens
    return TopTokens(np.array(tokens, np.int32), ids.astype(np.int32), np.log(probabilities).astype(np.float16))


def same(first, second):
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in ("tokens", "ids", "logprobs"))


def row(slot, text, request="r", key=KEY):
    fixed = {"root": None, "finish_reason": "stop", "run": "run", "time": 1.0, "seed": 0, "n": 1, "sample_index": 0}
    return fixed | {"key": key, "slot": slot, "text": text, "request": request, "choice": slot or 0}


# --- in the store -----------------------------------------------------------------------------------------------------


def test_a_record_returns_what_was_written_and_notices_damage():
    top = random_top(9, 5, 0)
    record = encode(bytes(range(32)), 3, b"hashhash", top)
    header = read_header(record)
    assert len(record) == Header.SIZE + header.content_bytes
    assert header.content_bytes == 9 * (4 + 6 * 5)
    assert same(decode(header, record[Header.SIZE :]), top)
    damaged = bytearray(record[Header.SIZE :])
    damaged[17] ^= 1
    assert decode(header, bytes(damaged)) is None


def test_distributions_are_found_by_another_process_and_after_the_buyers_file_was_moved(tmp_path):
    tops = [random_top(4, 3, seed) for seed in range(3)]
    shard = Shard(tmp_path / "a.jsonl", "buyer")
    assert shard.claim(KEY)
    shard.refresh()
    rows = [row(slot, f"text {slot}", f"r{slot}") for slot in range(3)]
    for new, top in zip(rows, tops, strict=True):
        shard.append([new], [(new, top)])
    other = Shard(tmp_path / "a.jsonl").refresh()
    assert all(same(other.distributions.get(stored), top) for stored, top in zip(rows, tops, strict=True))
    shard.close()
    assert sorted(path.name for path in tmp_path.glob("*.top")) == ["a.top"]
    assert all(same(other.distributions.get(stored), top) for stored, top in zip(rows, tops, strict=True))
    assert other.distributions.get(row(0, "another text")) is None


@pytest.mark.parametrize("cut", [1, Header.SIZE - 1, Header.SIZE + 3])
def test_a_torn_record_is_not_read_and_is_replaced_by_the_next_one(tmp_path, cut):
    shard = Shard(tmp_path / "a.jsonl")
    first, second = random_top(4, 3, 0), random_top(5, 3, 1)
    shard.distributions.add(encode_row(row(0, "one"), first))
    whole = (tmp_path / "a.top").read_bytes()
    (tmp_path / "a.top").write_bytes(whole + whole[:cut])
    assert same(shard.distributions.get(row(0, "one")), first)
    assert [fault for _, fault in shard.distributions.faults()] == [f"no record at byte {len(whole):,}"]
    shard.distributions.add(encode_row(row(1, "two"), second))
    assert list(shard.distributions.faults()) == []
    assert same(Shard(tmp_path / "a.jsonl").distributions.get(row(1, "two")), second)


def encode_row(stored, top):
    from fcot.llm.store.distributions import encode_for

    return encode_for(stored, top)


def test_compacting_drops_records_without_a_row(tmp_path):
    shard = Shard(tmp_path / "a.jsonl")
    kept, orphan = random_top(4, 3, 0), random_top(40, 3, 1)
    shard.lock_all(wait=True)
    shard.append([row(0, "one")], [(row(0, "one"), kept), (row(1, "never answered"), orphan)])
    before = (shard.fold(), (tmp_path / "a.top").stat().st_size)[1]
    compact(shard)
    assert (tmp_path / "a.top").stat().st_size == before - Header.SIZE - 40 * (4 + 18)
    assert same(shard.distributions.get(row(0, "one")), kept)
    assert not shard.distributions.has(row(1, "never answered"))
    shard.close()


def test_merging_takes_distributions_along_also_of_rows_that_are_in_both(tmp_path):
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    source, target = Shard(tmp_path / "from/a.jsonl"), Shard(tmp_path / "to/a.jsonl")
    tops = [random_top(4, 3, seed) for seed in range(2)]
    for shard in (source, target):
        shard.lock_all(wait=True)
    source.append([row(0, "both", "r0"), row(1, "new", "r1")], [(row(0, "both", "r0"), tops[0]), (row(1, "new", "r1"), tops[1])])
    target.append([row(1, "own", "r2"), row(0, "both", "r0")])
    source.close()
    assert merge(source.refresh(), target) == 1
    assert same(target.distributions.get(row(0, "both")), tops[0])
    (moved,) = (stored for stored in target.all_rows(KEY) if stored["text"] == "new")
    assert moved["slot"] == 2
    assert same(target.distributions.get(moved), tops[1])
    target.close()


# --- over a server ----------------------------------------------------------------------------------------------------


def test_texts_of_tokens_become_the_ids_of_the_tokenizer():
    vocabulary, text = Vocabulary(tokenizer()), "Ada has 31 coins, é and 2 + 7 = 9."
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    pieces = [{"token": "�", "bytes": list(piece)} for piece in pieces_of(ids)]
    assert [vocabulary.id_of(piece) for piece in pieces] == ids
    assert vocabulary.id_of({"token": "token_id:17"}) == 17
    assert vocabulary.id_of({"token": "x", "id": 23}) == 23
    assert vocabulary.id_of({"token": tokenizer().eos_token}) == tokenizer().eos_token_id
    assert vocabulary.id_of({"token": "no such token"}) is None


def pieces_of(ids):
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    values = {character: value for value, character in bytes_to_unicode().items()}
    return [bytes(values[character] for character in tokenizer().convert_ids_to_tokens(token)) for token in ids]


def test_missing_alternatives_are_marked_and_the_sampled_token_always_counts():
    ids = tokenizer()("2 + 7", add_special_tokens=False)["input_ids"]
    entries = [entry(token, -1.5, [(5, -0.5), (6, -0.7)][:number]) for number, token in enumerate(ids)]
    top = from_server(entries, 4, Vocabulary(tokenizer()), "2 + 7")
    assert top.tokens.tolist() == ids
    assert top.ids[0].tolist() == [ids[0], NO_TOKEN, NO_TOKEN, NO_TOKEN]
    assert top.ids[2].tolist() == [5, 6, ids[2], NO_TOKEN]
    assert top.logprobs[2].tolist() == [np.float16(-0.5), np.float16(-0.7), np.float16(-1.5), -math.inf]


def test_tokens_that_do_not_spell_the_text_or_have_no_id_are_not_used():
    ids = tokenizer()("2 + 7", add_special_tokens=False)["input_ids"]
    entries = [entry(token, -1.5) for token in ids]
    assert from_server(entries, 4, Vocabulary(tokenizer()), "2 + 8") is None
    assert from_server([*entries, {"token": "no such token", "logprob": -1.0}], 4, Vocabulary(tokenizer()), "2 + 7") is None
    assert from_server([*entries, {"token": "7"}], 4, Vocabulary(tokenizer()), "2 + 77") is not None  # an alternative without a number


SMALL = (
    "dataset.n_problems=40", "diversity=2", "trainer.max_steps=4", "trainer.evaluate_every_steps=4", "trainer.warmup_steps=1",
    "student.layers=1", "student.width=32", "student.max_new_tokens=20",
)  # fmt: skip


def learned(url, folder):
    return (*SMALL, *teacher_at(url, folder))


def only_run(folder):
    (metrics,) = folder.glob("outputs/runs/*/metrics.json")
    return json.loads(metrics.read_text()), json.loads((metrics.parent / "stages/train.json").read_text())


def test_distributions_that_come_with_completions_are_learned(run_fcot, tmp_path):
    with served() as (url, bodies):
        process = run_fcot(*learned(url, tmp_path), "objective=distribution", "objective.teacher=stored")
    assert process.returncode == 0, process.stderr
    assert all(body["logprobs"] is True and body["top_logprobs"] == 2 for body in bodies)
    _, trained = only_run(tmp_path)
    assert trained["distribution_tokens_share"] > 0.6  # the rationale, not the answer behind the arrow


def test_stored_completions_without_distributions_are_scored_on_request_and_never_bought_again(run_fcot, tmp_path):
    with served(distributions=False) as (url, bodies):
        bought = run_fcot(*learned(url, tmp_path), "until=curate")
        assert bought.returncode == 0, bought.stderr
        n_bought = len(bodies)
        stored = ("objective=distribution", "objective.teacher=stored")
        without = run_fcot(*learned(url, tmp_path), *stored)
        assert without.returncode == 1
        assert "kept rationales has a stored distribution" in without.stderr
        assert "teacher.score_stored=true" in without.stderr
        assert len(bodies) == n_bought
        estimate = run_fcot(*learned(url, tmp_path), *stored, "teacher.score_stored=true", "dry_run=true")
        assert "teacher.score_stored=true: at most" in estimate.stdout + estimate.stderr
        (tmp_path / "prices.yaml").write_text("m: {input: 100, output: 1000}")
        priced = ("teacher.score_stored=true", f"teacher.prices={tmp_path / 'prices.yaml'}")
        estimate = run_fcot(*learned(url, tmp_path), *stored, *priced, "dry_run=true")
        assert re.search(r"rationales are scored, [\d,]+ prompt tokens more \(\$[\d.]+ \(", estimate.stdout + estimate.stderr)
        scored = run_fcot(*learned(url, tmp_path), *stored, *priced)
        assert scored.returncode == 0, scored.stderr
        new = bodies[n_bought:]
        assert all("prompt_logprobs" in body for body in new)
        metrics, trained = only_run(tmp_path)
        assert trained["distribution_tokens_share"] > 0.6
        assert len(new) == 2 * metrics["n_train_problems"]
        usage = metrics["teacher_usage"]
        assert usage["prompt_tokens"] > 20 * n_bought  # the scored prompts are counted
        assert usage["usd"] == pytest.approx((100 * usage["prompt_tokens"] + 1000 * usage["completion_tokens"]) / 1e6)
        assert usage["requests"] == len(new), "another run bought the completions"
        again = run_fcot(*learned(url, tmp_path), *stored, "teacher.score_stored=true", "seed=1")
        assert again.returncode == 0, again.stderr
        assert bodies[n_bought + len(new) :] == []


def test_a_server_without_distributions_is_asked_once_per_text(run_fcot, tmp_path):
    with served(distributions=False, score=lambda self, body: {"choices": [{"message": {"content": "x"}}]}) as (url, bodies):
        for _ in range(2):
            stored = ("objective=distribution", "objective.teacher=stored", "diversity=1")
            process = run_fcot(*learned(url, tmp_path), "teacher.score_stored=true", *stored)
            assert process.returncode == 1
            assert "kept rationales has a stored distribution" in process.stderr
        n_scores = sum("prompt_logprobs" in body for body in bodies)
        assert n_scores == sum("prompt_logprobs" not in body for body in bodies)


def test_the_scored_tokens_of_a_prompt_are_those_at_its_end():
    text = "2 + 7 = 9."
    ids = tokenizer()("Why? " + text, add_special_tokens=False)["input_ids"]
    own = len(tokenizer()(" " + text, add_special_tokens=False)["input_ids"])
    positions = [None, *({str(token): {"logprob": -0.2, "rank": 1}, "5": {"logprob": -2.0}} for token in ids[1:])]
    end = {str(tokenizer().eos_token_id): {"logprob": -0.1}}
    reader = LogprobReader(2, "unused")
    reader.__dict__["_vocabulary"] = Vocabulary(tokenizer())
    for answer in ({"prompt_logprobs": positions}, {"choices": [{"prompt_logprobs": [*positions, end]}]}):
        top = reader.read_scored(answer, text).top
        assert top.tokens.tolist() == ids[-own:]
        assert top.ids.shape == (own, 2)
    assert reader.read_scored({"choices": []}, text).top is None
    assert reader.read_scored({"prompt_logprobs": positions}, "other").top is None
    body = reader.parameters(Request([{"role": "user", "content": "Why?"}], 1, top_logprobs=2, scored=text), True)
    assert body["messages"][-1] == {"role": "assistant", "content": text}
    assert body["continue_final_message"] is True


def test_a_scored_prompt_without_some_log_probabilities_is_read_as_far_as_it_has_them():
    text = "2 + 7 = 9."
    ids = tokenizer()("Why? " + text, add_special_tokens=False)["input_ids"]
    own = len(tokenizer()(" " + text, add_special_tokens=False)["input_ids"])
    reader = LogprobReader(2, "unused")
    reader.__dict__["_vocabulary"] = Vocabulary(tokenizer())

    def top_of(position, entry):
        positions = [None, *({str(token): {"logprob": -0.2}, "5": {"logprob": -2.0}} for token in ids[1:])]
        positions[position] = entry
        return reader.read_scored({"prompt_logprobs": positions}, text).top

    missing = {str(ids[-2]): {"logprob": None}, "5": {"logprob": -1.0}}
    assert top_of(-2, missing).ids[-2].tolist() == [5, NO_TOKEN]
    assert top_of(-2, missing).tokens.tolist() == ids[-own:]
    assert top_of(-2, {str(ids[-2]): {}}).ids[-2].tolist() == [NO_TOKEN, NO_TOKEN]
    assert top_of(-2, {}) is None
    assert top_of(-2, None) is None
    assert top_of(-2, {"seven": {"logprob": -0.1}}) is None, "not an id"
    assert top_of(1, None).tokens.tolist() == ids[-own:], "the prompt before the text does not count"


# --- from a local model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", ["tiny_gpt2", "tiny_t5"])
def test_a_local_teacher_scores_its_rationales_once(run_fcot, tmp_path, student):
    wide = run_fcot(*SMALL, f"student={student}", "trainer.max_steps=40", "student.max_new_tokens=40")
    assert wide.returncode == 0, wide.stderr
    (teacher,) = tmp_path.glob("outputs/runs/*/student")
    options = (
        "teacher=hf", f"teacher.path={teacher}", "teacher.top_logprobs=5", "prompt.rationale_tokens=24", "curation=none",
        "objective=distribution", "objective.teacher=stored", f"student.tokenizer={teacher}", f"student={student}",
    )  # fmt: skip
    process = run_fcot(*SMALL, *options)
    assert process.returncode == 0, process.stderr
    (run,) = (path for path in tmp_path.glob("outputs/runs/*") if path != teacher.parent)
    assert json.loads((run / "stages/train.json").read_text())["distribution_tokens_share"] > 0.2
    sizes = {path: path.stat().st_size for path in tmp_path.glob("outputs/store/**/*.top")}
    assert sizes
    again = run_fcot(*SMALL, *options, "seed=1")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_size for path in tmp_path.glob("outputs/store/**/*.top")} == sizes


# --- in the loss ------------------------------------------------------------------------------------------------------


def objective_of(student, tops, share=0.5, packing=False):
    start = getattr(student.model.config, "decoder_start_token_id", None)
    layout = Layout(student.architecture, student.tokenizer.pad_token_id, start, packing=packing)
    rows = make_rows(student, 6)
    return StoredDistributionLoss(CompletionLoss(rows, layout), [cover(rows[i].completion, top) for i, top in enumerate(tops)], share)


def tops_of(student, k=3):
    """Distributions of four of six completions; one lacks its first token, one ends early, one names fewer alternatives."""
    rows = make_rows(student, 6)
    tops = [random_top(len(rows[i].completion), k, i, rows[i].completion) for i in range(4)]
    tops[1] = TopTokens(tops[1].tokens[1:], tops[1].ids[1:], tops[1].logprobs[1:])
    tops[2] = TopTokens(tops[2].tokens[:-2], tops[2].ids[:-2], tops[2].logprobs[:-2])
    tops[3].ids[:, -1], tops[3].logprobs[:, -1] = NO_TOKEN, -np.inf
    return [*tops, None, None]


def by_hand(student, objective, share):
    """In float64, sample by sample and token by token."""
    total = torch.zeros((), dtype=torch.float64)
    for index in range(6):
        part = objective.completion.layout.batch([objective.completion.rows[index]])
        logs = Forward(student.model)(part).double().log_softmax(-1)
        covered = objective.covered[index]
        for position, token in enumerate(objective.completion.rows[index].completion):
            cross_entropy = -logs[position, token]
            if covered is None or not covered.first <= position < covered.first + len(covered):
                total = total + cross_entropy
                continue
            ids, values = covered.ids[position - covered.first], covered.logprobs[position - covered.first].astype(float)
            pairs = [(int(i), math.exp(v)) for i, v in zip(ids, values, strict=True) if i != NO_TOKEN]
            tail = max(1e-6, 1 - sum(p for _, p in pairs))
            scale = tail + sum(p for _, p in pairs)
            rest = 1 - sum(logs[position, i].exp() for i, _ in pairs)
            terms = [p / scale * (math.log(p / scale) - logs[position, i]) for i, p in pairs]
            total = total + (1 - share) * cross_entropy + share * (sum(terms) + tail / scale * (math.log(tail / scale) - rest.log()))
    return total


@pytest.mark.parametrize(("name", "packing"), [("gpt2", False), ("gpt2", True), ("t5", False)])
def test_the_loss_and_its_gradient_are_those_of_the_formula(name, packing):
    student = make_student(name)
    if packing:
        from fcot.student.attention import allow_packing

        allow_packing(student.model)
    objective = objective_of(student, tops_of(student), packing=packing)
    parameters = [parameter for parameter in student.model.parameters() if parameter.requires_grad]
    loss = objective.loss(Forward(student.model), objective.collate(range(6), 0))
    plain = objective_of(student, tops_of(student))
    expected = by_hand(student, plain, 0.5)
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    found = torch.autograd.grad(loss.total, parameters, allow_unused=True)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    for first, second in zip(found, wanted, strict=True):
        assert (first is None) == (second is None)
        if first is not None:
            tolerance = 1e-4 * float(second.abs().max().clamp(min=1))  # both have float32's rounding errors, which grow with the sums
            torch.testing.assert_close(first, second.float(), rtol=1e-3, atol=tolerance)
    assert float(loss.watched["covered"]) == sum(len(covered) for covered in objective.covered if covered)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_tokens_for_which_the_teacher_named_none_have_the_cross_entropy_alone(name):
    student, row = make_student(name), make_rows(make_student(name), 6)[0]
    top = random_top(len(row.completion), 3, 0, row.completion)
    top.ids[2:5], top.logprobs[2:5] = NO_TOKEN, -np.inf
    silent = objective_of(student, [top, *[None] * 5])
    assert silent.facts()["distribution_tokens_share"] == round(
        (len(row.completion) - 3) / int(silent.completion.rows.lengths[:, 1].sum()), 4
    )
    expected = 0.0
    for part in (slice(0, 2), slice(5, None)):
        piece = Covered(range(len(top))[part].start, top.ids[part].astype(np.int64), top.logprobs[part].astype(np.float32))
        half = StoredDistributionLoss(silent.completion, [piece, *[None] * 5], 0.5)
        expected += half.loss(Forward(student.model), half.collate([0], 0)).total.item()
    plain = StoredDistributionLoss(silent.completion, [None] * 6, 0.5)
    expected -= plain.loss(Forward(student.model), plain.collate([0], 0)).total.item()  # both parts contain it
    loss = silent.loss(Forward(student.model), silent.collate([0], 0))
    assert loss.total.item() == pytest.approx(expected, rel=1e-4)
    assert float(loss.watched["covered"]) == len(row.completion) - 3


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_padded_tokens_that_a_wider_teacher_names_count_as_others(name, tmp_path):
    student = make_student(name)
    student.tokenizer.save_pretrained(tmp_path)
    vocabulary, rows, layout = len(student.tokenizer), make_rows(student, 6), objective_of(student, [None] * 6).completion.layout
    tops, plain = tops_of(student), tops_of(student)
    for top, same in zip(tops[:4], plain[:4], strict=True):
        top.ids[::2, 0], top.ids[1::2, 1] = vocabulary + 5, vocabulary  # the likeliest one, or another
        top.ids[3] = vocabulary + 1  # all of them
        same.ids[:], same.logprobs[:] = within(top, vocabulary).ids, within(top, vocabulary).logprobs
        assert (same.ids < vocabulary).all()
        assert (same.ids[:3, 0] >= 0).all()
        assert (same.ids[3] == NO_TOKEN).all()
    losses = []
    for given in (tops, plain):
        samples = [TrainingSample(i, "", "") for i in range(6)]
        of = dict(enumerate(given))
        data = TrainingData(
            student, None, samples, rows, layout, StoredDistributions(str(tmp_path), lambda sample, of=of: of[sample.sample_index])
        )
        (objective,) = DistributionConfig(teacher="stored").build(data)
        losses.append(objective.loss(Forward(student.model), objective.collate(range(6), 0)))
    assert losses[1].total.isfinite()
    assert losses[0].total.item() == pytest.approx(losses[1].total.item(), rel=1e-6)
    assert float(losses[0].watched["student_mass"]) == pytest.approx(float(losses[1].watched["student_mass"]), rel=1e-6)


def test_stored_distributions_over_other_tokens_are_rejected(tmp_path):
    student = make_student("gpt2")
    student.tokenizer.save_pretrained(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path)
    other.add_tokens(["<new>"])
    other.save_pretrained(tmp_path)
    layout = Layout("decoder", student.tokenizer.pad_token_id)
    data = TrainingData(student, None, [], make_rows(student, 1), layout, StoredDistributions(str(tmp_path), lambda _: None))
    with pytest.raises(FcotError, match=r"objective.teacher=stored \(.*\): its tokens are not the student's"):
        DistributionConfig(teacher="stored").build(data)


def test_an_answer_without_a_log_probability_for_some_token_is_kept():
    ids = tokenizer()("2 + 7", add_special_tokens=False)["input_ids"]
    entries = [entry(token, -0.5, [(5, -1.0)]) for token in ids]
    entries[1] = {"token": entries[1]["token"], "bytes": entries[1]["bytes"], "logprob": None, "top_logprobs": None}
    top = from_server(entries, 2, Vocabulary(tokenizer()), "2 + 7")
    assert top.tokens.tolist() == ids
    assert (top.ids[1] == NO_TOKEN).all()
    assert (top.ids[0] != NO_TOKEN).all()


def test_the_sum_does_not_depend_on_how_samples_are_divided():
    student = make_student("gpt2")
    objective = objective_of(student, tops_of(student))
    whole = objective.loss(Forward(student.model), objective.collate(range(6), 0)).total
    parts = sum(objective.loss(Forward(student.model), objective.collate(ids, 0)).total for ids in ([0, 4], [1], [2, 3, 5], []))
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_chunks_of_a_large_vocabulary_give_the_same_loss_and_gradients(name, monkeypatch):
    student = make_student(name)
    objective = objective_of(student, tops_of(student), share=0.3)
    part = objective.collate(range(6), 0)
    assert_equal_in_chunks(student, objective, part, monkeypatch)


def test_a_student_with_the_teachers_distribution_has_no_divergence():
    student = make_student("gpt2")
    rows = make_rows(student, 6)
    layout = Layout("decoder", student.tokenizer.pad_token_id)
    logs = [Forward(student.model)(layout.batch([rows[i]])).log_softmax(-1).topk(len(student.tokenizer)) for i in range(6)]
    tops = [
        TopTokens(np.array(rows[i].completion, np.int32), log.indices.numpy().astype(np.int32), log.values.detach().numpy())
        for i, log in enumerate(logs)
    ]
    objective = StoredDistributionLoss(CompletionLoss(rows, layout), [cover(rows[i].completion, top) for i, top in enumerate(tops)], 1.0)
    assert objective.facts() == {"distribution_tokens_share": 1.0}
    loss = objective.loss(Forward(student.model), objective.collate(range(6), 0))
    assert abs(loss.total.item()) / objective.denominator(range(6)) < 2e-5  # the bucket of no other token has probability 1e-6


def test_only_the_common_beginning_is_covered():
    top = top_tokens([1, 2, 3, 4, 5], [{9: -0.1}] * 5, 1)
    assert cover([1, 2, 3, 8, 5], top).first == 0
    assert len(cover([1, 2, 3, 8, 5], top)) == 3
    assert (cover([7, 2, 3], top).first, len(cover([7, 2, 3], top))) == (1, 2)
    assert (cover([2, 3, 4, 5, 6], top).first, len(cover([2, 3, 4, 5, 6], top))) == (0, 4)
    assert cover([8, 8, 8, 1], top) is None
    assert cover([1], None) is None
