"""The pure parts of show, set, perms and trace."""

from __future__ import annotations

import contextlib
import ipaddress
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxrun.cli.commands import COMMANDS
from sandboxrun.config.permissions import KINDS, Kind, NetTarget, endpoint
from sandboxrun.config.worker import READ_FIELDS, WorkerConfig, parse_worker
from sandboxrun.describe import change, decide, fields, question, timeline, words
from sandboxrun.describe.paint import Paint
from sandboxrun.describe.requests import Facts, Letter, check_ref, parse_millis
from sandboxrun.errors import ConfigError, PolicyError, UsageError
from sandboxrun.policy.beyond import beyond
from sandboxrun.policy.ceiling import Ceiling
from sandboxrun.redis.hashes import Hashes, Stored

BASE = {"url": "/w", "version": "local"}


def worker(**given: str) -> WorkerConfig:
    return parse_worker("t", "1", {}, {name.encode(): text.encode() for name, text in {**BASE, **given}.items()})


def stored(key: str, **given: str) -> Stored:
    raw = {name.encode(): text.encode() for name, text in given.items()}
    return Stored(key, "hash" if raw else "none", len(raw), raw)


def both(own: dict[str, str], shared: dict[str, str] | None = None) -> Hashes:
    return Hashes(stored("t:h", **(shared or {})), stored("t:1:h", **own), 0)


# --- fields


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("redis://:pw@host/0", "redis://***@host/0"),
        ("https://user:p:w@host/a@b", "https://***@host/a@b"),
        ("https://h/?a=1&access_token=x&b=2", "https://h/?a=1&access_token=***&b=2"),
        ("https://h/w.py?token=x#y", "https://h/w.py?token=***#y"),
        (f"worker-v0 {'AB' * 16}", "worker-v0 ***"),
        ("me@example.com", "me@example.com"),
        ("https://h/a?b=c", "https://h/a?b=c"),
    ],
)
def test_logins_tokens_and_keys_are_masked(text: str, masked: str) -> None:
    assert fields.mask(text) == masked


def test_what_is_secret_by_its_name() -> None:
    for name in (
        "encryptedJson",
        "encryptedIv",
        "botToken",
        "DB_PASSWORD",
        "apiKey",
        "api_key",
        "clientSecret",
        "authHeader",
    ):
        assert fields.is_secret(name), name
    for name in (
        *(name for name in READ_FIELDS if not name.startswith("encrypted")),
        "pid",
        "author",
        "greeting",
        "keyboard",
    ):
        assert not fields.is_secret(name), name


def test_what_resembles_a_field() -> None:
    for name, meant in (
        ("alowNet", "allowNet"),
        ("allow_net", "allowNet"),
        ("denyred", "denyRead"),
        ("versoin", "version"),
    ):
        assert fields.resembles(name) == meant
    for name in ("greeting", "colour", "chatId", *READ_FIELDS, "pid"):
        assert fields.resembles(name) is None


# --- words


def test_every_kind_has_words_and_a_default_policy() -> None:
    lists = {
        "net": "*,*:1,a.b,*.a.b:1,10.0.0.0/8,[::1]:2", "read": "/a", "write": "/a", "run": "ls,/bin/ls", "env": "TZ",
        "listen": "127.0.0.1:0,0.0.0.0:80,[::1]:1", "redis": "a,%R~a,%W~a,+pubsub:a,+eval",
        "call": "price",
    }  # fmt: skip
    assert set(lists) == set(KINDS)
    config = worker(**{kind.field(verdict): lists[kind] for kind in KINDS.values() for verdict in ("allow", "deny")})
    found = words.lines(config.asked)
    assert (
        len({(line.verdict, line.words) for line in found})
        == len(found)
        == 2 * sum(text.count(",") + 1 for text in lists.values())
    )
    assert all(kind.default.format("/data") for kind in Kind)


def test_paint_escapes_before_it_colours() -> None:
    assert Paint(True)("a\x1b[2J", "bad") == "\x1b[31ma\\x1b[2J\x1b[0m"
    assert Paint(False).row("a\nb", "\u202e", "good", note="\x9b") == "  a\\nb           \\u202e  (\\x9b)"


