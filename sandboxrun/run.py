"""The ordered story of one run: hash, source, policy, child, confinement, pid, life, end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

import platformdirs

from sandboxrun import approval, keys
from sandboxrun.audit import JOURNAL, Audit
from sandboxrun.ceiling import Ceiling
from sandboxrun.config import WorkerConfig, parse_worker
from sandboxrun.errors import ConfigError, StoreError
from sandboxrun.fetch import Artifact, obtain
from sandboxrun.fetch.cache import Cache
from sandboxrun.fetch.resolve import ImportList, LocalSource, Source, origin_of, resolve
from sandboxrun.log import Log
from sandboxrun.permissions import NetTarget, Permissions
from sandboxrun.permissions import endpoint as host_and_port
from sandboxrun.policyfile import ceiling_for
from sandboxrun.sandbox import features
from sandboxrun.sandbox.features import Features
from sandboxrun.sandbox.launch import Child, Script, this_interpreter
from sandboxrun.sandbox.policy import Interpreter, SandboxPolicy, build
from sandboxrun.sandbox.supervisor import Supervisor
from sandboxrun.secrets import KEY_LINE_MAX_BYTES, parse_key_line
from sandboxrun.store import Endpoint, Store, parse_url

DESCRIPTORS = 1024  # enough for all connects that may hang at once, and below what select(2) can take
KEY_SECONDS = 10  # for the key to come on standard input


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The command line of one run, parsed."""

    type: str
    id: str
    redis_url: str
    allowed: ImportList | None  # None: the policy's hosts, else the default ones
    extra: Permissions
    limits: Mapping[str, int] = field(default_factory=dict)
    degraded: tuple[str, ...] = ()  # names of kernel features the operator does without
    reload: bool = False
    cached_only: bool = False
    policy: str | None = None  # a policy file instead of the user's
    yes: bool = False  # more permissions than last time are agreed to
    audit: tuple[str, ...] = ()  # files, or "journal"


@dataclass(frozen=True, slots=True)
class Folders:
    """The user's folders: `cache` may be deleted at any time, `state` holds decisions and records, `data` what workers keep,
    each in TYPE/ID; `policies` are files, of which the last is the user's and the others the system's."""

    cache: str
    state: str
    data: str
    policies: tuple[str, ...]

    @property
    def scratch(self) -> str:
        """The runs' own folders."""
        return os.path.join(self.cache, "scratch")

    @property
    def filters(self) -> str:
        """Compiled filters."""
        return os.path.join(self.cache, "filters")

    @property
    def runs(self) -> str:
        """What each worker was given last."""
        return os.path.join(self.state, "runs")

    @property
    def approved(self) -> str:
        """What each worker's hash was allowed to ask."""
        return os.path.join(self.state, "approved")

    @classmethod
    def of_user(cls) -> Folders:
        dirs = platformdirs.PlatformDirs("sandboxrun", multipath=True)
        try:
            cache, state, data = dirs.user_cache_dir, dirs.user_state_dir, dirs.user_data_dir
            config, system = dirs.user_config_dir, dirs.site_config_dir.split(os.pathsep)
        except RuntimeError:  # a user without an entry in the password database
            cache = state = data = config = ""
            system = []
        if not all(map(os.path.isabs, (cache, state, data, config))):
            raise ConfigError(
                "there is no home folder for the cache: set HOME, or XDG_CACHE_HOME, XDG_STATE_HOME, XDG_DATA_HOME and "
                "XDG_CONFIG_HOME, to absolute paths"
            )
        # Whatever XDG_CONFIG_DIRS says, the usual place is looked at, for an administrator writes there.
        folders = dict.fromkeys((*system, "/etc/xdg/sandboxrun", config))
        return cls(cache, state, data, tuple(os.path.join(folder, "policy.toml") for folder in folders))

    def ceiling(self, worker: WorkerConfig, policy: str | None) -> Ceiling:
        """`policy`: a file instead of the user's. Raises ConfigError."""
        *system, user = self.policies
        data = os.path.join(self.data, worker.type, worker.id)
        return ceiling_for(
            worker, system=system, user=os.path.abspath(policy or user), required=policy is not None, data=data
        )


