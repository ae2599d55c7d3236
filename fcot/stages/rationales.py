"""The teacher's stages: generate completions, and curate them into reasoning samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from fcot.base.console import progress, say
from fcot.base.errors import FcotError
from fcot.base.files import read_jsonl, write_jsonl
from fcot.base.records import Completion, CuratedCompletion, to_row
from fcot.curation.choice import RANDOM
from fcot.curation.filters import CONCISE, Read, Rules, expected_kept_rate, undersample
from fcot.curation.filters import curate as curate_problem
from fcot.curation.outcomes import Outcomes, advice
from fcot.evaluation.at_k import AtK, at_k, summarize
from fcot.llm.generate import Generated, generate_completions
from fcot.llm.money import FREE, paid
from fcot.prompts.answers import most_frequent
from fcot.runs.run import Run
from fcot.stages.first_look import FirstLook, former_notes, remedies_of
from fcot.stages.table import REVISIONS, Context, Summary


def generate(context: Context) -> Summary:
    """Buy the completions that the store lacks: D for every train problem."""
    run = context.run
    n_completions = len(run.split.train) * run.config.diversity
    if run.replayed is not None:
        texts = Counter((completion.sample_index, completion.rationale.strip()) for completion in run.replayed)
        usage = paid((), FREE) | {"served_from_store": 0, "identical_rationales": texts.total() - len(texts)}
        return {"asked": n_completions, "teacher_usage": usage}
    usage = _buy(run).usage()
    if len(models := usage.get("models", {})) > 1:
        versions = ", ".join(f"{model} ({n:,} generations)" for model, n in models.items())
        say(f"warning: the server answered model={run.teacher_name} as several models: {versions}. Name one version in teacher.model")
    return {"asked": n_completions, "teacher_usage": usage}


def _buy(run: Run) -> Generated:
    """The run's completions from the store. Missing ones are bought."""
    problems = run.select(run.split.train)
    for note in former_notes(run):
        say(f"note: {note}")
    first_look = FirstLook(run, run.prompt.read, run.rules, remedies_of(run), run.config.diversity)
    with progress("generate", len(problems) * run.config.diversity, "completions") as bar:
        generated = generate_completions(run.plan, run.store, problems, bar.advance, first_look, bar.watch)
        first_look.report()
        return generated


def curate(context: Context) -> Summary:
    """Filter the completions into reasoning samples; warn if fewer are kept than the teacher's accuracy suggests.

    Raises:
        FcotError: No completion was kept.
    """
    run = context.run
    for stage in REVISIONS:  # they read the verdicts again
        context.directory.stage(stage.name).unlink(missing_ok=True)
    completions = run.replayed if run.replayed is not None else _buy(run)  # buys only what the store has lost since it was generated
    path = context.directory.curated
    counts = CurationCounts()
    write_jsonl(path, counts.counted_rows(run, completions, run.prompt.read, run.rules))
    if (limit := _sample_limit(run, counts.kept)) is not None and limit < len(counts.kept):
        write_jsonl(path, counts.undersample(path, undersample(counts.kept, limit)))
    kept, reasons = len(counts.kept), counts.reason_counts
    sentences = advice(counts.outcomes, remedies_of(run))
    examples = "\n".join([*sentences, *counts.examples.values()])
    if not kept:
        raise FcotError(f"no completion survives curation: {counts.total} rejected ({reasons}). Every verdict is in {path}\n{examples}")
    kept_rate, expected = kept / counts.total, expected_kept_rate(run.task.random_guess, run.task.teacher_accuracy)
    few_are_intended = {"golden", CONCISE} & set(run.rules.filters) or counts.reasons["undersampled"]
    if kept_rate < expected and not few_are_intended:
        say(f"warning: only {kept_rate:.1%} of the completions were kept; {expected:.1%} or more were expected ({reasons})\n{examples}")
    elif sentences:
        say("\n".join(f"warning: {sentence}" for sentence in sentences))
    _warn_of_idle_options(run, counts)
    usage = {"teacher_usage": completions.usage()} if isinstance(completions, Generated) else {}
    return counts.summary() | usage


def _warn_of_idle_options(run: Run, counts: CurationCounts) -> None:
    """Warn of options of ``curation`` that had no effect, or less than they may seem to have."""
    if "golden" in run.rules.filters and (without := set(run.rules.golden) - {index for index, _ in counts.kept}):
        say(
            f"warning: {len(without)} of the {len(run.rules.golden)} golden problems have no kept completion: they are not train problems, "
            "or their completions were rejected"
        )
    options = run.config.curation
    if options.golden_unread:
        say(
            f"warning: curation.golden={options.golden}: no filter of curation={options.name} reads it; choose curation=golden, or add "
            "golden to curation.filters"
        )
    if options.choose_by != RANDOM and options.max_per_problem is None:
        say(
            f"warning: curation.choose_by={options.choose_by} chooses nothing: all kept completions stay without curation.max_per_problem=n"
        )
    if run.rules.labels == "vote" and counts.labelled == counts.total:
        say("warning: curation.labels=vote only votes on problems without a gold answer, and all have one; vote_all votes on all problems")
    if "truncated" in run.rules.filters and counts.without_finish_reason:
        say(f"warning: {counts.without_finish_reason} completions have no finish reason; the truncated filter cannot judge them")


