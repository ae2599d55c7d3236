"""A local transformers model as a teacher. It decodes as students do: no answer depends on the other rows of a batch."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fcot.base.errors import FcotError
from fcot.base.files import fingerprint, folder_fingerprint
from fcot.base.hub import hub_access
from fcot.base.ranks import native_bf16
from fcot.decoding.encoding import encoder_of
from fcot.llm.distributions import TopTokens
from fcot.llm.requests import NO_ACCOUNT, SCORED, Account, Choice, Prompt, Reply, Request, Usage

if TYPE_CHECKING:
    from fcot.decoding.engine import DecodingPrompt as EnginePrompt
    from fcot.decoding.engine import Written


@dataclass(eq=False)
class _ChoiceRow:
    """One choice to generate: its request, its prompt with limits and seed, and a future for the choice and its length in tokens."""

    request: Request
    prompt: EnginePrompt
    answer: asyncio.Future[tuple[Choice, int]]


class HFModel:
    """A causal or encoder-decoder model of transformers, loaded at the first request and kept.

    Args:
        path_or_id: Folder or hub id.
        revision: Revision of the hub id; None for its main branch.
        model_id: The name in the store's keys, such as the result of :func:`default_id`.
        chat: Whether prompts are chat messages. The tokenizer then needs a chat template.
        temperature: Sampling temperature, 0 for greedy decoding.
        batch_size: Rows that are decoded at the same time. The next row replaces a finished one. Halved if they do not fit into memory.
        max_choices: The most choices in one request.
        dtype: Type of the parameters. ``auto`` is bfloat16 on a GPU that supports it, else float32. A type is part of the keys, ``auto``
            is not, so that a plan made on a login node is valid on a GPU machine.
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
        # Earlier versions wrote the type that auto stood for into the keys.
        self.older_identities: Sequence[Mapping[str, Any]] = (
            [common | {"dtype": older} for older in ("bfloat16", "float32")] if dtype == "auto" else ()
        )
        self.chat = chat
        self.concurrency = 2 * batch_size  # while some rows are in the model, others wait to replace them
        self.max_choices = max_choices
        self._model = _Model(path_or_id, revision, temperature, dtype, batch_size)
        self._queue: deque[_ChoiceRow] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._scoring = asyncio.Lock()  # one text at a time: the memory of a pass is that of a prompt with its answer

    async def generate(self, request: Request, n: int, seed: int, account: Account = NO_ACCOUNT) -> Reply:
        """Queue ``n`` rows with the seeds ``seed``, ``seed + 1``..., and wait for them; or score the request's stored answer.

        Raises:
            FcotError: The model cannot be loaded or used as configured, or a single row does not fit into memory.
        """
        ids = self._model.encode(request.prompt, self.chat)
        if request.scored is not None:
            async with self._scoring:
                top = await asyncio.to_thread(self._model.score, request, ids)
            return Reply([Choice("", None, SCORED, top=top)], Usage(len(ids) + (0 if top is None else len(top)), 0))
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
        """Do nothing: rows that are queued already (at most twice the batch size) are answered."""

    def unload(self) -> None:
        """Free the model. The next request loads it again."""
        self._model.unload()

    async def close(self) -> None:
        """Wait for the worker, which stops at the next token if its callers are gone. The model stays loaded for later requests."""
        if self._worker is not None and not self._worker.done():
            await self._worker

    async def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer all queued rows. The next request after that starts a new worker."""
        while self._queue:
            started: list[_ChoiceRow] = []
            try:
                await asyncio.to_thread(self._answer, started, loop)
            except Exception as error:  # of any kind: the callers of these rows get it
                if not started:  # the model could not be loaded
                    started, self._queue = list(self._queue), deque()
                for row in started:
                    if not row.answer.done():
                        row.answer.set_exception(error)

    def _answer(self, started: list[_ChoiceRow], loop: asyncio.AbstractEventLoop) -> None:
        """Decode rows until the queue is empty. Rows queued meanwhile replace finished ones.

        Args:
            started: Each row is appended when its decoding starts.
            loop: The event loop of the rows' futures.
        """

        def source() -> Iterator[tuple[_ChoiceRow, EnginePrompt] | None]:
            while True:
                row = self._queue.popleft() if self._queue else None
                if row is None:
                    yield None
                elif not row.answer.done():  # a cancelled caller needs no answer
                    started.append(row)
                    yield row, row.prompt

        def deliver(row: _ChoiceRow, answer: tuple[Choice, int]) -> None:
            if not row.answer.done():
                row.answer.set_result(answer)

        for row, written in self._model.decoder.run(source()):
            loop.call_soon_threadsafe(deliver, row, self._model.choice(row, written))


class _Model:
    """Model, tokenizer and configuration, each loaded when it is first needed; encodes prompts and turns generated tokens into choices."""

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
        if len(tokenizer) < len(tokenizer.all_special_ids) + 10:  # transformers invents a tokenizer if the files are missing
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

    def unload(self) -> None:
        """Free the model and its decoder."""
        for name in ("_model", "decoder"):
            self.__dict__.pop(name, None)

    @cached_property
    def decoder(self) -> Any:
        """The decoder. Of the generation settings in the model's folder, only the end tokens are used."""
        from fcot.decoding.engine import Decoder, Sampling, end_tokens

        ends = end_tokens(self._tokenizer, self._model.generation_config)
        return Decoder(self._model, ends, Sampling(self._temperature), sys.maxsize, self._batch_size)

    def _load(self, load: Callable[..., Any], **options: Any) -> Any:
        from safetensors import SafetensorError

        try:  # code in a model's folder is never run, and the user is not prompted about it during a run
            with hub_access(self._source):
                return load(self._source, revision=self._revision, trust_remote_code=False, **options)
        except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FcotError(f"{self._name}: not a model that transformers can load ({reason})") from error

    def encode(self, prompt: Prompt, chat: bool) -> list[int]:
        """Token ids of a text, or of messages through the chat template, up to where the answer begins."""
        tokenizer = self._config and self._tokenizer  # loads the configuration first: its message about a missing model is clearer
        if (chat or not isinstance(prompt, str)) and not tokenizer.chat_template:
            raise FcotError(f"{self._name}: its tokenizer has no chat template; set teacher.endpoint=completions")
        if isinstance(prompt, str):
            return encoder_of(tokenizer).prompt(prompt)
        return encoder_of(tokenizer).turns([prompt])[0]

    def room(self, n_prompt: int) -> int:
        """How many tokens can follow a prompt of ``n_prompt`` tokens; less than 1 if the prompt is too long."""
        positions = getattr(self._config, "max_position_embeddings", None)
        if positions is None:  # relative positions, such as T5's
            return sys.maxsize
        return positions - 1 if self._config.is_encoder_decoder and n_prompt < positions else positions - n_prompt

    def row(self, request: Request, ids: list[int], limit: int, seed: int, answer: asyncio.Future[tuple[Choice, int]]) -> _ChoiceRow:
        """A choice to generate. It ends early at a stop string, or when its caller is cancelled."""
        from fcot.decoding.engine import DecodingPrompt as EnginePrompt

        def halt(written: list[int]) -> bool:
            text = _decode(self._tokenizer, written) if request.stop else ""
            return answer.done() or any(stop in text for stop in request.stop)

        noise = (_noise_seed(request, seed),) if self._temperature else ()
        return _ChoiceRow(request, EnginePrompt(ids, limit, noise, halt), answer)

    def choice(self, row: _ChoiceRow, written: Written) -> tuple[Choice, int]:
        """The choice of a row, and its length in tokens."""
        text = self._text(row, written.ids)
        cut = min((text.index(stop) for stop in row.request.stop if stop in text), default=None)
        reason = "stop" if written.complete or cut is not None else "length"
        refused = None if text[:cut].strip() else "empty_at_limit" if reason == "length" else "empty"
        return Choice(text[:cut], reason, refused), written.n_tokens

    def score(self, request: Request, prompt: list[int]) -> TopTokens | None:
        """The distributions at the tokens of a stored answer; None if prompt and answer are too long for the model.

        Args:
            request: The request, with the answer to score and the number of alternatives.
            prompt: Token ids of the request's prompt.

        Raises:
            FcotError: They do not fit into memory.
        """
        import torch

        assert request.scored is not None
        assert request.top_logprobs is not None
        answer = self._answer_ids(request, prompt)
        if not answer or self.room(len(prompt)) < len(answer):
            return None
        try:
            top = self._likeliest(prompt, answer, request.top_logprobs)
        except torch.OutOfMemoryError as error:
            raise FcotError(
                f"{self._name}: no memory to score an answer of {len(answer)} tokens after a prompt of {len(prompt)}: use a smaller model "
                "or shorter limits, or teacher.dtype=bfloat16, which takes half of float32"
            ) from error
        ids, logprobs = top.indices.cpu().numpy().astype(np.int32), top.values.cpu().numpy().astype(np.float16)
        return TopTokens(np.array(answer, np.int32), ids, logprobs)

    def _likeliest(self, prompt: list[int], answer: list[int], k: int) -> Any:
        """The k largest log-probabilities and their tokens, as torch's ``topk``, at each token of an answer."""
        import torch

        with torch.inference_mode():
            device = self._model.device
            if self._config.is_encoder_decoder:
                shifted = [self._model.config.decoder_start_token_id, *answer[:-1]]
                ids, decoder_ids = (torch.tensor([tokens], device=device) for tokens in (prompt, shifted))
                logits = self._model(input_ids=ids, decoder_input_ids=decoder_ids).logits[0]
            else:
                ids = torch.tensor([[*prompt, *answer]], device=device)
                logits = self._model(input_ids=ids, logits_to_keep=len(answer) + 1).logits[0, -len(answer) - 1 : -1]
            return logits.float().log_softmax(-1).topk(min(k, logits.shape[-1]))

    def _answer_ids(self, request: Request, prompt: list[int]) -> list[int]:
        """Token ids of a stored answer, as they follow the prompt."""
        if isinstance(request.prompt, str) and not self._config.is_encoder_decoder:
            together = encoder_of(self._tokenizer).prompt(request.prompt + str(request.scored))
            if together[: len(prompt)] == prompt:
                return together[len(prompt) :]
        return list(self._tokenizer(request.scored, add_special_tokens=False)["input_ids"])

    def _text(self, row: _ChoiceRow, tokens: list[int]) -> str:
        """The generated text. If the prompt is a text, both are decoded together, because SentencePiece drops a leading space."""
        if isinstance(row.request.prompt, str) and not self._config.is_encoder_decoder:
            ids = list(row.prompt.ids)
            prompt, prompt_and_answer = _decode(self._tokenizer, ids), _decode(self._tokenizer, ids + tokens)
            if prompt_and_answer.startswith(prompt):
                return prompt_and_answer[len(prompt) :]
        return _decode(self._tokenizer, tokens)


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _noise_seed(request: Request, seed: int) -> int:
    """A seed of 60 bits for one choice. Seeds of different prompts are unrelated."""
    return int(fingerprint([request.prompt, seed])[:15], 16)


def _resolved(dtype: str) -> str:
    """The type of the parameters on this machine."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if native_bf16() else "float32"


def default_id(path_or_id: str, revision: str | None, outputs: Path) -> str:
    """A model name for the store's keys: the hub id with its revision, or the folder's name with a hash of its content.

    Other parameters in the same folder therefore get other keys.

    Args:
        path_or_id: Folder or hub id.
        revision: Revision of the hub id; None for its main branch.
        outputs: The output folder, in which the hash is cached.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        return f"{folder.resolve().name}-{folder_fingerprint(folder, outputs)[:12]}"
    return f"{path_or_id}@{revision or 'main'}"
