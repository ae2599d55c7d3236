"""Seeds that redraw the teacher's rationales: each has a block of D slots of its own."""

from __future__ import annotations

import pytest
from teachers import plan, problems

from fcot.base.errors import FcotError
from fcot.base.records import Completion
from fcot.estimate.dry_run import estimate
from fcot.llm.generate import generate_completions
from fcot.llm.store.folder import StoreFolder
from fcot.teacher import replay
from fcot.teacher.oracle import Oracle

SMALL = ("dataset.n_problems=40", "student.width=16", "student.layers=1", "student.heads=2")


def test_a_block_of_slots_has_other_rationales_and_is_part_of_a_larger_diversity(tmp_path):
    teacher, few = Oracle("toy_arithmetic", 0.0, 0.7), problems(4)

    def texts(diversity: int, first: int) -> tuple[list[Completion], dict]:
        bought = generate_completions(plan(teacher, diversity, first_slot=first), StoreFolder(tmp_path / "store"), few)
        return list(bought), bought.usage()

    def stored() -> int:
        return sum(len(path.read_text().splitlines()) for path in (tmp_path / "store").glob("*.jsonl"))

    (first, _), (second, usage) = texts(2, 0), texts(2, 2)
    assert usage["served_from_store"] == 0
    assert [one.completion_index for one in second] == [0, 1] * 4
    assert [one.rationale for one in first] != [one.rationale for one in second]
    rows = stored()
    whole, _ = texts(4, 0)
    assert stored() == rows
    parts = [
        (first if one.completion_index < 2 else second)[2 * (place // 4) + one.completion_index % 2] for place, one in enumerate(whole)
    ]
    assert [one.rationale for one in whole] == [one.rationale for one in parts]
    assert texts(2, 2)[0] == second
    assert stored() == rows


def test_each_seed_has_its_own_block_of_slots(tmp_path, make_run):
    runs = [make_run(tmp_path, *SMALL, "diversity=3", "redraw_rationales=true", f"seed={seed}") for seed in (0, 1, 2)]
    assert [list(run.plan.slots) for run in runs] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert len({run.run_id for run in runs}) == 3
    assert make_run(tmp_path, *SMALL, "diversity=3", "seed=2").plan.first_slot == 0
    planned: dict = {}
    n = 3 * len(runs[0].split.train)
    assert [estimate(run, planned).bought for run in reversed(runs)] == [n] * 3


def test_replayed_completions_are_also_used_in_blocks():
    few = problems(1)
    index = few[0].sample_index
    held = {index: [Completion(index, slot, f"r{slot}", "1") for slot in range(5)]}
    assert [one.rationale for one in replay.choose(held, few, 2, "file", 2)] == ["r2", "r3"]
    with pytest.raises(FcotError, match="completions 4 to 5 of each problem, and file holds 5"):
        replay.choose(held, few, 2, "file", 4)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("diversity=1",), "teacher.temperature=0.7"),
        (("teacher.temperature=0",), "teacher.temperature=0.7"),
        (("seed=1000000",), "too large"),
        (("method=tailored", "method.feedback.source=plain"), "method.feedback.source=plain"),
    ],
)
def test_options_that_prevent_redrawing_are_errors(tmp_path, make_run, overrides, said):
    with pytest.raises(FcotError) as error:
        make_run(tmp_path, "redraw_rationales=true", *overrides)
    assert said in str(error.value)
