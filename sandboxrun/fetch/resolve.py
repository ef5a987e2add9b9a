"""A url and a version to a Source: pure, but for looking at local files."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable

from sandboxrun.config.permissions import canonical_host
from sandboxrun.errors import ConfigError, FetchError, UsageError
from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from urllib.parse import SplitResult

SCRIPT_MAX_BYTES = 1024 * 1024
DEFAULT_HOSTS = (
    "raw.githubusercontent.com", "gist.githubusercontent.com", "gitlab.com", "codeberg.org", "cdn.jsdelivr.net",
)  # fmt: skip
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_PLACEHOLDER = "{version}"
_COMMIT = r"[0-9a-f]{40}|[0-9a-f]{64}"
_TAG = r"v?[0-9]+(\.[0-9]+)*([-+.][0-9A-Za-z.+-]+)?"


@record
class Source:
    """A script at a URL. `mutable`: the version is a branch, whose content may change."""

    url: str
    version: str
    mutable: bool


@record
class LocalSource:
    """A script in the file system (version local). `folder` is None where the url names the file itself.

    Both are real paths; `named` is what the url names, which may lead through symlinks.
    """

    script: str
    folder: str | None
    named: str

    def read(self) -> bytes:
        """The script, bounded. Raises FetchError."""
        try:
            # O_NONBLOCK: a FIFO in the script's place must not stop us.
            fd = os.open(self.script, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(fd, "rb") as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise FetchError(
                        f"{self.script} is not a file: url must name a folder with worker.py, or the script itself"
                    )
                data = file.read(SCRIPT_MAX_BYTES + 1)
        except OSError as error:
            raise FetchError(f"{self.script} cannot be read: {error.strerror}; check the field url") from error
        if len(data) > SCRIPT_MAX_BYTES:
            raise FetchError(f"{self.script} is larger than {SCRIPT_MAX_BYTES >> 20} MiB")
        return data


def urlsplit(url: str) -> SplitResult:
    """urllib.parse's, which a local worker does without. Raises ValueError."""
    from urllib.parse import urlsplit

    return urlsplit(url)


def is_mutable(version: str) -> bool:
    """Whether a version is a branch. A full commit and a name like v1.2.3 (or 1.2) are pinned once fetched."""
    return not (re.fullmatch(_COMMIT, version) or re.fullmatch(_TAG, version))


def is_commit(version: str) -> bool:
    """Whether a version is a full commit."""
    return re.fullmatch(_COMMIT, version) is not None


def resolve(url: str, version: str, *, key: str) -> Source | LocalSource:
    """Where the script of this version is. Raises ConfigError naming the field."""
    if version == "local":
        return _resolve_local(url, key)
    from urllib.parse import urlunsplit

    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"field url of {key} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(
            f"field url of {key} is {url[:80]!r}: expected https://…, or a folder together with version local"
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"field url of {key} has a user or password: put them into ~/.netrc instead")
    if parts.fragment:
        raise ConfigError(f"field url of {key} has a fragment (#…): remove it")
    if _PLACEHOLDER in url:
        if _PLACEHOLDER in parts.netloc:
            raise ConfigError(f"field url of {key} has {_PLACEHOLDER} in its host: it belongs into the path")
        return Source(url.replace(_PLACEHOLDER, version), version, is_mutable(version))
    path = _replace_ref(host, parts.path, version)
    if path is not None:
        if host == "github.com":
            parts = parts._replace(netloc="raw.githubusercontent.com")
        return Source(urlunsplit(parts._replace(path=path)), version, is_mutable(version))
    if version not in parts.path.split("/"):
        raise ConfigError(
            f"field url of {key} has no {_PLACEHOLDER}, and is no GitHub, GitLab or Codeberg raw URL: write {_PLACEHOLDER} where "
            f"the version belongs"
        )
    return Source(url, version, is_mutable(version))


