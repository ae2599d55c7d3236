"""Activation checkpointing. transformers renamed its methods in 5.23; version 6 has only the new names."""

from __future__ import annotations

from typing import Any


def checkpoints_activations(model: Any) -> bool:
    """Whether a model recomputes activations in the backward pass instead of storing them."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def checkpoint_activations(model: Any, on: bool) -> None:
    """Switch activation checkpointing of a model on or off."""
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{kind}_checkpointing_disable")()
