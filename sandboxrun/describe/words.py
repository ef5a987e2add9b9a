"""Permissions in words. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from sandboxrun.config.permissions import KINDS, VERDICTS, ListenTarget, NetTarget, RedisTarget, parse_list
from sandboxrun.config.worker import Asked
from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@record
class Line:
    """One entry of what is granted or denied: `verdict` and `kind` of it, in `words`, and the field or flag where it stands."""

    verdict: str
    kind: str
    target: Any
    words: str
    where: str


def lines(asked: Asked) -> list[Line]:
    """All that a hash grants and denies, as it lists it."""
    found = []
    for verdict in VERDICTS:
        for kind in KINDS:
            for name, target, where in entries(asked, verdict, kind):
                found.append(Line(verdict, name, target, _WORDS[name](target), where))
    return found


def entries(asked: Asked, verdict: str, kind: str) -> Iterator[tuple[str, Any, str]]:
    """Kind, entry, and where it stands."""
    for listed, name, text, where in asked.lists:
        if (listed, name) == (verdict, kind):
            for target in parse_list(KINDS[kind], text, where):
                yield name, target, where


def always(key: str, shared: str, redis: str) -> list[str]:
    """What every worker has. `redis`: where its Redis is."""
    return [
        "its own scratch folder (HOME, TMPDIR), which is removed afterwards",
        "reading Python, its libraries, certificates and time zones, and its own script",
        f"Redis at {redis}, under a login of its own: its streams, writing res:* and req:*:h, reading {key} and {shared}",
        "the variables PATH, LANG, HOME, TMPDIR and REDIS_URL",
    ]


def default_policy(kind: str, data: str) -> str:
    """What a hash may be granted of a kind where no policy file says. `data`: the worker's own data folder."""
    return _DEFAULTS[kind].format(data)


_DEFAULTS: Mapping[str, str] = {
    "net": "hosts and single addresses; no wildcards, no blocks, none where clouds keep credentials",
    "read": "what is in {}",
    "write": "what is in {}",
    "run": "nothing",
    "listen": "nothing",
    "env": "nothing",
    "redis": "keys and channels without a wildcard in front of the first colon; no commands",
}


def _net(target: NetTarget) -> str:
    port = "any port" if target.port is None else f"port {target.port}"
    if target.network is not None:
        single = target.network.num_addresses == 1
        what = str(target.network.network_address) if single else f"all addresses of {target.network}"
    elif target.host is not None:
        what = target.host
    else:
        what = f"every name below {target.suffix[1:]}" if target.suffix else "every public address"
    return f"connect to {what}, {port}"


def _listen(target: ListenTarget) -> str:
    port = "a port that the kernel chooses" if target.port == 0 else f"port {target.port}"
    every = (
        "on all IPv4 addresses of this machine" if target.address.version == 4 else "on all addresses of this machine"
    )
    reach = every if target.address.is_unspecified else f"on {target.address}"
    who = "from this machine only" if target.address.is_loopback else "from wherever it can be reached"
    return f"listen {reach}, {port}, {who}"


_REDIS: Mapping[str, str] = {
    "rw": "read and write the Redis keys {}",
    "r": "read the Redis keys {}",
    "w": "write the Redis keys {}",
    "channel": "publish and subscribe to the Redis channel {}",
    "command": "use the Redis command {}",
}


def _redis(target: RedisTarget) -> str:
    return _REDIS[target.access].format(target.pattern)


_WORDS: Mapping[str, Callable[[Any], str]] = {
    "net": _net,
    "read": "read {} and what is below it".format,
    "write": "write, make and remove {} and what is below it".format,
    "run": "run the program {}, in the same sandbox".format,
    "listen": _listen,
    "env": "see the variable {} of the operator's environment".format,
    "redis": _redis,
}
