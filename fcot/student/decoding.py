"""Decodes a student's answers to many prompts; the ranks share the work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fcot.base.console import unwatched
from fcot.base.errors import FcotError
from fcot.base.ranks import World
from fcot.base.stopping import stop_if_requested
from fcot.decoding.engine import Decoder, DecodingPrompt, Sampling
from fcot.student.calculator import Calculator, Equations
from fcot.student.loading import Student


@dataclass(frozen=True)
class Decoded:
    """One answer of a student.

    Attributes:
        text: Text of the answer, without special tokens.
        complete: Whether the answer ended by itself, before the token limit.
        n_tokens: Length in tokens, end token included.
        equations: What the calculator did; None without a calculator.
        ids: Token ids of the answer, without the end token.
    """

    text: str
    complete: bool
    n_tokens: int
    equations: Equations | None = None
    ids: Sequence[int] = ()


def decode(
    student: Student,
    prompts: Sequence[DecodingPrompt],
    *,
    max_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    calculator: bool = False,
    world: World = World(),  # noqa: B008 - frozen
    advance: Callable[[int], object] = unwatched,
) -> list[Decoded]:
    """Decode a student's answers to prompts; every rank gets all answers, in the order of ``prompts``.

    Prompts with equal ids, limit and noise are decoded once. Long prompts are decoded first.

    Args:
        student: Model and tokenizer. The model stays on its device and is in evaluation mode while it decodes.
        prompts: The prompts. A limit that exceeds the model's positions is lowered to what they allow.
        max_tokens: Size of a batch in tokens, rows times columns (:class:`fcot.decoding.engine.Decoder`).
        sampling: Greedy, or temperature and top-k.
        calculator: Whether wrong numbers after an equals sign are corrected (:mod:`fcot.student.calculator`).
        world: The ranks that share the work.
        advance: Called with the number of prompts that were finished since the last call.

    Raises:
        FcotError: The model cannot take back tokens, which the calculator needs.
    """
    if calculator:
        check_calculator(student)
        prompts = [replace(prompt, reviser=partial(Calculator, student.tokenizer)) for prompt in prompts]
    keys = [(tuple(prompt.ids), prompt.limit, prompt.noise) for prompt in prompts]
    n_copies = Counter(keys)
    unique = sorted(dict(zip(keys, prompts, strict=True)).items(), key=lambda item: -len(item[1].ids))
    share = world.share(unique)
    answers = world.together(lambda: _answers(student, share, max_tokens, sampling, lambda key: advance(n_copies[key] * world.size)))
    gathered = world.gather([answers[key] for key, _ in share], len(unique))
    by_key = {key: answer for (key, _), answer in zip(unique, gathered, strict=True)}
    return [by_key[key] for key in keys]


def check_calculator(student: Student) -> None:
    """Reject a student that cannot use a calculator: encoder-decoders with absolute positions, such as BART, cannot take back tokens.

    Raises:
        FcotError: The student is such a model.
    """
    if student.architecture == "encoder_decoder" and getattr(student.model.config, "max_position_embeddings", None) is not None:
        raise FcotError(
            f"student.calculator=true: {type(student.model).__name__} has absolute positions in its decoder; use T5, Flan-T5 or a "
            "decoder, or student.calculator=false"
        )


def _answers(
    student: Student, prompts: Sequence[tuple[Any, DecodingPrompt]], max_tokens: int, sampling: Sampling, advance: Callable[[Any], object]
) -> dict[Any, Decoded]:
    """Decode this rank's prompts; returns answers by key. ``advance`` is called with the key of each finished prompt."""
    decoder = Decoder(student.model, student.ends, sampling, max_tokens)
    answers: dict[Any, Decoded] = {}
    training = student.model.training
    student.model.eval()
    try:
        for key, written in decoder.run((key, _bounded(prompt, student.positions)) for key, prompt in prompts):
            text = str(student.tokenizer.decode(written.ids, skip_special_tokens=True))
            equations = written.reviser.equations if isinstance(written.reviser, Calculator) else None
            answers[key] = Decoded(text, written.complete, written.n_tokens, equations, written.ids)
            advance(key)
            stop_if_requested()
    finally:
        student.model.train(training)
    return answers


def _bounded(prompt: DecodingPrompt, positions: int | None) -> DecodingPrompt:
    return prompt if positions is None else replace(prompt, limit=min(prompt.limit, positions - len(prompt.ids)))
