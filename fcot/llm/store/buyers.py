"""Names of the files that buyers keep beside a shard, and whether a buyer may still be running.

A buyer is a process that buys completions.
"""

from __future__ import annotations

import os
import re
import socket
import time
import uuid
from pathlib import Path

_ABANDONED_S = 3600.0  # without a new row, after which a buyer on another host counts as ended


def buyer_name() -> str:
    """A unique name for this process's files: time, host, process id and a random suffix."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{_host()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def buyer_ended(path: Path, now: float) -> bool:
    """Whether the buyer that wrote a file has ended.

    If it ran on this host, its process is looked up. If it ran on another host, it counts as ended after an hour without a new row.

    Args:
        path: The buyer's file.
        now: Seconds since 1970, by the clock of the file system.
    """
    match = re.fullmatch(r"[^.]+\.\d{8}T\d{6}-(.+)-(\d+)-[0-9a-f]{6}\.jsonl", path.name)
    if match is None:
        return True
    if match[1] == _host():
        try:
            os.kill(int(match[2]), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False
    return now - path.stat().st_mtime > _ABANDONED_S


def _host() -> str:
    return re.sub(r"[^\w-]", "_", socket.gethostname())