def run(options: RunOptions, log: Log) -> int:
    """Run one worker to its end; its exit code. Raises SandboxrunError for every failure of ours."""
    key = keys.worker_key(keys.check_type(options.type), keys.check_id(options.id))
    with Audit(options.audit, worker=key, warn=lambda message: log.warning("audit", message)) as audit:
        log.observer = audit.logged
        audit.record("run", "asked", redis=parse_url(options.redis_url).shown, reload=options.reload)
        code = _start(options, key, audit, log)
        audit.record("end", "ended", exit_code=code)
        return code


def _start(options: RunOptions, key: str, audit: Audit, log: Log) -> int:
    kernel = features.probe()
    for message in kernel.require(options.degraded):
        log.warning("degraded", message)
    _raise_descriptor_limit()
    child = Child(key)  # warms up while we read and fetch
    try:
        store = Store(options.redis_url)
        try:
            return _run(options, key, kernel, child, store, audit, log)
        finally:
            store.close()
    finally:
        child.close()


def _raise_descriptor_limit() -> None:
    """Of ours, which hold a duplicate of each socket that hangs in connect(2). The child's comes with its plan."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, hard), hard))


def _run(options: RunOptions, key: str, kernel: Features, child: Child, store: Store, audit: Audit, log: Log) -> int:
    shared, own = store.read(options.type, options.id)
    config = parse_worker(options.type, options.id, shared, own, extra=options.extra, limits=options.limits)
    audit.about(version=config.version)
    folders = Folders.of_user()
    ceiling = folders.ceiling(config, options.policy)
    config = ceiling.check(options.limits)
    for warning in config.warnings:
        log.warning("config", warning)
    store.check_free(key)
    source = resolve(config.url, config.version, key=key)
    allowed = _import_list(options, ceiling, source)
    artifact = obtain(
        source,
        cache=Cache(folders.cache, folders.state),
        allowed=allowed,
        expected_sha256=config.sha256,
        reload=options.reload,
        cached_only=options.cached_only,
        warn=lambda message: log.warning("fetch", message),
        progress=lambda message: log.info("fetch", message) if os.isatty(2) else None,
    )
    log.debug("source", f"{artifact.origin} ({artifact.how}), sha256 {artifact.sha256}", sha256=artifact.sha256)
    _agree(options, config, ceiling, folders, artifact, audit)
    key_line = _read_key() if config.has_secrets else None
    with _scratch(folders.scratch) as scratch:
        interpreter = this_interpreter()
        policy = _policy(config, source, store.endpoint, folders, interpreter, scratch, ceiling, options)
        script = _script(source, artifact)
        env = _environment(config, options.redis_url, scratch)
        log.debug("policy", f"read {policy.read}, write {policy.write}, net {policy.net.allow.get('net', ())}")
        child.check_supervision()
        degraded = kernel.forgone(options.degraded)
        _record(folders, config, artifact, degraded)
        audit.record("grant", "allowed", **_given(config), degraded=degraded)
        listener = child.confine(
            policy,
            script,
            key=key,
            interpreter=interpreter,
            scratch=scratch,
            env=env,
            features=kernel,
            filters=folders.filters,
        )
        supervisor = Supervisor(
            child, listener, policy, key=key, scratch=scratch, trusted=_trusted(store.endpoint), log=log
        )
        try:
            return _live(supervisor, child, store, config, artifact, key_line, log)
        finally:
            supervisor.close()


def _import_list(options: RunOptions, ceiling: Ceiling, source: Source | LocalSource) -> ImportList:
    """The hosts that the script may come from. Raises PolicyError where its own is none by the policy."""
    host = origin_of(source.url) if isinstance(source, Source) and options.allowed is None else None
    path = source.script if isinstance(source, LocalSource) else None
    ceiling.check_source(host=host, path=path, branch=isinstance(source, Source) and source.mutable)
    if options.allowed is not None:
        return options.allowed
    return ImportList.default() if ceiling.imports is None else ImportList(ceiling.imports, loopback=False)


def _agree(
    options: RunOptions,
    config: WorkerConfig,
    ceiling: Ceiling,
    folders: Folders,
    artifact: Artifact,
    audit: Audit,
) -> None:
    """What was fetched may run, and what the hash asks the operator has agreed to. Raises PolicyError."""
    audit.about(sha256=artifact.sha256)
    if artifact.how == "fetched":
        outcome = "pinned" if artifact.instead_of is None else "reloaded" if options.reload else "moved"
        audit.record("pin", outcome, origin=artifact.origin, instead_of=artifact.instead_of)
    ceiling.check_digest(artifact.sha256)
    path = approval.record_path(folders.approved, config.type, config.id)
    how, grown = approval.settle(path, config.asked, type_=config.type, id_=config.id, yes=options.yes)
    if how != "same":
        audit.record("approval", "allowed", how=how, grown=grown)
    ceiling.make_data()


def _live(
    supervisor: Supervisor,
    child: Child,
    store: Store,
    config: WorkerConfig,
    artifact: Artifact,
    key_line: bytes | None,
    log: Log,
) -> int:
    supervisor.resolver.pin_denied()
    supervisor.handle_signals()
    store.claim(config.key, child.pid)
    try:
        store.watch(config.key, child.pid, lost=supervisor.stop, warn=lambda message: supervisor.warn("redis", message))
        threading.Thread(target=_give_key, args=(child, key_line), daemon=True).start()
        log.info(
            "start",
            f"{config.key} runs {artifact.origin} as process {child.pid}",
            pid=child.pid,
            sha256=artifact.sha256,
        )
        return supervisor.serve()
    finally:
        try:
            store.release(config.key, child.pid)
        except StoreError as error:
            log.warning("redis", f"{error}; field pid of {config.key} stays, and blocks nothing")


def _policy(
    config: WorkerConfig,
    source: Source | LocalSource,
    endpoint: Endpoint,
    folders: Folders,
    interpreter: Interpreter,
    scratch: str,
    ceiling: Ceiling,
    options: RunOptions,
) -> SandboxPolicy:
    decisions = [*folders.policies, options.policy, *(place for place in options.audit if place != JOURNAL)]
    return build(
        config.permissions,
        key=config.key,
        interpreter=interpreter,
        scratch=scratch,
        local_source=(source.folder or source.script) if isinstance(source, LocalSource) else None,
        redis=endpoint.path if endpoint.path is not None else _redis_target(endpoint),
        protected=(
            folders.cache,
            folders.state,
            os.path.expanduser("~/.netrc"),
            *(os.path.abspath(path) for path in decisions if path is not None),
        ),
        limits=config.limits,
        check_path=ceiling.check_path,
    )


def _redis_target(endpoint: Endpoint) -> NetTarget:
    host = endpoint.host or "127.0.0.1"
    try:
        return NetTarget.parse(host_and_port(host, endpoint.port))
    except ValueError as error:
        raise ConfigError(f"the Redis URL's host {host!r} is not valid: {error}") from error


def _trusted(endpoint: Endpoint) -> tuple[str, int] | None:
    """Redis by name: the operator chose it, so that it may be a private address."""
    return (endpoint.host.lower().removesuffix("."), endpoint.port) if endpoint.host else None


def _script(source: Source | LocalSource, artifact: Artifact) -> Script:
    if isinstance(source, LocalSource):
        return Script(artifact.source, source.script, source.folder, is_file=True)
    return Script(artifact.source, source.url, None, is_file=False)


def _environment(config: WorkerConfig, redis_url: str, scratch: str) -> dict[str, str]:
    env = {name: os.environ[name] for name in config.permissions.allow.get("env", ()) if name in os.environ}
    for name in config.permissions.deny.get("env", ()):
        env.pop(name, None)
    return env | {
        "REDIS_URL": redis_url,
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": scratch,
        "TMPDIR": scratch,
    }


def _given(config: WorkerConfig) -> dict[str, object]:
    lists = (("allow", config.permissions.allow), ("deny", config.permissions.deny))
    return {
        **{
            verdict: {kind: [str(target) for target in targets] for kind, targets in found.items() if targets}
            for verdict, found in lists
        },
        "limits": asdict(config.limits),
    }


def _record(folders: Folders, config: WorkerConfig, artifact: Artifact, degraded: list[str]) -> None:
    """What this worker is given now, for the operator to look up later. Raises ConfigError."""
    record = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "worker": config.key,
        "origin": artifact.origin,
        "sha256": artifact.sha256,
        **_given(config),
        "degraded": degraded,
    }
    path = os.path.join(folders.runs, f"{config.type}:{config.id}.json")
    try:
        os.makedirs(folders.runs, mode=0o700, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=folders.runs)
        with open(fd, "w") as file:
            json.dump(record, file)
        os.replace(name, path)
    except OSError as error:
        raise ConfigError(f"the run cannot be recorded in {folders.runs}: {error.strerror}") from error


def _read_key() -> bytes:
    """The key's line from standard input, checked, as it came. Raises SecretError, ConfigError."""
    if sys.stdin is None or os.isatty(0):
        raise ConfigError(
            "the worker has secrets (encryptedJson), and standard input is a terminal: pipe the key, as in echo worker-v0 HEX | sandboxrun TYPE ID"
        )
    line = b""
    while not line.endswith(b"\n") and len(line) < KEY_LINE_MAX_BYTES:
        if not select.select([0], [], [], KEY_SECONDS)[0]:
            raise ConfigError(
                f"no key came on standard input within {KEY_SECONDS} s: pipe it, as in echo worker-v0 HEX | sandboxrun TYPE ID"
            )
        part = os.read(0, KEY_LINE_MAX_BYTES - len(line))
        if not part:
            break
        line += part
    line = line.partition(b"\n")[0] + b"\n"
    parse_key_line(line)
    return line


