"""Fine-tune-CoT in one file, to read beside section 3 of Ho, Schmid, Yun: "Large Language Models Are Reasoning Teachers" (ACL 2023).

    python examples/fine_tune_cot.py
    python examples/fine_tune_cot.py --completions multiarith.jsonl --model gpt2 --epochs 20 --batch-size 8 --lr 3e-4 --warmup-steps 0

The first command needs no download: a program writes rationales for toy arithmetic, and the student is a tiny GPT-2 from scratch,
which then solves about 85 % of the test problems. The second command takes a pretrained decoder and a teacher's completions (from a
file of the paper's authors: ``jq -c '.data[][]' D_multiarith.json > multiarith.jsonl``). Answers are numbers. Comments name the
modules of fcot with the full version of each step. ``tests/test_example.py`` checks that this file and fcot compute the same losses.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2Tokenizer, set_seed

from fcot.tasks.toy import TOY_TASKS, make_problems

PROMPT = "{question} ###"
COMPLETION = " {rationale} --> {answer}"  # the end-of-sequence token replaces the paper's " END". In fcot: fcot.prompts.student
IGNORED = -100  # label of a token that has no loss


def toy_completions(n_problems: int, diversity: int, error_rate: float, seed: int) -> list[dict[str, str]]:
    """Step 1, reasoning generation: instead of a teacher, a program solves toy problems, some of them wrongly.

    A real teacher is prompted twice (Zero-shot-CoT). "Q: {question}. A: Let's think step by step." elicits a rationale. The same
    text, followed by the rationale and "Therefore, the answer is", elicits an answer. In fcot: fcot.prompts.teacher. Diverse
    reasoning means several rationales per problem, which a real teacher samples at temperature 0.7. The keys of a row are those of the
    completion files that the authors released.
    """
    task, rng = TOY_TASKS["toy_arithmetic"], random.Random(seed)
    rows = []
    for problem in make_problems(task, n_problems, seed):
        for wording in rng.sample(range(task.n_wordings), diversity):
            rationale = task.rationale(problem.question, wording, rng if rng.random() < error_rate else None)
            row = {"reasoning_completion": rationale, "completion": f" {task.conclusion(rationale)}."}
            rows.append({"question": problem.question, "answer": problem.answer, **row})
    return rows


def read_number(text: str, last: bool = False) -> float:
    """The first or last number, rounded to six digits; nan, which equals nothing, without one. In fcot: fcot.prompts.answers."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
    return round(float(numbers[-1 if last else 0]), 6) if numbers else math.nan


def read_answer(text: str) -> float:
    """The answer in a student's text: the number behind the last "-->" that one follows; the last number where there is no "-->"."""
    _, *answers = text.split("-->")
    return next((n for n in map(read_number, reversed(answers)) if n == n), math.nan) if answers else read_number(text, last=True)


def curate(rows: Sequence[dict[str, str]]) -> list[tuple[str, str]]:
    """Step 2, curation: keep the completions that reach the gold answer, as pairs of prompt and completion.

    Only the answer is checked: a kept rationale may still be wrong. In fcot, with more filters: fcot.curation.filters.
    """
    kept = [row for row in rows if row["reasoning_completion"].strip() and read_number(row["completion"]) == read_number(row["answer"])]
    return [
        (PROMPT.format(question=row["question"]), COMPLETION.format(rationale=row["reasoning_completion"].strip(), answer=row["answer"]))
        for row in kept
    ]


def encode(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Input ids and labels of each sample. In fcot, with limits on their lengths: fcot.student.tokenization."""
    samples = []
    for prompt, completion in pairs:  # tokenized separately, because at inference a prompt is tokenized without its completion
        prompt_ids = tokenizer(prompt)["input_ids"]  # with a beginning-of-sequence token where the model has one
        completion_ids = [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        samples.append((torch.tensor(prompt_ids + completion_ids), torch.tensor([IGNORED] * len(prompt_ids) + completion_ids)))
    return samples


def train(
    model: Any, samples: Sequence[tuple[torch.Tensor, torch.Tensor]], batches: Sequence[Sequence[int]], lr: float, warmup_steps: int
) -> list[float]:
    """Step 3, fine-tuning: next-token prediction of the completions given their prompts; returns the loss of every step.

    The optimizer is AdamW. Its learning rate decays linearly to zero; during the warm-up it is multiplied by a factor that rises to 1.
    In fcot: fcot.student.training, fcot.student.module, fcot.objectives.completion.

    Args:
        model: A decoder of transformers, in float32; changed in place.
        samples: Input ids and labels of each sample.
        batches: Positions in ``samples``, for each optimizer step.
        lr: Peak learning rate.
        warmup_steps: Optimizer steps of the warm-up.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    losses: list[float] = []
    model.train()
    for step, batch in enumerate(batches):
        ids = pad_sequence([samples[i][0] for i in batch], batch_first=True).to(model.device)  # (samples, longest), padded on the right
        mask = pad_sequence([torch.ones_like(samples[i][0]) for i in batch], batch_first=True).to(model.device)
        labels = pad_sequence([samples[i][1] for i in batch], batch_first=True, padding_value=IGNORED).to(model.device)
        logits = model(input_ids=ids, attention_mask=mask).logits
        # A position predicts the next token. The mean is over the batch's completion tokens: prompts and padding are ignored.
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / max(1, warmup_steps)) * (1 - step / len(batches))
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 200 == 0 or step + 1 == len(batches):
            print(f"  step {step + 1:,} of {len(batches):,}: loss {losses[-1]:.3f}", flush=True)
    return losses


