"""The connection to PostgreSQL: how it is opened, and what its errors mean for a batch."""

from __future__ import annotations

import socket
from typing import Any

import psycopg
from arrays import register
from psycopg import conninfo

from sandboxrun import worker

CONNECT_SECONDS = 5
FORM = "postgresql://ROLE:PASSWORD@HOST:PORT/DATABASE"
# Classes of SQLSTATE (appendix A of PostgreSQL's manual) that are the fault of one row: it is refused, and all others are
# stored. Everything else passes, or is for the operator to mend: the batch waits.
_OF_ROWS = ("21", "22", "23", "54", "P0")
_SETTINGS = {
    "connect_timeout": str(CONNECT_SECONDS),
    "target_session_attrs": "read-write",  # of several hosts, the one that takes writes
    "application_name": "sandboxrun-postgres-sync",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "options": "-c TimeZone=UTC -c DateStyle=ISO -c synchronous_commit=on",
}


class Mistake(Exception):
    """Something that the operator has to mend. Its text has no secret."""


class Refused(worker.BadRequest):
    """PostgreSQL refuses a row."""


def parameters(secret: Any) -> dict[str, str]:
    """Those of libpq, of a URL or an object. Raises Mistake, which shows nothing of it."""
    if isinstance(secret, dict) and all(isinstance(value, str | int) for value in secret.values()):
        given = {name: str(value) for name, value in secret.items()}
    elif isinstance(secret, str):
        try:
            given = {name: str(value) for name, value in conninfo.conninfo_to_dict(secret).items()}
        except psycopg.Error:
            raise Mistake(f"the secret postgres is no URL of a database: expected {FORM}") from None
    else:
        raise Mistake(f"the secret postgres is no text and no object: expected {FORM}")
    try:
        conninfo.make_conninfo(**given)
    except psycopg.Error:
        raise Mistake("the secret postgres has a parameter that libpq does not know") from None
    if not given.get("host"):
        raise Mistake(f"the secret postgres names no host: expected {FORM}")
    return {**_SETTINGS, **given}


class Database:
    """One connection, opened when it is used, and again after it was lost."""

    def __init__(self, given: dict[str, str]) -> None:
        self._given = given
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None

    def open(self) -> psycopg.Connection[tuple[object, ...]]:
        """The connection, in autocommit. Raises worker.Unavailable."""
        connection = self._connection
        if connection is None or connection.closed:
            try:
                connection = psycopg.connect(**self._given, hostaddr=self._addresses(), autocommit=True)
            except psycopg.Error as error:
                raise worker.Unavailable(f"PostgreSQL {self.shown}: {first_line(error)}") from None
            connection.prepare_threshold = 0  # always prepared
            register(connection)
            self._connection = connection
        return connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def shown(self) -> str:
        """Without the password."""
        given = self._given
        return f"at {given['host']}:{given.get('port', '5432')}, database {given.get('dbname', given.get('user', ''))}"

    def judge(self, error: psycopg.Error) -> Exception:
        """What an error of a statement means: Refused for a row, or Unavailable."""
        state = error.sqlstate or ""
        if state[:2] in _OF_ROWS:
            return Refused(f"PostgreSQL refuses it: {first_line(error)} ({state})")
        if not state or state[:2] in ("08", "57", "25", "58", "XX") or self._is_lost():
            self.close()  # also if it has become a read-only standby
        return worker.Unavailable(f"PostgreSQL {self.shown}: {first_line(error)}" + (f" ({state})" if state else ""))

    def _is_lost(self) -> bool:
        return self._connection is None or self._connection.closed or self._connection.broken

    def _addresses(self) -> str:
        """The hosts' addresses: libpq's own look-up of names is not confined to what the hash grants, so it has none."""
        found = []
        for host in self._given["host"].split(","):
            try:
                found.append(str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]))
            except OSError:
                raise worker.Unavailable(f"the name {host} cannot be resolved: allowNet must list it") from None
        return ",".join(found)


def first_line(error: psycopg.Error) -> str:
    """The message without what comes after it: positions, and lines of the statement."""
    text = error.diag.message_primary or str(error)
    return text.strip().splitlines()[0][:300] if text.strip() else type(error).__name__
