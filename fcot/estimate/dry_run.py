"""``dry_run=true``: estimates the requests and the cost of a run or a sweep. Nothing is sent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fcot.base.files import read_jsonl
from fcot.base.resources import PRICES
from fcot.estimate.measured import ASSUMED_TOKENS_PER_CHARACTER, Measured, characters
from fcot.estimate.needs import Interval, RoundNeeds, RunEstimate, StudentNeeds, money
from fcot.estimate.toy import toy_note
from fcot.llm.logprobs import teacher_tokenizer
from fcot.llm.money import Price, no_price_in
from fcot.llm.plan import answers, consecutive, gave_up
from fcot.methods.tailored.config import TailoredConfig
from fcot.prompts import judge
from fcot.runs.run import Run, data_notes
from fcot.runs.stored import elsewhere_notes
from fcot.stages.first_look import former_notes
from fcot.stages.table import FINE_TUNE, JUDGE, PROBE, SCORE, TRAIN_ON_POLICY
from fcot.student.config import ApiStudentConfig

_ASSUMED_ZERO_SHOT_TOKENS = np.array([2.0, 128.0, math.inf])  # answer of a chat model whose prompt sets no format
_TURN_TOKENS = 4  # tokens of a chat message in addition to its text


def estimate(run: Run, planned: dict[tuple[object, ...], int], label: Sequence[str] = ()) -> RunEstimate:
    """Estimate what a run needs in addition to the completions in the store.

    Args:
        run: The run.
        planned: Number of slots that earlier runs of the same sweep will fill, by store folder and key. This run's slots are added.
        label: The run's overrides, shown in a sweep's table, and in the commands of notes.
    """
    student_bytes = _student_bytes(run)
    result = RunEstimate(
        label, len(run.split.train) if run.trains else 0, run.config.diversity, steps=_steps(run), disk_bytes=student_bytes,
        weights_unknown=run.trains and not run.config.student.remote and not student_bytes,
        setting=run.setting, trains=run.trains and run.config.until == "evaluate", n_test=len(run.split.test),
    )  # fmt: skip
    result.notes += [*_credential_notes(run), *data_notes(run), *filter(None, [toy_note(run)])]
    if run.config.student.pretrained and run.trains:
        from fcot.estimate.memory import memory_note

        result.notes += filter(None, [memory_note(run)])
    _add_scores(result, run)
    if not run.uses_rationales or run.teacher is None:
        if run.replayed is None or not run.is_teacher:
            _add_student(result, run, np.zeros(3))
        return result
    plan, folder = run.plan, run.store.refresh()
    measured = Measured(folder, plan.prompt.two_steps, plan.prompt.rationale_tokens, plan.prompt.answer_tokens)
    rows = _add_purchase(result, run, measured, planned)
    result.disk_bytes += rows * measured.row_bytes + result.requested * measured.row_bytes / 2
    if (price := plan.price) is not None:
        result.usd = np.array([price.usd(p, c) for p, c in zip(result.prompt_tokens, result.completion_tokens, strict=True)])
        result.usd_batch = result.usd * price.batch if price.batch != 1 else None
        result.usd_shared = np.array([price.usd(tokens, 0) for tokens in result.shared_tokens])
        if plan.budget_usd is not None and plan.budget_usd < result.usd[1]:
            share = f"about {100 * plan.budget_usd / result.usd[1]:.0f} % of that"
            result.notes.append(f"teacher.budget_usd={plan.budget_usd:g} is less than the price online: it ends the purchase at {share}")
    result.notes += [measured.note, *_price_notes(run), *_store_notes(run, planned, label, measured, result), *former_notes(run)]
    if run.config.method.rounds > 1:
        result.round = _round(run, run.config.method, measured)
        result.steps *= run.config.method.rounds
        result.notes.append("a later round's requests depend on the exam: ASSUMED that the student fails none, half or all train problems")
    _add_judge(result, run, measured, planned)
    _add_student(result, run, measured.rationale)
    return result


def _add_purchase(result: RunEstimate, run: Run, measured: Measured, planned: dict[tuple[object, ...], int]) -> int:
    """Add the requests and tokens of the completions that are not stored; returns the number of rows that they will have."""
    plan, folder = run.plan, run.store
    max_choices = min(plan.teacher.max_choices, measured.most_choices or plan.teacher.max_choices)
    rows = 0
    for problem in run.select(run.split.train):
        request = plan.step1(problem)
        key = plan.root_key(folder, problem)
        shard = folder.shard(key)
        slots, first_slot = plan.slots, plan.first_slot
        stored = {slot for slot in slots if shard.has(key, slot)}
        unplanned = range(max(first_slot, _reserve(planned, slots.stop, folder.path, key, first_slot)), slots.stop)
        empty = [slot for slot in unplanned if slot not in stored]
        with_rationale = set(slots)  # slots whose rationale needs an answer
        if gave_up(plan, shard, key):
            empty, with_rationale = [], stored
        n_requests = sum(1 for _ in consecutive(empty, max_choices))
        prompt = measured.per_character * characters(request.prompt)
        result.requested += plan.diversity
        result.stored += len(stored)
        result.bought += len(empty)
        result.requests += n_requests
        result.prompt_tokens += n_requests * prompt
        result.shared_tokens += (len(empty) - n_requests) * prompt
        result.completion_tokens += len(empty) * measured.rationale
        if empty and plan.resample_identical:  # at most D further completions
            result.prompt_tokens += np.array([0, 0, math.ceil(plan.diversity / max_choices)]) * prompt
            result.completion_tokens += np.array([0, 0, plan.diversity]) * measured.rationale
        rows += len(empty)
        if plan.prompt.two_steps:
            step2_key = plan.key(plan.step2(problem, {"key": key, "slot": None, "text": ""}))  # stands for the prompt's wording and limits
            answered = {answer.rationale["slot"] for answer in answers(plan, shard, key, problem) if shard.has(answer.key, answer.slot)}
            unplanned = range(max(first_slot, _reserve(planned, slots.stop, folder.path, key, step2_key, first_slot)), slots.stop)
            n_answers = len((set(unplanned) & with_rationale) - answered)
            result.requests += n_answers
            result.prompt_tokens += n_answers * (prompt + measured.rationale + 10)
            result.completion_tokens += n_answers * measured.answer
            rows += n_answers
    return rows


def _credential_notes(run: Run) -> Iterator[str]:
    """Notes about missing keys and header values of the servers to which the run would send requests."""
    student = run.config.student
    servers = [
        *([run.config.teacher] if run.teacher is not None else []),
        *([student] if run.config.until in ("train", "evaluate") else []),
    ]
    for server in servers:
        yield from (f"before a request can be sent: {fault}" for fault in getattr(server, "credential_faults", tuple)())


def _store_notes(
    run: Run, planned: dict[tuple[object, ...], int], label: Sequence[str], measured: Measured, result: RunEstimate
) -> Iterator[str]:
    """Notes about repeated rationales, and about stored ones: those that will be scored, and those that the run does not use although it
    would send requests.

    Of several runs of a sweep that share stored rationales, only the first has the note about them.
    """
    if run.plan.resample_identical:
        yield "teacher.resample_identical may buy up to twice as many rationales: the upper ends include them"
    yield from _scoring_notes(run, measured)
    if result.requests:
        yield from elsewhere_notes(run, label, lambda *about: not _reserve(planned, 1, "elsewhere", *about))


def _scoring_notes(run: Run, measured: Measured) -> Iterator[str]:
    """A note about the stored rationales that a server scores, if curation keeps them all: they are sent as prompts."""
    if SCORE not in run.stages or not run.config.teacher.priced or not run.config.teacher.score_stored:
        return
    plan, folder, n, n_characters = run.plan, run.store, 0, 0
    for problem in run.select(run.split.train):
        key = plan.root_key(folder, problem)
        shard = folder.shard(key)
        slots = [slot for slot in plan.slots if shard.has(key, slot) and not shard.distributions.has(shard.row(key, slot))]
        n, n_characters = n + len(slots), n_characters + len(slots) * characters(plan.step1(problem).prompt)
    if n:
        tokens = n_characters * measured.per_character + n * measured.rationale
        usd = None if plan.price is None else np.array([plan.price.usd(prompt_tokens, n) for prompt_tokens in tokens])
        yield f"teacher.score_stored=true: at most {n:,} stored rationales are scored, {tokens[1]:,.0f} prompt tokens more ({money(usd)})"


def _round(run: Run, method: TailoredConfig, measured: Measured) -> RoundNeeds:
    """The needs of each later round, as (low, middle, high): if the student fails none, half or all of the train problems."""
    feedback, steps = method.feedback, 1
    exam = [problem for problem in run.select(run.split.train) if problem.labelled]
    n = len(exam) * min(feedback.requests, math.ceil(method.exam.samples / feedback.mistakes))
    completions = np.minimum(np.array([0.0, 0.5, 1.0]) * n, feedback.max_requests or math.inf) * (feedback.source != "self")
    prompt = measured.per_character * float(np.mean([len(problem.question) for problem in exam]))
    reply = measured.rationale
    if feedback.source != "plain":
        prompt = prompt + measured.per_character * len(run.request_text + run.prompt.system) + feedback.mistakes * measured.rationale
        reply = np.minimum(reply, feedback.max_tokens)
    elif run.prompt.two_steps:  # a second request elicits the answer; its prompt contains the rationale
        prompt, reply, steps = 2 * prompt + measured.rationale, reply + measured.answer, 2
    tokens = completions * prompt, completions * reply
    price = run.plan.price
    usd = None if price is None else np.array([price.usd(p, c) for p, c in zip(*tokens, strict=True)])
    return RoundNeeds(method.rounds - 1, steps * completions, *tokens, usd)


def _add_judge(result: RunEstimate, run: Run, measured: Measured, planned: dict[tuple[object, ...], int]) -> None:
    """Add the needs of the judge: for the kept completions or, before curation, for half, all and all of them (low, middle, high)."""
    if JUDGE not in run.stages:
        return
    from fcot.stages.judging import cases_of, judge_plan, verdict_missing

    plan, folder, problems = judge_plan(run), run.store_of(judge.NAME).refresh(), run.select(run.split.train)
    if run.directory.curated.exists():
        cases = [case.problem for case in cases_of(run, read_jsonl(run.directory.curated))]
        missing = {plan.root_key(folder, problem) for problem in cases if verdict_missing(plan, folder, problem)}
        n = np.full(3, sum(_reserve(planned, 1, folder.path, key) == 0 for key in missing))
        result.notes.append("the judge reads the completions that curation kept")
    else:
        stop = run.plan.slots.stop
        reserved = [_reserve(planned, stop, folder.path, run.plan.root_key(run.store, problem)) for problem in problems]
        n = np.array([0.5, 1.0, 1.0]) * sum(max(0, stop - max(run.plan.first_slot, slot)) for slot in reserved)
        result.notes.append("the judge reads the completions that curation keeps: ASSUMED half to all of them")
    question = float(np.mean([len(problem.question) for problem in problems])) + len(run.judge_request)
    prompt, reply = (
        measured.per_character * question + 1.5 * measured.rationale,
        np.minimum(measured.rationale, plan.prompt.rationale_tokens),
    )
    tokens, price = (n * prompt, n * reply), run.plan.price
    usd = None if price is None else np.array([price.usd(p, c) for p, c in zip(*tokens, strict=True)])
    result.judge = RoundNeeds(1, n, *tokens, usd)


def _add_scores(result: RunEstimate, run: Run) -> None:
    """Add the needs of a server that scores what the student will write. The upper ends have samples of the greatest length."""
    if PROBE not in run.stages:
        return
    from fcot.stages.scoring import student_scores

    plan, method = student_scores(run), run.config.method
    limit = method.max_new_tokens or run.config.student.max_new_tokens
    measured = Measured(run.store, False, limit, 0)
    shares = [method.own_share, method.own_share if method.last_own_share is None else method.last_own_share]
    n = 1 + method.steps * run.config.trainer.batch_size * np.array([np.mean(shares), np.mean(shares), max(shares)])
    prompts = [run.prompt_for(problem.question) for problem in run.select(run.split.train)]
    tokenizer = teacher_tokenizer(run.config.teacher.tokenizer_source)
    texts = [prompt if isinstance(prompt, str) else "".join(turn["content"] for turn in prompt) for prompt in prompts]
    question = _TURN_TOKENS * 2 + np.mean([len(ids) for ids in tokenizer(texts)["input_ids"]])
    prompt = n * (question + np.array([*measured.rationale[:2], limit]))
    usd = None if plan.price is None else np.array([plan.price.usd(p, c) for p, c in zip(prompt, n, strict=True)])
    result.scores = RoundNeeds(1, n, prompt, n, usd)
    result.notes.append(f"scores: each sample that the student writes is sent as a prompt; it has at most {limit} tokens")
    if not run.uses_rationales:
        result.notes += [measured.note, *_price_notes(run)]


def _add_student(result: RunEstimate, run: Run, rationale: Interval) -> None:
    """Add the needs of an API-backed student, or of the teacher as student: its training, and the answers that are not in the store.

    Does nothing for a student that runs on this machine.

    Args:
        result: The estimate to add to.
        run: The run.
        rationale: Number of tokens of a rationale, as (low, middle, high); used if no rationale is known yet.
    """
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
            needs.prompt_tokens += ASSUMED_TOKENS_PER_CHARACTER * characters(plan.step1(problem).prompt) + _TURN_TOKENS
    if plan.prompt.two_steps:
        needs.requests, needs.prompt_tokens = 2 * needs.requests, 2 * needs.prompt_tokens + needs.answers * rationale
    limit = plan.prompt.rationale_tokens + (plan.prompt.answer_tokens if plan.prompt.two_steps else 0)
    needs.completion_tokens = needs.answers * np.minimum(completion if run.trains else _ASSUMED_ZERO_SHOT_TOKENS, limit)
    if (price := plan.price) is not None:
        needs.usd_answers = np.array([price.usd(p, c) for p, c in zip(needs.prompt_tokens, needs.completion_tokens, strict=True)])
    if config.api_backed and (trained_price := config.price(fine_tuned(config.model))) is not None:
        needs.usd_training = np.array([trained_price.training_usd(tokens) for tokens in needs.trained_tokens])
    result.student = needs
    result.notes += [
        "student: a token is ASSUMED to be 3-5 characters",
        *(_price_notes(run) if run.is_teacher else [_student_price_note(config, price, run.trains)]),
    ]


def _samples(run: Run, rationale: Interval) -> tuple[int, Interval, Interval]:
    """Number of training samples, mean tokens of their questions, and mean tokens of the completions that the student is trained on.

    The samples are the kept completions if curation is finished, else all completions.
    """
    train, per_character = run.split.train, ASSUMED_TOKENS_PER_CHARACTER
    texts: list[str] = []  # known rationales
    if run.uses_rationales and run.directory.curated.exists():
        kept = [row for row in read_jsonl(run.directory.curated) if row["kept"]]
        train, texts = [row["sample_index"] for row in kept], [row["rationale"] for row in kept]
    elif run.replayed is not None:
        train, texts = [completion.sample_index for completion in run.replayed], [completion.rationale for completion in run.replayed]
    elif run.uses_rationales:
        train = train * _samples_per_problem(run)
    if texts:
        rationale = per_character * float(np.mean([len(text) for text in texts]))
    problems = run.select(train) or run.select(run.split.test)
    question, answer = (
        per_character * float(np.mean([len(getattr(problem, name)) for problem in problems])) for name in ("question", "answer")
    )
    return len(train), question, rationale + answer + (_TURN_TOKENS if run.uses_rationales else 0)


def _student_price_note(config: ApiStudentConfig, price: Price | None, trains: bool) -> str:
    name, source = f"models fine-tuned from {config.model}" if trains else config.model, config.prices or PRICES
    if price is None:
        return f"price: unknown; {source} has none for {name}{_own_price('student', config.model)}"
    training = f"${price.training:g} training, " if trains else ""
    return f"price of {name}: {training}${price.input:g} in, ${price.output:g} out per million tokens, from {source}"


def _reserve(planned: dict[tuple[object, ...], int], n_slots: int, *key: object) -> int:
    """Number of slots under ``key`` that earlier runs of the sweep will fill. Records in ``planned`` that this run fills ``n_slots``."""
    n_before = planned.get(key, 0)
    planned[key] = max(n_before, n_slots)
    return n_before


def _steps(run: Run) -> int:
    """Number of optimizer steps if curation keeps every completion."""
    if not run.trains or run.config.student.remote:
        return 0
    trainer = run.config.trainer
    samples = len(run.split.train) * (_samples_per_problem(run) if run.uses_rationales else 1)
    own = run.config.method.steps if TRAIN_ON_POLICY in run.stages else 0
    if own and FINE_TUNE not in run.stages:
        return own
    epochs = math.inf if trainer.epochs is None else trainer.epochs * max(1, math.ceil(samples / _samples_per_step(run)))
    return own + int(min(epochs, trainer.max_steps or math.inf))


def _samples_per_problem(run: Run) -> int:
    """Most reasoning samples of a problem."""
    diversity, limit = run.config.diversity, run.config.curation.max_per_problem
    return diversity if limit is None else min(diversity, limit)


def _samples_per_step(run: Run) -> float:
    """Samples per optimizer step. With ``trainer.batch_tokens`` they are estimated at four characters per token."""
    trainer = run.config.trainer
    if trainer.batch_tokens is None:
        return trainer.batch_size
    prompt = sum(len(problem.question) for problem in run.select(run.split.train)) / len(run.split.train) / 4
    return max(1.0, trainer.batch_tokens / (prompt + (run.prompt.rationale_tokens / 2 if run.uses_rationales else 4)))


def _student_bytes(run: Run) -> float:
    """Size of the trained students in bytes, one per round; 0 if it is not known yet."""
    student = run.config.student
    if student.pretrained and student.path is not None and run.trains:
        size = float(sum(file.stat().st_size for file in Path(student.path).rglob("*") if file.is_file()))
        return size * run.config.method.rounds
    return 0.0


def _own_price(group: str, model: str) -> str:
    """How to give a model a price."""
    more = ", fine_tuned: {...}" if group == "student" else ""
    return f". {group}.prices=FILE sets it, in USD per million tokens, with a line such as {model}: {{input: 0.4, output: 1.6{more}}}"


def _price_notes(run: Run) -> list[str]:
    teacher = run.config.teacher
    if not teacher.priced:
        return []
    price, source = run.plan.price, teacher.prices or PRICES
    if price is None:
        return [f"price: unknown; {no_price_in(Path(source), teacher.model)}{_own_price('teacher', teacher.model)}"]
    return [f"price: ${price.input:g} in, ${price.cached_input:g} cached, ${price.output:g} out per million tokens, from {source}"]
