"""A wheel from its URL in a PEP 751 lock."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

from sandboxrun.errors import FetchError
from sandboxrun.fetch.download import download_file
from sandboxrun.fetch.resolve import ImportList
from sandboxrun.packages.options import Options

_NOT_PUBLIC = (".localhost", ".local", ".internal", ".home.arpa", ".lan")


class PublicHosts(ImportList):
    """Every public host by https: the bytes are pinned, so a host decides nothing about them. What is refused is that a lock
    makes this machine send a request into its own network."""

    def __init__(self) -> None:
        super().__init__(())

    def check(self, url: str, *, came_from: str | None = None) -> None:
        hop = "" if came_from is None else f" (redirected from {urlsplit(came_from).netloc.rpartition('@')[2]})"
        try:
            parts = urlsplit(url)
            host, _ = (parts.hostname or "").lower().removesuffix("."), parts.port
        except ValueError as error:
            raise FetchError(f"{url[:200]!r} is not a URL: {error}") from error
        if parts.scheme != "https" or not host:
            raise FetchError(f"{url[:200]!r} is not https{hop}")
        if not _is_public(host):
            raise FetchError(f"{host[:200]} is not a public host{hop}: the policy has to list it in package-hosts")

    def check_peer(self, address: str) -> None:
        """Raise FetchError if a public name leads to an address that is not public."""
        if not ipaddress.ip_address(address.partition("%")[0]).is_global:
            raise FetchError(f"the host has the address {address}, which is not public")


def _is_public(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_global
    except ValueError:
        return "." in host and not _is_short_address(host) and not f".{host}".endswith(_NOT_PUBLIC)


def _is_short_address(host: str) -> bool:
    """Whether the C library reads an IPv4 address in another form, such as 127.1 or 0x7f.1."""
    try:
        return bool(socket.inet_aton(host))
    except (OSError, ValueError):
        return False


def fetch_wheel(
    url: str, path: str, *, max_bytes: int, seconds: float, options: Options, say: Callable[[str], None]
) -> None:
    """Download to a new file. Raises FetchError."""
    allowed = PublicHosts() if options.hosts is None else options.hosts
    allowed.check(url)
    # A lock names any public host, so a login is for hosts that the operator has listed.
    login = options.hosts is not None
    download_file(url, path, allowed=allowed, max_bytes=max_bytes, seconds=seconds, login=login, progress=say)
