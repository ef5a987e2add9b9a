"""Is it a script, and is it the right one? Decisions over bytes."""

from __future__ import annotations

import sys

from sandboxrun.digests import hex_digest
from sandboxrun.errors import FetchError, IntegrityError


def check_digest(data: bytes, expected: str | None, origin: str) -> str:
    """The digest of `data`. Raises IntegrityError, naming both, where the hash pins another."""
    digest = hex_digest(data)
    if expected is not None and digest != expected:
        raise IntegrityError(
            f"{origin} has sha256 {digest}, but field sha256 pins {expected}: fetch what was meant, or change the field"
        )
    return digest


def check_python(data: bytes, origin: str, *, remote: bool) -> None:
    """Raise FetchError unless `data` is UTF-8 Python, and, where it comes from a server, does something."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FetchError(f"{origin} is not UTF-8 text (byte {error.start}): not a Python script") from error
    if text.lstrip()[:1] == "<":
        raise FetchError(f"{origin} is a page of HTML or XML, not a Python script: is it the raw URL?")
    from sandboxrun.fetch import parse  # not before: what comes from the cache is not parsed again

    complaint = _parsed_apart(text) if remote else parse.complaint(text, must_act=False)
    if complaint:
        raise FetchError(f"{origin} {complaint}")


def _parsed_apart(text: str) -> str:
    import subprocess

    from sandboxrun.fetch import parse

    done = subprocess.run(
        [sys.executable, "-I", "-S", parse.__file__], input=text.encode(), capture_output=True, env={}, check=False
    )
    if done.returncode != 0:
        return f"takes more than {parse.CPU_SECONDS} s or {parse.MEMORY_BYTES >> 20} MiB to be parsed: not a script to be run"
    return done.stdout.decode()
