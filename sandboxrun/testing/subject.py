"""The worker under test: its hash, and its process."""

from __future__ import annotations

import collections
import contextlib
import os
import secrets
import threading
import time
from collections.abc import Mapping

from sandboxrun.config import keys
from sandboxrun.config.worker import parse_worker
from sandboxrun.dev.process import Process, unblock
from sandboxrun.errors import ConfigError, SpecError
from sandboxrun.redis import acl
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import ReplyError
from sandboxrun.spec.model import Spec
from sandboxrun.testing.http import PLACEHOLDER, Server

ID = "test"
START_SECONDS = 60.0
READY_SECONDS = 2.0  # after its start, for a worker that is not made with the SDK
STOP_SECONDS = 8.0
POLL_SECONDS = 0.002
LINES_MAX = 200
HIDDEN = "…"
# Fields of the hash that the tests set themselves.
_OWN_FIELDS = ("type", "url", "version", "requestStream", "responseStream", "consumerId", "pid", "encryptedJson")


class Subject:
    """One worker, started as often as its tests need. Used by one thread, which must outlive it."""

    def __init__(
        self,
        spec: Spec,
        connection: Connection,
        url: str,
        folder: str,
        options: tuple[str, ...],
        stopped: threading.Event,
        http: Server | None = None,
    ) -> None:
        """`folder`: for the key of its secrets. `options`: of sandboxrun TYPE ID. `stopped`: no start is waited for.
        `http`: a server that it may reach."""
        self.stopped = stopped
        self.spec, self.key = spec, keys.worker_key(spec.type, ID)
        self._connection, self._options = connection, options
        self._env = {**os.environ, "REDIS_URL": url}
        self._env.pop("SANDBOXRUN_HASH_URL", None)
        self._process: Process | None = None
        self._ended = threading.Event()
        self._lines: collections.deque[str] = collections.deque(maxlen=LINES_MAX)
        self._key_file = self._write_hash(folder, http)

    def _write_hash(self, folder: str, http: Server | None) -> str | None:
        spec = self.spec
        for name in _OWN_FIELDS:
            if name in spec.fields:
                raise SpecError(f"{spec.path}: fields.{name} is set by the tests themselves: leave it out")
        fields: dict[str, str] = {
            "type": spec.type,
            "url": spec.folder,
            "version": "local",
            **spec.fields,
            **spec.grants,
        }
        if http is not None:
            fields = {name: value.replace(PLACEHOLDER, http.origin) for name, value in fields.items()}
            fields["allowNet"] = ",".join(filter(None, (fields.get("allowNet"), http.address)))
        self._check(fields)
        path = None
        if spec.secrets:
            from sandboxrun.config.secrets import encrypt

            key = secrets.token_bytes(32)
            fields |= encrypt(
                {"type": spec.type, **spec.secrets}, key, worker_key=self.key, type_=spec.type, algorithm="aes-256-gcm"
            )
            path = os.path.join(folder, "key")
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "w", encoding="ascii") as file:
                file.write(f"worker-v0 {key.hex()}\n")
        self._connection.call("DEL", self.key)
        self._connection.call("HSET", self.key, *(word for pair in fields.items() for word in pair))
        return path

    def _check(self, fields: Mapping[str, str]) -> None:
        """Raise SpecError for grants and fields that no hash may have, whatever the policy says."""
        raw = {name.encode(): value.encode() for name, value in fields.items()}
        try:
            acl.granted(parse_worker(self.spec.type, ID, {}, raw))
        except ConfigError as error:
            text = str(error)
            for name in fields:
                place = "grants" if name in self.spec.grants else "fields"
                text = text.replace(f"field {name} of {self.key}", f"{place}.{name}")
            raise SpecError(f"{self.spec.path}: {text}") from None

    @property
    def code(self) -> int | None:
        """Its exit code, once all that it printed was read."""
        return self._process.code if self._process is not None and self._ended.is_set() else None

    def start(self, *options: str) -> bool:
        """Whether it takes requests; False if it has ended instead. `options`: further ones, for this start."""
        self._ended.clear()
        self._lines.clear()
        fence = keys.fence_key(keys.request_stream(self.spec.type), ID)
        process = self._process = Process(
            [self.spec.type, ID, "--yes", *options, *self._options],
            env=self._env,
            key_file=self._key_file,
            standby=False,
            said=self._say,
            denied=lambda message: None,
            ended=lambda process: self._ended.set(),
        )
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and not self.stopped.is_set():
            if process.code is not None:
                self._ended.wait(STOP_SECONDS)
                return False
            if process.started.is_set():
                if self._connection.call("EXISTS", fence):
                    return True
                if time.time() - process.started_at > READY_SECONDS:
                    return True
            time.sleep(POLL_SECONDS)
        self.stop(kill=True)
        return False

    def stop(self, *, kill: bool = False) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.stop(kill=kill)
        until = time.monotonic() + STOP_SECONDS
        while process.code is None and time.monotonic() < until:
            self._unblock()
            process.join(POLL_SECONDS)
        if process.code is None:
            process.stop(kill=True)
            process.join(STOP_SECONDS)
        self._ended.wait(STOP_SECONDS)

    def _unblock(self) -> None:
        with contextlib.suppress(ReplyError):
            unblock(self._connection, self.spec.type, ID)

    def _say(self, level: str, text: str) -> None:
        if level not in ("info", "debug"):
            self._lines.extend(f"{level}: {text}".splitlines() if level in ("warning", "error") else text.splitlines())

    def take_lines(self) -> list[str]:
        """What it printed since this was asked last, without its secrets."""
        lines = []
        with contextlib.suppress(IndexError):
            while True:
                lines.append(self.hidden(self._lines.popleft()))
        return lines

    def hidden(self, text: str) -> str:
        """The text without the secrets of the worker."""
        for secret in self.spec.secrets.values():
            if secret:
                text = text.replace(secret, HIDDEN)
        return text
