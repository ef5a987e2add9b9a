"""What a worker must not do. Each test shows that the act succeeds unconfined, fails confined with the exact errno, and
that nothing arrived on the other side."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from arena import Arena, Listener, listening, wait_for

CONNECT = """
def attempt():
    with socket.create_connection((V["host"], V["port"]), timeout=5) as s:
        return s.recv(5).decode()
"""


@pytest.mark.parametrize("missing", [[], ["landlock-tcp"]], ids=["this kernel", "Landlock without TCP"])
def test_another_port_of_an_allowed_host_is_refused(arena: Arena, listener: Listener, missing: list[str]) -> None:
    with listening() as other:
        allow = {"net": f"127.0.0.1:{listener.port}"}
        assert arena.unconfined(CONNECT, host="127.0.0.1", port=other.port).value == "hello"
        assert other.connections == 1
        assert arena.confined(CONNECT, allow=allow, host="127.0.0.1", port=listener.port).value == "hello"
        refused = arena.confined(CONNECT, allow=allow, missing=missing, host="127.0.0.1", port=other.port)
        assert refused.errno == "EACCES"
        assert other.connections == 1
        wanted = f'Requires net access to "127.0.0.1:{other.port}"; grant it with: --allow-net=127.0.0.1:{other.port} (field allowNet of test:1:h)'
        assert wanted in refused.stderr.splitlines()


def test_another_address_with_an_allowed_port_is_refused(arena: Arena) -> None:
    with listening(address=("127.0.0.2", 0)) as other:
        allow = {"net": f"127.0.0.1:{other.port}"}
        assert arena.unconfined(CONNECT, host="127.0.0.2", port=other.port).value == "hello"
        assert arena.confined(CONNECT, allow=allow, host="127.0.0.2", port=other.port).errno == "EACCES"
        assert other.connections == 1


def test_a_denied_port_of_an_allowed_block_is_refused(arena: Arena, listener: Listener) -> None:
    deny = {"net": f"127.0.0.1:{listener.port}"}
    allow = {"net": "127.0.0.0/8"}
    assert arena.unconfined(CONNECT, host="127.0.0.1", port=listener.port).value == "hello"
    assert arena.confined(CONNECT, allow=allow, deny=deny, host="127.0.0.1", port=listener.port).errno == "EACCES"
    assert listener.connections == 1
    assert arena.confined(CONNECT, allow=allow, host="127.0.0.1", port=listener.port).value == "hello"


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "localhost", "127.1", "0x7f000001", "2130706433"]
)
def test_no_spelling_of_an_address_goes_around_its_denial(arena: Arena, listener: Listener, host: str) -> None:
    allow, deny = {"net": "0.0.0.0/0,::/0,localhost"}, {"net": "127.0.0.1,[::1]"}
    assert arena.unconfined(CONNECT, host=host, port=listener.port).value == "hello"
    assert arena.confined(CONNECT, allow=allow, deny=deny, host=host, port=listener.port).errno == "EACCES"
    assert listener.connections == 1


def test_nothing_listed_is_nothing_granted(arena: Arena, listener: Listener) -> None:
    assert arena.unconfined(CONNECT, host="127.0.0.1", port=listener.port).value == "hello"
    assert arena.confined(CONNECT, allow={"net": ""}, host="127.0.0.1", port=listener.port).errno == "EACCES"
    assert listener.connections == 1


def test_a_non_blocking_connect_is_refused(arena: Arena, listener: Listener) -> None:
    code = """
    def attempt():
        import select
        with socket.socket() as s:
            s.setblocking(False)
            result = s.connect_ex(("127.0.0.1", V["port"]))
            if result != errno.EINPROGRESS:
                raise OSError(result, "connect")
            select.select([], [s], [], 5)
            s.setblocking(True)
            return s.recv(5).decode()
    """
    assert arena.unconfined(code, port=listener.port).value == "hello"
    assert arena.confined(code, port=listener.port).errno == "EACCES"
    assert listener.connections == 1
    assert arena.confined(code, allow={"net": f"127.0.0.1:{listener.port}"}, port=listener.port).value == "hello"


def test_disconnecting_with_af_unspec_is_refused(arena: Arena, listener: Listener) -> None:
    code = """
    def attempt():
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        with socket.create_connection(("127.0.0.1", V["port"])) as s:
            if libc.connect(s.fileno(), bytes(16), 16):
                raise OSError(ctypes.get_errno(), "connect")
        return "disconnected"
    """
    assert arena.unconfined(code, port=listener.port).value == "disconnected"
    assert arena.confined(code, allow={"net": f"127.0.0.1:{listener.port}"}, port=listener.port).errno == "EACCES"


def test_tcp_fast_open_by_flag_is_refused(arena: Arena, listener: Listener) -> None:
    code = """
    def attempt():
        with socket.socket() as s:
            s.sendto(b"fast", socket.MSG_FASTOPEN, ("127.0.0.1", V["port"]))
            return s.recv(5).decode()
    """
    assert arena.unconfined(code, port=listener.port).value == "hello"
    assert arena.confined(code, port=listener.port).errno == "EPERM"
    assert listener.connections == 1


def test_tcp_fast_open_by_sendmsg_is_refused(arena: Arena, listener: Listener) -> None:
    code = """
    def attempt():
        with socket.socket() as s:
            s.sendmsg([b"fast"], [], socket.MSG_FASTOPEN, ("127.0.0.1", V["port"]))
            return s.recv(5).decode()
    """
    assert arena.unconfined(code, port=listener.port).value == "hello"
    assert arena.confined(code, port=listener.port).errno == "EPERM"
    assert listener.connections == 1


def test_mptcp_is_refused(arena: Arena, listener: Listener) -> None:
    code = """
    def attempt():
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as s:
            s.connect(("127.0.0.1", V["port"]))
            return s.recv(5).decode()
    """
    free = arena.unconfined(code, port=listener.port)
    if free.errno in ("EPROTONOSUPPORT", "ENOPROTOOPT"):
        pytest.skip("this kernel has no MPTCP, so its refusal would show nothing")
    assert free.value == "hello"
    assert arena.confined(code, port=listener.port).errno == "EPERM"
    assert listener.connections == 1


def test_an_address_rewritten_by_a_racing_thread_reaches_only_the_allowed_host(
    arena: Arena, listener: Listener
) -> None:
    code = """
    def attempt():
        import ctypes, struct, threading, time
        libc = ctypes.CDLL(None, use_errno=True)
        good = struct.pack("=HH4s8x", 2, socket.htons(V["allowed"]), bytes([127, 0, 0, 1]))
        evil = struct.pack("=HH4s8x", 2, socket.htons(V["denied"]), bytes([127, 0, 0, 1]))
        buffer = ctypes.create_string_buffer(good, 16)
        sys.setswitchinterval(0.0001)
        stop = []
        def flip():
            turn = 0
            while not stop:
                buffer.raw = (evil, good)[turn]  # one a turn: threads change places between turns, so after either
                turn ^= 1
        thread = threading.Thread(target=flip)
        thread.start()
        done = refused = 0
        for _ in range(300):
            time.sleep(0.00005)  # let the other thread run, and stop it anywhere
            with socket.socket() as s:
                if libc.connect(s.fileno(), buffer, 16) == 0:
                    done += 1
                else:
                    refused += 1
        stop.append(1)
        thread.join()
        return [done, refused]
    """
    with listening() as denied:
        free = arena.unconfined(code, allowed=listener.port, denied=denied.port)
        # Both listeners accept in threads of their own: wait until every connection made is counted.
        wait_for(lambda: listener.connections + denied.connections == free.value[0])
        assert denied.connections > 0, "the race was never lost unconfined, so it would show nothing"
        before = (listener.connections, denied.connections)
        held = arena.confined(
            code, allow={"net": f"127.0.0.1:{listener.port}"}, allowed=listener.port, denied=denied.port
        )
        assert held.value[0] > 0
        assert sum(held.value) == 300
        wait_for(lambda: listener.connections == before[0] + held.value[0])
        assert denied.connections == before[1]


@pytest.mark.parametrize("way", ["sendto", "sendmsg", "connect and send"])
def test_udp_is_refused(arena: Arena, way: str) -> None:
    code = """
    def attempt():
        peer = ("127.0.0.1", V["port"])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            if V["way"] == "sendto":
                return s.sendto(b"leak", peer)
            if V["way"] == "sendmsg":
                return s.sendmsg([b"leak"], [], 0, peer)
            s.connect(peer)
            return s.send(b"leak")
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        port = receiver.getsockname()[1]
        assert arena.unconfined(code, way=way, port=port).value == 4
        assert receiver.recv(16) == b"leak"
        assert arena.confined(code, allow={"net": f"127.0.0.1:{port}"}, way=way, port=port).errno == "EPERM"
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv(16)


