"""Listing, verifying, compacting and merging the folders of a completion store."""

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
from fcot.llm.requests import SCORED
from fcot.llm.store.distributions import encode_for
from fcot.llm.store.folder import StoreFolder
from fcot.llm.store.rows import StoreRow, append_lines
from fcot.llm.store.shard import Shard

_FIELDS: dict[str, Any] = {"root": str | None, "text": str, "finish_reason": str | None, "request": str, "run": str, "time": float | int}
_UNKNOWN = "?"  # shown as the settings of rows whose request is not stored


@dataclass
class Holdings:
    """The generations that a folder holds for one configuration.

    Attributes:
        settings: The requests' parameters other than prompt and model, as text.
        model: The model id of the requests.
        counts: ``prompts``, ``rationales``, ``answers``, ``refused``, ``scored`` (requests that scored a text), ``prompt tokens``,
            ``completion tokens``, ``bytes`` (distributions included).
        models: Number of generations by the model name that the server returned.
        usd: The cost of all requests, in USD; None if the price is unknown.
        last: Time of the newest row, in seconds since 1970.
    """

    settings: str
    model: str
    counts: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    usd: float | None = 0.0
    last: float = 0.0


def holdings(folder: StoreFolder, price_of: Callable[[str], Price | None]) -> list[Holdings]:
    """What a folder holds, by configuration. The same prompts under another temperature or limit are other generations.

    Args:
        folder: A folder of the store.
        price_of: Returns the price of a model by its id; None if it is unknown.
    """
    by_settings: dict[str, Holdings] = {}
    unknown: list[tuple[bytes, StoreRow, int]] = []  # rows whose request is not stored because none of its answers was usable
    for shard in folder.refresh().shards():
        settings: dict[bytes, str] = {}  # by step-1 key
        prompts: set[bytes] = set()
        deferred: list[tuple[bytes, StoreRow, int]] = []  # rows that come before the row with their request
        for path, begin, end, row in shard.rows():
            if row is None or (path != shard.path and not shard.is_current(row, path, begin)):
                continue
            end += shard.distributions.n_bytes(row)
            root = bytes.fromhex(row.get("root") or row["key"])
            if "asked" in row and not row.get("root"):
                settings[root] = _settings(by_settings, row["asked"])
            if root in settings:
                _count(by_settings[settings[root]], row, end - begin, price_of, root not in prompts)
                prompts.add(root)
            else:
                deferred.append((root, row, end - begin))
        for root, row, size in deferred:
            if root in settings:
                _count(by_settings[settings[root]], row, size, price_of, root not in prompts)
                prompts.add(root)
            else:
                unknown.append((root, row, size))
    if unknown:
        only = next(iter(by_settings.values())) if len(by_settings) == 1 else None
        holding = only or by_settings.setdefault(_UNKNOWN, Holdings(_UNKNOWN, ""))
        prompts = set()
        for root, row, size in unknown:
            _count(holding, row, size, price_of, root not in prompts)
            prompts.add(root)
    return [by_settings[text] for text in sorted(by_settings)]


def _settings(by_settings: dict[str, Holdings], request: dict[str, Any]) -> str:
    """A request's parameters as text. The first request of a configuration adds its record."""
    parameters = {name: value for name, value in request.items() if name not in ("prompt", "model", "scored")}
    kind = "text" if isinstance(request.get("prompt"), str) else "chat"
    texts = (f"{name}={json.dumps(value) if isinstance(value, list | dict) else value}" for name, value in parameters.items())
    text = ", ".join([kind, *texts])
    by_settings.setdefault(text, Holdings(text, str(request.get("model", ""))))
    return text


def _count(holding: Holdings, row: StoreRow, size: int, price_of: Callable[[str], Price | None], new_prompt: bool) -> None:
    answer, counts = bool(row.get("root")), holding.counts
    scored = row.get("refused") == SCORED or "scored" in row.get("asked", ())
    counts["scored" if scored else "refused" if row["slot"] is None else "answers" if answer else "rationales"] += 1
    counts["prompts"] += new_prompt
    is_copy = "adopted" in row  # its cost is counted where it was bought
    counts["prompt tokens"] += 0 if is_copy else row.get("prompt_tokens") or 0
    counts["completion tokens"] += 0 if is_copy else row.get("completion_tokens") or 0
    counts["bytes"] += size
    if "model" in row:
        holding.models[row["model"]] += 1
    price = price_of(holding.model)
    holding.usd = None if price is None or holding.usd is None else holding.usd + (0.0 if is_copy else cost_usd(row, price))
    holding.last = max(holding.last, row.get("time") or 0.0)


# --- verifying ----------------------------------------------------------------------------------------------------


