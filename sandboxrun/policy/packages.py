"""The keys of a policy file about a worker's packages, and what they mean for a worker. Pure.

Each file bounds by itself: a package or host must be allowed by every file that sets the key, and of two sizes the smaller
holds. Only a policy file, or the operator's own configuration of pip, chooses an index: there is no field of a hash and no
line of a script for it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable

from sandboxrun.config.contents import canonical
from sandboxrun.config.covers import glob_covers
from sandboxrun.config.limits import LIMITS, show_size
from sandboxrun.config.permissions import endpoint
from sandboxrun.errors import PolicyError
from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from sandboxrun.policy.ceiling import Ceiling, Section  # which imports this file where it needs it

URL_MAX_CHARS = 2048
SIZE_LEAST, SIZE_DEFAULT, SIZE_MOST = 1 << 20, 512 << 20, 1 << 40
PACKED_DEFAULT, FILES_DEFAULT = 64 << 20, 20_000  # of SIZE_DEFAULT; in proportion to another size
_URL = r"[a-z]+://[A-Za-z0-9._:\[\]-]+(/[A-Za-z0-9._~%+:/-]*)?"
_NAME = r"[a-z0-9*](?:[a-z0-9*-]{0,126}[a-z0-9*])?"
_SIZE_EXPECTED = f"a size from {show_size(SIZE_LEAST)} to {show_size(SIZE_MOST)}, as in 512M or 2G"


@record
class PackagesLimits:
    """The most that all packages of one worker may be together."""

    packed_max: int  # bytes of the wheels
    unpacked_max: int  # bytes
    files_max: int


def read_index(value: Any, wrong: Callable[[str], NoReturn]) -> str:
    """The value of the key `index`; `wrong` raises, with what is expected instead."""
    expected = "the https URL of a package index, or an http URL on loopback"
    if not isinstance(value, str) or len(value) > URL_MAX_CHARS or not value.isascii() or not value.isprintable():
        wrong(expected)
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(value)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        wrong(expected)
    if "@" in parts.netloc:
        wrong("a URL without a login, which belongs in ~/.netrc")
    if "?" in value or "#" in value:
        wrong("a URL without ? and #; a token belongs in ~/.netrc")
    if (
        not host
        or not re.fullmatch(_URL, value)
        or not (parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host)))
    ):
        wrong(expected)
    return value


def shown_index(value: Any) -> str:
    """The value of the key `index` for an error, without what may be a password or token."""
    return re.sub(r"[?#].*", "", re.sub(r"//[^/?#]*@", "//", str(value), flags=re.DOTALL), flags=re.DOTALL)[:80]


def read_name(text: str) -> str:
    """An entry of the key `packages`. Raises ValueError."""
    name = canonical(text)
    if text != name and re.fullmatch(_NAME, name):
        raise ValueError(f"its canonical name is {name!r}")
    if not re.fullmatch(_NAME, text):
        raise ValueError("not a name of letters, digits, - and *")
    return text


def read_size(value: Any, wrong: Callable[[str], NoReturn]) -> int:
    """The value of the key `packages-size`, in bytes."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        wrong(_SIZE_EXPECTED)
    try:
        size = LIMITS["memory"].parse(str(value).strip())
    except ValueError:
        wrong(_SIZE_EXPECTED)
    return size if SIZE_LEAST <= size <= SIZE_MOST else wrong(_SIZE_EXPECTED)


def check(ceiling: Ceiling, names: Iterable[str]) -> None:
    """Raise PolicyError for the first of these packages that is not allowed. `names`: canonical."""
    for section in ceiling.sections:
        entries = section.packages
        refused = [] if entries is None else [name for name in names if not _matches(entries, name)]
        if refused:
            more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
            raise PolicyError(
                f"the script of {ceiling.worker.key} needs the package {refused[0][:80]!r}{more}, which "
                f"{section.places['packages']} does not allow",
                hint=ceiling.list_hint(section, "packages", refused),
            )


def check_unlocked(ceiling: Ceiling, origin: str) -> None:
    """Raise PolicyError if a script that was fetched from `origin` must have a lock for its dependencies."""
    if allows_unlocked(ceiling):
        return
    section = next((section for section in ceiling.sections if section.unlocked is False), None)
    source = section.places["unlocked"] if section is not None else "the default policy"
    raise PolicyError(
        f"{origin} has dependencies and no lock, so their code could change from day to day, which {source} does not allow; "
        "its author can pin them with sandboxrun lock",
        hint=ceiling.value_hint(section, "unlocked", "true"),
    )


def allows_unlocked(ceiling: Ceiling) -> bool:
    """Whether one file says so, and none says no."""
    return {section.unlocked for section in ceiling.sections if section.unlocked is not None} == {True}


def index(ceiling: Ceiling) -> str | None:
    """The URL of the only index that may be asked; None for that of pip's own configuration.

    Raises PolicyError if two files name different ones, because then no index is allowed by both.
    """
    setting = [section for section in ceiling.sections if section.index is not None]
    if not setting:
        return None
    first, last = setting[0], setting[-1]  # the user's file is the last
    if any((section.index or "").rstrip("/") != (first.index or "").rstrip("/") for section in setting):
        raise PolicyError(
            f"{last.places['index']} has index = {last.index!r}, and {first.places['index']} has {first.index!r}: "
            "no index is allowed by both",
            hint=ceiling.value_hint(last, "index", f'"{first.index}"'),
        )
    return first.index


def hosts(ceiling: Ceiling) -> tuple[tuple[str, int], ...] | None:
    """The hosts and ports from which every file lets wheels come that a lock names by URL; None for public https hosts.

    A file that sets the index or names packages bounds where they come from: the name in a lock is its author's word. So there
    are no hosts then, unless a file lists them.
    """
    lists = [section.package_hosts for section in ceiling.sections if section.package_hosts is not None]
    if lists:
        return tuple(host for host in lists[0] if all(host in other for other in lists))
    return None if _bounding(ceiling) is None else ()


def check_urls(ceiling: Ceiling, lock: str, urls: Iterable[tuple[str, int]]) -> None:
    """Raise PolicyError if a file bounds where packages come from, and none lists hosts. `urls`: hosts and ports in the lock."""
    bounding = _bounding(ceiling)
    if bounding is None or any(section.package_hosts is not None for section in ceiling.sections):
        return
    section, key = bounding
    raise PolicyError(
        f"{lock} names wheels by URL, and {section.places[key]} has {key} without package-hosts",
        hint=ceiling.list_hint(section, "package-hosts", [endpoint(*host) for host in sorted(set(urls))]),
    )


def _bounding(ceiling: Ceiling) -> tuple[Section, str] | None:
    """The first section that sets the index or names packages, and the key."""
    for section in ceiling.sections:
        if section.index is not None:
            return section, "index"
        if section.packages is not None and "*" not in section.packages:
            return section, "packages"
    return None


def limits(ceiling: Ceiling) -> PackagesLimits:
    """The smallest size that a file sets, with the number of bytes and files that belong to it; else the default."""
    sizes = [section.packages_size for section in ceiling.sections if section.packages_size is not None]
    size = min(sizes, default=SIZE_DEFAULT)
    return PackagesLimits(PACKED_DEFAULT * size // SIZE_DEFAULT, size, FILES_DEFAULT * size // SIZE_DEFAULT)


def _matches(entries: Iterable[str], name: str) -> bool:
    return any(glob_covers(entry, name) for entry in entries)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"
