"""Configurations and runs of this process, as the command line would make them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from fcot.base.resources import CONF
from fcot.config.schema import SCHEMAS, register_schemas
from fcot.runs.run import Run
from fcot.sweeps.plan import resolve_job

GROUPS = {"experiment", *(group for group, _ in SCHEMAS)}
PARSER = OverridesParser.create()


@cache
def _composed(choices: tuple[str, ...]) -> DictConfig:
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(choices))


def composed(*overrides: str) -> DictConfig:
    """The configuration of some overrides.

    Choices of groups are composed, which is slow, and shared with later calls; values are set afterwards, as Hydra does.
    """
    choices = tuple(override for override in overrides if override.partition("=")[0] in GROUPS)
    config = _composed(choices).copy()
    for override in PARSER.parse_overrides([override for override in overrides if override not in choices]):
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)  # schemas reject unknown options
    return config


def make_run(output: Path, *overrides: str) -> Run:
    """The resolved run of some overrides, with its files below a folder."""
    return resolve_job(composed(f"output_dir={output}", *overrides))
