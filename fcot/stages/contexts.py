"""The prompts under which a local teacher scores the student's completions, with ``objective.context=teacher``: its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fcot.base.errors import FcotError
from fcot.base.records import TrainingSample
from fcot.prompts.teacher import Text
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
    chat = speaks_chat(run)
    if chat and not teacher.tokenizer.chat_template:
        raise FcotError(
            f"objective.context=teacher: the tokenizer of objective.teacher={folder} has no chat template, and teacher.endpoint=chat makes "
            "the prompt one of messages: set teacher.endpoint=completions prompt=zero_shot_cot, or objective.context=student"
        )
    return encode_prompts(replace(teacher, chat=chat), [own_prompt(run, question) for question in questions], sys.maxsize)[0]


def own_prompt(run: Run, question: str) -> Text:
    """The run's prompt for a question, a text or chat messages."""
    return run.prompt.first_request(question, run.task.rule, speaks_chat(run))


def speaks_chat(run: Run) -> bool:
    """Whether the run's prompt consists of chat messages."""
    return getattr(run.config.teacher, "endpoint", "completions") == "chat"
