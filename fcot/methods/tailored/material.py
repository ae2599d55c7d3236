"""The material of self-reflection, from a round's texts to the token ids of :class:`fcot.objectives.reflection.Reflection`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from fcot.objectives.reflection import Reflection
from fcot.prompts.student import StudentFormat
from fcot.student.loading import Student
from fcot.student.tokenization import tokenize

_NO_PROMPT = 8  # tokens; the texts' prompts are not looked at


def material(
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
    """What each training sample is contrasted with.

    Args:
        student: Whose tokenizer.
        form: Its format.
        anchors: Sample index and completion of each training sample, in order.
        others: By sample index the completions that may be positives; the anchor itself is none.
        mistakes: By sample index the student's wrong completions, as it wrote them.
        unfinished: Those of them that the length limit ended: nothing of them stands behind their last token.
        weight: Of the loss.
        margin: Of the loss.
        representation: ``last``, the last token (the end-of-sequence token of a text that ended); ``rationale``, the last
            before the answer prefix; ``mean``, all.
        max_tokens: Longer completions are cut.
        seed: Of the choice.
    """
    lead = " " if form.completion_template.startswith(" ") else ""  # a decoder's completion begins with a space; decoded texts lost it
    known: dict[str, int] = {}

    def number(text: str) -> int:
        return known.setdefault(text, len(known))

    own = [number(text) for _, text in anchors]
    right = {index: [number(text) for text in dict.fromkeys(texts)] for index, texts in others.items()}
    wrong = {index: np.array([number(lead + text.strip()) for text in texts], np.int64) for index, texts in mistakes.items()}
    none = np.zeros(0, np.int64)
    texts = list(known)
    rows = tokenize(student, form, [("", text) for text in texts], max_prompt=_NO_PROMPT, max_completion=max_tokens)
    cut = {number(lead + text.strip()) for texts_of in unfinished.values() for text in texts_of}
    whole = np.array([place in cut and length < max_tokens for place, length in enumerate(rows.lengths[:, 1])], np.int64)
    ends = np.maximum(rows.lengths[:, 1] - whole, 1)  # without the end token that an unfinished one never wrote
    if representation == "rationale":
        before = [("", text.partition(form.answer_prefix)[0].rstrip() if form.answer_prefix else text) for text in texts]
        reasoned = tokenize(student, form, before, max_prompt=_NO_PROMPT, max_completion=max_tokens).lengths[:, 1] - 1  # no end token
        ends = np.clip(reasoned, 1, ends)
    begins = np.zeros_like(ends) if representation == "mean" else ends - 1
    return Reflection(
        rows, np.stack([begins, ends], 1), np.array(own, np.int64),
        [np.array([one for one in right.get(index, ()) if one != mine], np.int64) for (index, _), mine in zip(anchors, own, strict=True)],
        [wrong.get(index, none) for index, _ in anchors], weight, margin, seed,
    )  # fmt: skip
