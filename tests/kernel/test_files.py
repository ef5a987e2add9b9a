"""Attacks on files: what is not granted is not read, listed, made, changed or removed, by whatever path or descriptor.

Every attack acts on a small world of files. Unconfined it works; confined it fails with the exact errno, and the world
(names, contents, owners, modes, times, attributes, link counts) is what it was.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from arena import Arena, in_every_child
from raw_calls import RAW, numbers

PRIVATE = "private-5b1e"
# Metadata of what the worker may not write.
METADATA = "EPERM"

PRELUDE = """
OUTSIDE, GRANTED, WRITABLE = V["outside"], V["granted"], V["writable"]
SECRET, PARENT = OUTSIDE + "/secret", f"/proc/{os.getppid()}"
UP = "../" * 30
def text(fd):
    return os.read(fd, 99).decode()
def path(fd, folder="/proc/self/fd"):
    return f"{folder}/{fd}"
def mine():
    with open("mine", "w") as file:
        file.write("mine")
    return "mine"
def attempt():
    global T, TF
    found, scratch = [], os.getcwd()
    for number, T in enumerate(V["targets"]):
        TF = os.path.dirname(T)
        if number:
            os.mkdir(f"{scratch}/{number}")
            os.chdir(f"{scratch}/{number}")
        try:
            found.append(attack())
        except OSError as error:
            found.append({"errno": errno.errorcode[error.errno]})
    return found
