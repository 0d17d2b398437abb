"""The sandbox: what programs can do in it, what becomes of those that run into a limit, and of those that it cannot protect."""

import asyncio
import signal
import subprocess
import sys
import time

import psutil
import pytest

from freerun.errors import ConfigError, RewardError, SandboxError
from freerun.rewards import sandbox as module
from freerun.rewards import seccomp
from freerun.rewards.sandbox import Sandbox, SandboxConfig, Status
from tests.rewards.conftest import inhabitants, number, run, said, vanish
from tools.source import ROOT

pytestmark = [pytest.mark.dist, pytest.mark.usefixtures("nothing_is_left")]
needs_sandbox = pytest.mark.usefixtures("sandboxed")


@needs_sandbox
def test_a_program_reads_its_input_and_files_and_its_output_errors_and_code_come_back():
    result = run(
        "print(input(), open('a/b.txt').read()); print('oh', file=sys.stderr); exit(3)",
        "one\n",
        {"a/b.txt": "two", "c": b"\xff"},
    )
    assert (result.status, result.code, result.ok) == (Status.EXITED, 3, False)
    assert (result.stdout, result.stderr) == ("one two\n", "oh\n")
    assert 0 < result.cpu_seconds < 5 and 0 < result.seconds < 10


@needs_sandbox
def test_what_ordinary_programs_use_works():
    code = """
        import asyncio, json, math, random, sqlite3, subprocess, tempfile, threading, zoneinfo
        from concurrent.futures import ThreadPoolExecutor
        print(sum(ThreadPoolExecutor(4).map(abs, [-1, 2])), asyncio.run(asyncio.sleep(0, 7)))
        with tempfile.TemporaryDirectory() as folder:
            open(folder + '/x', 'w').write('there')
            print(open(folder + '/x').read(), open('/dev/null').read() == '', len(open('/dev/urandom', 'rb').read(3)))
        print(open('/dev/stdin').read(), os.getcwd(), socket.gethostname(), len({'a', 'b'}), 'é')
    """
    assert run(code, "in").stdout.split() == ["3", "7", "there", "True", "3", "in", "/tmp", "sandbox", "2", "é"]


@needs_sandbox
def test_the_order_of_sets_is_the_same_in_every_run():
    assert said("print(*{'a', 'b', 'c', 'd', 'e'})") == said("print(*{'a', 'b', 'c', 'd', 'e'})")


@needs_sandbox
def test_packages_can_be_imported_from_the_folders_that_are_named_and_from_no_other(tmp_path):
    (tmp_path / "helper.py").write_text("value = 7")
    tmp_path.chmod(0o755)  # inside, even root is somebody else
    code = """
        from importlib.util import find_spec
        print(*[find_spec(name) is not None for name in ('helper', 'torch', 'psutil', 'freerun', 'pip')])
    """
    assert said(code, packages=(str(tmp_path),)) == ["True", *["False"] * 4]
    assert said(code) == ["False"] * 5
    assert said("print(tried(open, '/packages/0/helper.py', 'a'))", packages=(str(tmp_path),))[0] in ("EROFS", "EACCES")


@needs_sandbox
def test_bytes_that_are_no_text_are_replaced():
    assert run("sys.stdout.buffer.write(b'\\xff')").stdout == "\ufffd"


@needs_sandbox
def test_a_program_that_waits_is_stopped_at_its_wall_time():
    result = run("time.sleep(60)", seconds=0.3)
    assert (result.status, result.code) == (Status.TIMEOUT, -signal.SIGKILL)
    assert 0.3 <= result.seconds < 30


@needs_sandbox
def test_a_program_that_computes_is_stopped_at_its_cpu_time_even_if_it_ignores_the_warning():
    result = run("signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", cpu_seconds=1, seconds=60)
    assert (result.status, result.code) == (Status.CPU, -signal.SIGKILL) and result.cpu_seconds >= 1


@needs_sandbox
def test_a_program_that_stops_itself_or_ignores_signals_or_closes_its_output_is_stopped_all_the_same():
    for code in (
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "[signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15, 20)]; time.sleep(60)",
        "os.close(0), os.close(1), os.close(2); time.sleep(60)",
    ):
        assert run(code, seconds=0.3).status is Status.TIMEOUT


