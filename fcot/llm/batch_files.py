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
    """The path of a batch's state file, which holds the server's batch id."""
    return path.with_name(path.name.replace(".jobs.jsonl", ".state.json"))


def set_aside_hint(path: Path) -> str:
    """The command that continues without a batch, for messages."""
    return (
        f"`python -m fcot.store set-aside {path}` sets it aside. The same command then continues, and buys the completions of this batch "
        "again"
    )


def set_aside(path: Path) -> Path:
    """Move a batch's files into ``batches/set_aside``, where purchases ignore them.

    Args:
        path: The batch's jobs file.

    Returns:
        The new path of the jobs file.

    Raises:
        FcotError: The path is not a batch's jobs file.
    """
    if not path.name.endswith(".jobs.jsonl") or not path.is_file():
        raise FcotError(f"{path}: not the jobs file of a batch that is not collected yet (<store>/.../batches/*.jobs.jsonl)")
    folder = path.parent / "set_aside"
    folder.mkdir(exist_ok=True)
    for file in (state_of(path), path):  # the jobs file last: a batch is open as long as its jobs file is there
        if file.exists():
            file.replace(folder / file.name)
    return folder / path.name


def places_of(path: Path) -> Iterator[tuple[str, int]]:
    """Each custom id in a jobs file, and the byte where its row begins."""
    with path.open("rb") as file:
        begin = 0
        for line in file:
            yield json.loads(line)["line"]["custom_id"], begin
            begin += len(line)


def to_job(row: Mapping[str, Any]) -> SlotRange:
    """The job that a row of a jobs file describes. Its problem has only a sample index: question and answer are empty."""
    body = row["line"]["body"]
    problem = None if row["sample_index"] is None else Problem(row["sample_index"], "", "")
    prompt = body["messages"] if "messages" in body else body["prompt"]
    top_logprobs = body.get("top_logprobs", body.get("logprobs"))
    request = Request(prompt, row["max_tokens"], tuple(body.get("stop", ())), row["root"], problem, top_logprobs=top_logprobs)
    return SlotRange(request, row["key"], row["first_slot"], row["n"], row["seed"], row["identity"])
