"""What a run wants of its teacher, and what of that the store lacks: pure functions of the two."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fcot.base.records import REFUSED, Completion, Problem
from fcot.llm.budget import SharedBudget
from fcot.llm.money import Price
from fcot.llm.requests import FINAL, LOST, Choice, Reply, Request, Teacher
from fcot.llm.store.folder import Shard, StoreFolder
from fcot.llm.store.rows import StoreRow
from fcot.prompts.answers import AnswerRule
from fcot.prompts.teacher import TeacherPrompt
from fcot.prompts.thinking import separate, text_or_thought

_NEXT_SEED = 1_000_003  # further than any D, so that seeds of slots and of second tries never meet
_TRIES = 3  # of a prompt whose answers are unusable


@dataclass(frozen=True)
class Plan:
    """What makes a run's requests, beside the problem: kept together because every step needs all of it.

    Attributes:
        first_slot: Of the D slots that are the run's; another block of slots holds other rationales.
        resample_identical: Whether up to D more rationales are bought in the place of identical ones.
        price: None where it is unknown.
        budget_usd: The most this run may spend, None for no limit.
        shared_budget: That of the sweep it belongs to, None without one.
    """

    teacher: Teacher
    prompt: TeacherPrompt
    rule: AnswerRule
    diversity: int
    run_id: str
    first_slot: int = 0
    resample_identical: bool = False
    price: Price | None = None
    budget_usd: float | None = None
    shared_budget: SharedBudget | None = None

    @property
    def slots(self) -> range:
        """The step-1 slots that are the run's."""
        return range(self.first_slot, self.first_slot + self.diversity)

    def step1(self, problem: Problem) -> Request:
        """The request for rationales."""
        text = self.prompt.ask(problem.question, self.rule, self.teacher.chat)
        return Request(text, self.prompt.rationale_tokens, self.prompt.stop, problem=problem)

    def step2(self, problem: Problem, rationale: StoreRow) -> Request:
        """The request for the answer that a stored rationale leads to."""
        return self._step2(problem, rationale, text_or_thought(rationale["text"]))

    def _step2(self, problem: Problem, rationale: StoreRow, text: str) -> Request:
        prompt = self.prompt.ask_answer(problem.question, text, self.rule, self.teacher.chat)
        return Request(prompt, self.prompt.answer_tokens, self.prompt.stop, rationale["key"], problem, text, rationale["slot"])

    def step2_keys(self, request: Request, problem: Problem, rationale: StoreRow) -> list[str]:
        """The keys of a request of :meth:`step2`, and behind them those of earlier versions, which also sent a rationale's thought."""
        if request.rationale == rationale["text"]:
            return self.keys(request)
        return [*self.keys(request), *self.keys(self._step2(problem, rationale, rationale["text"]))]

    def key(self, request: Request) -> str:
        """The request's key under this teacher."""
        return request.key(self.teacher.identity)

    def keys(self, request: Request) -> list[str]:
        """The same, and behind it the keys under which earlier versions stored such a request."""
        older = getattr(self.teacher, "older_identities", ())  # a back end of somebody else's need not have any
        return [request.key(identity) for identity in (self.teacher.identity, *older)]

    def bound_usd(self, request: Request, n: int, batch: bool = False) -> float:
        """The most that a request for ``n`` choices can cost, in USD; 0 where the price is unknown."""
        if self.price is None:
            return 0.0
        return self.price.usd(request.most_prompt_tokens(), n * request.max_tokens, batch=batch)

    def root_key(self, folder: StoreFolder, problem: Problem) -> str:
        """The key of a problem's step-1 request, or an earlier version's where rows are stored under that."""
        return folder.known(self.keys(self.step1(problem)))


@dataclass(frozen=True)
class SlotRange:
    """Consecutive slots of one request that are to be bought together."""

    request: Request
    key: str
    first_slot: int
    n: int
    seed: int
    identity: Mapping[str, Any]

    @property
    def root(self) -> str:
        """Key of the step-1 request, which decides the shard."""
        return self.request.root or self.key


