"""Compiled code of cached scripts, so that a long one starts as fast as a short one.

The name of a file of code is made of the source's digest, its URL, which tracebacks show, and the interpreter. parse.py makes
the code in a process of its own. The supervisor never unmarshals it. The child does so after it is confined, where hostile code
can do no more than the script may do anyway.
"""

from __future__ import annotations

import _frozen_importlib_external as _external
import sys

from sandboxrun.digests import hex_digest

CODE_MAX_BYTES = 16 << 20  # constant folding can make more of a script; such a code is not kept


def name_of(sha256: str, url: str) -> str:
    """The file name for the code of this source, for the running interpreter."""
    interpreter = (sys.implementation.cache_tag, _external.MAGIC_NUMBER, sys.flags.optimize)
    return f"code-{hex_digest(repr((sha256, url, interpreter)).encode())[:32]}"
