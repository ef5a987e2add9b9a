"""Effects that join a reply: requests to other services, and changes of state (states.py).

They are written in the reply's transaction, or not at all. Imported by the first handler that has an effect.
"""

from __future__ import annotations

import _thread
import os
import sys
import time

from sandboxrun.config import keys
from sandboxrun.errors import ConfigError, StoreError
from sandboxrun.protocol import PAYLOAD_MAX_BYTES, RESULT_MAX_BYTES, TRACE_EXPIRE_SECONDS
from sandboxrun.protocol.call import BadRequest, CallDenied
from sandboxrun.protocol.calling import PATH_MAX
from sandboxrun.protocol.request import check_method, now, trace_fields
from sandboxrun.protocol.request import entry as entry_words
from sandboxrun.redis.connection import Connection, pack
from sandboxrun.redis.replies import ReplyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

    from sandboxrun.protocol.calling import Calling, Joining
    from sandboxrun.worker.context import Context
    from sandboxrun.worker.rendering import Entry
    from sandboxrun.worker.request import Encoder, Request
    from sandboxrun.worker.states import State

EMITS_MAX = 1000  # of one request
EMITTED_MAX_BYTES = RESULT_MAX_BYTES  # of one request's emits together
STATES_MAX = 100  # of one request
EMIT_COMMANDS = 3  # HSET, EXPIRE and XADD
ASK_SECONDS = 1.0
EMIT_TIMEOUT_MAX = 1e9  # seconds


class Emit:
    """One request that a handler sends with its reply."""

    __slots__ = ("commands", "ref", "type", "words")

    def __init__(self, calling: Calling, type_: str, text: str, method: str | None, timeout: float | None) -> None:
        self.type, self.ref = type_, f"{calling.nonce}{os.urandom(12).hex()}"
        created, parent = now(), calling.traceparent
        deadline = None if timeout is None else time.time() + timeout
        self.words = entry_words(
            self.ref, type_, text, created, deadline, method=method, traceparent=parent, path=calling.path
        )
        trace = keys.trace_key(self.ref)
        fields = trace_fields(self.ref, type_, text, created, method=method, traceparent=parent, caller=calling)
        fields["emitted"] = "1"  # so that nobody looks for who waits for the reply
        expire = max(TRACE_EXPIRE_SECONDS, int(timeout or 0) + 1)
        self.commands = (
            pack("HSET", trace, *[word for pair in fields.items() for word in pair])
            + pack("EXPIRE", trace, expire)
            + pack("XADD", keys.request_stream(type_), "*", *self.words)
        )

    @property
    def size(self) -> int:
        """Bytes of the entry."""
        return sum([len(word.encode()) for word in self.words])

    @property
    def raw(self) -> dict[bytes, bytes]:
        """The fields of the entry."""
        words = [word.encode() for word in self.words]
        return dict(zip(words[::2], words[1::2], strict=True))


