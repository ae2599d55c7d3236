"""A training that was stopped in any way continues where it was; its result is bitwise that of an uninterrupted training."""

from __future__ import annotations

import errno
import signal

import pytest
import torch
from trainings import student_of, trained

from fcot.base.errors import FcotError
from fcot.base.files import TEMPORARY
from fcot.evaluation.patience import out_of_patience
from fcot.student import checkpoints as module
from fcot.student import training
from fcot.student.checkpoints import Checkpoints

STEPS = 14
DUE = {"max_steps": STEPS, "evaluate_every_steps": 5}  # after steps 5, 10 and 14
WAYS = {
    "plain": {},
    "dropout in micro-batches": {"dropout": 0.1, "micro_batches": 2, "schedule": "cosine"},
    "encoder-decoder": {"family": "t5", "dropout": 0.1, "batch_tokens": 300},
    "lora": {"lora": True, "dropout": 0.1, "micro_batches": 2},
    "preference": {"prefers": "dpo", "dropout": 0.1, "micro_batches": 2},
    "packed": {"family": "llama", "dropout": 0.0, "packing": True, "prompt_loss_weight": 0.01},
}


class Stop(Exception):
    """Raised by a test inside a training."""


@pytest.fixture(autouse=True)
def every_step(monkeypatch):
    """A checkpoint after every step, however slow writing is."""
    monkeypatch.setattr(module, "_SHARE", float("inf"))


def run(folder, *, keep=True, stop_after=None, kind=Stop, at="step", **options):
    """Train with checkpoints; raise ``kind`` where ``at`` says: after a step, or before or after the evaluation that follows it."""
    n_done = 0

    def advance(n):
        nonlocal n_done
        n_done += n
        if at == "step" and n_done == stop_after and n == 1:
            raise kind

    def evaluate(history):
        if at == "evaluation" and n_done == stop_after:
            raise kind
        return {"n": len(history), "step_seen": n_done}

    def judge(history):
        if at == "after evaluation" and history and history[-1]["step"] == stop_after == n_done:
            raise kind
        return False

    return trained(
        folder, evaluate=evaluate, stop=judge, advance=advance, checkpoints=Checkpoints(folder / "checkpoints", 0) if keep else None,
        **(DUE | options),
    )  # fmt: skip


def saved(folder):
    """Steps of the existing checkpoints, newest first."""
    files = list((folder / "checkpoints").iterdir())
    assert not [file for file in files if TEMPORARY in file.name]
    return sorted((int(file.name.split(".")[0].removeprefix("step_")) for file in files), reverse=True)


def newest_first(folder):
    return sorted((folder / "checkpoints").iterdir(), key=lambda file: -int(file.name.split(".")[0].removeprefix("step_")))


def assert_same(first, second):
    assert torch.equal(first.weights, second.weights)
    assert first.report.history == second.report.history
    assert vars(first.report) | {"train_seconds": 0} == vars(second.report) | {"train_seconds": 0}


@pytest.mark.parametrize("way", WAYS)
def test_stops_do_not_change_the_result(way, tmp_path):
    """One training is stopped after a step, before and after an evaluation, by Ctrl-C, and after the last step."""
    uninterrupted = run(tmp_path / "alone", keep=False, **WAYS[way])
    folder = tmp_path / "stopped"
    for options, newest in (
        ({"stop_after": 3}, 2), ({"stop_after": 5, "at": "evaluation"}, 5), ({"stop_after": 10, "at": "after evaluation"}, 10),
        ({"stop_after": 12, "kind": KeyboardInterrupt}, 11), ({"stop_after": 14, "at": "evaluation"}, 14),
    ):  # fmt: skip
        with pytest.raises(options.get("kind", Stop)):
            run(folder, **options, **WAYS[way])
        assert saved(folder) in ([newest, newest - 1], [newest, newest], [newest])
    end = run(folder, **WAYS[way])
    assert_same(end, uninterrupted)
    assert len(uninterrupted.losses) == STEPS


