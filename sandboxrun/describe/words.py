"""Permissions in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sandboxrun.config.permissions import Kind, ListenTarget, NetTarget, RedisTarget, Verdict, parse_list
from sandboxrun.config.worker import Asked
from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@record
class Line:
    """One entry that grants or denies: its `verdict` and `kind`, in `words`, and the field or flag that has it."""

    verdict: Verdict
    kind: Kind
    target: Any
    words: str
    where: str


def lines(asked: Asked) -> list[Line]:
    """Everything that a hash grants and denies, in its order."""
    found = []
    for verdict in Verdict:
        for kind in Kind:
            for target, where in entries(asked, verdict, kind):
                found.append(Line(verdict, kind, target, kind.words.format(_in_words(target)), where))
    return found


def entries(asked: Asked, verdict: Verdict, kind: Kind) -> Iterator[tuple[Any, str]]:
    """Each entry, and where it stands."""
    for said, name, text, where in asked.lists:
        if said == verdict and name == kind:
            for target in parse_list(kind, text, where):
                yield target, where


def always(key: str, shared: str, redis: str) -> list[str]:
    """What every worker has. `redis`: the URL of its Redis."""
    return [
        "its own scratch folder (HOME, TMPDIR), which is removed afterwards",
        "reading Python, its libraries, certificates and time zones, and its own script",
        f"Redis at {redis}, under a login of its own: its streams, writing res:* and req:*:h, reading {key} and {shared}",
        "the variables PATH, LANG, HOME, TMPDIR and REDIS_URL",
    ]


def _in_words(target: Any) -> str:
    """An entry, as part of the words of its kind."""
    if isinstance(target, NetTarget):
        return _net(target)
    if isinstance(target, ListenTarget):
        return _listen(target)
    if isinstance(target, RedisTarget):
        return _REDIS[target.access].format(target.pattern)
    return str(target)


def _net(target: NetTarget) -> str:
    port = "any port" if target.port is None else f"port {target.port}"
    if target.network is not None:
        single = target.network.num_addresses == 1
        what = str(target.network.network_address) if single else f"all addresses of {target.network}"
    elif target.host is not None:
        what = target.host
    else:
        what = f"every name below {target.suffix[1:]}" if target.suffix else "every public address"
    return f"{what}, {port}"


def _listen(target: ListenTarget) -> str:
    port = "a port that the kernel chooses" if target.port == 0 else f"port {target.port}"
    every = (
        "on all IPv4 addresses of this machine" if target.address.version == 4 else "on all addresses of this machine"
    )
    reach = every if target.address.is_unspecified else f"on {target.address}"
    who = "from this machine only" if target.address.is_loopback else "from wherever it can be reached"
    return f"{reach}, {port}, {who}"


_REDIS: Mapping[str, str] = {
    "rw": "read and write the Redis keys {}",
    "r": "read the Redis keys {}",
    "w": "write the Redis keys {}",
    "channel": "publish and subscribe to the Redis channel {}",
    "command": "use the Redis command {}",
}
