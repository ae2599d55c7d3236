"""The objective of self-reflection and its data: a round's rationales and mistakes as triplets, or as pairs for a preference loss."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain

import numpy as np

from fcot.base.records import CuratedCompletion, ExamResult
from fcot.methods.tailored.config import ReflectionConfig
from fcot.methods.tailored.feedback import exam_results
from fcot.objectives.pairs import Texts, as_completion, build_pairs, completions_by_problem
from fcot.objectives.preference import preference_loss
from fcot.objectives.reflection import Reflection, TripletLoss
from fcot.prompts.student import StudentFormat
from fcot.runs.run import Run
from fcot.stages.training import rejected_samples
from fcot.student.data import TrainingData
from fcot.student.loading import Student
from fcot.student.objective import Objective
from fcot.student.tokenization import tokenize

_NO_PROMPT = 8  # tokens; the prompts of these texts are empty


def self_reflection(run: Run, number: int, data: TrainingData, kept: Sequence[CuratedCompletion]) -> Sequence[Objective]:
    """The objective that ``method.reflection`` adds to a round's training; none without self-reflection, or if the round has no exam.

    Args:
        run: The run.
        number: The round, from 1.
        data: The round's training samples.
        kept: The kept completions of all rounds so far.
    """
    options: ReflectionConfig = run.config.method.reflection
    examined = run.directory.round(number).exam.exists()
    if not options.active or (options.reads_exam and not examined):
        return ()
    rationales = completions_by_problem(data.form, kept)
    results = exam_results(run, number) if options.reads_exam else []
    if options.objective == "triplet":
        return [_triplet_loss(data, rationales, results, options)]
    right, wrong, unfinished = Texts(), Texts(), Texts()
    if options.pairs != "exam":
        rejected = chain.from_iterable(rejected_samples(run, run.directory.round(earlier)) for earlier in range(1, number + 1))
        right, wrong = rationales, completions_by_problem(data.form, rejected)
    add_answers(data.form, results, right, wrong, unfinished)
    pairs = build_pairs(data, right, wrong, nearest=options.pairing == "nearest", max_tokens=options.max_tokens, unfinished=unfinished)
    loss = preference_loss(
        data, pairs, options.objective, beta=options.beta, gamma=options.gamma, nll=options.nll, weight=options.weight, name="reflection"
    )
    return [loss]


def add_answers(form: StudentFormat, results: Sequence[ExamResult], right: Texts, wrong: Texts, unfinished: Texts) -> None:
    """Add the student's answers in an exam to the completions of which pairs are built (:func:`build_pairs`)."""
    for result in results:
        for texts, written in ((right, result.right), (wrong, result.mistakes), (unfinished, result.unfinished)):
            texts.setdefault(result.sample_index, []).extend(as_completion(form, text) for text in written)


def _triplet_loss(
    data: TrainingData, rationales: Mapping[int, Sequence[str]], results: Sequence[ExamResult], options: ReflectionConfig
) -> TripletLoss:
    form = data.form
    anchors = [(sample.sample_index, form.completion(sample.answer, sample.rationale)) for sample in data.samples]
    reflection = build_reflection(
        data.student, form, anchors, rationales,
        {result.sample_index: result.mistakes for result in results}, {result.sample_index: result.unfinished for result in results},
        weight=options.weight, margin=options.margin, representation=options.representation, max_tokens=options.max_tokens, seed=data.seed,
    )  # fmt: skip
    return TripletLoss(reflection, data.rows, data.layout)


def build_reflection(
    student: Student,
    form: StudentFormat,
    anchors: Sequence[tuple[int, str]],
    others: Mapping[int, Sequence[str]],
    mistakes: Mapping[int, Sequence[str]],
    unfinished: Mapping[int, Collection[str]],
    *,
    weight: float,
    margin: float,
    representation: str,
    max_tokens: int,
    seed: int,
) -> Reflection:
    """Build the triplets of the training samples: tokenize the texts, and collect each sample's positives and negatives.

    Args:
        student: The student whose tokenizer encodes the texts.
        form: The student's format.
        anchors: Sample index and completion of each training sample, in order.
        others: Completions that may be positives, by sample index. The anchor itself is never its own positive.
        mistakes: The student's wrong completions as it wrote them, by sample index.
        unfinished: The mistakes that were cut at the length limit, by sample index. They have no end-of-sequence token.
        weight: Weight of the triplet loss beside the language-model loss.
        margin: Margin of the triplet loss.
        representation: The tokens whose mean state represents a text. ``last``: the last token, which in a finished text is the
            end-of-sequence token. ``rationale``: the last token before the answer prefix. ``mean``: all tokens.
        max_tokens: Completions are cut to this many tokens.
        seed: Seed of the random choice among positives and negatives.
    """
    places: dict[str, int] = {}

    def place_of(text: str) -> int:
        return places.setdefault(text, len(places))

    anchor_places = [place_of(text) for _, text in anchors]
    right = {index: [place_of(text) for text in dict.fromkeys(texts)] for index, texts in others.items()}
    wrong = {index: np.array([place_of(as_completion(form, text)) for text in texts], np.int64) for index, texts in mistakes.items()}
    no_mistakes = np.zeros(0, np.int64)
    texts = list(places)
    rows = tokenize(student, form, [("", text) for text in texts], max_prompt=_NO_PROMPT, max_completion=max_tokens)
    cut = {place_of(as_completion(form, text)) for completions in unfinished.values() for text in completions}
    lacks_end = np.array([place in cut and length < max_tokens for place, length in enumerate(rows.lengths[:, 1])], np.int64)
    ends = np.maximum(rows.lengths[:, 1] - lacks_end, 1)  # the tokenizer adds an end token that an unfinished mistake never had
    if representation == "rationale":
        rationales = [("", text.partition(form.answer_prefix)[0].rstrip() if form.answer_prefix else text) for text in texts]
        lengths = tokenize(student, form, rationales, max_prompt=_NO_PROMPT, max_completion=max_tokens).lengths[:, 1] - 1  # no end token
        ends = np.clip(lengths, 1, ends)
    begins = np.zeros_like(ends) if representation == "mean" else ends - 1
    positives = [
        np.array([place for place in right.get(index, ()) if place != anchor], np.int64)
        for (index, _), anchor in zip(anchors, anchor_places, strict=True)
    ]  # fmt: skip
    negatives = [wrong.get(index, no_mistakes) for index, _ in anchors]
    return Reflection(rows, np.stack([begins, ends], 1), np.array(anchor_places, np.int64), positives, negatives, weight, margin, seed)
