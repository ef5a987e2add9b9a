"""What an agent knows of its workers, as records, and as JSON for whoever reads the agent's socket. Pure.

Times are Unix seconds, ages are seconds. The times in `Health` are those of CLOCK_MONOTONIC, which all processes of a host
share. Names, reasons and targets come from Redis and from workers: whoever shows them escapes them.
"""

from __future__ import annotations

from _json import make_scanner

from sandboxrun.health import Health, Histogram
from sandboxrun.healthpage import BUCKETS
from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

STATES = ("starting", "running", "stuck", "waiting", "failing", "stopped", "ending")
STATUS_MAX_BYTES = 8 * 1024 * 1024  # of one status as JSON
TEXT_MAX_CHARS = 1000
TYPES_MAX, WORKERS_MAX, DENIALS_MAX, PAIRS_MAX = 1000, 1000, 50, 100  # of one agent, type, worker, list of counts
NUMBER_MAX = 1 << 63


@record
class Denied:
    """Refusals of one target. `kind`: net, read, …; `grant`: the entry of the hash that would allow it."""

    kind: str
    target: str
    grant: str
    count: int


@record
class WorkerStatus:
    """One worker. `restarts_by`: restarts by reason; `next_start`: when a waiting one is tried again; `memory`: bytes."""

    type: str
    id: str
    state: str
    pid: int | None
    since: float | None
    version: str
    restarts: int
    restarts_by: tuple[tuple[str, int], ...]
    last_exit: int | None
    last_reason: str
    next_start: float | None
    health: Health | None
    denials: tuple[Denied, ...]
    memory: int | None
    cpu: float | None
    lease_age: float | None

    @property
    def name(self) -> str:
        return f"{self.type} {self.id}"


@record
class TypeStatus:
    """One type, as far as this agent runs it. `count`: how many all agents together should run; the figures of its stream
    are None if Redis does not say."""

    type: str
    count: int | None
    workers: tuple[WorkerStatus, ...]
    waiting_ids: int
    lag: int | None
    pending: int | None
    oldest_waiting: float | None
    oldest_handling: float | None
    dead: int | None


@record
class AgentStatus:
    """One agent. `redis`: its URL without a password; `most`: how many workers it may run."""

    name: str
    host: str
    version: str
    redis: str
    redis_up: bool
    since: float
    draining: bool
    most: int
    types: tuple[TypeStatus, ...]

    @property
    def workers(self) -> tuple[WorkerStatus, ...]:
        return tuple(worker for each in self.types for worker in each.workers)


def as_json(status: AgentStatus) -> bytes:
    """One line of ASCII that `parse` reads. Long text and long lists are cut."""
    import json

    return json.dumps(_plain(status), separators=(",", ":")).encode()


def _plain(value: Any, most: int = TYPES_MAX) -> Any:
    if isinstance(value, (bool, int)) or value is None:
        return value
    if isinstance(value, float):
        return value if abs(value) < NUMBER_MAX else 0.0  # which is not true of NaN
    if isinstance(value, str):
        return value[:TEXT_MAX_CHARS]
    if isinstance(value, tuple):
        return [_plain(each) for each in value[:most]]
    return {name: _plain(getattr(value, name), _MOST.get(name, PAIRS_MAX)) for name in value.__slots__}


_MOST = {"types": TYPES_MAX, "workers": WORKERS_MAX, "denials": DENIALS_MAX}


def parse(data: bytes) -> AgentStatus:
    """The status in `data`. Fields that a later version may have are left out.

    Raises ValueError, with the path of what is wrong, for anything else that `as_json` does not write.
    """
    if len(data) > STATUS_MAX_BYTES:
        raise ValueError(f"the status has more than {STATUS_MAX_BYTES >> 20} MiB")
    status: AgentStatus = _agent(read_json(data), "status")
    return status


def read_json(data: bytes) -> Any:
    """One value of JSON in ASCII. As json.loads, whose module imports re, which takes a third of `sandboxrun health`.

    Raises ValueError.
    """
    text = data.decode("ascii").strip()
    try:
        value, end = make_scanner(_Decoding)(text, 0)  # type: ignore[arg-type]  # what json.decoder gives it
    except StopIteration:
        raise ValueError("there is no JSON") from None
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    if end != len(text):
        raise ValueError("there is more than one value of JSON")
    return value


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


