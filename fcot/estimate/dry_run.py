"""``dry_run=true``: what a run or a sweep would ask for and cost, without asking for anything."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fcot.base.files import read_jsonl
from fcot.base.resources import PRICES
from fcot.config.schema import SAMPLING_TEMPERATURE
from fcot.estimate.needs import Interval, RoundNeeds, RunEstimate, StudentNeeds
from fcot.llm.money import Price
from fcot.llm.plan import answers, consecutive, gave_up
from fcot.llm.store.folder import StoreFolder
from fcot.llm.store.rows import lines
from fcot.methods.tailored.config import TailoredConfig
from fcot.runs.run import Run
from fcot.stages.first_look import former_prompt_notes
from fcot.student.config import ApiStudentConfig

_ASSUMED_TOKENS_PER_CHARACTER = np.array([1 / 5, 1 / 4, 1 / 3])
_ASSUMED_RATIONALE_TOKENS = np.array([30.0, 120.0, math.inf])  # at most its limit
_ASSUMED_ANSWER_TOKENS = np.array([2.0, 8.0, 32.0])
_LEAST_WIDTH = 0.1  # of a measured mean: the problems still to come are others
_ASSUMED_ROW_BYTES = 900
_MEASURED_BYTES = 1 << 18  # of each of a folder's files
_ASSUMED_ZERO_SHOT_TOKENS = np.array([2.0, 128.0, math.inf])  # of a chat model that nobody told how to answer
_TURN_TOKENS = 4  # what a chat message costs beside its text


def estimate(run: Run, planned: dict[tuple[object, ...], int], label: Sequence[str] = ()) -> RunEstimate:
    """What a run would buy.

    Args:
        run: Resolved.
        planned: The D that earlier runs of the same sweep will have bought, by folder and key; this run's is entered.
        label: The overrides that made it.
    """
    student_bytes = _student_bytes(run)
    made = RunEstimate(
        label, len(run.split.train) if run.trains else 0, run.config.diversity, steps=_steps(run), disk_bytes=student_bytes,
        weights_unknown=run.trains and not run.config.student.remote and not student_bytes,
        setting=run.setting, trains=run.trains and run.config.until == "evaluate", n_test=len(run.split.test),
    )  # fmt: skip
    if run.config.student.pretrained and run.trains:
        from fcot.estimate.memory import memory_note

        made.notes += filter(None, [memory_note(run)])
    if not run.uses_rationales or run.teacher is None:
        if run.replayed is None or not run.is_teacher:
            _add_student(made, run, np.zeros(3))
        return made
    plan, folder = run.plan, run.store.refresh()
    measured = _Measured(folder, plan.prompt.two_steps, plan.prompt.rationale_tokens, plan.prompt.answer_tokens)
    rows = 0
    for problem in run.select(run.split.train):
        request = plan.step1(problem)
        key = plan.root_key(folder, problem)
        shard = folder.shard(key)
        asked, first = plan.slots, plan.first_slot
        have = {slot for slot in asked if shard.has(key, slot)}
        empty = [slot for slot in range(max(first, _take(planned, asked.stop, folder.path, key, first)), asked.stop) if slot not in have]
        there = set(asked)  # the rationales to be answered
        if gave_up(plan, shard, key):
            empty, there = [], have
        n_requests = sum(1 for _ in consecutive(empty, plan.teacher.max_choices))
        prompt = measured.per_character * _characters(request.prompt)
        made.requested += plan.diversity
        made.stored += len(have)
        made.bought += len(empty)
        made.requests += n_requests
        made.prompt_tokens += n_requests * prompt
        made.shared_tokens += (len(empty) - n_requests) * prompt
        made.completion_tokens += len(empty) * measured.rationale
        if empty and plan.resample_identical:  # up to D more: the upper end
            made.prompt_tokens += np.array([0, 0, math.ceil(plan.diversity / plan.teacher.max_choices)]) * prompt
            made.completion_tokens += np.array([0, 0, plan.diversity]) * measured.rationale
        rows += len(empty)
        if plan.prompt.two_steps:
            second = plan.key(plan.step2(problem, {"key": key, "slot": None, "text": ""}))  # its wording and limits
            answered = {one.rationale["slot"] for one in answers(plan, shard, key, problem) if shard.has(one.key, one.slot)}
            wanted = set(range(max(first, _take(planned, asked.stop, folder.path, key, second, first)), asked.stop)) & there
            n_answers = len(wanted - answered)
            made.requests += n_answers
            made.prompt_tokens += n_answers * (prompt + measured.rationale + 10)
            made.completion_tokens += n_answers * measured.answer
            rows += n_answers
    made.disk_bytes += rows * measured.row_bytes + made.requested * measured.row_bytes / 2
    if (price := plan.price) is not None:
        made.usd = np.array([price.usd(p, c) for p, c in zip(made.prompt_tokens, made.completion_tokens, strict=True)])
        made.usd_batch = made.usd * price.batch if price.batch != 1 else None
        made.usd_shared = np.array([price.usd(tokens, 0) for tokens in made.shared_tokens])
        if plan.budget_usd is not None and plan.budget_usd < made.usd[1]:
            part = f"about {100 * plan.budget_usd / made.usd[1]:.0f} % of that"
            made.notes.append(f"teacher.budget_usd={plan.budget_usd:g} is less than the price online: it ends the purchase at {part}")
    made.notes += [measured.said, *_price_notes(run), *_passed_over(run, planned), *former_prompt_notes(run)]
    if plan.resample_identical:
        made.notes.append("teacher.resample_identical may buy up to twice as many rationales: the upper ends count them")
    if run.config.method.rounds > 1:
        made.round = _round(run, run.config.method, measured)
        made.steps *= run.config.method.rounds
        made.notes.append("a later round's requests depend on the exam: ASSUMED that none, half or all of the train problems are failed")
    _add_student(made, run, measured.rationale)
    return made


def _passed_over(run: Run, planned: dict[tuple[object, ...], int]) -> Iterator[str]:
    """Rationales of the same problems that the store holds at one of fcot's own temperatures, where the run's is another.

    Said by one of the runs of a sweep that have problems and requests in common.
    """
    identity = run.plan.teacher.identity
    for temperature in (0.0, SAMPLING_TEMPERATURE):
        if "temperature" not in identity or identity["temperature"] == temperature:
            continue
        other = {**identity, "temperature": temperature}
        if _take(planned, 1, run.store.path, json.dumps(other, sort_keys=True), tuple(run.split.train)):
            continue
        keys = [run.plan.step1(problem).key(other) for problem in run.select(run.split.train)]
        if n := sum(len(run.store.shard(key).slots(key)) for key in keys):
            uses = f"teacher.temperature={temperature:g} uses them"
            yield f"{n:,} rationales of these problems are stored at temperature {temperature:g}, and not used: {uses}"


def _round(run: Run, method: TailoredConfig, measured: _Measured) -> RoundNeeds:
    """A later round, by the share of the train problems that the student may fail: none, half, all."""
    asked, steps = method.feedback, 1
    examined = [problem for problem in run.select(run.split.train) if problem.labelled]
    n = len(examined) * min(asked.requests, math.ceil(method.exam.samples / asked.mistakes))
    completions = np.minimum(np.array([0.0, 0.5, 1.0]) * n, asked.max_requests or math.inf) * (asked.source != "self")
    prompt = measured.per_character * float(np.mean([len(problem.question) for problem in examined]))
    reply = measured.rationale
    if asked.source == "feedback":
        prompt = prompt + measured.per_character * len(run.request_text) + asked.mistakes * measured.rationale
        reply = np.minimum(reply, asked.max_tokens)
    elif run.prompt.two_steps:  # the answer is asked for by itself, behind the rationale
        prompt, reply, steps = 2 * prompt + measured.rationale, reply + measured.answer, 2
    tokens = completions * prompt, completions * reply
    price = run.plan.price
    usd = None if price is None else np.array([price.usd(p, c) for p, c in zip(*tokens, strict=True)])
    return RoundNeeds(method.rounds - 1, steps * completions, *tokens, usd)


def _add_student(made: RunEstimate, run: Run, rationale: Interval) -> None:
    """What a student that is asked needs beyond its job and the store; ``rationale``: tokens of one, where none is known yet."""
    config = run.config.student
    if not config.remote or run.config.until in ("generate", "curate"):
        return
    from fcot.stages.remote_evaluation import answering_model, evaluation_plan, evaluation_store, fine_tuned

    model, needs = answering_model(run), StudentNeeds()
    n, question, completion = _samples(run, rationale)
    if model is None and config.api_backed:
        needs.trained_tokens = config.epochs * n * (question + completion + 2 * _TURN_TOKENS)
    plan = evaluation_plan(run, model)
    folder = None if model is None else evaluation_store(run, model)
    if folder is not None:
        folder.refresh()
    for key, problem in {plan.key(plan.step1(problem)): problem for problem in run.select(run.split.test)}.items():
        missing = [slot for slot in range(plan.diversity) if folder is None or not folder.shard(key).has(key, slot)]
        needs.answers += len(missing)
        for _ in consecutive(missing, plan.teacher.max_choices):
            needs.requests += 1
            needs.prompt_tokens += _ASSUMED_TOKENS_PER_CHARACTER * _characters(plan.step1(problem).prompt) + _TURN_TOKENS
    if plan.prompt.two_steps:
        needs.requests, needs.prompt_tokens = 2 * needs.requests, 2 * needs.prompt_tokens + needs.answers * rationale
    limit = plan.prompt.rationale_tokens + (plan.prompt.answer_tokens if plan.prompt.two_steps else 0)
    needs.completion_tokens = needs.answers * np.minimum(completion if run.trains else _ASSUMED_ZERO_SHOT_TOKENS, limit)
    if (price := plan.price) is not None:
        needs.usd_answers = np.array([price.usd(p, c) for p, c in zip(needs.prompt_tokens, needs.completion_tokens, strict=True)])
    if config.api_backed and (trained_price := config.price(fine_tuned(config.model))) is not None:
        needs.usd_training = np.array([trained_price.training_usd(tokens) for tokens in needs.trained_tokens])
    made.student = needs
    made.notes += [
        "student: a token is ASSUMED to be 3-5 characters",
        *(_price_notes(run) if run.is_teacher else [_student_price_note(config, price, run.trains)]),
    ]


def _samples(run: Run, rationale: Interval) -> tuple[int, Interval, Interval]:
    """Number of training samples as far as it is known, mean tokens of their questions, and of what the student is to write."""
    train, per_character = run.split.train, _ASSUMED_TOKENS_PER_CHARACTER
    texts: list[str] = []  # rationales that are known
    if run.uses_rationales and run.directory.curated.exists():
        kept = [row for row in read_jsonl(run.directory.curated) if row["kept"]]
        train, texts = [row["sample_index"] for row in kept], [row["rationale"] for row in kept]
    elif run.replayed is not None:
        train, texts = [one.sample_index for one in run.replayed], [one.rationale for one in run.replayed]
    elif run.uses_rationales:
        train = train * run.config.diversity
    if texts:
        rationale = per_character * float(np.mean([len(text) for text in texts]))
    problems = run.select(train) or run.select(run.split.test)
    question, answer = (per_character * float(np.mean([len(getattr(one, name)) for one in problems])) for name in ("question", "answer"))
    return len(train), question, rationale + answer + (_TURN_TOKENS if run.uses_rationales else 0)


def _student_price_note(config: ApiStudentConfig, price: Price | None, trains: bool) -> str:
    name, source = f"models fine-tuned from {config.model}" if trains else config.model, config.prices or PRICES
    if price is None:
        return f"price: unknown; {source} has none for {name}"
    training = f"${price.training:g} training, " if trains else ""
    return f"price of {name}: {training}${price.input:g} in, ${price.output:g} out per million tokens, from {source}"


def _take(planned: dict[tuple[object, ...], int], diversity: int, *what: object) -> int:
    """How many slots earlier runs of the sweep will have filled; this one's are entered."""
    before = planned.get(what, 0)
    planned[what] = max(before, diversity)
    return before


