"""Runs in the worker's process: lets a script that speaks the protocol by hand set `pid` of its own hash, which the
supervisor has set already.

A worker's login cannot write its hash, and setting a field to the value that it has changes nothing: so redis-py is told to ask
instead, which gives the same answer (HSET of a field that is there: 0; HDEL: whether it was there). A convenience: the boundary
is the login.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def wrap(commands: Any, key: str, pid: int) -> None:
    """`commands`: redis-py's class HashCommands. `key`: the worker's hash."""
    keys, pids = (key, key.encode()), (pid, str(pid), b"%d" % pid)
    hset, hdel = commands.hset, commands.hdel

    def own_hset(
        client: Any, name: Any, key: Any = None, value: Any = None, mapping: Any = None, items: Any = None
    ) -> Any:
        if name in keys and not items:
            pairs = {**(mapping or {}), **({key: value} if key is not None else {})}
            if len(pairs) == 1 and all(k in ("pid", b"pid") and v in pids for k, v in pairs.items()):
                return client.execute_command("HSTRLEN", name, "")  # of no field: 0
        return hset(client, name, key, value, mapping, items)

    def own_hdel(client: Any, name: Any, *fields: Any) -> Any:
        if name in keys and fields in (("pid",), (b"pid",)):
            return client.execute_command("HEXISTS", name, "pid")
        return hdel(client, name, *fields)

    commands.hset, commands.hdel = own_hset, own_hdel
