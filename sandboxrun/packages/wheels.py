"""Which wheels a lock asks for on this machine, and the cache of wheels by digest.

`CACHE/wheels/HEX.whl` is verified whenever it is read. Beside the wheels it is recorded which of a package's files was chosen for
this platform, so that with everything in the cache nobody is asked.
"""

from __future__ import annotations

import json
import math
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable
from urllib.parse import unquote, urlsplit

from packaging.markers import Marker, UndefinedComparison, UndefinedEnvironmentName
from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from sandboxrun.digests import hex_digest
from sandboxrun.errors import FetchError, IntegrityError, ScriptError
from sandboxrun.fetch.cache import make_private
from sandboxrun.files import Kept
from sandboxrun.packages import seal
from sandboxrun.packages.lock import Lock, Locked
from sandboxrun.packages.options import RAISED_BY, Options
from sandboxrun.packages.verify import digest_of_file
from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from packaging.tags import Tag
    from packaging.utils import BuildTag, NormalizedName

_CHOICE_MAX_BYTES = 4096
_FILENAME_MAX_BYTES = 255
_TAGS_MAX = 512

# For markers: an environment outlasts a kernel, so what is approved under a new one must not differ from what was installed.
_KERNEL = {"platform_release": "0", "platform_version": "0"}


@record
class Wheel:
    """A verified wheel in the cache."""

    path: str
    filename: str
    sha256: str
    package: Locked


class Store:
    """The cache of wheels. `key`: the file that records are sealed with."""

    def __init__(self, cache: str, key: str) -> None:
        self.folder = os.path.join(cache, "wheels")
        make_private(cache)
        make_private(self.folder)
        self._choices = Kept(self.folder, key)

    def get(self, package: Locked) -> Wheel | None:
        """The wheel that was chosen for this package here, if it is intact."""
        data = self._choices.get(_choice_name(package), _CHOICE_MAX_BYTES)
        if data is None:
            return None
        filename, sha256 = json.loads(data)
        path = self._path(sha256)
        if sha256 not in package.digests or digest_of_file(path) != sha256:
            return None
        return Wheel(path, filename, sha256, package)

    def put(self, file: str, filename: str, package: Locked) -> Wheel:
        """Move a download into the cache, and choose it. Raises IntegrityError, OSError."""
        if not stat.S_ISREG(os.lstat(file).st_mode):
            raise IntegrityError(f"{filename[:120]} is no file")
        sha256 = digest_of_file(file)
        if sha256 not in package.digests:
            expected = package.digests[0] if len(package.digests) == 1 else f"one of {len(package.digests)} others"
            raise IntegrityError(f"{filename[:120]} has sha256 {sha256}, but the lock pins {expected}")
        os.chmod(file, 0o400)
        os.replace(file, self._path(sha256))
        self._choices.put(_choice_name(package), json.dumps([filename, sha256]).encode())
        return Wheel(self._path(sha256), filename, sha256, package)

    def _path(self, sha256: str) -> str:
        return os.path.join(self.folder, f"{sha256}.whl")


def _choice_name(package: Locked) -> str:
    identity = (package.name, package.version, sorted(package.digests), seal.platform_tag())
    return f"choice-{hex_digest(repr(identity).encode())[:32]}"


def obtain(
    lock: Lock, *, cache: str, key: str, folder: str, options: Options, say: Callable[[str], None]
) -> list[Wheel]:
    """The verified wheels of a lock for this machine, by name. `folder`: an empty one, for downloads.

    Raises ScriptError, FetchError, IntegrityError, UsageError, OSError.
    """
    store = Store(cache, key)
    packages = applicable(lock)
    found = {package.name: store.get(package) for package in packages}
    missing = [package for package in packages if found[package.name] is None]
    if missing:
        names = ", ".join(package.shown for package in missing[:10]) + (" …" if len(missing) > 10 else "")
        if options.cached_only:
            raise FetchError(f"{lock.name}: not in the cache, and --cached-only forbids fetching: {names}")
        say(f"fetching {names}")
        for wheel in _fetch(lock, missing, store, folder, options, say):
            found[wheel.package.name] = wheel
    wheels = [wheel for wheel in found.values() if wheel is not None]
    size = sum(os.stat(wheel.path).st_size for wheel in wheels)
    if size > options.packed_max:
        raise FetchError(f"the wheels of {lock.name} have {size} bytes: the limit is {options.packed_max}{RAISED_BY}")
    return wheels


