"""Redis: can it be used for workers, what does it keep, and what have dead runs left there?

Nothing is changed, but for a user without any right that is made and removed: whether a login may do that is tried, not read
from rules.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator

from sandboxrun.describe.doctor.finding import Finding, fails, note, ok
from sandboxrun.errors import ConfigError, StoreError
from sandboxrun.fleet import workers as fleet
from sandboxrun.fleet.workers import State
from sandboxrun.host.folders import Folders
from sandboxrun.policy.file import Policy, policy_of
from sandboxrun.redis.acceptance import accept_hint, password_hint
from sandboxrun.redis.acl import Owner
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import start_time, this_host
from sandboxrun.redis.replies import ReplyError
from sandboxrun.redis.store import is_open

SLOW_SECONDS = 0.02  # a round trip: a request takes several
CLOCK_SECONDS = 2.0
PINGS = 5
INFO_MAX_BYTES = 1024 * 1024
_PROBE = "sandboxrun-doctor:probe:h"  # no type and no key of anybody's


def redis(connection: Connection) -> Iterator[Finding]:
    """Of an open connection, by protocol 2."""
    connection.receive_most = connection.received + INFO_MAX_BYTES
    info = _info(connection)
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version") or info.get("redis_version") or "of unknown version"
    seconds, ahead = _times(connection)
    yield ok("redis", f"{name} {version[:40]} at {connection.address.shown}, {seconds * 1000:.2f} ms a round trip")
    if seconds > SLOW_SECONDS:
        yield note("redis", "it is slow, or far away", "run workers nearer to it; sandboxrun info TYPE shows rates")
    if version[:1].isdigit() and int(version.partition(".")[0]) < 7:
        yield note(
            "redis",
            "older than Redis 7, so that a worker can read requests and replies of others",
            "Redis 7 or Valkey",
        )
    yield from _rights(connection)
    yield from _open_to_all(connection)
    yield from _keeps(info)
    yield from _clock(ahead)


def _clock(ahead: float) -> Iterator[Finding]:
    if abs(ahead) > CLOCK_SECONDS:
        yield note(
            "clock",
            f"Redis's clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this host's, and deadlines of "
            f"requests compare clocks",
            "NTP on both hosts (timedatectl set-ntp true)",
        )
    else:
        yield ok("clock", f"this host's and Redis's differ by {abs(ahead) * 1000:.0f} ms")


def _times(connection: Connection) -> tuple[float, float]:
    """The best of some round trips, in seconds, and how far Redis's clock is ahead in the middle of that."""
    found = []
    for _ in range(PINGS):
        before, begun = time.time(), time.monotonic()
        seconds, micros = map(int, connection.call("TIME"))
        took = time.monotonic() - begun
        found.append((took, seconds + micros / 1e6 - (before + took / 2)))
    return min(found)


def _info(connection: Connection) -> dict[str, str]:
    reply = connection.pipeline([("INFO",)])[0]
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else ""
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def _rights(connection: Connection) -> Iterator[Finding]:
    """What a start needs: everything is tried in a way that changes nothing, on a key that is not there."""
    login = connection.address.user or "default"
    needed = [
        ("TYPE", _PROBE), ("HLEN", _PROBE), ("HKEYS", _PROBE), ("HMGET", _PROBE, "pid"), ("WATCH", _PROBE),
        ("HDEL", _PROBE, "pid"), ("UNWATCH",), ("HELLO",), ("TIME",),
    ]  # fmt: skip
    answers = zip(needed, connection.pipeline(needed), strict=True)
    refused = {command[0]: str(reply) for command, reply in answers if isinstance(reply, ReplyError)}
    if "HDEL" in refused and refused["HDEL"].startswith("READONLY"):
        yield fails("redis", "it is a replica that cannot be written", "name the primary, with --redis or REDIS_URL")
    elif refused:
        what = "; ".join(f"{name}: {why[:100]}" for name, why in refused.items())
        yield fails("redis", f"the login {login[:80]!r} may not do what a start does: {what}", "ACL SETUSER at Redis")
    made = _owner().name
    replies = connection.pipeline(
        [("ACL", "SETUSER", made, "reset", "off"), ("ACL", "USERS"), ("ACL", "DELUSER", made)]
    )
    if any(isinstance(reply, ReplyError) for reply in replies):
        yield fails(
            "redis",
            f"the login {login[:80]!r} may not make a user for each worker",
            f"at Redis: ACL SETUSER {login[:80]} +acl|setuser +acl|deluser +acl|users",
        )
    elif not refused:
        yield ok("redis", f"the login {login[:80]!r} may do what a start needs, users for workers too")


