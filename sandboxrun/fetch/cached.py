"""A script from the cache or the disk, without a connection."""

from __future__ import annotations

from collections.abc import Callable

from sandboxrun.config.worker import WorkerConfig
from sandboxrun.fetch import Artifact, Obtained, integrity
from sandboxrun.fetch.cache import Cache
from sandboxrun.fetch.resolve import ImportList, LocalSource, Source


def from_cache(cache: Cache) -> Callable[[WorkerConfig, Source | LocalSource, ImportList], Artifact | None]:
    """A function that gets the script of a worker, or None if the cache does not have it."""

    def get(config: WorkerConfig, source: Source | LocalSource, allowed: ImportList) -> Artifact | None:
        if isinstance(source, LocalSource):
            data, origin, obtained = source.read(), source.script, Obtained.LOCAL
            integrity.check_python(data, origin)
        else:
            pin = cache.pin(source)
            blob = cache.read(pin.sha256) if pin is not None else None
            if blob is None:
                return None
            data, origin, obtained = blob, source.url, Obtained.CACHED
        return Artifact(data, integrity.check_digest(data, config.sha256, origin), origin, obtained)

    return get
