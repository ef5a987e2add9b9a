"""One run of a worker: its plan, then scratch folder and Redis user, child, supervisor, and the end of all of them."""

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

from sandboxrun import modulecache, timing
from sandboxrun.config import keys
from sandboxrun.config.secrets import KEY_LINE_MAX_BYTES, parse_key_line
from sandboxrun.errors import AlreadyRunningError, ConfigError, SandboxrunError, SecretError, StoreError
from sandboxrun.files import write_whole
from sandboxrun.host.folders import Folders
from sandboxrun.host.plan import Preparation, prepare
from sandboxrun.host.runplan import RunOptions, RunPlan
from sandboxrun.log import Log, shown_hint
from sandboxrun.policy.audit import Audit
from sandboxrun.records import asdict, record, replace
from sandboxrun.redis.address import Address, parse_url
from sandboxrun.redis.lease import Run, new_token, start_time, this_host
from sandboxrun.redis.login import Login, admitted
from sandboxrun.redis.store import Store
from sandboxrun.redis.users import REDIS_ACL, REDIS_PASSWORD
from sandboxrun.redis.watch import Loss
from sandboxrun.sandbox.compile import features
from sandboxrun.sandbox.supervisor import ending
from sandboxrun.sandbox.supervisor.child import Child, Confinement, Script
from sandboxrun.sandbox.supervisor.output import OutputLog
from sandboxrun.sandbox.supervisor.scratch import scratch_folder
from sandboxrun.sandbox.supervisor.supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sandboxrun.config.worker import WorkerConfig
    from sandboxrun.sandbox.supervisor.spawn import Spawned

DESCRIPTORS = 1024  # enough for all connects that may hang at once, and below what select(2) can take
KEY_SECONDS = 10  # for the key to come on standard input


def run(options: RunOptions, log: Log, spawned: Spawned | None = None) -> int:
    """Run one worker to its end; its exit code. Raises SandboxrunError for every failure of ours.

    `spawned`: a child that was started already; if this raises before it is taken, it ends with this process.
    """
    key = keys.worker_key(keys.check_type(options.type), keys.check_id(options.id))
    with Audit(options.audit, worker=key, warn=lambda message: log.warning("audit", message)) as audit:
        kept = _output_log(options, log)

        def observe(level: str, event: str, message: str, fields: dict[str, object]) -> None:
            audit.logged(level, event, message, fields)
            if level != "debug":
                kept.write(level.encode(), _line(message, fields.get("hint", ())))

        log.observer = observe
        audit.record("run", "asked", redis=parse_url(options.redis_url).shown, reload=options.reload)
        try:
            code = _start(options, key, spawned, audit, log, kept)
        except ending.Signalled as signalled:
            log.debug("stop", f"ended by signal {signalled.number} before the worker began")
            code = signalled.exit_code
        except AlreadyRunningError:  # the log is that of the one that runs
            raise
        except SandboxrunError as error:
            kept.write(b"error", _line(str(error), error.hint))
            raise
        kept.write(b"end", b"%d\n" % code)
        audit.record("end", "ended", exit_code=code)
        return code


def _line(message: str, hint: object = ()) -> bytes:
    shown = shown_hint(tuple(hint))  # type: ignore[arg-type]  # a field of a message
    return "\n".join(filter(None, (message, shown))).encode("utf-8", "backslashreplace") + b"\n"


def _output_log(options: RunOptions, log: Log) -> OutputLog:
    path = Folders.of_user().log(options.type, options.id) if options.output_log else ""

    def warn(message: str) -> None:
        # In a thread: who reads our standard error may stall, and what the worker prints must go on.
        threading.Thread(target=log.warning, args=("log", message), daemon=True).start()

    return OutputLog(path, warn)


@record
class _Held:
    """What a run holds besides its plan."""

    child: Child
    store: Store
    audit: Audit
    log: Log
    output_log: OutputLog