# --- perms


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("net", "example.com"), ("net", "*:80"), ("net", "*.a:80"), ("net", "10.0.0.0/8:80"), ("net", "a:0"), ("net", ""),
        ("read", "relative"), ("read", "/a/../b"), ("read", "/a,b"), ("run", "a/b"), ("listen", "127.0.0.1"),
        ("listen", "host:80"), ("env", "LD_PRELOAD"), ("env", "a b"), ("redis", "a b"), ("redis", "+flushall"),
        ("call", "Price"), ("call", "price:req:x"), ("call", "res"), ("call", "*"), ("call", "a" * 65), ("call", ""),
    ],
)  # fmt: skip
def test_what_is_no_question(kind: str, text: str) -> None:
    with pytest.raises(UsageError, match=r"^--"):
        question.parse(Kind(kind), text)


ADDRESSES = st.sampled_from(
    "127.0.0.1 10.0.0.1 10.1.0.1 8.8.8.8 169.254.169.254 ::1 2606:4700::1 fd00::1 ::ffff:10.0.0.1 64:ff9b::a00:1".split()
)
ENTRIES = st.lists(
    st.sampled_from(
        "* *:80 10.0.0.0/8 10.1.0.0/16:80 127.0.0.1 127.0.0.1:443 8.8.8.8:80 ::/0 [::1]:80 fd00::/8 a.b *.b:80".split()
    ),
    max_size=4,
)


@settings(max_examples=150, derandomize=True, database=None, deadline=None)
@given(ADDRESSES, st.sampled_from([80, 443]), ENTRIES, ENTRIES)
def test_an_address_is_decided_as_a_connect_is(address: str, port: int, allow: list[str], deny: list[str]) -> None:
    config = worker(allowNet=",".join(allow), denyNet=",".join(deny))
    asked = question.parse(Kind.NET, endpoint(address, port))
    found = decide.decide(asked, config, None, NetTarget.parse("elsewhere.example:6379"), "/data")
    allowed = config.permissions.allows_net(ipaddress.ip_address(address), port)
    denied = config.permissions.denies_net(ipaddress.ip_address(address), port)
    assert found.verdict == ("denied" if denied else "allowed" if allowed else "missing")
    assert (found.entry in map(str, map(NetTarget.parse, deny if denied else allow))) is (found.verdict != "missing")


def test_all_beyond_the_ceiling_begins_with_what_a_run_says() -> None:
    for asked in (
        {"allowNet": "a.b,*,10.0.0.0/8", "allowRead": "/etc"},
        {"options": "--inspect=127.0.0.1:1 --allow-env=A,B", "allowRun": "ls"},
        {"allowRedis": "*,+eval,t:*,chat:*"},
        {"allowNet": "a.b"},
    ):
        ceiling = Ceiling(worker(**asked), (), "/data", "/policy.toml")
        found = list(map(str, beyond(ceiling)))
        with contextlib.nullcontext() if not found else pytest.raises(PolicyError) as raised:
            ceiling.check({})
        assert not found or found[0] == str(raised.value)
        assert len(found) == len(set(found))


# --- set


def test_a_plan_writes_what_differs_and_removes_what_is_there() -> None:
    hashes = both({**BASE, "a": "1", "b": "2"}, {"c": "3"})
    made = change.plan(hashes, {"a": "1", "b": None, "c": "", "d": "", "e": "5"})
    assert (made.put, made.remove) == ({"c": "", "e": "5"}, ("b",))
    assert made.warnings == ("t:1:h has no field d",)
    assert made.after.own.fields == stored("", **BASE, a="1", c="", e="5").fields
    assert made.after.own.count == 5
    assert change.rows(made) == [
        {"field": "b", "old": "2", "new": None, "from": None, "secret": False},
        {"field": "c", "old": None, "new": "", "from": None, "secret": False},
        {"field": "e", "old": None, "new": "5", "from": None, "secret": False},
    ]


def test_a_hash_too_large_to_be_read_stays_too_large() -> None:
    hashes = Hashes(stored("t:h"), Stored("t:1:h", "hash", 600), 0)
    with pytest.raises(ConfigError, match="601 fields"):
        change.plan(hashes, {"a": "1"}).after.own.check()


