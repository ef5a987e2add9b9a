"""Runs in the worker's process: a script that speaks the protocol by hand may set `pid` of its own hash.

The supervisor has set `pid` already, and a worker's login cannot write its hash. So redis-py reads instead and gives the same
answer: 0 for the HSET of a field that exists, and for HDEL whether it existed. A convenience: the boundary is the login.
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
