"""Which generations a run needs, and which of them the store lacks: pure functions of a plan and a shard."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fcot.base.records import REFUSED, Completion, Problem
from fcot.llm.budget import SharedBudget
from fcot.llm.distributions import TopTokens
from fcot.llm.money import Price
from fcot.llm.requests import FINAL, LOST, SCORED, Choice, Reply, Request, Teacher
from fcot.llm.store.folder import Shard, StoreFolder
from fcot.llm.store.rows import StoreRow
from fcot.prompts.answers import AnswerRule
from fcot.prompts.teacher import TeacherPrompt
from fcot.prompts.thinking import separate, text_or_thought

_NEXT_SEED = 1_000_003  # larger than any D, so the seed of a repeated request never equals that of a slot
_TRIES = 3  # requests with unusable answers after which a prompt is given up


@dataclass(frozen=True)
class Plan:
    """Everything but the problem that determines a run's requests.

    Attributes:
        teacher: The teacher that answers the requests.
        prompt: The texts of the requests.
        rule: How answers are extracted and compared.
        diversity: D, the completions requested per problem.
        run_id: Written into every row that the run buys.
        first_slot: The first of the run's D slots. A run with another block of slots gets other rationales.
        resample_identical: Whether up to D more rationales are bought to replace repeated ones.
        price: The teacher's price; None if it is unknown.
        budget_usd: The most this run may spend; None for no limit.
        shared_budget: The budget of the sweep that the run belongs to; None without one.
        top_logprobs: How many of the likeliest tokens are stored at each token of a rationale; None: no distributions are stored.
        scored: The stored rationales to score where they have no distributions, as slots by step-1 key; nothing else is bought. None: new
            completions are bought, and they alone get distributions.
        spent_usd: What the run has paid for other requests, which ``budget_usd`` covers too.
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
    top_logprobs: int | None = None
    scored: Mapping[str, Collection[int]] | None = None
    spent_usd: float = 0.0

    @property
    def available_usd(self) -> float | None:
        """The most that these requests may cost, in USD; None for no limit."""
        return None if self.budget_usd is None else self.budget_usd - self.spent_usd

    @property
    def slots(self) -> range:
        """The run's step-1 slots."""
        return range(self.first_slot, self.first_slot + self.diversity)

    def step1(self, problem: Problem) -> Request:
        """The request for rationales."""
        text = self.prompt.first_request(problem.question, self.rule, self.teacher.chat)
        return Request(text, self.prompt.rationale_tokens, self.prompt.stop, problem=problem, top_logprobs=self.top_logprobs)

    def step2(self, problem: Problem, rationale: StoreRow) -> Request:
        """The request for the answer that follows a stored rationale."""
        return self._step2(problem, rationale, text_or_thought(rationale["text"]))

    def _step2(self, problem: Problem, rationale: StoreRow, text: str) -> Request:
        prompt = self.prompt.second_request(problem.question, text, self.rule, self.teacher.chat)
        return Request(prompt, self.prompt.answer_tokens, self.prompt.stop, rationale["key"], problem, text, rationale["slot"])

    def step2_keys(self, request: Request, problem: Problem, rationale: StoreRow) -> list[str]:
        """The keys of a request of :meth:`step2`, then those of earlier versions, which also sent the rationale's thought."""
        if request.rationale == rationale["text"]:
            return self.keys(request)
        return [*self.keys(request), *self.keys(self._step2(problem, rationale, rationale["text"]))]

    def key(self, request: Request) -> str:
        """The request's key under this teacher."""
        return request.key(self.teacher.identity)

    def keys(self, request: Request) -> list[str]:
        """The request's key under this teacher, then the keys under which earlier versions stored such a request."""
        older = getattr(self.teacher, "older_identities", ())  # a user's own back end need not have them
        return [request.key(identity) for identity in (self.teacher.identity, *older)]

    def bound_usd(self, request: Request, n: int, batch: bool = False) -> float:
        """The most that a request for ``n`` choices can cost, in USD; 0 if the price is unknown."""
        if self.price is None:
            return 0.0
        return self.price.usd(request.most_prompt_tokens(), n * request.max_tokens, batch=batch)

    def root_key(self, folder: StoreFolder, problem: Problem) -> str:
        """The key of a problem's step-1 request, or the key of an earlier version if rows are stored under it."""
        return folder.first_stored(self.keys(self.step1(problem)))


