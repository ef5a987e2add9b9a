"""The steps of `sandboxrun TYPE ID` up to the start of the worker. They go on after a fault, so that all faults are known."""

from __future__ import annotations

from sandboxrun.errors import SandboxrunError
from sandboxrun.fetch.cache import Cache
from sandboxrun.fetch.cached import from_cache
from sandboxrun.fetch.resolve import Source
from sandboxrun.host.folders import Folders
from sandboxrun.host.plan import Get, Preparation, check_debugger
from sandboxrun.host.runplan import RunOptions
from sandboxrun.policy.beyond import beyond
from sandboxrun.redis.acl import Owner, identity
from sandboxrun.redis.hashes import Hashes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.host.neighbours import Ask


def examine(hashes: Hashes, options: RunOptions, folders: Folders, ask: Ask, get: Get | None = None) -> Preparation:
    """The preparation, with its `faults` in the order in which a run meets them: a run ends with the first.

    `ask`: of Redis, about the names of others.
    `get` fetches the script, if the cache alone is not enough. It is called only if there is no fault yet.
    """
    found = Preparation(options, folders)
    faults = _Faults(found.faults)
    with faults:
        found.parse_stored(hashes)
    if found.config is None:
        return found
    with faults:
        found.bound()
    for fault in beyond(found.ceiling) if found.ceiling is not None else ():
        faults.add(fault)
    with faults:
        check_debugger(found.config)
    with faults:
        found.check_names(ask)
    with faults:
        found.resolve()
    cache = Cache(folders.cache, folders.state)
    if isinstance(found.source, Source):
        with faults:
            found.pin = cache.pin(found.source)
    has_code = found.source is not None and found.ceiling is not None
    if has_code:
        with faults:  # a run that is refused fetches nothing
            found.fetch(from_cache(cache) if get is None or found.faults else get)
        with faults:
            found.gather(cache, fetch=get is not None and not found.faults)
    with faults:
        found.approve(ask=False)
    if has_code:
        with faults:
            found.compile(made=False)
    with faults:
        identity(found.config, owner=Owner(found.config.key, "0" * 16, 0, 0, 0))
    return found


class _Faults:
    """Errors that do not end the block that raises them; the same one counts once."""

    def __init__(self, found: list[SandboxrunError]) -> None:
        self._found = found

    def add(self, error: SandboxrunError) -> None:
        if str(error) not in map(str, self._found):
            self._found.append(error)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        if not isinstance(error, SandboxrunError):
            return False
        self.add(error)
        return True
