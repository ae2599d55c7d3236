"""On-policy distillation: which samples a student writes, that stops, micro-batches and ranks do not matter, and runs from end to end."""

from __future__ import annotations

import copy
import csv
import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zygote
from configurations import make_run
from students import make_rows, make_student
from trainings import assert_equal_in_chunks, own_samples, trained, trained_by

from fcot.base.errors import FcotError
from fcot.base.records import TrainingSample
from fcot.methods.on_policy.stages import recipe_of
from fcot.objectives.completion import CompletionLoss
from fcot.objectives.distribution import DistributionLoss
from fcot.runs.pipeline import execute
from fcot.stages.contexts import teacher_prompts
from fcot.student import checkpoints as module
from fcot.student.batching import StepSampler
from fcot.student.checkpoints import Checkpoints
from fcot.student.data import Layout
from fcot.student.forward import Forward
from fcot.student.loading import load_student
from fcot.student.own import RenewedRows, Schedule

STEPS = 14
SHORT = {"max_steps": STEPS, "evaluate_every_steps": 5}
WAYS = {
    "decoder": {"own": {}},
    "encoder-decoder, wrong ones skipped": {
        "family": "t5", "own": {"use_wrong": False, "loss": {"divergence": "reverse_kl", "teacher": "t5"}},
    },
    "micro-batches, packed": {"family": "llama", "packing": True, "micro_batches": 2, "own": {"every": 3, "loss": {"divergence": "jsd"}}},
    "dropout, lora, every step": {"lora": True, "dropout": 0.1, "own": {"every": 1, "first_share": 1.0}},
}  # fmt: skip


class Stop(Exception):
    """Raised by a test inside a training."""


def layout_of(student, packing=False):
    start = getattr(student.model.config, "decoder_start_token_id", None)
    return Layout(student.architecture, student.tokenizer.pad_token_id, start, packing=packing)


# --- which samples ----------------------------------------------------------------------------------------------------


def test_the_expected_share_of_own_samples_is_exact_and_changes_linearly():
    schedule = Schedule(0.25, 0.75, every=5, n_steps=2001, seed=3)
    counts = [int(schedule.chosen(step, np.arange(10)).sum()) for step in range(2001)]
    assert set(counts) == {2, 3, 4, 5, 6, 7, 8}
    assert abs(sum(counts) / 20010 - 0.5) < 0.01
    assert counts[0] in (2, 3)
    assert counts[2000] in (7, 8)
    assert Schedule(1, 1, 5, 9, 0).chosen(4, np.arange(7)).all()
    assert not Schedule(0, 0, 5, 9, 0).chosen(4, np.arange(7)).any()


def test_samples_depend_on_seed_step_and_problem_alone():
    student = make_student("gpt2")
    stored = make_rows(student, 10)
    samplers = [StepSampler(stored.lengths, 0, 4) for _ in range(2)]
    whole, late = (own_samples(student, RenewedRows(stored), sampler, 8, 0, first_share=1.0) for sampler in samplers)
    whole.renew(0)
    whole.renew(4)
    late.renew(4)
    assert [late.step(step).tolist() for step in range(4, 8)] == [whole.step(step).tolist() for step in range(4, 8)]
    assert late.state()["own"] == whole.state()["own"]
    first = late.state()["own"]
    other = own_samples(student, RenewedRows(stored), samplers[0], 8, 1, first_share=1.0)
    other.renew(4)
    assert other.state()["own"] != first


def test_an_own_sample_ends_with_the_end_token_only_if_the_student_ended_it():
    student = make_student("gpt2")
    student.model.get_output_embeddings().weight.data *= 0.2  # likely enough to end
    rows = RenewedRows(make_rows(student, 20))
    own = own_samples(student, rows, StepSampler(rows.lengths, 0, 10), 4, 0, first_share=1.0, limit=60)
    own.renew(0)
    written = [rows[position] for step in range(4) for position in own.step(step)]
    end = student.tokenizer.eos_token_id
    assert all((row.completion[-1] == end) != (len(row.completion) == 60 and end not in row.completion) for row in written)
    assert sum(row.completion[-1] == end for row in written) > 0
    assert {tuple(row.prompt) for row in written} <= {tuple(row.prompt) for row in rows.stored}


