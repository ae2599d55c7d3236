"""Buying online: as many requests in flight as the teacher takes, each answer on disk before the next step uses it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from fcot.errors import BudgetSpent, FcotError
from fcot.progress import say
from fcot.records import Completion, Problem
from fcot.stopping import asked
from fcot.teacher.plan import Job, Plan, assemble, gave_up, missing, to_rows
from fcot.teacher.requests import LOST, Choice, Usage
from fcot.teacher.store import Shard, StoreFolder


@dataclass
class Meter:
    """What a purchase has done so far, for the budget and for whoever watches.

    Attributes:
        asked: Completions in all.
        paid_usd: Spent by this run before and now, as far as the prices are known.
        paid_before: Spent by earlier attempts of it.
        reserved_usd: Upper bound on what is in flight.
        judge: Whether a completion will be kept; None where that is nobody's question.
        status: What the teacher has to add.
        advance: Called with the completions that became whole or were given up, and with 0 as time passes.
    """

    asked: int
    advance: Callable[[int], object]
    judge: Callable[[Completion], bool] | None = None
    paid_usd: float | None = None
    paid_before: float = 0.0
    reserved_usd: float = 0.0
    done: int = 0
    bought: int = 0
    judged: int = 0
    kept: int = 0
    requests: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    status: Callable[[], str] = str

    def account(self, plan: Plan, usage: Usage, bound: float, batch: bool = False) -> None:
        """Enter what a reply cost: by its usage, or at its bound where the server did not say."""
        self.requests += 1
        self.tokens += (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)
        if plan.price is None or self.paid_usd is None:
            return
        tokens = usage.prompt_tokens or 0, usage.completion_tokens or 0, usage.cached_tokens or 0
        self.paid_usd += plan.price.usd(*tokens, batch) if usage.told else bound

    def finished(self, n: int) -> None:
        """Count ``n`` more completions as whole or given up."""
        self.done += n
        self.advance(n)

    def judge_all(self, plan: Plan, shard: Shard, key: str, problem: Problem) -> None:
        """Count how many of a whole problem's completions will be kept."""
        if self.judge is None:
            return
        for completion, _ in assemble(plan, shard, key, problem):
            self.judged += 1
            self.kept += self.judge(completion)

    def __str__(self) -> str:
        """Such as ``12.0 requests/s, 3,400 tokens/s, $0.12 of $0.95, kept 71%, 16 of 50 in flight, retried: 3 x 429``."""
        seconds = max(1e-9, time.monotonic() - self.started)
        parts = [f"{self.requests / seconds:,.1f} requests/s", f"{self.tokens / seconds:,.0f} tokens/s"]
        if self.paid_usd is not None:
            to_come = (self.paid_usd - self.paid_before) / self.bought * (self.asked - self.done) if self.bought else None
            parts.append(f"${self.paid_usd:,.4f}" + (f" of about ${self.paid_usd + to_come:,.2f}" if to_come is not None else ""))
        if self.judged:
            parts.append(f"kept {self.kept / self.judged:.0%}")
        return ", ".join([*parts, *filter(None, [self.status()])])


def over_budget(plan: Plan, meter: Meter, bound: float) -> str:
    """The message that ends a run whose next request may cost more than is left."""
    return (
        f"teacher.budget_usd={plan.budget_usd:g}: ${meter.paid_usd:,.4f} spent, and the next request may cost ${bound:,.4f}. "
        f"{meter.done:,} of {meter.asked:,} completions are whole and kept in the store; the same command with a larger budget continues"
    )


@dataclass
class _Open:
    """A problem being bought: its requests in flight or queued, and the completions already counted."""

    key: str
    problem: Problem
    shard: Shard
    outstanding: int = 0
    counted: int = 0


