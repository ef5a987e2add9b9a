"""The fields of a worker's hash that the worker itself reads: the settings of its request loop, and those of its secrets.

Pure. It imports little, because every worker imports it at its start. worker.py reads the rest.
"""

from __future__ import annotations

from sandboxrun.config import keys
from sandboxrun.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

VALUE_MAX_BYTES = 64 * 1024
SECRET_MAX_BYTES = 1024 * 1024

ALIASES = {"workerType": "type", "workerUrl": "url", "workerVersion": "version"}
SECRET_FIELDS = ("encryptedAlg", "encryptedIv", "encryptedJson")

# Of `TYPE:h`, about all workers of the type together. `startedCount` is an earlier runtime's, and is not read.
TYPE_ONLY_FIELDS = ("count", "workerCount", "startedCount")


def is_inherited(name: bytes) -> bool:
    """Whether a field of `TYPE:h` is a default for the type's workers: not, if it is about a process or about all of them."""
    return not name.startswith(b"pid") and name.decode("utf-8", "replace") not in TYPE_ONLY_FIELDS


# name of the field: (default, least, most)
LOOP_NUMBERS = {
    "responseStreamLimit": (1000, 0, 10_000_000),
    "responseStreamMax": (100_000, 0, 10_000_000),
    "requestStreamLimit": (10_000, 0, 10_000_000),
    "requestLimit": (0, 0, 2**53),
    "xreadGroupBlockMillis": (2000, 1, 60_000),
    "replyExpireSeconds": (8, 1, 86_400),
    "maxDeliveries": (5, 1, 1000),
    "takeoverMillis": (15_000, 200, 3_600_000),
}
LOOP_NAMES = ("requestStream", "responseStream", "consumerGroup", "consumerId")
SERVICES = "services"
SERVICES_MAX = 64  # names in the field


class Loop:
    """The settings of the request loop.

    Not a dataclass, because the import of dataclasses takes as long as the rest of a worker's start.
    """

    __slots__ = (
        "block_millis",
        "consumer_group",  # with which requests are read
        "consumer_id",
        "max_deliveries",  # how often a request may begin
        "reply_expire_seconds",
        "request_limit",  # requests, 0 is no limit
        "request_stream",
        "request_stream_limit",  # answered entries that are kept, approximate; 0 is no limit
        "response_stream",
        "response_stream_limit",  # entries, approximate; 0 is no limit
        "response_stream_max",  # entries that are kept for a group that has not read them; 0 is no limit
        "services",  # names of the script's services that this worker serves; empty is all of them
        "takeover_millis",  # another worker may take a claim that was not renewed for so long
    )

    def __init__(
        self,
        *,
        request_stream: str,
        response_stream: str,
        response_stream_limit: int,
        consumer_id: str,
        request_limit: int,
        block_millis: int,
        reply_expire_seconds: int,
        request_stream_limit: int = 10_000,
        response_stream_max: int = 100_000,
        max_deliveries: int = 5,
        takeover_millis: int = 15_000,
        services: tuple[str, ...] = (),
        consumer_group: str = keys.GROUP,
    ) -> None:
        self.request_stream, self.response_stream = request_stream, response_stream
        self.request_stream_limit, self.response_stream_limit = request_stream_limit, response_stream_limit
        self.response_stream_max = response_stream_max
        self.consumer_id, self.request_limit, self.block_millis = consumer_id, request_limit, block_millis
        self.reply_expire_seconds, self.max_deliveries = reply_expire_seconds, max_deliveries
        self.takeover_millis, self.services = takeover_millis, services
        self.consumer_group = consumer_group

    @property
    def is_shared(self) -> bool:
        """Whether the requests are read beside the workers that answer them: in a group of its own."""
        return self.consumer_group != keys.GROUP

    def fence_key(self, consumer: str) -> str:
        """The hash that guards the replies of a consumer of this group."""
        return keys.fence_key(self.request_stream, f"{self.consumer_group}/{consumer}" if self.is_shared else consumer)

    def _value(self) -> tuple[object, ...]:
        return tuple([getattr(self, name) for name in self.__slots__])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Loop) and self._value() == other._value()

    def __hash__(self) -> int:
        return hash(self._value())


def wanted(name: str) -> bool:
    """Whether a worker reads this field of its hash."""
    return (
        name in LOOP_NUMBERS
        or name in LOOP_NAMES
        or name in SECRET_FIELDS
        or name in ("type", SERVICES)
        or name in ALIASES
    )


def value_limit(name: str) -> int:
    """The longest value of a field that is read, in bytes."""
    return SECRET_MAX_BYTES if name in SECRET_FIELDS else VALUE_MAX_BYTES


