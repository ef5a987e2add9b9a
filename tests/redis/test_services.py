"""The same services in one worker and in four, each sandboxed: the same replies and errors to the same calls."""

from __future__ import annotations

import contextlib
import json
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import redis
from runner import Runner

from sandboxrun import client

SCRIPT = Path(__file__).parent / "workers" / "services.py"
SERVICES = ("order", "price", "stock", "bank")
SEED, CALLS = 18, 1000
Call = tuple[str, str, Any]  # service, method, data


@contextlib.contextmanager
def started(r: redis.Redis, run: Runner, served: dict[str, str], script: Path = SCRIPT) -> Iterator[None]:
    """Workers with these types and fields `services`, which may call each other."""
    with contextlib.ExitStack() as stack:
        for type_, services in served.items():
            fields = {"url": str(script), "version": "local", "services": services, "allowCall": ",".join(SERVICES)}
            r.hset(f"{type_}:1:h", mapping=fields)
            log = stack.enter_context(open(run.home / f"{type_}.log", "wb"))
            stack.enter_context(background(run, type_, log))
        yield


@contextlib.contextmanager
def background(run: Runner, type_: str, log: Any) -> Iterator[None]:
    import subprocess

    command = run.command("--yes", type_, "1")
    with subprocess.Popen(
        command, env=run.env, cwd=run.home, stdin=subprocess.DEVNULL, stdout=log, stderr=log
    ) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


def generated() -> list[Call]:
    """As a user, and as somebody who makes every mistake."""
    made = random.Random(SEED)
    return [made.choice(KINDS)(made) for _ in range(CALLS)]


def _order(made: random.Random) -> Call:
    data = {
        "item": made.choice(("tea", "tea", "mug", "nothing", "gold")),
        "account": made.choice(("ann", "ann", "bob", "eve")),
    }
    return (
        "order",
        "place",
        {**data, **made.choice(({}, {"count": made.randrange(-1, 9)}, {"count": "2"}, {"cuont": 2}))},
    )


def _relayed(made: random.Random, first: str, method: str, data: Any, **more: Any) -> Call:
    second = made.choice([name for name in SERVICES if name != first])
    return first, "relay", {"service": second, "method": method, "data": data, **more}


def _from(made: random.Random) -> str:
    return made.choice(SERVICES)


RESULTS = """none empty result envelope date decimal class set bytes keys nan object circle twice surrogate big float integral
    error""".split()
FAILURES = "value bad empty timeout call key recursion cancelled exit interrupt unknown".split()
GIVEN = "set date nan deep keys odd surrogate big".split()
NAMES = """off OF _hidden hidden __class__ __init__ price.of stock.take order.echo echo.echo nonsense.of items
    of""".split()
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1.5,
    "",
    "é\n\x00",
    [],
    {},
    {"a": [{"b": None}]},
    2**70,
    1e-300,
    "x" * 3000,
)
LINES: tuple[Any, ...] = (
    {"item": "tea"}, {"item": "tea", "count": 2}, {"item": 1}, {}, [], None, {"item": "a", "more": 1}, "tea",
)  # fmt: skip


def _wrong_name(made: random.Random) -> Call:
    """Names that begin with an underscore are refused by `connect` already: these are sent as they are."""
    name = made.choice(NAMES)
    if "." not in name and ("_" in name or made.random() < 0.3):
        return _from(made), name, {}
    return _relayed(made, _from(made), name, {})


KINDS = (
    _order, _order, _order,
    lambda made: _relayed(made, _from(made), "answer", {"result": made.choice(RESULTS)}),
    lambda made: _relayed(made, _from(made), "fail", {"how": made.choice(FAILURES)}),
    lambda made: _relayed(made, _from(made), "echo", {"value": made.choice(VALUES)}),
    lambda made: _relayed(made, _from(made), "line", {"line": made.choice(LINES), **made.choice(({}, {"note": 5}, {"factor": 2}))}),
    lambda made: (_from(made), "fail", {"how": made.choice(FAILURES)}),
    lambda made: (_from(made), "answer", {"result": made.choice(RESULTS)}),
    lambda made: (_from(made), "line", made.choice((*LINES, {"line": LINES[0]}, {"line": LINES[0], "lnie": 1}))),
    lambda made: ("order", "ask", {"service": made.choice(SERVICES), "method": "echo", "given": made.choice(GIVEN)}),
    lambda made: ("order", "round", {"depth": made.randrange(4)}),
    _wrong_name, _wrong_name,
)  # fmt: skip

FEW: list[Call] = [
    ("order", "relay", {"service": "price", "method": "sleep", "data": {"seconds": 0.3}, "timeout": 0.05}),
    ("order", "relay", {"service": "bank", "method": "relay", "data": {
        "service": "stock", "method": "sleep", "data": {"seconds": 0.3}, "timeout": 0.05}}),
    ("order", "relay", {"service": "price", "method": "answer", "data": {"result": "large"}}),
    ("order", "ask", {"service": "price", "method": "echo", "given": "large"}),
    ("order", "ask", {"service": "price", "method": "echo", "given": "fits"}),
]  # fmt: skip


def ask(c: client.Client, type_: str, call: Call, *, monolith: bool) -> Any:
    """The reply or the error, without what differs between any two calls."""
    service, method, data = call
    try:
        reply = c.call(type_, data, method=f"{service}.{method}" if monolith else method, timeout=30)
        found: Any = {name: value for name, value in reply.items() if name not in ("ref", "source", "time")}
    except client.CallError as error:
        found = [type(error).__name__, error.may_have_run, str(error).removeprefix(f"{type_} replied ")]
    except ValueError as error:
        found = [type(error).__name__, str(error)[:20]]  # of the client: the name differs
    text = json.dumps(found, sort_keys=True)
    return json.loads(re.sub(r"no reply of (\w+)(?: to \w+)? within [0-9.e-]+ s", r"no reply of \1", text))


def test_a_thousand_calls_have_the_same_outcomes_in_one_worker_and_in_four(
    r: redis.Redis, run: Runner, redis_url: str
) -> None:
    calls = generated() + FEW
    with started(r, run, {"shop": "", **{name: name for name in SERVICES}}), ThreadPoolExecutor(2) as pool:

        def all_of(monolith: bool) -> list[Any]:
            with client.Client(redis_url) as c:
                return [ask(c, "shop" if monolith else call[0], call, monolith=monolith) for call in calls]

        one, four = pool.map(all_of, (True, False))
    different = [(call, a, b) for call, a, b in zip(calls, one, four, strict=True) if a != b]
    assert different == [], "\n\n".join(f"{call}\n{a}\n{b}" for call, a, b in different[:5])
    assert set(map(kind_of, one)) >= {
        "reply", "BadRequest", "UnknownMethod", "RemoteError", "CallTimeout", "TypeError", "ValueError",
    }  # fmt: skip


def kind_of(found: Any) -> Any:
    """`reply`, or the class of the error that the caller or a service saw."""
    if isinstance(found, list):
        return found[0]
    inner = found.get("result")
    return inner["kinds"][0] if isinstance(inner, dict) and "kinds" in inner else "reply"
