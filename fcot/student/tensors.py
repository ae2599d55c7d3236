"""Rectangular tensors from sequences of different lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

Batch = dict[str, Any]


def pad(sequences: Sequence[Sequence[Any]], value: int) -> torch.Tensor:
    """Stack sequences into a (batch, longest) int64 tensor, padded with ``value`` on the right."""
    width = max(map(len, sequences))
    return torch.tensor([[*sequence, *[value] * (width - len(sequence))] for sequence in sequences], dtype=torch.long)


def mask(sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """Attention mask of padded sequences, (batch, longest): 1 at a token, 0 at padding."""
    return pad([[1] * len(sequence) for sequence in sequences], 0)
