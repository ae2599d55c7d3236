"""Small students with random weights, of the real transformers classes: in memory, or saved in a folder like those of the hub."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)  # fmt: skip

from fcot.methods.table import METHODS
from fcot.student.forward import Forward
from fcot.student.loading import Student, train_tokenizer
from fcot.student.tokenization import Tokenized, tokenize
from fcot.tasks.toy import TOY_TASKS, make_problems

TEXTS = [
    text
    for name, task in TOY_TASKS.items()
    for problem in make_problems(task, 30, seed=7)
    for text in (problem.question + " ###", f"{task.rationale(problem.question, problem.sample_index, None)} --> {problem.answer}")
]
ENCODER_DECODERS = ("t5", "flan_t5")
DECODERS = ("gpt2", "llama", "qwen2", "qwen3", "mistral", "gemma3")
_MODERN = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 12}),
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8, "tie_word_embeddings": False},
    ),
}


@cache
def tokenizer() -> Any:
    """Tokenizer of all students that are not loaded from a folder."""
    return train_tokenizer(TEXTS, 350)


def make_student(family: str, *, dropout: float = 0.0, positions: int = 512, noise: float = 0.3) -> Student:
    """A student of a family, in evaluation mode; the weights are large enough that answers differ."""
    return copy.deepcopy(_build(family, dropout, positions, noise))


@cache
def _build(family: str, dropout: float, positions: int, noise: float) -> Student:
    ids = {"pad_token_id": tokenizer().pad_token_id, "eos_token_id": tokenizer().eos_token_id, "bos_token_id": tokenizer().eos_token_id}
    common = {"vocab_size": len(tokenizer()), **ids}
    torch.manual_seed(0)
    model: Any
    if family in ENCODER_DECODERS:
        gated = family == "flan_t5"
        model = T5ForConditionalGeneration(T5Config(
            **common, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=dropout, tie_word_embeddings=not gated,
            feed_forward_proj="gated-gelu" if gated else "relu", decoder_start_token_id=tokenizer().pad_token_id,
        ))  # fmt: skip
    elif family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(
            **common, n_positions=positions, n_embd=32, n_layer=2, n_head=4, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
        ))  # fmt: skip
    else:
        config_class, model_class, options = _MODERN[family]
        model = model_class(config_class(
            **common, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=positions, attention_dropout=dropout, **options,
        ))  # fmt: skip
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * noise)
    return Student(model.eval(), tokenizer(), "encoder_decoder" if family in ENCODER_DECODERS else "decoder")


def make_samples(student: Student, n: int) -> list[tuple[str, str]]:
    """(question, completion) pairs of very different lengths, from two toy tasks."""
    form = METHODS["fine_tune_cot"].formats[student.architecture]
    samples = []
    for name in ("toy_arithmetic", "toy_last_letter"):
        for problem in make_problems(TOY_TASKS[name], -(-n // 2), seed=3):
            rationale = TOY_TASKS[name].rationale(problem.question, problem.sample_index, None)[: 8 + 9 * problem.sample_index]
            question = " ".join(problem.question.split()[-2 - 2 * (problem.sample_index % 7) :])
            samples.append((question, form.completion(problem.answer, rationale)))
    return samples[:n]


def make_rows(student: Student, n: int, limit: int = 48) -> Tokenized:
    """The samples of ``make_samples`` as token ids."""
    form = METHODS["fine_tune_cot"].formats[student.architecture]
    return tokenize(student, form, make_samples(student, n), max_prompt=limit, max_completion=limit)


def weights_of(student: Student) -> torch.Tensor:
    """All trained parameters in one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in student.model.parameters() if parameter.requires_grad])


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


def save_gpt2(folder: Path, chat_template: str | None = None) -> Path:
    """A GPT-2; like the real one it has no padding token."""
    torch.manual_seed(0)
    tokenizer = GPT2Tokenizer().train_new_from_iterator(TEXTS, 400)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=1024, n_embd=32, n_layer=2, n_head=4,
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return folder


def logits_at_targets(model, batch):
    """Logits at the targets of a batch, as training computes them; afterwards the model is as before."""
    head = Forward(model)
    try:
        return head(batch)
    finally:
        head.remove()


def logits_by_token(model, student, row):
    """The logits that predict each token of a completion: one forward pass per token, with no code of the package."""
    for i in range(len(row.completion)):
        if student.architecture == "encoder_decoder":
            before = torch.tensor([[student.tokenizer.pad_token_id, *row.completion[:i]]])
            yield model(input_ids=torch.tensor([row.prompt]), decoder_input_ids=before).logits[0, -1]
        else:
            yield model(input_ids=torch.tensor([[*row.prompt, *row.completion[:i]]])).logits[0, -1]
