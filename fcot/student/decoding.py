"""A student's answers to many prompts, shared by the ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fcot.base.console import unwatched
from fcot.base.ranks import World
from fcot.base.stopping import stop_if_requested
from fcot.decoding.engine import Decoder, DecodingPrompt, Sampling
from fcot.student.loading import Student


@dataclass(frozen=True)
class Decoded:
    """One answer: text without special tokens, whether it ended by itself, and its length in tokens (end token included)."""

    text: str
    complete: bool
    n_tokens: int


def decode(
    student: Student,
    prompts: Sequence[DecodingPrompt],
    *,
    max_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    world: World = World(),  # noqa: B008 - frozen
    advance: Callable[[int], object] = unwatched,
) -> list[Decoded]:
    """A student's answers to prompts, in their order, on every rank.

    Equal prompts (with equal noise) are decoded once; the longest come first.

    Args:
        student: Model (put into evaluation mode, on its own device) and tokenizer.
        prompts: Their limits also bounded by the positions the model has.
        max_tokens: As :class:`Decoder`'s.
        sampling: How tokens are chosen.
        world: The ranks that share the work.
        advance: Called with the number of prompts finished.
    """
    names = [(tuple(prompt.ids), prompt.limit, prompt.noise) for prompt in prompts]
    copies = Counter(names)
    different = sorted(dict(zip(names, prompts, strict=True)).items(), key=lambda item: -len(item[1].ids))
    mine = world.share(different)
    answers = world.together(lambda: _answers(student, mine, max_tokens, sampling, lambda name: advance(copies[name] * world.size)))
    gathered = world.gather([answers[name] for name, _ in mine], len(different))
    found = {name: answer for (name, _), answer in zip(different, gathered, strict=True)}
    return [found[name] for name in names]


def _answers(
    student: Student, prompts: Sequence[tuple[Any, DecodingPrompt]], max_tokens: int, sampling: Sampling, advance: Callable[[Any], object]
) -> dict[Any, Decoded]:
    """Answers by the names of their prompts; ``advance`` is called with each name."""
    decoder = Decoder(student.model, student.ends, sampling, max_tokens)
    answers: dict[Any, Decoded] = {}
    training = student.model.training
    student.model.eval()
    try:
        for name, written in decoder.run((name, _bounded(prompt, student.positions)) for name, prompt in prompts):
            text = str(student.tokenizer.decode(written.ids, skip_special_tokens=True))
            answers[name] = Decoded(text, written.complete, written.n_tokens)
            advance(name)
            stop_if_requested()
    finally:
        student.model.train(training)
    return answers


def _bounded(prompt: DecodingPrompt, positions: int | None) -> DecodingPrompt:
    return prompt if positions is None else replace(prompt, limit=min(prompt.limit, positions - len(prompt.ids)))
