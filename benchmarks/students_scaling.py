"""``python benchmarks/students.py scaling``: how training time grows with D, problems, row length and parameters."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import numpy as np
import pyarrow as pa
from students import Sample, build, fcot_side, fresh, recipe_of, table, timed, tokenized

from fcot.student.config import TrainerConfig
from fcot.student.loading import Student
from fcot.student.tokenization import Tokenized
from fcot.tasks.toy import TOY_TASKS, make_problems


def scaling(arguments: argparse.Namespace) -> None:
    """Print training times, and compare each with linear growth from the smallest size: above 1 is worse than linear."""
    task = TOY_TASKS["toy_arithmetic"]

    def samples(n: int, diversity: int) -> list[Sample]:
        return [(problem.question, problem.answer, task.rationale(problem.question, slot, None))
                for problem in make_problems(task, n, 0) for slot in range(diversity)]  # fmt: skip

    recipe = recipe_of(batch_size=8, epochs=1, schedule="linear", weight_decay=0.01)
    vocabulary = samples(64, 4)
    student = build("gpt2", vocabulary, width=64, layers=2)
    cells = []
    grown = {"D, of 64 problems": [(64, d) for d in (1, 4, 16, 64)], "problems, at D = 4": [(n, 4) for n in (64, 256, 1024)]}
    for what, chosen in grown.items():
        sample_sets = [samples(*size) for size in chosen]
        results = [timed(lambda sample_set=sample_set: tokenized(student, sample_set)) for sample_set in sample_sets]
        times = [median(fcot_side(fresh(student), rows, recipe).seconds for _ in range(arguments.turns)) for rows, _ in results]
        counts = [len(sample_set) for sample_set in sample_sets]
        cells += [[what, str(size[0] if "problems," in what else size[1]), count, spent, tokenizing, growth(counts, times, at)]
                  for at, (size, count, spent, (_, tokenizing)) in enumerate(zip(chosen, counts, times, results, strict=True))]  # fmt: skip
    table(["what grows", "value", "samples", "training s", "tokenizing s", "against linear"], cells)
    cells = []
    lengths, times = (64, 128, 256, 512, 1024), []
    fixed = replace(recipe, max_steps=10)
    for length in lengths:
        times.append(synthetic(student, 80, length, fixed, arguments.turns))
        cells.append(["tokens per row", str(length), times[-1], growth(lengths, times, len(times) - 1)])
    models = [build("gpt2", vocabulary, width=width, layers=layers) for width, layers in ((64, 2), (128, 4), (256, 6), (384, 8))]
    parameters, times = [model.model.num_parameters() for model in models], []
    for model, size in zip(models, parameters, strict=True):
        times.append(synthetic(model, 80, 128, fixed, arguments.turns))
        cells.append(["parameters", f"{size:,}", times[-1], growth(parameters, times, len(times) - 1)])
    table(["what grows", "value", "training s of 10 steps", "against linear"], cells)


def growth(sizes: Sequence[int], times: Sequence[float], at: int) -> float:
    """How much the time grew from the first measurement to this one, divided by how much the size grew."""
    return times[at] / times[0] * sizes[0] / sizes[at]


def synthetic(student: Student, n: int, length: int, recipe: TrainerConfig, turns: int) -> float:
    """Median seconds of training on rows of one length, half of it prompt."""
    ids = np.random.default_rng(0).integers(4, 300, (n, length // 2)).tolist()
    lists = {name: pa.array(ids, pa.list_(pa.int32())) for name in ("prompt", "completion")}
    rows = Tokenized(pa.table(lists | {"demonstrations": pa.array([0] * len(ids), pa.int32())}))
    return median(fcot_side(fresh(student), rows, recipe).seconds for _ in range(turns))
