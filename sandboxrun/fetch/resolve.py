"""From a url and a version to a Source: pure, but for looking at local files.

A name alone cannot tell a tag from a branch, and a branch must never be pinned. So `is_mutable` takes a version for pinned
only if it says what it is (refs/tags/NAME, a full commit) or has the form of a release number, and where a host has URLs of
its own for tags, the script is asked for there: a branch of the same name is not match then.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from sandboxrun.config import keys
from sandboxrun.config.permissions import canonical_host
from sandboxrun.enums import StrEnum
from sandboxrun.errors import ConfigError, FetchError, UsageError
from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from re import Match
    from urllib.parse import SplitResult

SCRIPT_MAX_BYTES = 1024 * 1024
DEFAULT_HOSTS = (
    "raw.githubusercontent.com", "gist.githubusercontent.com", "gitlab.com", "codeberg.org", "cdn.jsdelivr.net",
)  # fmt: skip
_REF_IN_PATH = frozenset(
    (
        "raw.githubusercontent.com",
        "github.com",
        "gist.githubusercontent.com",
        "gist.github.com",
        "cdn.jsdelivr.net",
        "git.sr.ht",
    )
)
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_PLACEHOLDER = "{version}"
_TAG_PREFIX, _BRANCH_PREFIX = "refs/tags/", "refs/heads/"
_COMMIT = r"[0-9a-fA-F]{40}|[0-9a-fA-F]{64}"  # SHA-1 and SHA-256
# Three numbers or more. Fewer (v1, 1.2) are as often the names of branches, and so are 1.2.x and 1.2.3-fixes. What may follow
# are the pre- and post-releases of PEP 440 and semver.org that have a number, and semver's build.
_RELEASE = r"v?[0-9]+(\.[0-9]+){2,}([-_.]?(alpha|beta|preview|pre|post|rev|dev|rc|a|b|c|r)[-_.]?[0-9]+)*(\+[0-9a-z]+([-.][0-9a-z]+)*)?"


class RefKind(StrEnum):
    """What a version names."""

    BRANCH = "branch"  # or something of which that cannot be told: its content may change
    TAG = "tag"
    COMMIT = "commit"


@record
class Source:
    """A script at a URL. `mutable`: the content of this version may change."""

    url: str
    version: str
    mutable: bool


@record
class LocalSource:
    """A script in the file system (version local). `folder` is None if the url names the file itself.

    Both are real paths. `named` is the path in the url, which may lead through symlinks.
    """

    script: str
    folder: str | None
    named: str

    def read(self) -> bytes:
        """The script, of at most SCRIPT_MAX_BYTES. Raises FetchError."""
        try:
            # O_NONBLOCK: a FIFO in the script's place must not block the open.
            fd = os.open(self.script, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(fd, "rb") as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise FetchError(
                        f"{self.script} is not a file: expected url to name a folder with worker.py, or the script itself"
                    )
                data = file.read(SCRIPT_MAX_BYTES + 1)
        except OSError as error:
            raise FetchError(f"{self.script} cannot be read: {error.strerror}") from error
        if len(data) > SCRIPT_MAX_BYTES:
            raise FetchError(f"{self.script} is larger than {SCRIPT_MAX_BYTES >> 20} MiB")
        return data


def urlsplit(url: str) -> SplitResult:
    """The function of urllib.parse, which is imported late because a local worker does without. Raises ValueError."""
    from urllib.parse import urlsplit

    return urlsplit(url)


def _fullmatch(pattern: str, text: str, *, ignore_case: bool = False) -> Match[str] | None:
    """The function of re, which is imported late for the same reason."""
    import re

    return re.fullmatch(pattern, text, re.ASCII | re.IGNORECASE if ignore_case else 0)


def kind_of(version: str) -> RefKind:
    """What a version names; a branch in case of doubt, such as for a short commit, which a branch may be called."""
    if _fullmatch(_COMMIT, version):
        return RefKind.COMMIT
    if version.startswith(_TAG_PREFIX) or _fullmatch(_RELEASE, version, ignore_case=True):
        return RefKind.TAG
    return RefKind.BRANCH


def is_mutable(version: str) -> bool:
    """Whether the content of a version may change. That of a tag or commit is pinned once fetched."""
    return kind_of(version) is RefKind.BRANCH


def resolve(url: str, version: str, *, key: str) -> Source | LocalSource:
    """Where the script of this version is. Raises ConfigError, which names the field."""
    if version == "local":
        return _resolve_local(url, key)
    from urllib.parse import urlunsplit

    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower().removesuffix(".")
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"field url of {key} is not a URL: {error}") from error
    _check_url(url, parts, host, key)
    ref = _Ref(version, key)
    rewritten = _rewritten(host, parts, ref)
    if rewritten is not None:
        return Source(urlunsplit(rewritten).replace(_PLACEHOLDER, ref.name), version, is_mutable(version))
    # Hosts that have the ref in the path take no notice of a version in the query.
    searched = parts.path if host in _REF_IN_PATH else url
    if _PLACEHOLDER not in searched and f"/{version}/" not in f"{parts.path}/":
        raise ConfigError(
            f"field url of {key} does not say where the version belongs: expected {_PLACEHOLDER} in it, or a raw URL of GitHub, a "
            "gist, GitLab, Codeberg, jsDelivr or sr.ht",
            hint=_url_hint(key, f"{parts.scheme}://{parts.netloc}/PATH/{_PLACEHOLDER}/FILE"),
        )
    return Source(url.replace(_PLACEHOLDER, version), version, is_mutable(version))


def _check_url(url: str, parts: SplitResult, host: str, key: str) -> None:
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(
            f"field url of {key} is {url[:80]!r}: expected https://…, or a folder together with version local",
            hint=f"sandboxrun set {keys.in_words(key)} url=FOLDER version=local",
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"field url of {key} has a user or password, which everybody who may read the hash sees: expected them in ~/.netrc"
        )
    if parts.fragment:
        raise ConfigError(
            f"field url of {key} has the fragment #{parts.fragment[:80]}: expected a URL without one",
            hint="" if parts.query else _url_hint(key, url.partition("#")[0]),  # a query may have a token
        )
    import re

    if re.search(r"/(\.|%2e){1,2}(/|$)", parts.path, re.IGNORECASE):  # it may lead to another ref than the version
        raise ConfigError(f"field url of {key} has . or .. in its path: expected a path without them")
    if _PLACEHOLDER in parts.netloc:
        raise ConfigError(f"field url of {key} has {_PLACEHOLDER} in its host: expected it in the path")


def _url_hint(key: str, url: str) -> str:
    return keys.set_hint(key, f"url={url}")


@record
class _Ref:
    """A version that is put into a URL; `key` is of the hash that names it."""

    version: str
    key: str

    @property
    def kind(self) -> RefKind:
        return kind_of(self.version)

    @property
    def name(self) -> str:
        """Of the tag or branch, or the commit."""
        return self.version.removeprefix(_TAG_PREFIX).removeprefix(_BRANCH_PREFIX)

    @property
    def is_branch_by_word(self) -> bool:
        return self.version.startswith(_BRANCH_PREFIX)

    def cut(self, rest: str) -> str:
        """The /FILE behind the ref at the start of `rest`: behind this one if it stands there, else behind one without a slash."""
        rest = rest.removeprefix(_TAG_PREFIX).removeprefix(_BRANCH_PREFIX)
        if rest.startswith(f"{self.name}/"):
            return rest.removeprefix(self.name)
        return "/" + rest.partition("/")[2]


def _rewritten(host: str, parts: SplitResult, ref: _Ref) -> SplitResult | None:
    """A raw URL, or that of the page that shows the file, with the ref in it replaced; None for another kind of URL.

    GitHub, gists, jsDelivr and sr.ht are known by their host, GitLab and Forgejo, which many run, by their paths.
    """
    match host:
        case "raw.githubusercontent.com" | "github.com":
            return _of_github(host, parts, ref)
        case "gist.githubusercontent.com" | "gist.github.com":
            return _of_gist(host, parts, ref)
        case "cdn.jsdelivr.net":
            return _of_jsdelivr(parts, ref)
        case "git.sr.ht":
            return _of_sourcehut(parts, ref)
    return _of_gitlab(parts, ref) or _of_forgejo(parts, ref)


def _of_github(host: str, parts: SplitResult, ref: _Ref) -> SplitResult | None:
    shown = r"" if host.startswith("raw.") else r"/(?:blob|raw)"
    match = _fullmatch(rf"(/[^/]+/[^/]+){shown}/((?:refs/(?:heads|tags)/)?[^/]+/.+)", parts.path)
    if match is None:
        return None
    # refs/tags/ is for tags alone; a bare name is for branches, too.
    version = f"{_TAG_PREFIX}{ref.name}" if ref.kind is RefKind.TAG else ref.version
    netloc = parts.netloc if host.startswith("raw.") else "raw.githubusercontent.com"
    return parts._replace(netloc=netloc, path=f"{match[1]}/{version}{ref.cut(match[2])}")


def _of_gist(host: str, parts: SplitResult, ref: _Ref) -> SplitResult | None:
    """A gist has commits, and without one a URL means the newest."""
    match = _fullmatch(rf"(/[^/]+/[0-9a-f]+/raw)(?:/(?:{_COMMIT}|\{{version\}}))?(/[^/]+)", parts.path)
    if match is None:
        return None
    if ref.kind is not RefKind.COMMIT and ref.name not in ("main", "master"):
        raise ConfigError(
            f"field version of {ref.key} is {ref.version[:80]!r}, and a gist has neither tags nor branches: expected a full commit, "
            "or main for the newest",
            hint=f"sandboxrun set {keys.in_words(ref.key)} version=main",
        )
    commit = f"/{ref.name}" if ref.kind is RefKind.COMMIT else ""
    netloc = parts.netloc if host == "gist.githubusercontent.com" else "gist.githubusercontent.com"
    return parts._replace(netloc=netloc, path=f"{match[1]}{commit}{match[2]}")


def _of_jsdelivr(parts: SplitResult, ref: _Ref) -> SplitResult | None:
    """NAME@VERSION, where a tag and a branch are written alike, and v1 or 1.2 is the newest release that begins so."""
    match = _fullmatch(r"(/gh/[^/@]+/[^/@]+|/npm/(?:@[^/@]+/)?[^/@]+)(?:@[^/]*)?(/.+)", parts.path)
    if match is None:
        return None
    if "/" in ref.name or (ref.kind is RefKind.TAG and is_mutable(ref.name)):
        raise ConfigError(
            f"field version of {ref.key} is {ref.version[:80]!r}, which cdn.jsdelivr.net cannot tell from other versions: expected "
            "a full commit, a release number such as v1.2.3, or a branch without a slash",
            hint=f"sandboxrun set {keys.in_words(ref.key)} version=COMMIT",
        )
    return parts._replace(path=f"{match[1]}@{ref.name}{match[2]}")


def _of_sourcehut(parts: SplitResult, ref: _Ref) -> SplitResult | None:
    match = _fullmatch(r"(/~[^/]+/[^/]+)/blob/(.+/.+)", parts.path)
    if match is not None:
        return parts._replace(path=f"{match[1]}/blob/{ref.version}{ref.cut(match[2])}")
    match = _fullmatch(r"(/~[^/]+/[^/]+)/tree/.+?/item(/.+)", parts.path)
    return parts._replace(path=f"{match[1]}/blob/{ref.version}{match[2]}") if match is not None else None


def _of_gitlab(parts: SplitResult, ref: _Ref) -> SplitResult | None:
    """`ref_type` says which of a tag and a branch is meant; it is no part of a commit's URL."""
    match = _fullmatch(r"(/.+?/-)/(?:raw|blob)/(.+/.+)", parts.path)
    if match is None:
        return None
    query = [word for word in parts.query.split("&") if word and not word.startswith("ref_type=")]
    if ref.kind is RefKind.TAG or ref.is_branch_by_word:
        query.append(f"ref_type={'tags' if ref.kind is RefKind.TAG else 'heads'}")
    return parts._replace(path=f"{match[1]}/raw/{ref.name}{ref.cut(match[2])}", query="&".join(query))


