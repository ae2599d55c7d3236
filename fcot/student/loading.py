"""Student models and their tokenizers: from the hub, from a folder, or small ones built from scratch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from fcot.base.errors import FcotError
from fcot.base.files import fingerprint
from fcot.base.hub import hub_access
from fcot.decoding.engine import end_tokens
from fcot.decoding.models import load_tokenizer_alone, load_whole, not_finite
from fcot.prompts.student import Architecture

PAD, EOS = "<pad>", "</s>"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class Student:
    """A model with its tokenizer.

    Attributes:
        model: A language model of transformers.
        tokenizer: The model's tokenizer.
        architecture: Encoder-decoder or decoder; decides the text format and the layout of batches.
        chat: Whether questions are formatted with the tokenizer's chat template.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    architecture: Architecture
    chat: bool = False

    @property
    def ends(self) -> list[int]:
        """The tokens that end an answer."""
        return end_tokens(self.tokenizer, self.model.generation_config)

    @property
    def positions(self) -> int | None:
        """Most tokens of prompt and completion together that the model has positions for; None: no limit."""
        return _positions(self.model.config)


def load_student(source: str, revision: str | None = None, chat: bool = False) -> Student:
    """Load model and tokenizer from a hub id or a local folder, in float32.

    Args:
        source: Hub id or folder.
        revision: Branch, tag or commit of the hub id; None: the main branch.
        chat: Whether questions are formatted with the tokenizer's chat template.

    Raises:
        FcotError: The source does not exist, the hub cannot be reached, or weights are missing or not finite
            (:func:`fcot.decoding.models.load_whole`).
    """
    try:
        config, tokenizer = _load_config_and_tokenizer(source, revision)
        check_fit(source, config, tokenizer)
        model = load_whole(_model_class(config), source, name=_display_name(source), revision=revision, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unavailable(source, error) from error
    # Drop the decoding options of the hub's folder (beams, repetition penalties): fcot sets them at each call.
    ends = end_tokens(tokenizer, model.generation_config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends if len(ends) > 1 else ends[0], pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=getattr(config, "decoder_start_token_id", None),
    )  # fmt: skip
    return Student(model, tokenizer, _architecture(config), chat)


@dataclass(frozen=True)
class Lora:
    """The settings of low-rank adapters.

    Attributes:
        rank: Rank of each adapter.
        alpha: Scale; an adapter's output is multiplied by alpha / rank.
        dropout: Dropout rate of an adapter's input.
        targets: Names of the layers; ``("all-linear",)``: every linear layer but the head; None: peft's choice for the family.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None


def add_lora(student: Student, lora: Lora) -> Student:
    """Add low-rank adapters (Hu et al. 2022) to a student; only they are trained.

    Raises:
        FcotError: peft is not installed, or it finds no layers to adapt.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise FcotError("student.lora needs peft: pip install 'fcot[lora]'") from error
    kind = "SEQ_2_SEQ_LM" if student.architecture == "encoder_decoder" else "CAUSAL_LM"
    targets = None if lora.targets is None else "all-linear" if lora.targets == ("all-linear",) else list(lora.targets)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type=kind,  # type: ignore[arg-type]
    )  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")  # peft sets this option itself for GPT-2's layers
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft reads its old name
            return replace(student, model=get_peft_model(student.model, config))  # type: ignore[arg-type]
    except ValueError as error:
        raise FcotError(f"student.lora.targets={lora.targets}: {str(error).strip().splitlines()[0]}") from error


