"""What a worker and its callers share of services: how a method's result travels, and which services this process serves. Pure."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Local(Protocol):
        """A service of this process (worker/direct.py). Both raise what the client raises for a call over Redis.

        `timeout`: seconds; None: no limit.
        """

        def call(self, method: str, named: dict[str, Any], timeout: float | None) -> Any: ...
        async def call_async(self, method: str, named: dict[str, Any], timeout: float | None) -> Any: ...


ENVELOPE = ("ref", "source", "code", "time")
RESULT = "result"
# A result with one of these names is in the field `result` as a whole, because the reply has them itself.
WHOLE = frozenset((*ENVELOPE, RESULT))


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of the reply that `value_of` makes such a value of."""
    return value if isinstance(value, dict) and WHOLE.isdisjoint(value) else {RESULT: value}


here: dict[str, Local] = {}  # the services that are called directly, by name; only while worker.run() runs


def value_of(reply: dict[str, Any]) -> Any:
    """What a method returned, of its reply: the field `result` if there is no other one, else the fields as an object.

    It takes the envelope out of `reply`.
    """
    for name in ENVELOPE:
        reply.pop(name, None)
    return reply[RESULT] if len(reply) == 1 and RESULT in reply else reply
