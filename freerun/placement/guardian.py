"""A small process that outlives its parent by a moment, to end and remove what the parent started and can no longer end.

Run as a script of the standard library alone, with the reading end of a pipe as its input and the parent's last words as its
argument. Each line is one of

    +NUMBER    a process group to watch over          -NUMBER    one that has ended
    ~PATTERN   files to remove if their owner is dead !FOLDER    a folder of the parent's alone
    =          the parent ends as it should

When the pipe closes, which the kernel sees to even if the parent was killed, every group still on the list is killed, and the
folders go with all that is in them. If the parent did not say that it would end, its last words are written to stderr, and
files of the patterns that nobody locks go.
"""

import fcntl
import glob
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable
from typing import IO

PATIENCE = 5.0
"""Seconds in which a group that was killed is gone."""


class Guardian:
    """The parent's end of the pipe. `last_words` are a line to be said if the parent dies without `close`."""

    def __init__(self, last_words: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, last_words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            start_new_session=True,  # an interrupt from the keyboard is not for it
        )

    def watch_over(self, group: int) -> None:
        """Kill `group` should this process end without `release`."""
        self._tell(f"+{group}\n")

    def release(self, group: int) -> None:
        """`group` has ended."""
        self._tell(f"-{group}\n")

    def clean(self, pattern: str) -> None:
        """Should this process be killed, remove the files that match `pattern` and that nobody keeps locked."""
        self._tell(f"~{pattern}\n")

    def own(self, folder: str) -> None:
        """Remove `folder` with all that is in it when this process ends, however it does."""
        self._tell(f"!{folder}\n")

    def close(self) -> None:
        """Let the guardian kill what was not released, and wait for its end."""
        self._tell("=\n")
        self._pipe().close()
        self._process.wait()

    def __enter__(self) -> "Guardian":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _tell(self, line: str) -> None:
        self._pipe().write(line)

    def _pipe(self) -> IO[str]:
        assert self._process.stdin is not None, "the guardian was started with a pipe"
        return self._process.stdin


def guard(lines: Iterable[str], last_words: str) -> None:
    """Follow the list until its end, then kill and clean."""
    groups: set[int] = set()
    patterns: list[str] = []
    folders: list[str] = []
    expected = False
    for line in lines:
        sign, rest = line[0], line[1:].rstrip("\n")
        if sign == "+":
            groups.add(int(rest))
        elif sign == "-":
            groups.discard(int(rest))
        elif sign == "~":
            patterns.append(rest)
        elif sign == "!":
            folders.append(rest)
        else:
            expected = True
    for group in groups:
        _kill(group)
    if last_words and not expected:
        sys.stderr.write(f"{last_words}\n")
        sys.stderr.flush()
    _await_end(groups)
    for path in sorted(path for pattern in patterns for path in glob.glob(pattern)) if not expected else ():
        _remove(path)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _kill(group: int) -> bool:
    """Whether there was anybody."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False  # so macOS says of a group of zombies
    return True


def _await_end(groups: Collection[int]) -> None:
    end = time.monotonic() + PATIENCE
    while any(_kill(group) for group in groups) and time.monotonic() < end:
        time.sleep(0.02)


def _remove(path: str) -> None:
    """Remove the file unless its owner, who keeps it locked, lives."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # removed meanwhile
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except OSError:
        return
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    guard(sys.stdin, sys.argv[1])