@torch.no_grad()
def decode(model: Any, tokenizer: Any, questions: Sequence[str], max_new_tokens: int, batch_size: int = 64) -> list[str]:
    """The student's completions, decoded greedily. In fcot, where waiting rows replace finished ones: fcot.student.decoding."""
    model.eval()
    texts: list[str] = []
    for start in range(0, len(questions), batch_size):
        prompts = [PROMPT.format(question=question) for question in questions[start : start + batch_size]]
        inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt").to(model.device)
        ids = model.generate(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=max_new_tokens, do_sample=False, num_beams=1,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        texts += tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def wilson_interval(n_correct: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion. In fcot, also over several seeds: fcot.evaluation.statistics."""
    z = 1.959964
    center = (n_correct + z**2 / 2) / (n + z**2)
    half = z * math.sqrt(n_correct * (n - n_correct) / n + z**2 / 4) / (n + z**2)
    return center - half, center + half


def load_student(name: str | None, texts: Sequence[str]) -> tuple[Any, Any]:
    """Model and tokenizer: pretrained, or a GPT-2 from scratch, its tokenizer trained on ``texts``. In fcot: fcot.student.loading."""
    if name is not None:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32), AutoTokenizer.from_pretrained(name)
    else:
        tokenizer = GPT2Tokenizer().train_new_from_iterator(texts, 600, show_progress=False)
        sizes = {"vocab_size": len(tokenizer), "n_positions": 512, "n_embd": 64, "n_layer": 2, "n_head": 4}  # as student=tiny_gpt2
        special = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
        model = GPT2LMHeadModel(GPT2Config(**sizes, **special, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # any token: the attention mask hides it
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all steps and print the accuracy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--completions", type=Path, help="JSON Lines: question, answer, reasoning_completion, completion")
    parser.add_argument("--model", help="name or folder of a pretrained decoder")
    integers = {"problems": 1200, "diversity": 4, "epochs": 8, "batch-size": 16, "warmup-steps": 200, "max-new-tokens": 256, "seed": 0}
    for name, default in {**integers, "lr": 5e-3}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"default: {default}")
    options = parser.parse_args(arguments)
    set_seed(options.seed)

    if options.completions:
        rows = [json.loads(line) for line in options.completions.read_text(encoding="utf-8").splitlines()]
    else:
        rows = toy_completions(options.problems, options.diversity, error_rate=0.1, seed=options.seed)
    answers = {row["question"]: row["answer"] for row in rows}
    rng = random.Random(options.seed)
    questions = rng.sample(sorted(answers), len(answers))
    test = questions[: round(0.3 * len(questions))]  # problems are split, not completions. In fcot, as in the papers: fcot.tasks.splits
    rows = [row for row in rows if row["question"] not in set(test)]
    pairs = curate(rows)
    if not pairs:
        parser.error("no completion has the gold answer as its first number")
    print(f"curation keeps {len(pairs):,} of {len(rows):,} completions ({len(pairs) / len(rows):.1%}). The first one:\n{''.join(pairs[0])}")

    model, tokenizer = load_student(options.model, [text for pair in pairs for text in pair])
    print(f"training {model.num_parameters():,} parameters on {options.epochs} epochs")
    orders = [rng.sample(range(len(pairs)), len(pairs)) for _ in range(options.epochs)]  # in fcot: fcot.student.batching
    batches = [order[i : i + options.batch_size] for order in orders for i in range(0, len(order), options.batch_size)]
    train(model, encode(tokenizer, pairs), batches, options.lr, options.warmup_steps)

    texts = decode(model, tokenizer, test, options.max_new_tokens)
    n_correct = sum(read_answer(text) == read_number(answers[question]) for question, text in zip(test, texts, strict=True))
    low, high = wilson_interval(n_correct, len(test))
    print(f"The answer to a test problem:\n{PROMPT.format(question=test[0])}{texts[0]}")
    print(f"accuracy {n_correct / len(test):.1%} (95 % interval {low:.1%} to {high:.1%}), {n_correct} of {len(test)} test problems")


if __name__ == "__main__":
    main()
