"""A training that diverges ends on all ranks with one message, and leaves nothing that could be taken for a result."""

from __future__ import annotations

import pytest
import torch
import trainings
from safetensors.torch import load_file, save_file
from students import make_rows, make_student
from test_ranks import TRAIN, ended
from test_run import SMALL, make_run
from test_sweeps import states, the_sweep
from trainings import give_accuracies, student_of, trained, trained_by

from fcot.base.errors import FcotError, NotFinite
from fcot.config.schema import register_schemas
from fcot.decoding.engine import Sampling
from fcot.objectives import completion
from fcot.objectives.completion import token_loss
from fcot.runs.pipeline import execute
from fcot.student import checkpoints as checkpoints_module
from fcot.student.checkpoints import Checkpoints
from fcot.student.decoding import DecodingPrompt, decode
from fcot.student.divergence import DivergenceCheck, remedies

WILD = ["trainer.lr=1e6", "trainer.clip_norm=null", "trainer.warmup_steps=1"]
NOTHING = ("student", "metrics.json", "DONE.json", "predictions.jsonl", "stages/train.json", "stages/evaluate.json")


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """A checkpoint after every step, however slow writing is; each test starts with the original loss."""
    register_schemas()
    monkeypatch.setattr(checkpoints_module, "_SHARE", float("inf"))
    monkeypatch.setattr(completion, "token_loss", token_loss)


def steps(folder):
    return sorted(int(path.name.split(".")[0].removeprefix("step_")) for path in folder.glob("checkpoints/step_*.ckpt"))


def make_check(model):
    return DivergenceCheck(model, 1, lambda step: 0.1 * step, ("start otherwise", "lower trainer.lr"))


# --- the divergence check ---


def test_the_first_step_whose_loss_is_not_finite_is_named():
    divergence = make_check(torch.nn.Linear(2, 2))
    for step, loss in enumerate((1.0, 2.0, torch.inf, torch.nan, 1.0), 1):
        divergence.note(torch.tensor(loss), step)
    assert not divergence.all_finite
    with pytest.raises(NotFinite, match=r"stopped at step 3, with learning rate 0\.3: the loss is not finite .*; lower trainer\.lr$"):
        divergence.check(5, weights=False)


def test_weights_are_checked_only_on_request():
    model = torch.nn.Linear(2, 2)
    divergence = make_check(model)
    divergence.note(torch.tensor(1.0), 1)
    divergence.check(1, weights=True)
    model.bias.data[1] = -torch.inf
    divergence.check(2, weights=False)
    assert not divergence.all_finite
    with pytest.raises(NotFinite, match=r"step 2, .*: weights are not finite"):
        divergence.check(2, weights=True)


def test_a_first_loss_that_is_not_finite_is_not_blamed_on_the_learning_rate():
    divergence = make_check(torch.nn.Linear(2, 2))
    divergence.note(torch.tensor(torch.nan), 1)
    with pytest.raises(NotFinite, match="start otherwise"):
        divergence.check(1, weights=False)


