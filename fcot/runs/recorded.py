"""What a run's folder records about the run: its configuration and its problems, from the command above ``config.yaml``."""

from __future__ import annotations

import shlex

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fcot.base.errors import FcotError
from fcot.base.records import Problem
from fcot.base.run_folder import RunDirectory
from fcot.config.checks import unchecked
from fcot.config.schema import Config
from fcot.reporting.finished import command_of, readable
from fcot.runs.run import problems_of as load_problems
from fcot.runs.run import task_of
from fcot.sweeps.plan import composer


def config_of(directory: RunDirectory) -> Config:
    """The configuration of a run, composed again from its command.

    Raises:
        FcotError: The command is not recorded, or this version cannot compose it.
    """
    with readable(directory.config):
        command = command_of(directory)
    if not command:
        raise FcotError("the run's config.yaml does not record its command")
    try:
        with composer([]) as compose:
            return unchecked(compose(shlex.split(command)[3:]))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise FcotError(str(error).splitlines()[0]) from error


def problems_of(directory: RunDirectory) -> list[Problem]:
    """All problems of a run's dataset, loaded again: a run's files do not hold all of its questions.

    Raises:
        FcotError: The problems cannot be loaded on this machine.
    """
    config = config_of(directory)
    return load_problems(config, task_of(config))
