"""The stages that only tailored learning has: the exam, the curation of a later round, and training with self-reflection."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from fcot.base.console import progress, say
from fcot.base.errors import FcotError
from fcot.base.files import fingerprint, read_json, read_jsonl, write_jsonl
from fcot.base.records import CuratedCompletion, Feedback, from_row, to_row
from fcot.config.resolvers import paper_demonstrations
from fcot.curation.filters import Rules
from fcot.decoding.engine import Sampling
from fcot.methods.tailored import exam as exams
from fcot.methods.tailored.config import OwnConfig, TailoredConfig
from fcot.methods.tailored.feedback import exam_results, feedback_prompt_of
from fcot.methods.tailored.self_reflection import self_reflection
from fcot.prompts.student import Demonstration, StudentFormat
from fcot.runs.run import Run
from fcot.stages.answering import SamplingParameters, answer_problems, text_format
from fcot.stages.rationales import CurationCounts
from fcot.stages.table import Context, Summary
from fcot.stages.training import TrainingJob, build_student, kept_rows, load_trained, sample_of, train_job
from fcot.student.continued import Continued, load_moments
from fcot.student.data import TrainingData
from fcot.student.loading import Student
from fcot.student.objective import Objective
from fcot.tasks.splits import folded

_NEXT_QUESTION = "Question:"  # a prompted student continues with a further question after its answer


def exam(context: Context) -> Summary:
    """Let the student, as the previous round left it, answer each train problem several times."""
    run, number, world = context.run, context.round, context.world
    method: TailoredConfig = run.config.method
    options, stop = method.exam, None
    if number > 1:
        student = load_trained(run, run.directory.round(number - 1))
        form = _form(run, student, method.demonstrations)
    else:
        student, stop = build_student(run, ()), _NEXT_QUESTION
        form = _form(run, student, method.demonstrations or paper_demonstrations(run.task.name))
    sampling = Sampling(options.temperature, options.top_k)
    parameters = SamplingParameters(options.samples, sampling, (number,), options.max_new_tokens, stop)
    solved = _solved(run, number)
    indices = [index for index in run.split.train if run.problems[index].labelled and index not in solved]
    with progress(f"exam {number}", len(indices) * options.samples, "answers") as bar:
        scored, facts = answer_problems(run, student, form, indices, world, parameters, bar.advance)
    if world.rank > 0:
        return {}
    results = [exams.examine(answers) for answers in scored]
    write_jsonl(run.directory.round(number).exam, map(to_row, results))
    return exams.summarize(results) | facts | ({"left_out": len(solved)} if method.skip_solved else {})


def _solved(run: Run, number: int) -> set[int]:
    """Problems that an exam leaves out, because they were solved in ``method.skip_solved`` earlier exams in a row.

    The first exam of a pretrained student does not count: it is taken before any training.
    """
    earlier = [exam_results(run, exam) for exam in range(2, number)]
    return exams.solved(earlier, run.config.method.skip_solved)


def curate(context: Context) -> Summary:
    """Curate the completions of a later round into reasoning samples: those of the teacher, then the student's own right answers."""
    run, number, directory = context.run, context.round, context.directory
    rows = [from_row(Feedback, row) for row in read_jsonl(directory.feedback)]
    if run.config.method.feedback.critiques:  # the round learns the second tries, not the critiques
        tries = (from_row(Feedback, row) for row in read_jsonl(directory.retries))
        rows = sorted([*(row for row in rows if row.own), *tries], key=lambda row: row.sample_index)
    read = run.prompt.read if run.config.method.feedback.source == "plain" else feedback_prompt_of(run).read
    rules = replace(run.rules, filters=[name for name in run.rules.filters if name != "golden"])  # the file names completions of round 1
    counts = CurationCounts()

    def verdicts() -> Iterator[dict[str, Any]]:
        of_teacher = list(counts.counted_rows(run, (row.completion for row in rows if not row.own), read, rules))
        yield from of_teacher
        kept = [from_row(CuratedCompletion, row) for row in of_teacher if row["kept"]]
        yield from counts.counted_rows(run, (row.completion for row in rows if row.own), read, _rules_of_own(run, number, rules, kept))

    write_jsonl(directory.curated, verdicts())
    if not counts.kept:
        say(f"round {number}: none of {counts.total} completions is kept ({counts.reason_counts or 'none was requested'})")
    generated = read_json(directory.stage("feedback"))
    own = {(row.sample_index, row.completion_index) for row in rows if row.own}
    facts = {name: generated[name] for name in ("prompt_characters",) if name in generated}
    return counts.summary() | facts | ({"own_kept": len(own & set(counts.kept))} if own else {})


