"""The types of worker that Redis knows, looked up before a request or an order goes to nobody. Changes nothing."""

from __future__ import annotations

import contextlib
import time

from sandboxrun.config import keys
from sandboxrun.errors import ConfigError, NotConfigured, StoreError
from sandboxrun.fleet.queues import read_fields
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import ReplyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sandboxrun.cli.parser import Parser

CONNECT_SECONDS = 2.0
SCAN_SECONDS = 0.25  # a small database is scanned whole within it; from a part of a large one nothing follows
SCAN_COUNT = 1000
SCAN_MAX_BYTES = 8 * 1024 * 1024
URLS = ("url", "workerUrl")


def types_instead_of(url: str, type_: str) -> tuple[str, list[str]] | None:
    """Where Redis is, and the types that it knows, if it has no hash and no stream of this one.

    None if it has one, or if that is not certain: Redis is away, the login may not ask, or there are too many keys.
    """
    connection = Connection(url, name="sandboxrun-cli", seconds=CONNECT_SECONDS, protocol=2)
    with contextlib.suppress(StoreError, ReplyError), contextlib.closing(connection):
        connection.open()
        needed = (keys.request_stream(type_), keys.type_key(type_), keys.worker_key(type_, "1"))
        replies = connection.pipeline([("EXISTS", key) for key in needed])
        if any(reply != 0 for reply in replies):  # or an error, because the login may not ask
            return None
        types = _types(connection)
        if types is not None and type_ not in types:
            return connection.address.shown, sorted(types)
    return None


def check_configured(
    connection: Connection, parser: Parser, args: Sequence[str], type_: str, ids: Sequence[str] = ()
) -> None:
    """Raise NotConfigured if no hash says what workers of this type, or one of these ids, run. `args`: of the command."""
    missing = [id_ for id_ in ids if not _have_url(connection, [keys.type_key(type_), keys.worker_key(type_, id_)])]
    if not missing and (ids or has_url(connection, type_)):
        return
    message, near = unconfigured(connection, type_, (missing or [""])[0])
    if near is None:
        raise NotConfigured(message, hint=f"sandboxrun set {type_} url=URL version=VERSION")
    from sandboxrun.cli.mistakes import again_hint

    meant = list(args)
    meant[meant.index(type_)] = near
    raise NotConfigured(message, hint=again_hint(parser, meant))


def unconfigured(connection: Connection, type_: str, id_: str = "") -> tuple[str, str | None]:
    """What to say of a type without a url, and the type that was probably meant."""
    from sandboxrun.cli.mistakes import nearest

    message = f"neither {keys.type_key(type_)} nor {keys.worker_key(type_, id_ or 'ID')} has a url, so nothing can run"
    near = None
    if not id_ or not has_url(connection, type_):
        near = nearest(type_, (_types(connection) or set()) - {type_})
    if near is None or not has_url(connection, near):
        return message, None
    return f"{message}; did you mean {near}?", near


def has_url(connection: Connection, type_: str) -> bool:
    """Whether the hash of the type has one, or of a worker of it; also if there are too many keys to tell. Raises ReplyError."""
    if _have_url(connection, [keys.type_key(type_)]):
        return True
    for names in _scan(connection, keys.worker_key(type_, "*")):
        if names is None or _have_url(connection, [name.decode("utf-8", "replace") for name in names]):
            return True
    return False


def _have_url(connection: Connection, names: Sequence[str]) -> bool:
    """Whether any of these hashes has a URL; True if one cannot be read."""
    return any(values is None or any(values) for values in read_fields(connection, names, URLS))


def _types(connection: Connection) -> set[str] | None:
    """Those that have a hash or a request stream; None if not all keys were seen."""
    types: set[str] = set()
    for names in _scan(connection, "*:[hx]"):
        if names is None:
            return None
        types.update(filter(None, map(_type_of, names)))
    return types


def _scan(connection: Connection, pattern: str) -> Iterator[list[bytes] | None]:
    """The keys that match, in parts; None as the last part if not all keys were seen."""
    cursor, until = b"0", time.monotonic() + SCAN_SECONDS
    while True:
        command = ("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
        replies = connection.pipeline_within([command], SCAN_MAX_BYTES, reopen=True)
        if replies is None or isinstance(replies[0], ReplyError):  # this login may not scan
            yield None
            return
        cursor, names = replies[0]
        yield names
        if cursor == b"0":
            return
        if time.monotonic() >= until:
            yield None
            return


def _type_of(key: bytes) -> str | None:
    """Of TYPE:h, TYPE:ID:h and TYPE:req:x."""
    type_, *rest = key.decode("utf-8", "replace").split(":")
    if (rest[-1:] != ["h"] and rest != ["req", "x"]) or len(rest) > 2:
        return None
    try:
        return keys.check_type(type_)
    except ConfigError:
        return None
