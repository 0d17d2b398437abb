"""Runs Python programs that nobody trusts: no network, no files but a scratch folder, hard limits, nothing left behind.

Linux only, without root and without anything to install. `docs/sandbox.md` says what protects against what; `jail.py` builds
it, from inside; `seccomp.py` is the list of system calls that are left. Code that cannot be protected is not run, but is a
`SandboxError`.
"""

import asyncio
import enum
import json
import marshal
import os
import resource
import signal
import site
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from freerun.errors import ConfigError, SandboxError
from freerun.rewards import jail, seccomp

_HERE = Path(__file__).parent
_MIB = 1 << 20
_START = 30.0
"""Seconds that starting and ending may take beyond the code's own, on a machine that is busy."""
_TRIAL = 30.0
"""Seconds that the test program of `check` may take."""
_END = 5.0
"""Seconds after which a supervisor that was told to end is killed."""

_SUPERVISOR = "import sys; sys.path.append(sys.argv[1]); import jail; jail.main()"
"""As a module, because an interpreter compiles a script anew each time."""

_SWITCHES = {
    "kernel/unprivileged_userns_clone": "0",
    "user/max_user_namespaces": "0",
    "kernel/apparmor_restrict_unprivileged_userns": "1",
}
"""Files below /proc/sys that switch user namespaces off, and the value that does."""

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
"""What an interpreter needs of a system, as far as it is there."""


class Status(enum.StrEnum):
    """How a program ended."""

    EXITED = "exited"
    """By itself; `code` says with which code."""
    TIMEOUT = "timeout"
    """It had used up its wall time."""
    CPU = "cpu"
    """It had used up its CPU time."""
    MEMORY = "memory"
    """By itself, with `MemoryError` among the last things it said."""
    OUTPUT = "output"
    """It wrote more than it may."""
    KILLED = "killed"
    """By a signal, such as that of a crash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxConfig:
    """What code may use."""

    seconds: float = 10.0
    """Wall time of a run, without starting the sandbox."""
    cpu_seconds: int = 5
    """CPU time of each process."""
    memory: int = 512 * _MIB
    """Bytes of address space of each process. With `fork` off there is one, so that this is all."""
    fork: bool = False
    """Whether the program may start processes. Threads it may start in any case."""
    tasks: int = 16
    """Threads and processes that may exist at the same time, the first one included."""
    output: int = _MIB
    """Bytes that may be written to standard output, and to standard error."""
    scratch: int = 64 * _MIB
    """Bytes that the scratch folder holds, in memory. It is the working directory, starts with the files of the call, and goes
    with it."""
    file: int = 16 * _MIB
    """Bytes of a single file."""
    open_files: int = 64
    """Files, pipes and the like that may be open at the same time."""
    packages: tuple[str, ...] = ()
    """Folders whose Python packages can be imported, besides the standard library. All that is in them can be read."""

    def __post_init__(self) -> None:
        least = {"seconds": 0.01, "cpu_seconds": 1, "memory": 64 * _MIB, "tasks": 1, "output": 1, "scratch": 4096, "file": 0}
        values = {name: object.__getattribute__(self, name) for name in least}
        if any(values[name] < least[name] for name in least) or self.open_files < 8:
            raise ConfigError(
                "no program can run with these limits of the sandbox",
                given=", ".join(f"{name} {value}" for name, value in {**values, "open_files": self.open_files}.items()),
                expected=", ".join(f"{name} at least {value}" for name, value in {**least, "open_files": 8}.items()),
                todo="correct the section sandbox",
            )

    def limits(self) -> list[tuple[int, int, int]]:
        """Resource, soft and hard limit. A process that ignores the signal at its soft limit of CPU time is killed a second
        later. To the kernel, a core of one byte means not to call a crash handler either, which would be outside."""
        same = {
            resource.RLIMIT_AS: self.memory,
            resource.RLIMIT_NPROC: self.tasks,
            resource.RLIMIT_FSIZE: self.file,
            resource.RLIMIT_NOFILE: self.open_files,
            resource.RLIMIT_CORE: 1,
            resource.RLIMIT_MEMLOCK: 0,
            resource.RLIMIT_MSGQUEUE: 0,
            resource.RLIMIT_NICE: 0,
            resource.RLIMIT_RTPRIO: 0,
            resource.RLIMIT_SIGPENDING: 256,
            resource.RLIMIT_STACK: 8 * _MIB,
        }
        cpu = (resource.RLIMIT_CPU, self.cpu_seconds, self.cpu_seconds + 1)
        return [cpu, *((limit, value, value) for limit, value in same.items())]


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxResult:
    """What a program did. All of it is the program's own word but `status`, `code` and the times."""

    status: Status
    code: int
    """Exit code; of a program that a signal ended, minus the signal's number."""
    stdout: str
    """What it wrote, cut at the limit; bytes that are not UTF-8 are replaced."""
    stderr: str
    """The same of standard error."""
    seconds: float
    """Wall time."""
    cpu_seconds: float
    """CPU time of all its processes, with some milliseconds that starting takes."""

    @property
    def ok(self) -> bool:
        """Whether it ended by itself, and well."""
        return self.status is Status.EXITED and self.code == 0


