"""Activation checkpointing under the names that transformers gave it before and after 5.23, of which version 6 keeps the new ones only."""

from __future__ import annotations

from typing import Any


def checkpoints_activations(model: Any) -> bool:
    """Whether a model computes activations twice instead of keeping them."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def checkpoint_activations(model: Any, on: bool) -> None:
    """Switch it on or off."""
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{kind}_checkpointing_disable")()
