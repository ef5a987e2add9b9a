"""The parsers of hashes and of their secrets, against input nobody would write."""

# ruff: noqa: PT017 - the other outcome, a value, is checked too

from __future__ import annotations

import base64
import ipaddress
import json
from typing import Any

import pytest
from fuzzing import BYTES, FEW, TEXT, fuzz, one_line
from hypothesis import strategies as st

from sandboxrun.config import fields as loop_settings
from sandboxrun.config import keys, secrets
from sandboxrun.config import worker as config
from sandboxrun.config.permissions import (
    KINDS,
    VERDICTS,
)
from sandboxrun.errors import ConfigError, SecretError
from sandboxrun.log import LINE_MAX_CHARS, escape

KEY = "demo-worker:1:h"

_NAMES = [
    "type", "url", "version", "sha256", "pid", *loop_settings.ALIASES, *config.OPTION_FIELDS, *loop_settings.SECRET_FIELDS,
    *config.LOOP_NUMBERS, *config.LOOP_NAMES, *(kind.field(verdict) for kind in KINDS.values() for verdict in VERDICTS),
    "allowAll", "allowRun", "allowX", "denyNET", "allow", "other",
]  # fmt: skip
FIELD_NAMES = st.one_of(st.sampled_from(_NAMES).map(str.encode), BYTES)
PLAUSIBLE = st.sampled_from(
    [b"", b"0", b"1", b"1000", b"-1", b"99999999999999999", b"local", b"main", b"v1.2.3", b"https://codeberg.org/a/b/raw/branch/main/w.py",
     b"/tmp", b"a" * 64, b"sha256:" + b"A" * 64, b"demo-worker", b"127.0.0.1:80", b"x" * 70_000, b"--allow-net=a.example", b"\xff"]
)  # fmt: skip
HASHES = st.dictionaries(FIELD_NAMES, st.one_of(PLAUSIBLE, BYTES), max_size=8)
BASE = {b"url": b"https://codeberg.org/a/b/raw/branch/main/w.py", b"version": b"main"}


@fuzz(HASHES)
def test_fields_are_text_under_known_names(raw: dict[bytes, bytes]) -> None:
    try:
        fields = config.read_fields(raw, KEY)
    except ConfigError as error:
        one_line(error)
        return
    assert config.wanted_fields(fields) == list(fields)
    assert not set(fields) & set(loop_settings.ALIASES)
    assert all(len(value.encode()) <= config.value_limit(name) for name, value in fields.items())
    for name, value in fields.items():
        spelled = [name, *(alias for alias, first in loop_settings.ALIASES.items() if first == name)]
        assert value.encode() in [raw.get(spelling.encode()) for spelling in spelled]


@fuzz(HASHES, HASHES, st.booleans(), examples=250)
def test_a_hash_is_a_config_or_one_line(shared: dict[bytes, bytes], own: dict[bytes, bytes], complete: bool) -> None:
    own = {**own, **BASE} if complete else own
    try:
        worker = config.parse_worker("demo-worker", "1", shared, own)
    except ConfigError as error:
        one_line(error)
        assert KEY in str(error) or "demo-worker:h" in str(error)
        return
    assert (worker.key, worker.type, worker.id) == (KEY, "demo-worker", "1")
    assert worker.url.isprintable()
    assert config.check_version(worker.version, KEY) == worker.version
    assert worker.sha256 is None or bytes.fromhex(worker.sha256)
    loop = worker.loop
    numbers = (
        loop.response_stream_limit, loop.response_stream_max, loop.request_stream_limit, loop.request_limit, loop.block_millis, loop.reply_expire_seconds,
        loop.max_deliveries, loop.takeover_millis,
    )  # fmt: skip
    assert all(least <= n <= most for n, (_, least, most) in zip(numbers, config.LOOP_NUMBERS.values(), strict=True))
    # What was granted stands in the hashes, and nowhere else.
    words = b" ".join([*own, *shared, *own.values(), *shared.values()]).lower()
    for verdict, both in (("allow", worker.permissions.allow), ("deny", worker.permissions.deny)):
        for kind, targets in both.items():
            assert kind in KINDS
            assert not targets or verdict.encode() in words
    if b"allow" not in words:
        assert not any(worker.permissions.allow.values())
        assert not worker.permissions.allows_net(ipaddress.ip_address("1.1.1.1"), 443, ["a.example"])


@fuzz(TEXT, st.sampled_from(config.OPTION_FIELDS))
def test_options_grant_what_they_list_or_are_one_line(text: str, field: str) -> None:
    for options in (text, "--allow-net=a.example " + text, f"--deny-net={text} --allow-net=*", f"--allow-{text}"):
        try:
            worker = config.parse_worker("t", "1", {}, {**BASE, field.encode(): options.encode("utf-8", "replace")})
        except ConfigError as error:
            one_line(error)
            continue
        assert "--allow-all" not in options.split()
        if "--allow-net" not in options:
            assert not worker.permissions.allow.get("net")
        assert not worker.permissions.allows_net(ipaddress.ip_address("127.0.0.1"), 6379) or "127.0.0.1" in options


