"""Connections that only read: one for each thread, opened again after it was lost."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import psycopg
from named import Query

from sandboxrun import worker
from sandboxrun.sync import libpq

RETRY_SECONDS = 0.1
_CANCELED = "57014"
_OF_VALUES = ("21", "22")  # classes of SQLSTATE that a request's values lead to


class Away(Exception):
    """PostgreSQL cannot be reached, or refuses the query. Answered with code 500."""


class Reader:
    """Runs queries. `seconds`: the longest time that one may take."""

    def __init__(self, secret: Any, seconds: float) -> None:
        """Raises libpq.Mistake."""
        self._given = libpq.parameters(
            secret,
            application_name="sandboxrun-postgres-query",
            options="-c TimeZone=UTC -c default_transaction_read_only=on",
        )
        self._seconds = seconds
        self._local = threading.local()

    def run(self, query: Query, values: dict[str, Any], remaining: float | None) -> dict[str, Any]:
        """The reply. `remaining`: seconds until the request's deadline. Raises BadRequest, Expired, Away."""
        until = time.monotonic() + min(self._seconds, self._seconds if remaining is None else remaining)
        while True:
            try:
                return self._once(query, values, until)
            except psycopg.Error as error:
                self._judge(error, until)
            except libpq.Unresolved as error:
                raise Away(str(error)) from None
            time.sleep(RETRY_SECONDS)

    def _once(self, query: Query, values: dict[str, Any], until: float) -> dict[str, Any]:
        connection = self._open()
        millis = int((until - time.monotonic()) * 1000)
        if millis <= 0:
            raise worker.Expired("the request's deadline has passed before the query could run")
        with connection.transaction(), connection.pipeline(), connection.cursor() as cursor:
            connection.execute(f"SET LOCAL statement_timeout = {millis}".encode())
            cursor.execute(query.text.encode(), values, prepare=True)
            found = cursor.fetchall()
            names = [column.name for column in cursor.description or ()]
        rows = [dict(zip(names, map(_finite, row), strict=True)) for row in found[: query.limit]]
        return {"rows": rows, "more": len(found) > query.limit}

    def _judge(self, error: psycopg.Error, until: float) -> None:
        """Raise what the error means, or return for another try: reading twice changes nothing."""
        state = error.sqlstate or ""
        if state == _CANCELED:
            raise worker.Expired("the query took longer than the request's deadline allows") from None
        if state[:2] in _OF_VALUES:
            raise worker.BadRequest(f"PostgreSQL refuses the values: {libpq.first_line(error)} ({state})") from None
        connection = getattr(self._local, "connection", None)
        lost = connection is None or connection.closed or connection.broken or state[:2] in ("57", "53", "08")
        if connection is not None and lost:
            connection.close()
        if not lost or state[:2] == "28" or time.monotonic() + RETRY_SECONDS >= until:
            raise Away(f"PostgreSQL {libpq.shown(self._given)}: {libpq.first_line(error)}") from None

    def _open(self) -> psycopg.Connection[tuple[Any, ...]]:
        connection = getattr(self._local, "connection", None)
        if connection is None or connection.closed:
            self._local.connection = None
            connection = psycopg.connect(**self._given, hostaddr=libpq.addresses(self._given), autocommit=True)
            self._local.connection = connection
        return connection

    def check(self, queries: dict[str, Query]) -> str:
        """Try each query without rows; a warning, or "". Raises libpq.Mistake for one that PostgreSQL refuses."""
        connection = self._open()
        for query in queries.values():
            try:
                tried = f"SELECT * FROM ({query.text}) AS tried LIMIT 0"  # noqa: S608  # the operator's own SQL
                connection.execute(tried.encode(), query.nulls())
            except psycopg.Error as error:
                raise libpq.Mistake(f"queries.{query.name}.sql: PostgreSQL says: {libpq.first_line(error)}") from None
        [(may,)] = connection.execute(
            "SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace <> 'pg_catalog'::regnamespace "
            "AND has_table_privilege(oid, 'INSERT, UPDATE, DELETE, TRUNCATE')"
        ).fetchall()
        return f"the role may write {may} tables: grant it SELECT alone" if may else ""


def _finite(value: Any) -> Any:
    """A double that JSON does not have is null."""
    return None if type(value) is float and not math.isfinite(value) else value
