"""A local student's answers: in its method's format, or, untrained, to the prompt that a teacher is asked by."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fcot.base.console import say, unwatched
from fcot.base.errors import FcotError
from fcot.base.ranks import World
from fcot.base.records import Completion, Prediction, Problem
from fcot.decoding.engine import DecodingPrompt, Sampling
from fcot.evaluation import scoring
from fcot.prompts.answers import AnswerRule
from fcot.prompts.student import StudentFormat
from fcot.prompts.teacher import TeacherPrompt, Text
from fcot.prompts.thinking import separate, text_or_thought
from fcot.runs.run import Run
from fcot.student.checkpoints import is_sharded
from fcot.student.decoding import Decoded, decode
from fcot.student.loading import Student
from fcot.student.tokenization import encode_prompts, encode_questions

Summary = dict[str, Any]
Drawn = tuple[list[list[Prediction]], Summary]  # answers to each problem, scored, and what was cut to ask for them


def text_format(run: Run, student: Student) -> StudentFormat:
    """The format of the run's method for this student."""
    return run.method.formats["chat" if student.chat else student.architecture]


@dataclass(frozen=True)
class SamplingParameters:
    """How often each problem is answered, and how.

    Attributes:
        n: Answers to a problem.
        sampling: Greedy, or how tokens are drawn.
        purpose: Numbers that set the noise of these draws apart from that of others.
        limit: Tokens of an answer, None for the student's own limit.
        stop: Where an untrained student's answer begins to speak of something else; it ends before.
    """

    n: int = 1
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    purpose: tuple[int, ...] = ()
    limit: int | None = None
    stop: str | None = None


GREEDY = SamplingParameters()


def voting(run: Run) -> SamplingParameters:
    """How a run's student answers the test problems."""
    limits = run.config.student
    return (
        SamplingParameters(limits.self_consistency, Sampling(limits.temperature, limits.top_k)) if limits.self_consistency > 1 else GREEDY
    )


def predict(run: Run, student: Student, form: StudentFormat, indices: Sequence[int], world: World) -> list[Prediction]:
    """Greedy answers of a student to problems, scored, in the order of ``indices``."""
    return [prediction for (prediction,) in draw(run, student, form, indices, world)[0]]


def draw(
    run: Run,
    student: Student,
    form: StudentFormat,
    indices: Sequence[int],
    world: World,
    draws: SamplingParameters = GREEDY,
    advance: Callable[[int], object] = unwatched,
) -> Drawn:
    """Answers of a student in a format of its own."""
    limits, problems = run.config.student, run.select(list(indices))
    ids, _, cut = encode_questions(student, form, [problem.question for problem in problems], limits.max_prompt_tokens)
    if cut and world.rank == 0:
        say(f"warning: {cut} questions to answer lost their beginning at student.max_prompt_tokens={limits.max_prompt_tokens}")
    halt = _stopper(student, [draws.stop] if draws.stop else [])
    prompts = [
        DecodingPrompt(tokens, draws.limit or limits.max_new_tokens, _noise(run, problem, number, draws), halt)
        for tokens, problem in zip(ids, problems, strict=True) for number in range(draws.n)
    ]  # fmt: skip
    answers = [_before(one, draws.stop) for one in _decode(run, student, prompts, world, draws.sampling, advance)]
    drawn = [
        [scoring.score(problem, one.text, one.complete, one.n_tokens, form, run.task.rule) for one in answers[start : start + draws.n]]
        for start, problem in zip(range(0, len(answers), draws.n), problems, strict=True)
    ]
    return drawn, {"cut_questions": cut}


def _before(answer: Decoded, stop: str | None) -> Decoded:
    """An answer up to where it begins to speak of something else."""
    text, found, _ = answer.text.partition(stop) if stop else (answer.text, "", "")
    return replace(answer, text=text.rstrip(), complete=True) if found else answer


def _noise(run: Run, problem: Problem, number: int, draws: SamplingParameters) -> tuple[int, ...]:
    return (run.config.seed, problem.sample_index, number, *draws.purpose) if draws.sampling.temperature else ()


def _decode(
    run: Run, student: Student, prompts: Sequence[DecodingPrompt], world: World, sampling: Sampling, advance: Callable[[int], object]
) -> list[Decoded]:
    """On the GPU where there is one, in the precision that is asked for."""
    if torch.cuda.is_available():
        student.model.to("cuda")  # type: ignore[arg-type]
    if run.config.trainer.eval_precision == "bf16-true" and not is_sharded(student.model):
        student = replace(student, model=copy.deepcopy(student.model).to(torch.bfloat16))  # type: ignore[arg-type]
    most = run.config.trainer.eval_batch_tokens
    return decode(student, prompts, max_tokens=most, world=world, advance=advance, sampling=sampling)


@dataclass(frozen=True)
class _PromptedDraw:
    """One draw of an answer to a problem, and the prompt with the exemplars that fit."""

    problem: Problem
    prompt: TeacherPrompt
    draw: int


