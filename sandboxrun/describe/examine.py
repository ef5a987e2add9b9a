"""What `sandboxrun TYPE ID` would make of two hashes, up to the moment in which it would start the worker: by the same code,
in the same order, but going on after a fault, so that all of them are known."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from sandboxrun.config.permissions import Permissions
from sandboxrun.config.worker import Asked, WorkerConfig, parse_worker
from sandboxrun.errors import PolicyError, SandboxrunError
from sandboxrun.fetch import Artifact, integrity
from sandboxrun.fetch.cache import Cache, Pin
from sandboxrun.fetch.resolve import ImportList, LocalSource, Source, resolve
from sandboxrun.host.folders import Folders
from sandboxrun.host.run import RunOptions, check_debugger, import_list, policy_for
from sandboxrun.policy import approval
from sandboxrun.policy.ceiling import Ceiling
from sandboxrun.records import record, replace
from sandboxrun.redis.acl import Owner, identity
from sandboxrun.redis.address import parse_url
from sandboxrun.redis.hashes import Hashes
from sandboxrun.sandbox.compile.policy import SandboxPolicy
from sandboxrun.sandbox.supervisor.child import this_interpreter

Get = Callable[[WorkerConfig, Source | LocalSource, ImportList], Artifact | None]


@record
class Examination:
    """All that could be found out; what could not for a fault is None. `faults` are in the order in which a run meets them:
    it ends with the first."""

    config: WorkerConfig | None
    ceiling: Ceiling | None
    source: Source | LocalSource | None
    pin: Pin | None  # of the source, where it was fetched
    artifact: Artifact | None
    policy: SandboxPolicy | None
    recorded: bool  # whether anything was agreed to before
    grown: tuple[str, ...]  # what the next run would ask
    faults: tuple[SandboxrunError, ...]

    @property
    def refusals(self) -> list[PolicyError]:
        """Those of the operator's policy."""
        return [fault for fault in self.faults if isinstance(fault, PolicyError)]


class _Faults:
    """Errors that do not end what found them."""

    def __init__(self) -> None:
        self.found: list[SandboxrunError] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        if not isinstance(error, SandboxrunError):
            return False
        if str(error) not in map(str, self.found):
            self.found.append(error)
        return True


def examine(hashes: Hashes, options: RunOptions, folders: Folders, get: Get | None = None) -> Examination:
    """`get`: brings the script, where it is not enough to look what the cache has of it; asked only while all is well."""
    faults = _Faults()
    config: WorkerConfig | None = None
    with faults:
        for stored in (hashes.shared, hashes.own):
            stored.check()
        config = parse_worker(options.type, options.id, hashes.shared.fields, hashes.own.fields)
    if config is None:
        return Examination(None, None, None, None, None, None, False, (), tuple(faults.found))
    ceiling: Ceiling | None = None
    with faults:
        ceiling = folders.ceiling(config, options.policy)
    if ceiling is not None:
        faults.found += beyond(ceiling)
        with faults:
            config = ceiling.check({})
    with faults:
        check_debugger(config)
    source, pin, artifact = _code(config, ceiling, options, folders, get, faults)
    before, policy = None, None
    with faults:
        before = approval.load(approval.record_path(folders.approved, config.type, config.id))
    grown = approval.growth(before, config.asked) if before is not None else ()
    with faults:
        identity(config, owner=Owner(config.key, "0" * 16, 0, 0, 0))
    if source is not None and ceiling is not None:
        with faults:
            policy = _policy(config, source, ceiling, options, folders)
    return Examination(config, ceiling, source, pin, artifact, policy, before is not None, grown, tuple(faults.found))


def _code(
    config: WorkerConfig,
    ceiling: Ceiling | None,
    options: RunOptions,
    folders: Folders,
    get: Get | None,
    faults: _Faults,
) -> tuple[Source | LocalSource | None, Pin | None, Artifact | None]:
    """Where the script is, what it was when last fetched, and its bytes."""
    cache = Cache(folders.cache, folders.state)
    source: Source | LocalSource | None = None
    pin, artifact = None, None
    with faults:
        source = resolve(config.url, config.version, key=config.key)
    if isinstance(source, Source):
        with faults:
            pin = cache.pin(source)
    if source is not None and ceiling is not None:
        with faults:
            allowed = import_list(options, ceiling, source)
            if isinstance(source, Source):
                allowed.check(source.url)
            if faults.found or get is None:  # a run that is refused fetches nothing
                get = from_cache(cache)
            artifact = get(config, source, allowed)
            if artifact is not None:
                ceiling.check_digest(artifact.sha256)
    return source, pin, artifact


def beyond(ceiling: Ceiling) -> list[PolicyError]:
    """All that the ceiling refuses of what the hash asks, where `Ceiling.check` raises the first."""
    found = []
    for worker in _aspects(ceiling.worker):
        try:
            replace(ceiling, worker=worker).check({})
        except PolicyError as error:
            found.append(error)
    return found


def _aspects(worker: WorkerConfig) -> Iterator[WorkerConfig]:
    """The worker with each of the things that it asks for alone, in the order in which they are checked."""
    asked = worker.asked
    bare = replace(worker, asked=Asked(lists=asked.lists), sha256=None)
    for kind, targets in asked.permissions.allow.items():
        for target in targets:
            yield replace(bare, asked=replace(bare.asked, permissions=Permissions({kind: (target,)})))
    yield replace(bare, sha256=worker.sha256)
    yield replace(bare, asked=replace(bare.asked, inspect=asked.inspect))
    for name, value in asked.limits.items():
        yield replace(bare, asked=replace(bare.asked, limits={name: value}))


def from_cache(cache: Cache) -> Get:
    """What is there without asking anybody; None where nothing is."""

    def get(config: WorkerConfig, source: Source | LocalSource, allowed: ImportList) -> Artifact | None:
        if isinstance(source, LocalSource):
            data, origin, how = source.read(), source.script, "local"
            integrity.check_python(data, origin)
        else:
            pin = cache.pin(source)
            found = cache.read(pin.sha256) if pin is not None else None
            if found is None:
                return None
            data, origin, how = found, source.url, "cached"
        return Artifact(data, integrity.check_digest(data, config.sha256, origin), origin, how)

    return get


def _policy(
    config: WorkerConfig, source: Source | LocalSource, ceiling: Ceiling, options: RunOptions, folders: Folders
) -> SandboxPolicy:
    endpoint = parse_url(options.redis_url)
    scratch = os.path.join(folders.scratch, "none")  # a run makes one of its own
    made = replace(config, permissions=_made(config.permissions, ceiling.data))
    return policy_for(made, source, endpoint, folders, this_interpreter(), scratch, ceiling, options)


def _made(permissions: Permissions, data: str) -> Permissions:
    """Without what a run would make first: the worker's own data folder."""
    allow = dict(permissions.allow)
    if not os.path.exists(data):
        for kind in ("read", "write"):
            if kind in allow:
                allow[kind] = tuple(path for path in allow[kind] if path != data)
    return Permissions(allow, permissions.deny)
