"""Whether a worker may do something, and which entry of which field decides it. Paths are decided by the policy that a run
would give the kernel, everything else by permissions.py. Pure, except that symlinks are followed."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable

from sandboxrun.config import keys
from sandboxrun.config.covers import covers
from sandboxrun.config.permissions import (
    PROGRAM_FOLDERS,
    Kind,
    ListenTarget,
    NetTarget,
    Permissions,
    RedisTarget,
    Verdict,
    below_data,
    is_own_data,
    is_public,
)
from sandboxrun.describe.question import ALWAYS_ENV, Question, address_of, parts_of
from sandboxrun.describe.words import entries
from sandboxrun.records import never, record
from sandboxrun.sandbox.compile.paths import follow, within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sandboxrun.config.worker import WorkerConfig
    from sandboxrun.sandbox.compile.policy import SandboxPolicy


class Ruling(enum.StrEnum):
    """Whether an act is possible."""

    ALLOWED = "allowed"
    DENIED = "denied"  # an entry forbids it
    MISSING = "missing"  # no entry grants it
    REFUSED = "refused"  # an entry grants it, and the operator's policy does not allow that entry


@record
class Decision:
    """`verdict` by the hash alone, so never REFUSED. `entry` and `where` name the entry that decides; if none does, both are
    empty, and `why` gives the reason."""

    verdict: Ruling
    entry: str = ""
    where: str = ""
    why: str = ""


def decide(
    question: Question, config: WorkerConfig, policy: SandboxPolicy | None, redis: NetTarget | str, data: str
) -> Decision:
    """`policy`: None if it cannot be built. `redis`: its endpoint, or the path of its socket. `data`: the folder of ~data."""
    kind, target = question.kind, question.target
    match kind:
        case Kind.NET:
            return _net(target, config, redis)
        case Kind.LISTEN:
            return _listen(target, config)
        case Kind.ENV:
            return _env(target, config)
        case Kind.REDIS:
            return _redis(target, config)
        case Kind.CALL:
            return _call(target, config)
        case Kind.RUN:
            return _run(target, config, policy)
        case Kind.READ | Kind.WRITE:
            return _path(kind, below_data(target, data), config, policy, data)
        case _:
            raise never(kind)


def _found(config: WorkerConfig, verdict: Verdict, kind: Kind, test: Any) -> Decision | None:
    """The first entry that passes the test, as a decision."""
    for entry, where in entries(config.asked, verdict, kind):
        if test(entry):
            return Decision(Ruling.ALLOWED if verdict is Verdict.ALLOW else Ruling.DENIED, str(entry), where)
    return None


def _first(*found: Decision | None, otherwise: str = "") -> Decision:
    return next((one for one in found if one is not None), Decision(Ruling.MISSING, why=otherwise))


def _net(target: NetTarget, config: WorkerConfig, redis: NetTarget | str) -> Decision:
    address, name, port = address_of(target), target.host, target.port or 0
    other = (
        Decision(Ruling.ALLOWED, why="it is the worker's Redis, which is always granted") if target == redis else None
    )
    if address is not None:
        names = (name,) if name is not None else ()
        denied = _found(
            config, Verdict.DENY, Kind.NET, lambda t: _only(t, denied=True).denies_net(address, port, names)
        )
        if name is not None and not any(
            entry.matches_name(name) for entry in config.permissions.allow.get(Kind.NET, ())
        ):
            return _first(denied, other, otherwise="the name itself has to be listed for it to be resolved")
        granted = _found(config, Verdict.ALLOW, Kind.NET, lambda t: _only(t).allows_net(address, port, names, names))
        why = "" if is_public(address) else "an address that is not public has to be listed itself"
        return _first(denied, granted, other, otherwise=why)

    def meets(entry: NetTarget) -> bool:
        return entry.matches_name(name or "") and entry.port in (None, port)

    denied, granted = _found(config, Verdict.DENY, Kind.NET, meets), _found(config, Verdict.ALLOW, Kind.NET, meets)
    if granted is not None:
        why = "as far as it resolves to public addresses; others have to be listed themselves"
        if any(entry.network is not None for entry in config.permissions.deny.get(Kind.NET, ())):
            why += ", and none that denyNet lists"
        granted = Decision(granted.verdict, granted.entry, granted.where, why)
    return _first(denied, granted, other)


def _only(entry: NetTarget, *, denied: bool = False) -> Permissions:
    """Permissions of this one entry, to see whether it is what decides."""
    return Permissions(deny={Kind.NET: (entry,)}) if denied else Permissions({Kind.NET: (entry,)})


def _listen(target: ListenTarget, config: WorkerConfig) -> Decision:
    asked = target.address, target.port
    refuses = lambda entry: Permissions(deny={Kind.LISTEN: (entry,)}).denies_listen(*asked, both=True)  # noqa: E731
    covers = lambda entry: Permissions({Kind.LISTEN: (entry,)}).allows_listen(*asked)  # noqa: E731
    denied, granted = (
        _found(config, Verdict.DENY, Kind.LISTEN, refuses),
        _found(config, Verdict.ALLOW, Kind.LISTEN, covers),
    )
    if config.inspect is not None and target == config.inspect.address and granted is None and denied is None:
        return Decision(Ruling.ALLOWED, str(config.inspect.address), config.inspect.where, "for the debugger")
    return _first(
        denied, granted, otherwise="0.0.0.0 is every IPv4 address, [::] every address; each port has to be listed"
    )


def _env(name: str, config: WorkerConfig) -> Decision:
    if name in ALWAYS_ENV:
        return Decision(Ruling.ALLOWED, why="sandboxrun sets it itself")
    same = lambda entry: entry == name  # noqa: E731
    granted = _found(config, Verdict.ALLOW, Kind.ENV, same)
    if granted is not None and name not in os.environ:
        granted = Decision(granted.verdict, granted.entry, granted.where, "but it is not set here")
    return _first(_found(config, Verdict.DENY, Kind.ENV, same), granted)


def _call(type_: str, config: WorkerConfig) -> Decision:
    same = lambda entry: entry == type_  # noqa: E731
    denied, granted = _found(config, Verdict.DENY, Kind.CALL, same), _found(config, Verdict.ALLOW, Kind.CALL, same)
    return _first(denied, granted)


def _redis(target: RedisTarget, config: WorkerConfig) -> Decision:
    """Reading and writing may be granted apart. What denyRedis lists takes an entry of allowRedis away."""
    taken = {entry for entry, _ in entries(config.asked, Verdict.DENY, Kind.REDIS)}
    decisions = [_redis_part(part, config, taken) for part in parts_of(target)]
    worst = next((one for one in decisions if one.verdict is not Ruling.ALLOWED), decisions[0])
    if worst.verdict is Ruling.ALLOWED and len({one.where for one in decisions}) > 1:
        return Decision(
            Ruling.ALLOWED, " and ".join(one.entry or one.why for one in decisions), worst.where or decisions[1].where
        )
    return worst


def _redis_part(part: RedisTarget, config: WorkerConfig, taken: set[Any]) -> Decision:
    always = next((why for own, why in _own_keys(config) if covers(Kind.REDIS, own, part)), None)
    granted = _found(
        config, Verdict.ALLOW, Kind.REDIS, lambda entry: entry not in taken and covers(Kind.REDIS, entry, part)
    )
    denied = _found(config, Verdict.DENY, Kind.REDIS, lambda entry: covers(Kind.REDIS, entry, part))
    own = Decision(Ruling.ALLOWED, why=always) if always else None
    return _first(own, granted, denied)


def _own_keys(config: WorkerConfig) -> list[tuple[RedisTarget, str]]:
    """What every worker's login may do, as identity.py makes it."""
    hashes = (config.key, keys.type_key(config.type))
    streams = (config.loop.request_stream, config.loop.response_stream, keys.dead_stream(config.type))
    return [
        *((RedisTarget("r", key), "every worker may read its own hashes") for key in hashes),
        *((RedisTarget("rw", key), "every worker may use its streams, as streams") for key in streams),
        (RedisTarget("w", keys.reply_key("*")), "every worker may write replies"),
        (RedisTarget("w", keys.trace_key("*")), "every worker may write traces"),
    ]


