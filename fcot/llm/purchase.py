"""Buying completions online, with as many requests in flight as the teacher accepts. Each answer is stored before step 2 uses it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fcot.base.console import say
from fcot.base.errors import BudgetSpent, FcotError
from fcot.base.loop import run_async
from fcot.base.records import Problem
from fcot.base.stopping import stop_requested
from fcot.llm.budget import Lease
from fcot.llm.meter import Meter, first_problems, interrupted_message, over_budget_message
from fcot.llm.plan import Plan, SlotRange, distributions_of, gave_up, missing, new_request_id, sent_row, to_rows
from fcot.llm.store.folder import Shard, StoreFolder
from fcot.llm.throttle import Halted

_SYNC_EVERY_S = 1.0
_CLAIMED_TOGETHER = 32  # problems, so that the store is refreshed once for all of them
_RETRY_CLAIM_S = (0.1, 3.0)  # before problems that others have claimed are tried again: the first wait, and the longest


@dataclass
class _OpenProblem:
    """A problem that is being bought."""

    key: str  # step 1
    problem: Problem
    shard: Shard
    outstanding: int = 0  # requests that are queued or in flight
    counted: int = 0  # completions that the meter has counted


def buy(plan: Plan, folder: StoreFolder, to_buy: Sequence[tuple[str, Problem]], meter: Meter) -> None:
    """Buy the missing completions of some problems, while other processes may buy into the same store.

    This process claims a problem before it buys it. Other processes buy the problems that they have claimed; this one checks at the
    end whether they have completed them.

    Args:
        plan: The run's plan.
        folder: The store's folder.
        to_buy: Step-1 key and problem of each problem that is incomplete.
        meter: Updated as completions arrive.

    Raises:
        FcotError: The teacher fails for good, the budget is used up, or the disk is full. What was bought is in the store.
        KeyboardInterrupt: The user interrupted; the requests in flight have been answered and stored.
    """
    lease = plan.shared_budget.open() if plan.shared_budget is not None and plan.price is not None else None
    try:
        run_async(_Purchase(plan, folder, to_buy, meter, lease).run())
    except KeyboardInterrupt:
        say(interrupted_message(plan, meter))
        raise
    finally:
        folder.close()
        if lease is not None:
            lease.close()


def _check_no_batches(folder: StoreFolder) -> None:
    """Check that no submitted batch is open. Call it after claiming a key.

    A process that submits batches claims the whole store folder while it runs. If batches are open although this process could claim a
    key, that process has ended without collecting them.

    Raises:
        FcotError: A batch is open.
    """
    if pending := folder.open_batches():
        raise FcotError(
            f"{len(pending)} submitted batches are not collected yet ({pending[0].parent}). Buying online now would pay for their "
            "completions twice: collect them first, with teacher=openai_batch"
        )


class _Tries:
    """The account of one request. Before each try that may cost money, it stores a row with the try's maximum cost.

    If a try was certainly not charged, the next try uses its row. If no try follows, the row is cancelled.
    """

    def __init__(self, purchase: _Purchase, state: _OpenProblem, job: SlotRange, bound: float) -> None:
        self.purchase, self.state, self.job, self.bound = purchase, state, job, bound
        self.request_id = new_request_id()
        self.written = self.in_flight = False

    def sending(self) -> None:
        """Append the row of the try, unless an earlier try left an unused row."""
        self.in_flight = True
        if self.bound and not self.written:
            if not self.purchase.affordable(0.0):  # the tries before this one may have been charged
                self.in_flight = False
                raise self.purchase.budget_spent(0.0, self.bound)
            self.purchase.commit()
            self.state.shard.append([sent_row(self.purchase.plan, self.job, self.request_id, self.bound)])
            self.written = True

    def not_charged(self) -> None:
        """Leave the row for the next try."""
        self.in_flight = False

    def maybe_charged(self) -> None:
        """Keep the row, which counts at its maximum cost. The next try gets a new row."""
        self.in_flight = False
        if self.written:
            self.purchase.pay(self.bound)
            self.request_id, self.written = new_request_id(), False

    def give_up(self) -> None:
        """No try follows: cancel the row of a try that was not charged. A try in flight may be charged, so its row counts."""
        if self.written and self.in_flight:
            self.purchase.pay(self.bound)
        elif self.written:
            self.state.shard.append([sent_row(self.purchase.plan, self.job, self.request_id, None)])


class _Purchase:
    """One purchase: from problems to requests, answers and rows."""

    def __init__(self, plan: Plan, folder: StoreFolder, to_buy: Sequence[tuple[str, Problem]], meter: Meter, lease: Lease | None) -> None:
        self.plan = plan
        self.folder = folder
        self.meter = meter
        self.lease = lease
        self.spent_now = 0.0  # USD spent by this purchase
        self.waiting = deque(to_buy)  # problems that are not claimed yet
        self.opened = self.completed = 0
        self.claimed_by_others: deque[tuple[str, Problem]] = deque()
        self.retry_claims_at = self.retry_wait_s = 0.0
        self.announced_wait = False
        self.interrupts = 0
        self.jobs: deque[tuple[_OpenProblem, SlotRange]] = deque()
        self.closed: list[_OpenProblem] = []  # complete problems, released once they are on the disk
        self.stop: BaseException | None = None

    async def run(self) -> None:
        self.wake = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        sync_task = asyncio.create_task(self._keep_synced())
        try:
            with self._interruptible():
                await self._loop()
        finally:
            sync_task.cancel()
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, sync_task, return_exceptions=True)
            await self.plan.teacher.close()
        if self.stop is not None:
            raise self.stop

    async def _loop(self) -> None:
        while True:
            try:
                self._start_jobs()
            except FcotError as error:
                self._halt(error)
            if not self.tasks and (self.stop is not None or not self.claimed_by_others):
                return
            self.wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), min(1.0, max(0.05, self.retry_claims_at - time.monotonic())))
            self.meter.advance(0)
            if stop_requested() and not self.interrupts:
                self._interrupt()

    async def _keep_synced(self) -> None:
        """Once per second, force appended rows to the disk in a thread, then release the claims on complete problems."""
        while True:
            await asyncio.sleep(_SYNC_EVERY_S)
            try:
                closed, self.closed = self.closed, []
                await asyncio.to_thread(self.folder.sync)
                for state in closed:
                    state.shard.release(state.key)
                self.folder.refresh_claimed()
            except FcotError as error:
                self._halt(error)
                self.wake.set()

    def _start_jobs(self) -> None:
        """Keep as many requests in flight as the teacher accepts and the budget allows."""
        while self.stop is None and len(self.tasks) < self.plan.teacher.concurrency:
            if not self.jobs and not self._open_problems():
                return
            state, job = self.jobs[0]
            if gave_up(self.plan, state.shard, job.key):  # since it was queued
                self.jobs.popleft()
                self._request_ended(state)
                continue
            bound = self.plan.bound_usd(job.request, job.n)
            if not self.affordable(bound):
                if not self.tasks:
                    self.stop = self.budget_spent(bound, bound)
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
        """Send no further requests. Those in flight are paid for, so their answers are awaited."""
        self.plan.teacher.halt()
        if self.stop is None or isinstance(self.stop, Halted):  # a halted request may end before the one that says why
            self.stop = reason

    async def _buy(self, state: _OpenProblem, job: SlotRange, bound: float) -> None:
        tries = _Tries(self, state, job, bound)
        try:
            reply = await self.plan.teacher.generate(job.request, job.n, job.seed, tries)
        except BaseException:
            self.meter.reserved_usd -= bound
            tries.give_up()
            self.commit()  # the request reserves nothing any more
            raise
        self.meter.reserved_usd -= bound
        self.pay(self.meter.account(self.plan, reply.usage, bound))  # before the rows: they may not fit on the disk
        rows = to_rows(self.plan, job, state.shard, reply, tries.request_id, bound_usd=bound)
        state.shard.append(rows, distributions_of(state.shard, rows, reply))
        if job.request.root is not None or not self.plan.prompt.two_steps:
            n_new = sum(row["slot"] is not None and (self.plan.prompt.two_steps or row["slot"] in self.plan.slots) for row in rows)
            self._count(state, min(n_new, self.plan.diversity - state.counted))
        self._request_ended(state)

    def _request_ended(self, state: _OpenProblem) -> None:
        state.outstanding -= 1
        if not state.outstanding:
            self._queue_next(state)

    def _queue_next(self, state: _OpenProblem) -> None:
        """Queue the requests that a problem needs next. If it needs none, it is complete."""
        jobs = missing(self.plan, state.shard, state.key, state.problem)
        state.outstanding = len(jobs)
        self.jobs.extendleft((state, job) for job in reversed(jobs))  # before those of new problems, so that fewer are open at once
        if jobs:
            return
        self._count(state, self.plan.diversity - state.counted)
        self.completed += 1
        self.meter.judge_problem(self.plan, state.shard, state.key, state.problem)
        self.closed.append(state)

    def _count(self, state: _OpenProblem, n: int) -> None:
        state.counted += n
        self.meter.bought += n
        self.meter.finished(n)

    # --- claiming ---

    def _open_problems(self) -> bool:
        """Open problems until a request is queued; False if there is no problem that this process may buy now."""
        while not self.jobs:
            if not self.waiting and self.claimed_by_others and time.monotonic() >= self.retry_claims_at:
                self.waiting, self.claimed_by_others = self.claimed_by_others, deque()
            if not self.waiting or not (allowed := self._may_open()):
                return False
            states = self._claim(max(1, min(allowed, _CLAIMED_TOGETHER, self.plan.teacher.concurrency - len(self.tasks))))
            self.opened += len(states)
            for state in states:
                self._queue_next(state)
        return True

    def _may_open(self) -> int:
        """How many more problems may be opened. If completions are judged, the first problems are judged before others are bought."""
        n_first = first_problems(self.plan.diversity)
        if self.meter.judge is None or self.completed >= n_first:
            return _CLAIMED_TOGETHER
        return max(0, n_first - self.opened)

    def _claim(self, n: int) -> list[_OpenProblem]:
        """Claim up to ``n`` problems, and read which of their completions others have bought."""
        states: list[_OpenProblem] = []
        while self.waiting and len(states) < n:
            key, problem = self.waiting.popleft()
            shard = self.folder.shard(key)
            if shard.claim(key):
                states.append(_OpenProblem(key, problem, shard))
            else:
                self.claimed_by_others.append((key, problem))
        if states:
            self.retry_wait_s = 0.0
            _check_no_batches(self.folder)
            for shard in {state.shard for state in states}:
                shard.refresh()
        elif self.claimed_by_others:
            self._wait_for_others()
        return states

    def _wait_for_others(self) -> None:
        """Set the time at which problems claimed by others are tried again. The wait grows as long as no claim succeeds."""
        shortest, longest = _RETRY_CLAIM_S
        self.retry_wait_s = min(longest, 1.5 * self.retry_wait_s) or shortest
        self.retry_claims_at = time.monotonic() + self.retry_wait_s
        if not self.announced_wait and not self.tasks:
            self.announced_wait = True
            key, _ = self.claimed_by_others[0]
            say(f"waiting for completions that another run is buying ({self.folder.shard(key).buyers()})")

    # --- money ---

    def affordable(self, bound: float) -> bool:
        """Whether the budgets allow to spend ``bound`` USD in addition to what is paid and in flight."""
        if not self._own_budget_allows(bound):
            return False
        return self.lease is None or self.lease.covers(self.spent_now + self.meter.reserved_usd + bound)

    def _own_budget_allows(self, bound: float) -> bool:
        budget_usd, paid_usd = self.plan.available_usd, self.meter.paid_usd
        return budget_usd is None or paid_usd is None or paid_usd + self.meter.reserved_usd + bound <= budget_usd

    def budget_spent(self, bound: float, request: float) -> BudgetSpent:
        """The error of a request that the budgets do not allow.

        Args:
            bound: The part of the request's maximum cost that is not reserved yet, in USD.
            request: The request's maximum cost, in USD.
        """
        return BudgetSpent(over_budget_message(self.plan, self.meter, request, shared=self._own_budget_allows(bound)))

    def commit(self) -> None:
        """Write to the shared ledger what may have been spent if this process is killed now."""
        if self.lease is not None:
            self.lease.commit(self.spent_now + self.meter.reserved_usd)

    def pay(self, usd: float) -> None:
        """Count ``usd`` as spent."""
        self.spent_now += usd
        if self.meter.paid_usd is not None:
            self.meter.paid_usd += usd
        self.commit()

    # --- interruption ---

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Handle Ctrl-C and SIGTERM: the first stops sending and waits for the requests in flight, the second cancels them.

        If :mod:`fcot.base.stopping` already handles SIGTERM, its handler stays.
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
        status = self.plan.teacher.status() or "a moment"
        say(f"\nstopping: waiting for the requests that were sent and are paid for ({status}; interrupt again to cancel them)")
        self.wake.set()
