"""Whole runs with every kind of training and decoding: adapters, chat, self-consistency, precision, packing, several processes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter

import pytest
import torch
from students import save_gpt2, save_t5
from test_run import METRICS, QUICK, SMALL, make_run, timeless
from trainings import give_accuracies
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from fcot.base.errors import FcotError
from fcot.runs.pipeline import execute
from fcot.stages import answering
from fcot.stages import training as stage
from fcot.student import checkpoints as checkpoints_module
from fcot.student.interface import read_interface

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
SHORT = [*QUICK, "diversity=1", "trainer.precision=32-true", "student.max_new_tokens=12"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("student", "save", "model_class"), [
    ("gpt2", save_gpt2, AutoModelForCausalLM), ("t5_small", save_t5, AutoModelForSeq2SeqLM),
])  # fmt: skip
def test_a_run_with_adapters_saves_an_ordinary_student(student, save, model_class, tmp_path, monkeypatch):
    adapted = []
    real = stage.save

    def watched(run, trained, *others):
        real(run, trained, *others)
        labels = {"labels": torch.tensor([[9, 8]])} if model_class is AutoModelForSeq2SeqLM else {}
        inputs = {"input_ids": torch.tensor([[5, 6, 7]])} | labels
        was_training = trained.model.training
        trained.model.eval()
        with torch.no_grad():
            adapted.append((inputs, trained.model(**inputs).logits.clone()))
        trained.model.train(was_training)

    monkeypatch.setattr(stage, "save", watched)
    folder = save(tmp_path / "weights")
    options = [f"student={student}", f"student.path={folder}", "student.lora.rank=4", "student.lora.dropout=0.1", "trainer.lr=1e-2"]
    run = make_run(tmp_path, *SHORT, *options)
    metrics = execute(run, "")
    assert metrics["n_steps"] == 12
    saved = model_class.from_pretrained(run.directory.student)
    inputs, logits = adapted[-1]
    with torch.no_grad():
        torch.testing.assert_close(saved(**inputs).logits, logits, atol=1e-4, rtol=1e-4)
        assert (model_class.from_pretrained(folder)(**inputs).logits - logits).abs().max() > 1e-3, "training changes the weights"
    assert not list(run.directory.student.glob("adapter*"))
    assert make_run(tmp_path, *SHORT, *options[:2]).run_id != run.run_id


def test_a_run_applies_the_chat_template_to_every_question(tmp_path, monkeypatch):
    texts = []
    real = answering.decode

    def watched(student, prompts, **options):
        texts.extend(student.tokenizer.decode(list(prompt.ids)) for prompt in prompts)
        return real(student, prompts, **options)

    monkeypatch.setattr(answering, "decode", watched)
    folder = save_gpt2(tmp_path / "weights", TEMPLATE)
    run = make_run(tmp_path, *SHORT, "student=gpt2", f"student.path={folder}", "student.chat_template=true")
    execute(run, "")
    assert texts
    assert all(text.startswith("<user>") and text.endswith("</s><assistant>") and "###" not in text for text in texts)
    assert len(texts) > len(run.split.test), "validation and test questions"
    interface = read_interface(run.directory.student)
    assert interface.chat
    assert interface.format.prompt_template == "{question}"
    assert AutoTokenizer.from_pretrained(run.directory.student).chat_template == TEMPLATE


def test_self_consistency_samples_and_votes(tmp_path):
    options = [*SMALL, "diversity=1", "student.self_consistency=3", "student.top_k=20"]
    run = make_run(tmp_path / "one", *options)
    metrics = execute(run, "")
    samples, predictions = lines(run.directory.samples), lines(run.directory.predictions)
    assert [(row["sample_index"], row["draw"]) for row in samples] == [(i, draw) for i in run.split.test for draw in range(3)]
    assert [row["sample_index"] for row in predictions] == run.split.test
    assert set(predictions[0]) == {"sample_index", "question", "answer", "completion", "prediction", "correct", "complete", "n_tokens"}
    assert set(metrics) >= METRICS
    assert metrics["accuracy_single_sample"] == sum(row["correct"] for row in samples) / len(samples)
    assert metrics["accuracy"] == sum(row["correct"] for row in predictions) / len(predictions)
    for prediction in predictions:
        drawn = [row for row in samples if row["sample_index"] == prediction["sample_index"]]
        votes = Counter(row["prediction"] for row in drawn if row["prediction"] is not None)
        assert prediction["prediction"] is None if not votes else votes[prediction["prediction"]] == max(votes.values())
        assert prediction["completion"] in [row["completion"] for row in drawn]
    assert len({row["completion"] for row in samples}) > len(predictions), "samples differ"
    repeated = make_run(tmp_path / "two", *options, "trainer.eval_batch_tokens=200")
    assert repeated.run_id == run.run_id
    execute(repeated, "")
    assert lines(repeated.directory.samples) == samples
    assert make_run(tmp_path, *options, "student.temperature=0.5").run_id != run.run_id


def test_decoding_in_bfloat16_does_not_change_training(tmp_path):
    options = [*SMALL, "diversity=1", "trainer.evaluate_every_steps=4"]
    whole, half = (make_run(tmp_path, *options, f"trainer.eval_precision={name}") for name in ("32-true", "bf16-true"))
    assert whole.run_id != half.run_id
    execute(whole, "")
    metrics = execute(half, "")
    assert metrics["n_test"] == len(half.split.test)
    whole_student, half_student = (AutoModelForCausalLM.from_pretrained(run.directory.student) for run in (whole, half))
    assert {parameter.dtype for parameter in half_student.parameters()} == {torch.float32}
    if metrics["history"] == json.loads(whole.directory.metrics.read_text())["history"]:  # the same step was chosen
        assert all(torch.equal(a, b) for a, b in zip(whole_student.parameters(), half_student.parameters(), strict=True))


@pytest.mark.parametrize("overrides", [["student=tiny_t5"], ["student=t5_small", "student.path={folder}"]])
@pytest.mark.parametrize("option", ["trainer.packing=true", "trainer.prompt_loss_weight=0.01"])
def test_decoder_only_options_are_rejected_before_the_teacher_is_paid(overrides, option, tmp_path):
    folder = save_t5(tmp_path / "weights")
    run = make_run(tmp_path, *QUICK, *(override.format(folder=folder) for override in overrides), option)
    with pytest.raises(FcotError, match=rf"{option.split('=')[0]}: for decoders only"):
        execute(run, "")
    assert not (tmp_path / "store").exists()


def test_a_run_with_packing_has_the_losses_of_a_run_with_padding(tmp_path):
    runs = [make_run(tmp_path, *SMALL, "diversity=1", "trainer.batch_tokens=400", option) for option in ("trainer.packing=true", "seed=0")]
    packed, padded = (execute(run, "") for run in runs)
    assert packed["padding_efficiency"] == 1 > padded["padding_efficiency"] > 0.8
    assert packed["n_steps"] == padded["n_steps"] == 12
    assert runs[0].run_id != runs[1].run_id
    logs = [list(csv.DictReader((run.directory.logs / "metrics.csv").open())) for run in runs]
    losses = [[float(row["train_loss"]) for row in log] for log in logs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0]


@pytest.mark.parametrize("at", [4, 6, 8, 9])
def test_the_best_checkpoint_is_chosen_across_a_restart(at, tmp_path, monkeypatch):
    """The second of four evaluations is the best. The student of that step is saved, wherever the run was stopped."""
    monkeypatch.setattr(checkpoints_module, "_SHARE", float("inf"))
    accuracies = {3: 0.2, 6: 0.9, 9: 0.4, 12: 0.3}
    options = [*SMALL, "diversity=1", "trainer.evaluate_every_steps=3", "trainer.checkpoint_every_s=0", "method=fine_tune", "until=train"]

    def run_until(folder, last):
        def stop_at_last(step):
            if step == last:
                raise ConnectionAbortedError

        give_accuracies(monkeypatch, accuracies, stop_at_last)
        run = make_run(folder, *options)
        return run, execute(run, "")

    straight, expected = run_until(tmp_path / "straight", None)
    with pytest.raises((ConnectionAbortedError, FcotError)):
        run_until(tmp_path / "stopped", at)
    stopped, summary = run_until(tmp_path / "stopped", None)
    assert summary["history"] == expected["history"]
    assert summary["validation_accuracy"] == 0.9
    file = "model.safetensors"
    assert (stopped.directory.student / file).read_bytes() == (straight.directory.student / file).read_bytes()
    assert not stopped.directory.checkpoints.exists()


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [
    [],
    pytest.param(
        ["student=tiny_t5", "trainer.strategy=fsdp", "trainer.micro_batches=2"],
    ),
])  # fmt: skip
def test_two_processes_give_the_metrics_of_one_process(overrides, run_fcot, tmp_path):
    results = []
    for devices in (1, 2):
        result = run_fcot(*SMALL, *overrides, "diversity=1", f"trainer.devices={devices}", f"output_dir={tmp_path}/{devices}")
        assert result.returncode == 0, result.stderr
        (run,) = (tmp_path / str(devices) / "runs").iterdir()
        results.append((run.name, timeless(json.loads((run / "metrics.json").read_text())), (run / "predictions.jsonl").read_text()))
    single, double = results
    assert "padding_efficiency" in single[1]
    assert double[0] == single[0]
    ignored = {"padding_efficiency", "devices"}
    first, second = ({key: value for key, value in run_result[1].items() if key not in ignored} for run_result in (single, double))
    assert second == first
    assert double[2] == single[2]


@pytest.mark.slow
def test_ranks_of_torchrun_end_if_there_is_nothing_to_do(tmp_path):
    """The first run trains on two ranks. The second has nothing to do, and its other rank must not wait forever."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29577", "-m", "fcot.run",
        f"output_dir={tmp_path}", *SMALL, "diversity=1", "trainer.devices=2",
    ]  # fmt: skip
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stderr
