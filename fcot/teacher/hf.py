"""A transformers model on this machine as a teacher. Rows are batched; in float32 an answer does not depend on its batch."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from fcot.artifacts import fingerprint, folder_fingerprint
from fcot.errors import FcotError
from fcot.teacher.requests import Choice, Prompt, Reply, Request, Usage, unheard


@dataclass(eq=False)
class _Row:
    """One choice to be written: its prompt's ids, a limit in new tokens, a seed, and where the choice and its length go."""

    request: Request
    ids: list[int]
    limit: int
    seed: int
    answer: asyncio.Future[tuple[Choice, int]]


class HFTeacher:
    """A causal or encoder-decoder model of transformers, loaded with the first request and kept.

    Args:
        path_or_id: Folder or hub id.
        revision: Of the hub id.
        model_id: The name in the store's keys; None for the hub id with its revision, or the folder's name with a hash of its files.
        chat: Whether prompts are messages, for which the tokenizer needs a chat template.
        temperature: Sampling temperature, 0 for greedy decoding.
        batch_size: Rows in the model at once; halved where they do not fit into memory.
        max_choices: Choices asked for in one request.
        dtype: Of the weights; ``auto`` is bfloat16 on a GPU that has it, else float32.
    """

    def __init__(
        self,
        path_or_id: str,
        revision: str | None,
        model_id: str | None,
        chat: bool,
        temperature: float,
        batch_size: int,
        max_choices: int,
        dtype: str = "auto",
    ) -> None:
        dtype = _resolved(dtype)
        self.identity: Mapping[str, Any] = {
            "model": model_id or _default_id(path_or_id, revision), "temperature": temperature, "dtype": dtype,
        }  # fmt: skip
        self.chat = chat
        self.concurrency = 2 * batch_size  # while one batch is in the model the next one gathers
        self.max_choices = max_choices
        self._batch_size = batch_size
        self._model = _Model(path_or_id, revision, temperature, dtype)
        self._queue: list[_Row] = []
        self._worker: asyncio.Task[None] | None = None

    async def generate(self, request: Request, n: int, seed: int, lost: Callable[[], object] = unheard) -> Reply:
        """Queue ``n`` rows, seeded ``seed`` and following, and wait for their batches.

        Raises:
            FcotError: The model cannot be loaded or used as configured, or one row does not fit into memory.
        """
        ids = self._model.encode(request.prompt, self.chat)
        room = self._model.room(len(ids))
        if room < 1:
            return Reply([Choice("", None, refused="too_long")], Usage(0, 0))
        loop, limit = asyncio.get_running_loop(), min(request.max_tokens, room)
        rows = [_Row(request, ids, limit, seed + index, loop.create_future()) for index in range(n)]
        self._queue += rows
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        answers = await asyncio.gather(*(row.answer for row in rows))
        return Reply([choice for choice, _ in answers], Usage(len(ids), sum(n_tokens for _, n_tokens in answers)))

    def status(self) -> str:
        """How many rows wait for the model."""
        return f"{len(self._queue)} rows waiting"

    def halt(self) -> None:
        """What is queued is answered: two batches at most."""

    async def close(self) -> None:
        """Wait for the worker; one whose callers are gone ends with the next token. The model stays for later requests."""
        if self._worker is not None and not self._worker.done():
            await self._worker

    async def _work(self) -> None:
        """Answer what is queued, a batch at a time; the next request after the last batch starts a new worker."""
        while self._queue:
            await asyncio.sleep(0)  # callers that run at the same time queue up first
            if not (rows := self._take()):
                continue
            try:
                answers = await asyncio.to_thread(self._answer, rows)
            except Exception as error:  # belongs to the callers, whatever it is
                for row in rows:
                    if not row.answer.done():
                        row.answer.set_exception(error)
                continue
            for row, answer in zip(rows, answers, strict=True):
                if not row.answer.done():
                    row.answer.set_result(answer)

    def _take(self) -> list[_Row]:
        """The next batch: the row that has waited longest and others with its limit and stop strings, as one call needs."""
        waiting = [row for row in self._queue if not row.answer.done()]  # a cancelled caller wants no answer
        fit = [row for row in waiting if (row.limit, row.request.stop) == (waiting[0].limit, waiting[0].request.stop)]
        rows = fit[: self._batch_size]
        self._queue = [row for row in waiting if row not in rows]
        return rows

    def _answer(self, rows: Sequence[_Row]) -> list[tuple[Choice, int]]:
        """Choices with their lengths in tokens, in order. What does not fit into memory is split, now and from now on."""
        import torch

        try:
            return self._model.generate(rows)
        except torch.OutOfMemoryError as error:
            if len(rows) == 1:
                raise FcotError(
                    f"teacher.batch_size: even a batch of one does not fit into memory, a prompt of {len(rows[0].ids)} tokens "
                    f"with up to {rows[0].limit} to write; take a smaller model"
                ) from error
        torch.cuda.empty_cache()  # outside the handler: the error holds on to the tensors of the failed batch
        half = (len(rows) + 1) // 2
        self._batch_size = min(self._batch_size, half)
        return self._answer(rows[:half]) + self._answer(rows[half:])


