"""Compares the judge of rationales with the arithmetic checker: python benchmarks/judge.py RUN [--quoted 50].

RUN is the folder of a run whose judge wrote its verdicts down. ``curation=none`` lets it read wrong answers too:

    python -m fcot.run dataset=svamp teacher=openai teacher.model=NAME curation=none curation.judge=record until=curate

It prints how both judge right and wrong answers, how often they agree, and quotes rationales on which they differ.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fcot.base.files import read_jsonl
from fcot.base.records import CuratedCompletion, from_row
from fcot.base.run_folder import RunDirectory
from fcot.curation.equations import wrong_equations
from fcot.evaluation.statistics import wilson_interval
from fcot.prompts.judge import steps_of


@dataclass(frozen=True)
class Compared:
    """A rationale with both verdicts.

    Attributes:
        row: The completion, with the judge's verdict.
        slip: The first equation that does not hold; None if all hold.
    """

    row: CuratedCompletion
    slip: str | None

    @property
    def judge(self) -> str:
        """The judge's verdict in a word."""
        return {None: "unreadable", 0: "follows"}.get(self.row.first_wrong_step, "wrong step")

    @property
    def checker(self) -> str:
        """The checker's verdict in words."""
        return "equations hold" if self.slip is None else "wrong equation"

    @property
    def same_step(self) -> bool:
        """Whether both name the same step, where both name one."""
        steps = steps_of(self.row.rationale)
        return bool(self.slip and self.row.first_wrong_step) and self.slip in steps[(self.row.first_wrong_step or 1) - 1]


def compare(run: RunDirectory) -> list[Compared]:
    """Both verdicts on each rationale that the judge has read."""
    rows = [from_row(CuratedCompletion, row) for row in read_jsonl(run.curated) if row["rationale"]]
    if not any(row.first_wrong_step is not None for row in rows):
        raise SystemExit(f"{run.curated} has no verdicts of a judge: run its command again with curation.judge=record")
    return [Compared(row, next(iter(wrong_equations(row.rationale)), None)) for row in rows]


def table(compared: Sequence[Compared]) -> str:
    """Numbers of rationales by the answer, the judge's verdict and the checker's."""
    counts = Counter((each.row.correct, each.checker, each.judge) for each in compared)
    verdicts = ("follows", "wrong step", "unreadable")
    lines = ["| answer | equations | judge: follows | judge: wrong step | judge: unreadable |", "|---|---|---|---|---|"]
    for correct in (True, False):
        for checker in ("equations hold", "wrong equation"):
            cells = (f"{counts[correct, checker, verdict]:,}" for verdict in verdicts)
            lines.append(f"| {'right' if correct else 'wrong'} | {checker} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(compared: Sequence[Compared]) -> list[str]:
    """Sentences: what each says of right and of wrong answers, and how often they agree, with 95 % intervals."""
    readable = [each for each in compared if each.judge != "unreadable"]
    sentences = [f"{len(compared):,} rationales, {len(compared) - len(readable):,} verdicts unreadable"]
    for name, says_wrong in (("judge", lambda each: each.judge == "wrong step"), ("checker", lambda each: each.slip is not None)):
        for correct in (True, False):
            part = [each for each in readable if each.row.correct == correct]
            answers = f"{'right' if correct else 'wrong'} answers"
            sentences.append(f"{name}: calls {_share(sum(map(says_wrong, part)), len(part))} of the {answers} wrong")
    agree = sum((each.judge == "wrong step") == (each.slip is not None) for each in readable)
    both = [each for each in readable if each.slip and each.row.first_wrong_step]
    sentences.append(f"both agree on {_share(agree, len(readable))}")
    sentences.append(
        f"where both call a rationale wrong, they name the same step in {_share(sum(each.same_step for each in both), len(both))}"
    )
    return sentences


def _share(n: int, total: int) -> str:
    if not total:
        return "0 of 0"
    low, high = wilson_interval(n, total)
    return f"{n:,} of {total:,} ({100 * n / total:.1f} %, {100 * low:.1f}-{100 * high:.1f})"


def quotes(compared: Sequence[Compared], n: int) -> list[str]:
    """Up to ``n`` rationales on which judge and checker differ, at random with a fixed seed."""
    differing = [each for each in compared if each.judge != "unreadable" and (each.judge == "wrong step") != (each.slip is not None)]
    texts = []
    for each in random.Random(0).sample(differing, min(n, len(differing))):
        row = each.row
        numbered = enumerate(steps_of(row.rationale), 1)
        steps = "\n".join(f"  {'>' if number == row.first_wrong_step else ' '} {number}. {step}" for number, step in numbered)
        answer = f"{'right' if row.correct else 'wrong'} answer, {row.prediction}; gold {row.answer}"
        texts.append(f"problem {row.sample_index}: {answer}; judge: {each.judge}; {each.checker}: {each.slip}\n  {row.question}\n{steps}")
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--quoted", type=int, default=50, help="most rationales to quote")
    options = parser.parse_args()
    compared = compare(RunDirectory(options.run))
    print(table(compared), *summary(compared), *quotes(compared, options.quoted), sep="\n\n")


if __name__ == "__main__":
    main()