@needs_sandbox
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_without_end_is_cut_and_stopped(stream):
    result = run(f"while True: sys.{stream}.write('x' * 1000)", output=5000)
    assert result.status is Status.OUTPUT
    assert (result.stdout + result.stderr) == "x" * 5000
    assert run(f"sys.{stream}.write('x' * 5000)", output=5000).ok
    assert run(f"sys.{stream}.write('x' * 5001)", output=5000).status is Status.OUTPUT


@needs_sandbox
def test_memory_ends_at_its_limit():
    assert run("x = bytearray(1 << 40)").status is Status.MEMORY
    assert run("x = []\nwhile True: x.append(bytearray(1 << 20))", memory=128 << 20).status is Status.MEMORY
    assert run("import mmap; mmap.mmap(-1, 1 << 30)", memory=128 << 20).code == 1


@needs_sandbox
def test_a_crash_is_told_from_an_exit():
    assert run("import faulthandler; faulthandler._sigsegv()").status is Status.KILLED
    assert run("os._exit(0)").ok
    assert run("os.abort()").code == -signal.SIGABRT


@needs_sandbox
def test_many_calls_overlap_and_each_gets_its_own_result():
    async def main():
        sandbox = Sandbox(SandboxConfig())
        await sandbox.check()
        return await asyncio.gather(*(sandbox.run("print(int(input()) ** 2)", str(i)) for i in range(12)))

    assert [result.stdout for result in asyncio.run(main())] == [f"{i * i}\n" for i in range(12)]


@needs_sandbox
def test_a_cancelled_call_leaves_no_process():
    began = time.time() - 1

    async def main():
        sandbox = Sandbox(SandboxConfig(seconds=60))
        await sandbox.check()
        call = asyncio.ensure_future(sandbox.run("import time; time.sleep(60)"))
        while not programs(began):
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return inhabitants(began)

    assert asyncio.run(main()) == []


@needs_sandbox
@pytest.mark.parametrize("after", range(0, 60, 6))
def test_a_call_that_is_cancelled_while_it_starts_leaves_no_process(after):
    async def main():
        call = asyncio.ensure_future(Sandbox(SandboxConfig())._run("import time; time.sleep(60)", "", {}))
        await asyncio.sleep(after / 1000)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(main())


def programs(since):
    """Those of the inhabitants that run code, rather than supervise or begin."""
    return [p for p in inhabitants(since) if p.is_running() and "/code/main.py" in p.cmdline()]


CALLER = """
import asyncio, os, sys
from freerun.rewards.sandbox import Sandbox, SandboxConfig
if sys.argv[1] == "with a heir":
    # A child that executes nothing inherits the pipes, so that they stay open when the caller dies.
    import signal, time
    def bequeath(*_):
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        print("bequeathed", flush=True)
    signal.signal(signal.SIGUSR1, bequeath)
asyncio.run(Sandbox(SandboxConfig(seconds=60)).run("import time; time.sleep(60)"))
"""


