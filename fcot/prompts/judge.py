"""A judge of rationales: the request that shows numbered steps to a model, and the parser of its verdict.

A reply is read strictly: its last line is the verdict, in the wording that the request demands, and no other line contradicts it. Anything
else is unreadable, and an unreadable verdict never counts against a rationale.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from fcot.prompts.steps import steps_of

FILE = Path(__file__).with_name("judge.yaml")
NAME = "judge"  # the prompt's folder in the store
FIELDS = ("{question}", "{steps}")  # a template must have them
MARK = "Verdict:"
_VERDICT = re.compile(r"verdict: (?:(all steps follow)|step (\d{1,3}) is wrong)", re.IGNORECASE)


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on a rationale.

    Attributes:
        first_wrong_step: The number of the first wrong step, from 1; 0 if all steps follow; None if there is no readable verdict.
        fault: Why there is none: ``no_verdict``, ``several_verdicts``, ``no_such_step``, ``cut``, or the server's reason. None if there is.
    """

    first_wrong_step: int | None
    fault: str | None = None


@cache
def default_request() -> str:
    """The text of the request that comes with the package."""
    return str(yaml.safe_load(FILE.read_text(encoding="utf-8"))["request"])


def request_text(template: str, question: str, rationale: str) -> str:
    """The text of a request.

    Args:
        template: Text around ``{question}`` and ``{steps}``.
        question: The problem's question.
        rationale: The rationale to judge; each of its steps gets a line with its number.
    """
    steps = "\n".join(f"Step {number}: {step}" for number, step in enumerate(steps_of(rationale), 1))
    values = {"question": question, "steps": steps}
    return re.sub(r"\{(question|steps)\}", lambda match: values[match[1]], template)


def read_verdict(reply: str, n_steps: int, finish_reason: str | None = "stop") -> Verdict:
    """Read a reply, without its thoughts.

    Args:
        reply: The reply.
        n_steps: Number of steps of the rationale.
        finish_reason: ``length`` for a reply that the token limit cut.
    """
    lines = [line for line in (_plain(line) for line in reply.splitlines()) if line]
    matches = [_VERDICT.fullmatch(line) for line in lines if line.lower().startswith(MARK.lower())]
    last = _VERDICT.fullmatch(lines[-1]) if lines else None
    if last is None:
        return Verdict(None, "cut" if finish_reason == "length" else "no_verdict")
    verdicts = {None if match is None else int(match[2] or 0) for match in matches}
    if len(verdicts) > 1:
        return Verdict(None, "several_verdicts")
    number = int(last[2] or 0)
    if last[1] is None and not 1 <= number <= n_steps:
        return Verdict(None, "no_such_step")
    return Verdict(number)


def _plain(line: str) -> str:
    """A line without marks of emphasis, quotation and lists, runs of blanks, and a final full stop."""
    return " ".join(re.sub(r"[*_`#>\"]", "", line).split()).removeprefix("- ").removesuffix(".")


def faults(template: str, option: str) -> list[str]:
    """A message for each field that a template lacks.

    Args:
        template: The template.
        option: The option that sets it, with its value.
    """
    return [f"{option}: the text must contain {field}" for field in FIELDS if field not in template]