def attack():
"""


class World:
    """outside/ (nothing granted), granted/ (to read), writable/ (to write, not to read); made anew before each run."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "world"
        self.outside, self.granted, self.writable = (self.root / name for name in ("outside", "granted", "writable"))
        self.paths = {"outside": str(self.outside), "granted": str(self.granted), "writable": str(self.writable)}
        self.build()

    def build(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        for folder in (self.outside, self.granted, self.writable):
            (folder / "sub").mkdir(parents=True)
            for name in ("secret", "other"):
                (folder / name).write_text(f"{PRIVATE} {folder.name} {name}")
                with contextlib.suppress(OSError):  # a file system without attributes of users
                    os.setxattr(folder / name, "user.mark", b"mark")
        (self.granted / "out").symlink_to(self.outside / "secret")
        (self.granted / "folder").symlink_to(self.outside)

    def state(self) -> dict[str, object]:
        # The writable folder itself may change: some attacks plant a symlink there, and take it away again.
        paths = {self.root, *self.root.rglob("*")} - {self.writable}
        return {str(path): self._facts(path) for path in sorted(paths)}

    def _facts(self, path: Path) -> object:
        found = path.lstat()
        held = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else None
        # The time of change (ctime) moves with every change of data or metadata, also one that is made undone.
        return found.st_ino, found.st_mode, found.st_uid, found.st_gid, found.st_nlink, found.st_ctime_ns, held

    def attack(
        self, arena: Arena, body: str, errno: str, works: Any = "done", targets: Sequence[Path] = (), lack: str = ""
    ) -> None:
        """`body` acts on each of `targets` (T, in the folder TF), as a rule on the secret alone.

        `works`: what it returns unconfined; None for a secret. `lack`: errnos of a kernel that itself refuses this user, or
        has no such thing: these skip.
        """
        targets = targets or [self.outside / "secret"]
        code = RAW + PRELUDE + textwrap.indent(body + "\nreturn 'done'\n", "    ")
        variables = {**self.paths, "targets": list(map(str, targets)), "numbers": numbers(code)}
        free = arena.unconfined(code, **variables)
        assert free.errno is None, f"unconfined: {free}"
        for found in free.value:
            if isinstance(found, dict) and found["errno"] in ("ENOSYS", "ENOTSUP", "ENOTTY", *lack.split()):
                pytest.skip(f"the kernel itself refuses this user, or has no such thing: {found['errno']}")
            assert found == works or (works is None and PRIVATE in found), f"unconfined: {free}"
        arena.empty_scratch()
        self.build()
        before = self.state()
        allow = {"read": str(self.granted), "write": str(self.writable)}
        held = arena.confined(code, allow=allow, **variables)
        assert held.value == [{"errno": errno}] * len(targets), f"confined: {held}"
        assert self.state() == before
        for path in arena.scratch.rglob("*"):
            assert path.is_symlink() or path.is_dir() or path.read_text() in ("", "mine"), f"{path} holds a secret"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


READS = {
    "open": "return open(SECRET).read()",
    "raw open": 'return text(raw("open", SECRET.encode(), 0))',
    "raw openat": 'return text(raw("openat", -100, SECRET.encode(), 0))',
    "raw openat2": 'return text(raw("openat2", -100, SECRET.encode(), longs(0, 0, 0), 24))',
    "raw openat2 in a root of its own": 'fd = os.open(OUTSIDE, os.O_PATH)\nreturn text(raw("openat2", fd, b"/secret", longs(0, 0, 0x10), 24))',
    "for reading and writing": "return text(os.open(SECRET, os.O_RDWR))",
    "fopen of libc": "libc.fopen.restype = ctypes.c_void_p\nif not libc.fopen(SECRET.encode(), b'r'):\n    raise OSError(ctypes.get_errno(), 'fopen')\nreturn open(SECRET).read()",
    "dot dot out of scratch": "return open(os.path.relpath(SECRET)).read()",
    "dot dot out of a granted folder": "return open(GRANTED + '/sub/../../outside/secret').read()",
    "dot dot from the root": "return open(UP + SECRET).read()",
    "odd slashes and dots": "return open('//' + SECRET.replace('/', '/.//')).read()",
    "folder descriptor": "return text(os.open('secret', 0, dir_fd=os.open(OUTSIDE, os.O_PATH)))",
    "dot dot from a folder descriptor": "return text(os.open('../outside/secret', 0, dir_fd=os.open(GRANTED, 0)))",
    "chdir": "os.chdir(OUTSIDE)\nreturn open('secret').read()",
    "fchdir": "os.fchdir(os.open(OUTSIDE, os.O_PATH))\nreturn open('secret').read()",
    "own symlink": "os.symlink(SECRET, 'link')\nreturn open('link').read()",
    "own symlink made relative": "os.symlink(os.path.relpath(SECRET), 'link')\nreturn open('link').read()",
    "chain of symlinks": "for n in range(30):\n    os.symlink(f'link{n + 1}', f'link{n}')\nos.symlink(SECRET, 'link30')\nreturn open('link0').read()",
    "own symlink to the folder": "os.symlink(OUTSIDE, 'link')\nreturn open('link/secret').read()",
    "own symlink through /proc": "os.symlink('/proc/self/root' + SECRET, 'link')\nreturn open('link').read()",
    "symlink in a granted folder": "return open(GRANTED + '/out').read()",
    "symlink to a folder in a granted folder": "return open(GRANTED + '/folder/secret').read()",
    "symlink in a writable folder": "os.symlink(SECRET, WRITABLE + '/link')\ntry:\n    return open(WRITABLE + '/link').read()\nfinally:\n    os.unlink(WRITABLE + '/link')",
    "/proc/self/root": "return open('/proc/self/root' + SECRET).read()",
    "/proc/self/cwd": "return open('/proc/self/cwd/' + UP + SECRET).read()",
    "/proc/thread-self/root": "return open('/proc/thread-self/root' + SECRET).read()",
    "/proc/self/task/TID/root": "return open(f'/proc/self/task/{os.getpid()}/root' + SECRET).read()",
    "/proc inside /proc": "return open('/proc/self/root/proc/self/cwd/' + UP + SECRET).read()",
    "/proc/PPID/root": "return open(PARENT + '/root' + SECRET).read()",
    "/proc/PPID/cwd": "return open(PARENT + '/cwd/' + UP + SECRET).read()",
    "/proc/1/root": "return open('/proc/1/root' + SECRET).read()",
    "O_PATH then /proc/self/fd": "return open(path(os.open(SECRET, os.O_PATH))).read()",
    "O_PATH then /dev/fd": "return open(path(os.open(SECRET, os.O_PATH), '/dev/fd')).read()",
    "O_PATH then /proc/thread-self/fd": "return open(path(os.open(SECRET, os.O_PATH), '/proc/thread-self/fd')).read()",
    "O_PATH of the folder then /proc/self/fd": "return open(path(os.open(OUTSIDE, os.O_PATH)) + '/secret').read()",
    "O_PATH as standard input": "os.dup2(os.open(SECRET, os.O_PATH), 0)\nreturn open('/dev/stdin').read()",
    "copy": "import shutil\nshutil.copy(SECRET, 'copy')\nreturn open('copy').read()",
    "memory map": "import mmap\nwith open(SECRET) as f:\n    return mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[:].decode()",
    "copy_file_range": "fd = os.open('copy', os.O_RDWR | os.O_CREAT)\nos.copy_file_range(os.open(SECRET, 0), fd, 99)\nos.lseek(fd, 0, 0)\nreturn text(fd)",
}  # fmt: skip


@pytest.mark.parametrize("way", READS)
def test_a_file_that_is_not_granted_is_not_read(arena: Arena, world: World, way: str) -> None:
    world.attack(arena, READS[way], "EACCES", works=None, lack="EACCES" if way == "/proc/1/root" else "")


# A name in another folder would give the file the rights of that folder: EXDEV, as across file systems, where making and
# removing the names would be fine; else EACCES.
GAINS = {
    "link": ("os.link(SECRET, 'hard')\nreturn open('hard').read()", None, "EXDEV"),
    "raw linkat of an O_PATH descriptor": ('fd = os.open(SECRET, os.O_PATH)\nraw("linkat", fd, b"", -100, b"hard", 0x1000)\nreturn open("hard").read()', None, "EXDEV"),
    "raw linkat through /proc/self/fd": ('fd = os.open(SECRET, os.O_PATH)\nraw("linkat", -100, path(fd).encode(), -100, b"hard", 0x400)\nreturn open("hard").read()', None, "EXDEV"),
    "rename": ("os.rename(SECRET, 'moved')\nreturn open('moved').read()", None, "EACCES"),
    "rename of the folder": ("os.rename(OUTSIDE, 'moved')\nreturn open('moved/secret').read()", None, "EACCES"),
    "exchange": ('raw("renameat2", -100, SECRET.encode(), -100, mine().encode(), 2)\nreturn open("mine").read()', None, "EACCES"),
    "exchange of folders": ('os.mkdir("d")\nraw("renameat2", -100, OUTSIDE.encode(), -100, b"d", 2)\nreturn open("d/secret").read()', None, "EACCES"),
    "link of a readable file, to write it": ("os.link(GRANTED + '/secret', 'hard')\nopen('hard', 'w').close()", "done", "EXDEV"),
    "rename of a readable file, to write it": ("os.rename(GRANTED + '/secret', 'moved')\nopen('moved', 'w').close()", "done", "EACCES"),
    "rename of a readable folder, to write in it": ("os.rename(GRANTED + '/sub', 'moved')\nopen('moved/new', 'w').close()", "done", "EACCES"),
    "link of a readable file into a writable folder": ("os.link(GRANTED + '/secret', WRITABLE + '/hard')\nopen(WRITABLE + '/hard', 'w').close()", "done", "EXDEV"),
    "link of a writable file, to read it": ("os.link(WRITABLE + '/secret', 'hard')\nreturn open('hard').read()", None, "EXDEV"),
    "rename of a writable file, to read it": ("os.rename(WRITABLE + '/secret', 'moved')\nreturn open('moved').read()", None, "EXDEV"),
    "rename of a writable folder, to read in it": ("os.rename(WRITABLE + '/sub', 'moved')\nos.listdir('moved')", "done", "EXDEV"),
    "exchange with a writable file": ('raw("renameat2", -100, (WRITABLE + "/secret").encode(), -100, mine().encode(), 2)\nreturn open("mine").read()', None, "EXDEV"),
}  # fmt: skip


@pytest.mark.parametrize("way", GAINS)
def test_no_other_name_gives_a_file_more_rights(arena: Arena, world: World, way: str) -> None:
    body, works, errno = GAINS[way]
    world.attack(arena, body, errno, works=works)


@pytest.mark.parametrize("path", ["/etc/passwd", "/etc/hostname", "/etc/resolv.conf", "/etc/hosts", "/proc/version"])
def test_a_file_of_the_system_is_not_read(arena: Arena, world: World, path: str) -> None:
    world.attack(arena, f"return bool(open({path!r}).read())", "EACCES", works=True, lack="ENOENT")


def test_a_file_granted_to_read_can_be_read_and_one_beside_it_cannot(arena: Arena, world: World) -> None:
    code = "def attempt():\n    return open(V['path']).read()"
    allow = {"read": str(world.granted / "secret")}
    assert PRIVATE in arena.confined(code, allow=allow, path=str(world.granted / "secret")).value
    assert PRIVATE in arena.unconfined(code, path=str(world.granted / "other")).value
    assert arena.confined(code, allow=allow, path=str(world.granted / "other")).errno == "EACCES"


def test_a_folder_to_write_is_not_one_to_read(arena: Arena, world: World) -> None:
    world.attack(arena, "return open(WRITABLE + '/secret').read()", "EACCES", works=None)


LISTS = {
    "listdir": "return 'secret' in os.listdir(OUTSIDE)",
    "scandir": "return 'secret' in [entry.name for entry in os.scandir(OUTSIDE)]",
    "by descriptor": "return 'secret' in os.listdir(os.open(OUTSIDE, os.O_RDONLY | os.O_DIRECTORY))",
    "O_PATH then /proc/self/fd": "return 'secret' in os.listdir(path(os.open(OUTSIDE, os.O_PATH)))",
    "own symlink": "os.symlink(OUTSIDE, 'link')\nreturn 'secret' in os.listdir('link')",
    "symlink in a granted folder": "return 'secret' in os.listdir(GRANTED + '/folder')",
    "dot dot": "return 'outside' in os.listdir(GRANTED + '/..')",
    "current folder": "os.chdir(OUTSIDE)\nreturn 'secret' in os.listdir('.')",
    "a writable folder": "return 'secret' in os.listdir(WRITABLE)",
    "raw getdents64": 'b = zeros(4096)\nn = raw("getdents64", raw("openat", -100, OUTSIDE.encode(), os.O_DIRECTORY), b, 4096)\nreturn b"secret" in b.raw[:n]',
    "the parent of scratch": "return 'scratch' in os.listdir('..')",
    "the root": "return 'etc' in os.listdir('/')",
    "processes": "return str(os.getpid()) in os.listdir('/proc')",
    "the root of the parent": "return 'etc' in os.listdir(PARENT + '/root/')",
    "/etc": "return 'passwd' in os.listdir('/etc')",
    "temporary files": "return bool(os.listdir('/tmp'))",
    "devices": "return 'null' in os.listdir('/dev')",
}  # fmt: skip


@pytest.mark.parametrize("way", LISTS)
def test_a_folder_that_is_not_granted_is_not_listed(arena: Arena, world: World, way: str) -> None:
    world.attack(arena, LISTS[way], "EACCES", works=True)


WRITES = {
    "open to write": "open(T, 'w').close()",
    "open to append": "open(T, 'a').close()",
    "open to update": "open(T, 'r+').close()",
    "O_TRUNC of a file opened to read": "os.open(T, os.O_RDONLY | os.O_TRUNC)",
    "truncate": "os.truncate(T, 0)",
    "raw truncate, longer": 'raw("truncate", T.encode(), 1 << 20)',
    "raw creat": 'raw("creat", T.encode(), 0o666)',
    "raw openat2": 'raw("openat2", -100, T.encode(), longs(os.O_WRONLY, 0, 0), 24)',
    "O_PATH then /proc/self/fd": "open(path(os.open(T, os.O_PATH)), 'w').close()",
    "O_PATH then /dev/fd": "open(path(os.open(T, os.O_PATH), '/dev/fd'), 'r+').close()",
    "O_PATH then truncate": "os.truncate(path(os.open(T, os.O_PATH)), 0)",
    "own symlink": "os.symlink(T, 'link')\nopen('link', 'w').close()",
    "truncate through own symlink": "os.symlink(T, 'link')\nos.truncate('link', 0)",
    "symlink in a writable folder": "os.symlink(T, WRITABLE + '/link')\ntry:\n    open(WRITABLE + '/link', 'w').close()\nfinally:\n    os.unlink(WRITABLE + '/link')",
    "/proc/self/root": "open('/proc/self/root' + T, 'w').close()",
    "/proc/self/cwd": "open('/proc/self/cwd/' + UP + T, 'w').close()",
    "/proc/PPID/root": "open(PARENT + '/root' + T, 'w').close()",
    "new file": "os.open(TF + '/new', os.O_WRONLY | os.O_CREAT | os.O_EXCL)",
    "new file by a folder descriptor": "os.open('new', os.O_WRONLY | os.O_CREAT, dir_fd=os.open(TF, os.O_PATH))",
    "new file through a dangling symlink": "os.symlink(TF + '/new', 'link')\nopen('link', 'w').close()",
    "unnamed file": "os.open(TF, os.O_WRONLY | os.O_TMPFILE)",
    "new folder": "os.mkdir(TF + '/new')",
    "raw mkdirat": 'raw("mkdirat", os.open(TF, os.O_PATH), b"new", 0o700)',
    "new symlink": "os.symlink('anything', TF + '/new')",
    "raw symlinkat": 'raw("symlinkat", b"anything", os.open(TF, os.O_PATH), b"new")',
    "link beside": "os.link(T, TF + '/hard')",
    "rename beside": "os.rename(T, TF + '/moved')",
    "replace": "os.replace(TF + '/other', T)",
    "exchange beside": 'raw("renameat2", -100, T.encode(), -100, (TF + "/other").encode(), 2)',
    "unlink": "os.unlink(T)",
    "raw unlinkat": 'raw("unlinkat", os.open(TF, os.O_PATH), os.path.basename(T).encode(), 0)',
    "rmdir": "os.rmdir(TF + '/sub')",
    "raw unlinkat of a folder": 'raw("unlinkat", -100, (TF + "/sub").encode(), 0x200)',
    "copy": "import shutil\nshutil.copyfile(mine(), T)",
    "sendfile": "os.sendfile(os.open(T, os.O_WRONLY), os.open(mine(), 0), 0, 4)",
    "rename out of scratch": "os.rename(mine(), TF + '/new')",
    "rename out of scratch over it": "os.rename(mine(), T)",
    "folder renamed out of scratch": "os.mkdir('d')\nos.rename('d', TF + '/new')",
    "link out of scratch": "os.link(mine(), TF + '/new')",
    "raw linkat of an unnamed file": 'fd = os.open(".", os.O_RDWR | os.O_TMPFILE)\nraw("linkat", -100, path(fd).encode(), -100, (TF + "/new").encode(), 0x400)',
    "new pipe": ("os.mkfifo(TF + '/new')", "EPERM"),
    "new file by mknod": ("os.mknod(TF + '/new')", "EPERM"),
    "new Unix socket": ("os.chdir(TF)\nsocket.socketpair()\nsocket.socket(socket.AF_UNIX).bind('new')", "EPERM"),
    "chmod": ("os.chmod(T, 0o777)", METADATA),
    "chmod through own symlink": ("os.symlink(T, 'link')\nos.chmod('link', 0o777)", METADATA),
    "chmod of an O_PATH descriptor": ("os.chmod(path(os.open(T, os.O_PATH)), 0o777)", METADATA),
    "chmod of the folder": ("os.chmod(TF, 0o777)", METADATA),
    "raw fchmodat": ('raw("fchmodat", os.open(TF, os.O_PATH), os.path.basename(T).encode(), 0o777)', METADATA),
    "raw fchmodat2": ('raw("fchmodat2", os.open(T, os.O_PATH), b"", 0o777, 0x1000)', METADATA),
    "utime": ("os.utime(T, (0, 0))", METADATA),
    "utime to now": ("os.utime(T)", METADATA),
    "utime through own symlink": ("os.symlink(T, 'link')\nos.utime('link', (0, 0))", METADATA),
    "utime of the folder": ("os.utime(TF, (0, 0))", METADATA),
    "raw utime": ('raw("utime", T.encode(), 0)', METADATA),
    "raw utimes": ('raw("utimes", T.encode(), 0)', METADATA),
    "raw futimesat": ('raw("futimesat", os.open(TF, os.O_PATH), os.path.basename(T).encode(), 0)', METADATA),
    "raw utimensat of an O_PATH descriptor": ('raw("utimensat", os.open(T, os.O_PATH), b"", 0, 0x1000)', METADATA),
    "chown": ("os.chown(T, os.getuid(), os.getgid())", "EPERM"),
    "lchown": ("os.lchown(T, os.getuid(), os.getgid())", "EPERM"),
    "raw fchownat of an O_PATH descriptor": ('raw("fchownat", os.open(T, os.O_PATH), b"", -1, os.getgid(), 0x1000)', "EPERM"),
    "setxattr": ("os.setxattr(T, 'user.mark', b'new')", "EPERM"),
    "removexattr": ("os.removexattr(T, 'user.mark')", "EPERM"),
    "getxattr": ("os.getxattr(T, 'user.mark')", "ENOTSUP"),
    "listxattr": ("os.listxattr(T)", "ENOTSUP"),
    "raw setxattrat": ('b = zeros(3)\nraw("setxattrat", -100, T.encode(), 0, b"user.mark", longs(ctypes.addressof(b), 3), 16)', "EPERM"),
    "raw file_setattr": ('b = zeros(24)\nraw("file_getattr", -100, T.encode(), b, 24, 0)\nraw("file_setattr", -100, T.encode(), b, 24, 0)', "EPERM"),
    "raw name_to_handle_at": ('raw("name_to_handle_at", -100, T.encode(), ints(128, *[0] * 40), ints(0), 0)', "EPERM"),
}  # fmt: skip


@pytest.mark.parametrize("way", WRITES)
def test_neither_a_hidden_nor_a_readable_file_is_changed(arena: Arena, world: World, way: str) -> None:
    body, errno = (WRITES[way], "EACCES") if isinstance(WRITES[way], str) else WRITES[way]
    world.attack(arena, body, errno, targets=[world.outside / "secret", world.granted / "secret"])


# With a descriptor that a read grant gives.
DESCRIPTORS = {
    "opened anew to write": ("open(path(fd), 'w').close()", "EACCES"),
    "opened anew to write by /dev/fd": ("open(path(fd, '/dev/fd'), 'r+').close()", "EACCES"),
    "truncated by /proc/self/fd": ("os.truncate(path(fd), 0)", "EACCES"),
    "fchmod": ("os.fchmod(fd, 0o777)", METADATA),
    "fchmod of the folder": ("os.fchmod(os.open(TF, 0), 0o777)", METADATA),
    "chmod by /proc/self/fd": ("os.chmod(path(fd), 0o777)", METADATA),
    "futimens": ("os.utime(fd, (0, 0))", METADATA),
    "raw utimensat": ('raw("utimensat", fd, 0, 0, 0)', METADATA),
    "fchown": ("os.fchown(fd, os.getuid(), os.getgid())", "EPERM"),
    "fsetxattr": ("os.setxattr(fd, 'user.mark', b'new')", "EPERM"),
    "fremovexattr": ("os.removexattr(fd, 'user.mark')", "EPERM"),
    "fgetxattr": ("os.getxattr(fd, 'user.mark')", "ENOTSUP"),
    "flistxattr": ("os.listxattr(fd)", "ENOTSUP"),
    "flags of the file system": ("flags = fcntl.ioctl(fd, 0x80086601, bytes(8))\nfcntl.ioctl(fd, 0x40086602, flags)", "EPERM"),
    "lease": ("fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)", "EPERM"),
    "told of changes": ("fcntl.fcntl(os.open(TF, 0), fcntl.F_NOTIFY, fcntl.DN_MODIFY)", "EPERM"),
    "write lifetime hint": ("fcntl.fcntl(fd, 1036, longs(2))", "EPERM"),
    "linked to scratch": ('raw("linkat", -100, path(fd).encode(), -100, b"hard", 0x400)\nopen("hard", "w").close()', "EXDEV"),
    "splice": ("r, w = os.pipe()\nos.splice(fd, w, 9)" if hasattr(os, "splice") else 'r, w = os.pipe()\nraw("splice", fd, 0, w, 0, 9, 0)', "EPERM"),
}  # fmt: skip


@pytest.mark.parametrize("way", DESCRIPTORS)
def test_a_descriptor_to_read_gives_no_more_than_that(arena: Arena, world: World, way: str) -> None:
    body, errno = DESCRIPTORS[way]
    world.attack(arena, "fd = os.open(T, os.O_RDONLY)\n" + body, errno, targets=[world.granted / "secret"])


SPECIAL = {
    "pipe": "os.mkfifo('new')",
    "pipe by a folder descriptor": "os.mkfifo('new', dir_fd=os.open('.', os.O_PATH))",
    "raw mknodat of a socket": 'raw("mknodat", -100, b"new", stat.S_IFSOCK | 0o600, 0)',
    "raw mknod of a file": 'raw("mknod", b"new", stat.S_IFREG | 0o600, 0)',
    "whiteout": 'mine()\ntry:\n    raw("renameat2", -100, b"mine", -100, b"new", 4)\nfinally:\n    os.unlink("mine")',
    "memory device": "os.mknod('new', stat.S_IFCHR | 0o600, os.makedev(1, 1))",
    "block device": "os.mknod('new', stat.S_IFBLK | 0o600, os.makedev(7, 0))",
    "Unix socket": "socket.socketpair()\nsocket.socket(socket.AF_UNIX).bind('new')",
    "attribute": "os.close(os.open('new', os.O_CREAT))\ntry:\n    os.setxattr('new', 'user.mark', b'x')\nfinally:\n    os.unlink('new')",
}  # fmt: skip


@pytest.mark.parametrize("what", SPECIAL)
def test_scratch_holds_nothing_but_ordinary_files(arena: Arena, world: World, what: str) -> None:
    world.attack(
        arena, SPECIAL[what], "EPERM", lack={"whiteout": "EINVAL"}.get(what, "EPERM" if "device" in what else "")
    )
    assert list(arena.scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "errno"),
    [
        ("s = os.getcwd()\nos.rename(s, s + '2')\nos.rename(s + '2', s)", "EACCES"),
        ("os.mkdir('d')\nos.rename('d', '../planted')\nos.rmdir('../planted')", "EACCES"),
        ("s = os.getcwd()\nos.rmdir(s)\nos.mkdir(s)", "EACCES"),
    ],
    ids=["renamed", "moved out of", "removed"],
)
def test_scratch_itself_stays_where_it_is(arena: Arena, world: World, body: str, errno: str) -> None:
    inode = arena.scratch.stat().st_ino
    world.attack(arena, body, errno)
    assert sorted(path.name for path in arena.scratch.parent.iterdir()) == ["attempt.py", "scratch"]
    assert arena.scratch.stat().st_ino == inode or "rmdir" in body


def test_nothing_is_planted_beside_the_script(arena: Arena, world: World) -> None:
    planted = arena.scratch.parent / "planted.py"
    path = repr(str(planted))
    world.attack(arena, f"os.close(os.open({path}, os.O_WRONLY | os.O_CREAT))\nos.unlink({path})", "EACCES")
    assert not planted.exists()


@in_every_child
def test_no_program_with_set_user_id_is_made(arena: Arena, world: World) -> None:
    # Without capabilities a write takes the bit away again: what is left is a program that runs as whoever runs it.
    code = """
    def attempt():
        os.umask(0)
        with open(os.open(V["path"], os.O_WRONLY | os.O_CREAT, 0o6755), "w") as file:
            file.write("#!/bin/sh")
        return oct(os.stat(V["path"]).st_mode & 0o7000)
    """
    for name, allow in (("scratch", {}), ("writable", {"write": str(world.writable)})):
        path = (arena.scratch if name == "scratch" else world.writable) / "program"
        assert arena.confined(code, allow=allow, path=str(path)).value == "0o0"
        assert path.stat().st_mode & 0o6000 == 0
