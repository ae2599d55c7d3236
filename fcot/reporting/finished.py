"""Load finished runs for a report, and find the configuration values in which runs of several commands differ."""

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
from fcot.evaluation.at_k import AtK, ScoredAnswer, at_k
from fcot.methods.table import METHODS
from fcot.tasks.splits import folded

Loaded = tuple[dict[str, Any], dict[int, bool], dict[int, int]]  # metrics; by sample index: whether the answer is right, its tokens
_NEEDED = ("run_id", "task", "student", "method", "diversity", "seed", "accuracy", "n_test", "seconds")
_AGAIN = "to make it again, remove it and the run's DONE.json, and run the run's command"
# Prefixes of keys that change no prediction (see the schemas in ``fcot/config``), or that a report shows in a column of their own.
_IRRELEVANT_KEYS = (
    "seed", "output_dir", "store_dir", "dry_run", "until", "preview", "logger.", "diversity", "dataset.name", "dataset.path",
    "student.name", "method.name", "method.title",
    "trainer.eval_batch_tokens", "trainer.devices", "trainer.nodes", "trainer.strategy", "trainer.checkpoint_every_s", "teacher.batch",
    *(f"{group}.{key}" for group in ("teacher", "student") for key in (
        "base_url", "api_key_env", "headers", "concurrency", "requests_per_minute", "tokens_per_minute", "timeout_s", "max_retries",
        "poll_s", "prices", "max_choices_per_request", "budget_usd",
    )),
)  # fmt: skip


def load(path: Path, varied: Mapping[str, str] | None = None) -> Loaded:
    """Load a run: its metrics and, by sample index, whether it answered each test problem correctly and in how many tokens.

    Args:
        path: The run's ``metrics.json``.
        varied: The values that the run's sweep varied; None if the run belongs to no sweep.

    Raises:
        FcotError: A file is missing or damaged.
    """
    answers, lengths, questions = {}, {}, {}
    predictions = path.with_name("predictions.jsonl")
    with readable(predictions):
        for row in read_jsonl(predictions):
            if not isinstance(row["correct"], bool):
                raise ValueError(f"correct: {row['correct']!r}")
            answers[row["sample_index"]], lengths[row["sample_index"]] = row["correct"], row["n_tokens"]
            if "question" in row:
                questions[row["sample_index"]] = hash(folded(row["question"]))
    with readable(path):
        metrics = read_json(path) | {
            "varied": dict(varied or {}), "swept": tuple(varied or ()), "questions": questions,
            "test_templates": _of_test(path, "test_templates"), "test_calculations": _of_test(path, "test_calculations"),
            "test_at_k": _at_k(RunDirectory(path.parent).samples),
        }  # fmt: skip
        if missing := [name for name in _NEEDED if name not in metrics]:
            raise ValueError(f"it has no {', '.join(missing)}")
        if len(answers) != metrics["n_test"]:
            raise FcotError(f"{predictions} is damaged: it has {len(answers):,} of {metrics['n_test']:,} answers; {_AGAIN}")
        for round_metrics in metrics.get("rounds", ()):
            round_predictions = RunDirectory(path.parent).round(round_metrics["round"]).predictions
            if round_predictions.exists():  # a round's files may be deleted
                round_metrics["answers"] = {row["sample_index"]: bool(row["correct"]) for row in read_jsonl(round_predictions)}
    return metrics, answers, lengths


