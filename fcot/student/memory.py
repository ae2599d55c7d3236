"""Estimates the memory of a training without weights: the forward pass runs on fake tensors, which have shapes and no data."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fcot.base.machine import free_host_memory
from fcot.student.activations import checkpoint_activations
from fcot.student.forward import CHUNK, CHUNKED_FROM, GRADIENT_BYTES
from fcot.student.loading import Lora, Student, add_lora, build_without_weights

_PROCESS = 0.7e9  # bytes of Python with its libraries
# Float32 tensors of the logits' size that a divergence needs besides: the teacher's logits, log-probabilities of both models, its terms.
_DIVERGENCE_LOGITS = {"forward_kl": 7, "reverse_kl": 8, "jsd": 11}
_FULL_LOGITS = 3  # float32 tensors of the logits' size: the logits, their log-probabilities, their gradients


@dataclass(frozen=True)
class Memory:
    """The memory of a training step, in bytes.

    Attributes:
        state: Weights, their gradients and AdamW's state.
        activations: Tensors that autograd saves for the backward pass of one micro-batch, and the logits.
        teacher: Weights of the local teacher that the objective compares with, and the logits of the comparison; 0 without one.
    """

    state: float
    activations: float
    teacher: float = 0.0

    @property
    def total(self) -> float:
        """State, activations, teacher and the process itself."""
        return self.state + self.activations + self.teacher + _PROCESS


@lru_cache(maxsize=64)
def training_memory(
    source: str, revision: str | None, *, lora: Lora | None = None, rows: int, prompt: int, completion: int,
    precision: str = "32-true", gradient_checkpointing: bool = False, ranks: int = 1, sharded: bool = False,
) -> Memory:  # fmt: skip
    """Estimate the memory of one rank.

    Args:
        source: The student's hub id or folder; only its configuration and tokenizer are read.
        revision: Branch, tag or commit of the hub id; None: the main branch.
        lora: The student's adapters; None: all parameters are trained.
        rows: Samples of the rank's micro-batch.
        prompt: Tokens of a sample's prompt.
        completion: Tokens of a sample's completion.
        precision: Lightning's name of the precision, such as ``bf16-mixed``.
        gradient_checkpointing: Whether activations are recomputed in the backward pass instead of stored.
        ranks: Processes, one per device.
        sharded: Whether weights, gradients and optimizer state are sharded over the ranks (FSDP).

    Raises:
        FcotError: The tokenizer cannot be loaded, or peft is missing.
        OSError: The configuration cannot be loaded.
    """
    saved: set[Any] = set()  # storages, not tensors, so that views of one tensor count once
    with torch.device("meta"):  # peft moves its adapters between devices, which fails on fake tensors
        student = build_without_weights(source, revision)
        if lora is not None:
            student = add_lora(student, lora)
        n_parameters = sum(parameter.numel() for parameter in student.model.parameters())
        n_trained = sum(parameter.numel() for parameter in student.model.parameters() if parameter.requires_grad)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = student.model.to_empty(device="cpu").train()
        if gradient_checkpointing:
            checkpoint_activations(model, True)
        owned = {tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage() not in owned:
                saved.add(tensor.untyped_storage())
            return tensor

        first_state_only = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0][:1, :1],))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _autocast(precision):
            model(**_inputs(student, rows, prompt, completion), use_cache=False)
        first_state_only.remove()
        activations = sum(storage.nbytes() for storage in saved)
        if gradient_checkpointing:  # add the inputs of the layers, which are stored
            layers, tokens = student.model.config.num_hidden_layers, rows * (prompt + completion)
            activations += 4.0 * layers * tokens * student.model.config.hidden_size
    buckets = 4 * n_trained if ranks > 1 and not sharded else 0  # DDP's copies of the gradients
    state = 4 * n_parameters + 12 * n_trained + (2 * n_parameters if precision.endswith("mixed") else 0)
    return Memory((state / ranks if sharded else state) + buckets, activations + _logits(model, rows * completion))


@lru_cache(maxsize=64)
def teacher_memory(source: str, targets: int, divergence: str) -> float:
    """Bytes of a local teacher beside the student in training: its weights in float32, and what the divergence from it needs.

    Args:
        source: Hub id or folder; only its configuration is read.
        targets: Target tokens of a micro-batch.
        divergence: ``forward_kl``, ``reverse_kl`` or ``jsd``.

    Raises:
        OSError: The configuration cannot be loaded.
    """
    with torch.device("meta"):
        model = build_without_weights(source, None).model
        logits = targets * model.get_output_embeddings().weight.shape[0]  # type: ignore[operator,union-attr]
        if logits >= CHUNKED_FROM:
            logits = CHUNK
        return 4.0 * (model.num_parameters() + _DIVERGENCE_LOGITS[divergence] * logits)  # type: ignore[operator]


def _logits(model: Any, targets: int) -> float:
    """Bytes of the logits and of the loss's copies of them, computed at once or in chunks (:mod:`fcot.student.forward`)."""
    head = model.get_output_embeddings()
    logits = targets * head.weight.shape[0]
    if type(head) is torch.nn.Linear and logits >= CHUNKED_FROM:
        return 4.0 * CHUNK + min(4.0 * logits, GRADIENT_BYTES)
    return 4.0 * _FULL_LOGITS * logits


def _inputs(student: Student, rows: int, prompt: int, completion: int) -> dict[str, torch.Tensor]:
    if student.architecture == "encoder_decoder":
        inputs, answers = torch.zeros(rows, prompt, dtype=torch.long), torch.zeros(rows, completion, dtype=torch.long)
        return {"input_ids": inputs, "attention_mask": torch.ones_like(inputs), "decoder_input_ids": answers}
    inputs = torch.zeros(rows, prompt + completion, dtype=torch.long)
    return {"input_ids": inputs, "attention_mask": torch.ones_like(inputs)}


def _autocast(precision: str) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if precision.endswith("mixed") else contextlib.nullcontext()


def free_memory() -> float | None:
    """Free bytes of the first GPU; without a GPU, of the machine or its control group, whichever has less. None if unknown."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    return free_host_memory()
