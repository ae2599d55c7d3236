"""Loads a transformers model, and rejects checkpoints with missing weights or values that are not finite.

Without these checks ``from_pretrained`` fills missing weights with random values and only warns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from fcot.base.console import say
from fcot.base.errors import FcotError
from fcot.base.hub import hub_access

_MAX_LISTED = 4  # tensors in a message
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # narrower types belong to quantized models


def load_tokenizer_alone(source: str, revision: str | None = None) -> Any:
    """Load a tokenizer as it is, without a model's configuration.

    Args:
        source: Hub id or folder.
        revision: Branch, tag or commit of the hub id; None: the main branch.

    Raises:
        OSError, ValueError: There is none, or the hub cannot be reached.
    """
    with hub_access(source):
        return AutoTokenizer.from_pretrained(source, revision=revision)


def load_whole(kind: Any, source: str, *, name: str, **options: Any) -> Any:
    """Load a model, and make sure that all of its weights come from its checkpoint.

    Weights that the model shares (T5's embeddings, a tied output head) need not be in the checkpoint.

    Args:
        kind: Auto class of transformers, such as ``AutoModelForCausalLM``.
        source: Hub id or folder.
        name: Name of the model in messages, such as ``student.path=FOLDER``.
        options: Arguments of ``from_pretrained``.

    Raises:
        FcotError: Weights are missing, have another shape, or are not finite; or the source holds an adapter.
        OSError, ValueError, RuntimeError, SafetensorError: transformers cannot load the model.
    """
    if (Path(source) / "adapter_config.json").is_file():
        raise _adapter(name)
    logging.disable_progress_bar()  # fcot shows its own progress
    with hub_access(source):
        model, report = kind.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise _adapter(name)
    check_complete(name, {*report["missing_keys"], *_lost_head(model, source, options.get("revision"))}, report["mismatched_keys"])
    if extra := report["unexpected_keys"]:
        say(f"warning: {name}: the model does not use {_listed(extra)} of its checkpoint: not loaded")
    if (broken := not_finite(model.state_dict())) is not None:
        raise FcotError(f"{name}: the tensor {broken} has values that are not finite (inf or nan); use another checkpoint")
    return model


def check_complete(name: str, missing: Iterable[str], mismatched: Iterable[tuple[str, Any, Any]]) -> None:
    """Reject a checkpoint that does not fill its model.

    Args:
        name: Name of the model in messages.
        missing: Names of tensors that the checkpoint lacks.
        mismatched: Tensors with another shape: name, shape in the checkpoint, shape in the model.

    Raises:
        FcotError: Tensors are missing or mismatched.
    """
    shapes = [f"{key} ({_shape(stored)}, the model needs {_shape(needed)})" for key, stored, needed in mismatched]
    if missing := sorted(missing):
        raise FcotError(
            f"{name}: the checkpoint lacks {_listed(missing)} of its model; "
            "check that config.json belongs to these weights and that their names have no prefix (such as module.)"
        )
    if shapes:
        raise FcotError(
            f"{name}: tensors of the checkpoint have other shapes than in the model: {_some(sorted(shapes))}; "
            "check that config.json belongs to these weights"
        )


def check_same(name: str, model: Mapping[str, torch.Tensor], checkpoint: Mapping[str, torch.Tensor]) -> None:
    """Reject a checkpoint whose tensors differ from a model's in name or shape.

    Args:
        name: Name of the checkpoint in messages.
        model: The model's tensors by name.
        checkpoint: The checkpoint's tensors by name.

    Raises:
        FcotError: Names or shapes differ.
    """
    shapes = {key: (checkpoint[key].shape, tensor.shape) for key, tensor in model.items() if key in checkpoint}
    mismatched = [(key, stored, needed) for key, (stored, needed) in shapes.items() if stored != needed]
    check_complete(name, model.keys() - checkpoint.keys(), mismatched)
    if extra := checkpoint.keys() - model.keys():
        raise FcotError(f"{name}: the model does not have {_listed(extra)} of the checkpoint")


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the first tensor with a value that is inf or nan; None if all are finite."""
    floats = {name: tensor for name, tensor in tensors.items() if tensor.dtype in _FLOATS and tensor.numel()}
    if all_finite(list(floats.values())):
        return None
    return next(name for name, tensor in floats.items() if not bool(tensor.isfinite().all()))


def all_finite(tensors: list[torch.Tensor]) -> bool:
    """Whether all values are finite; computed in one reduction per device and type."""
    largest = torch._foreach_norm(tensors, ord=torch.inf) if tensors else ()
    return not largest or bool(torch.stack([value.float().cpu() for value in largest]).isfinite().all())


def _lost_head(model: Any, source: str, revision: str | None) -> list[str]:
    """The name of an untied output head that the checkpoint lacks: transformers silently uses T5's input embeddings instead."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    stored_config, _ = model.config.get_config_dict(source, revision=revision)
    untied = stored_config.get("tie_word_embeddings", True) is False
    return ["lm_head.weight"] if untied and head is not None and getattr(head, "weight", None) is embeddings.weight else []


def _adapter(name: str) -> FcotError:
    return FcotError(
        f"{name} holds an adapter, not a whole model: merge it into its model with peft (merge_and_unload, then save_pretrained) and "
        "point to that folder"
    )


def _listed(names: Collection[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({_some(sorted(names))})"


def _some(items: list[str]) -> str:
    return ", ".join([*items[:_MAX_LISTED], *(["..."] if len(items) > _MAX_LISTED else [])])


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
