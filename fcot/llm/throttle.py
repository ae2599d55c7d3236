"""How many requests may be in flight, and when the next one may go."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from fcot.base.errors import FcotError

_MOST = 1024
_LONGEST_RESET_S = 600.0  # headers that speak of days are left to the server to enforce
_START = 8
_BACK_OFF = 0.95


@dataclass
class _Bucket:
    """A token bucket: ``level`` units now, ``rate`` more a second up to ``capacity``."""

    capacity: float
    rate: float
    level: float
    updated: float

    def wait(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` may be taken; an amount over the capacity waits for a full bucket."""
        self.level = min(self.capacity, self.level + (now - self.updated) * self.rate)
        self.updated = now
        return max(0.0, (min(amount, self.capacity) - self.level) / self.rate)


class Halted(FcotError):
    """A request was not sent because everything was stopped."""


class Throttle:
    """Concurrency, requests and tokens a minute, and pauses the server asks for.

    The first request goes alone: a wrong key, model or parameter is found out by one request. With ``concurrency=None``
    the limit then doubles with every round trip until the server pushes back or twice the requests at once bring less than a
    fifth more a second (a server that queues), drops by a twentieth at each pushback, and creeps up by one a round trip
    (additive increase, multiplicative decrease).

    Args:
        concurrency: Requests in flight at most, None to find out.
        requests_per_minute: None for no limit of one's own; what the server's headers say is kept in any case.
        tokens_per_minute: The same, of prompt and asked-for completion tokens.
        timeout_s: Of a request. The limit does not grow any more when requests wait so long at the server that a third of the time
            between its own pace (the first answers') and the timeout is used up: a queue there would end in timeouts.
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
        self._latency = 0.0  # seconds a request takes, a moving average
        self._pace = 0.0  # the same of the first answers, when next to nothing else was in flight
        self._answered = 0
        self._mark: tuple[float, float, int, float] | None = None  # where doubling was last judged: time, limit, answers, rate
        self._fixed = concurrency
        self._limit = 1.0
        self._proven = False  # a request has succeeded
        self._doubling = True
        self._round = 0  # pushbacks of requests sent before the last reduction do not reduce again
        self._in_flight = 0
        self._pausing = 0
        self._reached = 0  # most in flight since the last reduction: a limit nobody comes near proves nothing
        self._resume_at = 0.0
        self._buckets: dict[str, _Bucket] = {}
        for name, per_minute in (("requests", requests_per_minute), ("tokens", tokens_per_minute)):
            if per_minute is not None:  # a second's worth at once at most, so that a minute's start is no burst
                burst = max(1.0, per_minute / 60)
                self._buckets[f"own {name}"] = _Bucket(burst, per_minute / 60, burst, now)
        self.reset()

    def reset(self) -> None:
        """Forget a halt; what was learnt about the server stays. Each event loop needs its own events."""
        self._changed = asyncio.Event()
        self._halted = asyncio.Event()

    def halt(self) -> None:
        """Let nothing more go: who waits for its turn, or for another try, gets :class:`Halted`."""
        self._halted.set()
        self._changed.set()

    async def pause(self, seconds: float) -> None:
        """Wait before another try.

        Raises:
            Halted: Meanwhile everything was stopped.
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
        """Calls to keep at hand: those in flight, some that take a freed place at once, and those that wait for another try."""
        return self.limit * 5 // 4 + 1 + min(self._pausing, 4 * self.limit) if self._proven else 1

    @property
    def proven(self) -> bool:
        """Whether any request has succeeded."""
        return self._proven

    async def enter(self, tokens: int) -> int:
        """Wait until a request of so many tokens may go; a ticket for :meth:`pushed_back`.

        Raises:
            Halted: Meanwhile everything was stopped.
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
        """A request has ended, one way or the other."""
        self._in_flight -= 1
        self._changed.set()

    def succeeded(self, seconds: float = 0.0) -> None:
        """The server has answered, after so many seconds: more may go."""
        self._answered += 1
        self._latency += (seconds - self._latency) * max(0.1, 1 / self._answered)
        if self._answered <= _START:
            self._pace = self._latency
        queued = self._latency > self._pace + (self._timeout_s - self._pace) / 3
        if not self._proven:
            self._proven = True
            self._limit = float(self._fixed or _START)
        elif self._fixed is None and not queued:
            if self._doubling and 2 * self._reached > self._limit:
                self._limit = min(_MOST, self._limit + 1.0)
                self._judge_doubling()
            elif not self._doubling and self._reached >= self.limit:
                self._limit = min(_MOST, self._limit + 1.0 / self._limit)
        self._changed.set()

    def _judge_doubling(self) -> None:
        """Each time the limit has doubled, see whether that brought more answers a second; if not, go back."""
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
        """The server wants less (429, overloaded): fewer at once, and none before ``pause_s`` seconds where it says so."""
        if pause_s is not None:
            self._resume_at = max(self._resume_at, time.monotonic() + pause_s)
        if self._fixed is None and ticket == self._round and self._proven:
            self._round += 1
            proven = min(self._limit, self._reached) if self._doubling else self._limit
            self._doubling = False
            self._limit = max(1.0, proven * _BACK_OFF)
            self._reached = self._in_flight

    def observe(self, headers: Mapping[str, str]) -> None:
        """Keep to the rate limits an answer's headers tell (OpenAI's ``x-ratelimit-*``)."""
        now = time.monotonic()
        for name in ("requests", "tokens"):
            limit, remaining, reset = (headers.get(f"x-ratelimit-{what}-{name}") for what in ("limit", "remaining", "reset"))
            try:
                capacity, level, seconds = float(limit or ""), float(remaining or ""), _seconds(reset or "")
            except ValueError:
                continue
            if not (0 < capacity < math.inf and 0 <= level < math.inf and seconds <= _LONGEST_RESET_S):
                continue
            # `reset` is when the bucket will be full again: what is missing now comes back in that time.
            rate = max(1.0, capacity - level) / seconds if seconds > 0 else capacity
            self._buckets[name] = _Bucket(capacity, rate, level, now)


def _seconds(duration: str) -> float:
    """The server's way to write durations: ``6m0s``, ``1.5s``, ``20ms``, or bare seconds."""
    if re.fullmatch(r"\d+(\.\d+)?", duration):
        return float(duration)
    units = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6}
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|us|[dhms])", duration)
    if not parts:
        raise ValueError(duration)
    return sum(float(amount) * units[unit] for amount, unit in parts)
