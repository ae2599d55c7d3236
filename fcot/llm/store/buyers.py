"""Names of buyers' files beside a shard, and whether the buyer of one may still be alive."""

from __future__ import annotations

import os
import re
import socket
import time
import uuid
from pathlib import Path

_ABANDONED_S = 3600.0  # without a new row: what a buyer on another host leaves when it is killed


def buyer_name() -> str:
    """Names a file of this process: time, host, process, and something random."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{_host()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def ended(path: Path, now: float) -> bool:
    """Whether the buyer that wrote a file is gone, by its process where it ran here, else by the file's age."""
    named = re.fullmatch(r"[^.]+\.\d{8}T\d{6}-(.+)-(\d+)-[0-9a-f]{6}\.jsonl", path.name)
    if named is None:
        return True
    if named[1] == _host():
        try:
            os.kill(int(named[2]), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False
    return now - path.stat().st_mtime > _ABANDONED_S


def _host() -> str:
    return re.sub(r"[^\w-]", "_", socket.gethostname())
