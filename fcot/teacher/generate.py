"""From problems to completions: what the store has is taken, what is missing is bought, both steps of a prompt."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fcot.errors import FcotError
from fcot.progress import unwatched
from fcot.prompts.answers import AnswerRule
from fcot.prompts.teacher import TeacherPrompt
from fcot.records import Completion, Problem
from fcot.teacher.requests import Choice, Request, Teacher, Usage
from fcot.teacher.store import Row, ShardWriter, StoreFolder


@dataclass(frozen=True)
class Plan:
    """What makes a run's requests, beside the problem: kept together because every step needs all of it."""

    teacher: Teacher
    prompt: TeacherPrompt
    rule: AnswerRule
    chat: bool
    diversity: int
    run_id: str

    def step1(self, problem: Problem) -> Request:
        """The request for rationales."""
        return Request(self.prompt.ask(problem.question, self.chat), self.prompt.rationale_tokens, problem=problem)

    def step2(self, problem: Problem, root: str, rationale: str) -> Request:
        """The request for the answer that a rationale leads to."""
        text = self.prompt.ask_answer(problem.question, rationale, self.rule, self.chat)
        return Request(text, self.prompt.answer_tokens, root=root, problem=problem, rationale=rationale)

    def key(self, request: Request) -> str:
        """The request's key under this teacher."""
        return request.key(self.teacher.identity)


def generate_completions(
    plan: Plan,
    folder: StoreFolder,
    problems: Sequence[Problem],
    advance: Callable[[int], object] = unwatched,
) -> tuple[list[Completion], dict[str, Any]]:
    """D completions of each problem, in order of problem and slot, buying only what the store lacks.

    Args:
        plan: Teacher, prompt, D.
        folder: The store's folder for this task, model and prompt.
        problems: Problems with the same question share their completions.
        advance: Called with the number of completions that became whole or were given up.

    Returns:
        The completions, and the usage record (``requests``, ``prompt_tokens``, ``completion_tokens``, ``usd``,
        ``served_from_store``) of what this run paid for, over all its attempts.
    """
    by_key: dict[str, Problem] = {}
    for problem in problems:
        by_key.setdefault(plan.key(plan.step1(problem)), problem)
    for shard in {folder.shard_of(key) for key in by_key}:
        folder.refresh(shard)
    open_keys = [key for key in by_key if next(_missing(plan, folder, key, by_key[key]), None)]
    advance(plan.diversity * (len(problems) - len(open_keys)))
    while open_keys:
        with folder.buying(folder.shard_of(key) for key in open_keys) as writers:
            mine = {key: by_key[key] for key in open_keys if folder.shard_of(key) in writers}
            asyncio.run(_Purchase(plan, folder, writers, advance).run(mine))
        open_keys = [key for key in open_keys if key not in mine]
    completions = [completion for problem in problems for completion in _assemble(plan, folder, problem)]
    return completions, _usage(plan, folder, by_key)


_NEXT_SEED = 1_000_003  # further than any D, so that seeds of slots and of second tries never meet


@dataclass(frozen=True)
class _Job:
    """Slots of one request still to be bought; consecutive, so that the draw does not depend on interruptions."""

    request: Request
    key: str
    first_slot: int
    n: int


def _gave_up(plan: Plan, folder: StoreFolder, key: str) -> bool:
    """Whether a prompt has cost enough unusable answers: three, or as many as completions are wanted."""
    return len(folder.refused(key)) >= max(3, plan.diversity)


def _missing(plan: Plan, folder: StoreFolder, key: str, problem: Problem) -> Iterator[_Job]:
    """The jobs that complete one problem: step 1 for empty slots, step 2 for rationales without an answer."""
    filled = folder.filled(key)
    if not _gave_up(plan, folder, key):
        slot = 0
        while slot < plan.diversity:
            end = slot
            while end < plan.diversity and end not in filled and end - slot < plan.teacher.max_choices:
                end += 1
            if end > slot:
                yield _Job(plan.step1(problem), key, slot, end - slot)
            slot = max(end, slot + 1)
    for answer in _answers(plan, folder, key, problem):
        if answer.slot not in folder.filled(answer.key) and not _gave_up(plan, folder, answer.key):
            yield _Job(answer.request, answer.key, answer.slot, 1)


