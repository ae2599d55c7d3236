"""Prices and what requests cost. An unknown price is None everywhere, never a guess."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from fcot.base.errors import FcotError
from fcot.llm.requests import LOST

_MILLION = 1_000_000
_SHOWN_MODELS = 5  # names of a price file that a message repeats


@dataclass(frozen=True)
class Price:
    """USD per million tokens.

    Attributes:
        input: Price of prompt tokens.
        output: Price of completion tokens, reasoning tokens included.
        cached_input: Price of prompt tokens that the server had in its cache.
        batch: Price of the Batch API, as a share of the online price.
        training: Price of trained tokens, counted once per epoch; None for models that are not fine-tuned.
        source: The file that the price was read from, for messages; empty for a price that was not read from a file.
    """

    input: float
    output: float
    cached_input: float
    batch: float = 1.0
    training: float | None = None
    source: str = field(default="", compare=False)

    def usd(self, prompt_tokens: float, completion_tokens: float, cached_tokens: float = 0, batch: bool = False) -> float:
        """What a number of tokens costs, in USD."""
        fresh = max(0.0, prompt_tokens - cached_tokens)
        online = (fresh * self.input + cached_tokens * self.cached_input + completion_tokens * self.output) / _MILLION
        return online * (self.batch if batch else 1.0)

    def times(self, factor: float) -> Price:
        """This price times a factor, as for another service tier."""
        return replace(self, input=self.input * factor, output=self.output * factor, cached_input=self.cached_input * factor)

    def training_usd(self, tokens: float) -> float | None:
        """What training on a number of tokens costs, in USD; None if there is no price for training."""
        return None if self.training is None else tokens * self.training / _MILLION


FREE = Price(0.0, 0.0, 0.0)  # models on the user's own machine


def read_price(path: Path, model: str, option: str = "teacher.prices", tier: str | None = None) -> Price | None:
    """The price of a model in a YAML file of ``{model: {input, output, cached_input, batch, tiers, fine_tuned}}``; None if it has none.

    ``fine_tuned`` has the same fields and ``training``. It is the price of models fine-tuned from this one, whose names are
    ``ft:MODEL:...``.

    Args:
        path: The YAML file.
        model: The model's name at the server.
        option: The override that names the file, for messages.
        tier: A service tier; None for the default one. A tier that ``tiers`` does not list has no price.

    Raises:
        FcotError: The file is unreadable, or an entry has other fields or values.
    """
    try:
        prices = _entries(path)
        if unpriced := [name for name, price in prices.items() if not isinstance(price, dict)]:
            value = prices[unpriced[0]]
            raise ValueError(f"the entry of {unpriced[0]!r} is {'empty' if value is None else repr(value)}, and not a mapping")
        if outer := [name for name, price in prices.items() if price and all(map(_is_nested, price.items()))]:
            inner = ", ".join(map(str, list(prices[outer[0]])[:3]))
            raise FcotError(
                f"{option}={path}: {outer[0]!r} is read as a model's name, and holds mappings ({inner}) instead of a price. Write the "
                "models at the top level of the file, each with its price: MODEL: {input: 0.4, output: 1.6}"
            )
        name = model.split(":")[1] if model.startswith("ft:") else model
        if name not in prices:
            return None
        entry = dict(prices[name])
        place = f"the entry of {name!r}"
        tuned, tiers = entry.pop("fine_tuned", None), _mapping(entry.pop("tiers", {}), f"{place}, tiers")
        price = _to_price(entry, place)
        tuned_price = None if tuned is None else _to_price(_mapping(tuned, f"{place}, fine_tuned"), f"{place}, fine_tuned", {"training"})
        factors = {"default": 1.0} | {name: _number(factor, f"{place}, tiers", name) for name, factor in tiers.items()}
        chosen, factor = tuned_price if model.startswith("ft:") else price, factors.get(tier or "default")
        return None if chosen is None or factor is None else replace(chosen.times(factor), source=str(path))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise FcotError(
            f"{option}={path}: {_reason(error)}. An entry is {model}: {{input: USD, output: USD, cached_input: USD, batch: share, "
            "fine_tuned: {training: USD, input: USD...}} per million tokens, and tiers: {NAME: share}"
        ) from error


def no_price_in(path: Path, model: str) -> str:
    """That a file has no price for a model, with the names that it has: all of a short file, otherwise similar ones."""
    try:
        names = [str(name) for name in _entries(path)]
    except (OSError, ValueError, yaml.YAMLError):
        names = []
    shown = [] if model in names else names if len(names) <= _SHOWN_MODELS else get_close_matches(model, names, 3)
    return f"{path} has none for {model}" + (f" (it has {', '.join(shown)})" if shown else "")


def _entries(path: Path) -> dict[Any, Any]:
    """The content of a price file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not UTF-8 text, or not a mapping.
        yaml.YAMLError: It is not YAML.
    """
    prices = yaml.safe_load(path.read_text(encoding="utf-8-sig")) or {}
    if not isinstance(prices, dict):
        raise ValueError("the file is YAML without model names (is it CSV or a list?)")
    return prices


def _reason(error: Exception) -> str:
    """Why a price file cannot be read, in words."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        return f"{f'line {mark.line + 1}' if mark else 'the file'} is not valid YAML ({error.problem or error.context})"
    if isinstance(error, yaml.YAMLError):
        return f"the file is not valid YAML ({str(error).splitlines()[0]})"
    if isinstance(error, UnicodeDecodeError):
        return "the file is not UTF-8 text"
    return f"the file cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)


