"""Compares the speed of fcot with other tools, on real pretrained weights. The sides of a comparison alternate within one run.

    python benchmarks/real_speed.py training FOLDER DATA            # with TRL's SFTTrainer and transformers' Trainer
    python benchmarks/real_speed.py memory FOLDER DATA --steps 200  # peak memory of a training, and of its longest batch alone
    python benchmarks/real_speed.py decoding RUN/student DATA       # with generate on batches sorted by length
    python benchmarks/real_speed.py server FOLDER DATA --base-url URL    # with llama.cpp's server and the same model

FOLDER holds a decoder's weights; DATA is as in ``students.py``. ``pip install trl`` adds the SFTTrainer.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import multiprocessing
import resource
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from students import (
    CUDA,
    DECAY,
    DEVICE,
    LR,
    Meter,
    fcot_side,
    fresh,
    median,
    ratio,
    rationales,
    recipe_of,
    rotated,
    subset,
    table,
    test_questions,
    timed,
    tokenized,
    trainer_side,
)  # fmt: skip

from fcot.methods.table import METHODS
from fcot.student.config import TrainerConfig
from fcot.student.decoding import DecodingPrompt, decode
from fcot.student.interface import read_interface
from fcot.student.loading import Student, load_student
from fcot.student.tokenization import Tokenized, encode_prompts

Texts = list[str]


def sft_side(student: Student, rows: Tokenized, batch: int, precision: str) -> Meter:
    """Train with TRL's SFTTrainer on the same tokens, with a loss on completions only, and without clipping, logs and checkpoints."""
    import trl
    from datasets import Dataset

    meter = Meter(-(-len(rows) // batch))

    class Measured(trl.SFTTrainer):  # type: ignore[misc, name-defined]
        def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> torch.Tensor:
            meter.begin()
            targets = int((inputs["labels"] != -100).sum())
            loss: torch.Tensor = super().training_step(model, inputs, *args, **options)
            meter.step(loss, targets)
            return loss

    class End(hf.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.end()

    data = [
        {"input_ids": row.prompt + row.completion, "completion_mask": [0] * len(row.prompt) + [1] * len(row.completion)} for row in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = trl.SFTConfig(
            folder, per_device_train_batch_size=batch, num_train_epochs=1, learning_rate=LR, weight_decay=DECAY, max_grad_norm=0,
            lr_scheduler_type="constant", optim="adamw_torch_fused", use_cpu=not CUDA, bf16=precision == "bf16-mixed", max_length=None,
            completion_only_loss=True, gradient_checkpointing=False, logging_strategy="no", save_strategy="no", report_to="none",
            disable_tqdm=True,
        )  # fmt: skip
        trainer = Measured(student.model, arguments, train_dataset=Dataset.from_list(data), processing_class=student.tokenizer,
                           callbacks=[End()])  # fmt: skip
        trainer.remove_callback(hf.PrinterCallback)
        trainer.train()
    return meter


def training(options: argparse.Namespace) -> None:
    """Measure samples per second of fine-tuning all parameters."""
    student = load_student(str(options.folder))
    rows = tokenized(student, rationales(options.data, options.task))
    recipe = recipe_of(batch_size=options.batch, epochs=1, precision=options.precision)
    sides: dict[str, Callable[[Tokenized], Meter]] = {
        "fcot": lambda part: fcot_side(fresh(student), part, recipe),
        "Trainer": lambda part: trainer_side(fresh(student), part, "random", options.batch, options.precision),
        "Trainer, group_by_length": lambda part: trainer_side(fresh(student), part, "group_by_length", options.batch, options.precision),
    }
    if importlib.util.find_spec("trl"):
        sides["SFTTrainer"] = lambda part: sft_side(fresh(student), part, options.batch, options.precision)
    else:
        print("TRL is not installed, so the SFTTrainer is left out: pip install trl")
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    n = options.steps * options.batch
    for turn in range(options.turns):
        part = subset(rows, n, seed=turn)
        for name in rotated(list(sides), turn):
            meter = sides[name](part)
            speeds[name].append(n / meter.seconds)
            losses[name].append(sum(float(loss) * targets for loss, targets in meter.losses) / sum(targets for _, targets in meter.losses))
    lengths = rows.lengths.sum(1)
    print(f"{options.task}, {options.folder.name}: {len(rows)} rationales of {lengths.mean():.0f} tokens on average, "
          f"{lengths.max()} at most; {n} samples per side and turn, batch {options.batch}, {options.precision}, {DEVICE}")  # fmt: skip
    table(
        ["side", "samples/s", "fcot / side", "mean loss"],
        [[name, median(speeds[name]), ratio(speeds["fcot"], speeds[name]), f"{median(losses[name]):.4f}"] for name in sides],
    )


def peak_memory(folder: Path, data: Path, task: str, batch: int, steps: int, precision: str, longest: bool) -> float:
    """Peak resident memory of a training in this process, in GB: on all rows, or only on a batch of the longest ones."""
    student = load_student(str(folder))
    rows = tokenized(student, rationales(data, task))
    if longest:
        rows = Tokenized(rows.table.take(np.argsort(rows.lengths.sum(1))[-batch:]).combine_chunks())
    recipe = recipe_of(batch_size=batch, max_steps=steps, precision=precision)
    fcot_side(student, rows, recipe)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def memory(options: argparse.Namespace) -> None:
    """Measure the peak memory of a training, and of its longest batch alone, in separate processes."""
    peaks = []
    for steps, longest in ((4, True), (options.steps, False)):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            settings = (options.folder, options.data, options.task, options.batch, steps, options.precision, longest)
            peaks.append(pool.submit(peak_memory, *settings).result())
    table(
        ["batch", "steps", "longest batch alone, GB", "all, GB", "ratio"],
        [[options.batch, options.steps, *peaks, peaks[1] / peaks[0]]],
    )


def sorted_generate(student: Student, prompts: Sequence[Sequence[int]], limit: int, batch: int) -> Texts:
    """Decode with ``generate``, on batches of prompts of similar length, the longest first."""
    tokenizer, model = student.tokenizer, student.model.eval()
    tokenizer.padding_side = "left"
    order = sorted(range(len(prompts)), key=lambda at: -len(prompts[at]))
    texts = [""] * len(prompts)
    for first in range(0, len(order), batch):
        indices = order[first : first + batch]
        inputs = tokenizer.pad({"input_ids": [list(prompts[at]) for at in indices]}, return_tensors="pt").to(DEVICE)
        written: Any = model.generate(**inputs, max_new_tokens=limit, do_sample=False)  # type: ignore[operator]
        for at, ids in zip(indices, written[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            texts[at] = tokenizer.decode(ids, skip_special_tokens=True)
    return texts


def decoding(options: argparse.Namespace) -> None:
    """Measure the seconds of a trained student's greedy answers to the test split."""
    student, interface = load_student(str(options.folder)), read_interface(options.folder)
    student.model.to(DEVICE)  # type: ignore[arg-type]
    limit = options.max_new_tokens or interface.max_new_tokens
    questions = test_questions(options.data, interface.task)[: options.n]
    prompts, _ = encode_prompts(student, [interface.format.prompt(question) for question in questions], interface.max_prompt_tokens)
    budget = TrainerConfig.eval_batch_tokens

    def ours() -> Texts:
        return [answer.text for answer in decode(student, [DecodingPrompt(ids, limit) for ids in prompts], max_tokens=budget)]

    sides: dict[str, Callable[[], Texts]] = {"fcot": ours}
    for batch in options.batches:
        sides[f"generate, sorted, batch {batch}"] = lambda batch=batch: sorted_generate(student, prompts, limit, batch)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    texts: dict[str, Texts] = {}
    for turn in range(options.turns):
        for name in rotated(list(sides), turn):
            texts[name], spent = timed(sides[name])
            seconds[name].append(spent)
    print(f"{interface.task}, {len(prompts)} test questions, at most {limit} new tokens, float32, {DEVICE}")
    rows = [
        [name, median(seconds[name]), ratio(seconds[name], seconds["fcot"]),
         f"{sum(a == b for a, b in zip(texts[name], texts['fcot'], strict=True))}/{len(prompts)}"] for name in sides
    ]  # fmt: skip
    table(["side", "seconds", "side / fcot", "identical texts"], rows)


def server(options: argparse.Namespace) -> None:
    """Measure new tokens per second of fcot and of a llama.cpp server, with the same number of tokens for every prompt."""
    import openai

    student = load_student(str(options.folder))
    form = METHODS["fine_tune_cot"].formats[student.architecture]
    texts = [form.prompt(question) for question in test_questions(options.data, options.task)[: options.n]]
    prompts, _ = encode_prompts(student, texts, 512)
    limit = options.max_new_tokens or 64
    endless = [DecodingPrompt(ids, limit, halt=lambda written: len(written) >= limit) for ids in prompts]
    eos = torch.tensor([student.tokenizer.eos_token_id])
    student.model.get_output_embeddings().register_forward_hook(lambda _, __, logits: logits.index_fill_(-1, eos, -torch.inf))  # type: ignore

    async def send_all() -> int:
        client = openai.AsyncOpenAI(api_key="none", base_url=options.base_url, timeout=3600)
        replies = await asyncio.gather(*(
            client.completions.create(model="any", prompt=text, max_tokens=limit, temperature=0, extra_body={"ignore_eos": True})
            for text in texts
        ))  # fmt: skip
        return sum(reply.usage.completion_tokens for reply in replies if reply.usage)

    answers, spent = timed(lambda: decode(student, endless, max_tokens=TrainerConfig.eval_batch_tokens))
    n_tokens, server_spent = timed(lambda: asyncio.run(send_all()))
    print(f"{len(prompts)} prompts, {limit} new tokens each; fcot in float32, the server as it was started")
    rows = [
        ["fcot", len(answers) * limit, spent, len(answers) * limit / spent],
        ["server", n_tokens, server_spent, n_tokens / server_spent],
    ]
    table(["side", "new tokens", "seconds", "tokens/s"], rows)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for command in (training, memory, decoding, server):
        subparser = commands.add_parser(command.__name__, help=(command.__doc__ or "").rstrip("."))
        subparser.set_defaults(command=command)
        subparser.add_argument("folder", type=Path)
        subparser.add_argument("data", type=Path)
        subparser.add_argument("--task", default="svamp")
        subparser.add_argument("--turns", type=int, default=1)
        if command in (training, memory):
            subparser.add_argument("--batch", type=int, default=8)
            subparser.add_argument("--steps", type=int, default=12)
            subparser.add_argument("--precision", default="32-true")
        else:
            subparser.add_argument("-n", type=int, help="questions; all by default")
            subparser.add_argument("--max-new-tokens", type=int)
        if command is decoding:
            subparser.add_argument("--batches", type=int, nargs="+", default=[16, 32])
        if command is server:
            subparser.add_argument("--base-url", required=True)
    options = parser.parse_args()
    hf.logging.set_verbosity_error()
    options.command(options)


if __name__ == "__main__":
    main()
