"""Attacks on the operator's terminal: a worker has pipes, whose other ends are ours, and writes; it does nothing else."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from arena import Arena, Outcome, wait_for
from raw_calls import Act, Answers, make

TYPED = b"typed\n" * 20
CONTROLLING = (
    "import fcntl, os, sys, termios\nfcntl.ioctl(1, termios.TIOCSCTTY, 0)\nos.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal(Arena):
    """Standard output and error are a terminal, the controlling one, where the operator has typed something."""

    def _run(self, command: list[str], cwd: Path) -> Outcome:
        master, slave = pty.openpty()
        with open(master, "rb", buffering=0), open(slave, "rb", buffering=0):
            attributes = termios.tcgetattr(slave)
            attributes[3] &= ~termios.ECHO
            termios.tcsetattr(slave, termios.TCSANOW, attributes)
            os.write(master, TYPED)
            wait_for(lambda: self._state(slave)[0] == len(TYPED))  # the kernel hands it over in its own time
            before = self._state(slave)
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", CONTROLLING, *command],
                cwd=cwd,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
            )
            shown, deadline = b"", time.monotonic() + 30
            while process.poll() is None or select.select([master], [], [], 0)[0]:
                assert time.monotonic() < deadline, shown
                if select.select([master], [], [], 0.02)[0]:
                    shown += os.read(master, 65536)
            self.unchanged = self._state(slave) == before
        lines = [line for line in shown.decode().splitlines() if line.startswith("OUTCOME ")]
        found: dict[str, Any] = {"errno": "NO OUTCOME"}
        if len(lines) == 1:
            found = json.loads(lines[0][len("OUTCOME ") :])
        return Outcome(found.get("value"), found.get("errno"), shown.decode(), process.returncode)

    @staticmethod
    def _state(slave: int) -> tuple[object, ...]:
        (waiting,) = struct.unpack("i", fcntl.ioctl(slave, termios.FIONREAD, bytes(4)))
        return waiting, termios.tcgetattr(slave), fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8))


TERMINAL = {
    "read": ("return bool(os.read(1, 6))", "EBADF"),
    "read by standard error": ("return bool(os.read(2, 6))", "EBADF"),
    "read by a copy": ("return bool(os.read(os.dup(1), 6))", "EBADF"),
    "raw pread64": ('return raw("read", 1, zeros(6), 6) > 0', "EBADF"),
    "opened anew to read": ("return bool(os.read(os.open('/proc/self/fd/1', os.O_RDONLY | os.O_NONBLOCK), 6))", "EAGAIN"),
    "opened anew to read, by /dev/fd": ("return bool(os.read(os.open('/dev/fd/2', os.O_RDWR | os.O_NONBLOCK), 6))", "EAGAIN"),
    "opened anew by its name": ("return bool(os.read(os.open(os.ttyname(1), os.O_RDONLY | os.O_NOCTTY), 6))", "ENOTTY"),
    "opened anew to write": ("return os.open(os.ttyname(1), os.O_WRONLY | os.O_NOCTTY) > 0", "ENOTTY"),
    "/dev/tty": ("return bool(os.read(os.open('/dev/tty', os.O_RDWR), 6))", "EACCES"),
    "/dev/stdout": ("return bool(os.read(os.open('/dev/stdout', os.O_RDONLY | os.O_NONBLOCK), 6))", "EAGAIN"),
    "typed for the operator": ("fcntl.ioctl(1, 0x5412, b'X')\nreturn True", "EPERM"),
    "typed for the operator, high bits": ('return raw("ioctl", 1, 1 << 32 | 0x5412, b"X") == 0', "EPERM"),
    "typed for the operator, by standard error": ('return raw("ioctl", 2, 0x5412, b"X") == 0', "EPERM"),
    "discipline": ("fcntl.ioctl(1, 0x5423, ints(0))\nreturn True", "EPERM"),
    "discipline asked for": ("fcntl.ioctl(1, 0x5424, bytes(4))\nreturn True", "EPERM"),
    "given up": ("fcntl.ioctl(1, 0x5422)\nreturn True", "EPERM"),
    "group in front": ("os.tcsetpgrp(1, os.getpgrp())\nreturn True", "EPERM"),
    "group in front asked for": ("return os.tcgetpgrp(1) > 0", "EPERM"),
    "session": ("return fcntl.ioctl(1, 0x5429, bytes(4)) != b''", "EPERM"),
    "echo": ("import termios\na = termios.tcgetattr(1)\na[3] ^= termios.ECHO\ntermios.tcsetattr(1, termios.TCSANOW, a)\nreturn True", "ENOTTY"),
    "echo, when drained": ("import termios\ntermios.tcsetattr(1, termios.TCSADRAIN, termios.tcgetattr(1))\nreturn True", "ENOTTY"),
    "modes of the new kind": ("fcntl.ioctl(1, 0x802C542A, bytes(44))\nreturn True", "EPERM"),
    "size": ("fcntl.ioctl(1, 0x5414, bytes([9, 0, 9, 0, 0, 0, 0, 0]))\nreturn True", "EPERM"),
    "flow": ("import termios\ntermios.tcflow(1, termios.TCOON)\nreturn True", "EPERM"),
    "flushed": ("import termios\ntermios.tcflush(1, termios.TCOFLUSH)\nreturn True", "EPERM"),
    "drained": ("fcntl.ioctl(1, 0x5409, 1)\nreturn True", "EPERM"),
    "held for oneself": ("fcntl.ioctl(1, 0x540C)\nfcntl.ioctl(1, 0x540D)\nreturn True", "EPERM"),
    "output asked for": ("fcntl.ioctl(1, 0x5411, bytes(4))\nreturn True", "EPERM"),
    "owned": ("fcntl.fcntl(1, fcntl.F_SETOWN, os.getpid())\nreturn True", "EPERM"),
    "asynchronous": ("signal.signal(29, signal.SIG_IGN)\nfcntl.fcntl(1, fcntl.F_SETFL, os.O_ASYNC)\nreturn True", "EPERM"),
    "asynchronous, by ioctl": ("signal.signal(29, signal.SIG_IGN)\nfcntl.ioctl(1, 0x5452, ints(1))\nreturn True", "EPERM"),
}  # fmt: skip
TAKEN = {what: Act(body, errno) for what, (body, errno) in TERMINAL.items()}


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    terminal = Terminal(tmp_path_factory.mktemp("terminal"))
    answers = make(terminal, TAKEN)
    # Of the last run, the confined one: nothing read, nothing typed, no mode and no size changed.
    assert terminal.unchanged
    return answers


@pytest.mark.parametrize("what", TAKEN)
def test_the_terminal_is_there_to_be_written_only(taken: Answers, what: str) -> None:
    taken.check(what, TAKEN[what].errno, "EIO ENOTTY", works=True)


NAMES = ["\x1b]0;title\x07", "\x1b[2Jevil", "a\rb", "a\nb", "\u202egnp.exe", "\x9b31m", "a b", "localhost\0.example"]


def test_names_a_worker_asks_for_do_not_drive_the_terminal(arena: Arena) -> None:
    code = """
    def attempt():
        fds = [fd for fd in range(3, 64) if os.path.exists(f"/proc/self/fd/{fd}")]
        found = []
        for number, name in enumerate(V["names"], 1000):
            os.write(fds[0], f"name {number} {name}.example".encode())
            found.append(os.read(fds[1], 4096).decode().split("\\n")[:2])
        return found
    """
    found = arena.confined(code, names=NAMES)
    assert [number for number, _ in found.value] == [str(number) for number in range(1000, 1000 + len(NAMES))]
    assert "ok" not in [verdict for _, verdict in found.value]
    assert not set(found.stderr) & {"\x1b", "\x07", "\r", "\u202e", "\x9b", "\0"}


def visible(shown: str) -> list[str]:
    """The lines that an operator reads, of a terminal that knows what the worker may use: colours, EL, CR, LF and tabs."""
    lines, column, hidden = [""], 0, False
    for match in re.finditer(r"\x1b\[([0-9;:]*)([mK])|(.)", shown, re.DOTALL):
        codes, kind, character = match.groups()
        line = lines[-1]
        if kind == "m":
            hidden = {"8": True, "30;40": True, "0": False, "": False}[codes]
        elif kind == "K":
            end = len(line) if codes != "1" else min(column + 1, len(line))
            start = 0 if codes in ("1", "2") else column
            lines[-1] = line[:start] + " " * (end - start) + line[end:]
        elif character == "\r":
            column = 0
        elif character == "\n":
            lines.append("")
            column = 0
        else:
            assert character == "\t" or character.isprintable(), repr(character)
            lines[-1] = line.ljust(column)[:column] + (" " if hidden else character) + line[column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


WIPES = ["\r\x1b[2K", "\x1b[1K\x1b[2K", "\x1b[1A\x1b[2K", "\x08" * 150, "\x1bM\x1b[K", "\r" + 150 * " "]


@pytest.mark.parametrize("hide", ["\x1b[8m", "\x1b[30;40m", "unfinished \x1b[8m", "\x1b", "\x1b[", "\x1b]0;"])
def test_a_worker_can_neither_hide_nor_wipe_what_we_say(tmp_path: Path, hide: str) -> None:
    code = """
    def attempt():
        import time
        os.write(1, V["hide"].encode())
        time.sleep(0.1)  # each stream has a thread of its own that writes it
        try:
            socket.socket().connect(("192.0.2.1", 80))
        except PermissionError:
            time.sleep(0.1)
            os.write(2, V["wipe"].encode() + b"\\n")
            return "refused"
    """
    terminal = Terminal(tmp_path)
    terminal.env["TERM"] = "xterm"
    found = terminal.confined(code, hide=hide, wipe="".join(WIPES))
    line = 'Requires net access to "192.0.2.1:80"; grant it with: --allow-net=192.0.2.1:80 (field allowNet of test:1:h)'
    assert [text for text in visible(found.stderr) if text.endswith(line)], found.stderr
    assert terminal.unchanged
