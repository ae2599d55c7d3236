"""Functions that experiments call as ``${name:...}``: the papers' settings by task, and a choice between two values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def paper_diversity(task: str) -> int:
    """Paper A's D for diverse reasoning on a task: 64 or 8, or 1 for a task without diverse reasoning. Other tasks get 8."""
    from fcot.tasks.table import TASKS

    return TASKS[task].diversity if task in TASKS else 8


def where(value: str, beginning: str, then: Any, otherwise: Any) -> Any:
    """``then`` if ``value`` begins with ``beginning``, else ``otherwise``."""
    return then if value.startswith(beginning) else otherwise


def pick(value: str | None, otherwise: Any, choices: Mapping[str, Any]) -> Any:
    """The choice that ``value`` names; ``otherwise`` if it names none."""
    return choices.get(value, otherwise) if value is not None else otherwise


def paper_demonstrations(task: str) -> int:
    """Paper B's number of demonstrations for a task."""
    return {"strategy_qa": 4, "commonsense_qa": 5}.get(task, 3)


def paper_new_tokens(task: str) -> int:
    """Paper B's limit on the tokens of an answer at evaluation."""
    return {"gsm8k": 256, "commonsense_qa": 96, "strategy_qa": 128}.get(task, 192)


# ${pick:${arm},none,{dpo:dpo,simpo:simpo}} is dpo for arm=dpo, simpo for arm=simpo, else none.
# ${where:${student.name},tiny_,0.1,0.5} is 0.1 for students whose name begins with tiny_, else 0.5. The other resolvers take
# ${dataset.name}, as in ${paper_diversity:${dataset.name}}.
RESOLVERS: dict[str, Callable[..., Any]] = {
    "where": where,
    "pick": pick,
    "paper_diversity": paper_diversity,
    "paper_demonstrations": paper_demonstrations,
    "paper_new_tokens": paper_new_tokens,
}
