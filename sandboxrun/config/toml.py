"""What a TOML text must not have before tomllib reads it: it takes quadratic time for a key of many parts. Pure.

64 KiB of `a.a.a… = 1` take it 15 seconds.
"""

from __future__ import annotations

import re

LINE_MAX_CHARS = 4096
DOTS_MAX = 4
_STRING = re.compile(r"""\"(?:[^"\\]|\\.)*+(?:\"|$)|'[^']*+(?:'|$)|\#.*""")  # on one line, or a comment


def line_fault(line: str) -> str:
    """What is wrong with a line, to complete "FILE:LINE has …"; empty if tomllib reads it in no time."""
    if len(line) > LINE_MAX_CHARS:
        return f"more than {LINE_MAX_CHARS} characters"
    if "'''" in line or '"""' in line:  # in one of these a line could look like another one
        return "a string of several lines: expected none here"
    if _STRING.sub("", line).count(".") > DOTS_MAX:
        return f"more than {DOTS_MAX} dots outside of strings"
    return ""
