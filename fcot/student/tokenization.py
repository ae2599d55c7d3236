"""Turns the prompts and completions of a student into token ids.

A *row* is one training sample: prompt ids and completion ids, the latter ending with the end-of-sequence token.
"""

from __future__ import annotations

import json
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fcot.base.console import say
from fcot.base.files import TEMPORARY, exclusive, replacing
from fcot.decoding.encoding import encoder_of
from fcot.prompts.student import StudentFormat
from fcot.prompts.teacher import Text
from fcot.student.loading import Student

_BATCH = 4096  # samples per call of the tokenizer, which spreads them over all processors
_SCHEMA = pa.schema({"prompt": pa.list_(pa.int32()), "completion": pa.list_(pa.int32()), "demonstrations": pa.int32()})

QuestionAndCompletion = tuple[str, str | None]  # question and completion; None: the question alone


@dataclass(frozen=True)
class TokenizedSample:
    """Token ids of one sample.

    Attributes:
        prompt: Token ids of the prompt.
        completion: Token ids of the completion; empty for a prompt alone.
        demonstrations: How many tokens at the start of the prompt belong to its demonstrations.
    """

    prompt: Sequence[int]
    completion: Sequence[int]
    demonstrations: int = 0


class Rows(Sequence[TokenizedSample]):
    """Tokenized samples with their lengths.

    Attributes:
        lengths: Tokens of prompt and completion, (n, 2).
        demonstrations: Tokens of each prompt that belong to its demonstrations, (n,).
    """

    lengths: NDArray[np.int64]
    demonstrations: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        return self._row(range(len(self))[index])  # also from the end

    @abstractmethod
    def _row(self, position: int) -> TokenizedSample:
        """The row at a position, which is not negative."""


class Tokenized(Rows):
    """The rows of a list of samples, in the same order, in flat arrays (memory-mapped if they come from a file).

    Attributes:
        table: Columns ``prompt`` and ``completion``, lists of ids, and ``demonstrations``.
        cut_prompts: Prompts over the limit; their beginning was cut.
        cut_completions: Completions over the limit; their end was cut, the end-of-sequence token included.
        unknown_share: Share of unknown tokens among all tokens: text that the tokenizer cannot represent.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._columns = [_flat(table.column(name)) for name in ("prompt", "completion")]
        self.lengths = np.stack([np.diff(offsets) for _, offsets in self._columns], axis=1).astype(np.int64)
        self.demonstrations = table.column("demonstrations").to_numpy().astype(np.int64)
        counts = json.loads((table.schema.metadata or {}).get(b"fcot", b"{}"))
        self.cut_prompts: int = counts.get("cut_prompts", 0)
        self.cut_completions: int = counts.get("cut_completions", 0)
        self.unknown_share: float = counts.get("unknown", 0) / max(1, int(self.lengths.sum()))

    def _row(self, position: int) -> TokenizedSample:
        prompt, completion = (values[offsets[position] : offsets[position + 1]].tolist() for values, offsets in self._columns)
        return TokenizedSample(prompt, completion, int(self.demonstrations[position]))


def _flat(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The values of a list column, and the offsets where its lists begin and end."""
    lists = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return lists.values.to_numpy(), lists.offsets.to_numpy()


def tokenize(
    student: Student, form: StudentFormat, samples: Sequence[QuestionAndCompletion], *, max_prompt: int, max_completion: int
) -> Tokenized:
    """Tokenize samples.

    Args:
        student: The student whose tokenizer encodes the texts.
        form: The student's format, which turns questions into prompts.
        samples: Questions and completions; a completion gets the end-of-sequence token.
        max_prompt: Most tokens of a prompt; the beginning of a longer one is cut.
        max_completion: Most tokens of a completion; the end of a longer one is cut.
    """
    counts = {"cut_prompts": 0, "cut_completions": 0, "unknown": 0}
    batches = list(_encode(student, form, samples, max_prompt, max_completion, counts))
    return Tokenized(pa.Table.from_batches(batches, _SCHEMA).replace_schema_metadata({"fcot": json.dumps(counts)}))


def tokenize_once(path: Path, make: Callable[[], Tokenized]) -> Tokenized:
    """Read rows from an Arrow file, and write the file if it is missing: the runs of a sweep share it.

    Args:
        path: The file; its name has a hash of everything that the rows depend on.
        make: Tokenizes the samples; called if the file is missing or damaged.
    """
    if (rows := _read(path)) is not None:
        return rows
    with exclusive(path.with_suffix(".lock"), say):
        if (rows := _read(path)) is None:
            rows = make()
            _write(path, rows.table)
    return rows


def _read(path: Path) -> Tokenized | None:
    """Read the rows of a file; None if the file is missing or damaged."""
    try:
        return Tokenized(pa.ipc.open_file(pa.memory_map(str(path))).read_all())
    except (OSError, pa.ArrowInvalid):
        return None


