"""A request as a handler gets it, from the fields of an entry."""

from __future__ import annotations

from collections.abc import Mapping

from sandboxrun.protocol.request import read
from sandboxrun.worker.request import Request


def parse(xid: str, raw: Mapping[bytes, bytes], accepted: Mapping[str, object], default: str) -> Request:
    ref, type_, data, deadline = read(raw, accepted, default)
    return Request(xid, ref, type_, data, raw, deadline)
