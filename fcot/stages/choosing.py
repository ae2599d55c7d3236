"""The stage that chooses among the kept rationales of each problem (``curation.max_per_problem``), if need be by the student's scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fcot.base.console import progress, say
from fcot.base.files import read_jsonl, write_jsonl
from fcot.base.records import CuratedCompletion, from_row, to_row
from fcot.curation.choice import RANDOM, Place, Score, choose
from fcot.runs.run import Run
from fcot.stages.rationales import revised_counts
from fcot.stages.table import Context, Summary

if TYPE_CHECKING:
    from fcot.base.ranks import World

NOT_CHOSEN = "not_chosen"  # the reason of a completion that passed all filters


def choose_completions(context: Context) -> Summary:
    """Choose at most ``curation.max_per_problem`` kept completions of each problem; ``curated.jsonl`` then rejects the others.

    The summary replaces the numbers of the curation's summary that the choice changes.
    """
    run, path, options = context.run, context.directory.curated, context.run.config.curation
    rows = list(read_jsonl(path))
    candidates = [from_row(CuratedCompletion, row) for row in rows if _is_candidate(row)]
    values: dict[Place, float] | None = None
    if options.choose_by != RANDOM:
        scores = _scores(run, context.directory.scores, candidates, context.world)
        values = {score.place: score.value(options.choose_by) for score in scores}
    if context.world.rank > 0:
        return {}
    assert options.max_per_problem is not None
    chosen = choose(((row.sample_index, row.completion_index) for row in candidates), options.max_per_problem, values)
    rows = list(_after_choice(rows, chosen, values))
    write_jsonl(path, rows)
    return _summary(rows, options.choose_by)


def _is_candidate(row: dict[str, Any]) -> bool:
    """Whether a completion passed all filters. If this stage was interrupted, it may have rejected some of them already."""
    return bool(row["kept"]) or row["reason"] == NOT_CHOSEN


def _after_choice(rows: Iterable[dict[str, Any]], chosen: set[Place], values: dict[Place, float] | None) -> Iterator[dict[str, Any]]:
    """The rows of ``curated.jsonl`` after the choice."""
    for row in rows:
        place = row["sample_index"], row["completion_index"]
        if _is_candidate(row):
            kept = place in chosen
            row = row | {"kept": kept, "reason": None if kept else NOT_CHOSEN} | ({} if values is None else {"score": values[place]})
        yield row


def _summary(rows: Sequence[dict[str, Any]], choose_by: str) -> Summary:
    candidates = [row for row in rows if _is_candidate(row)]
    chosen, others = [row for row in candidates if row["kept"]], [row for row in candidates if not row["kept"]]
    choice: Summary = {"by": choose_by, "candidates": len(candidates), "chosen": len(chosen)}
    if choose_by != RANDOM:
        means = {name: round(fmean(row["score"] for row in part), 4) for name, part in (("chosen", chosen), ("others", others)) if part}
        choice |= {f"mean_of_{name}": mean for name, mean in means.items()}
    return revised_counts(rows) | {"choice": choice}


def _scores(run: Run, path: Path, candidates: Sequence[CuratedCompletion], world: World) -> list[Score]:
    """The score of each candidate, from its file if an interrupted stage has written it."""
    places = {(row.sample_index, row.completion_index) for row in candidates}
    if path.exists():
        scores = [from_row(Score, row) for row in read_jsonl(path)]
        if {score.place for score in scores} == places:
            return scores
    scores = _score(run, candidates, world)
    if world.rank == 0:
        write_jsonl(path, map(to_row, scores))
    return scores


def _score(run: Run, candidates: Sequence[CuratedCompletion], world: World) -> list[Score]:
    """Let the student, before training, read the text that each candidate would become. Equal texts are read once."""
    from fcot.curation.choice import RANK_LIMIT
    from fcot.stages.answering import text_format
    from fcot.stages.training import build_student, sample_of, tokenized
    from fcot.student.data import layout_of
    from fcot.student.likelihood import completion_surprisals_and_ranks

    if run.config.student.from_scratch and world.rank == 0:
        say(
            f"warning: student={run.config.student.name} starts from random parameters, so its scores say little about a text; compare "
            "with curation.choose_by=random"
        )
    samples = [sample_of(run, row) for row in candidates]
    student = build_student(run, samples)
    form = text_format(run, student)
    texts = [(sample.question, form.completion(sample.answer, sample.rationale)) for sample in samples]
    distinct = list(dict.fromkeys(texts))
    rows = tokenized(run, student, form, distinct)
    with progress("choose", len(distinct), "rationales") as bar:
        sums = completion_surprisals_and_ranks(student, list(rows), layout_of(student), RANK_LIMIT, world, bar.advance)
    of_text = dict(zip(distinct, zip(sums.tolist(), rows.lengths[:, 1].tolist(), strict=True), strict=True))
    scores = []
    for row, text in zip(candidates, texts, strict=True):
        (surprisal, rank), n = of_text[text]
        scores.append(Score(row.sample_index, row.completion_index, round(surprisal / n, 6), round(rank / n, 6), n))
    return scores
