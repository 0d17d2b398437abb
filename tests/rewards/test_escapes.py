"""Attacks on the sandbox through files and processes. Each says what it tries and proves what becomes of it; after each,
nothing may be left behind."""

import os
import sys

import pytest

from freerun.rewards.sandbox import Status
from tests.rewards.conftest import both_walls, run, said
from tools.source import ROOT

pytestmark = [pytest.mark.dist, pytest.mark.usefixtures("sandboxed", "nothing_is_left")]

LOCKED = ("EROFS", "EACCES")
"""How files answer that can be read only; which of the two depends on who started the sandbox."""


class TestReading:
    def test_secrets_in_the_environment_are_not_there(self, monkeypatch):
        monkeypatch.setenv("API_TOKEN", "s3cret")
        result = run("print(os.environ)")
        assert "HOME" in result.stdout and "s3cret" not in result.stdout
        assert said("print(len(sys.argv), sys.argv[0])") == ["1", "/code/main.py"]

    def test_the_run_directory_the_home_directory_and_the_sources_are_not_there(self, tmp_path):
        (tmp_path / "secret").write_text("s3cret")
        for path in (tmp_path / "secret", tmp_path, ROOT, ROOT / "pyproject.toml"):
            assert said(f"print(tried(os.stat, {str(path)!r}))") == ["ENOENT"]
        code = """
            for home in (os.path.expanduser('~'), {home!r}, '/home', '/var', '/run', '/mnt', '/opt', '/srv', '/sys', '/boot'):
                for root, folders, files in os.walk(home):
                    if not {base!r}.startswith(root) and not root.startswith({base!r}):
                        print(root, files)
        """
        assert said(code.format(home=os.path.expanduser("~"), base=os.path.realpath(sys.base_prefix))) == ["/tmp", "[]"]

    def test_nothing_of_the_system_is_there_but_libraries_a_few_devices_and_the_scratch_folder(self):
        entries = set(said("print(*os.listdir('/'))"))
        first = os.path.realpath(sys.base_prefix).split("/")[1]
        assert entries <= {"lib", "lib64", "usr", "etc", "dev", "code", "tmp", first}
        assert said("print(*os.listdir('/etc'))") == ["ld.so.cache"]
        assert set(said("print(*os.listdir('/dev'))")) == {"null", "zero", "random", "urandom", "stdin"}
        for path in (
            "/etc/passwd",
            "/etc/shadow",
            "/etc/hostname",
            "/root/.ssh",
            "/bin/sh",
            "/usr/bin/env",
            "/var/run/docker.sock",
        ):
            assert said(f"print(tried(open, {path!r}))") == ["ENOENT"]

    def test_other_processes_cannot_be_seen_or_read(self):
        code = f"""
            for path in ('/proc', '/proc/self', '/proc/1/environ', '/proc/{os.getpid()}/environ', '/proc/{os.getpid()}/mem'):
                print(tried(os.stat, path))
            print(os.getpid() < 10, os.getppid())
        """
        assert said(code) == [*["ENOENT"] * 5, "True", "1"]

    def test_what_the_supervisor_knows_is_not_in_open_files(self):
        code = """
            def there(descriptor):
                return tried(os.fstat, descriptor) == 'worked'
            print(*[descriptor for descriptor in range(64) if there(descriptor)])
        """
        assert said(code) == ["0", "1", "2"]

    @pytest.mark.parametrize("way", ["os.symlink", "os.link"])
    def test_links_out_of_the_scratch_folder_lead_nowhere(self, way, tmp_path):
        secret = tmp_path / "secret"
        secret.write_text("s3cret")
        code = f"""
            made = tried({way}, {str(secret)!r}, 'link')
            print(made, tried(open, 'link'), tried(open, '../..' + {str(secret)!r}), tried({way}, '/code/main.py', 'code'))
            print(tried(open, 'code', 'a'))
        """
        made, opened, *rest = said(code)
        assert opened == "ENOENT" and rest[0] == "ENOENT" and made in ("worked", "ENOENT")
        assert rest[2] in ((*LOCKED,) if way == "os.symlink" else ("worked",)), "a link to the code, or a file of its own"


