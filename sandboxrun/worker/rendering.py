"""A reply as commands in Redis's own bytes. Pure.

Commands are rendered from a template instead of packed word by word, because all but five words are the same for every
reply of a worker.
"""

from __future__ import annotations

from sandboxrun.config import keys
from sandboxrun.protocol import TRACE_EXPIRE_SECONDS
from sandboxrun.protocol.reply import STORY, STORY_BYTES
from sandboxrun.redis.connection import pack
from sandboxrun.worker.request import noted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from sandboxrun.config.fields import Loop
    from sandboxrun.worker.effects import Effects, Emit
    from sandboxrun.worker.tracing import Span

DEAD_STREAM_LIMIT = 10_000  # entries, approximate
MULTI, EXEC = pack("MULTI"), pack("EXEC")
# Keys as parts of a template, and the length of each without the ref.
_REPLY, _TRACE = keys.reply_key("%b").encode(), keys.trace_key("%b").encode()
_REPLY_BYTES, _TRACE_BYTES = len(keys.reply_key("")), len(keys.trace_key(""))


class Entry:
    """A request in hand: delivered to this consumer, and its reply not confirmed by Redis yet."""

    __slots__ = (
        "answered",
        "at",
        "begun",
        "commands",
        "count",
        "deliveries",
        "effects",
        "losses",
        "raw",
        "ref",
        "sent",
        "silent",
        "spent",
        "xid",
    )

    conflicts = 0  # how often a state had changed when the reply was to be written

    def __init__(self, xid: bytes, raw: Mapping[bytes, bytes], deliveries: int = 1) -> None:
        self.xid, self.raw, self.deliveries = xid, raw, deliveries
        self.ref: str | None = None
        self.commands = b""  # the reply, packed
        self.count = 0  # number of commands
        self.spent = False  # it was delivered `maxDeliveries` times
        self.begun = False  # the handler was called
        self.at = 0.0  # when, in a concurrent worker
        self.answered = False  # `commands` has the reply
        self.losses = 0  # lost connections while the reply was on its way
        self.sent = False  # the reply was sent, and is not confirmed by Redis yet
        self.silent = False  # it is acknowledged, and not answered
        self.effects: Effects | None = None  # that join the reply

    def again(self) -> Entry:
        """The same delivery, to be handled again because a state had changed."""
        entry = Again(self.xid, self.raw, self.deliveries)
        entry.begun, entry.conflicts = True, self.conflicts + 1
        return entry


class Again(Entry):
    """A request that is handled again."""

    __slots__ = ("conflicts",)