def _rules_of_own(run: Run, number: int, rules: Rules, kept: Sequence[CuratedCompletion]) -> Rules:
    """The rules for the student's own answers: those of the run, then the filters of ``method.own``.

    Args:
        run: The run.
        number: The round.
        rules: The run's rules.
        kept: The round's kept completions of the teacher. Own answers are compared with them, and with those of the earlier rounds.
    """
    options: OwnConfig = run.config.method.own
    filters = [name for name in options.filters if name not in rules.filters]
    if not filters:
        return rules
    kept_before: dict[int, list[str]] = {}
    for row in chain(*(kept_rows(run.directory.round(earlier)) for earlier in range(1, number)), kept):
        kept_before.setdefault(row.sample_index, []).append(row.rationale)
    settings = dict(rules.settings) | ({} if options.max_similarity is None else {"max_similarity": options.max_similarity})
    return replace(rules, filters=[*rules.filters, *filters], settings=settings, kept_before=kept_before)


def train(context: Context) -> Summary:
    """Train the student on the reasoning samples of the rounds, with self-reflection if the round had an exam.

    ``method.accumulate`` and ``method.replay`` decide which samples of earlier rounds are used, ``method.start`` which student the
    training starts from, ``method.one_schedule`` and ``method.carry_optimizer`` what else it continues.
    """
    run, number = context.run, context.round
    method: TailoredConfig = run.config.method
    kept_by_round = {earlier: kept_rows(run.directory.round(earlier)) for earlier in range(1, number + 1)}
    weights = method.round_weights or [1.0] * number
    replayed = {earlier: rows if earlier == number else _replayed(run, number, rows) for earlier, rows in kept_by_round.items()}
    used_rounds = [earlier for earlier in ((number,) if not method.accumulate else kept_by_round) if weights[earlier - 1]]

    def reflect(data: TrainingData) -> Sequence[Objective]:
        return self_reflection(run, number, data, list(chain.from_iterable(kept_by_round.values())))

    job = TrainingJob(
        run.directory.round(number),
        [sample_of(run, row, weights[earlier - 1]) for earlier in used_rounds for row in replayed[earlier]],
        _demonstrations(run, method.demonstrations),
        start=run.directory.round(number - 1).student if number > 1 and method.start == "previous" else None,
        method_objectives=reflect,
        continued=_continued(run, number),
        keeps_moments=method.carry_optimizer and number < method.rounds,
        title=f"train {number}",
    )
    return train_job(context, job)


def _replayed(run: Run, number: int, rows: Sequence[CuratedCompletion]) -> Sequence[CuratedCompletion]:
    """The rows of an earlier round that a round trains on again: a share of them, at least one, in their order."""
    n = math.ceil(run.config.method.replay * len(rows))
    ranked = sorted(rows, key=lambda row: fingerprint(["replay", run.config.seed, number, row.sample_index, row.completion_index]))
    chosen = {(row.sample_index, row.completion_index) for row in ranked[:n]}
    return [row for row in rows if (row.sample_index, row.completion_index) in chosen]


def _continued(run: Run, number: int) -> Continued:
    """How a round's training continues those of the earlier rounds.

    Raises:
        FcotError: The previous round's moments are missing.
    """
    method: TailoredConfig = run.config.method
    steps_before, trainings_left, moments = 0, 1, None
    if method.one_schedule:
        summaries = [read_json(run.directory.round(earlier).stage("train")) for earlier in range(1, number)]
        steps_before, trainings_left = sum(summary["n_steps"] for summary in summaries), method.rounds - number + 1
    if method.carry_optimizer and number > 1:
        path = run.directory.round(number - 1).moments
        if not path.exists():
            raise FcotError(f"{path} is missing, and round {number} starts with its moments: remove {run.directory.path} and run again")
        moments = load_moments(path)
    return Continued(steps_before, trainings_left, moments)


def _form(run: Run, student: Student, n: int) -> StudentFormat:
    """The student's format with up to ``n`` demonstrations."""
    return replace(text_format(run, student), demonstrations=_demonstrations(run, n))


def _demonstrations(run: Run, n: int) -> tuple[Demonstration, ...]:
    """Demonstrations from the first ``n`` train problems with a kept rationale in round 1; each shows the problem's first kept one.

    A train problem whose question is also a test question is left out.
    """
    excluded = {folded(run.problems[index].question) for index in run.split.test}
    first = {row.sample_index: row for row in reversed(kept_rows(run.directory.round(1)))} if n else {}
    chosen = [first[index] for index in run.split.train if index in first and folded(run.problems[index].question) not in excluded][:n]
    return tuple(Demonstration(run.problems[row.sample_index].question, row.rationale, row.answer) for row in chosen)
