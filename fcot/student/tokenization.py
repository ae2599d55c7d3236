"""From texts to token ids: the only module besides loading that knows a tokenizer.

A *row* is one training sample: prompt ids and completion ids, the latter ending with the end-of-sequence token.
"""

from __future__ import annotations

import json
import sys
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

_BATCH = 4096  # samples a call of the tokenizer, which spreads them over all processors
_SCHEMA = pa.schema({"prompt": pa.list_(pa.int32()), "completion": pa.list_(pa.int32()), "demonstrations": pa.int32()})

PromptAndCompletion = tuple[str, str | None]  # question and completion; None for a prompt that waits to be answered


@dataclass(frozen=True)
class TokenizedSample:
    """Token ids of one sample; ``completion`` is empty for a prompt that waits to be answered.

    The first ``demonstrations`` tokens of the prompt belong to its demonstrations.
    """

    prompt: Sequence[int]
    completion: Sequence[int]
    demonstrations: int = 0


class Tokenized(Sequence[TokenizedSample]):
    """The rows of some samples, in order, in flat arrays (memory-mapped where they come from a file).

    Attributes:
        table: Columns ``prompt`` and ``completion``, lists of ids, and ``demonstrations``.
        lengths: Tokens of prompt and completion, (n, 2).
        demonstrations: Tokens of each prompt that belong to its demonstrations, (n,).
        cut_prompts: Prompts over the limit; their beginning was cut.
        cut_completions: Completions over the limit; their end was cut, the end-of-sequence token included.
        unknown_share: Share of all tokens that the tokenizer cannot represent.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._columns = [_flat(table.column(name)) for name in ("prompt", "completion")]
        self.lengths: NDArray[np.int64] = np.stack([np.diff(offsets) for _, offsets in self._columns], axis=1).astype(np.int64)
        self.demonstrations: NDArray[np.int64] = table.column("demonstrations").to_numpy().astype(np.int64)
        counts = json.loads((table.schema.metadata or {}).get(b"fcot", b"{}"))
        self.cut_prompts: int = counts.get("cut_prompts", 0)
        self.cut_completions: int = counts.get("cut_completions", 0)
        self.unknown_share: float = counts.get("unknown", 0) / max(1, int(self.lengths.sum()))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # also from the end
        prompt, completion = (values[offsets[index] : offsets[index + 1]].tolist() for values, offsets in self._columns)
        return TokenizedSample(prompt, completion, int(self.demonstrations[index]))


def _flat(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Values and offsets of a list column."""
    lists = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return lists.values.to_numpy(), lists.offsets.to_numpy()


def tokenize(
    student: Student, text_format: StudentFormat, samples: Sequence[PromptAndCompletion], *, max_prompt: int, max_completion: int
) -> Tokenized:
    """Tokenise samples; limits in tokens."""
    counts = {"cut_prompts": 0, "cut_completions": 0, "unknown": 0}
    batches = list(_encode(student, text_format, samples, max_prompt, max_completion, counts))
    return Tokenized(pa.Table.from_batches(batches, _SCHEMA).replace_schema_metadata({"fcot": json.dumps(counts)}))


def tokenize_once(path: Path, make: Callable[[], Tokenized]) -> Tokenized:
    """The rows in an Arrow file, which the first that needs them writes: the runs of a sweep share it.

    Args:
        path: Named after everything that the rows depend on.
        make: Tokenises.
    """
    if (rows := _read(path)) is not None:
        return rows
    with exclusive(path.with_suffix(".lock"), say):
        if (rows := _read(path)) is None:
            rows = make()
            _write(path, rows.table)
    return rows


def _read(path: Path) -> Tokenized | None:
    """What a file holds, None where there is none or it is damaged."""
    try:
        return Tokenized(pa.ipc.open_file(pa.memory_map(str(path))).read_all())
    except (OSError, pa.ArrowInvalid):
        return None