def _run(target: str, config: WorkerConfig, policy: SandboxPolicy | None) -> Decision:
    wanted = _programs(target)
    meets = lambda entry: bool(set(_programs(entry)) & set(wanted))  # noqa: E731
    denied, granted = _found(config, Verdict.DENY, Kind.RUN, meets), _found(config, Verdict.ALLOW, Kind.RUN, meets)
    if denied is None and granted is None and not wanted:
        return Decision(Ruling.MISSING, why="there is no such program here")
    if policy is not None and denied is None and not set(wanted) & set(policy.execute):
        granted = None
    return _first(denied, granted)


def _programs(name: str) -> list[str]:
    """The real paths that a program's name may stand for; the first is what is run."""
    places = [name] if "/" in name else [f"{folder}/{name}" for folder in PROGRAM_FOLDERS]
    return [follow(path)[0] for path in places if os.path.isfile(path)][:1]


def _path(kind: Kind, target: str, config: WorkerConfig, policy: SandboxPolicy | None, data: str) -> Decision:
    real = follow(target)[0]

    def place(entry: str) -> str:
        return follow(below_data(entry, data))[0]

    def inside(entry: str) -> bool:
        return within(real, place(entry))

    denied, granted = _found(config, Verdict.DENY, kind, inside), _found(config, Verdict.ALLOW, kind, inside)
    if granted is None and kind is Kind.READ:
        granted = _found(config, Verdict.ALLOW, Kind.WRITE, lambda entry: is_own_data(entry) and inside(entry))
    if policy is None:
        return _first(denied, granted)
    listed = policy.read if kind is Kind.READ else policy.write
    if _covered(real, listed):
        return granted or Decision(Ruling.ALLOWED, why="every worker has it: Python, its libraries, or its own script")
    if denied is not None or granted is None:
        return _first(denied, otherwise=_beside(real, policy) if kind is Kind.WRITE else "")
    folder = place(granted.entry)
    below = lambda entry: within(place(entry), folder)  # noqa: E731
    around = _found(config, Verdict.DENY, kind, below) or _found(config, Verdict.DENY, Kind.READ, below)
    why = f"a part of {granted.entry} is denied, so that only what else is in it when the worker starts is granted"
    return Decision(Ruling.DENIED, around.entry, around.where, why) if around is not None else Decision(Ruling.MISSING)


def _covered(real: str, listed: Iterable[str]) -> bool:
    return any(within(real, place) for place in listed)


def _beside(real: str, policy: SandboxPolicy) -> str:
    return "it may be read, which does not grant to write it" if _covered(real, policy.read) else ""
