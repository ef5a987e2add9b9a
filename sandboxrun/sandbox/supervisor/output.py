"""What a worker prints, from its pipes to the operator's standard output and error.

A worker has pipes of its own, so it cannot read back, truncate or make non-blocking a file that it shares with others.
A terminal gets no control sequence but colours and "erase to the end of the line". A worker that prints faster than the
limit waits, as for any slow reader; nothing is lost.

outputlog.py keeps the last of the output in a file.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import select
import threading
import time
from _queue import SimpleQueue  # queue itself brings heapq along
from collections.abc import Callable

from sandboxrun.log import Log, escape
from sandboxrun.sandbox.supervisor.outputlog import LOG_SECONDS, OutputLog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO

_CHUNK_BYTES = 64 * 1024
_HELPFUL = "\x1b\\[[0-9;:]{0,32}[mK]|[\n\t\r\u200d\u00a0]"  # ECMA-48 SGR and EL; joiners of emoji
_UNFINISHED = "\x1b(\\[[0-9;:]{0,32})?\\Z"
# A terminal may take a part of what it is given: the other stream must not complete a sequence that ended there.
_TERMINAL = threading.Lock()
LAST_MESSAGES_SECONDS = 1.0
STALLED_SECONDS = 5.0  # after the worker's end, for a reader that reads nothing


class Relay:
    """One stream, in a thread of its own. `slowed` is called once from it, when the limit is first reached, and `lost` when
    something cannot be written: a full disk. That is dropped, and what comes later is tried again.

    `source` is closed if nobody reads the target any more, so that the worker gets EPIPE, as it would without sandboxrun.
    """

    def __init__(
        self,
        source: IO[bytes],
        target: int | None,
        *,
        limit: int,
        slowed: Callable[[], None],
        lost: Callable[[OSError], None] = lambda error: None,
        log: OutputLog | None = None,
        kind: bytes = b"out",
        heard: Callable[[bytes, bytes], None] | None = None,
    ) -> None:
        """`target`: the descriptor that the output is written to, or None. `limit`: bytes a second; 0 means no limit.
        `log`: keeps the output, marked with `kind`. `heard`: called with `kind` and each piece of the output."""
        self._source, self._target, self._limit, self._slowed = source, target, limit, slowed
        self._lost: Callable[[OSError], None] | None = lost
        self._log, self._kind, self._heard = log, kind, heard
        self._terminal = target is not None and os.isatty(target)
        self._written = 0
        self._ending = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """The worker is gone: write what it has left, and wait for that as long as the reader takes some of it."""
        self._ending = True
        while self._thread.is_alive():
            before = self._written
            self._thread.join(STALLED_SECONDS)
            if self._written == before:
                return  # a stalled reader keeps the thread, which ends with the process

    def _run(self) -> None:
        clean = Cleaner() if self._terminal else None
        poll = select.poll()
        poll.register(self._source.fileno(), select.POLLIN)
        allowance, last, slowed = float(self._limit), time.monotonic(), False
        while True:
            try:
                data = os.read(self._source.fileno(), _CHUNK_BYTES)
            except (OSError, ValueError):  # closed: the worker was reaped while the reader stalled
                data = b""
            passed = self._write(data if clean is None else clean(data))
            if self._heard is not None and data:
                self._heard(self._kind, data)
            held = self._log is not None and self._log.add(self._kind, data)
            # Unless more output comes before the log is due.
            if held and self._log is not None and not (passed and data and poll.poll(LOG_SECONDS * 1000)):
                self._log.flush()
            if not passed:
                self._source.close()
                return
            if not data:
                return
            if not self._limit or self._ending:
                continue
            now = time.monotonic()
            allowance = min(self._limit, allowance + (now - last) * self._limit) - len(data)
            last = now
            while allowance < 0 and not self._ending:
                if not slowed:
                    self._slowed()
                    slowed = True
                time.sleep(0.05)
                now = time.monotonic()
                allowance, last = allowance + (now - last) * self._limit, now

    def _write(self, data: bytes) -> bool:
        """False if nobody can read it any more."""
        if self._target is None:
            self._written += len(data)
            return True
        with _TERMINAL if self._terminal else contextlib.nullcontext():
            return self._write_all(memoryview(data))

    def _write_all(self, view: memoryview) -> bool:
        assert self._target is not None
        while view:
            try:
                count = os.write(self._target, view[:_CHUNK_BYTES])
            except BlockingIOError:  # somebody made our output non-blocking
                time.sleep(0.01)
                continue
            except OSError as error:
                if error.errno == errno.EPIPE:
                    return False
                tell, self._lost = self._lost, None
                if tell is not None:
                    tell(error)
                return True
            self._written += count
            view = view[count:]
        return True


class Cleaner:
    """Bytes for a terminal, with everything that is not `_HELPFUL` made visible."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode
        self._rest = ""
        self._coloured = False

    def __call__(self, data: bytes) -> bytes:
        """Of empty data, the end."""
        import re

        text = self._rest + self._decode(data, not data)
        unfinished = re.search(_UNFINISHED, text) if data else None
        self._rest = text[unfinished.start() :] if unfinished else ""
        if unfinished:
            text = text[: unfinished.start()]
        parts, at = [], 0
        for match in re.finditer(_HELPFUL, text):
            parts += [escape(text[at : match.start()]), match[0]]
            at = match.end()
            self._coloured |= match[0].endswith("m")
        parts.append(escape(text[at:]))
        if not data and self._coloured:
            parts.append("\x1b[0m")
        return "".join(parts).encode()


def limit_for(target: int | None, limit: int | None, default: int) -> int:
    """The limit of a stream: `limit`, else the default if the stream is a terminal."""
    if limit is not None:
        return limit
    return default if target is not None and os.isatty(target) else 0


class Messages:
    """Writes messages in a thread of its own: who reads our standard error may stall, and supervision must not."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Log, Callable[[Log], None]] | Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def put(self, log: Log, message: Callable[[Log], None]) -> None:
        """Bounded by its callers: a denial a target, a warning an event."""
        self._queue.put((log, message))

    def flush(self) -> None:
        """Wait until the messages are written, unless their reader hangs."""
        written = threading.Event()
        self._queue.put(written.set)
        written.wait(LAST_MESSAGES_SECONDS)

    def close(self) -> None:
        self._queue.put(None)

    def _write(self) -> None:
        while (message := self._queue.get()) is not None:
            if callable(message):
                message()
                continue
            log, write = message
            with contextlib.suppress(Exception):  # of the audit log: it ends its own run, where it may not be missing
                write(log)


class Shares:
    """What the supervisors of one process have in common, and what one of them may use of it."""

    def __init__(
        self, messages: Messages, *, connects_max: int, heard: Callable[[bytes, bytes], None] | None = None
    ) -> None:
        """`connects_max`: blocking connects of this worker under way at once, because each holds a descriptor of this process.
        `heard`: is given what the worker prints, see Relay."""
        self.messages, self.connects_max, self.heard = messages, connects_max, heard