class _Model:
    """Model, tokenizer and configuration, each loaded when first needed, with what turns rows into choices."""

    def __init__(self, source: str, revision: str | None, temperature: float, dtype: str) -> None:
        self._source = source
        self._name = f"teacher.{'path' if source.startswith(('/', '.')) or Path(source).exists() else 'model'}={source}"
        self._revision = revision
        self._temperature = temperature
        self._dtype = dtype

    @cached_property
    def _config(self) -> Any:
        from transformers import AutoConfig

        return self._load(AutoConfig)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        tokenizer = self._load(AutoTokenizer)
        if len(tokenizer) < len(tokenizer.all_special_ids) + 10:  # transformers makes one up where the files are missing
            raise FcotError(f"{self._name}: no tokenizer in it")
        if tokenizer.eos_token_id is None:
            raise FcotError(f"{self._name}: its tokenizer has no end-of-sequence token")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @cached_property
    def _model(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

        cuda = torch.cuda.is_available()
        model = self._load(AutoModelForSeq2SeqLM if self._config.is_encoder_decoder else AutoModelForCausalLM, dtype=self._dtype)
        own, tokenizer = model.generation_config, self._tokenizer
        # Folders bring decoding habits (beams, penalties, sampling); only where an answer begins and ends is the model's to say:
        # chat models end a turn with a token that need not be their tokenizer's.
        ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
        start = own.decoder_start_token_id
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
            eos_token_id=sorted({tokenizer.eos_token_id, *ends} - {None}),
            decoder_start_token_id=getattr(self._config, "decoder_start_token_id", None) if start is None else start,
        )  # fmt: skip
        return model.to("cuda" if cuda else "cpu").eval()

    def _load(self, kind: Any, **options: Any) -> Any:
        from safetensors import SafetensorError

        try:  # code in a model's folder is not run, nor is the user asked about it in the middle of a run
            return kind.from_pretrained(self._source, revision=self._revision, trust_remote_code=False, **options)
        except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FcotError(f"{self._name}: not a model that transformers can load ({reason})") from error

    def encode(self, prompt: Prompt, chat: bool) -> list[int]:
        """Ids of a text as the tokenizer makes them, or of messages as its chat template does, up to where the answer begins."""
        tokenizer = self._config and self._tokenizer  # without a configuration there is no model: a clearer message
        if (chat or not isinstance(prompt, str)) and not tokenizer.chat_template:
            raise FcotError(f"{self._name}: its tokenizer has no chat template; teacher.endpoint=completions")
        if isinstance(prompt, str):
            return list(tokenizer(prompt, verbose=False)["input_ids"])
        messages = [dict(message) for message in prompt]
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])

    def room(self, n_prompt: int) -> int:
        """How many tokens can follow a prompt of ``n_prompt``; less than one where the prompt itself is too long."""
        positions = getattr(self._config, "max_position_embeddings", None)
        if positions is None:  # relative positions, as T5's
            return sys.maxsize
        return positions - 1 if self._config.is_encoder_decoder and n_prompt < positions else positions - n_prompt

    def generate(self, rows: Sequence[_Row]) -> list[tuple[Choice, int]]:
        """A choice for each row of a batch (all with the same limit and stop strings), with its length in tokens."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        model, causal = self._model, not self._config.is_encoder_decoder
        pad = partial(pad_sequence, batch_first=True, padding_side="left" if causal else "right")
        prompts = [torch.tensor(row.ids) for row in rows]
        ids = pad(prompts, padding_value=self._tokenizer.pad_token_id).to(model.device)
        mask = pad([torch.ones_like(prompt) for prompt in prompts]).to(model.device)
        halt = _Halt(rows, self._tokenizer, ids.shape[1] if causal else 1)
        output = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=rows[0].limit, do_sample=False, num_beams=1,
            logits_processor=[_Gumbel(rows, self._temperature, model.device)] if self._temperature else [], stopping_criteria=[halt],
        )  # fmt: skip
        written = zip(rows, output[:, halt.start :].tolist(), halt.lengths, strict=True)
        return [self._choice(row, tokens[:length]) for row, tokens, length in written]

    def _choice(self, row: _Row, tokens: list[int]) -> tuple[Choice, int]:
        ends = self._model.generation_config.eos_token_id
        end = next((index for index, token in enumerate(tokens) if token in ends), None)
        text = self._text(row, tokens[:end])
        cut = min((text.index(stop) for stop in row.request.stop if stop in text), default=None)
        reason = "length" if end is None and cut is None else "stop"
        refused = None if text[:cut].strip() else "empty_at_limit" if reason == "length" else "empty"
        return Choice(text[:cut], reason, refused), len(tokens) if end is None else end + 1

    def _text(self, row: _Row, tokens: list[int]) -> str:
        """What was written. A plain prompt is continued: decoded alone, SentencePiece would drop the space at the seam."""
        if isinstance(row.request.prompt, str) and not self._config.is_encoder_decoder:
            before, whole = _decode(self._tokenizer, row.ids), _decode(self._tokenizer, row.ids + tokens)
            if whole.startswith(before):
                return whole[len(before) :]
        return _decode(self._tokenizer, tokens)


class _Gumbel:
    """A logits processor after which the largest score is an exact draw from softmax(logits / temperature) (Gumbel-max).

    Each row has a generator of its own, so that its noise depends on neither the batch nor its place in it.
    """

    def __init__(self, rows: Sequence[_Row], temperature: float, device: Any) -> None:
        import torch

        self._temperature = temperature
        self._generators = [torch.Generator(device).manual_seed(_noise_seed(row)) for row in rows]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores (rows, vocabulary) of one position to noisy ones, in float64: float32 noise is coarse where it decides."""
        import torch

        noise = torch.empty_like(scores, dtype=torch.float64)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores.double() / self._temperature - noise.log()


