"""The request loop: read from the group, handle, reply and acknowledge in one transaction.

At least once: an entry is acknowledged only together with its reply, and what an earlier run of this consumer left
unacknowledged is handled first.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from sandboxrun import keys
from sandboxrun.config import Loop
from sandboxrun.errors import ConfigError, SandboxrunError, StoreError
from sandboxrun.worker.context import Context, current
from sandboxrun.worker.request import BadRequest, Request, failure, now, parse, ref_of, reply, trace_field

GROUP = "worker"
TRACE_EXPIRE_SECONDS = 120
_BATCH = 32
_RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)

Handler = Callable[[Request], Mapping[str, Any] | None]
_handlers: dict[str | None, Handler] = {}


def handler(function_or_type: Handler | str) -> Any:
    """Decorator: `@worker.handler` for requests of the worker's own type, `@worker.handler("type")` for another."""
    if callable(function_or_type):
        _handlers[None] = function_or_type
        return function_or_type

    def decorate(function: Handler) -> Handler:
        _handlers[function_or_type] = function
        return function

    return decorate


def run() -> None:
    """Handle requests until SIGTERM, a removed or changed `pid`, or `requestLimit`; then return.

    An error in the hash or the secrets ends the process with one line and the exit code of the error.
    """
    import redis

    try:
        try:
            context = current()
            context.secrets()  # now, not at the first request
            _Worker(context, context.loop()).run()
        except redis.ResponseError as error:
            raise StoreError(f"Redis refuses what the worker asks of it: {error}") from error
    except SandboxrunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


class _Ended(BaseException):
    """`pid` is not ours any more, or SIGTERM came while the worker waited for requests."""


