"""The agents that Redis knows: who they are, whether they live, and which of them are asked to drain.

The hash `sandboxrun:agents` has a field for each agent, named by its token; `sandboxrun:drain` the tokens that are to drain.
"""

from __future__ import annotations

import time

from sandboxrun.errors import ConfigError
from sandboxrun.fleet.queues import remove_hint
from sandboxrun.log import escape
from sandboxrun.records import asdict, record
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import is_recent, start_time, this_host
from sandboxrun.redis.replies import ReplyError, is_wrong_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

AGENTS = "sandboxrun:agents"
DRAIN = "sandboxrun:drain"
AGENTS_MAX_BYTES = 512 * 1024  # a thousand agents; it is read by each of them every 2 s
SCAN_COUNT, SCAN_MAX_BYTES = 100, 16 * 1024 * 1024
CLEAN_SECONDS = 0.5  # of an agent's loop
TEXT_MAX_CHARS = 256
TYPES_MAX = 64  # of an agent, in its entry


@record
class Agent:
    """One entry. `host`: as lease.this_host says; `since`, `seen`: Redis's clock, in seconds; `name`: the host's, for people."""

    token: str
    name: str
    host: str
    pid: int
    started: int
    since: int
    seen: int
    types: tuple[str, ...]
    workers: int
    most: int
    draining: bool

    def lives(self, now: int) -> bool:
        """`now`: Redis's clock, in seconds."""
        if self.host == this_host():
            return start_time(self.pid) == self.started
        return is_recent(self.seen, now)


def write(connection: Connection, agent: Agent) -> None:
    """Nothing is written if the key is no hash, which `look` says."""
    import json

    value = asdict(agent)
    del value["token"]
    reply = connection.pipeline([("HSET", AGENTS, agent.token, json.dumps(value))])[0]
    if not is_wrong_type(reply):
        connection.checked(reply)


def leave(connection: Connection, token: str) -> None:
    for reply in connection.pipeline([("HDEL", AGENTS, token), ("HDEL", DRAIN, token)]):
        connection.checked(reply)


def read(connection: Connection) -> tuple[dict[str, Agent], int]:
    """All entries that can be read, by token, and Redis's clock. An entry that cannot be read belongs to no living agent."""
    replies = connection.pipeline_within([("HGETALL", AGENTS), ("TIME",)], AGENTS_MAX_BYTES, reopen=True)
    if replies is None or isinstance(replies[0], ReplyError):
        return {}, int(connection.call("TIME")[0])
    flat = replies[0] if isinstance(replies[0], list) else [word for pair in replies[0].items() for word in pair]
    found = {}
    for raw, value in zip(flat[::2], flat[1::2], strict=True):
        token = raw.decode("utf-8", "replace")
        agent = _parsed(token, value)
        if agent is not None:
            found[token] = agent
    return found, int(connection.checked(replies[1])[0])


def _parsed(token: str, value: bytes) -> Agent | None:
    import json

    try:
        entry = json.loads(value)
        types = tuple(map(_text, list(entry["types"])[:TYPES_MAX]))
        return Agent(
            token,
            _text(entry["name"]),
            _text(entry["host"]),
            int(entry["pid"]),
            int(entry["started"]),
            int(entry["since"]),
            int(entry["seen"]),
            types,
            int(entry["workers"]),
            int(entry["most"]),
            bool(entry["draining"]),
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _text(value: Any) -> str:
    return escape(str(value)[:TEXT_MAX_CHARS])


def remove_dead(connection: Connection, found: Mapping[str, Agent], now: int) -> None:
    """Remove the entries of agents that do not live any more, once nobody can mistake them for living ones."""
    dead = [token for token, agent in found.items() if not agent.lives(now)]
    if dead:
        connection.pipeline([("HDEL", AGENTS, *dead), ("HDEL", DRAIN, *dead)])


def clean(connection: Connection) -> int:
    """Remove entries of dead agents and return how many, for a hash that has become too large to be read whole.

    Raises ConfigError if it still is, because not all was looked at in time, or an entry has more than SCAN_MAX_BYTES.
    """
    removed, until, cursor = 0, time.monotonic() + CLEAN_SECONDS, b"0"
    while (found := _scanned(connection, cursor)) is not None:
        cursor, pairs, now = found
        wrong = [name for name, value in pairs if not _lives(value, now)]
        if wrong:
            removed += int(connection.call("HDEL", AGENTS, *wrong))
        if cursor == b"0" or time.monotonic() >= until:  # the next call finds less
            break
    if connection.pipeline_within([("HGETALL", AGENTS)], AGENTS_MAX_BYTES, reopen=True) is None:
        text = f"{AGENTS} has more than {AGENTS_MAX_BYTES >> 10} KiB, so agents cannot see each other"
        raise ConfigError(text, hint=remove_hint(AGENTS))
    return removed


def _scanned(connection: Connection, cursor: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], int] | None:
    """The next cursor, entries, and Redis's clock; None if they are too large, or the key is no hash."""
    for count, most in ((SCAN_COUNT, AGENTS_MAX_BYTES), (1, SCAN_MAX_BYTES)):
        replies = connection.pipeline_within([("HSCAN", AGENTS, cursor, "COUNT", count), ("TIME",)], most, reopen=True)
        if replies is not None:
            if is_wrong_type(replies[0]):
                return None
            after, flat = connection.checked(replies[0])
            return after, list(zip(flat[::2], flat[1::2], strict=True)), int(connection.checked(replies[1])[0])
    return None


def _lives(value: bytes, now: int) -> bool:
    agent = _parsed("", value) if len(value) < AGENTS_MAX_BYTES else None
    return agent is not None and agent.lives(now)


def ask_to_drain(connection: Connection, tokens: Iterable[str]) -> None:
    words = [word for token in tokens for word in (token, "1")]
    if words:
        connection.call("HSET", DRAIN, *words)


def look(connection: Connection, token: str) -> tuple[bool, bool]:
    """Whether the agent's entry is there, which FLUSHALL removes, and whether it is asked to drain. Raises ConfigError if one
    of the keys is no hash."""
    replies = connection.pipeline([("HEXISTS", AGENTS, token), ("HEXISTS", DRAIN, token)])
    for key, reply in zip((AGENTS, DRAIN), replies, strict=True):
        if is_wrong_type(reply):
            raise ConfigError(f"{key} is no hash, so agents cannot see each other", hint=remove_hint(key))
    is_there, drains = (connection.checked(reply) == 1 for reply in replies)
    return is_there, drains
