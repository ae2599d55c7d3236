"""The stage that makes sure that rationales have stored distributions, which ``objective.teacher=stored`` learns."""

from __future__ import annotations

from dataclasses import replace

from fcot.base.console import progress, say
from fcot.base.errors import FcotError
from fcot.base.records import CuratedCompletion, TrainingSample
from fcot.llm.distributions import TopTokens
from fcot.llm.generate import Generated, generate_completions
from fcot.llm.plan import Plan, slot_of
from fcot.llm.store.folder import StoreFolder
from fcot.llm.store.rows import StoreRow
from fcot.runs.run import Run
from fcot.stages.judging import judge_usd
from fcot.stages.table import Context, Summary
from fcot.stages.training import kept_rows
from fcot.student.data import StoredDistributions


def score(context: Context) -> Summary:
    """Let the teacher score the kept rationales that have no distributions, if it can (``teacher.score_stored``).

    Raises:
        FcotError: No kept rationale has a distribution.
    """
    run, store = context.run, context.run.store.refresh()
    plan = replace(run.plan, spent_usd=judge_usd(run))
    kept = kept_rows(run.directory)
    rows = [_row_of(run, plan, store, row) for row in kept]
    usage: Summary = {}
    if run.config.teacher.score_stored:
        scored: dict[str, set[int]] = {}
        for row in rows:
            if row is not None:
                scored.setdefault(row["key"], set()).add(row["slot"])
        problems = run.select(sorted({row.sample_index for row in kept}))
        with progress("score", len(problems) * plan.diversity, "completions") as bar:
            generate_completions(replace(plan, scored=scored), store, problems, bar.advance, watch=bar.watch)
        usage = {"teacher_usage": Generated(plan, store, run.select(run.split.train)).usage()}
        store.refresh()
    n_without = sum(row is None or not store.shard(row["key"]).distributions.has(row) for row in rows)
    if n_without == len(kept):
        raise FcotError(
            f"objective.teacher=stored: none of the {len(kept):,} kept rationales has a stored distribution. New completions have "
            "them; teacher.score_stored=true lets a server with vLLM's prompt_logprobs score stored ones, and teacher=hf always does"
        )
    if n_without:
        say(f"note: {n_without:,} of {len(kept):,} kept rationales have no stored distribution; the student learns their tokens alone")
    return {"rationales": len(kept), "without_distributions": n_without, **usage}


def _row_of(run: Run, plan: Plan, store: StoreFolder, sample: CuratedCompletion | TrainingSample) -> StoreRow | None:
    """The stored row of a rationale; None if there is none."""
    key = plan.root_key(store, run.problems[sample.sample_index])
    shard = store.shard(key)
    slot = slot_of(plan, shard, key, sample.completion_index)
    return None if slot is None else shard.row(key, slot)


def stored_distributions(run: Run) -> StoredDistributions | None:
    """The distributions that the run's teacher stored; None if it stored none."""
    options = run.config.teacher
    if not run.uses_rationales or not getattr(options, "top_logprobs", None):
        return None
    plan, store = run.plan, run.store.refresh()

    def of(sample: TrainingSample) -> TopTokens | None:
        row = _row_of(run, plan, store, sample)
        return None if row is None else store.shard(row["key"]).distributions.get(row)

    return StoredDistributions(options.tokenizer_source, of)
