"""Access to the Hugging Face hub from a machine that may not reach it."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT_S = 4.0
_RECHECK_S = 60  # a machine may get a network, or lose it, while a notebook is open


@contextlib.contextmanager
def hub_access(source: str) -> Iterator[None]:
    """Load a model or data set that may be on the hub.

    If this machine does not reach the hub, its libraries read what is cached, and otherwise fail at once. On their own they retry each
    file for half a minute.

    Args:
        source: Hub id or folder. For a folder, the hub is not looked for.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or Path(source).exists() or _reaches(constants.ENDPOINT, int(time.monotonic() / _RECHECK_S)):
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


@lru_cache(maxsize=1)
def _reaches(endpoint: str, _minute: int) -> bool:
    """Whether a connection to the hub, or to the proxy in front of it, opens within seconds.

    Args:
        endpoint: The hub's address.
        _minute: The current minute, only as a key of the cache: a run loads several things, and each failed check takes seconds.
    """
    url = urlsplit(endpoint)
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.netloc):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        socket.create_connection((str(url.hostname), url.port or (443 if url.scheme == "https" else 80)), _TIMEOUT_S).close()
    except OSError:
        return False
    return True
