"""Runs in the supervisor: hands the child its plan, takes its listener, signals it and reaps it.

The child is spawned before anything is known of the worker (spawn.py), so that both start-ups overlap; it holds neither
secrets nor untrusted code until `go`. This package never imports child/, which that process runs.

No descriptor is ever sent. The child is spawned with all that it needs, and the supervisor takes the listener by
pidfd_getfd(2): so nothing between the two can carry a descriptor, in either direction, and the kernel's limit on how many
of a user's descriptors may be under way (ETOOMANYREFS, unix(7)), which any program of the same user can exhaust, keeps
nobody from starting.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # signal makes enums of all numbers at each start
import contextlib
import marshal
import os
import resource
import select
import site
import sys

from sandboxrun import timing
from sandboxrun.errors import SandboxError
from sandboxrun.records import record
from sandboxrun.sandbox.compile import landlock
from sandboxrun.sandbox.compile.features import Features
from sandboxrun.sandbox.supervisor import spawn
from sandboxrun.sandbox.supervisor.spawn import SITE_FOLDERS, Birth
from sandboxrun.sandbox.syscalls import pidfd_getfd

# What a policy is made of is imported while the child starts, and so by those who need it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.files import Kept
    from sandboxrun.sandbox.compile.policy import Interpreter, SandboxPolicy

READY_SECONDS = 20  # a child that has not confined itself by then never will


@record
class Script:
    """What the child runs: the supervisor's own, verified copy of the source, never a path to be read again."""

    source: bytes
    name: str  # shown in tracebacks; sys.argv[0] and __file__
    folder: str | None  # first on sys.path: a local worker's own folder
    code: bytes | None  # the source's, marshalled, for this interpreter; None: the child compiles it
    is_file: bool  # whether `name` is a path whose source Python can read by itself


def this_interpreter() -> Interpreter:
    """The running interpreter's folders: the child runs the same one."""
    from sandboxrun.sandbox.compile.policy import Interpreter

    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = (os.path.dirname(os.__file__), f"{sys.base_exec_prefix}/{sys.platlibdir}/{version}")
    programs = (sys.executable, os.path.realpath(sys.executable), os.path.abspath(sys.argv[0]))
    searched, mixed = _searched()
    return Interpreter(
        prefix=sys.prefix,
        programs=(*programs, *map(os.path.dirname, programs)),
        library=library,
        site_packages=spawn.site_packages(),
        package=spawn.package(),
        searched=searched,
        mixed=mixed,
    )