def _give_key(child: Child, line: bytes | None) -> None:
    """Pass the key on, and then the end of the file. In a thread: a worker without secrets need not wait for a key that
    may never come, but one that reads it by itself gets it."""
    with contextlib.suppress(OSError):
        if line is None and sys.stdin is not None and not os.isatty(0):
            line = os.read(0, KEY_LINE_MAX_BYTES).partition(b"\n")[0] + b"\n"
        if line is not None and line.strip():
            child.stdin.write(line)
    with contextlib.suppress(OSError):
        child.stdin.close()


@contextlib.contextmanager
def _scratch(parent: str) -> Iterator[str]:
    """A folder of this run's own, locked as long as we live; those whose supervisor was killed are removed first."""
    try:
        os.makedirs(parent, mode=0o700, exist_ok=True)
        for name in os.listdir(parent):
            _remove_if_left(os.path.join(parent, name))
        folder, lock = _make_locked(parent)
    except OSError as error:
        raise ConfigError(f"no scratch folder can be made in {parent}: {error.strerror}") from error
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def _make_locked(parent: str) -> tuple[str, int]:
    while True:
        folder = tempfile.mkdtemp(dir=parent)
        lock = _lock(folder)
        if lock is not None and os.path.exists(folder):
            return folder, lock
        if lock is not None:
            os.close(lock)  # another start took it for a left-over one before it was locked


def _remove_if_left(folder: str) -> None:
    lock = _lock(folder)
    if lock is not None:
        _remove(folder)
        os.close(lock)


def _lock(folder: str) -> int | None:
    """An exclusive lock on the folder itself, which the kernel takes back however we end; None if another has it."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _remove(folder: str) -> None:
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError):
        # A hostile worker can nest folders deeper than Python's recursion goes, and take its own rights to them away.
        subprocess.run(["chmod", "-R", "u+rwx", folder], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["rm", "-rf", "--one-file-system", folder], stderr=subprocess.DEVNULL, check=False)
