"""Curation in complete runs: unlabelled problems, golden ids, undersampling, and their part in a run's identity."""

from __future__ import annotations

import json

import pytest

from fcot.base.errors import ConfigFaults, FcotError
from fcot.base.files import read_jsonl
from fcot.runs.pipeline import execute
from fcot.tasks.toy import TOY_TASKS, make_problems

N = 30


@pytest.fixture
def data(tmp_path):
    """A file of problems: every third has no answer, and six in a row share a template."""
    problems = make_problems(TOY_TASKS["toy_arithmetic"], N, seed=0)
    rows = [
        {
            "question": problem.question,
            "answer": " " if problem.sample_index % 3 == 0 else problem.answer,
            "template_id": f"t{problem.sample_index // 6}",
        }
        for problem in problems
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "mine.jsonl"


@pytest.fixture
def make_custom_run(data, make_run, tmp_path):
    def make(*overrides: str):
        return make_run(
            tmp_path / "outputs", "dataset=custom", f"dataset.path={data}", "dataset.answer_type=number", "teacher=hf",
            f"teacher.path={tmp_path / 'teacher'}", "curation=vote", "diversity=4", "until=curate", "split-mode=sample", *overrides,
        )  # fmt: skip

    from students import save_gpt2

    save_gpt2(tmp_path / "teacher")
    return make


UNLABELLED = set(range(0, N, 3))


def test_unlabelled_problems_are_train_problems_only(make_custom_run):
    split = make_custom_run().split
    assert set(split.train) >= UNLABELLED
    assert not UNLABELLED & {*split.validation, *split.test}
    assert len(split.test) == 6


def test_a_template_split_keeps_labelled_and_unlabelled_problems_together(make_custom_run):
    split = make_custom_run("split-mode=template").split
    train, test = ({index // 6 for index in part} for part in (split.train, [*split.test, *split.validation]))
    assert not train & test
    assert UNLABELLED & set(split.train)


@pytest.mark.parametrize("override", ["dataset.limit=7", "split_mode.subset=7"])
def test_limits_count_unlabelled_problems(override, make_custom_run):
    assert len(make_custom_run(override).split.train) == 7


def test_a_split_file_may_name_unlabelled_train_problems(make_custom_run, tmp_path):
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": [0, 1, 2, 3, 4, 5], "test": [7, 8]}))
    split = make_custom_run("split-mode=file", f"split_mode.path={file}").split
    assert (set(split.train) | set(split.validation), split.test) == (set(range(6)), [7, 8])
    assert not set(split.validation) & UNLABELLED
    file.write_text(json.dumps({"train": [1, 2], "test": [3, 4]}))
    with pytest.raises(FcotError, match="1 test problems have no answer, the first is sample index 3"):
        make_custom_run("split-mode=file", f"split_mode.path={file}")


def test_methods_without_rationales_leave_out_unlabelled_problems(make_custom_run):
    assert not UNLABELLED & set(make_custom_run("method=fine_tune", "until=evaluate").split.train)


def test_without_voting_a_missing_answer_is_an_error(make_custom_run):
    with pytest.raises(FcotError, match="line 1: no gold answer"):
        make_custom_run("curation=answer")
    with pytest.raises(ConfigFaults, match="a majority needs three voters"):
        make_custom_run("diversity=2")


def test_problems_without_any_answer_can_be_curated_but_not_tested(make_custom_run, data):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    data.write_text("".join(json.dumps(row | {"answer": None}) + "\n" for row in rows))
    assert len(make_custom_run().split.train) == N
    with pytest.raises(FcotError, match="no test problems"):
        make_custom_run("until=evaluate")


# --- golden ids and undersampling, on a toy task ---------------------------------------------------------------------

SMALL = ["dataset.n_problems=60", "until=curate"]


@pytest.fixture
def golden(tmp_path):
    def write(ids) -> str:
        path = tmp_path / f"golden{len(list(tmp_path.iterdir()))}.json"
        path.write_text(json.dumps(ids))
        return f"curation.golden={path}"

    return write


def curated(run):
    summary = execute(run, "")
    return summary, [row for row in read_jsonl(run.directory.curated) if row["kept"]]


def test_golden_matched_keeps_as_many_completions_as_golden(make_run, golden, tmp_path):
    train = make_run(tmp_path, *SMALL).split.train
    ids = {str(index): [0, 2] for index in train[:10]}
    summary, rows = curated(make_run(tmp_path, *SMALL, "curation=golden", golden(ids)))
    assert {(row["sample_index"], row["completion_index"]) for row in rows} <= {(index, slot) for index in train[:10] for slot in (0, 2)}
    matched, others = curated(make_run(tmp_path, *SMALL, "curation=golden_matched", golden(ids)))
    assert matched["kept"] == summary["kept"] == len(rows) == len(others)
    assert {row["sample_index"] for row in others} - {row["sample_index"] for row in rows}
    assert matched["refused"]["undersampled"] > 0


def test_undersampling_keeps_max_samples_completions(make_run, tmp_path):
    everything, rows = curated(make_run(tmp_path, *SMALL))
    summary, kept = curated(make_run(tmp_path, *SMALL, "curation.max_samples=20"))
    assert (summary["kept"], len(kept)) == (20, 20)
    assert summary["refused"]["undersampled"] == everything["kept"] - 20
    assert summary["rationale_words"] == pytest.approx(sum(len(row["rationale"].split()) for row in kept) / 20, abs=0.01)
    assert summary["correct"] == everything["correct"]
    assert len(rows) == everything["kept"]


def test_a_golden_file_that_no_filter_reads_gives_a_warning(make_run, golden, tmp_path, capsys):
    """No fault: a sweep over filters has one file for all of them."""
    for choice, warned in (("answer", True), ("golden", False), ("golden_matched", False)):
        curated(make_run(tmp_path, *SMALL, f"curation={choice}", golden(list(range(60)))))
        assert (f"no filter of curation={choice} reads it; choose curation=golden" in capsys.readouterr().err) == warned


def test_golden_ids_that_match_nothing_are_an_error(make_run, golden, tmp_path):
    with pytest.raises(
        FcotError, match=r"1 of its sample indices are not in the data, the first is 100000; toy_arithmetic has 60 problems here"
    ):
        execute(make_run(tmp_path, *SMALL, "curation=golden_matched", golden([100_000])), "")


def test_a_golden_file_with_a_duplicate_key_is_an_error(make_run, tmp_path):
    path = tmp_path / "golden.json"
    path.write_text('{"0": [0], "1": [0], "0": [1]}')
    with pytest.raises(FcotError, match=r"curation\.golden=.*duplicate key '0'"):
        execute(make_run(tmp_path, *SMALL, "curation=golden", f"curation.golden={path}"), "")


def test_a_tied_vote_gives_no_label():
    from fcot.base.records import Completion, Problem
    from fcot.curation.filters import Rules, curate
    from fcot.prompts.answers import AnswerRule

    def reasons(*answers):
        drawn = [Completion(0, slot, "Because.", answer, "stop") for slot, answer in enumerate(answers)]
        rule = AnswerRule("number")
        rows = curate(
            drawn, {0: Problem(0, "Why?", "")}, rule, lambda completion, rule: rule.read(completion.answer_text), Rules(("answer",), "vote")
        )
        return [row.reason for row in rows]

    assert reasons("3", "3", "4", "4") == ["no_majority"] * 4
    assert reasons("3", "3", "4", "5") == [None, None, "outvoted", "outvoted"]
    assert reasons("3", "4", "5") == ["no_majority"] * 3


def test_templates_of_very_different_sizes_cannot_be_split(data, make_run, tmp_path):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for index, row in enumerate(rows):
        row.update(answer=row["answer"].strip() or "1", template_id="other" if index == 29 else "same")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(FcotError, match=r"the 2 templates of custom differ too much in size, train would have (1|29) problems"):
        make_run(
            tmp_path, "dataset=custom", f"dataset.path={data}", "dataset.answer_type=number", "method=fine_tune", "split-mode=template"
        )


def test_options_that_change_the_result_rename_the_run(make_run, golden, tmp_path):
    runs = [
        make_run(tmp_path, *SMALL),
        make_run(tmp_path, *SMALL, "curation.max_samples=20"),
        make_run(tmp_path, *SMALL, "curation.labels=vote_all"),
        make_run(tmp_path, *SMALL, "curation=golden", golden([5])), make_run(tmp_path, *SMALL, "curation=golden", golden({"5": []})),
        make_run(tmp_path, *SMALL, "curation=golden_matched", golden([5])),
        *(make_run(tmp_path, SMALL[0], "student=teacher", "method=zero_shot", f"prompt.rationale_tokens={n}") for n in (16, 512)),
    ]  # fmt: skip
    assert len({run.run_id for run in runs}) == len(runs)


def test_options_that_change_no_result_rename_no_run(make_run, golden, tmp_path):
    first = make_run(tmp_path, *SMALL)
    assert make_run(tmp_path, *SMALL, "curation.max_repeats=5").run_id == first.run_id
    assert make_run(tmp_path, *SMALL, golden([5])).run_id == first.run_id, "no filter reads the golden ids"
    assert first.setting == make_run(tmp_path, *SMALL, "seed=1").setting != make_run(tmp_path, *SMALL, "diversity=3").setting
