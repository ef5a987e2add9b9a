"""State that joins a reply: a hash that a handler reads and changes, and that is written in the reply's transaction.

If the hash is no longer what the handler has read, nothing is written and the handler runs again: joined.py.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, MutableMapping
from typing import Any

from sandboxrun.config import keys
from sandboxrun.errors import ConfigError
from sandboxrun.redis.connection import pack
from sandboxrun.redis.replies import ReplyError, TooManyBytes, is_wrong_type
from sandboxrun.worker.aside import Aside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.worker.effects import Effects

KEY_MAX_CHARS = 512
STATE_MAX_BYTES = 1024 * 1024  # of a hash that is written
READ_MAX_BYTES = 2 * STATE_MAX_BYTES  # of a hash that others have written
FIELD_BYTES = 32  # that a field counts beside its text
_GRANTED = keys.LETTERS + keys.DIGITS + "_:.-/@#{}"  # what an entry of allowRedis may consist of


class State(MutableMapping[str, str]):
    """A hash as text by field. It is read at first use; an async handler awaits it first.

    Text is stored as it is, other values as JSON; what is read is always text.
    """

    def __init__(self, effects: Effects, key: str) -> None:
        if not isinstance(key, str) or not 0 < len(key) <= KEY_MAX_CHARS:
            raise ValueError(f"the key of a state is {key!r:.80}: expected text of 1 to {KEY_MAX_CHARS} characters")
        self.key = key
        self._effects = effects
        self._read: dict[str, bytes] | None = None
        self._now: dict[str, bytes] = {}
        self._size = 0
        self.size_read = 0  # bytes of what was read, as Redis sends it, or a few more

    @property
    def is_read(self) -> bool:
        return self._read is not None

    def is_still(self, reply: Any) -> bool:
        """Whether a later reply to HGETALL has what was read."""
        return not isinstance(reply, ReplyError) and _fields(reply) == self._read

    @property
    def changed(self) -> bool:
        return self._now != self._read

    def commands(self) -> list[bytes]:
        """The packed commands that write the changes."""
        before, after = self._read or {}, self._now
        written = [word for name, value in after.items() if before.get(name) != value for word in (_raw(name), value)]
        removed = [_raw(name) for name in before if name not in after]
        commands = []
        if written:
            commands.append(pack("HSET", self.key, *written))
        if removed:
            commands.append(pack("HDEL", self.key, *removed))
        return commands

    # --- reading

    __hash__ = object.__hash__  # asyncio.gather takes only what can be a key

    def __await__(self) -> Generator[Any, None, State]:
        if self._read is None:
            import asyncio

            aside = Aside.of(self._effects.context)
            loading = asyncio.get_running_loop().run_in_executor(aside.executor, self._load, aside.deadline())
            yield from loading.__await__()
        return self

    def _fresh(self) -> dict[str, bytes]:
        """The fields as they are now, for this handler."""
        if self._read is None:
            asyncio = sys.modules.get("asyncio")
            if asyncio is not None and asyncio._get_running_loop() is not None:
                raise RuntimeError(
                    f"the state {self.key[:80]!r} was not read yet: expected state = await worker.state({self.key[:80]!r})"
                )
            self._load()
        return self._now

    def _load(self, until: float | None = None) -> None:
        """Raises ConfigError if the key is not granted, TypeError if it is no hash, ValueError for a large one."""
        context = self._effects.context
        try:
            reply = Aside.of(context).exchange([("HGETALL", self.key)], READ_MAX_BYTES, until)[0]
        except TooManyBytes:
            raise ValueError(f"the state {self.key[:80]!r} has more than {READ_MAX_BYTES} bytes") from None
        if is_wrong_type(reply):
            raise TypeError(f"the state {self.key[:80]!r} is not a hash")
        if isinstance(reply, ReplyError):
            if not str(reply).startswith("NOPERM"):
                raise reply
            raise not_granted(self._effects, self.key)
        found = _fields(reply)
        with self._effects.lock:
            self._effects.check_open()
            if self._read is None:  # another thread of the handler may have been first
                self._read, self._now = found, dict(found)
                self._size = sum([len(_raw(name)) + len(value) + FIELD_BYTES for name, value in found.items()])
                self.size_read = self._size

    def __getitem__(self, name: str) -> str:
        return self._fresh()[name].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return iter(self._fresh())

    def __len__(self) -> int:
        return len(self._fresh())

    def __repr__(self) -> str:
        return f"<state {self.key[:80]!r}>"

    # --- changing

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(name, str):
            raise TypeError(f"a field of the state {self.key[:80]!r} is {name!r:.80}: expected text")
        fields = self._fresh()
        raw = _raw(self._effects.encoder.text(value, name))
        with self._effects.lock:
            self._effects.check_open()
            size = self._size + len(raw) - len(fields.get(name, b""))
            if name not in fields:
                size += len(_raw(name)) + FIELD_BYTES
            if size > STATE_MAX_BYTES:
                raise ValueError(
                    f"the state {self.key[:80]!r} would have {size} bytes: at most {STATE_MAX_BYTES} are kept"
                )
            self._size = size
            fields[name] = raw

    def __delitem__(self, name: str) -> None:
        fields = self._fresh()
        with self._effects.lock:
            self._effects.check_open()
            self._size -= len(_raw(name)) + len(fields.pop(name)) + FIELD_BYTES


def not_granted(effects: Effects, key: str) -> ConfigError:
    """The error of a state whose key the worker may not use, with the command that grants it."""
    import shlex

    context = effects.context
    listed = context.config().get("allowRedis", "")
    words, entries = keys.in_words(context.key), f"{listed},{key}" if listed else key
    return ConfigError(
        f"{context.key} is not granted its state {key[:80]!r}: allowRedis does not list the key for reading and writing",
        hint=f"sandboxrun set {words} {shlex.quote(f'allowRedis={entries}')} && sandboxrun approve {words}"
        if keys.consists_of(_GRANTED, key) and len(key) <= 256
        else "",
    )


def _fields(reply: Any) -> dict[str, bytes]:
    """A reply to HGETALL, from RESP2 or RESP3."""
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {name.decode("utf-8", "surrogateescape"): value for name, value in pairs}


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
