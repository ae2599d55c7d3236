"""Prints teacher accuracy on whole completion files under both readings of answers: python benchmarks/teacher_accuracy.py DATA_FOLDER.

DATA_FOLDER holds ``dataset/<task>.json`` and ``completion_data/`` in the authors' formats. Verdicts that differ between the readings are
listed with the answer's text.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fcot.base.records import Completion
from fcot.curation.filters import Rules, count_reasons, curate
from fcot.prompts.answers import AnswerRule
from fcot.prompts.numbers import Reading
from fcot.tasks.loaders import load_problems
from fcot.tasks.table import TASKS, with_numbers
from fcot.teacher.replay import find_files, read_completions


def first_answer(completion: Completion, rule: AnswerRule) -> Reading:
    return rule.read(completion.answer_text)


def main(folder: Path) -> None:
    changes = []
    for file in find_files(folder / "completion_data"):
        task = TASKS[file.stem.removeprefix("D_").split("__")[0]]
        problems = {problem.sample_index: problem for problem in load_problems(task, str(folder / "dataset" / f"{task.name}.json"))}
        completions, model = read_completions(file, task, {index: problem.question for index, problem in problems.items()})
        all_completions = [completion for slots in completions.values() for completion in slots]
        verdicts = []
        for reading in ("paper", "extended"):
            rule = with_numbers(task, reading).rule
            rows = list(curate(all_completions, problems, rule, first_answer, Rules(["answer"])))
            kept = sum(row.kept for row in rows)
            print(
                f"{task.title:18} {model} {reading:8} kept {kept:4}/{len(rows):4} = {100 * kept / len(rows):.2f} % "
                f"rejected {count_reasons(rows)}"
            )
            verdicts.append(rows)
        for completion, before, after in zip(all_completions, *verdicts, strict=True):
            if (before.kept, before.reason) != (after.kept, after.reason):
                changes.append(
                    f"{task.title} {completion.sample_index}: {before.reason or 'kept'} ({before.prediction}) -> "
                    f"{after.reason or 'kept'} ({after.prediction}); gold {problems[completion.sample_index].answer!r}; "
                    f"read {completion.answer_text[:120]!r}"
                )
    print(f"\n{len(changes)} verdicts differ")
    print("\n".join(changes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
