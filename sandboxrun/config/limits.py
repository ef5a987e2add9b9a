"""How much a worker may use: one table of limits, each a field of the hash and a flag. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from sandboxrun.errors import ConfigError
from sandboxrun.records import record

_SIZE = r"([0-9]{1,15})(?:([KMGT])(?:iB|B)?)?"
_TIME = r"([0-9]{1,10})([smhd]?)"


def _size(text: str) -> int:
    import re

    match = re.fullmatch(_SIZE, text, re.IGNORECASE)
    if match is None:
        raise ValueError
    return int(match[1]) << 10 * (" KMGT".index(match[2].upper()) if match[2] else 0)


def _seconds(text: str) -> int:
    import re

    match = re.fullmatch(_TIME, text)
    if match is None:
        raise ValueError
    return int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def _count(text: str) -> int:
    import re

    if not re.fullmatch(r"[0-9]{1,10}", text):
        raise ValueError
    return int(text)


def show_size(size: int) -> str:
    """A size as its flag reads it, in the largest unit that fits: 4G, 1536M."""
    for power, unit in ((40, "T"), (30, "G"), (20, "M"), (10, "K")):
        if size >= 1 << power and size % (1 << power) == 0:
            return f"{size >> power}{unit}"
    return str(size)


@record
class Limit:
    """One limit, of which 0 means none. `what` completes "… has reached its limit of"; `expected` completes "expected …"."""

    name: str
    default: int
    least: int
    most: int
    parse: Callable[[str], int]
    show: Callable[[int], str]
    expected: str
    what: str

    @property
    def field(self) -> str:
        return "limit" + self.name.capitalize()

    @property
    def flag(self) -> str:
        return f"--limit-{self.name}"

    def read(self, text: str, where: str) -> int:
        """From the text of a field or flag, which `where` names in errors. Raises ConfigError."""
        try:
            value = self.parse(text.strip())
        except ValueError:
            value = -1
        if value != 0 and not self.least <= value <= self.most:
            least, most = self.show(self.least), self.show(self.most)
            raise ConfigError(
                f"{where} is {text[:80]!r}: expected {self.expected} from {least} to {most}, or 0 for no limit"
            )
        return value

    def reached(self, value: int, key: str) -> str:
        """The message about a worker that has reached this limit."""
        return (
            f"{self.what} has reached its limit of {self.show(value)}; "
            f"raise it with: {self.flag}={self.show(value * 2)} (field {self.field} of {key})"
        )


_SIZES = (_size, show_size, "bytes, as in 512M or 4G,")
_TIMES = (_seconds, "{}s".format, "a time, as in 30s, 10m or 2h,")
_COUNTS = (_count, str, "a whole number")

LIMITS: Mapping[str, Limit] = MappingProxyType(
    {
        limit.name: limit
        for limit in (
            Limit("memory", 4 << 30, 64 << 20, 1 << 50, *_SIZES, "memory"),
            Limit("threads", 256, 1, 1_000_000, *_COUNTS, "the number of threads and processes"),
            Limit("files", 1024, 16, 1_000_000, *_COUNTS, "the number of open files of a process"),
            Limit("scratch", 256 << 20, 1 << 20, 1 << 50, *_SIZES, "the scratch folder"),
            Limit("output", 1 << 20, 1 << 10, 1 << 40, *_SIZES, "output a second"),
            Limit("cpu", 0, 1, 10**9, *_TIMES, "the CPU time of a process"),
            Limit("time", 0, 1, 10**9, *_TIMES, "the run"),
            Limit("handler", 0, 1, 10**9, *_TIMES, "a handler that stops the loop"),
        )
    }
)


@record
class Limits:
    """The limits of one run, of which 0 means none. `output` is None if nobody set it; then it applies to terminals only."""

    memory: int = LIMITS["memory"].default  # bytes of address space, each process
    threads: int = LIMITS["threads"].default  # and processes
    files: int = LIMITS["files"].default  # descriptors, each process
    scratch: int = LIMITS["scratch"].default  # bytes on disk; and the longest file anywhere
    output: int | None = None  # bytes a second
    cpu: int = LIMITS["cpu"].default  # seconds, each process
    time: int = LIMITS["time"].default  # seconds
    handler: int = LIMITS["handler"].default  # seconds without a turn of the worker's loop

    def reached(self, name: str, key: str) -> str:
        limit = LIMITS[name]
        return limit.reached(getattr(self, name) or limit.default, key)
