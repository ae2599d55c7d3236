"""Says that a student from scratch is a toy, before money is spent on data that it cannot learn."""

from __future__ import annotations

from fcot.base.machine import free_host_memory, has_gpu
from fcot.runs.run import Run
from fcot.student.catalogue import ANSWER_TOKENS, FORMAT_TOKENS, RATIONALE_TOKENS, Fit, fitting

_SHOWN = 3  # students that are named
_CHARACTERS_PER_TOKEN = 4
_TABLE = "`fcot run --help` has a table of students"


def is_toy(run: Run) -> bool:
    """Whether the run trains a student from scratch on a task that is not generated."""
    return run.trains and run.config.student.from_scratch and not run.config.dataset.toy and run.config.until in ("train", "evaluate")


def toy_note(run: Run) -> str | None:
    """A warning with pretrained students that fit this machine; None if the student is no toy on this task."""
    if not is_toy(run):
        return None
    student = run.config.student
    return (
        f"warning: student={student.name} is a toy: {_size(run)} parameters, random before training. It can learn generated sums and "
        f"cannot learn a task in real language. {alternatives(run)}"
    )


def alternatives(run: Run) -> str:
    """Pretrained students whose training fits into the free memory of this machine: the largest ones on a GPU, else the smallest."""
    gpu, free = has_gpu(), _free_memory()
    fits = fitting(0.9 * free, _longest_sample(run)) if free is not None else []
    if not fits:
        return f"No pretrained student is known to fit into this machine's memory; {_TABLE}"
    shown = fits[-_SHOWN:][::-1] if gpu else fits[:_SHOWN]
    where = f"the {(free or 0.0) / 1e9:.1f} GB that are free on this {'GPU' if gpu else 'machine, which has no GPU'}"
    return f"Pretrained students whose training fits into {where}: {'; '.join(map(_described, shown))}. {_TABLE}"


def _described(fit: Fit) -> str:
    return f"{fit.overrides} ({fit.student.size} parameters, about {fit.needed / 1e9:.1f} GB)"


def _free_memory() -> float | None:
    if not has_gpu():
        return free_host_memory()
    from fcot.student.memory import free_memory  # imports torch, which takes seconds

    return free_memory()


def _longest_sample(run: Run) -> int:
    """Tokens of the longest question, estimated by its characters, and of its completion."""
    longest = max((len(run.problems[index].question) for index in run.split.train), default=0)
    prompt = min(512, longest // _CHARACTERS_PER_TOKEN + FORMAT_TOKENS)  # pretrained students cut longer prompts
    return prompt + (RATIONALE_TOKENS if run.uses_rationales else ANSWER_TOKENS)


def _size(run: Run) -> str:
    """The number of a student's parameters, from its width and layers."""
    student = run.config.student
    per_layer = 12 if student.architecture == "decoder" else 28  # in squares of the width; T5 has two stacks and attention between them
    positions = student.max_prompt_tokens + student.max_new_tokens if student.architecture == "decoder" else 0
    n = per_layer * student.layers * student.width**2 + (student.vocab_size + positions) * student.width
    return f"about {n / 1e6:.1f} M"
