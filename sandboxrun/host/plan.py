"""From a worker's hashes to the plan of its run, step by step. Every command that runs or shows a worker takes these steps."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping

from sandboxrun import timing
from sandboxrun.config import keys
from sandboxrun.config.permissions import NetTarget, Permissions, endpoint
from sandboxrun.config.worker import READ_FIELDS, Asked, WorkerConfig, parse_worker
from sandboxrun.errors import ConfigError, FetchError, PolicyError, SandboxrunError
from sandboxrun.fetch import Artifact, Obtained, obtain
from sandboxrun.fetch.cache import Cache, Pin
from sandboxrun.fetch.resolve import ImportList, LocalSource, Source, origin_of, resolve
from sandboxrun.host import configuration
from sandboxrun.host.folders import Folders
from sandboxrun.host.runplan import Agreement, Packages, RunOptions, RunPlan, VerifiedScript
from sandboxrun.log import Log
from sandboxrun.policy import approval
from sandboxrun.policy.audit import JOURNAL, Audit
from sandboxrun.policy.ceiling import Ceiling
from sandboxrun.records import replace
from sandboxrun.redis.address import Address, parse_url
from sandboxrun.redis.store import Store
from sandboxrun.redis.users import REDIS_ACL, REDIS_PASSWORD
from sandboxrun.sandbox.compile import code_paths
from sandboxrun.sandbox.compile.policy import Interpreter, SandboxPolicy, build
from sandboxrun.sandbox.supervisor.child import this_interpreter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    from sandboxrun.config.contents import Contents
    from sandboxrun.host.contents import Gathered, Means
    from sandboxrun.host.neighbours import Ask
    from sandboxrun.redis.hashes import Hashes

    T = TypeVar("T")

Say = Callable[[str], None]
Get = Callable[[WorkerConfig, Source | LocalSource, ImportList], Artifact | None]

_READ = frozenset(name.encode() for name in READ_FIELDS)
_NEEDED = (frozenset((b"url", b"workerUrl")), frozenset((b"version", b"workerVersion")))


class Preparation:
    """The steps from a worker's hashes to its plan, in the order of the methods. Each sets an attribute, which is None before,
    and raises the SandboxrunError that a run ends with. `faults` are those that did not end it, in their order."""

    __slots__ = (
        "agreement", "allowed", "artifact", "ceiling", "config", "faults", "folders", "gathered", "interpreter", "means", "options",
        "pin", "policy", "source", "stands_on",
    )  # fmt: skip

    def __init__(self, options: RunOptions, folders: Folders) -> None:
        self.options, self.folders = options, folders
        self.config: WorkerConfig | None = None
        self.stands_on: tuple[str, ...] = ()
        self.ceiling: Ceiling | None = None
        self.source: Source | LocalSource | None = None
        self.pin: Pin | None = None  # of the source, if it was fetched
        self.allowed: ImportList | None = None  # the hosts that may serve the script
        self.artifact: Artifact | None = None
        self.gathered: Gathered | None = None  # what its block names
        self.means: Means | None = None  # by which it was gathered
        self.agreement: Agreement | None = None
        self.interpreter: Interpreter | None = None
        self.policy: SandboxPolicy | None = None
        self.faults: list[SandboxrunError] = []

    def parse(self, shared: Mapping[bytes, bytes], own: Mapping[bytes, bytes]) -> None:
        """What the hashes say, with what the command line adds."""
        options = self.options
        config = parse_worker(
            options.type, options.id, shared, own, extra=options.extra, limits=options.limits, inspect=options.inspect
        )
        by_type = any(not names & own.keys() for names in _NEEDED)
        own_counts = any(name in _READ for name in own)  # a run sets pid there, also if the type's hash alone was there
        self.stands_on = (*([config.key] if own_counts else []), *([keys.type_key(config.type)] if by_type else []))
        self.config = config

    def parse_stored(self, hashes: Hashes) -> None:
        """The same, of hashes that may be such as a run would not read at all."""
        for stored in (hashes.shared, hashes.own):
            stored.check()
        self.parse(hashes.shared.fields, hashes.own.fields)

    def bound(self) -> None:
        """The operator's ceiling, and the configuration within it."""
        config = _needed(self.config)
        permissions = config.permissions.with_data(self.folders.data_of(config))
        self.config = config = replace(config, permissions=permissions)
        self.ceiling = self.folders.ceiling(config, self.options.policy)
        self.config = self.ceiling.check(self.options.limits)

    def accept_open_redis(self, url: str, say: Callable[[str], None]) -> None:
        """A Redis that requires no password, which the operator has accepted, or accepts now at a terminal."""
        ceiling = _needed(self.ceiling)
        if ceiling.accepts_open_redis(url):
            return
        from sandboxrun.redis import acceptance

        if not (self.options.interactive and acceptance.accept(ceiling, url, say)):
            raise acceptance.refusal(ceiling, url)
        self.ceiling = self.folders.ceiling(ceiling.worker, self.options.policy)

    def resolve(self) -> None:
        """Where the script is."""
        config = _needed(self.config)
        self.source = resolve(config.url, config.version, key=config.key)

    def fetch(self, get: Get) -> None:
        """The script, fetched by `get` from a host that may serve it; None if `get` does not have it."""
        config, source, ceiling = _needed(self.config), self.source, _needed(self.ceiling)
        assert source is not None
        self.allowed = allowed = _import_list(self.options, ceiling, source)
        with _of_worker(f"{config.type} {config.id}"):
            if isinstance(source, Source):
                allowed.check(source.url)
            self.artifact = get(config, source, allowed)
        if self.artifact is not None:
            ceiling.check_digest(self.artifact.sha256)

    def gather(
        self, cache: Cache, *, fetch: bool, say: Say = lambda message: None, progress: Say = lambda message: None
    ) -> None:
        """Find the files and packages that the script's block names. `fetch`: fetch the missing files and the lock, no package."""
        config, source, artifact = _needed(self.config), self.source, self.artifact
        if source is None or artifact is None or not artifact.may_have_block:
            return
        from sandboxrun.host import contents

        self.means = contents.Means(
            cache,
            self.folders,
            _needed(self.allowed),
            _needed(self.ceiling),
            fetch,
            self.options.cached_only,
            say,
            progress,
        )
        with _of_worker(f"{config.type} {config.id}"):
            self.gathered = contents.gather(artifact, source, self.means)
        if self.gathered is not None:
            _needed(self.ceiling).check_packages(package.name for package in self.gathered.contents.packages)

    def install(self) -> None:
        """Install the packages, which have been approved."""
        if self.gathered is None:
            return
        from sandboxrun.host import contents

        environment = contents.install(self.gathered, _needed(self.means), self.options.degraded)
        self.gathered = replace(self.gathered, environment=environment)

    def approve(self, *, ask: bool) -> None:
        """What the hash and the script ask beyond what was approved. `ask`: ask the operator, and record what is approved now."""
        before = None if ask else approval.load(self.approved)
        config = _needed(self.config)
        found = self._contents(before.contents if before is not None else None)
        if found is not None:
            self.config = config = replace(config, asked=replace(config.asked, contents=found))
        if ask:
            options = self.options
            how, grown = approval.approve(
                self.approved,
                config.asked,
                type_=config.type,
                id_=config.id,
                yes=options.yes,
                terminal=options.interactive,
            )
        else:
            grown = approval.growth(before, config.asked) if before is not None else ()
            how = "first" if before is None else "" if grown else "same"
        self.agreement = Agreement(how, grown, before)

    def _contents(self, before: Contents | None) -> Contents | None:
        """The script's files and packages; if its lock is not here, with the packages that it had `before`."""
        if self.gathered is None:
            return before if self.artifact is None else None
        found = self.gathered.contents
        return found if before is None or not self.gathered.lacks_lock else replace(found, packages=before.packages)

    def check_names(self, ask: Ask) -> None:
        """Whether the worker's grants and the hashes of other types keep apart. `ask`: of Redis."""
        config, folders = _needed(self.config), self.folders
        if approval.written(config.permissions) or approval.has_writers(folders.approved, config.type):
            from sandboxrun.host import neighbours  # late, because most workers write no keys of their own

            neighbours.check(config, folders, ask)

    def compile(self, *, made: bool = True) -> None:
        """What the kernel will be told. `made`: the worker's data folder is there, where one is granted; else it is left out."""
        config, source, ceiling = _needed(self.config), _needed(self.source), _needed(self.ceiling)
        folders, address = self.folders, parse_url(self.options.redis_url)
        local = source if isinstance(source, LocalSource) else None
        sinks = (place for place in self.options.audit if place != JOURNAL)
        decisions = [path for path in (*folders.policies, self.options.policy, *sinks) if path is not None]
        protected = [folders.cache, folders.state, *code_paths.of_operator(), *map(os.path.abspath, decisions)]
        if local is not None:
            protected.append(local.script)  # worker.py itself may be a symlink
        self.interpreter = this_interpreter()
        self.policy = build(
            config.permissions if made else _without(config.permissions, ceiling.data),
            key=config.key,
            interpreter=self.interpreter,
            scratch=os.path.join(folders.scratch, "none"),  # a run makes one of its own
            local_source=local.named if local is not None else None,
            redis=address.path or redis_target(address),
            protected=protected,
            hidden=(folders.logs,),
            limits=config.limits,
            certificates=address.ca_file,
            check_path=ceiling.check_path,
            asked=config.asked,
            own_folders=self._folders(),
        )

    def plan(self, degraded: tuple[str, ...] = ()) -> RunPlan:
        """After all the steps. Raises the first of `faults`, and FetchError if there is no script yet."""
        if self.faults:
            raise self.faults[0]
        config, source, artifact = _needed(self.config), self.source, self.artifact
        if source is None or artifact is None:
            raise self._not_fetched("the script")
        if self.gathered is not None and (lacks := self.gathered.lacks):
            raise self._not_fetched(lacks)
        denied = config.permissions.deny.get("env", ())
        return RunPlan(
            worker=replace(config, asked=Asked(), warnings=()),
            script=self._script(artifact, source),
            environment=_needed(self.interpreter),
            policy=_needed(self.policy),
            env=tuple(name for name in config.permissions.allow.get("env", ()) if name not in denied),
            degraded=degraded,
            stands_on=self.stands_on,
            packages=self._packages(),
        )

    def _folders(self) -> list[str]:
        """The folders of the script's files and packages, which the worker reads without a grant."""
        gathered = self.gathered
        return [] if gathered is None else [*filter(None, (gathered.tree, gathered.environment))]

    def _script(self, artifact: Artifact, source: Source | LocalSource) -> VerifiedScript:
        gathered = self.gathered
        folder, path = source.folder if isinstance(source, LocalSource) else None, ""
        files: tuple[tuple[str, str], ...] = ()
        if gathered is not None and gathered.tree is not None:
            folder, path = gathered.tree, os.path.join(gathered.tree, gathered.script)
            files = gathered.block.files
        is_file = isinstance(source, LocalSource)
        return VerifiedScript(
            artifact.source, artifact.sha256, artifact.origin, folder, is_file=is_file, path=path, files=files
        )

    def _packages(self) -> Packages | None:
        gathered = self.gathered
        if gathered is None:
            return None
        lock = gathered.lock.sha256 if gathered.lock is not None else None
        installed = tuple((package.name, package.version) for package in gathered.contents.packages)
        return Packages(gathered.block.dependencies, lock, gathered.environment, installed)

    def _not_fetched(self, what: str) -> FetchError:
        config = _needed(self.config)
        return FetchError(
            f"{what} of {config.key} {'were' if what.endswith('s') else 'was'} not fetched here yet, so there is no plan",
            hint=f"sandboxrun {config.type} {config.id}",
        )

    @property
    def approved(self) -> str:
        """Where the approvals are recorded."""
        return approval.record_path(self.folders.approved, self.options.type, self.options.id)

    @property
    def refusals(self) -> list[PolicyError]:
        """The faults that are the operator's policy."""
        return [fault for fault in self.faults if isinstance(fault, PolicyError)]


