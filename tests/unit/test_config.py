from __future__ import annotations

import pytest

from sandboxrun.config import keys
from sandboxrun.config.worker import parse_worker, wanted_fields
from sandboxrun.errors import ConfigError


def parse(own: dict[str, str | bytes], shared: dict[str, str | bytes] | None = None):  # type: ignore[no-untyped-def]
    def raw(fields: dict[str, str | bytes]) -> dict[bytes, bytes]:
        return {name.encode(): value if isinstance(value, bytes) else value.encode() for name, value in fields.items()}

    return parse_worker("t", "1", raw(shared or {}), raw(own))


GOOD: dict[str, str | bytes] = {"url": "/w", "version": "local"}


def test_both_spellings_and_the_types_defaults() -> None:
    config = parse({"workerUrl": "/own"}, {"url": "/shared", "workerVersion": "local", "requestLimit": "5"})
    assert (config.url, config.version, config.loop.request_limit) == ("/own", "local", 5)
    assert parse({**GOOD, "workerUrl": "/w"}).url == "/w"


def test_an_own_field_wins_over_the_types_whatever_its_spelling() -> None:
    config = parse({"workerVersion": "v2", "url": "https://h/{version}"}, {"version": "v1"})
    assert config.version == "v2"


def test_defaults_of_the_loop() -> None:
    loop = parse(GOOD).loop
    assert (loop.request_stream, loop.response_stream, loop.consumer_id) == ("t:req:x", "t:res:x", "1")
    assert (loop.response_stream_limit, loop.request_limit, loop.block_millis, loop.reply_expire_seconds) == (
        1000,
        0,
        2000,
        8,
    )


def test_nothing_set_grants_nothing_and_empty_fields_too() -> None:
    for fields in ({}, {"allowNet": ""}, {"denoOptions": ""}, {"options": "--allow-net= --allow-read="}):
        permissions = parse({**GOOD, **fields}).permissions
        assert not any(permissions.allow.values())


def test_fields_and_options_add_up() -> None:
    permissions = parse(
        {**GOOD, "allowNet": "a:1", "denoOptions": "--allow-net=b:2,c --no-prompt --deny-net='d:4'"}
    ).permissions
    assert [t.host for t in permissions.allow["net"]] == ["b", "c", "a"]
    assert [t.host for t in permissions.deny["net"]] == ["d"]


@pytest.mark.parametrize(
    ("option", "address", "wait"),
    [
        ("--inspect", "127.0.0.1:9229", False),
        ("--inspect=127.0.0.1:5678", "127.0.0.1:5678", False),
        ("--inspect-wait=5678", "127.0.0.1:5678", True),
        ("--inspect-brk=[::1]:5678", "[::1]:5678", True),
    ],
)
def test_inspect_lets_the_worker_listen_there_and_nowhere_else(option: str, address: str, wait: bool) -> None:
    config = parse({**GOOD, "options": option})
    assert config.inspect is not None
    assert (str(config.inspect.address), config.inspect.wait) == (address, wait)
    assert [str(target) for target in config.permissions.allow["listen"]] == [address]
    assert not config.asked.permissions.allow.get("listen")  # which the ceiling is asked for by another name
    assert len(config.warnings) == option.startswith("--inspect-brk")