class Sandbox:
    """Runs programs, each in a sandbox of its own. Has no state but what `check` found, so calls may overlap and it can be
    pickled."""

    def __init__(self, config: SandboxConfig) -> None:
        self.config = config
        self._protection: tuple[str, ...] | None = None

    async def run(self, code: str, stdin: str = "", files: Mapping[str, str | bytes] | None = None) -> SandboxResult:
        """Run `code` as a program in a new interpreter with the standard library. `files` are put into its working directory;
        names are relative.

        When this returns, raises or is cancelled, no process of the program is left. Raises `SandboxError` if the code could
        not be protected; then it did not run.
        """
        if self._protection is None:
            await self.check()
        return await self._run(code, stdin, files or {})

    async def check(self) -> tuple[str, ...]:
        """What protects here, in words, after trying it. Raises `SandboxError` if something that must not work does, or if the
        sandbox cannot be built."""
        _require_linux()
        limits = {limit: (soft, hard) for limit, soft, hard in self.config.limits() if limit != resource.RLIMIT_NPROC}
        given = {"fork": self.config.fork, "tasks": self.config.tasks, "limits": list(limits)}
        probe = (_HERE / "probe.py").read_text(encoding="utf-8")
        # Its time is its own: a short limit for programs on a busy machine is no reason to refuse them.
        result = await self._run(probe, json.dumps(given), {}, seconds=max(self.config.seconds, _TRIAL))
        if not result.ok:
            raise _refusal(f"the test program ended as '{result.status}', code {result.code}: {result.stderr[-300:]}")
        found = json.loads(result.stdout)
        looser = [limit for limit, (soft, hard) in limits.items() if not _within(found["limits"][str(limit)], (soft, hard))]
        flaws = [
            *found["worked"],
            *(f"limit {limit} is {found['limits'][str(limit)]}" for limit in looser),
            *(f"{name} is in the environment" for name in found["environment"] if name not in _ENVIRONMENT),
            *(["more threads than allowed"] if found["tasks"] > self.config.tasks else []),
            *(["running as root"] if found["user"] == 0 else []),
        ]
        if flaws:
            raise _refusal(f"inside, this worked: {'; '.join(flaws)}")
        calls = len(seccomp.numbers(os.uname().machine, fork=self.config.fork))
        self._protection = (
            f"new namespaces: {', '.join(jail.NAMESPACES)}",
            f"a read-only root with {', '.join(_readable())}; a scratch folder of {self.config.scratch} bytes",
            f"{calls} system calls, the others fail; no capabilities, no new privileges",
            f"user {'nobody' if os.getuid() == 0 else 'that started it, without what that user may do outside'}",
            f"limits: {self.config}",
        )
        return self._protection

    async def _run(
        self, code: str, stdin: str, files: Mapping[str, str | bytes], *, seconds: float | None = None
    ) -> SandboxResult:
        _require_linux()
        seconds = self.config.seconds if seconds is None else seconds
        request = marshal.dumps(self._request(code, stdin, files) | {"seconds": seconds})
        reply = await _supervised(request, seconds + _START)
        if "refused" in reply:
            step, error = reply["refused"]
            raise _refusal(f"the step '{step}' failed" + (f": {os.strerror(error)}" if error else ""))
        return _result(reply, self.config)

    def _request(self, code: str, stdin: str, files: Mapping[str, str | bytes]) -> dict[str, Any]:
        config = self.config
        packages = {f"/packages/{i}": os.path.realpath(folder) for i, folder in enumerate(config.packages)}
        return {
            "caller": os.getpid(),
            "code": code.encode("utf-8", "replace"),
            "stdin": stdin.encode("utf-8", "replace"),
            "files": {_inside(name): d if isinstance(d, bytes) else d.encode("utf-8", "replace") for name, d in files.items()},
            "argv": [_interpreter(), "-s", "-B", "/code/main.py"],
            "env": {**_ENVIRONMENT, "PYTHONPATH": ":".join(["/tmp", *packages])},
            "read": _readable(),
            "links": _links(),
            "hide": _hidden(),
            "packages": packages,
            "limits": config.limits(),
            "filter": seccomp.program(os.uname().machine, fork=config.fork),
            "scratch": config.scratch,
            "output": config.output,
        }


_ENVIRONMENT = {
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "LC_ALL": "C.UTF-8",
    "PYTHONPATH": "",
    "PYTHONUTF8": "1",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
}
"""All that a program finds in its environment. The order of sets is the same in every run, so that a reward can be repeated."""


def _require_linux() -> None:
    if sys.platform != "linux":
        raise _refusal(f"the system {sys.platform}")
    if any(path.startswith("/tmp/") for path in _readable()):
        raise _refusal(f"the interpreter is {_interpreter()}, in the folder that is the scratch folder inside")


def _interpreter() -> str:
    """The interpreter itself, where this one runs in a virtual environment."""
    base, own = os.path.realpath(sys.base_prefix), os.path.realpath(sys.executable)
    installed = f"{base}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    return own if own.startswith(f"{base}/") or not os.path.exists(installed) else os.path.realpath(installed)


