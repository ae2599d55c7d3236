"""What a store's folder holds, whether it is sound, and putting it in order: compaction, and merging with another one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from fcot.base.files import fingerprint, replacing
from fcot.llm.money import Price, cost_usd
from fcot.llm.store.folder import StoreFolder
from fcot.llm.store.rows import StoreRow, append_lines
from fcot.llm.store.shard import Shard

_FIELDS: dict[str, Any] = {"root": str | None, "text": str, "finish_reason": str | None, "request": str, "run": str, "time": float | int}
_UNKNOWN = "?"  # settings of rows whose request is not stored


@dataclass
class Holdings:
    """What a folder holds of one configuration.

    Attributes:
        settings: The requests' parameters beside the prompt, as text.
        model: The model id of its requests.
        counts: ``prompts``, ``rationales``, ``answers``, ``refused``, ``prompt tokens``, ``completion tokens``, ``bytes``.
        models: Generations by the model name that the server returned.
        usd: What it cost, None where the price is unknown.
        last: Seconds since 1970 of the newest row.
    """

    settings: str
    model: str
    counts: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    usd: float | None = 0.0
    last: float = 0.0


def holdings(folder: StoreFolder, price_of: Callable[[str], Price | None]) -> list[Holdings]:
    """What a folder holds, by configuration: the same prompts under another temperature or limit are other generations."""
    found: dict[str, Holdings] = {}
    unknown: list[tuple[bytes, StoreRow, int]] = []  # rows whose request is not stored: none of its answers could be used
    for shard in folder.refresh().shards():
        settings: dict[bytes, str] = {}  # by step-1 key
        prompts: set[bytes] = set()
        waiting: list[tuple[bytes, StoreRow, int]] = []
        for path, begin, end, row in shard.rows():
            if row is None or (path != shard.path and not shard.live(row, path, begin)):
                continue
            root = bytes.fromhex(row.get("root") or row["key"])
            if "asked" in row and not row.get("root"):
                settings[root] = _settings(found, row["asked"])
            if root in settings:
                _count(found[settings[root]], row, end - begin, price_of, root not in prompts)
                prompts.add(root)
            else:
                waiting.append((root, row, end - begin))
        for root, row, size in waiting:
            if root in settings:
                _count(found[settings[root]], row, size, price_of, root not in prompts)
                prompts.add(root)
            else:
                unknown.append((root, row, size))
    if unknown:
        rest = next(iter(found.values())) if len(found) == 1 else found.setdefault(_UNKNOWN, Holdings(_UNKNOWN, ""))
        prompts = set()
        for root, row, size in unknown:
            _count(rest, row, size, price_of, root not in prompts)
            prompts.add(root)
    return [found[name] for name in sorted(found)]


def _settings(found: dict[str, Holdings], asked: dict[str, Any]) -> str:
    """A request's parameters in words; the first request of a configuration opens its record."""
    more = {name: value for name, value in asked.items() if name not in ("prompt", "model")}
    kind = "text" if isinstance(asked.get("prompt"), str) else "chat"
    text = ", ".join([kind, *(f"{name}={json.dumps(value) if isinstance(value, list | dict) else value}" for name, value in more.items())])
    found.setdefault(text, Holdings(text, str(asked.get("model", ""))))
    return text


def _count(holding: Holdings, row: StoreRow, size: int, price_of: Callable[[str], Price | None], new_prompt: bool) -> None:
    answer, counts = bool(row.get("root")), holding.counts
    counts["refused" if row["slot"] is None else "answers" if answer else "rationales"] += 1
    counts["prompts"] += new_prompt
    counts["prompt tokens"] += row.get("prompt_tokens") or 0
    counts["completion tokens"] += row.get("completion_tokens") or 0
    counts["bytes"] += size
    if "model" in row:
        holding.models[row["model"]] += 1
    price = price_of(holding.model)
    holding.usd = None if price is None or holding.usd is None else holding.usd + cost_usd(row, price)
    holding.last = max(holding.last, row.get("time") or 0.0)


# --- soundness ----------------------------------------------------------------------------------------------------


