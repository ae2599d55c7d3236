"""On-policy distillation with a server as the teacher: what is sent and paid, kills, budgets, servers that cannot score, and the loss."""

from __future__ import annotations

import json
import re
import signal
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zygote
from configurations import make_run
from safetensors.torch import load_file
from scoring_server import served, teacher_at
from students import make_rows, make_student, tokenizer

from fcot.base.errors import FcotError
from fcot.llm.distributions import TopTokens
from fcot.llm.logprobs import LogprobReader
from fcot.llm.money import Price
from fcot.llm.store.folder import StoreFolder
from fcot.llm.store.inventory import faults, holdings
from fcot.objectives.completion import CompletionLoss
from fcot.objectives.stored import StoredDistributionLoss, cover
from fcot.stages.scoring import student_scores, text_for
from fcot.student.data import Layout
from fcot.student.forward import Forward
from fcot.student.own import RenewedRows
from fcot.student.tokenization import TokenizedSample

PRICE = 1000.0  # USD per million tokens
SMALL = (
    "dataset.n_problems=40", "diversity=1", "trainer.max_steps=30", "trainer.evaluate_every_steps=30", "trainer.warmup_steps=2",
    "trainer.batch_size=8", "trainer.checkpoint_every_s=0", "student.layers=1", "student.width=32", "student.max_new_tokens=30",
    "method=on_policy", "method.steps=6", "method.renew_every=2", "method.own_share=0.5", "method.max_unfinished=1",
    "objective.teacher=server",
)  # fmt: skip


def options(url, folder):
    folder.mkdir(exist_ok=True)
    (folder / "prices.yaml").write_text(f"m: {{input: {PRICE}, output: {PRICE}}}")
    return (*SMALL, *teacher_at(url, folder), f"teacher.prices={folder / 'prices.yaml'}", f"output_dir={folder / 'outputs'}")


def scored(bodies):
    """How often each text was sent to be scored."""
    return Counter(json.dumps(body["messages"]) for body in bodies if "prompt_logprobs" in body)


def result(folder):
    """What a finished run left."""
    (metrics,) = folder.glob("outputs/runs/*/metrics.json")
    student = load_file(metrics.parent / "student/model.safetensors")
    train = json.loads((metrics.parent / "stages/train.json").read_text())
    return SimpleNamespace(metrics=json.loads(metrics.read_text()), train=train, weights=student, folder=metrics.parent)


def run(*arguments, cwd):
    return zygote.run(["-m", "fcot.run", *arguments], cwd=cwd)


def same_weights(first, second):
    names = first.weights.keys()
    return names == second.weights.keys() and all(torch.equal(first.weights[name], second.weights[name]) for name in names)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run that nothing stopped, and the bodies of its requests."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with served() as (url, bodies):
        process = run(*options(url, folder), cwd=folder)
    assert process.returncode == 0, process.stderr
    return SimpleNamespace(**vars(result(folder)), bodies=bodies)


def test_the_server_scores_what_the_student_writes_and_the_student_learns_it(uninterrupted):
    run = uninterrupted
    assert list(run.metrics["seconds"]) == ["generate", "curate", "probe", "fine_tune", "train", "evaluate"]
    assert 15 < run.metrics["own_samples"]["written"] <= 6 * 8 / 2
    times = scored(run.bodies)
    assert set(times.values()) == {1}
    assert 2 <= len(times) <= 1 + run.metrics["own_samples"]["written"]
    bodies = [body for body in run.bodies if "prompt_logprobs" in body]
    assert all(body["prompt_logprobs"] == 2 and body["max_tokens"] == body["n"] == 1 for body in bodies)
    assert all(body["continue_final_message"] for body in bodies)
    assert sum(record["scored"] for record in run.train["renewals"]) > 0
    assert run.train["distribution_tokens_share"] > 0.5, "stored rationales have the distributions that came with them"
    assert "scored_tokens" not in run.metrics, "no local teacher has read tokens"


