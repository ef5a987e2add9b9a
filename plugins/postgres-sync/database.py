"""The connection to PostgreSQL: how it is opened, and what its errors mean for a batch."""

from __future__ import annotations

from typing import Any

import psycopg
from arrays import register

from sandboxrun import worker
from sandboxrun.sync import libpq

# Classes of SQLSTATE (appendix A of PostgreSQL's manual) that are the fault of one row: it is refused, and all others are
# stored. Everything else passes, or is for the operator to mend: the batch waits.
_OF_ROWS = ("21", "22", "23", "54", "P0")
_LOST = ("08", "57", "25", "58", "XX")  # after which a new connection is opened, also if it has become a standby's


class Refused(worker.BadRequest):
    """PostgreSQL refuses a row."""


def parameters(secret: Any) -> dict[str, str]:
    """Those of libpq. Raises Mistake, which shows nothing of the secret."""
    return libpq.parameters(
        secret,
        target_session_attrs="read-write",  # of several hosts, the one that takes writes
        application_name="sandboxrun-postgres-sync",
        options="-c TimeZone=UTC -c DateStyle=ISO -c synchronous_commit=on",
    )


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
                connection = psycopg.connect(**self._given, hostaddr=libpq.addresses(self._given), autocommit=True)
            except psycopg.Error as error:
                raise worker.Unavailable(f"PostgreSQL {self.shown}: {libpq.first_line(error)}") from None
            except libpq.Unresolved as error:
                raise worker.Unavailable(str(error)) from None
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
        return libpq.shown(self._given)

    def judge(self, error: psycopg.Error) -> Exception:
        """What an error of a statement means: Refused for a row, or Unavailable."""
        state = error.sqlstate or ""
        if state[:2] in _OF_ROWS:
            return Refused(f"PostgreSQL refuses it: {libpq.first_line(error)} ({state})")
        if not state or state[:2] in _LOST or self._is_lost():
            self.close()
        return worker.Unavailable(
            f"PostgreSQL {self.shown}: {libpq.first_line(error)}" + (f" ({state})" if state else "")
        )

    def _is_lost(self) -> bool:
        return self._connection is None or self._connection.closed or self._connection.broken