class _Measured:
    """Lengths of this store folder's prompts and answers, or assumptions where it is empty."""

    def __init__(self, folder: StoreFolder, two_steps: bool, rationale_limit: int, answer_limit: int) -> None:
        sample = _sample(tuple((path, path.stat().st_size) for shard in folder.shards() for path in shard.files()))
        self.row_bytes = sample.row_bytes or _ASSUMED_ROW_BYTES
        self.per_character = _interval(sample.per_character) if sample.per_character else _ASSUMED_TOKENS_PER_CHARACTER
        self.rationale = np.minimum(_interval(sample.rationales) if sample.rationales else _ASSUMED_RATIONALE_TOKENS, rationale_limit)
        self.answer = np.minimum(_interval(sample.answers) if sample.answers else _ASSUMED_ANSWER_TOKENS, answer_limit)
        n = len(sample.rationales)
        self.said = (
            f"lengths: from {n:,} generations in the store" if n
            else "lengths: ASSUMED (a rationale of 30-120 tokens, at most its limit; a token of 3-5 characters); preview=5 measures them"
        )  # fmt: skip


@dataclass(frozen=True)
class _StoredLengths:
    """Rows of a folder, measured: tokens of rationales and answers, tokens per character of prompts, bytes of a row."""

    rationales: list[float]
    answers: list[float]
    per_character: list[float]
    row_bytes: float


