"""The supervisor keeps serving whatever the child does, and the child never outlives it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from arena import CONFINE, Arena, Listener, full_backlog, in_every_child


def test_hanging_connects_delay_nobody(arena: Arena, listener: Listener) -> None:
    code = """
    def attempt():
        import threading, time
        def hang():
            s = socket.socket()
            try:
                s.connect(("127.0.0.1", V["hanging"]))
            except OSError:
                pass
        hanging = [threading.Thread(target=hang, daemon=True) for _ in range(100)]
        for thread in hanging:
            thread.start()
        time.sleep(0.3)
        done = 0
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", V["port"])) as s:
                done += s.recv(5) == b"hello"
        still = sum(thread.is_alive() for thread in hanging)
        sys.stdout.flush()
        return [done, still]
    """
    with full_backlog() as hanging:
        found = arena.confined(code, allow={"net": "127.0.0.1"}, hanging=hanging, port=listener.port)
    assert found.value == [50, 100]


def test_a_blocking_connect_keeps_its_time_limit(arena: Arena) -> None:
    code = """
    def attempt():
        import struct
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 200000))
        s.connect(("127.0.0.1", V["hanging"]))
    """
    # Only that it ends, and how: SYN time-outs of more than two minutes are what would follow otherwise.
    with full_backlog() as hanging:
        free = arena.unconfined(code, hanging=hanging)
        assert free.errno == "EINPROGRESS"
        assert arena.confined(code, allow={"net": "127.0.0.1"}, hanging=hanging).errno == free.errno


def test_a_signal_interrupts_a_blocking_connect(arena: Arena) -> None:
    code = """
    def attempt():
        import signal
        class Alarm(Exception): pass
        def ring(*_): raise Alarm
        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            socket.socket().connect(("127.0.0.1", V["hanging"]))
        except Alarm:
            return "interrupted"
    """
    with full_backlog() as hanging:
        assert arena.unconfined(code, hanging=hanging).value == "interrupted"
        assert arena.confined(code, allow={"net": "127.0.0.1"}, hanging=hanging).value == "interrupted"


def test_a_refused_connection_gives_the_kernels_errno(arena: Arena) -> None:
    code = "def attempt():\n    socket.create_connection(('127.0.0.1', V['port']))"
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # bound, not listening
        port = sock.getsockname()[1]
        assert arena.unconfined(code, port=port).errno == "ECONNREFUSED"
        assert arena.confined(code, allow={"net": "127.0.0.1"}, port=port).errno == "ECONNREFUSED"


def test_a_second_connect_of_a_connected_socket_gives_the_kernels_errno(arena: Arena, listener: Listener) -> None:
    code = """
    def attempt():
        with socket.socket() as s:
            s.connect(("127.0.0.1", V["port"]))
            s.connect(("127.0.0.1", V["port"]))
    """
    assert arena.unconfined(code, port=listener.port).errno == "EISCONN"
    assert arena.confined(code, allow={"net": "127.0.0.1"}, port=listener.port).errno == "EISCONN"


def test_absurd_arguments_become_errnos_and_the_supervisor_goes_on(arena: Arena, listener: Listener) -> None:
    code = """
    def attempt():
        import ctypes, struct
        libc = ctypes.CDLL(None, use_errno=True)
        s = socket.socket()
        good = struct.pack("=HH4s8x", 2, socket.htons(V["port"]), bytes([127, 0, 0, 1]))
        def call(fd, pointer, length):
            result = libc.syscall(ctypes.c_long(42), ctypes.c_long(fd), pointer, ctypes.c_ulong(length))
            return errno.errorcode[ctypes.get_errno()] if result < 0 else "ok"
        page = ctypes.create_string_buffer(good, 256)
        found = [
            call(s.fileno(), page, 0), call(s.fileno(), page, 1), call(s.fileno(), page, 15), call(s.fileno(), page, 129),
            call(s.fileno(), page, 0xFFFFFFFF), call(s.fileno(), ctypes.c_void_p(0), 16),
            call(s.fileno(), ctypes.c_void_p(0xFFFFFFFFFFFFF000), 16), call(s.fileno(), ctypes.c_void_p(8), 16),
            call(999, page, 16), call(-1, page, 16), call(0, page, 16),
        ]
        # The kernel looks at the low half of int arguments only, and so do we.
        found.append(call(s.fileno() | 1 << 32, page, 16 | 1 << 32))
        return found
    """
    expected = [
        "EINVAL",
        "EINVAL",
        "EINVAL",
        "EINVAL",
        "EINVAL",
        "EFAULT",
        "EFAULT",
        "EFAULT",
        "EBADF",
        "EBADF",
        "ENOTSOCK",
        "ok",
    ]
    if os.uname().machine == "x86_64":
        assert arena.confined(code, allow={"net": "127.0.0.1"}, port=listener.port).value == expected
    assert listener.connections == 1


def test_connects_of_what_is_no_socket_cost_the_supervisor_no_descriptors(arena: Arena, listener: Listener) -> None:
    code = """
    def attempt():
        import ctypes, struct
        libc = ctypes.CDLL(None, use_errno=True)
        address = struct.pack("=HH4s8x", 2, socket.htons(V["port"]), bytes([127, 0, 0, 1]))
        found = set()
        for _ in range(3000):
            libc.connect(0, address, 16)
            found.add(errno.errorcode[ctypes.get_errno()])
        with socket.create_connection(("127.0.0.1", V["port"])) as s:
            return [sorted(found), s.recv(5).decode()]
    """
    found = arena.confined(code, allow={"net": "127.0.0.1"}, port=listener.port, files=256)
    assert found.value == [["ENOTSOCK"], "hello"]


def test_a_flood_of_refused_connects_is_answered_and_shown_in_bounds(arena: Arena) -> None:
    code = """
    def attempt():
        refused = 0
        for port in range(2, 2002):
            with socket.socket() as s:
                refused += s.connect_ex(("127.0.0.1", port)) == errno.EACCES
        return refused
    """
    found = arena.confined(code, allow={"net": "127.0.0.2"})
    assert found.value == 2000
    assert len(found.stderr.splitlines()) <= 102


def test_a_target_is_shown_once(arena: Arena) -> None:
    code = "def attempt():\n    return [socket.socket().connect_ex(('192.0.2.1', 80)) for _ in range(5)]"
    found = arena.confined(code)
    assert found.value == [13] * 5
    assert found.stderr.count('Requires net access to "192.0.2.1:80"; grant it with: --allow-net=192.0.2.1:80') == 1


def test_names_are_resolved_by_the_supervisor_and_only_listed_ones(arena: Arena, listener: Listener) -> None:
    code = """
    def attempt():
        found = [socket.gethostbyname("localhost"), sorted({a[4][0] for a in socket.getaddrinfo("localhost", 80, socket.AF_INET)})]
        with socket.socket() as s:
            s.connect(("localhost", V["port"]))
            found.append(s.recv(5).decode())
        try:
            socket.getaddrinfo("example.com", 80)
        except PermissionError as error:
            found.append(str(error))
        return found
    """
    found = arena.confined(code, allow={"net": f"localhost:{listener.port}"}, port=listener.port)
    assert found.value == ["127.0.0.1", ["127.0.0.1"], "hello", '[Errno 13] Requires net access to "example.com"']
    assert (
        'Requires net access to "example.com"; grant it with: --allow-net=example.com (field allowNet of test:1:h)'
        in found.stderr
    )


@in_every_child
def test_the_worker_dies_with_a_killed_supervisor(arena: Arena, tmp_path: Path) -> None:
    script = tmp_path / "forever.py"
    script.write_text(
        "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n"
    )
    spec = json.dumps({"script": str(script), "scratch": str(arena.scratch)})
    with subprocess.Popen([sys.executable, str(CONFINE), spec], stdout=subprocess.PIPE, env=arena.env) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        pidfd = os.pidfd_open(pid)
        supervisor.send_signal(signal.SIGKILL)
    try:
        import select

        assert select.select([pidfd], [], [], 10)[0], "the worker outlived its supervisor"
    finally:
        os.close(pidfd)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_file_larger_than_the_limit_cannot_be_written(arena: Arena) -> None:
    code = """
    def attempt():
        with open("big", "wb") as file:
            file.truncate(V["size"])
        return "big"
    """
    assert arena.unconfined(code, size=300 << 20).value == "big"
    (arena.scratch / "big").unlink()
    assert arena.confined(code, size=300 << 20).errno == "EFBIG"


def test_a_scratch_folder_over_its_limit_ends_the_worker(arena: Arena) -> None:
    code = """
    def attempt():
        import time
        for number in range(3):
            with open(f"part{number}", "wb") as file:
                os.posix_fallocate(file.fileno(), 0, 100 << 20)
        time.sleep(30)
    """
    found = arena.confined(code)
    assert found.code == 128 + signal.SIGTERM
    assert "the scratch folder has reached its limit of 256M; raise it with: --limit-scratch=512M" in found.stderr


@in_every_child
def test_memory_is_limited(arena: Arena) -> None:
    code = "def attempt():\n    try:\n        return len(bytearray(5 << 30))\n    except MemoryError:\n        raise OSError(errno.ENOMEM, 'memory')"
    assert arena.confined(code).errno == "ENOMEM"


def test_an_uncaught_refusal_of_a_file_names_the_grant(arena: Arena) -> None:
    for code, line in [
        (
            "open('/etc/passwd')",
            'Requires read access to "/etc/passwd"; grant it with: --allow-read=/etc/passwd (field allowRead of test:1:h)',
        ),
        (
            "open('/var/tmp/x', 'w')",
            'Requires write access to "/var/tmp/x"; grant it with: --allow-write=/var/tmp (field allowWrite of test:1:h)',
        ),
        (
            "os.mkdir('/var/tmp/x')",
            'Requires write access to "/var/tmp/x"; grant it with: --allow-write=/var/tmp (field allowWrite of test:1:h)',
        ),
        (
            "import subprocess; subprocess.run(['id'])",
            'Requires run access to "id"; grant it with: --allow-run=id (field allowRun of test:1:h)',
        ),
    ]:
        found = arena.confined(f"{code}\ndef attempt(): pass", allow={"run": "true"} if "run" in line else None)
        assert found.code == 1
        assert found.stderr.splitlines()[-1] == line
        assert "bootstrap.py" not in found.stderr


def test_a_kernel_without_what_is_needed_is_refused_by_name_and_nothing_runs(arena: Arena) -> None:
    for feature, text in (
        ("landlock", "lacks landlock (files): Linux 5.13 or newer is needed, with landlock among the modules"),
        ("landlock-truncate", "Linux 6.2 or newer is needed; or do without it: --allow-degraded=landlock-truncate"),
        ("seccomp-notify", "lacks seccomp-notify (the supervisor decides each connect): Linux 5.5"),
        ("pidfd-getfd", "Linux 5.6 or newer is needed, and a container must allow pidfd_getfd"),
    ):
        found = arena.confined("def attempt():\n    return 1", missing=[feature])
        assert found.errno == "NO OUTCOME"
        assert found.code != 0
        assert text in found.stderr


def test_o_async_which_could_signal_the_operators_processes_is_refused(arena: Arena) -> None:
    code = """
    def attempt():
        import fcntl
        fcntl.fcntl(1, fcntl.F_SETFL, fcntl.fcntl(1, fcntl.F_GETFL) | os.O_ASYNC)
        return "set"
    """
    assert arena.unconfined(code).value == "set"
    assert arena.confined(code).errno == "EPERM"


def test_an_error_of_a_thread_names_the_thread(arena: Arena) -> None:
    code = """
    import threading
    def attempt():
        thread = threading.Thread(target=lambda: 1 / 0, name="the-third")
        thread.start()
        thread.join()
    """
    held = arena.confined(code)
    assert "Exception in thread the-third:\nTraceback (most recent call last):\n" in held.stderr
    assert "ZeroDivisionError" in held.stderr
