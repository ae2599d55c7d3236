"""Reach W&B's server within a time limit, and choose the folders of wandb's own files."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
KEY = "WANDB_API_KEY"
_ANSWER_S = 6.0  # for the first response, DNS included: clusters without internet often drop packets silently


class Offline(Exception):
    """W&B cannot be reached; the message says why."""


def within(seconds: float, work: Callable[[], T]) -> T:
    """Run ``work`` in a thread; return or raise what it does.

    Raises:
        TimeoutError: It took longer than ``seconds``. The thread keeps running.
    """
    outcome: list[Callable[[], T]] = []

    def run() -> None:
        try:
            result = work()
            outcome.append(lambda: result)
        except BaseException as error:  # raised again in the waiting thread
            outcome.append(_raiser(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return outcome[0]()


def _raiser(error: BaseException) -> Callable[[], Any]:
    def again() -> Any:
        raise error

    return again


def server() -> str:
    """The server's URL."""
    return (os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").rstrip("/")


def account() -> str | None:
    """The default user or team of the key; None if the server does not report it.

    Raises:
        Offline: There is no key, the server rejects it, or it does not respond in time.
    """
    key = os.environ.get(KEY)
    if not key:
        raise Offline(f"no key in {KEY}")
    try:
        viewer = within(_ANSWER_S, lambda: _viewer(key))
    except urllib.error.HTTPError as error:
        why = f"{server()} rejects the key in {KEY}" if error.code in (401, 403) else f"{server()} answers {error.code}"
        raise Offline(why) from error
    except (OSError, ValueError) as error:  # TimeoutError, too, is an OSError
        raise Offline(f"{server()}: {getattr(error, 'reason', error)}") from error
    if viewer is None:
        raise Offline(f"{server()} rejects the key in {KEY}")
    entity = viewer.get("entity") if isinstance(viewer, dict) else None
    return None if entity is None else str(entity)


def _viewer(key: str) -> Any:
    query = json.dumps({"query": "query Viewer { viewer { id entity } }"}).encode()
    request = urllib.request.Request(f"{server()}/graphql", query, {"Content-Type": "application/json", "User-Agent": "fcot"})
    request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(f"api:{key}".encode()).decode())
    with urllib.request.urlopen(request, timeout=_ANSWER_S) as response:
        reply = json.load(response)
    data = reply.get("data") if isinstance(reply, dict) else None
    return data.get("viewer") if isinstance(data, dict) else None


@contextlib.contextmanager
def wandb_folder(folder: Path) -> Iterator[None]:
    """While this context is active, wandb's caches go into a folder instead of the home directory; it prints and reports no errors."""
    places = {f"WANDB_{name}_DIR": str(folder.absolute() / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
    wanted = places | {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
