"""OpenAI's Batch API: requests are uploaded in files, and answers arrive within 24 hours at a lower price, in the same store.

Until a batch is collected, two files under ``batches/`` of the store's folder describe it: its jobs, written before the upload,
and its state with the server's batch id. A restarted run collects these batches before it sends requests. If it was killed
before the id was written, it finds the batch by its metadata.
"""

from __future__ import annotations

import asyncio
import calendar
import io
import json
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from fcot.base.console import say
from fcot.base.errors import BudgetSpent, FcotError
from fcot.base.files import read_json, read_jsonl, write_json, write_jsonl
from fcot.base.loop import run_async
from fcot.base.records import Problem
from fcot.base.stopping import asyncio_sleep
from fcot.llm.batch_files import places_of, set_aside_hint, state_of, to_job
from fcot.llm.calls import Calls
from fcot.llm.failures import ErrorInside, Malformed, failure_of
from fcot.llm.meter import Meter, over_budget_message
from fcot.llm.openai import ONE_BY_ONE, OpenAIModel
from fcot.llm.plan import Plan, SlotRange, distributions_of, missing, sent_row, to_rows
from fcot.llm.replies import to_reply
from fcot.llm.requests import NO_ACCOUNT, Account, Reply, Request, Usage
from fcot.llm.server import Server
from fcot.llm.store.folder import StoreFolder

_ENDED = {"completed", "expired", "failed", "cancelled"}
_TRIES_WITHOUT_PROGRESS = 3
_SEARCH_BACK_S = 48 * 3600  # before the time in a batch's name; time zones and clocks differ by less


class BatchModel:
    """A model behind the Batch API.

    Args:
        server: The server of the model.
        online: The same model, used online for previews; its answers have the same keys.
        poll_s: Seconds between two checks of a batch.
        max_tries: The most tries of one call that fails for a temporary reason.
        max_requests: The API's limit on requests per file.
        max_bytes: The API's limit on a file's size, in bytes.
    """

    def __init__(
        self,
        server: Server,
        online: OpenAIModel,
        poll_s: float,
        max_tries: int = 20,
        max_requests: int = 50_000,
        max_bytes: int = 190_000_000,
    ) -> None:
        self.server = server
        self.online = online
        self.identity = server.identity
        self.older_identities = online.older_identities
        self.chat = server.chat
        self.max_choices = online.max_choices
        self.poll_s = poll_s
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self.call = Calls(server, "the Batch API", max_tries)
        self.retries = self.call.retries
        self.progress = ""

    @property
    def concurrency(self) -> int:
        """How many online requests may be outstanding."""
        return self.online.concurrency

    async def generate(self, request: Request, n: int, seed: int, account: Account = NO_ACCOUNT) -> Reply:
        """Send one request online."""
        return await self.online.generate(request, n, seed, account)

    def status(self) -> str:
        """Progress of the batches, and failed tries by kind."""
        return ", ".join([self.progress, *(f"{count} x {kind}" for kind, count in self.retries.most_common())])

    def halt(self) -> None:
        """Send no further online requests."""
        self.online.halt()

    async def close(self) -> None:
        """Close the connections."""
        await self.online.close()
        await self.call.close()

    async def download(self, file_id: str, to: Path) -> None:
        """Write the content of the server's file ``file_id`` to the path ``to``, without ever holding all of it in memory."""

        async def fetch(client: Any) -> None:
            async with client.files.with_streaming_response.content(file_id) as response:
                with to.open("wb") as file:
                    async for part in response.iter_bytes():
                        file.write(part)

        await self.call(fetch)


def buy_in_batches(plan: Plan, folder: StoreFolder, to_buy: Sequence[tuple[str, Problem]], meter: Meter) -> None:
    """Buy the missing completions of some problems. All shards are locked meanwhile, because a batch's answers may belong to any of them.

    Args:
        plan: The run's plan; its teacher is a :class:`BatchModel`.
        folder: The store's folder.
        to_buy: Step-1 key and problem of each problem that is incomplete.
        meter: Updated as completions arrive.

    Raises:
        FcotError: The server rejects the requests, a batch failed or was cancelled, or the budget is used up.
    """
    with folder.exclusive(say):
        try:
            run_async(_Batches(plan, folder, meter).run(to_buy))
        except KeyboardInterrupt:
            say("\nsubmitted batches continue at the server; run the same command again to collect them")
            raise