def _of_forgejo(parts: SplitResult, ref: _Ref) -> SplitResult | None:
    """Codeberg, and other servers of Forgejo and Gitea."""
    match = _fullmatch(r"(/.+?)/(?:raw|src)/(?:branch|tag|commit)/(.+/.+)", parts.path)
    return (
        parts._replace(path=f"{match[1]}/raw/{ref.kind}/{ref.name}{ref.cut(match[2])}") if match is not None else None
    )


def _resolve_local(url: str, key: str) -> LocalSource:
    path = url
    if url.startswith("file://"):
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise ConfigError(f"field url of {key} is not a URL: {error}") from error
        if parts.netloc not in ("", "localhost"):
            raise ConfigError(
                f"field url of {key} is {url[:80]!r}, which names another host: expected file:///PATH",
                hint=_url_hint(key, f"file://{parts.path}"),
            )
        from urllib.parse import unquote

        path = unquote(parts.path)
    if not os.path.isabs(path) or "\0" in path:
        raise ConfigError(
            f"field url of {key} is {url[:80]!r}, but version is local: expected an absolute path to a folder with worker.py, or to the file",
            hint=f"sandboxrun set {keys.in_words(key)} version=VERSION" if "://" in url else _here_hint(key, path),
        )
    named, path = path, os.path.realpath(path)
    if os.path.isdir(path):
        script = os.path.join(path, "worker.py")
        if not os.path.exists(script):
            raise ConfigError(f"field url of {key}: {path} has no worker.py", hint=_url_hint(key, f"{path}/FILE"))
        return LocalSource(script, path, named)
    if not os.path.exists(path):
        raise ConfigError(f"field url of {key}: {path} does not exist", hint=_url_hint(key, "FOLDER"))
    return LocalSource(path, None, named)