def _of_test(path: Path, name: str) -> dict[int, Any]:
    """What ``split.json`` records of each test problem under this name; empty for older runs, which did not record it."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        return {int(index): value for index, value in read_json(path.with_name("split.json")).get(name, {}).items()}
    return {}


def _at_k(samples: Path) -> dict[int, AtK]:
    """maj@k and pass@k of each test problem; empty for a run with one answer per problem."""
    if not samples.exists():
        return {}
    with readable(samples):
        answers: dict[int, list[ScoredAnswer]] = {}
        for row in read_jsonl(samples):
            answers.setdefault(row["sample_index"], []).append((row["prediction"], row["correct"]))
        return {index: at_k(of_problem) for index, of_problem in answers.items()}


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an error while reading a file into a message that names the file.

    Raises:
        FcotError: The file is missing or damaged.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, YAMLError, OmegaConfBaseException) as error:
        damage = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
        raise FcotError(f"{path} {damage}; {_AGAIN}") from error


def command_of(directory: RunDirectory) -> str:
    """The command that repeats a run, from the comment above its configuration; empty if it was not recorded.

    Raises:
        OSError: The configuration cannot be read.
    """
    with directory.config.open(encoding="utf-8", errors="replace", newline="") as file:
        comment = re.match(rf"(?:# [^{LINE_ENDS}]*(?:\r\n|[{LINE_ENDS}]))*", file.read())
    assert comment is not None
    command = re.sub(rf"(^|[{LINE_ENDS}])# ", r"\1", comment[0]).removesuffix("\n")
    return command if command.startswith("python -m fcot.run") else ""


def distinguish(loaded: Sequence[Loaded], paths: Mapping[str, Path]) -> None:
    """Set as varied the configuration values in which runs of the same task, student and method differ, except D and the seed.

    A key that varies in any run is set in all runs whose configuration has it, so that each row of a table has a value. Runs of a single
    sweep do not need this: its overrides say what was varied.

    Args:
        loaded: The runs; ``varied`` in their metrics is changed.
        paths: The runs' folders by run id.
    """
    by_id = {metrics["run_id"]: metrics for metrics, *_ in loaded}
    configs = {metrics["run_id"]: _configuration(paths[metrics["run_id"]]) for metrics, *_ in loaded}
    cells: dict[tuple[Any, ...], list[str]] = {}
    for metrics, *_ in loaded:
        cell = (metrics["task"], metrics["student"], metrics["method"], metrics.get("method_title"))
        cells.setdefault(cell, []).append(metrics["run_id"])
    keys = dict.fromkeys(key for metrics, *_ in loaded for key in metrics["varied"])
    for members in cells.values():
        differing = _differing([configs[run_id] for run_id in members if configs[run_id]])
        keys |= dict.fromkeys(key for key in differing if _is_used(key, by_id[members[0]]))
        keys |= dict.fromkeys(_data_paths([by_id[run_id] for run_id in members], [configs[run_id] for run_id in members]))
    for metrics, *_ in loaded:
        config = {key: value for key, value in configs[metrics["run_id"]].items() if _is_used(key, metrics)}
        values = {key: metrics["varied"].get(key, config.get(key, config.get(f"{key}.name"))) for key in keys}
        metrics["varied"] = {key: value for key, value in values.items() if value is not None}


def _data_paths(runs: Sequence[Mapping[str, Any]], configs: Sequence[Mapping[str, str]]) -> list[str]:
    """``dataset.path`` if it distinguishes runs: if their files have other questions. Other names of the same data do not count."""
    paths = {(run.get("questions_sha256"), config.get("dataset.path")) for run, config in zip(runs, configs, strict=True)}
    return ["dataset.path"] if min(len(set(column)) for column in zip(*paths, strict=True)) > 1 else []


def _is_used(key: str, metrics: Mapping[str, Any]) -> bool:
    """Whether a run's method uses a configuration value."""
    method, part = METHODS[metrics["method"]], key.partition(".")[0]
    has_teacher = method.uses_rationales or (metrics["student"] == "teacher" and part != "curation")
    uses = {"trainer": method.trains, "teacher": has_teacher, "curation": has_teacher, "prompt": has_teacher or method.prompted}
    return uses.get(part, True)


def _differing(configs: Sequence[Mapping[str, str]]) -> list[str]:
    """Keys in which configurations differ: a choice such as ``curation``, or an option among configurations with the same choice."""
    keys = []
    for key in dict.fromkeys(key for config in configs for key in config if not key.startswith(_IRRELEVANT_KEYS)):
        choice = f"{key.partition('.')[0]}.name"
        values: dict[str | None, set[str | None]] = {}
        for config in configs:
            values.setdefault(config.get(choice) if key != choice else None, set()).add(config.get(key))
        if any(len(of_choice) > 1 for of_choice in values.values()):
            keys.append(key.removesuffix(".name"))
    return keys


def _configuration(folder: Path) -> dict[str, str]:
    """A run's configuration by dotted key; empty if it cannot be read."""
    try:
        return _flat(OmegaConf.load(folder / "config.yaml"))
    except (OSError, ValueError, AttributeError, YAMLError, OmegaConfBaseException):
        return {}


def _flat(config: Any, prefix: str = "") -> dict[str, str]:
    """The values of a nested configuration by dotted key."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, DictConfig) else {f"{prefix}{key}": _word(value)}
    return flat


def _word(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
