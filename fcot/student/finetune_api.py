"""Fine-tuning through OpenAI's API: a training file, its upload, a job, and waiting for the job's end.

What is known is written down at once (``job.json``: the file's id, then the job's), and a job carries the hash of what it
trains on in its metadata. Killed anywhere, the same command finds its job in the file or in the server's list.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcot.base.console import say
from fcot.base.errors import FcotError
from fcot.base.files import exclusive, file_fingerprint, fingerprint, read_json, write_json, write_jsonl
from fcot.base.stopping import asyncio_sleep
from fcot.llm.calls import Calls
from fcot.llm.failures import Malformed
from fcot.llm.openai import Server

_LEAST_SAMPLES = 10  # the API's minimum
_JOBS = "/fine_tuning/jobs"
_ENDED_WITHOUT_MODEL = ("failed", "cancelled")

Object = dict[str, Any]


@dataclass(frozen=True)
class FineTuned:
    """What a job came to.

    Attributes:
        model: The trained model's name at the server.
        job: The job's id.
        file: The training file's id.
        trained_tokens: What the server charges for, all epochs together; None where it does not say.
        batch_size: Samples of an optimizer step as the server chose it, None where it does not say.
        paid_by: The run that started the job, None where the server does not say.
    """

    model: str
    job: str
    file: str
    trained_tokens: int | None
    batch_size: int | None
    paid_by: str | None


def fine_tune(
    server: Server,
    samples: Sequence[tuple[str, str]],
    folder: Path,
    lock: Path,
    *,
    run_id: str,
    epochs: int,
    seed: int,
    poll_s: float,
    max_tries: int,
    watch: Callable[[str], object],
) -> FineTuned:
    """Train the server's model on (user turn, assistant turn) samples, or take the model of a job that did the same before.

    Args:
        server: Its model is the base model.
        samples: In the order of the training file.
        folder: Gets ``train.jsonl`` and ``job.json``.
        lock: Held while a job is looked for and started: two runs that train on the same share one.
        run_id: Who asks, for the job's metadata.
        epochs: Passes over the samples; the other hyperparameters are the API's defaults.
        seed: The job's.
        poll_s: Seconds between two looks.
        max_tries: Tries of one call that fails for a passing reason.
        watch: Given the job's progress in words.

    Raises:
        FcotError: Too few samples, the server refuses, or the job failed or was cancelled.
    """
    if len(samples) < _LEAST_SAMPLES:
        raise FcotError(
            f"{len(samples)} reasoning samples are left to train on, and the fine-tuning API wants {_LEAST_SAMPLES} or more: "
            "more problems, or a larger diversity"
        )
    data = folder / "train.jsonl"
    turns = ([("user", prompt), ("assistant", completion)] for prompt, completion in samples)
    write_jsonl(data, ({"messages": [{"role": role, "content": text} for role, text in sample]} for sample in turns))
    job = _FineTuningJob(server, data, folder / "job.json", run_id, epochs, seed, max_tries)
    with exclusive(lock, say):
        job_id = asyncio.run(job.start())
    try:
        return asyncio.run(job.wait(job_id, poll_s, watch))
    except KeyboardInterrupt:
        say(f"\nfine-tuning job {job_id} goes on at the server; the same command waits for it again")
        raise


class _FineTuningJob:
    """One fine-tuning job, known by what it trains on."""

    def __init__(self, server: Server, data: Path, state: Path, run_id: str, epochs: int, seed: int, max_tries: int) -> None:
        self.server = server
        self.call = Calls(server, "the fine-tuning API", max_tries)
        self.data = data
        self.state = state
        self.run_id = run_id
        body = {
            "model": server.model, "seed": seed % 2**31,  # the API's largest is 2**31 - 1
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": epochs}}},
        }  # fmt: skip
        self.request = fingerprint(body | {"data": file_fingerprint(data)})
        self.body = body | {"suffix": f"fcot-{self.request[:8]}", "metadata": {"fcot": run_id, "fcot_request": self.request}}

    # --- starting ---

    async def start(self) -> str:
        """The job's id: written down, found in the server's list, or of a new job."""
        state = read_json(self.state) if self.state.exists() else {}
        if state.get("request") != self.request:  # trained on other data
            state = {"request": self.request}
        try:
            if "job" not in state:
                job = await self.call(self._find) or await self._create(state)
                write_json(self.state, state | {"file": job.get("training_file"), "job": job["id"]})
                say(f"fine-tuning job {job['id']} of {self.body['model']}")
                return str(job["id"])
            return str(state["job"])
        finally:
            await self.call.close()

    async def _find(self, client: Any) -> Object | None:
        """The job that trains, or has trained, on the same; None where there is none, or it came to nothing."""
        query: Object = {"limit": 100, "metadata": {"fcot_request": self.request}}
        while True:
            page = _read(await client.get(_JOBS, cast_to=bytes, options={"params": query}), "data", list)
            for job in page["data"]:
                same = (job.get("metadata") or {}).get("fcot_request") == self.request
                if same and job["status"] not in _ENDED_WITHOUT_MODEL:
                    return dict(job)
            if not page.get("has_more") or not page["data"]:
                return None
            query["after"] = page["data"][-1]["id"]

    async def _create(self, state: Object) -> Object:
        """A new job; the file's id is written down before."""
        if "file" not in state:
            state["file"] = await self.call(self._upload)
            write_json(self.state, state)
        while (file := await self._look(f"/files/{state['file']}", "training file", "id")).get("status") == "uploaded":
            await asyncio_sleep(1.0)
        if file.get("status") == "error":
            raise FcotError(f"the server refuses the training file: {self.server.masked(str(file.get('status_details')))}. {self._anew()}")

        async def create(client: Any) -> Object:
            """Start the job once: a try whose answer was lost may have succeeded."""
            if (job := await self._find(client)) is not None:
                return job
            return _read(await client.post(_JOBS, cast_to=bytes, body=self.body | {"training_file": state["file"]}), "id", str)

        return dict(await self.call(create))

    async def _upload(self, client: Any) -> str:
        file = await client.files.create(file=(f"{self.run_id}.jsonl", self.data.read_bytes()), purpose="fine-tune")
        if not isinstance(getattr(file, "id", None), str):
            raise Malformed("an upload without a file id")
        return str(file.id)

    # --- waiting ---

    async def wait(self, job_id: str, poll_s: float, watch: Callable[[str], object]) -> FineTuned:
        """Look at the job until it has ended."""
        try:
            while True:
                job = await self._look(f"{_JOBS}/{job_id}", "fine-tuning job", "status")
                if job["status"] == "succeeded" and job.get("fine_tuned_model"):
                    return _to_result(job)
                if job["status"] == "succeeded":
                    raise FcotError(f"fine-tuning job {job_id} succeeded, but the server names no model. {self._anew()}")
                if job["status"] in _ENDED_WITHOUT_MODEL:
                    error = job.get("error") or {}
                    said = ": ".join(str(error[name]) for name in ("code", "message") if error.get(name))
                    reason = self.server.masked(said).rstrip(".") or "no reason given"
                    raise FcotError(f"fine-tuning job {job_id} {job['status']}: {reason}. {self._anew()}")
                watch(_progress(job))
                await asyncio_sleep(poll_s)
        finally:
            await self.call.close()

    async def _look(self, path: str, what: str, name: str) -> Object:
        """A file or a job as the server shows it; ``name`` is what it must have."""

        async def look(client: Any) -> Object:
            return _read(await client.get(path, cast_to=bytes), name, str)

        try:
            return dict(await self.call(look))
        except FcotError as error:
            if getattr(error.__cause__, "status_code", None) != 404:
                raise
            raise FcotError(
                f"this server does not know the {what} {path.rpartition('/')[2]}: another student.base_url or key? {self._anew()}"
            ) from error

    def _anew(self) -> str:
        return f"Deleting {self.state} forgets it: the same command then starts another job, unless the server has one for the same data"