class TestWriting:
    def test_nothing_can_be_written_but_the_scratch_folder(self):
        code = """
            for folder in ('/', '/code', '/dev', '/etc', '/usr/lib', os.path.dirname(os.__file__), '/tmp'):
                print(tried(open, f'{folder}/{MARK}', 'w'))
            print(tried(open, '/code/main.py', 'w'), tried(os.remove, '/code/main.py'), tried(os.chmod, os.__file__, 0o777))
        """
        answers = said(code)
        assert answers.pop(6) == "worked" and set(answers) <= set(LOCKED)

    def test_shared_memory_is_not_there(self):
        code = """
            print(tried(os.stat, '/dev/shm'))
            from multiprocessing import shared_memory
            print(tried(shared_memory.SharedMemory, MARK, True, 1000))
        """
        assert said(code)[0] == "ENOENT" and "worked" not in said(code)

    def test_devices_cannot_be_made_and_disks_are_not_there(self):
        code = "print(tried(os.mknod, MARK, 0o60600, os.makedev(254, 0)), tried(open, '/dev/vda'), tried(open, '/dev/mem'))"
        assert said(code) == ["EPERM", "ENOENT", "ENOENT"]

    def test_a_huge_file_ends_at_its_limit(self):
        code = """
            file = open('big', 'wb', buffering=0)
            print(tried(os.truncate, 'big', 1 << 40), tried(lambda: [file.write(bytes(1 << 20)) for _ in range(9)]))
            print(os.stat('big').st_size)
        """
        assert said(code, file=4 << 20) == ["EFBIG", "EFBIG", str(4 << 20)]

    def test_many_files_end_where_the_scratch_folder_is_full(self):
        code = """
            print(tried(lambda: [open(str(i), 'wb').write(bytes(1 << 20)) for i in range(100)]))
            for i in range(100):
                if os.path.exists(str(i)): os.remove(str(i))
            print(tried(lambda: [open(f'x{i}', 'w').close() for i in range(10000)]))
        """
        assert said(code, scratch=8 << 20) == ["ENOSPC", "ENOSPC"]

    def test_deleted_files_that_are_still_open_count(self):
        code = """
            kept = []
            def hoard():
                for i in range(50):
                    kept.append(open('x', 'wb', buffering=0))
                    os.remove('x')
                    kept[-1].write(bytes(1 << 20))
            print(tried(hoard))
        """
        assert said(code, scratch=8 << 20) == ["ENOSPC"]

    def test_open_files_and_pipes_are_counted(self):
        assert said("print(tried(lambda: [os.pipe() for _ in range(100)]))") == ["EMFILE"]


class TestProcesses:
    def test_without_leave_no_process_can_be_started(self):
        code = """
            import subprocess
            print(tried(os.fork), tried(os.posix_spawn, sys.executable, ['x'], {}), tried(os.system, 'true'))
            print(tried(subprocess.run, [sys.executable, '-c', 'pass']))
        """
        words = said(code)
        assert words[0] == words[1] == words[3] == "EPERM"

    def test_a_fork_bomb_ends_at_the_number_of_tasks_and_with_its_time(self):
        count = """
            forks = 0
            try:
                while True:
                    if os.fork() == 0: time.sleep(30); os._exit(0)
                    forks += 1
            except OSError as error:
                print(forks, errno.errorcode[error.errno])
        """
        assert said(count, fork=True, tasks=8) == ["7", "EAGAIN"]
        bomb = "while True:\n    try: os.fork()\n    except OSError: pass"
        assert run(bomb, fork=True, tasks=8, seconds=0.5).status in (Status.TIMEOUT, Status.CPU)

    def test_threads_end_at_the_number_of_tasks(self):
        code = """
            import threading
            threading.stack_size(1 << 16)
            try:
                for n in range(1, 1000): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            except RuntimeError:
                print(n)
        """
        assert said(code, tasks=8) == ["8"]

    @pytest.mark.parametrize("reparented", [False, True])
    def test_daemons_end_with_their_program(self, reparented):
        code = f"""
            if os.fork() == 0:
                os.setsid()
                if {reparented} and os.fork(): os._exit(0)
                for n in (1, 2, 3, 15): signal.signal(n, signal.SIG_IGN)
                time.sleep(60)
                os._exit(0)
            time.sleep(0.1)
        """
        assert run(code, fork=True).ok, "a daemon that holds the output open does not hold up the result"

    def test_zombies_are_not_left(self):
        code = """
            for _ in range(5):
                if os.fork() == 0:
                    if os.fork() == 0: os._exit(0)
                    os._exit(0)
            time.sleep(0.1)
        """
        assert run(code, fork=True, tasks=16).ok

    @both_walls
    def test_processes_outside_get_no_signal(self, behind):
        code = (
            f"print(tried(os.kill, {os.getpid()}, 9), tried(os.kill, {os.getppid()}, 9), tried(os.killpg, {os.getpgrp()}, 9))"
        )
        assert said(code) == ["ESRCH"] * 3

    @both_walls
    @pytest.mark.parametrize("target", ["-1", "0"])
    def test_a_signal_to_everyone_reaches_nobody_else(self, behind, target):
        result = run(f"print(tried(os.kill, {target}, 9))")
        # Everyone is nobody at all; the group is the program alone.
        assert (result.stdout, result.code) == (("ESRCH\n", 0) if target == "-1" else ("", -9))
        assert run("print(1)").ok

    @both_walls
    def test_the_supervisor_cannot_be_killed_stopped_or_changed(self, behind):
        code = """
            import resource
            for n in range(1, 32): tried(os.kill, 1, n); tried(os.kill, os.getppid(), n)
            print(tried(resource.prlimit, 1, resource.RLIMIT_CPU, (0, 0)), 'still', 'here')
        """
        words = said(code)
        assert words[1:] == ["still", "here"] and (words[0] == "EPERM" or behind == "namespaces")

    def test_ending_in_any_way_is_reported_as_it_was(self):
        assert run("os._exit(77)").code == 77
        assert run("os.kill(os.getpid(), signal.SIGKILL)").code == -9
        assert run("os.execv(sys.executable, [sys.executable, '-c', 'print(5)'])").stdout == "5\n"
