"""Time and memory of ``fcot check`` on generated files: python benchmarks/data_check.py [--rows 1000000].

Each format is checked in a process of its own. CPU s and peak GB are that process's; they do not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gia", "Hugo", "Ida", "Jack")
THINGS = ("boxes", "pallets", "crates", "bottles", "screws", "sheets")


def rows(n: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Word problems with ids and groups; 1 row in 1,000 has a faulty answer, 1 in 100 repeats an earlier question."""
    rng = random.Random(seed)
    earlier: list[str] = []
    for number in range(n):
        name, thing, first, second, third = rng.choice(NAMES), rng.choice(THINGS), *(rng.randint(2, 9999) for _ in range(3))
        question = (
            f"{name} counts {first:,} {thing} in aisle {rng.randint(1, 80)} of the warehouse, and {second:,} more arrive in the "
            f"afternoon. Then {third} are sold. How many {thing} are left in the end?"
        )
        if earlier and rng.random() < 0.01:
            question = rng.choice(earlier)
        elif len(earlier) < 10_000:
            earlier.append(question)
        answer = "n/a" if rng.random() < 0.001 else f"{first + second - third:,}"
        yield {"id": f"WH-{number}", "customer": f"K{rng.randint(1, 5000)}", "question": question, "answer": answer}


def write(path: Path, n: int) -> None:
    """Write a file in the format of its suffix."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["id", "customer", "question", "answer"])
            writer.writeheader()
            writer.writerows(rows(n))
    elif path.suffix == ".jsonl":
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(n))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows(n))), path)


def measure(path: Path) -> tuple[float, float, float, str]:
    """Seconds, CPU seconds and peak gigabytes of a check, and the split that it reports."""
    start = time.perf_counter()
    command = [
        sys.executable, str(Path(__file__).absolute()), "--one", str(path), "dataset.index_column=id", "dataset.on_invalid=skip",
    ]  # fmt: skip
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    *_, split, used = [line for line in output.splitlines() if line.startswith(("split", "used"))]
    _, cpu_s, peak = used.split()
    return time.perf_counter() - start, float(cpu_s), float(peak), " ".join(split.split()[1:])


def main() -> None:
    """Print a table: a row per format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of each file")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        from fcot.check import check

        print(check(options.one[0], options.one[1:]).to_text())
        usage = resource.getrusage(resource.RUSAGE_SELF)
        print(f"used {usage.ru_utime + usage.ru_stime:.1f} {usage.ru_maxrss / 1e6:.2f}")
        return
    table = Table("file", "MB", "seconds", "CPU s", "rows per CPU s", "peak GB", "split")
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("csv", "jsonl", "parquet"):
            path = Path(folder) / f"rows.{suffix}"
            write(path, options.rows)
            seconds, cpu_s, peak, split = measure(path)
            size = path.stat().st_size / 1e6
            table.add_row(suffix, f"{size:.0f}", f"{seconds:.1f}", f"{cpu_s:.1f}", f"{options.rows / cpu_s:,.0f}", f"{peak:.2f}", split)
            path.unlink()
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