def missing(plan: Plan, shard: Shard, key: str, problem: Problem) -> list[SlotRange]:
    """The requests that a problem needs next; none where it is whole, or given up.

    Step 1 for empty slots, step 2 for rationales without an answer. Asked again after they came back, it tops up what a
    server returned too little of, and replaces what was refused, with another seed: a server that honours seeds would
    give the same answer again, for money.
    """
    jobs: list[SlotRange] = []
    if not gave_up(plan, shard, key):
        request = plan.step1(problem)
        seed = _NEXT_SEED * shard.n_refused(key)
        for first, n in consecutive(wanted_slots(plan, shard, key), plan.teacher.max_choices):
            jobs.append(SlotRange(request, key, first, n, first + seed, plan.teacher.identity))
    if jobs and plan.resample_identical:
        return jobs  # which rationales are the problem's is not known yet
    for answer in answers(plan, shard, key, problem):
        if not shard.has(answer.key, answer.slot) and not gave_up(plan, shard, answer.key):
            seed = _NEXT_SEED * shard.n_refused(answer.key)
            jobs.append(SlotRange(answer.request, answer.key, answer.slot, 1, answer.slot + seed, plan.teacher.identity))
    return jobs


def wanted_slots(plan: Plan, shard: Shard, key: str) -> list[int]:
    """The empty step-1 slots to fill next: of the first D, then as many of the next D as rationales are repeated."""
    empty = [slot for slot in plan.slots if not shard.has(key, slot)]
    if empty or not plan.resample_identical:
        return empty
    repeated = plan.diversity - len({shard.row(key, slot)["text"].strip() for slot in shard.slots(key) if slot < 2 * plan.diversity})
    return [slot for slot in range(plan.diversity, 2 * plan.diversity) if not shard.has(key, slot)][: max(0, repeated)]


def consecutive(slots: Sequence[int], longest: int) -> Iterator[tuple[int, int]]:
    """First slot and length of each run of consecutive slots, cut to ``longest``: what a draw is does not depend on interruptions."""
    start = 0
    for end in range(1, len(slots) + 1):
        if end == len(slots) or slots[end] != slots[end - 1] + 1 or end - start == longest:
            yield slots[start], end - start
            start = end


def gave_up(plan: Plan, shard: Shard, key: str) -> bool:
    """Whether a prompt has brought enough unusable answers: three requests and as many as completions are wanted, or a final one."""
    if not shard.n_refused(key):
        return False
    refused = shard.refused(key)
    enough = len(refused) >= plan.diversity and len({row["request"] for row in refused}) >= _TRIES
    return enough or any(row["refused"] in FINAL for row in refused)


def chosen_slots(plan: Plan, shard: Shard, key: str) -> list[int]:
    """The filled slots whose rationales are the problem's: the first D, or with resampling the first D distinct ones."""
    if not plan.resample_identical:
        return [slot for slot in plan.slots if shard.has(key, slot)]
    texts: Counter[str] = Counter()
    ranked = []
    for slot in (slot for slot in shard.slots(key) if slot < 2 * plan.diversity):
        text = shard.row(key, slot)["text"].strip()
        ranked.append((texts[text], slot))
        texts[text] += 1
    return sorted(slot for _, slot in sorted(ranked)[: plan.diversity])


@dataclass(frozen=True)
class AnswerSlot:
    """Where the answer to one stored rationale belongs: its request, key, and slot under that key."""

    rationale: StoreRow
    request: Request
    key: str
    slot: int


def answers(plan: Plan, shard: Shard, key: str, problem: Problem) -> Iterator[AnswerSlot]:
    """For each rationale of a problem, in slot order: identical ones share a step-2 key and take its slots in turn.

    Nothing for prompts of one request.
    """
    if not plan.prompt.two_steps:
        return
    taken: Counter[str] = Counter()
    for slot in chosen_slots(plan, shard, key):
        row = shard.row(key, slot)
        request = plan.step2(problem, row)
        keys = plan.step2_keys(request, problem, row)
        answer_key = next((key for key in keys if shard.slots(key)), keys[0])
        yield AnswerSlot(row, request, answer_key, taken[answer_key])
        taken[answer_key] += 1


def assemble(plan: Plan, shard: Shard, key: str, problem: Problem) -> Iterator[tuple[Completion, list[StoreRow]]]:
    """A problem's D completions with the rows they are made of; one the teacher never gave is empty, with the refusal's reason.

    A completion ends as its rationale ended: an answer step that runs on after its answer is no fault.
    """
    chosen = chosen_slots(plan, shard, key)
    by_slot = {answer.rationale["slot"]: answer for answer in answers(plan, shard, key, problem)}
    for index, slot in enumerate(_in_place(chosen, plan)):
        if slot is None:
            yield Completion(problem.sample_index, index, "", "", _reason(shard, key)), []
            continue
        row = shard.row(key, slot)
        within, said, _ = separate(row["text"])
        thought = "\n".join(filter(None, (row.get("reasoning"), within)))
        if not plan.prompt.two_steps:
            rationale, answer_text = plan.prompt.split(row["text"], plan.rule)
            yield Completion(problem.sample_index, index, rationale, answer_text, row["finish_reason"], thought), [row]
            continue
        answer = by_slot[slot]
        if shard.has(answer.key, answer.slot):
            answered = shard.row(answer.key, answer.slot)
            answer_text = separate(answered["text"]).rest
            yield Completion(problem.sample_index, index, said, answer_text, row["finish_reason"], thought), [row, answered]
        else:
            yield Completion(problem.sample_index, index, said, "", _reason(shard, answer.key), thought), [row]


