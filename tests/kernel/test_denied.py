"""What a worker must not do. Each test shows that the act succeeds unconfined, fails confined with the exact errno, and
that nothing arrived on the other side."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from arena import Arena


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


@pytest.mark.parametrize("abi", [None, 3], ids=["this kernel", "Landlock without scopes"])
def test_signalling_another_process_is_refused(arena: Arena, abi: int | None) -> None:
    code = "def attempt():\n    os.kill(V['pid'], 15)\n    return 'sent'"
    victims = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(2)]
    try:
        assert arena.unconfined(code, pid=victims[0].pid).value == "sent"
        assert victims[0].wait(10) == -15
        assert arena.confined(code, abi=abi, pid=victims[1].pid).errno == "EPERM"
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
        ("landlock_create_ruleset", 444, (0, 0, 1)),
        ("seccomp", 317, (2, 0, 0)),
        ("userfaultfd", 323, (1,)),
        ("perf_event_open", 298, (0, 0, -1, -1, 0)),
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
