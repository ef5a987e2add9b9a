"""A worker's identity: its key, its hash and its secrets. Each is read once, at first use."""

from __future__ import annotations

import os
import sys

from sandboxrun.config import fields as settings
from sandboxrun.config import keys
from sandboxrun.errors import ConfigError, MissingSecret
from sandboxrun.protocol.calling import Caller
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import ReplyError, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, NoReturn

    from redis import Redis

    from sandboxrun.worker.aside import Aside

SOCKET_MARGIN_SECONDS = 5  # on top of BLOCK, so that a half-open connection is noticed


class Context:
    """The worker's key from argv, REDIS_URL from the environment, the AES key from standard input."""

    def __init__(
        self, worker_key: str, redis_url: str, hash_url: str | None, token: str = "", nonce: str | None = None
    ) -> None:
        """`hash_url`: the login that reads the hashes, if it is not that of `redis_url`: Redis before 7 needs two logins.
        `token`: the run's, from sandboxrun; "" if the worker was started without sandboxrun, and then its calls need no
        grant. `nonce`: the run's, if allowCall names a type."""
        self.key = worker_key
        self.type, self.id = keys.split_worker_key(worker_key)
        self.redis_url, self.hash_url, self.token = redis_url, hash_url, token
        self.caller = Caller(worker_key, self.type, nonce or ("" if token else os.urandom(8).hex()))
        # The request loop goes on with the connection that reads the hash.
        self.connection = Connection(redis_url, name=f"worker:{worker_key}", seconds=SOCKET_MARGIN_SECONDS)
        self._hash: tuple[dict[str, str], dict[str, str]] | None = None
        self._secrets: dict[str, Any] | None = None
        self.callees: set[str] = set()  # types that Redis has let it send requests to
        self.aside: Aside | None = None  # once a handler has state

    def connect(self) -> Redis:
        """A new redis.Redis for the script's own use."""
        import redis

        return redis.Redis.from_url(
            self.redis_url, socket_timeout=SOCKET_MARGIN_SECONDS, socket_connect_timeout=SOCKET_MARGIN_SECONDS
        )

    @property
    def _fields(self) -> tuple[dict[str, str], dict[str, str]]:
        """The merged hash: every field; and the fields that the SDK itself reads, by their first spelling."""
        if self._hash is None:
            self._hash = self._read()
        return self._hash

    def _read(self) -> tuple[dict[str, str], dict[str, str]]:
        connection = Connection(self.hash_url) if self.hash_url else self.connection
        if not connection.is_open:
            connection.open()
        names = (keys.type_key(self.type), self.key)
        everything: dict[str, str] = {}
        known: dict[str, str] = {}
        for name, reply in zip(names, connection.pipeline([("HGETALL", n) for n in names]), strict=True):
            if isinstance(reply, ReplyError):
                raise refused(reply, connection.address.shown)
            raw = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
            everything.update(
                (k.decode("utf-8", "replace"), v.decode("utf-8", "replace"))
                for k, v in raw.items()
                if name == self.key or settings.is_inherited(k)
            )
            known.update(settings.read_fields(raw, name))
        if connection is not self.connection:
            connection.close()
        self.caller.allowed = everything.get("allowCall", "")
        return everything, known

    def config(self) -> dict[str, str]:
        return {name: value for name, value in self._fields[0].items() if name not in settings.SECRET_FIELDS}

    def data(self) -> Path:
        """The worker's own data folder. Raises ConfigError if it is not granted."""
        folder = os.environ.get("SANDBOXRUN_DATA")
        if not folder:
            raise ConfigError(
                f"{self.key} is not granted its data folder: ~data is in neither allowWrite nor allowRead",
                hint=self._data_hint(),
            )
        from pathlib import Path

        return Path(folder)

    def _data_hint(self) -> str:
        import shlex

        granted = self.config().get("allowWrite", "")
        words, entries = keys.in_words(self.key), f"{granted},~data" if granted else "~data"
        return f"sandboxrun set {words} {shlex.quote(f'allowWrite={entries}')} && sandboxrun approve {words}"

    def loop(self) -> settings.Loop:
        return settings.parse_loop(self._fields[1], self.type, self.id)

    def secrets(self) -> dict[str, Any]:
        if self._secrets is None:
            known, secrets = self._fields[1], {}
            if known.get("encryptedJson"):
                from sandboxrun.config.secrets import KEY_LINE_MAX_BYTES, decrypt, parse_key_line

                line = sys.stdin.buffer.readline(KEY_LINE_MAX_BYTES)
                secrets = decrypt(known, parse_key_line(line), worker_key=self.key, type_=self.type)
            self._secrets = _Secrets(secrets)
            self._secrets.worker = self
        return self._secrets


class _Secrets(dict[str, "Any"]):
    """A dict whose KeyError names the secrets that are there, and says how to store another."""

    worker: Context

    def __missing__(self, name: str) -> NoReturn:
        import json
        from difflib import get_close_matches
        from shlex import quote

        names = [key for key in self if key != "type"]
        near = "".join(f", did you mean {key!r}?" for key in get_close_matches(str(name), names, 1))
        worker = self.worker
        all_of_them = quote(json.dumps(dict.fromkeys([*names, str(name)[:80]], "VALUE")))  # each call replaces them all
        raise MissingSecret(
            f"{worker.key} has no secret {str(name)[:80]!r}{near} (it has: {', '.join(names) or 'none'})",
            hint=f"echo {all_of_them} | sandboxrun encrypt {worker.type} {worker.id} --key-file FILE --write",
        )


def of_process() -> Context:
    """The context of this process, from its arguments and environment. Raises ConfigError if it is not a worker."""
    if len(sys.argv) != 2 or "REDIS_URL" not in os.environ:
        script = sys.argv[0]
        raise ConfigError(
            f"{script or 'this script'} was not started by sandboxrun, which gives a worker its key and REDIS_URL",
            hint=_dev_hint(script) if script.endswith(".py") else "",
        )
    token = getattr(sys, "_sandboxrun_token", "")  # from bootstrap.py, because the hash may have another run's by now
    environ = os.environ
    return Context(
        sys.argv[1], environ["REDIS_URL"], environ.get("SANDBOXRUN_HASH_URL"), token, environ.get(keys.CALL_NONCE)
    )


def spec_of_script() -> str:
    """The path of the spec.json beside the script, or "" without one."""
    path: str | None = getattr(sys, "_sandboxrun_spec", None)  # from runtime.py
    if path is None:  # started without sandboxrun
        script = os.path.abspath(getattr(sys.modules["__main__"], "__file__", None) or "")
        path = os.path.join(os.path.dirname(script), "spec.json")
        path = path if os.path.exists(path) else ""
    return path


def _dev_hint(script: str) -> str:
    from shlex import quote

    return f"sandboxrun dev {quote(script)}"
