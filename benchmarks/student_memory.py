"""The parameters and the memory of the students in ``conf/student``, for ``fcot/student/catalogue.py``; no network is needed.

    python benchmarks/student_memory.py            # all of them, about two minutes
    python benchmarks/student_memory.py t5_small   # one of them

A configuration and a random tokenizer stand for each hub model. Memory is that of :func:`fcot.student.memory.training_memory`, in float32.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import GPT2Config, LlamaConfig, Qwen3Config, T5Config

from fcot.student.loading import build_without_weights, train_tokenizer
from fcot.student.memory import training_memory

PROMPT, COMPLETION = 128, 160  # tokens of a sample
FEW, MANY = 4, 32  # samples of a micro-batch


def t5(width: int, inner: int, layers: int, heads: int, flan: bool) -> T5Config:
    """A T5; ``flan``: version 1.1, with gated activations and an output head of its own."""
    return T5Config(
        d_model=width, d_ff=inner, num_layers=layers, num_decoder_layers=layers, num_heads=heads, d_kv=64, vocab_size=32128,
        feed_forward_proj="gated-gelu" if flan else "relu", tie_word_embeddings=not flan, decoder_start_token_id=0,
    )  # fmt: skip


CONFIGS: dict[str, Any] = {  # as at the hub
    "t5_small": lambda: t5(512, 2048, 6, 8, False),
    "t5_base": lambda: t5(768, 3072, 12, 12, False),
    "t5_large": lambda: t5(1024, 4096, 24, 16, False),
    "flan_t5_small": lambda: t5(512, 1024, 8, 6, True),
    "flan_t5_base": lambda: t5(768, 2048, 12, 12, True),
    "flan_t5_large": lambda: t5(1024, 2816, 24, 16, True),
    "gpt2": lambda: GPT2Config(n_embd=768, n_layer=12, n_head=12),
    "gpt2_medium": lambda: GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "gpt2_large": lambda: GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "smollm2_135m": lambda: LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, vocab_size=49152,
        tie_word_embeddings=True,
    ),
    "qwen3_0_6b": lambda: Qwen3Config(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        vocab_size=151936, tie_word_embeddings=True,
    ),
    "llama3_2_1b": lambda: LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
        vocab_size=128256, tie_word_embeddings=True,
    ),
}  # fmt: skip


def measure(name: str, folder: Path) -> tuple[int, float, float]:
    """A student's parameters, and the bytes to train it with ``FEW`` and ``MANY`` samples at once."""
    CONFIGS[name]().save_pretrained(folder)
    train_tokenizer(["one two three"], 300).save_pretrained(folder)
    model = build_without_weights_on_meta(folder)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    few, many = (
        training_memory(str(folder), None, rows=rows, prompt=PROMPT, completion=COMPLETION).total for rows in (FEW, MANY)
    )  # fmt: skip
    return n_parameters, few, many


def build_without_weights_on_meta(folder: Path) -> Any:
    """The model of a folder, without memory for its weights."""
    import torch

    with torch.device("meta"):
        return build_without_weights(str(folder), None).model


def main() -> None:
    """Print a line per student."""
    print(f"{'student':<16}{'parameters':>14}{f'train {FEW}, GB':>14}{f'train {MANY}, GB':>15}{'KB per token':>14}")
    for name in sys.argv[1:] or CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            parameters, few, many = measure(name, Path(folder))
        per_token = (many - few) / ((MANY - FEW) * (PROMPT + COMPLETION))
        print(f"{name:<16}{parameters:>14,}{few / 1e9:>14.1f}{many / 1e9:>15.1f}{per_token / 1e3:>14.0f}", flush=True)


if __name__ == "__main__":
    main()
