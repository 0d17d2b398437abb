"""What it costs to run a program in the sandbox: milliseconds of wall and CPU time a call, beside a bare interpreter.

    python bench/sandbox.py [--rounds 40] [--at-once 1 4 16] [--json FILE]

Each round makes one call of every kind, so that a busy neighbour disturbs all alike; medians. CPU time is that of all processes
that a call starts, supervisor included, and of this one.

- `interpreter`  `python -I -S -c pass`, as a plain process: the least that any new interpreter costs
- `sandbox`      the program `pass`
- `cases`        the verifier, on a function with six cases: one sandbox
- `asserts`      the verifier, on six asserts: two sandboxes, one with the program and one with the comparison
- `examples`     the verifier, on two examples of input and output: two sandboxes

Then the sandbox again, with several calls at once: wall milliseconds for each call.
"""

import argparse
import asyncio
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from freerun.rewards.python_exec import PythonExec
from freerun.rewards.sandbox import Sandbox, SandboxConfig

FUNCTION = "def double(x):\n    return 2 * x"
CASES = {"function": "double", "cases": [{"args": [n], "expected": 2 * n} for n in range(6)]}
ASSERTS = {"asserts": [f"assert double({n}) == {2 * n}" for n in range(6)]}
EXAMPLES = {"examples": [{"input": "2", "output": "4"}, {"input": "3", "output": "6"}]}


def cpu() -> float:
    """Seconds of this process and of all that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


async def bare() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-c", "pass", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    await process.communicate()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sandbox, verifier = Sandbox(SandboxConfig()), PythonExec()
    for line in await sandbox.check():
        sys.stdout.write(f"{line}\n")
    kinds: dict[str, Callable[[], Awaitable]] = {
        "interpreter": bare,
        "sandbox": lambda: sandbox.run("pass"),
        "cases": lambda: verifier("", FUNCTION, CASES),
        "asserts": lambda: verifier("", FUNCTION, ASSERTS),
        "examples": lambda: verifier("", "print(2 * int(input()))", EXAMPLES),
    }
    taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for number in range(options.rounds + 2):
        for kind, call in kinds.items():
            began, used = time.perf_counter(), cpu()
            await call()
            if number >= 2:  # the first two warm the caches
                taken[kind].append((time.perf_counter() - began, cpu() - used))
    sys.stdout.write(f"\n{'':12} {'wall ms':>8} {'CPU ms':>8}\n")
    medians = {kind: [1000 * statistics.median(column) for column in zip(*rows, strict=True)] for kind, rows in taken.items()}
    for kind, (wall, busy) in medians.items():
        sys.stdout.write(f"{kind:12} {wall:8.1f} {busy:8.1f}\n")
    each = {}
    for count in options.at_once:
        permits = asyncio.Semaphore(count)

        async def one(permits: asyncio.Semaphore = permits) -> None:
            async with permits:
                await sandbox.run("pass")

        began, calls = time.perf_counter(), max(options.rounds, 2 * count)
        await asyncio.gather(*(one() for _ in range(calls)))
        each[count] = 1000 * (time.perf_counter() - began) / calls
        sys.stdout.write(f"{count:3} at once: {each[count]:.1f} ms a call on {len(os.sched_getaffinity(0))} cores\n")
    if options.json:
        machine = {"kernel": platform.release(), "machine": platform.machine(), "python": platform.python_version()}
        options.json.write_text(json.dumps({"milliseconds": medians, "at_once": each, **machine}, indent=1))


if __name__ == "__main__":
    asyncio.run(main())
