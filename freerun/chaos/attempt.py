"""One attempt at a run, from outside: its processes, its records as they are written, what it leaves behind. Linux only."""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freerun.chaos import traps
from freerun.chaos.child import hurt
from freerun.placement.monarch_nursery import Nursery
from freerun.rundir import EVENTS_LOG, LOCK, METRICS_LOG, SUMMARY
from freerun.weights import shared

CLEARED = 15.0
"""Seconds after the end of an attempt at which nothing of it may be left."""


class Tail:
    """The lines that are added to a file while somebody looks. A file that is replaced is not new: what it begins with was
    there before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file, self._read, self._torn = 0, 0, b""

    def lines(self) -> list[bytes]:
        """Whole lines that were added since the last call."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return []
        if status.st_ino != self._file or status.st_size < self._read:
            new = self._file == 0
            self._file, self._read, self._torn = status.st_ino, 0 if new else status.st_size, b""
        if status.st_size == self._read:
            return []
        with self.path.open("rb") as file:
            file.seek(self._read)
            data = self._torn + file.read()
        self._read += len(data) - len(self._torn)
        *lines, self._torn = data.split(b"\n")
        return lines


@dataclass(slots=True)
class Seen:
    """What one look at the records brought."""

    steps: int = 0
    died: list[str] = field(default_factory=list)
    respawned: list[str] = field(default_factory=list)


class Attempt:
    """`freerun WORDS` in processes that can be recognised and made to fail. `work` is where orders and output go."""

    def __init__(self, words: Sequence[str], work: Path, directory: Path, number: int, nursery: Nursery) -> None:
        self.directory, self.work = directory, work
        self.output = work / f"output-{number}.txt"
        temporary = work / "tmp"
        temporary.mkdir(exist_ok=True)
        variables = {traps.DIRECTORY: str(work), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
        self._nursery = nursery.process.pid
        self.pid = _forked(words, variables, self.output, nursery)
        self._status: int | None = None
        self._metrics, self._events = Tail(directory / METRICS_LOG), Tail(directory / EVENTS_LOG)
        self._metrics.lines(), self._events.lines()
        self._numbers: set[int] = set()

    # --- while it goes on ----------------------------------------------------------------------------------------------------

    @property
    def status(self) -> int | None:
        """Exit status once it ended; negative is a signal."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def kill(self) -> None:
        """End it, if it has not ended."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def wait(self) -> None:
        """Return when it has ended."""
        while self.status is None:
            time.sleep(0.01)

    def look(self) -> Seen:
        """What was recorded since the last look."""
        seen = Seen(steps=len(self._metrics.lines()))
        for line in self._events.lines():
            if b'"died"' in line or b'"respawned"' in line:
                event = json.loads(line)
                if event["what"] in ("died", "respawned"):
                    (seen.died if event["what"] == "died" else seen.respawned).append(event["executor"])
        return seen

    def pids(self, name: str) -> list[int]:
        """Processes that are home to the executor `name`, or to one of several of that kind; `controller` is the parent."""
        if name == "controller":
            return [self.pid] if self.status is None else []
        return [pid for pid, comm in processes(self.work, self._nursery) if comm.partition("-")[0] == name]

    def signal(self, pids: Sequence[int], number: signal.Signals) -> None:
        """Send it to all that are still there."""
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def note(self) -> None:
        """Remember which processes there are, so that their files can be told from those of other runs."""
        self._numbers |= {pid for pid, _ in processes(self.work, self._nursery)}

    # --- after its end -------------------------------------------------------------------------------------------------------

    def said(self) -> str:
        """What it printed."""
        return self.output.read_text(errors="replace")

    def summary(self) -> dict[str, Any]:
        """How it says that it ended; empty if it could not."""
        try:
            return json.loads((self.directory / SUMMARY).read_text())
        except (OSError, ValueError):
            return {}

    def left(self) -> list[str]:
        """What is still there of an attempt that ended, once `CLEARED` seconds are over or nothing is."""
        end = time.monotonic() + CLEARED
        while (found := list(self._left())) and time.monotonic() < end:
            time.sleep(0.02)
        return found

    def _left(self) -> Iterator[str]:
        yield from (f"process {pid} ({comm})" for pid, comm in processes(self.work, self._nursery))
        for path in (p for p in shared.directory().iterdir() if p.name.lstrip(".").startswith(shared.PREFIX)):
            if path.name.split("-")[2:3] and path.name.split("-")[2] in map(str, self._numbers):
                yield f"shared memory {path.name}"
        yield from (f"socket {path}" for path in sockets() if str(self.work) in path)
        yield from (f"temporary file {path.relative_to(self.work)}" for path in (self.work / "tmp").rglob("*"))
        if self.status == 0:
            names = (p for folder in (self.directory, self.directory / "checkpoints") for p in folder.iterdir())
            yield from (f"file {p.name}" for p in names if p.name == LOCK or p.name.startswith(".") or "compacting" in p.name)


def _forked(words: Sequence[str], variables: dict[str, str], output: Path, nursery: Nursery) -> int:
    """`freerun WORDS` with traps, in a child of this process, which has imported everything already; its number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with output.open("wb") as file, open(os.devnull) as nothing:
            for source, target in ((nothing, 0), (file, 1), (file, 2)):
                os.dup2(source.fileno(), target)
        os.environ.update(variables)
        hurt(words, nursery)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def processes(work: Path, nursery: int) -> list[tuple[int, str]]:
    """Living processes that a run whose orders are in `work` has started, or had forked from `nursery`; with their names."""
    mark, found = f"{traps.DIRECTORY}={work}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(") ")[2].split()[:2]
            marked = mark in (folder / "environ").read_bytes().split(b"\0")
            if state not in "ZX" and (marked or int(parent) == nursery):
                found.append((int(folder.name), (folder / "comm").read_text().strip()))
        except OSError:
            continue  # ended meanwhile, or another user's
    return found


def sockets() -> list[str]:
    """Paths of the Unix sockets of this host."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return [row[7] for row in rows if len(row) > 7]
