"""Whether bytes are a script, and the pinned one. Pure, but for the process that parses."""

from __future__ import annotations

import os
import sys

from sandboxrun.digests import hex_digest
from sandboxrun.errors import FetchError, IntegrityError

_BOM = b"\xef\xbb\xbf"  # of UTF-8; the codec utf-8-sig is a module of its own
_PARSE_SECONDS = 30  # wall-clock time: a busy machine may take longer than parse.CPU_SECONDS


def check_digest(data: bytes, expected: str | None, origin: str) -> str:
    """The digest of `data`. Raises IntegrityError, which names both, if the hash pins another one."""
    digest = hex_digest(data)
    if expected is not None and digest != expected:
        raise IntegrityError(
            f"{origin} has sha256 {digest}, but field sha256 pins {expected}",
            hint=f"sandboxrun set TYPE ID sha256={digest}",
        )
    return digest


def check_python(data: bytes, origin: str) -> None:
    """Raise FetchError unless `data` is UTF-8 Python that does something."""
    text = _text(data, origin)
    from sandboxrun.fetch import parse  # late, because a cached script is not parsed again

    complaint = parse.complaint(text, must_act=True)
    if complaint:
        raise FetchError(f"{origin} {complaint}")


def compile_python(data: bytes, url: str) -> bytes:
    """The marshalled code of a downloaded script; empty if it is longer than CODE_MAX_BYTES, so that the child compiles.

    Raises FetchError unless `data` is UTF-8 Python that does something.
    """
    text = _text(data, url)
    from sandboxrun.fetch import parse
    from sandboxrun.fetch.bounded import output_of
    from sandboxrun.fetch.compiled import CODE_MAX_BYTES

    command = [sys.executable, "-I", "-S", "-X", "utf8", parse.__file__, url, str(CODE_MAX_BYTES)]
    max_bytes = CODE_MAX_BYTES + parse.COMPLAINT_MAX_BYTES + 1
    output, status = output_of(command, text.encode(), max_bytes=max_bytes, seconds=_PARSE_SECONDS)
    complaint, _, code = output.partition(b"\0")
    if status != 0:
        complaint = b"takes more than %d s or %d MiB to be parsed: not a script to be run" % (
            parse.CPU_SECONDS,
            parse.MEMORY_BYTES >> 20,
        )
    if complaint:
        raise FetchError(f"{url} {complaint.decode()}")
    return code


def _text(data: bytes, origin: str) -> str:
    try:
        text = data.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        raise FetchError(f"{origin} is not UTF-8 text (byte {error.start}): not a Python script") from error
    if text.lstrip()[:1] == "<":
        raise FetchError(
            f"{origin} is a page of HTML or XML, not a Python script",
            hint="" if os.path.isabs(origin) else "sandboxrun set TYPE ID url=RAW_URL",  # a file has no other URL
        )
    return text