def save_student(student: Student, folder: Path, max_new_tokens: int | None = None, weights: dict[str, Any] | None = None) -> None:
    """Write model and tokenizer in the format of transformers; adapters are merged into the weights.

    Args:
        student: The student.
        folder: Where the files are written.
        max_new_tokens: Limit of an answer in tokens, for the saved generation config; None: the config gets no limit.
        weights: All weights by name, if the model's own are sharded over ranks; None: the model's own are written.

    Raises:
        FcotError: A weight is not finite; nothing is written.
    """
    model: Any = student.model
    if hasattr(model, "merge_and_unload"):
        model = copy.deepcopy(model).merge_and_unload()
    if (broken := not_finite(model.state_dict() if weights is None else weights)) is not None:
        raise FcotError(f"the student is not saved: its weight {broken} is not finite (inf or nan); lower trainer.lr")
    model.save_pretrained(folder, state_dict=weights)
    if max_new_tokens is not None:
        copy.deepcopy(model.generation_config).save_pretrained(folder, max_new_tokens=max_new_tokens)
    student.tokenizer.save_pretrained(folder)


def tokenizer_identity(student: Student) -> str:
    """A hash of everything that decides which token ids a text becomes."""
    tokenizer: Any = student.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    return fingerprint([content, tokenizer.chat_template, tokenizer.eos_token_id, tokenizer.bos_token_id])


def check_student(
    source: str,
    revision: str | None,
    max_prompt: int,
    max_completion: int,
    *,
    chat: bool = False,
    lora: Lora | None = None,
    packing: bool = False,
) -> Architecture:
    """Check that a student can be loaded and used. The check reads only configuration and tokenizer, so that it can precede a purchase.

    Args:
        source: Hub id or folder.
        revision: Branch, tag or commit of the hub id; None: the main branch.
        max_prompt: Most tokens of a prompt.
        max_completion: Most tokens of a completion.
        chat: Whether a chat template is needed.
        lora: The adapters; None: all parameters are trained.
        packing: Whether samples will be packed.

    Raises:
        FcotError: The source does not exist, the hub cannot be reached, the model has too few positions for prompt and completion,
            the tokenizer has no chat template, or the model supports no packing or no adapters.
    """
    try:
        config, tokenizer = _load_config_and_tokenizer(source, revision)
    except (OSError, ValueError) as error:
        raise _unavailable(source, error) from error
    check_fit(source, config, tokenizer)
    if lora is not None:  # a model without weights is enough: peft finds layers by name
        with torch.device("meta"):
            add_lora(build_without_weights(source, revision), lora)
    if chat and not tokenizer.chat_template:
        raise FcotError(f"student.chat_template: the tokenizer of '{source}' has no chat template; student.chat_template=false")
    if packing and not config.is_encoder_decoder and not _can_pack(config):
        raise FcotError(f"trainer.packing: '{source}' does not have plain full attention in every layer; trainer.packing=false")
    positions = _positions(config)
    if positions is not None and max_prompt + max_completion > positions:
        raise FcotError(
            f"student '{source}' has {positions} positions: the sum of student.max_prompt_tokens={max_prompt} and "
            f"student.max_completion_tokens={max_completion} may not exceed them"
        )
    return _architecture(config)


def build_without_weights(source: str, revision: str | None) -> Student:
    """Build a student from its configuration, without loading weights. The caller chooses the device, such as ``meta``.

    Raises:
        FcotError: The tokenizer cannot be loaded.
        OSError: The configuration cannot be loaded.
    """
    config = _load_config(source, revision)
    model = _model_class(config).from_config(config, dtype=torch.float32)
    head = model.get_output_embeddings()
    if not getattr(config, "scale_decoder_outputs", True) and head.weight is model.get_input_embeddings().weight:
        # Flan-T5's weights have an output head of their own, although transformers' T5Config always ties it to the input embeddings.
        head.weight = torch.nn.Parameter(torch.empty_like(head.weight))
    return Student(model, load_tokenizer(source, revision), _architecture(config))


def _architecture(config: Any) -> Architecture:
    return "encoder_decoder" if config.is_encoder_decoder else "decoder"


def _model_class(config: Any) -> Any:
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _positions(config: Any) -> int | None:
    """A decoder's number of positions. None for encoder-decoders: T5's positions are relative, others have one limit per side."""
    return None if config.is_encoder_decoder else getattr(config, "max_position_embeddings", None)