@dataclass(frozen=True)
class SlotRange:
    """Consecutive slots of one request, bought together.

    Attributes:
        request: The request that fills them.
        key: The request's key.
        first_slot: The first slot.
        n: Number of slots.
        seed: The seed that is sent with the request.
        identity: The teacher's part of the key.
    """

    request: Request
    key: str
    first_slot: int
    n: int
    seed: int
    identity: Mapping[str, Any]

    @property
    def root(self) -> str:
        """Key of the step-1 request, which determines the shard."""
        return self.request.root or self.key


def missing(plan: Plan, shard: Shard, key: str, problem: Problem) -> list[SlotRange]:
    """The requests that a problem needs next; none if it is complete or given up.

    These are step 1 for empty slots and step 2 for rationales without an answer. Call it again after their answers are stored: it then
    returns requests for choices that the server left out, and for replacements of unusable answers. Replacements have another seed,
    because a server that honors seeds would charge for the same answer again.
    """
    if plan.scored is not None:
        return [] if gave_up(plan, shard, key) else list(_scores(plan, shard, key, problem, plan.scored.get(key, ())))
    jobs: list[SlotRange] = []
    if not gave_up(plan, shard, key):
        request = plan.step1(problem)
        seed = _NEXT_SEED * shard.n_unusable(key)
        for first_slot, n in consecutive(slots_to_fill(plan, shard, key), plan.teacher.max_choices):
            jobs.append(SlotRange(request, key, first_slot, n, first_slot + seed, plan.teacher.identity))
    if jobs and plan.resample_identical:
        return jobs  # which rationales the problem will use is not known yet
    for answer in answers(plan, shard, key, problem):
        if not shard.has(answer.key, answer.slot) and not gave_up(plan, shard, answer.key):
            seed = _NEXT_SEED * shard.n_unusable(answer.key)
            jobs.append(SlotRange(answer.request, answer.key, answer.slot, 1, answer.slot + seed, plan.teacher.identity))
    return jobs


def _scores(plan: Plan, shard: Shard, key: str, problem: Problem, slots: Collection[int]) -> Iterator[SlotRange]:
    """The requests that score a problem's stored rationales. A text that was scored without a result is not sent again."""
    rows = [row for slot in slots if not shard.distributions.has(row := shard.row(key, slot))]
    scored = {row.get("of") for row in shard.cost_only_rows(key) if row.get("refused") == SCORED} if rows else set()
    request = plan.step1(problem)
    for row in rows:
        if row["slot"] not in scored:
            scoring = replace(request, max_tokens=1, scored=row["text"], rationale_slot=row["slot"])
            yield SlotRange(scoring, key, row["slot"], 1, row["slot"], plan.teacher.identity)


def distributions_of(shard: Shard, rows: Sequence[StoreRow], reply: Reply) -> list[tuple[StoreRow, TopTokens]]:
    """The distributions in a reply, each with the row of its text: a new row, or the stored row that was scored.

    Args:
        shard: The shard of the rows.
        rows: The rows of the reply (:func:`to_rows`).
        reply: The reply.
    """
    pairs = []
    for row, choice in zip(rows, reply.choices, strict=False):
        if choice.top is not None and row.get("refused") in (None, SCORED):
            pairs.append((row if row["slot"] is not None else shard.row(row["key"], row["of"]), choice.top))
    return pairs


def slots_to_fill(plan: Plan, shard: Shard, key: str) -> list[int]:
    """The empty step-1 slots to fill next: those of the run's D slots. Then, with resampling, one of the next D per repeated rationale."""
    empty = [slot for slot in plan.slots if not shard.has(key, slot)]
    if empty or not plan.resample_identical:
        return empty
    repeated = plan.diversity - len({shard.row(key, slot)["text"].strip() for slot in shard.slots(key) if slot < 2 * plan.diversity})
    return [slot for slot in range(plan.diversity, 2 * plan.diversity) if not shard.has(key, slot)][: max(0, repeated)]


def consecutive(slots: Sequence[int], longest: int) -> Iterator[tuple[int, int]]:
    """First slot and length of each block of consecutive slots. A block has at most ``longest`` slots.

    The blocks depend on the slots alone. So do the seeds, and therefore the samples do not depend on interruptions.
    """
    start = 0
    for end in range(1, len(slots) + 1):
        if end == len(slots) or slots[end] != slots[end - 1] + 1 or end - start == longest:
            yield slots[start], end - start
            start = end


