"""The stages that make sure that the teacher's distributions are known: those of rationales, and those of texts of the student.

``objective.teacher=stored`` learns distributions of rationales; ``objective.teacher=server`` also those of what the student writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fcot.base.console import progress, say
from fcot.base.errors import FcotError
from fcot.base.records import CuratedCompletion, TrainingSample
from fcot.llm.distributions import TopTokens
from fcot.llm.generate import Generated, generate_completions
from fcot.llm.logprobs import SCORING
from fcot.llm.plan import Plan, missing, slot_of
from fcot.llm.score import NAME, ScoringPlan, scoring_plan, usage_of_scores
from fcot.llm.score import score as score_texts
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
            f"objective.teacher={run.config.objective.teacher}: none of the {len(kept):,} kept rationales has a stored distribution. "
            "New completions have them; teacher.score_stored=true lets a server with vLLM's prompt_logprobs score stored ones, and "
            "teacher=hf always does"
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
    """The distributions that the run's teacher stored; None if it stores none."""
    options = run.config.teacher
    if run.teacher is None or not getattr(options, "top_logprobs", None):
        return None
    plan, store = run.plan, run.store.refresh()

    def of(sample: TrainingSample) -> TopTokens | None:
        row = _row_of(run, plan, store, sample)
        return None if row is None else store.shard(row["key"]).distributions.get(row)

    return StoredDistributions(options.tokenizer_source, of)


# --- texts of the student ---------------------------------------------------------------------------------------------

_PROBE = "The answer is 1."  # any text that every tokenizer spells


def probe(context: Context) -> Summary:
    """Check that the server scores texts, with one request; then look after the distributions of rationales, if the run learns any.

    Raises:
        FcotError: The server does not return distributions of a text.
    """
    run = context.run
    plan, folder = student_scores(run), run.store_of(NAME).refresh()
    for problem in run.select(run.split.train):  # what has failed before is stored and not sent again: the next problem's is sent
        text = replace(problem, rationale=text_for(plan, _PROBE))
        known = not missing(plan, folder.shard(key := plan.root_key(folder, text)), key, text)
        if score_texts(plan, folder, [text])[0] is not None:
            break
        if not known:
            raise FcotError(
                f"objective.teacher=server: the server of teacher.model={run.teacher_name} gave no distributions of a text that it was "
                f"sent, or none whose tokens spell it. It must return {SCORING}, as vLLM does, and "
                f"teacher.tokenizer={run.config.teacher.tokenizer} must be that of its model. A local model needs no server: "
                "objective.teacher=FOLDER"
            )
    return {} if run.config.method.own_only else score(context)


def student_scores(run: Run) -> ScoringPlan:
    """Plan the scores of what the student writes. They may cost what rationales and judge leave of the budget."""
    rationales = Generated(run.plan, run.store.refresh(), run.select(run.split.train)).usage()["usd"] if run.uses_rationales else 0.0
    return scoring_plan(run.plan, (rationales or 0.0) + judge_usd(run))


def text_for(plan: Plan, rationale: str) -> str:
    """A rationale as it follows the teacher's prompt: an endpoint that continues a text gets a space before it."""
    return rationale if plan.teacher.chat or not rationale else f" {rationale}"


def score_rationales(run: Run, rationales: Sequence[tuple[int, str]]) -> list[TopTokens | None]:
    """Let the server score rationales of the student. Only one rank calls this.

    Args:
        run: The run.
        rationales: Sample index of the problem, and the text. Nothing is sent for an empty one.

    Returns:
        The distributions at the tokens of each rationale; None where there are none.
    """
    plan, folder = student_scores(run), run.store_of(NAME)
    problems = [replace(run.problems[index], rationale=text_for(plan, text)) for index, text in rationales if text]
    tops = iter(score_texts(plan, folder, problems))
    return [next(tops) if text else None for _, text in rationales]


def scoring_usage(run: Run) -> Summary:
    """What the run paid for the scores of the student's texts."""
    return usage_of_scores(student_scores(run), run.store_of(NAME)) | {"served_from_store": 0, "identical_rationales": 0}
