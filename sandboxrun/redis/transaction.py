"""Optimistic transactions: WATCH, read, decide, MULTI … EXEC, and again if a watched key has changed meanwhile.

Source: redis.io/docs/latest/develop/using-commands/transactions.
"""

from __future__ import annotations

from sandboxrun.errors import ConnectionLost, SandboxrunError
from sandboxrun.redis.replies import ReplyError, raise_errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from sandboxrun.redis.connection import Connection

    Commands = Sequence[Sequence[str | bytes | int]]

TRIES = 100  # against others who change the same key


def optimistic(
    connection: Connection,
    watched: Sequence[str],
    decide: Callable[[list[Any]], Commands],
    *,
    reads: Commands = (),
    tries: int = TRIES,
    reopen: bool = False,
) -> bool:
    """Carry out the commands that `decide` returns, all or none, if no watched key changes meanwhile.

    `decide` takes the replies to `reads`, may read more over the same connection, which must not be opened again for that,
    and is called again after a change. If it returns no commands, nothing is written. `reopen`: connect again, once a try,
    if the connection is lost before `decide` is called. Returns False if a watched key has changed at each of the `tries`.
    Raises ConnectionLost, ReplyError, and what `decide` raises.
    """
    for _ in range(tries):
        begin: Commands = [("WATCH", *watched), *reads]
        replies = _again(connection, begin) if reopen else connection.pipeline(begin)
        try:
            commands = decide(raise_errors(replies)[1:])
        except (SandboxrunError, ReplyError):
            _unwatch(connection)
            raise
        if not commands:
            _unwatch(connection)
            return True
        replies = raise_errors(connection.pipeline([("MULTI",), *commands, ("EXEC",)]))
        if replies[-1] is not None:
            raise_errors(replies[-1])
            return True
    return False


def _again(connection: Connection, commands: Commands) -> list[Any]:
    try:
        return connection.pipeline(commands)
    except ConnectionLost:
        connection.open()
        return connection.pipeline(commands)


def _unwatch(connection: Connection) -> None:
    """Else the connection's next transaction would depend on these keys. Without a connection, none is watched."""
    try:
        if connection.is_open:
            connection.pipeline([("UNWATCH",)])
    except ConnectionLost:
        pass
