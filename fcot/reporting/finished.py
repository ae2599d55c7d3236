"""What finished runs left, as a report reads it, and what tells runs of several commands apart."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fcot.base.errors import FcotError
from fcot.base.files import LINE_ENDS, read_json, read_jsonl
from fcot.base.run_folder import RunDirectory
from fcot.methods.table import METHODS

Loaded = tuple[dict[str, Any], dict[int, bool], dict[int, int]]  # metrics; by sample index: right or wrong, tokens
_NEEDED = ("run_id", "task", "student", "method", "diversity", "seed", "accuracy", "n_test", "seconds")
_AGAIN = "to make it again, remove it and the run's DONE.json, and give the run's command"
# Beginnings of keys that change no prediction, or that a report shows by themselves; ``fcot/config.py`` says which are the former.
_NO_MATTER = (
    "seed", "output_dir", "dry_run", "until", "preview", "logger.", "diversity", "dataset.name", "dataset.path", "student.name",
    "method.name",
    "trainer.eval_batch_tokens", "trainer.devices", "trainer.nodes", "trainer.strategy", "trainer.checkpoint_every_s", "teacher.batch",
    *(f"{who}.{what}" for who in ("teacher", "student") for what in (
        "base_url", "api_key_env", "concurrency", "requests_per_minute", "tokens_per_minute", "timeout_s", "max_retries", "poll_s",
        "prices", "max_choices_per_request", "budget_usd",
    )),
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
        metrics = read_json(path) | {"varied": dict(varied or {}), "swept": tuple(varied or ()), "test_templates": _test_templates(path)}
        if lacking := [name for name in _NEEDED if name not in metrics]:
            raise ValueError(f"it has no {', '.join(lacking)}")
        if len(answers) != metrics["n_test"]:
            raise FcotError(f"{predictions} is damaged: it has {len(answers):,} of {metrics['n_test']:,} answers; {_AGAIN}")
        for held in metrics.get("rounds", ()):
            of_round = RunDirectory(path.parent).round(held["round"]).predictions
            if of_round.exists():  # a round's files may be deleted
                held["answers"] = {row["sample_index"]: bool(row["correct"]) for row in read_jsonl(of_round)}
    return metrics, answers, lengths


def _test_templates(path: Path) -> dict[int, str]:
    """Of the test problems, the template where it is known; empty in older runs, which did not keep it."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        return {int(index): str(name) for index, name in read_json(path.with_name("split.json")).get("test_templates", {}).items()}
    return {}


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Tell which file cannot be read."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, YAMLError, OmegaConfBaseException) as error:
        damage = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
        raise FcotError(f"{path} {damage}; {_AGAIN}") from error


def command_of(directory: RunDirectory) -> str:
    """The command that makes a run again, which stands above its configuration; empty where it was not kept.

    Raises:
        OSError: The configuration cannot be read.
    """
    with directory.config.open(encoding="utf-8", errors="replace", newline="") as file:
        comment = re.match(rf"(?:# [^{LINE_ENDS}]*(?:\r\n|[{LINE_ENDS}]))*", file.read())
    assert comment is not None
    command = re.sub(rf"(^|[{LINE_ENDS}])# ", r"\1", comment[0]).removesuffix("\n")
    return command if command.startswith("python -m fcot.run") else ""


def distinguish(loaded: Sequence[Loaded], paths: Mapping[str, Path]) -> None:
    """Enter as varied the configuration values in which runs of a task, student and method differ, beside D and the seed.

    And all that is varied in any run in all of them, as far as their configurations have it: a table or a line has a value for
    each run. Where runs are of one sweep, its overrides say what was varied, and this is not needed.
    """
    of = {metrics["run_id"]: metrics for metrics, *_ in loaded}
    configs = {metrics["run_id"]: _configuration(paths[metrics["run_id"]]) for metrics, *_ in loaded}
    cells: dict[tuple[Any, ...], list[str]] = {}
    for metrics, *_ in loaded:
        cells.setdefault((metrics["task"], metrics["student"], metrics["method"]), []).append(metrics["run_id"])
    keys = dict.fromkeys(key for metrics, *_ in loaded for key in metrics["varied"])
    for members in cells.values():
        found = _differing([configs[run_id] for run_id in members if configs[run_id]])
        keys |= dict.fromkeys(key for key in found if _counts(key, of[members[0]]))
    for metrics, *_ in loaded:
        config = {key: value for key, value in configs[metrics["run_id"]].items() if _counts(key, metrics)}
        values = {key: metrics["varied"].get(key, config.get(key, config.get(f"{key}.name"))) for key in keys}
        metrics["varied"] = {key: value for key, value in values.items() if value is not None}


def _counts(key: str, metrics: Mapping[str, Any]) -> bool:
    """Whether a run's method has a use for a value."""
    method, part = METHODS[metrics["method"]], key.partition(".")[0]
    asks = method.uses_rationales or (metrics["student"] == "teacher" and part != "curation")
    uses = {"trainer": method.trains, "teacher": asks, "curation": asks, "prompt": asks or method.prompted}
    return uses.get(part, True)


def _differing(configs: Sequence[Mapping[str, str]]) -> list[str]:
    """Keys in which configurations differ: choices such as ``curation``, and what differs among those that chose the same."""
    found = []
    for key in dict.fromkeys(key for config in configs for key in config if not key.startswith(_NO_MATTER)):
        choice = f"{key.partition('.')[0]}.name"
        values: dict[str | None, set[str | None]] = {}
        for config in configs:
            values.setdefault(config.get(choice) if key != choice else None, set()).add(config.get(key))
        if any(len(one) > 1 for one in values.values()):
            found.append(key.removesuffix(".name"))
    return found


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