@needs_sandbox
@pytest.mark.parametrize("how", ["alone", "with a heir"])
def test_nothing_outlives_a_caller_that_is_killed(how):
    began = time.time() - 1
    caller = subprocess.Popen([sys.executable, "-c", CALLER, how], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        while not programs(began):
            time.sleep(0.02)
        if how == "with a heir":
            caller.send_signal(signal.SIGUSR1)
            assert caller.stdout.readline() == b"bequeathed\n"
        heirs = psutil.Process(caller.pid).children()
        caller.kill()
        caller.wait()
        assert vanish(began)
        for heir in heirs:
            if heir.is_running():
                heir.kill()
    finally:
        caller.kill()
        caller.stdout.close()


@needs_sandbox
def test_the_end_of_a_supervisor_is_an_error_and_ends_the_program():
    began = time.time() - 1

    async def main():
        sandbox = Sandbox(SandboxConfig(seconds=60))
        await sandbox.check()
        call = asyncio.ensure_future(sandbox.run("import time; time.sleep(60)"))
        while not programs(began):
            await asyncio.sleep(0.01)
        for supervisor in psutil.Process().children():
            if any("jail.main()" in word for word in supervisor.cmdline()):
                supervisor.kill()
        await call

    with pytest.raises(SandboxError, match="sandbox") as caught:
        asyncio.run(main())
    assert "code -9" in caught.value.given
    assert vanish(began)


@needs_sandbox
def test_the_check_says_what_protects():
    words = "\n".join(asyncio.run(Sandbox(SandboxConfig()).check()))
    assert "namespaces" in words and "system calls" in words and "read-only" in words


@needs_sandbox
def test_protection_that_is_there_but_does_not_protect_is_found_before_any_code_runs(monkeypatch):
    monkeypatch.setattr(seccomp, "program", lambda machine, fork: seccomp._end(seccomp._ALLOW))
    with pytest.raises(SandboxError) as caught:
        asyncio.run(Sandbox(SandboxConfig()).run("print(1)"))
    assert "opening a socket" in caught.value.given and "starting a process" in caught.value.given
    assert "mounting" not in caught.value.given


def test_another_system_than_linux_is_refused(monkeypatch):
    monkeypatch.setattr(module.sys, "platform", "darwin")
    monkeypatch.delattr(module.resource, "RLIMIT_SIGPENDING")  # which that system does not have
    with pytest.raises(SandboxError) as caught:
        asyncio.run(Sandbox(SandboxConfig()).run("print(1)"))
    assert "darwin" in caught.value.given and "Linux" in caught.value.expected and caught.value.todo
    assert isinstance(caught.value, RewardError), "which is what stops a run"


WITHOUT = """
import asyncio, ctypes, os, struct, sys
number, argument = map(int, sys.argv[1:])
libc = ctypes.CDLL(None, use_errno=True)
test = [(0x20, 0, 0, 16), (0x15, 0, 1, argument)] if argument else []
lines = [(0x20, 0, 0, 0), (0x15, 0, len(test) + 1, number), *test, (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
code = b"".join(struct.pack("=HBBI", *line) for line in lines)
text = ctypes.create_string_buffer(code, len(code))
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_void_p))
program = Program(len(lines), ctypes.addressof(text))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, os.strerror(ctypes.get_errno())
from freerun.errors import SandboxError
from freerun.rewards.sandbox import Sandbox, SandboxConfig
sandbox = Sandbox(SandboxConfig())
sandbox._protection = ("as if it had been checked",)
try:
    result = asyncio.run(sandbox.run("print('ran')"))
except SandboxError as error:
    print("refused:", error.given)
else:
    print(result)
"""

STEPS = {
    "unshare": (272, 97),
    "mount": (165, 40),
    "pivot_root": (155, 41),
    "umount2": (166, 39),
    "mount_setattr": (442, 442),
    "sethostname": (170, 161),
    "setsid": (112, 157),
    "setresgid": (119, 149),
    "setresuid": (117, 147),
    "capset": (126, 91),
    "death signal": (157, 167, 1),
    "no_new_privs": (157, 167, 38),
    "seccomp": (157, 167, 22),
}


@pytest.mark.parametrize("step", STEPS)
def test_where_a_step_of_the_protection_is_forbidden_code_is_refused_and_does_not_run(step):
    x86_64, aarch64, *argument = STEPS[step]
    words = [str(number(x86_64, aarch64)), *map(str, argument or [0])]
    done = subprocess.run([sys.executable, "-c", WITHOUT, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused:") and "ran" not in done.stdout


@needs_sandbox
def test_where_user_namespaces_are_switched_off_code_is_refused_and_the_error_names_the_switch():
    script = (
        'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" -c \'import asyncio; '
        'from freerun.rewards.sandbox import *; asyncio.run(Sandbox(SandboxConfig()).run("print(1)"))\''
    )
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", script, sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "SandboxError" in done.stderr and "user.max_user_namespaces = 0" in done.stderr


@pytest.mark.parametrize("limits", [{"seconds": 0}, {"memory": 1 << 20}, {"tasks": 0}, {"open_files": 3}])
def test_limits_under_which_nothing_runs_are_refused(limits):
    with pytest.raises(ConfigError, match="limits"):
        SandboxConfig(**limits)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", "."])
def test_a_file_outside_of_the_scratch_folder_is_refused(name):
    with pytest.raises(ConfigError, match="scratch"):
        asyncio.run(Sandbox(SandboxConfig())._run("pass", "", {name: "x"}))
