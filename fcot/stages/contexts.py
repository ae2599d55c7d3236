"""A local teacher's own prompts, under which it scores the student's completions (``objective.context=teacher``)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fcot.base.errors import FcotError
from fcot.base.records import TrainingSample
from fcot.runs.run import Run
from fcot.student.interface import FILE, read_interface
from fcot.student.loading import Student
from fcot.student.tokenization import encode_prompts, encode_questions


def teacher_prompts(run: Run, samples: Sequence[TrainingSample], teacher: Student) -> list[list[int]]:
    """Token ids of a local teacher's own prompt for each sample.

    A student that fcot trained is prompted in its own format. Any other model gets the run's prompt, as ``teacher=hf`` would: as chat
    messages if ``teacher.endpoint`` is ``chat``.

    Raises:
        FcotError: The prompt consists of chat messages, and the teacher's tokenizer has no chat template.
    """
    folder, questions = Path(run.config.objective.teacher), [sample.question for sample in samples]
    if (folder / FILE).exists():
        interface = read_interface(folder)
        return encode_questions(replace(teacher, chat=interface.chat), interface.format, questions, sys.maxsize)[0]
    if run.speaks_chat and not teacher.tokenizer.chat_template:
        raise FcotError(
            f"objective.context=teacher: the tokenizer of objective.teacher={folder} has no chat template, and teacher.endpoint=chat makes "
            "the prompt one of messages: set teacher.endpoint=completions prompt=zero_shot_cot, or objective.context=student"
        )
    return encode_prompts(replace(teacher, chat=run.speaks_chat), list(map(run.prompt_for, questions)), sys.maxsize)[0]
