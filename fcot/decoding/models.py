"""Loading a model of transformers: with all of its weights, each of them a number, or not at all.

``from_pretrained`` gives random values to weights that the checkpoint lacks, and says so in a warning.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from fcot.base.console import say
from fcot.base.errors import FcotError

_NAMED = 4  # tensors in a message
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # narrower ones are of quantized models


def load_whole(kind: Any, source: str, *, name: str, **options: Any) -> Any:
    """A model whose weights all come from its checkpoint.

    Weights that the model shares (T5's embeddings, a tied output head) may be absent.

    Args:
        kind: Auto class of transformers.
        source: Hub id or folder.
        name: The model in messages, such as ``student.path=FOLDER``.
        options: Of ``from_pretrained``.

    Raises:
        FcotError: Weights are missing, of another shape, or not finite; or it is an adapter.
        OSError, ValueError, RuntimeError, SafetensorError: As transformers raises them.
    """
    if (Path(source) / "adapter_config.json").is_file():
        raise _adapter(name)
    model, report = kind.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise _adapter(name)
    check_complete(name, {*report["missing_keys"], *_lost_head(model, source, options.get("revision"))}, report["mismatched_keys"])
    if extra := report["unexpected_keys"]:
        say(f"warning: {name}: the model has no place for {_listed(extra)} of its checkpoint: not loaded")
    if (broken := not_finite(model.state_dict())) is not None:
        raise FcotError(f"{name}: the tensor {broken} has values that are not finite (inf or nan); take a checkpoint without them")
    return model


def check_complete(name: str, missing: Iterable[str], mismatched: Iterable[tuple[str, Any, Any]]) -> None:
    """Reject a checkpoint that does not fill its model.

    Args:
        name: The model in messages.
        missing: Names of tensors that the checkpoint lacks.
        mismatched: Name, shape in the checkpoint and shape in the model.

    Raises:
        FcotError: There are any.
    """
    shapes = [f"{key} ({_shape(theirs)}, the model needs {_shape(ours)})" for key, theirs, ours in mismatched]
    if missing := sorted(missing):
        raise FcotError(
            f"{name}: the checkpoint lacks {_listed(missing)} of its model; "
            "check that config.json belongs to these weights and that their names have no prefix (such as module.)"
        )
    if shapes:
        raise FcotError(
            f"{name}: the checkpoint has other shapes than its model: {_some(sorted(shapes))}; config.json is not of these weights"
        )


def check_same(name: str, model: Mapping[str, torch.Tensor], checkpoint: Mapping[str, torch.Tensor]) -> None:
    """Reject tensors that do not fill, or do not belong to, those of a model.

    Raises:
        FcotError: Names or shapes differ.
    """
    shapes = {key: (checkpoint[key].shape, tensor.shape) for key, tensor in model.items() if key in checkpoint}
    check_complete(name, model.keys() - checkpoint.keys(), [(key, *both) for key, both in shapes.items() if both[0] != both[1]])
    if extra := checkpoint.keys() - model.keys():
        raise FcotError(f"{name}: the model has no place for {_listed(extra)} of the checkpoint")


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the first tensor with an infinite value or one that is no number, None without any."""
    floats = {name: tensor for name, tensor in tensors.items() if tensor.dtype in _FLOATS and tensor.numel()}
    if all_finite(list(floats.values())):
        return None
    return next(name for name, tensor in floats.items() if not bool(tensor.isfinite().all()))


def all_finite(tensors: list[torch.Tensor]) -> bool:
    """Whether all values are finite, in one reduction over the tensors of each device and type."""
    largest = torch._foreach_norm(tensors, ord=torch.inf) if tensors else ()
    return not largest or bool(torch.stack([value.float().cpu() for value in largest]).isfinite().all())


def _lost_head(model: Any, source: str, revision: str | None) -> list[str]:
    """An output head of its own that the checkpoint lacks: transformers puts T5's input embeddings in its place without a word."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    written, _ = model.config.get_config_dict(source, revision=revision)
    untied = written.get("tie_word_embeddings", True) is False
    return ["lm_head.weight"] if untied and head is not None and getattr(head, "weight", None) is embeddings.weight else []


def _adapter(name: str) -> FcotError:
    return FcotError(
        f"{name} holds an adapter, not a whole model: merge it into its model with peft (merge_and_unload, then save_pretrained) and "
        "point to that folder"
    )


def _listed(names: Collection[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({_some(sorted(names))})"


def _some(items: list[str]) -> str:
    return ", ".join([*items[:_NAMED], *(["..."] if len(items) > _NAMED else [])])


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
