"""Which completions of other requests could also answer a run's own, and their rows as the run's own rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from fcot.llm.store.folder import StoreFolder
from fcot.llm.store.rows import StoreRow, lines
from fcot.llm.store.shard import Shard

_SAMPLED_BYTES = 1 << 18  # read from the beginning and from the end of each file
Settings = dict[str, Any]  # a canonical request without its prompt


def settings_in(folder: StoreFolder) -> list[Settings]:
    """The distinct settings of a folder's step-1 requests, as far as the beginnings and ends of its files show them."""
    files = tuple((path, path.stat().st_size) for shard in folder.refresh().shards() for path in shard.files() if path.exists())
    return [json.loads(text) for text in _sampled(files)]


@lru_cache(maxsize=64)
def _sampled(files: tuple[tuple[Path, int], ...]) -> tuple[str, ...]:
    """The settings of some rows of each file (path, size), as JSON. The result is cached for all jobs of a sweep."""
    texts: dict[str, None] = {}
    for path, size in files:
        with path.open("rb") as file:
            starts = [0] if size <= 2 * _SAMPLED_BYTES else [0, size - _SAMPLED_BYTES]
            for start in starts:
                file.seek(start)
                begin = start + (len(file.readline()) if start else 0)
                for _, end, row in lines(file.fileno(), begin):
                    if row is not None and not row.get("root") and isinstance(row.get("asked"), dict):
                        texts[json.dumps({name: value for name, value in row["asked"].items() if name != "prompt"}, sort_keys=True)] = None
                    if end - begin > _SAMPLED_BYTES and len(starts) > 1:
                        break
    return tuple(texts)


def fitting(shard: Shard, key: str, limit: int, new_limit: int) -> list[StoreRow]:
    """The usable rows of a request that would be the same under another token limit: they ended by themselves, within both limits.

    Args:
        shard: The shard of the rows.
        key: The request's key.
        limit: The limit in tokens under which they were generated.
        new_limit: The other limit.

    Returns:
        Copies of the rows. A request of which only some choices fit has its tokens divided in proportion.
    """
    requests: dict[str, list[StoreRow]] = {}
    for slot in shard.slots(key):
        row = shard.row(key, slot)
        requests.setdefault(row["request"], []).append(row)
    chosen: list[StoreRow] = []
    for members in requests.values():
        usage = next((row for row in members if row.get("completion_tokens") is not None), {})
        most = _most_tokens(members, usage.get("completion_tokens"))
        kept = [
            {name: value for name, value in row.items() if name not in ("prompt_tokens", "completion_tokens", "cached_tokens", "bound_usd")}
            for row, n_tokens in zip(members, most, strict=True)
            if _ended(row, n_tokens, limit) and (limit <= new_limit or n_tokens <= new_limit)
        ]
        if kept and usage:
            share = len(kept) / len(members)
            kept[0] |= {"prompt_tokens": usage["prompt_tokens"], "completion_tokens": round(usage["completion_tokens"] * share)}
        chosen += kept
    return chosen


def _ended(row: StoreRow, n_tokens: int, limit: int) -> bool:
    """Whether a choice of at most ``n_tokens`` ended by itself. A server that gives no finish reason leaves only its length."""
    reason = row.get("finish_reason")
    return reason == "stop" or (reason is None and n_tokens < limit)


def _most_tokens(choices: Sequence[StoreRow], total: int | None) -> list[int]:
    """An upper bound on the tokens of each choice of a request: a token has at least one byte.

    Args:
        choices: The choices.
        total: The tokens of all of them; None if unknown. If they are more than the texts' bytes, the model also generated hidden tokens.
    """
    n_bytes = [len((row["text"] + row.get("reasoning", "")).encode()) + 1 for row in choices]  # 1: the end token
    if total is None:
        return n_bytes
    return [total if total > sum(n_bytes) else min(total, n) for n in n_bytes]


def adopted(rows: Sequence[StoreRow], shard: Shard, key: str, root: str | None, source: str, canonical: Settings) -> Iterator[StoreRow]:
    """Rows as those of another request, in its free slots. Requests that it has already are left out.

    Args:
        rows: The rows.
        shard: The shard that the rows will be appended to.
        key: The key of the other request.
        root: The key of its step-1 request; None for step 1.
        source: Where the rows are from; marks them, so that their cost is not counted twice.
        canonical: The other request in canonical form; the row in slot 0 has it.
    """
    present, filled = {row["request"] for row in shard.all_rows(key)}, set(shard.slots(key))
    for row in rows:
        if row["request"] in present:
            continue
        new = {name: value for name, value in row.items() if name != "asked"} | {"key": key, "root": root, "adopted": source}
        if row["slot"] is not None:
            new["slot"] = next(slot for slot in range(len(filled) + 1) if slot not in filled)
            filled.add(new["slot"])
        yield new | ({"asked": canonical} if new["slot"] == 0 and root is None else {})