@pytest.mark.parametrize("way", ["dropout in micro-batches"])
def test_losses_and_learning_rates_continue_after_a_stop(way, tmp_path):
    uninterrupted = run(tmp_path / "alone", keep=False, **WAYS[way])
    with pytest.raises(Stop):
        run(tmp_path / "stopped", stop_after=7, **WAYS[way])
    rest = run(tmp_path / "stopped", **WAYS[way])
    assert rest.losses == uninterrupted.losses, "the log keeps what was written before the stop"
    assert rest.rates == uninterrupted.rates


def test_the_step_where_training_continues_is_logged(tmp_path, capsys):
    with pytest.raises(Stop):
        run(tmp_path, stop_after=7)
    run(tmp_path)
    assert "training continues at step 6 of 14" in capsys.readouterr().err


def test_a_finished_training_is_not_repeated(tmp_path):
    first = run(tmp_path)
    again = run(tmp_path)
    assert_same(first, again)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data[:-9] + b"x" * 9])
@pytest.mark.parametrize("both", [False, True])
def test_a_damaged_checkpoint_is_skipped(damage, both, tmp_path, capsys):
    uninterrupted = run(tmp_path / "alone", keep=False)
    folder = tmp_path / "stopped"
    with pytest.raises(Stop):
        run(folder, stop_after=8)
    assert saved(folder) == [7, 6]
    files = newest_first(folder)
    for file in files if both else files[:1]:
        file.write_bytes(damage(file.read_bytes()))
    capsys.readouterr()
    assert_same(run(folder), uninterrupted)
    stderr = capsys.readouterr().err
    assert stderr.count("is damaged and is left out") == (2 if both else 1)
    assert files[0].name in stderr
    assert ("continues at step 6" in stderr) != both


def test_at_most_two_checkpoints_are_kept(tmp_path):
    folder, counts = tmp_path / "checkpoints", []
    trained(tmp_path, max_steps=6, checkpoints=Checkpoints(folder, 0), advance=lambda _: counts.append(len(list(folder.glob("*")))))
    assert counts == [0, 0, 1, 2, 2, 2, 2], "before the first step, and after each, before its own is written"
    assert saved(tmp_path) in ([6, 5], [6, 6]), "there may be a checkpoint before and another after the last evaluation"


def test_checkpoints_are_written_at_the_configured_interval(tmp_path):
    trained(tmp_path, max_steps=6, checkpoints=Checkpoints(tmp_path / "checkpoints", 3600))
    assert not (tmp_path / "checkpoints").exists()


