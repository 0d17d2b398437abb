"""Builds the sandbox from inside, runs one program in it, and reports. Run by `python -I -S`, with the standard library alone.

    supervisor    reads the request from its input, gives up the system that it knew (namespaces, mounts), waits, reports
     +- init      process 1 of the new process namespace; with it, the kernel ends every process in there
         +- program   the code: another user, no capabilities, limits, the filter of system calls; then a new interpreter

The supervisor stands outside of the process namespace, so that no code can see, signal or trace it, and only it holds the
channel on which the result goes out. Every step that fails ends in a report that names it, before any code has run.

Request and report are `marshal`: both ends are ours, and it is loaded already. The input stays open as long as somebody waits
for the result: when it closes, everything ends. Should the supervisor itself be killed, the kernel kills init.
"""

import ctypes
import marshal
import os
import resource
import select
import time
from typing import Any, NoReturn

INSIDE = 1000
"""User and group of the code, as seen from inside."""
NOBODY = 65534
"""Who that is outside, if root starts the sandbox; otherwise it is whoever started it."""

NAMESPACES = {
    "mounts": 0x20000,
    "host name": 0x04000000,
    "IPC": 0x08000000,
    "users": 0x10000000,
    "processes": 0x20000000,
    "network": 0x40000000,
}

PIVOT_ROOT, CAPSET = {"x86_64": (155, 126), "aarch64": (41, 91)}.get(os.uname().machine, (-1, -1))
MOUNT_SETATTR = 442

READ_ONLY, NO_SUID, NO_DEVICES, NO_EXEC = 1, 2, 4, 8
BIND, RECURSIVE, PRIVATE = 4096, 16384, 1 << 18
DETACH = 2
PARENT_DIES, DUMPABLE, DROP_BOUND, NO_NEW_PRIVILEGES, SECCOMP = 1, 4, 24, 38, 22
INTERRUPT, KILL = 2, 9

DEVICES = ("null", "zero", "random", "urandom")
SCRATCH = "/tmp"


class Refused(Exception):
    """A step failed: its name, and the number of the error."""


def do(step: str, result: int) -> int:
    """The result of a function of the C library. Raises `Refused` if it failed."""
    if result < 0:
        raise Refused(step, ctypes.get_errno())
    return result


def load_libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    libc.syscall.restype = ctypes.c_long
    return libc


