"""What a worker script imports: a handler and one call.

    from sandboxrun import worker

    @worker.handler
    def handle(request):
        return {"text": request.data["text"].upper()}

    worker.run()

The handler is called with each request, and returns the fields of the reply. `raise worker.BadRequest("why")` answers
code 400. Every other exception is answered with code 500, and never ends the worker.

A second parameter with a type is the payload, as `def handle(request, order: Order)`; `request: worker.Request[Order]`
converts `request.data`. A payload that does not fit is answered with code 400.

A result may contain what JSON has, and dates, UUIDs, Decimals, enums, bytes, sets, dataclasses, models and arrays of
numpy. For every other object @worker.encoder says what it is:

    @worker.encoder
    def encode(value):
        if isinstance(value, Money):
            return {"amount": value.amount, "currency": value.currency}
        raise TypeError("no form in JSON is known")
"""

from __future__ import annotations

from sandboxrun.protocol import BadRequest, Expired, HandlerTimeout, Unavailable, UnknownMethod
from sandboxrun.worker.app import default
from sandboxrun.worker.context import Context
from sandboxrun.worker.request import Request, joining

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from redis import Redis

    from sandboxrun.worker.states import State

__all__ = [
    "BadRequest",
    "Context",
    "Expired",
    "HandlerTimeout",
    "Request",
    "Unavailable",
    "UnknownMethod",
    "batch",
    "config",
    "connect",
    "data",
    "encoder",
    "handler",
    "run",
    "secrets",
    "service",
    "state",
]

handler, batch, service = default.handler, default.batch, default.service
encoder, run = default.encoder, default.run


def config() -> dict[str, str]:
    """The fields of `TYPE:h` and `TYPE:ID:h`, the latter winning, as text and without the secrets.

    Read once. Raises ConfigError, StoreError.
    """
    return default.context.config()


def secrets() -> dict[str, Any]:
    """The decrypted `encryptedJson`, or an empty dict if the hash has none.

    A name that is missing raises MissingSecret, a KeyError. Raises SecretError if the text cannot be decrypted.
    """
    return default.context.secrets()


def data() -> Path:
    """This worker's own data folder, which stays when the worker ends. Raises ConfigError if it is not granted."""
    return default.context.data()


def state(key: str) -> State:
    """The hash `key` as text by field, whose changes are written in the transaction of the reply, or not at all.

    In a handler, or in what it calls. If others change the hash meanwhile, nothing is written and the handler runs again. An
    async handler awaits it: `state = await worker.state(key)`. Raises RuntimeError outside of a handler.
    """
    return joining().state(key)


def connect() -> Redis:
    """A new redis.Redis with the worker's login, from REDIS_URL. Its replies are bytes; time-outs are 5 seconds."""
    return default.context.connect()
