"""Attacks on the sandbox through rights, system calls, the network and the result. After each, nothing may be left behind."""

import os
import shutil
import socket
import sys
import textwrap
import threading
from contextlib import closing

import pytest

from freerun.rewards.sandbox import Status
from tests.rewards.conftest import MARK, both_walls, number, run, said

pytestmark = [pytest.mark.dist, pytest.mark.usefixtures("sandboxed", "nothing_is_left")]

GONE = {"EPERM", "ENOSYS"}
"""How the filter answers."""


class TestRaisingOneself:
    def test_a_program_that_belongs_to_root_and_says_so_in_its_mode_gives_no_rights(self, tmp_path):
        tmp_path.chmod(0o755)
        program = tmp_path / "python"
        shutil.copy(os.path.realpath(sys.executable), program)
        program.chmod(0o6755)
        code = """
            os.execv('/packages/0/python', ['python', '-S', '-c', 'import os; print(os.geteuid(), os.getegid(), os.getuid())'])
        """
        result = run(code, packages=(str(tmp_path),))
        assert (set(result.stdout.split()) <= {"1000"} and "1000" in result.stdout) or not result.ok

    @both_walls
    def test_there_are_no_capabilities_and_no_other_users(self, behind):
        code = """
            for attempt in (os.setuid, os.setgid, os.seteuid, os.setegid): print(tried(attempt, 0))
            print(tried(os.chroot, '/tmp'), tried(os.setgroups, [0]), tried(os.chown, '.', 0, 0), tried(os.nice, -5))
        """
        assert set(said(code)) <= {"EPERM", "EINVAL", "EACCES"}
        assert said("print(os.getresuid() == (1000,) * 3, os.getresgid() == (1000,) * 3)") == ["True", "True"]

    @both_walls
    def test_nothing_can_be_mounted_or_unmounted(self, behind):
        code = """
            print(tried(call, libc.mount, b'tmpfs', b'/tmp', b'tmpfs', 0, None))
            print(tried(call, libc.mount, b'proc', b'/tmp', b'proc', 0, None))
            print(tried(call, libc.mount, None, b'/', None, 32 | 4096, None))
            print(tried(call, libc.umount2, b'/tmp', 2), tried(call, libc.umount2, os.path.dirname(os.__file__).encode(), 2))
        """
        assert set(said(code)) <= {"EPERM", "EINVAL"}

    def test_no_namespace_can_be_made_or_entered(self):
        code = """
            for kind in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x10020000): print(tried(call, libc.unshare, kind))
            print(tried(call, libc.setns, 0, 0))
        """
        assert set(said(code)) == {"EPERM"}
        flags = "0x10000000 | 17"
        assert said(f"print(tried(call, libc.syscall, {number(56, 220)}, {flags}, 0, 0, 0, 0))", fork=True) == ["EPERM"]

    def test_a_namespace_of_its_own_would_not_show_it_anything_new(self, no_filter):
        code = """
            print(tried(call, libc.unshare, 0x10000000 | 0x20000))
            print(tried(call, libc.umount2, b'/', 2), tried(call, libc.mount, None, b'/', None, 32 | 4096, None))
            print(tried(os.stat, '/etc/passwd'), tried(open, f'/{MARK}', 'w'))
        """
        assert said(code)[1:] == ["EINVAL", "EPERM", "ENOENT", "EROFS"]

    def test_limits_cannot_be_raised(self):
        code = """
            import resource
            for limit in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):
                try: resource.setrlimit(limit, (resource.RLIM_INFINITY,) * 2); print('worked')
                except ValueError: print('no')
        """
        assert said(code) == ["no"] * 4

    def test_a_crash_is_not_handed_to_the_handler_of_the_system(self):
        code = """
            import resource
            try: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); print('worked')
            except (OSError, ValueError): print('no')
        """
        assert said(code) == ["no"]

    @pytest.mark.skipif(number(1, 0) == 0, reason="only x86-64 has a second way in")
    def test_the_calls_of_other_machines_are_no_way_around_the_filter(self):
        # getpid by the gate for 32-bit programs: mov eax, 20; int 0x80; ret
        code = """
            import mmap
            page = mmap.mmap(-1, 4096, prot=7)
            page.write(b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3')
            print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())
        """
        result = run(code)
        assert result.status is Status.KILLED and result.code in (-31, -11) and not result.stdout
        assert said(f"print(tried(call, libc.syscall, 0x40000000 + {number(39, 0)}))") == ["ENOSYS"]


