"""Measures stored distributions: bytes per token, and seconds to write and read them. A completion has 120 tokens.

    python benchmarks/distributions.py --tokens 1000000 -k 20

Random distributions of random tokens, in one shard.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from fcot.llm.distributions import TopTokens
from fcot.llm.store.shard import Shard

_LENGTH = 120  # tokens of a completion


def main() -> None:
    """Write a shard of completions with random distributions, and read it in another shard object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("-k", type=int, default=20)
    options = parser.parse_args()
    draw, n = np.random.default_rng(0), options.tokens // _LENGTH
    ids = draw.integers(0, 150_000, (_LENGTH, options.k), dtype=np.int32)
    top = TopTokens(ids[:, 0], ids, np.sort(-draw.random((_LENGTH, options.k)).astype(np.float16)))
    fixed = {"root": None, "finish_reason": "stop", "choice": 0, "run": "run", "time": 1.0, "seed": 0, "n": 1, "sample_index": 0}
    rows = [fixed | {"key": f"a{i:063x}", "slot": 0, "text": "word " * _LENGTH, "request": f"r{i}"} for i in range(n)]
    with tempfile.TemporaryDirectory() as folder:
        shard = Shard(Path(folder) / "a.jsonl")
        shard.lock_all(wait=True)
        began = time.perf_counter()
        for row in rows:
            shard.append([row], [(row, top)])
        shard.close()
        wrote = time.perf_counter()
        other = Shard(Path(folder) / "a.jsonl").refresh()
        opened = time.perf_counter()
        n_read = sum(len(stored) for row in rows if (stored := other.distributions.get(row)) is not None)
        read = time.perf_counter()
        size = (Path(folder) / "a.top").stat().st_size
    print(f"{n_read:,} tokens of {n:,} completions, k = {options.k}: {size / n_read:.1f} bytes per token, {size / 1e6:.0f} MB")
    print(f"written with their rows in {wrote - began:.1f} s; rows opened without distributions in {opened - wrote:.2f} s; "
          f"distributions read in {read - opened:.1f} s")  # fmt: skip


if __name__ == "__main__":
    main()
