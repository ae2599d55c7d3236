"""The pretrained students of ``conf/student``: their size, the memory that they need, and when to choose which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

TOYS = ("tiny_gpt2", "tiny_t5")
BATCH = 32  # samples of an optimizer step with trainer=standard
FEW = 4  # samples at once with trainer.micro_batches=8
FORMAT_TOKENS = 16  # added to a question by a student's format
RATIONALE_TOKENS, ANSWER_TOKENS = 160, 16  # assumed lengths of a completion with and without a rationale
SAMPLE_TOKENS = 128 + RATIONALE_TOKENS  # question and rationale; the assumption of the table
_FIXED = 1.0e9  # bytes of the process with its libraries, and of the logits, which are computed in chunks
_STATE = 16  # bytes per trained parameter: parameter, gradient and AdamW's two moments in float32


@dataclass(frozen=True)
class PretrainedStudent:
    """A choice of ``student``. ``benchmarks/student_memory.py`` measures its numbers.

    Attributes:
        name: The choice.
        parameters: Number of parameters.
        token_bytes: Bytes of activations per token of a micro-batch, in float32.
        advice: When to choose it.
        general: Whether it suits tasks of any kind. The others are there to compare with paper A.
    """

    name: str
    parameters: int
    token_bytes: float
    advice: str
    general: bool = True

    def training_bytes(self, samples: int, tokens: int = SAMPLE_TOKENS) -> float:
        """Bytes to train all parameters in float32.

        Args:
            samples: Samples of a micro-batch.
            tokens: Tokens of a sample, prompt and completion.
        """
        return _STATE * self.parameters + self.token_bytes * samples * tokens + _FIXED

    @property
    def answering_bytes(self) -> float:
        """Bytes to answer one question at a time in float32; bfloat16 needs half of the parameters' share."""
        return 4.0 * self.parameters + _FIXED

    @property
    def size(self) -> str:
        """The number of parameters, such as ``248 M``."""
        return f"{self.parameters / 1e6:.0f} M" if self.parameters < 999.5e6 else f"{self.parameters / 1e9:.1f} B"


PRETRAINED = (
    PretrainedStudent("t5_small", 60_506_624, 535e3, "paper A's smallest T5; a quick trial on a CPU", general=False),
    PretrainedStudent("flan_t5_small", 76_961_152, 691e3, "a first trial of your task on a CPU"),
    PretrainedStudent("gpt2", 124_439_808, 1648e3, "paper A's decoders: to compare with its tables", general=False),
    PretrainedStudent("smollm2_135m", 134_515_008, 1508e3, "a recent decoder for a CPU or a small GPU; English"),
    PretrainedStudent("t5_base", 222_903_552, 1483e3, "paper A's T5: to compare with its tables", general=False),
    PretrainedStudent("flan_t5_base", 247_577_856, 1827e3, "one GPU; tuned on many tasks, so it learns formats from few samples"),
    PretrainedStudent("gpt2_medium", 354_823_168, 4324e3, "paper A's decoders", general=False),
    PretrainedStudent("qwen3_0_6b", 596_049_920, 3738e3, "one GPU; sums, code, many languages, long texts"),
    PretrainedStudent("t5_large", 737_668_096, 3847e3, "paper A's T5", general=False),
    PretrainedStudent("gpt2_large", 774_030_080, 8069e3, "paper A's decoders", general=False),
    PretrainedStudent("flan_t5_large", 783_150_080, 4830e3, "a large GPU; the largest Flan-T5 of this table"),
    PretrainedStudent("llama3_2_1b", 1_235_814_400, 3479e3, "a large GPU; long texts; accept its license at the hub first"),
)  # by size


@dataclass(frozen=True)
class Fit:
    """A student that can be trained in some memory.

    Attributes:
        student: The student.
        micro_batches: The smallest ``trainer.micro_batches`` that fits.
        needed: Bytes that its training needs with it.
    """

    student: PretrainedStudent
    micro_batches: int
    needed: float

    @property
    def overrides(self) -> str:
        """Such as ``student=flan_t5_base trainer.micro_batches=8``."""
        return f"student={self.student.name}" + (f" trainer.micro_batches={self.micro_batches}" if self.micro_batches > 1 else "")


def fitting(free_bytes: float, tokens: int = SAMPLE_TOKENS) -> list[Fit]:
    """The students for any task whose training fits into some memory, by size.

    Args:
        free_bytes: The memory.
        tokens: Tokens of the longest sample.
    """
    fits = []
    for student in PRETRAINED:
        sizes = ((n, student.training_bytes(BATCH // n, tokens)) for n in (1, 2, 4, 8, 16, 32))
        fit = next((Fit(student, n, needed) for n, needed in sizes if needed < free_bytes), None)
        if student.general and fit is not None:
            fits.append(fit)
    return fits


COLUMNS = ("student", "parameters", f"train {BATCH}", f"train {FEW}", "answer", "when to choose it")
ABOUT = (
    f"Memory in GB, float32: to train with {BATCH} samples at once (trainer=standard), to train with {FEW} at once "
    f"(trainer.micro_batches={BATCH // FEW}), to answer one question at a time. Samples of {SAMPLE_TOKENS} tokens."
)


def rows() -> Iterator[Sequence[str]]:
    """The cells of the table of students; memory in GB. Toys come first."""
    yield ", ".join(TOYS), "0.2-0.3 M", "1", "1", "1", "toys, from scratch: generated sums and tests, never a task in real language"
    for student in PRETRAINED:
        memory = (student.training_bytes(BATCH), student.training_bytes(FEW), student.answering_bytes)
        yield student.name, student.size, *(f"{needed / 1e9:.2g}" for needed in memory), student.advice
    yield "causal", "any", "", "", "", "any decoder: student.hub_id=OWNER/NAME or student.path=FOLDER; 16 bytes per parameter to train"


def help_table() -> str:
    """The table of students for ``--help``."""
    cells = [COLUMNS, *rows()]
    widths = [max(len(row[place]) for row in cells) for place in range(len(COLUMNS) - 1)]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *(row[place].rjust(widths[place]) for place in range(1, len(widths))), row[-1]])
        for row in cells
    )
    return "\n".join(f"  {line}".rstrip() for line in lines)


def markdown_table() -> str:
    """The table of students for the documentation."""
    lines = [
        COLUMNS,
        ("---", *["---:"] * (len(COLUMNS) - 2), "---"),
        *(("`" + row[0].replace(", ", "`, `") + "`", *row[1:]) for row in rows()),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