def faults(shard: Shard, counts: Counter[str]) -> Iterator[tuple[Path, int, str]]:
    """File, line and description of each fault.

    Args:
        shard: The shard to verify.
        counts: Incremented for each row (``rows``), each line that a killed writer tore (``torn``) and each unfinished last
            line (``unfinished``).
    """
    present: set[bytes] = set()  # half a key for a rationale; half a key and a slot for a row
    unrooted: list[tuple[bytes, Path, int]] = []
    ends: dict[Path, int] = {}
    numbers: Counter[Path] = Counter()
    for path, begin, end, row in shard.rows():
        ends[path], numbers[path] = end, numbers[path] + 1
        line = numbers[path]
        if row is None:
            if _is_json(path, begin, end):
                yield path, line, "not a row: no key, or no slot"
            else:
                counts["torn"] += 1
            continue
        counts["rows"] += 1
        yield from ((path, line, fault) for fault in _row_faults(row, shard.path.stem))
        root = str(row.get("root") or "").encode()[:32]
        if row["slot"] is not None:
            key = row["key"].encode()[:32]
            place = b"%s %d" % (key, row["slot"])
            if place in present:
                yield path, line, "a second row for its key and slot"
            present |= {place} if root else {place, key}
        if root and root not in present:
            unrooted.append((root, path, line))
    counts["unfinished"] += sum(path.stat().st_size > ends.get(path, 0) for path in shard.files())
    yield from ((path, line, "an answer whose rationale has no row") for root, path, line in unrooted if root not in present)


def _row_faults(row: StoreRow, shard: str) -> Iterator[str]:
    """Faults of a single row of the shard named ``shard`` (its hex digit), in words."""
    has_request = row["slot"] == 0 and not row.get("root")
    fields = _FIELDS | ({"refused": str} if row["slot"] is None else {"asked": dict} if has_request else {})
    for name, kind in fields.items():
        if name not in row or not isinstance(row[name], kind):
            yield f"{'wrong type of field' if name in row else 'no field'} {name}"
    if str(row.get("root") or row["key"])[:1] != shard:
        yield "a row that belongs to another shard"
    if isinstance(row.get("asked"), dict) and fingerprint(row["asked"]) != row["key"]:
        yield "a request (field asked) whose hash is not its key"


def _is_json(path: Path, begin: int, end: int) -> bool:
    """Whether an invalid row is valid JSON. A line that a killed writer tore never is."""
    with path.open("rb") as file:
        file.seek(begin)
        try:
            json.loads(file.read(end - begin))
        except ValueError:
            return False
    return True


# --- compacting and merging ---------------------------------------------------------------------------------------


def compact(shard: Shard) -> tuple[int, int]:
    """Rewrite a shard without torn lines, copies, superseded rows of sent requests, and repeated prompts.

    This process must have locked the whole shard. Every row that was paid for stays.

    Returns:
        The shard's size in bytes, before and after.

    Raises:
        FcotError: The disk is full; the shard is unchanged.
    """
    shard.fold()
    before = shard.path.stat().st_size if shard.path.exists() else 0
    if not before:
        return 0, 0
    with replacing(shard.path) as temporary, temporary.open("wb") as file:
        for path, begin, _, row in shard.rows():
            if row is not None and shard.is_current(row, path, begin):
                if row.get("root"):
                    row.pop("asked", None)  # older versions repeated question and rationale
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    shard.refresh()
    shard.distributions.compact(row for _, _, _, row in shard.rows() if row is not None and row["slot"] is not None)
    return before, shard.path.stat().st_size


def merge(source: Shard, target: Shard) -> int:
    """Add the rows of one shard to another, which this process must have locked as a whole.

    Requests that the target already has are left out. A generation whose slot is filled in the target gets the next free slot,
    because generations of one key are exchangeable.

    Returns:
        Number of rows that were added.

    Raises:
        FcotError: The disk is full; nothing was added.
    """
    target.fold()
    source.refresh()
    present: dict[str, set[str]] = {}  # request ids by key
    filled: dict[str, set[int]] = {}  # slots by key
    added, tops = [], []
    for path, begin, _, row in source.rows():
        if row is None or not source.is_current(row, path, begin):
            continue
        key = row["key"]
        if key not in present:
            present[key] = {target_row["request"] for target_row in target.all_rows(key)}
            filled[key] = set(target.slots(key))
        top = None if row["slot"] is None else source.distributions.get(row)
        if row["request"] in present[key]:
            copies = (copy for copy in target.all_rows(key) if (copy["request"], copy["choice"]) == (row["request"], row["choice"]))
            tops += [encode_for(copy, top) for copy in copies if top is not None and not target.distributions.has(copy)]
            continue
        if row["slot"] is not None:
            row["slot"] = row["slot"] if row["slot"] not in filled[key] else next(slot for slot in count() if slot not in filled[key])
            filled[key].add(row["slot"])
            tops += [encode_for(row, top)] if top is not None else []
        added.append(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    target.distributions.add(b"".join(tops))  # before the rows, as in Shard.append
    if added:
        append_lines(target.path, added)
        target.refresh()
    return len(added)