def _start(options: RunOptions, key: str, spawned: Spawned | None, audit: Audit, log: Log, kept: OutputLog) -> int:
    kernel = features.probe()
    for message in kernel.require(options.degraded, others=(REDIS_ACL, REDIS_PASSWORD)):
        log.warning("degraded", message)
    child = Child(key, kernel, spawned, warm=True)
    try:
        _raise_descriptor_limit()
        if options.standby is not None and not os.read(options.standby, 1):
            return 0
        store = Store(options.redis_url)
        try:
            return _run(options, _Held(child, store, audit, log, kept))
        finally:
            store.close()
    finally:
        child.close()


def _raise_descriptor_limit() -> None:
    """Of ours, which hold a duplicate of each socket that hangs in connect(2). The child's comes with its plan."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, hard), hard))


def _run(options: RunOptions, held: _Held) -> int:
    child, store, audit, log = held.child, held.store, held.audit, held.log
    folders = Folders.of_user()
    preparation = Preparation(options, folders)
    forgone = child.features.forgone(options.degraded)
    plan = prepare(preparation, store, audit=audit, log=log, degraded=tuple(forgone))
    key_line = _read_key(plan.worker) if plan.worker.has_secrets else None
    ending.defer()
    with scratch_folder(folders.scratch) as scratch, _admitted(preparation, plan, held) as login:
        ending.check()
        timing.mark("Redis identity made")
        plan = replace(plan, degraded=(*plan.degraded, *login.degraded))
        policy = plan.policy_with(scratch)
        run_ = Run(plan.worker.key, child.pid, new_token(), plan.stands_on)
        log.debug("policy", f"read {policy.read}, write {policy.write}, net {policy.net.allow.get('net', ())}")
        child.check_supervision()
        brought = _brought(preparation)
        _record(folders, plan, brought)
        audit.record("grant", "allowed", **_given(plan), **brought, degraded=plan.degraded)
        timing.mark("run recorded")
        confinement = Confinement(
            key=plan.worker.key,
            policy=policy,
            script=_script(preparation, plan),
            interpreter=plan.environment,
            scratch=scratch,
            env=_environment(plan, login, scratch) | _data(preparation),
            kept=folders.filters,
            inspect=plan.inspect.plan if plan.inspect is not None else None,
            token=run_.token,
        )
        listener = child.confine(confinement)
        supervisor = Supervisor(
            child,
            listener,
            confinement,
            trusted=_trusted(store.address),
            log=log,
            output_log=held.output_log,
            unblock=store.unblock,
        )
        timing.mark("supervisor made")
        try:
            return _live(plan, run_, supervisor, held, key_line)
        finally:
            supervisor.close()


def _admitted(preparation: Preparation, plan: RunPlan, held: _Held) -> AbstractContextManager[Login]:
    assert preparation.ceiling is not None  # where there is a plan
    return admitted(plan.worker, preparation.ceiling, held.store, preparation.options.degraded, held.log)


def _live(plan: RunPlan, run_: Run, supervisor: Supervisor, held: _Held, key_line: bytes | None) -> int:
    child, store, log = held.child, held.store, held.log
    modulecache.close()
    supervisor.resolver.pin_denied()
    supervisor.handle_signals()
    ending.check()
    losses: list[Loss] = []

    def lost(loss: Loss) -> None:
        losses.append(loss)
        supervisor.stop(loss.reason)

    code = None
    try:
        store.claim(run_, version=plan.worker.version)
        timing.mark("pid claimed")
        store.watch(run_, lost=lost, warn=lambda message: supervisor.warn("redis", message))
        threading.Thread(target=_give_key, args=(child, key_line), daemon=True).start()
        log.info(
            "start",
            f"{run_.key} runs {plan.script.origin} as process {child.pid}",
            pid=child.pid,
            sha256=plan.script.sha256,
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


def _trusted(address: Address) -> tuple[str, int] | None:
    """Redis by name: the operator chose it, so that it may be a private address."""
    return (address.host.lower().removesuffix("."), address.port) if not address.path else None


def _script(preparation: Preparation, plan: RunPlan) -> Script:
    """With the compiled code from the cache."""
    code = (preparation.artifact.code or None) if preparation.artifact is not None else None
    script = plan.script
    return Script(
        script.source, script.origin, script.folder, code, is_file=script.is_file, path=script.path,
        packages=None if plan.packages is None else tuple(filter(None, (plan.packages.folder,))),
        declared=() if plan.packages is None else plan.packages.declared,
    )  # fmt: skip


def _environment(plan: RunPlan, login: Login, scratch: str) -> dict[str, str]:
    return {name: os.environ[name] for name in plan.env if name in os.environ} | {
        **login.env,
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": scratch,
        "TMPDIR": scratch,
    }


def _data(preparation: Preparation) -> dict[str, str]:
    """Where the worker's own data folder is, if it is granted something there."""
    ceiling = preparation.ceiling
    return {"SANDBOXRUN_DATA": ceiling.data} if ceiling is not None and ceiling.grants_data else {}


