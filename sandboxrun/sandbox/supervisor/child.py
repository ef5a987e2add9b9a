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
import select
import site
import sys

from sandboxrun import timing
from sandboxrun.errors import SandboxError
from sandboxrun.records import record
from sandboxrun.sandbox.compile import landlock
from sandboxrun.sandbox.compile.features import Features
from sandboxrun.sandbox.supervisor import spawn
from sandboxrun.sandbox.supervisor.spawn import SITE_FOLDERS, Spawned
from sandboxrun.sandbox.syscalls import pidfd_getfd

# What a policy is made of is imported while the child starts, and so by those who need it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandboxrun.files import Kept
    from sandboxrun.sandbox.compile.policy import Interpreter, SandboxPolicy
    from sandboxrun.sandbox.supervisor.health import Health

READY_SECONDS = 20  # a child that has not confined itself by then never will


@record
class Script:
    """What the child runs: the supervisor's own, verified copy of the source, never a path to be read again."""

    source: bytes
    name: str  # shown in tracebacks; sys.argv[0]
    folder: str | None  # first on sys.path: a local worker's own folder, or the one with the files of a fetched script
    code: bytes | None  # the source's, marshalled, for this interpreter; None: the child compiles it
    is_file: bool  # whether `name` is a path whose source Python can read by itself
    path: str = ""  # __file__, if it is not the name
    packages: tuple[str, ...] | None = (
        None  # of a script with a block: the folders of its packages; no others are on sys.path
    )
    declared: tuple[str, ...] = ()  # its dependencies


@record
class Confinement:
    """What one child is confined with, and what it runs."""

    key: str  # the worker's hash
    policy: SandboxPolicy
    script: Script
    interpreter: Interpreter
    scratch: str  # the folder of this run
    env: dict[str, str]
    kept: Kept | None = None  # compiled filters of earlier runs
    inspect: tuple[str, int, bool] | None = None  # host and port of a debugger, and whether the script waits for it
    token: str = ""  # of this run
    clock: float | None = None  # the time that the script has, for tests: seconds since 1970
    seed: int | None = None  # of its random numbers, for tests


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


def _no_supervision(error: OSError) -> SandboxError:
    scope = b"0"
    with contextlib.suppress(OSError), open("/proc/sys/kernel/yama/ptrace_scope", "rb") as file:
        scope = file.read(8).strip()
    forbidden = f"this host forbids to supervise a child ({error.strerror})"
    if scope == b"3":
        return SandboxError(
            f"{forbidden}: kernel.yama.ptrace_scope is 3, which only a restart of the machine can change"
        )
    if scope == b"2":
        return SandboxError(
            f"{forbidden}: kernel.yama.ptrace_scope is 2, and 0 or 1 is needed",
            hint="sudo sysctl -w kernel.yama.ptrace_scope=1",
        )
    return SandboxError(
        f"{forbidden}: a security module of the host, such as AppArmor or SELinux, denies ptrace(2) of one's own child"
    )


