"""From problems to completions: those in the store are used, missing ones are bought."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fcot.base.console import say, unwatched
from fcot.base.errors import BudgetSpent
from fcot.base.files import fingerprint
from fcot.base.records import Completion, Problem
from fcot.base.stopping import sleep
from fcot.llm.meter import Meter
from fcot.llm.money import paid
from fcot.llm.plan import Plan, assemble, missing, rows_of
from fcot.llm.purchase import buy
from fcot.llm.store.folder import StoreFolder
from fcot.llm.store.keylocks import KeyLocks
from fcot.llm.store.rows import StoreRow


@dataclass(frozen=True)
class Generated:
    """The completions of some problems, read from the store during iteration: their texts are never all in memory."""

    plan: Plan
    folder: StoreFolder
    problems: Sequence[Problem]

    def __iter__(self) -> Iterator[Completion]:
        """D completions per problem, in order of problem and slot."""
        for problem in self.problems:
            key = self.plan.root_key(self.folder, problem)
            for completion, _ in assemble(self.plan, self.folder.shard(key), key, problem):
                yield completion

    def usage(self) -> dict[str, Any]:
        """What all attempts of this run paid for. It is counted from the rows with the run's id, so it is correct even after a kill.

        Returns:
            The record of :func:`fcot.llm.money.paid`, and ``served_from_store`` (number of used generations that another run paid
            for), ``identical_rationales`` (number of completions that repeat an earlier one of their problem), ``used_prompt_tokens``
            and ``used_completion_tokens`` (tokens of the used completions, no matter which run paid for them; None if the teacher did
            not report them all) and ``models`` (number of used generations by the model name that the server returned; absent if it
            returned none).
        """
        served = identical = 0
        models: Counter[str] = Counter()
        used = dict.fromkeys(_TOKENS, 0.0)
        uncounted = False

        def own_rows() -> Iterator[StoreRow]:
            nonlocal served, identical, uncounted
            for key, problem in {self.plan.root_key(self.folder, problem): problem for problem in self.problems}.items():
                texts: set[str] = set()
                rows = list(rows_of(self.plan, self.folder.shard(key), key, problem))
                for tokens in used_tokens(rows):
                    uncounted |= tokens is None
                    for name in _TOKENS:
                        used[name] += tokens[name] if tokens else 0
                for row, is_used in rows:
                    models.update([row["model"]] if is_used and "model" in row else [])
                    if is_used and row["root"] is None:
                        identical += row["text"].strip() in texts
                        texts.add(row["text"].strip())
                    if row["run"] == self.plan.run_id:
                        yield row
                    else:
                        served += is_used

        record = paid(own_rows(), self.plan.price)
        counted = {f"used_{name}": None if uncounted else round(used[name]) for name in _TOKENS}
        by_model = {"models": dict(models.most_common())} if models else {}
        return record | {"served_from_store": served, "identical_rationales": identical} | counted | by_model


_TOKENS = ("prompt_tokens", "completion_tokens")
_RETRY_LOCK_S = 0.2  # between tries to take the lock of another process


def used_tokens(rows: Iterable[tuple[StoreRow, bool]]) -> list[StoreRow | None]:
    """Tokens of each request with used rows, as ``prompt_tokens`` and ``completion_tokens``; None for a request without usage.

    Completion tokens are counted in proportion to the used choices.

    Args:
        rows: Rows of the store, and whether a completion uses each.
    """
    requests: dict[str, list[tuple[StoreRow, bool]]] = {}
    for row, used in rows:
        requests.setdefault(row["request"], []).append((row, used))
    tokens: list[StoreRow | None] = []
    for members in requests.values():
        if n_used := sum(used for _, used in members):
            usage = next((row for row, _ in members if row.get("completion_tokens")), None)
            share = n_used / len(members)  # not of the choices that were requested: a server may return fewer, or more
            tokens.append(usage and {"prompt_tokens": usage["prompt_tokens"] or 0, "completion_tokens": usage["completion_tokens"] * share})
    return tokens


def generate_completions(
    plan: Plan,
    folder: StoreFolder,
    problems: Sequence[Problem],
    advance: Callable[[int], object] = unwatched,
    judge: Callable[[Sequence[Completion]], int] | None = None,
    watch: Callable[[Meter], object] = unwatched,
) -> Generated:
    """D completions of each problem, buying only what the store lacks.

    Args:
        plan: The run's plan: teacher, prompt, D.
        folder: The store's folder for this task, model and prompt.
        problems: Problems with the same question share their completions.
        advance: Called with the number of further completions that are complete or given up.
        judge: Returns how many of a problem's completions curation keeps. The first problems are judged before others are bought.
            None: nothing is judged.
        watch: Called with the meter before the first request.
    """
    try:
        with _one_process(plan, folder):
            return _generate(plan, folder, problems, Meter(plan.diversity * len(problems), advance, judge), watch)
    except BaseException:
        folder.discard_if_empty()  # a run that bought nothing leaves nothing
        raise


def _generate(plan: Plan, folder: StoreFolder, problems: Sequence[Problem], meter: Meter, watch: Callable[[Meter], object]) -> Generated:
    """Buy what the store lacks; the meter counts the completions that are there."""
    folder.refresh()
    by_key: dict[str, Problem] = {}
    for problem in problems:
        by_key.setdefault(plan.root_key(folder, problem), problem)
    generated = Generated(plan, folder, problems)
    to_buy = [(key, problem) for key, problem in by_key.items() if missing(plan, folder.shard(key), key, problem)]
    meter.finished(plan.diversity * (len(problems) - len(to_buy)))
    if not to_buy:
        folder.close()  # moves the rows of killed buyers into the shards if no process is buying
        return generated
    if plan.price is not None:
        meter.paid_usd = meter.paid_before = generated.usage()["usd"]
    meter.status = plan.teacher.status
    watch(meter)
    from fcot.llm.batch import BatchModel, buy_in_batches

    try:
        if isinstance(plan.teacher, BatchModel):
            buy_in_batches(plan, folder, to_buy, meter)
        else:
            buy(plan, folder, to_buy, meter)
    except BudgetSpent as error:
        error.usage = generated.usage()
        raise
    return generated


@contextlib.contextmanager
def _one_process(plan: Plan, folder: StoreFolder) -> Iterator[None]:
    """Let the processes of a run with a budget buy one after the other, because none knows what another has in flight."""
    if plan.budget_usd is None:
        yield
        return
    locks, run = KeyLocks(folder.path / "budgets.lock"), fingerprint(plan.run_id)
    if not locks.take(run):
        say(f"waiting for another process that spends this run's teacher.budget_usd={plan.budget_usd:g}")
        while not locks.take(run):
            sleep(_RETRY_LOCK_S)
    try:
        yield
    finally:
        locks.close()
