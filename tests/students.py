"""Small students of the real classes with random weights, saved as transformers saves them: what a hub folder looks like."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer, T5Config, T5ForConditionalGeneration, T5Tokenizer

from fcot.tasks.toy import TOY_TASKS, make_problems

TEXTS = [
    text
    for name, task in TOY_TASKS.items()
    for problem in make_problems(task, 30, seed=7)
    for text in (problem.question + " ###", f"{task.rationale(problem.question, problem.sample_index, None)} --> {problem.answer}")
]


def save_t5(folder: Path, gated: bool = False) -> Path:
    """A T5 (or with ``gated`` a Flan-T5 shape: gated GELU, untied head); its vocabulary has neither braces nor backslash."""
    torch.manual_seed(0)
    tokenizer = T5Tokenizer().train_new_from_iterator(TEXTS, 300)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.1,
        feed_forward_proj="gated-gelu" if gated else "relu", tie_word_embeddings=not gated,
        decoder_start_token_id=tokenizer.pad_token_id, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_gpt2(folder: Path) -> Path:
    """A GPT-2; like the real one it has no padding token."""
    torch.manual_seed(0)
    tokenizer = GPT2Tokenizer().train_new_from_iterator(TEXTS, 400)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=1024, n_embd=32, n_layer=2, n_head=4,
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