def check_fit(source: str, config: Any, tokenizer: Any) -> None:
    """Reject a tokenizer that is not the model's: transformers creates an empty one if the files are missing.

    Raises:
        FcotError: A local folder has no tokenizer files, or the tokenizer does not fit the model.
    """
    if Path(source).is_dir() and not any((Path(source) / name).is_file() for name in TOKENIZER_FILES):
        raise FcotError(f"student.path={source}: the folder has no tokenizer ({', '.join(TOKENIZER_FILES)})")
    if tokenizer.eos_token_id is None:
        raise FcotError(f"student '{source}': its tokenizer has no end-of-sequence token")
    if len(tokenizer) > config.vocab_size:
        raise FcotError(f"student '{source}': its tokenizer has {len(tokenizer)} tokens, its model only {config.vocab_size}")


def _can_pack(config: Any) -> bool:
    """Whether every layer attends to all earlier tokens, by a function that transformers lets us replace."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return kinds == {"full_attention"} and not getattr(config, "sliding_window", None) and bool(model._supports_attention_backend)


@lru_cache(maxsize=2)
def load_tokenizer(source: str, revision: str | None = None) -> Any:
    """Load a student's tokenizer.

    Args:
        source: Hub id or folder.
        revision: Branch, tag or commit of the hub id; None: the main branch.

    Raises:
        FcotError: The source does not exist, or the hub cannot be reached.
    """
    try:
        return _load_config_and_tokenizer(source, revision)[1]
    except (OSError, ValueError) as error:
        raise _unavailable(source, error) from error


def _load_config(source: str, revision: str | None) -> Any:
    with hub_access(source):
        return AutoConfig.from_pretrained(source, revision=revision)


def _load_config_and_tokenizer(source: str, revision: str | None) -> tuple[Any, Any]:
    """The model's configuration and its tokenizer, without any weights."""
    tokenizer, config = load_tokenizer_alone(source, revision), _load_config(source, revision)
    if tokenizer.pad_token_id is None:  # GPT-2 has none; the mask, not the token, marks padding
        tokenizer.pad_token = tokenizer.eos_token
    return config, tokenizer


def _display_name(source: str) -> str:
    return f"student.path={source}" if Path(source).exists() else f"student '{source}'"


def _unavailable(source: str, error: Exception) -> FcotError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if Path(source).exists():
        return FcotError(f"student.path={source}: the folder needs config.json, the weights (model.safetensors) and a tokenizer ({reason})")
    return FcotError(
        f"could not get '{source}' from the hub; on a machine without internet point to a local copy: student.path=FOLDER ({reason})"
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on texts; it can represent any text and has the end-of-sequence token ``</s>``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS)


def build_tiny(
    architecture: Architecture, tokenizer: PreTrainedTokenizerBase, *, width: int, layers: int, heads: int, max_length: int
) -> Student:
    """Build a randomly initialized T5 or GPT-2 without dropout.

    Args:
        architecture: ``encoder_decoder`` gives T5, ``decoder`` GPT-2.
        tokenizer: By :func:`train_tokenizer`, or that of another student from scratch.
        width: Hidden size.
        layers: Number of layers; for T5, of the encoder and of the decoder each.
        heads: Number of attention heads; divides ``width``.
        max_length: Positions of a decoder: most tokens of prompt and completion together.
    """
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    model: PreTrainedModel
    if architecture == "encoder_decoder":
        model = T5ForConditionalGeneration(
            T5Config(
                vocab_size=len(tokenizer), d_model=width, d_kv=width // heads, d_ff=4 * width, num_layers=layers,
                num_heads=heads, dropout_rate=0.0, decoder_start_token_id=tokenizer.pad_token_id, **ids,  # type: ignore[call-arg]
            )
        )  # fmt: skip
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer), n_positions=max_length, n_embd=width, n_layer=layers, n_head=heads,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=tokenizer.eos_token_id, **ids,
            )
        )  # fmt: skip
    return Student(model, tokenizer, architecture)
