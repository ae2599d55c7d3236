"""The table of tasks: the 12 of paper A and the toy tasks."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fcot.prompts.answers import AnswerRule
from fcot.tasks import hub
from fcot.tasks.hub import HubSource


@dataclass(frozen=True)
class Task:
    """A task: its answer rule, and the published facts about its data.

    Attributes:
        name: The choice of ``dataset``, and the key of the authors' data set.
        title: The paper's name of the task.
        rule: How answers are read and compared.
        random_guess: Accuracy of random guessing, in percent (paper A, Table 1).
        split: The default split: paper A's, ``sample`` or ``published``; ``hash`` for data of the user.
        n_train, n_test: Number of train and test problems in the paper; 0 for toy tasks.
        n_rows: Number of upstream rows. AQUA has more than train and test together, because its train is a subsample.
        hub: The source on the hub; None where no copy with the authors' rows is known.
        diversity: Paper A's D for diverse reasoning; 1 where the paper used none.
        teacher_accuracy: Zero-shot-CoT accuracy of text-davinci-002 in percent over all rows (Kojima et al. 2022, logs). Reports compare
            a strong teacher's kept rate with it.
        order: First 16 hex digits of the hash of the questions in the authors' order, on which index splits depend.
        rows: First 16 hex digits of the hash of the sorted questions, which identifies the rows in any order.
        template_pattern: A regular expression. Problems with the same first group have the same template.
    """

    name: str
    title: str
    rule: AnswerRule
    random_guess: float
    split: str
    n_train: int = 0
    n_test: int = 0
    n_rows: int = 0
    hub: HubSource | None = None
    diversity: int = 8
    teacher_accuracy: float | None = None
    order: str | None = None
    rows: str | None = None
    template_pattern: str | None = None


_NUMBER = AnswerRule("number", numbers="paper")
_YES_NO = AnswerRule("yes_no", numbers="paper")
_TEXT = AnswerRule("text", numbers="paper")


def _letters(letters: str) -> AnswerRule:
    return AnswerRule("choice", letters, numbers="paper")


_ROWS = (
    #    name, title, answers, random guess, split, train, test, rows, hub, D, teacher, order, row set
    Task("single_eq", "SingleEq", _NUMBER, 0.0, "sample", 356, 152, 508, hub.SINGLE_EQ, 8, 77.95, "5268bbb68a0f8864", "70e1b54f7fb8fd68"),
    Task("addsub", "AddSub", _NUMBER, 0.0, "sample", 276, 119, 395, hub.ADDSUB, 8, 69.62, "b336970c79a3cd04", "fbf39ba4d077c921"),
    Task("multiarith", "MultiArith", _NUMBER, 0.0, "sample", 420, 180, 600, hub.MULTIARITH, 64, 78.67, "c4ffb2ff054376f2", "e24828963bec8d6c"),  # noqa: E501
    Task("gsm8k", "GSM8K", _NUMBER, 0.0, "published", 7473, 1319, 8792, hub.GSM8K, 1, 40.71, "d1ee5fe84c7ab81e", "33e6e789a513ae99"),
    Task("aqua", "AQUA", _letters("ABCDE"), 20.0, "published", 10000, 254, 97721, hub.AQUA, 1, 33.46),
    Task("svamp", "SVAMP", _NUMBER, 0.0, "sample", 700, 300, 1000, hub.SVAMP, 64, 62.1, "f652b7cf4663bc55", "37bca22235e55bec"),
    Task("date_understanding", "Date Understanding", _letters("ABCDEF"), 17.12, "sample", 258, 111, 369, None, 8, 67.48, "1b7494fa4a097bdb", "6f007a4153e554d7", r"^(.*?)What is the date"),  # noqa: E501
    Task("tracking_shuffled_objects", "Shuffled Objects", _letters("ABC"), 33.33, "sample", 525, 225, 750, hub.SHUFFLED_OBJECTS, 8, 52.4, "755ccf63f6ab7ecc", "5aa0a689a1f08f4b"),  # noqa: E501
    Task("last_letter_concatenation", "Last Letter", _TEXT, 0.0, "sample", 350, 150, 500, hub.LAST_LETTER, 8, 57.6, "8e2be50fc3dff122", "5404d27d7d890423"),  # noqa: E501
    Task("coin_flip", "Coin Flip", _YES_NO, 50.0, "sample", 350, 150, 500, None, 8, 91.4, "85917027e0ca7527", "fa2f6b89eb20e1c7"),
    Task("commonsense_qa", "CommonsenseQA", _letters("ABCDE"), 20.0, "published", 9741, 1221, 10962, hub.COMMONSENSE_QA, 1, 64.62, "65d91766d01cbbd4", "3325cce9f0e25d1d"),  # noqa: E501
    Task("strategy_qa", "StrategyQA", _YES_NO, 50.0, "sample", 1603, 687, 2290, hub.STRATEGY_QA, 8, 54.76, "4251a238fdb872c7", "1ce4d6a0bd22bc47"),  # noqa: E501
    Task("toy_arithmetic", "Toy arithmetic", AnswerRule("number"), 0.0, "sample"),
    Task("toy_comparison", "Toy comparison", AnswerRule("number"), 0.0, "sample"),
    Task("toy_coin_flip", "Toy coin flip", AnswerRule("yes_no"), 50.0, "sample"),
    Task("toy_last_letter", "Toy last letter", AnswerRule("text"), 0.0, "sample"),
)  # fmt: skip

TASKS: dict[str, Task] = {task.name: task for task in _ROWS}


def custom_task(name: str, rule: AnswerRule) -> Task:
    """A task for data of the user. Accuracy of guessing: 1/k for k letters, one half for yes/no, 0 otherwise."""
    guess = {"choice": 100.0 / max(1, len(rule.choices)), "yes_no": 50.0}.get(rule.answer_type, 0.0)
    return Task(name, name, rule, guess, "hash")


def with_numbers(task: Task, numbers: str) -> Task:
    """The task with another reading of answers (``paper`` or ``extended``); ``task`` keeps the task's own reading."""
    if numbers == "task":
        return task
    return replace(task, rule=replace(task.rule, numbers=numbers))  # type: ignore[arg-type]
