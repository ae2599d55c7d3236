"""The cache of keys and values of a batch whose rows change. All rows end at the right edge; columns before a row's start are masked."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache

_SPARE = 64  # columns that are allocated in advance: a new buffer per token would copy the whole cache for every token


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, (rows, heads, columns, width), as windows of buffers with spare columns on the right."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Append columns of keys and values; returns all keys and all values of the layer."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._set(key_states, value_states)
            return self.keys, self.values  # type: ignore[return-value]
        n = key_states.shape[2]
        if self._end + n > self._buffers[0].shape[2]:
            self._set(self.keys, self.values)  # type: ignore[arg-type]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._end : self._end + n] = states
        self._show(self._begin, self._end + n)
        return self.keys, self.values  # type: ignore[return-value]

    def select(self, rows: torch.Tensor, columns: slice) -> None:
        """Keep only the rows with these numbers, and only this window of their columns."""
        self._set(self.keys[rows][:, :, columns], self.values[rows][:, :, columns])  # type: ignore[index]

    def drop(self, row: int, n: int) -> None:
        """Remove the last columns of one row: its other columns move to the right edge, and the ``n`` columns on the left mean nothing."""
        for states in (self.keys, self.values):
            states[row, :, n:] = states[row, :, :-n].clone()  # type: ignore[index]

    def join(self, other: GrowingLayer) -> None:
        """Append another layer's rows below this layer's; the narrower layer is padded on the left."""
        width = max(self.get_seq_length(), other.get_seq_length())
        pairs: Any = ((self.keys, other.keys), (self.values, other.values))
        self._set(*(torch.cat([widened(upper, width), widened(lower, width)]) for upper, lower in pairs))

    def _set(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        n = keys.shape[2]
        self._buffers = [torch.empty((*states.shape[:2], n + _SPARE, states.shape[3]), dtype=states.dtype, device=states.device)
                         for states in (keys, values)]  # fmt: skip
        for buffer, states in zip(self._buffers, (keys, values), strict=True):
            buffer[:, :, :n] = states
        self._show(0, n)

    def _show(self, begin: int, end: int) -> None:
        self._begin, self._end = begin, end
        self.keys, self.values = (buffer[:, :, begin:end] for buffer in self._buffers)


def widened(states: torch.Tensor, columns: int) -> torch.Tensor:
    """Pad states (rows, heads, n, width) with zeros on the left to (rows, heads, columns, width)."""
    return torch.nn.functional.pad(states, (0, 0, columns - states.shape[2], 0))


def new_cache(encoder_decoder: bool) -> Any:
    """An empty cache for one batch of a decoder or of an encoder-decoder."""
    self_attention = Cache(layer_class_to_replicate=GrowingLayer)
    return EncoderDecoderCache(self_attention, Cache(layer_class_to_replicate=GrowingLayer)) if encoder_decoder else self_attention


def own_layers(cache: Any) -> list[Any]:
    """The self-attention layers: they hold the written tokens and, in decoders, the prompt."""
    return list(getattr(cache, "self_attention_cache", cache).layers)


def cross_layers(cache: Any) -> list[Any]:
    """The cross-attention layers: they hold an encoder-decoder's prompts; decoders have none."""
    return list(cache.cross_attention_cache.layers) if isinstance(cache, EncoderDecoderCache) else []
