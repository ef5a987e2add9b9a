"""The spec.json of a type that Redis knows: beside its script, or among the fetched files that belong to it."""

from __future__ import annotations

import os

from sandboxrun.cli.known import unconfigured
from sandboxrun.config import keys
from sandboxrun.config.worker import check_version
from sandboxrun.errors import NotConfigured, SpecError
from sandboxrun.fetch.bundle import beside, block_of
from sandboxrun.fetch.cache import Cache
from sandboxrun.fetch.resolve import LocalSource, Source, resolve
from sandboxrun.fleet import workers
from sandboxrun.fleet.queues import read_fields
from sandboxrun.host.folders import Folders
from sandboxrun.redis.connection import Connection
from sandboxrun.spec import model

_FIELDS = ("url", "workerUrl", "version", "workerVersion")


def spec_of_type(connection: Connection, type_: str, folders: Folders, *, action: str) -> model.Spec:
    """Fetches nothing. `action`: for a hint. Raises SpecError, ConfigError, ReplyError."""
    key, url, version = _code(connection, type_, action)
    source = resolve(url, check_version(version, key), key=key)
    if isinstance(source, LocalSource):
        path = os.path.join(os.path.dirname(source.script), model.NAME)
        if not os.path.isfile(path):
            raise SpecError(f"there is no {model.NAME} beside {source.script}, which {key} names")
        return model.load(path)
    data = _cached(source, Cache(folders.cache, folders.state))
    if data is None:
        raise SpecError(f"the cache has no {model.NAME} of {source.url}, which {key} names")
    return model.parse(data, beside(source.url, model.NAME))


def _code(connection: Connection, type_: str, action: str) -> tuple[str, str, str]:
    """Key, URL and version: of the hash of the type, else of its first worker that has them."""
    shared = _read(connection, keys.type_key(type_))
    if shared[0]:
        return keys.type_key(type_), *shared
    for _, id_ in workers.find(connection, type_).workers:
        url, version = _read(connection, keys.worker_key(type_, id_))
        if url:
            return keys.worker_key(type_, id_), url, version or shared[1]
    message, near = unconfigured(connection, type_)
    raise NotConfigured(
        f"{type_} is neither a file nor a folder, and {message}",
        hint=f"sandboxrun spec {action} {near}" if near else "",
    )


def _read(connection: Connection, key: str) -> tuple[str, str]:
    """URL and version of a hash; empty if it has none."""
    values = read_fields(connection, [key], _FIELDS)[0] or [None] * len(_FIELDS)
    url, url_alias, version, version_alias = ((value or b"").decode("utf-8", "replace") for value in values)
    return url or url_alias, version or version_alias


def _cached(source: Source, cache: Cache) -> bytes | None:
    pin = cache.pin(source)
    script = cache.read(pin.sha256) if pin is not None else None
    if pin is None or script is None:
        return None
    block = block_of(script, pin.sha256, source.url, cache)
    digest = dict(block.files).get(model.NAME) if block is not None else None
    return cache.read(digest) if digest is not None else None