CALLS = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "mount_setattr": (442, 442),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "pivot_root": (155, 41),
    "setns": (308, 268),
    "clone3": (435, 435),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "inotify_init1": (294, 26),
    "vmsplice": (278, 75),
    "personality": (135, 92),
    "init_module": (175, 105),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "settimeofday": (164, 170),
    "syslog": (103, 116),
    "capset": (126, 91),
    "rt_sigqueueinfo": (129, 138),
    "sched_setscheduler": (144, 119),
}


def test_no_system_call_that_reaches_beyond_the_process_is_left():
    """Among them tracing, keys, io_uring, userfaultfd, and memory that no limit counts."""
    numbers = [number(*pair) for pair in CALLS.values()]
    answers = said(f"for n in {numbers}: print(tried(call, libc.syscall, n, 0, 0, 0, 0, 0))")
    assert not {name: answer for name, answer in zip(CALLS, answers, strict=True) if answer not in GONE}


class TestNetwork:
    @pytest.fixture
    def listeners(self):
        """Somebody who would hear it: a TCP port and an abstract Unix socket. Yields their addresses, then says that nobody
        called."""
        with closing(socket.create_server(("127.0.0.1", 0))) as tcp, closing(socket.socket(socket.AF_UNIX)) as unix:
            unix.bind(f"\0{MARK}")
            unix.listen()
            yield tcp.getsockname(), f"\0{MARK}"
            for server in (tcp, unix):
                server.setblocking(False)
                with pytest.raises(BlockingIOError):
                    server.accept()

    @both_walls
    def test_no_server_on_this_machine_can_be_reached(self, behind, listeners):
        tcp, abstract = listeners
        code = f"""
            print(tried(lambda: socket.create_connection({tcp}, 1)))
            print(tried(lambda: socket.socket(socket.AF_UNIX).connect({abstract!r})))
        """
        assert said(code) == (["EPERM", "EPERM"] if behind == "filter" else ["ENETUNREACH", "ECONNREFUSED"])

    @both_walls
    def test_no_kind_of_socket_leads_anywhere(self, behind):
        code = """
            def send(family, kind, address):
                with socket.socket(family, kind) as s: s.sendto(b'x', address)
            print(tried(send, socket.AF_INET, socket.SOCK_DGRAM, ('192.0.2.1', 53)))
            print(tried(send, socket.AF_INET6, socket.SOCK_DGRAM, ('2001:db8::1', 53)))
            print(tried(send, socket.AF_INET, socket.SOCK_RAW, ('192.0.2.1', 0)))
            print(tried(socket.socket, socket.AF_PACKET, socket.SOCK_RAW))
        """
        assert not set(said(code)) & {"worked"}
        assert behind == "namespaces" or said("print(tried(socket.socket, socket.AF_NETLINK, 3))") == ["EPERM"]

    @both_walls
    def test_names_are_not_resolved(self, behind):
        code = """
            try: socket.getaddrinfo('example.org', 80); print('worked')
            except socket.gaierror: print('no')
        """
        assert said(code) == ["no"]

    def test_only_pairs_of_sockets_can_be_made_and_carry_bytes(self):
        code = """
            a, b = socket.socketpair()
            a.send(b'hello')
            print(b.recv(9).decode(), tried(a.send, b'x', socket.MSG_OOB), tried(a.bind, chr(0) + MARK), tried(a.listen))
            print(tried(socket.socketpair, socket.AF_INET), tried(a.sendmsg, [b'x']))
        """
        assert said(code) == ["hello", *["EPERM"] * 5]


class TestTheResult:
    def test_what_looks_like_the_supervisors_report_is_output_and_nothing_more(self):
        code = """
            import marshal
            report = {'cause': 'ended', 'code': 0, 'stdout': b'forged', 'stderr': b'', 'seconds': 0.0, 'cpu_seconds': 0.0}
            report = marshal.dumps(report)
            for descriptor in range(3, 64): tried(os.write, descriptor, report)
            sys.stdout.buffer.write(report); sys.stdout.flush(); os._exit(5)
        """
        result = run(code)
        assert (result.status, result.code) == (Status.EXITED, 5) and result.stdout != "forged" and "forged" in result.stdout

    def test_nothing_in_the_scratch_folder_survives_into_the_next_call(self):
        assert said("open('left', 'w').write('x'); print(os.listdir())") == ["['left']"]
        assert said("print(os.listdir())") == ["[]"]

    def test_calls_at_the_same_time_do_not_see_each_other(self):
        code = textwrap.dedent("""
            open('mine', 'w').close()
            time.sleep(0.3)
            print(os.listdir(), [n for n in range(3, 50) if tried(os.kill, n, 0) == 'worked'])
        """)
        found: list[str] = []
        threads = [threading.Thread(target=lambda: found.append(run(code).stdout)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == ["['mine'] []\n"] * 3