def test_scored_tokens_count_in_usage_and_price(uninterrupted):
    usage = uninterrupted.train["scoring_usage"]
    bought = json.loads((uninterrupted.folder / "stages/curate.json").read_text())["teacher_usage"]
    sent = [body for body in uninterrupted.bodies if "prompt_logprobs" in body]
    tokens = [len(tokenizer()("".join(message["content"] for message in body["messages"]))["input_ids"]) for body in sent]
    assert usage["requests"] == len(sent)
    assert usage["prompt_tokens"] == sum(tokens)
    assert usage["usd"] == pytest.approx((sum(tokens) + len(sent)) * PRICE / 1e6)
    total = uninterrupted.metrics["teacher_usage"]
    assert total["prompt_tokens"] == bought["prompt_tokens"] + sum(tokens)
    assert total["usd"] == pytest.approx(bought["usd"] + usage["usd"])


def test_the_store_lists_the_scores_of_a_run_together(uninterrupted):
    folder = StoreFolder(uninterrupted.folder.parents[1] / "store/toy_arithmetic/m/score")
    (listed,) = holdings(folder, lambda model: Price(PRICE, PRICE, PRICE))
    n = len(scored(uninterrupted.bodies))
    assert (listed.counts["scored"], listed.counts["prompts"], listed.counts["rationales"]) == (n, n, 0)
    assert "top_logprobs=2" in listed.settings
    assert listed.usd == pytest.approx(uninterrupted.train["scoring_usage"]["usd"])
    assert [fault for shard in folder.shards() for fault in faults(shard, Counter())] == []


