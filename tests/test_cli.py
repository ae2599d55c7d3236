"""The ``fcot`` command."""

from __future__ import annotations

import subprocess

import pytest
import zygote

from fcot import __version__
from fcot.cli import COMMANDS


def fcot(*words: str, module: str = "fcot") -> subprocess.CompletedProcess[str]:
    return zygote.run(["-m", module, *words])


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_runs_its_module(command):
    command_help, module_help = fcot(command, "--help"), fcot("--help", module=f"fcot.{command}")
    assert command_help.returncode == module_help.returncode == 0
    assert command_help.stdout.split("\n\n", 1)[1] == module_help.stdout.split("\n\n", 1)[1]  # argparse's usage names the program


def test_help_lists_the_commands_and_version_prints_the_package_version():
    assert all(f"  {command} " in fcot().stdout for command in COMMANDS)
    assert fcot("--version").stdout == f"fcot {__version__}\n"


@pytest.mark.parametrize(("words", "message"), [
    (["rnu"], "fcot rnu: no such command; did you mean run?"),
    (["student=t5_base"], "an override needs a command before it: fcot run student=t5_base"),
    (["xyz"], "choose from run, check, sweep,"),
])  # fmt: skip
def test_a_wrong_command_is_reported_with_a_hint(words, message):
    result = fcot(*words)
    assert result.returncode == 2
    assert message in result.stderr


def test_fcot_run_and_python_m_fcot_run_make_the_same_run(tmp_path):
    words = ["dataset.n_problems=20", "until=curate", f"output_dir={tmp_path}"]
    command, module = fcot("run", *words), fcot(*words, module="fcot.run")
    assert command.returncode == module.returncode == 0, command.stderr
    assert len(list((tmp_path / "runs").iterdir())) == 1
