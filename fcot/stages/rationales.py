"""The teacher's stages: generate completions, curate them into reasoning samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from fcot.artifacts import write_jsonl
from fcot.curation.filters import curate, expected_share
from fcot.errors import FcotError
from fcot.evaluation.scoring import most_frequent
from fcot.progress import progress, say
from fcot.records import Completion, CuratedCompletion, to_row
from fcot.runs import Run
from fcot.teacher.generate import Generated, generate_completions
from fcot.teacher.money import FREE, paid

Summary = dict[str, Any]


def generate(run: Run) -> Summary:
    """Buy what the store lacks of D completions of every train problem."""
    asked = len(run.split.train) * run.config.diversity
    if run.replayed is not None:
        texts = Counter((completion.sample_index, completion.rationale.strip()) for completion in run.replayed)
        nothing = paid((), FREE) | {"served_from_store": 0, "identical_rationales": texts.total() - len(texts)}
        return {"asked": asked, "teacher_usage": nothing}
    return {"asked": asked, "teacher_usage": _bought(run).usage()}


def _bought(run: Run) -> Generated:
    def judge(completion: Completion) -> bool:
        gold = run.problems[completion.sample_index].answer
        return run.task.rule.same(run.prompt.parse(completion, run.task.rule), gold)

    problems = run.select(run.split.train)
    with progress("generate", len(problems) * run.config.diversity, "completions") as bar:
        return generate_completions(run.plan, run.store, problems, bar.advance, judge, bar.watch)


def curate_stage(run: Run) -> Summary:
    """Filter the completions into reasoning samples; warn where suspiciously few are kept.

    Raises:
        FcotError: Not a single completion was kept.
    """
    config = run.config.curation
    reasons: Counter[str] = Counter()
    asked = correct = unknown = voted = 0
    refused: dict[int, str] = {}

    completions = run.replayed if run.replayed is not None else _bought(run)  # where the store was lost, it is bought again

    def verdicts() -> Iterator[dict[str, Any]]:
        nonlocal asked, correct, unknown, voted
        for _, group in groupby(completions, key=lambda completion: completion.sample_index):
            drawn = list(group)
            rows = list(curate(drawn, run.problems, run.task.rule, run.prompt.parse, config.filters, config.max_words))
            voted += rows[most_frequent([row.prediction for row in rows])].correct
            for completion, row in zip(drawn, rows, strict=True):
                asked += 1
                correct += row.correct
                unknown += completion.finish_reason is None
                if row.reason is not None:
                    reasons[row.reason] += 1
                    if len(refused) < 3:
                        refused.setdefault(row.sample_index, _example(completion, row))
                yield to_row(row)

    write_jsonl(run.directory.curated, verdicts())
    kept, said = asked - reasons.total(), ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    examples = "\n".join(refused.values())
    if not kept:
        raise FcotError(
            f"no completion survives curation: {asked} refused ({said}). Every verdict is in {run.directory.curated}\n{examples}"
        )
    share, expected = kept / asked, expected_share(run.task.random_guess, run.task.teacher_accuracy)
    if share < expected:
        say(f"warning: only {share:.1%} of the completions were kept, {expected:.1%} or more was to be expected ({said})\n{examples}")
    if "truncated" in config.filters and unknown:
        say(f"warning: {unknown} completions do not say why they ended; the truncated filter cannot judge them")
    usage = {"teacher_usage": completions.usage()} if isinstance(completions, Generated) else {}
    return {"asked": asked, "kept": kept, "correct": correct, "voted_correct": voted, "refused": dict(reasons.most_common()), **usage}


def _example(completion: Completion, row: CuratedCompletion) -> str:
    """A refused completion, to see at a glance what went wrong."""
    return (
        f"  sample {row.sample_index}: {row.reason}; gold {row.answer!r}, parsed {row.prediction!r} from {completion.answer_text[:120]!r}\n"
        f"    rationale: {completion.rationale[:160]!r}"
    )
