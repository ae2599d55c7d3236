"""How many requests may be in flight and when the next one may go: mostly on a clock that only the test moves."""

from __future__ import annotations

import asyncio
import functools
import itertools
import time

import pytest

from fcot.llm.throttle import Halted, Throttle


class Clock:
    """Stands in for the module ``time`` in the throttle; the event loop keeps the real one."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    fake_clock = Clock()
    monkeypatch.setattr("fcot.llm.throttle.time", fake_clock)
    return fake_clock


def in_a_loop(test):
    """Run a test that is a coroutine."""

    @functools.wraps(test)
    def run(*arguments, **fixtures):
        asyncio.run(test(*arguments, **fixtures))

    return run


async def settle():
    """Let every task run until it waits for a clock or for another task."""
    for _ in range(20):
        await asyncio.sleep(0)


async def try_to_enter(throttle, tokens=1):
    """A ticket where a request may go now, None where it would have to wait."""
    task = asyncio.create_task(throttle.enter(tokens))
    await settle()
    if task.done():
        return task.result()
    task.cancel()
    return None


async def may_go(throttle, tokens=1):
    return await try_to_enter(throttle, tokens) is not None


async def fill(throttle):
    """The tickets of as many requests as may be in flight."""
    tickets = []
    while (ticket := await try_to_enter(throttle)) is not None:
        tickets.append(ticket)
    return tickets


def succeed(throttle, n=1, seconds=0.0):
    for _ in range(n):
        throttle.succeeded(seconds)
        throttle.leave()


async def round_trip(throttle, clock=None, seconds=1.0):
    """Send as many requests as the throttle allows at once and answer all of them; returns their number."""
    n = len(await fill(throttle))
    if clock is not None:
        clock.now += seconds
    succeed(throttle, n, seconds if clock is not None else 0.0)
    return n


# --- requests in flight -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [None, 5])
@in_a_loop
async def test_requests_are_sent_one_by_one_until_the_first_succeeds(concurrency):
    throttle = Throttle(concurrency, None, None)
    for _ in range(3):  # failed tries
        assert not throttle.proven
        assert len(await fill(throttle)) == 1
        throttle.leave()
    assert await round_trip(throttle) == 1
    assert throttle.proven
    assert len(await fill(throttle)) == (concurrency or 8)


@in_a_loop
async def test_a_fixed_limit_neither_grows_nor_shrinks():
    throttle = Throttle(3, None, None)
    assert [await round_trip(throttle) for _ in range(5)] == [1, 3, 3, 3, 3]
    tickets = await fill(throttle)
    for ticket in tickets:
        throttle.pushed_back(ticket, None)
        throttle.leave()
    assert await round_trip(throttle) == 3
    assert len(await fill(throttle)) == 3
    throttle.leave()
    assert await may_go(throttle)
    assert not await may_go(throttle)


@in_a_loop
async def test_an_adaptive_limit_doubles_each_round_trip_then_drops_by_a_twentieth_and_grows_by_one(clock):
    throttle = Throttle(None, None, None)
    assert [await round_trip(throttle, clock) for _ in range(6)] == [1, 8, 16, 32, 64, 128]
    tickets = await fill(throttle)
    assert len(tickets) == 256
    throttle.pushed_back(tickets[0], None)
    for _ in tickets:
        throttle.leave()
    after = [await round_trip(throttle) for _ in range(4)]
    assert after[0] == int(256 * 0.95)
    assert all(0 <= later - earlier <= 1 for earlier, later in itertools.pairwise(after))
    assert after[-1] > after[0]


@in_a_loop
async def test_the_limit_stops_growing_at_a_server_that_queues(clock):
    """Twice as many at once take twice as long: the server answers 20 requests per second, however many are sent."""
    throttle = Throttle(None, None, None)
    for _ in range(60):
        await round_trip(throttle, clock, throttle.limit / 20)
    assert throttle.limit < 100


@in_a_loop
async def test_a_limit_stops_growing_when_queueing_comes_near_the_timeout(clock):
    """Answers take 1 s up to 16 at once, and longer the more wait; requests end after 3 s."""
    throttle = Throttle(None, None, None, timeout_s=3.0)
    longest = 0.0
    for _ in range(20):
        seconds = max(1.0, throttle.limit / 16)
        longest = max(longest, seconds)
        await round_trip(throttle, clock, seconds)
    assert throttle.limit >= 16
    assert longest < 3.0


@pytest.mark.parametrize(("seconds", "timeout_s"), [(40, 120), (200, 600)])
@in_a_loop
async def test_a_slow_model_gets_as_many_requests_at_once_as_a_fast_one(clock, seconds, timeout_s):
    """On the clock of the test: after at most an hour of slow answers, 1,024 requests are in flight."""
    throttle = Throttle(None, None, None, timeout_s=timeout_s)
    began = clock.now
    while clock.now - began < 3600 and throttle.limit < 1024:
        await round_trip(throttle, clock, seconds)
    print(f"answers take {seconds} s: {throttle.limit} in flight after an hour")
    assert throttle.limit == 1024


@in_a_loop
async def test_a_slow_model_behind_a_limit_of_its_server_gets_that_many_requests(clock):
    """The server accepts 50 at once and rejects the rest. With answers of 40 s the limit comes close to 50 within 20 minutes."""
    throttle = Throttle(None, None, None, timeout_s=120)
    for _ in range(30):
        tickets = await fill(throttle)
        for ticket in tickets[50:]:
            throttle.pushed_back(ticket, None)
            throttle.leave()
        clock.now += 40
        for _ in tickets[:50]:
            throttle.succeeded(40.0)
            throttle.leave()
    assert 40 <= throttle.limit <= 52


@in_a_loop
async def test_pushbacks_of_one_round_trip_reduce_once(clock):
    throttle = Throttle(None, None, None)
    for _ in range(4):
        await round_trip(throttle, clock)
    tickets = await fill(throttle)
    assert len(tickets) == 64
    for ticket in tickets[:40]:
        throttle.pushed_back(ticket, None)
        throttle.leave()
    assert throttle.limit == 60
    late, early = tickets[40], await try_to_enter(throttle)
    throttle.pushed_back(late, None)
    assert throttle.limit == 60, "sent before the reduction"
    throttle.pushed_back(early, None)
    assert throttle.limit < 60, "sent after the reduction"


@in_a_loop
async def test_a_pushback_before_the_first_success_does_not_change_the_limit():
    throttle = Throttle(None, None, None)
    throttle.pushed_back(await try_to_enter(throttle), None)
    throttle.leave()
    assert [await round_trip(throttle) for _ in range(3)] == [1, 8, 16]


@in_a_loop
async def test_the_limit_never_falls_below_one():
    throttle = Throttle(None, None, None)
    await round_trip(throttle)
    for _ in range(200):
        throttle.pushed_back(await try_to_enter(throttle), None)
        throttle.leave()
    assert throttle.limit == 1
    assert await may_go(throttle)


@in_a_loop
async def test_an_unused_limit_does_not_grow_beyond_twice_the_requests_in_flight():
    throttle = Throttle(None, None, None)
    await round_trip(throttle)
    await round_trip(throttle)
    for _ in range(12):
        await throttle.enter(1)
    for _ in range(1000):
        throttle.leave()
        throttle.succeeded()
        await throttle.enter(1)
    assert throttle.limit == 24


@in_a_loop
async def test_after_a_pushback_an_unused_limit_does_not_grow():
    throttle = Throttle(None, None, None)
    for _ in range(3):
        await round_trip(throttle)
    tickets = await fill(throttle)
    for _ in tickets[1:]:
        throttle.leave()
    throttle.pushed_back(tickets[0], None)
    throttle.leave()
    reduced = throttle.limit
    assert 8 < reduced < 32
    for _ in range(1000):
        await throttle.enter(1)
        succeed(throttle)
    assert throttle.limit == reduced


# --- configured rates -------------------------------------------------------------------------------------------------------


async def send(throttle, n, tokens=1):
    """Seconds until ``n`` requests were sent. Each is answered immediately."""

    async def send_request():
        await throttle.enter(tokens)
        succeed(throttle)

    begin = time.monotonic()
    await asyncio.gather(*(send_request() for _ in range(n)))
    return time.monotonic() - begin


@in_a_loop
async def test_requests_per_minute_spread_requests():
    """600 per minute: ten may go at once, six more need a tenth of a second each."""
    assert await send(Throttle(None, 600, None), 16) > 0.59


@in_a_loop
async def test_tokens_per_minute_spread_requests():
    """60,000 per minute: 1,000 tokens per second may go at once, 600 more take 0.6 s."""
    assert await send(Throttle(50, None, 60_000), 4, tokens=400) > 0.59


@in_a_loop
async def test_the_slower_of_two_rates_counts(clock):
    throttle = Throttle(50, 600, 60_000)
    await round_trip_of(throttle, 1, tokens=1000)
    assert not await may_go(throttle, tokens=100)
    clock.now += 0.09
    assert not await may_go(throttle, tokens=100)
    clock.now += 0.02
    assert await may_go(throttle, tokens=100)


async def round_trip_of(throttle, n, tokens=1):
    for _ in range(n):
        assert await may_go(throttle, tokens)
        succeed(throttle)


@pytest.mark.parametrize(("rate", "waits"), [(60, 1.0), (6, 10.0), (0.5, 120.0)])
@in_a_loop
async def test_a_minute_does_not_begin_with_a_burst(clock, rate, waits):
    throttle = Throttle(50, rate, None)
    await round_trip_of(throttle, 1)
    for _ in range(3):
        clock.now += waits * 0.99
        assert not await may_go(throttle)
        clock.now += waits * 0.02
        await round_trip_of(throttle, 1)


@in_a_loop
async def test_idle_time_is_not_saved_up_beyond_a_second(clock):
    throttle = Throttle(50, 600, None)
    clock.now += 3600
    await round_trip_of(throttle, 10)
    assert not await may_go(throttle)


@in_a_loop
async def test_a_request_larger_than_the_bucket_is_sent_and_delays_the_next(clock):
    throttle = Throttle(50, None, 60_000)
    await round_trip_of(throttle, 1, tokens=5000)
    clock.now += 3.9
    assert not await may_go(throttle)
    clock.now += 0.2
    assert await may_go(throttle)


# --- what the server's headers say ------------------------------------------------------------------------------------------


def headers(kind="requests", limit="10", remaining="0", reset="1s"):
    return {f"x-ratelimit-limit-{kind}": limit, f"x-ratelimit-remaining-{kind}": remaining, f"x-ratelimit-reset-{kind}": reset}


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("1s", 1.0), ("6m0s", 360.0), ("20ms", 0.02), ("8.64s", 8.64), ("0h2m3.5s", 123.5), ("2", 2.0), ("500us", 5e-4),
    ],
)  # fmt: skip
@in_a_loop
async def test_an_empty_bucket_of_the_server_delays_requests_until_it_refills(clock, reset, seconds):
    throttle = Throttle(50, None, None)
    await round_trip_of(throttle, 1)
    throttle.observe(headers(limit="1000", reset=reset))
    clock.now += seconds / 1000 * 0.98  # a thousand requests come back in that time
    assert not await may_go(throttle)
    clock.now += seconds / 1000 * 0.04
    assert await may_go(throttle)
    assert not await may_go(throttle)


@in_a_loop
async def test_the_remaining_requests_of_a_limit_are_sent_at_once(clock):
    throttle = Throttle(50, None, None)
    await round_trip_of(throttle, 1)
    throttle.observe(headers(limit="100", remaining="7", reset="1m"))
    await round_trip_of(throttle, 7)
    assert not await may_go(throttle)


@in_a_loop
async def test_the_servers_tokens_delay_large_requests_and_let_small_requests_pass(clock):
    throttle = Throttle(50, None, None)
    await round_trip_of(throttle, 1, tokens=100)
    throttle.observe(headers("tokens", "60000", "200", "59.8s"))
    assert not await may_go(throttle, tokens=300)
    assert await may_go(throttle, tokens=150)
    clock.now += 0.3
    assert await may_go(throttle, tokens=300)


@pytest.mark.parametrize(
    "received",
    [
        {}, headers(limit="many"), headers(remaining=""), headers(reset="soon"), headers(reset=""), headers(limit="0"), headers(limit="-1"),
        {"x-ratelimit-remaining-requests": "0"}, headers("flowers"), headers(limit="nan"),
    ],
)  # fmt: skip
@in_a_loop
async def test_invalid_headers_delay_no_request(clock, received):
    throttle = Throttle(50, None, None)
    await round_trip_of(throttle, 1)
    throttle.observe(received)
    await round_trip_of(throttle, 40)


@in_a_loop
async def test_a_full_bucket_delays_no_request(clock):
    throttle = Throttle(50, None, None)
    await round_trip_of(throttle, 1)
    throttle.observe(headers(limit="100", remaining="100", reset="0s"))
    await round_trip_of(throttle, 40)


@in_a_loop
async def test_the_newest_headers_count(clock):
    throttle = Throttle(50, None, None)
    await round_trip_of(throttle, 1)
    throttle.observe(headers(reset="10m"))
    assert not await may_go(throttle)
    throttle.observe(headers(remaining="5", reset="10m"))
    await round_trip_of(throttle, 5)
    assert not await may_go(throttle)


@in_a_loop
async def test_the_servers_headers_do_not_raise_the_configured_limit(clock):
    throttle = Throttle(50, 60, None)
    await round_trip_of(throttle, 1)
    throttle.observe(headers(limit="10000", remaining="9999", reset="6ms"))
    assert not await may_go(throttle)


# --- pauses -----------------------------------------------------------------------------------------------------------------


@in_a_loop
async def test_a_retry_after_delays_all_requests_and_a_shorter_one_does_not_shorten_it(clock):
    throttle = Throttle(4, None, None)
    await round_trip_of(throttle, 1)
    ticket = await throttle.enter(1)
    throttle.pushed_back(ticket, 5.0)
    throttle.pushed_back(ticket, 1.0)
    throttle.leave()
    clock.now += 4.9
    assert not await may_go(throttle)
    clock.now += 0.2
    assert len(await fill(throttle)) == 4


@in_a_loop
async def test_a_retry_after_delays_waiting_requests_too():
    """The place becomes free before the pause is over. The waiting request goes at the end of the pause."""
    throttle = Throttle(1, None, None)
    ticket = await throttle.enter(1)
    waiting = asyncio.create_task(throttle.enter(1))
    await settle()
    throttle.succeeded()
    begin = time.monotonic()
    throttle.pushed_back(ticket, 0.3)
    throttle.leave()
    await waiting
    assert time.monotonic() - begin > 0.29


@in_a_loop
async def test_a_pause_lasts_as_long_as_it_should():
    begin = time.monotonic()
    await Throttle(1, None, None).pause(0.2)
    assert time.monotonic() - begin > 0.19


# --- halt and reset ---------------------------------------------------------------------------------------------------------


@in_a_loop
async def test_halt_wakes_all_waiting_requests():
    """Waiting for a place, for a rate, for the end of a pause that the server requested, and for another try."""
    for_a_place, for_the_server, for_another_try = (Throttle(1, None, None) for _ in range(3))
    for_a_rate = Throttle(5, 0.001, None)
    for throttle in (for_a_place, for_a_rate, for_the_server):
        ticket = await throttle.enter(1)
        throttle.succeeded()
        if throttle is for_the_server:
            throttle.pushed_back(ticket, 3600.0)
        if throttle is not for_a_place:
            throttle.leave()
    waiting = [asyncio.create_task(throttle.enter(1)) for throttle in (for_a_place, for_a_rate, for_the_server) for _ in range(3)]
    waiting.append(asyncio.create_task(for_another_try.pause(3600.0)))
    await settle()
    assert not any(task.done() for task in waiting)
    for throttle in (for_a_place, for_a_rate, for_the_server, for_another_try):
        throttle.halt()
    ended = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 60)
    assert {type(error) for error in ended} == {Halted}


@in_a_loop
async def test_after_a_halt_no_request_is_sent():
    throttle = Throttle(5, None, None)
    throttle.halt()
    with pytest.raises(Halted):
        await throttle.enter(1)
    with pytest.raises(Halted):
        await throttle.pause(3600.0)


def test_a_reset_throttle_works_in_another_event_loop_and_keeps_its_limit():
    throttle = Throttle(None, None, None)

    async def first():
        for _ in range(3):
            await round_trip(throttle)
        tickets = await fill(throttle)
        waiting = asyncio.create_task(throttle.enter(1))
        await settle()
        throttle.halt()
        with pytest.raises(Halted):
            await waiting
        for _ in tickets:
            throttle.leave()
        throttle.reset()

    async def second():
        assert throttle.proven
        assert len(await fill(throttle)) == 32
        waiting = asyncio.create_task(throttle.enter(1))
        await settle()
        assert not waiting.done()
        succeed(throttle)
        await asyncio.wait_for(waiting, 60)

    asyncio.run(first())
    asyncio.run(second())


@in_a_loop
async def test_a_cancelled_wait_takes_no_slot():
    throttle = Throttle(2, None, None)
    await round_trip(throttle)
    await fill(throttle)
    waiting = [asyncio.create_task(throttle.enter(1)) for _ in range(5)]
    await settle()
    for task in waiting:
        task.cancel()
    await settle()
    for _ in range(2):
        throttle.leave()
    assert len(await fill(throttle)) == 2
