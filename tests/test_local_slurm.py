"""launch/local_slurm starts a real SLURM of one node, runs jobs and stops without a trace; it signals no other process."""

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


def reason_to_skip() -> str:
    """Why SLURM cannot run on this machine; empty if it can."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd") if shutil.which(name, path=path) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    with contextlib.suppress(OSError):
        if socket.gethostbyname(socket.gethostname()).startswith("127."):
            return ""
    return "the name of this machine is not resolved to a loopback address"


needs_slurm = pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())


def call(*arguments, **environment):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )


@pytest.fixture
def folders(tmp_path):
    """Two folders for clusters; the clusters are stopped at the end."""
    paths = tmp_path / "a", tmp_path / "b"
    yield paths
    for folder in paths:
        call("down", folder)


def up(folder, *options):
    result = call("up", folder, *options)
    assert result.returncode == 0, result.stderr
    return result.stdout


def client(folder, *command):
    """Output of a SLURM command in a shell that knows only the path of the configuration."""
    environment = {"PATH": os.environ["PATH"], "SLURM_CONF": f"{folder}/slurm.conf"}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600, check=True).stdout


def recorded(folder):
    return json.loads((folder / "running.json").read_text())


def state_and_start(pid):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    return "gone", 0


def names_of_running(processes):
    return [
        process["name"]
        for process in processes
        if state_and_start(process["pid"])[1] == process["started"] and state_and_start(process["pid"])[0] != "Z"
    ]


def commands_naming(folder):
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            commands.append(path.read_bytes())
    return [command for command in commands if bytes(folder) in command]


def eventually(check, seconds=600.0):
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
    assert names_of_running(processes) == ["munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd"]
    assert call("status", folder).returncode == 0
    assert "already up" in up(folder)
    assert recorded(folder)["processes"] == processes

    client(folder, "sbatch", "--wrap=sleep 600")
    assert call("down", folder).returncode == 0
    assert names_of_running(processes) == []
    assert call("status", folder).returncode == 1
    assert call("down", folder).returncode == 0
    up(folder)  # with the existing database
    assert client(folder, *states).split() == finished
    assert client(folder, "squeue", "--noheader") == ""


@needs_slurm
def test_two_clusters_are_independent(folders):
    first, second = folders
    for folder in folders:
        up(folder, "--no-accounting")
    client(first, "sbatch", "--wrap=sleep 600")
    assert client(second, "squeue", "--noheader") == ""
    assert commands_naming(first)
    call("down", first)
    assert not commands_naming(first)
    assert call("status", second).returncode == 0
    assert client(second, "srun", "echo", "here") == "here\n"


@needs_slurm
def test_a_cluster_runs_in_a_folder_whose_path_is_too_long_for_sockets(folders):
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
def test_if_a_daemon_does_not_start_its_log_is_shown_and_the_others_are_stopped(folders):
    folder = folders[0]
    up(folder, "--no-accounting")
    call("down", folder)
    (folder / "state" / "clustername").write_text("other")
    result = call("up", folder, "--no-accounting")
    assert result.returncode == 1
    assert "slurmctld ended" in result.stderr
    assert "CLUSTER NAME MISMATCH" in result.stderr
    assert not (folder / "running.json").exists()
    assert not commands_naming(folder)  # the command line of munged would contain it


@pytest.mark.parametrize("offset", [0, 1])
def test_down_signals_only_what_up_started(tmp_path, offset):
    process = subprocess.Popen(["sleep", "600"])
    try:
        record = {"name": "sleep", "pid": process.pid, "started": state_and_start(process.pid)[1] - offset}
        (tmp_path / "running.json").write_text(json.dumps({"sockets": str(tmp_path / "run"), "processes": [record]}))
        assert call("down", tmp_path, PATH="").returncode == 0  # the child is a zombie, which counts as stopped
        assert state_and_start(process.pid)[0] == ("S" if offset else "Z")
    finally:
        process.kill()
        process.wait()


def test_missing_programs_are_named_with_the_command_that_installs_them(tmp_path):
    result = call("up", tmp_path, PATH="")
    assert result.returncode == 1
    assert "sinfo" in result.stderr
    assert result.stderr.count("\n") == 1
    assert "apt-get install --no-install-recommends slurm-wlm munge slurmdbd mariadb-server" in result.stderr


@needs_slurm
def test_a_folder_with_other_files_is_not_touched(tmp_path):
    (tmp_path / ".gitignore").write_text("mine")
    result = call("up", tmp_path, "--no-accounting")
    assert result.returncode == 1
    assert "Not empty" in result.stderr
    assert (tmp_path / ".gitignore").read_text() == "mine"
