"""What a supervisor does in Redis: read the hashes, make the worker's user, hold `pid` as long as the worker runs.

The parts are hashes.py, users.py, claim.py and watch.py; this file has the connection that they share. It is one of our own:
redis-py takes longer to import than all else that a start does.
"""

from __future__ import annotations

import _thread
import contextlib
from collections.abc import Callable, Iterator

from sandboxrun.errors import ConnectionLost
from sandboxrun.redis import claim, users
from sandboxrun.redis.acl import Identity, Owner, User
from sandboxrun.redis.address import Address
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.hashes import Hashes, read_for_start
from sandboxrun.redis.lease import PID_FIELDS, Run
from sandboxrun.redis.replies import ReplyError, Within, refused
from sandboxrun.redis.watch import Loss, Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

DEFAULT_URL = "redis://127.0.0.1:6379"
TIMEOUT_SECONDS = 5.0
# Of the replies to one method: whoever can write to Redis must not fill our memory. More than a start reads of the hashes,
# because what was too large in them is looked for afterwards.
BLOCK_MAX_BYTES = 32 * 1024 * 1024
# The first command of a connection, before the login, to learn whether the server requires one: it changes nothing.
PROBE = ("HDEL", "sandboxrun:probe:h", "pid")
_PID_FIELDS = frozenset(name.encode() for name in PID_FIELDS)


def is_open(reply: Any) -> bool:
    """Whether a server that replies this to PROBE accepts commands without a login."""
    return not (isinstance(reply, ReplyError) and str(reply).startswith(("NOAUTH", "NOPERM")))


class Store:
    """A connection to Redis. Every method raises StoreError if Redis cannot be reached or refuses."""

    def __init__(self, url: str) -> None:
        """Raises UsageError for an invalid URL."""
        self.url = url
        self._connection = self._new_connection()
        self._connection.ask_first = PROBE
        self._selectors = False  # whether this server's ACL has them; known once the hashes were read
        self._users = users.Users()
        self._closing = _thread.allocate_lock()  # held until it closes: to wait for it with a time-out
        self._closing.acquire()
        self._closed = False

    @property
    def address(self) -> Address:
        return self._connection.address

    @property
    def open_to_all(self) -> bool:
        """Whether this server accepts commands without a login, because its user `default` has no password: then a worker
        does not depend on the login that it is given. Known once it is connected."""
        return is_open(self._connection.first)

    def connect(self) -> None:
        with self._asking():
            pass

    def hashes(self, type_: str, id_: str) -> Hashes:
        """`TYPE:h` and `TYPE:ID:h` with the fields that a start reads, in one round trip.

        Raises ConfigError for a key that is no hash and for a hash that is too large, and AlreadyRunningError, naming the
        process, if the worker runs.
        """
        with self._asking() as connection:
            hashes, (hello,) = read_for_start(connection, type_, id_, also=[("HELLO",)])
        self._selectors = users.has_selectors(hello)
        for stored in (hashes.shared, hashes.own):
            stored.check()
        claim.check_free(hashes.own.key, hashes.holder, hashes.now)
        return hashes

    def read(self, type_: str, id_: str) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
        """The fields of `hashes`, without those of `pid`. Raises as it does."""
        hashes = self.hashes(type_, id_)
        return _without_pid(hashes.shared.fields), _without_pid(hashes.own.fields)

    def admit(self, identity: Identity, owner: Owner) -> tuple[User, ...]:
        """Make the run's users: one, or on a server without selectors two or three (Identity).

        Users that killed supervisors have left are removed. Raises SandboxError if the login may not manage users.
        """
        with self._asking() as connection:
            return self._users.admit(connection, identity, owner, selectors=self._selectors)

    def dismiss(self) -> None:
        """Remove the run's users, which ends their connections."""
        self._close()
        if not self._users:
            return
        try:
            with self._asking() as connection:
                self._users.dismiss(connection)
        except ConnectionLost:  # the run may have been long, and the server restarted meanwhile
            with self._asking() as connection:
                self._users.dismiss(connection)

    def ask(self, commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
        """The replies to reading commands, errors among them."""
        with self._asking() as connection:
            return connection.pipeline(commands)

    def leftover(self, ours: Owner, *, remove: bool = False) -> list[str]:
        """The users that killed supervisors have left, as `admit` would remove them. `ours`: whoever asks, now."""
        with self._asking() as connection:
            return users.leftover(connection, ours, remove=remove)

    def claim(self, run: Run, *, version: str) -> None:
        """Set `pid` unless a living worker has it; of two that try at once, one succeeds.

        Raises AlreadyRunningError, ConfigGone.
        """
        with self._asking() as connection:
            claim.claim(connection, run, version=version)
            self._users.dismiss_rivals(connection)

    def release(self, run: Run) -> Loss | None:
        """Remove `pid`, and the fields beside it, if they are still this run's, and the run's users; ends the watch.

        Returns why the run had lost its `pid`, if it had.
        """
        self._close()
        with self._users.lock, self._asking() as connection:
            loss, done = claim.release(connection, run, self._users.removal())
            if done:
                self._users.forget()
        return loss

    def watch(self, run: Run, *, lost: Callable[[Loss], None], warn: Callable[[str], None]) -> None:
        """Start a thread that calls `lost` once when `pid` is removed or changed. An outage of Redis does not count."""
        connection = self._new_connection()
        ended = lambda seconds: self._closing.acquire(timeout=seconds)  # noqa: E731
        Watch(connection, run, lost=lost, warn=warn, readmit=self._users.readmit, ended=ended).start()

    def unblock(self, client: int) -> None:
        """Start a thread that ends the worker's wait for requests on its connection number `client`; none of another user."""
        from sandboxrun.redis.unblock import unblock

        if self._users:
            _thread.start_new_thread(unblock, (self._new_connection(), client, self._users.names))

    def close(self) -> None:
        self._close()
        self._connection.close()

    def _close(self) -> None:
        self._users.end()
        if not self._closed:
            self._closed = True
            self._closing.release()

    def _new_connection(self) -> Connection:
        return Connection(self.url, name="sandboxrun", seconds=TIMEOUT_SECONDS)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[Connection]:
        """The open connection. Errors of Redis in the block become StoreErrors, and its replies are bounded."""
        try:
            with self._lent() as connection, Within(connection, BLOCK_MAX_BYTES):
                yield connection
        except ReplyError as error:
            raise refused(error, self.address.shown) from error

    @contextlib.contextmanager
    def _lent(self) -> Iterator[Connection]:
        if not self._connection.is_open:
            self._connection.open()
        yield self._connection


def _without_pid(fields: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    return {name: value for name, value in fields.items() if name not in _PID_FIELDS}
