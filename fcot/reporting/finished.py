"""What finished runs left, as a report reads it, and what tells runs of several commands apart."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fcot.artifacts import RunDirectory, read_json, read_jsonl
from fcot.errors import FcotError

Loaded = tuple[dict[str, Any], dict[int, bool], dict[int, int]]  # metrics; by sample index: right or wrong, tokens
_NEEDED = ("run_id", "task", "student", "method", "diversity", "seed", "accuracy", "n_test", "seconds")
_SHOWN_KEYS = 4  # of those in which runs differ
_NO_MATTER = ("seed", "output_dir", "dry_run", "until", "logger.", "dataset.name", "student.name", "method.name", "diversity", "preview")


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
        raise FcotError(
            f"{path} {damage}; the run's own command makes it again where neither it nor the run's DONE.json is there"
        ) from error


def fill_varied(loaded: Sequence[Loaded], paths: Mapping[str, Path]) -> None:
    """Enter what any of several sweeps varied as varied in all runs: where a sweep did not, the value stands in the configuration."""
    keys = dict.fromkeys(key for metrics, *_ in loaded for key in metrics["varied"])
    for metrics, *_ in loaded:
        varied = metrics["varied"]
        if len(varied) < len(keys):
            config = _configuration(paths[metrics["run_id"]])
            known = {key: config.get(key.lstrip("+"), config.get(f"{key.lstrip('+')}.name")) for key in keys} | varied
            metrics["varied"] = {key: value for key, value in known.items() if value is not None}


def tell_apart(runs: Container[str], paths: Mapping[str, Path], loaded: Sequence[Loaded]) -> None:
    """Enter as varied the configuration values in which those of these runs differ that nothing else tells apart.

    And the same values of the other runs of their task, student and method: a table or a line has them all or none.
    """
    told = {metrics["run_id"]: metrics for metrics, *_ in loaded}
    configs = {run_id: _configuration(paths[run_id]) for run_id in told}
    cells: dict[tuple[Any, ...], list[str]] = {}
    for run_id in told:
        if run_id in runs and configs[run_id]:
            cells.setdefault(tuple(told[run_id][name] for name in ("task", "student", "method", "diversity")), []).append(run_id)
    for (*kind, _), members in cells.items():
        keys = dict.fromkeys(key for run_id in members for key in configs[run_id] if not key.startswith(_NO_MATTER))
        differing = [key for key in keys if len({configs[run_id].get(key) for run_id in members}) > 1]
        names = [key for key in differing if key.endswith(".name")]  # a choice stands for all that comes with it
        chosen = [key for key in differing if key in names or f"{key.partition('.')[0]}.name" not in names][:_SHOWN_KEYS]
        for metrics in told.values():
            config = configs[metrics["run_id"]]
            if config and kind == [metrics[name] for name in ("task", "student", "method")]:
                metrics["varied"] = {key.removesuffix(".name"): config.get(key, "null") for key in chosen} | metrics["varied"]


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
