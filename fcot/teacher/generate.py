"""From problems to completions: what the store has is taken, what is missing is bought."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fcot.errors import BudgetSpent
from fcot.progress import unwatched
from fcot.records import Completion, Problem
from fcot.teacher.money import paid
from fcot.teacher.plan import Plan, assemble, missing, rows_of
from fcot.teacher.purchase import Meter, buy
from fcot.teacher.store import Row, StoreFolder


@dataclass(frozen=True)
class Generated:
    """The completions of some problems, read from the store as they are asked for: texts never stand in memory together."""

    plan: Plan
    folder: StoreFolder
    problems: Sequence[Problem]

    def __iter__(self) -> Iterator[Completion]:
        """D completions a problem, in order of problem and slot."""
        for problem in self.problems:
            key = self.plan.key(self.plan.step1(problem))
            for completion, _ in assemble(self.plan, self.folder.shard(key), key, problem):
                yield completion

    def usage(self) -> dict[str, Any]:
        """What this run paid for, over all its attempts, counted from the rows that carry its id: right even after a kill.

        Beside :func:`fcot.teacher.money.paid`'s record: ``served_from_store``, the generations that another run had paid,
        ``identical_rationales``, completions that repeat an earlier one of their problem, and ``used_prompt_tokens`` and
        ``used_completion_tokens``, those of the completions whoever paid them; None where the teacher did not count them all.
        """
        served = identical = 0
        tokens: list[Row | None] = []

        def own() -> Iterator[Row]:
            nonlocal served, identical
            for key, problem in {self.plan.key(self.plan.step1(problem)): problem for problem in self.problems}.items():
                texts: set[str] = set()
                rows = list(rows_of(self.plan, self.folder.shard(key), key, problem))
                tokens.extend(used_tokens(rows))
                for row, used in rows:
                    if used and row["root"] is None:
                        identical += row["text"].strip() in texts
                        texts.add(row["text"].strip())
                    if row["run"] == self.plan.run_id:
                        yield row
                    else:
                        served += used

        record = paid(own(), self.plan.price)
        known = [one for one in tokens if one is not None]
        counted = {f"used_{name}": round(sum(one[name] for one in known)) if len(known) == len(tokens) else None for name in _TOKENS}
        return record | {"served_from_store": served, "identical_rationales": identical} | counted


_TOKENS = ("prompt_tokens", "completion_tokens")


def used_tokens(rows: Iterable[tuple[Row, bool]]) -> list[Row | None]:
    """Tokens of the requests that brought used rows, each choice with its share; None for a request that nobody counted."""
    requests: dict[str, list[tuple[Row, bool]]] = {}
    for row, used in rows:
        requests.setdefault(row["request"], []).append((row, used))
    found: list[Row | None] = []
    for members in requests.values():
        if n_used := sum(used for _, used in members):
            usage = next((row for row, _ in members if row.get("completion_tokens")), None)
            share = n_used / members[0][0]["n"]
            found.append(usage and {"prompt_tokens": usage["prompt_tokens"] or 0, "completion_tokens": usage["completion_tokens"] * share})
    return found


def generate_completions(
    plan: Plan,
    folder: StoreFolder,
    problems: Sequence[Problem],
    advance: Callable[[int], object] = unwatched,
    judge: Callable[[Completion], bool] | None = None,
    watch: Callable[[Meter], object] = unwatched,
) -> Generated:
    """D completions of each problem, buying only what the store lacks.

    Args:
        plan: Teacher, prompt, D.
        folder: The store's folder for this task, model and prompt.
        problems: Problems with the same question share their completions.
        advance: Called with the number of completions that became whole or were given up.
        judge: Whether a completion will be kept, for the progress line; None shows nothing of the kind.
        watch: Given the meter before the first request.
    """
    wanted: dict[str, Problem] = {}
    for problem in problems:
        wanted.setdefault(plan.key(plan.step1(problem)), problem)
    for shard in {folder.shard(key) for key in wanted}:
        shard.refresh()
    generated = Generated(plan, folder, problems)
    open_keys = {key for key, problem in wanted.items() if missing(plan, folder.shard(key), key, problem)}
    meter = Meter(plan.diversity * len(problems), advance, judge)
    meter.finished(plan.diversity * (len(problems) - len(open_keys)))
    if not open_keys:
        return generated
    if plan.price is not None:
        meter.paid_usd = meter.paid_before = generated.usage()["usd"]
    meter.status = plan.teacher.status
    watch(meter)
    to_buy = [(key, problem) for key, problem in wanted.items() if key in open_keys]
    from fcot.teacher.batch import BatchTeacher, buy_in_batches

    try:
        if isinstance(plan.teacher, BatchTeacher):
            buy_in_batches(plan, folder, to_buy, meter)
        else:
            buy(plan, folder, to_buy, meter)
    except BudgetSpent as error:
        error.usage = generated.usage()
        raise
    return generated
