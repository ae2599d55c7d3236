"""Examines data before anything is paid: what is wrong with its rows, and what may be wrong with its problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fcot.base.records import Problem
from fcot.prompts.answer_types import ANSWER_TYPES
from fcot.tasks.answers import NO_ANSWER, expected
from fcot.tasks.decimals import COMMA, POINT
from fcot.tasks.hints import unread_yes_no
from fcot.tasks.leaks import near_duplicates
from fcot.tasks.loaders import Data, listed
from fcot.tasks.splits import Split, folded
from fcot.tasks.table import Task

UNLABELLED = "A finished student answers questions without gold answers: fcot predict STUDENT FILE."
_SHOWN_FAULTS = 50  # in a report; a run's message shows fewer
_SHOWN = 3  # examples in a note
_SHOWN_DOUBTED = 5  # faults in a run's message if most rows have the same one, that of a wrong answer type


@dataclass(frozen=True)
class DataReport:
    """What a check of data found.

    Attributes:
        source: The file, folder or hub id.
        format: What was read, in words.
        n_rows: Number of rows.
        columns: The columns that are read, by their meaning (``question``, ``answer``, ``index``...).
        unread: The other columns.
        answer_type: ``number``, ``choice``, ``yes_no`` or ``text``.
        choices: The letters of ``choice``; empty for other types.
        guessed: The overrides that were guessed from the data, such as ``dataset.answer_type=number``.
        answers: Sentences on how the answers are written and read.
        faults: A sentence for each fault of a row, which begins with the row's place.
        remedies: What to do about them.
        n_faulty: Number of rows with a fault.
        skipped: Whether a run leaves these rows out, instead of ending with an error.
        notes: Sentences on what may be wrong, although a run can use the data.
        split: Number of train, validation and test problems; empty if there is no split.
        split_by: The option that makes the split.
        tokens: Sentences on the lengths for a student; empty if no student was chosen.
        command: A command that uses the data.
    """

    source: str
    format: str
    n_rows: int
    columns: Mapping[str, str]
    unread: Sequence[str]
    answer_type: str
    choices: str = ""
    guessed: Sequence[str] = ()
    answers: Sequence[str] = ()
    faults: Sequence[str] = ()
    remedies: Sequence[str] = ()
    n_faulty: int = 0
    skipped: bool = False
    notes: Sequence[str] = ()
    split: Mapping[str, int] = field(default_factory=dict)
    split_by: str = ""
    tokens: Sequence[str] = ()
    command: str = ""

    @property
    def usable(self) -> bool:
        """Whether a run can use the data as it is."""
        return bool(self.split) and (self.skipped or not self.faults)

    def to_text(self) -> str:
        """The report as one page of text."""
        columns = ", ".join(f"{meaning} {name!r}" for meaning, name in self.columns.items())
        columns += f"; not read: {', '.join(map(repr, self.unread))}" if self.unread else ""
        kind = self.answer_type + (f" {self.choices}" if self.choices else "")
        lines = [f"{self.source}: {_n(self.n_rows, 'row')} ({self.format})", *_entry("columns", [columns, *self._other_columns()])]
        lines += _entry("answers", [kind + self._other_types(), *self.answers])
        if self.faults:
            verdict = "left out (dataset.on_invalid=skip)" if self.skipped else "a run ends with this message"
            lines += _entry("faults", [f"{self.n_faulty:,} of {self.n_rows:,} rows; {verdict}" if self.n_faulty else "there is no split"])
            lines += [f"  {line}" for line in listed(self.faults, _SHOWN_FAULTS).split("\n")]
            lines += [f"  {line}" for line in self.remedies if not self.skipped]
        lines += _entry("notes", self.notes)
        if self.split:
            lines += _entry("split", [f"{', '.join(f'{n:,} {part}' for part, n in self.split.items())} ({self.split_by})"])
        lines += _entry("tokens", self.tokens)
        return "\n".join([*lines, *_entry("next", [self.command] if self.usable else [])])

    def _other_columns(self) -> list[str]:
        named = [override for override in self.guessed if "_column" in override]
        return [f"guessed: {' '.join(named)}"] if named else []

    def _other_types(self) -> str:
        if not any(override.startswith("dataset.answer_type=") for override in self.guessed):
            return ""
        others = "|".join(name for name in ANSWER_TYPES if name != self.answer_type)
        return f" (guessed; otherwise dataset.answer_type={others})"


def _entry(title: str, sentences: Sequence[str]) -> list[str]:
    """Sentences below each other, the first one behind a title."""
    return [f"{title if number == 0 else '':<9}{sentence}" for number, sentence in enumerate(sentences)]


# --- what may be wrong --------------------------------------------------------------------------------------------


def remedies(data: Data) -> list[str]:
    """What to do about the faulty rows of own data, in sentences."""
    sentences = ["Correct these rows, or leave them out: dataset.on_invalid=skip."]
    answers = data.answers
    if any(fault.endswith(NO_ANSWER) for fault in data.faults):
        sentences.append("Rows without an answer can stay with curation=vote, which takes the answer that most completions give.")
        if answers.n_missing == data.n_rows:
            sentences.append(UNLABELLED)
    if answers.n_unread_otherwise:
        other = COMMA if answers.decimal == POINT else POINT
        n = answers.n_unread_otherwise
        sentences.append(f"{n:,} of these would be numbers with a decimal {other}: dataset.decimal={other}, if all answers have it.")
    return sentences


def type_doubts(data: Data, task: Task) -> list[str]:
    """A sentence that doubts the answer type of own data, if most answers are not of this type."""
    n = data.answers.n_unread - data.answers.n_unread_otherwise
    if n <= max(1, data.n_rows // 2):
        return []
    title, unread = f"{n:,} of {data.n_rows:,} gold answers are not ", data.answers.unread
    if task.rule.answer_type == "yes_no" and len(unread) <= _SHOWN:
        return [f"{title}yes or no{unread_yes_no(unread)}"]
    types = ", ".join(name + (" (with dataset.choices=ABCD)" if name == "choice" else "") for name in ANSWER_TYPES)
    return [
        f"{title}{expected(task.rule)}: is dataset.answer_type={task.rule.answer_type} right? Choose from {types}; text takes any answer."
    ]


def fault_message(data: Data, task: Task, own: bool) -> str:
    """The message of a run about faulty rows.

    Args:
        data: The data.
        task: The task, with the run's answer rule.
        own: Whether the data is the user's own, with options for its faulty rows.
    """
    doubts, advice = (type_doubts(data, task), remedies(data)) if own else ([], [])
    return "\n".join([*doubts, listed(data.faults, _SHOWN_DOUBTED) if doubts else listed(data.faults), *advice])


def skipped_note(data: Data, option: str = "dataset.on_invalid") -> list[str]:
    """A note on the rows that ``dataset.on_invalid=skip``, or another command's ``option``, leaves out."""
    if not data.n_faulty:
        return []
    verb = "is" if data.n_faulty == 1 else "are"
    return [f"{data.n_faulty:,} of {data.n_rows:,} rows {verb} left out ({option}=skip): {_first(data.faults)}"]


