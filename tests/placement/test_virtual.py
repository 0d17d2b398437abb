"""Executors on a simulated clock: order, overlap and deadlines without anybody sleeping."""

import asyncio

import pytest
from placement.workers import run

from freerun.errors import ConfigError, DeadlineExceeded
from freerun.placement.inline import InlinePlacement


def test_virtual_delivers_in_order_of_simulated_time():
    seconds = {("slow", "add"): 10.0, ("fast", "add"): 3.0, ("fast", "note"): 1.5}
    placement = InlinePlacement(schedule="virtual", duration=lambda e, m: seconds[e, m])
    seen = []

    async def body(slow, fast):
        async def call(handle, method, argument):
            await handle.call(method, argument, deadline=100)
            seen.append((placement.now(), handle.name, method))

        await asyncio.gather(call(slow, "add", 1), *(call(fast, "add", 1) for _ in range(3)), call(fast, "note", "x"))

    run(placement, body, "slow", "fast")
    assert seen == [
        (3.0, "fast", "add"),
        (6.0, "fast", "add"),
        (9.0, "fast", "add"),
        (10.0, "slow", "add"),
        (10.5, "fast", "note"),
    ]


def test_virtual_overlaps_async_calls():
    placement = InlinePlacement(schedule="virtual", duration=lambda e, m: 2.0)

    async def body(a):
        await asyncio.gather(*(a.call("make_event", deadline=100) for _ in range(5)))
        return placement.now()

    assert run(placement, body) == 2.0


def test_virtual_deadlines_hold_on_the_simulated_clock():
    placement = InlinePlacement(schedule="virtual", duration=lambda e, m: 60.0)

    async def body(a):
        with pytest.raises(DeadlineExceeded):
            await a.call("add", 1, deadline=45.0)
        failed_at = placement.now()
        await a.call("add", 1, deadline=90.0)
        return failed_at, placement.now()

    assert run(placement, body) == (45.0, 120.0)


def test_virtual_fails_the_call_if_its_duration_cannot_be_had():
    def duration(executor, method):
        raise ZeroDivisionError("no such distribution")

    async def body(a):
        await a.call("add", 1, deadline=9)

    with pytest.raises(ZeroDivisionError):
        run(InlinePlacement(schedule="virtual", duration=duration), body)


def test_virtual_and_durations_go_together():
    with pytest.raises(ConfigError):
        InlinePlacement(schedule="virtual")
    with pytest.raises(ConfigError):
        InlinePlacement(schedule="serial", duration=lambda e, m: 1.0)