def _replace_ref(host: str, path: str, version: str) -> str | None:
    """The path of a raw URL with its ref segment replaced, or None for another kind of URL."""
    if host == "raw.githubusercontent.com":
        match = re.fullmatch(r"(/[^/]+/[^/]+)/(?:refs/(?:heads|tags)/)?[^/]+(/.+)", path)
        return f"{match[1]}/{version}{match[2]}" if match else None
    if host == "github.com":
        match = re.fullmatch(r"(/[^/]+/[^/]+)/(?:blob|raw)/(?:refs/(?:heads|tags)/)?[^/]+(/.+)", path)
        return f"{match[1]}/{version}{match[2]}" if match else None
    if host == "gitlab.com":
        match = re.fullmatch(r"(/.+/-)/(?:raw|blob)/[^/]+(/.+)", path)
        return f"{match[1]}/raw/{version}{match[2]}" if match else None
    if host == "codeberg.org":
        match = re.fullmatch(r"(/[^/]+/[^/]+)/(?:raw|src)/(?:branch|tag|commit)/[^/]+(/.+)", path)
        if match is None:
            return None
        kind = "commit" if is_commit(version) else "branch" if is_mutable(version) else "tag"
        return f"{match[1]}/raw/{kind}/{version}{match[2]}"
    return None


def _resolve_local(url: str, key: str) -> LocalSource:
    path = url
    if url.startswith("file://"):
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise ConfigError(f"field url of {key} is not a URL: {error}") from error
        if parts.netloc not in ("", "localhost"):
            raise ConfigError(f"field url of {key} names another host in file://: write file:///PATH")
        from urllib.parse import unquote

        path = unquote(parts.path)
    if not os.path.isabs(path) or "\0" in path:
        raise ConfigError(
            f"field url of {key} is {url[:80]!r}, but version is local: expected an absolute path to a folder with worker.py, or to the file"
        )
    named, path = path, os.path.realpath(path)
    if os.path.isdir(path):
        script = os.path.join(path, "worker.py")
        if not os.path.exists(script):
            raise ConfigError(f"field url of {key}: {path} has no worker.py; name the script itself, or make it")
        return LocalSource(script, path, named)
    if not os.path.exists(path):
        raise ConfigError(f"field url of {key}: {path} does not exist")
    return LocalSource(path, None, named)


class ImportList:
    """The hosts that scripts may come from: HOST (port 443) or HOST:PORT. `loopback`: it is always among them, for
    development; what is not loopback needs https."""

    def __init__(self, entries: Iterable[tuple[str, int]], *, loopback: bool = True) -> None:
        self._entries = frozenset(entries)
        self._loopback = loopback

    @classmethod
    def default(cls) -> ImportList:
        return cls((host, 443) for host in DEFAULT_HOSTS)

    @classmethod
    def parse(cls, text: str) -> ImportList:
        """From `HOST[:PORT],…`. Raises UsageError."""
        entries = []
        for entry in filter(None, (part.strip() for part in text.split(","))):
            host, _, port = entry.rpartition(":") if ":" in entry.rpartition("]")[2] else (entry, "", "443")
            try:
                if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
                    raise ValueError("the port is not a number from 1 to 65535")
                host = host[1:-1] if host.startswith("[") and host.endswith("]") else _dns_or_ipv4(host)
            except ValueError as error:
                raise UsageError(f"--allow-import has {entry[:80]!r}: {error}; expected HOST or HOST:PORT") from error
            entries.append((host, int(port)))
        return cls(entries)

    def check(self, url: str, *, came_from: str | None = None) -> None:
        """Raise FetchError unless a script may come from here. `came_from`: the URL that redirected to it."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower().removesuffix("."), parts.port
        except ValueError as error:
            raise FetchError(f"{url[:200]!r} is not a URL: {error}") from error
        hop = "" if came_from is None else f" (redirected from {_origin(urlsplit(came_from))})"
        if host in _LOOPBACK and parts.scheme in ("http", "https"):
            if came_from is not None and (urlsplit(came_from).hostname or "").lower() not in _LOOPBACK:
                raise FetchError(f"{_origin(parts)} is this machine{hop}: a remote server must not send us there")
            if self._loopback:
                return
        elif parts.scheme != "https":
            raise FetchError(f"{_origin(parts)} is not https{hop}: http is for loopback only")
        if origin_of(url) not in self._entries:
            shown = f"{host}:{port}" if port not in (None, 443) else host
            raise FetchError(
                f"{_origin(parts)} is not among the hosts that scripts may come from{hop}: allow it with --allow-import={shown}"
            )


def origin_of(url: str) -> tuple[str, int]:
    """Host and port of a URL."""
    parts = urlsplit(url)
    return (parts.hostname or "").lower().removesuffix("."), parts.port or (80 if parts.scheme == "http" else 443)


def is_loopback(url: str) -> bool:
    return (urlsplit(url).hostname or "").lower() in _LOOPBACK


def _dns_or_ipv4(host: str) -> str:
    return host if re.fullmatch(r"[0-9]+(\.[0-9]+){3}", host) else canonical_host(host)


def _origin(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
