"""Splits by hash: a problem's part follows from its question alone, so that own data can grow without moving anybody or buying again."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from teachers import Scripted

from fcot.base.errors import FcotError
from fcot.llm.generate import generate_completions
from fcot.runs.run import data_notes
from fcot.runs.splitting import former_split_note, templates_of_test
from fcot.tasks.splits import hash_split, hashed
from fcot.tasks.toy import TOY_TASKS, make_problems

ROWS = [{"question": problem.question, "answer": problem.answer} for problem in make_problems(TOY_TASKS["toy_arithmetic"], 260, seed=3)]


def parts(keys):
    """The part of each key."""
    return {
        keys[index]: name for name, part in zip("train validation test".split(), hash_split(keys, 0.7, 0.1), strict=True) for index in part
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=8), unique=True, max_size=40), st.lists(st.text(max_size=8), unique=True, max_size=40), st.randoms())
def test_other_problems_and_their_order_change_no_problems_part(some, others, rng):
    both = list(dict.fromkeys([*others, *some]))
    rng.shuffle(both)
    alone, together = parts(dict(enumerate(some))), parts(dict(enumerate(both)))
    assert {key: together[key] for key in some} == alone
    order = hashed(range(len(some)), dict(enumerate(some)))
    merged = [key for index in hashed(range(len(both)), dict(enumerate(both))) if (key := both[index]) in alone]
    assert [some[index] for index in order] == merged


def test_the_shares_are_those_that_were_requested():
    train, validation, test = map(len, hash_split({index: f"question {index}" for index in range(20_000)}, 0.7, 0.1))
    assert abs(test / 20_000 - 0.3) < 0.015
    assert abs(validation / (train + validation) - 0.1) < 0.015


def test_problems_with_one_key_are_in_one_part():
    keys = {index: f"t{index // 50}" for index in range(500)}
    for part in hash_split(keys, 0.7, 0.1):
        assert len(part) % 50 == 0


@pytest.fixture
def own(tmp_path, make_run):
    """``(rows, *overrides) -> run`` on a file of these rows."""

    def make(rows, *overrides):
        path = tmp_path / "own.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return make_run(
            tmp_path / "outputs", "dataset=custom", f"dataset.path={path}", "dataset.answer_type=number", "dataset.name=own", "diversity=2",
            "teacher=openai", "teacher.model=m", "teacher.base_url=http://127.0.0.1:9/v1", "prompt=reasoning_chat", *overrides,
        )  # fmt: skip

    return make


def sides(run):
    """The part of each question."""
    return {run.problems[index].question: name for name in ("train", "validation", "test") for index in getattr(run.split, name)}


def buy(run):
    """Buy what the store lacks; returns the questions that were sent."""
    teacher = Scripted(lambda request, n, first_slot: [f"{first_slot + number}. The answer is 7." for number in range(n)], max_choices=8)
    teacher.identity, teacher.chat = run.plan.teacher.identity, True
    generate_completions(replace(run.plan, teacher=teacher), run.store, run.select(run.split.train))
    run.store.close()
    return {request.problem.question for request, _, _ in teacher.calls}


CHANGES = {
    "50 rows appended": lambda old, new: [*old, *new],
    "50 rows on top": lambda old, new: [*new, *old],
    "the order shuffled": lambda old, new: random.Random(0).sample([*old, *new], len(old) + len(new)),
    "rows removed": lambda old, new: [*old[20:], *new],
}


def grouped(rows):
    """The rows with 20 groups; rows of a group have other questions."""
    return [{**row, "customer": f"K{int(row['answer']) % 20}"} for row in rows]


def parted(rows):
    """The rows with a split of their own."""
    return [{**row, "part": ("train", "Train", "test", "validation")[len(row["question"]) % 4]} for row in rows]


GROUPED, PARTED = "dataset.group_column=customer", "dataset.split_column=part"


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(("columns", "option"), [(grouped, GROUPED), (parted, PARTED)], ids=["groups", "own split"])
def test_growing_data_with_groups_or_its_own_split_moves_nobody(own, change, columns, option):
    old, new = columns(ROWS[:200]), columns(ROWS[200:250])
    before, after = sides(own(old, option)), sides(own(change(old, new), option))
    assert {question: side for question, side in after.items() if question in before} == {q: before[q] for q in after if q in before}


def test_all_rows_of_a_group_are_on_one_side_and_are_one_unit_in_statistics(own):
    run = own(grouped(ROWS), GROUPED)
    sides_of = {}
    for question, side in sides(run).items():
        group = next(row["customer"] for row in grouped(ROWS) if row["question"] == question)
        sides_of.setdefault(group, set()).add(side)
    assert all(len(several) == 1 for several in sides_of.values())
    assert len({side for several in sides_of.values() for side in several}) == 3
    assert set(templates_of_test(run).values()) == {group for group, several in sides_of.items() if several == {"test"}}


def test_a_split_without_validation_problems_is_announced_before_anything_is_paid(own):
    rows = [row | {"shop": f"C{number % 20}"} for number, row in enumerate(ROWS)]
    run = own(rows, "dataset.group_column=shop")
    assert run.split.train
    assert not run.split.validation
    (note,) = (note for note in data_notes(run) if "validation" in note)
    assert "no validation problems, because there are few groups: the last checkpoint is reported" in note
    larger = own(rows, "dataset.group_column=shop", "split_mode.validation_fraction=0.2")
    last = own(rows, "dataset.group_column=shop", "trainer.selection=last")
    for other in (larger, last, run):
        assert bool([note for note in data_notes(other) if "validation" in note]) == (other is run)
    assert larger.split.validation


def test_the_datas_own_split_is_kept_and_announced(own):
    rows = parted(ROWS)
    run = own(rows, PARTED)
    assert sides(run) == {row["question"]: row["part"].lower() for row in rows}
    (note,) = data_notes(run)
    sizes = [len(getattr(run.split, part)) for part in ("train", "validation", "test")]
    assert note == f"data: the split is that of the column 'part': {sizes[0]} train, {sizes[1]} validation, {sizes[2]} test"


def test_without_validation_rows_they_are_held_out_from_train_by_hash(own):
    rows = [{**row, "part": "test" if number >= 200 else "train"} for number, row in enumerate(ROWS)]
    whole, less = own(rows, PARTED), own(rows[30:], PARTED)
    assert len(whole.split.test) == 60
    assert 8 < len(whole.split.validation) < 40
    assert {q: side for q, side in sides(whole).items() if q in sides(less)} == sides(less)


def test_another_word_in_the_split_column_is_a_fault_with_its_line(own, tmp_path):
    rows = [{**row, "part": "train"} for row in ROWS[:10]]
    rows[3]["part"], rows[5]["part"] = "dev", None
    with pytest.raises(FcotError) as error:
        own(rows, PARTED)
    assert str(error.value).split("\n")[:2] == [
        f"{tmp_path}/own.jsonl, line 4: the split 'dev' is none of train, validation, test",
        f"{tmp_path}/own.jsonl, line 6: the split None is none of train, validation, test",
    ]


def test_a_split_of_train_rows_alone_says_what_to_write(own):
    with pytest.raises(FcotError, match=r"no test problems with dataset.split_column=part; write test into its rows, or stop before"):
        own([{**row, "part": "train"} for row in ROWS], PARTED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((GROUPED, "split-mode=sample"), "dataset.group_column and split-mode=sample: only split-mode=hash reads it"),
        ((PARTED, "split-mode=template"), "dataset.split_column and split-mode=template: only split-mode=hash reads it"),
        ((PARTED, GROUPED), "dataset.split_column and dataset.group_column: both set the split"),
    ],
)
def test_columns_that_another_option_rules_out_are_a_message(own, options, message):
    with pytest.raises(FcotError, match=message):
        own(parted(grouped(ROWS)), *options)


def test_too_few_groups_get_a_message(own):
    """Before, the advice was split-mode=sample, which dataset.group_column rules out."""
    rows = [{**row, "customer": "K1"} for row in ROWS]
    advised = r"leave out dataset.group_column=customer, alone or with split-mode=sample, or add rows of more groups"
    with pytest.raises(FcotError, match=rf"own has too few groups in the column 'customer' \(1\), .*; {advised}"):
        own(rows, GROUPED)
    for options in ((), ("split-mode=sample",)):
        assert own(rows, *options).split.test


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_growing_data_moves_nobody_and_buys_only_new_train_problems(own, change):
    old, new = ROWS[:200], ROWS[200:250]
    first = own(old)
    assert buy(first) == {question for question, side in sides(first).items() if side == "train"}
    second = own(change(old, new))
    before, after = sides(first), sides(second)
    assert {question: side for question, side in after.items() if question in before} == {q: before[q] for q in after if q in before}
    assert buy(second) == {question for question, side in after.items() if side == "train" and question not in before}


def test_a_limit_takes_problems_that_the_whole_data_also_trains_on(own):
    some, everything = own(ROWS, "dataset.limit=20"), own(ROWS)
    assert len(some.split.train) == 20
    assert set(some.split.train) <= set(everything.split.train)
    assert (some.split.validation, some.split.test) == (everything.split.validation, everything.split.test)


def test_too_few_problems_to_split_get_a_message(own):
    with pytest.raises(FcotError, match=r"split-mode=hash: own has too few different problems \(1\), .* use split-mode=sample"):
        own(ROWS[:1]).split  # noqa: B018 - resolved when it is read


def test_data_that_earlier_runs_split_by_row_number_gets_a_note(own, tmp_path):
    former = own(ROWS, "split-mode=sample")
    buy(former)
    assert former_split_note(own(ROWS)) == []
    folder = former.directory.path
    folder.mkdir(parents=True, exist_ok=True)
    former.directory.config.write_text("dataset:\n  name: own\nsplit_mode:\n  name: sample\n  train_fraction: 0.7\nteacher:\n  name: x\n")
    run = own(ROWS)
    run.directory.path.mkdir(parents=True)
    run.directory.config.write_text("split_mode:\n  name: hash\n")  # a run writes it before its first stage
    (note,) = former_split_note(run)
    moved = len({*former.split.train} - {*run.split.train})
    assert f"{moved} are validation or test problems now" in note
    assert "split-mode=sample" in note
    assert former_split_note(own(ROWS, "split-mode=sample")) == []


def test_without_stored_completions_a_former_split_gets_no_note(own):
    former = own(ROWS, "split-mode=sample", "dataset.name=own-other")
    former.directory.path.mkdir(parents=True)
    former.directory.config.write_text("split_mode:\n  name: sample\n")
    assert former_split_note(own(ROWS)) == []