def _open_to_all(connection: Connection) -> Iterator[Finding]:
    """A worker reaches Redis, and need not use the login it was given: what can it do without? Its policy may accept that."""
    if not is_open(connection.first):
        yield ok("redis", "nothing can be written without a password")
        return
    url, hint = connection.address.shown, "export HOME"
    policies: list[Policy] = []
    with contextlib.suppress(ConfigError):  # said of the folders and the policies
        paths = Folders.of_user().policies
        hint = "\n".join(accept_hint(url, paths[-1]))
        policies = [policy for policy in map(policy_of, paths) if policy is not None]
    servers = [
        server
        for policy in policies
        for server in policy.servers
        if server.url == url and server.open_redis is not None
    ]
    workers = [section for policy in policies for section in policy.workers if section.open_redis is not None]
    said = "it accepts commands without a password, so a worker could ignore its restricted login{}"
    if any(server.open_redis is False for server in servers):
        place = next(server.place for server in servers if server.open_redis is False)
        yield fails("redis", said.format(f"; {place} does not allow that"), "\n".join(password_hint(url)))
    elif servers:
        yield note("redis", said.format(f"; {servers[0].place} accepts that"), "\n".join(password_hint(url)))
    elif any(section.open_redis for section in workers):
        names = ", ".join(section.pattern for section in workers if section.open_redis)
        yield note("redis", said.format(f"; accepted for {names} only"), hint)
    else:
        yield fails("redis", said.format(""), hint)


def _keeps(info: dict[str, str]) -> Iterator[Finding]:
    """What becomes of hashes, requests and replies when it is started again, or full."""
    if "aof_enabled" not in info:
        yield note("redis", "the login may not ask how it keeps its data (INFO)", "ask who runs it")
        return
    if info["aof_enabled"] == "1":
        yield ok("redis", "keeps what it has acknowledged (AOF)")
    else:
        yield note(
            "redis",
            "keeps no log of what it has acknowledged (AOF): after a crash it is as at its last snapshot, if it makes any",
            "CONFIG SET appendonly yes, and in its configuration, where they must not be lost",
        )
    policy = info.get("maxmemory_policy", "")
    if policy.startswith("allkeys") and info.get("maxmemory", "0") != "0":
        yield fails(
            "redis",
            f"when it is full it removes any key ({policy[:40]}), hashes and requests too",
            "CONFIG SET maxmemory-policy noeviction",
        )


def leftovers(
    connection: Connection, known: Iterable[tuple[str, str]], users: Callable[[Owner], list[str]]
) -> Iterator[Finding]:
    """Of runs that were killed: pids and users. `users`: those without a supervisor (Store.leftover)."""
    found = fleet.find(connection, known=known)
    workers = fleet.read(connection, found.workers)
    stale = [worker.name for worker in workers if worker.state in (State.STALE, State.UNKNOWN)]
    running = sum(worker.state == State.RUNNING for worker in workers)
    if stale:
        more = f" and {len(stale) - 5} more" if len(stale) > 5 else ""
        yield note("workers", f"{len(stale)} stale pids: {', '.join(stale[:5])}{more}", "sandboxrun stop --stale")
    try:
        left = users(_owner())
    except StoreError:
        left = []  # said above
    if left:
        yield note("workers", f"{len(left)} Redis users of killed runs", "sandboxrun stop --stale, or any start")
    if not stale and not left:
        yield ok("workers", f"{running} of {len(workers)} run, and nothing is left of killed ones")
    if found.cut:
        yield note("workers", found.cut, "sandboxrun ps TYPE")


def _owner() -> Owner:
    pid = os.getpid()
    return Owner.of_run("doctor:probe:h", host=this_host(), pid=pid, started=start_time(pid) or 0, now=time.time())
