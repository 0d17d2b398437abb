"""Executors in processes of their own. Run alone with `pytest -m dist`."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from freerun.errors import ConfigError, DataError, DeadlineExceeded, ExecutorDied, ExecutorFailed
from freerun.placement.base import ExecutorSpec

pytest.importorskip("monarch", reason="torchmonarch is not installed")

from freerun.placement.monarch import MonarchPlacement

pytestmark = [pytest.mark.dist, pytest.mark.timeout(90)]


class Worker:
    """An executor with state, and ways to go wrong. Nothing here imports torch, so its process starts in half a second."""

    def __init__(self, state: int = 0) -> None:
        if state < 0:
            raise ValueError("negative state")
        self.state, self.log, self.event, self.file = state, [], None, None

    def add(self, amount: int) -> int:
        self.state = self.state * 3 + amount
        return self.state

    def note(self, word: object) -> list:
        self.log.append(word)
        return list(self.log)

    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    async def wait(self) -> str:
        self.event = asyncio.Event()
        await self.event.wait()
        return "seen"

    async def wake(self) -> None:
        while self.event is None:
            await asyncio.sleep(0)
        self.event.set()

    async def count(self, end: int):
        try:
            for i in range(end):
                yield i
        finally:
            self.log.append("closed")

    def surroundings(self) -> dict:
        return {
            "cores": sorted(set().union(*(os.sched_getaffinity(int(t)) for t in os.listdir("/proc/self/task")))),
            "threads": [os.environ[f"{who}_NUM_THREADS"] for who in ("OMP", "MKL")],
            "policy": os.environ["OMP_WAIT_POLICY"],
            "leads its group": os.getpgrp() == os.getpid(),
            "torch": "torch" in sys.modules,
        }

    def complain(self) -> None:
        raise DataError("bad row", given="row 7", expected="a good one", todo="drop it")

    def stumble(self) -> None:
        raise KeyError("oops")

    def unsendable(self) -> object:
        return (i for i in range(3))

    def leave(self) -> None:
        raise SystemExit(3)

    def child(self) -> int:
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid

    def close_into(self, path) -> None:
        self.file = path

    def close(self) -> None:
        if self.file is not None:
            self.file.write_text("closed")


def alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def gone(*pids: int, within: float = 10.0) -> bool:
    end = time.monotonic() + within
    while any(map(alive, pids)):
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.02)
    return True


@pytest.fixture(scope="module")
def pair():
    """Two live executors and the event loop that they belong to: `(run, placement, a, b)`. For tests that kill nobody."""
    cores = sorted(os.sched_getaffinity(0))
    with asyncio.Runner() as runner:
        placement = MonarchPlacement(start_deadline=60)
        specs = [
            ExecutorSpec(name="a", factory=Worker, cores=(cores[0],), threads=1),
            ExecutorSpec(name="b", factory=Worker, kwargs={"state": 1}, cores=(cores[-1],), threads=3),
        ]
        handles = runner.run(placement.spawn(specs))
        pids = placement.pids().values()
        yield runner.run, placement, *handles.values()
        runner.run(placement.stop())
        assert runner.run(gone(*pids))


def run(body, *names: str):
    """`body(placement, handles...)` on fresh workers; afterwards no process may be left."""

    async def main():
        placement = MonarchPlacement(start_deadline=60)
        try:
            handles = await placement.spawn([ExecutorSpec(name=n, factory=Worker) for n in names])
            pids = list(placement.pids().values())
            return await body(placement, *handles.values())
        finally:
            await placement.stop()
            assert await gone(*pids)

    return asyncio.run(main())


def test_results_cross_the_process_boundary_and_state_stays_on_the_other_side(pair):
    run, _, _, b = pair
    assert run(b.call("add", 5, deadline=20)) == 8
    assert run(b.call("add", amount=1, deadline=20)) == 25


def test_nobody_listens_to_the_network(pair):
    _, placement, *_ = pair
    for pid in (os.getpid(), *placement.pids().values()):
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            listening = [c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
            assert listening == [], process.cmdline()


def test_streams_yield_in_order_and_end_when_they_are_left(pair):
    run, _, a, _ = pair

    async def body():
        assert [i async for i in a.stream("count", 4, deadline=20)] == [0, 1, 2, 3]
        stream = a.stream("count", 100, deadline=20)
        assert [await anext(stream), await anext(stream)] == [0, 1]
        await stream.aclose()
        return await a.call("note", "end", deadline=20)

    assert run(body()) == ["closed", "closed", "end"]


def test_errors_made_on_purpose_arrive_as_themselves(pair):
    run, _, a, _ = pair
    with pytest.raises(DataError, match="row 7"):
        run(a.call("complain", deadline=20))


def test_other_errors_arrive_with_executor_method_and_traceback_and_the_executor_lives_on(pair):
    run, _, a, _ = pair
    with pytest.raises(ExecutorFailed, match=r"a\.stumble raised KeyError: 'oops'") as caught:
        run(a.call("stumble", deadline=20))
    assert 'raise KeyError("oops")' in caught.value.given
    with pytest.raises(ExecutorFailed, match="generator"):
        run(a.call("unsendable", deadline=20))
    with pytest.raises(ExecutorFailed, match="nonsense"):
        run(a.call("nonsense", deadline=20))
    assert run(a.call("add", 0, deadline=20)) == 0


def test_async_calls_overlap_while_a_sync_call_runs_and_sync_calls_queue(pair):
    run, placement, _, b = pair

    async def body():
        began = asyncio.create_task(b.call("sleep", 1.0, deadline=20))
        waiting = asyncio.create_task(b.call("wait", deadline=20))
        queued = asyncio.create_task(b.call("note", "later", deadline=20))
        await b.call("wake", deadline=20)
        assert await waiting == "seen"
        assert not began.done() and not queued.done()
        assert {(n, w) for n, w, _ in placement.waits()} == {("b", "sleep"), ("b", "note")}
        await began
        assert await queued == ["later"]
        assert placement.waits() == []

    run(body())


def test_an_executor_has_its_own_cores_and_threads_and_the_controller_keeps_its_own(pair):
    run, _, a, b = pair
    before = os.sched_getaffinity(0), dict(os.environ)
    cores = sorted(before[0])
    rest = {"policy": "passive", "leads its group": True, "torch": False}
    assert run(a.call("surroundings", deadline=20)) == {"cores": [cores[0]], "threads": ["1", "1"], **rest}
    assert run(b.call("surroundings", deadline=20)) == {"cores": [cores[-1]], "threads": ["3", "3"], **rest}
    assert before == (os.sched_getaffinity(0), dict(os.environ))


def test_a_call_past_its_deadline_fails_by_name_and_stop_does_not_wait_for_it(tmp_path):
    async def body(placement, a, b):
        await b.call("close_into", tmp_path / "closed", deadline=20)
        with pytest.raises(DeadlineExceeded, match="'a' did not finish in time: count sheep"):
            await a.call("sleep", 60.0, deadline=0.2, what="count sheep")
        await placement.stop(deadline=2.0)

    run(body, "a", "b")
    assert (tmp_path / "closed").read_text() == "closed"


def test_a_killed_executor_is_noticed_named_and_can_be_respawned():
    async def body(placement, a, b):
        call = asyncio.create_task(a.call("sleep", 60.0, deadline=90))
        await asyncio.sleep(0.1)
        killed = time.monotonic()
        os.kill(placement.pids()["a"], signal.SIGKILL)
        with pytest.raises(ExecutorDied, match=r"(?s)'a' died.*process \d+ ended.*sleep"):
            await call
        name, how = await anext(placement.failures())
        assert name == "a" and re.search(r"process \d+ ended(, killed by SIGKILL)?$", how)
        assert time.monotonic() - killed < 8.0  # at once on a free machine; Monarch alone takes ten
        assert await b.call("add", 1, deadline=20) == 1
        again = await placement.respawn("a")
        with pytest.raises(ExecutorDied):
            await a.call("add", 1, deadline=30)
        assert await again.call("add", 4, deadline=20) == 4

    run(body, "a", "b")


def test_an_executor_that_hangs_can_be_replaced_and_that_is_reported_to_nobody():
    async def body(placement, a):
        with pytest.raises(DeadlineExceeded):
            await a.call("sleep", 60.0, deadline=0.2)
        pid = placement.pids()["a"]
        again = await placement.respawn("a")
        assert await gone(pid)
        with pytest.raises(ExecutorDied):
            await a.call("add", 1, deadline=30)
        assert await again.call("add", 4, deadline=20) == 4
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(placement.failures()), 0.3)

    run(body, "a")


def test_a_frozen_executor_counts_as_dead_and_is_killed(monkeypatch):
    monkeypatch.setattr("freerun.placement.processes.FROZEN", 1.0)

    async def body(placement, a):
        call = asyncio.create_task(a.call("sleep", 60.0, deadline=90))
        await asyncio.sleep(0.1)
        os.kill(placement.pids()["a"], signal.SIGSTOP)
        with pytest.raises(ExecutorDied, match="stopped by a signal"):
            await call
        assert await gone(placement.pids()["a"])

    run(body, "a")


def test_the_stacks_of_an_executor_that_hangs_can_be_had(tmp_path):
    async def body(placement, a):
        call = asyncio.create_task(a.call("sleep", 5.0, deadline=90))
        await asyncio.sleep(0.2)
        (path,) = await placement.dump_stacks(tmp_path)
        await call
        return path

    path = run(body, "a")
    assert path.name == "stacks-a.txt"
    assert "in sleep" in path.read_text()


def test_an_executor_that_exits_counts_as_dead_with_its_status():
    async def body(placement, a):
        with pytest.raises(ExecutorDied, match="exit status 3"):
            await a.call("leave", deadline=20)
        with pytest.raises(ExecutorDied):
            await a.call("add", 1, deadline=20)
        assert await gone(placement.pids()["a"])

    run(body, "a")


def test_what_an_executor_started_does_not_outlive_it():
    async def body(placement, a, b):
        orphans = [await h.call("child", deadline=20) for h in (a, b)]
        assert all(map(alive, orphans))
        os.kill(placement.pids()["a"], signal.SIGKILL)
        await anext(placement.failures())
        await placement.stop()
        assert await gone(*orphans)

    run(body, "a", "b")


def test_a_constructor_that_raises_ends_the_other_processes():
    async def main():
        placement = MonarchPlacement(start_deadline=60)
        with pytest.raises(ExecutorFailed, match="negative state"):
            await placement.spawn(
                [ExecutorSpec(name="good", factory=Worker), ExecutorSpec(name="bad", factory=Worker, args=(-1,))]
            )
        return placement.pids()

    assert asyncio.run(main()) == {}


def test_executors_come_and_go_beside_those_that_run_and_a_name_may_be_given_again(tmp_path):
    async def body(placement, a):
        for turn in range(2):
            (b,) = (await placement.spawn([ExecutorSpec(name="b", factory=Worker)])).values()
            await b.call("close_into", tmp_path / f"closed-{turn}", deadline=20)
            pid = placement.pids()["b"]
            await placement.retire("b")
            assert await gone(pid)
            assert (tmp_path / f"closed-{turn}").read_text() == "closed"
            with pytest.raises(ExecutorDied):
                await b.call("add", 1, deadline=20)
        with pytest.raises(ExecutorFailed, match="negative state"):
            await placement.spawn([ExecutorSpec(name="b", factory=Worker, args=(-1,))])
        assert await a.call("add", 5, deadline=20) == 5
        assert list(placement.pids()) == ["a"]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(placement.failures()), 0.3)  # those ends were no deaths

    run(body, "a")


def test_cores_that_do_not_exist_are_refused_before_anything_starts():
    async def main():
        placement = MonarchPlacement()
        with pytest.raises(ConfigError, match="cores"):
            await placement.spawn([ExecutorSpec(name="a", factory=Worker, cores=(100_000,))])
        return placement.pids()

    assert asyncio.run(main()) == {}


def test_a_run_recorded_under_monarch_replays_within_one_process(tmp_path):
    from freerun.placement.inline import InlinePlacement  # imports torch, which the processes of these tests do without

    record = tmp_path / "order.jsonl"

    async def entangled(placement) -> list:
        """A controller whose arguments depend on the order in which it learns of completions."""
        seen, total = [], 1

        async def loop(handle):
            nonlocal total
            for _ in range(15):
                result = await handle.call("add", total, deadline=30)
                total = (total * 31 + result) % 1_000_003
                seen.append((handle.name, total))
            async for element in handle.stream("count", 3, deadline=30):
                total = (total * 7 + element) % 1_000_003
                seen.append((handle.name, total))

        try:
            handles = await placement.spawn([ExecutorSpec(name=n, factory=Worker) for n in "ab"])
            await asyncio.gather(*(loop(h) for h in handles.values()))
            return seen
        finally:
            await placement.stop()

    recorded = asyncio.run(entangled(MonarchPlacement(record=record)))
    assert {name for name, _ in recorded} == {"a", "b"}
    assert asyncio.run(entangled(InlinePlacement(replay=record))) == recorded
