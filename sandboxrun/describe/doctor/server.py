"""Redis: whether workers can use it, what it persists, and what killed runs have left there.

Nothing is changed, except that a user without any right is made and removed: the rights of a login are tried, because rules
are hard to read.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator

from sandboxrun.describe.doctor.agents import agents
from sandboxrun.describe.doctor.finding import Finding, fails, note, ok
from sandboxrun.describe.doctor.streams import streams
from sandboxrun.errors import ConfigError, StoreError, UsageError
from sandboxrun.fleet import workers as fleet
from sandboxrun.fleet.workers import State
from sandboxrun.host.folders import Folders
from sandboxrun.policy.file import Policy, policy_of
from sandboxrun.redis.acceptance import accept_hint, password_hint
from sandboxrun.redis.acl import Owner
from sandboxrun.redis.address import Address, client_options, parse_url
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
        yield note(
            "redis",
            "it is slow or far away, and each request takes several round trips",
            hint=f"{_client(connection)} SLOWLOG GET 10",
        )
    if version[:1].isdigit() and int(version.partition(".")[0]) < 7:
        yield note(
            "redis",
            "it is older than Redis 7, so a worker can read requests and replies of other workers",
        )
    yield from _rights(connection, info)
    yield from _open_to_all(connection)
    yield from _persistence(connection, info)
    yield from _clock(ahead)
    connection.receive_most = 0  # what follows has limits of its own


def _clock(ahead: float) -> Iterator[Finding]:
    if abs(ahead) > CLOCK_SECONDS:
        yield note(
            "clock",
            f"the clock of Redis is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} that of this host, so deadlines "
            "of requests are wrong by as much",
            hint="sudo timedatectl set-ntp true",
        )
    else:
        yield ok("clock", f"this host and Redis differ by {abs(ahead) * 1000:.0f} ms")


def _times(connection: Connection) -> tuple[float, float]:
    """The shortest of some round trips, in seconds, and how far the clock of Redis was ahead during it."""
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


def _rights(connection: Connection, info: dict[str, str]) -> Iterator[Finding]:
    """What a start needs, tried on a key that is not there, so that nothing changes."""
    login = connection.address.user or "default"
    needed = [
        ("TYPE", _PROBE), ("HLEN", _PROBE), ("HKEYS", _PROBE), ("HMGET", _PROBE, "pid"), ("WATCH", _PROBE),
        ("HDEL", _PROBE, "pid"), ("UNWATCH",), ("HELLO",), ("TIME",),
    ]  # fmt: skip
    answers = zip(needed, connection.pipeline(needed), strict=True)
    refused = {command[0]: str(reply) for command, reply in answers if isinstance(reply, ReplyError)}
    if "HDEL" in refused and refused["HDEL"].startswith("READONLY"):
        yield fails("redis", "it is a replica that cannot be written", hint=_primary_hint(connection.address, info))
    elif refused:
        reasons = "; ".join(f"{name}: {why[:100]}" for name, why in refused.items())
        if all(why.startswith("NOPERM") for why in refused.values()):
            yield fails(
                "redis",
                f"the login {login[:80]!r} may not run commands that a start needs: {reasons}",
                hint=admin_hint(connection, sorted(set(map(_missing_right, refused.values())))),
            )
        else:
            yield fails("redis", f"it refuses commands that a start needs, to every login: {reasons}")
    probe = _owner().name
    replies = connection.pipeline(
        [("ACL", "SETUSER", probe, "reset", "off"), ("ACL", "USERS"), ("ACL", "DELUSER", probe)]
    )
    if any(isinstance(reply, ReplyError) for reply in replies):
        yield fails(
            "redis",
            f"the login {login[:80]!r} may not make a Redis user for each worker",
            hint=admin_hint(connection, ("+acl|setuser", "+acl|deluser", "+acl|users")),
        )
    elif not refused:
        yield ok("redis", f"the login {login[:80]!r} may run the commands of a start, and make users for workers")


def admin_hint(connection: Connection, rules: Iterable[str]) -> str:
    """Give the login these rights, as an administrator of Redis."""
    address = connection.address
    words = shlex.join(["ACL", "SETUSER", address.user or "default", *rules])
    return f"redis-cli {client_options(address)} --user ADMIN --pass PASSWORD {words}"


def missing_right_hint(connection: Connection, refusal: str) -> str:
    """Empty if Redis refuses the command to every login."""
    return admin_hint(connection, [_missing_right(refusal)]) if refusal.startswith("NOPERM") else ""


def _missing_right(refusal: str) -> str:
    """Redis 6.2 writes "'acl' command or its subcommand", later versions "'acl|users' command"."""
    command = re.search(r"'([^']+)' command", refusal)
    return f"+{command[1]}" if command else "~*"


def _primary_hint(address: Address, info: dict[str, str]) -> str:
    """The server that this one copies, with a login if this one has required it."""
    host, port = info.get("master_host", "HOST")[:200], info.get("master_port", "PORT")[:8]
    scheme = "rediss" if address.tls else "redis"
    login = "USER:PASSWORD@" if address.password else ""
    database = f"/{address.db}" if address.db else ""
    return f"export REDIS_URL={scheme}://{login}{shlex.quote(f'{host}:{port}{database}')}{_options(address)}"


def _options(address: Address) -> str:
    """The query of a Redis URL, quoted for a shell."""
    from urllib.parse import quote

    file = f"ssl_ca_certs={quote(address.ca_file)}" if address.ca_file else ""
    check = "" if address.check else "ssl_cert_reqs=none"
    query = "&".join(filter(None, (file, check)))
    return shlex.quote(f"?{query}") if query else ""


def _client(connection: Connection) -> str:
    """redis-cli for this server; its login is taken from REDIS_URL, and never printed."""
    address = connection.address
    if _is_in_environment(address) and not address.path and not address.tls and ":" not in address.host:
        # Of redis://:PASSWORD@HOST, redis-cli sends the empty name.
        return 'redis-cli -u "$REDIS_URL"' + " --user default" * bool(address.password and not address.user)
    login = f" --user {shlex.quote(address.user or 'default')} --pass PASSWORD" if address.password else ""
    return f"redis-cli {client_options(address)}{login}"


def _is_in_environment(address: Address) -> bool:
    try:
        other = parse_url(os.environ.get("REDIS_URL", ""))
    except UsageError:
        return False
    return (other.shown, other.user, other.password) == (address.shown, address.user, address.password)


def _open_to_all(connection: Connection) -> Iterator[Finding]:
    """A worker reaches Redis, and need not use the login it was given: what can it do without? Its policy may accept that."""
    if not is_open(connection.first):
        yield ok("redis", "nothing can be written without a password")
        return
    url = connection.address.shown
    hint: tuple[str, ...] = ()
    policies: list[Policy] = []
    with contextlib.suppress(ConfigError):  # said of the folders and the policies, and to be corrected first
        paths = Folders.of_user().policies
        hint = accept_hint(url, paths[-1])
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
        yield fails("redis", said.format(f"; {place} does not allow that"), hint=password_hint(url))
    elif servers:
        yield note("redis", said.format(f"; {servers[0].place} accepts that"), hint=password_hint(url))
    elif any(section.open_redis for section in workers):
        names = ", ".join(section.pattern for section in workers if section.open_redis)
        yield note("redis", said.format(f"; accepted for {names} only"), hint=hint)
    else:
        yield fails("redis", said.format(""), hint=hint)


def _persistence(connection: Connection, info: dict[str, str]) -> Iterator[Finding]:
    """What survives of hashes, requests and replies if Redis restarts, or is full."""
    if "aof_enabled" not in info:
        yield note(
            "redis", "this login may not run INFO, so persistence is unknown", hint=admin_hint(connection, ["+info"])
        )
        return
    if info["aof_enabled"] == "1":
        yield ok("redis", "it logs each write to disk (AOF)")
    else:
        yield note(
            "redis",
            "it does not log writes (AOF): after a crash it has what its last snapshot has, if there is one; set appendonly in "
            "its configuration file, too",
            hint=f"{_client(connection)} CONFIG SET appendonly yes",
        )
    policy = info.get("maxmemory_policy", "")
    if policy.startswith("allkeys") and info.get("maxmemory", "0") != "0":
        yield fails(
            "redis",
            f"if it is full, it evicts any key ({policy[:40]}), also hashes and requests",
            hint=f"{_client(connection)} CONFIG SET maxmemory-policy noeviction",
        )


def leftovers(
    connection: Connection, known: Iterable[tuple[str, str]], users: Callable[[Owner], list[str]]
) -> Iterator[Finding]:
    """Pids and Redis users of killed runs. `users`: those without a supervisor (Store.leftover)."""
    found = fleet.find(connection, known=known)
    workers = fleet.read(connection, found.workers)
    stale = [worker.name for worker in workers if worker.state in (State.STALE, State.UNKNOWN)]
    running = sum(worker.state == State.RUNNING for worker in workers)
    if stale:
        more = f" and {len(stale) - 5} more" if len(stale) > 5 else ""
        plural = "s" * (len(stale) != 1)
        yield note(
            "workers", f"{len(stale)} stale pid{plural}: {', '.join(stale[:5])}{more}", hint="sandboxrun stop --stale"
        )
    try:
        left = users(_owner())
    except StoreError:
        left = []  # a finding of redis()
    if left:
        plural = "s" * (len(left) != 1)
        yield note("workers", f"{len(left)} Redis user{plural} of killed runs", hint="sandboxrun stop --stale")
    if not stale and not left:
        yield ok("workers", f"{running} of {len(workers)} run, and killed runs have left nothing")
    yield from agents(connection, workers)
    yield from streams(connection, workers)
    if found.cut == fleet.NO_SCAN:
        yield note("workers", found.cut, hint=admin_hint(connection, ["+scan"]))
    elif found.cut == fleet.NOT_SCANNED:
        yield note("workers", found.cut, hint="sandboxrun ps --all")
    elif found.cut:
        yield note("workers", found.cut, hint="sandboxrun ps TYPE" if found.by_type else "sandboxrun show TYPE ID")


def _owner() -> Owner:
    pid = os.getpid()
    return Owner.of_run("doctor:probe:h", host=this_host(), pid=pid, started=start_time(pid) or 0, now=time.time())
