"""What this machine has, found out without importing torch."""

from __future__ import annotations

import contextlib
from pathlib import Path

_GPU_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/kfd"))  # of NVIDIA's and AMD's drivers


def has_gpu() -> bool:
    """Whether the driver of a GPU is loaded. Whether torch can use the GPU is another question."""
    return any(device.exists() for device in _GPU_DEVICES)


def free_host_memory() -> float | None:
    """Free bytes of the machine or of its control group, whichever has less; None if unknown."""
    limits = [_available(Path("/proc/meminfo")), _free_in_group(Path("/sys/fs/cgroup"))]
    return min((limit for limit in limits if limit is not None), default=None)


def _available(path: Path) -> float | None:
    with contextlib.suppress(OSError, IndexError, ValueError):
        return 1024.0 * int(path.read_text().partition("MemAvailable:")[2].split()[0])
    return None


def _free_in_group(folder: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        return float(int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text()))
    return None
