"""Executors within one process: overlap, order, deaths, deadlines."""

import asyncio
import threading

import pytest
import torch
from placement.workers import Worker, run

from freerun.errors import ConfigError, DataError, DeadlineExceeded, ExecutorDied, ExecutorFailed
from freerun.placement.base import ExecutorSpec
from freerun.placement.inline import InlinePlacement


@pytest.fixture(params=["threads", "serial", "virtual"])
def placement(request) -> InlinePlacement:
    return InlinePlacement(schedule=request.param, duration=(lambda *_: 1.0) if request.param == "virtual" else None)


def test_a_call_returns_what_the_method_returns(placement):
    async def body(a):
        return [await a.call("add", 5, deadline=20), await a.call("add", 1, deadline=20)]

    assert run(placement, body, state=1) == [8, 25]


def test_a_stream_yields_the_elements_in_order_and_ends(placement):
    async def body(a):
        return [i async for i in a.stream("count", 4, deadline=20)]

    assert run(placement, body) == [0, 1, 2, 3]


def test_a_stream_that_is_left_early_computes_no_further_element(placement):
    async def body(a):
        stream = a.stream("count", 100, deadline=20)
        async for i in stream:
            if i == 1:
                break
        await stream.aclose()
        return await a.call("note", "end", deadline=20)

    assert run(placement, body) == [0, 1, "end"]


def test_errors_made_on_purpose_arrive_as_themselves(placement):
    async def body(a):
        await a.call("complain", deadline=20)

    with pytest.raises(DataError, match="row 7"):
        run(placement, body)


def test_other_errors_arrive_with_executor_method_and_traceback(placement):
    async def body(a):
        with pytest.raises(ExecutorFailed, match=r"a\.stumble raised KeyError: 'oops'") as caught:
            await a.call("stumble", deadline=20)
        assert 'raise KeyError("oops")' in caught.value.given
        assert await a.call("add", 1, deadline=20) == 1  # it lives on

    run(placement, body)


def test_an_unknown_method_is_an_error_of_the_call(placement):
    async def body(a):
        await a.call("nonsense", deadline=20)

    with pytest.raises(ExecutorFailed, match="nonsense"):
        run(placement, body)


def test_a_constructor_that_raises_stops_the_others_and_its_error_is_raised(placement):
    async def main():
        first = Worker()
        with pytest.raises(ExecutorFailed, match="negative state"):
            await placement.spawn(
                [
                    ExecutorSpec(name="good", factory=lambda: first),
                    ExecutorSpec(name="bad", factory=Worker, args=(-1,)),
                ]
            )
        return first.closed

    assert asyncio.run(main()) == [True]


def test_an_executor_that_exits_is_dead_and_reported_once(placement):
    async def body(a, b):
        with pytest.raises(ExecutorDied, match="exit status 3"):
            await a.call("leave", deadline=20)
        with pytest.raises(ExecutorDied):
            await a.call("add", 1, deadline=20)
        failures = placement.failures()
        assert await anext(failures) == ("a", "exit status 3")
        assert await b.call("add", 1, deadline=20) == 1
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(failures), 0.01)

    run(placement, body, "a", "b")


def test_executors_come_and_go_beside_those_that_run_and_a_name_may_be_given_again(placement):
    async def body(a):
        for _ in range(2):
            (b,) = (await placement.spawn([ExecutorSpec(name="b", factory=Worker, kwargs={"state": 2})])).values()
            assert await b.call("add", 1, deadline=20) == 7
            await placement.retire("b")
            with pytest.raises(ExecutorDied, match="retired"):
                await b.call("add", 1, deadline=20)
        with pytest.raises(ExecutorFailed):
            await placement.spawn([ExecutorSpec(name="b", factory=Worker, kwargs={"nonsense": 1})])
        assert await a.call("add", 5, deadline=20) == 5
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(placement.failures()), 0.01)

    run(placement, body, "a")


def test_a_respawned_executor_starts_from_its_specification(placement):
    async def body(a):
        await a.call("add", 5, deadline=20)
        placement.kill("a")
        fresh = await placement.respawn("a")
        return await fresh.call("add", 1, deadline=20)

    assert run(placement, body, state=2) == 7


def test_the_handle_of_a_dead_executor_does_not_reach_its_successor(placement):
    async def body(a):
        placement.kill("a")
        fresh = await placement.respawn("a")
        with pytest.raises(ExecutorDied):
            await a.call("add", 1, deadline=20)
        return await fresh.call("add", 1, deadline=20)

    assert run(placement, body, state=2) == 7


def test_two_executors_of_one_name_are_refused(placement):
    async def main():
        with pytest.raises(ConfigError, match="'a'"):
            await placement.spawn([ExecutorSpec(name="a", factory=Worker), ExecutorSpec(name="a", factory=Worker)])

    asyncio.run(main())


