"""A machine that does not reach the hub: a mistyped name is answered at once, and what is cached is still read."""

from __future__ import annotations

import socket
import sys

import pytest
from huggingface_hub import constants

from fcot.base import hub
from fcot.base.errors import FcotError
from fcot.base.hub import hub_access
from fcot.student.interface import download_interface
from fcot.student.loading import load_tokenizer
from fcot.tasks.reading import load_hub


@pytest.fixture
def unreachable(monkeypatch):
    """Nothing listens at the hub's address, and no proxy leads to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    hub._reaches.cache_clear()


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (lambda: load_tokenizer("nosuch/model"), "could not get 'nosuch/model' from the hub; on a machine without internet"),
        (lambda: download_interface("nosuch/student"), "is this machine offline"),
        (lambda: load_hub("nosuch/data", None, ["train"]), "could not load 'nosuch/data' from the hub"),
    ],
    ids=["model", "student", "data"],
)
def test_a_name_on_an_unreachable_hub_is_an_error(load, message, unreachable):
    with pytest.raises(FcotError, match=message):
        load()
    assert not constants.HF_HUB_OFFLINE, "the next call looks for the hub again"


def test_the_libraries_are_offline_only_inside_and_only_without_the_hub(unreachable, monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with hub_access("owner/name"):
        assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == (True, True)
    assert (constants.HF_HUB_OFFLINE, sys.modules["datasets.config"].HF_HUB_OFFLINE) == (False, False)
    with hub_access(str(tmp_path)):
        assert not constants.HF_HUB_OFFLINE, "a folder is not on the hub"
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        with hub_access("owner/name"):
            assert not constants.HF_HUB_OFFLINE


def test_an_unreachable_proxy_is_an_unreachable_hub(unreachable, monkeypatch):
    address = constants.ENDPOINT
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://localhost:{server.getsockname()[1]}")
        monkeypatch.setenv("http_proxy", address)
        with hub_access("owner/name"):
            assert constants.HF_HUB_OFFLINE
