"""A run that goes on by itself: a small parent that starts it, and resumes it when it died.

What counts as a death is the end of the controller (killed, crashed, or stopped by a signal for too long) and the end that it
chose because an executor died, did not answer or could not be waited for any longer. Every other error would come again.
"""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from freerun.placement.guardian import Guardian
from freerun.placement.processes import Process
from freerun.rundir import CONFIG, SUMMARY

EXIT_DIED = 3
"""Exit status of a run that ended because something in it died."""


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt ended: its exit status (negative: the signal that ended it), in words, and whether it was asked to end."""

    status: int
    how: str
    asked: bool

    @property
    def is_death(self) -> bool:
        return not self.asked and (self.status == EXIT_DIED or self.status < 0)


def supervise(
    directory: Path,
    words: Sequence[str],
    restarts: int,
    say: Callable[[str], None],
    *,
    plain: bool = False,
    command: Sequence[str] = (sys.executable, "-m", "freerun.cli"),
) -> int:
    """Do `freerun WORDS`, which makes or resumes the run in `directory`; then resume it at most `restarts` times. Returns the
    exit status of the last attempt, 128 and the number of the signal if one ended it. `command` stands for `freerun`.

    Interrupts are passed on to the attempt. It does not outlive this process.
    """
    with Guardian() as guardian:
        end = asyncio.run(attempt([*command, *words], directory, guardian))
        for number in range(1, restarts + 1):
            if not end.is_death:
                break
            say(f"{end.how}: resuming, {number} of {restarts} times")
            again = ["resume", str(directory), "--because", end.how, *(["--plain"] if plain else [])]
            begun = (directory / CONFIG).is_file()
            end = asyncio.run(attempt([*command, *(again if begun else words)], directory, guardian))
    if end.is_death:
        say(f"{end.how}: not resumed again after {restarts} times; go on with: freerun resume {directory}")
    return end.status if end.status >= 0 else 128 - end.status


async def attempt(command: Sequence[str], directory: Path, guardian: Guardian) -> End:
    """Run `command` to its end in a process group of its own."""
    child = subprocess.Popen([*command, "--supervised"], process_group=0)
    guardian.watch_over(child.pid)
    process = Process(child.pid, lambda how: None)
    with _passing_on(process) as passed:
        await process.ended.wait()
    status = child.wait()
    process.sweep()
    process.forget()
    guardian.release(child.pid)
    return End(status, _what_died(status, process, directory), asked=bool(passed))


def _what_died(status: int, process: Process, directory: Path) -> str:
    if process.frozen:
        return f"the controller (process {process.pid}) was stopped by a signal for too long"
    if status < 0:
        return f"the controller (process {process.pid}) was killed by {signal.Signals(-status).name}"
    try:
        reason = json.loads((directory / SUMMARY).read_text())["reason"]
    except (OSError, ValueError, KeyError):
        return f"the controller (process {process.pid}) ended with exit status {status}"
    lines = [line.strip() for line in reason.splitlines()] or [f"the run ended with exit status {status}"]
    given = next((line.removeprefix("given:").strip() for line in lines if line.startswith("given:")), "")
    return f"{lines[0].partition(': ')[2]} ({given})" if given else lines[0]


@contextmanager
def _passing_on(process: Process) -> Iterator[list[signal.Signals]]:
    """Signals that ask this process to end go to `process`, which knows what to do; gives those that came."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    passed: list[signal.Signals] = []

    def pass_on(number: signal.Signals) -> None:
        passed.append(number)
        process.send(number)

    for number in numbers:
        loop.add_signal_handler(number, pass_on, number)
    try:
        yield passed
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
