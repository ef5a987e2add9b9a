"""The Redis users of one run: made before the worker starts, made again if they vanish, removed at the end.

acl.py makes their rules. Every function here raises ConnectionLost, and ReplyError as Redis answers it.
"""

from __future__ import annotations

import _thread
import contextlib

from sandboxrun.errors import SandboxError, StoreError
from sandboxrun.redis.acl import Identity, Owner, User
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import PID_FIELDS, holder, is_alive, start_time
from sandboxrun.redis.replies import ReplyError, raise_errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from sandboxrun.redis.address import Address

SELECTORS_SINCE = 7  # the first Redis whose ACL has selectors; every Valkey says it is one
STALE_SECONDS = 3600  # no start takes so long: a user this old belongs to no run that is about to begin
REDIS_ACL = "redis-acl"  # for --allow-degraded
REDIS_PASSWORD = "redis-password"  # noqa: S105 - the name of what is missing


class Users:
    """The users of one run. `lock` is held while they are made or removed: the watch makes them from its own thread."""

    def __init__(self) -> None:
        self.lock = _thread.allocate_lock()
        self._users: tuple[User, ...] = ()
        self._rivals: list[str] = []  # users of other runs of the same worker
        self._ended = False

    def __bool__(self) -> bool:
        return bool(self._users)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the users that have to be there now."""
        return () if self._ended else tuple(user.name for user in self._users)

    def admit(self, connection: Connection, identity: Identity, owner: Owner, *, selectors: bool) -> tuple[User, ...]:
        """Make them: one, or on a server without `selectors` two or three (Identity).

        Users that killed supervisors have left are removed. Raises SandboxError if the login may not manage users.
        """
        users = (identity.user,) if selectors else identity.without_selectors
        self._users = users  # from here on they may exist
        *replies, names = connection.pipeline([*map(_set_user, users), ("ACL", "USERS")])
        try:
            raise_errors([*replies, names])
        except ReplyError as error:
            with contextlib.suppress(ReplyError, StoreError):  # of two, one may exist
                self.dismiss(connection)
            self._users = ()
            raise _no_acl(connection, error) from error
        ours = {user.name for user in users}
        others = [text for name in names if (text := _text(name)) not in ours]
        _remove(connection, _dead(connection, owner, others))
        self._rivals = [name for name in others if (of := Owner.of_user(name)) is not None and of.key == owner.key]
        return users

    def end(self) -> None:
        """From now on, the users are not made again."""
        self._ended = True

    def dismiss(self, connection: Connection) -> None:
        """Remove the users, which ends their connections."""
        with self.lock:
            if self._users:
                raise_errors(connection.pipeline(self.removal()))
                self.forget()

    def removal(self) -> list[tuple[str, ...]]:
        """The commands that remove them, for a caller that holds `lock` and calls `forget` afterwards."""
        return [("ACL", "DELUSER", *(user.name for user in self._users))] if self._users else []

    def forget(self) -> None:
        self._users = ()

    def readmit(self, connection: Connection) -> None:
        """Make the users again, unless the run has ended."""
        with self.lock:
            for user in self._users if not self._ended else ():
                connection.call(*_set_user(user))

    def dismiss_rivals(self, connection: Connection) -> None:
        """Remove the users of the runs that this one took the worker over from: their connections end at once."""
        rivals, self._rivals = self._rivals, []
        with contextlib.suppress(ReplyError, StoreError):  # a worker also ends by the token that it finds
            _remove(connection, rivals)


def leftover(connection: Connection, asking: Owner, *, remove: bool = False) -> list[str]:
    """The users that killed supervisors have left, as `Users.admit` would remove them. `asking`: whoever asks, now."""
    (names,) = raise_errors(connection.pipeline([("ACL", "USERS")]))
    dead = _dead(connection, asking, [_text(name) for name in names])
    if remove:
        _remove(connection, dead)
    return dead


def has_selectors(hello: Any) -> bool:
    """From HELLO's answer: a map, or in RESP2 its names and values in a list."""
    if isinstance(hello, list):
        hello = dict(zip(hello[::2], hello[1::2], strict=True))
    if not isinstance(hello, dict):
        return False
    major = hello.get(b"version", b"").partition(b".")[0]
    return major.isdigit() and int(major) >= SELECTORS_SINCE


def _dead(connection: Connection, asking: Owner, names: Sequence[str]) -> list[str]:
    """Those whose supervisor is dead."""
    owners = [(name, Owner.of_user(name)) for name in names]
    return [name for name, owner in owners if owner is not None and not _may_live(connection, owner, asking)]


def _may_live(connection: Connection, owner: Owner, asking: Owner) -> bool:
    if owner.host == asking.host:
        return start_time(owner.pid) == owner.started
    # Of another host, or of this one before it was booted: its worker's lease tells, once it must have one.
    if abs(asking.made - owner.made) < STALE_SECONDS:
        return True
    values, time = raise_errors(connection.pipeline([("HMGET", owner.key, *PID_FIELDS), ("TIME",)]))
    return is_alive(holder(values), owner.key, int(time[0]))


def _remove(connection: Connection, names: Sequence[str]) -> None:
    if names:
        raise_errors(connection.pipeline([("ACL", "DELUSER", *names)]))


def _set_user(user: User) -> tuple[str, ...]:
    return "ACL", "SETUSER", user.name, *user.rules


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _no_acl(connection: Connection, error: Exception) -> SandboxError:
    login = connection.address.user or "default"
    return SandboxError(
        f"the Redis login {login[:80]!r} may not make a user for the worker ({str(error)[:160]})",
        hint=acl_hint(connection.address, login),
    )


def acl_hint(address: Address, login: str) -> str:
    """For an administrator of Redis; --allow-degraded=redis-acl would give the worker this login itself."""
    from shlex import quote

    from sandboxrun.redis.address import client_options

    server = f"{client_options(address)} --user ADMIN --pass PASSWORD"
    return f"redis-cli {server} ACL SETUSER {quote(login)} '+acl|setuser' '+acl|deluser' '+acl|users'"
