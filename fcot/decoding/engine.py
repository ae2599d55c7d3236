"""Decodes many prompts with one model: when rows of the batch finish, waiting rows replace them.

A row's text does not depend on the other rows: each has its own mask, positions and sampling noise. In float32 it equals the text of
transformers' ``generate``, unless a reviser replaces a part of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutput

from fcot.base.errors import FcotError, NotFinite
from fcot.decoding.cache import cross_layers, new_cache, own_layers, widened

NO_TOKEN = -1  # stands for a token whose logits are not finite
_HEADROOM = 64  # columns beyond the present ones that must fit into the limit of tokens before a row may enter
_REFILL = 4  # waiting rows enter when a quarter of the rows has finished, because entering copies the cache


class Reviser(Protocol):
    """Replaces the end of what a row has written. It belongs to one row and may count what it does."""

    def revise(self, written: Sequence[int], ended: bool) -> tuple[int, list[int]] | None:
        """Look at a row after each token.

        Args:
            written: All tokens of the row, without the end token.
            ended: Whether the end token follows them.

        Returns:
            How many tokens the row keeps, and at least one token to write after them; then the model goes on, or the row ends if it had
            ended. None changes nothing.
        """
        ...


@dataclass(frozen=True, eq=False)
class DecodingPrompt:
    """A prompt to decode; it becomes a row of the batch.

    Attributes:
        ids: Token ids of the prompt.
        limit: Most tokens to write, the end token included.
        noise: Seed of the row's sampling noise; empty for greedy decoding.
        halt: Called with all tokens written so far; True ends the row like an end token. None: only end token and limit end it.
        reviser: Makes the row's reviser, whenever the row starts; None: the row keeps what the model writes.
    """

    ids: Sequence[int]
    limit: int
    noise: tuple[int, ...] = ()
    halt: Callable[[list[int]], bool] | None = None
    reviser: Callable[[], Reviser] | None = None


@dataclass(frozen=True)
class Written:
    """The tokens that the model wrote for one prompt.

    Attributes:
        ids: Token ids, without the end token.
        complete: Whether the text ended by itself, before the limit.
        n_tokens: Number of tokens, the end token included.
        reviser: The row's reviser, with what it has counted; None if it had none.
    """

    ids: list[int]
    complete: bool
    n_tokens: int
    reviser: Reviser | None = None


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: Sampling temperature; 0 decodes greedily.
        top_k: Sample from this many likeliest tokens; None: from all.
    """

    temperature: float = 0.0
    top_k: int | None = None

    def choose(self, logits: torch.Tensor, uniforms: Sequence[float]) -> list[int]:
        """Choose a token per row.

        Args:
            logits: Logits of the next token, (rows, vocabulary).
            uniforms: A random number in [0, 1) per row; the token is where it falls in the cumulative probabilities. Unused if greedy.

        Returns:
            Token ids; :data:`NO_TOKEN` for a row whose largest logit is not finite.
        """
        largest, tokens = logits.max(-1)
        if not self.temperature:
            return _finite(largest, tokens)
        scores = logits.double() / self.temperature
        if self.top_k is not None and self.top_k < scores.shape[1]:
            likeliest = scores.topk(self.top_k)
            scores = torch.full_like(scores, -torch.inf).scatter(1, likeliest.indices, likeliest.values)
        cumulative = scores.softmax(-1).cumsum(-1)
        draws = torch.tensor(uniforms, dtype=torch.double, device=logits.device)[:, None] * cumulative[:, -1:]
        return _finite(largest, torch.searchsorted(cumulative, draws, right=True).squeeze(1))


def _finite(largest: torch.Tensor, tokens: torch.Tensor) -> list[int]:
    return torch.where(largest.isfinite(), tokens, NO_TOKEN).tolist()  # type: ignore[no-any-return]


@dataclass(eq=False)
class _DecodingRow:
    """A row of the batch, or one that waits to enter it."""

    key: Any
    prompt: DecodingPrompt
    written: list[int] = field(default_factory=list)
    complete: bool | None = None  # whether the row ended by itself, before the limit; None: not finished
    ended: bool = False  # whether an end token ended it
    uniforms: Any = None  # one random number in [0, 1) per token, for sampling; None: greedy
    forced: list[int] = field(default_factory=list)  # the next tokens, which replace the model's choices
    reviser: Reviser | None = None

    @property
    def last(self) -> int:
        """The next input token of the model."""
        return self.written[-1] if self.written else 0

    def __post_init__(self) -> None:
        if self.prompt.noise:
            self.uniforms = np.random.default_rng(self.prompt.noise).random(self.prompt.limit)
        if self.prompt.reviser is not None:
            self.reviser = self.prompt.reviser()


