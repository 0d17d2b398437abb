"""One writer per directory: a lock file that names the process which holds it, and that a dead process cannot keep."""

import contextlib
import fcntl
import json
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from freerun.errors import RunDirectoryError

LOCK = "run.lock"


class RunLock:
    """The lock of `directory`: a file `run.lock` with host, process id and the start time of that process, so that a process id
    used again by another program does not count as the holder. The file is there exactly as long as the lock is held.

    Looking and writing happen under a short `flock`, so of two processes that find a stale lock at once only one gets it.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / LOCK

    def acquire(self) -> None:
        """Raises `RunDirectoryError` if a living process, or one on another host, holds the lock."""
        with self._alone() as file:
            holder = _holder(file)
            if holder is not None and not _is_gone(holder):
                here, who = holder["host"] == socket.gethostname(), f"process {holder['pid']} on {holder['host']}"
                raise RunDirectoryError(
                    f"{self.path.parent} is in use by another run",
                    expected="one run per directory",
                    given=who if here else f"{who}, which cannot be checked from here",
                    todo="wait for it, stop it, or choose another directory"
                    if here
                    else f"if that run is over, delete {self.path}; otherwise choose another directory",
                )
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(_self()).encode(), 0)

    def is_held(self) -> bool:
        """Whether somebody who is not known to be gone holds it. Only looks."""
        try:
            holder = _parse(self.path.read_bytes())
        except FileNotFoundError:
            return False
        return holder is not None and not _is_gone(holder)

    def release(self) -> None:
        """Remove the lock if this process holds it."""
        with self._alone() as file:
            if _holder(file) in (_self(), None):
                self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[int]:
        """The lock file, opened, with every other process kept out."""
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                # A holder may have removed the file between `open` and `flock`: then this is a file without a name.
                if _same_file(file, self.path):
                    yield file
                    return
            finally:
                os.close(file)


def _same_file(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _self() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": process_start(os.getpid())}


def _holder(file: int) -> dict[str, Any] | None:
    return _parse(os.pread(file, 4096, 0))


def _parse(content: bytes) -> dict[str, Any] | None:
    """Who wrote the lock; None if nobody did, or if it was torn by a kill in the middle of writing it."""
    try:
        holder = json.loads(content)
    except ValueError:
        return None
    return holder if isinstance(holder, dict) and {"host", "pid", "started"} <= holder.keys() else None


def _is_gone(holder: Mapping[str, Any]) -> bool:
    return holder["host"] == socket.gethostname() and process_start(holder["pid"]) != holder["started"]


def process_start(pid: int) -> str:
    """When process `pid` started, in the kernel's own words; empty if it is gone, or ended and not reaped yet."""
    if not Path("/proc/self/stat").exists():
        found = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        state, _, start = found.stdout.strip().partition(" ")
        return "" if state.startswith("Z") else start.strip()
    try:
        # The second field, the program's name in parentheses, may contain anything, even ") ".
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]
