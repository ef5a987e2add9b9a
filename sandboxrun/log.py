"""Messages of sandboxrun to the operator: one line each on standard error, as text or as JSON."""

from __future__ import annotations

import os
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, TextIO

    class Denial(Protocol):
        """config.permissions.Denial as it is logged; this module imports no other module of sandboxrun."""

        @property
        def fields(self) -> dict[str, object]: ...


LINE_MAX_CHARS = 2000
PLAIN = "\x1b[0m"  # ECMA-48 SGR: a worker may print in colours, which must not hide a message of sandboxrun


def escape(text: str) -> str:
    """Make everything in `text` visible that can drive a terminal.

    Control characters, bidi overrides, lone surrogates and odd separators become backslash escapes
    (str.isprintable: Unicode categories "Other" and "Separator" except the space), so that a hash, a URL or a
    worker's path cannot move the operator's cursor or reorder what is read.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def pastable(hint: tuple[str, ...]) -> tuple[str, ...]:
    """The hint, or nothing if it cannot be shown as it is. Escaped it would be another command, and cut off its quotation
    would stay open, so that the next line is read with its quotes reversed."""
    return hint if all(line.isprintable() and len(line) <= LINE_MAX_CHARS for line in hint) else ()


def shown_hint(hint: tuple[str, ...]) -> str:
    """`hint: ` and what to paste: the first line beside it, the others below at the left margin. Empty if there is none."""
    lines = pastable(hint)
    return "hint: " + "\n".join(lines) if lines else ""


class Log:
    """Where the supervisor's messages go: standard error, or `stream`.

    `event` is a stable name for machines, `message` is for people, and `hint` is what to paste: a line for each string.
    """

    def __init__(self, *, quiet: bool = False, json: bool = False, debug: bool = False, stream: TextIO | None = None):
        self._quiet, self._json, self.debug_on = quiet, json, debug
        self._stream = stream
        # Is called with level, event, message and fields of every message, also if it is not shown.
        self.observer: Callable[[str, str, str, dict[str, object]], None] | None = None

    def debug(self, event: str, message: str, **fields: object) -> None:
        self._write("debug", event, message, fields)

    def info(self, event: str, message: str, **fields: object) -> None:
        self._write("info", event, message, fields)

    def warning(self, event: str, message: str, *, hint: tuple[str, ...] = (), **fields: object) -> None:
        self._write("warning", event, message, fields, hint)

    def denied(self, denial: Denial, *, message: str | None = None) -> None:
        """A refusal of the sandbox, or `message` in place of its text. The line has no prefix."""
        self._write("denied", "denied", str(denial) if message is None else message, denial.fields)

    def error(self, event: str, message: str, *, hint: tuple[str, ...] = (), **fields: object) -> None:
        self._write("error", event, message, fields, hint)

    def write(
        self, level: str, event: str, message: str, fields: dict[str, object], hint: tuple[str, ...] = ()
    ) -> None:
        """A message that another Log was given, as its observer has it."""
        self._write(level, event, message, fields, hint)

    def _write(
        self, level: str, event: str, message: str, fields: dict[str, object], hint: tuple[str, ...] = ()
    ) -> None:
        if hint:
            fields["hint"] = list(hint)
        if self.observer is not None:
            self.observer(level, event, message, fields)
        if self.debug_on if level == "debug" else not (level == "info" and self._quiet):
            self._show(level, event, message, fields, hint)

    def _show(self, level: str, event: str, message: str, fields: dict[str, object], hint: tuple[str, ...]) -> None:
        self._print(self._line(level, event, message, fields, hint))

    def _line(self, level: str, event: str, message: str, fields: dict[str, object], hint: tuple[str, ...]) -> str:
        if self._json:
            import json
            import time

            record = {"time": round(time.time(), 3), "level": level, "event": event, "message": message, **fields}
            return json.dumps(record)
        line = escape(message)[:LINE_MAX_CHARS]
        line = {"info": "sandboxrun: ", "denied": ""}.get(level, f"{level}: ") + line
        shown = shown_hint(hint)
        if shown:
            line += "\n" + shown
        if self._stream is None and os.environ.get("TERM", "dumb") != "dumb" and os.isatty(2):
            line = PLAIN + line
        return line

    def _print(self, line: str) -> None:
        try:
            if self._stream is not None:
                self._stream.write(line + "\n")
            else:
                # Not sys.stderr: a thread that waits for a stalled reader would hold its lock, and Python could not exit.
                os.write(2, line.encode() + b"\n")
        except (OSError, ValueError):
            pass  # A closed or full terminal must not end a worker.