def test_wrong_samples_are_left_out_and_counted():
    student = make_student("gpt2")
    rows = RenewedRows(make_rows(student, 9))
    own = own_samples(student, rows, StepSampler(rows.lengths, 0, 9), 1, 0, first_share=1.0, use_wrong=False)
    own.renew(0)
    assert len(own.step(0)) == 6, "three of nine positions are divisible by three"
    facts = own.facts()["own_samples"]
    assert (facts["written"], facts["right"], facts["used"]) == (9, 6, 6)


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_own_samples_of_a_student_that_is_the_teacher_have_no_loss(name, kind):
    student = make_student(name)
    rows = RenewedRows(make_rows(student, 6))
    own = own_samples(student, rows, StepSampler(rows.lengths, 0, 6), 2, 0, first_share=1.0)
    own.renew(0)
    teacher = copy.deepcopy(student)
    loss = DistributionLoss(CompletionLoss(rows, layout_of(student)), teacher, 350, 0.5, divergence=kind, first_own=6)
    ids = own.step(1)
    assert abs(loss.loss(Forward(student.model), loss.collate(ids, 1)).total.item()) / loss.denominator(ids) < 1e-6


def test_the_student_does_not_imitate_its_own_tokens_but_imitates_stored_ones():
    student, teacher = make_student("gpt2"), make_student("llama")
    rows = RenewedRows(make_rows(student, 6))
    rows.replace_own(make_rows(student, 6)[:2])
    completion = CompletionLoss(rows, layout_of(student))

    def total(ids, share, first_own):
        loss = DistributionLoss(completion, teacher, 350, share, first_own=first_own)
        return loss.loss(Forward(student.model), loss.collate(np.array(ids), 0)).total.item()

    mixed = total([0, 1, 6, 7], 0.25, 6)
    assert mixed == pytest.approx(total([0, 1], 0.25, None) + total([6, 7], 1.0, None), rel=1e-5)
    assert mixed != pytest.approx(total([0, 1, 6, 7], 0.25, None), rel=1e-2)