class Renderer:
    """Renders the commands of a worker's replies: docs/protocol.md, "Replying"."""

    def __init__(self, loop: Loop, type_: str, dead_stream: str) -> None:
        self._type, self._dead = type_, dead_stream
        self.expire_nx = True  # the server knows EXPIRE … NX, from Redis 7
        self._loop = loop
        self._record, self._traced = self._record_with("ref", "type", "xid", "code", "res"), b""
        self._push = (
            b"*3\r\n" + _words("LPUSH") + b"$%d\r\n" + _REPLY + b"\r\n%b"
            b"*3\r\n" + _words("EXPIRE") + b"$%d\r\n" + _REPLY + b"\r\n" + _words(loop.reply_expire_seconds)
        )
        self._trace = (
            b"*4\r\n"
            + _words("HSET")
            + (b"$%d\r\n" + _TRACE + b"\r\n")
            + _words(keys.trace_field(type_))
            + (b"$%d\r\n" + STORY + b"\r\n")
        )
        self._lasting = (
            b"*4\r\n" + _words("EXPIRE") + b"$%d\r\n" + _TRACE + b"\r\n" + _words(TRACE_EXPIRE_SECONDS, "NX")
        )
        self._usual = self._push + self._record + self._trace + self._lasting

    def _record_with(self, *names: str) -> bytes:
        """The template of a reply's record with these fields."""
        words = [_words("XADD", self._loop.response_stream), _words("*")]
        for name in names:
            words += (_words(name), b"%b")
        return b"*%d\r\n" % (3 + 2 * len(names)) + b"".join(words)

    def _traced_record(self) -> bytes:
        """The template of the record of a traced request."""
        if not self._traced:
            from sandboxrun.worker.tracing import FIELDS

            self._traced = self._record_with("ref", "type", "xid", "code", "res", *FIELDS)
        return self._traced

    def reply(
        self,
        entry: Entry,
        code: int,
        body: str,
        received: str,
        completed: str,
        notes: Mapping[str, Any] | None = None,
        span: Span | None = None,
    ) -> None:
        """Set the entry's commands: the reply, its record, the trace. `body` is the reply's JSON."""
        if entry.silent:
            entry.answered, entry.commands, entry.count = True, b"", 0
            return
        text = body.encode()
        word = b"$%d\r\n%b\r\n" % (len(text), text)
        name = (entry.ref or "").encode()
        size, xid, type_ = len(name), entry.xid, entry.raw.get(b"type", b"")
        record: tuple[bytes, ...] = (
            b"$%d\r\n%b\r\n" % (size, name), b"$%d\r\n%b\r\n" % (len(type_), type_),
            b"$%d\r\n%b\r\n" % (len(xid), xid), b"$3\r\n%d\r\n" % code, word,
        )  # fmt: skip
        begin, end = received.encode(), completed.encode()
        template, usual = self._record, self._usual
        if span is not None:
            template = self._traced_record()
            record = (*record, *map(_word, (*span, begin, end)))
            usual = self._push + template + self._trace + self._lasting
        entry.answered = True
        if not name:
            entry.commands, entry.count = template % record, 1
            return
        push = (size + _REPLY_BYTES, name, word, size + _REPLY_BYTES, name)
        trace = (size + _TRACE_BYTES, name, len(begin) + len(end) + len(text) + STORY_BYTES, begin, end, text)
        if self.expire_nx:
            entry.commands, entry.count = usual % (*push, *record, *trace, size + _TRACE_BYTES, name), 5
        else:
            entry.commands, entry.count = (self._push + template + self._trace) % (*push, *record, *trace), 4
        if notes:
            entry.commands += pack("HSET", _TRACE % name, *noted(notes))
            entry.count += 1

    def expire_trace(self, entry: Entry) -> None:
        """Add an expiry of the trace, for a server without EXPIRE … NX."""
        if entry.ref is not None:
            entry.commands += pack("EXPIRE", keys.trace_key(entry.ref), TRACE_EXPIRE_SECONDS)
            entry.count += 1

    def add_dead_letter(self, entry: Entry, reason: str, consumer: str, time: str, *, emitted: str = "") -> None:
        """Add the dead letter to the entry's commands: reason, deliveries, consumer, and the request's own fields.

        `emitted`: the type of the workers that it was emitted to.
        """
        words: list[str | bytes | int] = [
            "xid", entry.xid, "ref", entry.ref or "", "reason", reason, "deliveries", entry.deliveries,
            "consumer", consumer, "time", time,
        ]  # fmt: skip
        if emitted:
            words += ("emitted", emitted)
        for name, value in entry.raw.items():
            words += (b"request." + name, value)
        entry.commands += pack("XADD", self._dead, "MAXLEN", "~", DEAD_STREAM_LIMIT, "*", *words)
        entry.count += 1

    def undelivered(self, entry: Entry, emit: Emit, reason: str, consumer: str, time: str) -> bytes:
        """The dead letter of an emit: as of a request of its own, with the type of the workers that it was for."""
        letter = Entry(entry.xid, emit.raw, entry.deliveries)
        letter.ref = emit.ref
        self.add_dead_letter(letter, reason, consumer, time, emitted=emit.type)
        return letter.commands


def acknowledge(loop: Loop, xids: Sequence[bytes]) -> bytes:
    return pack("XACK", loop.request_stream, loop.consumer_group, *xids)


def _word(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def _words(*words: str | int) -> bytes:
    """Words as part of a template, with each % doubled."""
    return b"".join([_word(str(word).encode()) for word in words]).replace(b"%", b"%%")