@cache
def _readable() -> list[str]:
    """Files and folders that the interpreter needs, none inside another: standard library, shared libraries."""
    base = os.path.realpath(sys.base_prefix)
    paths = sysconfig.get_paths(vars=dict.fromkeys(("installed_base", "installed_platbase", "base", "platbase"), base))
    wanted = [f"{base}/lib", f"{base}/lib64", paths["stdlib"], paths["platstdlib"], *_LIBRARIES, _interpreter()]
    real = sorted({os.path.realpath(path) for path in wanted if os.path.exists(path)})
    return [path for path in real if not any(path.startswith(f"{other}/") for other in real)]


@cache
def _hidden() -> list[str]:
    """Folders of installed packages among them, where answers to tests may be."""
    return [*site.getsitepackages([os.path.realpath(sys.base_prefix)]), "/usr/lib/python3/dist-packages"]


@cache
def _links() -> dict[str, str]:
    """Library folders that are links, such as /lib to usr/lib."""
    return {path: os.readlink(path) for path in _LIBRARIES if os.path.islink(path) and path.count("/") == 1}


def _inside(name: str) -> str:
    """A name for a file in the scratch folder. Raises `ConfigError` if it leads elsewhere."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise ConfigError(
            "a file for the sandbox is not inside its scratch folder",
            given=repr(name),
            expected="a relative path without '..'",
            todo="correct the name",
        )
    return str(path)


def _within(found: list[int], limit: tuple[int, int]) -> bool:
    return all(0 <= have <= most for have, most in zip(found, limit, strict=True))


def _result(reply: dict[str, Any], config: SandboxConfig) -> SandboxResult:
    code, stderr = reply["code"], reply["stderr"].decode("utf-8", "replace")
    status = {"timeout": Status.TIMEOUT, "output": Status.OUTPUT}.get(reply["cause"], Status.EXITED)
    if status is Status.EXITED and code < 0:
        # How the kernel ends a process at its soft limit, and at its hard one, a second later.
        spent = code == -signal.SIGXCPU or (code == -signal.SIGKILL and reply["cpu_seconds"] > config.cpu_seconds)
        status = Status.CPU if spent else Status.KILLED
    elif status is Status.EXITED and code and "MemoryError" in stderr[-1000:]:
        status = Status.MEMORY
    return SandboxResult(
        status=status,
        code=code,
        stdout=reply["stdout"].decode("utf-8", "replace"),
        stderr=stderr,
        seconds=reply["seconds"],
        cpu_seconds=reply["cpu_seconds"],
    )


async def _supervised(request: bytes, patience: float) -> dict[str, Any]:
    """Start a supervisor, give it the request, and return its reply. It has ended when this ends in whatever way."""
    pipe = asyncio.subprocess.PIPE
    try:
        supervisor = await asyncio.create_subprocess_exec(
            *(_interpreter(), "-I", "-S", "-c", _SUPERVISOR, str(_HERE)),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env={},  # what it does not know, nobody can read in it
            cwd="/",
            start_new_session=True,  # an interrupt from the keyboard is not for it
        )
    except OSError as error:
        raise _refusal(f"the supervisor cannot be started: {error}") from error
    assert supervisor.stdin is not None and supervisor.stdout is not None and supervisor.stderr is not None
    try:
        async with asyncio.timeout(patience):
            supervisor.stdin.write(request)
            reply, complaint = await asyncio.gather(supervisor.stdout.read(), supervisor.stderr.read())
            await supervisor.wait()
    except TimeoutError:
        raise _refusal(f"no reply from the supervisor within {patience:g} s") from None
    finally:
        await _end(supervisor)
    if not reply:
        raise _refusal(f"the supervisor ended with code {supervisor.returncode}: {complaint.decode(errors='replace')[-600:]}")
    return marshal.loads(reply)


async def _end(supervisor: asyncio.subprocess.Process) -> None:
    """Closing its input tells a supervisor to end the program and itself."""
    assert supervisor.stdin is not None and supervisor.stdout is not None and supervisor.stderr is not None
    supervisor.stdin.close()
    try:
        async with asyncio.timeout(_END):
            await asyncio.gather(supervisor.stdout.read(), supervisor.stderr.read(), supervisor.wait())
    except TimeoutError:
        pass
    finally:
        if supervisor.returncode is None:
            supervisor.kill()
            await supervisor.wait()


def _refusal(given: str) -> SandboxError:
    off = [f"{name.replace('/', '.')} = {value}" for name, value in _SWITCHES.items() if _reads(f"/proc/sys/{name}", value)]
    return SandboxError(
        "model-written code was not run, because the sandbox cannot protect this machine from it",
        given="; ".join([given, *off]),
        expected="Linux 5.12 or later on x86-64 or ARM64, where any user may make user namespaces",
        todo="allow them (sysctl for the switches that are off; in a container a profile that permits unshare and mount), run "
        "the rewarder on a machine that does, or use a recipe that runs no model-written code",
    )


def _reads(path: str, value: str) -> bool:
    try:
        return Path(path).read_text(encoding="utf-8").strip() == value
    except OSError:
        return False
