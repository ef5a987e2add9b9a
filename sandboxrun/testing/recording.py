"""Requests that are typed while a worker is developed, as tests in its spec.json."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sandboxrun.config.permissions import KINDS
from sandboxrun.dev.target import Target
from sandboxrun.errors import SandboxrunError, SpecError
from sandboxrun.log import escape
from sandboxrun.redis import hashes
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import ReplyError
from sandboxrun.spec import compare, model
from sandboxrun.spec.state import KINDS as KEY_KINDS
from sandboxrun.spec.state import Actual
from sandboxrun.testing import update
from sandboxrun.testing.keyspace import Keyspace
from sandboxrun.testing.runner import Seen, text_of
from sandboxrun.testing.unstable import Known

BEFORE_KEYS_MAX = 20
BEFORE_MAX_BYTES = 64 << 10
KEYS_MAX = 10_000  # all of which are looked at, before each request and after it
NAME_MAX_CHARS = 60
FAILED = 500  # such a reply is no answer to keep


class Recording:
    """One request, and the keys before it."""

    def __init__(self, request: Any, connection: Connection, keys: Keyspace) -> None:
        self.request, self.connection, self._keys = request, connection, keys
        self.before = keys.look()
        self.values = keys.read(sorted(self.before))

    def seen(self, reply: Mapping[str, Any]) -> Seen:
        changed = self._keys.changed(self.before, self._keys.look())
        now = self._keys.read(sorted(changed))
        return Seen(
            {name: value for name, value in reply.items() if name not in model.ENVELOPE},
            {text_of(name): now.get(name) for name in changed},
        )


class Recorder:
    """Of one session. `options`: of sandboxrun TYPE ID. `say` is given (kind, text)."""

    def __init__(self, target: Target, url: str, options: Sequence[str], say: Callable[[str, str], None]) -> None:
        self._target, self._url, self._options, self._say = target, url, options, say
        self._path = os.path.join(target.folder, model.NAME)
        self._written = b""
        self._lock = threading.Lock()

    def is_recorded(self, path: str) -> bool:
        """Whether the spec.json that was saved is as it was written here."""
        if path != self._path or not self._written:
            return False
        try:
            with open(path, "rb") as file:
                return file.read() == self._written
        except OSError:
            return False

    def begin(self, request: Any) -> Recording | None:
        """Look at the keys before this request is sent; None if it cannot be recorded, which is said."""
        if not self._lock.acquire(blocking=False):
            self._refuse("another request is being handled, whose changes would be taken for those of this one")
            return None
        connection = Connection(self._url, name="sandboxrun-record", protocol=2)
        try:
            connection.open()
            count = connection.call("DBSIZE")
            if count > KEYS_MAX:
                raise SpecError(f"Redis has {count} keys: expected at most {KEYS_MAX}, which are all looked at")
            ignore = model.load(self._path).ignore if os.path.exists(self._path) else ()
            keys = Keyspace(connection, self._target.type, self._target.id, ignore)
            return Recording(request, connection, keys)
        except (SandboxrunError, ReplyError) as error:
            self._refuse(str(error))
            self._end(connection)
            return None

    def end(self, recording: Recording, reply: Mapping[str, Any] | None) -> None:
        """Write what has become of it. No reply is no test."""
        try:
            if reply is not None:
                self._record(recording, reply)
        except (SandboxrunError, ReplyError) as error:
            self._refuse(str(error))
        finally:
            self._end(recording.connection)

    def _end(self, connection: Connection) -> None:
        connection.close()
        self._lock.release()

    def _refuse(self, why: str) -> None:
        self._say("bad", f"not recorded: {escape(why)}")

    def _record(self, recording: Recording, reply: Mapping[str, Any]) -> None:
        """Raises SandboxrunError, ReplyError."""
        if reply.get("code", FAILED) >= FAILED:
            raise SpecError("the request failed")
        seen, before, values = recording.seen(reply), recording.before, recording.values
        kept = {name: value for name, value in values.items() if value.kind in KEY_KINDS}
        size = sum(len(before[name].dump) for name in kept)
        if len(kept) > BEFORE_KEYS_MAX or size > BEFORE_MAX_BYTES:
            self._say("dev", f"of {len(kept)} keys, before has only those that the request has changed")
            kept = {name: value for name, value in kept.items() if text_of(name) in seen.changed}
        self._write(recording.connection, _test(recording.request, kept, seen))

    def _write(self, connection: Connection, test: dict[str, Any]) -> None:
        """Add the test to the file. Raises SpecError."""
        raw: dict[str, Any] = {"type": self._target.type}
        if os.path.exists(self._path):
            raw = dict(model.load(self._path).raw)
        tests = list(raw.get("tests", ()))
        for each in tests:
            if _timeless({**each, "name": ""}) == _timeless({**test, "name": ""}):
                self._say("dev", f"recorded before: {escape(each['name'])}")
                return
        test["name"] = _free(test["name"], {each["name"] for each in tests})
        grants = _merged(raw.get("grants", {}), self._grants(connection))
        raw |= {**({"grants": grants} if grants else {}), "tests": [*tests, test]}
        data = f"{update.text(raw)}\n".encode()
        model.parse(data, self._path)
        self._written = data
        update.write(self._path, raw)
        self._say("good", f"recorded: {escape(test['name'])}")

    def _grants(self, connection: Connection) -> dict[str, str]:
        """What the worker is allowed here, by field."""
        stored = hashes.read(connection, self._target.type, self._target.id).own.fields
        found = {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in stored.items()}
        fields = {kind.field() for kind in KINDS.values()}
        grants = {name: value for name, value in found.items() if name in fields}
        flags = {kind.flag(): kind.field() for kind in KINDS.values()}
        given = {
            flags[flag]: value for flag, _, value in (word.partition("=") for word in self._options) if flag in flags
        }
        return _merged(grants, given)


def _timeless(value: Any) -> Any:
    """Without times to live, which pass."""
    if isinstance(value, dict):
        return {name: _timeless(item) for name, item in value.items() if name != "$ttl"}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _merged(before: Mapping[str, Any], more: Mapping[str, str]) -> dict[str, Any]:
    """Both, in the form that `before` has."""
    merged = dict(before)
    for field, value in more.items():
        had = merged.get(field, "")
        known = had if isinstance(had, list) else [entry.strip() for entry in had.split(",") if entry.strip()]
        fresh = [entry.strip() for entry in value.split(",") if entry.strip() and entry.strip() not in known]
        if fresh:
            merged[field] = [*known, *fresh] if isinstance(had, list) else ",".join([*known, *fresh])
    return merged


def _test(request: Any, before: Mapping[bytes, Actual], seen: Seen) -> dict[str, Any]:
    """Raises SpecError for what differs each time and cannot be matched."""
    assert seen.reply is not None
    written = {text_of(name): compare.as_json(text_of(name), value) for name, value in sorted(before.items())}
    known = Known([request, written])
    code = seen.reply.get("code")
    reply = ({} if code == model.OK else {"code": code}) | known.loosened(update.recorded_reply(seen.reply))
    after = {}
    for key in sorted(seen.changed):
        if known.is_unstable(key):
            raise SpecError(f"the name of the key {key[:200]} differs each time: no test can name it")
        after[key] = known.loosened(update.recorded_key(key, seen))
    parts = {"before": written, "request": request, "reply": reply, "after": after}
    return {"name": _name(request), **{name: part for name, part in parts.items() if name == "request" or part}}


def _name(request: Any) -> str:
    """As it would be typed."""
    if isinstance(request, dict) and request:
        text = " ".join(
            f"{name}={value if isinstance(value, str) else _flat(value)}" for name, value in request.items()
        )
    else:
        text = _flat(request)
    text = "".join(char if char.isprintable() else " " for char in text).strip()
    return (text if len(text) <= NAME_MAX_CHARS else f"{text[: NAME_MAX_CHARS - 1]}…") or "a request"


def _flat(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _free(name: str, taken: set[str]) -> str:
    number, found = 2, name
    while found in taken:
        found, number = f"{name} ({number})", number + 1
    return found