def test_writing_takes_a_small_share_of_the_time(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_SHARE", 0.05)
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    real = torch.save
    monkeypatch.setattr(torch, "save", lambda *arguments: (real(*arguments), now.__setitem__(0, now[0] + 2)))
    checkpoints = Checkpoints(tmp_path, 10)
    now[0] = 10.0
    assert checkpoints.due
    checkpoints.save({"step": 1})
    now[0] = 12 + 39.9
    assert not checkpoints.due
    now[0] = 12 + 40.1
    assert checkpoints.due


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_a_full_disk_leaves_the_older_checkpoints(error, monkeypatch, tmp_path):
    uninterrupted = run(tmp_path / "alone", keep=False)
    folder, real = tmp_path / "full", torch.save

    def full(state, file):
        if state["step"] >= 9:
            file.write(b"half of it")
            raise error
        real(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(FcotError, match="no space left to write" if isinstance(error, OSError) else "cannot write"):
            run(folder)
    assert saved(folder) == [8, 7]
    assert_same(run(folder), uninterrupted)


def test_an_early_stop_survives_a_restart(tmp_path):
    options = {"evaluate_every_steps": 2, "max_steps": 20, "stop": lambda history: len(history) == 3}
    first = trained(tmp_path, checkpoints=Checkpoints(tmp_path / "checkpoints", 0), **options)
    again = trained(tmp_path, checkpoints=Checkpoints(tmp_path / "checkpoints", 0), **options)
    assert first.report.n_steps == again.report.n_steps == 6
    assert_same(first, again)


@pytest.mark.parametrize(("accuracies", "patience", "expected"), [
    ([], 1, False), ([0.5], 1, False), ([0.5, 0.5], 1, True), ([0.5, 0.6], 1, False), ([0.5, 0.4, 0.6, 0.5, 0.6], 2, True),
    ([0.5, 0.4, 0.6, 0.5, 0.6], 3, False), ([0.9, 0.1, 0.1, 0.1], None, False),
])  # fmt: skip
def test_patience_counts_evaluations_since_the_best(accuracies, patience, expected):
    assert out_of_patience([{"validation_accuracy": accuracy} for accuracy in accuracies], patience) is expected


def test_an_incomplete_log_line_is_left_out_when_training_continues(tmp_path):
    uninterrupted = run(tmp_path / "alone", keep=False)
    with pytest.raises(Stop):
        run(tmp_path / "torn", stop_after=7)
    log = tmp_path / "torn" / "logs" / "metrics.csv"
    whole = log.read_text()
    log.write_text(whole + whole.splitlines()[-1][:9])
    assert run(tmp_path / "torn").losses == uninterrupted.losses


def test_every_logged_step_is_on_disk_at_once(tmp_path):
    log, rows = tmp_path / "logs" / "metrics.csv", []

    def advance(n):
        rows.append(len(log.read_text().splitlines()) - 1 if log.exists() else 0)

    trained(tmp_path, advance=advance, max_steps=4)
    assert rows[-1] == 3, "when the fourth step is counted, three are logged"


def test_the_optimizer_is_saved_by_the_names_of_weights(tmp_path):
    """Sharded parameters are identified by their names; positions would not fit them."""
    with pytest.raises(Stop):
        run(tmp_path, stop_after=7)
    optimizer = Checkpoints(tmp_path / "checkpoints", 0).load()["optimizer"]
    names = [name for name, _ in student_of("gpt2").model.named_parameters()]
    assert optimizer["param_groups"][0]["params"] == names
    assert set(optimizer["state"]) == set(names)


def test_ctrl_c_waits_for_the_step_and_its_checkpoint(tmp_path, capsys):
    """Even if the next checkpoint is not due for a long time."""
    before, uninterrupted = signal.getsignal(signal.SIGINT), trained(tmp_path / "alone", max_steps=12)

    def interrupt(n):
        counted.extend([1] * n)
        if n and len(counted) == 5:
            signal.raise_signal(signal.SIGINT)

    counted: list[int] = []
    far = Checkpoints(tmp_path / "checkpoints", 3600)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, max_steps=12, checkpoints=far, advance=interrupt)
    assert len(counted) == 5
    assert saved(tmp_path) == [5]
    assert "stopping after this step" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    assert_same(trained(tmp_path, max_steps=12, checkpoints=far), uninterrupted)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("began", "continued_in"), [("32-true", "bf16-mixed"), ("bf16-mixed", "32-true")])
def test_a_training_does_not_continue_in_another_precision(tmp_path, began, continued_in):
    trained(tmp_path, max_steps=4, checkpoints=Checkpoints(tmp_path / "checkpoints", 0), precision=began)
    with pytest.raises(FcotError, match=f"this training began in {began}, and here trainer.precision is {continued_in}"):
        trained(tmp_path, max_steps=8, checkpoints=Checkpoints(tmp_path / "checkpoints", 0), precision=continued_in)
    assert trained(tmp_path, max_steps=8, checkpoints=Checkpoints(tmp_path / "checkpoints", 0), precision=began).report.n_steps == 8


def test_a_large_first_checkpoint_waits_too(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_SHARE", 0.05)
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path, 10, n_bytes=3.2e9)
    for seconds, due in ((11, False), (639, False), (641, True)):
        now[0] = float(seconds)
        assert checkpoints.due is due


@pytest.mark.parametrize(("capabilities", "warned"), [({"avx2": True}, True), ({"avx512_bf16": True}, False), ({}, False)])
def test_a_cpu_that_emulates_bfloat16_gets_a_warning(tmp_path, monkeypatch, capsys, capabilities, warned):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(training.torch.cuda, "is_available", lambda: False)
    trained(tmp_path, max_steps=1, precision="bf16-mixed")
    assert ("no bfloat16 instructions" in capsys.readouterr().err) == warned
    trained(tmp_path / "float32", max_steps=1)
    assert "bfloat16" not in capsys.readouterr().err