UNIX = """
def attempt():
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(V["path"])
        return s.recv(5).decode()
"""


def test_a_unix_socket_is_refused(arena: Arena, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with listening(socket.AF_UNIX, path) as listener:
        assert arena.unconfined(UNIX, path=path).value == "hello"
        assert arena.confined(UNIX, allow={"read": str(tmp_path)}, path=path).errno == "EPERM"
        assert listener.connections == 1


def test_an_abstract_unix_socket_is_refused(arena: Arena) -> None:
    name = f"\0sandboxrun-test-{os.getpid()}"
    with listening(socket.AF_UNIX, name) as listener:
        assert arena.unconfined(UNIX, path=name).value == "hello"
        assert arena.confined(UNIX, path=name).errno == "EPERM"
        assert listener.connections == 1


def test_where_redis_is_a_unix_socket_no_other_one_can_be_connected(arena: Arena, tmp_path: Path) -> None:
    redis, other = str(tmp_path / "redis"), str(tmp_path / "other")
    with listening(socket.AF_UNIX, redis) as allowed, listening(socket.AF_UNIX, other) as denied:
        assert arena.unconfined(UNIX, path=other).value == "hello"
        assert arena.confined(UNIX, redis=redis, path=redis).value == "hello"
        assert arena.confined(UNIX, redis=redis, path=other).errno == "EACCES"
        assert (allowed.connections, denied.connections) == (1, 1)


def test_listening_is_refused(arena: Arena) -> None:
    code = """
    def attempt():
        with socket.socket() as s:
            if V["bind"]:
                s.bind(("127.0.0.1", 0))
            s.listen()
            return s.getsockname()[1] > 0
    """
    for bind in (True, False):  # listen(2) without bind(2) takes a port by itself
        assert arena.unconfined(code, bind=bind).value is True
        assert arena.confined(code, allow={"net": "127.0.0.0/8"}, bind=bind).errno == "EPERM"


def test_exec_is_refused(arena: Arena, tmp_path: Path) -> None:
    code = """
    def attempt():
        os.execv("/bin/sh", ["sh", "-c", "echo ran > " + V["canary"]])
    """
    canary = tmp_path / "arena" / "scratch" / "canary"
    arena.unconfined(code, canary=str(canary))
    assert canary.read_text() == "ran\n"
    canary.unlink()
    assert arena.confined(code, canary=str(canary)).errno == "EPERM"
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["own file", "memory file"])
def test_exec_of_a_program_of_ones_own_is_refused(arena: Arena, kind: str) -> None:
    code = """
    def attempt():
        if V["kind"] == "own file":
            fd = os.open("program", os.O_WRONLY | os.O_CREAT, 0o700)
            path = "./program"
        else:
            fd = os.memfd_create("program", 0)
            path = f"/proc/self/fd/{fd}"
        os.write(fd, b"#!/bin/sh\\necho ran > canary\\n")
        if V["kind"] == "own file":
            os.close(fd)
        os.execv(path, ["program"])
    """
    canary = arena.scratch / "canary"
    arena.unconfined(code, kind=kind)
    assert canary.read_text() == "ran\n"
    canary.unlink()
    (arena.scratch / "program").unlink(missing_ok=True)
    assert arena.confined(code, kind=kind).errno == "EPERM"
    assert not canary.exists()


