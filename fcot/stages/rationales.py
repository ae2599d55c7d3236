"""The teacher's stages: generate completions, curate them into reasoning samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fcot.artifacts import write_jsonl
from fcot.curation.filters import count_reasons, curate, expected_share
from fcot.errors import FcotError
from fcot.progress import progress, say
from fcot.records import Completion, CuratedCompletion, to_row
from fcot.runs import Run, build_teacher
from fcot.teacher.generate import Plan, generate_completions
from fcot.teacher.store import StoreFolder

Summary = dict[str, Any]


def generate(run: Run) -> tuple[list[Completion], Summary]:
    """D completions of every train problem: from the store, from the teacher, or from replayed files."""
    problems = run.select(run.split.train)
    asked = len(problems) * run.config.diversity
    if run.replayed is not None:
        usage = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "usd": None, "served_from_store": 0}
        return run.replayed, {"asked": asked, "teacher_usage": usage}
    chat = getattr(run.config.teacher, "endpoint", "completions") == "chat"
    teacher = build_teacher(run.config, run.temperature)
    plan = Plan(teacher, run.prompt, run.task.rule, chat, run.config.diversity, run.run_id)
    with progress("generate", asked, "completions") as advance:
        completions, usage = generate_completions(plan, StoreFolder(run.store_folder), problems, advance)
    return completions, {"asked": asked, "teacher_usage": usage}


def curate_stage(run: Run) -> Summary:
    """Filter the completions into reasoning samples; warn where suspiciously few are kept.

    Raises:
        FcotError: Not a single completion was kept.
    """
    completions, _ = generate(run)
    config = run.config.curation
    curated = curate(completions, run.problems, run.task.rule, run.prompt.parse, config.filters, config.max_words)
    write_jsonl(run.directory.curated, (to_row(row) for row in curated))
    kept, reasons = sum(row.kept for row in curated), count_reasons(curated)
    said = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
    examples = _examples(completions, curated)
    if not kept:
        raise FcotError(
            f"no completion survives curation: {len(curated)} refused ({said}). Every verdict is in {run.directory.curated}\n{examples}"
        )
    share, expected = kept / len(curated), expected_share(run.task.random_guess, run.task.teacher_accuracy)
    if share < expected:
        say(f"warning: only {share:.1%} of the completions were kept, {expected:.1%} or more was to be expected ({said})\n{examples}")
    if "truncated" in config.filters and (unknown := sum(row.finish_reason is None for row in completions)):
        say(f"warning: {unknown} completions do not say why they ended; the truncated filter cannot judge them")
    return {"asked": len(curated), "kept": kept, "correct": sum(row.correct for row in curated), "refused": reasons}


def _examples(completions: Sequence[Completion], curated: Sequence[CuratedCompletion]) -> str:
    """Three refused completions of different problems, to see at a glance what went wrong."""
    first: dict[int, tuple[Completion, CuratedCompletion]] = {}
    for completion, row in zip(completions, curated, strict=True):
        if not row.kept:
            first.setdefault(row.sample_index, (completion, row))
    refused = list(first.values())[:3]
    return "\n".join(
        f"  sample {row.sample_index}: {row.reason}; gold {row.answer!r}, parsed {row.prediction!r} from {completion.answer_text[:120]!r}\n"
        f"    rationale: {completion.rationale[:160]!r}"
        for completion, row in refused
    )
