"""Ranks that torchrun or srun started: all stop together when one receives a signal, and all notice when one is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

TRAINED = (
    "dataset.n_problems=60", "diversity=1", "student.width=16", "student.layers=1", "student.heads=2", "student.max_new_tokens=16",
    "trainer.warmup_steps=1", "trainer.evaluate_every_epochs=null", "trainer.epochs=null", "trainer.checkpoint_every_s=1000000",
    "trainer.devices=2", "logger=csv",
)  # fmt: skip


def started(folder: Path, *overrides: str) -> list[subprocess.Popen[str]]:
    """Start both ranks with the environment that torchrun sets."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environments = [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        | {"TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1"}
        for rank in range(2)
    ]
    command = [sys.executable, "-m", "fcot.run", *TRAINED, *overrides]
    return [
        subprocess.Popen(command, cwd=folder, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for environment in environments
    ]


def wait_until_training(folder: Path, ranks: list[subprocess.Popen[str]]) -> None:
    while not [path for path in folder.glob("outputs/runs/*/logs/metrics.csv") if path.stat().st_size]:
        assert all(rank.poll() is None for rank in ranks), [rank.communicate() for rank in ranks if rank.poll() is not None]
        time.sleep(0.05)


def ended(ranks: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit code and stderr of each rank."""
    output = [rank.communicate(timeout=110)[1] for rank in ranks]
    return [(rank.returncode, text) for rank, text in zip(ranks, output, strict=True)]


def parameters(folder: Path):
    (student,) = folder.glob("outputs/runs/*/student/model.safetensors")
    return load_file(student)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
@pytest.mark.parametrize("signaled", [(0, 1), (0,), (1,)])
def test_ranks_that_are_signaled_write_one_checkpoint_and_continue_from_it(tmp_path, number, signaled):
    ranks = started(tmp_path, "trainer.max_steps=100000")
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
def test_an_interrupted_training_on_two_ranks_gives_the_result_of_an_uninterrupted_one(tmp_path, number):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    steps = "trainer.max_steps=400"
    assert [code for code, _ in ended(started(tmp_path / "a", steps))] == [0, 0]
    ranks = started(tmp_path / "b", steps)
    wait_until_training(tmp_path / "b", ranks)
    for rank in ranks:
        rank.send_signal(number)
    assert [code for code, _ in ended(ranks)] == [128 + number] * 2
    assert [code for code, _ in ended(started(tmp_path / "b", steps))] == [0, 0]
    first, second = parameters(tmp_path / "a"), parameters(tmp_path / "b")
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_ends_the_other_rank_with_a_message(tmp_path, killed):
    ranks = started(tmp_path, "trainer.max_steps=100000")
    wait_until_training(tmp_path, ranks)
    ranks[killed].kill()
    ranks[killed].communicate()
    ((code, output),) = ended([ranks[1 - killed]])
    assert code == 1
    assert "the same command continues" in output
    assert "Traceback" not in output


def test_a_killed_rank_is_noticed_while_no_rank_waits_for_it(tmp_path):
    """The first rank does work of its own, so no collective operation can fail."""
    code = (
        "import sys, time\nfrom fcot.base.ranks import Team, World\n"
        "world = World(int(sys.argv[1]), 2)\n"
        "with Team(world, True, None, ()) as team:\n"
        "    if world.rank:\n        team.follow(lambda task: None)\n"
        "    else:\n        team.lead('meet', lambda: None)\n        print('busy', flush=True)\n        time.sleep(100)\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}

    def start(rank: int) -> subprocess.Popen[str]:
        command, rank_environment = [sys.executable, "-c", code, str(rank)], environment | {"RANK": str(rank)}
        return subprocess.Popen(command, env=os.environ | rank_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    ranks = [start(rank) for rank in range(2)]
    assert ranks[0].stdout.readline() == "busy\n"
    ranks[1].kill()
    ranks[1].communicate()
    _, output = ranks[0].communicate(timeout=60)
    assert ranks[0].returncode == 1
    assert "rank 0: rank 1 of 2 has ended; the same command continues" in output
