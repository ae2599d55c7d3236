"""Measures the student side: python benchmarks/students.py training|evaluation|scaling|precision|gpu ... (--help lists the options).

Models have the real classes and shapes, but random weights; tokenizers are trained on the task's texts. Compare ratios: the sides of a
comparison alternate within one run, and absolute numbers depend on the machine. DATA holds ``dataset/`` and ``completion_data/`` in the
authors' formats.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, pstdev
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # like fcot.run

import numpy as np
import torch
import transformers as hf

from fcot.base.records import Completion
from fcot.curation.filters import Rules, curate
from fcot.methods.table import METHODS
from fcot.objectives.completion import CompletionLoss
from fcot.student.config import TrainerConfig
from fcot.student.decoding import DecodingPrompt, decode
from fcot.student.interface import read_interface
from fcot.student.loading import Student, load_student, train_tokenizer
from fcot.student.module import StudentModule
from fcot.student.tokenization import Tokenized, encode_prompts, tokenize
from fcot.student.training import Hooks, plan, train
from fcot.tasks.loaders import load_problems
from fcot.tasks.splits import sample_split
from fcot.tasks.table import TASKS
from fcot.tasks.toy import TOY_TASKS, make_problems
from fcot.teacher.replay import read_completions

SHAPES: dict[str, dict[str, Any]] = {
    "t5": {"width": 512, "layers": 6, "heads": 8, "d_ff": 2048, "vocabulary": 32_128},  # T5-small
    "gpt2": {"width": 768, "layers": 12, "heads": 12, "vocabulary": 50_257},  # GPT-2 small
    "flan_t5_base": {"width": 768, "layers": 12, "heads": 12, "d_ff": 2048, "vocabulary": 32_128, "gated": True},
    "gpt2_medium": {"width": 1024, "layers": 24, "heads": 16, "vocabulary": 50_257},
}
LR, DECAY, LIMIT = 3e-4, 0.01, 1024
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
Sample = tuple[str, str, str]  # question, answer, rationale


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table."""
    cells = [[cell if isinstance(cell, str) else f"{cell:,}" if isinstance(cell, int) else f"{cell:,.2f}" for cell in row] for row in rows]
    print("\n".join(["", *(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *cells]), ""]), flush=True)


def rationales(data: Path, name: str) -> list[Sample]:
    """The reasoning samples of a task: stored completions with the right answer, or the oracle's rationales for a toy task."""
    if name in TOY_TASKS:
        toy = TOY_TASKS[name]
        return [(problem.question, problem.answer, toy.rationale(problem.question, 0, None)) for problem in make_problems(toy, 1000, 0)]
    task = TASKS[name]
    problems = {problem.sample_index: problem for problem in load_problems(task, str(data / "dataset" / f"{name}.json"))}
    file = next((data / "completion_data").rglob(f"D_{name}.json"))
    by_problem, _ = read_completions(file, task, {index: problem.question for index, problem in problems.items()})
    completions: list[Completion] = [completion for slots in by_problem.values() for completion in slots]
    curated = curate(completions, problems, task.rule, lambda completion, rule: rule.read(completion.answer_text), Rules(["answer"]))
    return [(problems[row.sample_index].question, row.answer, row.rationale) for row in curated if row.kept]


def test_questions(data: Path, name: str) -> list[str]:
    """The questions of a task's test split."""
    if name in TOY_TASKS:
        problems = make_problems(TOY_TASKS[name], 1000, 0)
    else:
        problems = load_problems(TASKS[name], str(data / "dataset" / f"{name}.json"))
    return [problems[index].question for index in sample_split(len(problems))[1]]


