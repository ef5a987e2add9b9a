"""The pure parts of the request loop: URLs, payloads, rendering, what is gone."""

from __future__ import annotations

import enum
import itertools
import json
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

import hiredis
import pytest
from parsed import parse

from sandboxrun.config.fields import parse_loop
from sandboxrun.errors import ConfigError, ConnectionLost, UsageError
from sandboxrun.protocol import BadRequest
from sandboxrun.protocol.request import now
from sandboxrun.redis.address import parse_url
from sandboxrun.redis.connection import RETRY_MOST_SECONDS, delays, pack
from sandboxrun.worker.handlers import Handler
from sandboxrun.worker.payload import Mismatch, converter
from sandboxrun.worker.rendering import Entry, Renderer
from sandboxrun.worker.request import Encoder, Request
from sandboxrun.worker.streams import gone, order


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Inner:
    size: float


@dataclass
class Outer:
    name: str
    inner: Inner
    colour: Colour = Colour.RED
    tags: list[str] = field(default_factory=list)
    kind: Literal["a", "b"] = "a"
    pair: tuple[int, str] = (0, "")
    either: int | str | None = None


class Typed(TypedDict):
    name: str
    age: NotRequired[int]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h:1/2", ("h", 1, "", "", "", 2, False)),
        ("rediss://u:p%40w@[::1]:7/0", ("::1", 7, "", "u", "p@w", 0, True)),
        ("redis://:p@h", ("h", 6379, "", "", "p", 0, False)),
        ("redis://[::1]", ("::1", 6379, "", "", "", 0, False)),
        ("unix://:p@/a/b.sock?db=3", ("127.0.0.1", 6379, "/a/b.sock", "", "p", 3, False)),
        ("redis://", ("127.0.0.1", 6379, "", "", "", 0, False)),
    ],
)
def test_urls_are_read(url: str, expected: tuple[object, ...]) -> None:
    found = parse_url(url)
    assert (found.host, found.port, found.path, found.user, found.password, found.db, found.tls) == expected
    assert "p" not in found.shown.partition("://")[2].replace(found.path, "")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://h",
        "redis://h:x",
        "redis://:secret@h:99999",
        "unix://",
        "redis://h/x",
        "redis://h?protocol=4",
        "redis://:secret@h\udcff:1",
        "redis://:secret\udcff@h:1",
    ],
)
def test_a_url_that_is_none_is_one_line_without_the_password(url: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_url(url)
    assert "secret" not in str(error.value)


def test_delays_grow_to_a_bound_and_differ() -> None:
    first, second = (list(itertools.islice(delays(), 12)) for _ in range(2))
    assert first != second
    assert max(first + second) <= RETRY_MOST_SECONDS
    assert first[0] < 0.1 < first[-1]


def test_a_passing_error_is_told_from_a_lasting_one() -> None:
    from sandboxrun.redis.replies import translated

    for text in ("LOADING x", "READONLY You can't write", "OOM command not allowed", "BUSY script", "MISCONF x"):
        assert isinstance(translated(hiredis.ReplyError(text), "r"), ConnectionLost)
    for text in ("BUSYGROUP x", "WRONGTYPE x", "NOPERM x"):
        assert isinstance(translated(hiredis.ReplyError(text), "r"), hiredis.ReplyError)


def test_a_payload_is_made_of_json() -> None:
    data = {"name": "n", "inner": {"size": 2}, "tags": ["x"], "pair": [1, "y"], "colour": "red", "either": "e"}
    assert converter(Outer)(data) == Outer("n", Inner(2.0), Colour.RED, ["x"], "a", (1, "y"), "e")
    assert converter(Typed)({"name": "n"}) == {"name": "n"}
    assert converter(dict[str, int])({"a": 1}) == {"a": 1}
    assert converter(list[Any])([1, "x"]) == [1, "x"]


@pytest.mark.parametrize(
    ("wanted", "data", "message"),
    [
        (Outer, {"name": "n"}, "field inner is missing"),
        (Outer, {"name": "n", "inner": {"size": True}}, "field inner.size: expected a number, not True"),
        (Outer, {"name": "n", "inner": {"size": 1}, "tags": [1]}, "field tags[0]: expected text, not 1"),
        (Outer, {"name": "n", "inner": {"size": 1}, "kind": "c"}, "field kind: expected 'a' or 'b', not 'c'"),
        (Outer, {"name": "n", "inner": {"size": 1}, "colour": "no"}, "field colour: expected 'red', not 'no'"),
        (Outer, {"name": "n", "inner": {"size": 1}, "pair": [1]}, "field pair: expected a list of 2, not a list"),
        (Outer, {"name": "n", "inner": {"size": 1}, "either": []}, "field either: expected"),
        (Typed, {"age": 1}, "field name is missing"),
        (Typed, {"name": "n", "age": "1"}, "field age: expected a whole number, not '1'"),
        (Typed, {"name": "n", "x": 1}, "field x is unknown: expected name, age"),
        (int, True, "it: expected a whole number, not True"),
        (str, None, "it: expected text, not null"),
    ],
)
def test_what_is_no_payload_names_the_field(wanted: Any, data: Any, message: str) -> None:
    with pytest.raises(Mismatch) as error:
        converter(wanted)(data)
    assert message in str(error.value)


def test_a_type_that_no_json_can_be_is_found_at_the_start() -> None:
    with pytest.raises(ConfigError, match="cannot be a payload"):
        converter(object.__init__)
    with pytest.raises(ConfigError, match="second parameter without a type"):
        Handler(lambda request, data: None, None, None)


def test_handlers_are_called_by_their_parameters() -> None:
    def alone(data: Typed) -> Any:
        return data

    def both(request: Request, data: Typed) -> Any:
        return (request.ref, data)

    def plain(request: Request) -> Any:
        return request.data

    async def later(request: Request) -> None: ...

    request = Request("1-0", "r", "t", {"name": "n"}, {})
    assert Handler(alone, None, None).call(request) == {"name": "n"}
    assert Handler(both, None, None).call(request) == ("r", {"name": "n"})
    assert Handler(plain, None, None).call(request) == {"name": "n"}
    assert Handler(plain, Inner, None).call(Request("1-0", "r", "t", {"size": 1}, {})) == Inner(1.0)
    assert Handler(later, None, None).is_async
    assert not Handler(plain, None, None).is_async
    with pytest.raises(BadRequest, match="field name is missing"):
        Handler(alone, None, None).call(Request("1-0", "r", "t", {}, {}))


def commands(data: bytes) -> list[list[bytes]]:
    reader = hiredis.Reader()
    reader.feed(data)
    found = []
    while (command := reader.gets()) is not False:
        found.append(command)
    return found


@pytest.mark.parametrize("expire_nx", [True, False])
@pytest.mark.parametrize("ref", ["r1", "é%d", None])
def test_a_reply_is_the_commands_that_the_protocol_names(expire_nx: bool, ref: str | None) -> None:
    loop = parse_loop({"responseStream": "odd%s"}, "demo-worker", "1")
    render = Renderer(loop, "demo-worker", "demo-worker:dead:x")
    render.expire_nx = expire_nx
    entry = Entry(b"1-0", {b"type": b"demo-worker", b"data": b"\xff"})
    entry.ref = ref
    body = json.dumps({"text": "100 %", "code": 200})
    render.reply(entry, 200, body, "A", "B", {"model": "m", "n": "1"} if ref else None)
    found = commands(entry.commands)
    assert len(found) == entry.count
    name, text = (ref or "").encode(), body.encode()
    record = [
        b"XADD",
        b"odd%s",
        b"*",
        b"ref",
        name,
        b"type",
        b"demo-worker",
        b"xid",
        b"1-0",
        b"code",
        b"200",
        b"res",
        text,
    ]
    if ref is None:
        assert found == [record]
        return
    key, trace = b"res:" + name, b"req:" + name + b":h"
    story = b'{"received":"A","completed":"B","res":' + text + b"}"
    expected = [
        [b"LPUSH", key, text], [b"EXPIRE", key, b"8"], record, [b"HSET", trace, b"demoWorkerTrace", story],
        *([[b"EXPIRE", trace, b"120", b"NX"]] if expire_nx else []),
        [b"HSET", trace, b"model", b"m", b"n", b"1"],
    ]  # fmt: skip
    assert found == expected
    render.add_dead_letter(entry, "why", "1", "T")
    letter = commands(entry.commands)[-1]
    assert letter[:5] == [b"XADD", b"demo-worker:dead:x", b"MAXLEN", b"~", b"10000"]
    assert letter[-2:] == [b"request.data", b"\xff"]


def test_the_envelope_wins_and_the_time_is_iso() -> None:
    found = json.loads(Encoder().reply("r", "t", 200, {"ref": "x", "code": 1, "a": [1]}, now()))
    assert (found["ref"], found["code"], found["source"], found["a"]) == ("r", 200, "t", [1])
    assert found["time"].endswith("Z")
    assert len(found["time"]) == 24


@pytest.mark.parametrize("text", [" 1", "1 ", "\n[1]\n", "[1]"])
def test_white_space_around_json_is_no_error(text: str) -> None:
    request = parse("1-0", {b"ref": b"r", b"data": text.encode()}, {"t": 1}, default="t")
    assert request.data in (1, [1])


def test_a_consumer_is_gone_that_has_nothing_and_was_not_seen() -> None:
    rows = [
        [b"name", name, b"pending", count, b"idle", idle, b"inactive", 0]
        for name, count, idle in [(b"me", 0, 99), (b"busy", 1, 99), (b"new", 0, 5), (b"old", 0, 99)]
    ]
    assert gone(rows, "me", 50) == ["old"]
    assert gone([{b"name": b"old", b"pending": 0, b"idle": 99}], "me", 50) == ["old"]


def test_ids_are_ordered_as_numbers() -> None:
    assert sorted([b"10-1", b"9-2", b"9-10", b"9"], key=order) == [b"9", b"9-2", b"9-10", b"10-1"]


def test_a_command_is_packed_as_redis_reads_it() -> None:
    assert pack("SET", b"k\xff", 1) == b"*3\r\n$3\r\nSET\r\n$2\r\nk\xff\r\n$1\r\n1\r\n"
