"""Teacher accuracy over whole completion files, as curated: python benchmarks/teacher_accuracy.py DATA_FOLDER.

DATA_FOLDER holds ``dataset/<task>.json`` and ``completion_data/`` in the authors' formats.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fcot.curation.filters import Rules, count_reasons, curate
from fcot.prompts.answers import AnswerRule
from fcot.records import Completion
from fcot.tasks.loaders import load_problems
from fcot.tasks.table import TASKS
from fcot.teacher.replay import find_files, read_completions


def first_candidate(completion: Completion, rule: AnswerRule) -> str | None:
    return rule.first(completion.answer_text)


def main(folder: Path) -> None:
    for file in find_files(folder / "completion_data"):
        task = TASKS[file.stem.removeprefix("D_").split("__")[0]]
        problems = {problem.sample_index: problem for problem in load_problems(task, str(folder / "dataset" / f"{task.name}.json"))}
        completions, model = read_completions(file, task, {index: problem.question for index, problem in problems.items()})
        rows = [completion for slots in completions.values() for completion in slots]
        curated = list(curate(rows, problems, task.rule, first_candidate, Rules(["answer"])))
        kept = sum(row.kept for row in curated)
        print(
            f"{task.title:18} {model} kept {kept:4}/{len(curated):4} = {100 * kept / len(curated):.2f} % refused {count_reasons(curated)}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