def problem_notes(data: Data, task: Task) -> list[str]:
    """Notes on the problems themselves: decimal marks, questions with two gold answers, repeated questions."""
    return [*_decimal_notes(data), *_repeated(data, task)]


def spelling_notes(data: Data, compared_by: str | None = None) -> list[str]:
    """Notes on own gold answers that are not written as their values: the student learns their spelling.

    Args:
        data: The data, as the run reads them.
        compared_by: An option that compares kept completions, which end with gold answers, with rejected ones, which end with values; None
            without one.
    """
    respelled = [spelling for spelling in data.answers.spellings if spelling.learned != spelling.value]
    n_spellings = len(respelled) + (data.answers.n_plain > 0)
    notes = []
    if n_spellings > 1:
        examples = ", ".join(f"{spelling.learned!r} for {spelling.value}" for spelling in respelled[:_SHOWN])
        notes.append(
            f"the answers have {n_spellings} spellings, and the student learns all of them ({examples}): dataset.normalize_answers=true "
            "trains on the values instead"
        )
    if respelled and compared_by is not None:
        first = respelled[0]
        notes.append(
            f"{compared_by} compares kept completions, which end with answers as the data write them ({first.learned!r}), with rejected "
            f"ones, which end with values ({first.value}): it would learn the spelling. Add dataset.normalize_answers=true"
        )
    return notes


