"""Executors that are forked from a process which has imported everything already."""

import asyncio
import os
import signal
import socket
import subprocess
import sys

import pytest
from dist.test_monarch import gone

from freerun.errors import ExecutorDied
from freerun.placement import monarch_nursery
from freerun.placement.base import ExecutorSpec

pytest.importorskip("monarch", reason="torchmonarch is not installed")

from freerun.placement.monarch import MonarchPlacement

pytestmark = [pytest.mark.dist, pytest.mark.timeout(120)]


class Worker:
    """Tells where it is. Nothing here imports torch."""

    def __init__(self) -> None:
        self.state = 0

    def add(self, amount: int) -> int:
        self.state += amount
        return self.state

    def surroundings(self) -> dict:
        return {
            "parent": os.getppid(),
            "preloaded": "fractions" in sys.modules,
            "threads": os.environ["OMP_NUM_THREADS"],
            "cores": sorted(os.sched_getaffinity(0)),
            "leads its group": os.getpgrp() == os.getpid(),
        }


def run(body, *specs):
    async def main():
        placement = MonarchPlacement(start_deadline=60, preload=["fractions"])
        try:
            handles = await placement.spawn(specs or [ExecutorSpec(name=name, factory=Worker) for name in "ab"])
            return await body(placement, *handles.values())
        finally:
            nursery, pids = placement._nursery, list(placement.pids().values())
            await placement.stop()
            assert await gone(*pids, *([nursery.process.pid] if nursery is not None else []))
            assert nursery is None or not nursery.path.parent.exists()

    return asyncio.run(main())


def test_executors_have_one_parent_and_each_its_own_threads_and_cores():
    cores = sorted(os.sched_getaffinity(0))

    async def body(placement, a, b):
        first, second = [await handle.call("surroundings", deadline=20) for handle in (a, b)]
        common = {"parent": placement._nursery.process.pid, "preloaded": True, "leads its group": True}
        assert first == {**common, "threads": "1", "cores": [cores[0]]}
        assert second == {**common, "threads": "3", "cores": cores}
        assert [await handle.call("add", 2, deadline=20) for handle in (a, b)] == [2, 2]

    run(body, ExecutorSpec(name="a", factory=Worker, cores=(cores[0],)), ExecutorSpec(name="b", factory=Worker, threads=3))


def test_a_killed_one_is_noticed_with_its_cause_and_replaced():
    async def body(placement, a, b):
        os.kill(placement.pids()["a"], signal.SIGKILL)
        name, how = await anext(placement.failures())
        assert name == "a" and "ended" in how
        again = await placement.respawn("a")
        assert await again.call("add", 4, deadline=20) == 4
        assert await b.call("add", 1, deadline=20) == 1

    run(body)


def test_when_the_nursery_itself_is_killed_its_children_count_as_dead_and_another_is_started():
    async def body(placement, a, b):
        first = placement._nursery.process.pid
        os.killpg(first, signal.SIGKILL)
        with pytest.raises(ExecutorDied):
            while True:  # until Monarch knows that it cannot reach it
                await a.call("add", 1, deadline=60)
                await asyncio.sleep(0.1)
        again = await placement.respawn("a")
        assert await again.call("add", 7, deadline=20) == 7
        assert placement._nursery.process.pid != first

    run(body)


def test_modules_that_cannot_be_imported_are_named():
    async def main():
        placement = MonarchPlacement(preload=["freerun.nonsense"])
        with pytest.raises(ExecutorDied, match=r"freerun\.nonsense"):
            await placement.spawn([ExecutorSpec(name="a", factory=Worker)])
        await placement.stop()

    asyncio.run(main())


def test_a_stub_ends_with_the_controller_that_started_it_though_nobody_was_told_of_it_yet(tmp_path):
    """The nursery, which then kills what it forked for the stub, is played by a socket that does not answer."""
    path = tmp_path / "socket"
    script = "import os, subprocess, sys\nsubprocess.run([*sys.argv[1:], str(os.getpid())])"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(30)
        words = [sys.executable, "-I", "-S", monarch_nursery.__file__, "stub", str(path)]
        controller = subprocess.Popen([sys.executable, "-c", script, *words])
        try:
            line, _ = listener.accept()
            _, _, _, _ = socket.recv_fds(line, 1 << 16, 3)
        finally:
            controller.kill()
            controller.wait()
        with line:
            line.settimeout(30)
            while line.recv(1 << 16):
                pass  # what it asked for; then the end of the line, because the stub is gone
