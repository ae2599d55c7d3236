"""``fcot check FILE``: what is in a data file, what is wrong with it, and how a run would split it. Nothing is paid and nothing written."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import numpy as np

from fcot.base.entry import entry_point, with_help
from fcot.base.errors import ConfigFaults, FcotError
from fcot.base.fields import bound_faults
from fcot.base.values import written
from fcot.config.overrides import explained, prepare
from fcot.config.schema import Config
from fcot.tasks.check import (
    UNLABELLED,
    DataReport,
    answer_sentences,
    problem_notes,
    remedies,
    spelling_notes,
    split_notes,
    type_doubts,
)
from fcot.tasks.guesses import guess_column, guess_rule, is_id_name
from fcot.tasks.hints import LETTERS, hints, option_columns, without_options
from fcot.tasks.loaders import PARTS, SAMPLE_INDEX, Columns, Data, cell_text
from fcot.tasks.reading import read_rows, source_fault
from fcot.tasks.splits import Split
from fcot.tasks.table import TASKS

HELP = """Check data before a run: columns, answer type, faulty rows, contradictions, duplicates, split.

  fcot check mine.csv
  fcot check mine.csv dataset.question_column=Frage dataset.answer_column=Antwort student=flan_t5_base
  fcot check dataset=svamp

FILE is CSV (separated by commas, semicolons, tabs or bars), JSON Lines, JSON, Parquet, a folder that datasets' save_to_disk wrote, or a hub
id owner/name. Takes the same overrides as fcot run. With student=... it measures the lengths in the student's tokens.
Exit code 0 if a run can use the data as it is, 1 if not.
"""
_SAMPLE = 20_000  # rows that decide a guess; problems whose tokens are counted


@entry_point
@with_help(HELP)
def main(words: list[str]) -> None:
    """Entry point. Exit code 1 if a run cannot use the data, else those of :func:`fcot.base.entry.entry_point`."""
    report = check(*parse(words))
    print(report.to_text())
    sys.exit(0 if report.usable else 1)


def parse(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The file and the overrides of a command line.

    Raises:
        FcotError: There are several files, or an option of the command line.
    """
    files = [word for word in words if "=" not in word or source_fault(word) is None]
    if options := [word for word in files if word.startswith("-")]:
        raise FcotError(f"{options[0]}: fcot check takes a file and overrides such as student=flan_t5_base")
    if len(files) > 1:
        raise FcotError(f"{files[1]}: one file at a time")
    return next(iter(files), None), [word for word in words if word not in files]


def check(path: str | None, overrides: Sequence[str] = ()) -> DataReport:
    """Check data.

    Args:
        path: The file, folder or hub id, as own data (``dataset=custom``); None: the overrides choose the data.
        overrides: As for ``fcot run``.

    Raises:
        FcotError: The data cannot be read, a column is missing, or an override is wrong.
    """
    from fcot.runs.run import data_of, task_of
    from fcot.runs.splitting import validation_notes

    config, guessed = _config(path, overrides)
    task, dataset = task_of(config), config.dataset
    try:
        data = data_of(config, task)
    except FcotError as error:
        if dataset.own and dataset.answer_column not in read_rows(dataset.path, keep=(), limit=_SAMPLE).columns:
            raise FcotError(f"{error}\n{UNLABELLED}") from error
        raise
    split, split_by, split_faults = _split(config, data)
    columns = {**(dataset.columns if dataset.own else Columns()).named, "sample index": SAMPLE_INDEX}
    own, unread = dataset.own, [name for name in data.source.columns if name not in columns.values()]
    notes = [*(hints(data, task, dataset.columns) if own else []), *problem_notes(data, task), *(spelling_notes(data) if own else [])]
    notes += _id_notes(dataset, data, unread) if own else []
    notes += [*split_notes(data, split), *validation_notes(config, split)] if split else []
    return DataReport(
        data.source.name, data.source.format, data.n_rows,
        {meaning: name for meaning, name in columns.items() if name in data.source.columns},
        unread, task.rule.answer_type, task.rule.choices, guessed,
        [*(type_doubts(data, task) if own else []), *answer_sentences(data, task)], [*data.faults, *split_faults],
        remedies(data) if data.faults and own else [], data.n_faulty, own and dataset.on_invalid == "skip", notes,
        {part: len(getattr(split, part)) for part in PARTS} if split else {}, split_by,
        _tokens(config, data) if any(word.startswith("student") for word in overrides) else [], _command(config, path, overrides, guessed),
    )  # fmt: skip


