"""The protocol between clients and workers: names, limits, codes, and the exceptions that codes stand for.

request.py and reply.py have the messages, call.py the errors of a failed call, and docs/protocol.md describes all of it.
Pure, and light, because every worker and every client imports it at start.
"""

from __future__ import annotations

from sandboxrun.config.keys import GROUP as GROUP
from sandboxrun.errors import SandboxrunError

HANDED_BACK_MILLIS = 10**11  # an idle time that no claim reaches by itself, so that others take the request at once
TRACE_EXPIRE_SECONDS = 120  # of `req:REF:h`, at least
PAYLOAD_MAX_BYTES = 1024 * 1024  # of a request's fields together
RESULT_MAX_BYTES = 8 * 1024 * 1024  # of a reply
REPLY_MAX_BYTES = RESULT_MAX_BYTES + 64 * 1024  # that a client reads, because the trace also has the times
MESSAGE_MAX_CHARS = 2000  # of the message in an error's reply

# Codes of replies.
OK = 200
BAD_REQUEST = 400  # the handler did not run, or refused the request itself
UNKNOWN_METHOD = 404
TOO_MANY = 429  # more requests than the limit of a rate allows
CANCELLED = 499
FAILED = 500  # the handler ran and failed
NO_MOCK = 501  # no recorded answer matches the request
EXPIRED = 504  # the deadline had passed before the handler began


class BadRequest(Exception):
    """The request is not acceptable. Raised by a handler, it is answered with code 400 and this message."""


class UnknownMethod(BadRequest):
    """The service has no such method, or the worker does not serve the service: answered with code 404."""


class Expired(Exception):
    """The request's deadline had passed before it could be begun: answered with code 504."""


class Unavailable(Exception):
    """Something that a batch needs, such as a database, cannot be reached now: the same batch is tried again later."""


class HandlerTimeout(Exception):
    """The handler took longer than its `timeout`: answered with code 500."""


def code_of(kind: type[BaseException]) -> int:
    """The code that answers an error of this class.

    A failed call (call.py) is a BadRequest or an Expired as well, but of a request that the handler has sent. The
    handler's own request was accepted and begun, so its code is 500, as for every other error of this package.
    """
    if issubclass(kind, BadRequest | Expired) and not issubclass(kind, SandboxrunError):
        if issubclass(kind, UnknownMethod):
            return UNKNOWN_METHOD
        return BAD_REQUEST if issubclass(kind, BadRequest) else EXPIRED
    return FAILED