def test_a_value_that_was_too_long_is_replaced() -> None:
    own = Stored("t:1:h", "hash", 1, {}, {b"allowNet": 100_000})
    with pytest.raises(ConfigError, match="100000 bytes"):
        own.check()
    after = change.plan(Hashes(stored("t:h"), own, 0), {"allowNet": "a.b"}).after.own
    after.check()
    assert (after.count, after.fields) == (1, {b"allowNet": b"a.b"})


def test_where_an_entry_stands_is_said_of_the_hash_that_has_it() -> None:
    hashes = both({**BASE, "denyNet": "a"}, {"allowNet": "b", "denyNet": "c", "options": "--allow-env=A"})
    assert hashes.place("field allowNet of t:1:h") == "field allowNet of t:h"
    assert hashes.place("field denyNet of t:1:h") == "field denyNet of t:1:h"
    assert hashes.place("--allow-env in field options of t:1:h") == "--allow-env in field options of t:h"


# --- trace

TEXTS = st.one_of(
    st.text(max_size=30),
    st.sampled_from([
        "2026-11-25T17:55:58.830Z", "2026-11-25T17:55:58", "9999-99-99", "0001-01-01T00:00:00+14:00", "{}", "[]", "null",
        '{"code": 200, "ref": "r"}', '{"received": "2026-11-25T17:55:58.830Z", "completed": 5, "res": 1}', '{"code": {}}', "1-1",
        "99999999999999999999-0", "²",
    ]),
)  # fmt: skip
NAMES = st.sampled_from(
    "ref type created progress tTrace xTrace requestData data time deadline xid code res consumer deliveries reason".split()
)
LETTERS = st.builds(
    Letter, st.sampled_from(["0-0", "1795629358830-3", "1795629358831-0"]), st.dictionaries(NAMES, TEXTS)
)
FACTS = st.builds(
    Facts, st.just("r"), st.none() | TEXTS, st.just(1_795_629_360_000), st.dictionaries(NAMES, TEXTS),
    st.none() | st.integers(-1, 10**6), st.none() | TEXTS, st.none() | st.integers(-1, 10**6), st.none() | LETTERS,
    st.none() | LETTERS, st.none() | LETTERS, st.none() | LETTERS,
    st.none() | st.tuples(TEXTS, st.integers(0, 10**12), st.integers(0, 10**6)), st.none() | st.booleans(),
    st.lists(TEXTS, max_size=2).map(tuple),
)  # fmt: skip


@settings(max_examples=200, derandomize=True, database=None, deadline=None)
@given(FACTS)
def test_whatever_is_left_of_a_request_can_be_shown(facts: Facts) -> None:
    found = timeline.timeline(facts)
    if found is None:
        assert not (facts.trace or facts.entry or facts.reply or facts.response or facts.dead)
        return
    shown = timeline.text(found, Paint(False))
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert json.loads(json.dumps(found)) == found
    assert [event["at"] for event in found["events"]] == sorted(event["at"] for event in found["events"])
    assert found["outcome"] in ("answered", "failed", "dead", "done", "waiting", "being handled", "unknown")


@pytest.mark.parametrize("ref", ["", "a\n", "\x1b", "x" * 257])
def test_what_is_no_ref(ref: str) -> None:
    with pytest.raises(UsageError):
        check_ref(ref)


def test_times_that_are_none() -> None:
    assert parse_millis("2026-11-25T17:55:58.830Z") == 1_795_629_358_830
    assert [parse_millis(text) for text in ("", "x", "2026", "9" * 1000)] == [None] * 4


# --- help


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "run"])
def test_every_command_has_an_example_in_its_help(command: str, capsys: Any) -> None:
    import importlib

    with pytest.raises(SystemExit):
        importlib.import_module(f"sandboxrun.cli.{command}").main(["--help"])
    shown = capsys.readouterr().out
    assert "example" in shown.lower(), shown
    assert f"sandboxrun {command} " in shown.partition("example")[2] or command == "check"
