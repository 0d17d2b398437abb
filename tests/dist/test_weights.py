"""Weights across process boundaries: the bits of invariant 5, and what happens when one end is killed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from freerun.errors import ExecutorDied, WeightsError
from freerun.placement.base import ExecutorSpec
from freerun.weights import shared

pytest.importorskip("monarch", reason="torchmonarch is not installed")

from freerun.placement.monarch import MonarchPlacement
from freerun.weights import monarch

pytestmark = [pytest.mark.dist, pytest.mark.timeout(100)]

SIZE = 300_000


def tensors(version: int) -> dict[str, torch.Tensor]:
    """What is published as `version`; both ends can make it."""
    random = torch.Generator().manual_seed(version)
    tied = torch.randn(50, 7, generator=random)
    return {
        "large": torch.randn(SIZE, generator=random),
        "transposed": torch.randn(30, 40, generator=random).t(),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(float(version)),
        "count": torch.tensor([version, 2**53 + 1]),
        "embedding": tied,
        "head": tied,
    }


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


class Trainer:
    """Publishes over several transports."""

    def __init__(self, publishers: dict) -> None:
        self.publishers = {name: make() for name, make in publishers.items()}

    def publish(self, transport: str, version: int):
        return self.publishers[transport].publish(version, tensors(version))

    def pin(self, transport: str, version: int) -> None:
        self.publishers[transport].pin(version)

    def release(self, transport: str, version: int) -> None:
        self.publishers[transport].release(version)

    def buffers(self, transport: str) -> int:
        return len(self.publishers[transport]._pool)

    def close(self) -> None:
        for publisher in self.publishers.values():
            publisher.close()


class Reader:
    """Holds the last version that it adopted over each transport."""

    def __init__(self, subscribers: dict) -> None:
        self.subscribers, self.held = {name: make() for name, make in subscribers.items()}, {}
        self.before = {}

    def adopt(self, ref) -> None:
        self.before[ref.transport] = self.held.get(ref.transport)
        self.held[ref.transport] = self.subscribers[ref.transport].adopt(ref, verify=True)

    def holds(self, transport: str, version: int, *, before: bool = False) -> bool:
        """Whether the tensors held now, or those held `before`, are bitwise those of `version`."""
        held, dtype = (self.before if before else self.held)[transport], DTYPES[transport]
        want = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors(version).items()}
        return list(held) == list(want) and all(
            (held[n].dtype, held[n].shape) == (t.dtype, t.shape) and torch.equal(bits(held[n]), bits(t))
            for n, t in want.items()
        )

    def close(self) -> None:
        for subscriber in self.subscribers.values():
            subscriber.close()


DTYPES = {"shared": torch.bfloat16, "monarch": torch.float32}
ADDRESSES = []


@pytest.fixture(scope="module")
def ends():
    """A trainer and two readers in three processes: `(run, placement, trainer, first, second)`."""
    transports = {"shared": shared, "monarch": monarch}
    publishers = {n: t.publisher(dtype=str(DTYPES[n]).removeprefix("torch."), checksum=True) for n, t in transports.items()}
    subscribers = {n: t.subscriber() for n, t in transports.items()}
    with asyncio.Runner() as runner:
        placement = MonarchPlacement(start_deadline=80)
        handles = runner.run(
            placement.spawn(
                [
                    ExecutorSpec(name="trainer", factory=Trainer, args=(publishers,)),
                    ExecutorSpec(name="first", factory=Reader, args=(subscribers,)),
                    ExecutorSpec(name="second", factory=Reader, args=(subscribers,)),
                ]
            )
        )
        yield runner.run, placement, *handles.values()
        runner.run(placement.stop())
    assert ADDRESSES and not any(map(os.path.exists, ADDRESSES))  # nothing is left in shared memory


@pytest.mark.parametrize("transport", DTYPES)
def test_a_reader_in_another_process_holds_bitwise_what_was_published(ends, transport):
    run, _, trainer, first, second = ends

    async def body():
        refs = {0: await trainer.call("publish", transport, 0, deadline=30)}
        await trainer.call("pin", transport, 0, deadline=30)
        await first.call("adopt", refs[0], deadline=30)
        for version in range(1, 5):
            refs[version] = await trainer.call("publish", transport, version, deadline=30)
            await second.call("adopt", refs[version], deadline=30)
            assert await second.call("holds", transport, version, deadline=30)
            if version > 1:  # as a generator does that lets its running responses end on the old weights
                await trainer.call("pin", transport, version, deadline=30)
                assert await second.call("holds", transport, version - 1, before=True, deadline=30)
        assert await first.call("holds", transport, 0, deadline=30)
        await second.call("adopt", refs[0], deadline=30)
        assert await second.call("holds", transport, 0, deadline=30)
        with pytest.raises(WeightsError, match=f"version 1 .*'{transport}'"):
            await second.call("adopt", refs[1], deadline=30)
        for version in (2, 3, 4):
            await trainer.call("release", transport, version, deadline=30)

    run(body())


def test_a_reader_that_is_frozen_blocks_nobody_and_reads_the_newest_when_it_goes_on(ends, monkeypatch):
    run, placement, trainer, first, second = ends
    monkeypatch.setattr("freerun.placement.processes.FROZEN", 3600.0)  # else it would be killed some day

    async def body():
        pid = placement.pids()["first"]
        os.kill(pid, signal.SIGSTOP)
        newest = {}
        try:
            for version in range(5, 8):
                for transport in DTYPES:
                    newest[transport] = await trainer.call("publish", transport, version, deadline=30)
                    await second.call("adopt", newest[transport], deadline=30)
                    assert await second.call("holds", transport, version, deadline=30)
                    assert await trainer.call("buffers", transport, deadline=30) <= 3
        finally:
            os.kill(pid, signal.SIGCONT)
        for transport, ref in newest.items():
            await first.call("adopt", ref, deadline=30)
            assert await first.call("holds", transport, 7, deadline=30)

    run(body())


def test_a_reader_that_is_killed_with_its_pins_blocks_nobody(ends):
    run, placement, trainer, first, second = ends

    async def body():
        os.kill(placement.pids()["first"], signal.SIGKILL)
        with pytest.raises(ExecutorDied):
            await first.call("holds", "shared", 0, deadline=30)
        for version in range(8, 11):
            for transport in DTYPES:
                ref = await trainer.call("publish", transport, version, deadline=30)
                await second.call("adopt", ref, deadline=30)
                assert await second.call("holds", transport, version, deadline=30)
                assert await trainer.call("buffers", transport, deadline=30) <= 3  # pinned, newest, and one to write to
                if transport == "shared":
                    ADDRESSES.append(ref.address)

    run(body())


def test_shared_memory_of_a_killed_publisher_is_swept_and_that_of_a_living_one_is_not():
    script = textwrap.dedent("""
        import json, sys, torch
        from freerun.weights import shared
        publisher = shared.publisher(run=sys.argv[1])()
        ref = publisher.publish(0, {"w": torch.ones(1000)})
        print(json.dumps(ref.address), flush=True)
        sys.stdin.read()
    """)
    run = f"test{os.getpid()}"
    with subprocess.Popen(
        [sys.executable, "-c", script, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        path = json.loads(process.stdout.readline())
        assert shared.sweep(run) == [] and os.path.exists(path)
        process.kill()
        process.wait()
    assert os.path.exists(path)
    assert shared.sweep(run) == [os.path.basename(path)]
    assert not os.path.exists(path)


def test_two_runs_on_one_host_share_no_file_and_the_guardian_of_a_killed_one_leaves_those_of_the_other():
    script = textwrap.dedent("""
        import json, sys, torch
        from freerun.placement.guardian import Guardian
        from freerun.weights import shared
        run = sys.argv[1]
        with Guardian("killed") as guardian:
            for pattern in shared.patterns(run):
                guardian.clean(pattern)
            publisher = shared.publisher(run=run)()
            refs = [publisher.publish(version, {"w": torch.ones(1000)}) for version in (0, 1)]
            print(json.dumps([ref.address for ref in refs]), flush=True)
            sys.stdin.read()
            publisher.close()
    """)
    runs = [f"test{os.getpid()}{end}" for end in ("a", "a2")]  # the name of one begins like the other's
    piped = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    two = [subprocess.Popen([sys.executable, "-c", script, run], **piped, text=True) for run in runs]
    mine, others = (json.loads(process.stdout.readline()) for process in two)
    assert not set(mine) & set(others)
    two[0].kill()
    assert two[0].communicate()[1] == "killed\n"  # the guardian holds this pipe: it has ended, too
    assert [os.path.exists(path) for path in (*mine, *others)] == [False, False, True, True]
    two[1].communicate()
    assert not any(map(os.path.exists, others))