class Jail:
    """One sandbox around one request."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.libc = load_libc()
        self.as_root = os.getuid() == 0 and all(knows(NOBODY, f"/proc/self/{kind}_map") for kind in ("uid", "gid"))

    def enter(self) -> None:
        """Leave every namespace that the caller is in."""
        os.umask(0o022)
        if self.as_root:
            os.setgroups([])
        users, groups = (self._map(os.getuid()), self._map(os.getgid()))
        mapper, ready = self._fork_mapper(users, groups)
        do("unshare", self.libc.unshare(sum(NAMESPACES.values())))
        os.write(ready, b"!")
        os.close(ready)
        code = os.waitstatus_to_exitcode(os.waitpid(mapper, 0)[1])
        if code:
            raise Refused("user and group maps", code)
        do("sethostname", self.libc.sethostname(b"sandbox", 7))
        self._die_with(self.request["caller"])

    def _map(self, own: int) -> str:
        return f"0 0 1\n{INSIDE} {NOBODY} 1\n" if self.as_root else f"{INSIDE} {own} 1\n"

    def _fork_mapper(self, users: str, groups: str) -> tuple[int, int]:
        """A child that stays outside and, when told, says who is who inside: only from outside may root name two users."""
        listen, tell = os.pipe()
        target, child = f"/proc/{os.getpid()}", os.fork()
        if child:
            os.close(listen)
            return child, tell
        code = 255
        try:
            os.close(tell)
            if os.read(listen, 1):
                for name, text in (("setgroups", "deny"), ("uid_map", users), ("gid_map", groups)):
                    with open(f"{target}/{name}", "w") as file:
                        file.write(text)
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)

    def build_root(self) -> None:
        """A file system of its own: libraries to read, a few devices, the code, a scratch folder, and nothing else."""
        request = self.request
        size = len(request["code"]) + len(request["stdin"]) + (1 << 20)
        do("private mounts", self.libc.mount(None, b"/", None, RECURSIVE | PRIVATE, None))
        # Any folder will do to build on, as it is only hidden in here; this one always exists.
        self._tmpfs("/tmp", f"mode=755,size={size},nr_inodes=4096", NO_SUID | NO_DEVICES | NO_EXEC)
        os.mkdir("/tmp/old")
        self._call("pivot_root", PIVOT_ROOT, b"/tmp", b"/tmp/old")
        os.chdir("/")
        for path in request["read"]:
            self._bind(path, path, READ_ONLY | NO_SUID | NO_DEVICES)
        for path in request["hide"]:
            if os.path.isdir(path):
                self._tmpfs(path, "mode=755,size=4096,nr_inodes=1", NO_SUID | NO_DEVICES | NO_EXEC | READ_ONLY)
        for path, folder in request["packages"].items():
            self._bind(path, folder, READ_ONLY | NO_SUID | NO_DEVICES)
        for path, target in request["links"].items():
            os.symlink(target, path)
        for name in DEVICES:
            self._bind(f"/dev/{name}", f"/dev/{name}", READ_ONLY | NO_SUID | NO_EXEC)
        # A file, not the usual link into /proc, which is not there.
        write("/dev/stdin", request["stdin"])
        write("/code/main.py", request["code"])
        do("umount2", self.libc.umount2(b"/old", DETACH))
        os.rmdir("/old")
        os.mkdir(SCRATCH)
        self._protect("/", READ_ONLY | NO_SUID | NO_DEVICES | NO_EXEC, recursive=False)
        owner = f"uid={INSIDE},gid={INSIDE},mode=700"
        self._tmpfs(SCRATCH, f"{owner},size={request['scratch']},nr_inodes=4096", NO_SUID | NO_DEVICES | NO_EXEC)

    def _tmpfs(self, path: str, options: str, flags: int) -> None:
        do(f"mount on {path}", self.libc.mount(b"tmpfs", path.encode(), b"tmpfs", flags, options.encode()))

    def _bind(self, path: str, source: str, flags: int) -> None:
        """Let a file or folder of the old root be seen at `path`, with everything that is mounted below it."""
        if os.path.isdir(f"/old{source}"):
            os.makedirs(path, exist_ok=True)
        else:
            write(path, b"")
        do(f"bind {source}", self.libc.mount(f"/old{source}".encode(), path.encode(), None, BIND | RECURSIVE, None))
        self._protect(path, flags, recursive=True)

    def _protect(self, path: str, flags: int, *, recursive: bool) -> None:
        here, attributes = -100, (ctypes.c_uint64 * 4)(flags, 0, 0, 0)
        deep = 0x8000 if recursive else 0
        self._call("mount_setattr", MOUNT_SETATTR, here, path.encode(), deep, ctypes.byref(attributes), ctypes.c_size_t(32))

    def _call(self, step: str, number: int, *arguments: Any) -> None:
        """A system call of which the C library has no function."""
        do(step, self.libc.syscall(ctypes.c_long(number), *arguments))

    def fork_init(self, out: int, err: int) -> tuple[int, int]:
        """Process 1, and where it reports."""
        listen, report = os.pipe()
        alive, held = os.pipe()
        child = os.fork()
        if child:
            # `held` stays open for as long as the supervisor lives.
            os.close(report)
            os.close(alive)
            return child, listen
        outcome: tuple = ("first process", 0)
        try:
            os.close(held)
            outcome = self._init(out, err, alive)
        except Refused as refusal:
            outcome = refusal.args
        except OSError as error:
            outcome = (f"first process: {error}", error.errno or 0)
        finally:
            os.write(report, marshal.dumps(outcome))
            os._exit(0)

    def _init(self, out: int, err: int, alive: int) -> tuple:
        """Drop what root or the owner of the namespaces could do, start the program, and reap until it has ended. Returns
        ("", how it ended)."""
        # A session of its own: a signal to a whole group must not reach the supervisor.
        os.setsid()
        # The kernel keeps from init what it has no handler for; Python has one for interrupts.
        self.libc.signal(INTERRUPT, None)
        self._drop()
        do("prctl", self.libc.prctl(PARENT_DIES, KILL, 0, 0, 0))
        do("prctl", self.libc.prctl(DUMPABLE, 0, 0, 0, 0))
        if select.select([alive], [], [], 0)[0]:
            os._exit(255)  # The supervisor died before the kernel knew that this process is to die with it.
        for name, data in self.request["files"].items():
            write(f"{SCRATCH}/{name}", data)
        failure, told = os.pipe()
        program = os.fork()
        if not program:
            outcome: tuple = ("program", 0)
            try:
                self._become(out, err)
            except Refused as refusal:
                outcome = refusal.args
            except (OSError, ValueError) as error:
                outcome = (f"program: {error}", 0)
            finally:
                # Only reached if there is no new interpreter: when that starts, the kernel closes this end.
                os.write(told, marshal.dumps(outcome))
                os._exit(255)
        for descriptor in (0, 1, 2, out, err, told):
            os.close(descriptor)
        refused = read_all(failure)
        while True:
            child, status = os.wait()
            if child == program and not os.WIFSTOPPED(status):
                return marshal.loads(refused) if refused else ("", status)

    def _drop(self) -> None:
        for capability in range(64):
            if self.libc.prctl(DROP_BOUND, capability, 0, 0, 0) < 0:
                break  # The kernel knows no more of them.
        os.setresgid(INSIDE, INSIDE, INSIDE)
        os.setresuid(INSIDE, INSIDE, INSIDE)
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        self._call("capset", CAPSET, ctypes.byref(header), ctypes.byref(none))

    def _become(self, out: int, err: int) -> NoReturn:
        """Turn this process into the program."""
        request = self.request
        os.setsid()
        os.chdir(SCRATCH)
        stdin = os.open("/dev/stdin", os.O_RDONLY)
        for descriptor, place in ((stdin, 0), (out, 1), (err, 2)):
            os.dup2(descriptor, place)
        # In the namespace of the code count init and, if it has the same user, the supervisor.
        beside = 1 if self.as_root else 2
        for limit, soft, hard in request["limits"]:
            more = beside if limit == resource.RLIMIT_NPROC else 0
            most = resource.getrlimit(limit)[1]
            least = [value for value in (hard + more, most) if value != resource.RLIM_INFINITY]
            resource.setrlimit(limit, (min(soft + more, *least), min(least)))
        do("no_new_privs", self.libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0))
        text = ctypes.create_string_buffer(request["filter"], len(request["filter"]))
        program = Program(len(request["filter"]) // 8, ctypes.addressof(text))
        do("seccomp", self.libc.prctl(SECCOMP, 2, ctypes.addressof(program), 0, 0))
        os.execve(request["argv"][0], request["argv"], request["env"])

    def _die_with(self, parent: int) -> None:
        """Have the kernel kill this process when its parent ends, or see that it has ended already."""
        do("prctl", self.libc.prctl(PARENT_DIES, KILL, 0, 0, 0))
        if os.getppid() != parent:
            os._exit(255)


class Program(ctypes.Structure):
    """What the kernel calls `sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_void_p))


def knows(number: int, path: str) -> bool:
    """Whether the user namespace that we start in has a user or group of this number."""
    with open(path) as file:
        rows = [[int(word) for word in line.split()] for line in file]
    return any(first <= number < first + count for first, _, count in rows)


def write(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def read_all(descriptor: int) -> bytes:
    parts = []
    while part := os.read(descriptor, 1 << 16):
        parts.append(part)
    return b"".join(parts)


def watch(request: dict[str, Any], init: int, report: int, out: int, err: int) -> dict[str, Any] | None:
    """Wait for the end of the program or bring it about. Returns when no process of it is left; None if nobody cares."""
    began, cause, told = time.monotonic(), "", b""
    streams = {out: bytearray(), err: bytearray()}
    poll = select.poll()
    for descriptor in (0, report, out, err):
        poll.register(descriptor, select.POLLIN)
    while not cause:
        left = began + request["seconds"] - time.monotonic()
        ready = [descriptor for descriptor, _ in poll.poll(max(0.0, left * 1000))]
        if 0 in ready:
            cause = "abandoned"
        elif left <= 0:
            cause = "timeout"
        for descriptor in ready:
            part = os.read(descriptor, 1 << 16) if descriptor else b""
            if descriptor in streams:
                streams[descriptor] += part
                if len(streams[descriptor]) > request["output"]:
                    cause = "output"
            elif descriptor == report:
                told += part
                if not part:
                    cause = cause or "ended"
            if not part:
                poll.unregister(descriptor)
    seconds = time.monotonic() - began
    os.kill(init, KILL)
    usage = os.wait4(init, 0)[2]
    if cause == "abandoned":
        return None
    for descriptor, data in streams.items():
        os.set_blocking(descriptor, False)
        drain(descriptor, data, request["output"] + 1)
        if len(data) > request["output"] and cause == "ended":
            cause = "output"
    nothing = ("the first process ended without a word", 0) if cause == "ended" else ("", KILL)
    refused, status = marshal.loads(told) if told else nothing
    if refused:
        return {"refused": (refused, status)}
    return {
        "cause": cause,
        "code": os.waitstatus_to_exitcode(status),
        "stdout": bytes(streams[out][: request["output"]]),
        "stderr": bytes(streams[err][: request["output"]]),
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }


def drain(descriptor: int, data: bytearray, most: int) -> None:
    """What is still in a pipe whose writers have all ended."""
    while len(data) < most and (part := os.read(descriptor, 1 << 16)):
        data += part


def main() -> None:
    with open(0, "rb", closefd=False) as file:
        try:
            request = marshal.load(file)
        except EOFError:
            os._exit(0)  # Whoever asked is gone.
    jail, step = Jail(request), "namespaces"
    reply: dict[str, Any] | None
    try:
        jail.enter()
        step = "file system"
        jail.build_root()
        step = "first process"
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        init, report = jail.fork_init(out_end, err_end)
        os.close(out_end)
        os.close(err_end)
    except Refused as refusal:
        reply = {"refused": refusal.args}
    except OSError as error:
        reply = {"refused": (f"{step}: {error}", error.errno or 0)}
    else:
        reply = watch(request, init, report, out, err)
    if reply is not None:
        with open(1, "wb") as file:
            file.write(marshal.dumps(reply))
    os._exit(0)  # What an interpreter does at its end takes milliseconds, and all is done.