def _read(data: bytes, name: str, kind: type) -> Object:
    """An answer as an object that has ``name``.

    Raises:
        Malformed: It is none.
        ValueError: It is no JSON.
    """
    answer = json.loads(data)
    if not isinstance(answer, dict) or not isinstance(answer.get(name), kind):
        raise Malformed(f"an answer without {name}")
    return answer


def _to_result(job: Object) -> FineTuned:
    batch_size = (job.get("hyperparameters") or {}).get("batch_size")
    return FineTuned(
        job["fine_tuned_model"], job["id"], str(job.get("training_file")), job.get("trained_tokens"),
        batch_size if isinstance(batch_size, int) else None, (job.get("metadata") or {}).get("fcot"),
    )  # fmt: skip


def _progress(job: Object) -> str:
    """Such as ``running, 12,000 tokens trained, 340 s since it was created, done at about 14:05``."""
    parts = [str(job["status"])]
    if job.get("trained_tokens"):
        parts.append(f"{job['trained_tokens']:,} tokens trained")
    if job.get("created_at"):
        parts.append(f"{max(0.0, time.time() - job['created_at']):,.0f} s since it was created")
    if job.get("estimated_finish"):
        parts.append(f"done at about {time.strftime('%H:%M', time.localtime(job['estimated_finish']))}")
    return ", ".join(parts)
