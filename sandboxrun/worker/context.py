"""Who this worker is: its key, its hash, its secrets. Found out once, when first asked."""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

from sandboxrun import config as fields
from sandboxrun import keys
from sandboxrun.errors import ConfigError
from sandboxrun.secrets import KEY_LINE_MAX_BYTES, decrypt, parse_key_line

SOCKET_MARGIN_SECONDS = 5  # on top of BLOCK: a half-open connection is noticed then


class Context:
    """The worker's key from argv, REDIS_URL from the environment, the AES key from standard input."""

    def __init__(self, worker_key: str, redis_url: str, hash_url: str | None) -> None:
        """`hash_url`: where the hashes can be read, if not at `redis_url`: a Redis before 7 takes two logins for that."""
        self.key = worker_key
        self.type, self.id = keys.split_worker_key(worker_key)
        self._redis_url, self._hash_url = redis_url, hash_url or redis_url
        self._secrets: dict[str, Any] | None = None

    def connect(self, *, block_millis: int = 0) -> Any:
        """A new redis.Redis whose time-outs fit reads that block for `block_millis`."""
        return self._connect(self._redis_url, block_millis)

    def connect_to_hash(self) -> Any:
        """A new redis.Redis that can read the worker's hashes, and nothing else for certain."""
        return self._connect(self._hash_url, 0)

    def _connect(self, url: str, block_millis: int) -> Any:
        import redis

        timeout = block_millis / 1000 + SOCKET_MARGIN_SECONDS
        return redis.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=SOCKET_MARGIN_SECONDS)

    @functools.cached_property
    def _fields(self) -> tuple[dict[str, str], dict[str, str]]:
        """The merged hash: (every field, the fields sandboxrun itself knows under their first spelling)."""
        client = self.connect_to_hash()
        with client:
            raw = [client.hgetall(name) for name in (keys.type_key(self.type), self.key)]
        everything: dict[str, str] = {}
        known: dict[str, str] = {}
        for name, found in zip((keys.type_key(self.type), self.key), raw, strict=True):
            everything.update({k.decode("utf-8", "replace"): v.decode("utf-8", "replace") for k, v in found.items()})
            known.update(fields.read_fields(found, name))
        return everything, known

    def config(self) -> dict[str, str]:
        return {name: value for name, value in self._fields[0].items() if name not in fields.SECRET_FIELDS}

    def loop(self) -> fields.Loop:
        return fields.parse_loop(self._fields[1], self.type, self.id)

    def secrets(self) -> dict[str, Any]:
        if self._secrets is None:
            known = self._fields[1]
            if known.get("encryptedJson"):
                line = sys.stdin.buffer.readline(KEY_LINE_MAX_BYTES)
                self._secrets = decrypt(known, parse_key_line(line), worker_key=self.key, type_=self.type)
            else:
                self._secrets = {}
        return self._secrets


@functools.cache
def current() -> Context:
    """The context of this process. Raises ConfigError where it was not started as a worker."""
    if len(sys.argv) != 2 or "REDIS_URL" not in os.environ:
        raise ConfigError(
            f"{sys.argv[0] or 'this script'} is a worker: start it with sandboxrun TYPE ID, which gives it its key and REDIS_URL"
        )
    return Context(sys.argv[1], os.environ["REDIS_URL"], os.environ.get("SANDBOXRUN_HASH_URL"))
