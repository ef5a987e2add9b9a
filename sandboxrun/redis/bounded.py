"""Whoever can write to Redis must not fill our memory: what comes is bounded, and what was too much is named."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sandboxrun.errors import ConfigError, ConnectionLost
from sandboxrun.redis.connection import Connection


@contextlib.contextmanager
def bounded(connection: Connection, most: int, what: str, mend: str) -> Iterator[None]:
    """While the block lasts, at most so many bytes come. Raises ConfigError for more; then the connection is closed."""
    connection.receive_most = connection.received + most
    try:
        yield
    except ConnectionLost as error:
        if connection.received <= connection.receive_most:
            raise
        raise ConfigError(f"{what} more than {most >> 20} MiB: {mend}") from error
    finally:
        connection.receive_most = 0
