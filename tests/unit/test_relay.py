"""What a worker prints, to terminals, pipes and files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import pty
import re
import threading
import time
import tty
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxrun.sandbox.supervisor.output import Cleaner, Relay

SGR, EL, RESET = b"\x1b[1;38:5:208m", b"\x1b[2K", b"\x1b[0m"


def cleaned(*chunks: bytes) -> bytes:
    clean = Cleaner()
    return b"".join([clean(chunk) for chunk in chunks if chunk] + [clean(b"")])


# What would drive a terminal, and how it is shown.
SHOWN = {
    "OSC title": (b"\x1b]0;title\x07", rb"\x1b]0;title\x07"),
    "OSC title, ended by ST": (b"\x1b]2;title\x1b\\", rb"\x1b]2;title\x1b" + b"\\"),
    "OSC link": (b"\x1b]8;;http://x\x07text\x1b]8;;\x07", rb"\x1b]8;;http://x\x07text\x1b]8;;\x07"),
    "OSC clipboard": (b"\x1b]52;c;cm0=\x07", rb"\x1b]52;c;cm0=\x07"),
    "DCS": (b"\x1bP+q544e\x1b\\", rb"\x1bP+q544e\x1b" + b"\\"),
    "APC": (b"\x1b_Gf=100;\x1b\\", rb"\x1b_Gf=100;\x1b" + b"\\"),
    "PM, SOS": (b"\x1b^x\x1bXx", rb"\x1b^x\x1bXx"),
    "CSI up": (b"\x1b[1A", rb"\x1b[1A"),
    "CSI home": (b"\x1b[H", rb"\x1b[H"),
    "CSI clear": (b"\x1b[2J\x1b[3J", rb"\x1b[2J\x1b[3J"),
    "CSI answer": (b"\x1b[6n\x1b[c\x1b[21t", rb"\x1b[6n\x1b[c\x1b[21t"),
    "CSI modes": (b"\x1b[?1049h\x1b[?25l\x1b[?2004h", rb"\x1b[?1049h\x1b[?25l\x1b[?2004h"),
    "CSI insert": (b"\x1b[4h\x1b[5L\x1b[3@", rb"\x1b[4h\x1b[5L\x1b[3@"),
    "CSI key modes, which ends as SGR does": (b"\x1b[>4;1m\x1b[?4m", rb"\x1b[>4;1m\x1b[?4m"),
    "CSI with intermediates": (b"\x1b[1 q\x1b[!p\x1b[1$m", rb"\x1b[1 q\x1b[!p\x1b[1$m"),
    "CSI with a control inside": (b"\x1b[3\x081m", rb"\x1b[3\x081m"),
    "SGR without end": (b"\x1b[" + b"1;" * 17 + b"m", rb"\x1b[" + b"1;" * 17 + b"m"),
    "reset": (b"\x1bc", rb"\x1bc"),
    "index, reverse index": (b"\x1bD\x1bM", rb"\x1bD\x1bM"),
    "saved and restored cursor": (b"\x1b7\x1b8", rb"\x1b7\x1b8"),
    "character sets": (b"\x1b(0\x0e\x0f", rb"\x1b(0\x0e\x0f"),
    "C1 of eight bits": (b"\x9b2J\x90x\x9d0;t\x9c\x85", rb"\x9b2J\x90x\x9d0;t\x9c\x85"),
    "C1 in UTF-8": ("\x9b2J\x90\x9d\x85".encode(), rb"\x9b2J\x90\x9d\x85"),
    "BEL, BS, VT, FF, NUL, DEL, ENQ": (b"\x07\x08\x0b\x0c\0\x7f\x05", rb"\x07\x08\x0b\x0c\x00\x7f\x05"),
    "bidi": ("\u202e\u2066\u2069\u200f\u061c".encode(), rb"\u202e\u2066\u2069\u200f\u061c"),
    "separators, tags": ("\u2028\u2029\ufeff\U000e0041".encode(), rb"\u2028\u2029\ufeff\U000e0041"),
    "not UTF-8": (b"\xff\xc3(\xe2\x28\xa1", rb"\xff\xc3(\xe2(\xa1"),
    "overlong": (b"\xc0\x9b\xe0\x82\x9b", rb"\xc0\x9b\xe0\x82\x9b"),
    "surrogates": (b"\xed\xa0\x80", rb"\xed\xa0\x80"),
    "cut off at the end": (b"\x1b[31", rb"\x1b[31"),
    "cut off in a character": (b"\xe2\x82", rb"\xe2\x82"),
    "ESC at the end": (b"\x1b", rb"\x1b"),
}  # fmt: skip
PASSED = [
    b"plain\n\ttext\r50%", "grün, 日本, 👩‍💻, 1\u00a0000".encode(), SGR + b"x" + RESET, b"\r" + EL + b"50%" + RESET,
    b"\x1b[mx" + RESET, b"\x1b[K",
]  # fmt: skip


@pytest.mark.parametrize("what", SHOWN)
def test_what_would_drive_a_terminal_is_shown(what: str) -> None:
    sent, shown = SHOWN[what]
    assert cleaned(sent) == shown
    assert cleaned(*(bytes([byte]) for byte in sent)) == shown


@pytest.mark.parametrize("text", PASSED)
def test_colours_erased_lines_and_text_of_any_language_pass(text: bytes) -> None:
    assert cleaned(text) in (text, text + RESET)
    assert cleaned(*(bytes([byte]) for byte in text)) == cleaned(text)


def test_colours_end_with_the_worker() -> None:
    assert cleaned(b"\x1b[31mred") == b"\x1b[31mred\x1b[0m"
    assert cleaned(b"no colour") == b"no colour"


def test_a_finished_line_is_not_held_back() -> None:
    for line in (b"text\n", b"\x1b[31\n", b"\x1b\n", b"\x1b[K\n"):
        assert Cleaner()(line).endswith(b"\n")


PIECES = [b"\x1b", b"[", b"]", b"m", b"K", b"J", b"3", b";", b":", b"\n", b"\r", b"\x07", b"\x9b", b"a", "é".encode()]
PIECES += ["\u202e".encode(), "\x9b".encode(), b"\xe2", b"\x80", b"\xae", b"\xff", b"\x1b[31m", b"\x1b[0K", b"1" * 33]
BYTES = st.one_of(st.binary(max_size=60), st.lists(st.sampled_from(PIECES), max_size=25).map(b"".join))


@settings(max_examples=400, deadline=None, database=None)
@given(BYTES, st.lists(st.integers(0, 80), max_size=8))
def test_chunks_change_nothing_and_nothing_forbidden_is_left(data: bytes, cuts: list[int]) -> None:
    at = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    whole = cleaned(data)
    assert cleaned(*(data[start:end] for start, end in itertools.pairwise(at))) == whole
    left = whole.decode()  # always UTF-8
    for number, part in enumerate(left.split("\x1b")):
        if number:  # digits, colons and semicolons up to one m or K
            assert part.startswith("[")
            assert part[1:].lstrip("0123456789;:")[:1] in ("m", "K"), left
    for character in left.replace("\x1b", ""):
        allowed = character in "\n\r\t\u200d\u00a0 "
        assert allowed or unicodedata.category(character)[0] not in "CZ", repr(character)


@contextlib.contextmanager
def relayed(target: int) -> Iterator[int]:
    """The writing end of a worker's pipe."""
    read, write = os.pipe()
    with open(read, "rb", buffering=0) as source:
        relay = Relay(source, target, limit=0, slowed=lambda: None)
        relay.start()
        try:
            yield write
        finally:
            with contextlib.suppress(OSError):
                os.close(write)
            relay.close()


