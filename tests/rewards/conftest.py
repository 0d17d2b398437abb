"""Running attacks, and looking for what they left behind."""

import asyncio
import functools
import os
import platform
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from freerun.rewards import seccomp
from freerun.rewards.sandbox import Sandbox, SandboxConfig, SandboxResult

MARK = f"escaped-{os.getpid()}"
"""In the name of everything that an attack tries to leave somewhere."""

PRELUDE = f"""
import ctypes, errno, os, signal, socket, sys, time
MARK = {MARK!r}
libc = ctypes.CDLL(None, use_errno=True)

def call(function, *arguments):
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")

def tried(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "worked"

"""
"""Attacks print what became of them: the name of an error, or that it worked."""


@functools.cache
def sandbox(config: SandboxConfig) -> Sandbox:
    return Sandbox(config)


def run(code: str, stdin: str = "", files: dict | None = None, **limits: object) -> SandboxResult:
    """The result of an attack."""
    program = PRELUDE + textwrap.dedent(code)
    return asyncio.run(sandbox(SandboxConfig(**limits)).run(program, stdin, files))


def said(code: str, **limits: object) -> list[str]:
    """The words that an attack printed, which has to end well: whatever it tried, it was still running afterwards."""
    result = run(code, **limits)
    assert result.ok, result
    return result.stdout.split()


def number(x86_64: int, aarch64: int) -> int:
    """The number of a system call on this machine."""
    return {"x86_64": x86_64, "aarch64": aarch64}[platform.machine()]


def inhabitants(since: float) -> list[psutil.Process]:
    """Processes of sandboxes that began after `since`, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if process.create_time() >= since and any(w == "/code/main.py" or "jail.main()" in w for w in words):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def vanish(since: float, seconds: float = 10.0) -> bool:
    """Whether all of them end soon."""
    end = time.monotonic() + seconds
    while inhabitants(since):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def traces() -> dict[str, object]:
    """What is the same before and after a program ran."""
    folders = ("/", "/tmp", "/dev", "/dev/shm", "/var/tmp", str(Path.home()), os.getcwd())
    return {
        "files": [str(path) for folder in folders if os.access(folder, os.R_OK) for path in Path(folder).glob(f"*{MARK}*")],
        "mounts": sorted(Path("/proc/self/mountinfo").read_text().splitlines()),
        "shared memory": [Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:] for kind in ("shm", "sem", "msg")],
        "zombies": [p.pid for p in psutil.Process().children(recursive=True) if p.status() == psutil.STATUS_ZOMBIE],
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """No process, file, mount, piece of shared memory or descriptor that was not there before."""
    before, began = traces(), time.time() - 1
    yield
    assert vanish(began), [process.cmdline() for process in inhabitants(began)]
    assert traces() == before and not before["files"]


@pytest.fixture
def no_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the filter of system calls away, to see that what is behind it holds as well."""

    async def unchecked(self: Sandbox) -> None:
        self._protection = ("all but the filter",)

    allow = seccomp._end(seccomp._ALLOW)
    monkeypatch.setattr(seccomp, "program", lambda machine, fork: allow)
    monkeypatch.setattr(Sandbox, "check", unchecked)


both_walls = pytest.mark.parametrize("wall", ["filter", "namespaces"])


@pytest.fixture
def behind(wall: str, request: pytest.FixtureRequest) -> str:
    """With the filter or without it: the answers may differ, but nothing works."""
    if wall == "namespaces":
        request.getfixturevalue("no_filter")
    return wall
