"""Compiled code of cached scripts, so that a long one starts as fast as a short one.

Kept by the digest of the source, its URL, which tracebacks show, and the interpreter. The supervisor never looks into it. It
is made by parse.py, in a process of its own, and unmarshalled by the child when that is confined already, where all that it
could do is what the script may do anyway.
"""

from __future__ import annotations

import _frozen_importlib_external as _external
import sys

from sandboxrun.digests import hex_digest

CODE_MAX_BYTES = 16 << 20  # a megabyte of source makes less


def name_of(sha256: str, url: str) -> str:
    """Under which the code of this source is kept, for the running interpreter."""
    interpreter = (sys.implementation.cache_tag, _external.MAGIC_NUMBER, sys.flags.optimize)
    return f"code-{hex_digest(repr((sha256, url, interpreter)).encode())[:32]}"