def gave_up(plan: Plan, shard: Shard, key: str) -> bool:
    """Whether a prompt is given up because its answers are unusable.

    That is the case after at least D unusable answers from at least three requests, or after one refusal that no other try can change.
    """
    if not shard.n_unusable(key):
        return False
    unusable = shard.unusable_rows(key)
    enough = len(unusable) >= plan.diversity and len({row["request"] for row in unusable}) >= _TRIES
    return enough or any(row["refused"] in FINAL for row in unusable)


def chosen_slots(plan: Plan, shard: Shard, key: str) -> list[int]:
    """The filled slots whose rationales the problem uses: the run's D slots. With resampling, D of the first 2 D, distinct texts first."""
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
    """Where the answer to a stored rationale is stored: its request, key, and slot under that key."""

    rationale: StoreRow
    request: Request
    key: str
    slot: int


def answers(plan: Plan, shard: Shard, key: str, problem: Problem) -> Iterator[AnswerSlot]:
    """The answer slot of each rationale of a problem, in slot order; none for prompts of one request.

    Repeated rationales share a step-2 key: the first gets its slot 0, the second its slot 1, and so on.
    """
    if not plan.prompt.two_steps:
        return
    next_slot: Counter[str] = Counter()  # by step-2 key
    for slot in chosen_slots(plan, shard, key):
        row = shard.row(key, slot)
        request = plan.step2(problem, row)
        keys = plan.step2_keys(request, problem, row)
        answer_key = next((key for key in keys if shard.slots(key)), keys[0])
        yield AnswerSlot(row, request, answer_key, next_slot[answer_key])
        next_slot[answer_key] += 1


def assemble(plan: Plan, shard: Shard, key: str, problem: Problem) -> Iterator[tuple[Completion, list[StoreRow]]]:
    """A problem's D completions, each with the rows that it is made of.

    A completion that the teacher never gave is empty, and its finish reason says why. Other completions have the finish reason of the
    rationale, not of step 2, because text after the answer does no harm.
    """
    chosen = chosen_slots(plan, shard, key)
    by_slot = {answer.rationale["slot"]: answer for answer in answers(plan, shard, key, problem)}
    for index, slot in enumerate(_by_completion(chosen, plan)):
        if slot is None:
            yield Completion(problem.sample_index, index, "", "", _reason(shard, key)), []
            continue
        row = shard.row(key, slot)
        inner_thought, rationale_text, _ = separate(row["text"])
        thought = "\n".join(filter(None, (row.get("reasoning"), inner_thought)))
        if not plan.prompt.two_steps:
            rationale, answer_text = plan.prompt.split(row["text"], plan.rule)
            yield Completion(problem.sample_index, index, rationale, answer_text, row["finish_reason"], thought), [row]
            continue
        answer = by_slot[slot]
        if shard.has(answer.key, answer.slot):
            answer_row = shard.row(answer.key, answer.slot)
            answer_text = separate(answer_row["text"]).rest
            yield Completion(problem.sample_index, index, rationale_text, answer_text, row["finish_reason"], thought), [row, answer_row]
        else:
            yield Completion(problem.sample_index, index, rationale_text, "", _reason(shard, answer.key), thought), [row]


def rows_of(plan: Plan, shard: Shard, key: str, problem: Problem) -> Iterator[tuple[StoreRow, bool]]:
    """Every row that was bought for a problem's prompts, and whether one of its D completions uses it."""
    used = {key: set(chosen_slots(plan, shard, key))}
    for answer in answers(plan, shard, key, problem):
        used.setdefault(answer.key, set()).add(answer.slot)
    for used_key, used_slots in used.items():
        for slot in shard.slots(used_key):
            yield shard.row(used_key, slot), slot in used_slots
        for row in (*shard.unusable_rows(used_key), *shard.cost_only_rows(used_key)):
            yield row, False


def _by_completion(chosen: Sequence[int], plan: Plan) -> list[int | None]:
    """The slot of each completion index; None if the slot is empty. With resampling, the chosen slots come first and empty ones last."""
    if plan.resample_identical:
        return [*chosen, *[None] * (plan.diversity - len(chosen))]
    return [slot if slot in set(chosen) else None for slot in plan.slots]