def _here_hint(key: str, path: str) -> str:
    import shlex

    return f'sandboxrun set {keys.in_words(key)} url="$PWD"/{shlex.quote(path)}'


class ImportList:
    """The hosts that scripts may come from: HOST (port 443) or HOST:PORT. `loopback`: loopback may, too, which is for
    development. All other hosts need https."""

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

    def check_peer(self, address: str) -> None:
        """Raise FetchError unless a host may have this address: any, because its name is listed."""

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
                raise FetchError(f"{_origin(parts)} is this machine{hop}: no remote server may send a download there")
            if self._loopback:
                return
        elif parts.scheme != "https":
            raise FetchError(f"{_origin(parts)} is not https{hop}: http is for loopback only")
        if origin_of(url) not in self._entries:
            from shlex import quote

            shown = quote(f"{host}:{port}" if port not in (None, 443) else host)
            raise FetchError(
                f"{_origin(parts)} is not among the hosts that scripts may come from{hop}",
                hint=f"sandboxrun TYPE ID --allow-import={shown}",
            )


def origin_of(url: str) -> tuple[str, int]:
    """Host and port of a URL."""
    parts = urlsplit(url)
    return (parts.hostname or "").lower().removesuffix("."), parts.port or (80 if parts.scheme == "http" else 443)


def is_loopback(url: str) -> bool:
    return (urlsplit(url).hostname or "").lower() in _LOOPBACK


def _dns_or_ipv4(host: str) -> str:
    return host if _fullmatch(r"[0-9]+(\.[0-9]+){3}", host) else canonical_host(host)


def _origin(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
