"""Fine-tuning through OpenAI's API: upload a training file, create a job, and wait for its end.

Each id is written to ``job.json`` as soon as it is known: the file's, then the job's. A job's metadata hold a hash of its request and its
training file. A command that was killed at any point therefore finds its job again, in ``job.json`` or in the server's list.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcot.base.console import say
from fcot.base.errors import FcotError
from fcot.base.files import exclusive, file_fingerprint, fingerprint, read_json, write_json, write_jsonl
from fcot.base.loop import run_async
from fcot.base.stopping import asyncio_sleep
from fcot.llm.calls import Calls
from fcot.llm.failures import Malformed
from fcot.llm.server import Server

_LEAST_SAMPLES = 10  # the API's minimum
_JOBS = "/fine_tuning/jobs"
_ENDED_WITHOUT_MODEL = ("failed", "cancelled")

Object = dict[str, Any]


@dataclass(frozen=True)
class FineTuned:
    """The result of a job.

    Attributes:
        model: The trained model's name at the server.
        job: The job's id.
        file: The training file's id.
        trained_tokens: Tokens that the server charges for, over all epochs; None if the server does not report them.
        batch_size: Samples per optimizer step, chosen by the server; None if the server does not report it.
        paid_by: Id of the run that started the job; None if the server does not report it.
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
    """Train the server's model on (user turn, assistant turn) samples, or reuse the model of an earlier job with the same request.

    Args:
        server: The server; its model is the base model.
        samples: Prompt and completion of each sample, in the order of the training file.
        folder: Gets ``train.jsonl`` and ``job.json``.
        lock: File that is locked while a job is looked up or created, so that two runs with the same training data share one job.
        run_id: Id of the run, for the job's metadata.
        epochs: Passes over the samples; the other hyperparameters are the API's defaults.
        seed: Seed of the job; the API takes it modulo 2**31.
        poll_s: Seconds between two checks of the job.
        max_tries: Most tries of a call that fails with a temporary error.
        watch: Called with a sentence about the job's progress.

    Raises:
        FcotError: There are too few samples, the server rejects the request, or the job failed or was cancelled.
    """
    if len(samples) < _LEAST_SAMPLES:
        raise FcotError(
            f"there are {len(samples)} reasoning samples, and the fine-tuning API needs {_LEAST_SAMPLES} or more: "
            "use more problems or a larger diversity"
        )
    data = folder / "train.jsonl"
    turns = ([("user", prompt), ("assistant", completion)] for prompt, completion in samples)
    write_jsonl(data, ({"messages": [{"role": role, "content": text} for role, text in sample]} for sample in turns))
    job = _FineTuningJob(server, data, folder / "job.json", run_id, epochs, seed, max_tries)
    with exclusive(lock, say):
        job_id = run_async(job.start())
    try:
        return run_async(job.wait(job_id, poll_s, watch))
    except KeyboardInterrupt:
        say(f"\nfine-tuning job {job_id} continues at the server; run the same command again to wait for it")
        raise


class _FineTuningJob:
    """One fine-tuning job, identified by the hash of its request and its training file."""

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
        """Get the job's id: from ``job.json``, from the server's list, or by creating a job."""
        state = read_json(self.state) if self.state.exists() else {}
        if state.get("request") != self.request:  # the file is about other training data or settings
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
        """Look up a job with the same request that runs or succeeded; None if there is none."""
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
        """Create a job; the id of its training file is written to ``job.json`` first."""
        if "file" not in state:
            state["file"] = await self.call(self._upload)
            write_json(self.state, state)
        while (file := await self._get(f"/files/{state['file']}", "training file", "id")).get("status") == "uploaded":
            await asyncio_sleep(1.0)
        if file.get("status") == "error":
            details = self.server.masked(str(file.get("status_details")))
            raise FcotError(f"the server rejects the training file: {details}. {self._how_to_restart()}")

        async def create(client: Any) -> Object:
            """Create the job only if it does not exist: an earlier try may have succeeded although its response was lost."""
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
        """Poll the job until it has ended."""
        try:
            while True:
                job = await self._get(f"{_JOBS}/{job_id}", "fine-tuning job", "status")
                if job["status"] == "succeeded" and job.get("fine_tuned_model"):
                    return _to_result(job)
                if job["status"] == "succeeded":
                    raise FcotError(f"fine-tuning job {job_id} succeeded, but the server names no model. {self._how_to_restart()}")
                if job["status"] in _ENDED_WITHOUT_MODEL:
                    error = job.get("error") or {}
                    message = ": ".join(str(error[name]) for name in ("code", "message") if error.get(name))
                    reason = self.server.masked(message).rstrip(".") or "no reason given"
                    raise FcotError(f"fine-tuning job {job_id} {job['status']}: {reason}. {self._how_to_restart()}")
                watch(_progress(job))
                await asyncio_sleep(poll_s)
        finally:
            await self.call.close()

    async def _get(self, path: str, kind: str, field: str) -> Object:
        """Get a file or a job from the server.

        Args:
            path: Path of the request; ends with the id.
            kind: ``training file`` or ``fine-tuning job``, for messages.
            field: Name of a text that the response must have.

        Raises:
            FcotError: The server does not know the id, or the call fails.
        """

        async def get(client: Any) -> Object:
            return _read(await client.get(path, cast_to=bytes), field, str)

        try:
            return dict(await self.call(get))
        except FcotError as error:
            if getattr(error.__cause__, "status_code", None) != 404:
                raise
            raise FcotError(
                f"this server does not know the {kind} {path.rpartition('/')[2]}: another student.base_url or key? {self._how_to_restart()}"
            ) from error

    def _how_to_restart(self) -> str:
        return (
            f"To start another job, delete {self.state} and run the same command again; "
            "it still reuses a job for the same data if the server has one"
        )


def _read(data: bytes, field: str, kind: type) -> Object:
    """Parse a response: a JSON object whose ``field`` is of type ``kind``.

    Raises:
        Malformed: The response is not such an object.
        ValueError: The response is not JSON.
    """
    response = json.loads(data)
    if not isinstance(response, dict) or not isinstance(response.get(field), kind):
        raise Malformed(f"an answer without {field}")
    return response


def _to_result(job: Object) -> FineTuned:
    batch_size = (job.get("hyperparameters") or {}).get("batch_size")
    return FineTuned(
        job["fine_tuned_model"], job["id"], str(job.get("training_file")), job.get("trained_tokens"),
        batch_size if isinstance(batch_size, int) else None, (job.get("metadata") or {}).get("fcot"),
    )  # fmt: skip


def _progress(job: Object) -> str:
    """A job's progress, such as ``running, 12,000 tokens trained, 340 s since it was created, done at about 14:05``."""
    parts = [str(job["status"])]
    if job.get("trained_tokens"):
        parts.append(f"{job['trained_tokens']:,} tokens trained")
    if job.get("created_at"):
        parts.append(f"{max(0.0, time.time() - job['created_at']):,.0f} s since it was created")
    if job.get("estimated_finish"):
        parts.append(f"done at about {time.strftime('%H:%M', time.localtime(job['estimated_finish']))}")
    return ", ".join(parts)
