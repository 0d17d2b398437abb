"""Executors' processes by fork from one that has imported everything already: a tenth of a second instead of several, and
memory that they share. For processors only: a process that has looked at a GPU cannot be forked.

    controller ----- starts ----> nursery (imports, listens) ----- forks ----> executor
        |                             ^
        +-- Monarch starts -> stub ---+  environment, standard files; waits for the executor's end and ends likewise

Monarch starts a stub in place of each process, and knows that. The stub asks the nursery for the real one over a Unix socket
in a folder of the run's own, and neither outlives the other. The nursery ends with its parent, whose end closes its standard
input.

Run as a script: `serve PATH MODULE...` is the nursery, `stub PATH PARENT` a stub, which needs the standard library alone.
"""

import contextlib
import importlib
import json
import os
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LENGTH = struct.Struct("<I")
_STATUS = struct.Struct("<i")
BACKLOG = 128
POLL = 0.25
"""Seconds between two looks of a stub at whether its parent is still there."""


class Nursery:
    """The controller's end: a nursery that has imported `modules`. Everything below it ends with this process."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="freerun-nursery-")
        self.path = Path(self._folder.name) / "socket"
        # Threads are set again in each child; before torch is imported, so that none is there when it is forked.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        environment |= {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        # As a module and not as a file, in whose folder `monarch` is ours.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, "serve", str(self.path), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            process_group=0,
        )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def groups(self) -> tuple[int, ...]:
        """Process groups that must not outlive the controller."""
        return (self.process.pid,)

    def wait(self) -> bool:
        """Return when it has imported everything: whether it could. Blocks."""
        assert self.process.stdout is not None, "it was started with a pipe"
        return self.process.stdout.readline() == b"ready\n"

    def command(self) -> tuple[str, list[str]]:
        """Program and arguments of a stub that this process starts."""
        return sys.executable, ["-I", "-S", __file__, "stub", str(self.path), str(os.getpid())]

    def close(self) -> None:
        """End it and what it has forked."""
        assert self.process.stdin is not None and self.process.stdout is not None, "it was started with pipes"
        self.process.stdin.close()
        self.process.stdout.read()  # until it has killed what it forked
        self.process.kill()  # rather than wait until all that it imported is taken down
        self.process.wait()
        self.process.stdout.close()
        self._folder.cleanup()


# --- the stub -----------------------------------------------------------------------------------------------------------------


def stub(path: str, parent: int) -> int:
    """Have a process forked that has this one's environment and standard files, and wait for it. Its exit status, negative for
    a signal. It ends, and this with it, if the process `parent` does: a controller may be killed before its guardian has been
    told of what it has just started."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        wanted = json.dumps({"environment": dict(os.environ), "directory": os.getcwd()}).encode()
        socket.send_fds(line, [_LENGTH.pack(len(wanted))], [0, 1, 2])
        line.sendall(wanted)
        while not select.select([line], [], [], POLL)[0]:
            if os.getppid() != parent:
                return 1
        answer = line.recv(_STATUS.size, socket.MSG_WAITALL)
    return _STATUS.unpack(answer)[0] if len(answer) == _STATUS.size else 1


# --- the nursery --------------------------------------------------------------------------------------------------------------


def serve(path: str, modules: list[str]) -> None:
    """Import, then fork a process for every connection, until standard input closes."""
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(path)
        listener.listen(BACKLOG)
        for module in modules:
            importlib.import_module(module)
        os.write(1, b"ready\n")
        selector.register(0, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        family = _Family(listener, selector)
        while True:
            for key, _ in selector.select():
                if key.fd == 0:
                    family.end()
                    os.close(1)
                    return
                if key.fileobj is listener:
                    family.add()
                else:
                    family.remove(key.data)


@dataclass(slots=True)
class _Child:
    """A forked process, as its number and a descriptor that tells when it ends, and the line to its stub."""

    pid: int
    descriptor: int
    line: socket.socket


class _Family:
    """The children of a nursery."""

    def __init__(self, listener: socket.socket, selector: selectors.BaseSelector) -> None:
        self._listener, self._selector = listener, selector
        self._children: list[_Child] = []

    def add(self) -> None:
        """Fork one for the stub that waits at the door."""
        line, _ = self._listener.accept()
        wanted, files = _request(line)
        if wanted is None:
            line.close()
            return
        pid = os.fork()
        if pid == 0:
            self._selector.close()
            for shared in (self._listener, line, *(child.line for child in self._children)):
                shared.close()
            for child in self._children:
                os.close(child.descriptor)
            _become(wanted, files)
        for file in files:
            os.close(file)
        child = _Child(pid, os.pidfd_open(pid), line)
        self._children.append(child)
        for place in (child.descriptor, child.line):
            self._selector.register(place, selectors.EVENT_READ, child)

    def remove(self, child: _Child) -> None:
        """It ended, and its stub is told how; or its stub did, and takes it along."""
        if child not in self._children:
            return  # both did
        self._children.remove(child)
        _kill(child.pid)
        _, status = os.waitpid(child.pid, 0)
        for place in (child.descriptor, child.line):
            self._selector.unregister(place)
        os.close(child.descriptor)
        with child.line, contextlib.suppress(OSError):
            child.line.sendall(_STATUS.pack(os.waitstatus_to_exitcode(status)))

    def end(self) -> None:
        """Kill all of them."""
        for child in self._children:
            _kill(child.pid)


def _request(line: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """What a stub wants, and its standard files; None if it ended first."""
    head, files, _, _ = socket.recv_fds(line, _LENGTH.size, 3)
    if len(head) < _LENGTH.size:
        return None, files
    (length,) = _LENGTH.unpack(head)
    body = line.recv(length, socket.MSG_WAITALL)
    return (json.loads(body), files) if len(body) == length else (None, files)


def _become(wanted: dict[str, Any], files: list[int]) -> None:
    """Be, from now on, what Monarch wanted to start. Does not return."""
    status = 1
    try:
        for target, file in enumerate(files):
            os.dup2(file, target)
            os.close(file)
        os.environ.clear()
        os.environ.update(wanted["environment"])
        os.chdir(wanted["directory"])
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        importlib.import_module("multiprocessing").set_start_method("forkserver", force=True)
        importlib.import_module("monarch._src.actor.bootstrap_main").invoke_main()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _kill(pid: int) -> None:
    """Kill a child that is not yet waited for, with what is in its group, if it has one of its own."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _what, _path, *_modules = sys.argv[1:]
    if _what == "stub":
        _status = stub(_path, int(_modules[0]))
        if _status < 0:
            os.kill(os.getpid(), -_status)
        sys.exit(_status)
    serve(_path, _modules)
