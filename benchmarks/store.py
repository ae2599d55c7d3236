"""Measures a store folder of many rows: opening, planning a sweep over it, appending, compacting and merging.

    python benchmarks/store.py [rows] [jobs]

Each step runs in a separate process. Prints its seconds, and by how much its peak memory exceeds that of an idle process.
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIGURATION = ["dataset.n_problems=300", "diversity=8", "output_dir=big", "prompt=zero_shot_cot"]
FOLDER = Path("big/store/toy_arithmetic/oracle-v2/zero_shot_cot")
STEPS = ("idle", "first_open", "open", "plan", "append", "compact", "merge")


def fill(folder: Path, n_rows: int, seed: str) -> None:
    """Write the rows of a finished purchase, eight per key, with other prompts than the sweep's."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {digit: (folder / f"{digit}.jsonl").open("wb") for digit in "0123456789abcdef"}
    for number in range(n_rows // 8):
        key = hashlib.sha256(f"{seed}{number}".encode()).hexdigest()
        for slot in range(8):
            row = {
                "key": key, "slot": slot, "root": None, "sample_index": number, "text": "x" * 250, "finish_reason": "stop",
                "request": f"{seed}{number:015x}", "choice": slot, "seed": 0, "n": 8, "run": "r", "time": 1.0,
            }  # fmt: skip
            files[key[0]].write(json.dumps(row).encode() + b"\n")
    for file in files.values():
        file.close()


def step(name: str, jobs: int) -> None:
    """Run one step, and print its seconds and its peak memory."""
    from fcot.llm.store.folder import StoreFolder
    from fcot.store import compact_store, merge_stores
    from fcot.sweeps.launch import estimates_of
    from fcot.sweeps.plan import make_plan

    began = time.perf_counter()
    if name in ("first_open", "open"):
        StoreFolder(FOLDER).refresh()
    elif name == "plan":
        overrides = [[*CONFIGURATION, f"seed={seed}"] for seed in range(jobs)]
        sweep, runs = make_plan(Path("big/sweeps/x"), overrides, [], {"kind": "serial"})
        began = time.perf_counter()  # composing the configurations does not read the store
        estimates_of(sweep.distinct, runs)
    elif name == "append":
        folder = StoreFolder(FOLDER).refresh()
        for number in range(1000):
            key = hashlib.sha256(f"new{number}".encode()).hexdigest()
            shard = folder.shard(key)
            assert shard.claim(key)
            row = {"key": key, "slot": 0, "root": None, "text": "x" * 250, "request": key[:16], "choice": 0, "run": "r", "time": 1.0}
            shard.append([row])
        folder.close()
    elif name == "compact":
        compact_store(Path("big/store"))
    elif name == "merge":
        merge_stores(Path("other/store"), Path("big/store"))
    print("seconds", time.perf_counter() - began)
    print("megabytes", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Fill a store and time each step."""
    n_rows, jobs = (int(word) for word in [*sys.argv[1:], "1000000", "200"][:2])
    with tempfile.TemporaryDirectory() as place:
        fill(Path(place) / FOLDER, n_rows, "a")
        fill(Path(place, "other", *FOLDER.parts[1:]), n_rows // 10, "b")
        print(f"{n_rows:,} rows, {sum(path.stat().st_size for path in (Path(place) / FOLDER).iterdir()) / 1e6:,.0f} MB")
        idle = 0.0
        for name in STEPS:
            command = [sys.executable, __file__, "step", name, str(jobs)]
            done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True)
            values = dict(line.split() for line in done.stdout.splitlines() if line.startswith(("seconds", "megabytes")))
            idle = idle or float(values["megabytes"])
            print(f"{name:12} {float(values['seconds']):8.2f} s {float(values['megabytes']) - idle:8.0f} MB", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["step"]:
        step(sys.argv[2], int(sys.argv[3]))
    else:
        main()
