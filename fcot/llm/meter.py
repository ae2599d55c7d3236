"""Progress and cost of a purchase, and the message when a budget does not allow the next request."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fcot.base.records import Completion, Problem
from fcot.llm.plan import Plan, assemble
from fcot.llm.requests import Usage
from fcot.llm.store.folder import Shard

_FIRST = 20  # completions that are judged before further problems are bought


@dataclass
class Meter:
    """Progress and cost of a purchase, for the budget and the progress line.

    Attributes:
        requested: Number of completions that the run needs.
        advance: Called with the number of further completions that are complete or given up, and with 0 as time passes.
        judge: Returns how many of a problem's completions curation will keep; None if nothing is judged.
        paid_usd: USD spent by all attempts of this run; None if the price is unknown.
        paid_before: USD spent by earlier attempts of this run.
        reserved_usd: Upper bound on the cost of the requests in flight, in USD.
        done: Number of completions that are complete or given up.
        bought: Number of the completions in ``done`` that this attempt bought.
        judged: Number of completions that were passed to ``judge``.
        kept: Number of the judged completions that curation will keep.
        requests: Number of requests that were answered.
        tokens: Prompt and completion tokens of the answered requests.
        started: Start of the purchase, by the monotonic clock, in seconds.
        status: Returns the teacher's part of the progress line.
    """

    requested: int
    advance: Callable[[int], object]
    judge: Callable[[Sequence[Completion]], int] | None = None
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

    def account(self, plan: Plan, usage: Usage, bound: float, batch: bool = False) -> float:
        """Count an answered request and its tokens.

        Args:
            plan: The run's plan, which has the price.
            usage: The tokens of the request.
            bound: The request's maximum cost, in USD.
            batch: Whether it was sent through the Batch API.

        Returns:
            The request's cost in USD; ``bound`` if the server did not report its tokens, 0 if the price is unknown.
        """
        self.requests += 1
        self.tokens += (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)
        if plan.price is None:
            return 0.0
        tokens = usage.prompt_tokens or 0, usage.completion_tokens or 0, usage.cached_tokens or 0
        return plan.price.usd(*tokens, batch) if usage.complete else bound

    def finished(self, n: int) -> None:
        """Count ``n`` more completions as complete or given up."""
        self.done += n
        self.advance(n)

    def judge_problem(self, plan: Plan, shard: Shard, key: str, problem: Problem) -> None:
        """Count how many completions of a problem curation will keep. All completions of the problem must be complete or given up."""
        if self.judge is None:
            return
        completions = [completion for completion, _ in assemble(plan, shard, key, problem)]
        self.judged += len(completions)
        self.kept += self.judge(completions)

    def __str__(self) -> str:
        """Such as ``12.0 requests/s, 3,400 tokens/s, $0.12 of $0.95, kept 71%, 16 of 50 in flight, retried: 3 x 429``."""
        seconds = max(1e-9, time.monotonic() - self.started)
        parts = [f"{self.requests / seconds:,.1f} requests/s", f"{self.tokens / seconds:,.0f} tokens/s"]
        if self.paid_usd is not None:
            expected = (self.paid_usd - self.paid_before) / self.bought * (self.requested - self.done) if self.bought else None
            parts.append(f"${self.paid_usd:,.4f}" + (f" of about ${self.paid_usd + expected:,.2f}" if expected is not None else ""))
        if self.judged:
            parts.append(f"kept {self.kept / self.judged:.0%}")
        return ", ".join([*parts, *filter(None, [self.status()])])


def first_problems(diversity: int) -> int:
    """Number of problems that are bought and judged before others are started: twenty completions, but at least five problems."""
    return max(5, -(-_FIRST // diversity))


def over_budget_message(plan: Plan, meter: Meter, bound: float, shared: bool = False) -> str:
    """The message of a run whose next request may exceed the budget.

    Args:
        plan: The run's plan.
        meter: The meter of the purchase.
        bound: The most that the next request can cost, in USD.
        shared: Whether the exceeded budget is the shared one; otherwise it is the run's own.
    """
    assert plan.price is not None
    source = f" (prices: {plan.price.source})" if plan.price.source else ""
    stored = _stored(meter)
    command = "the same command with a larger budget"
    if shared and plan.shared_budget is not None:
        budget = plan.shared_budget
        limit = f"{budget.option}={budget.usd:g}: ${budget.spent_usd():,.4f} spent or reserved by all jobs"
        command = budget.command
    else:
        limit = f"teacher.budget_usd={plan.budget_usd:g}: ${plan.spent_usd + (meter.paid_usd or 0.0):,.4f} spent"
    return f"{limit}{source}, and the next request may cost ${bound:,.4f}. {stored}; {command} continues"


def interrupted_message(plan: Plan, meter: Meter) -> str:
    """What a purchase that the user interrupted has stored and paid."""
    if plan.price is None or meter.paid_usd is None:
        return f"{_stored(meter)}; what they cost is unknown, because there is no price"
    budget = "" if plan.budget_usd is None else f" of teacher.budget_usd={plan.budget_usd:g}"
    return f"{_stored(meter)}; ${plan.spent_usd + meter.paid_usd:,.4f}{budget} spent by this run"


def _stored(meter: Meter) -> str:
    return f"{meter.done:,} of {meter.requested:,} completions are complete and stored"
