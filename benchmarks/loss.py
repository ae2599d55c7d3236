"""The loss of a large vocabulary: in chunks, beside the same loss of all logits. Forward and backward, random weights.

    python benchmarks/loss.py --vocabulary 262144 --width 640 --targets 600 --precision bf16
    python benchmarks/loss.py --loss stored

``stored`` adds the divergence from the teacher's 20 likeliest tokens at each target. The defaults are a batch of 8 rationales for Gemma 3
270M. Prints seconds and the peak of the process's memory; each side runs in a process of its own, because freed memory may stay with a
process.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from fcot.objectives.completion import chunked_token_loss, token_loss
from fcot.objectives.stored import StoredDistributionLoss
from fcot.student.fitting import _keeping_freed_memory


class GivenStates:
    """A forward pass whose hidden states are given."""

    def __init__(self, states: torch.Tensor, weight: torch.Tensor, in_chunks: bool) -> None:
        self.states = states
        self.weight = weight
        self.in_chunks = in_chunks

    def __call__(self, part: Any) -> torch.Tensor:
        """All logits, in float32."""
        return (self.states @ self.weight.T).float()

    def head_inputs(self, part: Any) -> tuple[torch.Tensor, torch.nn.Linear] | None:
        """Hidden states and the output head, if the loss is computed in chunks."""
        if not self.in_chunks:
            return None
        head = torch.nn.Linear(1, 1, bias=False, device="meta")
        head.weight, head.out_features = self.weight, len(self.weight)
        return self.states, head


def stored_batch(targets: torch.Tensor, vocabulary: int) -> dict[str, Any]:
    """A batch with random distributions over 20 tokens at each target."""
    n = len(targets)
    logprobs = torch.randn(n, 21).log_softmax(-1)[:, :20]
    ids = torch.stack([torch.randperm(vocabulary)[:20] for _ in range(n)])
    top = {"at": torch.arange(n), "places": list(range(n)), "ids": ids, "logprobs": logprobs, "shares": torch.full((n,), 0.5)}
    return {"targets": targets, "weights": None, "imitated": torch.ones(n), "top": top}


def measure(side: str, options: argparse.Namespace) -> tuple[float, float]:
    """Median seconds of forward and backward, and gigabytes of peak memory."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(0.05 * torch.randn(options.vocabulary, options.width))
    states = torch.randn(options.targets, options.width, requires_grad=True)
    targets = torch.randint(options.vocabulary, (options.targets,))
    stored = options.loss == "stored"
    batch = stored_batch(targets, options.vocabulary) if stored else {"targets": targets, "weights": None}
    cast = torch.autocast("cpu", torch.bfloat16) if options.precision == "bf16" else contextlib.nullcontext()
    seconds = []
    with _keeping_freed_memory():  # as in a training
        for _ in range(options.repeats + 1):
            started = time.perf_counter()
            with cast:
                if stored:
                    loss = StoredDistributionLoss(None, [], 0.5).loss(GivenStates(states, weight, side == "in chunks"), batch).total
                elif side == "in chunks":
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
    parser.add_argument("--loss", choices=("completion", "stored"), default="completion")
    parser.add_argument("--precision", choices=("bf16", "float32"), default="bf16")
    options = parser.parse_args()
    print("| loss | seconds | peak GB |\n|---|---|---|")
    for side in ("all logits", "in chunks"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            seconds, gigabytes = pool.submit(measure, side, options).result()
        print(f"| {side} | {seconds:.2f} | {gigabytes:.1f} |", flush=True)


if __name__ == "__main__":
    main()
