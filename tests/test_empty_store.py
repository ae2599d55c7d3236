"""A purchase that buys nothing leaves no folder in the store, and a lock is never held on a deleted file."""

from __future__ import annotations

import pytest
from fake_openai import FakeServer
from teachers import plan, problems

from fcot.base.errors import FcotError
from fcot.llm.generate import generate_completions
from fcot.llm.money import Price
from fcot.llm.openai import OpenAIModel
from fcot.llm.server import Server
from fcot.llm.store.folder import StoreFolder
from fcot.llm.store.keylocks import KeyLocks
from fcot.llm.throttle import Throttle

KEY = "a" * 64


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("fcot.llm.openai._LONGEST_WAIT_S", 0.0)


def buy(url, folder, n=2, **options):
    server = Server(
        model="m", model_id="m", chat=True, temperature=0.7, parameters={}, max_tokens_parameter="max_tokens", base_url=url,
        timeout_s=20.0, api_key_env="none",
    )  # fmt: skip
    model = OpenAIModel(server, Throttle(2, None, None), 1, 3)
    return list(generate_completions(plan(model, 1, **options), StoreFolder(folder), problems(n)))


PRICED = {"price": Price(1.0, 1.0, 1.0), "budget_usd": 1.0}


@pytest.mark.parametrize("options", [{}, PRICED], ids=["price unknown", "with a budget"])
def test_a_purchase_that_fails_before_anything_is_bought_leaves_nothing(tmp_path, options):
    folder = tmp_path / "store" / "task" / "m" / "prompt"
    with FakeServer(["401"]) as server, pytest.raises(FcotError):
        buy(server.base_url, folder, **options)
    assert not (tmp_path / "store").exists()
    assert tmp_path.exists()


def test_other_models_of_the_task_stay(tmp_path):
    other = tmp_path / "store" / "task" / "other" / "prompt"
    with FakeServer([None, None, None, None, "401"]) as server:
        buy(server.base_url, other)
        with pytest.raises(FcotError):
            buy(server.base_url, tmp_path / "store" / "task" / "m" / "prompt")
    assert [path.name for path in (tmp_path / "store" / "task").iterdir()] == ["other"]
    assert list(other.glob("*.jsonl"))


def test_what_was_bought_or_may_be_charged_stays(tmp_path):
    folder = tmp_path / "store" / "task" / "m" / "prompt"
    with FakeServer([None, None, "401"]) as server, pytest.raises(FcotError):
        buy(server.base_url, folder, **PRICED)
    before = {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
    assert before
    with FakeServer(["gateway"] * 9) as server, pytest.raises(FcotError):  # 504: the model may have answered
        buy(server.base_url, tmp_path / "store" / "task" / "lost" / "prompt", **PRICED)
    assert list((tmp_path / "store" / "task" / "lost" / "prompt").glob("*.jsonl"))
    assert {path.name: path.read_bytes() for path in folder.glob("*.jsonl")} == before


def test_a_folder_in_which_another_process_buys_stays(tmp_path):
    other = KeyLocks(tmp_path / "store" / "a.lock")
    assert other.take(KEY)
    StoreFolder(tmp_path / "store").discard_if_empty()
    assert (tmp_path / "store" / "a.lock").exists()
    other.close()
    StoreFolder(tmp_path / "store").discard_if_empty()
    assert not (tmp_path / "store").exists()


def test_a_process_that_opened_a_lock_file_before_its_deletion_locks_the_new_file(tmp_path):
    path = tmp_path / "store" / "a.lock"
    holder, waiting, later = KeyLocks(path), KeyLocks(path), KeyLocks(path)
    assert holder.take(KEY)
    assert not waiting.take(KEY)
    holder.drop(KEY)
    holder.remove()
    assert waiting.take(KEY)
    assert not later.take(KEY), "both would buy"
    assert path.exists()
