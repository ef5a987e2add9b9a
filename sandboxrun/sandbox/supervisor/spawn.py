"""Runs in the supervisor: starts the child's process first, so that it gets ready while the rest of a run is imported.

So this imports nothing, above all nothing of child/, of which it knows the path alone. The child holds neither secrets nor
untrusted code until `go`, its environment is empty, and it inherits only the descriptors that it is spawned for.
"""

from __future__ import annotations

import _frozen_importlib_external as _external  # importlib.util without what that imports
import os
import sys

import sandboxrun
from sandboxrun import timing

HEALTH_BYTES = 4096  # as healthpage.py has it
SITE_FOLDERS = ("site-packages", "dist-packages")  # Debian's are the second
_CHILD = os.path.join(os.path.dirname(os.path.dirname(__file__)), "child")
_SIGPIPE, _SIGXFSZ = 13, 25  # which Python ignores, and programs do not expect to be ignored


class Spawned:
    """A child that waits for its plan. The descriptors here are the supervisor's ends; whoever takes the child closes them."""

    def __init__(self, key: str, *, warm: bool = False) -> None:
        """`key` is shown by ps(1), and nothing else. `warm`: it imports sandboxrun.worker while it waits, as most scripts
        will. Raises OSError.
        """
        ours, theirs = [], []
        try:
            for flags, child_reads in pipes():
                read, write = os.pipe2(os.O_CLOEXEC | flags)
                ours.append(write if child_reads else read)
                theirs.append(read if child_reads else write)
            for name, flags, size in memory():
                ours.append(_memfd(name, flags, size))
                theirs.append(os.dup(ours[-1]))
            words = [key, str(os.getpid()), *map(str, theirs[3:]), "1" if warm else "0", *importable()]
            pid = start_python("bootstrap", words, theirs)
            seal(ours[-1])  # only now: the import of fcntl takes time, and nothing untrusted runs before `go`
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        self._keep(pid, os.pidfd_open(pid), ours)  # nobody has waited for it, so the number is its own
        timing.mark("child started")

    def _keep(self, pid: int, pidfd: int, ours: list[int]) -> None:
        self.pid, self.pidfd, self._ours = pid, pidfd, ours
        self.stdin, self.stdout, self.stderr, self.questions, self.answers, self.plan, self.health = ours

    @classmethod
    def of(cls, pid: int, pidfd: int, ours: list[int]) -> Spawned:
        """A child that was started in another way; `ours` are as `pipes` and `memory` have them."""
        made = cls.__new__(cls)
        made._keep(pid, pidfd, ours)
        return made

    def end(self) -> None:
        """Kill and reap one that nobody has taken, and close its descriptors."""
        import _signal  # type: ignore[import-not-found]  # signal makes enums of all numbers

        try:
            _signal.pidfd_send_signal(self.pidfd, _signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(self.pid, 0)
        for fd in (*self._ours, self.pidfd):
            os.close(fd)


def start_python(program: str, words: list[str], fds: list[int]) -> int:
    """Start a program of child/; its pid. The first three of `fds` become its standard streams, the others keep their numbers.

    Its environment is empty. Raises OSError.
    """
    return os.posix_spawn(
        sys.executable,
        # -I ignores PYTHONDONTWRITEBYTECODE.
        [sys.executable, "-ISB" if sys.dont_write_bytecode else "-IS", "-X", "utf8", _compiled(program), *words],
        {"LANG": "C.UTF-8"},
        # The last ones lose close-on-exec.
        file_actions=[(os.POSIX_SPAWN_DUP2, fd, n if n < 3 else fd) for n, fd in enumerate(fds)],
        setsid=True,
        setsigdef=(_SIGPIPE, _SIGXFSZ),
    )


def pipes() -> tuple[tuple[int, bool], ...]:
    """Of each child: flags of pipe2(2), and whether the child reads. Standard input, output and error, questions, answers."""
    # Questions are packets, so that what one thread or process writes is never mixed with another's; they take a page each,
    # so answers, which must never wait for their reader, are none.
    return (0, True), (0, False), (0, False), (os.O_DIRECT, False), (0, True)


def memory() -> tuple[tuple[str, int, int], ...]:
    """Of each child, its memfds: name, flags and size. The plan, and the page in which a worker says how it is (healthpage.py)."""
    return ("plan", 0, 0), ("health", os.MFD_ALLOW_SEALING, HEALTH_BYTES)


def health_page() -> int:
    """A descriptor of a new page in which a worker says how it is. Raises OSError."""
    return _memfd(*memory()[-1])


def _memfd(name: str, flags: int, size: int) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | flags)
    os.ftruncate(fd, size)
    return fd


def seal(health: int) -> None:
    """The page keeps its size, and takes no further seal. Raises OSError."""
    import fcntl

    fcntl.fcntl(health, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)


def package() -> str:
    """The folder sandboxrun/ itself."""
    return os.path.dirname(os.path.abspath(sandboxrun.__file__))


def site_packages() -> tuple[str, ...]:
    """The folders that packages are installed in."""
    # As sysconfig has them, which takes a millisecond to say so.
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    pure, platform = (f"{sys.prefix}/{lib}/{version}/site-packages" for lib in ("lib", sys.platlibdir))
    # Beside them Debian's dist-packages, --system-site-packages.
    others = (path for path in sys.path if os.path.basename(path) in SITE_FOLDERS)
    return tuple(dict.fromkeys(path for path in (pure, platform, *others) if os.path.isdir(path)))


def importable() -> list[str]:
    """What the child can import beside Python's own: this package, or nothing if a site folder has it, and those."""
    folder, site = package(), site_packages()
    return ["" if os.path.dirname(folder) in site else folder, *site]


def _compiled(program: str) -> str:
    """The compiled program, if there is a current one: Python compiles a program again at each start."""
    path = f"{_CHILD}/{program}.py"
    compiled = _external.cache_from_source(path)
    source = os.stat(path)
    # PEP 552: magic number, flags (0: checked by time), time and size of the source.
    stamp = (0, int(source.st_mtime) & 0xFFFFFFFF, source.st_size & 0xFFFFFFFF)
    current = _external.MAGIC_NUMBER + b"".join(word.to_bytes(4, "little") for word in stamp)
    try:
        with open(compiled, "rb") as file:
            if file.read(16) == current:
                return compiled
    except OSError:
        pass
    import py_compile

    try:  # a read-only installation
        mode = py_compile.PycInvalidationMode.TIMESTAMP
        return py_compile.compile(path, compiled, doraise=True, invalidation_mode=mode) or path
    except (OSError, py_compile.PyCompileError):
        return path