@pytest.mark.parametrize("value", ["", "nowhere", "localhost:", "127.0.0.1:70000", "example.com:1"])
def test_an_address_that_is_none_is_no_debugger(value: str) -> None:
    with pytest.raises(ConfigError, match="--inspect in field options of t:1:h"):
        parse({**GOOD, "options": f"--inspect={value}"})


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"allowFoo": "x"}, "allowFoo"),
        ({"allowRun": "no/../way"}, "allowRun"),
        ({"allowListen": "127.0.0.1"}, "allowListen"),
        ({"limitMemory": "much"}, "limitMemory"),
        ({"limitMemory": "1"}, "from 64M to"),
        ({"limitSpeed": "9"}, "limitSpeed"),
        ({"options": "--limit-threads=-1"}, "--limit-threads"),
        ({"options": "--limit-speed=1"}, "--limit-NAME"),
        ({"allowNet": "nonsense:port"}, "allowNet"),
        ({"options": "--allow-all"}, "everything"),
        ({"options": "-A"}, "everything"),
        ({"options": "--allow-net"}, "everything"),
        ({"options": "--allow-ffi=x"}, "--allow-ffi"),
        ({"options": "--v8-flags=x"}, "--v8-flags"),
        ({"options": "--allow-net='a"}, "cannot be split"),
        ({"options": "--allow-net=a", "denoOptions": "--allow-net=b"}, "differ"),
        ({"url": "/a", "workerUrl": "/b"}, "differ"),
        ({"type": "other"}, "type"),
        ({"workerType": "other"}, "type"),
        ({"url": ""}, "no url"),
        ({"version": ""}, "no version"),
        ({"version": "../x"}, "version"),
        ({"version": "a b"}, "version"),
        ({"version": "a//b"}, "version"),
        ({"version": "v" * 201}, "version"),
        ({"url": "https://h/a b"}, "url"),
        ({"url": "https://h/\x1b[2J"}, "url"),
        ({"url": "x" * 3000}, "url"),
        ({"url": b"\xff"}, "UTF-8"),
        ({"allowNet": "x" * 70_000}, "70000 bytes"),
        ({"requestLimit": "many"}, "requestLimit"),
        ({"requestLimit": "-1"}, "requestLimit"),
        ({"xreadGroupBlockMillis": "0"}, "xreadGroupBlockMillis"),
        ({"replyExpireSeconds": "1.5"}, "replyExpireSeconds"),
        ({"responseStreamLimit": "٣"}, "responseStreamLimit"),
        ({"requestStream": "a b"}, "requestStream"),
        ({"sha256": "abc"}, "sha256"),
    ],
)
def test_a_wrong_field_is_one_line_that_names_it(fields: dict[str, str | bytes], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse({**GOOD, **fields})
    assert text in str(error.value)
    assert "t:1:h" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_hash_says_how_to_make_it() -> None:
    with pytest.raises(ConfigError, match="t:1:h does not exist") as error:
        parse({}, {})
    assert error.value.hint == ("sandboxrun set t 1 url=URL version=VERSION",)


def test_the_hash_of_the_type_is_enough() -> None:
    assert parse({}, {"url": "/w", "version": "local"}).url == "/w"


@pytest.mark.parametrize("type_", ["", "A", "1a", "a:b", "a/b", "a b", "../a", "a\n", "a" * 65, "a\0", "ä"])
def test_bad_types(type_: str) -> None:
    with pytest.raises(ConfigError, match="type"):
        keys.check_type(type_)


@pytest.mark.parametrize("id_", ["", "-a", ".a", "a:b", "a/b", "a b", "a\n", "a" * 129, "a\0"])
def test_bad_ids(id_: str) -> None:
    with pytest.raises(ConfigError, match="id"):
        keys.check_id(id_)


def test_good_types_ids_and_keys() -> None:
    assert keys.check_type("demo-worker_2") == "demo-worker_2"
    assert keys.check_id("A1._-") == "A1._-"
    assert keys.split_worker_key("demo-worker:1:h") == ("demo-worker", "1")
    for key in ("demo-worker:1", "demo-worker:1:x", "a:b:c:h"):
        with pytest.raises(ConfigError):
            keys.split_worker_key(key)


@pytest.mark.parametrize(
    ("field", "right"),
    [
        ("denynet", "denyNet"),
        ("deny_net", "denyNet"),
        ("Allow-Read", "allowRead"),
        ("limitmemory", "limitMemory"),
        ("LIMIT_CPU", "limitCpu"),
    ],
)
def test_a_misspelt_denial_or_limit_does_not_pass_unseen(field: str, right: str) -> None:
    assert list(wanted_fields([field, "foo", "allowance"])) == [field]
    with pytest.raises(ConfigError, match=f"field {field} of t:1:h is spelt {right}") as error:
        parse_worker("t", "1", {}, {b"url": b"/w", b"version": b"local", field.encode(): b"1"})
    assert error.value.hint == (f"sandboxrun set t 1 {right}=1 --delete {field}",)
