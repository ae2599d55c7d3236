"""``python benchmarks/students.py gpu DATA``: how well a training uses a CUDA device, and its most expensive kernels."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from students import CUDA, build, evaluation, fcot_side, fresh, rationales, recipe_of, table, tokenized, training

from fcot.student.config import TrainerConfig
from fcot.student.loading import Student
from fcot.student.tokenization import Tokenized
from fcot.student.training import plan

PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12}  # dense bfloat16 FLOP/s


def gpu(arguments: argparse.Namespace) -> None:
    if not CUDA:
        sys.exit("gpu: no CUDA device here; the other subcommands run on any machine")
    name = torch.cuda.get_device_name()
    peak = arguments.peak or next((value for key, value in PEAKS.items() if key in name), None)
    if peak is None:
        sys.exit(f"gpu: the bfloat16 peak of {name} is not known; give it: --peak FLOP/S")
    samples = rationales(arguments.data, arguments.task[0])
    print(f"{name}, peak {peak / 1e12:,.0f} TFLOP/s in bfloat16, {arguments.task[0]}, bf16-mixed")
    cells, costs = [], []
    for shape in ("gpt2_medium", "flan_t5_base"):
        student = build(shape, samples)
        rows = tokenized(student, samples)
        batches: list[dict[str, Any]] = [{"batch_size": 8}, *({"batch_tokens": size} for size in arguments.batch_tokens)]
        batches += [options | {"packing": True} for options in batches if student.architecture == "decoder"]
        for batch in batches:
            recipe = recipe_of(precision="bf16-mixed", tf32=True, max_steps=30, **batch)
            cells.append([shape, ", ".join(f"{key}={value}" for key, value in batch.items()), *utilization(student, rows, recipe, peak)])
        costs.append(f"{shape}, {cells[-1][1]}: {' and '.join(largest_costs(student, rows, recipe))}")
        torch.cuda.empty_cache()
    table(["student", "batch", "tokens/s", "MFU %", "MFU % (6 x all parameters)", "peak GiB"], cells)
    print("the two largest costs on the device:", *costs, sep="\n- ")
    training(arguments, "bf16-mixed", (8, 32, 128))
    evaluation(arguments, (32768, 131072, 524288), (32, 128, 300))


def utilization(student: Student, rows: Tokenized, recipe: TrainerConfig, peak: float, skip: int = 10) -> tuple[float, ...]:
    """Tokens per second, without padding; utilization of the device in percent, with FLOPs counted in two ways; and peak memory in GiB."""
    torch.cuda.reset_peak_memory_stats()
    _, sampler, n_steps = plan(student, rows, recipe, 0)
    seconds = fcot_side(fresh(student), rows, recipe, skip).seconds
    lengths = np.concatenate([rows.lengths[sampler.step(step)] for step in range(skip, n_steps)])
    tokens = int(lengths.sum())
    attention, needed = flops(student, lengths)
    plain = 6 * student.model.num_parameters() * tokens + attention
    shares = [100 * work / seconds / peak for work in (needed + attention, plain)]
    return tokens / seconds, *shares, torch.cuda.max_memory_allocated() / 2**30


def flops(student: Student, lengths: np.ndarray[Any, Any]) -> tuple[float, float]:
    """FLOPs of training on samples: of attention scores, and of products with parameters (the output head: at targets only)."""
    config: Any = student.model.config
    prompts, completions = lengths.astype(float).T
    head = config.vocab_size * config.hidden_size
    if student.architecture == "decoder":
        body = sum(parameter.numel() for parameter in student.model.transformer.h.parameters())  # type: ignore[union-attr, operator]
        rows_tokens = prompts + completions
        return (
            float(6 * config.n_layer * config.n_embd * (rows_tokens**2).sum()),
            float(6 * (body * rows_tokens + head * completions).sum()),
        )
    wide = config.num_layers * config.num_heads * config.d_kv
    model: Any = student.model
    encoder, decoder = (sum(parameter.numel() for parameter in part.block.parameters()) for part in (model.encoder, model.decoder))
    crossed = 2 * wide * config.d_model  # the decoder's parameters that process the prompt: keys and values of cross-attention
    scores = 12 * prompts**2 + 6 * completions**2 + 12 * prompts * completions
    return float(wide * scores.sum()), float(6 * ((encoder + crossed) * prompts + (decoder - crossed + head) * completions).sum())


def largest_costs(student: Student, rows: Tokenized, recipe: TrainerConfig) -> list[str]:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as watched:
        fcot_side(fresh(student), rows, replace(recipe, max_steps=10))
    events = [event for event in watched.key_averages() if str(event.device_type).endswith("CUDA")]
    kernels = [event for event in events if not event.key.startswith("Optimizer.")]
    total = sum(kernel.self_device_time_total for kernel in kernels)
    top = sorted(kernels, key=lambda kernel: -kernel.self_device_time_total)[:2]
    return [f"`{kernel.key[:80]}` {100 * kernel.self_device_time_total / total:.0f} %" for kernel in top]
