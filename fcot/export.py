"""``fcot export RUN FILE``: write the reasoning samples of a run in the formats that other training programs read."""

from __future__ import annotations

import argparse
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fcot.base.entry import entry_point
from fcot.base.errors import FcotError
from fcot.base.files import read_json, read_jsonl, replacing, write_folder, write_jsonl
from fcot.base.locations import locate
from fcot.base.records import CuratedCompletion, from_row
from fcot.base.run_folder import RunDirectory
from fcot.methods.table import METHODS
from fcot.prompts.answers import AnswerRule
from fcot.prompts.student import FormatKind, StudentFormat
from fcot.reporting.curated import curated_file
from fcot.reporting.finished import readable
from fcot.tasks.table import TASKS
from fcot.teacher.config import terms_of

Row = dict[str, Any]


@dataclass(frozen=True)
class _Verdict(CuratedCompletion):
    """Curation's verdict on a completion.

    Attributes:
        round: The round that requested the completion, counted from 1; None in a run without rounds.
    """

    round: int | None = None


FORMATS = {
    "messages": "chat messages: question, then rationale and answer",
    "prompt_completion": "prompt and completion as texts, for base models",
    "preference": "pairs of a kept and a rejected completion of the same problem, as chat messages and as texts",
    "datasets": "the plain columns question, rationale and answer, in a folder that datasets.load_from_disk opens",
}
# A completion with one of these reasons is not worse than a kept one: it repeats it, or was left out for other reasons.
_NOT_WORSE = ("duplicate_rationale", "undersampled", "not_chosen", "special_token")
_EPILOG = """FILE ends with .jsonl (JSON Lines) or .parquet. With --format datasets it is a folder.

Each row also has: split (train or validation), sample_index, completion_index, id (where the data has ids), round (of
tailored learning, whose rounds count their completions anew), task, teacher, terms (of use).
Test problems are never exported.

  fcot export outputs/runs/<run> samples.jsonl --format messages
  fcot export outputs/runs/<run> pairs.parquet --format preference
"""


@entry_point
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point, with the exit codes of :func:`fcot.base.entry.entry_point`."""
    parser = argparse.ArgumentParser(
        prog="fcot export", description="Write the kept completions of a run as training data for other programs.", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run that has curated: outputs/runs/<run>")
    parser.add_argument("file", type=Path, metavar="FILE", help="what to write; an existing FILE is replaced")
    formats = "; ".join(f"{name}: {text}" for name, text in FORMATS.items())
    parser.add_argument("--format", choices=tuple(FORMATS), default="messages", help=f"{formats}. Default: messages")
    options = parser.parse_args(arguments)
    print(export(locate(options.run), options.file, options.format))


def export(folder: Path, file: Path, format_name: str) -> str:
    """Export a run's reasoning samples.

    Args:
        folder: The run's folder.
        file: A name ending with ``.jsonl`` or ``.parquet``, or for ``datasets`` a folder.
        format_name: A key of :data:`FORMATS`.

    Returns:
        What was written, in one line.

    Raises:
        FcotError: The folder is not that of a run that has curated, the name does not fit the format, or there is nothing to export.
    """
    write = _writer(file, format_name)
    directory = RunDirectory(folder)
    curated = _curated(directory)
    with readable(directory.config):
        config = OmegaConf.load(directory.config)
    assert isinstance(config, DictConfig)
    with readable(curated):
        completions = _completions(curated, directory)
        common = _common(directory, config)
        splits = _splits(directory)
        rule = _rule(config)
    rows = [
        row | common | {"split": splits[row["sample_index"]]}
        for row in _rows(format_name, completions, METHODS[config.method.name].formats, rule) if row["sample_index"] in splits
    ]  # fmt: skip
    if not rows:
        raise FcotError(f"{folder}: {_why_nothing(completions, format_name)}")
    unused = [name for name in ("id", "round") if not any(row[name] for row in rows)]  # a column of nulls has no type
    rows = [{name: value for name, value in row.items() if name not in unused} for row in rows]
    write(rows)
    return f"{file}: {_summary(rows, format_name)}{_respelled(rows, rule) if format_name == 'preference' else ''}"


def _curated(directory: RunDirectory) -> Path:
    """The verdicts on a run's completions.

    Raises:
        FcotError: The folder is not that of a run that has curated.
    """
    if (path := curated_file(directory)) is not None:
        return path
    if (directory.path / "plan.json").exists():
        raise FcotError(f"{directory.path}: a sweep; name one of its runs (fcot sweep status {directory.path} lists them)")
    if not directory.config.exists():
        problem = "not a run's folder: it has no config.yaml" if directory.path.is_dir() else "no such folder"
        raise FcotError(f"{directory.path}: {problem}; name a run, such as outputs/runs/<run>")
    raise FcotError(f"{directory.path}: the run has no curated.jsonl; its method uses no teacher, or it stopped before curation")


def _completions(curated: Path, directory: RunDirectory) -> list[_Verdict]:
    """All verdicts, of a run that stopped between rounds those of all its rounds.

    Files of earlier versions have no questions: these are taken from the run's data.

    Raises:
        FcotError: Questions are missing, and the data cannot be loaded on this machine.
    """
    if curated == directory.curated:
        rows = list(read_jsonl(curated))
    else:
        rounds = sorted((int(path.parent.name.partition("_")[2]), path) for path in directory.path.glob("round_*/curated.jsonl"))
        rows = [{"round": number} | row for number, path in rounds for row in read_jsonl(path)]
    completions = [from_row(_Verdict, row) for row in rows]
    if all(completion.question for completion in completions):
        return completions
    from dataclasses import replace

    from fcot.runs.recorded import problems_of

    try:
        questions = {problem.sample_index: problem.question for problem in problems_of(directory)}
        return [replace(row, question=row.question or questions[row.sample_index]) for row in completions]
    except (FcotError, KeyError) as error:
        raise FcotError(f"{curated} has no questions (an earlier version wrote it), and the run's data cannot be read: {error}") from error


def _splits(directory: RunDirectory) -> dict[int, str]:
    """The split, ``train`` or ``validation``, by sample index. Test problems are left out."""
    with readable(directory.split):
        split = read_json(directory.split)
        test = set(split["test"])
        return {index: name for name in ("validation", "train") for index in split[name] if index not in test}


def _common(directory: RunDirectory, config: DictConfig) -> Row:
    """The columns that all rows share: task, teacher, and the terms of use of its rationales."""
    teacher = config.teacher.get("model_id") or config.teacher.get("model") or config.teacher.name
    if directory.metrics.exists():
        with contextlib.suppress(OSError, ValueError):
            teacher = read_json(directory.metrics).get("teacher") or teacher
    return {"task": config.dataset.name, "teacher": teacher, "terms": terms_of(config.teacher.name).format(teacher=teacher)}


def _rule(config: DictConfig) -> AnswerRule:
    """The rule that reads the answers of the run's data."""
    dataset = config.dataset
    return AnswerRule(dataset.answer_type, dataset.get("choices", "")) if "answer_type" in dataset else TASKS[dataset.name].rule