def buy(plan: Plan, folder: StoreFolder, wanted: Sequence[tuple[str, Problem]], meter: Meter) -> None:
    """Complete all problems of ``wanted``, sharing the store with whoever else buys from it.

    Shards are taken one after the other, each until its problems are whole: two processes work side by side, and
    holding one, neither ever waits for another.

    Raises:
        FcotError: The teacher stops, the budget is used up, or the disk is full. What was bought is in the store.
        KeyboardInterrupt: After waiting for what was in flight.
    """
    left: dict[Shard, list[tuple[str, Problem]]] = {}
    for key, problem in wanted:
        left.setdefault(folder.shard(key), []).append((key, problem))
    held: Shard | None = None
    try:
        while left:
            held = next((shard for shard in left if shard.acquire(wait=False)), None)
            if held is None:
                say(f"waiting for another run that is buying from the same part of the store ({folder.path})")
                held = next(iter(left))
                held.acquire(wait=True)
            _check_no_batches(folder)
            purchase = _Purchase(plan, folder, meter, left, held)
            held = None
            asyncio.run(purchase.run())
    finally:
        if held is not None:
            held.release()


def _check_no_batches(folder: StoreFolder) -> None:
    """Look after a lock was taken: whoever submits batches holds all locks, so one that died has left them open."""
    if pending := folder.open_batches():
        raise FcotError(
            f"{len(pending)} submitted batches of this store are not collected yet ({pending[0].parent}), and what they bring would be "
            "bought twice: teacher=openai_batch collects them"
        )


@dataclass
class _Tries:
    """The account of one request."""

    purchase: _Purchase
    state: _Open
    job: Job
    bound: float

    def sending(self) -> None:
        """Its bound is reserved."""

    def not_charged(self) -> None:
        """Its bound stays reserved."""

    def maybe_charged(self) -> None:
        self.purchase.count_lost(self.state, self.job, self.bound)


