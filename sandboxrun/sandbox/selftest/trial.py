"""What the attempts of `sandboxrun check` are aimed at, and the two ways they are run: as a plain process and confined."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sandboxrun.config.limits import Limits
from sandboxrun.config.permissions import Kind, NetTarget, Permissions, Verdict
from sandboxrun.errors import SandboxError
from sandboxrun.files import Kept
from sandboxrun.log import Log
from sandboxrun.sandbox.compile import policy
from sandboxrun.sandbox.compile.features import Features
from sandboxrun.sandbox.supervisor.child import Child, Confinement, Script, this_interpreter
from sandboxrun.sandbox.supervisor.supervisor import Supervisor

_ATTEMPTS = os.path.join(os.path.dirname(__file__), "attempts.py")
_KEY = "sandboxrun-check:1:h"
_SECONDS = 60  # for a row of attempts; they take a tenth of one, or twenty on a machine with much else to do
_LIMITS = Limits(memory=1 << 30, threads=16, files=64, scratch=1 << 20, time=_SECONDS)
_DEATH_SECONDS = 10.0
_DESCRIPTOR = 250  # high, so that it is nobody else's
_LAST = "other_table"  # ends the worker, so it has one of its own


class World:
    """What the attempts are aimed at, made for each of the two runs. `arrived`: whether something did, by attempt."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.arrived: dict[str, Callable[[], bool]] = {}

    def __enter__(self) -> World:
        with contextlib.ExitStack() as stack:
            self.folder = os.path.realpath(stack.enter_context(folder()))
            self.scratch, outside = f"{self.folder}/scratch", f"{self.folder}/outside"
            for made in (self.scratch, outside):
                os.mkdir(made, 0o700)
            self.results = f"{self.scratch}/results"
            readable = self._file(f"{outside}/truncate_readable")
            terminal, other_end = os.openpty()
            stack.callback(os.close, terminal)
            stack.callback(os.close, other_end)
            os.set_blocking(terminal, False)
            name = "SANDBOXRUN_CHECK_VARIABLE"
            os.environ[name] = "of the operator's"
            stack.callback(os.environ.pop, name)
            self._inherited(stack, readable)
            victim, to_kill = (stack.enter_context(_victim()) for _ in range(2))
            with open(f"/proc/{victim.pid}/maps") as maps:
                address = int(maps.read().partition("-")[0], 16)
            self.variables: dict[str, Any] = {
                "ports": {p: self._listener(stack, p) for p in ("tcp", "tcp_race", "tcp_fast_open", "granted", "granted_tcp")},
                "unix": self._unix_by_path(stack, outside),
                "unix_abstract": self._unix(stack, "unix_abstract", f"\0{os.path.basename(self.folder)}")[1:],
                "files": {
                    p: self._file(f"{outside}/{p}")
                    for p in ("read", "read_by_symlink", "write", "truncate", "change_mode", "remove", "move", "hard_link")
                },
                "outside": outside,
                "readable": readable,
                "terminal": os.ttyname(other_end),
                "victim": victim.pid,
                "to_kill": to_kill.pid,
                "address": address,
                "supervisor": os.getpid(),
                "variable": name,
                "descriptor": _DESCRIPTOR,
                "limits": {name: getattr(_LIMITS, name) for name in ("memory", "threads", "files", "scratch")},
                "results": self.results,
            }  # fmt: skip
            self.variables["ports"]["udp"] = self._udp(stack)
            niceness = os.getpriority(os.PRIO_PROCESS, victim.pid)
            core = _core_limit(victim.pid)
            self.arrived |= {
                "create": lambda: os.path.exists(f"{outside}/created"),
                "terminal": lambda: _readable(terminal),
                "kill": lambda: to_kill.poll() is not None,
                "slow_down_another": lambda: os.getpriority(os.PRIO_PROCESS, victim.pid) != niceness,
                "limit_another": lambda: _core_limit(victim.pid) != core,
                "execute": lambda: os.path.exists(f"{self.scratch}/executed"),
            }
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def try_all(self, names: Iterable[str], run: Callable[[], int | None]) -> dict[str, str]:
        """The outcome of each attempt. Two rows of them: the second is the one that ends a worker."""
        outcomes: dict[str, str] = {}
        for row in ([name for name in names if name != _LAST], [_LAST]):
            if row == [_LAST] and os.uname().machine != "x86_64":
                outcomes[_LAST] = "ENOSYS"  # no such table to be misused
                continue
            self.variables["attempts"] = row
            code = run()
            with contextlib.suppress(FileNotFoundError), open(self.results) as results:
                outcomes |= dict(json.loads(line) for line in results)
            if row == [_LAST] and code == 128 + signal.SIGSYS:
                outcomes[_LAST] = "SIGSYS"
        return outcomes

    def run_free(self) -> None:
        """As a plain process of this user."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [sys.executable, "-I", "-S", _ATTEMPTS],
                env=os.environ | {"CHECK": self._instructions(apart=True)},
                cwd=self.scratch,
                pass_fds=(_DESCRIPTOR,),
                stdin=subprocess.DEVNULL,
                timeout=_SECONDS,
                check=False,
            )

    def run_confined(self, kernel: Features, kept: Kept) -> int:
        """As a worker; its exit code. Raises SandboxError."""
        with open(_ATTEMPTS, "rb") as file:
            source = file.read()
        return _run_worker(
            source,
            scratch=self.scratch,
            env={"CHECK": self._instructions(apart=False)},
            net=[f"127.0.0.1:{self.variables['ports'][name]}" for name in ("granted", "granted_tcp")],
            read=self.variables["readable"],
            kernel=kernel,
            kept=kept,
        )

    def _instructions(self, *, apart: bool) -> str:
        path = f"{self.scratch}/instructions"
        with open(path, "w") as file:
            json.dump(self.variables | {"apart": apart}, file)
        return path

    def _listener(self, stack: contextlib.ExitStack, name: str) -> int:
        sock = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
        sock.setblocking(False)
        self.arrived[name] = lambda: _accepted(sock)
        return int(sock.getsockname()[1])

    def _unix(self, stack: contextlib.ExitStack, name: str, address: str) -> str:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.bind(address)
        sock.listen()
        sock.setblocking(False)
        self.arrived[name] = lambda: _accepted(sock)
        return address

    def _unix_by_path(self, stack: contextlib.ExitStack, folder: str) -> str:
        """Relative to the scratch folder: a whole path may be too long for an address."""
        fd = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        try:
            self._unix(stack, "unix", f"/proc/self/fd/{fd}/socket")
        finally:
            os.close(fd)
        return f"../{os.path.basename(folder)}/socket"

    def _udp(self, stack: contextlib.ExitStack) -> int:
        sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.bind(("127.0.0.1", 0))
        self.arrived["udp"] = lambda: _readable(sock.fileno())
        return int(sock.getsockname()[1])

    def _file(self, path: str) -> str:
        with open(path, "w") as file:
            file.write("private")
        os.chmod(path, 0o600)
        before = _state(path)
        if not os.path.basename(path).startswith("read"):
            self.arrived[os.path.basename(path)] = lambda: _state(path) != before
        return path

    def _inherited(self, stack: contextlib.ExitStack, path: str) -> None:
        fd = os.open(path, os.O_RDONLY)
        os.dup2(fd, _DESCRIPTOR, inheritable=True)
        os.close(fd)
        stack.callback(os.close, _DESCRIPTOR)


def _run_worker(
    source: bytes,
    *,
    scratch: str,
    env: Mapping[str, str],
    kernel: Features,
    kept: Kept,
    net: Sequence[str] = (),
    read: str = "",
    confined: Callable[[Child], None] = lambda child: None,
) -> int:
    """Run `source` as `sandboxrun` runs a worker, but for Redis; its exit code. `confined` is called once it is."""
    interpreter = this_interpreter()
    built = policy.build(
        Permissions.parse(
            [(Verdict.ALLOW, Kind.NET, ",".join(net), "check"), (Verdict.ALLOW, Kind.READ, read, "check")]
        ),
        key=_KEY,
        interpreter=interpreter,
        scratch=scratch,
        local_source=None,
        redis=NetTarget.parse("127.0.0.1:1"),
        protected=(),
        limits=_LIMITS,
    )
    confinement = Confinement(
        key=_KEY,
        policy=built,
        script=Script(source, _ATTEMPTS, None, None, is_file=True),
        interpreter=interpreter,
        scratch=scratch,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": scratch, "TMPDIR": scratch, **env},
        kept=kept,
    )
    child = Child(_KEY, kernel)
    try:
        child.stdin.close()
        child.check_supervision()
        listener = child.confine(confinement)
        log = Log(stream=io.StringIO())  # refusals are what is wanted here
        supervisor = Supervisor(child, listener, confinement, trusted=None, log=log)
        confined(child)
        try:
            return supervisor.serve()
        finally:
            supervisor.close()
    finally:
        child.close()


def outlives_supervisor(kernel: Features, kept: Kept) -> str:
    """Kill a supervisor of our own by SIGKILL and see whether its worker ends: "ended" or "works". Raises SandboxError."""
    read, write = os.pipe()
    with contextlib.closing(os.fdopen(read, "rb")) as told, folder() as scratch:
        supervisor = os.fork()
        if supervisor == 0:
            _be_killed(write, scratch, kernel, kept)
        os.close(write)
        try:
            line = told.readline().decode()
            if not line.startswith("pid "):
                raise SandboxError(line.strip() or "the supervisor ended")
            worker = os.pidfd_open(int(line[4:]))
            deadline = time.monotonic() + _DEATH_SECONDS
            while not os.path.exists(f"{scratch}/running") and time.monotonic() < deadline:
                time.sleep(0.002)
        finally:
            os.kill(supervisor, signal.SIGKILL)
            os.waitpid(supervisor, 0)
        try:
            if select.select([worker], [], [], _DEATH_SECONDS)[0]:
                return "ended"
            signal.pidfd_send_signal(worker, signal.SIGKILL)
            return "works"
        finally:
            os.close(worker)


def _be_killed(write: int, scratch: str, kernel: Features, kept: Kept) -> None:
    """In the forked process: supervise a worker that sleeps."""

    def tell(text: str) -> None:
        os.write(write, text.encode() + b"\n")

    try:
        source = b"import time\nopen('running', 'x').close()\ntime.sleep(60)\n"
        confined = lambda child: tell(f"pid {child.pid}")  # noqa: E731
        _run_worker(source, scratch=scratch, env={}, kernel=kernel, kept=kept, confined=confined)
    except Exception as error:
        tell(str(error))
    finally:
        os._exit(1)


@contextlib.contextmanager
def _victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the same user that waits for our end."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "import sys; print(flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def folder() -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="sandboxrun-check-")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _state(path: str) -> object:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mode, found.st_nlink


def _core_limit(pid: int) -> tuple[int, int]:
    return resource.prlimit(pid, resource.RLIMIT_CORE)


def _accepted(sock: socket.socket) -> bool:
    try:
        sock.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def _readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])