# --- rows -------------------------------------------------------------------------------------------------------------


def _rows(
    format_name: str, completions: Sequence[_Verdict], formats: Mapping[FormatKind, StudentFormat], rule: AnswerRule
) -> Iterator[Row]:
    """The rows of a format (:data:`FORMATS`), in the student format of the run's method."""
    if format_name == "messages":
        return _messages(completions, formats["chat"])
    if format_name == "prompt_completion":
        return _prompt_completion(completions, formats["decoder"])
    return _preference(completions, formats["chat"], rule) if format_name == "preference" else _plain(completions)


def _plain(completions: Iterable[_Verdict]) -> Iterator[Row]:
    """Question, rationale, answer and ids of each kept completion."""
    for row in completions:
        if row.kept:
            yield {
                "question": row.question, "rationale": row.rationale, "answer": row.answer, "sample_index": row.sample_index,
                "completion_index": row.completion_index, "id": row.id, "round": row.round,
            }  # fmt: skip


def _messages(completions: Iterable[_Verdict], chat: StudentFormat) -> Iterator[Row]:
    for row in _plain(completions):
        turns = _turn("user", chat.prompt(row["question"])), _turn("assistant", chat.completion(row["answer"], row["rationale"]))
        yield {"messages": list(turns)} | row


def _prompt_completion(completions: Iterable[_Verdict], text: StudentFormat) -> Iterator[Row]:
    for row in _plain(completions):
        yield {"prompt": text.prompt(row["question"]), "completion": text.completion(row["answer"], row["rationale"])} | row