def _given(plan: RunPlan) -> dict[str, object]:
    permissions = plan.worker.permissions
    lists = (("allow", permissions.allow), ("deny", permissions.deny))
    return {
        **{
            verdict: {kind: [str(target) for target in targets] for kind, targets in found.items() if targets}
            for verdict, found in lists
        },
        "limits": asdict(plan.limits),
        **({"inspect": str(plan.inspect)} if plan.inspect is not None else {}),
    }


def _brought(preparation: Preparation) -> dict[str, object]:
    """The files and packages of the script; nothing for one without a block."""
    contents = preparation.config.asked.contents if preparation.config is not None else None
    if contents is None:
        return {}
    return {"files": len(contents.files), "packages": list(map(str, contents.packages)), "lock": contents.lock}


def _uses(folders: Folders, plan: RunPlan) -> dict[str, object]:
    """What of the cache the worker may read, and who supervises it: `sandboxrun cache` keeps what a running worker uses."""
    cache = os.path.realpath(folders.cache)
    places = (os.path.join(cache, "trees"), os.path.join(cache, "env"))
    used = [os.path.relpath(path, cache) for path in plan.policy.read if os.path.dirname(path) in places]
    pid = os.getpid()
    return {"uses": used, "supervisor": {"pid": pid, "started": start_time(pid), "host": this_host()}}


def _record(folders: Folders, plan: RunPlan, brought: dict[str, object]) -> None:
    """What this worker is given now, for the operator to look up later. Raises ConfigError."""
    record = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "worker": plan.worker.key,
        "origin": plan.script.origin,
        "sha256": plan.script.sha256,
        **_given(plan),
        "degraded": plan.degraded,
        **brought,
    }
    if brought:
        record |= _uses(folders, plan)
    path = os.path.join(folders.runs, f"{plan.worker.type}:{plan.worker.id}.json")
    try:
        os.makedirs(folders.runs, mode=0o700, exist_ok=True)
        write_whole(path, json.dumps(record).encode(), sync=False)
    except OSError as error:
        raise ConfigError(f"the run cannot be recorded in {folders.runs}: {error.strerror}") from error


def _read_key(worker: WorkerConfig) -> bytes:
    """The key's line from standard input, checked, as it came. Raises SecretError, ConfigError."""
    if sys.stdin is None or os.isatty(0):
        raise ConfigError(
            f"{worker.key} has secrets (encryptedJson), and standard input is a terminal, so there is no key",
            hint=_key_hint(worker),
        )
    line = b""
    while not line.endswith(b"\n") and len(line) < KEY_LINE_MAX_BYTES:
        if not select.select([0], [], [], KEY_SECONDS)[0]:
            raise ConfigError(
                f"{worker.key} has secrets (encryptedJson), and no key came on standard input within {KEY_SECONDS} s",
                hint=_key_hint(worker),
            )
        part = os.read(0, KEY_LINE_MAX_BYTES - len(line))
        if not part:
            break
        line += part
    line = line.partition(b"\n")[0] + b"\n"
    try:
        parse_key_line(line)
    except SecretError as error:
        raise SecretError(str(error), hint=_key_hint(worker)) from error
    return line


def _key_hint(worker: WorkerConfig) -> str:
    return f"sandboxrun {worker.type} {worker.id} <KEYFILE"


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
