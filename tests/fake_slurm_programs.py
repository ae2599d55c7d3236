"""The programs squeue, sacct, sbatch, scancel and scontrol of :mod:`fake_slurm`, called as ``FOLDER PROGRAM ARGUMENTS``."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

LIMIT = (
    "sbatch: error: QOSMaxSubmitJobPerUserLimit\n"
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
)
ALIVE = ("PENDING", "RUNNING", "CONFIGURING")


def _main(folder: Path, program: str, arguments: list[str]) -> int:
    with (folder / "calls.jsonl").open("a") as file:
        file.write(json.dumps([program, *arguments]) + "\n")
    state = json.loads((folder / "state.json").read_text())
    if program in state["hang"]:
        time.sleep(60)
    if program in state["fail"]:
        print(state["fail"][program], file=sys.stderr)
        return 1
    code = {"squeue": _squeue, "sacct": _sacct, "sbatch": _sbatch, "scancel": _scancel, "scontrol": _scontrol}[program](
        state, arguments, folder
    )
    (folder / "state.json").write_text(json.dumps(state))
    return code


def _requested_jobs(arguments: list[str]) -> list[str]:
    return next(word for word in arguments if word.startswith("--jobs=")).removeprefix("--jobs=").split(",")


def _list(states: dict[str, str], requested: list[str]) -> int:
    rows = {job: word for job, word in states.items() if job.partition("_")[0] in requested}
    for job, word in rows.items():
        print(f"{job}|{word}" if "|" in word else f"{job}|{word}|None")
    return len(rows)


def _squeue(state: dict[str, Any], arguments: list[str], _: Path) -> int:
    requested = _requested_jobs(arguments)
    if not _list(state["queue"], requested) and len(requested) == 1:
        print("slurm_load_jobs error: Invalid job id specified", file=sys.stderr)
        return 1
    return 0


def _sacct(state: dict[str, Any], arguments: list[str], _: Path) -> int:
    if state["accounting"] is None:
        print("Slurm accounting storage is disabled", file=sys.stderr)
        return 1
    _list(state["accounting"], _requested_jobs(arguments))
    return 0


def _sbatch(state: dict[str, Any], arguments: list[str], folder: Path) -> int:
    text = Path(arguments[0]).read_text()
    array = next((line.partition("=")[2] for line in text.splitlines() if line.startswith("#SBATCH --array=")), None)
    n = int(array.partition("%")[0].partition("-")[2]) + 1 if array else 1
    alive = sum(word.partition("|")[0] in ALIVE for word in state["queue"].values())
    if n > state["longest_array"]:
        print("sbatch: error: Batch job submission failed: Invalid job array specification", file=sys.stderr)
        return 1
    if state["submit_limit"] is not None and alive + n > state["submit_limit"]:
        print(LIMIT, file=sys.stderr)
        return 1
    job = str(state["next"])
    state["next"] += 1
    state["queue"] |= {f"{job}_{task}": "PENDING|Priority" for task in range(n)} if array else {job: "PENDING|Priority"}
    (folder / f"{job}.sh").write_text(text)
    (folder / f"{job}.env").write_text(json.dumps(dict(os.environ)))
    print(f"Submitted batch job {job}")
    return 0


def _scancel(state: dict[str, Any], arguments: list[str], _: Path) -> int:
    code = 0
    for word in arguments:
        jobs = [job for job in state["queue"] if job == word or job.partition("_")[0] == word]
        state["queue"] |= dict.fromkeys((job for job in jobs if state["queue"][job].partition("|")[0] in ALIVE), "CANCELLED")
        if not jobs:
            print(f"scancel: error: Kill job error on job id {word}: Invalid job id specified", file=sys.stderr)
            code = 1
    return code


def _scontrol(state: dict[str, Any], _: list[str], __: Path) -> int:
    print(f"Configuration data as of now\nMaxArraySize            = {state['max_array_size']}\nMaxJobCount             = 10000")
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