def _preference(completions: Iterable[_Verdict], chat: StudentFormat, rule: AnswerRule) -> Iterator[Row]:
    """Pairs of a kept and a rejected completion. Each completion is in one pair at most, so no problem outweighs the others.

    Both texts end with the value of their answer. The data's own spelling, such as ``$12.00`` for 12, would be in the chosen texts only,
    and a preference loss would learn it.
    """
    for (number, index), group in groupby(completions, key=lambda row: (row.round, row.sample_index)):
        of_problem = list(group)
        kept = [row for row in of_problem if row.kept]
        texts = {_text(chat, row, rule) for row in kept}
        worse = [
            row for row in of_problem
            if not row.kept and row.rationale and row.reason not in _NOT_WORSE and _text(chat, row, rule) not in texts
        ]  # fmt: skip
        for chosen, rejected in zip(kept, worse, strict=False):
            prompt, better, worse_text = chat.prompt(chosen.question), _text(chat, chosen, rule), _text(chat, rejected, rule)
            yield {
                "prompt": [_turn("user", prompt)], "chosen": [_turn("assistant", better)], "rejected": [_turn("assistant", worse_text)],
                "prompt_text": prompt, "chosen_text": better, "rejected_text": worse_text,
                "question": chosen.question, "rationale": chosen.rationale, "answer": chosen.answer,
                "sample_index": index, "completion_index": chosen.completion_index, "id": chosen.id, "round": number,
                "rejected_completion_index": rejected.completion_index, "rejected_reason": rejected.reason,
            }  # fmt: skip


def _text(form: StudentFormat, row: _Verdict, rule: AnswerRule) -> str:
    """The completion with its answer's value. A rejected one has the teacher's own answer, or none if it could not be read."""
    answer = rule.gold(row.answer) or row.answer if row.kept else row.prediction
    return row.rationale if answer is None else form.completion(answer, row.rationale)


def _turn(role: str, content: str) -> Row:
    return {"role": role, "content": content}


def _why_nothing(completions: Sequence[_Verdict], format_name: str) -> str:
    kept = sum(row.kept for row in completions)
    if format_name == "preference" and kept:
        return f"no problem has both a kept and a rejected completion ({kept:,} of {len(completions):,} are kept); a larger diversity helps"
    return f"curation kept none of the {len(completions):,} completions"


def _summary(rows: Sequence[Row], format_name: str) -> str:
    unit = "pairs" if format_name == "preference" else "reasoning samples"
    splits = Counter(row["split"] for row in rows)
    parts = ", ".join(f"{n:,} {name}" for name, n in splits.items())
    return f"{len(rows):,} {unit} of {len({row['sample_index'] for row in rows}):,} problems ({parts}), format {format_name}"


def _respelled(rows: Sequence[Row], rule: AnswerRule) -> str:
    """How many chosen texts end with an answer that the data write otherwise; empty if none does."""
    answers = [(row["answer"], rule.gold(row["answer"]) or row["answer"]) for row in rows]
    respelled = [(written, value) for written, value in answers if written != value]
    if not respelled:
        return ""
    written, value = respelled[0]
    return (
        f"\nin {len(respelled):,} of {len(rows):,} pairs the chosen text ends with the answer's value, as all rejected texts do, instead "
        f"of the data's spelling ({value} for {written!r})"
    )


# --- files ------------------------------------------------------------------------------------------------------------


def _writer(file: Path, format_name: str) -> Callable[[Sequence[Row]], None]:
    """The function that writes rows to the file.

    Raises:
        FcotError: The name does not fit the format.
    """
    if format_name == "datasets":
        if file.suffix in (".jsonl", ".parquet") or file.is_file():
            raise FcotError(f"{file}: --format datasets writes a folder; for a file choose --format messages")
        return lambda rows: _write_datasets(file, rows)
    if file.is_dir():
        raise FcotError(f"{file}: a folder; name a file that ends with .jsonl or .parquet, or choose --format datasets")
    if file.suffix == ".jsonl":
        return lambda rows: write_jsonl(file, rows)
    if file.suffix == ".parquet":
        return lambda rows: _write_parquet(file, rows)
    raise FcotError(f"{file}: the name must end with .jsonl or .parquet")


def _write_parquet(file: Path, rows: Sequence[Row]) -> None:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    with replacing(file) as temporary:
        Dataset.from_list(list(rows)).to_parquet(temporary)


def _write_datasets(folder: Path, rows: Sequence[Row]) -> None:
    """Write a ``DatasetDict`` with a data set for each split that has rows.

    Raises:
        FcotError: The folder exists and is no data set of ``datasets``.
    """
    from datasets import Dataset, DatasetDict, disable_progress_bars

    if folder.exists() and any(folder.iterdir()) and not (folder / "dataset_dict.json").exists():
        raise FcotError(f"{folder}: the folder has other files; name a new folder")
    disable_progress_bars()
    splits = {name: [row for row in rows if row["split"] == name] for name in ("train", "validation")}
    data = DatasetDict({name: Dataset.from_list(of_split) for name, of_split in splits.items() if of_split})
    write_folder(folder, lambda temporary: data.save_to_disk(temporary))


if __name__ == "__main__":
    main()
