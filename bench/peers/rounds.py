"""Turns between systems in environments of their own: one line of input names an operation, one line of output that begins with
"answer" says how long a round of it took. The first answer lists the operations. Nothing but the standard library is needed.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

Operation = Callable[[], int]
"""One round of work; how many units (rows, updates) it did."""


def serve(operations: Mapping[str, Operation]) -> None:
    """Answer until the input ends. Each operation is done once before, which is not counted."""
    for operation in operations.values():
        operation()
    print("answer " + json.dumps(list(operations)), flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        units = operations[line.strip()]()
        seconds = {"units": units, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print("answer " + json.dumps(seconds), flush=True)


class Peer:
    """A process that serves."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.operations: list[str] = self._answer()

    def __call__(self, operation: str) -> dict[str, float]:
        """One round: units done, seconds of the wall clock and of the processor."""
        assert self._process.stdin is not None
        self._process.stdin.write(operation + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self):  # type: ignore[no-untyped-def]
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def compare(peers: Mapping[str, Peer], rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Units per second by operation and system: of the best round by wall clock and by processor time. In each round everybody
    takes a turn, so that a neighbour's load falls on all alike."""
    best: dict[str, dict[str, dict[str, float]]] = {}
    names = list(dict.fromkeys(name for peer in peers.values() for name in peer.operations))
    for _ in range(rounds):
        for name in names:
            for system, peer in peers.items():
                if name not in peer.operations:
                    continue
                took = peer(name)
                rates = {clock: took["units"] / max(took[clock], 1e-9) for clock in ("wall", "cpu")}
                known = best.setdefault(name, {}).setdefault(system, rates)
                best[name][system] = {clock: max(known[clock], rate) for clock, rate in rates.items()}
    return best


def table(best: Mapping[str, Mapping[str, Mapping[str, float]]], own: str, unit: str) -> str:
    """What is compared as text: units per second, and how much faster `own` is than the fastest other."""
    systems = list(dict.fromkeys(system for rates in best.values() for system in rates))
    lines = [f"{unit:34}" + "".join(f"{system:>24}" for system in systems) + f"{own + ' / best other':>26}"]
    for name, rates in best.items():
        cells = "".join(f"{_rate(rates[s]['wall']):>24}" if s in rates else f"{'':>24}" for s in systems)
        others = [rates[s]["wall"] for s in rates if s != own]
        ratio = f"{rates[own]['wall'] / max(others):.2f}" if own in rates and others else ""
        lines.append(f"{name:34}{cells}{ratio:>26}")
    return "\n".join(lines)


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}/s"
