"""Start the child, hand it the plan, take over its listener. The child is started before anything is known of the
worker, so that both start-ups overlap; it holds neither secrets nor untrusted code until `go`.

No descriptor is ever sent. The child is born with all that it needs, and what it makes we take by pidfd_getfd(2): so
nothing between the two can carry one, in either direction, and the kernel's limit on how many of a user's descriptors may
be under way (ETOOMANYREFS, unix(7)), which any program of the same user can exhaust, keeps nobody from starting.
"""

from __future__ import annotations

import _frozen_importlib_external as _external  # importlib.util without what that imports
import contextlib
import marshal
import os
import resource
import select
import signal
import struct
import subprocess
import sys

from sandboxrun import trace
from sandboxrun.errors import SandboxError
from sandboxrun.records import record
from sandboxrun.sandbox import landlock, places
from sandboxrun.sandbox.features import Features
from sandboxrun.sandbox.target import pidfd_getfd

# What a policy is made of is imported while the child starts, and so by those who need it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.sandbox.filters import Kept
    from sandboxrun.sandbox.policy import Interpreter, SandboxPolicy

_BOOTSTRAP = os.path.join(os.path.dirname(__file__), "bootstrap.py")
READY_SECONDS = 20  # a child that has not confined itself by then never will


@record
class Script:
    """What the child runs: the supervisor's own, verified copy of the source, never a path to be read again."""

    source: bytes
    name: str  # shown in tracebacks; sys.argv[0] and __file__
    folder: str | None  # first on sys.path: a local worker's own folder
    is_file: bool  # whether `name` is a path whose source Python can read by itself


def this_interpreter() -> Interpreter:
    """The running interpreter's folders: the child runs the same one."""
    from sandboxrun.sandbox.policy import Interpreter

    # As sysconfig has them, which takes a millisecond to say so.
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = (os.path.dirname(os.__file__), f"{sys.base_exec_prefix}/{sys.platlibdir}/{version}")
    programs = (sys.executable, os.path.realpath(sys.executable), os.path.abspath(sys.argv[0]))
    searched, mixed = places.searched()
    return Interpreter(
        prefix=sys.prefix,
        programs=(*programs, *map(os.path.dirname, programs)),
        library=library,
        site_packages=_site_packages(),
        package=_package(),
        searched=searched,
        mixed=mixed,
    )


def _site_packages() -> tuple[str, ...]:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    pure, platform = (f"{sys.prefix}/{lib}/{version}/site-packages" for lib in ("lib", sys.platlibdir))
    # Beside them Debian's dist-packages, --system-site-packages.
    others = (path for path in sys.path if os.path.basename(path) in places.SITE_FOLDERS)
    return tuple(dict.fromkeys(path for path in (pure, platform, *others) if os.path.isdir(path)))


def _package() -> str:
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _packages(package: str, site: tuple[str, ...]) -> list[str]:
    """What the child can import beside Python's own: this package, or nothing where a site folder has it, and those."""
    return ["" if os.path.dirname(package) in site else package, *site]


