"""The two files of a submitted batch, ``batches/NAME.jobs.jsonl`` and ``NAME.state.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fcot.base.errors import FcotError
from fcot.base.records import Problem
from fcot.llm.plan import SlotRange
from fcot.llm.requests import Request


def state_of(path: Path) -> Path:
    """The state file of a batch: the server's id of it."""
    return path.with_name(path.name.replace(".jobs.jsonl", ".state.json"))


def set_aside_hint(path: Path) -> str:
    """The command that goes on without a batch."""
    return (
        f"`python -m fcot.store set-aside {path}` sets it aside: the same command then goes on, and what the batch would have brought is "
        "bought again"
    )


def set_aside(path: Path) -> Path:
    """Move a batch's files out of the way of purchases, into ``batches/set_aside``: where its jobs file is now.

    Raises:
        FcotError: It is no batch's jobs file.
    """
    if not path.name.endswith(".jobs.jsonl") or not path.is_file():
        raise FcotError(f"{path}: not the jobs file of a batch that is not collected yet (<store>/.../batches/*.jobs.jsonl)")
    folder = path.parent / "set_aside"
    folder.mkdir(exist_ok=True)
    for file in (state_of(path), path):  # the jobs file last: it is what makes the batch an open one
        if file.exists():
            file.replace(folder / file.name)
    return folder / path.name


def places_of(path: Path) -> Iterator[tuple[str, int]]:
    """Where the row of each custom id begins in a jobs file."""
    with path.open("rb") as file:
        begin = 0
        for line in file:
            yield json.loads(line)["line"]["custom_id"], begin
            begin += len(line)


def to_job(row: Mapping[str, Any]) -> SlotRange:
    """A row of a jobs file back; of the problem it knows no more than the store's rows say."""
    body = row["line"]["body"]
    problem = None if row["sample_index"] is None else Problem(row["sample_index"], "", "")
    prompt = body["messages"] if "messages" in body else body["prompt"]
    request = Request(prompt, row["max_tokens"], tuple(body.get("stop", ())), row["root"], problem)
    return SlotRange(request, row["key"], row["first_slot"], row["n"], row["seed"], row["identity"])
