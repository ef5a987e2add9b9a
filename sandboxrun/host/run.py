"""The ordered story of one run: hash, source, policy, child, confinement, pid, life, end."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import select
import sys
import threading
import time
from collections.abc import Mapping

from sandboxrun import timing as trace
from sandboxrun.config import keys
from sandboxrun.config.permissions import NetTarget, Permissions
from sandboxrun.config.permissions import endpoint as host_and_port
from sandboxrun.config.secrets import KEY_LINE_MAX_BYTES, parse_key_line
from sandboxrun.config.worker import WorkerConfig
from sandboxrun.errors import AlreadyRunningError, ConfigError, SandboxrunError, StoreError
from sandboxrun.fetch import Artifact, obtain
from sandboxrun.fetch.cache import Cache
from sandboxrun.fetch.resolve import ImportList, LocalSource, Source, origin_of, resolve
from sandboxrun.files import write_whole
from sandboxrun.host import configuration
from sandboxrun.host.folders import Folders
from sandboxrun.log import Log
from sandboxrun.policy import approval
from sandboxrun.policy.audit import JOURNAL, Audit
from sandboxrun.policy.ceiling import Ceiling
from sandboxrun.records import asdict, field, record
from sandboxrun.redis.address import Address, parse_url
from sandboxrun.redis.lease import Run, new_token
from sandboxrun.redis.login import Login, admitted
from sandboxrun.redis.store import Store
from sandboxrun.redis.users import REDIS_ACL, REDIS_PASSWORD
from sandboxrun.redis.watch import Loss
from sandboxrun.sandbox.compile import code_paths as places
from sandboxrun.sandbox.compile import features
from sandboxrun.sandbox.compile.policy import Interpreter, SandboxPolicy, build
from sandboxrun.sandbox.supervisor import ending
from sandboxrun.sandbox.supervisor.child import Child, Script, this_interpreter
from sandboxrun.sandbox.supervisor.output import OutputLog
from sandboxrun.sandbox.supervisor.scratch import scratch_folder
from sandboxrun.sandbox.supervisor.supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.config.debugger import Inspect
    from sandboxrun.sandbox.supervisor.spawn import Birth

DESCRIPTORS = 1024  # enough for all connects that may hang at once, and below what select(2) can take
KEY_SECONDS = 10  # for the key to come on standard input


@record
class RunOptions:
    """The command line of one run, parsed."""

    type: str
    id: str
    redis_url: str
    allowed: ImportList | None = None  # None: the policy's hosts, else the default ones
    extra: Permissions = field(default_factory=Permissions)
    limits: Mapping[str, int] = field(default_factory=dict)
    degraded: tuple[str, ...] = ()  # names of kernel features the operator does without
    reload: bool = False
    cached_only: bool = False
    policy: str | None = None  # a policy file instead of the user's
    yes: bool = False  # more permissions than last time are agreed to
    audit: tuple[str, ...] = ()  # files, or "journal"
    inspect: Inspect | None = None
    output_log: bool = True  # what the worker prints is kept, for `sandboxrun logs`
    wait: bool = False  # for Redis and for the hash, instead of ending
    standby: int | None = None  # a descriptor: start when a byte can be read from it, or not at all when it is closed


def run(options: RunOptions, log: Log, born: Birth | None = None) -> int:
    """Run one worker to its end; its exit code. Raises SandboxrunError for every failure of ours.

    `born`: a child that was started already; where this raises before it is taken, it ends with this process.
    """
    key = keys.worker_key(keys.check_type(options.type), keys.check_id(options.id))
    with Audit(options.audit, worker=key, warn=lambda message: log.warning("audit", message)) as audit:
        kept = _output_log(options, log)

        def observe(level: str, event: str, message: str, fields: dict[str, object]) -> None:
            audit.logged(level, event, message, fields)
            if level != "debug":
                kept.write(level.encode(), _line(message))

        log.observer = observe
        audit.record("run", "asked", redis=parse_url(options.redis_url).shown, reload=options.reload)
        try:
            code = _start(options, key, born, audit, log, kept)
        except ending.Signalled as signalled:
            log.debug("stop", f"ended by signal {signalled.number} before the worker began")
            code = signalled.exit_code
        except AlreadyRunningError:  # the log is that of the one that runs
            raise
        except SandboxrunError as error:
            kept.write(b"error", _line(str(error)))
            raise
        kept.write(b"end", b"%d\n" % code)
        audit.record("end", "ended", exit_code=code)
        return code


def _line(message: str) -> bytes:
    return message.encode("utf-8", "backslashreplace") + b"\n"


def _output_log(options: RunOptions, log: Log) -> OutputLog:
    path = Folders.of_user().log(options.type, options.id) if options.output_log else ""

    def warn(message: str) -> None:
        # In a thread: who reads our standard error may stall, and what the worker prints must go on.
        threading.Thread(target=log.warning, args=("log", message), daemon=True).start()

    return OutputLog(path, warn)


def _start(options: RunOptions, key: str, born: Birth | None, audit: Audit, log: Log, kept: OutputLog) -> int:
    kernel = features.probe()
    for message in kernel.require(options.degraded, others=(REDIS_ACL, REDIS_PASSWORD)):
        log.warning("degraded", message)
    child = Child(key, kernel, born, warm=True)
    try:
        _raise_descriptor_limit()
        if options.standby is not None and not os.read(options.standby, 1):
            return 0
        store = Store(options.redis_url)
        try:
            return _run(options, key, child, store, audit, log, kept)
        finally:
            store.close()
    finally:
        child.close()


def _raise_descriptor_limit() -> None:
    """Of ours, which hold a duplicate of each socket that hangs in connect(2). The child's comes with its plan."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, hard), hard))