def _write(path: Path, table: pa.Table) -> None:
    for left in path.parent.glob(f"{path.name}{TEMPORARY}-*"):  # by a killed process: this one has the lock
        left.unlink(missing_ok=True)
    with replacing(path) as temporary, pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _encode(
    student: Student,
    text_format: StudentFormat,
    samples: Sequence[PromptAndCompletion],
    max_prompt: int,
    max_completion: int,
    counts: dict[str, int],
) -> Iterator[pa.RecordBatch]:
    """Batches of rows; what is lost on the way is added to ``counts``."""
    tokenizer = student.tokenizer
    unknown = tokenizer.unk_token_id if tokenizer.unk_token_id != tokenizer.eos_token_id else None
    for start in range(0, len(samples), _BATCH):
        questions, completions = zip(*samples[start : start + _BATCH], strict=True)
        prompts, shown, cut = encode_questions(student, text_format, questions, max_prompt)
        counts["cut_prompts"] += cut
        written = [text for text in completions if text is not None]
        encoded = iter(encoder_of(tokenizer).texts(written))
        ends = [[] if text is None else [*next(encoded), tokenizer.eos_token_id] for text in completions]
        counts["cut_completions"] += sum(len(ids) > max_completion for ids in ends)
        ends = [ids[:max_completion] for ids in ends]
        if unknown is not None:
            counts["unknown"] += sum(ids.count(unknown) for ids in (*prompts, *ends))
        columns = [pa.array(prompts, pa.list_(pa.int32())), pa.array(ends, pa.list_(pa.int32())), pa.array(shown, pa.int32())]
        yield pa.record_batch(columns, schema=_SCHEMA)


def encode_questions(
    student: Student, text_format: StudentFormat, questions: Sequence[str], limit: int
) -> tuple[list[list[int]], list[int], int]:
    """Prompt ids of at most ``limit`` tokens each, how many of them belong to demonstrations, and how many questions were cut.

    What a tokenizer puts before every text counts as a demonstration where there are any.
    Where a prompt is too long whole demonstrations are dropped, the first first; only then the question's beginning is cut.
    """
    bare, cut = encode_prompts(student, [text_format.without_demonstrations.prompt(question) for question in questions], limit)
    encoded, waiting = list(bare), list(range(len(questions)))
    for n_dropped in range(len(text_format.demonstrations)):
        shorter = replace(text_format, demonstrations=text_format.demonstrations[n_dropped:])
        tried, _ = encode_prompts(student, [shorter.prompt(questions[position]) for position in waiting], sys.maxsize)
        for position, ids in zip(waiting, tried, strict=True):
            if len(ids) <= limit:
                encoded[position] = ids
        waiting = [position for position, ids in zip(waiting, tried, strict=True) if len(ids) > limit]
        if not waiting:
            break
    head = _head(student) if text_format.demonstrations else 0
    more = [len(ids) - len(alone) for ids, alone in zip(encoded, bare, strict=True)]
    return encoded, [head + n if n else 0 for n in more], cut


def _head(student: Student) -> int:
    """How many tokens stand before every text: a beginning-of-sequence token, a chat template's header."""
    (one, other), _ = encode_prompts(student, ["a", "7"], sys.maxsize)
    return next((place for place, (left, right) in enumerate(zip(one, other, strict=False)) if left != right), 0)


def encode_prompts(student: Student, texts: Sequence[Text], limit: int) -> tuple[list[list[int]], int]:
    """Prompt ids of at most ``limit`` tokens each, and how many had their beginning cut to get there.

    The text's end always stays, and the token that the tokenizer puts before every text (Llama's). Encoder inputs end with
    the end-of-sequence token, as T5 was trained. Students with ``chat`` are asked in their tokenizer's chat template, of
    which nothing is cut: a text is a user's turn.
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
    """Turns in the chat template; where they are over the limit the first one is cut."""
    turns = [[{"role": "user", "content": text}] if isinstance(text, str) else text for text in texts]

    encoder = encoder_of(tokenizer)
    encoded, cut = encoder.turns(turns), 0
    for index, (first, *others) in enumerate(turns):
        question = encoder.texts([first["content"]])[0]
        cut += len(encoded[index]) > limit
        while len(encoded[index]) > limit and question:
            question = question[len(encoded[index]) - limit :]
            encoded[index] = encoder.turns([[{"role": "user", "content": tokenizer.decode(question)}, *others]])[0]
    return encoded, cut
