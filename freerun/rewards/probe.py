"""Tries, inside the sandbox, what must not work there, and prints what did. Trusted code, run by `Sandbox.check` only."""

import ctypes
import json
import os
import resource
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attempts(fork: bool) -> dict[str, Callable[[], Any]]:
    """What to try, by what it would mean if it worked."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: Any) -> None:
        if libc[name](*arguments) < 0:
            raise OSError(ctypes.get_errno(), name)

    tried: dict[str, Callable[[], Any]] = {
        "opening a socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
        "opening a Unix socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
        "writing outside of the scratch folder": lambda: os.mkdir("/here"),
        "writing beside the code": lambda: Path("/code/here").touch(),
        "seeing other processes": lambda: os.listdir("/proc/self"),
        "becoming root": lambda: os.setuid(0),
        "changing the root folder": lambda: os.chroot("/tmp"),
        "making a user namespace": lambda: call("unshare", 0x10000000),
        "mounting": lambda: call("mount", b"tmpfs", b"/tmp", b"tmpfs", 0, None),
        "tracing init": lambda: call("ptrace", 16, os.getppid(), None, None),
        "memory that no limit counts": lambda: call("memfd_create", b"x", 0),
        "raising a limit": lambda: resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)),
    }
    if not fork:
        tried["starting a process"] = start
    return tried


def start() -> None:
    if os.fork() == 0:
        os._exit(0)


def works(attempt: Callable[[], Any]) -> bool:
    try:
        attempt()
    except (OSError, ValueError):
        return False
    return True


def tasks(most: int) -> int:
    """How many threads can be had at the same time, this one included; at most `most`."""
    release = threading.Event()
    threads: list[threading.Thread] = []
    threading.stack_size(64 << 10)
    try:
        while len(threads) + 1 < most:
            thread = threading.Thread(target=release.wait, daemon=True)
            thread.start()
            threads.append(thread)
    except RuntimeError:
        return len(threads) + 1
    finally:
        release.set()
    return most


def main() -> None:
    given = json.load(sys.stdin)
    found = {
        "worked": [name for name, attempt in attempts(given["fork"]).items() if works(attempt)],
        "environment": sorted(os.environ),
        "user": os.getuid(),
        "tasks": tasks(given["tasks"] + 1),
        "limits": {str(limit): resource.getrlimit(limit) for limit in given["limits"]},
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
