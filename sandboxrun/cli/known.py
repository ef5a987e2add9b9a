"""The types of worker that Redis knows, looked up before a request is sent to nobody. Changes nothing."""

from __future__ import annotations

import contextlib
import time

from sandboxrun.config import keys
from sandboxrun.errors import ConfigError, StoreError
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import ReplyError

CONNECT_SECONDS = 2.0
SCAN_SECONDS = 0.25  # a small database is scanned whole within it; from a part of a large one nothing follows
SCAN_COUNT = 1000
SCAN_MAX_BYTES = 8 * 1024 * 1024


def types_instead_of(url: str, type_: str) -> tuple[str, list[str]] | None:
    """Where Redis is, and the types that it knows, if it has no hash and no stream of this one.

    None if it has one, or if that is not certain: Redis is away, the login may not ask, or there are too many keys.
    """
    connection = Connection(url, name="sandboxrun-cli", seconds=CONNECT_SECONDS, protocol=2)
    with contextlib.suppress(StoreError, ReplyError), contextlib.closing(connection):
        connection.open()
        needed = (keys.request_stream(type_), keys.type_key(type_), keys.worker_key(type_, "1"))
        replies = connection.pipeline([("EXISTS", key) for key in needed])
        if any(reply != 0 for reply in replies):  # or an error, because the login may not ask
            return None
        types = _types(connection)
        if types is not None and type_ not in types:
            return connection.address.shown, sorted(types)
    return None


def _types(connection: Connection) -> set[str] | None:
    """Those that have a hash or a request stream; None if not all keys were seen. Raises ReplyError."""
    types: set[str] = set()
    cursor, until = b"0", time.monotonic() + SCAN_SECONDS
    while True:
        command = ("SCAN", cursor, "MATCH", "*:[hx]", "COUNT", SCAN_COUNT)
        replies = connection.pipeline_within([command], SCAN_MAX_BYTES)
        if replies is None:
            return None
        cursor, names = connection.checked(replies[0])
        types.update(filter(None, map(_type_of, names)))
        if cursor == b"0":
            return types
        if time.monotonic() >= until:
            return None


def _type_of(key: bytes) -> str | None:
    """Of TYPE:h, TYPE:ID:h and TYPE:req:x."""
    type_, *rest = key.decode("utf-8", "replace").split(":")
    if (rest[-1:] != ["h"] and rest != ["req", "x"]) or len(rest) > 2:
        return None
    try:
        return keys.check_type(type_)
    except ConfigError:
        return None
