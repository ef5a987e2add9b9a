"""The parameters of a connection to PostgreSQL, of a secret. Imported by the plugins, inside the sandbox, which have psycopg."""

from __future__ import annotations

import socket

import psycopg
from psycopg import conninfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CONNECT_SECONDS = 5
FORM = "postgresql://ROLE:PASSWORD@HOST:PORT/DATABASE"
_SETTINGS = {
    "connect_timeout": str(CONNECT_SECONDS),
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}


class Mistake(Exception):
    """Something that the operator has to mend. Its text has no secret. A second argument is a hint."""


class Unresolved(Exception):
    """The name of a host has no address, or the worker may not ask for it."""


def parameters(secret: Any, **settings: str) -> dict[str, str]:
    """Those of libpq, of a URL or an object; `settings` are defaults. Raises Mistake, which shows nothing of the secret."""
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
    return {**_SETTINGS, **settings, **given}


def addresses(given: dict[str, str]) -> str:
    """The hosts' addresses, for `hostaddr`: libpq's own look-up is a library's, which knows nothing of what the hash
    grants. Raises Unresolved."""
    found = []
    for host in given["host"].split(","):
        try:
            found.append(str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]))
        except OSError:
            raise Unresolved(f"the name {host} cannot be resolved: allowNet must list it") from None
    return ",".join(found)


def shown(given: dict[str, str]) -> str:
    """The database without the password."""
    return f"at {given['host']}:{given.get('port', '5432')}, database {given.get('dbname', given.get('user', ''))}"


def first_line(error: psycopg.Error) -> str:
    """The message without what comes after it: positions, and lines of the statement."""
    text = (error.diag.message_primary or str(error)).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
