"""The log of a process that must not wait for whoever reads its standard error: a thread of its own writes the lines."""

from __future__ import annotations

import threading
from collections import deque

from sandboxrun.log import Log

LINES_MAX = 1000  # that wait to be written; a line has at most 2000 characters, and a hint
LAST_SECONDS = 1.0  # for the last lines


class QueuedLog(Log):
    """If too many lines wait, further ones are dropped, and how many is said once there is room."""

    def __init__(self, *, json: bool = False, debug: bool = False) -> None:
        super().__init__(json=json, debug=debug)
        self._lines: deque[str] = deque()
        self._changed = threading.Condition()
        self._dropped, self._writes = 0, False
        threading.Thread(target=self._go_on, name="log", daemon=True).start()

    def flush(self) -> None:
        """Wait until all is written, unless the reader hangs."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines and not self._writes, LAST_SECONDS)

    def _print(self, line: str) -> None:
        with self._changed:
            if len(self._lines) >= LINES_MAX:
                self._dropped += 1
                return
            self._say_dropped()
            self._lines.append(line)
            self._changed.notify_all()

    def _say_dropped(self) -> None:
        if self._dropped:
            text = f"{self._dropped} messages are missing here, because nobody read standard error"
            self._dropped = 0
            self._lines.append(self._line("warning", "log", text, {}, ()))

    def _go_on(self) -> None:
        while True:
            with self._changed:
                self._writes = False
                if not self._lines:
                    self._say_dropped()
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines)
                line, self._writes = self._lines.popleft(), True
            super()._print(line)
