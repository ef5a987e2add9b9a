"""Compiled code of cached scripts, so that a long one starts as fast as a short one.

Kept by the digest of the source, its URL, which tracebacks show, and the interpreter, and sealed: what somebody put there
without the key is not taken. The supervisor never looks into it. It is made by parse.py, in a process of its own, and
unmarshalled by the child when that is confined already, where all that it could do is what the script may do anyway.
"""

from __future__ import annotations

import _frozen_importlib_external as _external
import os
import sys

from sandboxrun.digests import hex_digest, sealed, unsealed
from sandboxrun.files import read_or_make_key, write_whole

CODE_MAX_BYTES = 16 << 20  # a megabyte of source makes less


def kept(folder: str, key_file: str, *, sha256: str, url: str) -> bytes | None:
    """Marshalled code; None where there is none, or none that was kept by us for this source and interpreter."""
    name = _name(sha256, url)
    try:
        key = read_or_make_key(key_file)
        with open(os.path.join(folder, name), "rb") as file:
            return unsealed(file.read(CODE_MAX_BYTES + 1024), key, name)
    except (OSError, ValueError):
        return None


def keep(folder: str, key_file: str, code: bytes, *, sha256: str, url: str) -> None:
    """A disk that is full or cannot be written is no error: the child compiles then."""
    if len(code) > CODE_MAX_BYTES:
        return
    name = _name(sha256, url)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        write_whole(os.path.join(folder, name), sealed(code, read_or_make_key(key_file), name), sync=False)
    except (OSError, ValueError):
        pass


def _name(sha256: str, url: str) -> str:
    interpreter = (sys.implementation.cache_tag, _external.MAGIC_NUMBER, sys.flags.optimize)
    return f"code-{hex_digest(repr((sha256, url, interpreter)).encode())[:32]}"