def test_fork_is_refused(arena: Arena) -> None:
    code = """
    def attempt():
        pid = os.fork()
        if pid == 0:
            open("canary", "w").close()
            os._exit(0)
        os.waitpid(pid, 0)
        return "forked"
    """
    canary = arena.scratch / "canary"
    assert arena.unconfined(code).value == "forked"
    assert canary.exists()
    canary.unlink()
    assert arena.confined(code).errno == "EPERM"
    assert not canary.exists()


def test_subprocess_is_refused(arena: Arena) -> None:
    code = """
    def attempt():
        import subprocess
        return subprocess.run(["/bin/echo", "hi"], capture_output=True, text=True).stdout
    """
    assert arena.unconfined(code).value == "hi\n"
    assert arena.confined(code).errno == "EPERM"


READ = """
def attempt():
    with open(V["path"]) as file:
        return file.read(4096)
"""


def test_reading_etc_passwd_is_refused(arena: Arena) -> None:
    assert "root" in arena.unconfined(READ, path="/etc/passwd").value
    refused = arena.confined(READ, path="/etc/passwd")
    assert refused.errno == "EACCES"
    assert refused.value is None


def test_reading_the_operators_home_is_refused(arena: Arena, tmp_path: Path) -> None:
    secret = tmp_path / "id_ed25519"
    secret.write_text("private")
    assert arena.unconfined(READ, path=str(secret)).value == "private"
    assert arena.confined(READ, path=str(secret)).errno == "EACCES"
    listing = "def attempt():\n    return os.listdir(V['path'])"
    assert "id_ed25519" in arena.unconfined(listing, path=str(tmp_path)).value
    assert arena.confined(listing, path=str(tmp_path)).errno == "EACCES"