def end_tokens(tokenizer: Any, generation_config: Any) -> list[int]:
    """The tokens that end an answer: the tokenizer's, and those of the generation config, because chat models end a turn with others."""
    own = generation_config.eos_token_id
    return sorted({tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None})


class Decoder:
    """Decodes rows in a batch that changes over time.

    Args:
        model: A language model of transformers, in evaluation mode, on its device.
        ends: Token ids that end a row.
        sampling: How tokens are chosen.
        max_tokens: Size of the batch in tokens: rows enter while rows times (columns + 64 columns of headroom) stays within it. What
            rows write beyond the headroom does not count. The limit is halved when memory runs out.
        max_rows: Most rows in the batch; None: no limit.
    """

    def __init__(self, model: Any, ends: Sequence[int], sampling: Sampling, max_tokens: int, max_rows: int | None = None) -> None:
        self._model = model
        self._ends = set(ends)
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._max_rows = max_rows
        self._encoder_decoder = bool(model.config.is_encoder_decoder)
        self._start: Any = getattr(model.config, "decoder_start_token_id", None)
        self._positions = getattr(model.config, "max_position_embeddings", None)
        self._rows: list[_DecodingRow] = []
        self._finished: list[_DecodingRow] = []
        self._waiting: list[_DecodingRow] = []  # read from the source, or restarted after memory ran out
        self._cache: Any = None
        self._lengths: torch.Tensor  # (rows,): columns of the cache that belong to each row
        self._cross_mask: torch.Tensor  # (rows, columns): which columns belong to an encoder-decoder's prompt
        self._clear_cache()

    @torch.inference_mode()
    def run(self, source: Iterator[tuple[Any, DecodingPrompt] | None]) -> Iterator[tuple[Any, Written]]:
        """Decode the prompts of a source until all are finished; yields key and result of a row as soon as it is finished.

        Args:
            source: Yields key and prompt. It has no more prompts when it ends or yields None.
        """
        try:
            while self._advance(source):
                yield from self._drain()
            yield from self._drain()
        finally:  # also if the caller stops early
            self._rows, self._waiting, self._finished = [], [], []
            self._clear_cache()

    def _advance(self, source: Iterator[tuple[Any, DecodingPrompt] | None]) -> bool:
        """Replace finished rows if enough of them have finished, and write one token in each row; returns whether rows remain."""
        entering: list[_DecodingRow] = []
        try:
            if self._time_to_refill():
                self._compact()
                entering = self._admitted(source)
                if entering:
                    self._prefill(entering)
                    del self._waiting[: len(entering)]
                    entering = []
            if self._active():
                self._step()
        except torch.OutOfMemoryError as error:
            self._start_over(len(entering), error)
        return bool(self._rows or self._waiting)

    def _drain(self) -> Iterator[tuple[Any, Written]]:
        finished, self._finished = self._finished, []
        for row in finished:
            yield row.key, Written(row.written, bool(row.complete), len(row.written) + row.ended, row.reviser)

    # --- entering and leaving rows ---

    def _active(self) -> list[_DecodingRow]:
        return [row for row in self._rows if row.complete is None]

    def _time_to_refill(self) -> bool:
        n_finished = len(self._rows) - len(self._active())
        return n_finished * _REFILL >= len(self._rows)

    def _columns(self) -> int:
        """Columns of the cache that are in use."""
        return int(self._lengths.max()) if len(self._lengths) else 0

    def _compact(self) -> None:
        """Remove finished rows from the batch."""
        keep = [index for index, row in enumerate(self._rows) if row.complete is None]
        if len(keep) == len(self._rows):
            return
        self._rows = [self._rows[index] for index in keep]
        if not keep:
            self._clear_cache()
            return
        row_numbers = torch.tensor(keep)
        self._lengths = self._lengths[row_numbers]
        row_numbers = row_numbers.to(self._model.device)
        for layer in own_layers(self._cache):
            layer.select(row_numbers, slice(layer.get_seq_length() - self._columns(), None))
        if self._encoder_decoder:
            mask = self._cross_mask[row_numbers]
            used_columns = mask.any(0).nonzero()
            window = slice(int(used_columns[0]), int(used_columns[-1]) + 1)
            self._cross_mask = mask[:, window]
            for layer in cross_layers(self._cache):
                layer.select(row_numbers, window)

    def _admitted(self, source: Iterator[tuple[Any, DecodingPrompt] | None]) -> list[_DecodingRow]:
        """The first waiting rows, as many as there is room for."""
        if self._rows and self._encoder_decoder and self._positions is not None:
            return []  # such decoders count positions from the cache's left edge, so that all rows must start together
        present, n = len(self._rows), 0
        columns = max(self._columns(), self._cross_mask.shape[1] if present else 0)
        while self._max_rows is None or present + n < self._max_rows:
            if n == len(self._waiting):
                if (item := next(source, None)) is None:
                    break
                self._waiting.append(_DecodingRow(*item))
            columns = max(columns, len(self._waiting[n].prompt.ids))
            if present + n and (present + n + 1) * (columns + _HEADROOM) > self._max_tokens:
                break
            n += 1
        return self._waiting[:n]

    def _start_over(self, entering: int, error: Exception) -> None:
        """Recover after memory ran out: rows in the batch wait to start again, and the limits of the batch are halved.

        Args:
            entering: Number of waiting rows that were about to enter.
            error: The error, which causes the message if a single row does not fit.

        Raises:
            FcotError: A single row does not fit into memory.
        """
        active = self._active()
        if len(active) + entering <= 1:
            prompt = (active or self._waiting)[0].prompt
            raise FcotError(
                f"one row does not fit into memory, a prompt of {len(prompt.ids)} tokens with up to {prompt.limit} to write: use a "
                "smaller model or shorter limits"
            ) from error
        error.__traceback__ = None  # the traceback keeps the tensors alive
        self._max_tokens = max(1, self._max_tokens // 2)
        if self._max_rows is not None:
            self._max_rows = max(1, self._max_rows // 2)
        self._waiting = [_DecodingRow(row.key, row.prompt) for row in active] + self._waiting
        self._rows = []
        self._clear_cache()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _clear_cache(self) -> None:
        self._cache, self._lengths, self._cross_mask = None, torch.zeros(0, dtype=torch.long), torch.zeros(0, 0, dtype=torch.bool)

    # --- the model ---

    def _prefill(self, rows: list[_DecodingRow]) -> None:
        """Run the model on the prompts of new rows, write their first tokens, and add them to the batch."""
        device, width = self._model.device, max(len(row.prompt.ids) for row in rows)
        lengths = torch.tensor([len(row.prompt.ids) for row in rows])
        padding = [[0] * (width - len(row.prompt.ids)) for row in rows]
        cache = new_cache(self._encoder_decoder)
        if self._encoder_decoder:
            mask = _right_aligned(lengths, width).flip(1).to(device)
            ids = torch.tensor([[*row.prompt.ids, *zeros] for row, zeros in zip(rows, padding, strict=True)], device=device)
            starts = torch.full((len(rows), 1), self._start, device=device)
            lengths = torch.ones_like(lengths)
            inputs: dict[str, Any] = {"decoder_input_ids": starts}
        else:
            mask = _right_aligned(lengths, width).to(device)
            ids = torch.tensor([[*zeros, *row.prompt.ids] for row, zeros in zip(rows, padding, strict=True)], device=device)
            inputs = {"position_ids": (mask.long().cumsum(1) - 1).clamp(min=0), "logits_to_keep": 1}
        logits = self._model(input_ids=ids, attention_mask=mask, **inputs, past_key_values=cache, use_cache=True).logits
        tokens = self._choose(rows, logits)
        if self._rows:
            self._join(cache, mask)
        else:
            self._cache, self._cross_mask = cache, mask
        self._rows += rows
        self._lengths = torch.cat([self._lengths, lengths])
        self._write(rows, tokens)

    def _join(self, cache: Any, mask: torch.Tensor) -> None:
        layers, new_layers = own_layers(self._cache) + cross_layers(self._cache), own_layers(cache) + cross_layers(cache)
        for layer, new_layer in zip(layers, new_layers, strict=True):
            layer.join(new_layer)
        if self._encoder_decoder:
            width = max(mask.shape[1], self._cross_mask.shape[1])
            self._cross_mask = torch.cat([widened(part[:, None, :, None], width)[:, 0, :, 0] for part in (self._cross_mask, mask)])

    def _step(self) -> None:
        """Write one more token in each row."""
        tokens = self._choose(self._rows, self._forward(own_layers(self._cache)[0].get_seq_length()))
        self._lengths = self._lengths + 1
        self._write(self._rows, tokens)

    def _forward(self, columns: int) -> torch.Tensor:
        device = self._model.device
        last = torch.tensor([[row.last] for row in self._rows], device=device)
        mask = _right_aligned(self._lengths + 1, columns + 1).to(device)
        inputs: dict[str, Any]
        if self._encoder_decoder:
            shape = (*self._cross_mask.shape, self._model.config.hidden_size)
            states = torch.zeros(1, 1, 1, dtype=self._model.dtype, device=device).expand(shape)  # only its shape is used
            inputs = {
                "decoder_input_ids": last, "decoder_attention_mask": mask, "attention_mask": self._cross_mask,
                "encoder_outputs": BaseModelOutput(last_hidden_state=states),
            }  # fmt: skip
        else:
            position_ids = self._lengths.clamp(max=(self._positions or sys.maxsize) - 1)  # finished rows may exceed the positions
            inputs = {"input_ids": last, "attention_mask": mask, "position_ids": position_ids[:, None].to(device)}
        return self._model(**inputs, past_key_values=self._cache, use_cache=True).logits  # type: ignore[no-any-return]

    def _choose(self, rows: Sequence[_DecodingRow], logits: torch.Tensor) -> list[int]:
        uniforms = [0.0 if row.uniforms is None or row.complete is not None else row.uniforms[len(row.written)] for row in rows]
        return self._sampling.choose(logits[:, -1], uniforms)

    def _write(self, rows: Sequence[_DecodingRow], tokens: Sequence[int]) -> None:
        """Append a token to each unfinished row, and record whether the row is finished.

        Raises:
            NotFinite: The logits of a row are not finite.
        """
        for row, token in zip(rows, tokens, strict=True):
            if row.complete is not None:
                continue
            if token == NO_TOKEN:
                raise NotFinite(
                    "the model's output is not finite (inf or nan): its weights are broken, or overflow in bfloat16 "
                    "(trainer.eval_precision=32-true, for a teacher teacher.dtype=float32)"
                )
            token = self._revised(row, token)
            if token in self._ends:
                row.complete = row.ended = True
            else:
                row.written.append(token)
                if row.prompt.halt is not None and row.prompt.halt(row.written):
                    row.complete = True
                elif len(row.written) >= row.prompt.limit:
                    row.complete = False
            if row.complete is not None:
                self._finished.append(row)

    def _revised(self, row: _DecodingRow, token: int) -> int:
        """The token that a row writes instead of the chosen one, after its reviser has looked at it.

        A replacement is written like any other text, one token per step: batches keep their shapes, and noise its positions.
        """
        if not row.forced and row.reviser is not None:
            ended = token in self._ends
            revision = row.reviser.revise(row.written if ended else [*row.written, token], ended)
            if revision is not None:
                n_kept, replacement = revision
                self._take_back(row, len(row.written) - n_kept)  # the chosen token is not in the cache yet
                row.forced = [*replacement, *([token] if ended else [])]
        return row.forced.pop(0) if row.forced else token

    def _take_back(self, row: _DecodingRow, n: int) -> None:
        """Remove the last ``n`` tokens of a row from its text and from the cache."""
        if not n:
            return
        place = next(place for place, other in enumerate(self._rows) if other is row)
        for layer in own_layers(self._cache):
            layer.drop(place, n)
        self._lengths[place] -= n
        del row.written[-n:]


def _right_aligned(lengths: torch.Tensor, columns: int) -> torch.Tensor:
    """A mask (rows, columns): True at the last ``lengths[row]`` columns of each row."""
    return torch.arange(columns)[None] >= columns - lengths[:, None]
