"""What the commands that read Redis share: a connection from --redis or REDIS_URL, and replies as text."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from sandboxrun.log import escape
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import ReplyError, refused

DEFAULT_URL = "redis://127.0.0.1:6379"


@contextlib.contextmanager
def connected(url: str | None) -> Iterator[Connection]:
    """Open while the block lasts. An error that Redis answers inside it is a StoreError."""
    # RESP2 whatever the URL says: the commands read replies in its shapes.
    connection = Connection(url or os.environ.get("REDIS_URL") or DEFAULT_URL, name="sandboxrun-cli", protocol=2)
    connection.open()
    try:
        yield connection
    except ReplyError as error:
        raise refused(error, connection.address.shown) from error
    finally:
        connection.close()


def text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def pairs(flat: Any) -> dict[str, str]:
    """Names and values, as text."""
    return {text(name): text(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}


def record(flat: Any) -> dict[str, Any]:
    """Names and values; numbers stay numbers."""
    return {
        text(n): value if isinstance(value, int | None) else text(value)
        for n, value in zip(flat[::2], flat[1::2], strict=True)
    }


def show_entry(xid: str, fields: dict[str, str]) -> None:
    print(escape(xid))
    for name, value in fields.items():
        print(escape(f"  {name:<22} {value if len(value) <= 400 else value[:397] + '...'}"))
