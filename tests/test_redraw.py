"""Seeds that redraw the teacher's rationales: each seed has its own block of D slots."""

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
    teacher, selected = Oracle("toy_arithmetic", 0.0, 0.7), problems(4)

    def texts(diversity: int, first: int) -> tuple[list[Completion], dict]:
        generated = generate_completions(plan(teacher, diversity, first_slot=first), StoreFolder(tmp_path / "store"), selected)
        return list(generated), generated.usage()

    def stored() -> int:
        return sum(len(path.read_text().splitlines()) for path in (tmp_path / "store").glob("*.jsonl"))

    (first, _), (second, usage) = texts(2, 0), texts(2, 2)
    assert usage["served_from_store"] == 0
    assert [completion.completion_index for completion in second] == [0, 1] * 4
    assert [completion.rationale for completion in first] != [completion.rationale for completion in second]
    rows = stored()
    whole, _ = texts(4, 0)
    assert stored() == rows
    parts = [
        (first if completion.completion_index < 2 else second)[2 * (position // 4) + completion.completion_index % 2]
        for position, completion in enumerate(whole)
    ]
    assert [completion.rationale for completion in whole] == [completion.rationale for completion in parts]
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
    selected = problems(1)
    index = selected[0].sample_index
    completions = {index: [Completion(index, slot, f"r{slot}", "1") for slot in range(5)]}
    assert [completion.rationale for completion in replay.choose(completions, selected, 2, "file", 2)] == ["r2", "r3"]
    with pytest.raises(FcotError, match="completions 4 to 5 of each problem, and file holds 5"):
        replay.choose(completions, selected, 2, "file", 4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("diversity=1",), "teacher.temperature=0.7"),
        (("teacher.temperature=0",), "teacher.temperature=0.7"),
        (("seed=1000000",), "too large"),
        (("method=tailored", "method.feedback.source=plain"), "method.feedback.source=plain"),
    ],
)
def test_options_that_prevent_redrawing_are_errors(tmp_path, make_run, overrides, message):
    with pytest.raises(FcotError) as error:
        make_run(tmp_path, "redraw_rationales=true", *overrides)
    assert message in str(error.value)
