"""launch/local_slurm: a real SLURM of one node comes up, runs jobs, and leaves without a trace; nothing else is ever signalled."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "launch" / "local_slurm"


def why_not() -> str:
    """Why no SLURM can be run here; empty where one can."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd") if shutil.which(name, path=path) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    with contextlib.suppress(OSError):
        if socket.gethostbyname(socket.gethostname()).startswith("127."):
            return ""
    return "the name of this machine does not stand for a loopback address"


needs_slurm = pytest.mark.skipif(bool(why_not()), reason=why_not())


def call(*arguments, **environment):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def folders(tmp_path):
    """Two folders for clusters; whatever runs in them is stopped at the end."""
    made = tmp_path / "a", tmp_path / "b"
    yield made
    for folder in made:
        call("down", folder)


def up(folder, *options):
    done = call("up", folder, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def client(folder, *command):
    """What a SLURM command prints in a shell that knows only where the configuration is."""
    environment = {"PATH": os.environ["PATH"], "SLURM_CONF": f"{folder}/slurm.conf"}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=True).stdout


def recorded(folder):
    return json.loads((folder / "running.json").read_text())


def state_and_start(pid):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    return "gone", 0


def still_run(processes):
    return [one["name"] for one in processes if state_and_start(one["pid"])[1] == one["started"] and state_and_start(one["pid"])[0] != "Z"]


def commands_naming(folder):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.append(path.read_bytes())
    return [command for command in found if bytes(folder) in command]


def eventually(check, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not (answer := check()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return answer


@needs_slurm
def test_jobs_run_from_up_to_down(folders):
    folder = folders[0]
    assert up(folder).splitlines()[-1] == f"export SLURM_CONF={folder}/slurm.conf"
    assert client(folder, "srun", "--gpus-per-node=2", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES") == "0,1\n"
    job = client(folder, "sbatch", "--parsable", "--array=0-1", "--output=%a.txt", "--wrap=echo task $SLURM_ARRAY_TASK_ID").strip()
    states = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=jobid,state", f"--jobs={job}"]
    finished = [f"{job}_0|COMPLETED", f"{job}_1|COMPLETED"]
    assert eventually(lambda: client(folder, *states).split() == finished), client(folder, *states)
    assert [(folder / f"{task}.txt").read_text() for task in (0, 1)] == ["task 0\n", "task 1\n"]

    processes = recorded(folder)["processes"]
    assert still_run(processes) == ["munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd"]
    assert call("status", folder).returncode == 0
    assert "already up" in up(folder)
    assert recorded(folder)["processes"] == processes

    client(folder, "sbatch", "--wrap=sleep 600")
    assert call("down", folder).returncode == 0
    assert still_run(processes) == []
    assert call("status", folder).returncode == 1
    assert call("down", folder).returncode == 0
    up(folder)  # with the database that is there
    assert client(folder, *states).split() == finished
    assert client(folder, "squeue", "--noheader") == ""


@needs_slurm
def test_two_clusters_do_not_know_of_each_other(folders):
    one, other = folders
    for folder in folders:
        up(folder, "--no-accounting")
    client(one, "sbatch", "--wrap=sleep 600")
    assert client(other, "squeue", "--noheader") == ""
    assert commands_naming(one)
    call("down", one)
    assert not commands_naming(one)
    assert call("status", other).returncode == 0
    assert client(other, "srun", "echo", "here") == "here\n"


@needs_slurm
def test_a_path_too_long_for_sockets(folders):
    folder = folders[0] / ("long" * 25)
    try:
        up(folder, "--no-accounting", "--gpus=0", "--cpus=3")
        sockets = Path(recorded(folder)["sockets"])
        assert client(folder, "srun", "--ntasks=3", "echo", "here") == 3 * "here\n"
        assert sockets.is_dir()
    finally:
        call("down", folder)
    assert not sockets.exists()


@needs_slurm
def test_a_daemon_that_does_not_come_up(folders):
    folder = folders[0]
    up(folder, "--no-accounting")
    call("down", folder)
    (folder / "state" / "clustername").write_text("other")
    done = call("up", folder, "--no-accounting")
    assert done.returncode == 1
    assert "slurmctld ended" in done.stderr
    assert "CLUSTER NAME MISMATCH" in done.stderr
    assert not (folder / "running.json").exists()
    assert not commands_naming(folder)  # as munged's does


@pytest.mark.parametrize("offset", [0, 1])
def test_down_signals_only_what_up_started(tmp_path, offset):
    process = subprocess.Popen(["sleep", "600"])
    try:
        record = {"name": "sleep", "pid": process.pid, "started": state_and_start(process.pid)[1] - offset}
        (tmp_path / "running.json").write_text(json.dumps({"sockets": str(tmp_path / "run"), "processes": [record]}))
        begin = time.monotonic()
        assert call("down", tmp_path, PATH="").returncode == 0
        assert time.monotonic() - begin < 10  # this child is never reaped meanwhile, and has stopped all the same
        assert state_and_start(process.pid)[0] == ("S" if offset else "Z")
    finally:
        process.kill()
        process.wait()


def test_what_is_missing_is_named_with_how_to_install_it(tmp_path):
    done = call("up", tmp_path, PATH="")
    assert done.returncode == 1
    assert "sinfo" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "apt-get install --no-install-recommends slurm-wlm munge slurmdbd mariadb-server" in done.stderr


@needs_slurm
def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / ".gitignore").write_text("mine")
    done = call("up", tmp_path, "--no-accounting")
    assert done.returncode == 1
    assert "Not empty" in done.stderr
    assert (tmp_path / ".gitignore").read_text() == "mine"
