"""From a url and a version to verified bytes: the one entry point is `obtain`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from sandboxrun.enums import StrEnum
from sandboxrun.errors import FetchError, IntegrityError
from sandboxrun.fetch import integrity
from sandboxrun.fetch.cache import Cache, Pin
from sandboxrun.fetch.resolve import ImportList, LocalSource, Source
from sandboxrun.records import record, replace


class Obtained(StrEnum):
    """How an artifact was obtained."""

    LOCAL = "local"  # from the worker's own folder or file
    CACHED = "cached"  # from the cache, without asking anybody, or because nobody answered
    REVALIDATED = "revalidated"  # from the cache, because its host says that it has not changed
    FETCHED = "fetched"


@record
class Artifact:
    """A script that may run: a copy of its bytes, and their origin."""

    source: bytes
    sha256: str
    origin: str  # URL or path
    how: Obtained
    instead_of: str | None = None  # the digest that the version had before, if it has changed
    code: bytes | None = None  # marshalled, of a cached script; if None or empty, the child compiles

    @property
    def may_have_block(self) -> bool:
        """Whether it is worth to import what reads a block of metadata (PEP 723)."""
        return b"# /// script" in self.source


def obtain(
    source: Source | LocalSource,
    *,
    cache: Cache,
    allowed: ImportList,
    expected_sha256: str | None,
    reload: bool,
    cached_only: bool,
    warn: Callable[[str], None],
    progress: Callable[[str], None],
) -> Artifact:
    """The script's verified bytes. Raises FetchError or IntegrityError; nothing wrong is ever cached."""
    if isinstance(source, LocalSource):
        data = source.read()
        integrity.check_python(data, source.script)
        return Artifact(
            data, integrity.check_digest(data, expected_sha256, source.script), source.script, Obtained.LOCAL
        )
    with cache.locked(source):
        artifact = _obtain(source, cache, allowed, expected_sha256, reload, cached_only, warn, progress)
        return artifact if artifact.code is not None else replace(artifact, code=_code(artifact, source.url, cache))


def _code(artifact: Artifact, url: str, cache: Cache) -> bytes | None:
    """The code of a script from the cache, compiled if the cache has it for another interpreter only."""
    code = cache.code(artifact.sha256, url)
    if code is None:
        with contextlib.suppress(FetchError):  # this Python has another grammar; the child reports the error
            code = integrity.compile_python(artifact.source, url)
            cache.keep_code(code, artifact.sha256, url)
    return code


def _obtain(
    source: Source,
    cache: Cache,
    allowed: ImportList,
    expected: str | None,
    reload: bool,
    cached_only: bool,
    warn: Callable[[str], None],
    progress: Callable[[str], None],
) -> Artifact:
    allowed.check(source.url)
    pin = cache.pin(source)
    data = cache.read(pin.sha256) if pin is not None else None
    if pin is not None and data is not None and not reload and (cached_only or not source.mutable):
        return Artifact(data, integrity.check_digest(data, expected, source.url), source.url, Obtained.CACHED)
    if cached_only:
        raise FetchError(
            f"{source.url} is not in the cache, and --cached-only forbids fetching it", hint="sandboxrun TYPE ID"
        )

    from sandboxrun.fetch.download import Unreachable, download

    try:
        fetched = download(
            source.url,
            allowed=allowed,
            etag=pin.etag if pin and data is not None and not reload else None,
            progress=progress,
        )
    except Unreachable as error:
        if pin is None or data is None or reload:
            raise
        warn(f"{error}; running the copy of {pin.fetched} from the cache")
        return Artifact(data, integrity.check_digest(data, expected, source.url), source.url, Obtained.CACHED)
    if fetched is None:  # 304 Not Modified
        assert pin is not None and data is not None
        return Artifact(data, integrity.check_digest(data, expected, source.url), source.url, Obtained.REVALIDATED)
    code = integrity.compile_python(fetched.body, source.url)
    digest = integrity.check_digest(fetched.body, expected, source.url)
    if pin is not None and not source.mutable and not reload and pin.sha256 != digest:
        raise IntegrityError(
            f"{source.url} has changed under version {source.version}, and a tag or commit must not: pinned sha256 {pin.sha256}, "
            f"got {digest}",
            hint="sandboxrun TYPE ID --reload",
        )
    cache.write(source, fetched.body, Pin(digest, fetched.etag))
    cache.keep_code(code, digest, source.url)
    instead_of = pin.sha256 if pin is not None and pin.sha256 != digest else None
    return Artifact(fetched.body, digest, source.url, Obtained.FETCHED, instead_of, code)
