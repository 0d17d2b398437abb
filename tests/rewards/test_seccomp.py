"""The filter of system calls, run by a machine of ten lines instead of the kernel."""

import ctypes
import os
import platform

import pytest

from freerun.errors import SandboxError
from freerun.rewards import seccomp


def test_a_machine_of_which_the_system_calls_are_not_known_is_refused():
    with pytest.raises(SandboxError, match="riscv64"):
        seccomp.program("riscv64", fork=False)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_allows_what_it_lists_and_nothing_else(machine):
    for fork in (False, True):
        allowed, filtered = seccomp.numbers(machine, fork=fork), seccomp.program(machine, fork=fork)
        assert not {"socket", "ptrace", "unshare", "mount", "keyctl", "bpf", "memfd_create", "clone3"} & allowed.keys()
        by_argument = {allowed[row.split()[0]] for row in seccomp._BY_ARGUMENT.split(",")}
        for call in set(range(600)) - by_argument:
            assert (interpret(filtered, machine, call) == seccomp._ALLOW) == (call in allowed.values())
        assert interpret(filtered, "another", 0) == seccomp._KILL


def interpret(filtered: bytes, machine: str, call: int, *arguments: int) -> int:
    """What the kernel would decide: a machine with one register."""
    known = seccomp._MACHINES.get(machine, (0, 0))[0]
    filled = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    words = {0: call, 4: known, **{16 + 8 * i: a & 0xFFFFFFFF for i, a in enumerate(filled)}}
    words |= {20 + 8 * i: a >> 32 for i, a in enumerate(filled)}
    at, register = 0, 0
    while True:
        code, yes, no, value = seccomp.struct.unpack_from("=HBBI", filtered, 8 * at)
        at += 1
        if code == seccomp._RETURN:
            return value
        if code == seccomp._LOAD:
            register = words[value]
        else:
            tests = {
                seccomp._EQUAL: register == value,
                seccomp._AT_LEAST: register >= value,
                seccomp._ABOVE: register > value,
                seccomp._ANY_BIT: bool(register & value),
            }
            at += yes if tests[code] else no


@pytest.mark.parametrize(("machine", "architecture"), [("x86_64", 0xC000003E), ("aarch64", 0xC00000B7)])
def test_system_calls_have_the_numbers_that_libseccomp_knows(machine, architecture):
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("there is no libseccomp to compare with")
    resolve = library.seccomp_syscall_resolve_name_arch
    assert {name: resolve(ctypes.c_uint32(architecture), name.encode()) for name in seccomp.numbers(machine, fork=True)} == (
        seccomp.numbers(machine, fork=True)
    )


def test_the_filter_looks_at_arguments():
    machine, fork = "x86_64", seccomp.program("x86_64", fork=True)
    alone = seccomp.program(machine, fork=False)
    clone, pair, send, limit = (seccomp.numbers(machine)[n] for n in ("clone", "socketpair", "sendto", "prlimit64"))
    thread, child, namespace = 0x3D0F00, 17, 0x10000000
    allowed = seccomp._ALLOW
    assert interpret(alone, machine, clone, thread) == interpret(fork, machine, clone, thread) == allowed
    assert interpret(alone, machine, clone, child) != allowed == interpret(fork, machine, clone, child)
    assert allowed not in (interpret(f, machine, clone, flags | namespace) for f in (alone, fork) for flags in (thread, child))
    assert interpret(alone, machine, pair, 1) == allowed != interpret(alone, machine, pair, 2)
    assert interpret(alone, machine, send, 3, 0, 0, 0) == allowed != interpret(alone, machine, send, 3, 0, 0, 1)
    assert interpret(alone, machine, limit, 0) == allowed != interpret(alone, machine, limit, 1)
    core, other = 4, 5
    assert all(interpret(alone, machine, limit, 0, other, pointer) == allowed for pointer in (0, 8, 1 << 32))
    assert interpret(alone, machine, limit, 0, core, 0, 8) == allowed
    assert all(interpret(alone, machine, limit, 0, core, pointer) != allowed for pointer in (8, 1 << 32))


def test_this_machine_is_one_of_those_that_the_filter_knows():
    assert platform.machine() in seccomp._MACHINES and os.name == "posix"
