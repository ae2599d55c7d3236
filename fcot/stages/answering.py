"""Answers of a local student, in its method's format. An untrained student may instead get the run's prompt, as a teacher does."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
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
from fcot.student.calculator import Equations
from fcot.student.checkpoints import is_sharded
from fcot.student.decoding import Decoded, decode
from fcot.student.loading import Student
from fcot.student.tokenization import encode_prompts, encode_questions

Summary = dict[str, Any]
ScoredAnswers = tuple[list[list[Prediction]], Summary]  # the answers to each problem, and counts of prompts that were shortened


def text_format(run: Run, student: Student) -> StudentFormat:
    """The format of the run's method for this student; that of its training if the run evaluates a finished student."""
    if run.origin is not None:
        return run.origin.format
    return run.method.formats["chat" if student.chat else student.architecture]


@dataclass(frozen=True)
class SamplingParameters:
    """How many answers per problem are sampled, and how.

    Attributes:
        n: Answers per problem.
        sampling: Greedy, or temperature and top-k.
        purpose: Part of the seed, so that each purpose, such as a round's exam, has its own sampling noise.
        limit: Most tokens of an answer; None: ``student.max_new_tokens``.
        stop: A text that ends an answer and is not part of it; None: only the end token and the limit end an answer.
    """

    n: int = 1
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    purpose: tuple[int, ...] = ()
    limit: int | None = None
    stop: str | None = None


GREEDY = SamplingParameters()


def voting(run: Run) -> SamplingParameters:
    """The sampling parameters for the test problems: several answers for a majority vote, or one greedy answer."""
    options = run.config.student
    if options.self_consistency == 1:
        return GREEDY
    return SamplingParameters(options.self_consistency, Sampling(options.temperature, options.top_k))


def predict(run: Run, student: Student, form: StudentFormat, indices: Sequence[int], world: World) -> list[Prediction]:
    """Answer problems greedily; returns scored answers in the order of ``indices``."""
    return [prediction for (prediction,) in answer_problems(run, student, form, indices, world)[0]]


def answer_problems(
    run: Run,
    student: Student,
    form: StudentFormat,
    indices: Sequence[int],
    world: World,
    parameters: SamplingParameters = GREEDY,
    advance: Callable[[int], object] = unwatched,
) -> ScoredAnswers:
    """Answer problems in a student's own format.

    Args:
        run: The run, for the problems, the answer rule and the limits.
        student: The student.
        form: The student's format.
        indices: Sample indices of the problems.
        world: The ranks that share the work.
        parameters: How many answers per problem are sampled, and how.
        advance: Called with the number of answers finished since the last call.
    """
    limits, problems = run.config.student, run.select(list(indices))
    ids, _, cut = encode_questions(student, form, [problem.question for problem in problems], limits.max_prompt_tokens)
    if cut and world.rank == 0:
        say(f"warning: {cut} questions to answer lost their beginning at student.max_prompt_tokens={limits.max_prompt_tokens}")
    halt = _stopper(student, [parameters.stop] if parameters.stop else [])
    prompts = [
        DecodingPrompt(tokens, parameters.limit or limits.max_new_tokens, _noise(run, problem, number, parameters), halt)
        for tokens, problem in zip(ids, problems, strict=True) for number in range(parameters.n)
    ]  # fmt: skip
    answers = [_cut_at(answer, parameters.stop) for answer in decode_prompts(run, student, prompts, world, parameters.sampling, advance)]
    scored = [
        [
            scoring.score(problem, answer.text, answer.complete, answer.n_tokens, form, run.task.rule)
            for answer in answers[start : start + parameters.n]
        ]
        for start, problem in zip(range(0, len(answers), parameters.n), problems, strict=True)
    ]
    return scored, {"cut_questions": cut, **_equations(answers)}


def _cut_at(answer: Decoded, stop: str | None) -> Decoded:
    """Cut an answer at a stop text."""
    text, separator, _ = answer.text.partition(stop) if stop else (answer.text, "", "")
    return replace(answer, text=text.rstrip(), complete=True) if separator else answer