def _run(options: RunOptions, key: str, child: Child, store: Store, audit: Audit, log: Log, kept: OutputLog) -> int:
    config, stands_on = configuration.read(
        store,
        options.type,
        options.id,
        extra=options.extra,
        limits=options.limits,
        inspect=options.inspect,
        wait=options.wait,
        log=log,
    )
    audit.about(version=config.version)
    folders = Folders.of_user()
    ceiling = folders.ceiling(config, options.policy)
    config = ceiling.check(options.limits)
    check_debugger(config)
    for warning in config.warnings:
        log.warning("config", warning)
    trace.mark("hash parsed")
    source = resolve(config.url, config.version, key=key)
    allowed = import_list(options, ceiling, source)
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
    trace.mark("source obtained")
    _agree(options, config, ceiling, folders, artifact, audit)
    trace.mark("agreed")
    key_line = _read_key() if config.has_secrets else None
    ending.defer()
    with scratch_folder(folders.scratch) as scratch, admitted(config, ceiling, store, options.degraded, log) as login:
        ending.check()
        trace.mark("Redis identity made")
        interpreter = this_interpreter()
        with contextlib.suppress(OSError):  # it is there before anything that contains it is granted
            os.makedirs(folders.logs, mode=0o700, exist_ok=True)
        policy = policy_for(config, source, store.address, folders, interpreter, scratch, ceiling, options)
        trace.mark("policy built")
        script = _script(source, artifact)
        run_ = Run(config.key, child.pid, new_token(), stands_on)
        env = _environment(config, login, scratch)
        log.debug("policy", f"read {policy.read}, write {policy.write}, net {policy.net.allow.get('net', ())}")
        child.check_supervision()
        degraded = child.features.forgone(options.degraded) + login.degraded
        _record(folders, config, artifact, degraded)
        audit.record("grant", "allowed", **_given(config), degraded=degraded)
        trace.mark("run recorded")
        listener = child.confine(
            policy,
            script,
            key=key,
            interpreter=interpreter,
            scratch=scratch,
            env=env,
            kept=folders.filters,
            inspect=config.inspect.plan if config.inspect is not None else None,
            token=run_.token,
        )
        supervisor = Supervisor(
            child,
            listener,
            policy,
            key=key,
            scratch=scratch,
            trusted=_trusted(store.address),
            log=log,
            output_log=kept,
        )
        trace.mark("supervisor made")
        try:
            return _live(supervisor, child, store, run_, config.version, artifact, key_line, log)
        finally:
            supervisor.close()


