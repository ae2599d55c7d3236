"""Reports the memory that a run's training will need, before any money is spent on the teacher."""

from __future__ import annotations

import math
from dataclasses import replace

from fcot.base.errors import FcotError
from fcot.runs.run import Run
from fcot.stages.training import lora_of
from fcot.student.catalogue import ANSWER_TOKENS, FORMAT_TOKENS, RATIONALE_TOKENS
from fcot.student.config import PretrainedStudentConfig
from fcot.student.loading import load_tokenizer
from fcot.student.memory import Memory, free_memory, teacher_memory, training_memory

_N_LONGEST = 50  # number of questions, the longest in characters, that are tokenized to find the one with the most tokens


def memory_note(run: Run) -> str | None:
    """One sentence about the memory per device, as a warning if this machine has less; None unless a pretrained student is trained."""
    student = run.config.student
    if not (run.trains and student.pretrained and run.config.until in ("train", "evaluate")):
        return None
    try:
        needed, batch = _needed(run, student)
    except (FcotError, OSError, ValueError, RuntimeError, AttributeError) as error:  # a model that cannot run on fake tensors
        return f"memory to train: unknown ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    teacher = f"; {needed.teacher / 1e9:.1f} for objective.teacher" if needed.teacher else ""
    note = (
        f"memory to train: about {needed.total / 1e9:.1f} GB ({needed.state / 1e9:.1f} for parameters, gradients and optimizer; "
        f"{needed.activations / 1e9:.1f} for a micro-batch of {batch}{teacher})"
    )
    free = free_memory()
    if free is None or needed.total < free:
        return note
    remedy = "trainer.micro_batches=4, trainer.gradient_checkpointing=true or student.lora.rank=16 need less"
    return f"warning: {note}, and {free / 1e9:.1f} GB are free here: {remedy}"


def _needed(run: Run, student: PretrainedStudentConfig) -> tuple[Memory, str]:
    """The memory that training needs per device, and the micro-batch in words."""
    trainer, source = run.config.trainer, student.path or str(student.hub_id)
    ranks = trainer.devices * trainer.nodes
    questions = sorted((run.problems[index].question for index in run.split.train), key=len)[-_N_LONGEST:]
    tokens = max(map(len, load_tokenizer(source, student.revision)(questions)["input_ids"]))
    prompt = min(student.max_prompt_tokens, tokens + FORMAT_TOKENS)
    completion = min(student.max_completion_tokens, RATIONALE_TOKENS if run.uses_rationales else ANSWER_TOKENS)
    samples = trainer.batch_size if trainer.batch_tokens is None else trainer.batch_tokens / (prompt + completion)
    rows = max(1, math.ceil(samples / trainer.micro_batches / ranks))
    needed = training_memory(
        source, student.revision, lora=lora_of(student), rows=rows, prompt=prompt, completion=completion, precision=run.precision,
        gradient_checkpointing=trainer.gradient_checkpointing, ranks=ranks, sharded=trainer.strategy == "fsdp" and ranks > 1,
    )  # fmt: skip
    if getattr(run.config.objective, "is_local", False):
        objective = run.config.objective
        needed = replace(needed, teacher=teacher_memory(objective.teacher, rows * completion, objective.divergence))
    return needed, f"{rows} samples of {prompt} + {completion} tokens"