def readable(fd: int, seconds: float) -> bool:
    """Whether there is something to read within so many seconds; select(2) would take no descriptor above 1023."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


class Child:
    """The worker process, from spawn to reap. Always `close` it."""

    def __init__(self, key: str, features: Features, spawned: Spawned | None = None, *, warm: bool = False) -> None:
        """`spawned`: the process, if it was started already. `warm`: see Spawned. Raises SandboxError."""
        self.features = features
        try:
            spawned = spawned or Spawned(key, warm=warm)
        except OSError as error:
            raise SandboxError(f"cannot start {sys.executable}: {error.strerror}") from error
        self.pid, self.pidfd, self._health = spawned.pid, spawned.pidfd, spawned.health
        self._code: int | None = None  # its exit code, once it has been waited for
        self._cpu = 0.0  # seconds, then
        with contextlib.ExitStack() as ours:
            for fd in (spawned.pidfd, spawned.health):
                ours.callback(os.close, fd)
            self.stdin = ours.enter_context(os.fdopen(spawned.stdin, "wb", buffering=0))
            self.output = tuple(
                ours.enter_context(os.fdopen(fd, "rb", buffering=0)) for fd in (spawned.stdout, spawned.stderr)
            )
            self.questions = ours.enter_context(os.fdopen(spawned.questions, "rb", buffering=0))
            self.answers = ours.enter_context(os.fdopen(spawned.answers, "wb", buffering=0))
            self._plan = ours.enter_context(os.fdopen(spawned.plan, "wb"))
            for file in (self.questions, self.answers):
                os.set_blocking(file.fileno(), False)
            self._ours = ours.pop_all()

    def check_supervision(self) -> None:
        """Raise SandboxError if the host forbids to look into one's own child (Yama 2 or 3, some containers)."""
        try:
            os.close(pidfd_getfd(self.pidfd, 0))
            os.close(os.open(f"/proc/{self.pid}/mem", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise _no_supervision(error) from error

    def confine(self, confinement: Confinement, *, meanwhile: Callable[[], None] = lambda: None) -> int:
        """Write the plan and wait until the child has locked itself down; returns the seccomp listener descriptor.

        `meanwhile` is called before the wait. Raises SandboxError if the kernel refuses a part of the boundary.
        """
        from sandboxrun.sandbox.compile import filters

        policy, script, key = confinement.policy, confinement.script, confinement.key
        program = filters.program(policy.grants(self.features), confinement.kept)
        plan = {
            "bpf": filters.for_pid(program, self.pid),
            "landlock": {**self.features.landlock_bits(), "on_files": landlock.ON_FILES},
            "rules": [(os.fsencode(path), access) for path, access in policy.rules()],
            "rlimits": policy.rlimits,
            "scratch": confinement.scratch,
            "source": script.source,
            "code": script.code,
            "name": script.name,
            "show_source": not script.is_file,
            "script_path": [script.folder] if script.folder else [],
            "file": script.path or script.name,
            "packages": None if script.packages is None else list(script.packages),
            "declared": list(script.declared),
            "sites": list(confinement.interpreter.site_packages),
            "key": key,
            "prefix": confinement.interpreter.prefix,
            "env": confinement.env,
            "inspect": confinement.inspect,
            "token": confinement.token,
            "clock": confinement.clock,
            "seed": confinement.seed,
            "hints": {name: policy.limits.reached(name, key) for name in ("memory", "files", "scratch")},
        }
        try:
            with self._plan:
                marshal.dump(plan, self._plan)
            self.answers.write(b"plan")
        except OSError as error:
            raise SandboxError(f"the child ended before it was confined ({self._last_words()})") from error
        timing.mark("plan written")
        meanwhile()
        listener = self._take_listener()
        timing.mark("listener taken")
        return listener

    def go(self) -> None:
        """Let the confined child run the script."""
        timing.mark("go")
        with contextlib.suppress(OSError):  # killed meanwhile: its pidfd tells
            self.answers.write(b"go")

    def health(self) -> Health:
        """What the worker says of itself now."""
        from sandboxrun.sandbox.supervisor.health import Page

        return Page(self._health).read()

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
        """Reap the child; its exit code, or 128+n if signal n ended it."""
        if self._code is None:
            _, status, used = os.wait4(self.pid, 0)  # its usage alone: this process may have other children
            self._code, self._cpu = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
            timing.mark("worker reaped")
        return 128 - self._code if self._code < 0 else self._code

    @property
    def ended_by(self) -> int:
        """The signal that ended the reaped child; 0 if it has exited."""
        return -self._code if self._code is not None and self._code < 0 else 0

    @property
    def is_reaped(self) -> bool:
        return self._code is not None

    def cpu_seconds(self) -> float:
        """CPU time of the reaped child and of what it has reaped itself."""
        return self._cpu

    def close(self) -> None:
        """Kill and reap whatever is left."""
        if self._code is None:
            self.signal(signal.SIGKILL)
            self.wait()
        self._ours.close()

    def _take_listener(self) -> int:
        """The child keeps it open until it is told to go."""
        if not readable(self.questions.fileno(), READY_SECONDS):
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
                if not readable(self.pidfd, 0):
                    raise SandboxError(f"the child's listener cannot be taken: {error.strerror}") from error
        if message.startswith(b"fail "):
            raise SandboxError(f"the kernel refused a part of the sandbox: {message[5:].decode('utf-8', 'replace')}")
        raise SandboxError(f"the child ended before it was confined ({self._last_words()})")

    def _last_words(self) -> str:
        if not readable(self.pidfd, 2):
            return "it still runs"
        code = self.wait()
        os.set_blocking(self.output[1].fileno(), False)
        last = (self.output[1].read(4096) or b"").decode("utf-8", "replace").strip().rpartition("\n")[2]
        return (f"signal {code - 128}" if code > 128 else f"exit code {code}") + (f": {last}" if last else "")
