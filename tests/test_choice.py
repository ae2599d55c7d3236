"""Choosing among the kept rationales of a problem: the order, the student's scores, and runs that train on the chosen ones."""

from __future__ import annotations

import json
import random
import zlib
from statistics import fmean

import numpy as np
import pytest
import torch
from configurations import composed, make_run
from students import logits_by_token, make_rows, make_student, save_gpt2, save_t5
from test_page import a_run, curated, prediction
from test_run import QUICK, SMALL

from fcot.base.errors import ConfigFaults, FcotError
from fcot.base.files import read_jsonl
from fcot.config.checks import to_config
from fcot.curation.choice import RANK_LIMIT, Score, choose
from fcot.estimate.dry_run import estimate
from fcot.reporting.curated import curated_document, read_curated
from fcot.reporting.samples import read_samples
from fcot.runs.pipeline import execute
from fcot.stages import choosing
from fcot.student import forward as forward_module
from fcot.student import likelihood
from fcot.student.data import layout_of
from fcot.student.likelihood import completion_surprisals_and_ranks

ONE = "curation.max_per_problem=1"
PLACES = [(problem, slot) for problem in range(40) for slot in range(8)]


# --- the order --------------------------------------------------------------------------------------------------------


def test_the_lowest_values_of_each_problem_are_chosen():
    values = {(0, 0): 3.0, (0, 1): 1.0, (0, 2): 2.0, (1, 0): 9.0}
    assert choose(values, 2, values) == {(0, 1), (0, 2), (1, 0)}


@pytest.mark.parametrize("values", [None, dict.fromkeys(PLACES, 1.5)])
def test_without_values_and_among_equal_ones_the_choice_is_random_but_always_the_same(values):
    shuffled = random.Random(1).sample(PLACES, len(PLACES))
    chosen = choose(shuffled, 2, values)
    assert chosen == choose(PLACES, 2, values) == choose(PLACES, 2)
    assert all(sum(place[0] == problem for place in chosen) == 2 for problem in range(40))
    assert choose(PLACES, 1, values) < chosen, "fewer per problem are a subset"
    assert len({slot for _, slot in choose(PLACES, 1)}) == 8, "every slot is chosen somewhere"
    others = choose(PLACES[:160], 2, values)
    assert others == {place for place in chosen if place[0] < 20}, "other problems change nothing"


def test_the_ratio_is_that_of_the_source():
    """Sums of clipped ranks over sums of surprisals: 3 tokens with ranks 1, 4, 100 (clipped) and surprisals 0.1, 2, 8."""
    score = Score(0, 0, surprisal=10.1 / 3, rank=105 / 3, tokens=3)
    assert score.value("rsr") == pytest.approx(105 / 10.1, abs=1e-6)
    assert score.value("surprisal") == pytest.approx(10.1 / 3, abs=1e-6)
    assert Score(0, 0, 0.0, 1.0, 3).value("rsr") > 1e11, "a text that the student knows by heart is chosen last"


# --- the student's scores ---------------------------------------------------------------------------------------------


def by_hand(model, student, row, limit):
    """Sums of surprisals and clipped ranks, one forward pass per token, in float64."""
    sums = np.zeros(2)
    for token, logits in zip(row.completion, logits_by_token(model, student, row), strict=True):
        rank = sorted(logits.tolist(), reverse=True).index(logits[token].item()) + 1
        sums += -logits.log_softmax(-1)[token].item(), min(rank, limit)
    return sums.tolist()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "flan_t5"])
def test_scores_equal_the_reference_for_any_batch_and_chunk(family, chunked, monkeypatch):
    student, reference = make_student(family, dropout=0.2), make_student(family).model.double()
    rows = list(make_rows(student, 10))
    if chunked:
        monkeypatch.setattr(forward_module, "CHUNKED_FROM", 1)
        monkeypatch.setattr(likelihood, "CHUNK", 1)
    with torch.no_grad():
        expected = [by_hand(reference, student, row, 20) for row in rows]
    student.model.train()
    for tokens in (60, 8192):
        monkeypatch.setattr(likelihood, "_TOKENS", tokens)
        sums = completion_surprisals_and_ranks(student, rows, layout_of(student), 20)
        assert sums[:, 0].tolist() == pytest.approx([surprisal for surprisal, _ in expected], rel=1e-4)
        assert sums[:, 1].tolist() == [rank for _, rank in expected]
    assert student.model.training, "the model keeps its mode"
    ranks = completion_surprisals_and_ranks(student, rows, layout_of(student), RANK_LIMIT)[:, 1]
    assert (ranks > sums[:, 1]).any(), "the limit matters here"


