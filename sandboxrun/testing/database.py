"""A database of a Redis that others may use too, for tests."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from sandboxrun.errors import StoreError
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import ReplyError
from sandboxrun.testing.keyspace import MARK, SCAN_COUNT


@contextlib.contextmanager
def borrowed(url: str) -> Iterator[None]:
    """Take a database that is empty, and empty it again at the end. Raises StoreError.

    Workers choose the names of their keys, so tests cannot keep to some of the names.
    """
    connection = Connection(url, name="sandboxrun-test", protocol=2)
    connection.open()
    with contextlib.closing(connection):
        _take(connection)
        try:
            yield
        finally:
            _empty(connection)


def _take(connection: Connection) -> None:
    shown = f"the database {connection.address.db} of Redis at {connection.address.shown}"
    try:
        if connection.call("SET", MARK, os.getpid(), "NX") is None:
            raise StoreError(
                f"{shown} is used by other tests, or by some that were killed: it has the key {MARK}",
                hint=f"redis-cli -u {_url(connection)}/{connection.address.db} DEL {MARK}",
            )
        count = connection.call("DBSIZE") - 1
        if count:
            connection.call("DEL", MARK)
            raise StoreError(
                f"{shown} has {count} key{'s' * (count > 1)}: expected an empty one, because tests remove all that is there",
                hint=f"sandboxrun test FOLDER --redis {_url(connection)}/{_free(connection)}",
            )
    except ReplyError as error:
        raise StoreError(f"{shown} refuses a command: {str(error)[:200]}") from None


def _url(connection: Connection) -> str:
    """Without the password."""
    scheme, _, place = connection.address.shown.partition("://")
    return f"{scheme}://{':PASSWORD@' if connection.address.password else ''}{place}"


def _free(connection: Connection) -> int:
    """The number of a database that has no keys."""
    used: bytes = connection.call("INFO", "keyspace")
    return next(number for number in range(1, len(used) + 2) if b"db%d:" % number not in used)


def _empty(connection: Connection) -> None:
    """Remove what is there, and the mark last: all of it came after the mark."""
    if not connection.is_open:
        connection.open()
    cursor = b"0"
    while True:
        cursor, names = connection.call("SCAN", cursor, "COUNT", SCAN_COUNT)
        keys = [name for name in names if name != MARK.encode()]
        if keys:
            connection.call("UNLINK", *keys)
        if cursor == b"0":
            break
    connection.call("DEL", MARK)
