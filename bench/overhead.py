"""What the store costs per item: admission, tables, journal and recovery, with payloads that are never touched.

    python bench/overhead.py [--items 20000] [--json PATH]

Payloads are objects that raise if anybody looks inside, so the cost is the same for a group of a kilobyte and for one of a
gigabyte. A run at one group a second is what language models do; these numbers say how far away the controller's limit is. The
journal is written to the current directory's disk, and flushed after every record in one of its two rows.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from freerun.store.admission import Admission
from freerun.store.journal import Journal
from freerun.store.limits import MinSize, Slots
from freerun.store.recovery import Recovery
from freerun.store.selectors import Fifo, Prioritised, SelectorConfig, Uniform
from freerun.store.table import Consumer, Table, TableConfig

GROUP = b"x" * 20_000
"""A journalled group: eight responses of a few hundred tokens, as JSON, take about this much."""


class Untouchable:
    """A payload that cannot be looked into, compared, hashed, copied or pickled."""

    def _touched(self, *_: Any) -> NoReturn:
        raise AssertionError("a payload was touched")

    __eq__ = __hash__ = __len__ = __iter__ = __bool__ = __getattr__ = __copy__ = __deepcopy__ = __reduce_ex__ = _touched


def main() -> None:
    args = _arguments()
    rows = [_row(name, *work(args.items)) for name, work in CASES.items()]
    result = {"python": platform.python_version(), "machine": platform.machine(), "rows": rows}
    print(f"{'per item':<58}{'items':>9}{'µs/item':>10}{'items/s':>12}")
    for row in rows:
        print(f"{row['what']:<58}{row['items']:>9,}{row['us_per_item']:>10.2f}{row['items_per_s']:>12,.0f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def admission(batch: int, max_lag: int, window: int) -> Callable[[int], tuple[int, float]]:
    """The whole life of an item: admitted, begun, finished out of order, taken one by one, trained, published."""

    def work(items: int) -> tuple[int, float]:
        machine = Admission(batch=batch, max_lag=max_lag, window=window)
        payloads: dict[int, Untouchable] = {}
        begin = time.perf_counter()
        for version in range(items // batch):
            running = []
            while (item := machine.admit("prompt")) is not None:
                machine.begin(item, version)
                payloads[item] = Untouchable()
                running.append(item)
            for item in reversed(running):
                machine.finish(item, version)
            step: list[int] = []
            while len(step) < batch:
                step += machine.take(1, version)
            machine.trained(step, version + 1)
            machine.published(version + 1)
            for item in step:
                del payloads[item]
        return items // batch * batch, time.perf_counter() - begin

    return work


def queue(items: int) -> tuple[int, float]:
    """Insert, a second column, and one draw, eight at a time."""
    trainer = Consumer(needs=("tokens", "reward"), limiter=Slots(slots=64))
    table = Table(TableConfig(name="queue", capacity=64, consumers={"trainer": trainer}))
    columns, reward = {"tokens": Untouchable()}, {"reward": Untouchable()}
    begin = time.perf_counter()
    for first in range(0, items, 8):
        for key in range(first, first + 8):
            table.insert(key, version=0, columns=columns)
            table.fill(key, reward)
        assert len(table.draw("trainer", 8, 0)) == 8
    return items, time.perf_counter() - begin


def replay(selector: SelectorConfig, size: int) -> Callable[[int], tuple[int, float]]:
    """Draws, eight at a time, from a full table; each item drawn counts, and one is replaced per batch."""

    def work(items: int) -> tuple[int, float]:
        trainer = Consumer(needs=("steps",), selector=selector, uses=0, limiter=MinSize())
        table = Table(TableConfig(name="replay", capacity=size, remover=Fifo(), consumers={"trainer": trainer}))
        columns = {"steps": Untouchable()}
        for key in range(size):
            table.insert(key, version=0, columns=columns)
        begin = time.perf_counter()
        for key in range(size, size + items // 8):
            table.insert(key, version=0, columns=columns)
            table.draw("trainer", 8, 0)
        return items // 8 * 8, time.perf_counter() - begin

    return work


def journal(fsync_every: int, share: int) -> Callable[[int], tuple[int, float]]:
    """Append a finished group."""

    def work(items: int) -> tuple[int, float]:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            file = Journal(Path(folder) / "journal", fsync_every=fsync_every)
            begin = time.perf_counter()
            for item in range(items // share):
                file.finished(item, "prompt", 0, GROUP)
            seconds = time.perf_counter() - begin
            file.close()
        return items // share, seconds

    return work


def recovery(items: int) -> tuple[int, float]:
    """Read the journal of a tenth of the items and settle every one of them."""
    num = items // 10
    machine = Admission(batch=num, max_lag=0)
    for item in range(num):
        machine.admit("prompt")
        machine.begin(item, 0)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        file = Journal(Path(folder) / "journal", fsync_every=0)
        for item in range(num):
            file.finished(item, "prompt", 0, GROUP)
        state = json.dumps(machine.state())
        begin = time.perf_counter()
        recovered = Recovery(json.loads(state), file.records())
        seconds = time.perf_counter() - begin
        file.close()
    assert len(recovered.stored) == num
    return num, seconds


def checkpoint(items: int) -> tuple[int, float]:
    """The state of admission as JSON, after a run of all the items."""
    machine = Admission(batch=8, max_lag=1)
    for version in range(items // 8):
        while (item := machine.admit("prompt")) is not None:
            machine.begin(item, version)
            machine.finish(item, version)
        machine.trained(machine.take(8, version), version + 1)
        machine.published(version + 1)
    begin = time.perf_counter()
    json.dumps(machine.state())
    return items, time.perf_counter() - begin


CASES: dict[str, Callable[[int], tuple[int, float]]] = {
    "admission, 8 a step, lag 1, window 1": admission(8, 1, 1),
    "admission, 512 a step, lag 1, window 1": admission(512, 1, 1),
    "admission, 512 a step, lag 4, window 768": admission(512, 4, 768),
    "queue: insert, fill a column, draw": queue,
    "replay of 100,000, uniform: draw": replay(Uniform(), 100_000),
    "replay of 100,000, prioritised: draw": replay(Prioritised(), 100_000),
    "journal: append 20 kB, left to the operating system": journal(0, 10),
    "journal: append 20 kB, flushed to disk each time": journal(1, 100),
    "recovery: read 20 kB from the journal and store again": recovery,
    "checkpoint: state to JSON, per item ever admitted": checkpoint,
}


def _row(what: str, items: int, seconds: float) -> dict[str, Any]:
    return {"what": what, "items": items, "us_per_item": 1e6 * seconds / items, "items_per_s": items / seconds}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--items", type=int, default=20_000, help="items per row, before the share that slow rows take")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
