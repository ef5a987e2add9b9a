"""Runs in the worker's process: which grant a command of redis-py was missing, that Redis has refused with NOPERM.

The refusal names the command or says that it was a key or a channel. The command's arguments are in the frame of
execute_command().
"""

from __future__ import annotations

import re

from sandboxrun.sandbox.child.denials import Grants, never, requirement

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# As config.targets has them: administration, and commands that reach every key.
_NEVER = frozenset(
    "acl bgrewriteaof bgsave client cluster command commandlog config copy dbsize debug failover flushall flushdb function "
    "hotkeys info keys lastsave latency memory migrate module monitor move object pfdebug pfselftest psync randomkey "
    "replconf replicaof reset restore restore-asking role save scan script select shutdown slaveof slowlog sort sort_ro "
    "swapdb sync wait waitaof".split()
)
_SCRIPTS = frozenset("eval evalsha eval_ro evalsha_ro fcall fcall_ro".split())
_CHANNELS = frozenset("publish spublish subscribe ssubscribe psubscribe".split())
_READS = frozenset(
    "bitcount bitfield_ro bitpos exists expiretime geodist geohash geopos georadius_ro georadiusbymember_ro geosearch get "
    "getbit getrange hexists hget hgetall hkeys hlen hmget hrandfield hscan hstrlen hvals lcs lindex llen lpos lrange mget "
    "pexpiretime pttl scard sdiff sinter sintercard sismember smembers smismember srandmember sscan strlen substr sunion "
    "ttl type xlen xpending xrange xread xrevrange zcard zcount zdiff zinter zintercard zlexcount zmscore zrandmember "
    "zrange zrangebylex zrangebyscore zrank zrevrange zrevrangebylex zrevrangebyscore zrevrank zscan zscore zunion".split()
)
_ALL_ARE_KEYS = frozenset(
    "del exists mget pfcount pfmerge rename renamenx rpoplpush sdiff sdiffstore sinter sinterstore sunion sunionstore touch "
    "unlink watch".split()
)
_KEYS_THEN_TIMEOUT = frozenset("blpop brpop bzpopmax bzpopmin".split())
_TWO_KEYS = frozenset("blmove brpoplpush geosearchstore lcs lmove smove zrangestore".split())
# Commands that say how many keys follow, with the number of arguments before it.
_COUNTED = {
    **dict.fromkeys("lmpop sintercard zdiff zinter zintercard zmpop zunion".split(), 0),
    **dict.fromkeys(("blmpop", "bzmpop", "zdiffstore", "zinterstore", "zunionstore", *_SCRIPTS), 1),
}
_SHOWN_MAX = 4
# What an entry of allowRedis can name. Of a key with a wildcard in its name, the entry would cover other keys too.
_NAME = re.compile(r"[A-Za-z0-9_:.\-/@#{}]{1,256}")
_REQUESTS = re.compile(r"[a-z][-a-z0-9_]{0,63}:req:x")  # where another type's workers take requests
_PATTERN = re.compile(r"[A-Za-z0-9_:.\-/@#{}*?]{1,256}")


def is_refusal(error: BaseException) -> bool:
    return type(error).__name__ == "NoPermissionError" or str(error).startswith("NOPERM")


def lines(error: BaseException, grants: Grants) -> list[str]:
    words = _command(error)
    if not words:
        return []
    name, key = words[0].lower(), grants.key
    if name in _NEVER:
        return [never(f"the command {name.upper()} of Redis", "it is for administrators, or reaches every key")]
    if name in _CHANNELS:
        channels = words[1:2] if name.endswith("publish") else words[1:]
        names = _PATTERN if name == "psubscribe" else _NAME
        return [_entry(f"+pubsub:{channel}", channel, grants, names) for channel in channels[:_SHOWN_MAX]]
    found = [grants.denial("redis", f"+{name}", f"+{name}")] if name in _SCRIPTS else []
    own = (key, f"{key.partition(':')[0]}:h")
    for target in _keys(name, words[1:])[:_SHOWN_MAX]:
        if target in own and name not in _READS:
            found.append(never(f"writing {target}", "a worker could change what it is granted"))
        elif name == "xadd" and _REQUESTS.fullmatch(target):
            type_ = target.partition(":")[0]
            found.append(grants.denial("call", type_, type_))
        elif target not in own:
            found.append(_entry(f"%R~{target}" if name in _READS else target, target, grants))
    return found


def _entry(grant: str, resource: str, grants: Grants, names: re.Pattern[str] = _NAME) -> str:
    if names.fullmatch(resource) is None:
        return f"{requirement('redis', resource)}, which no grant can name because of its characters"
    return grants.denial("redis", grant, grant)


def _keys(name: str, arguments: Sequence[str]) -> list[str]:
    """The keys among the arguments of a command."""
    if name in _COUNTED:
        at = _COUNTED[name]
        count = int(arguments[at]) if len(arguments) > at and arguments[at].isdecimal() else 0
        stored = arguments[:1] if name.endswith("store") else ()
        return [*stored, *arguments[at + 1 : at + 1 + count]]
    if name in ("xread", "xreadgroup"):
        at = next((n for n, word in enumerate(arguments) if word.lower() == "streams"), len(arguments))
        streams = arguments[at + 1 :]
        return list(streams[: len(streams) // 2])
    if name in ("xinfo", "xgroup"):
        return list(arguments[1:2])
    if name in ("mset", "msetnx"):
        return list(arguments[::2])
    if name in _ALL_ARE_KEYS:
        return list(arguments)
    if name in _KEYS_THEN_TIMEOUT:
        return list(arguments[:-1])
    return list(arguments[: 2 if name in _TWO_KEYS else 1])


def _command(error: BaseException) -> list[str]:
    """The words of the command that was refused, the name first."""
    words: list[str] = []
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code.co_name == "execute_command" and isinstance(frame.f_locals.get("args"), tuple):
            words = [_text(word) for word in frame.f_locals["args"]]
        elif frame.f_code.co_name == "parse_response":
            words = words or _subscription(frame.f_locals.get("self"))
        traceback = traceback.tb_next
    if not words:  # redis-py says it of a pipeline
        match = re.match(r"Command # \d+ \((.*?)\) of pipeline caused error", str(error), re.DOTALL)
        words = match[1].split() if match else []
    return [*words[0].split(), *words[1:]] if words else []


def _subscription(pubsub: object) -> list[str]:
    """The command of a PubSub, which reads the answer in a call of its own; empty if it is none."""
    for name, attribute in (("subscribe", "channels"), ("psubscribe", "patterns"), ("ssubscribe", "shard_channels")):
        subscribed = getattr(pubsub, "__dict__", {}).get(attribute)
        if isinstance(subscribed, dict) and subscribed:
            return [name, *map(_text, subscribed)]
    return []


def _text(word: object) -> str:
    return word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word)
