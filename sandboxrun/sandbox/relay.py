"""What a worker prints, from its pipes to the operator's standard output and error.

Through pipes of its own, a worker cannot read back, truncate or make non-blocking what it shares with others. To a
terminal nothing passes that could drive it, but colours and "erase to the end of the line". Who prints faster than the limit
is made to wait, as by any slow reader; nothing is lost.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import threading
import time
from collections.abc import Callable

from sandboxrun.log import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO

_CHUNK_BYTES = 64 * 1024
_HELPFUL = "\x1b\\[[0-9;:]{0,32}[mK]|[\n\t\r\u200d\u00a0]"  # ECMA-48 SGR and EL; joiners of emoji
_UNFINISHED = "\x1b(\\[[0-9;:]{0,32})?\\Z"
# A terminal may take a part of what it is given: the other stream must not complete a sequence that ended there.
_TERMINAL = threading.Lock()
STALLED_SECONDS = 5.0  # after the worker's end, for a reader that reads nothing


class Relay:
    """One stream, in a thread of its own. `slowed` is called once from it, when the limit is first reached.

    `source` is closed where nobody reads the target any more, so that the worker gets EPIPE, as it would without us.
    """

    def __init__(self, source: IO[bytes], target: int, *, limit: int, slowed: Callable[[], None]) -> None:
        """`limit`: bytes a second; 0 is none."""
        self._source, self._target, self._limit, self._slowed = source, target, limit, slowed
        self._terminal = os.isatty(target)
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
        clean = _Cleaner() if self._terminal else None
        allowance, last, slowed = float(self._limit), time.monotonic(), False
        while True:
            try:
                data = os.read(self._source.fileno(), _CHUNK_BYTES)
            except (OSError, ValueError):  # closed: the worker was buried while our reader stalled
                data = b""
            if not self._write(data if clean is None else clean(data)):
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
        """False where nobody can read it any more."""
        with _TERMINAL if self._terminal else contextlib.nullcontext():
            return self._write_all(memoryview(data))

    def _write_all(self, view: memoryview) -> bool:
        while view:
            try:
                count = os.write(self._target, view[:_CHUNK_BYTES])
            except BlockingIOError:  # somebody made our output non-blocking
                time.sleep(0.01)
                continue
            except OSError:
                return False
            self._written += count
            view = view[count:]
        return True


class _Cleaner:
    """Bytes for a terminal, with everything that is not `_HELPFUL` made visible."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode
        self._rest = ""
        self._coloured = False

    def __call__(self, data: bytes) -> bytes:
        """Of empty data, the end."""
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


def limit_for(target: int, limit: int | None, default: int) -> int:
    """The limit of a stream: what was set, else the default where people read along."""
    if limit is not None:
        return limit
    return default if os.isatty(target) else 0
