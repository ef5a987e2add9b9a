"""End a worker's wait for requests, so that it notices SIGTERM at once.

The worker itself names the connection on which it waits, and may name a stranger's. So Redis is asked first whose it is.
"""

from __future__ import annotations

import time

from sandboxrun.errors import StoreError
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import ReplyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

# The worker may be about to wait only. It waits two seconds by itself.
PAUSES_SECONDS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
LIST_MAX_BYTES = 16 * 1024


def unblock(connection: Connection, client: int, users: Collection[str]) -> None:
    """End the wait of the client number `client`, again and again until it is gone, if its user is one of `users`.

    Closes the connection. On a server before Redis 6.2, and for a login that may not, nothing is done: the worker's wait ends
    by itself.
    """
    try:
        connection.open()
        for seconds in PAUSES_SECONDS:
            time.sleep(seconds)
            found = connection.pipeline_within([("CLIENT", "LIST", "ID", client)], LIST_MAX_BYTES)
            if found is None or user_of(found[0], client) not in users:
                return
            if isinstance(connection.pipeline([("CLIENT", "UNBLOCK", client, "TIMEOUT")])[0], ReplyError):
                return
    except (StoreError, ReplyError):
        return  # Redis is away, and with it what the worker waits for
    finally:
        connection.close()


def user_of(reply: Any, client: int) -> str | None:
    """The user of this client, from a reply to CLIENT LIST; None if the reply is not about it alone.

    No value in it has a space or a line break, whatever a client has named itself.
    """
    if not isinstance(reply, bytes):
        return None
    lines = reply.removeprefix(b"txt:").decode("utf-8", "replace").splitlines()
    if len(lines) != 1:
        return None
    words = [word.partition("=")[::2] for word in lines[0].split(" ")]
    if dict(words).get("id") != str(client) or [name for name, _ in words].count("user") != 1:
        return None
    return dict(words)["user"]
