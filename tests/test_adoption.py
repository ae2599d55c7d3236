"""Completions stored under another name, limit or temperature: the dry run finds them, and adopted ones are used and never bought again."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
from teachers import Scripted
from test_stored_distributions import random_top, same

from fcot import store
from fcot.estimate.dry_run import estimate
from fcot.llm.generate import generate_completions
from fcot.llm.requests import Choice, Reply, Usage
from fcot.runs.stored import elsewhere
from fcot.store import configured, main

N_TRAIN = 13
D = 2


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Work in a folder with a data file and prices, without a key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    rows = [{"question": f"What is {n} + {n}?", "answer": 2 * n} for n in range(20)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "prices.yaml").write_text("m: {input: 1.0, output: 2.0}\n")


def overrides(*more, prompt="zero_shot_cot_chat"):
    return (
        "dataset=custom", "dataset.path=sums.jsonl", "dataset.answer_type=number", "split-mode=sample", f"diversity={D}",
        f"prompt={prompt}",
        "teacher=openai", "teacher.model=m", "teacher.api_key_env=none", "teacher.base_url=http://127.0.0.1:9/v1",
        "teacher.prices=prices.yaml", *more,
    )  # fmt: skip


class Seller:
    """Sells texts of different lengths, some of them cut at the limit."""

    def __init__(self, max_choices=D):
        self.serial, self.sold, self.max_choices = itertools.count(), 0, max_choices

    def __call__(self, request, n, seed):
        self.sold += n
        if request.rationale is not None:
            return Reply([Choice(" 2.", "stop")] * n, Usage(20, 3 * n))
        choices = []
        for _ in range(n):
            serial = next(self.serial)
            text = f"Sum {serial % 3}. " + "and " * (20 * (serial % 2)) + "Therefore, the answer (arabic numerals) is 2."
            choices.append(Choice(text, "length" if serial % 5 == 4 else "stop"))
        return Reply(choices, Usage(10, sum(len(choice.text) // 4 for choice in choices)))


def buy(*words, seller=None):
    """Fill the store of a configuration; returns its usage."""
    run = configured(words)
    teacher = Scripted(seller or Seller(), max_choices=(seller or Seller()).max_choices)
    teacher.identity, teacher.chat = run.teacher.identity, run.teacher.chat
    run = replace(run, teacher=teacher)
    generated = generate_completions(run.plan, run.store, run.select(run.split.train))
    assert len(list(generated)) == D * N_TRAIN
    return generated.usage()


def notes(*words):
    return [note for note in estimate(configured(words), {}, words).notes if "not used" in note]


def adopt(capsys, folder, *words):
    capsys.readouterr()
    main(["adopt", folder, *words])
    return capsys.readouterr().out


def verify():
    store.verify(store.store_dir())


@pytest.mark.parametrize("prompt", ["zero_shot_cot_chat", "zero_shot_cot"])
def test_completions_under_another_name_are_reported_adopted_and_never_bought_again(capsys, prompt):
    first, renamed = overrides("dataset.name=old", prompt=prompt), overrides("dataset.name=new", prompt=prompt)
    bought = buy(*first)
    (note,) = notes(*renamed, "dry_run=true")
    assert note.startswith(
        f"{D * N_TRAIN} rationales of these problems are stored under the name old, and not used: dataset.name=old uses them"
    )
    command = note.partition("`")[2].partition("`")[0].split()
    assert command[:4] == ["fcot", "store", "adopt", f"old/m/{prompt}"]
    assert tuple(command[4:]) == renamed, "the command makes this configuration's run, and no dry run"
    assert f"{D * N_TRAIN} completions adopted from" in adopt(capsys, *command[3:])
    seller = Seller()
    usage = buy(*renamed, seller=seller)
    assert seller.sold == 0
    assert (usage["usd"], usage["requests"]) == (0, 0), "what the other run paid for is not counted as paid by this one"
    assert usage["served_from_store"] == (2 if prompt == "zero_shot_cot" else 1) * D * N_TRAIN
    assert usage["used_completion_tokens"] == bought["used_completion_tokens"]
    assert notes(*renamed) == []
    assert ", 26 were adopted before" in adopt(capsys, *command[3:])
    verify()


def test_the_cost_of_adopted_completions_is_listed_once(capsys):
    buy(*overrides("dataset.name=old"))

    def total():
        capsys.readouterr()
        main(["list", "--prices", "prices.yaml"])
        return next(line for line in capsys.readouterr().out.splitlines() if " total " in line).split()

    before = total()
    adopt(capsys, "old/m/zero_shot_cot_chat", *overrides("dataset.name=new"))
    after = total()
    assert int(after[2]) == 2 * int(before[2]), "there are two copies"
    assert after[5:7] == before[5:7], "of one cost"


def test_a_budget_of_a_run_counts_what_it_paid_under_another_prompt_name(capsys):
    """``prompt.name`` renames no run, only its folder in the store."""
    words = overrides("dataset.name=old", "teacher.budget_usd=1")
    paid = buy(*words)
    adopt(capsys, "old/m/zero_shot_cot_chat", *words, "prompt.name=mine")
    assert buy(*words, "prompt.name=mine")["usd"] == paid["usd"] > 0


@pytest.mark.parametrize(("old", "new", "max_choices"), [(64, 512, 2), (512, 30, 1)])
def test_completions_of_another_limit_are_adopted_if_they_ended_by_themselves_within_both(capsys, old, new, max_choices):
    bought = Seller(max_choices)
    buy(*overrides(f"prompt.rationale_tokens={old}"), seller=bought)
    words = overrides(f"prompt.rationale_tokens={new}")
    (note,) = notes(*words)
    assert f"stored with prompt.rationale_tokens={old}, and not used: prompt.rationale_tokens={old} uses them, or" in note
    (place,) = elsewhere(configured(words))
    assert 0 < place.n_fitting < place.n_stored == D * N_TRAIN
    assert f"adopts the {place.n_fitting} that fit" in note
    message = adopt(capsys, "custom/m/zero_shot_cot_chat", *words)
    assert f": {place.n_fitting} completions adopted from" in message
    assert f"; {D * N_TRAIN - place.n_fitting} were cut or may not fit into {new} tokens" in message
    run = configured(words)
    rows = [run.store.refresh().shard(key).row(key, slot)
            for problem in run.select(run.split.train) for key in [run.plan.root_key(run.store, problem)]
            for slot in run.store.shard(key).slots(key)]  # fmt: skip
    assert len(rows) == place.n_fitting
    assert all(row["finish_reason"] == "stop" and (new > old or len(row["text"]) // 4 <= new) for row in rows)
    seller = Seller(max_choices)
    buy(*words, seller=seller)
    assert seller.sold == D * N_TRAIN - place.n_fitting, "only the rest is bought"
    verify()


def test_adopted_completions_take_their_distributions_along(capsys):
    words = overrides("dataset.name=old")
    buy(*words)
    run = configured(words)
    problem = run.select(run.split.train)[0]
    key, top = run.plan.root_key(run.store, problem), random_top(5, 2, seed=1)
    with run.store.exclusive(print):
        shard = run.store.shard(key)
        shard.append([], [(shard.row(key, 1), top)])
    renamed = configured(overrides("dataset.name=new"))
    adopt(capsys, "old/m/zero_shot_cot_chat", *overrides("dataset.name=new"))
    copy = renamed.store.refresh().shard(key)
    assert same(copy.distributions.get(copy.row(key, 1)), top)
    assert not copy.distributions.has(copy.row(key, 0))


def test_completions_at_another_temperature_are_reported_with_the_override_only(capsys):
    buy(*overrides("teacher.temperature=1.2"))
    (note,) = notes(*overrides())
    assert (
        note == f"{D * N_TRAIN} rationales of these problems are stored at temperature 1.2, and not used: teacher.temperature=1.2 uses them"
    )
    with pytest.raises(SystemExit):
        main(["adopt", "custom/m/zero_shot_cot_chat", *overrides()])
    assert "no completion in it answers a prompt of this configuration at its temperature" in capsys.readouterr().err


def test_other_problems_models_and_parameters_are_not_reported(tmp_path):
    buy(*overrides("dataset.name=old", "teacher.parameters={top_p: 0.5}"))
    buy(*overrides("dataset.name=old", "teacher.model_id=other"))
    buy(*overrides("dataset.name=old", "prompt.stop=[x]"))
    assert notes(*overrides("dataset.name=new")) == []
    (tmp_path / "sums.jsonl").write_text((tmp_path / "sums.jsonl").read_text().replace("What is", "How much is"))
    assert notes(*overrides("dataset.name=new", "teacher.model_id=other")) == []


def test_a_sweep_reports_completions_that_its_runs_share_once():
    buy(*overrides("dataset.name=old"))
    planned: dict = {}
    found = [note for seed in (0, 1) for note in estimate(configured(overrides("dataset.name=new", f"seed={seed}")), planned).notes]
    assert len([note for note in found if "under the name old" in note]) == 1


@pytest.mark.parametrize(("folder", "message"), [
    ("nowhere/m/p", "nowhere/m/p: no such folder in outputs/store; fcot store list names them"),
    (".", "belongs to another store than outputs/store: first fcot store merge"),
])  # fmt: skip
def test_a_folder_that_is_not_in_the_store_is_reported(capsys, folder, message):
    with pytest.raises(SystemExit):
        main(["adopt", folder, *overrides()])
    assert message in capsys.readouterr().err
