"""``python -m fcot.prefetch``: downloads the models and data sets of a run or sweep, for compute nodes without internet."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fcot.base.console import say
from fcot.base.entry import entry_point
from fcot.base.errors import FcotError
from fcot.config.command_line import arrange
from fcot.config.overrides import explained, prepare

_NOT_READ = ["*/*", "*.msgpack", "*.h5", "*.ot", "*.onnx", "*.gguf", "*.tflite"]  # files that transformers' PyTorch models do not read
HubModel = tuple[str, str | None]  # hub id and revision
HELP = """Download the models and data sets of a run or a sweep from the hub, for compute nodes without internet.

  python -m fcot.prefetch student=flan_t5_base dataset=gsm8k
  python -m fcot.prefetch -m experiment=scaling_diversity student=t5_small,flan_t5_small

Takes the same overrides as fcot.run. No teacher is called and no key is needed. Afterwards the run works with HF_HUB_OFFLINE=1.
"""


@entry_point
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point, with the exit codes of :func:`fcot.base.entry.entry_point`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if {"--help", "-h"} & set(words):
        print(HELP, end="")
        return
    overrides, _ = arrange(words)
    with explained(overrides):
        prefetch(prepare(overrides))


def prefetch(overrides: Sequence[str]) -> None:
    """Download everything that the runs of these overrides read from the hub.

    Raises:
        FcotError: A model or data set cannot be downloaded, or an option that names one is not set.
    """
    from fcot.config.checks import unchecked
    from fcot.runs.run import problems_of, task_of

    models: dict[HubModel, str] = {}
    data: set[tuple[str, str | None]] = set()
    for composed in points(overrides):
        if missing := [key for key in sorted(OmegaConf.missing_keys(composed)) if key.startswith(("student.", "dataset."))]:
            raise FcotError(f"{missing[0]} is not set: {missing[0]}=...")
        config = unchecked(composed)
        models |= dict(_models(config))
        path = getattr(config.dataset, "path", None)
        if (config.dataset.name, path) not in data:
            data.add((config.dataset.name, path))
            say(f"dataset {config.dataset.name}: {len(problems_of(config, task_of(config))):,} problems")
    for (hub_id, revision), option in models.items():
        _fetch(hub_id, revision, option)
    say("everything is downloaded: jobs can run with HF_HUB_OFFLINE=1 (on SLURM: 'hydra.launcher.setup=[export HF_HUB_OFFLINE=1]')")


def points(overrides: Sequence[str]) -> Iterator[DictConfig]:
    """The composed configurations of a command: one for a run; one per job if the command or its experiment is a sweep."""
    from fcot.sweeps.plan import composer, expand, split_searchpath

    searchpath, others = split_searchpath(overrides)
    with composer(searchpath) as compose:
        for job in expand(others, compose)[1]:
            yield compose(job)


def _models(config: Any) -> Iterator[tuple[HubModel, str]]:
    """The hub models that a run loads, each with the option that names a local folder instead."""
    from fcot.methods.table import method_of

    student, teacher = config.student, config.teacher
    if student.pretrained and student.path is None:
        yield (str(student.hub_id), student.revision), "student.path"
    if teacher.local and teacher.path is None and method_of(config).uses_rationales:
        yield (str(teacher.model), teacher.revision), "teacher.path"


def _fetch(hub_id: str, revision: str | None, option: str) -> None:
    from huggingface_hub import HfApi, snapshot_download

    try:
        files = HfApi().list_repo_files(hub_id, revision=revision)
        has_safetensors = any(name.endswith(".safetensors") and "/" not in name for name in files)
        folder = snapshot_download(hub_id, revision=revision, ignore_patterns=[*_NOT_READ, *(["*.bin"] if has_safetensors else [])])
    except Exception as error:  # the hub's client and its libraries raise many types
        reason = str(error).strip().splitlines()[0]
        raise FcotError(f"{hub_id}: cannot be downloaded ({type(error).__name__}: {reason}); use a local copy: {option}=FOLDER") from error
    say(f"model {hub_id}: {folder}")


if __name__ == "__main__":
    main()
