"""A transformers model on this machine as a teacher, through the same decoding as students: no answer depends on its neighbours."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcot.base.errors import FcotError
from fcot.base.files import fingerprint, folder_fingerprint
from fcot.base.ranks import native_bf16
from fcot.decoding.encoding import encoder_of
from fcot.llm.requests import NO_ACCOUNT, Account, Choice, Prompt, Reply, Request, Usage

if TYPE_CHECKING:
    from fcot.decoding.engine import DecodingPrompt as EnginePrompt
    from fcot.decoding.engine import Written


@dataclass(eq=False)
class _ChoiceRow:
    """One choice to be written: its request, its prompt's ids, a seed, and where the choice and its length go."""

    request: Request
    prompt: EnginePrompt
    answer: asyncio.Future[tuple[Choice, int]]


class HFModel:
    """A causal or encoder-decoder model of transformers, loaded with the first request and kept.

    Args:
        path_or_id: Folder or hub id.
        revision: Of the hub id.
        model_id: The name in the store's keys, such as :func:`default_id`'s.
        chat: Whether prompts are messages, for which the tokenizer needs a chat template.
        temperature: Sampling temperature, 0 for greedy decoding.
        batch_size: Rows in the model at once, each replaced when it is finished; halved where they do not fit into memory.
        max_choices: Choices asked for in one request.
        dtype: Of the weights; ``auto`` is bfloat16 on a GPU that has it, else float32. Only a named one is in the keys: what ``auto``
            comes to is the machine's affair, so that a plan made on a login node holds on a GPU.
    """

    def __init__(
        self,
        path_or_id: str,
        revision: str | None,
        model_id: str,
        chat: bool,
        temperature: float,
        batch_size: int,
        max_choices: int,
        dtype: str = "auto",
    ) -> None:
        common = {"model": model_id, "temperature": temperature}
        self.identity: Mapping[str, Any] = common if dtype == "auto" else common | {"dtype": dtype}
        # Earlier versions wrote what auto came to into the keys.
        self.older_identities: Sequence[Mapping[str, Any]] = (
            [common | {"dtype": older} for older in ("bfloat16", "float32")] if dtype == "auto" else ()
        )
        self.chat = chat
        self.concurrency = 2 * batch_size  # while some rows are in the model others wait for their places
        self.max_choices = max_choices
        self._model = _Model(path_or_id, revision, temperature, dtype, batch_size)
        self._queue: deque[_ChoiceRow] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def generate(self, request: Request, n: int, seed: int, account: Account = NO_ACCOUNT) -> Reply:
        """Queue ``n`` rows, seeded ``seed`` and following, and wait for them.

        Raises:
            FcotError: The model cannot be loaded or used as configured, or one row does not fit into memory.
        """
        ids = self._model.encode(request.prompt, self.chat)
        room = self._model.room(len(ids))
        if room < 1:
            return Reply([Choice("", None, refused="too_long")], Usage(0, 0))
        loop = asyncio.get_running_loop()
        rows = [self._model.row(request, ids, min(request.max_tokens, room), seed + index, loop.create_future()) for index in range(n)]
        self._queue.extend(rows)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work(loop))
        answers = await asyncio.gather(*(row.answer for row in rows))
        return Reply([choice for choice, _ in answers], Usage(len(ids), sum(n_tokens for _, n_tokens in answers)))

    def status(self) -> str:
        """How many rows wait for the model."""
        return f"{len(self._queue)} rows waiting"

    def halt(self) -> None:
        """What is queued is answered: twice the batch size at most."""

    async def close(self) -> None:
        """Wait for the worker; one whose callers are gone ends with the next token. The model stays for later requests."""
        if self._worker is not None and not self._worker.done():
            await self._worker

    async def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer what is queued; the next request after that starts a new worker."""
        while self._queue:
            taken: list[_ChoiceRow] = []
            try:
                await asyncio.to_thread(self._answer, taken, loop)
            except Exception as error:  # belongs to the callers of these rows, whatever it is
                if not taken:  # there is no model to be had
                    taken, self._queue = list(self._queue), deque()
                for row in taken:
                    if not row.answer.done():
                        row.answer.set_exception(error)

    def _answer(self, taken: list[_ChoiceRow], loop: asyncio.AbstractEventLoop) -> None:
        """Put rows through the model while there are any; those that are queued meanwhile take the places of finished ones."""

        def source() -> Iterator[tuple[_ChoiceRow, EnginePrompt] | None]:
            while True:
                row = self._queue.popleft() if self._queue else None
                if row is None:
                    yield None
                elif not row.answer.done():  # a cancelled caller wants no answer
                    taken.append(row)
                    yield row, row.prompt

        def deliver(row: _ChoiceRow, answer: tuple[Choice, int]) -> None:
            if not row.answer.done():
                row.answer.set_result(answer)

        for row, written in self._model.decoder.run(source()):
            loop.call_soon_threadsafe(deliver, row, self._model.choice(row, written))


class _Model:
    """Model, tokenizer and configuration, each loaded when first needed, with what turns rows into choices."""

    def __init__(self, source: str, revision: str | None, temperature: float, dtype: str, batch_size: int) -> None:
        self._source = source
        self._name = f"teacher.{'path' if source.startswith(('/', '.')) or Path(source).exists() else 'model'}={source}"
        self._revision = revision
        self._temperature = temperature
        self._dtype = dtype
        self._batch_size = batch_size

    @cached_property
    def _config(self) -> Any:
        from transformers import AutoConfig

        return self._load(AutoConfig.from_pretrained)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        tokenizer = self._load(AutoTokenizer.from_pretrained)
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
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

        from fcot.decoding.models import load_whole

        kind = AutoModelForSeq2SeqLM if self._config.is_encoder_decoder else AutoModelForCausalLM
        model = self._load(partial(load_whole, kind, name=self._name), dtype=_resolved(self._dtype))
        start = model.generation_config.decoder_start_token_id
        if start is not None:
            model.config.decoder_start_token_id = start
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    @cached_property
    def decoder(self) -> Any:
        """The rows in the model. Of a folder's decoding habits only where an answer ends is the model's to say."""
        from fcot.decoding.engine import Decoder, Sampling, end_tokens

        ends = end_tokens(self._tokenizer, self._model.generation_config)
        return Decoder(self._model, ends, Sampling(self._temperature), sys.maxsize, self._batch_size)

    def _load(self, load: Callable[..., Any], **options: Any) -> Any:
        from safetensors import SafetensorError

        try:  # code in a model's folder is not run, nor is the user asked about it in the middle of a run
            return load(self._source, revision=self._revision, trust_remote_code=False, **options)
        except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FcotError(f"{self._name}: not a model that transformers can load ({reason})") from error

    def encode(self, prompt: Prompt, chat: bool) -> list[int]:
        """Ids of a text as the tokenizer makes them, or of messages as its chat template does, up to where the answer begins."""
        tokenizer = self._config and self._tokenizer  # without a configuration there is no model: a clearer message
        if (chat or not isinstance(prompt, str)) and not tokenizer.chat_template:
            raise FcotError(f"{self._name}: its tokenizer has no chat template; teacher.endpoint=completions")
        if isinstance(prompt, str):
            return encoder_of(tokenizer).prompt(prompt)
        return encoder_of(tokenizer).turns([prompt])[0]

    def room(self, n_prompt: int) -> int:
        """How many tokens can follow a prompt of ``n_prompt``; less than one where the prompt itself is too long."""
        positions = getattr(self._config, "max_position_embeddings", None)
        if positions is None:  # relative positions, as T5's
            return sys.maxsize
        return positions - 1 if self._config.is_encoder_decoder and n_prompt < positions else positions - n_prompt

    def row(self, request: Request, ids: list[int], limit: int, seed: int, answer: asyncio.Future[tuple[Choice, int]]) -> _ChoiceRow:
        """A choice to be written; it ends early with a stop string, and when nobody waits for it any more."""
        from fcot.decoding.engine import DecodingPrompt as EnginePrompt

        def halt(written: list[int]) -> bool:
            text = _decode(self._tokenizer, written) if request.stop else ""
            return answer.done() or any(stop in text for stop in request.stop)

        noise = (_noise_seed(request, seed),) if self._temperature else ()
        return _ChoiceRow(request, EnginePrompt(ids, limit, noise, halt), answer)

    def choice(self, row: _ChoiceRow, written: Written) -> tuple[Choice, int]:
        """What was written, with its length in tokens."""
        text = self._text(row, written.ids)
        cut = min((text.index(stop) for stop in row.request.stop if stop in text), default=None)
        reason = "stop" if written.complete or cut is not None else "length"
        refused = None if text[:cut].strip() else "empty_at_limit" if reason == "length" else "empty"
        return Choice(text[:cut], reason, refused), written.n_tokens

    def _text(self, row: _ChoiceRow, tokens: list[int]) -> str:
        """What was written. A plain prompt is continued: decoded alone, SentencePiece would drop the space at the seam."""
        if isinstance(row.request.prompt, str) and not self._config.is_encoder_decoder:
            ids = list(row.prompt.ids)
            before, whole = _decode(self._tokenizer, ids), _decode(self._tokenizer, ids + tokens)
            if whole.startswith(before):
                return whole[len(before) :]
        return _decode(self._tokenizer, tokens)


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _noise_seed(request: Request, seed: int) -> int:
    """A seed of 60 bits for one choice; those of different prompts have nothing in common."""
    return int(fingerprint([request.prompt, seed])[:15], 16)


def _resolved(dtype: str) -> str:
    """What ``auto`` is on this machine."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if native_bf16() else "float32"


def default_id(path_or_id: str, revision: str | None, outputs: Path) -> str:
    """A name in the store's keys that changes with the weights: the hub id with its revision, or the folder's name with its content's hash.

    Args:
        path_or_id: Folder or hub id.
        revision: Of the hub id; None for its main branch.
        outputs: The output folder, where the hash is kept for the next time.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        return f"{folder.resolve().name}-{folder_fingerprint(folder, outputs)[:12]}"
    return f"{path_or_id}@{revision or 'main'}"
