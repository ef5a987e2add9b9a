"""A lock: the packages of a script, each with its version and the digests of its files. Pure.

Two forms are read. `requirements.lock` has hashed requirements as pip reads them, without URLs, so that any index or mirror
serves them. `pylock.toml` (PEP 751) has the URLs of wheels. Whatever else pip would read (options, URLs, paths, other files) is
refused, and pip never sees this text: it is given what was parsed from it.
"""

from __future__ import annotations

import re

from sandboxrun.config.contents import canonical
from sandboxrun.digests import hex_digest
from sandboxrun.errors import ScriptError
from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn

LOCK_MAX_BYTES = 1 << 20
PACKAGES_MAX = 500

_LINE_MAX_CHARS = 4096
_LOGICAL_LINE_MAX_CHARS = 64 << 10  # with its continuation lines; a hash has 80, and pydantic-core some 120 of them
_MARKER_MAX_CHARS = 1000
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?"
_VERSION = r"[0-9](?:[A-Za-z0-9.!+_-]{0,98}[A-Za-z0-9])?"
# Possessive quantifiers: without them, a long run of spaces takes quadratic time.
_REQUIREMENT = rf"({_NAME})\s*+(?:\[[A-Za-z0-9._, -]{{0,200}}\])?+\s*+==\s*+({_VERSION})\s*+(?:;(.*))?"
_HASH_OPTION = r"(?<!\s)\s++--hash(?:=|\s++)"
_HASH = r"sha256:([0-9a-f]{64})"
_COMMENT = r"(?:^|\s)#.*"
_URL = r"https://([^/?#@\s]+)/[^?#\s]*/([^/?#\s]+\.whl)"


@record
class Locked:
    """A package of a lock. `name` is canonical; `digests` are SHA-256 in hexadecimal, of every file that may be taken."""

    name: str
    version: str
    digests: tuple[str, ...]
    wheels: tuple[tuple[str, str], ...] = ()  # (URL, digest), of a PEP 751 lock alone
    marker: str = ""

    @property
    def shown(self) -> str:
        return f"{self.name} {self.version}"


@record
class Lock:
    """A lock. `name`: its file's; `sha256`: its own digest."""

    name: str
    sha256: str
    packages: tuple[Locked, ...]


def read_lock(data: bytes, name: str) -> Lock:
    """Read a lock: PEP 751 if `name` ends in .toml, else hashed requirements. Raises ScriptError, which names the line."""
    if len(data) > LOCK_MAX_BYTES:
        raise ScriptError(f"{name} has more than {LOCK_MAX_BYTES >> 20} MiB")
    try:
        text = data.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ScriptError(f"{name}:{data.count(10, 0, error.start) + 1} is not UTF-8") from error
    packages: list[Locked] = []
    first: dict[tuple[str, str], int] = {}
    for line, package in (_pylock if name.endswith(".toml") else _requirements)(text, name):
        other = first.setdefault((package.name, package.marker), line)
        if other != line:
            raise ScriptError(f"{name}:{line} has {package.name} again; line {other} has the first")
        packages.append(package)
        if len(packages) > PACKAGES_MAX:
            raise ScriptError(f"{name}:{line} has more than {PACKAGES_MAX} packages")
    return Lock(name, hex_digest(data), tuple(packages))


def _requirements(text: str, name: str) -> Iterator[tuple[int, Locked]]:
    for line, logical in _logical_lines(text, name):
        yield line, _requirement(logical, f"{name}:{line}")


def _logical_lines(text: str, name: str) -> Iterator[tuple[int, str]]:
    """(number, text) of each line, joined with those that it continues in, without comments and empty lines."""
    parts: list[str] = []
    first = size = 0
    for number, line in enumerate((*text.split("\n"), ""), 1):
        if len(line) > _LINE_MAX_CHARS:
            raise ScriptError(f"{name}:{number} has more than {_LINE_MAX_CHARS} characters")
        if not parts:
            first, size = number, 0
        size += len(line) + 1
        if size > _LOGICAL_LINE_MAX_CHARS:
            raise ScriptError(
                f"{name}:{first} has more than {_LOGICAL_LINE_MAX_CHARS} characters with its continuation lines"
            )
        is_comment = line.lstrip().startswith("#")  # which ends a continued line, as pip has it
        parts.append(line.removesuffix("\\") if not is_comment else "")
        if line.endswith("\\") and not is_comment:
            continue
        logical = re.sub(_COMMENT, "", " ".join(parts)).strip()
        parts = []
        if logical:
            yield first, logical


def _requirement(text: str, at: str) -> Locked:
    requirement, *hashes = re.split(_HASH_OPTION, text)
    requirement = requirement.strip()
    match = re.fullmatch(_REQUIREMENT, requirement)
    if match is None:
        _refuse(requirement, at)
    package, version, marker = match[1], match[2], (match[3] or "").strip()
    if not hashes:
        raise ScriptError(f"{at} has {package} without a hash: expected --hash=sha256:…")
    digests = []
    for word in hashes:
        digest = re.fullmatch(_HASH, word.strip())
        if digest is None:
            raise ScriptError(
                f"{at} has the hash {word.strip()[:80]!r} for {package}: expected sha256: and 64 lower-case hexadecimal digits"
            )
        digests.append(digest[1])
    _check_marker(marker, f"{at} has {package}")
    return Locked(canonical(package), version, tuple(dict.fromkeys(digests)), marker=marker)


