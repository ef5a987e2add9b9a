"""What a worker is told of a command that Redis has refused: grants that are enough if they are followed, or why not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from runner import Runner

Local = Callable[..., Path]
_LINE = re.compile(r"Requires redis access to \".*\"; grant it with: --allow-redis=(\S+) \(field allowRedis of t:1:h\)")
_ROUNDS_MAX = 5
SCRIPT = """
from sandboxrun import worker
import redis
c = worker.connect()
{statement}
print("works")
"""


def followed(r: redis.Redis, run: Runner, local: Local, statement: str) -> set[str]:
    """The grants that the lines name, one run after the other, until the script works."""
    granted: list[str] = []
    for _ in range(_ROUNDS_MAX):
        local(SCRIPT.replace("{statement}", statement), allowRedis=",".join(granted))
        done = run("t", "1", "--yes")
        if done.out == "works\n":
            return set(granted)
        named = [match[1] for line in done.err.splitlines() if (match := _LINE.fullmatch(line))]
        assert named and not set(named) & set(granted), f"with {granted}: {done.err}"
        granted += named
    raise AssertionError(f"it does not work with {granted}: {done.err}")


@pytest.mark.parametrize(
    ("statement", "grants"),
    [
        ("c.get('chat:1')", {"%R~chat:1"}),
        ("c.get(b'chat:1')", {"%R~chat:1"}),
        ("c.set('chat:1', 'x')", {"chat:1"}),
        ("c.hset('chat:1', 'a', 'b')", {"chat:1"}),
        ("c.mget('a:1', 'b:1')", {"%R~a:1", "%R~b:1"}),
        ("c.mset({'a:1': 'x', 'b:1': 'y'})", {"a:1", "b:1"}),
        ("c.delete('a:1', 'b:1')", {"a:1", "b:1"}),
        ("c.publish('news', 'x')", {"+pubsub:news"}),
        ("c.xadd('log:x', {'a': 'b'})", {"log:x"}),
        ("c.xread({'log:x': '0'})", {"%R~log:x"}),
        ("c.xinfo_stream('log:x') if c.xadd('log:x', {'a': 'b'}) else None", {"log:x"}),
        ("c.eval('return redis.call(\"SET\", KEYS[1], 1)', 1, 'a:1')", {"+eval", "a:1"}),
        ("p = c.pipeline(transaction=False); p.set('a:1', 'x'); p.execute()", {"a:1"}),
        ("c.execute_command('LPUSH a:1', 'x')", {"a:1"}),
        ("c.sintercard(2, ['a:1', 'b:1'])", {"%R~a:1", "%R~b:1"}),
        ("c.zunionstore('a:1', ['b:1'])", {"a:1", "b:1"}),
        ("p = c.pubsub(); p.subscribe('news'); assert p.get_message(timeout=9)", {"+pubsub:news"}),
        ("p = c.pubsub(); p.psubscribe('news.*'); assert p.get_message(timeout=9)", {"+pubsub:news.*"}),
        ("c.blpop(['a:1'], timeout=0.01)", {"a:1"}),
    ],
)
def test_the_grants_for_a_command_of_redis(
    r: redis.Redis, run: Runner, local: Local, statement: str, grants: set[str]
) -> None:
    assert followed(r, run, local, statement) == grants


def test_by_asyncio_too(r: redis.Redis, run: Runner, local: Local) -> None:
    statement = (
        "import asyncio, os\nimport redis.asyncio\nasync def go():\n    await redis.asyncio.from_url(os.environ['REDIS_URL']).set('a:1', 1)\n"
        "asyncio.run(go())"
    )
    assert followed(r, run, local, statement) == {"a:1"}


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("c.flushall()", "Requires the command FLUSHALL of Redis, which no grant gives: it is for administrators, or"),
        ("c.keys('*')", "Requires the command KEYS of Redis, which no grant gives: it is for administrators, or"),
        (
            "c.config_get('dir')",
            "Requires the command CONFIG of Redis, which no grant gives: it is for administrators, or",
        ),
        (
            "list(c.scan_iter())",
            "Requires the command SCAN of Redis, which no grant gives: it is for administrators, or",
        ),
        (
            "c.hset('t:1:h', 'allowNet', '*')",
            "Requires writing t:1:h, which no grant gives: a worker could change what it is",
        ),
        ("c.delete('t:h')", "Requires writing t:h, which no grant gives: a worker could change what it is granted"),
        ("c.get('a:*')", 'Requires redis access to "a:*", which no grant can name because of its characters'),
        ("c.publish('*', 'x')", 'Requires redis access to "*", which no grant can name because of its characters'),
        ("c.get('a b')", 'Requires redis access to "a b", which no grant can name because of its characters'),
    ],
)
def test_what_no_grant_gives_is_said(r: redis.Redis, run: Runner, local: Local, statement: str, said: str) -> None:
    local(SCRIPT.replace("{statement}", statement))
    done = run("t", "1")
    assert done.code == 1 and said in done.err and "grant it with" not in done.err, done.err


@pytest.mark.parametrize(
    "statement", ["c.hget('t:1:h', 'a', 'b')", "c.execute_command('XADD', 't:req:x')", "raise redis.ResponseError('x')"]
)
def test_another_error_of_redis_is_not_explained(r: redis.Redis, run: Runner, local: Local, statement: str) -> None:
    local(SCRIPT.replace("{statement}", statement))
    done = run("t", "1")
    assert done.code == 1 and "Requires" not in done.err, done.err


def test_a_request_to_another_type_is_granted_by_the_type(run: Runner, local: Local) -> None:
    """Not by allowRedis, which would let it read and delete the other's requests as well."""
    code = SCRIPT.replace("{statement}", "c.xadd('price:req:x', {'ref': '1'})")
    local(code)
    done = run("t", "1")
    line = 'Requires call access to "price"; grant it with: --allow-call=price (field allowCall of t:1:h)'
    assert line in done.err.splitlines()
    local(code, allowCall="price")
    assert run("t", "1", "--yes").out == "works\n"
