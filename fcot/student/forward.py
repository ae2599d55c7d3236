"""A model's forward pass for objectives: logits or hidden states at target positions only, and states that represent texts."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from fcot.student.activations import checkpoint_activations, checkpoints_activations
from fcot.student.tensors import Batch

# A micro-batch with this many logits or more is computed in chunks: they are 256 MiB in float32, and a loss holds three copies of them.
CHUNKED_FROM = 1 << 26
CHUNK = 1 << 25  # logits of one chunk
GRADIENT_BYTES = 1 << 29  # largest size of the logits' gradients that exist at once


class Forward:
    """Computes a model's logits at the targets of a batch, and the hidden states that its output head reads.

    Only hidden states at target positions go through the output head, the most expensive layer. Self-reflection also uses these states.

    A hook on the head selects the states, because models differ in what they do around the head (scales, caps). The hook stays
    registered until :meth:`remove`: ``torch.compile`` would compile again whenever a hook changes.

    Args:
        model: A language model of transformers.
        compile: Whether the forward pass is compiled.
    """

    def __init__(self, model: Any, compile: bool = False) -> None:
        self._positions: torch.Tensor | None = None
        self._states: list[torch.Tensor] | None = None  # if not None, the hook appends the selected states
        self._handle = model.get_output_embeddings().register_forward_pre_hook(self._select)
        self._model = model
        plain = type(model.get_output_embeddings()) is torch.nn.Linear and not compile
        self._linear: bool | None = None if plain else False  # whether the logits are the head's unchanged output; None: not known yet
        self._encoder_decoder = bool(model.config.is_encoder_decoder)
        self._forward = torch.compile(self._run, dynamic=True) if compile else self._run

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Logits at the targets of a batch, (targets, vocabulary), in float32."""
        try:
            return self._forward(batch["inputs"], batch["positions"])
        finally:
            self._positions = None

    def head_inputs(self, batch: Batch) -> tuple[torch.Tensor, torch.nn.Linear] | None:
        """Hidden states at the targets of a batch, and the output head: for a loss that computes the logits in chunks.

        Returns:
            The states, (targets, width), and the linear head. None if the batch has few logits, if the model changes the head's
            output (Gemma 2 caps it), or if the head cannot be applied alone (adapters, sharded parameters, compiled models, 16-mixed).
        """
        head = self._model.get_output_embeddings()
        if self._linear is False or isinstance(head.weight, DTensor) or autocast_type(head.weight) == torch.float16:
            return None
        if len(batch["targets"]) * head.weight.shape[0] < CHUNKED_FROM:
            return None
        try:
            self._positions, self._states = batch["positions"], []
            logits = self._model(**batch["inputs"], use_cache=False).logits[0]  # the hook lets only the first target through
            states = self._states[0]
        finally:
            self._positions = self._states = None
        if self._linear is None and logits.any():  # logits that are all 0 (padding) would be equal in any model
            with torch.no_grad():
                self._linear = torch.equal(logits, head(states[:1]))
        return (states, head) if self._linear else None

    def text_states(self, texts: Batch, per_question: int) -> torch.Tensor:
        """Represent texts that follow questions: each by the mean of its hidden states, (texts, width), in float32.

        The questions get no gradient, as in paper B's code: their keys and values, or their encoder states, are computed without one.

        Args:
            texts: ``prefix``: the model's keyword arguments for the questions, (questions, length); ``texts``: those for the texts
                that follow, (texts, length); ``positions``: where in the flattened texts a state is read; ``owners``: the text
                that each position belongs to.
            per_question: Number of texts per question; the texts of a question are adjacent.
        """
        model, checkpoints = self._model, checkpoints_activations(self._model)
        if checkpoints:  # recomputed activations would miss the questions' keys and values
            checkpoint_activations(model, False)
        try:
            self._positions = texts["positions"][:1] * 0  # one logit: the questions' logits are not used
            cached = not self._encoder_decoder
            with torch.no_grad():
                questions = model(**texts["prefix"], past_key_values=DynamicCache() if cached else None, use_cache=cached)
            context: dict[str, Any]
            if self._encoder_decoder:
                encoded = questions.encoder_last_hidden_state.repeat_interleave(per_question, 0)
                context = {"encoder_outputs": BaseModelOutput(last_hidden_state=encoded), "use_cache": False}
            else:
                questions.past_key_values.batch_repeat_interleave(per_question)
                context = {"past_key_values": questions.past_key_values, "use_cache": True}
            self._positions, self._states = texts["positions"], []
            logits = model(**texts["texts"], **context).logits
            # FSDP gathers the root's parameters for the backward pass when a gradient reaches the model's output: keep it in the graph.
            states, owners = self._states[0].float() + 0 * logits.sum(), texts["owners"]
        finally:
            self._positions = self._states = None
            if checkpoints:
                checkpoint_activations(model, True)
        n = len(texts["prefix"]["input_ids"]) * per_question
        return states.new_zeros(n, states.shape[1]).index_add(0, owners, states) / owners.bincount(minlength=n)[:, None]

    def remove(self) -> None:
        """Remove the hook from the model."""
        self._handle.remove()

    def _run(self, inputs: dict[str, Any], positions: torch.Tensor) -> torch.Tensor:
        self._positions = positions
        return self._model(**inputs, use_cache=False).logits[0].float()  # type: ignore[no-any-return]

    def _select(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if self._positions is None:  # the model is decoding, between two steps
            return inputs
        states = inputs[0].flatten(0, 1)[self._positions]
        if self._states is None:
            return (states[None],)
        self._states.append(states)
        return (states[None, :1],)


def autocast_type(tensor: torch.Tensor) -> torch.dtype | None:
    """The type of products with a tensor under autocast; None without autocast."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
