"""Processes that we started: noticing their end at once, and ending them for certain."""

import asyncio
import fcntl
import os
import signal
import struct
import sys
from collections.abc import Callable, Collection
from pathlib import Path

POLL = 0.5
"""Seconds between two looks at a process for what the kernel does not tell us: that it ended, anywhere but on Linux; that it is
stopped, on Linux."""
FROZEN = 5.0
"""Seconds for which a process may be stopped by a signal before it counts as dead. A debugger's stop is another state."""


_INFO = struct.Struct("=Q52si")
"""`struct pidfd_info` of the kernel, of which we want the mask at its begin and the exit code at its end."""
_GET_INFO, _INFO_EXIT = 0xC040FF0B, 1 << 3


class Process:
    """A child of this process that heads its own process group.

    When it ends, `ended` is set and `report` is told how, at once: the kernel wakes the event loop.
    """

    def __init__(self, pid: int, report: Callable[[str], None]) -> None:
        self.pid = pid
        self.ended = asyncio.Event()
        self.frozen = False
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._descriptor: int | None = None
        self._watch: asyncio.Task[None] | None = None
        if sys.platform == "linux":
            self._descriptor = os.pidfd_open(pid)
            self._loop.add_reader(self._descriptor, self._on_end)
            self._watch = asyncio.ensure_future(self._look_for_frost())
        else:
            self._watch = asyncio.ensure_future(self._poll())

    async def _poll(self) -> None:
        while _exists(self.pid):
            await asyncio.sleep(POLL)
        self._on_end()

    async def _look_for_frost(self) -> None:
        """Kill the process if it is stopped for too long: whoever waits for it would wait for ever."""
        since = None
        while not self.ended.is_set():
            await asyncio.sleep(POLL)
            if not _stopped(self.pid):
                since = None
                continue
            since = since or self._loop.time()
            if self._loop.time() - since >= FROZEN:
                self.frozen = True
                self._signal_group(signal.SIGKILL)
                return

    def _on_end(self) -> None:
        if self.ended.is_set():
            return
        how = f"process {self.pid} ended{self._cause()}"
        if self.frozen:
            how = f"process {self.pid} was stopped by a signal for {FROZEN:g} s, and then killed"
        self.ended.set()
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
        self._report(how)

    def _cause(self) -> str:
        """How the process ended, as far as the kernel says."""
        status = None if self._descriptor is None else _status(self._descriptor)
        if status is None:
            return ""
        if status >= 0:
            return f" with exit status {status}"
        return f", killed by {signal.Signals(-status).name}"

    def send(self, number: signal.Signals) -> None:
        """Signal the process and everything in its group, if it still runs."""
        if not self.ended.is_set():
            self._signal_group(number)

    def sweep(self) -> None:
        """Kill what the process left behind in its group. Call it right after the end, while the number is still ours."""
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return  # nobody is left (PermissionError: so says macOS of a group of zombies)

    def forget(self) -> None:
        """Stop watching and free the descriptor."""
        if self._watch is not None:
            self._watch.cancel()
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None


def _status(descriptor: int) -> int | None:
    """Exit status of a process that ended, negative for a signal. Linux 6.15 and newer remember it (`PIDFD_GET_INFO`); older
    ones tell it if its parent, which may be a library's thread, has not asked before us. Else None."""
    request = bytearray(_INFO.pack(_INFO_EXIT, bytes(52), 0))
    try:
        fcntl.ioctl(descriptor, _GET_INFO, request)
        mask, _, status = _INFO.unpack(request)
        if mask & _INFO_EXIT:
            return os.waitstatus_to_exitcode(status)
    except OSError:
        pass  # an older kernel
    try:
        found = os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    if found is None:
        return None
    return int(found.si_status) if found.si_code == os.CLD_EXITED else -int(found.si_status)


def _stopped(pid: int) -> bool:
    """Whether a signal (SIGSTOP, SIGTSTP) keeps the process from running."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False  # ended; the kernel reports that by itself
    return stat.rpartition(") ")[2][:1] == "T"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def end(processes: Collection[Process], *, patience: float = 1.0) -> None:
    """Wait until all of `processes` have ended: asked to (SIGTERM) for `patience` seconds, then not asked (SIGKILL). What they
    started and left behind in their groups is killed."""
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 10 * patience)):
        running = [p for p in processes if not p.ended.is_set()]
        for process in running:
            process.send(number)
        waits = [asyncio.ensure_future(p.ended.wait()) for p in running]
        if waits:
            _, late = await asyncio.wait(waits, timeout=seconds)
            for wait in late:
                wait.cancel()
    for process in processes:
        process.sweep()
        process.forget()