def applicable(lock: Lock) -> list[Locked]:
    """The packages of a lock whose markers hold here, by name. Raises ScriptError if one is there twice."""
    packages: dict[str, Locked] = {}
    for package in lock.packages:
        if not package.marker or _holds(package, lock):
            if package.name in packages:
                raise ScriptError(f"{lock.name} has {package.name} twice for this platform")
            packages[package.name] = package
    return sorted(packages.values(), key=lambda package: package.name)


def _holds(package: Locked, lock: Lock) -> bool:
    try:
        return Marker(package.marker).evaluate(_KERNEL)
    except (UndefinedComparison, UndefinedEnvironmentName, InvalidVersion, KeyError, RecursionError) as error:
        raise ScriptError(
            f"{lock.name} has {package.name} with the marker {package.marker[:80]!r}, which says nothing here"
        ) from error


def _fetch(
    lock: Lock, missing: list[Locked], store: Store, folder: str, options: Options, say: Callable[[str], None]
) -> Iterable[Wheel]:
    if lock.name.endswith(".toml"):
        from sandboxrun.packages import index
        from sandboxrun.packages.urls import fetch_wheel

        left, deadline = options.packed_max, time.monotonic() + index.SECONDS
        for package in missing:
            url, sha256 = choose(package, lock)
            path = os.path.join(folder, sha256)
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                raise FetchError(f"the wheels of {lock.name} did not arrive within {index.SECONDS} s")
            fetch_wheel(url, path, max_bytes=left, seconds=seconds, options=options, say=say)
            left -= os.stat(path).st_size
            yield store.put(path, filename_of(url), package)
        return
    from sandboxrun.packages.index import fetch_wheels

    by_name = {package.name: package for package in missing}
    for path in fetch_wheels(lock, missing, folder=folder, options=options, say=say):
        filename = os.path.basename(path)
        name = _package_of(filename, by_name)
        if name is not None:
            yield store.put(path, filename, by_name.pop(name))
    if by_name:
        raise FetchError(f"{lock.name}: the index has no wheel of {next(iter(by_name.values())).shown}{_here()}")


def _package_of(filename: str, packages: dict[str, Locked]) -> str | None:
    """The package whose wheel a file is, by its name; None if it is none. Whether it fits this machine was pip's choice."""
    try:
        name, version, _, _ = _parse(filename)
    except (InvalidWheelFilename, InvalidVersion):
        return None
    package = packages.get(name)
    if package is None or version != Version(package.version):
        return None
    return package.name


def choose(package: Locked, lock: Lock) -> tuple[str, str]:
    """(URL, digest) of the wheel that fits this machine best. Raises ScriptError."""
    order = {tag: number for number, tag in enumerate(sys_tags())}
    ranked = []
    for url, sha256 in package.wheels:
        try:
            name, version, build, tags = _parse(filename_of(url))
        except _TooManyTags as error:
            raise ScriptError(f"{lock.name} has {package.name} with {filename_of(url)[:80]!r}, {error}") from error
        except (InvalidWheelFilename, InvalidVersion) as error:
            raise ScriptError(
                f"{lock.name} has {package.name} with {filename_of(url)[:80]!r}, no wheel's name"
            ) from error
        if name != package.name or version != Version(package.version):
            raise ScriptError(
                f"{lock.name} has {package.shown} with {filename_of(url)[:80]!r}, the name of another one's wheel"
            )
        fitting = [order[tag] for tag in tags if tag in order]
        if fitting:
            # The latest build of equal ones; build is () or (number, text).
            ranked.append((-min(fitting), build, url, sha256))
    if not ranked:
        raise ScriptError(f"{lock.name} has no wheel of {package.shown}{_here()}")
    return max(ranked)[2:]


class _TooManyTags(InvalidWheelFilename):
    """A name that takes too long to be read."""


def _parse(filename: str) -> tuple[NormalizedName, Version, BuildTag, frozenset[Tag]]:
    """As parse_wheel_filename, which makes all combinations of the tags: a short name may stand for millions."""
    tags = filename.removesuffix(".whl").split("-")[-3:]
    if len(filename.encode()) > _FILENAME_MAX_BYTES or math.prod(part.count(".") + 1 for part in tags) > _TAGS_MAX:
        raise _TooManyTags(f"a name of more than {_FILENAME_MAX_BYTES} bytes or {_TAGS_MAX} tags")
    return parse_wheel_filename(filename)


def filename_of(url: str) -> str:
    return unquote(urlsplit(url).path.rpartition("/")[2])


def _here() -> str:
    version = ".".join(map(str, sys.version_info[:2]))
    return f" that fits Python {version} on {os.uname().machine}, and nothing is built"