def _noise(run: Run, problem: Problem, number: int, parameters: SamplingParameters) -> tuple[int, ...]:
    return (run.config.seed, problem.sample_index, number, *parameters.purpose) if parameters.sampling.temperature else ()


def decode_prompts(
    run: Run, student: Student, prompts: Sequence[DecodingPrompt], world: World, sampling: Sampling,
    advance: Callable[[int], object] = unwatched,
) -> list[Decoded]:  # fmt: skip
    """Decode on the GPU if there is one, in the precision ``trainer.eval_precision``."""
    if torch.cuda.is_available():
        student.model.to("cuda")  # type: ignore[arg-type]
    if run.config.trainer.eval_precision == "bf16-true" and not is_sharded(student.model):
        student = replace(student, model=copy.deepcopy(student.model).to(torch.bfloat16))  # type: ignore[arg-type]
    max_tokens = run.config.trainer.eval_batch_tokens
    calculator = run.config.student.calculator
    return decode(student, prompts, max_tokens=max_tokens, world=world, advance=advance, sampling=sampling, calculator=calculator)


def _equations(answers: Sequence[Decoded]) -> Summary:
    """What the calculator did in all of these answers; empty without a calculator."""
    counts = [answer.equations for answer in answers if answer.equations is not None]
    return {"equations": asdict(sum(counts, Equations()))} if counts else {}


@dataclass(frozen=True)
class _Draw:
    """One of the answers that are sampled for a problem.

    Attributes:
        problem: The problem.
        prompt: The run's prompt with the exemplars that fit.
        number: Number of the answer among those to the problem, from 0.
    """

    problem: Problem
    prompt: TeacherPrompt
    number: int


def prompt_student(
    run: Run,
    student: Student,
    indices: Sequence[int],
    world: World,
    parameters: SamplingParameters = GREEDY,
    advance: Callable[[int], object] = unwatched,
) -> ScoredAnswers:
    """Answer problems with an untrained student and the run's prompt, in one request or two, as a teacher does.

    Args:
        run: The run.
        student: The student.
        indices: Sample indices of the problems.
        world: The ranks that share the work.
        parameters: How many answers per problem are sampled, and how.
        advance: Called with the number of answers finished since the last call.

    Raises:
        FcotError: The model has fewer positions than the answer may need.
    """
    rule, problems, prompt = run.task.rule, run.select(list(indices)), run.prompt
    if student.architecture == "encoder_decoder":  # T5's tokenizer has no newlines
        prompt = replace(prompt, stop=(*prompt.stop, *(f" {stop.strip()}" for stop in prompt.stop)))
    room = _room(run, student)
    fitted, facts = fit_exemplars(student, prompt, rule, problems, room)
    draws = [
        _Draw(problem, shortened, number)
        for problem, shortened in zip(problems, fitted, strict=True) for number in range(parameters.n)
    ]  # fmt: skip

    def write(texts: Sequence[Text], limit: int, max_prompt: int, step: int, advance: Callable[[int], object]) -> list[Decoded]:
        ids, cut = encode_prompts(student, texts, max_prompt)
        facts["cut_questions"] = max(cut, facts.get("cut_questions", 0))
        halt = _stopper(student, prompt.stop)
        prompts = [
            DecodingPrompt(tokens, limit, _noise(run, draw.problem, draw.number + step * parameters.n, parameters), halt)
            for tokens, draw in zip(ids, draws, strict=True)
        ]
        answers = decode_prompts(run, student, prompts, world, parameters.sampling, advance)
        cut_texts = [prompt.cut(answer.text) for answer in answers]
        return [
            replace(answer, text=text, complete=answer.complete or text != answer.text)
            for answer, text in zip(answers, cut_texts, strict=True)
        ]

    texts = [draw.prompt.first_request(draw.problem.question, rule, student.chat) for draw in draws]
    replies = write(texts, prompt.rationale_tokens, room, 0, unwatched if prompt.two_steps else advance)
    if prompt.two_steps:
        texts = [
            draw.prompt.second_request(draw.problem.question, _with_space(text_or_thought(reply.text)), rule, student.chat)
            for draw, reply in zip(draws, replies, strict=True)
        ]
        max_prompt = sys.maxsize if student.positions is None else student.positions - prompt.answer_tokens
        answers = write(texts, prompt.answer_tokens, max_prompt, 1, advance)
        pairs = list(zip(replies, answers, strict=True))
        parts = [(separate(reply.text).rest.strip(), separate(answer.text).rest) for reply, answer in pairs]
        lengths = [reply.n_tokens + answer.n_tokens for reply, answer in pairs]
    else:
        answers = []
        parts, lengths = [prompt.split(reply.text, rule) for reply in replies], [reply.n_tokens for reply in replies]
    if world.rank == 0:
        _warn(facts, len(problems), room)
    scored = []
    for draw, reply, (rationale, text), n_tokens in zip(draws, replies, parts, lengths, strict=True):
        finish_reason = "stop" if reply.complete else "length"
        completion = Completion(draw.problem.sample_index, draw.number, rationale, text, finish_reason, separate(reply.text).thought)
        scored.append(scoring.score_completion(draw.problem, completion, n_tokens, prompt, rule))
    return [scored[start : start + parameters.n] for start in range(0, len(scored), parameters.n)], facts | _equations([*replies, *answers])