def _write(path: Path, table: pa.Table) -> None:
    for leftover in path.parent.glob(f"{path.name}{TEMPORARY}-*"):  # of a killed process: only this process has the lock
        leftover.unlink(missing_ok=True)
    with replacing(path) as temporary, pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _encode(
    student: Student,
    form: StudentFormat,
    samples: Sequence[QuestionAndCompletion],
    max_prompt: int,
    max_completion: int,
    counts: dict[str, int],
) -> Iterator[pa.RecordBatch]:
    """Tokenize samples in batches; adds the numbers of cut prompts, cut completions and unknown tokens to ``counts``."""
    tokenizer = student.tokenizer
    unknown = tokenizer.unk_token_id if tokenizer.unk_token_id != tokenizer.eos_token_id else None
    for start in range(0, len(samples), _BATCH):
        questions, completions = zip(*samples[start : start + _BATCH], strict=True)
        prompts, n_shown, cut = encode_questions(student, form, questions, max_prompt)
        counts["cut_prompts"] += cut
        texts = [text for text in completions if text is not None]
        encoded = iter(encoder_of(tokenizer).texts(texts))
        targets = [[] if text is None else [*next(encoded), tokenizer.eos_token_id] for text in completions]
        counts["cut_completions"] += sum(len(ids) > max_completion for ids in targets)
        targets = [ids[:max_completion] for ids in targets]
        if unknown is not None:
            counts["unknown"] += sum(ids.count(unknown) for ids in (*prompts, *targets))
        columns = [pa.array(prompts, pa.list_(pa.int32())), pa.array(targets, pa.list_(pa.int32())), pa.array(n_shown, pa.int32())]
        yield pa.record_batch(columns, schema=_SCHEMA)


def encode_questions(student: Student, form: StudentFormat, questions: Sequence[str], limit: int) -> tuple[list[list[int]], list[int], int]:
    """Tokenize questions as prompts of at most ``limit`` tokens.

    A prompt that is too long loses whole demonstrations, beginning with the first; only then the beginning of the question is cut.

    Returns:
        Token ids of each prompt; for each prompt, how many tokens at its start belong to demonstrations; how many questions were cut.
        Tokens that the tokenizer puts before every text count as demonstration tokens if the prompt has demonstrations.
    """
    bare, cut = encode_prompts(student, [form.without_demonstrations.prompt(question) for question in questions], limit)
    encoded, too_long = list(bare), list(range(len(questions)))
    for n_dropped in range(len(form.demonstrations)):
        shorter = replace(form, demonstrations=form.demonstrations[n_dropped:])
        candidates, _ = encode_prompts(student, [shorter.prompt(questions[position]) for position in too_long], sys.maxsize)
        for position, ids in zip(too_long, candidates, strict=True):
            if len(ids) <= limit:
                encoded[position] = ids
        too_long = [position for position, ids in zip(too_long, candidates, strict=True) if len(ids) > limit]
        if not too_long:
            break
    head = _head(student) if form.demonstrations else 0
    added = [len(ids) - len(bare_ids) for ids, bare_ids in zip(encoded, bare, strict=True)]
    return encoded, [head + n if n else 0 for n in added], cut


def _head(student: Student) -> int:
    """How many tokens precede every text, such as a beginning-of-sequence token or a chat template's header."""
    (first, second), _ = encode_prompts(student, ["a", "7"], sys.maxsize)
    return next((place for place, (left, right) in enumerate(zip(first, second, strict=False)) if left != right), 0)


def encode_prompts(student: Student, texts: Sequence[Text], limit: int) -> tuple[list[list[int]], int]:
    """Tokenize texts as prompts of at most ``limit`` tokens; the beginning of a longer text is cut.

    Nothing else is cut: the end of the text, the token that the tokenizer puts before every text (Llama's), and the tokens of a chat
    template stay. Encoder inputs end with the end-of-sequence token, as T5 was trained. For a student with ``chat``, a text
    is a user's turn in the tokenizer's chat template.

    Returns:
        Token ids of each prompt, and how many texts were cut.
    """
    tokenizer: Any = student.tokenizer
    if student.chat:
        return _encode_turns(tokenizer, texts, limit)
    tail = [tokenizer.eos_token_id] if student.architecture == "encoder_decoder" else []
    head = [] if tail else [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id]
    room = limit - len(head) - len(tail)
    encoded = encoder_of(tokenizer).texts(texts)  # type: ignore[arg-type]
    return [[*head, *ids[max(0, len(ids) - room) :], *tail] for ids in encoded], sum(len(ids) > room for ids in encoded)


def _encode_turns(tokenizer: Any, texts: Sequence[Text], limit: int) -> tuple[list[list[int]], int]:
    """Tokenize turns in the chat template; if they exceed the limit, the user's first turn is cut."""
    turns = [[{"role": "user", "content": text}] if isinstance(text, str) else text for text in texts]

    encoder = encoder_of(tokenizer)
    encoded, cut = encoder.turns(turns), 0
    for index, conversation in enumerate(turns):
        place = next(place for place, turn in enumerate(conversation) if turn["role"] == "user")
        question = encoder.texts([conversation[place]["content"]])[0]
        cut += len(encoded[index]) > limit
        while len(encoded[index]) > limit and question:
            question = question[len(encoded[index]) - limit :]
            shortened = {"role": "user", "content": tokenizer.decode(question)}
            encoded[index] = encoder.turns([[*conversation[:place], shortened, *conversation[place + 1 :]]])[0]
    return encoded, cut
