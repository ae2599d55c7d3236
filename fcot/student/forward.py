"""A model's forward pass as objectives need it: logits or states at target positions only, and states of texts."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from fcot.student.activations import checkpoint_activations, checkpoints_activations
from fcot.student.tensors import Batch

CHUNKED_FROM = 1 << 26  # logits of a micro-batch: a quarter of a gigabyte in float32, which a loss needs three times over
CHUNK = 1 << 25  # logits at once
GRADIENT_BYTES = 1 << 29  # of gradients of logits at once


class Forward:
    """A model's logits where a batch has targets: only hidden states at target positions go through the head, the most expensive layer.

    And those states themselves, for self-reflection: what the head reads is the last layer's state.

    By a hook, because what models do around the head differs (scales, caps) and stays theirs; and by one for good, because
    ``torch.compile`` takes a new one for a new model. :meth:`remove` takes it off.

    Args:
        model: A language model of transformers.
        compile: Whether the forward pass is compiled.
    """

    def __init__(self, model: Any, compile: bool = False) -> None:
        self._positions: torch.Tensor | None = None
        self._reads: list[torch.Tensor] | None = None  # where a list, the states go in there
        self._handle = model.get_output_embeddings().register_forward_pre_hook(self._select)
        self._model = model
        plain = type(model.get_output_embeddings()) is torch.nn.Linear and not compile
        self._linear: bool | None = None if plain else False  # whether the logits are the head's, as they are; None: not known yet
        self._encodes = bool(model.config.is_encoder_decoder)
        self._forward = torch.compile(self._run, dynamic=True) if compile else self._run

    def __call__(self, batch: Batch) -> torch.Tensor:
        """(targets, vocabulary), in float32."""
        try:
            return self._forward(batch["inputs"], batch["positions"])
        finally:
            self._positions = None

    def head_inputs(self, batch: Batch) -> tuple[torch.Tensor, torch.nn.Linear] | None:
        """What the head reads at the targets of a batch, and the head: for a loss that computes a part of the logits at a time.

        Returns:
            (targets, width) and the linear head; None for a batch whose logits are few, and where the model does more with its
            logits than its linear head (Gemma 2 caps them) or the head cannot be taken by itself (adapters, sharded weights,
            compiled models, 16-mixed).
        """
        head = self._model.get_output_embeddings()
        if self._linear is False or isinstance(head.weight, DTensor) or autocast_type(head.weight) == torch.float16:
            return None
        if len(batch["targets"]) * head.weight.shape[0] < CHUNKED_FROM:
            return None
        try:
            self._positions, self._reads = batch["positions"], []
            logits = self._model(**batch["inputs"], use_cache=False).logits[0]  # of one target
            states = self._reads[0]
        finally:
            self._positions = self._reads = None
        if self._linear is None and logits.any():  # of a padding token all are 0, whatever is done with them
            with torch.no_grad():
                self._linear = torch.equal(logits, head(states[:1]))
        return (states, head) if self._linear else None

    def text_states(self, texts: Batch, per_question: int) -> torch.Tensor:
        """The states that represent some texts behind questions, (texts, width), in float32: each the mean of the states at its places.

        The questions before them stand under stop-gradient, as in paper B's code: their keys and values, or their encoder
        states, are computed without one.

        Args:
            texts: ``prefix``: the model's keyword arguments for the questions, (questions, length); ``texts``: for the texts
                behind them, (texts, length); ``positions``: where in the flattened texts a state is read; ``owners``: the text
                that each of those belongs to.
            per_question: How many texts stand behind each question, one after the other.
        """
        model, checkpoints = self._model, checkpoints_activations(self._model)
        if checkpoints:  # it would compute the texts without what stands before them
            checkpoint_activations(model, False)
        try:
            self._positions = texts["positions"][:1] * 0  # nobody wants these logits
            with torch.no_grad():
                before = model(**texts["prefix"], past_key_values=None if self._encodes else DynamicCache(), use_cache=not self._encodes)
            more: dict[str, Any]
            if self._encodes:
                encoded = before.encoder_last_hidden_state.repeat_interleave(per_question, 0)
                more = {"encoder_outputs": BaseModelOutput(last_hidden_state=encoded), "use_cache": False}
            else:
                before.past_key_values.batch_repeat_interleave(per_question)
                more = {"past_key_values": before.past_key_values, "use_cache": True}
            self._positions, self._reads = texts["positions"], []
            logits = model(**texts["texts"], **more).logits
            # FSDP gathers the root's weights for the backward pass when a gradient reaches the model's output: it has to be in the graph.
            read, owners = self._reads[0].float() + 0 * logits.sum(), texts["owners"]
        finally:
            self._positions = self._reads = None
            if checkpoints:
                checkpoint_activations(model, True)
        n = len(texts["prefix"]["input_ids"]) * per_question
        return read.new_zeros(n, read.shape[1]).index_add(0, owners, read) / owners.bincount(minlength=n)[:, None]

    def remove(self) -> None:
        """Leave the model as it was."""
        self._handle.remove()

    def _run(self, inputs: dict[str, Any], positions: torch.Tensor) -> torch.Tensor:
        self._positions = positions
        return self._model(**inputs, use_cache=False).logits[0].float()  # type: ignore[no-any-return]

    def _select(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if self._positions is None:  # decoding, between two steps
            return inputs
        states = inputs[0].flatten(0, 1)[self._positions]
        if self._reads is None:
            return (states[None],)
        self._reads.append(states)
        return (states[None, :1],)


def autocast_type(tensor: torch.Tensor) -> torch.dtype | None:
    """The type that products with a tensor have under autocast; None without it."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
