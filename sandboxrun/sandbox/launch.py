"""Start the child, hand it the plan, take over its listener. The child is started before anything is known of the
worker, so that both start-ups overlap; it holds neither secrets nor untrusted code until `go`."""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import signal
import socket
import subprocess
import sys
import sysconfig
from dataclasses import dataclass

from sandboxrun.errors import SandboxError
from sandboxrun.sandbox import landlock, seccomp
from sandboxrun.sandbox.policy import Interpreter, SandboxPolicy

_BOOTSTRAP = os.path.join(os.path.dirname(__file__), "bootstrap.py")
READY_SECONDS = 20  # a child that has not confined itself by then never will


@dataclass(frozen=True, slots=True)
class Script:
    """What the child runs: the supervisor's own, verified copy of the source, never a path to be read again."""

    source: bytes
    name: str  # shown in tracebacks; sys.argv[0] and __file__
    folder: str | None  # first on sys.path: a local worker's own folder
    is_file: bool  # whether `name` is a path whose source Python can read by itself


def this_interpreter() -> Interpreter:
    """The running interpreter's folders: the child runs the same one."""
    paths = sysconfig.get_paths()
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    site = dict.fromkeys(path for path in (paths["purelib"], paths["platlib"]) if os.path.isdir(path))
    for path in sys.path:  # Debian's dist-packages, --system-site-packages
        if os.path.basename(path) in ("site-packages", "dist-packages") and os.path.isdir(path):
            site[path] = None
    return Interpreter(
        prefix=sys.prefix,
        programs=tuple(
            os.path.dirname(program)
            for program in (sys.executable, os.path.realpath(sys.executable), os.path.abspath(sys.argv[0]))
        ),
        library=(paths["stdlib"], paths["platstdlib"]),
        site_packages=tuple(site),
        package=package,
    )


class Child:
    """The process that will be the worker, from birth to burial. Always `close` it."""

    def __init__(self, key: str) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        output = [_write_only(1), _write_only(2)]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", _BOOTSTRAP, key, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=output[0],
                stderr=output[1],
                env={"LANG": "C.UTF-8"},
                cwd="/",
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            self.control.close()
            raise SandboxError(f"cannot start {sys.executable}: {error.strerror}") from error
        finally:
            theirs.close()
            for fd in output:
                if fd is not None and fd >= 0:
                    os.close(fd)
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)
        assert self._process.stdin is not None
        self.stdin = self._process.stdin

    def confine(
        self,
        policy: SandboxPolicy,
        script: Script,
        *,
        key: str,
        interpreter: Interpreter,
        scratch: str,
        env: dict[str, str],
    ) -> int:
        """Send the plan and wait until the child has locked itself down; returns the seccomp listener descriptor.

        Raises SandboxError where the kernel refuses a part of the boundary.
        """
        rules = [(path, landlock.READ) for path in policy.read]
        rules += [(path, landlock.WRITE) for path in policy.write]
        ruleset = landlock.create_ruleset(rules, abi=landlock.kernel_abi())
        try:
            program = seccomp.compile_program(unix_sockets=policy.unix_socket is not None)
            in_site = os.path.dirname(interpreter.package) in interpreter.site_packages
            plan = {
                "bpf": seccomp.for_pid(program, self.pid),
                "rlimits": policy.rlimits,
                "scratch": scratch,
                "source": script.source,
                "name": script.name,
                "show_source": not script.is_file,
                "script_path": [script.folder] if script.folder else [],
                "key": key,
                "prefix": interpreter.prefix,
                "site_packages": list(interpreter.site_packages),
                "package": "" if in_site else interpreter.package,
                "env": env,
            }
            plan_fd = os.memfd_create("plan", os.MFD_CLOEXEC)
            with open(plan_fd, "wb") as file:
                marshal.dump(plan, file)
                file.flush()
                try:
                    socket.send_fds(self.control, [b"plan"], [plan_fd, ruleset])
                except OSError as error:
                    raise SandboxError(f"the child ended before it was confined ({self._how_it_ended()})") from error
        finally:
            os.close(ruleset)
        return self._receive_listener()

    def go(self) -> None:
        """Let the confined child run the script."""
        with contextlib.suppress(OSError):  # killed meanwhile: its pidfd tells
            self.control.send(b"go")
        self.control.setblocking(False)

    def signal(self, number: int) -> None:
        """Send a signal; by pidfd, so never to a stranger who got the same pid."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            pass

    def wait(self) -> int:
        """Reap the child; its exit code, or 128+n where signal n ended it."""
        code = self._process.wait()
        return 128 - code if code < 0 else code

    def close(self) -> None:
        """Kill and reap whatever is left."""
        if self._process.returncode is None:
            self.signal(signal.SIGKILL)
            self._process.wait()
        self.stdin.close()
        self.control.close()
        os.close(self.pidfd)

    def _receive_listener(self) -> int:
        if not select.select([self.control], [], [], READY_SECONDS)[0]:
            raise SandboxError(f"the child was not confined within {READY_SECONDS} s")
        message, fds, _, _ = socket.recv_fds(self.control, 1024, 1)
        if message == b"ready" and len(fds) == 1:
            return fds[0]
        for fd in fds:
            os.close(fd)
        if message.startswith(b"fail "):
            raise SandboxError(f"the kernel refused a part of the sandbox: {message[5:].decode('utf-8', 'replace')}")
        raise SandboxError(f"the child ended before it was confined ({self._how_it_ended()})")

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return "it still runs"
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def _write_only(fd: int) -> int | None:
    """Our standard output or error for the child; a terminal is opened anew for writing only.

    A shell's terminal descriptors can be read, and a process outside the terminal's session is not stopped from
    reading: the worker would see what the operator types.
    """
    try:
        return os.open(os.ttyname(fd), os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC) if os.isatty(fd) else None
    except OSError:
        return subprocess.DEVNULL
