"""Attention over packed samples: several in one row, none of which sees another."""

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
    """Causal attention inside each of the segments of the single row; without ``segments`` transformers' own.

    A mask over the whole row would compute all pairs of tokens of different samples first, and then discard them.

    Args:
        module: The model's attention layer.
        query: (1, heads, tokens, width), as ``key`` and ``value``, which may have fewer heads.
        key: See there.
        value: See there.
        attention_mask: Says the same as ``segments``; not read with them.
        scaling: Of the scores.
        dropout: Of the weights.
        segments: Tokens of each sample.
        **options: For transformers' own.

    Returns:
        (1, tokens, heads, width), and no weights.
    """
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **options)  # type: ignore[no-any-return]
    groups = query.shape[1] // key.shape[1]
    parts = zip(*(tensor.split(segments, dim=2) for tensor in (query, repeat_kv(key, groups), repeat_kv(value, groups))), strict=True)
    heads = [functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling) for q, k, v in parts]
    return torch.cat(heads, dim=2).transpose(1, 2).contiguous(), None


def allow_packing(model: PreTrainedModel) -> None:
    """Let a decoder take packed rows; it goes on taking others. All its layers have to attend to everything before them."""
    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, sdpa_mask)
    model.set_attn_implementation(PACKED)
