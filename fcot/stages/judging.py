"""The stage in which the teacher judges the kept rationales (``curation.judge``): does each step follow?

A request is a :class:`Problem` whose question holds the whole text, so store, budget and resuming treat it like any other request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fcot.base.console import progress, say
from fcot.base.errors import FcotError
from fcot.base.files import read_json, read_jsonl, write_jsonl
from fcot.base.records import Problem
from fcot.curation.choice import Place
from fcot.curation.filters import WRONG_STEP
from fcot.llm.generate import generate_completions
from fcot.llm.plan import Plan, missing
from fcot.llm.store.folder import StoreFolder
from fcot.prompts import judge as prompts
from fcot.prompts.judge import Verdict
from fcot.prompts.steps import steps_of
from fcot.prompts.teacher import TeacherPrompt
from fcot.prompts.thinking import separate
from fcot.runs.run import Run
from fcot.stages.choosing import NOT_CHOSEN
from fcot.stages.rationales import revised_counts
from fcot.stages.table import CHOOSE, CURATE, GENERATE, JUDGE, Context, Summary

_MANY_UNREADABLE = 0.1  # warn from this share of the verdicts on


@dataclass(frozen=True)
class Case:
    """A rationale to judge: its place, the request as a problem, and the number of its steps."""

    place: Place
    problem: Problem
    n_steps: int


def judge(context: Context) -> Summary:
    """Let the teacher judge each kept completion; ``curated.jsonl`` gets the verdicts, and rejects wrong steps if the judge filters.

    The summary replaces the numbers of the curation's summary that the verdicts change.

    Raises:
        FcotError: The judge finds a wrong step in every completion.
    """
    run, path = context.run, context.directory.curated
    context.directory.stage(CHOOSE.name).unlink(missing_ok=True)  # a choice among the judged completions is made again
    rows = list(read_jsonl(path))
    cases = cases_of(run, rows)
    plan, folder = judge_plan(run, _completions_usd(run)), run.store_of(prompts.NAME)
    if (unload := getattr(run.teacher, "unload", None)) is not None:
        unload()  # a local model is loaded again, with other sampling parameters
    with progress("judge", len(cases), "rationales") as bar:
        generated = generate_completions(plan, folder, [case.problem for case in cases], bar.advance, watch=bar.watch)
    verdicts = {case.place: verdict_on(case, plan, folder) for case in cases}
    rows = list(_with_verdicts(rows, verdicts, run.config.curation.judge == "filter"))
    write_jsonl(path, rows)
    counts = _counts(verdicts.values())
    _warn_of_unreadable(counts, plan.prompt.rationale_tokens)
    if not any(row["kept"] for row in rows):
        raise FcotError(f"the judge finds a wrong step in each of {len(cases):,} kept completions; see {path}, or leave out curation.judge")
    return revised_counts(rows) | {"judge": counts | {"usage": generated.usage()}}


def _warn_of_unreadable(counts: Summary, limit: int) -> None:
    """Warn if many verdicts are unreadable. ``limit`` is that of a reply, in tokens."""
    n = sum(counts["unreadable"].values())
    if n >= max(2, _MANY_UNREADABLE * counts["judged"]):
        reasons = ", ".join(f"{fault} {count:,}" for fault, count in counts["unreadable"].items())
        say(
            f"warning: {n:,} of {counts['judged']:,} verdicts of the judge are unreadable ({reasons}), and their rationales stay. "
            f"curation.judge_tokens={2 * limit} leaves more room; curation.judge_path=FILE is a request of your own"
        )


def cases_of(run: Run, rows: Iterable[Mapping[str, Any]]) -> list[Case]:
    """The rationales to judge among rows of ``curated.jsonl``: those that passed all filters."""
    cases = []
    for row in rows:
        if _passed_filters(row):
            problem = run.problems[row["sample_index"]]
            text = prompts.request_text(run.judge_request, problem.question, row["rationale"])
            place = row["sample_index"], row["completion_index"]
            cases.append(Case(place, replace(problem, question=text), len(steps_of(row["rationale"]))))
    return cases


def _passed_filters(row: Mapping[str, Any]) -> bool:
    """Whether a completion passed all filters. An earlier attempt of this stage or of the choice may have rejected it since."""
    return bool(row["kept"]) or row["reason"] in (WRONG_STEP, NOT_CHOSEN)


def judge_plan(run: Run, spent: float = 0.0) -> Plan:
    """Plan the requests of the judge: one greedy reply per rationale, by the run's teacher.

    Args:
        run: The run.
        spent: What the run has paid so far, in USD; the judge may pay the rest of the budget.
    """
    config, plan = run.config, run.plan
    prompt = TeacherPrompt(
        prompts.NAME, "{question}", run.prompt.answer_triggers, two_steps=False, rationale_tokens=config.curation.judge_tokens
    )
    # Rows carry the stage, so that what the completions cost is not counted again.
    return replace(
        plan, teacher=config.teacher.build(config, 0.0), prompt=prompt, diversity=1, first_slot=0, run_id=f"{run.run_id}/judge",
        resample_identical=False, top_logprobs=None, spent_usd=spent,
    )  # fmt: skip


def _completions_usd(run: Run) -> float:
    """What the run has paid for its completions, in USD."""
    summaries = [read_json(path) for stage in (CURATE, GENERATE) if (path := run.directory.stage(stage.name)).exists()]
    usages = [summary["teacher_usage"] for summary in summaries if summary.get("teacher_usage")]
    return float(usages[0]["usd"] or 0.0) if usages else 0.0


def judge_usd(run: Run) -> float:
    """What the run has paid for its judge, in USD."""
    path = run.directory.stage(JUDGE.name)
    return float(read_json(path)["judge"]["usage"]["usd"] or 0.0) if path.exists() else 0.0


def verdict_missing(plan: Plan, folder: StoreFolder, problem: Problem) -> bool:
    """Whether the store lacks the verdict on a case's problem."""
    key = plan.root_key(folder, problem)
    return bool(missing(plan, folder.shard(key), key, problem))


def verdict_on(case: Case, plan: Plan, folder: StoreFolder) -> Verdict:
    """Read the stored verdict on a case."""
    key = plan.root_key(folder, case.problem)
    shard = folder.shard(key)
    if not shard.has(key, 0):
        reasons = [row["refused"] for row in shard.unusable_rows(key)]
        return Verdict(None, reasons[-1] if reasons else "empty")
    row = shard.row(key, 0)
    return prompts.read_verdict(separate(row["text"]).rest, case.n_steps, row["finish_reason"])


def _with_verdicts(rows: Sequence[dict[str, Any]], verdicts: Mapping[Place, Verdict], filters: bool) -> Iterator[dict[str, Any]]:
    """The rows of ``curated.jsonl`` with the verdicts."""
    for row in rows:
        verdict = verdicts.get((row["sample_index"], row["completion_index"]))
        if verdict is not None:
            rejected = filters and bool(verdict.first_wrong_step)
            step = {} if verdict.first_wrong_step is None else {"first_wrong_step": verdict.first_wrong_step}
            row = row | {"kept": not rejected, "reason": WRONG_STEP if rejected else None} | step
        yield row


def _counts(verdicts: Iterable[Verdict]) -> Summary:
    """Numbers of verdicts: all, those that name a wrong step, and the unreadable ones by fault."""
    listed = list(verdicts)
    unreadable = Counter(verdict.fault for verdict in listed if verdict.fault is not None)
    wrong = sum(bool(verdict.first_wrong_step) for verdict in listed)
    return {"judged": len(listed), "wrong_step": wrong, "unreadable": dict(unreadable.most_common())}
