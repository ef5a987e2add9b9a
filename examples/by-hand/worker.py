"""A worker without the SDK: the protocol of docs/protocol.md, with a plain socket and the standard library.

    sandboxrun set by-hand 1 url=$PWD/examples/by-hand version=local && sandboxrun by-hand 1

It handles one request at a time, so it has one claim at most. If the connection is lost it ends, and another worker takes
over what it had begun. A handler that takes longer than `takeoverMillis` would
need a thread that renews the claim meanwhile (XCLAIM … JUSTID), on a connection of its own.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from datetime import UTC, datetime
from typing import Any
from unicodedata import category

from resp import Redis, ReplyError

GROUP = "worker"
TRACE_SECONDS = 120


class BadRequest(Exception):
    """Answered with code 400."""


def handle(data: Any) -> dict[str, Any]:
    """The work itself: everything else in this file is protocol."""
    if not isinstance(data, dict) or not isinstance(data.get("text"), str):
        raise BadRequest("the data has no text")
    return {"text": data["text"].upper()}


class Worker:
    def __init__(self, key: str, url: str, hash_url: str) -> None:
        self.key = key
        self.type, self.id, _ = key.split(":")
        self.redis, self.hashes = Redis(url), Redis(hash_url)
        fields = {**self.fields(f"{self.type}:h"), **self.fields(key)}
        self.stream = fields.get("requestStream") or f"{self.type}:req:x"
        self.responses = fields.get("responseStream") or f"{self.type}:res:x"
        self.consumer = fields.get("consumerId") or self.id
        self.reply_seconds = int(fields.get("replyExpireSeconds") or 8)
        self.max_deliveries = int(fields.get("maxDeliveries") or 5)
        self.takeover_millis = int(fields.get("takeoverMillis") or 15000)
        first, *rest = self.type.replace("_", "-").split("-")
        self.trace_field = first + "".join(part.capitalize() for part in rest) + "Trace"
        self.fence = f"{self.stream}:fence:{self.consumer}:f"
        self.ending = False

    def fields(self, key: str) -> dict[str, str]:
        words = [word.decode() for word in self.hashes.one("HGETALL", key)]
        return dict(zip(words[::2], words[1::2], strict=True))

    # --- the loop

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "ending", True))
        self.redis.ask(("XGROUP", "CREATE", self.stream, GROUP, 0, "MKSTREAM"))  # BUSYGROUP: it is there
        held = self.hashes.one("HMGET", self.key, "pid", "pidToken")
        self.raise_fence()
        looked = 0.0
        while not self.ending and self.hashes.one("HMGET", self.key, "pid", "pidToken") == held:
            if time.monotonic() - looked >= 1:
                self.take_over()
                looked = time.monotonic()
            found = self.redis.one(
                "XREADGROUP", "GROUP", GROUP, self.consumer, "COUNT", 1, "BLOCK", 1000, "STREAMS", self.stream, ">"
            )
            for xid, words in found[0][1] if found else []:
                self.answer(xid, dict(zip(words[::2], words[1::2], strict=True)), deliveries=1)
        self.redis.ask(("DEL", self.fence))

    def raise_fence(self) -> None:
        """Make a new fence, and watch it: whoever takes a claim from this consumer deletes it."""
        self.name = secrets.token_hex(8)
        self.redis.ask(("UNWATCH",), ("DEL", self.fence), ("HSET", self.fence, self.name, 1))
        self.watch()

    def watch(self) -> None:
        watched, whole = self.redis.ask(("WATCH", self.fence), ("HEXISTS", self.fence, self.name))
        self.whole = watched == "OK" and whole == 1

    def transact(self, *commands: tuple[Any, ...]) -> list[Any] | None:
        """The replies, or None if the fence was broken: then Redis did nothing, or it was not even asked."""
        if not self.whole:
            return None
        *queued, done = self.redis.ask(("MULTI",), *commands, ("EXEC",))
        self.watch()
        if isinstance(done, ReplyError):
            raise next(reply for reply in [*queued, done] if isinstance(reply, ReplyError))
        return done

    def take_over(self) -> None:
        """Begin one claim that nobody has renewed for `takeoverMillis`: its worker is gone, or frozen."""
        query = ("XPENDING", self.stream, GROUP, "IDLE", self.takeover_millis, "-", "+", 1)
        for xid, owner, _, deliveries in self.redis.one(*query):
            fence = f"{self.stream}:fence:{owner.decode()}:f"
            mine = fence == self.fence
            claim = ("XCLAIM", self.stream, GROUP, self.consumer, self.takeover_millis, xid)
            done = self.transact(("HSET", self.fence, self.name, 1) if mine else ("DEL", fence), claim)
            if done is None:
                return self.raise_fence()
            for _, words in done[1]:
                raw = dict(zip(words[::2], words[1::2], strict=True))
                self.answer(xid, raw, deliveries + 1)
        return None

    # --- one request

    def answer(self, xid: bytes, raw: dict[bytes, bytes], deliveries: int) -> None:
        received, dead = now(), ""
        ref = ref_of(raw)
        if not ref:
            dead = "the request has no ref that can be answered"
            code, result = 400, failure(dead)
        elif deliveries > self.max_deliveries:
            dead = f"given up after {deliveries - 1} deliveries without a reply"
            code, result = 500, failure(dead)
        else:
            code, result = self.handled(raw)
        completed = now()
        reply = json.dumps({**result, "ref": ref or None, "source": self.type, "code": code, "time": completed})
        story = f'{{"received":"{received}","completed":"{completed}","res":{reply}}}'
        record = ("ref", ref, "type", raw.get(b"type", b""), "xid", xid, "code", code, "res", reply)
        commands: list[tuple[Any, ...]] = [("XADD", self.responses, "*", *record)]
        if ref:
            commands += [
                ("LPUSH", f"res:{ref}", reply),
                ("EXPIRE", f"res:{ref}", self.reply_seconds),
                ("HSET", f"req:{ref}:h", self.trace_field, story),
                ("EXPIRE", f"req:{ref}:h", TRACE_SECONDS, "NX"),
            ]
        if dead:
            about = ("xid", xid, "ref", ref, "reason", dead, "deliveries", deliveries, "consumer", self.consumer)
            own = [word for name, value in raw.items() for word in (b"request." + name, value)]
            letter = (*about, "time", completed, *own)
            commands.append(("XADD", f"{self.type}:dead:x", "MAXLEN", "~", 10000, "*", *letter))
        self.write(xid, [*commands, ("XACK", self.stream, GROUP, xid)])

    def write(self, xid: bytes, commands: list[tuple[Any, ...]]) -> None:
        """Write the reply, unless somebody else has the request by now."""
        while self.transact(*commands) is None:
            self.raise_fence()
            if not self.redis.one("XPENDING", self.stream, GROUP, xid, xid, 1, self.consumer):
                return  # it was taken over, and is answered there

    def handled(self, raw: dict[bytes, bytes]) -> tuple[int, dict[str, Any]]:
        """The code, and the reply's fields."""
        try:
            type_ = raw.get(b"type", b"").decode() or self.type
            if type_ != self.type:
                raise BadRequest(f"the request's type is {type_!r}, expected {self.type}")
            if b"deadline" in raw and int(raw[b"deadline"]) / 1000 <= time.time():
                return 504, failure("the request's deadline had passed before it was begun")
            if b"data" in raw:
                data = json.loads(raw[b"data"])
            else:
                data = {name.decode(): value.decode() for name, value in raw.items()}
        except (BadRequest, ValueError) as error:  # of JSON, UTF-8, or a number
            return 400, failure(str(error))
        try:
            return 200, handle(data)
        except BadRequest as error:
            return 400, failure(str(error))
        except Exception as error:
            print(f"request {raw[b'ref'].decode()} failed: {error!r}", file=sys.stderr)
            return 500, failure(str(error) or type(error).__name__)


def ref_of(raw: dict[bytes, bytes]) -> str:
    """Text of 1 to 256 characters without control characters; else "", and the request cannot be answered."""
    try:
        ref = raw.get(b"ref", b"").decode()
    except UnicodeDecodeError:
        return ""
    return ref if len(ref) <= 256 and not any(category(character) == "Cc" for character in ref) else ""


def failure(message: str) -> dict[str, Any]:
    return {"err": {"message": message[:2000]}}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


if __name__ == "__main__":
    url = os.environ["REDIS_URL"]
    Worker(sys.argv[1], url, os.environ.get("SANDBOXRUN_HASH_URL") or url).run()