# --- runs -------------------------------------------------------------------------------------------------------------


def rows_of(run):
    return list(read_jsonl(run.directory.curated))


def test_a_run_trains_on_a_random_choice_of_each_problem(tmp_path):
    everything = make_run(tmp_path, *SMALL, "until=curate")
    before = execute(everything, "")
    run = make_run(tmp_path, *SMALL, ONE)
    metrics = execute(run, "")
    kept = [row for row in rows_of(run) if row["kept"]]
    passed = {row["sample_index"] for row in rows_of(everything) if row["kept"]}
    assert sorted(row["sample_index"] for row in kept) == sorted(passed), "one of each problem that has a kept completion"
    assert metrics["n_reasoning_samples"] == metrics["completions_kept"] == len(kept)
    assert metrics["refused"] == {"not_chosen": before["kept"] - len(kept)} | before["refused"]
    assert metrics["choice"] == {"by": "random", "candidates": before["kept"], "chosen": len(kept)}
    assert metrics["teacher_accuracy"] == before["correct"] / before["labelled"], "the teacher is judged by all completions"
    assert metrics["rationale_words"] == pytest.approx(fmean(len(row["rationale"].split()) for row in kept), abs=0.01)
    assert metrics["as_published"] is False
    assert "choose" in metrics["seconds"]
    assert [row for row in rows_of(run) if row["reason"] != "not_chosen" and not row["kept"]] == [
        row for row in rows_of(everything) if not row["kept"]
    ], "earlier verdicts stay"


@pytest.mark.parametrize(("student", "save", "by"), [("gpt2", save_gpt2, "rsr"), ("t5_small", save_t5, "surprisal")])
def test_the_students_scores_choose_and_an_interrupted_choice_scores_nothing_again(student, save, by, tmp_path, monkeypatch):
    folder = save(tmp_path / "weights")
    options = [*QUICK, f"student={student}", f"student.path={folder}", "diversity=3", ONE, f"curation.choose_by={by}", "until=curate"]
    run = make_run(tmp_path / "one", *options)
    summary = execute(run, "")
    scores = {(row["sample_index"], row["completion_index"]): row for row in read_jsonl(run.directory.scores)}
    by_problem: dict[int, list[dict]] = {}
    for row in rows_of(run):
        if row["reason"] in (None, "not_chosen"):
            by_problem.setdefault(row["sample_index"], []).append(row)
            score = scores[row["sample_index"], row["completion_index"]]
            expected = score["rank"] / score["surprisal"] if by == "rsr" else score["surprisal"]
            assert row["score"] == pytest.approx(expected, abs=1e-6)
        else:
            assert "score" not in row
    assert sum(map(len, by_problem.values())) == len(scores) == summary["choice"]["candidates"]
    for rows in by_problem.values():
        (kept,) = [row for row in rows if row["kept"]]
        assert kept["score"] == min(row["score"] for row in rows)
    assert summary["choice"]["mean_of_chosen"] < summary["choice"]["mean_of_others"]
    straight = run.directory.curated.read_bytes()

    for tokens in (300, 8192):  # small batches, on another disk
        monkeypatch.setattr(likelihood, "_TOKENS", tokens)
        repeated = make_run(tmp_path / str(tokens), *options)
        execute(repeated, "")
        others = {(row["sample_index"], row["completion_index"]): row for row in read_jsonl(repeated.directory.scores)}
        assert [row["kept"] for row in rows_of(repeated)] == [row["kept"] for row in rows_of(run)]
        for place, score in scores.items():
            assert [others[place][name] for name in ("surprisal", "rank", "tokens")] == pytest.approx(
                [score[name] for name in ("surprisal", "rank", "tokens")], rel=1e-4
            )

    def no_second_pass(*_):
        raise AssertionError("the scores are in their file")

    monkeypatch.setattr(choosing, "_score", no_second_pass)
    run.directory.stage("choose").unlink()  # killed after curated.jsonl was written
    execute(run, "")
    assert run.directory.curated.read_bytes() == straight
    run.directory.curated.unlink()  # curated again: the choice is made again
    execute(run, "")
    assert run.directory.curated.read_bytes() == straight