@dataclass(frozen=True)
class _Answer:
    """Where the answer to one stored rationale belongs: its request, key, and slot under that key."""

    rationale: Row
    request: Request
    key: str
    slot: int


def _answers(plan: Plan, folder: StoreFolder, key: str, problem: Problem) -> Iterator[_Answer]:
    """For each rationale of a problem, in slot order: identical ones share a step-2 key and take its slots in turn."""
    taken: Counter[str] = Counter()
    for slot in range(plan.diversity):
        if (row := folder.filled(key).get(slot)) is not None:
            request = plan.step2(problem, key, row["text"])
            answer_key = plan.key(request)
            yield _Answer(row, request, answer_key, taken[answer_key])
            taken[answer_key] += 1


@dataclass
class _Purchase:
    """Buys all jobs of some problems with a bounded number of requests in flight."""

    plan: Plan
    folder: StoreFolder
    writers: Mapping[str, ShardWriter]
    advance: Callable[[int], object]
    follow_ups: deque[_Job] = field(default_factory=deque)
    claimed: dict[str, int] = field(default_factory=dict)
    active: int = 0
    stop: FcotError | None = None

    async def run(self, problems: Mapping[str, Problem]) -> None:
        self.source = self._jobs(problems)
        self.changed = asyncio.Condition()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.plan.teacher.concurrency):
                    group.create_task(self._work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            await self.plan.teacher.close()
        if self.stop is not None:
            raise self.stop

    def _jobs(self, problems: Mapping[str, Problem]) -> Iterator[_Job]:
        for key, problem in problems.items():
            jobs = list(_missing(self.plan, self.folder, key, problem))
            self.advance(self.plan.diversity - sum(job.n for job in jobs))
            for answer in _answers(self.plan, self.folder, key, problem):  # before new ones arrive
                self.claimed[answer.key] = answer.slot
            yield from jobs

    def _claim(self, problem: Problem, root: str, rationale: str) -> tuple[Request, str, int]:
        """Identical rationales share one step-2 key; each takes the next of its slots."""
        request = self.plan.step2(problem, root, rationale)
        key = self.plan.key(request)
        self.claimed[key] = self.claimed.get(key, -1) + 1
        return request, key, self.claimed[key]

    async def _work(self) -> None:
        while (job := await self._take()) is not None:
            try:
                await self._buy(job)
            except FcotError as error:  # nothing new is sent; what is in flight is paid for, so it is waited for
                self.stop = self.stop or error
            finally:
                async with self.changed:
                    self.active -= 1
                    self.changed.notify_all()

    async def _take(self) -> _Job | None:
        """The next job; waits while others are in flight, because they may lead to more."""
        async with self.changed:
            while self.stop is None:
                job = self.follow_ups.popleft() if self.follow_ups else next(self.source, None)
                if job is not None:
                    self.active += 1
                    return job
                if not self.active:
                    return None
                await self.changed.wait()
            return None

    async def _buy(self, job: _Job) -> None:
        slots = deque(range(job.first_slot, job.first_slot + job.n))
        problem, root = job.request.problem, job.request.root or job.key
        assert problem is not None
        while slots and not _gave_up(self.plan, self.folder, job.key) and self.stop is None:
            asked = replace(job, first_slot=slots[0], n=len(slots))
            # After a refusal another seed: a server that honours seeds would give the same answer again, for money.
            seed = asked.first_slot + _NEXT_SEED * len(self.folder.refused(job.key))
            reply = await self.plan.teacher.generate(asked.request, asked.n, seed)
            rows = _to_rows(asked, self._place(asked.key, slots, reply.choices), reply.usage, self.plan.run_id, root)
            self.writers[self.folder.shard_of(root)].append(rows)
            for row in rows:
                if row["slot"] is None or row["slot"] >= self.plan.diversity:
                    continue
                if job.request.root is not None:
                    self.advance(1)
                    continue
                request, key, occurrence = self._claim(problem, root, row["text"])
                if occurrence not in self.folder.filled(key):
                    self.follow_ups.append(_Job(request, key, occurrence, 1))
                else:
                    self.advance(1)
        self.advance(len(slots))

    def _place(self, key: str, slots: deque[int], choices: Sequence[Choice]) -> list[tuple[int | None, Choice]]:
        """A slot for each usable choice: those asked for, then, where the server sent more, free ones from D on."""
        filled = self.folder.filled(key)
        spare = (slot for slot in itertools.count(self.plan.diversity) if slot not in filled)
        placed: list[tuple[int | None, Choice]] = []
        for choice in choices or [Choice("", None, refused="no_choices")]:
            slot = None if choice.refused else slots.popleft() if slots else next(spare)
            placed.append((slot, choice))
        return placed


def _to_rows(job: _Job, filled: Sequence[tuple[int | None, Choice]], usage: Usage, run_id: str, root: str) -> list[Row]:
    """Store rows of one reply. The prompt stands with the first slot only; usage is the whole request's, in each row."""
    request_id = uuid.uuid4().hex[:16]
    rows = []
    for slot, choice in filled:
        row: Row = {
            "key": job.key, "slot": slot, "root": root if job.request.root else None,
            "sample_index": job.request.problem.sample_index if job.request.problem else None,
            "text": choice.text, "finish_reason": choice.finish_reason,
            "request": request_id, "seed": job.first_slot, "n": job.n, "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens, "run": run_id, "time": round(time.time(), 3),
        }  # fmt: skip
        if slot is None:
            row["refused"] = choice.refused
        if slot == 0:
            row["prompt"] = job.request.prompt
        rows.append(row)
    return rows


def _assemble(plan: Plan, folder: StoreFolder, problem: Problem) -> Iterator[Completion]:
    """A problem's completions from the store; a slot the teacher never filled is an empty completion."""
    key = plan.key(plan.step1(problem))
    answers = {answer.rationale["slot"]: answer for answer in _answers(plan, folder, key, problem)}
    for slot in range(plan.diversity):
        if slot not in answers:
            yield Completion(problem.sample_index, slot, "", "", "refused")
            continue
        row, answer = answers[slot].rationale, folder.filled(answers[slot].key).get(answers[slot].slot)
        finish = row["finish_reason"] if answer else "refused"
        yield Completion(problem.sample_index, slot, row["text"], answer["text"] if answer else "", finish)


def _usage(plan: Plan, folder: StoreFolder, by_key: Mapping[str, Problem]) -> dict[str, Any]:
    """What this run paid for, counted from the rows that carry its id: right even after a kill in the middle."""
    requests: dict[str, Row] = {}
    served = 0
    for key, problem in by_key.items():
        answers = list(_answers(plan, folder, key, problem))
        rows = [*(answer.rationale for answer in answers), *folder.refused(key)]
        rows += [folder.filled(answer.key)[answer.slot] for answer in answers if answer.slot in folder.filled(answer.key)]
        rows += [row for answer_key in {answer.key for answer in answers} for row in folder.refused(answer_key)]
        for row in rows:
            if row["run"] == plan.run_id:
                requests[row["request"]] = row
            elif row["slot"] is not None:
                served += 1
    return {
        "requests": len(requests),
        "prompt_tokens": sum(row["prompt_tokens"] or 0 for row in requests.values()),
        "completion_tokens": sum(row["completion_tokens"] or 0 for row in requests.values()),
        "usd": None,
        "served_from_store": served,
    }
