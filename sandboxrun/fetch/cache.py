"""Scripts on disk, by digest, and the pins, which record the digest of a version.

`blobs/HEX` and the compiled `code/NAME` lie in the user's cache folder and may be removed at any time. A pin is a decision, not
a copy: it lies in the state folder and survives `sandboxrun cache --clean`. Only `--reload` changes the pin of a tag or commit.
Every file is written under a temporary name and moved into place. Blobs are verified whenever they are read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator

from sandboxrun.digests import hex_digest
from sandboxrun.errors import ConfigError, FetchError
from sandboxrun.fetch.resolve import SCRIPT_MAX_BYTES, Source
from sandboxrun.files import Kept, write_whole
from sandboxrun.plainjson import dumps, loads
from sandboxrun.records import field, record

_HEX = r"[0-9a-f]{64}"
_PIN_MAX_BYTES = 16 * 1024
LOCK_SECONDS = 60  # longer than any download


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@record
class Pin:
    """The digest of a URL and version when it was last fetched."""

    sha256: str
    etag: str | None = None
    fetched: str = field(default_factory=_now)  # ISO 8601, UTC


@record
class Entry:
    """A pin as `sandboxrun cache` shows it. `size`: bytes; None if the blob was removed."""

    url: str
    version: str
    pin: Pin
    size: int | None


class Cache:
    """`cache_folder` holds blobs, `state_folder` pins. Raises ConfigError if another user can write to one."""

    def __init__(self, cache_folder: str, state_folder: str) -> None:
        self.blobs = os.path.join(cache_folder, "blobs")
        self.pins = os.path.join(state_folder, "pins")
        self.trees = os.path.join(cache_folder, "trees")
        key = os.path.join(state_folder, "key")
        self._codes = Kept(os.path.join(cache_folder, "code"), key)
        self.tree_records = Kept(os.path.join(cache_folder, "tree-records"), key)
        self.blocks = Kept(os.path.join(cache_folder, "blocks"), key)
        for folder in (cache_folder, self.blobs, state_folder, self.pins):
            make_private(folder)

    def read(self, sha256: str) -> bytes | None:
        """A blob, verified; None if it is missing or does not have the digest of its name."""
        try:
            with open(os.path.join(self.blobs, sha256), "rb") as file:
                data = file.read(SCRIPT_MAX_BYTES + 1)
        except OSError:
            return None
        return data if hex_digest(data) == sha256 else None

    def pin(self, source: Source) -> Pin | None:
        """The pin of this source, or None. Raises ConfigError for a pin that cannot be read, because it must not be ignored."""
        path = self.pin_path(source)
        try:
            with open(path, "rb") as file:
                return _parse_pin(file.read(_PIN_MAX_BYTES))[2]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            import shlex

            raise ConfigError(
                f"the pin {path} of {source.url} is damaged ({error}); without it, the next download is trusted",
                hint=f"rm -f {shlex.quote(path)}",
            ) from error

    def write(self, source: Source, data: bytes, pin: Pin) -> None:
        record = {
            "url": source.url,
            "version": source.version,
            "sha256": pin.sha256,
            "etag": pin.etag,
            "fetched": pin.fetched,
        }
        write_whole(os.path.join(self.blobs, pin.sha256), data, mode=0o400)
        write_whole(self.pin_path(source), dumps(record).encode(), mode=0o400)

    def keep(self, data: bytes, sha256: str) -> None:
        """A blob without a pin: what names it has its digest. A full or read-only disk is no error."""
        with contextlib.suppress(OSError):
            write_whole(os.path.join(self.blobs, sha256), data, mode=0o400, sync=False)

    def code(self, sha256: str, url: str) -> bytes | None:
        """The marshalled code of a blob; empty if it is too long to be kept; see compiled.py."""
        from sandboxrun.fetch import compiled  # late, because a local worker has none

        return self._codes.get(compiled.name_of(sha256, url), compiled.CODE_MAX_BYTES)

    def keep_code(self, code: bytes, sha256: str, url: str) -> None:
        from sandboxrun.fetch import compiled

        if len(code) <= compiled.CODE_MAX_BYTES:
            self._codes.put(compiled.name_of(sha256, url), code)

    @contextlib.contextmanager
    def locked(self, source: Source) -> Iterator[None]:
        """Let one process at a time decide on a source: two that fetch a moving tag at once must not both pin it."""
        with locked(self.pin_path(source) + ".lock", f"fetching {source.url}"):
            yield

    def entries(self) -> list[Entry]:
        """All pins but the damaged ones, sorted by URL and version."""
        import re

        entries = []
        for name in os.listdir(self.pins):
            if re.fullmatch(_HEX, name):
                with (
                    contextlib.suppress(OSError, ValueError, KeyError, TypeError),
                    open(os.path.join(self.pins, name), "rb") as file,
                ):
                    url, version, pin = _parse_pin(file.read(_PIN_MAX_BYTES))
                    entries.append(Entry(url, version, pin, _size(os.path.join(self.blobs, pin.sha256))))
        return sorted(entries, key=lambda entry: (entry.url, entry.version))

    def pin_path(self, source: Source) -> str:
        return os.path.join(self.pins, hex_digest(f"{source.version}\n{source.url}".encode()))


@contextlib.contextmanager
def locked(
    path: str, doing: str, *, seconds: int = LOCK_SECONDS, on_wait: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Let one process at a time into the block, by a lock file. `doing`: what the other one does, as in "fetching URL".
    `on_wait` is called before the first wait. Raises FetchError after `seconds`.
    """
    deadline = time.monotonic() + seconds
    is_first = True
    with open(path, "ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise FetchError(f"another process has been {doing} for more than {seconds} s") from None
                if is_first:
                    on_wait()
                    is_first = False
                time.sleep(0.02)
        yield


def _parse_pin(data: bytes) -> tuple[str, str, Pin]:
    import re

    record = loads(data)
    if not re.fullmatch(_HEX, record["sha256"]):
        raise ValueError("sha256 is not a digest")
    etag = record["etag"]
    return (
        str(record["url"]),
        str(record["version"]),
        Pin(record["sha256"], str(etag) if etag else None, str(record["fetched"])),
    )


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def make_private(folder: str) -> None:
    """Make a folder that no other user can write. Raises ConfigError, because another writer could choose what runs."""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        status = os.stat(folder)
    except OSError as error:
        raise ConfigError(
            f"the folder {folder} cannot be made: {error.strerror}",
            hint="export XDG_CACHE_HOME=CACHE XDG_STATE_HOME=STATE",
        ) from error
    if status.st_uid != os.geteuid():
        raise ConfigError(
            f"the folder {folder} belongs to user {status.st_uid}, not to {os.geteuid()}",
            hint="export XDG_CACHE_HOME=CACHE XDG_STATE_HOME=STATE",
        )
    if stat.S_IMODE(status.st_mode) & 0o022:
        import shlex

        raise ConfigError(
            f"the folder {folder} can be written by others (mode {status.st_mode & 0o777:o})",
            hint=f"chmod 700 {shlex.quote(folder)}",
        )
