"""Measures submission, status and collect of a sweep with many tiny jobs, on a real SLURM of one node.

python benchmarks/sweeps.py [JOBS]     default: 200. Needs Debian's slurm-wlm, munge, slurmdbd and mariadb-server.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
TINY_JOB = ["dataset.n_problems=20", "diversity=1", "until=generate", "hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null",
           "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=60", "hydra.launcher.array_parallelism=8"]  # fmt: skip


def timed(what: str, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, check=True)
    print(f"{what:<44} {time.monotonic() - began:6.1f} s", flush=True)
    return done


def main(n_jobs: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([ROOT / "launch/local_slurm", "up", folder / "slurm"], check=True, capture_output=True)
        os.environ["SLURM_CONF"] = str(folder / "slurm/slurm.conf")
        try:
            timed(f"submit {n_jobs} jobs (plan, then one array)", "fcot.run", "-m", f"seed=range({n_jobs})", *TINY_JOB, cwd=folder)
            (sweep,) = (folder / "outputs/sweeps").iterdir()
            began = time.monotonic()
            timed("status, just submitted", "fcot.sweep", "status", str(sweep), cwd=folder)
            while (
                f"{n_jobs} done"
                not in subprocess.run(
                    [sys.executable, "-m", "fcot.sweep", "status", str(sweep)], capture_output=True, text=True, check=True
                ).stdout
            ):
                time.sleep(5)
            print(f"{f'all {n_jobs} done after':<44} {time.monotonic() - began:6.1f} s")
            timed("status, all done", "fcot.sweep", "status", str(sweep), cwd=folder)
            timed("collect", "fcot.sweep", "collect", str(sweep), cwd=folder)
            timed("submit again: everything is done", "fcot.run", "-m", f"seed=range({n_jobs})", *TINY_JOB, cwd=folder)
        finally:
            subprocess.run([ROOT / "launch/local_slurm", "down", folder / "slurm"], check=True, capture_output=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