def faults(shard: Shard, counts: Counter[str]) -> Iterator[tuple[Path, int, str]]:
    """File, line and description of each fault; rows, and lines that a writer tore or has not finished, are counted in ``counts``."""
    seen: set[bytes] = set()  # half a key: a rationale; with a slot: a row
    unrooted: list[tuple[bytes, Path, int]] = []
    ends: dict[Path, int] = {}
    numbers: Counter[Path] = Counter()
    for path, begin, end, row in shard.rows():
        ends[path], numbers[path] = end, numbers[path] + 1
        line = numbers[path]
        if row is None:
            if _is_json(path, begin, end):
                yield path, line, "no row: no key, or no slot"
            else:
                counts["torn"] += 1
            continue
        counts["rows"] += 1
        yield from ((path, line, fault) for fault in _row_faults(row, shard.path.stem))
        root = str(row.get("root") or "").encode()[:32]
        if row["slot"] is not None:
            key = row["key"].encode()[:32]
            place = b"%s %d" % (key, row["slot"])
            if place in seen:
                yield path, line, "a second row for its key and slot"
            seen |= {place} if root else {place, key}
        if root and root not in seen:
            unrooted.append((root, path, line))
    counts["unfinished"] += sum(path.stat().st_size > ends.get(path, 0) for path in shard.files())
    yield from ((path, line, "an answer whose rationale has no row") for root, path, line in unrooted if root not in seen)


def _row_faults(row: StoreRow, shard: str) -> Iterator[str]:
    """What is wrong with a row by itself."""
    first = row["slot"] == 0 and not row.get("root")
    fields = _FIELDS | ({"refused": str} if row["slot"] is None else {"asked": dict} if first else {})
    for name, kind in fields.items():
        if name not in row or not isinstance(row[name], kind):
            yield f"{'a field of another type:' if name in row else 'no field'} {name}"
    if str(row.get("root") or row["key"])[:1] != shard:
        yield "a row of another shard"
    if isinstance(row.get("asked"), dict) and fingerprint(row["asked"]) != row["key"]:
        yield "a request (asked) that does not hash to its key"


def _is_json(path: Path, begin: int, end: int) -> bool:
    """Whether a line that is no row is JSON all the same; what a killed writer tore never is."""
    with path.open("rb") as file:
        file.seek(begin)
        try:
            json.loads(file.read(end - begin))
        except ValueError:
            return False
    return True


# --- order --------------------------------------------------------------------------------------------------------


def compact(shard: Shard) -> tuple[int, int]:
    """Rewrite a shard that this process has for itself: without torn lines, copies, answered tries and repeated prompts.

    Every row that was paid for stays.

    Returns:
        Its size in bytes before and after.

    Raises:
        FcotError: The disk is full; the shard is as it was.
    """
    shard.fold()
    before = shard.path.stat().st_size if shard.path.exists() else 0
    if not before:
        return 0, 0
    with replacing(shard.path) as temporary, temporary.open("wb") as file:
        for path, begin, _, row in shard.rows():
            if row is not None and shard.live(row, path, begin):
                if row.get("root"):
                    row.pop("asked", None)  # older versions repeated question and rationale
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    shard.refresh()
    return before, shard.path.stat().st_size


def merge(source: Shard, target: Shard) -> int:
    """Add the rows of a shard to another one that this process has for itself: how many were new.

    A request that the target has already is left out. A generation whose slot is taken there gets the next free one: samples of
    one key are exchangeable.

    Raises:
        FcotError: The disk is full; nothing was added.
    """
    target.fold()
    source.refresh()
    known: dict[str, set[str]] = {}  # requests by key
    taken: dict[str, set[int]] = {}
    added = []
    for path, begin, _, row in source.rows():
        if row is None or not source.live(row, path, begin):
            continue
        key = row["key"]
        if key not in known:
            known[key] = {one["request"] for one in target.all_rows(key)}
            taken[key] = set(target.slots(key))
        if row["request"] in known[key]:
            continue
        if row["slot"] is not None:
            row["slot"] = row["slot"] if row["slot"] not in taken[key] else next(slot for slot in count() if slot not in taken[key])
            taken[key].add(row["slot"])
        added.append(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    if added:
        append_lines(target.path, added)
        target.refresh()
    return len(added)