def prepare(
    preparation: Preparation, store: Store, *, audit: Audit, log: Log, degraded: tuple[str, ...] = ()
) -> RunPlan:
    """For a run. `degraded`: features of the kernel that it does without. Raises SandboxrunError: the first fault ends it."""
    options = preparation.options
    configuration.read(store, options.type, options.id, preparation.parse, wait=options.wait, log=log)
    audit.about(version=_needed(preparation.config).version)
    preparation.bound()
    config, ceiling = _needed(preparation.config), _needed(preparation.ceiling)
    check_debugger(config)
    for warning in config.warnings:
        log.warning("config", warning)
    if store.open_to_all and not {REDIS_ACL, REDIS_PASSWORD} & {*options.degraded}:
        preparation.accept_open_redis(store.address.shown, lambda message: log.info("policy", message))
        ceiling = _needed(preparation.ceiling)
    timing.mark("hash parsed")
    preparation.check_names(store.ask)
    preparation.resolve()
    cache = Cache(preparation.folders.cache, preparation.folders.state)
    progress = lambda message: log.info("fetch", message) if os.isatty(2) else None  # noqa: E731
    preparation.fetch(_obtain(preparation, cache, progress, audit, log))
    preparation.gather(cache, fetch=True, say=lambda message: log.info("packages", message), progress=progress)
    for warning in preparation.gathered.warnings if preparation.gathered is not None else ():
        log.warning("script", warning, hint=_lock_hint(preparation.source))
    preparation.approve(ask=True)
    agreement = _needed(preparation.agreement)
    if agreement.how != "same":
        preparation.check_names(store.ask)  # of two that begin at once, one sees what the other has recorded
        audit.record("approval", "allowed", how=agreement.how, grown=agreement.grown)
    ceiling.make_data()
    preparation.install()
    timing.mark("agreed")
    with contextlib.suppress(OSError):  # it is there before anything that contains it is granted
        os.makedirs(preparation.folders.logs, mode=0o700, exist_ok=True)
    preparation.compile()
    timing.mark("policy built")
    return preparation.plan(degraded)


