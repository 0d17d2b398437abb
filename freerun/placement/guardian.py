"""A small process that outlives the controller by a moment, to kill what the controller started and can no longer stop.

Run as a script of the standard library alone, with the reading end of a pipe as its input. Each line is `+NUMBER` or `-NUMBER`:
a process group to watch over, or one that has ended. When the pipe closes, which the kernel sees to even if the controller was
killed, every group still on the list is killed.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable


class Guardian:
    """The controller's end of the pipe."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            start_new_session=True,  # an interrupt from the keyboard is not for it
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin

    def watch_over(self, group: int) -> None:
        """Kill `group` should this process end without `release`."""
        self._tell(f"+{group}\n")

    def release(self, group: int) -> None:
        """`group` has ended."""
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None, "the guardian was started with a pipe"
        self._pipe.write(line)

    def close(self) -> None:
        """Let the guardian kill what was not released, and wait for its end."""
        assert self._process.stdin is not None, "the guardian was started with a pipe"
        self._pipe.close()
        self._process.wait()


def guard(lines: Iterable[str]) -> None:
    """Follow the list until its end, then kill."""
    groups: set[int] = set()
    for line in lines:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    guard(sys.stdin)