@pytest.mark.slow
def test_two_processes_score_and_choose_as_one(run_fcot, tmp_path):
    folder = save_gpt2(tmp_path / "weights")
    chosen = []
    for devices in (1, 2):
        output = tmp_path / str(devices)
        options = ["student=gpt2", f"student.path={folder}", "diversity=2", ONE, "curation.choose_by=rsr", "until=curate"]
        result = run_fcot(*QUICK, *options, f"trainer.devices={devices}", f"output_dir={output}")
        assert result.returncode == 0, result.stderr
        (run,) = (output / "runs").iterdir()
        chosen.append([(row["kept"], row["reason"]) for row in read_jsonl(run / "curated.jsonl")])
        assert len(list(read_jsonl(run / "scores.jsonl"))) > 50
    assert chosen[0] == chosen[1]


def test_a_student_from_scratch_gets_a_warning(tmp_path, capsys):
    execute(make_run(tmp_path, *SMALL, ONE, "curation.choose_by=rsr", "until=curate"), "")
    assert "student=tiny_gpt2 starts from random parameters" in capsys.readouterr().err


def test_an_order_without_a_limit_gives_a_warning_and_names_no_other_run(tmp_path, capsys):
    plain, ordered = (make_run(tmp_path, *SMALL, "until=curate", *more) for more in ((), ("curation.choose_by=rsr",)))
    assert plain.run_id == ordered.run_id
    execute(ordered, "")
    assert "curation.choose_by=rsr chooses nothing" in capsys.readouterr().err
    ids = {make_run(tmp_path, *SMALL, ONE, f"curation.choose_by={by}").run_id for by in ("random", "rsr", "surprisal")}
    assert len({plain.run_id, make_run(tmp_path, *SMALL, "curation.max_per_problem=2").run_id} | ids) == 5


@pytest.mark.parametrize(("overrides", "message"), [
    (["student=openai_gpt4_1_mini", ONE, "curation.choose_by=rsr"], "use curation.choose_by=random"),
    ([ONE, "method=tailored"], "curation.max_per_problem: not with method=tailored"),
    ([ONE, "curation.max_samples=9"], "curation.max_per_problem and curation.max_samples: both limit"),
    (["curation.max_per_problem=0"], "curation.max_per_problem=0: at least 1"),
    ([ONE, "curation.choose_by=best"], "choose from random, rsr, surprisal"),
])  # fmt: skip
def test_what_cannot_be_chosen_is_rejected(overrides, message):
    with pytest.raises(ConfigFaults, match=message):
        to_config(composed(*overrides))


def test_an_api_student_may_learn_a_random_choice(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    to_config(composed("student=openai_gpt4_1_mini", ONE))


def test_nothing_kept_stays_an_error_of_curation(tmp_path):
    with pytest.raises(FcotError, match="no completion survives curation"):
        execute(make_run(tmp_path, *SMALL, ONE, "curation.filters=[answer,length]", "curation.max_words=1"), "")


def test_a_dry_run_counts_the_steps_of_the_chosen_ones(tmp_path):
    options = [*QUICK, "trainer.max_steps=null", "trainer.epochs=2", "trainer.batch_size=8"]
    steps = [estimate(make_run(tmp_path, *options, *more), {}, ()).steps for more in ((), ("curation.max_per_problem=2",), (ONE,))]
    n = len(make_run(tmp_path, *options).split.train)
    assert steps == [2 * -(-n * per_problem // 8) for per_problem in (4, 2, 1)]


# --- reports ----------------------------------------------------------------------------------------------------------


def test_the_page_shows_scores_and_what_was_not_chosen(tmp_path):
    completions = [
        curated(10, 0, "Best.", score=0.5, first_wrong_step=0), curated(10, 1, "Second.", "not_chosen", score=0.75),
        curated(10, 2, "No.", "wrong_answer"), curated(10, 3, "Slip.", "wrong_step", first_wrong_step=2),
    ]  # fmt: skip
    samples = read_samples([a_run(tmp_path / "run", "a run", [prediction(0, "x", True)], completions)], 10**6)
    problem = next(problem for problem in json.loads(zlib.decompress(samples.packed))["problems"] if problem[4])
    assert [cells[5:] for cells in problem[4]] == [
        [None, 0, 0.5, 0], ["not_chosen", 0, 0.75, None], ["wrong_answer", 0], ["wrong_step", 0, None, 2],
    ]  # fmt: skip


def test_the_report_on_a_curated_run_counts_what_was_not_chosen(tmp_path):
    run = make_run(tmp_path, *SMALL, ONE, "until=curate")
    summary = execute(run, "seed: 0\n")
    (run.directory.config).write_text(
        "# python -m fcot.run curation.max_per_problem=1\ndataset: {name: toy}\nteacher: {name: oracle}\ndiversity: 4\n"
    )
    document = curated_document([read_curated(run.directory.path)], [])
    assert f"not chosen {summary['refused']['not_chosen']}" in document.answer