def _obtain(preparation: Preparation, cache: Cache, progress: Callable[[str], None], audit: Audit, log: Log) -> Get:
    """From the cache or its origin; what was pinned by that is in the audit log before anything else is decided."""
    options = preparation.options

    def get(config: WorkerConfig, source: Source | LocalSource, allowed: ImportList) -> Artifact:
        artifact = obtain(
            source,
            cache=cache,
            allowed=allowed,
            expected_sha256=config.sha256,
            reload=options.reload,
            cached_only=options.cached_only,
            warn=lambda message: log.warning("fetch", message),
            progress=progress,
        )
        log.debug("source", f"{artifact.origin} ({artifact.how}), sha256 {artifact.sha256}", sha256=artifact.sha256)
        timing.mark("source obtained")
        audit.about(sha256=artifact.sha256)
        if artifact.how is Obtained.FETCHED:
            outcome = "pinned" if artifact.instead_of is None else "reloaded" if options.reload else "moved"
            audit.record("pin", outcome, origin=artifact.origin, instead_of=artifact.instead_of)
        return artifact

    return get


@contextlib.contextmanager
def _of_worker(words: str) -> Iterator[None]:
    """In the block, a hint's TYPE ID becomes these words, because what fetches knows URLs and no workers."""
    try:
        yield
    except SandboxrunError as error:
        raise type(error)(str(error), hint=tuple(line.replace("TYPE ID", words) for line in error.hint)) from error


