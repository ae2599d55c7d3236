"""Scores of texts that a teacher did not write: its distributions at their tokens, bought through the store like everything else.

A request is a :class:`Problem` whose rationale is the text to score, so store, budget and resuming treat it like any other request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fcot.base.records import Problem
from fcot.llm.distributions import TopTokens
from fcot.llm.generate import Generated, generate_completions
from fcot.llm.money import paid
from fcot.llm.plan import Plan
from fcot.llm.requests import Request
from fcot.llm.store.folder import StoreFolder
from fcot.llm.store.rows import StoreRow

NAME = "score"  # stands in the place of a prompt's name in the store


@dataclass(frozen=True)
class ScoringPlan(Plan):
    """The requests that score texts under the prompt of a run, one per text."""

    def step1(self, problem: Problem) -> Request:
        """The request that scores the problem's rationale."""
        assert problem.rationale is not None
        return replace(super().step1(problem), max_tokens=1, stop=(), scored=problem.rationale)


def scoring_plan(plan: Plan, spent_usd: float) -> ScoringPlan:
    """Plan the scores of texts under the prompt of a run.

    Args:
        plan: The run's plan; ``top_logprobs`` is the number of tokens at each position.
        spent_usd: What the run has paid for other requests, in USD. The scores may cost the rest of the budget.
    """
    return ScoringPlan(
        plan.teacher, replace(plan.prompt, two_steps=False), plan.rule, 1, f"{plan.run_id}/{NAME}", price=plan.price,
        budget_usd=plan.budget_usd, shared_budget=plan.shared_budget, top_logprobs=plan.top_logprobs, spent_usd=spent_usd,
    )  # fmt: skip


def score(plan: ScoringPlan, folder: StoreFolder, problems: Sequence[Problem]) -> list[TopTokens | None]:
    """Score texts; those that the store has are not sent.

    Args:
        plan: The plan of the scores.
        folder: The store's folder of scores.
        problems: Problems with the texts as their rationales.

    Returns:
        The distributions at the tokens of each text; None where the teacher gave none that belong to the text.

    Raises:
        BudgetSpent: The budget does not allow the next request. What was scored is in the store.
    """
    if plan.budget_usd is not None:
        of_others = _usd(usage_of_scores(plan, folder)) - _usd(Generated(plan, folder, problems).usage())
        plan = replace(plan, spent_usd=plan.spent_usd + of_others)
    generate_completions(plan, folder, problems)
    folder.refresh()
    return [stored_score(plan, folder, problem) for problem in problems]


def stored_score(plan: Plan, folder: StoreFolder, problem: Problem) -> TopTokens | None:
    """The stored distributions of a problem's text; None if there are none."""
    key = plan.root_key(folder, problem)
    shard = folder.shard(key)
    return shard.distributions.get(shard.row(key, 0)) if shard.has(key, 0) else None


def usage_of_scores(plan: ScoringPlan, folder: StoreFolder) -> dict[str, Any]:
    """What all attempts of a run paid for scores, as :func:`fcot.llm.money.paid`.

    All rows of the run count. An attempt that was killed may have scored texts that no later one scores.
    """

    def own_rows() -> Iterator[StoreRow]:
        for shard in folder.refresh().shards():
            for path, begin, _, row in shard.rows():
                if row is not None and row.get("run") == plan.run_id and shard.is_current(row, path, begin):
                    yield row

    return paid(own_rows(), plan.price)


def _usd(usage: dict[str, Any]) -> float:
    return usage["usd"] or 0.0
