"""Read the logs that sandbox/supervisor/outputlog.py writes: entries, lines of text, and what is appended meanwhile."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sandboxrun.sandbox.supervisor.outputlog import LOG_MARK, LOG_MAX_BYTES

OUT, ERR, END = "out", "err", "end"  # of the worker, and its end with the exit code; any other kind is a level of ours
_HEAD = re.compile(rb"(\d{1,15}) ([a-z]{1,16})\n")
_HEAD_MAX_BYTES = 40


@dataclass(frozen=True, slots=True)
class Line:
    """Of one kind. `at`: Unix time in milliseconds of its last part. `data` has no newline."""

    at: int
    kind: str
    data: bytes

    @property
    def text(self) -> str:
        return self.data.decode("utf-8", "backslashreplace")


class Lines:
    """Bytes of a log, in any parts, to lines. Of what the worker prints a line may come in several entries, and be mixed
    with those of its other stream: each stream's are put together."""

    def __init__(self) -> None:
        self._held = b""  # the beginning of an entry, while its first line is not whole
        self._kind, self._at = "", 0
        self._parts: dict[str, tuple[int, bytes]] = {}

    def feed(self, data: bytes) -> Iterator[Line]:
        first, *entries = (self._held + data).split(LOG_MARK)
        self._held = b""
        yield from self._add(first)
        for number, entry in enumerate(entries, 1):
            match = _HEAD.match(entry)
            if match is not None:
                self._at, self._kind = int(match[1]), match[2].decode()
                if self._kind == END:
                    yield from self.end()
                yield from self._add(entry[match.end() :])
            elif number == len(entries) and b"\n" not in entry and len(entry) < _HEAD_MAX_BYTES:
                self._held = LOG_MARK + entry

    def end(self) -> Iterator[Line]:
        """What has no newline yet."""
        for kind, (at, rest) in sorted(self._parts.items()):
            yield Line(at, kind, rest)
        self._parts.clear()

    def _add(self, data: bytes) -> Iterator[Line]:
        if not self._kind or not data:
            return
        *whole, rest = (self._parts.pop(self._kind, (0, b""))[1] + data).split(b"\n")
        for line in whole:
            yield Line(self._at, self._kind, line)
        if rest:
            self._parts[self._kind] = (self._at, rest)


class Follower:
    """A log from its beginning, and then what is appended. Follows a log that is rotated."""

    def __init__(self, path: str) -> None:
        self._path, self._fd, self._lines = path, -1, Lines()

    def existing(self) -> Iterator[Line]:
        """What is there now, from both files. A last line without a newline comes with `more` or `rest`."""
        with contextlib.suppress(OSError), open(f"{self._path}.1", "rb") as older:
            yield from self._lines.feed(older.read(2 * LOG_MAX_BYTES))
        yield from self.more()

    def more(self) -> Iterator[Line]:
        """What came since."""
        while True:
            if self._fd < 0:
                try:
                    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
                    self._fd = os.open(self._path, flags)
                except FileNotFoundError:
                    return
            moved = self._is_moved()  # asked first: what was written before it was moved is read to its end
            while data := os.read(self._fd, 1 << 16):
                yield from self._lines.feed(data)
            if not moved:
                return
            self.close()

    def rest(self) -> Iterator[Line]:
        yield from self._lines.end()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _is_moved(self) -> bool:
        mine = os.fstat(self._fd)
        try:
            return not os.path.samestat(mine, os.stat(self._path))
        except FileNotFoundError:
            return True


def read(path: str) -> list[Line]:
    """All lines that are kept. Raises OSError if the log cannot be read."""
    log = Follower(path)
    try:
        return [*log.existing(), *log.rest()]
    finally:
        log.close()


def last_end(lines: Iterable[Line], since: int) -> int | None:
    """The exit code of the last run, if it ended after `since` (Unix time in milliseconds)."""
    codes = [line.text for line in lines if line.kind == END and line.at >= since]
    return int(codes[-1]) if codes and codes[-1].isascii() and codes[-1].isdigit() else None