def revised_counts(rows: Sequence[Mapping[str, Any]]) -> Summary:
    """Some numbers of the curation's summary, counted again after a stage that changed its verdicts.

    Args:
        rows: All rows of ``curated.jsonl`` after the revision; some are kept.
    """
    kept = [row for row in rows if row["kept"]]
    return {
        "kept": len(kept), "refused": dict(Counter(row["reason"] for row in rows if row["reason"]).most_common()),
        "rationale_words": round(fmean(len(row["rationale"].split()) for row in kept), 2),
    }  # fmt: skip


@dataclass
class CurationCounts:
    """Counts that are made while verdicts are written, so that not all texts are in memory at once.

    Attributes:
        outcomes: Counts of correct, empty, cut and unanswered completions.
        labelled: Number of completions of problems with a gold answer.
        voted_correct: Number of problems whose majority vote is correct.
        at_k: maj@k and pass@k of each problem with a gold answer.
        without_finish_reason: Number of completions whose finish reason is unknown.
        words: Words of all kept rationales.
        characters: Characters of all completions.
        prompt_characters: Characters of the questions, summed over completions.
        kept: Sample index and completion index of the kept completions.
        reasons: Number of rejected completions by reason.
        examples: Messages about a rejected completion, by sample index, for the first three problems that have one.
    """

    outcomes: Outcomes = field(default_factory=Outcomes)
    labelled: int = 0
    voted_correct: int = 0
    at_k: list[AtK] = field(default_factory=list)
    without_finish_reason: int = 0
    words: int = 0
    characters: int = 0
    prompt_characters: int = 0
    kept: list[tuple[int, int]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[int, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of completions."""
        return self.outcomes.total

    @property
    def reason_counts(self) -> str:
        """The reasons of rejection with their counts, as text."""
        return ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common())

    def summary(self) -> Summary:
        """The summary of the curation stage."""
        words = round(self.words / len(self.kept), 2) if self.kept else None
        return {
            "asked": self.total, "kept": len(self.kept), "labelled": self.labelled, "correct": self.outcomes.correct,
            "empty": self.outcomes.empty, "cut": self.outcomes.cut, "unanswered": self.outcomes.unanswered,
            "voted_correct": self.voted_correct, "refused": dict(self.reasons.most_common()), "rationale_words": words,
            "characters": self.characters, "prompt_characters": self.prompt_characters, "at_k": summarize(self.at_k),
        }  # fmt: skip

    def counted_rows(self, run: Run, completions: Iterable[Completion], read: Read, rules: Rules) -> Iterator[dict[str, Any]]:
        """Curate completions: yield the rows of ``curated.jsonl`` and count them.

        Args:
            run: The run, for its problems and answer rule.
            completions: The completions; those of one problem are adjacent.
            read: The parser of the prompt that elicited them.
            rules: The curation rules.
        """
        for index, group in groupby(completions, key=lambda completion: completion.sample_index):
            problem_completions = list(group)
            rows = list(curate_problem(problem_completions, run.problems, run.task.rule, read, rules))
            self.voted_correct += rows[most_frequent([row.prediction for row in rows])].correct
            if run.problems[index].labelled:
                self.labelled += len(rows)
                self.at_k.append(at_k([(row.prediction, row.correct) for row in rows]))
            for completion, row in zip(problem_completions, rows, strict=True):
                self.outcomes.count(completion, row)
                self.characters += len(completion.rationale) + len(completion.answer_text)
                self.prompt_characters += len(run.problems[index].question)
                self.without_finish_reason += completion.finish_reason is None
                if row.reason is None:
                    self.kept.append((row.sample_index, row.completion_index))
                    self.words += len(row.rationale.split())
                else:
                    self.reasons[row.reason] += 1
                    if len(self.examples) < 3:
                        self.examples.setdefault(row.sample_index, _example(completion, row))
                yield to_row(row)

    def undersample(self, path: Path, chosen: Container[tuple[int, int]]) -> Iterator[dict[str, Any]]:
        """Yield the rows of a file again; kept completions that were not chosen are now rejected.

        Args:
            path: The file, ``curated.jsonl``.
            chosen: Sample index and completion index of the completions that stay.
        """
        kept, self.kept, self.words = self.kept, [], 0
        for row in read_jsonl(path):
            place = (row["sample_index"], row["completion_index"])
            if row["kept"] and place in chosen:
                self.kept.append(place)
                self.words += len(row["rationale"].split())
            yield row | {"kept": False, "reason": "undersampled"} if row["kept"] and place not in chosen else row
        self.reasons["undersampled"] += len(kept) - len(self.kept)


def _sample_limit(run: Run, kept: Sequence[tuple[int, int]]) -> int | None:
    """How many of the kept completions are trained on; None: all.

    With ``curation.match_golden`` it is the number of kept completions that a golden file would let through.
    """
    if not run.config.curation.match_golden:
        return run.config.curation.max_samples
    golden = run.rules.golden
    return sum(golden[index] is None or slot in (golden[index] or ()) for index, slot in kept if index in golden)


def _example(completion: Completion, row: CuratedCompletion) -> str:
    """A message that shows why a completion was rejected."""
    return (
        f"  sample {row.sample_index}: {row.reason}; gold {row.answer!r}, parsed {row.prediction!r} from {completion.answer_text[:120]!r}\n"
        f"    rationale: {completion.rationale[:160]!r}"
    )
