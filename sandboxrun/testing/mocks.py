"""Answers for the services that the worker under test calls: what their own specs' tests say."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sandboxrun.config import keys
from sandboxrun.errors import SpecError, StoreError
from sandboxrun.protocol import BadRequest
from sandboxrun.protocol.request import now, read, ref_of
from sandboxrun.redis.connection import Connection
from sandboxrun.spec import match, model
from sandboxrun.spec.match import shown
from sandboxrun.spec.model import Spec

UNKNOWN = 501
BLOCK_MILLIS = 200
EXPIRE_SECONDS = 8


@dataclass(slots=True)
class Mocks:
    """Answers while it is open. `unknown`: what was asked and no test knows, since it was taken last."""

    url: str
    specs: Mapping[str, Spec]
    types: Sequence[str]
    unknown: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Mocks:
        if self.types:
            connection = Connection(self.url, name="sandboxrun-mocks", protocol=2)
            connection.open()
            last = dict.fromkeys(map(keys.request_stream, self.types), "0-0")
            self._thread = threading.Thread(target=self._answer_all, args=(connection, last), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def take_unknown(self) -> list[str]:
        taken, self.unknown = self.unknown, []
        return taken

    def _answer_all(self, connection: Connection, last: dict[str, Any]) -> None:
        connection.set_wait(BLOCK_MILLIS / 1000)
        with contextlib.closing(connection), contextlib.suppress(StoreError):
            while not self._stop.is_set():
                found = connection.call("XREAD", "BLOCK", BLOCK_MILLIS, "STREAMS", *last, *last.values())
                for stream, entries in found or ():
                    for xid, words in entries:
                        last[stream.decode()] = xid
                        self._answer(connection, stream.decode(), xid, dict(zip(words[::2], words[1::2], strict=True)))

    def _answer(self, connection: Connection, stream: str, xid: bytes, raw: Mapping[bytes, bytes]) -> None:
        """What was emitted waits for no reply, and stays in the stream for `after`."""
        ref, type_ = ref_of(raw), stream.removesuffix(":req:x")
        if ref is None or connection.call("HEXISTS", keys.trace_key(ref), "emitted"):
            return
        code, result = self._reply(type_, raw)
        body = json.dumps({**result, "ref": ref, "source": type_, "code": code, "time": now()})
        connection.pipeline(
            [
                ("MULTI",),
                ("XDEL", stream, xid),
                ("LPUSH", keys.reply_key(ref), body),
                ("EXPIRE", keys.reply_key(ref), EXPIRE_SECONDS),
                ("EXEC",),
            ]
        )

    def _reply(self, type_: str, raw: Mapping[bytes, bytes]) -> tuple[int, dict[str, Any]]:
        method = raw[b"method"].decode("utf-8", "replace") if b"method" in raw else None
        name = f"{type_}.{method}" if method else type_
        try:
            data = read(raw, {type_: True}, type_)[2]
        except BadRequest as error:
            return 400, {"err": {"message": str(error)}}
        spec = self.specs.get(type_)
        if spec is None:
            why = f"there is no {type_}/{model.NAME} beside the worker's folder"
        else:
            for case in spec.cases:
                if case.method == method and _is_equal(case.request, data):
                    if not match.has_matcher(case.reply):
                        return case.code, _with_message(case, match.plain(dict(case.reply)))
                    why = f"the test {shown(case.name)} of {type_} answers it with a matcher, not with a value"
                    break
            else:
                why = f"no test of {type_} has this request"
        text = f"{name} was called with {shown(data)}: {why}"
        self.unknown.append(text)
        return UNKNOWN, {"err": {"message": text}}


def _with_message(case: model.Case, reply: dict[str, Any]) -> dict[str, Any]:
    """An error always has a message, also if the test names none."""
    if case.code == model.OK or "err" in reply:
        return reply
    return {**reply, "err": {"message": f"as in the test {shown(case.name)}"}}


def _is_equal(request: Any, data: Any) -> bool:
    return not any(match.differences(match.escaped(request), data, "", is_open=False))


def find(spec: Spec, given: Mapping[str, Spec], types: Sequence[str]) -> dict[str, Spec]:
    """The specs of these types: those that are tested in the same command, else of the folders beside the worker's.
    Raises SpecError for one that is malformed."""
    found = {}
    for type_ in types:
        path = os.path.join(os.path.dirname(spec.folder), type_, model.NAME)
        if type_ in given:
            found[type_] = given[type_]
        elif os.path.exists(path):
            found[type_] = model.load(path)
            if found[type_].type != type_:
                raise SpecError(f"{path} is of the type {found[type_].type}, and its folder is {type_}")
    return found