def test_a_step_whose_samples_were_all_left_out_has_a_loss_of_zero():
    student = make_student("gpt2")
    loss = DistributionLoss(CompletionLoss(RenewedRows(make_rows(student, 3)), layout_of(student)), student, 350, 0.5, first_own=3)
    none = np.zeros(0, np.int64)
    assert loss.denominator(none) == 1
    assert loss.loss(Forward(student.model), loss.collate(none, 0)).total.item() == 0


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_chunks_of_a_large_vocabulary_give_the_same_loss_and_gradients(name, kind, monkeypatch):
    student, teacher = make_student(name), make_student("llama")
    loss = DistributionLoss(CompletionLoss(make_rows(student, 6), layout_of(student)), teacher, 350, 0.3, divergence=kind)
    part = loss.collate(np.arange(6), 0)
    assert_equal_in_chunks(student, loss, part, monkeypatch)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_teacher_without_memory_takes_half_of_the_samples_and_then_gives_one_message(name, monkeypatch):
    student, teacher = make_student("gpt2"), make_student(name)
    loss = DistributionLoss(CompletionLoss(make_rows(student, 7), layout_of(student)), teacher, 350, 1.0)
    part = loss.collate(np.arange(7), 0)
    expected = loss.loss(Forward(student.model), part).total.item()
    room, sizes, forward = 2, [], teacher.model.forward

    def cramped(*arguments, **inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > room:
            raise torch.OutOfMemoryError("no memory")
        return forward(*arguments, **inputs)

    monkeypatch.setattr(teacher.model, "forward", cramped)
    assert loss.loss(Forward(student.model), part).total.item() == pytest.approx(expected, rel=1e-5)
    sizes.clear()
    loss.loss(Forward(student.model), part)
    assert max(sizes) <= 2, "it remembers what fits"
    room = 0
    with pytest.raises(FcotError, match=r"objective.teacher: no memory for one sample of \d+ tokens .* smaller teacher"):
        loss.loss(Forward(student.model), part)


# --- stops, micro-batches, ranks --------------------------------------------------------------------------------------


@pytest.fixture
def every_step(monkeypatch):
    """A checkpoint after every step, however slow writing is."""
    monkeypatch.setattr(module, "_SHARE", float("inf"))


def run(folder, stop_after=None, keep=True, **options):
    n_done = 0

    def advance(n):
        nonlocal n_done
        n_done += n
        if n_done == stop_after and n == 1:
            raise Stop

    checkpoints = Checkpoints(folder / "checkpoints", 0) if keep else None
    return trained(folder, evaluate=lambda history: {"n": len(history)}, advance=advance, checkpoints=checkpoints, **(SHORT | options))


def assert_same(first, second):
    assert torch.equal(first.weights, second.weights)
    assert first.own.facts() == second.own.facts()
    assert first.losses == second.losses
    assert vars(first.report) | {"train_seconds": 0} == vars(second.report) | {"train_seconds": 0}


@pytest.mark.parametrize("way", WAYS)
def test_stops_between_and_at_renewals_do_not_change_the_result(way, tmp_path, every_step):
    uninterrupted = run(tmp_path / "alone", keep=False, **WAYS[way])
    for step in (1, 3, 4, 5, 9, 13):
        with pytest.raises(Stop):
            run(tmp_path / "stopped", step, **WAYS[way])
    assert_same(run(tmp_path / "stopped", **WAYS[way]), uninterrupted)
    assert uninterrupted.own.facts()["own_samples"]["written"]


@pytest.mark.slow
def test_thirty_stops_do_not_change_the_result(tmp_path, every_step):
    options = {"max_steps": 40, "evaluate_every_steps": 40, "own": {"every": 7}}
    uninterrupted = run(tmp_path / "alone", keep=False, **options)
    for number in range(30):
        with pytest.raises(Stop):  # the step after a stop is lost, and done again
            run(tmp_path / "stopped", number + 2, **options)
    assert_same(run(tmp_path / "stopped", **options), uninterrupted)


def train_in_a_process(folder, options, kill_after=None):
    """Train in a process of its own, which is killed a random moment after this step. Returns how it ended: 0, or minus the signal."""
    folder.mkdir(exist_ok=True)
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import trainings; trainings.train_to_be_killed(sys.argv[1])"
    (folder / "options.json").write_text(json.dumps(options))
    process = zygote.start(["-c", code, folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and (kill_after is None or n_steps_done(folder) < kill_after):
        time.sleep(0.002)
    if process.poll() is None:
        time.sleep(random.random() * 0.02)
        process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode


@pytest.mark.parametrize(("way", "n_steps", "n_kills"), [
    ("decoder", 16, 2),
    *(pytest.param(way, 60, 30, marks=pytest.mark.slow) for way in ("decoder", "encoder-decoder, wrong ones skipped")),
])  # fmt: skip
def test_kills_at_random_moments_change_no_weight_and_no_metric(way, n_steps, n_kills, tmp_path):
    options = {"max_steps": n_steps, "evaluate_every_steps": n_steps // 2} | WAYS[way]
    killed, alone, places = tmp_path / "killed", tmp_path / "alone", set()
    assert train_in_a_process(alone, options) == 0
    for number in range(n_kills):
        ended = train_in_a_process(killed, options, 1 + number * (n_steps - 6) // n_kills)
        assert ended == -signal.SIGKILL, "it ended before it was killed"
        places.add(n_steps_done(killed))
    assert train_in_a_process(killed, options) == 0
    print(f"\n{way}: {n_kills} kills, after steps {sorted(places)}")
    first, second = (torch.load(folder / "outcome.pt", weights_only=False) for folder in (killed, alone))
    assert torch.equal(first.pop("weights"), second.pop("weights"))
    assert first == second


def n_steps_done(folder):
    """The number of the last step that a training did; 0 if none."""
    path = folder / "steps"
    return int((path.read_text().split() or ["0"])[-1]) if path.exists() else 0


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_micro_batches_and_packing_do_not_change_the_trajectory(family, tmp_path):
    own = {"own": {"use_wrong": False}, "family": family}
    whole = run(tmp_path / "whole", keep=False, **own)
    divided = [{"micro_batches": 3}, *([{"packing": True}] if family != "t5" else [])]
    for number, options in enumerate(divided):
        other = run(tmp_path / str(number), keep=False, **own, **options)
        assert other.losses == pytest.approx(whole.losses, rel=1e-4)
        assert other.own.facts() == whole.own.facts()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_write_and_learn_the_same_samples_as_one(strategy, tmp_path):
    options = {**SHORT, "max_steps": 6, "own": {"every": 3}}
    alone = trained(tmp_path / "alone", **options)
    both = trained_by(2, tmp_path / "both", devices=2, strategy=strategy, **options)
    assert both.losses == pytest.approx(alone.losses, rel=1e-3)
    assert both.own.facts() == alone.own.facts()


def test_a_student_that_ends_no_sample_stops_the_training_each_time_with_a_message(tmp_path, every_step):
    endless = {"own": {"first_share": 1.0, "limit": 2, "most_unfinished": 0.8}}
    message = r"no longer ends its answers: 1?\d\d% of those .* steps 0, 4, 8 reached 2 tokens \(method.max_new_tokens\).*max_unfinished=1"
    for _ in range(2):
        with pytest.raises(FcotError, match=message):
            run(tmp_path, **endless)


# --- runs -------------------------------------------------------------------------------------------------------------

SMALL = (
    "dataset.n_problems=60", "diversity=2", "trainer.max_steps=20", "trainer.evaluate_every_steps=10", "trainer.warmup_steps=2",
    "student.max_new_tokens=40", "method=on_policy", "method.steps=12", "method.renew_every=5",
    "method.max_unfinished=1",
)  # fmt: skip
TINY = ("student=tiny_t5", "student.width=32", "student.layers=1")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder of a student that was trained for a few steps."""
    folder = tmp_path_factory.mktemp("teacher")
    run = make_run(
        folder, "dataset.n_problems=60", "student=tiny_gpt2", "student.layers=1", "student.width=32", "student.vocab_size=400",
        "student.max_new_tokens=40", "trainer.max_steps=20", "trainer.warmup_steps=2", "logger=none",
    )  # fmt: skip
    execute(run, "")
    return run.directory.student


def test_a_run_fine_tunes_first_and_then_learns_from_the_teacher_of_its_own_samples(teacher, tmp_path):
    run = make_run(
        tmp_path, *SMALL, *TINY, f"objective.teacher={teacher}", f"student.tokenizer={teacher}", "method.own_share=0.5",
        "method.wrong=skipped", "objective.divergence=reverse_kl",
    )  # fmt: skip
    metrics = execute(run, "")
    assert [stage.name for stage in run.stages] == ["generate", "curate", "fine_tune", "train", "evaluate"]
    assert metrics["n_steps"] == 20 + 12
    own = metrics["own_samples"]
    assert own["written"] >= own["right"] == own["used"]
    assert 0.4 < own["written"] / (12 * run.config.trainer.batch_size) < 0.6
    assert metrics["scored_tokens"] > own["tokens"] / 2
    assert not (run.directory.fine_tuned.path / "checkpoints").exists()
    with (run.directory.logs / "metrics.csv").open() as file:
        assert "divergence" in next(csv.reader(file))


def test_a_trained_student_that_writes_all_samples_needs_no_rationales(teacher, tmp_path):
    run = make_run(
        tmp_path, *SMALL, "student=causal", f"student.path={teacher}", f"objective.teacher={teacher}", "method.start=student",
        "objective.share=1", "student.max_prompt_tokens=100", "student.max_completion_tokens=100", "trainer.precision=32-true",
    )  # fmt: skip
    assert [stage.name for stage in run.stages] == ["train", "evaluate"]
    metrics = execute(run, "")
    assert metrics["n_reasoning_samples"] == metrics["completions_asked"] == 0
    assert metrics["teacher_usage"] is None
    assert metrics["n_steps"] == 12
    interface = json.loads((run.directory.student / "fcot.json").read_text())
    assert interface["format"] == json.loads((teacher / "fcot.json").read_text())["format"]


def test_a_teacher_with_the_students_format_has_the_same_context_as_the_student(teacher, tmp_path):
    losses = []
    for context in ("student", "teacher"):
        run = make_run(
            tmp_path, *SMALL, "student=causal", f"student.path={teacher}", f"objective.teacher={teacher}", "method.start=student",
            f"objective.context={context}", "student.max_prompt_tokens=100", "student.max_completion_tokens=100", "until=train",
            "trainer.precision=32-true", "trainer.lr=1e-3",
        )  # fmt: skip
        execute(run, "")
        with (run.directory.logs / "metrics.csv").open() as file:
            losses.append([row["train_loss"] for row in csv.DictReader(file)])
    assert losses[0] == losses[1]
    assert float(losses[0][-1]) != 0


def test_the_training_on_own_samples_may_have_a_warm_up_of_its_own(teacher, tmp_path):
    options = [option for option in SMALL if not option.startswith("trainer.warmup")]
    run = make_run(tmp_path, *options, *TINY, f"objective.teacher={teacher}", f"student.tokenizer={teacher}", "trainer.warmup_steps=200")
    shorter = make_run(
        tmp_path, *options, *TINY, f"objective.teacher={teacher}", f"student.tokenizer={teacher}", "trainer.warmup_steps=200",
        "method.warmup_steps=2", "method.lr=1e-3",
    )  # fmt: skip
    assert (recipe_of(run).warmup_steps, recipe_of(shorter).warmup_steps) == (200, 2)
    assert (recipe_of(shorter).lr, recipe_of(shorter).max_steps) == (1e-3, 12)
    assert run.run_id != shorter.run_id


def test_a_warm_up_as_long_as_the_training_on_own_samples_is_said_with_what_to_type(teacher, tmp_path, capsys):
    options = [option for option in SMALL if not option.startswith(("trainer.warmup", "method.steps"))]
    run = make_run(
        tmp_path, *options, "student=causal", f"student.path={teacher}", f"objective.teacher={teacher}", "method.start=student",
        "student.max_prompt_tokens=100", "student.max_completion_tokens=100", "until=train", "trainer.precision=32-true",
        "trainer.warmup_steps=20", "method.steps=20",
    )  # fmt: skip
    execute(run, "")
    said = capsys.readouterr()
    assert "trainer.warmup_steps=20 of 20 steps: the learning rate never reaches its peak" in said.out + said.err
    assert "method.warmup_steps=2 sets the warm-up of the training on own samples alone" in said.out + said.err


def test_the_teachers_own_prompt_is_its_format_or_that_of_the_run(teacher, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(teacher, plain)
    (plain / "fcot.json").unlink()
    model = load_student(str(teacher))
    samples = [TrainingSample(0, "How many are 2 + 2?", "4")]

    def prompt(folder, *overrides):
        run = make_run(tmp_path, *SMALL, *TINY, f"objective.teacher={folder}", f"student.tokenizer={teacher}", *overrides)
        return model.tokenizer.decode(teacher_prompts(run, samples, model)[0])

    assert prompt(teacher) == "How many are 2 + 2? ###"
    assert prompt(plain).split() == "Q: How many are 2 + 2? A: Let's think step by step.".split()
    chat = ("dataset=toy_arithmetic", "teacher=hf", f"teacher.path={teacher}", "teacher.endpoint=chat", "prompt=reasoning_chat")
    with pytest.raises(FcotError, match=r"has no chat template.*set teacher.endpoint=completions"):
        prompt(plain, *chat)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("objective=completion",), "objective=completion: method=on_policy needs a teacher that scores what the student writes"),
        (("objective.teacher=stored",), "objective.teacher=stored: method=on_policy needs a teacher"),
        (("method.start=student",), r"method.start=student: student=tiny_t5 is not trained yet. .* student=causal student.path=FOLDER"),
        (("trainer.batch_tokens=500",), "trainer.batch_tokens: the lengths of the student's own samples are not known"),
        (("student=openai", "student.model=m", "student.base_url=http://127.0.0.1:9/v1"), "method=on_policy trains local students only"),
        (("method.own_share=1.5",), "method.own_share=1.5: at least 0 and at most 1"),
        (("method.wrong=fixed",), "method.wrong=fixed: choose from used, skipped"),
    ],
)
def test_impossible_combinations_are_rejected_with_what_to_type(overrides, message, teacher, tmp_path):
    where = () if overrides[0].startswith("objective") else (f"objective.teacher={teacher}",)
    with pytest.raises(FcotError, match=message):
        make_run(tmp_path, *SMALL, *TINY, *where, *overrides)
