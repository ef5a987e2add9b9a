"""What a worker script imports: a handler and one call.

    from sandboxrun import worker

    @worker.handler
    def handle(request):
        return {"text": request.data["text"].upper()}

    worker.run()

`handle` is called with each request and returns the reply's fields. It refuses a request with
`raise worker.BadRequest("…")` (code 400); any other exception is answered with code 500 and never ends the worker.

A result may have in it what JSON has, and dates, UUIDs, Decimals, enums, bytes, sets, dataclasses, models and arrays of
numpy; @worker.encoder says what other objects are:

    @worker.encoder
    def encode(value):
        if isinstance(value, Money):
            return {"amount": value.amount, "currency": value.currency}
        raise TypeError("no form in JSON is known")
"""

from __future__ import annotations

from sandboxrun.protocol import BadRequest, HandlerTimeout
from sandboxrun.worker.app import default
from sandboxrun.worker.context import Context
from sandboxrun.worker.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

__all__ = [
    "BadRequest",
    "Context",
    "HandlerTimeout",
    "Request",
    "config",
    "connect",
    "data",
    "encoder",
    "handler",
    "run",
    "secrets",
]

handler, encoder, run = default.handler, default.encoder, default.run


def config() -> dict[str, str]:
    """This worker's hash: `TYPE:h` under `TYPE:ID:h`, as text, without its secrets."""
    return default.context.config()


def secrets() -> dict[str, object]:
    """The decrypted `encryptedJson`; an empty dict where the hash has none. Raises SecretError."""
    return default.context.secrets()


def data() -> Path:
    """This worker's own data folder, which stays when the worker ends. Raises ConfigError if it is not granted."""
    return default.context.data()


def connect() -> Any:
    """A redis.Redis of the worker's own, from REDIS_URL; its replies are bytes."""
    return default.context.connect()
