"""The socket on which an agent says how it is, and its reader: STATE/agent/PID.sock, for this user and root alone.

Whoever connects gets the status as JSON, and then the end. The reader is `sandboxrun health`, which probes call often: it
takes _socket, because the module around it takes longer to import than all the rest.
"""

from __future__ import annotations

import _socket
import _thread
import os
import sys
import time

from sandboxrun.fleet.status import STATUS_MAX_BYTES, AgentStatus, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

SUFFIX = ".sock"
READ_SECONDS = 2.0  # for a whole status
WRITE_SECONDS = 2.0
READERS_MAX = 8
AGENTS_MAX = 64  # sockets that are tried
PATH_MAX_BYTES = 107  # sockaddr_un(7)


class StatusSocket:
    """Serves `status`, which is called from a thread for each reader; a slow one holds one of READERS_MAX, not the agent."""

    def __init__(self, folder: str, status: Callable[[], bytes]) -> None:
        """Listens at once. Raises OSError."""
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self._status = status
        self._places = [_thread.allocate_lock() for _ in range(READERS_MAX)]
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        self._closed = False
        # The socket has another name until nobody else can connect to it.
        self.path, made = (os.path.join(folder, f"{os.getpid()}{suffix}") for suffix in (SUFFIX, ".new"))
        try:
            _remove(made)
            with _short(folder, made) as path:
                self._socket.bind(path)
            os.chmod(made, 0o600)
            self._socket.listen(READERS_MAX)
            os.rename(made, self.path)
        except BaseException:
            self._socket.close()
            raise
        _thread.start_new_thread(self._accept, ())

    def close(self) -> None:
        self._closed = True
        _remove(self.path)
        try:
            self._socket.shutdown(_socket.SHUT_RDWR)  # which wakes accept
        except OSError:
            pass
        self._socket.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                fd, _ = self._socket._accept()  # type: ignore[attr-defined]  # which the public one calls too
            except OSError:
                time.sleep(0.1)  # there is no descriptor left, or it was closed
                continue
            client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
            if _user_of(client) not in (os.geteuid(), 0):
                client.close()
                continue
            place = next((place for place in self._places if place.acquire(False)), None)
            if place is None:
                client.close()
                continue
            try:
                _thread.start_new_thread(self._serve, (client, place))
            except RuntimeError:  # there is no thread left
                place.release()
                client.close()

    def _serve(self, client: _socket.socket, place: _thread.LockType) -> None:
        try:
            client.settimeout(WRITE_SECONDS)
            client.sendall(self._status())
        except OSError:
            pass
        finally:
            client.close()
            place.release()


def _user_of(client: _socket.socket) -> int:
    """Who has connected, whatever the modes of the folder and the socket are: SO_PEERCRED of unix(7), a struct ucred."""
    credentials = client.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], sys.byteorder)


class Cached:
    """What `make` returns, made again at most once in `seconds`, however many ask. From any thread."""

    def __init__(self, make: Callable[[], Any], seconds: float) -> None:
        self._make, self._seconds = make, seconds
        self._lock, self._until = _thread.allocate_lock(), 0.0
        self._value: Any = None

    def __call__(self) -> Any:
        with self._lock:
            now = time.monotonic()
            if now >= self._until:
                self._value, self._until = self._make(), now + self._seconds
            return self._value


def read_all(folder: str) -> Iterator[tuple[int, AgentStatus | str]]:
    """The pid of each agent of this user on this host, with its status, or with the reason why it gave none.

    Removes the socket of an agent that was killed."""
    for name in _names(folder):
        pid = int(name.removesuffix(SUFFIX))
        path = os.path.join(folder, name)
        try:
            data = _read(folder, path)
        except ConnectionRefusedError:
            _remove(path)
        except FileNotFoundError:
            pass
        except TimeoutError:
            yield pid, f"does not answer within {READ_SECONDS:g} s"
        except OSError as error:
            yield pid, f"cannot be asked: {error.strerror}"
        else:
            try:
                yield pid, parse(data)
            except ValueError as error:
                yield pid, f"answers what is no status: {error}"


def _names(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    found = (name for name in names if name.endswith(SUFFIX) and name[: -len(SUFFIX)].isdigit() and len(name) < 20)
    return sorted(found)[:AGENTS_MAX]


def _read(folder: str, path: str) -> bytes:
    """Raises OSError, TimeoutError."""
    until, parts, size = time.monotonic() + READ_SECONDS, [], 0
    made = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        made.settimeout(READ_SECONDS)
        with _short(folder, path) as name:
            made.connect(name)
        while size <= STATUS_MAX_BYTES:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            made.settimeout(left)
            part = made.recv(1 << 18)
            if not part:
                break
            parts.append(part)
            size += len(part)
    finally:
        made.close()
    return b"".join(parts)


class _short:
    """A path to the same socket that fits into its address, by a descriptor of the folder if it is too long."""

    def __init__(self, folder: str, path: str) -> None:
        self._folder, self._path, self._fd = folder, path, -1

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= PATH_MAX_BYTES:
            return self._path
        self._fd = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}/{os.path.basename(self._path)}"

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
