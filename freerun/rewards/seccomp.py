"""The system calls that code in the sandbox may make, as a program for the kernel's filter (seccomp, classic BPF).

A list of what is allowed: everything else fails, so a call that a later kernel adds is closed until somebody opens it here.
What is left is what a Python interpreter needs for files, memory, threads and waiting. What is missing is what reaches beyond
the process: sockets other than pairs, namespaces and mounts, tracing, keys, io_uring, userfaultfd, memory that no limit counts
(memfd, System V and POSIX shared memory), and, unless asked for, new processes.
"""

import struct
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise

from freerun.errors import SandboxError

_ALWAYS = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70,
preadv2 327 286, pwritev2 328 287, open 2 -, openat 257 56, creat 85 -, close 3 57, close_range 436 436, lseek 8 62, stat 4 -,
lstat 6 -, fstat 5 80, newfstatat 262 79, statx 332 291, access 21 -, faccessat 269 48, faccessat2 439 439, readlink 89 -,
readlinkat 267 78, getdents 78 -, getdents64 217 61, dup 32 23, dup2 33 -, dup3 292 24, fcntl 72 25, flock 73 32,
truncate 76 45, ftruncate 77 46, fallocate 285 47, fadvise64 221 223, fsync 74 82, fdatasync 75 83, sendfile 40 71, mkdir 83 -,
mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35, rename 82 -, renameat 264 38, renameat2 316 276, link 86 -,
linkat 265 37, symlink 88 -, symlinkat 266 36, chmod 90 -, fchmod 91 52, fchmodat 268 53, utimensat 280 88, getcwd 79 17,
chdir 80 49, fchdir 81 50, umask 95 166, statfs 137 43, fstatfs 138 44, getxattr 191 8, lgetxattr 192 9, fgetxattr 193 10,
listxattr 194 11, llistxattr 195 12, flistxattr 196 13, pipe 22 -, pipe2 293 59,
mmap 9 222, munmap 11 215, mprotect 10 226, mremap 25 216, madvise 28 233, msync 26 227, brk 12 214, membarrier 324 283,
execve 59 221, exit 60 93, exit_group 231 94, wait4 61 260, waitid 247 95, getpid 39 172, getppid 110 173, gettid 186 178,
getpgid 121 155, getpgrp 111 -, getsid 124 156, setpgid 109 154, setsid 112 157, kill 62 129, tkill 200 130, tgkill 234 131,
getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, getresuid 118 148, getresgid 120 150, getgroups 115 158,
getrlimit 97 163, getrusage 98 165, times 100 153, getpriority 140 141, uname 63 160, sysinfo 99 179,
sched_yield 24 124, sched_getaffinity 204 123, sched_getparam 143 121, sched_getscheduler 145 120,
sched_get_priority_max 146 125, sched_get_priority_min 147 126, getcpu 309 168, arch_prctl 158 -,
futex 202 98, set_robust_list 273 99, set_tid_address 218 96, rseq 334 293, restart_syscall 219 128,
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigsuspend 130 133,
rt_sigtimedwait 128 137, sigaltstack 131 132, pause 34 -, alarm 37 -, setitimer 38 103, getitimer 36 102,
clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115, nanosleep 35 101, gettimeofday 96 169, time 201 -,
getrandom 318 278, poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20,
epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22, eventfd2 290 19,
shutdown 48 210, getsockname 51 204, getpeername 52 205, getsockopt 55 209, setsockopt 54 208
"""
"""Name, number on x86-64, number on ARM64 (`-`: that machine does not have it)."""

_FORK = "fork 57 -, vfork 58 -"
_BY_ARGUMENT = """
clone 56 220, socketpair 53 199, sendto 44 206, recvfrom 45 207, prctl 157 167, setrlimit 160 164, prlimit64 302 261,
ioctl 16 29
"""

_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""What `uname` calls the machine: the kernel's number of it, and its column above."""

_LOAD, _EQUAL, _AT_LEAST, _ABOVE, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x25, 0x45, 0x06
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16
"""Offsets in what the filter sees of a call; arguments are 8 bytes each, the lower half first."""

_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOTTY, _ENOSYS = 1, 25, 38
_FIRST_RECENT = 424
"""Calls of which libraries expect that an older kernel lacks them: these do not fail but are not there."""