def _refuse(text: str, at: str) -> NoReturn:
    shown = f"{at} has {text[:80]!r}"
    if text.startswith("-"):
        raise ScriptError(f"{shown}, an option: expected hashed requirements alone")
    if "@" in text or "://" in text:
        raise ScriptError(f"{shown}, which names a URL: expected NAME==VERSION")
    if text[:1] in (".", "/", "~") or text.endswith((".whl", ".zip", ".tar.gz")):
        raise ScriptError(f"{shown}, a path: expected NAME==VERSION")
    raise ScriptError(f"{shown}: expected NAME==VERSION with --hash=sha256:…")


def _check_marker(marker: str, at: str) -> None:
    if not marker:
        return
    if len(marker) > _MARKER_MAX_CHARS:
        raise ScriptError(f"{at} with a marker of more than {_MARKER_MAX_CHARS} characters")
    from packaging.markers import InvalidMarker, Marker  # late, because most locks have none

    try:
        Marker(marker)
    except (InvalidMarker, RecursionError) as error:
        raise ScriptError(f"{at} with the marker {marker[:80]!r}, which is none of PEP 508") from error


def _pylock(text: str, name: str) -> Iterator[tuple[int, Locked]]:
    import tomllib  # late, because most locks are of the other form

    from sandboxrun.config.toml import line_fault

    lines = text.split("\n")
    for number, text_line in enumerate(lines, 1):
        fault = line_fault(text_line)
        if fault:
            raise ScriptError(f"{name}:{number} has {fault}")
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
        match = re.search(r"at line ([0-9]+)", str(error))
        raise ScriptError(f"{name}:{match[1] if match else len(lines)} is not TOML") from error
    version = document.get("lock-version")
    if not isinstance(version, str) or not re.fullmatch(r"1\.[0-9]{1,4}", version):
        line = _line_of(lines, "lock-version")
        raise ScriptError(f'{name}:{line} has lock-version {str(version)[:80]!r}: expected "1.0"')
    packages = document.get("packages", [])
    if not isinstance(packages, list):
        raise ScriptError(f"{name}:{_line_of(lines, 'packages')} has packages that are no list of tables")
    starts = [number for number, each in enumerate(lines, 1) if each.strip() == "[[packages]]"]
    first = _line_of(lines, "packages")  # of those that are written inline
    for index, package in enumerate(packages[: PACKAGES_MAX + 1]):
        line = starts[index] if index < len(starts) else first
        yield line, _package(package, f"{name}:{line}")


def _line_of(lines: list[str], key: str) -> int:
    """The first line with this key, because tomllib does not tell."""
    return next((number for number, line in enumerate(lines, 1) if key in line), 1)


def _package(package: Any, at: str) -> Locked:
    if not isinstance(package, dict):
        raise ScriptError(f"{at} has a package that is no table")
    name, version, marker = package.get("name"), package.get("version"), package.get("marker", "")
    if not isinstance(name, str) or not re.fullmatch(_NAME, name):
        raise ScriptError(f"{at} has the package name {str(name)[:80]!r}: expected letters, digits, '.', '_' and '-'")
    at = f"{at} has {name}"
    for source in ("vcs", "directory", "archive"):
        if source in package:
            raise ScriptError(f"{at} as {source}: expected wheels")
    if not isinstance(version, str) or not re.fullmatch(_VERSION, version):
        raise ScriptError(f"{at} with the version {str(version)[:80]!r}: expected one as in 1.2.3")
    if not isinstance(marker, str):
        raise ScriptError(f"{at} with the marker {str(marker)[:80]!r}: expected a string")
    _check_marker(marker, at)
    wheels = package.get("wheels", [])
    if not wheels and "sdist" in package:
        raise ScriptError(f"{at} {version} as an sdist only, which would have to be built: expected wheels")
    if not isinstance(wheels, list) or not wheels:
        raise ScriptError(f"{at} {version} without wheels")
    found = tuple(_wheel(wheel, at) for wheel in wheels)
    return Locked(canonical(name), version, tuple(dict.fromkeys(digest for _, digest in found)), found, marker)


def _wheel(wheel: Any, at: str) -> tuple[str, str]:
    if not isinstance(wheel, dict):
        raise ScriptError(f"{at} with a wheel that is no table")
    url, hashes = wheel.get("url"), wheel.get("hashes")
    if not isinstance(url, str):
        raise ScriptError(f"{at} with a wheel without a URL: expected url, and no path")
    match = re.fullmatch(_URL, url, re.ASCII)
    if match is None:
        raise ScriptError(f"{at} with the URL {url[:80]!r}: expected https://HOST/PATH/NAME.whl")
    named = wheel.get("name", match[2])
    if named != match[2]:
        raise ScriptError(f"{at} with a wheel named {str(named)[:80]!r} whose URL ends in {match[2][:80]!r}")
    digest = hashes.get("sha256") if isinstance(hashes, dict) else None
    if not isinstance(digest, str) or not re.fullmatch(_HASH, f"sha256:{digest}"):
        raise ScriptError(f"{at} with the wheel {match[2][:80]} without hashes.sha256: expected 64 hexadecimal digits")
    return url, digest