def test_steps_that_a_gradient_scaler_skips_do_not_count():
    """Float16: if gradients overflow, the scaler skips the step and halves the scale."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=3e35)
    divergence, before = make_check(model), model.weight.detach().clone()
    skipped = 0
    for step in range(1, 16):
        loss = (model(torch.ones(4, 2)) * 100).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        skipped += not all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())
        scaler.step(optimizer)
        scaler.update()
        divergence.note(loss.detach(), step)
        divergence.check(step, weights=True)
    assert 0 < skipped < 15
    assert not torch.equal(model.weight, before)


def test_a_loss_far_above_its_start_is_reported_once(capsys):
    divergence = make_check(torch.nn.Linear(2, 2))
    for loss, first_loss in ((6.0, 5.0), (10.9, 5.0), (0.9, 0.1), (99.0, None)):
        divergence.warn_if_far_above(loss, first_loss, 3)
    assert not capsys.readouterr().err
    divergence.warn_if_far_above(11.5, 5.0, 20)
    divergence.warn_if_far_above(12.5, 5.0, 30)
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    assert "at step 20, with learning rate 2, the loss is 11.5, far above the 5 of the first step; lower trainer.lr" in output


@pytest.mark.parametrize(("clip_norm", "precision", "first_remedy", "later_remedy"), [
    (None, "32-true", "student.path", "lower trainer.lr or set trainer.clip_norm=1.0"),
    (0.5, "bf16-mixed", "trainer.precision=32-true", "lower trainer.clip_norm=0.5, or train with trainer.precision=32-true"),
])  # fmt: skip
def test_the_remedies_are_overrides(clip_norm, precision, first_remedy, later_remedy):
    at_first, afterwards = remedies(clip_norm, precision)
    assert first_remedy in at_first
    assert later_remedy in afterwards


# --- trainings ---


@pytest.mark.parametrize("at", [1, 2, 5, 9, 10])
@pytest.mark.parametrize("log_every", [1, 4, 100])
def test_weights_that_are_not_finite_are_neither_evaluated_nor_saved(at, log_every, tmp_path):
    evaluated = []
    with pytest.raises(NotFinite, match=f"stopped at step {at},"):
        trained(
            tmp_path, poison=(at, 0), max_steps=10, evaluate_every_steps=3, log_every=log_every,
            evaluate=lambda history: evaluated.append(1) or {}, checkpoints=Checkpoints(tmp_path / "checkpoints", 0),
        )  # fmt: skip
    assert len(evaluated) == (at - 1) // 3
    assert max(steps(tmp_path), default=0) == at - 1
    logged = tmp_path / "logs/metrics.csv"
    assert not logged.exists() or "nan" not in logged.read_text()


def test_weights_that_the_last_step_breaks_are_not_evaluated(tmp_path, monkeypatch):
    steps_done, student = 0, student_of("gpt2")
    monkeypatch.setattr(trainings, "student_of", lambda *_: student)

    def advance(n):
        nonlocal steps_done
        steps_done += n
        if steps_done == 6:  # after the check of the loss
            student.model.transformer.wpe.weight.data[0, 0] = torch.nan

    with pytest.raises(NotFinite, match=r"step 6, .*: weights are not finite"):
        trained(tmp_path, max_steps=6, advance=advance, checkpoints=Checkpoints(tmp_path / "checkpoints", 0))
    assert steps(tmp_path) == [4, 5]


def test_a_checkpoint_with_weights_that_are_not_finite_is_not_resumed(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path / "checkpoints", 0)
    for step, value in ((3, 1.0), (4, torch.nan)):
        checkpoints.save({"step": step, "weights": {"a": torch.tensor([value])}})
    assert checkpoints.load()["step"] == 3
    assert "its weight a is not finite" in capsys.readouterr().err


def test_the_message_about_another_models_checkpoint_names_the_weight(tmp_path):
    student, checkpoints = student_of("gpt2"), Checkpoints(tmp_path / "checkpoints", 0)
    weights = {name: parameter.detach() for name, parameter in student.model.named_parameters()}
    changed_weight = "transformer.h.1.ln_1.weight"
    for change in (lambda: weights.pop(changed_weight), lambda: weights.update({changed_weight: torch.ones(5)})):
        change()
        checkpoints.save({"step": 1, "weights": weights, "report": {}, "optimizer": {}, "precision": {}})
        with pytest.raises(FcotError, match=changed_weight):
            trained(tmp_path, checkpoints=checkpoints, max_steps=3)


@pytest.mark.parametrize(("rank", "options"), [
    (0, {}), (1, {}), pytest.param(1, {"strategy": "fsdp", "log_every": 5, "evaluate_every_steps": 4}, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_loss_that_is_not_finite_on_one_rank_ends_both(rank, options, tmp_path):
    with pytest.raises(NotFinite, match=r"stopped at step 4,"):
        trained_by(2, tmp_path, poison=(4, rank), max_steps=9, checkpoints=Checkpoints(tmp_path / "checkpoints", 0), **options)
    assert max(steps(tmp_path)) == 3


def test_ranks_that_torchrun_started_end_with_one_message(tmp_path, start_ranks):
    outcome = ended(start_ranks(tmp_path, *TRAIN, "trainer.max_steps=100", "method=fine_tune", *WILD))
    assert [code for code, _ in outcome] == [1, 1]
    output = "".join(text for _, text in outcome)
    assert output.count("the training stopped at step") == 1
    assert "Traceback" not in output
    (run,) = tmp_path.glob("outputs/runs/*")
    assert not [name for name in NOTHING if (run / name).exists()]


# --- answers ---


@pytest.mark.parametrize("family", ["t5", "gpt2"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_output_that_is_not_finite_is_an_error_and_no_answer(family, temperature):
    student = make_student(family)
    student.model.get_output_embeddings().weight.data[7] = torch.nan
    prompts = [DecodingPrompt(row.prompt, 8, (1,) if temperature else ()) for row in make_rows(student, 3)]
    with pytest.raises(NotFinite, match=r"output is not finite .*trainer\.eval_precision"):
        decode(student, prompts, max_tokens=400, sampling=Sampling(temperature))


@pytest.mark.parametrize("rank", [0, 1])
def test_an_output_that_is_not_finite_on_one_rank_ends_both(rank, tmp_path):
    with pytest.raises(NotFinite, match="output is not finite"):
        trained_by(2, tmp_path, max_steps=2, ask=True, overflow=rank)


# --- runs ---


def test_a_diverged_run_leaves_no_student_and_its_sweep_shows_it_as_failed(run_fcot, tmp_path):
    overrides = [*SMALL, "method=fine_tune", "trainer.clip_norm=null", "trainer.warmup_steps=1", "trainer.lr=1e-3,1e6"]
    swept = run_fcot("-m", *overrides)
    assert swept.returncode != 0
    sweep = the_sweep(tmp_path)
    assert states(sweep) == ["done", "failed"]
    assert "the training stopped at step" in swept.stderr
    assert "lower trainer.lr or set trainer.clip_norm=1.0" in swept.stderr
    good, bad = (sweep.directory(job).path for job in sweep.jobs)
    assert (good / "DONE.json").exists()
    assert not [name for name in NOTHING if (bad / name).exists()]
    assert not steps(bad)
    alone = run_fcot(*overrides[:-1], "trainer.lr=1e6")
    assert alone.returncode == 1
    assert "Traceback" not in alone.stderr
    assert len(list(tmp_path.glob("outputs/runs/*/metrics.json"))) == 1


def test_resumed_training_restores_the_student_that_an_earlier_evaluation_chose(tmp_path, monkeypatch):
    """The best evaluation is after step 6; the loss of step 8 is not finite in the first attempt."""
    accuracies = {3: 0.2, 6: 0.9, 9: 0.4, 12: 0.3}
    options = [*SMALL, "trainer.evaluate_every_steps=3", "trainer.checkpoint_every_s=0", "method=fine_tune", "until=train"]
    give_accuracies(monkeypatch, accuracies)
    straight = make_run(tmp_path / "straight", *options)
    expected = execute(straight, "")
    run = make_run(tmp_path / "broken", *options)
    with monkeypatch.context() as broken:
        broken.setattr(completion, "token_loss", lambda logits, batch: token_loss(logits, batch) * (torch.nan if batch["step"] == 7 else 1))
        with pytest.raises(NotFinite, match="step 8"):
            execute(run, "")
    assert not run.directory.student.exists()
    assert steps(run.directory.path) == [6, 7]
    resumed = execute(run, "")
    assert resumed["history"] == expected["history"]
    file = "model.safetensors"
    assert (run.directory.student / file).read_bytes() == (straight.directory.student / file).read_bytes()
    assert not run.directory.checkpoints.exists()


def test_the_message_about_a_student_with_an_inf_names_the_tensor(run_fcot, tmp_path):
    first = make_run(tmp_path / "outputs", *SMALL, "method=fine_tune", "until=train")
    execute(first, "")
    file = first.directory.student / "model.safetensors"
    weights = load_file(file)
    weights["transformer.wpe.weight"][2, 1] = torch.inf
    save_file(weights, file, metadata={"format": "pt"})
    result = run_fcot(f"student={first.directory.student}", "How many?", module="fcot.predict")
    assert result.returncode == 1
    assert "the tensor transformer.wpe.weight has values that are not finite" in result.stderr
    assert "Traceback" not in result.stderr