def split_notes(data: Data, split: Split) -> list[str]:
    """Notes on test problems that resemble train problems. It takes a minute for a million rows."""
    problems = {problem.sample_index: problem for problem in data.problems}
    trained = {_key(problems[index]) for index in (*split.train, *split.validation)}
    shared = [index for index in split.test if _key(problems[index]) in trained]
    counts = near_duplicates(problems, split)
    numbers = counts["test_questions_in_train_but_for_numbers"]
    templates = counts["test_questions_of_a_train_template"]
    notes = []
    if shared:
        notes.append(f"{_n(len(shared), 'test problem')} also in train or validation: {_places(data, shared)}")
    of_test = f"of {len(split.test):,} test problems"
    if numbers > len(shared):
        notes.append(f"{numbers:,} {of_test} are in train with the same or other numbers")
    if templates > numbers:
        notes.append(f"{templates:,} {of_test} have the wording of a train problem except for names, objects and numbers")
    return notes


def answer_sentences(data: Data, task: Task) -> list[str]:
    """How the answers are written and read: an example of each of the most frequent ways."""
    spellings = data.answers.spellings[:5] if task.rule.answer_type != "text" else ()
    examples = ", ".join(f"{spelling.written!r} as {spelling.value}" for spelling in spellings)
    return [f"read {examples}"] if examples else []


def _decimal_notes(data: Data) -> list[str]:
    answers = data.answers
    other = COMMA if answers.decimal == POINT else POINT
    if answers.undecided:
        example = answers.undecided[0]
        return [
            f"{_n(len(answers.undecided), 'answer')} such as {example!r} can be read in two ways, and no other answer shows which one is "
            f"meant: dataset.decimal={answers.decimal} as now, or dataset.decimal={other}"
        ]
    if answers.detected and answers.decimal == COMMA:
        first = answers.spellings[0]
        return [f"the answers have decimal commas: {first.written!r} is {first.value}; dataset.decimal={other} would read points"]
    return []


def _repeated(data: Data, task: Task) -> list[str]:
    """Notes on questions that are in several rows, with other gold answers and with the same one."""
    first: dict[int, int] = {}  # position among the problems, by the hash of the question
    rows_of: dict[int, list[int]] = {}
    for position, problem in enumerate(data.problems):
        earlier = first.setdefault(_key(problem), position)
        if earlier != position:
            rows_of.setdefault(earlier, [earlier]).append(position)
    contradictory, repeated = [], []
    for rows in rows_of.values():
        problems = [data.problems[position] for position in rows]
        labelled = [problem for problem in problems if problem.labelled]
        if any(not task.rule.same(task.rule.gold(problem.answer), labelled[0].answer) for problem in labelled[1:]):
            cells = " and ".join(f"{data.place(problem.sample_index)} ({data.answer_of(problem)!r})" for problem in labelled[:_SHOWN])
            contradictory.append(cells)
        else:
            repeated += problems[1:]
    notes = []
    if contradictory:
        title = f"{_n(len(contradictory), 'question')} with different gold answers, of which at most one is right"
        notes.append(f"{title}: {_first(contradictory)}")
    if repeated:
        indices = [problem.sample_index for problem in repeated]
        notes.append(f"{_n(len(repeated), 'row')} with the question and answer of an earlier row: {_places(data, indices)}")
    return notes


def _key(problem: Problem) -> int:
    return hash(folded(problem.question))


def _n(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _first(sentences: Sequence[str]) -> str:
    """The first of some sentences, and how many more there are."""
    return "; ".join(sentences[:_SHOWN]) + (f"; and {len(sentences) - _SHOWN:,} more" if len(sentences) > _SHOWN else "")


def _places(data: Data, indices: Sequence[int]) -> str:
    shown = ", ".join(data.place(index) for index in indices[:_SHOWN])
    return shown + (f" and {len(indices) - _SHOWN:,} more" if len(indices) > _SHOWN else "")
