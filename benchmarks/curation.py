"""Lists wrong equations in real completions, or groups of problems by wording: python benchmarks/curation.py arithmetic|templates DATA.

DATA holds ``dataset/`` and ``completion_data/`` in the authors' formats.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from pathlib import Path

from fcot.base.records import Completion, Problem
from fcot.curation.equations import equations, wrong_equations
from fcot.curation.filters import Rules, curate
from fcot.tasks.grouping import group_by_template
from fcot.tasks.loaders import load_problems
from fcot.tasks.splits import template_split
from fcot.tasks.table import TASKS
from fcot.teacher.replay import read_completions

N_SHOWN = 10
N_GROUPS = 20


def load(data: Path, name: str) -> dict[int, Problem]:
    return {problem.sample_index: problem for problem in load_problems(TASKS[name], str(data / "dataset" / f"{name}.json"))}


def arithmetic(data: Path, names: list[str]) -> None:
    """Print the share of kept completions with a wrong equation, and ten examples."""
    for name in names:
        problems, task = load(data, name), TASKS[name]
        file = next((data / "completion_data").rglob(f"D_{name}.json"))
        by_problem, _ = read_completions(file, task, {index: problem.question for index, problem in problems.items()})
        completions: list[Completion] = [completion for slots in by_problem.values() for completion in slots]
        verdicts = curate(completions, problems, task.rule, lambda each, rule: rule.read(each.answer_text), Rules(["answer"]))
        rows = [row for row in verdicts if row.kept]
        wrong = [(row, wrong_equations(row.rationale)) for row in rows]
        wrong = [(row, slips) for row, slips in wrong if slips]
        n_equations = sum(1 for row in rows for _ in equations(row.rationale))
        share = f"{len(wrong)} of {len(rows)} kept completions ({len(wrong) / len(rows):.2%})"
        print(f"\n{task.title}: {share} have a wrong equation; {n_equations} equations read")
        for row, slips in wrong[:N_SHOWN]:
            print(f"  {row.sample_index}: {'; '.join(slips)}   (answer {row.answer})")


def templates(data: Path, names: list[str]) -> None:
    """Print the groups by wording: their number, sizes and split, and twenty random ones with up to three questions each."""
    for name in names:
        problems = load(data, name)
        group_of = group_by_template(problems)
        sizes = Counter(group_of.values())
        train, test = template_split([group_of[index] for index in sorted(problems)])
        print(f"\n{name}: {len(problems)} problems, {len(sizes)} groups; template split {len(train)} / {len(test)}")
        print("  groups by size:", dict(sorted(Counter(sizes.values()).items())))
        for group in random.Random(0).sample(sorted(sizes), min(N_GROUPS, len(sizes))):
            members = [index for index in sorted(problems) if group_of[index] == group]
            print(f"\n  {group} ({len(members)})")
            for index in members[:3]:
                print(f"    {problems[index].question}")
    labels = Counter(problem.template_id for problem in load(data, "date_understanding").values())
    print(f"\ndate_understanding, by its own labels: {len(labels)} contexts of {sorted(set(labels.values()))} problems")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=["arithmetic", "templates"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--task", nargs="+")
    options = parser.parse_args()
    if options.command == "arithmetic":
        arithmetic(options.data, options.task or ["svamp", "multiarith"])
    else:
        templates(options.data, options.task or ["multiarith"])


if __name__ == "__main__":
    main()