def prompt_student(
    run: Run,
    student: Student,
    indices: Sequence[int],
    world: World,
    draws: SamplingParameters = GREEDY,
    advance: Callable[[int], object] = unwatched,
) -> Drawn:
    """Answers of an untrained student to the run's prompt, as a teacher is asked: in two steps, or in one.

    Raises:
        FcotError: The model has fewer positions than the answer may take.
    """
    rule, problems, prompt = run.task.rule, run.select(list(indices)), run.prompt
    if student.architecture == "encoder_decoder":  # T5's tokenizer has no newlines
        prompt = replace(prompt, stop=(*prompt.stop, *(f" {stop.strip()}" for stop in prompt.stop)))
    room = _room(run, student)
    fitted, facts = fit_exemplars(student, prompt, rule, problems, room)
    asked = [_PromptedDraw(problem, one, number) for problem, one in zip(problems, fitted, strict=True) for number in range(draws.n)]

    def write(texts: Sequence[Text], limit: int, most: int, step: int, advance: Callable[[int], object]) -> list[Decoded]:
        ids, cut = encode_prompts(student, texts, most)
        facts["cut_questions"] = max(cut, facts.get("cut_questions", 0))
        prompts = [
            DecodingPrompt(tokens, limit, _noise(run, one.problem, one.draw + step * draws.n, draws), _stopper(student, prompt.stop))
            for tokens, one in zip(ids, asked, strict=True)
        ]
        written = _decode(run, student, prompts, world, draws.sampling, advance)
        return [replace(one, text=text, complete=one.complete or text != one.text) for one in written for text in [prompt.cut(one.text)]]

    texts = [one.prompt.ask(one.problem.question, rule, student.chat) for one in asked]
    first = write(texts, prompt.rationale_tokens, room, 0, unwatched if prompt.two_steps else advance)
    if prompt.two_steps:
        texts = [
            one.prompt.ask_answer(one.problem.question, _continued(text_or_thought(answer.text)), rule, student.chat)
            for one, answer in zip(asked, first, strict=True)
        ]
        most = sys.maxsize if student.positions is None else student.positions - prompt.answer_tokens
        second = write(texts, prompt.answer_tokens, most, 1, advance)
        parts = [(separate(answer.text).rest.strip(), separate(then.text).rest) for answer, then in zip(first, second, strict=True)]
        lengths = [answer.n_tokens + then.n_tokens for answer, then in zip(first, second, strict=True)]
    else:
        parts, lengths = [prompt.split(answer.text, rule) for answer in first], [answer.n_tokens for answer in first]
    if world.rank == 0:
        _warn(facts, len(problems), room)
    scored = []
    for one, answer, (rationale, text), n_tokens in zip(asked, first, parts, lengths, strict=True):
        ended = "stop" if answer.complete else "length"
        completion = Completion(one.problem.sample_index, one.draw, rationale, text, ended, separate(answer.text).thought)
        scored.append(scoring.score_completion(one.problem, completion, n_tokens, prompt, rule))
    return [scored[start : start + draws.n] for start in range(0, len(scored), draws.n)], facts


def _room(run: Run, student: Student) -> int:
    """The most tokens of a prompt that leave room for its answer."""
    longest, prompt = run.config.method.prompt_tokens or run.config.student.max_prompt_tokens, run.prompt
    if student.positions is None:
        return int(longest)
    after = prompt.rationale_tokens + (prompt.answer_tokens if prompt.two_steps else 0)
    if student.positions <= after:
        raise FcotError(
            f"student={run.config.student.name} has {student.positions} positions, and the answer may take {after}: "
            "lower prompt.rationale_tokens"
        )
    return int(min(longest, student.positions - after))


def _warn(facts: Summary, n: int, room: int) -> None:
    if facts["shortened_prompts"]:
        say(f"warning: {facts['shortened_prompts']} of {n} prompts were longer than {room} tokens and lost exemplars")
    if facts["cut_questions"]:
        say(f"warning: {facts['cut_questions']} prompts lost their beginning at {room} tokens")


def _continued(text: str) -> str:
    """What continues a prompt: decoded alone, SentencePiece drops the space at the seam."""
    return text if text[:1].isspace() else f" {text}"


def _stopper(student: Student, stop: Sequence[str]) -> Callable[[list[int]], bool] | None:
    """Whether what was written holds a string that ends an answer."""
    if not stop:
        return None

    def halt(written: list[int]) -> bool:
        text = str(student.tokenizer.decode(written, skip_special_tokens=True))
        return any(one in text for one in stop)

    return halt


def fit_exemplars(
    student: Student, prompt: TeacherPrompt, rule: AnswerRule, problems: Sequence[Problem], room: int
) -> tuple[list[TeacherPrompt], Summary]:
    """For each problem the prompt with as many of its exemplars as fit into ``room`` tokens, the last ones, and what was dropped."""
    fitted, waiting = [prompt] * len(problems), list(range(len(problems)))
    for n_dropped in range(1, len(prompt.exemplars) + 1):
        texts = [fitted[position].ask(problems[position].question, rule, student.chat) for position in waiting]
        lengths = map(len, encode_prompts(student, texts, sys.maxsize)[0] if texts else ())
        waiting = [position for position, length in zip(waiting, lengths, strict=True) if length > room]
        for position in waiting:
            fitted[position] = replace(prompt, exemplars=prompt.exemplars[n_dropped:])
    dropped = [len(prompt.exemplars) - len(one.exemplars) for one in fitted]
    return fitted, {"shortened_prompts": sum(map(bool, dropped)), "dropped_exemplars": sum(dropped)}