@lru_cache(maxsize=64)
def _sample(files: tuple[tuple[Path, int], ...]) -> _StoredLengths:
    """The newest rows of each file, measured once for all runs that share the folder."""
    lengths: dict[bool, list[float]] = {False: [], True: []}  # tokens of a generation, by whether it is a step-2 answer
    ratios: list[float] = []
    size = n_rows = 0

    def measure(group: Sequence[dict[str, Any]]) -> None:
        tokens = group[0].get("completion_tokens") if group else None
        if tokens:
            lengths[group[0]["root"] is not None] += [tokens / len(group)] * len(group)

    for path, end in files:
        group: list[dict[str, Any]] = []
        for begin, stop, row in _newest(path, end):
            size, n_rows = size + stop - begin, n_rows + 1
            if row is None:
                continue
            if row.get("prompt_tokens") and "asked" in row:
                ratios.append(row["prompt_tokens"] / max(1, _characters(row["asked"]["prompt"])))
            if "prompt_tokens" in row:  # the first row of an answered request
                measure(group)
                group = [row]
            elif group and row["request"] == group[0]["request"]:
                group.append(row)
        measure(group)
    return _StoredLengths(lengths[False], lengths[True], ratios, size / n_rows if n_rows else 0.0)


def _newest(path: Path, size: int) -> Iterator[tuple[int, int, dict[str, Any] | None]]:
    """The last lines of a file that had so many bytes."""
    with path.open("rb") as file:
        start = max(0, size - _MEASURED_BYTES)
        file.seek(start)
        start += len(file.readline()) if start else 0
        yield from lines(file.fileno(), start)


