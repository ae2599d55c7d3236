"""What finished runs left, as a report reads it, and what tells runs of several commands apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fcot.artifacts import RunDirectory, read_json, read_jsonl
from fcot.errors import FcotError

Loaded = tuple[dict[str, Any], dict[int, bool], dict[int, int]]  # metrics; by sample index: right or wrong, tokens
_NEEDED = ("run_id", "task", "student", "method", "diversity", "seed", "accuracy", "n_test", "seconds")
_AGAIN = "to make it again, remove it and the run's DONE.json, and give the run's command"
_NO_MATTER = (
    "seed", "output_dir", "dry_run", "until", "logger.", "dataset.name", "dataset.path", "student.name", "method.name", "diversity",
    "preview",
)  # fmt: skip


def load(path: Path, varied: Mapping[str, str] | None = None) -> Loaded:
    """A run's metrics; by sample index which test problems it answered rightly, and in how many tokens."""
    answers, lengths = {}, {}
    predictions = path.with_name("predictions.jsonl")
    with readable(predictions):
        for row in read_jsonl(predictions):
            if not isinstance(row["correct"], bool):
                raise ValueError(f"correct: {row['correct']!r}")
            answers[row["sample_index"]], lengths[row["sample_index"]] = row["correct"], row["n_tokens"]
    with readable(path):
        metrics = read_json(path) | {"varied": dict(varied or {})}
        if lacking := [name for name in _NEEDED if name not in metrics]:
            raise ValueError(f"it has no {', '.join(lacking)}")
        if len(answers) != metrics["n_test"]:
            raise FcotError(f"{predictions} is damaged: it has {len(answers):,} of {metrics['n_test']:,} answers; {_AGAIN}")
        for held in metrics.get("rounds", ()):
            of_round = RunDirectory(path.parent).round(held["round"]).predictions
            if of_round.exists():  # a round's files may be deleted
                held["answers"] = {row["sample_index"]: bool(row["correct"]) for row in read_jsonl(of_round)}
    return metrics, answers, lengths


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Tell which file cannot be read."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        damage = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
        raise FcotError(f"{path} {damage}; {_AGAIN}") from error


def command_of(directory: RunDirectory) -> str:
    """The command that makes a run again, which stands above its configuration; empty where it was not kept.

    Raises:
        OSError: The configuration cannot be read.
    """
    with directory.config.open(encoding="utf-8", errors="replace") as file:
        lines = [line.removeprefix("# ").rstrip("\n") for line in takewhile(lambda line: line.startswith("#"), file)]
    command = "\n".join(lines)
    return command if command.startswith("python -m fcot.run") else ""


def tell_apart(loaded: Sequence[Loaded], paths: Mapping[str, Path]) -> None:
    """Enter as varied the configuration values in which runs of a task, student and method differ, beside D and the seed.

    And all that is varied in any run in all of them, as far as their configurations have it: a table or a line has a value for
    each run. Where runs are of one sweep, its overrides say what was varied, and this is not needed.
    """
    configs = {metrics["run_id"]: _configuration(paths[metrics["run_id"]]) for metrics, *_ in loaded}
    cells: dict[tuple[Any, ...], list[str]] = {}
    for metrics, *_ in loaded:
        cells.setdefault((metrics["task"], metrics["student"], metrics["method"]), []).append(metrics["run_id"])
    keys = dict.fromkeys(key for metrics, *_ in loaded for key in metrics["varied"])
    for members in cells.values():
        keys |= dict.fromkeys(_differing([configs[run_id] for run_id in members if configs[run_id]]))
    for metrics, *_ in loaded:
        config = configs[metrics["run_id"]]
        values = {key: metrics["varied"].get(key, config.get(key, config.get(f"{key}.name"))) for key in keys}
        metrics["varied"] = {key: value for key, value in values.items() if value is not None}


def _differing(configs: Sequence[Mapping[str, str]]) -> list[str]:
    """Keys in which configurations differ; a choice such as ``curation`` stands for all that comes with it."""
    keys = dict.fromkeys(key for config in configs for key in config if not key.startswith(_NO_MATTER))
    found = [key for key in keys if len({config.get(key) for config in configs}) > 1]
    chosen = {key.removesuffix(".name") for key in found if key.endswith(".name")}
    return list(dict.fromkeys(key.removesuffix(".name") for key in found if key.endswith(".name") or key.partition(".")[0] not in chosen))


def _configuration(folder: Path) -> dict[str, str]:
    """A run's values by dotted key; empty where they cannot be read."""
    try:
        return _flat(OmegaConf.load(folder / "config.yaml"))
    except (OSError, ValueError, AttributeError, YAMLError, OmegaConfBaseException):
        return {}


def _flat(config: Any, before: str = "") -> dict[str, str]:
    """Values by dotted key."""
    found: dict[str, str] = {}
    for key, value in config.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, DictConfig) else {f"{before}{key}": _word(value)}
    return found


def _word(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
