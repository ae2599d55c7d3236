"""The README tells the truth: its commands compose, its choices are the choices there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from fcot.config.overrides import prepare
from fcot.config.schema import register_schemas

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^(python -m fcot\.run.*|make \w+)", README, re.MULTILINE)


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("python")])
def test_every_run_command_composes(command):
    register_schemas()
    arguments = [argument for argument in prepare(shlex.split(command)[3:]) if argument not in ("-m", "--help")]
    points = [re.sub(r"=([^=,\[]*),.*$", r"=\1", argument) for argument in arguments]  # the first point of a sweep
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        compose("config", points)


def test_every_make_target_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"make ([\w-]+)", README))
    assert targets >= {"demo", "test", "lint"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_every_choice_is_listed():
    for path in (ROOT / "conf").glob("*/*.yaml"):
        assert path.stem in README, f"{path.parent.name}={path.stem} is not in the README"
