"""Reports the memory that a run's training will need, before the teacher is paid."""

from __future__ import annotations

import math

from fcot.base.errors import FcotError
from fcot.runs.run import Run
from fcot.stages.training import lora_of
from fcot.student.config import PretrainedStudentConfig
from fcot.student.loading import load_tokenizer
from fcot.student.memory import Memory, free_memory, training_memory

_LONGEST = 50  # questions that are tokenized to find the longest
_FORM_TOKENS = 16  # what a student's format puts around a question
_RATIONALE_TOKENS, _ANSWER_TOKENS = 160, 16  # assumed of a completion


def memory_note(run: Run) -> str | None:
    """One sentence on the memory per device, a warning if less is free here; None unless a pretrained student is trained."""
    student = run.config.student
    if not (run.trains and student.pretrained and run.config.until in ("train", "evaluate")):
        return None
    try:
        needed, batch = _needed(run, student)
    except (FcotError, OSError, ValueError, RuntimeError, AttributeError) as error:  # a model that cannot run on fake tensors
        return f"memory to train: unknown ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    said = (
        f"memory to train: about {needed.total / 1e9:.1f} GB ({needed.state / 1e9:.1f} weights, gradients, optimizer; "
        f"{needed.activations / 1e9:.1f} a micro-batch of {batch})"
    )
    free = free_memory()
    if free is None or needed.total < free:
        return said
    less = "trainer.micro_batches=4, trainer.gradient_checkpointing=true or student.lora.rank=16 need less"
    return f"warning: {said}, and {free / 1e9:.1f} GB are free here: {less}"


def _needed(run: Run, student: PretrainedStudentConfig) -> tuple[Memory, str]:
    trainer, source = run.config.trainer, student.path or str(student.hub_id)
    ranks = trainer.devices * trainer.nodes
    questions = sorted((run.problems[index].question for index in run.split.train), key=len)[-_LONGEST:]
    tokens = max(map(len, load_tokenizer(source, student.revision)(questions)["input_ids"]))
    prompt = min(student.max_prompt_tokens, tokens + _FORM_TOKENS)
    completion = min(student.max_completion_tokens, _RATIONALE_TOKENS if run.uses_rationales else _ANSWER_TOKENS)
    samples = trainer.batch_size if trainer.batch_tokens is None else trainer.batch_tokens / (prompt + completion)
    rows = max(1, math.ceil(samples / trainer.micro_batches / ranks))
    needed = training_memory(
        source, student.revision, lora=lora_of(student), rows=rows, prompt=prompt, completion=completion, precision=run.precision,
        gradient_checkpointing=trainer.gradient_checkpointing, ranks=ranks, sharded=trainer.strategy == "fsdp" and ranks > 1,
    )  # fmt: skip
    return needed, f"{rows} samples of {prompt} + {completion} tokens"