def slot_of(plan: Plan, shard: Shard, key: str, completion_index: int | None) -> int | None:
    """The step-1 slot of a problem's completion; None if the completion has none."""
    by_completion = _by_completion(chosen_slots(plan, shard, key), plan)
    return by_completion[completion_index] if completion_index is not None and completion_index < len(by_completion) else None


def _reason(shard: Shard, key: str) -> str:
    """The finish reason of a completion that a prompt did not get: why its last answer was unusable."""
    reasons = [row["refused"] for row in shard.unusable_rows(key)]
    return REFUSED + (reasons[-1] if reasons else "empty")


def _row(plan: Plan, job: SlotRange, request_id: str, choice: int) -> StoreRow:
    """The fields that every row of a request has."""
    request = job.request
    parent = {} if request.rationale_slot is None else {"of": request.rationale_slot}
    return {
        "key": job.key, "slot": None, "root": request.root, "sample_index": request.problem.sample_index if request.problem else None,
        "request": request_id, "choice": choice, "seed": job.seed, "n": job.n, "run": plan.run_id, "time": round(time.time(), 3), **parent,
    }  # fmt: skip


def _content(request: Request, choice: Choice) -> tuple[str, str | None]:
    """The text of a choice's row, and why the row fills no slot; None if it fills one.

    A text that was scored by a request of its own fills the slot of that request, with or without distributions.
    """
    if request.scored is None:
        return choice.text, choice.refused
    if request.rationale_slot is not None:
        return choice.text, SCORED
    return request.scored, None if choice.refused == SCORED else choice.refused


def new_request_id() -> str:
    """A new id of a request, for its rows."""
    return uuid.uuid4().hex[:16]


def sent_row(plan: Plan, job: SlotRange, request_id: str, bound_usd: float | None) -> StoreRow:
    """The row of a request that is about to be sent. The rows of its answer supersede it.

    Args:
        plan: The run's plan.
        job: The slots that the request fills.
        request_id: The request's id, from :func:`new_request_id`.
        bound_usd: The request's maximum cost, in USD. None makes a row that cancels the earlier one: nothing was charged.
    """
    bound = {} if bound_usd is None else {"bound_usd": bound_usd}
    return _row(plan, job, request_id, -1) | {"text": "", "finish_reason": None, "refused": LOST} | bound


def to_rows(
    plan: Plan,
    job: SlotRange,
    shard: Shard,
    reply: Reply,
    request_id: str,
    *,
    bound_usd: float = 0.0,
    counted: bool = True,
    **extra: object,
) -> list[StoreRow]:
    """The store rows of one reply.

    Usable choices fill the requested slots that are empty. If the server sent more, the rest fill slots behind the run's.
    The first row has the request's usage or, if the server did not report it, an upper bound on its cost. The row of a rationale in
    slot 0 also has the request itself.

    Args:
        plan: The plan of the run that sent the request.
        job: The slots that the request was to fill.
        shard: The shard that the rows will be appended to.
        reply: The server's reply.
        request_id: The request's id, from :func:`new_request_id`.
        bound_usd: The most that the request can have cost, in USD.
        counted: Whether the reply's usage is written; false for completions from a file.
        extra: Fields added to each row.
    """
    requested = [slot for slot in range(job.first_slot, job.first_slot + job.n) if not shard.has(job.key, slot)]
    filled = set(shard.slots(job.key))
    spare = (slot for slot in range(plan.slots.stop, 1 << 20) if slot not in filled and slot not in requested)
    free = iter(requested)
    server = {"model": reply.model, "fingerprint": reply.fingerprint}
    rows: list[StoreRow] = []
    for number, choice in enumerate(reply.choices or [Choice("", None, refused="empty")]):
        text, refused = _content(job.request, choice)
        slot = None if refused else next(free, None)
        if slot is None and not refused:
            slot = next(spare)
        row = _row(plan, job, request_id, number) | {"slot": slot, "text": text, "finish_reason": choice.finish_reason}
        row |= {name: value for name, value in (server | {"reasoning": choice.reasoning}).items() if value is not None} | extra
        if not rows and counted:
            usage = reply.usage
            row |= {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
            row |= {"cached_tokens": usage.cached_tokens} if usage.cached_tokens else {}
            row |= {"bound_usd": bound_usd} if bound_usd and not usage.complete else {}
        if slot is None:
            row["refused"] = refused
        if slot == 0 and job.request.root is None:
            row["asked"] = job.request.canonical(job.identity)
        rows.append(row)
    return rows
