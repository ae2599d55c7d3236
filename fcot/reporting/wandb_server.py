"""W&B's server: whether it is there for us, within a bounded time; and where wandb's own files go."""

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
_ANSWER_S = 6.0  # for its first answer, name resolution included: clusters without internet often drop packets silently


class Offline(Exception):
    """Why W&B cannot be reached."""


def within(seconds: float, work: Callable[[], T]) -> T:
    """What ``work`` returns or raises; where it takes longer it is left to itself.

    Raises:
        TimeoutError: It takes longer.
    """
    outcome: list[Callable[[], T]] = []

    def run() -> None:
        try:
            result = work()
            outcome.append(lambda: result)
        except BaseException as error:  # to be raised by who waits
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
    """Its address."""
    return (os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").rstrip("/")


def account() -> str | None:
    """The user or team that the key's runs belong to unless they say otherwise, None where the server does not tell.

    Raises:
        Offline: There is no key, the server does not take it, or it does not answer in time.
    """
    key = os.environ.get(KEY)
    if not key:
        raise Offline(f"no key in {KEY}")
    try:
        viewer = within(_ANSWER_S, lambda: _viewer(key))
    except urllib.error.HTTPError as error:
        refused = f"{server()} does not take the key in {KEY}" if error.code in (401, 403) else f"{server()} answers {error.code}"
        raise Offline(refused) from error
    except (OSError, ValueError) as error:  # TimeoutError, too, is an OSError
        raise Offline(f"{server()}: {getattr(error, 'reason', error)}") from error
    if viewer is None:
        raise Offline(f"{server()} does not take the key in {KEY}")
    entity = viewer.get("entity") if isinstance(viewer, dict) else None
    return None if entity is None else str(entity)


def _viewer(key: str) -> Any:
    query = json.dumps({"query": "query Viewer { viewer { id entity } }"}).encode()
    request = urllib.request.Request(f"{server()}/graphql", query, {"Content-Type": "application/json", "User-Agent": "fcot"})
    request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(f"api:{key}".encode()).decode())
    with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
        found = json.load(answer)
    data = found.get("data") if isinstance(found, dict) else None
    return data.get("viewer") if isinstance(data, dict) else None


@contextlib.contextmanager
def wandb_folder(folder: Path) -> Iterator[None]:
    """Within, what wandb keeps beside its runs goes into a folder instead of the home directory, and it says nothing, to nobody."""
    places = {f"WANDB_{name}_DIR": str(folder.absolute() / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
    wanted = places | {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