def test_stop_closes_every_living_executor(placement):
    async def main():
        workers = {"a": Worker(), "b": Worker()}
        await placement.spawn([ExecutorSpec(name=n, factory=lambda w=w: w) for n, w in workers.items()])
        placement.kill("b")
        await placement.stop()
        return workers["a"].closed, workers["b"].closed

    assert asyncio.run(main()) == ([True], [])


def test_stop_gives_torch_its_number_of_threads_back():
    before = torch.get_num_threads()

    async def main():
        placement = InlinePlacement(schedule="serial")
        await placement.spawn(
            [ExecutorSpec(name="a", factory=Worker, threads=before + 2), ExecutorSpec(name="b", factory=Worker)]
        )
        during = torch.get_num_threads()
        await placement.stop()
        return during

    assert asyncio.run(main()) == before + 2
    assert torch.get_num_threads() == before


# --- threads ----------------------------------------------------------------------------------------------------------------


def test_threads_overlaps_sync_calls_of_two_executors():
    barrier = threading.Barrier(2)  # nobody passes unless both are inside at once

    async def body(a, b):
        return await asyncio.gather(a.call("meet", barrier, deadline=20), b.call("meet", barrier, deadline=20))

    assert sorted(run(InlinePlacement(), body, "a", "b")) == [0, 1]


def test_threads_runs_sync_calls_of_one_executor_one_at_a_time_in_order_of_submission():
    async def body(a):
        event = threading.Event()
        held = asyncio.create_task(a.call("hold", event, deadline=20))
        rest = [asyncio.create_task(a.call("note", str(i), deadline=20)) for i in range(5)]
        await asyncio.sleep(0.01)
        assert not any(t.done() for t in rest)
        event.set()
        await held
        return (await asyncio.gather(*rest))[-1]

    assert run(InlinePlacement(), body) == ["0", "1", "2", "3", "4"]


def test_threads_overlaps_async_calls_of_one_executor_with_each_other_and_with_a_sync_call():
    async def body(a):
        event = await a.call("make_event", deadline=20)
        gate = threading.Event()
        sync = asyncio.create_task(a.call("hold", gate, deadline=20))
        waiting = asyncio.create_task(a.call("wait_for", event, deadline=20))
        await a.call("set", event, deadline=20)
        assert await waiting == "seen"
        assert not sync.done()
        gate.set()
        assert await sync

    run(InlinePlacement(), body)


def test_threads_keeps_one_thread_per_executor():
    async def body(a, b):
        return [await h.call("thread", deadline=20) for h in (a, a, b)]

    first, second, other = run(InlinePlacement(), body, "a", "b")
    assert first == second != other


def test_a_call_past_its_deadline_fails_and_names_the_executor_and_the_wait():
    async def body(a):
        event = threading.Event()
        with pytest.raises(DeadlineExceeded, match=r"'a' did not finish in time: count sheep"):
            await a.call("hold", event, deadline=0.05, what="count sheep")
        event.set()

    run(InlinePlacement(), body)


def test_waits_lists_what_is_open_and_for_how_long():
    placement = InlinePlacement()

    async def body(a):
        event = threading.Event()
        call = asyncio.create_task(a.call("hold", event, deadline=20, what="count sheep"))
        await asyncio.sleep(0.01)
        [(name, what, seconds)] = placement.waits()
        event.set()
        await call
        return name, what, seconds > 0, placement.waits()

    assert run(placement, body) == ("a", "count sheep", True, [])


def test_a_kill_ends_the_open_calls():
    placement = InlinePlacement()

    async def body(a):
        event = threading.Event()
        call = asyncio.create_task(a.call("hold", event, deadline=20))
        await asyncio.sleep(0.01)
        placement.kill("a", "out of memory")
        with pytest.raises(ExecutorDied, match="out of memory"):
            await call
        event.set()

    run(placement, body)


# --- serial and virtual -----------------------------------------------------------------------------------------------------


def test_serial_runs_on_the_callers_thread_in_order_of_submission():
    order = []

    async def body(a, b):
        async def call(handle, i):
            await handle.call("add", i, deadline=20)
            order.append(i)

        await asyncio.gather(call(b, 0), call(a, 1), call(b, 2), call(a, 3))
        return await a.call("thread", deadline=20)

    assert run(InlinePlacement(schedule="serial"), body, "a", "b") == threading.current_thread().name
    assert order == [0, 1, 2, 3]


def test_serial_lets_every_caller_react_before_the_next_call_runs():
    """Two loops that each call all the time take turns: neither starves."""
    order = []

    async def body(a, b):
        async def loop(handle, word):
            for _ in range(3):
                await handle.call("add", 1, deadline=20)
                order.append(word)

        await asyncio.gather(loop(a, "a"), loop(b, "b"))

    run(InlinePlacement(schedule="serial"), body, "a", "b")
    assert order == ["a", "b"] * 3