class _Purchase:
    """One pass over the shards that are free; what others hold stays in ``left``."""

    def __init__(
        self, plan: Plan, folder: StoreFolder, meter: Meter, left: dict[Shard, list[tuple[str, Problem]]], first: Shard | None
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.interrupts = 0
        self.meter = meter
        self.left = left
        self.first = first
        self.jobs: deque[tuple[_Open, Job]] = deque()
        self.open: dict[Shard, int] = {}  # problems not yet whole
        self.stop: BaseException | None = None

    async def run(self) -> None:
        self.wake = asyncio.Event()
        self.source = self._problems()
        self.tasks: set[asyncio.Task[None]] = set()
        try:
            with self._interruptible():
                await self._loop()
        finally:
            for task in self.tasks:
                task.cancel()
            for shard in list(self.open):
                shard.release()
            if self.first is not None:
                self.first.release()
            await self.plan.teacher.close()
        if self.stop is not None:
            raise self.stop

    async def _loop(self) -> None:
        while True:
            try:
                self._start_jobs()
            except FcotError as error:
                self._halt(error)
            if not self.tasks:
                return
            self.wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), 1.0)
            self.meter.advance(0)
            if asked() and not self.interrupts:
                self._interrupt()

    def _start_jobs(self) -> None:
        """Keep as many requests in flight as the teacher takes and the budget allows."""
        while self.stop is None and len(self.tasks) < self.plan.teacher.concurrency:
            if not self.jobs and not self._open_next():
                return
            state, job = self.jobs[0]
            if gave_up(self.plan, state.shard, job.key):  # since it was queued
                self.jobs.popleft()
                self._came_back(state)
                continue
            bound = self._bound(job)
            if not self._affordable(bound):
                if not self.tasks:
                    self.stop = BudgetSpent(over_budget(self.plan, self.meter, bound))
                return
            self.jobs.popleft()
            self.meter.reserved_usd += bound
            task = asyncio.create_task(self._buy(state, job, bound))
            self.tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self.wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._halt(error)

    def _halt(self, reason: BaseException) -> None:
        """Send nothing new; what is in flight is paid for, so it is waited for."""
        self.plan.teacher.halt()
        self.stop = self.stop or reason

    async def _buy(self, state: _Open, job: Job, bound: float) -> None:
        try:
            reply = await self.plan.teacher.generate(job.request, job.n, job.seed, _Tries(self, state, job, bound))
        finally:
            self.meter.reserved_usd -= bound
        rows = to_rows(self.plan, job, state.shard, reply.choices, reply.usage, 0.0 if reply.usage.told else bound)
        state.shard.append(rows)
        self.meter.account(self.plan, reply.usage, bound)
        if job.request.root is not None or not self.plan.prompt.two_steps:
            new = sum(row["slot"] is not None and row["slot"] < self.plan.diversity for row in rows)
            self._count(state, min(new, self.plan.diversity - state.counted))
        self._came_back(state)

    def count_lost(self, state: _Open, job: Job, bound: float) -> None:
        """Count a try that may have been charged at its bound, here and for later attempts of this run.

        Raises:
            BudgetSpent: Another one may cost more than is left.
        """
        if not bound:
            return
        state.shard.append(to_rows(self.plan, job, state.shard, [Choice("", None, LOST)], None, bound))
        self.meter.paid_usd = (self.meter.paid_usd or 0.0) + bound
        if not self._affordable(0.0):
            raise BudgetSpent(over_budget(self.plan, self.meter, bound))

    def _came_back(self, state: _Open) -> None:
        state.outstanding -= 1
        if not state.outstanding:
            self._go_on(state)

    def _go_on(self, state: _Open) -> None:
        """Queue what a problem needs next; where that is nothing, it is whole."""
        jobs = missing(self.plan, state.shard, state.key, state.problem)
        state.outstanding = len(jobs)
        self.jobs.extendleft((state, job) for job in reversed(jobs))  # before new problems: fewer are open at once
        if jobs:
            return
        self._count(state, self.plan.diversity - state.counted)
        self.meter.judge_all(self.plan, state.shard, state.key, state.problem)
        self._close(state.shard)

    def _close(self, shard: Shard) -> None:
        self.open[shard] -= 1
        if not self.open[shard]:
            del self.open[shard]
            shard.release()

    def _count(self, state: _Open, n: int) -> None:
        state.counted += n
        self.meter.bought += n
        self.meter.finished(n)

    def _open_next(self) -> bool:
        """Open problems until there is something to ask; False where none are left that this process may buy."""
        while not self.jobs and (state := next(self.source, None)) is not None:
            self._go_on(state)
        return bool(self.jobs)

    def _problems(self) -> Iterator[_Open]:
        for shard in list(self.left):
            if shard is not self.first and not shard.acquire(wait=False):
                continue
            if shard is self.first:
                self.first = None
            problems = self.left.pop(shard)
            self.open[shard] = len(problems) + 1  # one for this loop: closed only when all of them were opened
            _check_no_batches(self.folder)
            for key, problem in problems:
                yield _Open(key, problem, shard)
            self._close(shard)

    # --- money ---

    def _bound(self, job: Job) -> float:
        """The most a request can cost, in USD; 0 where that does not matter."""
        if self.plan.price is None or self.plan.budget_usd is None:
            return 0.0
        return self.plan.price.usd(job.request.most_prompt_tokens(), job.n * job.request.max_tokens)

    def _affordable(self, bound: float) -> bool:
        budget, paid = self.plan.budget_usd, self.meter.paid_usd
        return budget is None or paid is None or paid + self.meter.reserved_usd + bound <= budget

    # --- interruption ---

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let the first Ctrl-C or SIGTERM stop sending and wait for what is in flight, the second one leave it.

        A SIGTERM that :mod:`fcot.stopping` listens to stays its own.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        signals = [signal.SIGINT, *([signal.SIGTERM] if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL else [])]
        for number in signals:
            loop.add_signal_handler(number, self._interrupt)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def _interrupt(self) -> None:
        self.interrupts += 1
        if self.interrupts > 1:
            for task in self.tasks:
                task.cancel()
            return
        self._halt(KeyboardInterrupt())
        say(f"\nstopping: waiting for what was sent and is paid for ({self.plan.teacher.status() or 'a moment'}; again to leave it)")
        self.wake.set()
