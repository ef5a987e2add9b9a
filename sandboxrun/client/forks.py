"""The process that a connection belongs to: after fork(2) a child must not use the connections of its parent."""

from __future__ import annotations

import os
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Inherited(Protocol):
        def abandon(self) -> None: ...


generation = 0  # changes in each forked child; a comparison is cheaper than getpid(2) for each call
_connections: weakref.WeakSet[Inherited] = weakref.WeakSet()
_kept: list[Any] = []


def register(connection: Inherited) -> None:
    """Call `connection.abandon()` in each child that this process forks from now on."""
    _connections.add(connection)


def keep(*inherited: object) -> None:
    """Keep objects of the parent for ever, because their finalizers would act on resources that both processes share."""
    _kept.append(inherited)


def _in_child() -> None:
    global generation
    generation += 1
    for connection in list(_connections):
        try:
            connection.abandon()
        except OSError:
            pass  # it is not used again in any case
    _connections.clear()


os.register_at_fork(after_in_child=_in_child)