class _Batches:
    """Repeats two steps until all problems are complete: collect open batches, submit what is missing."""

    def __init__(self, plan: Plan, folder: StoreFolder, meter: Meter) -> None:
        assert isinstance(plan.teacher, BatchModel)
        self.plan = plan
        self.teacher = plan.teacher
        self.folder = folder
        self.meter = meter
        self.max_requests = self.teacher.max_requests
        self.last_failure = ""  # the server's message about the last request that has to be sent again
        self.full = False  # the server's limit on enqueued tokens was reached, so a round without answers is no failure

    async def run(self, to_buy: Sequence[tuple[str, Problem]]) -> None:
        n_fruitless = 0
        try:
            while True:
                n_stored = await self._collect_all()
                jobs, incomplete = [], []
                for key, problem in to_buy:
                    if needed := missing(self.plan, self.folder.shard(key), key, problem):
                        jobs += needed
                        incomplete.append((key, problem))
                    else:
                        self.meter.bought += self.plan.diversity
                        self.meter.finished(self.plan.diversity)
                        self.meter.judge_problem(self.plan, self.folder.shard(key), key, problem)
                to_buy = incomplete
                if not to_buy:
                    return
                n_fruitless = 0 if n_stored or self.full else n_fruitless + 1
                if n_fruitless > _TRIES_WITHOUT_PROGRESS:
                    last_failure = f". The last failure: {self.last_failure}" if self.last_failure else ""
                    raise FcotError(
                        f"{n_fruitless} rounds of batches returned no answer; failures: {dict(self.teacher.retries)}{last_failure}. "
                        "The same command tries again"
                    )
                await self._submit(jobs)
        finally:
            await self.teacher.close()

    # --- submitting ---

    async def _submit(self, jobs: Sequence[SlotRange]) -> None:
        """Write, upload and start batches for as many jobs as the budget allows."""
        affordable = list(self._affordable(jobs))
        if not affordable:
            raise BudgetSpent(over_budget_message(self.plan, self.meter, self._bound(jobs[0])))
        for chunk in self._files(affordable):
            now = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
            path = self.folder.path / "batches" / f"{now}-{uuid.uuid4().hex[:8]}.jobs.jsonl"
            write_jsonl(path, (self._to_row(job, f"{path.name[:24]}-{i}") for i, job in enumerate(chunk)))
            await self._start(path)

    def _affordable(self, jobs: Sequence[SlotRange]) -> Iterator[SlotRange]:
        """The first of the jobs whose maximum cost together fits into the rest of the run's budget; all without a budget."""
        remaining = None if self.plan.available_usd is None else self.plan.available_usd - (self.meter.paid_usd or 0.0)
        for job in jobs:
            if remaining is not None:
                remaining -= self._bound(job)
                if remaining < 0:
                    return
            yield job

    def _bound(self, job: SlotRange) -> float:
        return self.plan.bound_usd(job.request, job.n, batch=True)

    def _files(self, jobs: Sequence[SlotRange]) -> Iterator[list[SlotRange]]:
        """The jobs of each file, within the API's limits."""
        chunk: list[SlotRange] = []
        size = 0
        for job in jobs:
            length = len(json.dumps(self.teacher.server.body(job.request, job.n, job.seed))) + 200
            if chunk and (len(chunk) == self.max_requests or size + length > self.teacher.max_bytes):
                yield chunk
                chunk, size = [], 0
            chunk.append(job)
            size += length
        yield chunk

    def _to_row(self, job: SlotRange, custom_id: str) -> dict[str, Any]:
        """A row of a jobs file: the line that is sent to the API, and the fields that are needed to store its answer."""
        body = self.teacher.server.body(job.request, job.n, job.seed)
        problem = job.request.problem
        return {
            "key": job.key, "root": job.request.root, "first_slot": job.first_slot, "n": job.n, "seed": job.seed,
            "sample_index": problem.sample_index if problem else None, "max_tokens": job.request.max_tokens,
            "identity": dict(job.identity), "run": self.plan.run_id,
            "line": {"custom_id": custom_id, "method": "POST", "url": f"/v1{self.teacher.server.path}", "body": body},
        }  # fmt: skip

    async def _start(self, path: Path) -> None:
        """Upload a jobs file, start its batch, and write the batch id to the state file. Does nothing if that file exists."""
        if state_of(path).exists():
            return
        name = path.name[:24]
        batch = await self._find(name)
        if batch is None:
            data = "".join(json.dumps(row["line"], ensure_ascii=False) + "\n" for row in read_jsonl(path)).encode()
            file = await self.teacher.call(lambda client: client.files.create(file=(f"{name}.jsonl", io.BytesIO(data)), purpose="batch"))
            batch = await self.teacher.call(lambda client: self._create(client, file.id, name))
        write_json(state_of(path), {"batch": batch.id})

    async def _create(self, client: Any, file_id: str, name: str) -> Any:
        """Start a batch, unless it exists: an earlier try whose answer was lost may have succeeded."""
        if (batch := await self._find(name)) is not None:
            return batch
        return await client.batches.create(
            input_file_id=file_id, endpoint=f"/v1{self.teacher.server.path}", completion_window="24h", metadata={"fcot": name}
        )

    async def _find(self, name: str) -> Any:
        """The batch with a name; None if the server has none.

        The search goes back from the newest batch to well before the time in the name, because older versions named batches by the
        local time of their machine.
        """
        oldest = calendar.timegm(time.strptime(name[:15], "%Y%m%d-%H%M%S")) - _SEARCH_BACK_S

        async def search(client: Any) -> Any:
            async for batch in client.batches.list(limit=100):
                if (batch.metadata or {}).get("fcot") == name and batch.status != "failed":
                    return batch
                if batch.created_at < oldest:
                    break
            return None

        return await self.teacher.call(search)

    # --- collecting ---

    async def _collect_all(self) -> int:
        """Wait for all open batches and store their answers. Returns how many requests were answered."""
        n_stored, self.full = 0, False
        for path in self.folder.open_batches():
            await self._start(path)
        while paths := self.folder.open_batches():
            batches = {path: await self._retrieve(path) for path in paths}
            ended = {path: batch for path, batch in batches.items() if batch.status in _ENDED}
            for path, batch in ended.items():
                n_stored += await self._collect(path, batch)
            if not ended:
                counts = [batch.request_counts for batch in batches.values() if batch.request_counts is not None]
                done, total = sum(count.completed + count.failed for count in counts), sum(count.total for count in counts)
                self.teacher.progress = f"{len(batches)} batches, {done:,}/{total:,} requests answered"
                self.meter.advance(0)
                await asyncio_sleep(self.teacher.poll_s)
        return n_stored

    async def _retrieve(self, path: Path) -> Any:
        batch_id = read_json(state_of(path))["batch"]
        try:
            return await self.teacher.call(lambda client: client.batches.retrieve(batch_id))
        except FcotError as error:
            if getattr(error.__cause__, "status_code", None) != 404:
                raise
            raise FcotError(
                f"this server does not know the batch {batch_id}, submitted {time.ctime(path.stat().st_mtime)}. Was that with another "
                f"teacher.base_url or key? {set_aside_hint(path)}"
            ) from error

    async def _collect(self, path: Path, batch: Any) -> int:
        """Store an ended batch's answers and delete its files. Requests without an answer are sent again in a later batch."""
        places = dict(places_of(path))
        stop = _failure(batch, self.teacher)
        answered = 0
        with tempfile.TemporaryDirectory(dir=path.parent) as temporary, path.open("rb") as jobs:
            for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
                output = Path(temporary) / "output.jsonl"
                await self._download(path, batch.id, file_id, output)
                with output.open("rb") as lines:
                    for line in lines:
                        try:
                            answered += self._store_line(line, jobs, places, batch.id)
                        except FcotError as error:
                            stop = stop or str(error)
        await asyncio.to_thread(self.folder.sync)
        state_of(path).unlink(missing_ok=True)
        path.unlink()
        if _token_limit(batch):
            await self._make_room(len(places))
        elif stop:
            raise FcotError(stop)
        return answered

    async def _download(self, path: Path, batch_id: str, file_id: str, to: Path) -> None:
        try:
            await self.teacher.download(file_id, to)
        except FcotError as error:
            if getattr(error.__cause__, "status_code", None) not in (400, 404, 410):
                raise
            raise FcotError(
                f"the answers of batch {batch_id} (file {file_id}) are not at the server any more: they were deleted or have expired. "
                f"{set_aside_hint(path)}"
            ) from error

    def _store_line(self, line: bytes, jobs: BinaryIO, places: Mapping[str, int], batch_id: str) -> int:
        """Store the answer in one line of an output or error file. Returns how many requests it answers: 0 or 1.

        Raises:
            FcotError: The server rejects all such requests.
        """
        try:
            answer = json.loads(line)
            jobs.seek(places[answer["custom_id"]])
            row = json.loads(jobs.readline())
        except (ValueError, KeyError, TypeError) as error:
            self.teacher.retries[type(error).__name__] += 1
            return 0
        try:
            reply = self._reply(answer, to_job(row).request)
        except Malformed:
            self.teacher.retries["Malformed"] += 1
            self._count_lost(row, batch_id)
            return 0
        return 0 if reply is None else self._store(row, reply, batch_id)

    def _reply(self, answer: Mapping[str, Any], request: Request) -> Reply | None:
        """The reply to a request in one line of an output or error file; None if the request has to be sent again.

        Raises:
            Malformed: The answer was charged and contains no completion.
            FcotError: The server rejects all such requests.
        """
        response = answer.get("response")
        response = response if isinstance(response, dict) else {}
        status, body = response.get("status_code"), response.get("body")
        if status == 200:
            try:
                return to_reply(body, request, self.teacher.server.logprobs)
            except ErrorInside as error:
                status, body = error.status, error.body
        failure = failure_of(ErrorInside(status if isinstance(status, int) else None, body or answer.get("error")))
        server = self.teacher.server
        if (refused := server.refusal(failure)) is not None:
            return Reply([refused], Usage(0, 0))
        if failure.status is not None and not failure.retriable and failure.status != 200:
            if server.names_n(failure):
                if self.teacher.max_choices > 1:
                    self.teacher.max_choices = 1
                    say(ONE_BY_ONE)
                return None
            raise FcotError(f"the server rejects the request: {server.masked(failure.text)}{server.remedy(failure)}")
        code = answer["error"].get("code") if isinstance(answer.get("error"), dict) else None
        self.teacher.retries[str(status or code or "failed")] += 1
        self.last_failure = server.masked(failure.text)
        return None

    def _store(self, row: Mapping[str, Any], reply: Reply, batch_id: str) -> bool:
        """Append an answer's rows, unless a killed process has done so. The rows have the id of the run that sent the request.

        Returns:
            Whether rows were appended.
        """
        job, request_id = to_job(row), row["line"]["custom_id"]
        shard = self.folder.shard(job.root)
        if any(stored["request"] == request_id for stored in shard.all_rows(job.key)):
            return False
        extra = {"batch": batch_id, "run": row["run"]}
        rows = to_rows(self.plan, job, shard, reply, request_id, bound_usd=self._bound(job), **extra)
        shard.append(rows, distributions_of(shard, rows, reply))
        self._pay(row, self.meter.account(self.plan, reply.usage, self._bound(job), batch=True))
        return True

    def _count_lost(self, row: Mapping[str, Any], batch_id: str) -> None:
        """Count a charged answer without a completion at its maximum cost."""
        job, request_id = to_job(row), row["line"]["custom_id"]
        shard, bound = self.folder.shard(job.root), self._bound(job)
        if bound and not any(stored["request"] == request_id for stored in shard.all_rows(job.key)):
            shard.append([sent_row(self.plan, job, request_id, bound) | {"batch": batch_id, "run": row["run"]}])
            self._pay(row, bound)

    def _pay(self, row: Mapping[str, Any], usd: float) -> None:
        if row["run"] == self.plan.run_id and self.meter.paid_usd is not None:
            self.meter.paid_usd += usd

    async def _make_room(self, n: int) -> None:
        """React to the limit on enqueued tokens: wait. If no other batch is open, also make the next batches smaller.

        Args:
            n: Number of requests in the batch that exceeded the limit.
        """
        self.full = True
        n_open = len(self.folder.open_batches())
        if not n_open:
            self.max_requests = max(1, min(self.max_requests, n) // 2)
        say(
            f"the account's limit on enqueued tokens is reached: {n:,} requests wait"
            + ("" if n_open else f" and are submitted {self.max_requests:,} at a time")
        )
        await asyncio_sleep(self.teacher.poll_s)


def _token_limit(batch: Any) -> bool:
    """Whether a batch failed because the account's limit on enqueued tokens was reached."""
    return any(error.code == "token_limit_exceeded" for error in (batch.errors.data or [] if batch.errors else []))


def _failure(batch: Any, teacher: BatchModel) -> str | None:
    """Why the run ends with this batch; None if it continues."""
    if batch.status == "failed" and not _token_limit(batch):
        errors = batch.errors.data or [] if batch.errors else []
        reasons = "; ".join(f"{error.code}: {error.message}" + (f" (line {error.line})" if error.line else "") for error in errors[:3])
        return f"batch {batch.id} failed: {teacher.server.masked(reasons) or 'no reason given'}. It bought nothing"
    if batch.status == "cancelled":
        return f"batch {batch.id} was cancelled. Its answers so far are in the store; the same command requests the rest"
    if batch.status == "expired":
        teacher.retries["expired"] += 1
    return None
