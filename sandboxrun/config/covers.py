"""Whether one entry of a permission list lies within another of the same kind. Pure.

The policy's ceiling and the comparison with the last approval ask this. The answer is yes only if the outer entry certainly
allows everything that the inner one allows; in doubt it is no.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from sandboxrun.config import keys
from sandboxrun.config.permissions import (
    KINDS,
    PROGRAM_FOLDERS,
    IPNetwork,
    Kind,
    ListenTarget,
    NetTarget,
    RedisTarget,
    is_public,
)
from sandboxrun.config.targets import block

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ANY = "*"  # in a policy, for kinds without wildcards: every entry of the kind
_ANY_ID = "\0"  # in a pattern of globs_meet; no key of a grant has it
ANY_PORT = -1  # in a policy, of a ListenTarget: every port of the address
# The IANA special-purpose registries, and the blocks that targets.is_public adds. If a block overlaps none of these, all of its
# addresses are public.
_NOT_PUBLIC = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16",
    "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24",
    "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
    "::/3", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "4000::/2", "8000::/1",
)  # fmt: skip


def covers(kind: str, outer: Any, inner: Any) -> bool:
    """Whether `outer` allows everything that `inner` allows. Both are parsed entries of one kind; `outer` may be ANY, or a
    ListenTarget with ANY_PORT."""
    if isinstance(outer, NetTarget):
        return _covers_net(outer, inner)
    if isinstance(outer, RedisTarget):
        return _covers_redis(outer, inner)
    if isinstance(outer, ListenTarget):
        return bool(outer.has_address(inner.address) and outer.port in (inner.port, ANY_PORT))
    if outer in (ANY, inner):
        return True
    if kind == Kind.RUN and "/" not in outer:  # a name stands for the program in any of these folders
        return inner in [f"{folder}/{outer}" for folder in PROGRAM_FOLDERS]
    return KINDS[kind].is_path and is_below(inner, outer)


def covered(kind: str, outers: Iterable[Any], inner: Any) -> bool:
    """Whether one of the outer entries covers the inner one."""
    return any(covers(kind, outer, inner) for outer in outers)


def is_below(path: str, folder: str) -> bool:
    """Whether a path is this folder or lies in it. Both are absolute, and compared as text."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def glob_covers(outer: str, inner: str) -> bool:
    """Whether every name that the pattern `inner` matches `outer` matches too. `*` is any text, `?` one character.

    The inner pattern is matched as text, and only a `*` matches its `*`. Backtracking goes no further than the last `*`, so no
    pattern costs more than the product of the lengths.
    """
    outer_index = inner_index = 0
    star = resume = -1
    while inner_index < len(inner):
        char = inner[inner_index]
        if outer_index < len(outer) and outer[outer_index] == "*":
            star, resume = outer_index, inner_index
            outer_index += 1
        elif outer_index < len(outer) and (outer[outer_index] == char or (outer[outer_index] == "?" and char != "*")):
            outer_index, inner_index = outer_index + 1, inner_index + 1
        elif star >= 0:
            resume += 1
            outer_index, inner_index = star + 1, resume
        else:
            return False
    return not outer[outer_index:].strip("*")


def writes_hash(pattern: str, type_: str) -> bool:
    """Whether a pattern of keys matches the name of a hash of workers of this type: `T:h`, or `T:ID:h` with any id."""
    return globs_meet(pattern, keys.type_key(type_)) or globs_meet(pattern, f"{type_}:{_ANY_ID}:h")


def globs_meet(a: str, b: str) -> bool:
    """Whether one name matches both patterns. `*` is any text, `?` one character, and _ANY_ID in `b` any text of an id.

    No pair of places is looked at twice, so the cost is at most the product of the lengths.
    """
    seen: set[tuple[int, int]] = set()
    todo = [(0, 0)]
    while todo:
        at = i, j = todo.pop()
        if at in seen:
            continue
        seen.add(at)
        if i == len(a) and j == len(b):
            return True
        left, right = a[i : i + 1], b[j : j + 1]
        if left == "*":
            todo.append((i + 1, j))
        if right in ("*", _ANY_ID):
            todo.append((i, j + 1))
        if left and right and _same_character(left, right):
            todo.append((i + (left != "*"), j + (right not in ("*", _ANY_ID))))
    return False


def _same_character(left: str, right: str) -> bool:
    if left in "*?" or right in "*?" or left == right:
        return True
    return right == _ANY_ID and keys.is_of_ids(left)


def _covers_net(outer: NetTarget, inner: NetTarget) -> bool:
    if outer.port is not None and outer.port != inner.port:
        return False
    if outer.network is not None:
        return inner.network is not None and _subnet(inner.network, outer.network)
    if inner.network is not None:
        return outer.host is None and outer.suffix is None and _all_public(inner.network)
    name = inner.host if inner.host is not None else inner.suffix
    if outer.host is not None:
        return inner.host == outer.host
    if outer.suffix is not None:
        return name is not None and name.endswith(outer.suffix)
    # `*` covers every name, because answers must be public. localhost is refused: it resolves to loopback (RFC 6761).
    return name is None or not f".{name}".endswith(".localhost")


def _subnet(inner: IPNetwork, outer: IPNetwork) -> bool:
    if isinstance(inner, ipaddress.IPv4Network):
        return isinstance(outer, ipaddress.IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, ipaddress.IPv6Network) and inner.subnet_of(outer)


def _all_public(network: IPNetwork) -> bool:
    if network.num_addresses == 1:
        return is_public(network.network_address)
    special = map(block, _NOT_PUBLIC)
    return not any(network.overlaps(each) for each in special if each.version == network.version)


def _covers_redis(outer: RedisTarget, inner: RedisTarget) -> bool:
    if outer.access == "command":
        command = inner.pattern in (outer.pattern, f"{outer.pattern}|{inner.pattern.partition('|')[2]}")
        return inner.access == "command" and (outer.pattern == ANY or command)
    if inner.access != outer.access and not (outer.access == "rw" and inner.access in ("r", "w")):
        return False
    return glob_covers(outer.pattern, inner.pattern)
