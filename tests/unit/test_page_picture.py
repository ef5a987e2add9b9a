"""docs/page.png is a picture of the page, and Debian's Chromium shows the page as it is meant, as an ordinary user."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from agent_status import busy

from sandboxrun.describe.page import Page
from sandboxrun.host.page import Server, parse_address

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import record_page  # noqa: E402

PICTURE = ROOT / "docs/page.png"
MAX_BYTES = 150_000


def size(data: bytes) -> tuple[int, int]:
    """Of a PNG, from its first chunk."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def first_pixel(data: bytes) -> tuple[int, ...]:
    """Of the first row, whose filters have nothing to add to it."""
    parts, at = b"", 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        parts += data[at + 8 : at + 8 + length] if data[at + 4 : at + 8] == b"IDAT" else b""
        at += 12 + length
    return tuple(zlib.decompress(parts)[1:4])


def test_the_picture_is_small() -> None:
    data = PICTURE.read_bytes()
    assert size(data) == (record_page.WIDTH, record_page.HEIGHT) and len(data) <= MAX_BYTES


@pytest.mark.skipif(record_page.CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_draws_the_page_and_applies_its_style() -> None:
    page = Page(lambda: busy(clock=time.monotonic(), now=time.time()))
    server = Server(parse_address("127.0.0.1:0", "--page", "greeter", loopback=True), page.routes())
    server.start()
    try:
        data = record_page.screenshot(f"http://127.0.0.1:{server.port}/?still", 400, 300)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"Chromium does not run here: {error}")
    finally:
        server.close()
    assert size(data) == (400, 300)
    assert first_pixel(data) == (0xFA, 0xFA, 0xF9)  # --ground: the style's digest is the one that the policy names