class _Worker:
    def __init__(self, context: Context, loop: Loop) -> None:
        if not _handlers:
            raise ConfigError(
                "the worker has no handler: put @worker.handler before a function, then call worker.run()"
            )
        self._context, self._loop = context, loop
        self._handlers = {type_ or context.type: function for type_, function in _handlers.items()}
        self._types = frozenset(self._handlers)
        self._redis = context.connect(block_millis=loop.block_millis)
        self._hash = context.connect_to_hash()
        self._pid = str(os.getpid()).encode()
        self._ending = False
        self._waiting = False
        self._own_pid = False
        self._done = 0
        self._expire_nx = True  # EXPIRE … NX: Redis 7

    def run(self) -> None:
        import redis

        def end(*_: object) -> None:
            self._ending = True
            if self._waiting:
                raise _Ended

        signal.signal(signal.SIGTERM, end)
        attempt = 0
        position = "0"  # first what an earlier run read and did not acknowledge
        prepared = False
        while not self._is_ending():
            try:
                if not prepared:
                    self._prepare()
                    prepared = True
                position = self._turn(position)
                attempt = 0
            except _Ended:
                break
            except (redis.ConnectionError, redis.TimeoutError) as error:
                delay = _RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)]
                if attempt == 0:
                    print(f"worker: Redis is away ({str(error)[:200]}), trying again", file=sys.stderr, flush=True)
                attempt += 1
                time.sleep(delay)
                position = "0"  # a reply may not have arrived: its entry is still pending
            except redis.ResponseError as error:
                # UNBLOCKED: what Redis before 7.2 says where a read was waiting.
                if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                    raise
                prepared = False  # the stream or its group was removed: make it again
        self._leave()

    def _is_ending(self) -> bool:
        return self._ending  # set by the signal handler, at any time

    def _prepare(self) -> None:
        import redis

        try:
            self._redis.xgroup_create(self._loop.request_stream, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        try:
            self._redis.execute_command("EXPIRE", keys.trace_key("-"), 1, "NX")
        except redis.ResponseError:
            self._expire_nx = False
        # Started without sandboxrun, say under a debugger: the pid is ours to set, and to remove.
        if self._hash.hget(self._context.key, "pid") is None:
            self._own_pid = bool(self._redis.hsetnx(self._context.key, "pid", self._pid.decode()))

    def _turn(self, position: str) -> str:
        """One read and the replies to it; where to read next."""
        if self._hash.hget(self._context.key, "pid") != self._pid:
            raise _Ended
        limit = self._loop.request_limit
        count = min(_BATCH, limit - self._done) if limit else _BATCH
        block = self._loop.block_millis if position == ">" else None
        try:
            # An entry that arrives in the moment of a SIGTERM stays pending, and is the next run's first.
            self._waiting = block is not None
            if self._is_ending():
                raise _Ended
            found = self._redis.xreadgroup(
                GROUP, self._loop.consumer_id, {self._loop.request_stream: position}, count=count, block=block
            )
        finally:
            self._waiting = False
        entries = _entries(found)
        for xid, raw in entries:
            self._answer(xid.decode(), raw or {})
            if self._is_ending():
                return position
        if position == ">":
            return position
        return entries[-1][0].decode() if entries else ">"

    def _answer(self, xid: str, raw: Mapping[bytes, bytes]) -> None:
        received = now()
        code, result = self._handle(xid, raw)
        ref = ref_of(raw)
        try:
            body = reply(ref, self._context.type, code, result, now())
        except (TypeError, ValueError) as error:
            code, result = 500, failure(TypeError(f"the handler's result is not JSON: {error}"), raw, with_payload=True)
            body = reply(ref, self._context.type, code, result, now())
        self._write(xid, ref, raw.get(b"type", b""), code, body, received)
        self._done += 1
        if self._loop.request_limit and self._done >= self._loop.request_limit:
            self._ending = True

    def _handle(self, xid: str, raw: Mapping[bytes, bytes]) -> tuple[int, dict[str, Any]]:
        try:
            request = parse(xid, raw, self._types, default=self._context.type)
            result = self._handlers[request.type](request)
            if result is not None and not isinstance(result, Mapping):
                raise TypeError(
                    f"the handler returned {type(result).__name__}: expected a dict of the reply's fields, or None"
                )
            return 200, dict(result or {})
        except BadRequest as error:
            return 400, failure(error, raw, with_payload=False)
        except Exception as error:
            # The hook prints the traceback and, inside the sandbox, the grant that was missing.
            sys.excepthook(type(error), error, error.__traceback__)
            return 500, failure(error, raw, with_payload=True)

    def _write(self, xid: str, ref: str | None, type_: bytes, code: int, body: str, received: str) -> None:
        """Everything that a reply is, in one MULTI: protocol.md, "Request and reply"."""
        loop = self._loop
        with self._redis.pipeline(transaction=True) as pipe:
            if ref is not None:
                trace = keys.trace_key(ref)
                # An old Redis has no EXPIRE … NX; the question before the transaction does as well.
                lasts = not self._expire_nx and self._redis.ttl(trace) > 0
                pipe.lpush(keys.reply_key(ref), body)
                pipe.expire(keys.reply_key(ref), loop.reply_expire_seconds)
            limit = {"maxlen": loop.response_stream_limit, "approximate": True} if loop.response_stream_limit else {}
            pipe.xadd(
                loop.response_stream, {"ref": ref or "", "type": type_, "xid": xid, "code": code, "res": body}, **limit
            )
            if ref is not None:
                record = f'{{"received":"{received}","completed":"{now()}","res":{body}}}'
                pipe.hset(trace, trace_field(self._context.type), record)
                if self._expire_nx:
                    pipe.execute_command("EXPIRE", trace, TRACE_EXPIRE_SECONDS, "NX")
                elif not lasts:
                    pipe.expire(trace, TRACE_EXPIRE_SECONDS)
            pipe.xack(loop.request_stream, GROUP, xid)
            pipe.execute()

    def _leave(self) -> None:
        import redis

        try:
            if self._own_pid and self._hash.hget(self._context.key, "pid") == self._pid:
                self._redis.hdel(self._context.key, "pid")
        except redis.RedisError:
            pass  # a left-over pid of a dead process blocks nothing
        self._redis.close()
        self._hash.close()


def _entries(found: Any) -> list[tuple[bytes, Mapping[bytes, bytes]]]:
    """The entries of an XREADGROUP on one stream, in either of redis-py's shapes (RESP2 list, RESP3 dict)."""
    if not found:
        return []
    if isinstance(found, dict):
        found = list(found.items())
    entries: list[Any] = found[0][1]
    # RESP3 wraps the entries of a stream in one more list.
    return (
        entries[0] if entries and isinstance(entries[0], list) and isinstance(entries[0][0], tuple | list) else entries
    )