def build(name: str, samples: Sequence[Sample], width: int | None = None, layers: int | None = None, positions: int = 1024) -> Student:
    """Build a student of a real shape with random weights.

    Args:
        name: Key of SHAPES.
        samples: Training texts of the tokenizer.
        width: Hidden size, for a smaller model; None: the real width, and the real vocabulary size even if the tokenizer uses less of it.
        layers: Number of layers; None: as many as the real model.
        positions: Positions of a decoder.
    """
    shape = SHAPES[name]
    texts = [text for question, answer, why in samples for text in (question, f"{why} --> {answer}")]
    tokenizer = train_tokenizer(texts, shape["vocabulary"])
    vocabulary, heads = (shape["vocabulary"], shape["heads"]) if width is None else (len(tokenizer), max(1, width // 64))
    width, layers = width or shape["width"], layers or shape["layers"]
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    if "d_ff" in shape:
        gated = "gated" in shape
        config = hf.T5Config(
            vocab_size=vocabulary, d_model=width, d_kv=width // heads, d_ff=shape["d_ff"] * width // shape["width"], num_layers=layers,
            num_heads=heads, feed_forward_proj="gated-gelu" if gated else "relu", tie_word_embeddings=not gated,
            decoder_start_token_id=tokenizer.pad_token_id, **ids,
        )  # fmt: skip
        return Student(hf.T5ForConditionalGeneration(config), tokenizer, "encoder_decoder")
    config = hf.GPT2Config(
        vocab_size=vocabulary, n_positions=positions, n_embd=width, n_layer=layers, n_head=heads, bos_token_id=tokenizer.eos_token_id, **ids
    )
    return Student(hf.GPT2LMHeadModel(config), tokenizer, "decoder")


def tokenized(student: Student, samples: Sequence[Sample]) -> Tokenized:
    form = METHODS["fine_tune_cot"].formats[student.architecture]
    return tokenize(student, form, [(question, form.completion(answer, why)) for question, answer, why in samples],
                    max_prompt=512, max_completion=512)  # fmt: skip


def fresh(student: Student) -> Student:
    return replace(student, model=copy.deepcopy(student.model))


class Meter:
    """Measures the time from the beginning of step ``skip`` to the end of step ``n_steps``; keeps loss and target tokens of every step."""

    def __init__(self, n_steps: int, skip: int = 0) -> None:
        self.n_steps, self.skip = n_steps, skip
        self.begun = self.ended = 0.0
        self.losses: list[tuple[torch.Tensor, int]] = []

    def begin(self) -> None:
        """Called at the beginning of a step."""
        if len(self.losses) == self.skip:
            self.begun = now()

    def step(self, loss: torch.Tensor, targets: int) -> None:
        """Called with a step's mean loss."""
        self.losses.append((loss.detach(), targets))

    def end(self) -> None:
        """Called after the optimizer's step."""
        if len(self.losses) == self.n_steps:
            self.ended = now()

    @property
    def seconds(self) -> float:
        """The measured seconds."""
        return self.ended - self.begun

    def windows(self, size: int = 10) -> list[float]:
        """Mean loss per token in each window of ``size`` steps."""
        parts = [self.losses[start : start + size] for start in range(0, len(self.losses), size)]
        return [sum(float(loss) * n for loss, n in part) / sum(n for _, n in part) for part in parts]


def now() -> float:
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def recipe_of(**options: Any) -> TrainerConfig:
    """The options of a training without clipping and evaluations, like the other sides'."""
    plain = {"name": "benchmark", "lr": LR, "weight_decay": DECAY, "schedule": "constant", "clip_norm": None, "precision": "32-true"}
    return TrainerConfig(**(plain | {"evaluate_every_epochs": None} | options))


def fcot_side(student: Student, rows: Tokenized, recipe: TrainerConfig, skip: int = 0) -> Meter:
    """Train with fcot."""
    layout, _, n_steps = plan(student, rows, recipe, 0)
    meter = Meter(n_steps, skip)
    original = StudentModule.training_step

    def training_step(self: StudentModule, batch: dict[str, Any], index: int) -> dict[str, Any]:
        meter.begin()
        losses = original(self, batch, index)
        meter.step(losses["loss"], len(batch["parts"]["completion"]["targets"]))
        return losses

    with patch.object(StudentModule, "training_step", training_step):
        train(student, rows, [CompletionLoss(rows, layout)], recipe, Hooks(lambda _: {}, advance=lambda _: meter.end()), seed=0)
    return meter


def features(student: Student, rows: Tokenized) -> list[dict[str, list[int]]]:
    """Rows in the format of transformers; labels of prompt tokens are -100."""
    if student.architecture == "encoder_decoder":
        return [{"input_ids": row.prompt, "attention_mask": [1] * len(row.prompt), "labels": row.completion} for row in rows]
    decoder_rows = [(row.prompt + row.completion, [-100] * len(row.prompt) + row.completion) for row in rows]
    return [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels} for ids, labels in decoder_rows]


def padded_side(student: Student, rows: Tokenized, longest: Sequence[int], batch: int, precision: str) -> Meter:
    """Train like paper A's code: every row is padded to the longest of the data set, on the left for decoders."""
    seq2seq = student.architecture == "encoder_decoder"
    widths = {"input_ids": longest[0], "attention_mask": longest[0], "labels": longest[1]} if seq2seq else dict.fromkeys(
        ("input_ids", "attention_mask", "labels"), longest[2])  # fmt: skip
    fills = {"input_ids": student.tokenizer.pad_token_id, "attention_mask": 0, "labels": -100}

    def filled(name: str, ids: list[int]) -> list[int]:
        padding = [fills[name]] * (widths[name] - len(ids))
        return [*ids, *padding] if seq2seq else [*padding, *ids]

    data = features(student, rows)
    tensors = {name: torch.tensor([filled(name, row[name]) for row in data]) for name in widths}
    model: Any = student.model.to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, fused=True)
    batches = torch.randperm(len(rows)).split(batch)
    meter = Meter(len(batches))
    for ids in batches:
        meter.begin()
        inputs = {name: tensor[ids].to(DEVICE) for name, tensor in tensors.items()}
        with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = model(**inputs, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        meter.step(loss, int((inputs["labels"] != -100).sum()))
        meter.end()
    return meter


def trainer_side(student: Student, rows: Tokenized, order: str, batch: int, precision: str) -> Meter:
    """Train with the Trainer of transformers and its padding collator, without clipping, logs and checkpoints."""
    meter = Meter(-(-len(rows) // batch))

    class Measured(hf.Trainer):
        def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> torch.Tensor:
            meter.begin()
            targets = int((inputs["labels"] != -100).sum())
            loss = super().training_step(model, inputs, *args, **options)
            meter.step(loss, targets)
            return loss

    class End(hf.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.end()

    with tempfile.TemporaryDirectory() as folder:
        arguments = hf.TrainingArguments(
            folder, per_device_train_batch_size=batch, num_train_epochs=1, learning_rate=LR, weight_decay=DECAY, max_grad_norm=0,
            lr_scheduler_type="constant", optim="adamw_torch_fused", train_sampling_strategy=order, use_cpu=not CUDA,
            bf16=precision == "bf16-mixed", logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        collator = hf.DataCollatorForSeq2Seq(student.tokenizer, student.model)
        trainer = Measured(student.model, arguments, collator, features(student, rows), callbacks=[End()])
        trainer.remove_callback(hf.PrinterCallback)
        trainer.train()
    return meter


def sides(student: Student, longest: Sequence[int], precision: str) -> dict[str, Callable[[Tokenized, int], Meter]]:
    """For each side, a function of rows and batch size that trains one epoch from the same weights."""

    def recipe(batch: int, packing: bool) -> TrainerConfig:
        return recipe_of(batch_size=batch, packing=packing, epochs=1, precision=precision)

    all_sides = {
        "fcot": lambda rows, batch: fcot_side(fresh(student), rows, recipe(batch, False)),
        "fcot, packed": lambda rows, batch: fcot_side(fresh(student), rows, recipe(batch, True)),
        "a: padded to the longest": lambda rows, batch: padded_side(fresh(student), rows, longest, batch, precision),
        "b: Trainer": lambda rows, batch: trainer_side(fresh(student), rows, "random", batch, precision),
        "c: Trainer, group_by_length": lambda rows, batch: trainer_side(fresh(student), rows, "group_by_length", batch, precision),
    }
    if student.architecture == "encoder_decoder":
        del all_sides["fcot, packed"]
    return all_sides


def longest_rows(rows: Tokenized) -> list[int]:
    """Lengths of the longest prompt, completion and row, in tokens."""
    return [*rows.lengths.max(0).tolist(), int(rows.lengths.sum(1).max())]


def training(arguments: argparse.Namespace, precision: str = "32-true", batches: Sequence[int] = (8,)) -> None:
    for name in arguments.task:
        samples = rationales(arguments.data, name)
        for shape in arguments.model:
            student = build(shape, samples, arguments.width, arguments.layers)
            rows = tokenized(student, samples)
            longest, average = longest_rows(rows), float(rows.lengths.sum(1).mean())
            print(f"\n{name}, {shape}: {student.model.num_parameters() / 1e6:.1f} M parameters, {len(rows)} rationales,"
                  f" rows of {average:.1f} tokens on average, {longest[2]} at most: ceiling {longest[2] / average:.2f}"
                  f" (prompt and completion padded separately: {sum(longest[:2]) / average:.2f})")  # fmt: skip
            compare_training(student, rows, longest, arguments, precision, batches)


def compare_training(
    student: Student, rows: Tokenized, longest: Sequence[int], arguments: argparse.Namespace, precision: str, batches: Sequence[int]
) -> None:
    """Run each side once per turn, on the turn's samples and from the same weights; each side is reported at its best batch size."""
    runs = {(name, batch): side for name, side in sides(student, longest, precision).items() for batch in batches}
    speeds: dict[Any, list[float]] = {key: [] for key in runs}
    meters: dict[Any, Meter] = {}
    n = arguments.steps * 8
    for (_, batch), side in runs.items():
        side(subset(rows, 2 * batch, seed=99), batch)  # warm-up
    for turn in range(arguments.turns):
        for key in rotated(list(runs), turn):
            meters[key] = runs[key](subset(rows, n, seed=turn), key[1])
            speeds[key].append(n / meters[key].seconds)
    names = list(dict(runs))
    best = {name: max((key for key in names if key[0] == name), key=lambda key: median(speeds[key])) for name, _ in names}
    ours = [name for name in best if name.startswith("fcot")]
    cells = []
    for name, key in best.items():
        ratios = [ratio(speeds[best[our_side]], speeds[key]) for our_side in ours]
        windows = meters[key].windows()
        cells.append([name, key[1], median(speeds[key]), *ratios, *(f"{value:.4f}" for value in (
            meters[key].windows(len(meters[key].losses))[0], pstdev(windows), windows[0], windows[-1]))])  # fmt: skip
    print(f"{n} samples per side and turn, {arguments.turns} turns, {precision}, {DEVICE}; losses of the last turn, windows of 10 steps")
    table(["side", "batch", "samples/s", *(f"{name} / side" for name in ours), "loss", "spread of windows", "first", "last"], cells)


def subset(rows: Tokenized, n: int, seed: int) -> Tokenized:
    """Choose ``n`` rows at random; rows repeat only if there are fewer than ``n``."""
    indices = np.resize(np.random.default_rng(seed).permutation(len(rows)), n)
    return Tokenized(rows.table.take(indices).combine_chunks())


def rotated(things: list[Any], turn: int) -> list[Any]:
    return things[turn % len(things) :] + things[: turn % len(things)]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return median(x / y for x, y in zip(ours, theirs, strict=True))


class Ends(hf.StoppingCriteria):
    """Ends each row of one ``generate`` batch at its own length."""

    def __init__(self, lengths: Sequence[int], start: int) -> None:
        self._lengths, self._start = torch.tensor(lengths, device=DEVICE), start

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Whether each row ends here."""
        return input_ids.shape[1] - self._start >= self._lengths


def length_of(ids: Sequence[int]) -> int:
    """How many tokens a row writes, by its prompt: one of 20 rows runs to the limit, the others end after 60 to 100."""
    number = int.from_bytes(hashlib.sha256(str(list(ids)).encode()).digest()[:4], "big")
    return LIMIT if number % 20 == 0 else 60 + number // 20 % 41


def without_ends(student: Student) -> None:
    """Forbid the end token and the padding token: a model with random weights would end at random places."""
    banned = torch.tensor(sorted({student.tokenizer.eos_token_id, student.tokenizer.pad_token_id}), device=DEVICE)
    head: Any = student.model.get_output_embeddings()
    head.register_forward_hook(lambda _, __, logits: logits.index_fill_(-1, banned, -torch.inf))


def fcot_answers(student: Student, prompts: Sequence[Sequence[int]], lengths: Sequence[int], max_tokens: int) -> list[str]:
    rows = [DecodingPrompt(ids, LIMIT, halt=lambda written, n=n: len(written) >= n) for ids, n in zip(prompts, lengths, strict=True)]
    return [answer.text for answer in decode(student, rows, max_tokens=max_tokens)]


def generate_answers(student: Student, prompts: Sequence[Sequence[int]], lengths: Sequence[int], batch: int) -> tuple[list[str], int]:
    """Decode with ``generate`` in the order of the data; returns the texts and the number of computed tokens, rows times steps."""
    tokenizer, model = student.tokenizer, student.model.eval()
    seq2seq = student.architecture == "encoder_decoder"
    tokenizer.padding_side = "right" if seq2seq else "left"
    texts, computed = [], 0
    for first in range(0, len(prompts), batch):
        inputs = tokenizer.pad({"input_ids": prompts[first : first + batch]}, return_tensors="pt").to(DEVICE)
        ends = lengths[first : first + batch]
        start = 1 if seq2seq else inputs["input_ids"].shape[1]
        out: Any = model.generate(**inputs, max_new_tokens=LIMIT, do_sample=False, stopping_criteria=[Ends(ends, start)])  # type: ignore
        computed += out[:, start:].numel()
        texts += [str(tokenizer.decode(ids[:n], skip_special_tokens=True)) for ids, n in zip(out[:, start:].tolist(), ends, strict=True)]
    return texts, computed


def evaluation(arguments: argparse.Namespace, budgets: Sequence[int] = (32768,), batches: Sequence[int] = (32,)) -> None:
    for name in arguments.task:
        samples, test = rationales(arguments.data, name), test_questions(arguments.data, name)[: arguments.rows]
        for shape in arguments.model:
            student = build(shape, samples, arguments.width, arguments.layers, positions=2048)
            student.model.to(DEVICE)  # type: ignore[arg-type]
            without_ends(student)
            form = METHODS["fine_tune_cot"].formats[student.architecture]
            prompts, _ = encode_prompts(student, [form.prompt(question) for question in test], 512)
            print(f"\n{name}, {shape}: {student.model.num_parameters() / 1e6:.1f} M parameters, {len(prompts)} problems"
                  f" ({len(set(map(tuple, prompts)))} different), {DEVICE}")  # fmt: skip
            compare_decoding(student, prompts, arguments.turns, budgets, batches)


def compare_decoding(
    student: Student, prompts: Sequence[Sequence[int]], turns: int, budgets: Sequence[int], batches: Sequence[int]
) -> None:
    lengths = [length_of(ids) for ids in prompts]
    runs: dict[Any, Callable[..., Any]] = {("fcot", size): lambda *rows, size=size: fcot_answers(student, *rows, size) for size in budgets}
    runs |= {("generate", size): lambda *rows, size=size: generate_answers(student, *rows, size) for size in batches}
    for run in runs.values():
        run(prompts[:2], [8] * 2)  # warm-up
    seconds: dict[Any, list[float]] = {key: [] for key in runs}
    results: dict[Any, Any] = {}
    for turn in range(turns):
        for key in rotated(list(runs), turn):
            results[key], spent = timed(lambda key=key: runs[key](prompts, lengths))
            seconds[key].append(spent)
    ours, theirs = (min((key for key in runs if key[0] == side), key=lambda key: median(seconds[key])) for side in ("fcot", "generate"))
    texts, computed = results[theirs]
    same = sum(mine == other for mine, other in zip(results[ours], texts, strict=True))
    useful, measured = sum(lengths), ratio(seconds[theirs], seconds[ours])
    print(f"{lengths.count(LIMIT)} rows run to {LIMIT} tokens, the others stop at {mean(n for n in lengths if n < LIMIT):.0f};"
          f" fcot with {ours[1]} tokens at once, generate with batch {theirs[1]}; {turns} turns;"
          f" identical texts {same}/{len(texts)}, {len(set(texts))} different")  # fmt: skip
    head = ["fcot s", "generate s", "useful tokens", "generate's tokens", "allowed speed-up", "measured", "share of the allowed"]
    allowed = computed / useful
    table(head, [[median(seconds[ours]), median(seconds[theirs]), useful, computed, allowed, measured, measured / allowed]])


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    begun = now()
    return work(), now() - begun


def precision(arguments: argparse.Namespace) -> None:
    """Compare a trained student's answers in float32 and in bfloat16."""
    folder = arguments.student / "student" if (arguments.student / "student").is_dir() else arguments.student
    student, interface = load_student(str(folder)), read_interface(folder)
    student = replace(student, chat=interface.chat, model=student.model.to(DEVICE))  # type: ignore[arg-type]
    if arguments.data:
        problems = load_problems(TASKS[interface.task], str(arguments.data / "dataset" / f"{interface.task}.json"))[: arguments.n]
    else:
        problems = make_problems(TOY_TASKS[interface.task], arguments.n, seed=1000)
    questions = [interface.format.prompt(problem.question) for problem in problems]
    all_ids, _ = encode_prompts(student, questions, interface.max_prompt_tokens)
    answers, seconds = {}, {}
    for kind in (torch.float32, torch.bfloat16):
        cast = replace(student, model=copy.deepcopy(student.model).to(kind))  # type: ignore[arg-type]
        prompts = [DecodingPrompt(ids, interface.max_new_tokens) for ids in all_ids]
        texts, seconds[kind] = timed(lambda cast=cast, prompts=prompts: decode(cast, prompts, max_tokens=32768))
        answers[kind] = [(answer.text, interface.format.parse(answer.text, interface.rule)) for answer in texts]
    full, half = answers[torch.float32], answers[torch.bfloat16]
    texts, predictions = ([first[at] != second[at] for first, second in zip(full, half, strict=True)] for at in (0, 1))
    accuracies = [
        100 * mean(interface.rule.same(prediction, problem.answer) for (_, prediction), problem in zip(side, problems, strict=True))
        for side in (full, half)
    ]
    head = ["problems", "flipped texts", "flipped predictions", "share %", "accuracy % float32", "bf16", "seconds float32", "bf16"]
    table(head, [[len(problems), sum(texts), sum(predictions), 100 * mean(predictions), *accuracies, *seconds.values()]])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, tasks in (("training", ["svamp", "commonsense_qa"]), ("evaluation", ["svamp"]), ("gpu", ["svamp"])):
        subparser = commands.add_parser(name)
        subparser.add_argument("data", type=Path, nargs="?", help="not needed for --task toy_arithmetic")
        subparser.add_argument("--task", nargs="+", default=tasks)
        subparser.add_argument("--model", nargs="+", default=["t5", "gpt2"], choices=list(SHAPES))
        subparser.add_argument("--width", type=int, help="hidden size, for a model that is narrower than the real one")
        subparser.add_argument("--layers", type=int)
        subparser.add_argument("--turns", type=int, default=1 if name == "evaluation" else 3)
        subparser.add_argument("--steps", type=int, default=400 if name == "gpu" else 40, help="steps of 8 samples per side and turn")
        subparser.add_argument("--rows", type=int, help="problems of the test split; default: all")
        subparser.add_argument("--peak", type=float, help="bfloat16 FLOP/s of the device")
        subparser.add_argument("--batch-tokens", type=int, nargs="+", default=[4096, 16384, 65536])
    commands.add_parser("scaling").add_argument("--turns", type=int, default=3)
    subparser = commands.add_parser("precision")
    subparser.add_argument("student", type=Path, help="a run's folder or a student's")
    subparser.add_argument("--data", type=Path, help="for students of real tasks")
    subparser.add_argument("-n", type=int, default=1000)
    arguments = parser.parse_args()
    hf.logging.set_verbosity_error()
    from students_gpu import gpu
    from students_scaling import scaling

    functions = {"training": training, "evaluation": evaluation, "scaling": scaling, "precision": precision, "gpu": gpu}
    functions[arguments.command](arguments)


if __name__ == "__main__":
    main()