_THREAD, _NEW_NAMESPACE = 0x00010000, 0x7E020000
_OUT_OF_BAND, _UNIX = 1, 1
_NAMES, _TERMINAL = (15, 16, 0x53564D41), (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""`prctl` may name threads and memory; `ioctl` may ask for the terminal and its size, count what can be read, set flags."""
_CORE = 4
"""The limit that keeps crashes from the handler of the system; lowered to 0 it would let them through."""


def numbers(machine: str, *, fork: bool = False) -> dict[str, int]:
    """The allowed system calls by name, those whose arguments are looked at included. Raises `SandboxError` for a machine of
    which the numbers are not known."""
    if machine not in _MACHINES:
        raise SandboxError(
            "the sandbox does not know the system calls of this machine",
            given=machine,
            expected=" or ".join(_MACHINES),
            todo="run the rewarder on such a machine, or use a recipe that runs no model-written code",
        )
    rows = (row.split() for table in (_ALWAYS, _BY_ARGUMENT, *[_FORK] * fork) for row in table.split(","))
    column = _MACHINES[machine][1]
    return {name: int(each[column]) for name, *each in rows if each[column] != "-"}


@cache
def program(machine: str, *, fork: bool) -> bytes:
    """The filter. With `fork` code may start processes, without only threads; never in new namespaces."""
    number = numbers(machine, fork=fork)
    checked = {name: number.pop(name) for name in (row.split()[0] for row in _BY_ARGUMENT.split(","))}
    rules = {
        "clone": _none_of(0, _NEW_NAMESPACE, then=_allow() if fork else _some_of(0, _THREAD, then=_allow())),
        "socketpair": _one_of(0, [_UNIX], otherwise=_EPERM),
        "sendto": _none_of(3, _OUT_OF_BAND, then=_allow()),
        "recvfrom": _none_of(3, _OUT_OF_BAND, then=_allow()),
        "prctl": _one_of(0, _NAMES, otherwise=_EPERM),
        "setrlimit": [_argument(0), _step(_EQUAL, _CORE, no=1), _end(_FAIL | _EPERM), _end(_ALLOW)],
        # Of no other process; of the core only to read, which is to give no new limit: a pointer of two halves.
        "prlimit64": _zero(0, then=[_argument(1), _step(_EQUAL, _CORE, yes=1), _end(_ALLOW), *_zero(2, then=_zero(2.5))]),
        "ioctl": _one_of(1, _TERMINAL, otherwise=_ENOTTY),
    }
    lines = [_step(_LOAD, _MACHINE), _step(_EQUAL, _MACHINES[machine][0], yes=1), _end(_KILL), _step(_LOAD, _NUMBER)]
    for first, last in _ranges(number.values()):
        lines += [_step(_AT_LEAST, first, no=2), _step(_ABOVE, last, yes=1), _end(_ALLOW)]
    for name, rule in rules.items():
        lines += [_step(_EQUAL, checked[name], no=len(rule)), *rule]
    # The 32-bit variant of x86-64 numbers its calls from 2^30 on: recent, so not there.
    lines += [_step(_AT_LEAST, _FIRST_RECENT, no=1), _end(_FAIL | _ENOSYS), _end(_FAIL | _EPERM)]
    return b"".join(lines)


def _step(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    """One instruction; `yes` and `no` are how many to skip."""
    return struct.pack("=HBBI", code, yes, no, value)


def _end(verdict: int) -> bytes:
    return _step(_RETURN, verdict)


def _allow() -> list[bytes]:
    return [_end(_ALLOW)]


def _argument(index: float) -> bytes:
    """Load the lower half of an argument, which is all that the kernel takes of most; half a place further on is the upper."""
    return _step(_LOAD, _ARGUMENTS + int(8 * index))


def _one_of(index: int, values: Iterable[int], *, otherwise: int) -> list[bytes]:
    tests = [line for value in values for line in (_step(_EQUAL, value, no=1), _end(_ALLOW))]
    return [_argument(index), *tests, _end(_FAIL | otherwise)]


def _zero(index: float, *, then: list[bytes] | None = None) -> list[bytes]:
    return [_argument(index), _step(_EQUAL, 0, yes=1), _end(_FAIL | _EPERM), *(then or _allow())]


def _none_of(index: int, bits: int, *, then: list[bytes]) -> list[bytes]:
    return [_argument(index), _step(_ANY_BIT, bits, no=1), _end(_FAIL | _EPERM), *then]


def _some_of(index: int, bits: int, *, then: list[bytes]) -> list[bytes]:
    return [_argument(index), _step(_ANY_BIT, bits, yes=1), _end(_FAIL | _EPERM), *then]


def _ranges(values: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The numbers as runs of neighbours, (first, last)."""
    ordered = sorted(values)
    gaps = [(a, b) for a, b in pairwise(ordered) if b > a + 1]
    yield from zip([ordered[0], *(b for _, b in gaps)], [*(a for a, _ in gaps), ordered[-1]], strict=True)