def test_reading_through_a_symlink_of_ones_own_is_refused(arena: Arena, tmp_path: Path) -> None:
    code = """
    def attempt():
        os.symlink(V["path"], "link")
        try:
            with open("link") as file:
                return file.read()
        finally:
            os.unlink("link")
    """
    secret = tmp_path / "secret"
    secret.write_text("private")
    assert arena.unconfined(code, path=str(secret)).value == "private"
    assert arena.confined(code, path=str(secret)).errno == "EACCES"


def test_a_hard_link_into_scratch_is_refused(arena: Arena, tmp_path: Path) -> None:
    code = """
    def attempt():
        os.link(V["path"], "hard")
        with open("hard") as file:
            return file.read()
    """
    secret = tmp_path / "secret"
    secret.write_text("private")
    assert arena.unconfined(code, path=str(secret)).value == "private"
    (arena.scratch / "hard").unlink()
    assert arena.confined(code, path=str(secret)).errno in ("EACCES", "EXDEV")
    assert not (arena.scratch / "hard").exists()


WRITE = """
def attempt():
    with open(V["path"], "w") as file:
        file.write("written")
    return "written"
"""


@pytest.mark.parametrize("where", ["outside", "read_granted", "script", "package"])
def test_writing_anywhere_but_scratch_is_refused(arena: Arena, tmp_path: Path, where: str) -> None:
    import sandboxrun

    folder = tmp_path / "outside"
    folder.mkdir()
    path = {
        "outside": folder / "canary",
        "read_granted": folder / "canary",
        "script": tmp_path / "arena" / "planted.py",
        "package": Path(sandboxrun.__file__).parent / "planted.py",
    }[where]
    allow = {"read": str(folder)} if where == "read_granted" else {}
    if os.access(path.parent, os.W_OK):
        assert arena.unconfined(WRITE, path=str(path)).value == "written"
        path.unlink()
    assert arena.confined(WRITE, allow=allow, path=str(path)).errno == "EACCES"
    assert not path.exists()
    assert arena.confined(WRITE, path=str(arena.scratch / "fine")).value == "written"


def test_truncating_a_readable_file_is_refused(arena: Arena, tmp_path: Path) -> None:
    code = "def attempt():\n    os.truncate(V['path'], 0)\n    return 'truncated'"
    data = tmp_path / "data"
    data.write_text("precious")
    assert arena.unconfined(code, path=str(data)).value == "truncated"
    data.write_text("precious")
    assert arena.confined(code, allow={"read": str(data)}, path=str(data)).errno == "EACCES"
    assert data.read_text() == "precious"


def test_changing_the_mode_of_a_readable_file_is_refused(arena: Arena, tmp_path: Path) -> None:
    code = "def attempt():\n    os.chmod(V['path'], 0o777)\n    return 'changed'"
    data = tmp_path / "data"
    data.touch(mode=0o600)
    assert arena.unconfined(code, path=str(data)).value == "changed"
    data.chmod(0o600)
    assert arena.confined(code, allow={"read": str(data)}, path=str(data)).errno == "EPERM"
    assert data.stat().st_mode & 0o777 == 0o600


def test_a_file_granted_for_reading_can_be_read_and_one_beside_it_cannot(arena: Arena, tmp_path: Path) -> None:
    for name in ("granted", "other"):
        (tmp_path / name).write_text(name)
    allow = {"read": str(tmp_path / "granted")}
    assert arena.confined(READ, allow=allow, path=str(tmp_path / "granted")).value == "granted"
    assert arena.unconfined(READ, path=str(tmp_path / "other")).value == "other"
    assert arena.confined(READ, allow=allow, path=str(tmp_path / "other")).errno == "EACCES"


