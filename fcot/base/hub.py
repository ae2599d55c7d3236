"""Access to the Hugging Face hub from a machine that may not reach it."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT_S = 4.0
_RECHECK_S = 60.0  # a machine may get a network, or lose it, while a notebook is open
_checked: dict[str, tuple[float, bool]] = {}  # by the hub's address: when it was checked last, and whether it was reached


@contextlib.contextmanager
def hub_access(source: str) -> Iterator[None]:
    """Load a model or data set that may be on the hub.

    If this machine does not reach the hub, its libraries read what is cached, and otherwise fail at once. On their own they retry each
    file for half a minute.

    Args:
        source: Hub id or folder. For a folder, the hub is not looked for.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or Path(source).exists() or _reaches(constants.ENDPOINT):
        yield
        return
    modules: list[Any] = [constants, *filter(None, [sys.modules.get("datasets.config")])]
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _reaches(endpoint: str) -> bool:
    """Whether a connection to the hub, or to the proxy in front of it, opens within seconds. The result is kept for a minute."""
    checked_at, reached = _checked.get(endpoint, (-_RECHECK_S, True))
    if time.monotonic() - checked_at < _RECHECK_S:
        return reached
    url = urlsplit(endpoint)
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.netloc):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        socket.create_connection((str(url.hostname), url.port or (443 if url.scheme == "https" else 80)), _TIMEOUT_S).close()
        reached = True
    except OSError:
        reached = False
    _checked[endpoint] = time.monotonic(), reached
    return reached
