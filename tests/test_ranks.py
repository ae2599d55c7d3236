"""Ranks that torchrun or srun started: all stop together when one receives a signal, and all notice when one is killed."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest
import zygote
from conftest import rank_environments
from safetensors.torch import load_file

TRAIN = (
    "-m", "fcot.run",
    "dataset.n_problems=60", "diversity=1", "student.width=16", "student.layers=1", "student.heads=2", "student.max_new_tokens=16",
    "trainer.warmup_steps=1", "trainer.evaluate_every_epochs=null", "trainer.epochs=null", "trainer.checkpoint_every_s=1000000",
    "trainer.devices=2", "logger=csv",
)  # fmt: skip


def wait_until_training(folder: Path, ranks: list) -> None:
    while not [path for path in folder.glob("outputs/runs/*/logs/metrics.csv") if path.stat().st_size]:
        assert all(rank.poll() is None for rank in ranks), [rank.communicate() for rank in ranks if rank.poll() is not None]
        time.sleep(0.05)


def ended(ranks: list) -> list[tuple[int, str]]:
    """Exit code and stderr of each rank."""
    output = [rank.communicate(timeout=600)[1] for rank in ranks]
    return [(rank.returncode, text) for rank, text in zip(ranks, output, strict=True)]


def parameters(folder: Path):
    (student,) = folder.glob("outputs/runs/*/student/model.safetensors")
    return load_file(student)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
@pytest.mark.parametrize("signaled", [(0, 1), (0,), (1,)])
def test_ranks_that_are_signaled_write_one_checkpoint_and_continue_from_it(tmp_path, start_ranks, number, signaled):
    ranks = start_ranks(tmp_path, *TRAIN, "trainer.max_steps=100000")
    wait_until_training(tmp_path, ranks)
    for rank in signaled:
        ranks[rank].send_signal(number)
    for code, output in ended(ranks):
        assert code == 128 + number, output
        assert "Traceback" not in output
        assert "gloo" not in output
    (saved,) = tmp_path.glob("outputs/runs/*/checkpoints/step_*.ckpt")
    assert int(saved.name.split(".")[0].removeprefix("step_")) > 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_an_interrupted_training_on_two_ranks_gives_the_result_of_an_uninterrupted_one(tmp_path, start_ranks, number):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    steps = "trainer.max_steps=400"
    assert [(code, error) for code, error in ended(start_ranks(tmp_path / "a", *TRAIN, steps)) if code] == []
    ranks = start_ranks(tmp_path / "b", *TRAIN, steps)
    wait_until_training(tmp_path / "b", ranks)
    for rank in ranks:
        rank.send_signal(number)
    assert [code for code, _ in ended(ranks)] == [128 + number] * 2
    assert [(code, error) for code, error in ended(start_ranks(tmp_path / "b", *TRAIN, steps)) if code] == []
    first, second = parameters(tmp_path / "a"), parameters(tmp_path / "b")
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_ends_the_other_rank_with_a_message(tmp_path, start_ranks, killed):
    ranks = start_ranks(tmp_path, *TRAIN, "trainer.max_steps=100000")
    wait_until_training(tmp_path, ranks)
    ranks[killed].kill()
    ranks[killed].communicate()
    ((code, output),) = ended([ranks[1 - killed]])
    assert code == 1
    assert "the same command continues" in output
    assert "Traceback" not in output


def test_a_killed_rank_is_noticed_while_no_rank_waits_for_it(tmp_path, start_ranks):
    """The first rank does work of its own, so no collective operation can fail."""
    code = (
        "import os, time\nfrom fcot.base.ranks import Team, World\n"
        "world = World(int(os.environ['RANK']), 2)\n"
        "with Team(world, True, None, ()) as team:\n"
        "    if world.rank:\n        team.follow(lambda task: None)\n"
        "    else:\n        team.lead('meet', lambda: None)\n        print('busy', flush=True)\n        time.sleep(100)\n"
    )
    ranks = start_ranks(tmp_path, "-c", code)
    assert ranks[0].stdout.readline() == "busy\n"
    ranks[1].kill()
    ranks[1].communicate()
    _, output = ranks[0].communicate(timeout=600)
    assert ranks[0].returncode == 1
    assert "rank 0: rank 1 of 2 has ended; the same command continues" in output


def test_a_rank_whose_port_is_taken_says_so(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        rank, _ = rank_environments(port)
        rank |= {"TORCHELASTIC_USE_AGENT_STORE": "False"}
        result = zygote.run([*TRAIN, "trainer.max_steps=10"], cwd=tmp_path, env=os.environ | rank, timeout=600)
    assert result.returncode == 1
    assert f"rank 0 of 2 cannot connect to the others at 127.0.0.1:{port}" in result.stderr
    assert "EADDRINUSE" in result.stderr
    assert "Traceback" not in result.stderr
