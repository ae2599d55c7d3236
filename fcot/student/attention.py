"""Attention over packed samples: several samples in one row, where no sample attends to another."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED = "fcot_packed"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: list[int] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each segment of a single row; without ``segments``, the attention of transformers.

    A mask over the whole row would compute the scores of all pairs of tokens from different samples, and then discard them.

    Args:
        module: The model's attention layer.
        query: Queries, (1, heads, tokens, width).
        key: Keys, (1, key heads, tokens, width); the number of heads is a multiple of the number of key heads.
        value: Values, (1, key heads, tokens, width).
        attention_mask: Used only without ``segments``, for the attention of transformers.
        scaling: Factor of the scores; None: one over the square root of the width.
        dropout: Dropout rate of the attention weights.
        segments: Number of tokens of each sample, in order; None: the rows are not packed.
        **options: Passed to the attention of transformers.

    Returns:
        The attention's output, (1, tokens, heads, width), and None instead of the attention weights.
    """
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **options)  # type: ignore[no-any-return]
    groups = query.shape[1] // key.shape[1]
    parts = zip(*(tensor.split(segments, dim=2) for tensor in (query, repeat_kv(key, groups), repeat_kv(value, groups))), strict=True)
    heads = [functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling) for q, k, v in parts]
    return torch.cat(heads, dim=2).transpose(1, 2).contiguous(), None


def allow_packing(model: PreTrainedModel) -> None:
    """Make a decoder accept packed rows besides ordinary ones. Each of its layers must attend to all earlier tokens."""
    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, sdpa_mask)
    model.set_attn_implementation(PACKED)