def _room(run: Run, student: Student) -> int:
    """The most tokens of a prompt that leave room for its answer.

    Raises:
        FcotError: The model has fewer positions than the answer may need.
    """
    max_prompt, prompt = run.config.method.prompt_tokens or run.config.student.max_prompt_tokens, run.prompt
    if student.positions is None:
        return int(max_prompt)
    answer_tokens = prompt.rationale_tokens + (prompt.answer_tokens if prompt.two_steps else 0)
    if student.positions <= answer_tokens:
        raise FcotError(
            f"student={run.config.student.name} has {student.positions} positions, and the answer alone may take {answer_tokens} tokens: "
            "lower prompt.rationale_tokens"
        )
    return int(min(max_prompt, student.positions - answer_tokens))


def _warn(facts: Summary, n: int, room: int) -> None:
    if facts["shortened_prompts"]:
        say(f"warning: {facts['shortened_prompts']} of {n} prompts were longer than {room} tokens and lost exemplars")
    if facts["cut_questions"]:
        say(f"warning: {facts['cut_questions']} prompts lost their beginning at {room} tokens")


def _with_space(text: str) -> str:
    """Restore the space before a text that continues a prompt: SentencePiece drops it when the text is decoded alone."""
    return text if text[:1].isspace() else f" {text}"


def _stopper(student: Student, stop: Sequence[str]) -> Callable[[list[int]], bool] | None:
    """A function that returns whether the tokens written so far contain a stop text; None without stop texts."""
    if not stop:
        return None

    def halt(written: list[int]) -> bool:
        text = str(student.tokenizer.decode(written, skip_special_tokens=True))
        return any(ending in text for ending in stop)

    return halt


def fit_exemplars(
    student: Student, prompt: TeacherPrompt, rule: AnswerRule, problems: Sequence[Problem], room: int
) -> tuple[list[TeacherPrompt], Summary]:
    """Drop exemplars from prompts that are too long, beginning with the first exemplar.

    Args:
        student: The student whose tokenizer counts tokens.
        prompt: The prompt with all exemplars.
        rule: The task's answer rule.
        problems: The problems.
        room: Most tokens of a prompt. A prompt without exemplars may exceed it.

    Returns:
        The prompt of each problem, and counts of shortened prompts and dropped exemplars.
    """
    fitted, too_long = [prompt] * len(problems), list(range(len(problems)))
    for n_dropped in range(1, len(prompt.exemplars) + 1):
        texts = [fitted[position].first_request(problems[position].question, rule, student.chat) for position in too_long]
        lengths = map(len, encode_prompts(student, texts, sys.maxsize)[0] if texts else ())
        too_long = [position for position, length in zip(too_long, lengths, strict=True) if length > room]
        for position in too_long:
            fitted[position] = replace(prompt, exemplars=prompt.exemplars[n_dropped:])
    dropped = [len(prompt.exemplars) - len(shortened.exemplars) for shortened in fitted]
    return fitted, {"shortened_prompts": sum(map(bool, dropped)), "dropped_exemplars": sum(dropped)}
