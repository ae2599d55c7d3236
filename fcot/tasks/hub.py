"""The tasks' sources on the Hugging Face hub, and the conversion of an upstream row into (question, answer, rationale).

Ids and columns come from the data sets' cards and public loading code. The loader checks row counts and columns, so an upstream change
is reported and never changes a task silently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Fields = tuple[str, str, str | None]  # question, answer, rationale


@dataclass(frozen=True)
class HubSource:
    """A data set on the hub.

    Attributes:
        id: ``owner/name``.
        config: Configuration name, or None.
        splits: Upstream splits, concatenated in this order.
        columns: Upstream columns that ``fields`` reads.
        fields: Converts an upstream row to (question, answer, rationale); returns None for a row that is left out.
        order: Returns the sort key of an upstream row. None where the hub has the rows in the original order.
        data_files: The task's file inside a repository of several tasks; None where the repository has one task.
    """

    id: str
    config: str | None
    splits: tuple[str, ...]
    columns: tuple[str, ...]
    fields: Callable[[Mapping[str, Any]], Fields | None]
    order: Callable[[Mapping[str, Any]], int] | None = None
    data_files: str | None = None


def _choices_text(labels: list[str], texts: list[str], separator: str = " ") -> str:
    listed = separator.join(f"({label}) {text}" for label, text in zip(labels, texts, strict=True))
    return f"Answer Choices: {listed}"


def _columns(question: str, answer: str) -> Callable[[Mapping[str, Any]], Fields]:
    def fields(row: Mapping[str, Any]) -> Fields:
        return str(row[question]).strip(), str(row[answer]).strip(), None

    return fields


def _gsm8k(row: Mapping[str, Any]) -> Fields:
    rationale, _, answer = row["answer"].partition("####")
    return row["question"].strip(), answer.strip(), rationale.strip()


def _aqua(row: Mapping[str, Any]) -> Fields:
    options = " ".join(re.sub(r"^([A-E])\)\s*", r"(\1) ", option) for option in row["options"])
    return f"{row['question'].strip()} Answer Choices: {options}", row["correct"].strip(), row["rationale"]


def _commonsense_qa(row: Mapping[str, Any]) -> Fields:
    listed = _choices_text(list(row["choices"]["label"]), list(row["choices"]["text"]))
    return f"{row['question'].strip()} {listed}", row["answerKey"], None


def _svamp(row: Mapping[str, Any]) -> Fields:
    answer = float(row["Answer"])
    return f"{row['Body'].strip()} {row['Question'].strip()}", f"{answer:g}", None


def _strategy_qa(row: Mapping[str, Any]) -> Fields:
    return row["question"].strip(), "yes" if row["answer"] else "no", " ".join(row["facts"])


def _three_objects(row: Mapping[str, Any]) -> Fields | None:
    targets = list(row["multiple_choice_targets"])
    if len(targets) != 3:  # the hub's data set mixes three, five and seven objects
        return None
    question = re.sub(r"^Q: |\s*\nA:\s*$", "", row["inputs"]).split("\n  choice:")[0].strip()
    gold = "ABC"[list(row["multiple_choice_scores"]).index(1)]
    return f"{question} \nWhich choice is true ? {_choices_text(list('ABC'), targets)}", gold, None


SINGLE_EQ = HubSource("HuggingFaceTB/math_tasks", None, ("train",), ("input", "target"), _columns("input", "target"), data_files="data/mawps/singleeq.jsonl")  # fmt: skip  # noqa: E501
ADDSUB = HubSource("HuggingFaceTB/math_tasks", None, ("train",), ("input", "target"), _columns("input", "target"), data_files="data/mawps/addsub.jsonl")  # fmt: skip  # noqa: E501
MULTIARITH = HubSource("ChilleD/MultiArith", None, ("train", "test"), ("question", "final_ans"), _columns("question", "final_ans"))  # fmt: skip  # noqa: E501
GSM8K = HubSource("openai/gsm8k", "main", ("train", "test"), ("question", "answer"), _gsm8k)
AQUA = HubSource("deepmind/aqua_rat", "raw", ("train", "test"), ("question", "options", "correct", "rationale"), _aqua)
SVAMP = HubSource("ChilleD/SVAMP", None, ("train", "test"), ("ID", "Body", "Question", "Answer"), _svamp, order=lambda row: int(row["ID"].rpartition("-")[2]))  # fmt: skip  # noqa: E501
SHUFFLED_OBJECTS = HubSource("hails/bigbench", "tracking_shuffled_objects_zero_shot", ("default",), ("inputs", "multiple_choice_targets", "multiple_choice_scores"), _three_objects)  # fmt: skip  # noqa: E501
LAST_LETTER = HubSource("ChilleD/LastLetterConcat", None, ("train", "test"), ("question", "answer"), _columns("question", "answer"))  # fmt: skip  # noqa: E501
COMMONSENSE_QA = HubSource("tau/commonsense_qa", None, ("train", "validation"), ("question", "choices", "answerKey"), _commonsense_qa)  # fmt: skip  # noqa: E501
STRATEGY_QA = HubSource("havens2/strategyQA_train", None, ("train",), ("question", "answer", "facts"), _strategy_qa)