def test_a_run_that_is_killed_twice_while_it_is_scored_has_the_same_weights_and_pays_for_no_text_twice(uninterrupted, tmp_path):
    with served() as (url, bodies):
        arguments = (*options(url, tmp_path), "teacher.concurrency=1")
        n_all = len(scored(uninterrupted.bodies))
        for after in (n_all // 3, 2 * n_all // 3):
            process = zygote.start(["-m", "fcot.run", *arguments], cwd=tmp_path)
            while process.poll() is None and sum(scored(bodies).values()) < after:
                time.sleep(0.01)
            assert process.poll() is None, "it ended before it was killed"
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert run(*arguments, cwd=tmp_path).returncode == 0
    killed = result(tmp_path)
    assert same_weights(killed, uninterrupted)
    assert scored(bodies).keys() == scored(uninterrupted.bodies).keys()
    assert sum(scored(bodies).values()) <= n_all + 2, "a text is sent again only if the kill prevented its answer from being stored"
    assert killed.train["own_samples"] == uninterrupted.train["own_samples"]
    lost = killed.train["scoring_usage"]["requests_lost"]
    assert killed.train["scoring_usage"]["requests"] == n_all
    assert lost == sum(scored(bodies).values()) - n_all


def test_a_spent_budget_stops_the_run_and_a_larger_one_continues_it(uninterrupted, tmp_path):
    usage = uninterrupted.train["scoring_usage"]
    budget = uninterrupted.metrics["teacher_usage"]["usd"] - usage["usd"] / 2
    with served() as (url, bodies):
        arguments = options(url, tmp_path)
        for _ in range(2):
            stopped = run(*arguments, f"teacher.budget_usd={budget}", cwd=tmp_path)
            assert stopped.returncode == 1
            assert f"teacher.budget_usd={budget:g}: $" in stopped.stderr
            assert "the same command with a larger budget continues" in stopped.stderr
            assert "Traceback" not in stopped.stderr
            paid = sum(len(tokenizer()("".join(m["content"] for m in body["messages"]))["input_ids"]) + 1
                       for body in bodies if "prompt_logprobs" in body) * PRICE / 1e6  # fmt: skip
            assert 0 < paid <= usage["usd"] / 2 + 1e-9
        finished = run(*arguments, "teacher.budget_usd=1000", cwd=tmp_path)
        assert finished.returncode == 0, finished.stderr
    assert same_weights(result(tmp_path), uninterrupted)
    assert scored(bodies) == scored(uninterrupted.bodies)


def test_a_server_that_cannot_score_ends_the_run_before_anything_is_trained(tmp_path):
    silent = {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}
    with served(score=lambda self, body: silent) as (url, bodies):
        for number in (1, 2):  # a corrected server is asked again
            process = run(*options(url, tmp_path), cwd=tmp_path)
            assert process.returncode == 1
            assert "gave no distributions of a text that it was sent" in process.stderr
            assert "prompt_logprobs, as vLLM does" in process.stderr
            assert sum(scored(bodies).values()) == number
    assert not list(tmp_path.glob("outputs/runs/*/fine_tuned"))
    with served(rejection="Unrecognized request argument supplied: prompt_logprobs") as (url, _):
        process = run(*options(url, tmp_path), cwd=tmp_path)
        assert process.returncode == 1
        assert "Unrecognized request argument supplied: prompt_logprobs. Scoring a text needs a server with vLLM's" in process.stderr
    with served() as (url, _):
        process = run(*options(url, tmp_path), "until=train", cwd=tmp_path)
        assert process.returncode == 0, process.stderr


def test_a_trained_student_that_writes_all_samples_needs_no_rationale_and_the_dry_run_prices_its_samples(uninterrupted, tmp_path):
    student = uninterrupted.folder / "student"
    with served() as (url, bodies):
        arguments = (*[word for word in options(url, tmp_path) if not word.startswith(("student.", "method.own_share"))],
                     "student=causal", f"student.path={student}", "method.start=student", "student.max_new_tokens=30",
                     "student.max_prompt_tokens=100", "student.max_completion_tokens=100", "trainer.precision=32-true")  # fmt: skip
        estimate = run(*arguments, "dry_run=true", cwd=tmp_path)
        assert estimate.returncode == 0, estimate.stderr
        assert not bodies
        process = run(*arguments, cwd=tmp_path)
        assert process.returncode == 0, process.stderr
    assert all("prompt_logprobs" in body for body in bodies)
    finished = result(tmp_path)
    assert list(finished.metrics["seconds"]) == ["probe", "train", "evaluate"]
    (requests,) = re.findall(r"scores: requests +(\d+)", estimate.stdout)
    (most,) = re.findall(r"scores: price online .*-\$([\d.]+)\)", estimate.stdout)
    assert int(requests) == 1 + 6 * 8
    assert finished.metrics["teacher_usage"]["usd"] == finished.train["scoring_usage"]["usd"] <= float(most)


def test_two_ranks_send_each_text_once(uninterrupted, tmp_path):
    with served() as (url, bodies):
        process = run(*options(url, tmp_path), "trainer.devices=2", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert set(scored(bodies).values()) == {1}
    both = result(tmp_path)
    assert both.metrics["own_samples"]["written"] == uninterrupted.metrics["own_samples"]["written"]
    assert both.train["scoring_usage"]["requests"] == sum(scored(bodies).values())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("objective.divergence=reverse_kl",), "divergence=reverse_kl: not with objective.teacher=server, which has the likeliest"),
        (("objective.temperature=2",), "objective.temperature=2.0: not with objective.teacher=server"),
        (("teacher.top_logprobs=null",), r"objective.teacher=server needs a server that scores texts.*teacher.tokenizer=FOLDER"),
        (("teacher=oracle",), "objective.teacher=server needs a server that scores texts"),
        (("method=fine_tune_cot", "objective=distribution"), "objective.teacher=server scores what the student writes: method=on_policy"),
    ],
)  # fmt: skip
def test_what_a_server_cannot_give_is_rejected(overrides, message, tmp_path):
    given = [word for word in options("http://127.0.0.1:9/v1", tmp_path) if not word.startswith("output_dir")]
    if overrides[0] == "teacher=oracle":
        given = [word for word in given if not word.startswith("teacher")]
    if overrides[0] == "method=fine_tune_cot":
        given = [word for word in given if not word.startswith("method")]
    with pytest.raises(FcotError, match=message):
        make_run(tmp_path, *given, *overrides)


def test_an_endpoint_that_continues_texts_gets_prompt_and_rationale_as_one_text(tmp_path):
    given = [word for word in options("http://127.0.0.1:9/v1", tmp_path) if not word.startswith("output_dir")]
    resolved = make_run(tmp_path, *given, "teacher.endpoint=completions", "prompt=zero_shot_cot")
    plan, problem = student_scores(resolved), resolved.problems[0]
    requests = [plan.step1(replace(problem, rationale=text_for(plan, text))) for text in ("Two and two.", "Two and three.")]
    body = LogprobReader(2, "unused").parameters(requests[0], chat=False)
    assert body["prompt"] == resolved.prompt_for(problem.question) + " Two and two."
    assert (body["prompt_logprobs"], body["max_tokens"]) == (2, 1)
    further = replace(requests[0], top_logprobs=3)
    keys = {plan.key(request) for request in (*requests, further)}
    assert len(keys) == 3, "text and number of tokens are part of the key"
    assert plan.key(plan.step1(replace(problem, rationale=" Two and two."))) in keys


