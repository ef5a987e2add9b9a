"""Arrays for PostgreSQL in its binary format, made of the bytes that Redis has sent, without a Python object for each value.

Source: array_send in src/backend/utils/adt/arrayfuncs.c, and jsonb_recv in jsonb.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from psycopg import Connection
from psycopg.adapt import Dumper
from psycopg.pq import Format

BOOL, INT8, TEXT, JSONB = 16, 20, 25, 3802  # pg_type.oid of an element
_ARRAY_OF = {BOOL: 1000, INT8: 1016, TEXT: 1009, JSONB: 3807}
_HEAD = struct.Struct(">iiIii").pack
_LENGTH, _INT8 = struct.Struct(">i").pack, struct.Struct(">iq").pack
_NULL = _LENGTH(-1)
_TRUE, _FALSE = _LENGTH(1) + b"\1", _LENGTH(1) + b"\0"
_JSONB_VERSION = b"\1"


class Array:
    """`data`: the whole array as PostgreSQL receives it."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class Bools(Array):
    __slots__ = ()


class Bigints(Array):
    __slots__ = ()


class Texts(Array):
    __slots__ = ()


class Jsons(Array):
    __slots__ = ()


def bigints(values: Sequence[int]) -> Bigints:
    """Raises OverflowError for more than 64 bits."""
    try:
        return Bigints(_head(INT8, len(values)) + b"".join([_INT8(8, value) for value in values]))
    except struct.error:
        raise OverflowError("an integer of more than 64 bits") from None


def bools(values: Sequence[bool]) -> Bools:
    return Bools(_head(BOOL, len(values)) + b"".join([_TRUE if value else _FALSE for value in values]))


def texts(values: Sequence[bytes | None]) -> Texts:
    return Texts(_head(TEXT, len(values)) + b"".join(_parts(values)))


def jsons(values: Sequence[bytes | None]) -> Jsons:
    """`values`: the text of JSON. PostgreSQL parses it."""
    return Jsons(
        _head(JSONB, len(values))
        + b"".join(_parts([None if value is None else _JSONB_VERSION + value for value in values]))
    )


def _parts(values: Iterable[bytes | None]) -> list[bytes]:
    parts: list[bytes] = []
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts += (_LENGTH(len(value)), value)
    return parts


def _head(oid: int, count: int) -> bytes:
    """One dimension that begins at 1, perhaps with nulls."""
    return _HEAD(1, 1, oid, count, 1)


def register(connection: Connection[tuple[object, ...]]) -> None:
    """Let the connection take the four kinds as parameters."""
    for kind, element in ((Bools, BOOL), (Bigints, INT8), (Texts, TEXT), (Jsons, JSONB)):
        members = {"oid": _ARRAY_OF[element], "format": Format.BINARY, "dump": lambda self, value: value.data}
        connection.adapters.register_dumper(kind, type(f"{kind.__name__}Dumper", (Dumper,), members))
