"""The login of a client, and what the refs of its requests begin with.

A worker may only read replies to refs that begin with the NONCE of its run, and before Redis 7 it needs a login of its own
for calls.
"""

from __future__ import annotations

import os

from sandboxrun.config import keys
from sandboxrun.redis.address import parse_url

DEFAULT_URL = "redis://127.0.0.1:6379"


class Login:
    """`url`: where to call. `own`: whether it is the Redis of this process, so that a worker's grants and trace hold there.

    `separate`: whether it is a worker's login for calls alone, which cannot write the traces of others. `trace_url`: the
    login that can. `nonce`: what refs begin with.
    """

    __slots__ = ("nonce", "own", "separate", "trace_url", "url")

    def __init__(self, url: str | None = None) -> None:
        """Raises ConfigError for a URL that is not valid."""
        usual, calls = os.environ.get("REDIS_URL"), os.environ.get(keys.CALL_URL)
        self.own = not url or url in (usual, calls)
        self.separate = self.own and bool(calls)
        self.url = (calls or usual or DEFAULT_URL) if self.own or not url else url
        self.trace_url = usual if self.separate and usual else self.url
        self.nonce = os.environ.get(keys.CALL_NONCE, "") if self.own else ""
        parse_url(self.url)
