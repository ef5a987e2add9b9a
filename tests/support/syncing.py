"""Tables of PostgreSQL that the plugin postgres-sync keeps up to date in tests."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
from arena import wait_for
from postgres import OWNER, WRITER, Database
from runner import Runner

from sandboxrun.sync import model, sql

PLUGIN = Path(__file__).parents[2] / "plugins/postgres-sync"
STREAM, GROUP = "order:req:x", "postgres-sync"
ORDERS: dict[str, Any] = {
    "tables": {
        "orders": {
            "stream": STREAM,
            "columns": {
                "item": {"type": "text", "required": True},
                "price": "numeric",
                "n": "integer",
                "at": "timestamp",
                "whole": {"path": "data", "type": "json"},
            },
            "indexes": ["item"],
            "totals": {"per_item": {"by": ["item"], "sum": {"total": "n"}, "count": "orders"}},
        }
    }
}


class Syncing:
    """Workers of postgres-sync for one database. `sync`: the sync.json. Tables are made, with the rights of `role`."""

    def __init__(
        self,
        run: Runner,
        r: redis.Redis,
        database: Database,
        sync: dict[str, Any],
        *,
        role: str = WRITER,
        make: bool = True,
    ) -> None:
        self.run, self.r, self.database, self.sync = run, r, database, sync
        self.tables = model.parse(json.dumps(sync).encode())
        if make:
            for table in self.tables.values():
                for statement in (*sql.create(table), *sql.grants(table, role)):
                    database.execute(statement, role=OWNER)
        self.key = run.home / "worker.key"
        if not self.key.exists():
            self.key.write_text(f"worker-v0 {os.urandom(32).hex()}\n")
            self.key.chmod(0o600)

    def add_worker(self, id_: str = "1", *, url: object = None, **fields: str) -> None:
        """`url`: the secret, by default the writer's URL."""
        url = self.database.url(WRITER) if url is None else url
        stream = fields.pop("requestStream", next(iter(self.tables.values())).stream)
        port = urlsplit(url if isinstance(url, str) else "").port or self.database.server.port
        mapping = {
            "url": str(PLUGIN), "version": "local", "requestStream": stream, "consumerGroup": GROUP,
            "allowRedis": stream, "allowNet": f"127.0.0.1:{port}", "sync": json.dumps(self.sync), "takeoverMillis": "1000",
        }  # fmt: skip
        self.r.hset(f"{GROUP}:{id_}:h", mapping=mapping | fields)
        done = self.run(
            "encrypt", GROUP, id_, "--key-file", str(self.key), "--write", stdin=json.dumps({"postgres": url})
        )
        assert done.code == 0, done.err

    @contextlib.contextmanager
    def running(self, id_: str = "1") -> Iterator[subprocess.Popen[bytes]]:
        command = self.run.command(GROUP, id_, "--yes")
        log = self.run.home / f"log-{id_}"
        with self.key.open("rb") as key, log.open("ab") as out:
            process = subprocess.Popen(command, env=self.run.env, cwd=self.run.home, stdin=key, stdout=out, stderr=out)
        with process:
            try:
                yield process
            finally:
                process.terminate()
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()

    def said(self, id_: str = "1") -> str:
        return (self.run.home / f"log-{id_}").read_text()

    def order(self, n: int, **fields: Any) -> str:
        """Add an entry; its ID."""
        data = {"item": f"i{n % 7}", "price": "1.5", "n": n, "at": 1767225600000 + n, **fields}
        return self.add({"type": "order", "data": json.dumps(data)})

    def add(self, entry: Mapping[Any, Any], stream: str = STREAM) -> str:
        xid = self.r.xadd(stream, entry)
        return xid.decode() if isinstance(xid, bytes) else str(xid)

    def wait(self, stream: str = STREAM, seconds: float = 60) -> None:
        """Until all entries are handled."""
        try:
            wait_for(lambda: self.is_done(stream), seconds, f"the entries of {stream} to be stored")
        except AssertionError as error:
            raise AssertionError(f"{error}; the worker said: {self.said()[-2000:]}") from None

    def is_done(self, stream: str = STREAM) -> bool:
        groups = {group["name"]: group for group in self.r.xinfo_groups(stream)} if self.r.exists(stream) else {}
        found = groups.get(GROUP, {"pending": 1})
        newest = self.r.xrevrange(stream, count=1)
        return found["pending"] == 0 and (not newest or found["last-delivered-id"] == newest[0][0])

    def rows(self, text: str) -> list[tuple[Any, ...]]:
        return self.database.execute(text)

    def dead(self) -> list[dict[str, str]]:
        """The fields of all dead letters; what is not UTF-8 in them is replaced."""
        options = {"decode_responses": True, "encoding_errors": "replace"}
        with redis.Redis.from_url(self.run.env["REDIS_URL"], **options) as r:
            return [fields for _, fields in r.xrange(f"{GROUP}:dead:x")]
