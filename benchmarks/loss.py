"""The loss of a large vocabulary: in chunks, beside cross-entropy of all logits. Forward and backward, random weights.

    python benchmarks/loss.py --vocabulary 262144 --width 640 --targets 600 --precision bf16

The defaults are a batch of 8 rationales for Gemma 3 270M. Prints seconds and the peak of the process's memory; each side runs in a
process of its own, because freed memory may stay with a process.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import torch

from fcot.objectives.completion import chunked_token_loss, token_loss
from fcot.student.fitting import _keeping_freed_memory


def measure(side: str, options: argparse.Namespace) -> tuple[float, float]:
    """Median seconds of forward and backward, and gigabytes of peak memory."""
    torch.manual_seed(0)
    weight = (0.05 * torch.randn(options.vocabulary, options.width)).requires_grad_()
    states = torch.randn(options.targets, options.width, requires_grad=True)
    batch = {"targets": torch.randint(options.vocabulary, (options.targets,)), "weights": None}
    cast = torch.autocast("cpu", torch.bfloat16) if options.precision == "bf16" else contextlib.nullcontext()
    seconds = []
    with _keeping_freed_memory():  # as in a training
        for _ in range(options.repeats + 1):
            started = time.perf_counter()
            with cast:
                if side == "in chunks":
                    loss = chunked_token_loss(states, weight, None, batch)
                else:
                    loss = token_loss((states @ weight.T).float(), batch)
            (loss / options.targets).backward()
            seconds.append(time.perf_counter() - started)
            weight.grad = states.grad = None
    return statistics.median(seconds[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Print both sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("vocabulary", 262_144), ("width", 640), ("targets", 600), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", choices=("bf16", "float32"), default="bf16")
    options = parser.parse_args()
    print("| loss | seconds | peak GB |\n|---|---|---|")
    for side in ("all logits", "in chunks"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            seconds, gigabytes = pool.submit(measure, side, options).result()
        print(f"| {side} | {seconds:.2f} | {gigabytes:.1f} |", flush=True)


if __name__ == "__main__":
    main()
