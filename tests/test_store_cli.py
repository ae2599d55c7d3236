"""``python -m fcot.store`` on stores that runs have filled and on a published file: nothing is lost, misfiled or bought twice."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from teachers import Scripted

from fcot.base.files import read_json
from fcot.curation.filters import curate
from fcot.llm.generate import generate_completions
from fcot.llm.plan import missing
from fcot.llm.requests import Choice, Reply, Usage
from fcot.store import configured, main
from fcot.teacher.replay import choose, read_completions

OFFLINE = ("teacher=openai", "teacher.base_url=http://127.0.0.1:9/v1", "teacher.model=m", "dataset=toy_arithmetic", "dataset.n_problems=20")
TWO_STEPS = (*OFFLINE, "teacher.endpoint=completions", "prompt=zero_shot_cot")
CHAT_IN_TWO = (*OFFLINE, "prompt=zero_shot_cot")
ONE_REQUEST = (*OFFLINE, "prompt=zero_shot_cot_chat")
ORACLE = ("dataset.n_problems=40",)
N_TRAIN = 13  # of 20 toy problems: 14, of which validation holds out one


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Work in an empty folder, without an API key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def store(capsys):
    """``store("list") -> (code, out, err)``."""

    def call(*arguments):
        capsys.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return call


class Seller:
    """Texts with every kind of repetition: rationales with equal and with different answers, and the wordings of one-request prompts."""

    def __init__(self, refuses=lambda request: False):
        self.serial, self.refuses = itertools.count(), refuses

    def __call__(self, request, n, seed):
        if self.refuses(request):
            return [Choice("", "content_filter", refused="content_filter")]
        if request.rationale is not None:
            return [f" {next(self.serial) % 2}." for _ in range(n)]
        if isinstance(request.prompt, list) and "End with" in request.prompt[0]["content"]:
            texts = [
                "Two. So, therefore, the answer (arabic numerals) is: **2**.",
                "No idea",
                "The answer is 3. So the answer is",
                "The answer is 4",
            ]
        else:
            texts = [" One and one.", " Two.", " One and one.\n", " Ünd\u2028."]
        return [Choice(texts[next(self.serial) * 7 % 4], ("stop", "length")[seed % 2]) for _ in range(n)]


def buy(*overrides, seller=None):
    """Fill the store of a configuration from a teacher in this process that has the identity of the configured teacher."""
    run = configured(overrides)
    if seller is not None:
        teacher = Scripted(seller, max_choices=3)
        teacher.identity, teacher.chat = run.teacher.identity, run.teacher.chat
        run = replace(run, teacher=teacher)
    generate_completions(run.plan, run.store, run.select(run.split.train))
    return run.store.path


def n_missing(*overrides):
    """Number of completions that a run of the configuration would still buy."""
    run = configured(overrides)
    n = 0
    for problem in run.select(run.split.train):
        key = run.plan.key(run.plan.step1(problem))
        n += sum(job.n for job in missing(run.plan, run.store.shard(key).refresh(), key, problem))
    return n


def pairs(path):
    """Rationale, answer and finish reason of each completion of a file, by problem."""
    names = ("reasoning_completion", "completion", "finish_reason")
    return {int(index): [tuple(row.get(name) for name in names) for row in rows] for index, rows in read_json(Path(path))["data"].items()}


def count_pairs(path):
    return {index: Counter(rows) for index, rows in pairs(path).items()}


def files():
    return {path: path.read_bytes() for path in Path("outputs").rglob("*.jsonl")}


def move_away():
    Path("outputs").rename("elsewhere")


# --- list and verify ----------------------------------------------------------------------------------------------


def test_the_store_of_a_run_is_listed_and_has_no_fault(run_fcot, store):
    assert run_fcot("until=generate", *ORACLE).returncode == 0
    done = run_fcot("list", module="fcot.store")
    assert done.returncode == 0
    lines = [line.split() for line in done.stdout.splitlines() if "oracle" in line or "total" in line]
    n_rows = len(b"".join(files().values()).splitlines())
    for line in lines:
        assert line[1:5] == ["25", "100", "100", "0"], "25 of 40 problems: 28 for training, 3 held out"
    assert lines[0][0].startswith("toy_arithmetic/oracle-v2/")
    assert n_rows == 200
    code, out, err = store("verify", "outputs/store")
    assert (code, err) == (0, "")
    assert re.search(r"oracle-v2/\S+ +200 +0 +0 +0\b", out)


def test_refusals_and_tokens_are_counted(store):
    refused_problems = configured(TWO_STEPS).split.train[:2]
    buy(*TWO_STEPS, "diversity=2", seller=Seller(lambda request: request.problem.sample_index in refused_problems))
    line = next(line.split() for line in store("list")[1].splitlines() if "zero_shot" in line)
    usage = [row for data in files().values() for row in map(json.loads, data.splitlines()) if "prompt_tokens" in row]
    assert line[1:4] == ["13", "22", "22"]
    assert int(line[4]) >= 4
    assert line[5].replace(",", "") == str(sum(row["prompt_tokens"] or 0 for row in usage))
    assert line[6].replace(",", "") == str(sum(row["completion_tokens"] or 0 for row in usage))
    assert store("verify")[0] == 0


def rewrite_shard(change):
    """Replace the rows of the largest shard by ``change(rows)``; strings become lines as they are."""
    path = max(files(), key=lambda path: path.stat().st_size)
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in change(rows)))
    return path


def with_other_prompt(rows):
    index = next(i for i, row in enumerate(rows) if row["slot"] == 0)
    rows[index]["asked"]["prompt"] += "!"
    return rows


def in_wrong_shard(rows):
    other = next(digit for digit in "0123456789abcdef" if digit != rows[0]["key"][0])
    return [*rows, rows[1] | {"key": other + rows[1]["key"][1:], "slot": 1}]


def without(name):
    return lambda rows: [{key: value for key, value in rows[0].items() if key != name}, *rows[1:]]


@pytest.mark.parametrize(
    ("change", "line", "fault"),
    [
        (lambda rows: [*rows, rows[3]], -1, "a second row for its key and slot"),
        (in_wrong_shard, -1, "a row that belongs to another shard"),
        (with_other_prompt, 0, "a request (field asked) whose hash is not its key"),
        (lambda rows: [row for row in rows if row["root"] or row["key"] != rows[0]["key"]], None, "an answer whose rationale has no row"),
        (without("text"), 0, "no field text"),
        (without("asked"), 0, "no field asked"),
        (without("slot"), 0, "not a row: no key, or no slot"),
        (lambda rows: [rows[0] | {"text": None}, *rows[1:]], 0, "wrong type of field text"),
        (lambda rows: [*rows, "[]"], -1, "not a row: no key, or no slot"),
    ],
)
def test_verify_names_the_line_of_a_fault(change, line, fault, store):
    buy(*ORACLE)
    path = rewrite_shard(change)
    code, out, err = store("verify")
    assert code == 1
    assert re.fullmatch(rf"outputs/store: [\d,]+ faults?: .*{re.escape(fault)}.*\n", err)
    if line is not None:
        number = line % len(path.read_bytes().splitlines()) + 1
        assert f"{path}:{number}: {fault}\n" in out
    else:
        assert fault in out


def test_torn_and_unfinished_lines_are_no_fault(store):
    buy(*ORACLE)
    path = rewrite_shard(lambda rows: [json.dumps(rows[0])[:50], "", *rows])
    with path.open("ab") as file:
        file.write(b'{"key": "to')
    code, out, err = store("verify")
    assert (code, err) == (0, "")
    assert re.search(r"oracle-v2/\S+ +200 +2 +1 +0\b", out)
    assert store("list")[0] == 0


def test_many_faults_are_counted_and_ten_are_shown(store):
    buy(*ORACLE)
    path = rewrite_shard(lambda rows: [*rows, *rows])
    code, out, err = store("verify")
    n = len(path.read_bytes().splitlines()) // 2
    assert code == 1
    assert err == f"outputs/store: {n} faults: {n} x a second row for its key and slot\n"
    assert out.count(f"{path}:") == min(n, 10)


@pytest.mark.parametrize("command", ["list", "verify"])
def test_a_missing_store_gives_one_message(command, store, tmp_path):
    assert store(command) == (1, "", "outputs/store: no such folder\n")
    assert store(command, tmp_path) == (1, "", f"{tmp_path}: no completions are stored here\n")


# --- export and import --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [TWO_STEPS, CHAT_IN_TWO, ONE_REQUEST])
@pytest.mark.parametrize("diversity", [1, 6])
def test_an_export_fills_an_empty_store_and_nothing_is_bought_again(overrides, diversity, store):
    overrides = (*overrides, f"diversity={diversity}")
    buy(*overrides, seller=Seller())
    code, out, _ = store("export", "one.json", *overrides)
    assert code == 0
    n = N_TRAIN * diversity
    assert f"one.json: {n} completions of {N_TRAIN} problems; 0 of the {n} ({diversity} x {N_TRAIN}) are missing" in out
    move_away()
    assert n_missing(*overrides) == n
    assert f"{n} completions of {N_TRAIN} problems imported, 0 were stored already" in store("import", "one.json", *overrides)[1]
    assert n_missing(*overrides) == 0
    assert store("verify")[0] == 0
    store("export", "two.json", *overrides)
    assert count_pairs("two.json") == count_pairs("one.json")
    before = files()
    assert f" 0 completions of {N_TRAIN} problems imported, {n} were stored already" in store("import", "one.json", *overrides)[1]
    assert files() == before


def test_importing_the_export_of_a_store_into_the_same_store_changes_nothing(store):
    """Also with one request per completion, whose texts an export does not contain verbatim."""
    for overrides in (TWO_STEPS, ONE_REQUEST):
        buy(*overrides, "diversity=6", seller=Seller())
        before = files()
        store("export", "one.json", *overrides, "diversity=6")
        assert " 0 completions" in store("import", "one.json", *overrides, "diversity=6")[1]
        assert files() == before


def test_four_imported_completions_are_the_first_of_eight(store):
    buy(*TWO_STEPS, "diversity=4", seller=Seller())
    store("export", "four.json", *TWO_STEPS, "diversity=4")
    move_away()
    store("import", "four.json", *TWO_STEPS, "diversity=4")
    assert n_missing(*TWO_STEPS, "diversity=8") == 4 * N_TRAIN
    buy(*TWO_STEPS, "diversity=8", seller=Seller())
    store("export", "eight.json", *TWO_STEPS, "diversity=8")
    four, eight = count_pairs("four.json"), count_pairs("eight.json")
    assert all(four[index] <= eight[index] for index in four)
    assert {rows.total() for rows in eight.values()} == {8}
    store("export", "four_of_eight.json", *TWO_STEPS, "diversity=4")
    assert count_pairs("four_of_eight.json") == four


def test_a_stored_rationale_without_an_answer_gets_the_answer_of_the_file(store):
    buy(*TWO_STEPS, "diversity=4", seller=Seller())
    store("export", "whole.json", *TWO_STEPS, "diversity=4")
    for path, data in files().items():
        path.write_bytes(b"".join(line for line in data.splitlines(keepends=True) if json.loads(line)["root"] is None))
    code, _, err = store("export", "none.json", *TWO_STEPS, "diversity=4")
    assert code == 1
    assert err.startswith("nothing of this configuration is stored in outputs/store/")
    assert not Path("none.json").exists()
    assert f"{4 * N_TRAIN} completions of" in store("import", "whole.json", *TWO_STEPS, "diversity=4")[1]
    store("export", "again.json", *TWO_STEPS, "diversity=4")
    assert count_pairs("again.json") == count_pairs("whole.json")
    assert sum(json.loads(line)["root"] is None for data in files().values() for line in data.splitlines()) == 4 * N_TRAIN


def test_refusals_are_left_out_of_an_export_and_counted(store):
    refused_problems = configured(TWO_STEPS).split.train[:2]
    buy(*TWO_STEPS, "diversity=2", seller=Seller(lambda request: request.problem.sample_index in refused_problems))
    _, out, _ = store("export", "some.json", *TWO_STEPS, "diversity=2")
    assert "22 completions of 11 problems; 4 of the 26 (2 x 13) are missing" in out
    assert not set(refused_problems) & set(pairs("some.json"))
    buy(*ONE_REQUEST, "diversity=2", seller=Seller(lambda request: request.problem.sample_index in refused_problems))
    assert "22 completions of 11 problems" in store("export", "some.json", *ONE_REQUEST, "diversity=2")[1]


def test_an_export_has_the_format_of_the_authors(store):
    buy(*CHAT_IN_TWO, "diversity=2", seller=Seller())
    store("export", "file.json", *CHAT_IN_TWO, "diversity=2")
    content = read_json(Path("file.json"))
    assert content["metadata"] == {
        "dataset_key": "toy_arithmetic", "base_model": "m", "completion_key": "zs_cot", "prediction_template": "zs_cot",
        "temperature": 0.7, "max_tokens": 128,
    }  # fmt: skip
    row = next(iter(content["data"].values()))[0]
    assert row["reasoning_prompt"] == f"Q: {row['question']}\nA: Let's think step by step."
    assert row["prompt"] == f"{row['reasoning_prompt']}{row['reasoning_completion']}\nTherefore, the answer is"


def test_a_replay_uses_no_stored_completions(store):
    Path("mine.jsonl").write_text('{"question": "How many?", "answer": "3"}\n' * 2)
    Path("file.json").write_text("{}")
    replay = ("dataset=custom", "dataset.path=mine.jsonl", "dataset.answer_type=number", "teacher=replay", "teacher.path=file.json")
    for command in ("import", "export"):
        code, _, err = store(command, "file.json", *replay)
        assert code == 1
        assert err == "teacher=replay uses no stored completions: name the teacher that they are from (teacher=...)\n"


def edit_file(change):
    content = read_json(Path("file.json"))
    change(content)
    Path("file.json").write_text(json.dumps(content))


def update_rows(**values):
    return lambda content: [row.update(values) for rows in content["data"].values() for row in rows]


@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        (lambda content: content["metadata"].update(dataset_key="svamp"), TWO_STEPS, "file.json holds completions of svamp, not of toy_"),
        (
            lambda content: None,
            (*TWO_STEPS, "teacher.model=n"),
            "was made with base_model=m, the configuration has n: teacher.model_id=m",
        ),
        (lambda content: None, (*TWO_STEPS, "diversity=1"), "was made with temperature=0.7, the configuration has 0.0: teacher.temp"),
        (
            lambda content: None,
            (*TWO_STEPS, "prompt.rationale_tokens=64"),
            "max_tokens=128, the configuration has 64: prompt.rationale_",
        ),
        (lambda content: None, (*TWO_STEPS, "prompt=zero_shot_cot_kojima"), "another prompt than prompt=zero_shot_cot_kojima"),
        (lambda content: None, (*ONE_REQUEST, "prompt.rationale_tokens=128"), "another prompt than prompt=zero_shot_cot_chat"),
        (update_rows(reasoning_prompt="Q: Why?"), TWO_STEPS, "'Q: Why?'"),
        (update_rows(question="Why?"), TWO_STEPS, "is not the data set's"),
        (lambda content: content.pop("data"), TWO_STEPS, "file.json: not a completion file"),
        (lambda content: None, (*TWO_STEPS, "method=fine_tune"), "method=fine_tune uses no completions"),
        (lambda content: None, (*TWO_STEPS, "teacher.modle=x"), "Did you mean teacher.model?"),
        (lambda content: None, (*TWO_STEPS, "diversity=0"), "diversity=0: at least 1"),
        (lambda content: None, (*TWO_STEPS, "diversity=1,2"), "diversity"),
    ],
)
def test_a_file_that_does_not_match_the_configuration_is_rejected_with_one_message(change, overrides, message, store):
    buy(*TWO_STEPS, "diversity=2", seller=Seller())
    store("export", "file.json", *TWO_STEPS, "diversity=2")
    edit_file(change)
    before = files()
    diversity = () if any("diversity" in override for override in overrides) else ("diversity=2",)
    code, out, err = store("import", "file.json", *overrides, *diversity)
    assert (code, out) == (1, "")
    assert message in err
    assert "Traceback" not in err
    assert "teacher.path" not in err
    assert files() == before


def test_a_file_without_prompts_and_metadata_is_imported_unchecked(store):
    buy(*TWO_STEPS, "diversity=2", seller=Seller())
    store("export", "file.json", *TWO_STEPS, "diversity=2")

    def strip(content):
        content["metadata"] = {"dataset_key": "toy_arithmetic"}
        for row in (row for rows in content["data"].values() for row in rows):
            del row["prompt"], row["reasoning_prompt"], row["finish_reason"]

    edit_file(strip)
    move_away()
    assert store("import", "file.json", *TWO_STEPS, "diversity=2")[0] == 0
    assert n_missing(*TWO_STEPS, "diversity=2") == 0


def test_an_answer_that_does_not_split_back_is_rejected(store):
    buy(*ONE_REQUEST, "diversity=2", seller=Seller())
    store("export", "file.json", *ONE_REQUEST, "diversity=2")
    edit_file(update_rows(completion="2. Or rather, the answer is 3."))
    move_away()
    code, _, err = store("import", "file.json", *ONE_REQUEST, "diversity=2")
    assert code == 1
    assert "cannot be an answer to prompt=zero_shot_cot_chat" in err
    assert not Path("outputs").exists()


def test_a_missing_or_damaged_file_gives_one_message(store):
    assert store("import", "nowhere.json", *TWO_STEPS) == (1, "", "nowhere.json: no such file\n")
    Path("text.json").write_text("{")
    code, _, err = store("import", "text.json", *TWO_STEPS)
    assert code == 1
    assert err.startswith("text.json: not JSON")


# --- a published file ---------------------------------------------------------------------------------------------


def test_a_published_file_is_imported_exported_and_run_without_a_request(shared_data, store, run_fcot):
    file = shared_data / "completion_data" / "B_text-davinci-002__C_zs_cot" / "D_multiarith.json"
    data = ("dataset=multiarith", f"dataset.path={shared_data}/dataset/multiarith.json", "prompt=zero_shot_cot_kojima", "diversity=1")
    teacher = ("teacher=openai", "teacher.endpoint=completions", "teacher.model=text-davinci-002", "teacher.base_url=http://127.0.0.1:9/v1")
    code, _, err = store("import", file, *data, *teacher, "prompt=zero_shot_cot")
    assert code == 1
    assert "another prompt than prompt=zero_shot_cot:" in err
    assert "the answer (arabic numerals) is'" in err
    assert store("import", file, *data, *teacher)[0] == 0
    assert store("verify")[0] == 0
    assert store("export", "mine.json", *data, *teacher)[0] == 0
    exported, published = pairs("mine.json"), pairs(file)
    run = configured([*data, *teacher])
    assert set(exported) == set(run.split.train)
    # Twenty questions occur twice in this task and share a key. Where greedy decoding was not deterministic, the first completion counts.
    differing = [index for index in exported if exported[index] != published[index]]
    questions = Counter(problem.question for problem in run.problems.values())
    assert all(questions[run.problems[index].question] > 1 for index in differing)
    assert len(differing) <= 1
    result = run_fcot("until=curate", *data, *teacher)
    assert result.returncode == 0, result.stderr
    replayed, _ = read_completions(file, run.task, {index: problem.question for index, problem in run.problems.items()})
    completions = choose(replayed, run.select(run.split.train), 1, "file")
    curated = list(curate(completions, run.problems, run.task.rule, run.prompt.read, run.rules))
    kept = sum(row.kept for row in curated)
    assert kept > 250
    assert f"kept {kept} of {len(curated)} completions" in result.stdout + result.stderr


# --- by configuration, compaction, merging --------------------------------------------------------------------------


def test_configurations_that_share_a_folder_are_listed_by_their_settings_with_dollars(store, tmp_path):
    for temperature in (0.5, 0.9):
        buy(*TWO_STEPS, "diversity=2", f"teacher.temperature={temperature}", seller=Seller())
    (tmp_path / "prices.yaml").write_text("m: {input: 1, output: 1000}")
    _, out, _ = store("list", "--prices", tmp_path / "prices.yaml")
    lines = [line for line in out.splitlines() if "zero_shot_cot" in line]
    assert len(lines) == 2
    assert "temperature=0.5" in out
    assert "temperature=0.9" in out
    usage = [row for data in files().values() for row in map(json.loads, data.splitlines()) if "prompt_tokens" in row]
    usd = sum(row["prompt_tokens"] * 1e-6 + row["completion_tokens"] * 1e-3 for row in usage)
    assert sum(float(line.split()[9]) for line in lines) == pytest.approx(usd, abs=2e-4)
    assert " ? " in store("list")[1], "the price file that comes with fcot has no model m"


def test_models_that_answered_under_one_name_are_listed(store):
    serial = itertools.count()

    def answer(request, n, seed):
        return Reply([Choice(" 1", "stop")] * n, Usage(1, 1), model=f"m-{next(serial) % 2}")

    buy(*ONE_REQUEST, "diversity=2", seller=answer)
    assert re.search(r"the server answered as several models: m-\d \(\d+\), m-\d \(\d+\)", store("list")[1])


def test_compaction_keeps_paid_rows_and_drops_torn_lines_and_repeated_prompts(store, monkeypatch):
    outputs = Path(__file__).parent / "compat" / "38f062a" / "outputs"
    shutil.copytree(outputs / "store", "outputs/store")
    shard = next(Path("outputs/store/toy_arithmetic/fake/zero_shot_cot").glob("?.jsonl"))
    shard.write_bytes(b'{"torn": \n' + shard.read_bytes())
    before = {path: [json.loads(line) for line in data.splitlines() if line.endswith(b"}")] for path, data in files().items()}
    size = sum(len(data) for data in files().values())
    code, out, _ = store("compact")
    assert code == 0
    assert "toy_arithmetic/fake/zero_shot_cot: " in out
    after = {path: list(map(json.loads, data.splitlines())) for path, data in files().items()}
    strip = lambda rows: [{k: v for k, v in row.items() if k != "asked" or not row["root"]} for row in rows]  # noqa: E731
    assert after == {path: strip(rows) for path, rows in before.items()}
    assert sum(len(data) for data in files().values()) < 0.9 * size, "older versions stored each prompt repeatedly"
    assert store("verify")[0] == 0
    assert store("compact")[0] == 0
    assert {path: list(map(json.loads, data.splitlines())) for path, data in files().items()} == after


def test_a_merge_adds_new_rows_once(store):
    buy(*TWO_STEPS, "diversity=2", seller=Seller())
    shutil.copytree("outputs", "copy")
    buy(*TWO_STEPS, "diversity=3", seller=Seller())
    shutil.move("outputs", "elsewhere")
    buy(*TWO_STEPS, "diversity=3", seller=Seller())
    own_rows = [row for data in files().values() for row in map(json.loads, data.splitlines())]
    other_rows = [json.loads(line) for path in Path("elsewhere").rglob("?.jsonl") for line in path.read_bytes().splitlines()]
    code, out, _ = store("merge", "elsewhere/store")
    assert code == 0
    assert f"{len(other_rows):,} rows were new" in out
    merged = [row for data in files().values() for row in map(json.loads, data.splitlines())]
    assert sorted(row["request"] for row in merged) == sorted(row["request"] for row in own_rows + other_rows)
    assert store("verify")[0] == 0, "no slot has two rows"
    assert " 0 rows were new" in store("merge", "elsewhere/store")[1]
    assert " 0 rows were new" in store("merge", "copy/store")[1], "an older copy of the merged store"
    assert n_missing(*TWO_STEPS, "diversity=6") == 0, "three and three completions: samples of one prompt are exchangeable"


def test_a_store_is_not_merged_with_itself(store):
    buy(*ORACLE)
    code, _, err = store("merge", "outputs/store", "outputs/../outputs/store")
    assert code == 1
    assert "are the same store" in err