def _is_nested(field: tuple[Any, Any]) -> bool:
    """Whether a field of an entry, as name and value, is no field of a price but a mapping, such as a model one level too deep."""
    name, value = field
    return isinstance(value, dict) and name not in ("tiers", "fine_tuned")


def _mapping(value: Any, place: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{place}: {value!r} is not a mapping")
    return value


def _number(value: Any, place: str, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{place}: {name} is {'empty' if value is None else repr(value)}, and not a number that is at least 0")
    return number


def _to_price(entry: Mapping[str, Any], place: str, required: Set[str] = frozenset()) -> Price:
    """The price of an entry, which must have the fields ``required`` too. ``place`` names it in messages."""
    required = {"input", "output"} | required
    if unknown := set(entry) - {"cached_input", "batch"} - required:
        raise ValueError(f"{place} has unknown fields: {', '.join(sorted(map(str, unknown)))}")
    if missing := required - set(entry):
        raise ValueError(f"{place} has no {' and no '.join(sorted(missing))}")
    values = {name: _number(value, place, name) for name, value in entry.items()}
    return Price(
        values["input"], values["output"], values.get("cached_input", values["input"]), values.get("batch", 1.0), values.get("training")
    )


def paid(rows: Iterable[Mapping[str, Any]], price: Price | None) -> dict[str, Any]:
    """The usage record of store rows. Each request's tokens are in the first of its rows.

    Returns:
        ``requests``, ``prompt_tokens``, ``completion_tokens``, ``cached_tokens``, ``requests_without_usage``, ``requests_lost`` and
        ``usd`` (None without a price). Requests without usage are those for which the server reported no tokens: the token counts
        lack them, and ``usd`` counts them at their maximum cost. Lost requests are tries without an answer that may have been charged:
        only ``usd`` counts them, at their maximum cost.
    """
    usage: dict[str, Any] = {
        "requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0, "requests_without_usage": 0, "requests_lost": 0,
    }  # fmt: skip
    usd = 0.0
    for row in rows:
        usd += 0.0 if price is None else cost_usd(row, price)
        usage["requests_lost"] += row.get("refused") == LOST
        if "prompt_tokens" not in row:
            continue
        tokens = {name: row.get(name) for name in _COUNTED}
        usage["requests"] += 1
        usage["requests_without_usage"] += tokens["prompt_tokens"] is None or tokens["completion_tokens"] is None
        for name, count in tokens.items():
            usage[name] += count or 0
    return usage | {"usd": None if price is None else round(usd, 6)}


_COUNTED = ("prompt_tokens", "completion_tokens", "cached_tokens")


def cost_usd(row: Mapping[str, Any], price: Price) -> float:
    """What a row of the store adds to the cost, in USD: the price of its tokens, or the maximum cost if the server reported none."""
    if "bound_usd" in row:
        return float(row["bound_usd"])
    if "prompt_tokens" not in row:
        return 0.0
    prompt, completion, cached = (row.get(name) or 0 for name in _COUNTED)
    return price.usd(prompt, completion, cached, bool(row.get("batch")))


def sum_by_key(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sum of records by key, including nested records. A sum is None if one of its numbers is None."""
    keys = dict.fromkeys(key for record in records for key in record)
    return {key: _sum([record[key] for record in records if key in record]) for key in keys}


def _sum(values: Sequence[Any]) -> Any:
    if any(value is None for value in values):
        return None
    return sum_by_key(values) if isinstance(values[0], dict) else sum(values)