def too_long(name: str, key: str, size: int) -> str:
    """The message about a value of `size` bytes."""
    return f"field {name[:80]} of {key} has {size} bytes: at most {value_limit(name)} are read"


def read_fields(raw: Mapping[bytes, bytes], key: str, *, wanted: Callable[[str], bool] = wanted) -> dict[str, str]:
    """Raw fields as text, each under its first name; only those that are `wanted`. Raises ConfigError."""
    text: dict[str, str] = {}
    for raw_name, raw_value in raw.items():
        name = raw_name.decode("utf-8", "replace")
        if not wanted(name):
            continue
        if len(raw_value) > value_limit(name):
            raise ConfigError(too_long(name, key, len(raw_value)))
        try:
            text[name] = raw_value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"field {name[:80]} of {key} is not UTF-8 text (byte {error.start})",
                hint=keys.set_hint(key, f"{name}=TEXT"),
            ) from error
    for second, first in ALIASES.items():
        if second in text:
            value = text.pop(second)
            if text.setdefault(first, value) != value:
                raise ConfigError(
                    f"{key} has both {first} and {second}, and they differ: {text[first][:80]!r} and {value[:80]!r}",
                    hint=keys.set_hint(key, f"{first}={text[first]}"),
                )
    return text


def parse_loop(fields: Mapping[str, str], type_: str, id_: str) -> Loop:
    """The loop's settings, of the result of `read_fields`. Raises ConfigError."""
    key = keys.worker_key(type_, id_)
    numbers = {name: number(fields.get(name), name, key, *bounds) for name, bounds in LOOP_NUMBERS.items()}
    names = {name: fields.get(name) or None for name in LOOP_NAMES}
    for name, value in names.items():
        quote = next((c for c in value or "" if c in "\"'"), "") if name.endswith("Stream") else ""
        if quote:  # Redis splits rules at quotes, and the worker would have no streams
            unquoted = (value or "").replace("'", "").replace('"', "")
            raise ConfigError(
                f"field {name} of {key} has {quote}, which Redis cannot have in a rule of its ACL",
                hint=keys.set_hint(key, f"{name}={unquoted}"),
            )
        if value is not None and (len(value) > 256 or not value.isprintable() or " " in value):
            raise ConfigError(
                f"field {name} of {key} is not a key name: expected up to 256 printable characters without a space",
                hint=keys.set_hint(key, f"{name}="),
            )
    return Loop(
        request_stream=names["requestStream"] or keys.request_stream(type_),
        response_stream=names["responseStream"] or keys.response_stream(type_),
        response_stream_limit=numbers["responseStreamLimit"],
        response_stream_max=numbers["responseStreamMax"],
        request_stream_limit=numbers["requestStreamLimit"],
        consumer_id=names["consumerId"] or id_,
        request_limit=numbers["requestLimit"],
        block_millis=numbers["xreadGroupBlockMillis"],
        reply_expire_seconds=numbers["replyExpireSeconds"],
        max_deliveries=numbers["maxDeliveries"],
        takeover_millis=numbers["takeoverMillis"],
        services=_services(fields.get(SERVICES) or "", key),
        consumer_group=names["consumerGroup"] or keys.GROUP,
    )


def _services(text: str, key: str) -> tuple[str, ...]:
    """The names in the field, separated by commas. Raises ConfigError."""
    if not text:
        return ()
    names = tuple([name.strip() for name in text.split(",")])
    wrong = next((name for name in names if not keys.is_type(name)), None)
    if wrong is not None:
        right = dict.fromkeys([name for name in names if keys.is_type(name)])
        raise ConfigError(
            f"field {SERVICES} of {key} has {keys.shown(wrong)}: expected names as of worker types, separated by commas",
            hint=keys.set_hint(key, f"{SERVICES}={','.join(list(right)[:SERVICES_MAX])}"),
        )
    if len(names) > SERVICES_MAX:
        raise ConfigError(f"field {SERVICES} of {key} has {len(names)} names: at most {SERVICES_MAX} are read")
    return tuple(dict.fromkeys(names))


def number(text: str | None, name: str, key: str, default: int, least: int, most: int) -> int:
    """A field's whole number, or the default if the hash has none. Raises ConfigError."""
    if text is None or text == "":
        return default
    digits = text.isascii() and text.isdigit() and len(text) <= 16
    if not digits or not least <= int(text) <= most:
        raise ConfigError(
            f"field {name} of {key} is {text[:80]!r}: expected a whole number from {least} to {most}",
            hint=keys.set_hint(key, f"{name}={default}"),
        )
    return int(text)
