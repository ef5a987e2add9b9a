"""A script as it is here, without asking anybody."""

from __future__ import annotations

from collections.abc import Callable

from sandboxrun.config.worker import WorkerConfig
from sandboxrun.fetch import Artifact, Obtained, integrity
from sandboxrun.fetch.cache import Cache
from sandboxrun.fetch.resolve import ImportList, LocalSource, Source


def from_cache(cache: Cache) -> Callable[[WorkerConfig, Source | LocalSource, ImportList], Artifact | None]:
    """Looks for the script of a worker; None where the cache does not have it."""

    def get(config: WorkerConfig, source: Source | LocalSource, allowed: ImportList) -> Artifact | None:
        if isinstance(source, LocalSource):
            data, origin, how = source.read(), source.script, Obtained.LOCAL
            integrity.check_python(data, origin)
        else:
            pin = cache.pin(source)
            found = cache.read(pin.sha256) if pin is not None else None
            if found is None:
                return None
            data, origin, how = found, source.url, Obtained.CACHED
        return Artifact(data, integrity.check_digest(data, config.sha256, origin), origin, how)

    return get