def rows_of(plan: Plan, shard: Shard, key: str, problem: Problem) -> Iterator[tuple[StoreRow, bool]]:
    """Every row that was ever bought for a problem's prompts, and whether it is part of one of its D completions."""
    used = {key: set(chosen_slots(plan, shard, key))}
    for answer in answers(plan, shard, key, problem):
        used.setdefault(answer.key, set()).add(answer.slot)
    for one, slots in used.items():
        for slot in shard.slots(one):
            yield shard.row(one, slot), slot in slots
        for row in (*shard.refused(one), *shard.unused(one)):
            yield row, False


def _in_place(chosen: Sequence[int], plan: Plan) -> list[int | None]:
    """D places: a slot stands at its own number; with resampling the chosen ones follow each other."""
    if plan.resample_identical:
        return [*chosen, *[None] * (plan.diversity - len(chosen))]
    return [slot if slot in set(chosen) else None for slot in plan.slots]


def _reason(shard: Shard, key: str) -> str:
    """Why a prompt has no answer: the last refusal's reason."""
    refused = [row["refused"] for row in shard.refused(key)]
    return REFUSED + (refused[-1] if refused else "empty")


def _row(plan: Plan, job: SlotRange, request_id: str, choice: int) -> StoreRow:
    """What every row of a request says."""
    request = job.request
    more = {} if request.rationale_slot is None else {"of": request.rationale_slot}
    return {
        "key": job.key, "slot": None, "root": request.root, "sample_index": request.problem.sample_index if request.problem else None,
        "request": request_id, "choice": choice, "seed": job.seed, "n": job.n, "run": plan.run_id, "time": round(time.time(), 3), **more,
    }  # fmt: skip


def new_request_id() -> str:
    """Names a request in the store's rows."""
    return uuid.uuid4().hex[:16]


def sent_row(plan: Plan, job: SlotRange, request_id: str, bound_usd: float | None) -> StoreRow:
    """The row of a request that is about to be sent, with its maximum cost; None takes it back. Its answer's rows supersede it."""
    bound = {} if bound_usd is None else {"bound_usd": bound_usd}
    return _row(plan, job, request_id, -1) | {"text": "", "finish_reason": None, "refused": LOST} | bound


def to_rows(
    plan: Plan, job: SlotRange, shard: Shard, reply: Reply, request_id: str, *, bound_usd: float = 0.0, counted: bool = True, **more: object
) -> list[StoreRow]:
    """Store rows of one reply: usable choices fill the asked slots that are empty, then, where the server sent more, others.

    The first row carries the request's usage and, where the server did not say it, an upper bound on its price; the row of a
    rationale's slot 0 the request itself.

    Args:
        plan: Of the run that asked.
        job: What was asked.
        shard: Where the rows will go.
        reply: What came back.
        request_id: By :func:`new_request_id`.
        bound_usd: The most it can have cost.
        counted: Whether the reply's usage is written; not for completions from a file.
        more: Goes into each row.
    """
    asked = [slot for slot in range(job.first_slot, job.first_slot + job.n) if not shard.has(job.key, slot)]
    filled = set(shard.slots(job.key))
    spare = (slot for slot in range(plan.slots.stop, 1 << 20) if slot not in filled and slot not in asked)
    free = iter(asked)
    said = {"model": reply.model, "fingerprint": reply.fingerprint}
    rows: list[StoreRow] = []
    for number, choice in enumerate(reply.choices or [Choice("", None, refused="empty")]):
        slot = None if choice.refused else next(free, None)
        if slot is None and not choice.refused:
            slot = next(spare)
        row = _row(plan, job, request_id, number) | {"slot": slot, "text": choice.text, "finish_reason": choice.finish_reason}
        row |= {name: value for name, value in (said | {"reasoning": choice.reasoning}).items() if value is not None} | more
        if not rows and counted:
            usage = reply.usage
            row |= {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
            row |= {"cached_tokens": usage.cached_tokens} if usage.cached_tokens else {}
            row |= {"bound_usd": bound_usd} if bound_usd and not usage.told else {}
        if slot is None:
            row["refused"] = choice.refused
        if slot == 0 and job.request.root is None:
            row["asked"] = job.request.canonical(job.identity)
        rows.append(row)
    return rows
