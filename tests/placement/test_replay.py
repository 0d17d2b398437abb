"""A recorded order of completions is followed, bit for bit."""

import asyncio
import json
import threading

import pytest
import torch

from freerun.errors import DeadlineExceeded, ExecutorDied, ReplayDiverged, RunDirectoryError
from freerun.placement import schedules
from freerun.placement.base import ExecutorSpec
from freerun.placement.inline import InlinePlacement


class Worker:
    """An executor whose state depends on the order of its calls."""

    def __init__(self) -> None:
        self.state = 0

    def add(self, amount: int) -> int:
        self.state = self.state * 3 + amount
        return self.state

    def hold(self, event: threading.Event) -> bool:
        return event.wait(timeout=20)

    def leave(self) -> None:
        raise SystemExit(3)


async def entangled(*handles) -> list:
    """A controller whose arguments depend on the order in which it learns of completions."""
    seen, total = [], 1

    async def loop(handle):
        nonlocal total
        for _ in range(12):
            result = await handle.call("add", total, deadline=30)
            await asyncio.sleep(0)
            total = (total * 31 + result) % 1_000_003
            seen.append((handle.name, total))

    await asyncio.gather(*(loop(h) for h in handles))
    return seen


def jittered(name: str) -> Worker:
    """A worker whose calls take random times, so that the order of completions is another in every run."""

    class Jittered(Worker):
        def add(self, amount: int) -> int:
            threading.Event().wait(torch.rand(()).item() * 0.004)
            return super().add(amount)

    return Jittered()


def entangled_run(placement: InlinePlacement) -> list:
    async def main():
        handles = await placement.spawn([ExecutorSpec(name=n, factory=jittered, args=(n,)) for n in "abc"])
        try:
            return await entangled(*handles.values())
        finally:
            await placement.stop()

    return asyncio.run(main())


def test_a_recorded_run_on_threads_replays_to_the_same_values(tmp_path):
    record = tmp_path / "order.jsonl"
    first = entangled_run(InlinePlacement(schedule="threads", record=record))
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert len(lines) == 36
    assert {(e["executor"], e["number"]) for e in lines} == {(n, i) for n in "abc" for i in range(12)}
    for _ in range(3):
        assert entangled_run(InlinePlacement(replay=record)) == first


def test_replaying_follows_the_record_and_not_the_order_of_submission(tmp_path):
    record = tmp_path / "order.jsonl"
    order = ["c", "a", "b"] * 12
    numbers = {n: iter(range(12)) for n in "abc"}
    record.write_text(
        "".join(
            json.dumps({"executor": n, "method": "add", "number": next(numbers[n]), "ending": "returned"}) + "\n" for n in order
        )
    )
    assert [name for name, _ in entangled_run(InlinePlacement(replay=record))] == order


def test_a_replay_goes_on_serially_after_the_end_of_the_record(tmp_path):
    record = tmp_path / "order.jsonl"
    entangled_run(InlinePlacement(schedule="serial", record=record))
    whole = record.read_text().splitlines(keepends=True)
    record.write_text("".join(whole[:10]) + '{"executor": "a", "meth')  # killed in the middle of a line
    assert entangled_run(InlinePlacement(replay=record)) == entangled_run(InlinePlacement(schedule="serial"))


def test_deaths_and_missed_deadlines_are_replayed_as_recorded(tmp_path):
    record = tmp_path / "order.jsonl"
    event = threading.Event()

    async def story(placement, blocking):
        events = []

        async def watch():
            async for death in placement.failures():
                events.append(("dead", death.name))

        async def attempt(handle, method, *args, deadline=20.0):
            try:
                events.append(("got", await handle.call(method, *args, deadline=deadline)))
            except (ExecutorDied, DeadlineExceeded) as error:
                events.append(type(error).__name__)

        async def main():
            a, b = (await placement.spawn([ExecutorSpec(name=n, factory=Worker) for n in "ab"])).values()
            watcher = asyncio.create_task(watch())
            await attempt(a, "add", 1)
            await attempt(b, "hold", event, deadline=0.05)
            await attempt(a, "leave")
            while ("dead", "a") not in events:
                await asyncio.sleep(0)
            await attempt(a, "add", 1)
            event.set()
            await attempt(b, "add", 4)
            watcher.cancel()
            await placement.stop()

        await main()
        return events

    recorded = asyncio.run(story(InlinePlacement(record=record), True))
    assert recorded == [("got", 1), "DeadlineExceeded", "ExecutorDied", ("dead", "a"), "ExecutorDied", ("got", 4)]
    assert asyncio.run(story(InlinePlacement(replay=record), False)) == recorded


def test_a_replay_that_asks_for_something_else_says_what(tmp_path, monkeypatch):
    monkeypatch.setattr(schedules, "PATIENCE", 0.05)
    record = tmp_path / "order.jsonl"
    record.write_text('{"executor": "a", "method": "add", "number": 0, "ending": "returned"}\n')

    async def main():
        placement = InlinePlacement(replay=record)
        handles = await placement.spawn([ExecutorSpec(name="a", factory=Worker)])
        try:
            await handles["a"].call("note", "x", deadline=20)
        finally:
            await placement.stop()

    with pytest.raises(ReplayDiverged, match=r"(?s)a\.note \(0\).*a\.add \(0\)"):
        asyncio.run(main())


def test_a_file_that_is_no_record_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        InlinePlacement(replay=tmp_path / "x.jsonl")