def _searched() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Folders on PATH and on Python's path, and where it keeps compiled modules, there or not: what the next start runs.

    The second are those that may hold data beside: a project's on PYTHONPATH or installed in place, the current one for
    `python -m` or an empty entry, the root. There only what has a module's name is code.
    """
    try:
        here = os.getcwd()
    except OSError:  # removed: nothing is found in it
        here = ""
    code: dict[str, None] = {site.getusersitepackages(): None}
    if sys.pycache_prefix is not None:
        code[os.path.join(here, sys.pycache_prefix)] = None
    mixed: dict[str, None] = {}
    for entry in sys.path:
        (code if os.path.basename(entry) in SITE_FOLDERS else mixed)[os.path.join(here, entry)] = None
    for entry in os.environ.get("PATH", os.defpath).split(os.pathsep):
        (mixed if entry in ("", ".", "/") else code)[os.path.join(here, entry)] = None
    return tuple(filter(os.path.isabs, code)), tuple(filter(os.path.isabs, mixed))


class Child:
    """The worker process, from spawn to reap. Always `close` it."""

    def __init__(self, key: str, features: Features, born: Birth | None = None, *, warm: bool = False) -> None:
        """`born`: it was started already. Raises SandboxError if it cannot be. `warm`: see Birth."""
        self.features = features
        try:
            born = born or Birth(key, warm=warm)
        except OSError as error:
            raise SandboxError(f"cannot start {sys.executable}: {error.strerror}") from error
        self.pid, self.pidfd = born.pid, born.pidfd
        self._code: int | None = None  # its exit code, once it has been waited for
        with contextlib.ExitStack() as ours:
            ours.callback(os.close, born.pidfd)
            self.stdin = ours.enter_context(os.fdopen(born.stdin, "wb", buffering=0))
            self.output = tuple(
                ours.enter_context(os.fdopen(fd, "rb", buffering=0)) for fd in (born.stdout, born.stderr)
            )
            self.questions = ours.enter_context(os.fdopen(born.questions, "rb", buffering=0))
            self.answers = ours.enter_context(os.fdopen(born.answers, "wb", buffering=0))
            self._plan = ours.enter_context(os.fdopen(born.plan, "wb"))
            for file in (self.questions, self.answers):
                os.set_blocking(file.fileno(), False)
            self._ours = ours.pop_all()

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
        inspect: tuple[str, int, bool] | None = None,
        token: str = "",
    ) -> int:
        """Write the plan and wait until the child has locked itself down; returns the seccomp listener descriptor.

        `kept`: where compiled filters are. `inspect`: where a debugger listens, host and port, and whether the script
        waits for its client. `token`: of this run. Raises SandboxError where the kernel refuses a part of the boundary.
        """
        from sandboxrun.sandbox.compile import filters

        program = filters.program(policy.grants(self.features), kept)
        plan = {
            "bpf": filters.for_pid(program, self.pid),
            "landlock": {**self.features.landlock_bits(), "on_files": landlock.ON_FILES},
            "rules": [(os.fsencode(path), access) for path, access in policy.rules()],
            "rlimits": policy.rlimits,
            "scratch": scratch,
            "source": script.source,
            "code": script.code,
            "name": script.name,
            "show_source": not script.is_file,
            "script_path": [script.folder] if script.folder else [],
            "key": key,
            "prefix": interpreter.prefix,
            "env": env,
            "inspect": inspect,
            "token": token,
            "hints": {name: policy.limits.reached(name, key) for name in ("memory", "files", "scratch")},
        }
        try:
            with self._plan:
                marshal.dump(plan, self._plan)
            self.answers.write(b"plan")
        except OSError as error:
            raise SandboxError(f"the child ended before it was confined ({self._how_it_ended()})") from error
        timing.mark("plan written")
        listener = self._take_listener()
        timing.mark("listener taken")
        return listener

    def go(self) -> None:
        """Let the confined child run the script."""
        timing.mark("go")
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
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            timing.mark("worker reaped")
        return 128 - self._code if self._code < 0 else self._code

    @property
    def is_reaped(self) -> bool:
        return self._code is not None

    def cpu_seconds(self) -> float:
        """CPU time of the reaped child and of what it has reaped itself."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def close(self) -> None:
        """Kill and reap whatever is left."""
        if self._code is None:
            self.signal(signal.SIGKILL)
            self.wait()
        self._ours.close()

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
                    timing.mark(name, at)
                return pidfd_getfd(self.pidfd, fd)
            except OSError as error:
                if not select.select([self.pidfd], [], [], 0)[0]:
                    raise SandboxError(f"the child's listener cannot be had: {error.strerror}") from error
        if message.startswith(b"fail "):
            raise SandboxError(f"the kernel refused a part of the sandbox: {message[5:].decode('utf-8', 'replace')}")
        raise SandboxError(f"the child ended before it was confined ({self._how_it_ended()})")

    def _how_it_ended(self) -> str:
        if not select.select([self.pidfd], [], [], 2)[0]:
            return "it still runs"
        code = self.wait()
        os.set_blocking(self.output[1].fileno(), False)
        last = (self.output[1].read(4096) or b"").decode("utf-8", "replace").strip().rpartition("\n")[2]
        return (f"signal {code - 128}" if code > 128 else f"exit code {code}") + (f": {last}" if last else "")
