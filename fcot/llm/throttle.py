"""Limits how many requests are in flight, and when the next one is sent."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from fcot.base.errors import FcotError

_LARGEST_LIMIT = 1024
_LONGEST_RESET_S = 600.0  # longer periods in headers, such as days, are left to the server to enforce
_START = 8  # the limit after the first success
_BACK_OFF = 0.95  # factor of the limit at each pushback


@dataclass
class _Bucket:
    """A token bucket: ``level`` units now, ``rate`` more per second up to ``capacity``."""

    capacity: float
    rate: float
    level: float
    updated: float

    def wait(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` may be taken. An amount above the capacity waits for a full bucket."""
        self.level = min(self.capacity, self.level + (now - self.updated) * self.rate)
        self.updated = now
        return max(0.0, (min(amount, self.capacity) - self.level) / self.rate)


class Halted(FcotError):
    """A request was not sent because the throttle was halted."""


class Throttle:
    """Limits concurrency, requests and tokens per minute, and pauses when the server asks for it.

    The first request is sent alone, so a wrong key, model or parameter fails only one request. With ``concurrency=None`` the
    limit on requests in flight then doubles with every round trip. Doubling ends when the server pushes back, or queues: twice
    the requests in flight bring less than a fifth more answers per second. After that the limit grows by one per round trip, and
    drops by a twentieth at each pushback (additive increase, multiplicative decrease).

    Args:
        concurrency: The most requests in flight; None to find out how many the server accepts.
        requests_per_minute: The most requests per minute; None for no limit. Limits in the server's headers are kept in any case.
        tokens_per_minute: The most tokens per minute, of prompts and requested completions; None for no limit.
        timeout_s: Timeout of a request, in seconds. A longer queue at the server would end in timeouts, so the limit stops growing when
            the latency has come a third of the way from that of the first answers to the timeout.
    """

    def __init__(
        self,
        concurrency: int | None,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        timeout_s: float = math.inf,
    ) -> None:
        now = time.monotonic()
        self._timeout_s = timeout_s
        self._latency = 0.0  # seconds that a request takes, a moving average
        self._first_latency = 0.0  # that of the first answers, with almost no other requests in flight
        self._answered = 0
        self._mark: tuple[float, float, int, float] | None = None  # the last check of doubling: time, limit, answers, answers per second
        self._fixed = concurrency
        self._limit = 1.0
        self._proven = False  # a request has succeeded
        self._doubling = True
        self._round = 0  # number of reductions; a pushback of a request that was sent before the last reduction does not reduce again
        self._in_flight = 0
        self._pausing = 0
        self._reached = 0  # most requests in flight since the last reduction: a limit that was never reached is not proven
        self._resume_at = 0.0
        self._buckets: dict[str, _Bucket] = {}
        for name, per_minute in (("requests", requests_per_minute), ("tokens", tokens_per_minute)):
            if per_minute is not None:  # at most one second's worth at once, so that a minute does not start with a burst
                burst = max(1.0, per_minute / 60)
                self._buckets[f"own {name}"] = _Bucket(burst, per_minute / 60, burst, now)
        self.reset()

    def reset(self) -> None:
        """Cancel a halt, and keep what was learned about the server. Call it for each event loop, because each needs its own events."""
        self._changed = asyncio.Event()
        self._halted = asyncio.Event()

    def halt(self) -> None:
        """Stop sending: calls that wait for their turn or for another try raise :class:`Halted`."""
        self._halted.set()
        self._changed.set()

    async def pause(self, seconds: float) -> None:
        """Wait before another try.

        Raises:
            Halted: The throttle was halted meanwhile.
        """
        self._pausing += 1
        try:
            await asyncio.wait_for(self._halted.wait(), seconds)
            raise Halted
        except TimeoutError:
            return
        finally:
            self._pausing -= 1

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return max(1, int(self._limit))

    @property
    def in_flight(self) -> int:
        """Requests that are in flight now."""
        return self._in_flight

    @property
    def outstanding(self) -> int:
        """Calls to keep outstanding: those in flight, some that are sent as soon as another ends, and those that wait for another try."""
        return self.limit * 5 // 4 + 1 + min(self._pausing, 4 * self.limit) if self._proven else 1

    @property
    def proven(self) -> bool:
        """Whether any request has succeeded."""
        return self._proven

    async def enter(self, tokens: int) -> int:
        """Wait until a request of ``tokens`` tokens may be sent.

        Returns:
            A ticket for :meth:`pushed_back`.

        Raises:
            Halted: The throttle was halted meanwhile.
        """
        while not self._halted.is_set() and ((wait := self._wait(tokens)) > 0 or self._in_flight >= self.limit):
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), wait if wait > 0 else None)
            except TimeoutError:
                continue
        if self._halted.is_set():
            raise Halted
        for name, bucket in self._buckets.items():
            bucket.level -= tokens if name.endswith("tokens") else 1
        self._in_flight += 1
        self._reached = max(self._reached, self._in_flight)
        return self._round

    def _wait(self, tokens: int) -> float:
        now = time.monotonic()
        waits = [bucket.wait(tokens if name.endswith("tokens") else 1, now) for name, bucket in self._buckets.items()]
        return max([self._resume_at - now, *waits])

    def leave(self) -> None:
        """Count a request as ended, whether it succeeded or failed."""
        self._in_flight -= 1
        self._changed.set()

    def succeeded(self, seconds: float = 0.0) -> None:
        """Count an answer that took ``seconds``: the limit may grow."""
        self._answered += 1
        self._latency += (seconds - self._latency) * max(0.1, 1 / self._answered)
        if self._answered <= _START:
            self._first_latency = self._latency
        queued = self._latency > self._first_latency + (self._timeout_s - self._first_latency) / 3
        if not self._proven:
            self._proven = True
            self._limit = float(self._fixed or _START)
        elif self._fixed is None and not queued:
            if self._doubling and 2 * self._reached > self._limit:
                self._limit = min(_LARGEST_LIMIT, self._limit + 1.0)
                self._judge_doubling()
            elif not self._doubling and self._reached >= self.limit:
                self._limit = min(_LARGEST_LIMIT, self._limit + 1.0 / self._limit)
        self._changed.set()

    def _judge_doubling(self) -> None:
        """Each time the limit has doubled, check whether answers per second have risen. If not, undo the last one and stop doubling."""
        now = time.monotonic()
        if self._mark is None:
            self._mark = now, self._limit, self._answered, 0.0
            return
        began, limit, answered, before = self._mark
        if self._limit < 2 * limit or now <= began:
            return
        rate = (self._answered - answered) / (now - began)
        if rate < 1.2 * before:
            self._doubling = False
            self._limit = limit
            return
        self._mark = now, self._limit, self._answered, rate

    def pushed_back(self, ticket: int, pause_s: float | None) -> None:
        """Reduce the limit after a 429 or an overload.

        Args:
            ticket: The ticket that :meth:`enter` returned for the request.
            pause_s: Seconds in which no request is sent; None if the server asked for no pause.
        """
        if pause_s is not None:
            self._resume_at = max(self._resume_at, time.monotonic() + pause_s)
        if self._fixed is None and ticket == self._round and self._proven:
            self._round += 1
            proven = min(self._limit, self._reached) if self._doubling else self._limit
            self._doubling = False
            self._limit = max(1.0, proven * _BACK_OFF)
            self._reached = self._in_flight

    def observe(self, headers: Mapping[str, str]) -> None:
        """Adopt the rate limits in an answer's headers (OpenAI's ``x-ratelimit-*``)."""
        now = time.monotonic()
        for name in ("requests", "tokens"):
            limit, remaining, reset = (headers.get(f"x-ratelimit-{field}-{name}") for field in ("limit", "remaining", "reset"))
            try:
                capacity, level, seconds = float(limit or ""), float(remaining or ""), _seconds(reset or "")
            except ValueError:
                continue
            if not (0 < capacity < math.inf and 0 <= level < math.inf and seconds <= _LONGEST_RESET_S):
                continue
            # `reset` is the time until the bucket is full again, so the missing units come back within it.
            rate = max(1.0, capacity - level) / seconds if seconds > 0 else capacity
            self._buckets[name] = _Bucket(capacity, rate, level, now)


def _seconds(duration: str) -> float:
    """Seconds of a duration as servers write it: ``6m0s``, ``1.5s``, ``20ms``, or plain seconds."""
    if re.fullmatch(r"\d+(\.\d+)?", duration):
        return float(duration)
    units = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6}
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|us|[dhms])", duration)
    if not parts:
        raise ValueError(duration)
    return sum(float(amount) * units[unit] for amount, unit in parts)