EVERY = bytes(range(256)) + b"".join(sent for sent, _ in SHOWN.values()) + b"".join(PASSED)


def test_a_file_gets_the_bytes_unchanged(tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as file, relayed(file.fileno()) as write:
        os.write(write, EVERY)
    assert (tmp_path / "out").read_bytes() == EVERY


def test_50_mb_through_a_pipe_are_the_same_bytes() -> None:
    read, target = os.pipe()
    sent, got, count = hashlib.sha256(), hashlib.sha256(), [0]

    def reader() -> None:
        while part := os.read(read, 1 << 20):
            got.update(part)
            count[0] += len(part)

    thread = threading.Thread(target=reader)
    thread.start()
    with relayed(target) as write:
        for block in range(50):
            data = os.urandom(4096) + EVERY + bytes([block])
            data = (data * (1_000_000 // len(data) + 1))[:1_000_000]
            sent.update(data)
            send(write, data)
    os.close(target)
    thread.join()
    os.close(read)
    assert (count[0], got.digest()) == (50_000_000, sent.digest())


def test_a_terminal_gets_what_is_cleaned() -> None:
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    with relayed(theirs) as write:
        os.write(write, EVERY)
    seen = b""
    while len(seen) < len(cleaned(EVERY)):
        seen += os.read(ours, 65536)
    os.close(ours)
    os.close(theirs)
    assert seen == cleaned(EVERY)


def test_a_worker_whose_reader_is_gone_gets_epipe() -> None:
    read, target = os.pipe()
    os.close(read)
    with relayed(target) as write, pytest.raises(BrokenPipeError):
        send(write, bytes(1 << 20))
    os.close(target)


def test_a_full_disk_is_said_once_and_what_comes_later_is_tried_again(tmp_path: Path) -> None:
    target = os.open("/dev/full", os.O_WRONLY)
    read, write = os.pipe()
    errors: list[OSError] = []
    with open(read, "rb", buffering=0) as source:
        relay = Relay(source, target, limit=0, slowed=lambda: None, lost=errors.append)
        relay.start()
        for _ in range(50):
            send(write, bytes(10_000))
        while not errors:
            time.sleep(0.01)
        found = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
        os.dup2(found, target)
        send(write, b"later")
        os.close(write)
        relay.close()
    os.close(target)
    os.close(found)
    assert [error.errno for error in errors] == [errno.ENOSPC]
    assert (tmp_path / "out").read_bytes().endswith(b"later")


@pytest.mark.parametrize("blocking", [True, False])
def test_two_streams_do_not_make_a_sequence_together(blocking: bool) -> None:
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    os.set_blocking(
        theirs, blocking
    )  # whoever shares the terminal may have done so: then it takes less than it is given
    colours, text = b"\x1b[31m\x1b[0m" * 20_000, b"2J" * 20_000
    seen = bytearray()

    def reader() -> None:
        while len(seen) < len(colours) + len(text):
            seen.extend(os.read(ours, 997))

    thread = threading.Thread(target=reader)
    thread.start()
    with relayed(theirs) as one, relayed(theirs) as other:
        writers = [
            threading.Thread(target=send, args=(one, colours)),
            threading.Thread(target=send, args=(other, text)),
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        thread.join()
    os.close(ours)
    os.close(theirs)
    assert len(re.findall(b"\x1b\\[(31|0)m", seen)) == 40_000


def send(write: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(write, view) :]