def check_debugger(config: WorkerConfig) -> None:
    """Raise ConfigError if the worker asks for a debugger and debugpy is not installed."""
    if config.inspect is None:
        return
    import importlib.util

    if importlib.util.find_spec("debugpy") is None:
        raise ConfigError(
            f"{config.inspect.where} asks for a debugger, and debugpy is not installed",
            hint="python3 -m pip install 'sandboxrun[debug]'",
        )


def redis_target(address: Address) -> NetTarget:
    """As an entry of a net list. Raises ConfigError."""
    try:
        return NetTarget.parse(endpoint(address.host, address.port))
    except ValueError as error:
        raise ConfigError(f"the Redis URL's host {address.host!r} is not valid: {error}") from error


def _import_list(options: RunOptions, ceiling: Ceiling, source: Source | LocalSource) -> ImportList:
    """The hosts that may serve the script. Raises PolicyError if the policy excludes the host of its URL."""
    host = origin_of(source.url) if isinstance(source, Source) and options.allowed is None else None
    path = source.script if isinstance(source, LocalSource) else None
    ceiling.check_source(host=host, path=path, branch=isinstance(source, Source) and source.mutable)
    if options.allowed is not None:
        return options.allowed
    return ImportList.default() if ceiling.imports is None else ImportList(ceiling.imports, loopback=False)


def _without(permissions: Permissions, data: str) -> Permissions:
    """Without the worker's own data folder, if it does not exist yet: a run would make it first."""
    allow = dict(permissions.allow)
    if not os.path.exists(data):
        for kind in ("read", "write"):
            if kind in allow:
                allow[kind] = tuple(path for path in allow[kind] if path != data)
    return Permissions(allow, permissions.deny)


def _lock_hint(source: Source | LocalSource | None) -> tuple[str, ...]:
    """Only who has the script can lock it."""
    if not isinstance(source, LocalSource):
        return ()
    import shlex

    return (f"sandboxrun lock {shlex.quote(source.folder or source.script)}",)


def _needed(value: T | None) -> T:
    """What an earlier step has set."""
    assert value is not None
    return value