def _config(path: str | None, overrides: Sequence[str]) -> tuple[Config, list[str]]:
    """The configuration, and the overrides that were guessed from the data.

    Raises:
        FcotError: An override is wrong, or no data is named.
    """
    from fcot.config.checks import unchecked
    from fcot.sweeps.plan import composer

    chosen = [] if any(word.startswith("dataset=") for word in overrides) else ["dataset=custom"]
    own = [*chosen, f"dataset.path={written(path)}"] if path is not None else []
    with explained(overrides), composer([]) as compose:
        config = unchecked(compose([*own, *prepare(list(overrides))]))
    dataset, guessed = config.dataset, list[str]()
    if dataset.own:
        if not dataset.path:
            raise FcotError("which file? fcot check mine.csv")
        if (fault := source_fault(dataset.path)) is not None:
            raise FcotError(f"{dataset.path}: {fault}")
        if dataset.name == "custom":  # the name that the proposed command sets, for messages
            dataset = replace(dataset, name=_name_for(dataset.path))
        dataset, guessed = _guess(dataset)
        config = replace(config, dataset=dataset)
    groups = {"dataset": dataset, "split_mode": config.split_mode}
    faults = [fault for name, group in groups.items() for fault in (*bound_faults(group, name), *getattr(group, "faults", tuple)())]
    if faults or (faults := list(getattr(dataset, "conflicts", lambda _: ())(config))):
        raise ConfigFaults(faults)
    return config, guessed


def _guess(dataset: Any) -> tuple[Any, list[str]]:
    """The options of own data with those guessed that are not set, and the overrides that set them."""
    names = read_rows(dataset.path, keep=(), limit=_SAMPLE).columns
    options: dict[str, Any] = {}
    for meaning in ("question", "answer"):
        column, taken = getattr(dataset, f"{meaning}_column"), options.values()
        guess = guess_column([name for name in names if name not in taken], meaning) if column == meaning and column not in names else None
        options |= {f"{meaning}_column": guess} if guess else {}
    dataset = replace(dataset, **options)
    if not dataset.answer_type:
        rows = read_rows(dataset.path, keep={dataset.answer_column}, limit=_SAMPLE)
        rule = guess_rule(cell_text(row.get(dataset.answer_column)) or "" for row in rows.values)
        letters = {"choices": rule.choices} if rule.choices else {}
        options |= {"answer_type": rule.answer_type, **letters}
        dataset = replace(dataset, answer_type=rule.answer_type, **letters)
    if columns := _option_columns(dataset, names):
        further: dict[str, Any] = {"option_columns": columns}
        if len(columns) > len(dataset.choices) and "choices" in options:  # the last letter may be no one's answer
            further["choices"] = LETTERS[: len(columns)]
        if len(columns) == len(further.get("choices", dataset.choices)):
            options |= further
            dataset = replace(dataset, **further)
    return dataset, [f"dataset.{name}={written(value)}" for name, value in options.items()]


def _option_columns(dataset: Any, names: Sequence[str]) -> list[str]:
    """The columns that seem to hold the options of a multiple choice; empty if most questions list options, or columns are named."""
    found = option_columns([name for name in names if name not in dataset.columns.named.values()])
    if dataset.answer_type != "choice" or dataset.option_columns or not found:
        return []
    rows = read_rows(dataset.path, keep={dataset.question_column}, limit=_SAMPLE)
    questions = [cell_text(row.get(dataset.question_column)) or "" for row in rows.values]
    return found if without_options(questions) else []


def _id_notes(dataset: Any, data: Data, unread: Sequence[str]) -> list[str]:
    """A note on a column that is not read and has ids, by its name and because every row has another text; not for large files."""
    names = [name for name in unread if is_id_name(name)]
    if dataset.index_column is not None or SAMPLE_INDEX in data.source.columns or not names or data.n_rows > _SAMPLE:
        return []
    rows = read_rows(dataset.path, keep=names).values
    for name in names:
        ids = [cell_text(row.get(name)) for row in rows]
        if all(text and text.strip() for text in ids) and len(set(ids)) == len(ids):
            return [f"the column {name!r} has another text in each row: dataset.index_column={written(name)} writes it into every output"]
    return []


