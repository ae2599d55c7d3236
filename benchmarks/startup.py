"""Compares the start-up time of fcot.run with that of a bare Hydra application: python benchmarks/startup.py [ROUNDS]."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARE = """
import hydra

@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config):
    pass

main()
"""


def seconds(command: list[str], folder: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "conf").mkdir()
        (Path(folder) / "conf" / "config.yaml").write_text("x: 1\n")
        (Path(folder) / "app.py").write_text(BARE)
        for flags in (["--cfg", "job"], ["--help"]):
            bare = [sys.executable, "app.py", *flags]
            ours = [sys.executable, "-m", "fcot.run", *flags]
            pairs = [(seconds(ours, folder), seconds(bare, folder)) for _ in range(rounds + 1)][1:]
            ratio = statistics.median(fcot_seconds / bare_seconds for fcot_seconds, bare_seconds in pairs)
            times = [statistics.median(column) for column in zip(*pairs, strict=True)]
            print(
                f"{' '.join(flags):10} fcot.run {times[0]:.2f} s, bare Hydra {times[1]:.2f} s, median ratio {ratio:.2f} over {rounds} pairs"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