# --- the loss ---------------------------------------------------------------------------------------------------------


def own_objective(student, tops, share=0.25):
    """Six stored samples without distributions, and three that the student wrote."""
    rows = RenewedRows(make_rows(student, 6))
    rows.replace_own([rows.stored[i] for i in range(3)], tops)
    layout = Layout(student.architecture, student.tokenizer.pad_token_id, getattr(student.model.config, "decoder_start_token_id", None))
    return StoredDistributionLoss(CompletionLoss(rows, layout), [None] * 6, share, 6, rows.top)


def whole_distributions(student, row, layout):
    logs = Forward(student.model)(layout.batch([row])).log_softmax(-1).topk(len(student.tokenizer))
    return TopTokens(np.array(row.completion, np.int32), logs.indices.numpy().astype(np.int32), logs.values.detach().numpy())


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_own_samples_have_no_loss_if_the_server_is_the_student_or_scored_nothing(name):
    student = make_student(name)
    rows = make_rows(student, 6)
    layout = own_objective(student, [None] * 3).completion.layout
    for tops in ([whole_distributions(student, rows[i], layout) for i in range(3)], [None] * 3):
        objective = own_objective(student, tops)
        loss = objective.loss(Forward(student.model), objective.collate(np.array([6, 7, 8]), 0))
        assert abs(loss.total.item()) / objective.denominator(np.array([6, 7, 8])) < 2e-5


def test_own_tokens_that_do_not_re_encode_end_what_the_server_covers():
    student, text = make_student("gpt2"), " 2 + 7 = 19, and 19 + 1 = 20."
    canonical = tokenizer()(text, add_special_tokens=False)["input_ids"]
    split = [tokenizer().convert_tokens_to_ids(list(token)) for token in tokenizer().convert_ids_to_tokens(canonical)]
    place, pieces = next((place, pieces) for place, pieces in enumerate(split) if place > 3 and len(pieces) > 1 and None not in pieces)
    written = [*canonical[:place], *pieces, *canonical[place + 1 :]]
    assert tokenizer().decode(written) == text
    ids = np.arange(2 * len(canonical), dtype=np.int32).reshape(-1, 2) % 300
    top = TopTokens(np.array(canonical, np.int32), ids, np.full(ids.shape, -1.0, np.float16))
    rows = RenewedRows(make_rows(student, 1))
    rows.replace_own([TokenizedSample(rows.stored[0].prompt, written)], [top])
    objective = StoredDistributionLoss(CompletionLoss(rows, Layout("decoder", 0)), [None], 0.5, 1, rows.top)
    loss = objective.loss(Forward(student.model), objective.collate(np.array([1]), 0))
    assert float(loss.watched["covered"]) == place
    assert loss.total.isfinite()


def test_own_samples_have_the_whole_weight_of_the_divergence_and_stored_ones_the_cross_entropy():
    student, other = make_student("gpt2"), make_student("llama")
    rows = make_rows(student, 6)
    layout = Layout(student.architecture, student.tokenizer.pad_token_id)
    tops = [whole_distributions(other, rows[i], layout) for i in range(3)]
    objective = own_objective(student, tops)
    covered = [cover(rows[i].completion, top) for i, top in enumerate(tops)]
    stored = StoredDistributionLoss(CompletionLoss(rows, layout), [*covered, None, None, None], 1.0)
    cross_entropy = CompletionLoss(rows, layout).loss(Forward(student.model), layout.batch([rows[0]])).total.item()

    def total(loss, ids):
        return loss.loss(Forward(student.model), loss.collate(np.array(ids), 0)).total.item()

    assert total(objective, [6, 7, 8]) == pytest.approx(total(stored, [0, 1, 2]), rel=1e-5)
    assert total(objective, [0]) == pytest.approx(cross_entropy, rel=1e-5)
    parts = total(objective, [6, 7]) + total(stored, [5]) + cross_entropy
    assert total(objective, [0, 6, 5, 7]) == pytest.approx(parts, rel=1e-5)
    none = np.zeros(0, np.int64)
    assert objective.denominator(none) == 1
    assert total(objective, []) == 0