def _interval(sample: Sequence[float]) -> Interval:
    """The mean with two standard errors, at least a tenth, on either side."""
    mean = float(np.mean(sample))
    width = max(_LEAST_WIDTH * mean, 2 * float(np.std(sample)) / math.sqrt(len(sample)))
    return np.array([max(0.0, mean - width), mean, mean + width])


def _characters(prompt: Any) -> int:
    return len(prompt) if isinstance(prompt, str) else sum(len(message["content"]) for message in prompt)


def _steps(run: Run) -> int:
    """Optimizer steps if every completion is kept."""
    if not run.trains or run.config.student.remote:
        return 0
    trainer = run.config.trainer
    samples = len(run.split.train) * (run.config.diversity if run.uses_rationales else 1)
    epochs = math.inf if trainer.epochs is None else trainer.epochs * max(1, math.ceil(samples / _samples_a_step(run)))
    return int(min(epochs, trainer.max_steps or math.inf))


def _samples_a_step(run: Run) -> float:
    trainer = run.config.trainer
    if trainer.batch_tokens is None:
        return trainer.batch_size
    prompt = sum(len(problem.question) for problem in run.select(run.split.train)) / len(run.split.train) / 4
    return max(1.0, trainer.batch_tokens / (prompt + (run.prompt.rationale_tokens / 2 if run.uses_rationales else 4)))


def _student_bytes(run: Run) -> float:
    """Of the trained students, one a round; 0 where nobody knows yet."""
    student = run.config.student
    if student.pretrained and student.path is not None and run.trains:
        size = float(sum(file.stat().st_size for file in Path(student.path).rglob("*") if file.is_file()))
        return size * run.config.method.rounds
    return 0.0


def _price_notes(run: Run) -> list[str]:
    teacher = run.config.teacher
    if not teacher.priced:
        return []
    price, source = run.plan.price, teacher.prices or PRICES
    if price is None:
        return [f"price: unknown; {source} has none for {teacher.model}"]
    return [f"price: ${price.input:g} in, ${price.cached_input:g} cached, ${price.output:g} out per million tokens, from {source}"]
