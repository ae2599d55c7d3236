"""Training losses."""

from __future__ import annotations

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from fcot.prompts.student import Architecture
from fcot.student.tokenization import IGNORED


def completion_loss(model: PreTrainedModel, batch: dict[str, torch.Tensor], architecture: Architecture) -> tuple[torch.Tensor, int]:
    """Cross-entropy over completion tokens, summed, and the number of those tokens.

    The caller divides by the tokens of the whole optimizer step, so that neither batch size nor neighbours change a
    sample's weight.

    Args:
        model: A causal or encoder-decoder language model.
        batch: As :func:`fcot.student.tokenization.collate` builds it.
        architecture: Decoders predict label t from position t - 1; encoder-decoders shift their own decoder input.

    Returns:
        A scalar (float32) and a count.
    """
    labels = batch["labels"]
    if architecture == "encoder_decoder":
        # The shifted labels themselves: given labels, the model would compute a loss of its own beside this one.
        shifted = model.prepare_decoder_input_ids_from_labels(labels)  # type: ignore[operator]
        logits = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], decoder_input_ids=shifted, use_cache=False
        ).logits
    else:
        labels = labels[:, 1:]
        wanted = (labels != IGNORED).any(dim=0).nonzero().squeeze(1)  # prompt positions need no logits: the head is the dearest layer
        labels = labels[:, wanted]
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, logits_to_keep=wanted).logits
    loss = functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return loss, int((labels != IGNORED).sum())