class Effects:
    """The effects of one request. Threads of the handler may add some until `close`."""

    outgrown = False  # a state has become too large for a second reading

    def __init__(self, request: Request, joining: Joining, encoder: Encoder) -> None:
        self.context, self.encoder = joining.context, encoder
        self._request, self._begin = request, joining.begin
        self.emits: list[Emit] = []
        self.states: dict[str, State] = {}
        self.start = 0  # index of the first command among those of the entry
        self.first_emit = 0  # and of the first one of the emits, each of which has EMIT_COMMANDS
        self.lock = _thread.allocate_lock()
        self._size = 0
        self._over = False
        self._pid = joining.pid

    def emit(self, type_: str, data: Any, method: str | None, timeout: float | None) -> str:
        """`Request.emit`."""
        calling = self._request._as_calling()
        check_call(self.context, calling, type_)
        if method is not None:
            check_method(method)
        if timeout is not None and not 0 < timeout < EMIT_TIMEOUT_MAX:
            raise ValueError(f"timeout is {timeout!r:.80}: expected seconds above 0, or None for no limit")
        emit = Emit(calling, type_, self.encoder.json(data, "data"), method, timeout)
        size = emit.size
        if size > PAYLOAD_MAX_BYTES:
            raise ValueError(f"the request to {type_} has {size} bytes: at most {PAYLOAD_MAX_BYTES} are sent")
        with self.lock:
            self.check_open()
            if len(self.emits) >= EMITS_MAX:
                raise ValueError(
                    f"the request to {type_} is one too many: a request may emit at most {EMITS_MAX} others"
                )
            if self._size + size > EMITTED_MAX_BYTES:
                raise ValueError(
                    f"the request to {type_} is too much: the requests emitted by one request may have at most {EMITTED_MAX_BYTES} bytes in total"
                )
            self._size += size
            self.emits.append(emit)
        return emit.ref

    def withdraw(self, refs: Collection[str]) -> None:
        """Take back the emits with these refs."""
        with self.lock:
            self.check_open()
            self._size -= sum([emit.size for emit in self.emits if emit.ref in refs])
            self.emits = [emit for emit in self.emits if emit.ref not in refs]

    def state(self, key: str) -> State:
        """`worker.state`."""
        from sandboxrun.worker.states import State

        with self.lock:
            self.check_open()
            if key not in self.states:
                if len(self.states) >= STATES_MAX:
                    raise ValueError(
                        f"the state {key[:80]!r} is one too many: a request may use at most {STATES_MAX} states"
                    )
                self.states[key] = State(self, key)
            return self.states[key]

    def check_open(self) -> None:
        """Raise RuntimeError once the handler has returned, or in a process that it has forked. Called under the lock."""
        if self._over or os.getpid() != self._pid:
            raise RuntimeError(
                "nothing can join the reply any more: it was made, or the handler has forked this process"
            )

    def close(self) -> None:
        """The handler has ended: nothing more can join its reply."""
        with self.lock:
            self._over = True

    def join(self, entry: Entry) -> None:
        """Add the commands to the entry's reply, after `close`."""
        self._begin()
        for key in [key for key, state in self.states.items() if not state.is_read]:
            del self.states[key]
        changes = [command for state in self.states.values() for command in state.commands()]
        calling = self._request._as_calling()
        notes = [word for emit in self.emits for word in calling.note(emit.ref, emit.type) or ()]
        if notes and entry.ref is not None:
            changes.append(pack("HSET", keys.trace_key(entry.ref), *notes))  # where sandboxrun trace finds them
        self.start, self.first_emit = entry.count, entry.count + len(changes)
        entry.commands = b"".join([entry.commands, *changes, *[emit.commands for emit in self.emits]])
        entry.count += len(changes) + EMIT_COMMANDS * len(self.emits)
        entry.effects = self

    def emit_at(self, index: int) -> Emit | None:
        """The emit whose XADD is the entry's command with this index."""
        number, part = divmod(index - self.first_emit, EMIT_COMMANDS)
        return self.emits[number] if part == EMIT_COMMANDS - 1 and 0 <= number < len(self.emits) else None

    def refusal(self, index: int, error: ReplyError) -> Exception:
        """What Redis means by this reply to the entry's command with this index."""
        emit = self.emit_at(index)
        if emit is None or not str(error).startswith("NOPERM"):
            return error
        return CallDenied(self.context.key, emit.type, self.context.caller.allowed)

    def has(self, index: int) -> bool:
        """Whether the entry's command with this index is one of these."""
        return self.start <= index < self.first_emit + EMIT_COMMANDS * len(self.emits)


def check_call(context: Context, calling: Calling, type_: str) -> None:
    """Raise CallDenied unless the worker may send requests to the type, and BadRequest if too many have led to this one.

    The first time for each type, Redis is asked: it alone knows what was granted, also on the command line. An event loop
    must not wait for that, so there the transaction of the reply finds out: refusals.py. A type may come again in the path,
    because nobody waits: two services may converse. The path's length ends what would go on for ever.
    """
    if not isinstance(type_, str):
        raise TypeError(f"the type is {type_!r:.80}: expected text, such as 'price'")
    keys.check_type(type_)
    if not calling.nonce:
        raise CallDenied(context.key, type_, context.caller.allowed)
    if len(calling.path) > PATH_MAX:
        raise BadRequest(
            f"the request to {type_} is refused: {PATH_MAX} others have led to it: {' → '.join(calling.path)}"
        )
    if os.environ.get(keys.CALL_URL):
        raise ConfigError(
            f"{context.key} cannot emit to {type_}: emit needs ACL selectors, which this server does not have: "
            "expected Redis 7 or later, or Valkey"
        )
    asyncio = sys.modules.get("asyncio")
    if type_ in context.callees or (asyncio is not None and asyncio._get_running_loop() is not None):
        return
    # For this question alone, because it must not wait for another's use of a connection.
    connection = Connection(context.redis_url, name=f"worker-grant:{context.key}", seconds=ASK_SECONDS)
    try:
        connection.open()
        # Refused in either case: without the grant, or else because of the ID, before Redis looks at the stream.
        reply = connection.pipeline([("XADD", keys.request_stream(type_), "NOMKSTREAM", "0-0", "-", "-")])[0]
    except StoreError:
        reply = None  # it is asked once; the transaction of the reply will show it: refusals.py
    finally:
        connection.close()
    if isinstance(reply, ReplyError) and str(reply).startswith("NOPERM"):
        raise CallDenied(context.key, type_, context.caller.allowed)
    context.callees.add(type_)