def test_the_supervisors_environment_cannot_be_read(arena: Arena) -> None:
    code = """
    def attempt():
        with open(f"/proc/{os.getppid()}/environ", "rb") as file:
            return "CANARY-7f3a" in file.read().decode()
    """
    arena.env["OPERATORS_TOKEN"] = "CANARY-7f3a"
    # Unconfined, the parent would be this test's own process: a shell with the variable is put between.
    assert arena.unconfined(code, under=["sh", "-c", '"$@"; exit $?', "sh"]).value is True
    assert arena.confined(code).errno == "EACCES"
    assert arena.confined("def attempt():\n    return sorted(os.environ)").value == ["HOME", "LANG", "PATH", "TMPDIR"]


def test_an_inherited_descriptor_is_closed(arena: Arena, tmp_path: Path) -> None:
    code = "def attempt():\n    return os.pread(V['fd'], 100, 0).decode()"
    secret = tmp_path / "secret"
    secret.write_text("private")
    with secret.open() as file:
        fd = 200  # far from those that either process opens by itself
        os.dup2(file.fileno(), fd, inheritable=True)
        try:
            arena.pass_fds = (fd,)
            assert arena.unconfined(code, fd=fd).value == "private"
            assert arena.confined(code, fd=fd).errno == "EBADF"
        finally:
            os.close(fd)


@pytest.mark.parametrize("missing", [[], ["landlock-scope"]], ids=["this kernel", "Landlock without scopes"])
def test_signalling_another_process_is_refused(arena: Arena, missing: list[str]) -> None:
    code = "def attempt():\n    os.kill(V['pid'], 15)\n    return 'sent'"
    victims = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(2)]
    try:
        assert arena.unconfined(code, pid=victims[0].pid).value == "sent"
        assert victims[0].wait(10) == -15
        assert arena.confined(code, missing=missing, pid=victims[1].pid).errno == "EPERM"
        assert victims[1].poll() is None
    finally:
        for victim in victims:
            victim.kill()
            victim.wait()


@pytest.mark.parametrize(
    ("name", "x86_64", "args"),
    [
        ("ptrace", 101, (0, 0, 0, 0)),
        ("unshare", 272, (0x10000000,)),
        ("memfd_create", 319, ("x", 0)),
        ("keyctl", 250, (0, -3, 0)),
        ("inotify_init1", 294, (0,)),
        ("process_vm_readv", 310, (0, 0, 0, 0, 0, 0)),
        ("shmget", 29, (0, 4096, 0o1600)),
        ("landlock_create_ruleset", 444, (0, 0, 1)),
        ("seccomp", 317, (2, 0, 0)),
        ("userfaultfd", 323, (1,)),
        ("perf_event_open", 298, (0, 0, -1, -1, 0)),
        ("no such call", 9999, ()),
    ],
)
def test_raw_system_calls_outside_the_table_are_refused(
    arena: Arena, name: str, x86_64: int, args: tuple[object, ...]
) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("numbers of x86-64")
    code = """
    def attempt():
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        args = [a.encode() if isinstance(a, str) else ctypes.c_long(a) for a in V["args"]]
        if libc.syscall(ctypes.c_long(V["number"]), *args) < 0:
            raise OSError(ctypes.get_errno(), "syscall")
        return "done"
    """
    # The kernel's own answer without the sandbox is never EPERM here, so EPERM is the filter's.
    if name not in ("userfaultfd", "perf_event_open", "unshare"):  # settings of the host may give EPERM
        assert arena.unconfined(code, number=x86_64, args=args).errno not in ("EPERM", "NO OUTCOME")
    assert arena.confined(code, number=x86_64, args=args).errno == "EPERM"


def test_the_32_bit_system_call_table_kills(arena: Arena) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("int 0x80 is of x86")
    code = """
    def attempt():
        import ctypes, mmap
        # mov eax, 20 (getpid of i386); int 0x80; ret
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3]))
        call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        return call() == os.getpid()
    """
    free = arena.unconfined(code)
    if free.errno == "NO OUTCOME":
        pytest.skip("this kernel has no 32-bit system calls")
    assert free.value is True
    assert arena.confined(code).code == 128 + 31  # SIGSYS
