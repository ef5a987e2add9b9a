"""Attempts: the same code, run without and with the sandbox, and its outcome."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

CONFINE = Path(__file__).parents[1] / "kernel" / "confine.py"
FILTERS = tempfile.mkdtemp(prefix="sandboxrun-filters-")  # each test process compiles a filter once
atexit.register(shutil.rmtree, FILTERS, ignore_errors=True)
_PASSED = ("SANDBOXRUN_TESTS_MUTATE", "SANDBOXRUN_TEST_CHILD")  # to confine.py
# For a test of the fixture `arena`: in each kind of child of confine.py.
in_every_child = pytest.mark.parametrize("arena", ["spawned", "spare", "forked"], indirect=True)
SECONDS = 60  # for one attempt, which takes far less

_FRAME = """\
import errno, json, os, socket, sys
V = json.loads({variables!r})
def told(word):
    import time
    while not os.path.exists(word):
        time.sleep(0.005)
{code}
try:
    outcome = {{"value": attempt()}}
except OSError as error:
    outcome = {{"errno": errno.errorcode.get(error.errno, error.errno), "text": str(error)}}
os.write(1, b"OUTCOME " + json.dumps(outcome).encode() + b"\\n")
"""


@dataclass(frozen=True)
class Outcome:
    """`errno` is a name such as "EACCES", or None if the attempt returned `value`."""

    value: Any
    errno: str | None
    stderr: str
    code: int


class Arena:
    """Runs `def attempt(): …` with the variables V, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.scratch = folder / "scratch"
        self.scratch.mkdir(mode=0o700)
        self.env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(folder)}
        self.env |= {name: value for name, value in os.environ.items() if name in _PASSED}
        self.pass_fds: tuple[int, ...] = ()
        self.stdin: int | IO[str] = subprocess.DEVNULL
        self.under: Sequence[str] = ()  # a command that runs its arguments, for both kinds of attempt

    def unconfined(self, code: str, *, under: Sequence[str] = (), **variables: Any) -> Outcome:
        """`under`: a command that runs its arguments; it becomes the parent of the attempt."""
        script = self._write(code, variables)
        return self._run([*under, sys.executable, "-I", str(script)], cwd=self.scratch)

    def confined(
        self,
        code: str,
        *,
        allow: dict[str, str] | None = None,
        deny: dict[str, str] | None = None,
        redis: str | None = None,
        files: int | None = None,
        limits: dict[str, int] | None = None,
        missing: Sequence[str] = (),
        degraded: Sequence[str] = (),
        under: Sequence[str] = (),
        **variables: Any,
    ) -> Outcome:
        """`under`: a command that runs its arguments; it becomes the parent of the supervisor. The rest is as in confine.py."""
        command = self._confining(
            code,
            variables,
            allow=allow,
            deny=deny,
            redis=redis,
            files=files,
            limits=limits,
            missing=missing,
            degraded=degraded,
        )
        return self._run([*under, *command], cwd=self._folder)

    @contextlib.contextmanager
    def running(self, code: str, *, variables: dict[str, Any] | None = None, **spec: Any) -> Iterator[Running]:
        """The attempt, confined, in the background; `spec` as in `confined`. Everything is killed at the end."""
        command = self._confining(code, variables or {}, **spec)
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, cwd=self._folder, env=self.env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
        ) as process:
            found = Running(process, self.scratch)
            try:
                yield found
            finally:
                process.kill()

    def _confining(
        self,
        code: str,
        variables: dict[str, Any],
        *,
        allow: dict[str, str] | None = None,
        deny: dict[str, str] | None = None,
        redis: str | None = None,
        files: int | None = None,
        limits: dict[str, int] | None = None,
        missing: Sequence[str] = (),
        degraded: Sequence[str] = (),
    ) -> list[str]:
        spec = {
            "script": str(self._write(code, variables)),
            "scratch": str(self.scratch),
            "allow": allow or {},
            "deny": deny or {},
            "limits": limits or {},
            "missing": list(missing),
            "degraded": list(degraded),
            "filters": FILTERS,
        }
        if redis is not None:
            spec["redis"] = redis
        if files is not None:
            spec["files"] = files
        return [sys.executable, str(CONFINE), json.dumps(spec)]

    def refused(
        self,
        code: str,
        errno: str,
        *,
        works: Any,
        allow: dict[str, str] | None = None,
        deny: dict[str, str] | None = None,
        **variables: Any,
    ) -> Outcome:
        """The attempt returns `works` unconfined and fails with `errno` confined, from the same, empty scratch folder.

        The caller shows that nothing arrived on the other side. Returns the confined outcome.
        """
        free = self.unconfined(code, **variables)
        assert (free.errno, free.value) == (None, works), f"unconfined: {free}"
        self.empty_scratch()
        held = self.confined(code, allow=allow, deny=deny, **variables)
        assert (held.errno, held.value) == (errno, None), f"confined: {held}"
        return held

    def empty_scratch(self) -> None:
        for path in self.scratch.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _write(self, code: str, variables: dict[str, Any]) -> Path:
        script = self._folder / "attempt.py"
        script.write_text(_FRAME.format(variables=json.dumps(variables), code=textwrap.dedent(code)))
        return script

    def _run(self, command: list[str], cwd: Path) -> Outcome:
        done = subprocess.run(
            [*self.under, *command],
            cwd=cwd,
            env=self.env,
            pass_fds=self.pass_fds,
            stdin=self.stdin,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        return _outcome(done.stdout, done.stderr, done.returncode)


def _outcome(out: str, err: str, code: int) -> Outcome:
    lines = [line for line in out.splitlines() if line.startswith("OUTCOME ")]
    if len(lines) != 1:
        # A process that did not run the attempt is no refusal. An exec that succeeds leaves no line.
        return Outcome(None, "NO OUTCOME", err + out, code)
    outcome = json.loads(lines[0][len("OUTCOME ") :])
    return Outcome(outcome.get("value"), outcome.get("errno"), err, code)


class Running:
    """A running supervisor: the output of its worker, its descriptors, its processes."""

    def __init__(self, process: subprocess.Popen[str], scratch: Path) -> None:
        self.process, self._scratch = process, scratch

    def line(self) -> str:
        """The next line of the worker; empty if the worker ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def tell(self, word: str) -> None:
        """Let the worker go on that waits in `told(word)`."""
        (self._scratch / word).touch()

    def descriptors(self) -> int:
        """How many descriptors the supervisor has open, without those that it opens for a moment."""
        found = []
        for _ in range(10):
            found.append(len(os.listdir(f"/proc/{self.process.pid}/fd")))
            time.sleep(0.005)
        return min(found)

    def descendants(self) -> list[int]:
        """Pids of its children and of all their descendants."""
        parents: dict[int, list[int]] = {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(fields[1]), []).append(int(name))
        found = [self.process.pid]
        for pid in found:
            found += parents.get(pid, [])
        return found[1:]

    def end(self) -> Outcome:
        """Wait for the supervisor to end."""
        out, err = self.process.communicate(timeout=SECONDS)
        return _outcome(out, err, self.process.returncode)


class Listener:
    """A TCP or Unix stream listener that answers "hello" and keeps what it receives."""

    def __init__(self, family: int = socket.AF_INET, address: Any = ("127.0.0.1", 0)) -> None:
        self._socket = socket.socket(family)
        self._socket.bind(address)
        self._socket.listen(64)
        self.connections = 0
        self.received = b""
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def address(self) -> Any:
        return self._socket.getsockname()

    @property
    def port(self) -> int:
        return int(self.address[1])

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            peer.settimeout(5)
            peer.sendall(b"hello")
            self.received += peer.recv(4096)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


def wait_for(condition: Callable[[], object], seconds: float = 10, what: str = "it") -> None:
    """Wait until `condition` is true. A failure names `what`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}, longer than {seconds:g} s"
        time.sleep(0.01)


def needs_ipv6() -> None:
    """Skip the test on a machine without IPv6, such as a container by default."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"no IPv6 on this machine: {error.strerror}")


@contextlib.contextmanager
def listening(family: int = socket.AF_INET, address: Any = ("127.0.0.1", 0)) -> Iterator[Listener]:
    if family == socket.AF_INET6:
        needs_ipv6()
    listener = Listener(family, address)
    try:
        yield listener
    finally:
        listener.close()


@contextlib.contextmanager
def full_backlog() -> Iterator[int]:
    """A loopback port that drops SYNs: nobody accepts and the queue is full, so a connect hangs."""
    with socket.socket() as server, contextlib.ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        time.sleep(0.05)
        yield server.getsockname()[1]
