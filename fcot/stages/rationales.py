"""The teacher's stages: generate completions, curate them into reasoning samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from fcot.base.console import progress, say
from fcot.base.errors import FcotError
from fcot.base.files import read_jsonl, write_jsonl
from fcot.base.records import Completion, CuratedCompletion, to_row
from fcot.curation.filters import CONCISE, Read, Rules, expected_share, undersample
from fcot.curation.filters import curate as curate_problem
from fcot.curation.outcomes import Outcomes, advice
from fcot.llm.generate import Generated, generate_completions
from fcot.llm.money import FREE, paid
from fcot.prompts.answers import most_frequent
from fcot.runs.run import Run
from fcot.stages.first_look import FirstLook, former_prompt_notes, remedies_of
from fcot.stages.table import Context, Summary


def generate(context: Context) -> Summary:
    """Buy what the store lacks of D completions of every train problem."""
    run = context.run
    asked = len(run.split.train) * run.config.diversity
    if run.replayed is not None:
        texts = Counter((completion.sample_index, completion.rationale.strip()) for completion in run.replayed)
        nothing = paid((), FREE) | {"served_from_store": 0, "identical_rationales": texts.total() - len(texts)}
        return {"asked": asked, "teacher_usage": nothing}
    usage = _bought(run).usage()
    if len(models := usage.get("models", {})) > 1:
        versions = ", ".join(f"{model} ({n:,} generations)" for model, n in models.items())
        say(f"warning: the server answered to model={run.teacher_name} as several models: {versions}. Name one version in teacher.model")
    return {"asked": asked, "teacher_usage": usage}


def _bought(run: Run) -> Generated:
    problems = run.select(run.split.train)
    for note in former_prompt_notes(run):
        say(f"note: {note}")
    look = FirstLook(run, run.prompt.read, run.rules, remedies_of(run), run.config.diversity)
    with progress("generate", len(problems) * run.config.diversity, "completions") as bar:
        bought = generate_completions(run.plan, run.store, problems, bar.advance, look, bar.watch)
        look.report()
        return bought


def curate(context: Context) -> Summary:
    """Filter the completions into reasoning samples; warn where suspiciously few are kept.

    Raises:
        FcotError: Not a single completion was kept.
    """
    run = context.run
    completions = run.replayed if run.replayed is not None else _bought(run)  # where the store was lost, it is bought again
    path = context.directory.curated
    counts = judge_all(run, path, completions, run.prompt.read, run.rules)
    if (wanted := _wanted(run, counts.kept)) is not None and wanted < len(counts.kept):
        write_jsonl(path, counts.undersample(path, undersample(counts.kept, wanted)))
    kept, said = len(counts.kept), counts.reason_counts
    sentences = advice(counts.outcomes, remedies_of(run))
    examples = "\n".join([*counts.refused.values(), *sentences])
    if not kept:
        raise FcotError(f"no completion survives curation: {counts.total} refused ({said}). Every verdict is in {path}\n{examples}")
    share, expected = kept / counts.total, expected_share(run.task.random_guess, run.task.teacher_accuracy)
    chosen = {"golden", CONCISE} & set(run.rules.filters) or counts.reasons["undersampled"]
    if share < expected and not chosen:
        say(f"warning: only {share:.1%} of the completions were kept, {expected:.1%} or more was to be expected ({said})\n{examples}")
    elif sentences:
        say("\n".join(f"warning: {sentence}" for sentence in sentences))
    if "golden" in run.rules.filters and (lost := set(run.rules.golden) - {index for index, _ in counts.kept}):
        say(f"warning: of {len(lost)} of the {len(run.rules.golden)} golden problems nothing is kept: no train problems, or refused")
    if run.rules.labels == "vote" and counts.labelled == counts.total:
        say("warning: curation.labels=vote votes on problems without an answer, and all have one; curation.labels=vote_all votes on all")
    if "truncated" in run.rules.filters and counts.unknown:
        say(f"warning: {counts.unknown} completions do not say why they ended; the truncated filter cannot judge them")
    usage = {"teacher_usage": completions.usage()} if isinstance(completions, Generated) else {}
    return counts.summary() | usage


def judge_all(run: Run, path: Path, completions: Iterable[Completion], read: Read, rules: Rules) -> CurationCounts:
    """Write the verdict on each completion; those of one problem follow each other."""
    counts = CurationCounts()
    write_jsonl(path, counts.watch(run, completions, read, rules))
    return counts


@dataclass
class CurationCounts:
    """What is counted while the verdicts are written: texts never stand in memory together."""

    outcomes: Outcomes = field(default_factory=Outcomes)
    labelled: int = 0
    voted: int = 0
    unknown: int = 0
    words: int = 0
    characters: int = 0
    prompt_characters: int = 0
    kept: list[tuple[int, int]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    refused: dict[int, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """How many completions there are."""
        return self.outcomes.total

    @property
    def reason_counts(self) -> str:
        """The reasons with their counts."""
        return ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common())

    def summary(self) -> Summary:
        """The stage's."""
        words = round(self.words / len(self.kept), 2) if self.kept else None
        return {
            "asked": self.total, "kept": len(self.kept), "labelled": self.labelled, "correct": self.outcomes.correct,
            "empty": self.outcomes.empty, "cut": self.outcomes.cut, "unanswered": self.outcomes.unanswered,
            "voted_correct": self.voted, "refused": dict(self.reasons.most_common()), "rationale_words": words,
            "characters": self.characters, "prompt_characters": self.prompt_characters,
        }  # fmt: skip

    def watch(self, run: Run, completions: Iterable[Completion], read: Read, rules: Rules) -> Iterator[dict[str, Any]]:
        """The rows of ``curated.jsonl``."""
        for index, group in groupby(completions, key=lambda completion: completion.sample_index):
            drawn = list(group)
            rows = list(curate_problem(drawn, run.problems, run.task.rule, read, rules))
            self.voted += rows[most_frequent([row.prediction for row in rows])].correct
            self.labelled += len(rows) if run.problems[index].labelled else 0
            for completion, row in zip(drawn, rows, strict=True):
                self.outcomes.count(completion, row)
                self.characters += len(completion.rationale) + len(completion.answer_text)
                self.prompt_characters += len(run.problems[index].question)
                self.unknown += completion.finish_reason is None
                if row.reason is None:
                    self.kept.append((row.sample_index, row.completion_index))
                    self.words += len(row.rationale.split())
                else:
                    self.reasons[row.reason] += 1
                    if len(self.refused) < 3:
                        self.refused.setdefault(row.sample_index, _example(completion, row))
                yield to_row(row)

    def undersample(self, path: Path, chosen: Container[tuple[int, int]]) -> Iterator[dict[str, Any]]:
        """The rows once more; of the kept completions those that were not chosen are refused."""
        kept, self.kept, self.words = self.kept, [], 0
        for row in read_jsonl(path):
            one = (row["sample_index"], row["completion_index"])
            if row["kept"] and one in chosen:
                self.kept.append(one)
                self.words += len(row["rationale"].split())
            yield row | {"kept": False, "reason": "undersampled"} if row["kept"] and one not in chosen else row
        self.reasons["undersampled"] += len(kept) - len(self.kept)


def _wanted(run: Run, kept: Sequence[tuple[int, int]]) -> int | None:
    """How many of the kept completions are trained on, None for all."""
    if not run.config.curation.match_golden:
        return run.config.curation.max_samples
    golden = run.rules.golden
    return sum(golden[index] is None or slot in (golden[index] or ()) for index, slot in kept if index in golden)


def _example(completion: Completion, row: CuratedCompletion) -> str:
    """A refused completion, to see at a glance what went wrong."""
    return (
        f"  sample {row.sample_index}: {row.reason}; gold {row.answer!r}, parsed {row.prediction!r} from {completion.answer_text[:120]!r}\n"
        f"    rationale: {completion.rationale[:160]!r}"
    )
