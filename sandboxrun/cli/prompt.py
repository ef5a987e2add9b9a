"""The prompt of `sandboxrun dev`."""

from __future__ import annotations

import collections
import contextlib
import os
import select
import sys
import threading

COLOURS = {"good": "32", "bad": "31", "error": "31", "warning": "33", "denied": "33", "dev": "2"}
LOOK_SECONDS = 0.1  # how soon the end of a worker is noticed while a reply is awaited
EXITS = ("exit", "quit")


class Terminal:
    """Lines of several threads, above a prompt that stays the last line."""

    def __init__(self, prompt: str) -> None:
        self.prompts = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
        self.left = False  # the end was typed while a reply was awaited
        capable = os.environ.get("TERM", "dumb") != "dumb"
        self._colours = sys.stdout.isatty() and capable and not os.environ.get("NO_COLOR")
        self._clear = "\r\x1b[K" if capable else "\r"
        self._prompt, self._asking = prompt, False
        self._lock = threading.Lock()
        self._ahead: collections.deque[str] = collections.deque()  # typed while a reply was awaited
        self._part = b""

    def print(self, kind: str, text: str, *further: str) -> None:
        """`further`: lines below, without the colour of `kind`."""
        if kind in COLOURS and self._colours:
            text = f"\x1b[{COLOURS[kind]}m{text}\x1b[0m"
        text = "\n".join((text, *further))
        with self._lock, contextlib.suppress(OSError, ValueError):
            if self._asking:
                import readline

                sys.stdout.write(f"{self._clear}{text}\n{self._prompt}{readline.get_line_buffer()}")
            else:
                sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def ask(self) -> str | None:
        """A line, or None at the end of the input."""
        import readline  # with which input() edits and remembers lines

        if self._ahead:
            line = self._ahead.popleft()
            self.print("", f"{self._prompt}{line}")
            return line
        begun, self._part = self._part.decode("utf-8", "replace"), b""
        readline.set_startup_hook(lambda: readline.insert_text(begun))
        with self._lock:
            self._asking = True
        try:
            return input(self._prompt).strip()
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
            raise
        finally:
            with self._lock:
                self._asking = False

    def heard(self, done: int) -> bool:
        """Wait a moment for the end of the pipe `done` or for lines that are typed; whether there is nothing more to wait
        for: the pipe has ended, or the end was typed. Other lines are kept for `ask`."""
        fd = sys.stdin.fileno()
        ready = select.select([done, fd], [], [], LOOK_SECONDS)[0]
        if fd in ready and done not in ready:
            data = os.read(fd, 4096)
            # What was typed at the prompt beyond its line has the \r of a terminal that readline has set.
            *lines, self._part = (self._part + data).replace(b"\r", b"\n").split(b"\n")
            self._ahead.extend(line.decode("utf-8", "replace").strip() for line in lines)
            # Ctrl-D on an empty line gives nothing to read, tcgetattr(3).
            self.left = not data or any(line in EXITS for line in self._ahead)
        return self.left or done in ready