def check_debugger(config: WorkerConfig) -> None:
    """Raise ConfigError where one is asked for and there is none."""
    if config.inspect is None:
        return
    import importlib.util

    if importlib.util.find_spec("debugpy") is None:
        raise ConfigError(
            f"{config.inspect.where} asks for a debugger, and debugpy is not installed: pip install 'sandboxrun[debug]'"
        )


def import_list(options: RunOptions, ceiling: Ceiling, source: Source | LocalSource) -> ImportList:
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
    run_: Run,
    version: str,
    artifact: Artifact,
    key_line: bytes | None,
    log: Log,
) -> int:
    supervisor.resolver.pin_denied()
    supervisor.handle_signals()
    ending.check()
    losses: list[Loss] = []

    def lost(loss: Loss) -> None:
        losses.append(loss)
        supervisor.stop(loss.reason)

    code = None
    try:
        store.claim(run_, version=version)
        trace.mark("pid claimed")
        store.watch(run_, lost=lost, warn=lambda message: supervisor.warn("redis", message))
        threading.Thread(target=_give_key, args=(child, key_line), daemon=True).start()
        log.info(
            "start",
            f"{run_.key} runs {artifact.origin} as process {child.pid}",
            pid=child.pid,
            sha256=artifact.sha256,
        )
        gc.freeze()  # all that a run has made so far stays until its end
        gc.enable()
        code = supervisor.serve()
    finally:
        try:
            loss = store.release(run_)
            if loss is not None and code is not None and not losses:  # the worker saw it first
                log.warning("stop", loss.reason)
                losses.append(loss)
        except StoreError as error:
            log.warning("redis", f"{error}; field pid of {run_.key} stays, and blocks nothing")
    # Whoever ends the run by a signal gets the worker's own code, whatever became of the hash meanwhile.
    lost_code = losses[0].exit_code if losses and not supervisor.signalled else None
    return code if lost_code is None else lost_code


def policy_for(
    config: WorkerConfig,
    source: Source | LocalSource,
    endpoint: Address,
    folders: Folders,
    interpreter: Interpreter,
    scratch: str,
    ceiling: Ceiling,
    options: RunOptions,
) -> SandboxPolicy:
    """What the kernel will be told. Raises ConfigError, PolicyError."""
    local = source if isinstance(source, LocalSource) else None
    decisions = [*folders.policies, options.policy, *(place for place in options.audit if place != JOURNAL)]
    protected = [folders.cache, folders.state, *places.of_operator()]
    protected += [os.path.abspath(path) for path in decisions if path is not None]
    if local is not None:
        protected.append(local.script)  # worker.py itself may be a symlink
    return build(
        config.permissions,
        key=config.key,
        interpreter=interpreter,
        scratch=scratch,
        local_source=local.named if local is not None else None,
        redis=endpoint.path or redis_target(endpoint),
        protected=protected,
        hidden=(folders.logs,),
        limits=config.limits,
        certificates=endpoint.ca_file,
        check_path=ceiling.check_path,
    )


def redis_target(endpoint: Address) -> NetTarget:
    """As an entry of a net list. Raises ConfigError."""
    try:
        return NetTarget.parse(host_and_port(endpoint.host, endpoint.port))
    except ValueError as error:
        raise ConfigError(f"the Redis URL's host {endpoint.host!r} is not valid: {error}") from error


def _trusted(endpoint: Address) -> tuple[str, int] | None:
    """Redis by name: the operator chose it, so that it may be a private address."""
    return (endpoint.host.lower().removesuffix("."), endpoint.port) if not endpoint.path else None


def _script(source: Source | LocalSource, artifact: Artifact) -> Script:
    if isinstance(source, LocalSource):
        return Script(artifact.source, source.script, source.folder, None, is_file=True)
    return Script(artifact.source, source.url, None, artifact.code, is_file=False)


def _environment(config: WorkerConfig, login: Login, scratch: str) -> dict[str, str]:
    env = {name: os.environ[name] for name in config.permissions.allow.get("env", ()) if name in os.environ}
    for name in config.permissions.deny.get("env", ()):
        env.pop(name, None)
    return env | {
        **login.env,
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
        **({"inspect": str(config.inspect)} if config.inspect is not None else {}),
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
        write_whole(path, json.dumps(record).encode(), sync=False)
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
