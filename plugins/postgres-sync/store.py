"""Batches of entries as rows of PostgreSQL, each once: the entry's ID is the key, and is committed with the row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from arrays import Array, bigints, bools, jsons, texts
from database import Database, Refused

from sandboxrun import worker
from sandboxrun.sync import sql
from sandboxrun.sync.libpq import Mistake
from sandboxrun.sync.model import Table

if TYPE_CHECKING:
    import redis

    from sandboxrun.worker import Request

KEY_FIELD = b"key"


class Streamed:
    """Writes entries into a table."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.statement = sql.insert(table)
        self._fields = [(field.name.encode(), jsons if field.is_json else texts) for field in sql.fields(table)]

    def arrays(self, requests: Sequence[Request]) -> list[Array]:
        raws = [request.raw for request in requests]
        return [*ids([request.xid for request in requests]), *_columns(self._fields, raws)]


class Hashed:
    """Writes the hashes that entries name into a table, each once a batch, as they are now."""

    def __init__(self, table: Table, connect: Callable[[], redis.Redis]) -> None:
        self.table = table
        self.statement = sql.insert(table)
        self._fields = [(field.name.encode(), jsons if field.is_json else texts) for field in sql.fields(table)]
        self._pattern = table.hash or ""
        self._connect = connect
        self._redis: redis.Redis | None = None

    def arrays(self, requests: Sequence[Request]) -> list[Array]:
        newest = {request.raw.get(KEY_FIELD, b""): request.xid for request in requests}
        names = sorted(newest)  # in one order, so that two adapters never wait for each other
        hashes = self._read(names)
        here = [values is not None for values in hashes]
        raws = [values or {} for values in hashes]
        return [
            *ids([newest[name] for name in names]), texts(names), bools([not each for each in here]),
            *_columns(self._fields, raws),
        ]  # fmt: skip

    def _read(self, names: Sequence[bytes]) -> list[dict[bytes, bytes] | None]:
        """The fields of each hash that are stored; None if it is gone. Raises worker.Unavailable, Refused."""
        import redis

        if self._redis is None:
            self._redis = self._connect()
        wanted = [field for field, _ in self._fields]
        try:
            pipe = self._redis.pipeline(transaction=False)
            for name in names:
                pipe.hmget(name, wanted)
                pipe.exists(name)
            found = pipe.execute()
        except redis.ResponseError as error:
            raise Refused(f"Redis refuses to read {self._pattern}: {str(error)[:200]}") from None
        except redis.RedisError as error:
            raise worker.Unavailable(f"Redis: {error}") from None
        return [
            {field: value for field, value in zip(wanted, values, strict=True) if value is not None} if exists else None
            for values, exists in zip(found[::2], found[1::2], strict=True)
        ]


def ids(xids: Sequence[str]) -> tuple[Array, Array]:
    """The two halves of the entries' IDs. Raises Refused for one beyond what bigint holds, which XADD accepts."""
    parts = [xid.split("-") for xid in xids]
    try:
        return bigints([int(part[0]) for part in parts]), bigints([int(part[1]) for part in parts])
    except OverflowError:
        raise Refused("its ID is beyond what PostgreSQL's bigint holds") from None


def _columns(fields: Sequence[tuple[bytes, Any]], raws: Sequence[Any]) -> list[Array]:
    return [encode([raw.get(name) for raw in raws]) for name, encode in fields]


class Store:
    """All tables that follow one stream."""

    def __init__(self, database: Database, tables: Sequence[Table], connect: Callable[[], redis.Redis]) -> None:
        self._database = database
        self._writers = [Hashed(table, connect) if table.hash is not None else Streamed(table) for table in tables]
        self._wanted = [[(name.encode(), value.encode()) for name, value in table.where] for table in tables]
        self._patterns = [table.hash for table in tables]

    def write(self, requests: Sequence[Request]) -> None:
        """Store all of them in one transaction. Raises Refused if one of them cannot be, and worker.Unavailable."""
        work = []
        for number, writer in enumerate(self._writers):
            mine = [request for request in requests if self._belongs(number, request)]
            if mine:
                work.append((writer.statement, writer.arrays(mine)))
        if not work:
            return
        connection = self._database.open()
        try:
            if len(work) == 1:
                connection.execute(*work[0], binary=True)  # one statement is a transaction
            else:
                with connection.transaction(), connection.pipeline():
                    for statement, arrays in work:
                        connection.execute(statement, arrays, binary=True)
        except psycopg.Error as error:
            raise self._database.judge(error) from None

    def _belongs(self, number: int, request: Request) -> bool:
        raw = request.raw
        for name, value in self._wanted[number]:
            if raw.get(name) != value:
                return False
        pattern = self._patterns[number]
        return pattern is None or matches(pattern, raw.get(KEY_FIELD, b"").decode("utf-8", "surrogateescape"))

    def check(self, plan: str) -> None:
        """Raise Mistake if a table is missing, or the role may not write it. `plan`: the command that prints the SQL."""
        connection = self._database.open()
        for writer in self._writers:
            for name, rights in sql.rights(writer.table).items():
                quoted = sql.name(name)
                [(oid,)] = connection.execute("SELECT to_regclass(%s)::oid", [quoted]).fetchall()
                if oid is None:
                    raise Mistake(f"table {name} does not exist in PostgreSQL {self._database.shown}", plan)
                for right in rights:
                    [(may,)] = connection.execute("SELECT has_table_privilege(%s, %s)", [oid, right]).fetchall()
                    if not may:
                        raise Mistake(f"the role may not {right} into table {name}", plan)
            self._check_columns(connection, writer, plan)

    def _check_columns(self, connection: psycopg.Connection[Any], writer: Streamed | Hashed, plan: str) -> None:
        """Prepare the statement with no rows at all: PostgreSQL compares names and types."""
        try:
            connection.execute(writer.statement, writer.arrays([]), binary=True)
        except psycopg.Error as error:
            raise Mistake(
                f"table {writer.table.name} is not as sync.json says: {error.diag.message_primary}", plan
            ) from None


def matches(pattern: str, key: str) -> bool:
    """Whether a key has the form of a glob with * alone, in linear time."""
    first, *rest = pattern.split("*")
    if not rest:
        return key == pattern
    if not key.startswith(first) or not key.endswith(rest[-1]) or len(key) < len(first) + len(rest[-1]):
        return False
    at, end = len(first), len(key) - len(rest[-1])
    for part in rest[:-1]:
        at = key.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True