class _Decoding:
    """The attributes of json.JSONDecoder that its scanner reads."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, _no_number


if TYPE_CHECKING:
    Reader = Callable[[Any, str], Any]


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str) or len(value) > TEXT_MAX_CHARS:
        raise ValueError(f"{path}: expected a text of at most {TEXT_MAX_CHARS} characters")
    return value


def _state(value: Any, path: str) -> str:
    if value not in STATES:
        raise ValueError(f"{path}: expected one of {', '.join(STATES)}")
    return str(value)


def _bool(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{path}: expected true or false")
    return value


def _whole(value: Any, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -NUMBER_MAX < value < NUMBER_MAX:
        raise ValueError(f"{path}: expected a whole number")
    return value


def _number(value: Any, path: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not -NUMBER_MAX < value < NUMBER_MAX:
        raise ValueError(f"{path}: expected a number")
    return float(value)


def _or_none(reader: Reader) -> Reader:
    return lambda value, path: None if value is None else reader(value, path)


def _tuple(reader: Reader, most: int) -> Reader:
    def read(value: Any, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) > most:
            raise ValueError(f"{path}: expected a list of at most {most}")
        return tuple(reader(each, f"{path}[{number}]") for number, each in enumerate(value))

    return read


def _pair(first: Reader) -> Reader:
    def read(value: Any, path: str) -> tuple[Any, int]:
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError(f"{path}: expected two values")
        return first(value[0], path), _whole(value[1], path)

    return read


def _object(cls: Callable[..., Any], readers: Mapping[str, Reader]) -> Reader:
    def read(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"{path}: expected an object")
        missing = [name for name in readers if name not in value]
        if missing:
            raise ValueError(f"{path}: {missing[0]} is missing")
        return cls(*(reader(value[name], f"{path}.{name}") for name, reader in readers.items()))

    return read


def _counts(value: Any, path: str) -> Any:
    counts = _tuple(_whole, BUCKETS)(value, path)
    if len(counts) != BUCKETS:
        raise ValueError(f"{path}: expected {BUCKETS} counts")
    return counts


_histogram = _object(Histogram, {"counts": _counts, "sum": _number})
_health = _object(
    Health,
    {
        "ready": _bool, "tick": _number, "handling_since": _number, "handled": _whole,
        "codes": _tuple(_pair(_whole), PAIRS_MAX), "handler": _histogram, "wait": _histogram, "client_id": _whole,
    },
)  # fmt: skip
_denied = _object(Denied, {"kind": _text, "target": _text, "grant": _text, "count": _whole})
_worker = _object(
    WorkerStatus,
    {
        "type": _text, "id": _text, "state": _state, "pid": _or_none(_whole), "since": _or_none(_number),
        "version": _text, "restarts": _whole, "restarts_by": _tuple(_pair(_text), PAIRS_MAX),
        "last_exit": _or_none(_whole), "last_reason": _text, "next_start": _or_none(_number),
        "health": _or_none(_health), "denials": _tuple(_denied, DENIALS_MAX), "memory": _or_none(_whole),
        "cpu": _or_none(_number), "lease_age": _or_none(_number),
    },
)  # fmt: skip
_type = _object(
    TypeStatus,
    {
        "type": _text, "count": _or_none(_whole), "workers": _tuple(_worker, WORKERS_MAX), "waiting_ids": _whole,
        "lag": _or_none(_whole), "pending": _or_none(_whole), "oldest_waiting": _or_none(_number),
        "oldest_handling": _or_none(_number), "dead": _or_none(_whole),
    },
)  # fmt: skip
_agent = _object(
    AgentStatus,
    {
        "name": _text, "host": _text, "version": _text, "redis": _text, "redis_up": _bool, "since": _number,
        "draining": _bool, "most": _whole, "types": _tuple(_type, TYPES_MAX),
    },
)  # fmt: skip


def rates(before: AgentStatus, now: AgentStatus, seconds: float) -> dict[tuple[str, str], float]:
    """Requests a second that each worker handled between two statuses. One that was restarted began at 0."""
    handled = {(w.type, w.id): w.health.handled for w in before.workers if w.health is not None}
    found = {}
    for worker in now.workers:
        if worker.health is not None and seconds > 0:
            earlier = handled.get((worker.type, worker.id), 0)
            count = worker.health.handled
            found[worker.type, worker.id] = (count - earlier if count >= earlier else count) / seconds
    return found


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """All their values in one."""
    counts, total = [0] * BUCKETS, 0.0
    for each in histograms:
        total += each.sum
        for number, count in enumerate(each.counts[: len(counts)]):
            counts[number] += count
    return Histogram(tuple(counts), total)


def errors(worker: WorkerStatus) -> int:
    """Replies with a code of 400 or more."""
    return 0 if worker.health is None else sum(count for code, count in worker.health.codes if code >= 400)