def _split(config: Config, data: Data) -> tuple[Split | None, str, list[str]]:
    """The split, the option that makes it, and why there is none."""
    from fcot.runs.run import task_of
    from fcot.runs.splitting import make_split, split_in_words

    by = split_in_words(config)
    if not data.problems:
        return None, by, []
    try:
        split, _ = make_split(config, task_of(config), {problem.sample_index: problem for problem in data.problems})
    except FcotError as error:
        return None, by, [str(error)]
    return split, by, []


def _tokens(config: Config, data: Data) -> list[str]:
    """Sentences on the lengths of prompts and rationales in the student's tokens, and on what its limits would cut."""
    student = config.student
    if not student.pretrained:
        return [f"student={student.name} has no tokenizer of its own to measure with"]
    from fcot.methods.table import METHODS
    from fcot.student.loading import Student, check_student, load_tokenizer
    from fcot.student.tokenization import encode_prompts

    source = student.path or str(student.hub_id)
    try:
        architecture = check_student(
            source, student.revision, student.max_prompt_tokens, student.max_completion_tokens, chat=student.chat_template
        )
        tokenizer = load_tokenizer(source, student.revision)
    except FcotError as error:
        return [f"not measured: {error}"]
    problems = data.problems[:: 1 + len(data.problems) // _SAMPLE]
    formats = METHODS[config.method.name].formats
    form = formats.get("chat" if student.chat_template else architecture)
    reader = Student(None, tokenizer, architecture, student.chat_template)  # type: ignore[arg-type]  # only the tokenizer is used
    prompts, _ = encode_prompts(reader, [form.prompt(p.question) if form else p.question for p in problems], sys.maxsize)
    sentences = [_lengths("prompts", [len(ids) for ids in prompts], "student.max_prompt_tokens", student.max_prompt_tokens)]
    if rationales := [problem.rationale for problem in problems if problem.rationale]:
        lengths = [len(ids) + 1 for ids in tokenizer(rationales, add_special_tokens=False)["input_ids"]]
        sentences.append(_lengths("rationales", lengths, "student.max_completion_tokens", student.max_completion_tokens))
    longest = int(np.argmax([len(ids) for ids in prompts]))
    sentences[0] += f"; the longest is {data.place(problems[longest].sample_index)}"
    sampled = [f"({len(problems):,} of {len(data.problems):,} problems were measured)"] if len(problems) < len(data.problems) else []
    return [*sentences, *sampled]


def _lengths(what: str, lengths: Sequence[int], option: str, limit: int) -> str:
    cut = sum(length > limit for length in lengths)
    verdict = "cuts none" if not cut else f"cuts {cut:,} of {len(lengths):,}"
    return f"{what}: median {np.median(lengths):.0f} tokens, at most {max(lengths):,}; {option}={limit} {verdict}"


def _command(config: Config, path: str | None, overrides: Sequence[str], guessed: Sequence[str]) -> str:
    """A dry run on the data, which names own data: another name later would mean paying again."""
    words = [*(["dataset=custom", f"dataset.path={written(path)}"] if path is not None else []), *guessed, *overrides]
    if config.dataset.own and not any(word.startswith("dataset.name=") for word in overrides):
        words.insert(1, f"dataset.name={_name_for(config.dataset.path)}")
    teacher = [] if any(word.startswith("teacher=") for word in overrides) else ["teacher=openai", "teacher.model=MODEL"]
    return shlex.join(["fcot", "run", *words, *teacher, "dry_run=true"])


def _name_for(source: str) -> str:
    """A name for own data, from the name of their file, folder or hub repository."""
    name = re.sub(r"[^a-z0-9]+", "_", PurePath(source.partition(":")[0]).stem.lower()).strip("_")
    return name if name and name not in TASKS else f"my_{name or 'data'}"


if __name__ == "__main__":
    main()