class Child:
    """The process that will be the worker, from birth to burial. Always `close` it."""

    def __init__(self, key: str, features: Features, *, warm: bool = False) -> None:
        """`warm`: it imports sandboxrun.worker while it waits for its plan, as most scripts will."""
        self.features = features
        try:
            with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
                born_with = self._make_descriptors(ours, theirs)
                words = [key, str(os.getpid()), *map(str, born_with)]
                words += _packages(_package(), _site_packages()) if warm else []
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-X", "utf8", _bootstrap(), *words],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={"LANG": "C.UTF-8"},
                    cwd="/",
                    pass_fds=born_with,
                    start_new_session=True,
                    bufsize=0,
                )
                self._ours = ours.pop_all()
        except OSError as error:
            raise SandboxError(f"cannot start {sys.executable}: {error.strerror}") from error
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self.stdin, self.output = self._process.stdin, (self._process.stdout, self._process.stderr)

    def _make_descriptors(self, ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int, int, int]:
        """The child's: where it writes to us, where it reads from us, its plan and its ruleset, both still empty."""
        # Questions are packets, so that what one thread or process writes is never mixed with another's; packets take
        # a page each, so answers, which must never wait for their reader, are none.
        read, questions = os.pipe2(os.O_CLOEXEC | os.O_DIRECT)
        theirs.callback(os.close, questions)
        self.questions = ours.enter_context(os.fdopen(read, "rb", buffering=0))
        answers, write = os.pipe2(os.O_CLOEXEC)
        theirs.callback(os.close, answers)
        self.answers = ours.enter_context(os.fdopen(write, "wb", buffering=0))
        for end in (read, write):
            os.set_blocking(end, False)
        self._plan = ours.enter_context(os.fdopen(os.memfd_create("plan", os.MFD_CLOEXEC), "wb"))
        ruleset = landlock.create_ruleset(**self.features.landlock_bits())
        self._ruleset = ours.enter_context(os.fdopen(ruleset, "rb", buffering=0))
        return questions, answers, self._plan.fileno(), ruleset

    def check_supervision(self) -> None:
        """Raise SandboxError where the host forbids to look into one's own child (Yama 2 or 3, some containers)."""
        try:
            os.close(pidfd_getfd(self.pidfd, 0))
            os.close(os.open(f"/proc/{self.pid}/mem", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise SandboxError(
                f"this host forbids to supervise a child ({error.strerror}): kernel.yama.ptrace_scope must be 0 or 1, "
                f"and a container must allow pidfd_getfd"
            ) from error

    def confine(
        self,
        policy: SandboxPolicy,
        script: Script,
        *,
        key: str,
        interpreter: Interpreter,
        scratch: str,
        env: dict[str, str],
        kept: Kept | None = None,
    ) -> int:
        """Write the plan and wait until the child has locked itself down; returns the seccomp listener descriptor.

        `kept`: where compiled filters are. Raises SandboxError where the kernel refuses a part of
        the boundary.
        """
        from sandboxrun.sandbox import filters

        with self._ruleset:
            landlock.add_rules(self._ruleset.fileno(), policy.rules(), fs=self.features.landlock_bits()["fs"])
        program = filters.program(policy.grants(self.features), kept)
        plan = {
            "bpf": filters.for_pid(program, self.pid),
            "rlimits": policy.rlimits,
            "scratch": scratch,
            "source": script.source,
            "name": script.name,
            "show_source": not script.is_file,
            "script_path": [script.folder] if script.folder else [],
            "key": key,
            "prefix": interpreter.prefix,
            "packages": _packages(interpreter.package, interpreter.site_packages),
            "env": env,
            "hints": {name: policy.limits.reached(name, key) for name in ("memory", "files", "scratch")},
        }
        try:
            with self._plan:
                marshal.dump(plan, self._plan)
            self.answers.write(b"plan")
        except OSError as error:
            raise SandboxError(f"the child ended before it was confined ({self._how_it_ended()})") from error
        trace.mark("plan written")
        listener = self._take_listener()
        trace.mark("listener taken")
        return listener

    def go(self) -> None:
        """Let the confined child run the script."""
        trace.mark("go")
        with contextlib.suppress(OSError):  # killed meanwhile: its pidfd tells
            self.answers.write(b"go")

    def hang_up(self) -> None:
        """Take no more questions: who asks still gets an error, not silence."""
        self.questions.close()
        self.answers.close()

    def signal(self, number: int) -> None:
        """Send a signal; by pidfd, so never to a stranger who got the same pid."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            pass

    def wait(self) -> int:
        """Reap the child; its exit code, or 128+n where signal n ended it."""
        code = self._process.wait()
        trace.mark("worker reaped")
        return 128 - code if code < 0 else code

    def cpu_seconds(self) -> float:
        """CPU time of the reaped child and of what it has reaped itself."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def close(self) -> None:
        """Kill and reap whatever is left."""
        if self._process.returncode is None:
            self.signal(signal.SIGKILL)
            self._process.wait()
        for file in (self.stdin, *self.output):
            file.close()
        self._ours.close()
        os.close(self.pidfd)

    def _take_listener(self) -> int:
        """The child keeps it open until it is told to go."""
        if not select.select([self.questions], [], [], READY_SECONDS)[0]:
            raise SandboxError(f"the child was not confined within {READY_SECONDS} s")
        message = self.questions.read(1024) or b""
        if message.startswith(b"ready "):
            try:
                fd, *looked = map(int, message[6:].split())
                for name, at in zip(
                    ("  child: bootstrap imported", "  child: plan read", "  child: confined"), looked, strict=True
                ):
                    trace.mark(name, at)
                return pidfd_getfd(self.pidfd, fd)
            except OSError as error:
                if not select.select([self.pidfd], [], [], 0)[0]:
                    raise SandboxError(f"the child's listener cannot be had: {error.strerror}") from error
        if message.startswith(b"fail "):
            raise SandboxError(f"the kernel refused a part of the sandbox: {message[5:].decode('utf-8', 'replace')}")
        raise SandboxError(f"the child ended before it was confined ({self._how_it_ended()})")

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return "it still runs"
        os.set_blocking(self.output[1].fileno(), False)
        last = (self.output[1].read(4096) or b"").decode("utf-8", "replace").strip().rpartition("\n")[2]
        return (f"signal {-code}" if code < 0 else f"exit code {code}") + (f": {last}" if last else "")


def _bootstrap() -> str:
    """The compiled bootstrap, where there is a current one: Python compiles a program anew at each start."""
    compiled = _external.cache_from_source(_BOOTSTRAP)
    source = os.stat(_BOOTSTRAP)
    # PEP 552: magic number, flags (0: checked by time), time and size of the source.
    current = _external.MAGIC_NUMBER + struct.pack("<III", 0, int(source.st_mtime) & 0xFFFFFFFF, source.st_size)
    with contextlib.suppress(OSError), open(compiled, "rb") as file:
        if file.read(16) == current:
            return compiled
    import py_compile

    with contextlib.suppress(OSError, py_compile.PyCompileError):  # a read-only installation
        mode = py_compile.PycInvalidationMode.TIMESTAMP
        return py_compile.compile(_BOOTSTRAP, compiled, doraise=True, invalidation_mode=mode) or _BOOTSTRAP
    return _BOOTSTRAP