class _Halt:
    """A stopping criterion: a stop string was written, or nobody waits for the batch any more.

    transformers' own also counts a stop string that begins in the prompt, and builds tables over the vocabulary.

    Attributes:
        start: Position of the first token written.
        lengths: Per row the tokens up to its stop string, None where there is none; what follows is padding.
    """

    def __init__(self, rows: Sequence[_Row], tokenizer: Any, start: int) -> None:
        self.start = start
        self.lengths: list[int | None] = [None] * len(rows)
        self._rows = rows
        self._tokenizer = tokenizer

    def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
        """Which rows, (rows,), are done, given all ids so far (rows, length)."""
        if self._rows[0].request.stop:
            for index, tokens in enumerate(input_ids[:, self.start :].tolist()):
                text = "" if self.lengths[index] else _decode(self._tokenizer, tokens)
                if any(stop in text for stop in self._rows[0].request.stop):
                    self.lengths[index] = len(tokens)
        abandoned = all(row.answer.done() for row in self._rows)
        return input_ids.new_tensor([abandoned or length is not None for length in self.lengths]).bool()


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _noise_seed(row: _Row) -> int:
    """A seed of 60 bits for one choice; those of different prompts have nothing in common."""
    return int(fingerprint([row.request.prompt, row.seed])[:15], 16)


def _resolved(dtype: str) -> str:
    """What ``auto`` is on this machine: other weights give other answers, so the keys have to tell."""
    if dtype != "auto":
        return dtype
    import torch

    return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"


def _default_id(path_or_id: str, revision: str | None) -> str:
    """A name in the store's keys that changes with the weights."""
    folder = Path(path_or_id)
    if folder.is_dir():
        return f"{folder.resolve().name}-{folder_fingerprint(folder)[:12]}"
    return f"{path_or_id}@{revision or 'main'}"
