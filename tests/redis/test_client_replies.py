"""Replies that nobody can use: each is the error of its own call, and of no other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import servers
from answering import Answering, plain

from sandboxrun import client

MIB = 1024 * 1024
BAD: dict[str, tuple[Any, str]] = {
    "deep": ('{"code": 200, "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "is not JSON: it is nested too deeply"),
    "deep objects": ('{"a":' * 50_000 + "1" + "}" * 50_000, "is not JSON: it is nested too deeply"),
    "no JSON": ("hello", "is not JSON: Expecting value"),
    "nothing": ("", "is not JSON"),
    "cut off": ('{"code": 200', "is not JSON"),
    "more than one": ('{"code": 200}{}', "is not JSON: Extra data"),
    "NaN": ('{"code": 200, "x": NaN}', "is not JSON: NaN is no JSON"),
    "infinity": ('{"code": 200, "x": [-Infinity]}', "is not JSON: -Infinity is no JSON"),
    "no UTF-8": (b'{"code": 200, "x": "\xff"}', r"is not JSON: it is not UTF-8 \(byte 20\)"),
    "UTF-16": ('{"code": 200}'.encode("utf-16"), "is not JSON: it is not UTF-8"),
    "a huge number": ('{"code": 200, "x": ' + "9" * 5000 + "}", "is not JSON: Exceeds the limit"),
    "a list": ("[1]", "is not a JSON object but a list"),
    "a text": ('"200"', "is not a JSON object but text"),
    "null": ("null", "is not a JSON object but null"),
    "another ref": ('{"code": 200, "ref": "else"}', "is for another request: its ref is 'else'"),
    "no code": ('{"n": 1}', "has no code"),
    "a text as code": ('{"code": "200"}', "has the code '200': expected a whole number"),
    "true as code": ('{"code": true}', "has the code True: expected a whole number"),
    "an unknown code": ('{"code": 299, "err": [1]}', "t replied 299: None"),
    "too large": ('{"code": 200, "x": "' + "x" * (9 * MIB) + '"}', "has more than .* bytes"),
    "much too large": ("x" * (40 * MIB), "has more than .* bytes"),
}


def answer(data: Any, ref: str) -> Any:
    return BAD[data][0] if data in BAD else plain(data, ref)


@pytest.mark.parametrize("traces", [True, False])
def test_a_call_ends_with_an_error_that_says_what_is_wrong(server: servers.Own, traces: bool) -> None:
    with Answering(server.url, answer, traces=traces), client.Client(server.url) as c:
        for name, (_, message) in BAD.items():
            with pytest.raises(client.CallError, match=message) as error:
                c.call("t", name, timeout=60)
            assert error.value.may_have_run
            assert c.call("t", "next", timeout=60)["data"] == "next"


def test_of_many_calls_the_others_come_back(server: servers.Own) -> None:
    items = [*BAD, *range(300), *BAD]
    with Answering(server.url, answer), client.Client(server.url) as c:
        rows = sorted(c.call_many("t", items, timeout=60), key=lambda row: row[0])
        _check(items, [outcome for _, outcome, _ in rows])

        async def main() -> list[Any]:
            async with client.AsyncClient(server.url) as a:
                calls = [a.call("t", item, timeout=60) for item in items]
                return await asyncio.gather(*calls, return_exceptions=True)

        _check(items, asyncio.run(main()))


def _check(items: list[Any], outcomes: list[Any]) -> None:
    assert len(outcomes) == len(items)
    for item, outcome in zip(items, outcomes, strict=True):
        if item in BAD:
            # Another text than of a single call, if it was found in the trace.
            assert isinstance(outcome, client.RemoteError)
            assert str(outcome).startswith(("the reply of t to ", "t replied 299"))
        else:
            assert outcome["data"] == item


def test_eight_mebibytes_are_taken(server: servers.Own) -> None:
    text = "x" * (8 * MIB - 100)
    answering = Answering(server.url, lambda data, ref: json.dumps({"ref": ref, "code": 200, "x": text}))
    with answering, client.Client(server.url) as c:
        assert c.call("t", 1, timeout=60)["x"] == text
        assert all(isinstance(row[1], dict) for row in c.call_many("t", range(5), timeout=60))


def test_a_reply_that_is_in_no_list(server: servers.Own) -> None:
    with redis.Redis.from_url(server.url) as r:

        def answer(data: Any, ref: str) -> str | None:
            if data != "bad":
                return plain(data, ref)
            r.set(f"res:{ref}", "text")
            return None

        items = [1, "bad", 2]
        with Answering(server.url, answer), client.Client(server.url) as c:
            with pytest.raises(client.CallError, match=r"is not in a list: res:.* is of type string"):
                c.call("t", "bad", timeout=60)
            outcomes = [row[1] for row in sorted(c.call_many("t", items, timeout=60), key=lambda row: row[0])]
            assert [type(outcome) for outcome in outcomes] == [dict, client.RemoteError, dict]

            async def main() -> list[Any]:
                async with client.AsyncClient(server.url) as a:
                    return await asyncio.gather(*(a.call("t", i, timeout=60) for i in items), return_exceptions=True)

            assert [type(outcome) for outcome in asyncio.run(main())] == [dict, client.RemoteError, dict]


def test_what_cannot_be_sent_is_the_error_of_its_own_call(server: servers.Own) -> None:
    circle: list[Any] = []
    circle.append(circle)
    with Answering(server.url), client.Client(server.url) as c:
        for bad in ({1, 2}, float("nan"), circle, object()):
            with pytest.raises((TypeError, ValueError)):
                c.call("t", bad, timeout=60)
            rows = sorted(c.call_many("t", [1, bad, 2], timeout=60), key=lambda row: row[0])
            assert [type(row[1]) for row in rows] == [dict, client.BadRequest, dict]
            assert not rows[1][1].may_have_run  # type: ignore[union-attr]

        def items() -> Iterator[int]:
            yield from range(3)
            raise KeyError("the items")

        rows = c.call_many("t", items(), timeout=60)
        assert sorted(next(rows)[1]["data"] for _ in range(3)) == [0, 1, 2]  # type: ignore[index]
        with pytest.raises(KeyError, match="the items"):
            next(rows)


def test_the_functions_for_redis_py_judge_replies_too(server: servers.Own) -> None:
    with redis.Redis.from_url(server.url, socket_timeout=5) as r, Answering(server.url, answer):
        for name, (_, message) in BAD.items():
            if "is not" in message:
                with pytest.raises(client.CallError, match=message.partition(":")[0].partition(" but")[0]):
                    client.wait(r, client.send(r, "t", name, now="x"), timeout_seconds=20)
        for timeout in (20, None, float("inf")):
            reply = client.wait(r, client.send(r, "t", 1, now="x"), timeout_seconds=timeout)
            assert reply is not None and reply["data"] == 1
        assert client.wait(r, "none", timeout_seconds=0.05) is None
        with pytest.raises(ValueError, match="timeout is -1 s"):
            client.wait(r, "none", timeout_seconds=-1)