@fuzz(TEXT)
def test_types_and_ids_come_back_unchanged_or_as_one_line(text: str) -> None:
    for check in (keys.check_type, keys.check_id):
        try:
            assert check(text) == text
        except ConfigError as error:
            one_line(error)
            continue
        assert text.isascii()
        assert not set(text) & set(" :/\\*?[]{}\n\0")
        assert not text.startswith((".", "-"))
        assert keys.split_worker_key(keys.worker_key("t", text)) == ("t", text)


@fuzz(TEXT)
def test_a_worker_key_splits_into_a_type_and_an_id(text: str) -> None:
    for key in (text, f"t:{text}:h", f"{text}:1:h"):
        try:
            parts = keys.split_worker_key(key)
        except ConfigError as error:
            one_line(error)
            continue
        assert keys.worker_key(*parts) == key


def test_a_workers_own_list_replaces_the_shared_one_in_every_spelling() -> None:
    shared = {b"allowNET": b"shared.example"}
    try:
        worker = config.parse_worker("t", "1", shared, {**BASE, b"allowNet": b"own.example"})
    except ConfigError:
        return
    assert not worker.permissions.allows_name("shared.example")


def test_the_message_about_a_long_field_name_is_shown_whole() -> None:
    with pytest.raises(ConfigError) as error:
        config.parse_worker("t", "1", {}, {**BASE, b"allow" + b"X" * 3000: b""})
    assert len(escape(str(error.value))) <= LINE_MAX_CHARS


@fuzz(
    st.one_of(
        BYTES,
        BYTES.map(b"worker-v0 ".__add__),
        st.text("0123456789abcdefABCDEF", max_size=70).map(lambda t: f"worker-v0 {t}\n".encode()),
    )
)
def test_a_key_line_is_a_key_or_one_line_that_does_not_show_it(line: bytes) -> None:
    try:
        key = secrets.parse_key_line(line)
    except SecretError as error:
        one_line(error)
        word = line.removeprefix(b"worker-v0 ").strip()
        assert len(word) < 30 or word.decode("utf-8", "replace") not in str(error)
        return
    assert len(key) in (16, 24, 32)
    assert line.startswith(b"worker-v0 " + line[10:].strip())
    assert bytes.fromhex(line[10:].decode()) == key


def sealed(text: bytes, key: bytes) -> dict[str, str]:
    """`text` under the right key, so that what is wrong is the text."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    data = AESGCM(key).encrypt(bytes(12), text, b"sandboxrun " + KEY.encode())
    return {
        "encryptedAlg": "aes-256-gcm",
        "encryptedIv": bytes(12).hex(),
        "encryptedJson": base64.b64encode(data).decode(),
    }


_ALG = st.one_of(st.none(), st.sampled_from(secrets.ALGORITHMS), TEXT)
_IV = st.one_of(st.sampled_from(["00" * 12, "00" * 16, "0", ""]), TEXT)
_BODY = st.one_of(TEXT, st.binary(max_size=64).map(lambda b: base64.b64encode(b).decode()), st.just("A" * 64))


@fuzz(_ALG, _IV, _BODY, st.sampled_from([16, 24, 32]), examples=250)
def test_garbage_does_not_decrypt(algorithm: str | None, iv: str, body: str, size: int) -> None:
    fields = {"encryptedIv": iv, "encryptedJson": body, **({} if algorithm is None else {"encryptedAlg": algorithm})}
    with pytest.raises(SecretError) as error:
        secrets.decrypt(fields, b"k" * size, worker_key=KEY, type_="demo-worker")
    one_line(error.value)
    assert (b"k" * size).hex() not in str(error.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@fuzz(
    st.dictionaries(st.text(max_size=8).filter(lambda n: n != "type"), _JSON, max_size=4),
    st.sampled_from(secrets.ALGORITHMS),
    TEXT,
    examples=FEW,
)
def test_secrets_round_trip_and_only_for_their_worker(found: dict[str, Any], algorithm: str, other: str) -> None:
    key = b"k" * secrets.key_bytes(algorithm)
    fields = secrets.encrypt(found, key, worker_key=KEY, type_="demo-worker", algorithm=algorithm)
    assert secrets.decrypt(fields, key, worker_key=KEY, type_="demo-worker") == {"type": "demo-worker", **found}
    with pytest.raises(SecretError):
        secrets.decrypt(fields, key, worker_key=KEY, type_="other")
    with pytest.raises(SecretError) as error:
        secrets.decrypt(fields, key[::-1][1:] + b"x", worker_key=KEY, type_="demo-worker")
    one_line(error.value)
    if algorithm == "aes-256-gcm" and other != KEY:
        with pytest.raises(SecretError):
            secrets.decrypt(fields, key, worker_key=other, type_="demo-worker")


@fuzz(st.one_of(BYTES, _JSON.map(lambda value: json.dumps(value).encode())))
def test_what_decrypts_to_another_text_is_one_line_that_does_not_show_it(text: bytes) -> None:
    key = bytes(32)
    with pytest.raises(SecretError) as error:
        secrets.decrypt(sealed(text, key), key, worker_key=KEY, type_="demo-worker")
    one_line(error.value)
    assert len(text) < 8 or text.decode("utf-8", "replace") not in str(error.value)


def test_deeply_nested_secrets_are_a_secret_error() -> None:
    key = bytes(32)
    with pytest.raises(SecretError):
        secrets.decrypt(sealed(b"[" * 100_000, key), key, worker_key=KEY, type_="t")
