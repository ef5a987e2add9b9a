"""One run of a worker: its plan, then scratch folder and Redis user, child, supervisor, and the end of all of them.

`conduct` is every run. What belongs to the process around it is its Surroundings: `run` has those of `sandboxrun TYPE ID`,
whose process is the run's own, and pool.py those of many workers in one process.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import sys

from sandboxrun import modulecache, timing
from sandboxrun.config import keys
from sandboxrun.config.secrets import KEY_LINE_MAX_BYTES, parse_key_line
from sandboxrun.errors import AlreadyRunningError, ConfigError, SandboxrunError, SecretError, StoreError
from sandboxrun.host import runplan
from sandboxrun.host.folders import Folders
from sandboxrun.host.plan import Preparation, prepare
from sandboxrun.host.runplan import RunOptions, RunPlan
from sandboxrun.log import Log, shown_hint
from sandboxrun.policy.audit import Audit
from sandboxrun.records import record, replace
from sandboxrun.redis.address import Address, parse_url
from sandboxrun.redis.lease import Run, new_token
from sandboxrun.redis.login import Login, admitted
from sandboxrun.redis.store import Store
from sandboxrun.redis.users import REDIS_ACL, REDIS_PASSWORD
from sandboxrun.redis.watch import Loss
from sandboxrun.sandbox.compile import features
from sandboxrun.sandbox.supervisor import ending
from sandboxrun.sandbox.supervisor.child import Child, Confinement, Script
from sandboxrun.sandbox.supervisor.outputlog import OutputLog
from sandboxrun.sandbox.supervisor.scratch import scratch_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Protocol

    from sandboxrun.config.worker import WorkerConfig
    from sandboxrun.host.notify import Notifier
    from sandboxrun.sandbox.compile.features import Features
    from sandboxrun.sandbox.supervisor.spawn import Spawned
    from sandboxrun.sandbox.supervisor.supervisor import Supervisor

    class Surroundings(Protocol):
        """What a run finds in its process. Every method may raise ending.Signalled, which ends the run before its worker
        begins. All are called by the thread of the run, in the order in which they stand here."""

        @property
        def log(self) -> Log: ...
        @property
        def store(self) -> Store:
            """From `enter` on."""

        @property
        def kernel(self) -> Features: ...
        def enter(self, key: str) -> bool:
            """False if the run is not wanted any more."""

        def child(self, preparation: Preparation, plan: RunPlan) -> Child:
            """The child, which waits for its plan; `leave` closes it."""

        def key_line(self, worker: WorkerConfig) -> bytes | None:
            """The line of the key for the worker's secrets, checked. Raises SecretError, ConfigError."""

        def defer(self) -> None:
            """From now on only `check` and `supervised` may raise Signalled: what the run makes next must not be left half made."""

        def check(self) -> None: ...
        def supervisor(self, child: Child, listener: int, confinement: Confinement, kept: OutputLog) -> Supervisor: ...
        def supervised(self, supervisor: Supervisor) -> None:
            """From now on `supervisor` is told to end the run."""

        def begun(self, child: Child, key_line: bytes | None) -> None:
            """`pid` is set: give the worker its standard input, and say that it runs."""

        def leave(self) -> None:
            """The run has ended, wherever it had come to."""


DESCRIPTORS = 1024  # enough for all connects that may hang at once
KEY_SECONDS = 10  # for the key to come on standard input


@record
class Outcome:
    """How a run ended. `reason`: as the operator was told, empty if the worker ended by itself. `loss`: of its `pid`.
    `was_stuck`: it was told to end because a handler stopped its loop."""

    code: int
    reason: str = ""
    loss: Loss | None = None
    was_stuck: bool = False


def run(options: RunOptions, log: Log, spawned: Spawned | None = None) -> int:
    """Run one worker to its end; its exit code. Raises SandboxrunError for every failure of ours.

    `spawned`: a child that was started already; if this raises before it is taken, it ends with this process.
    """
    return conduct(options, _OwnProcess(options, log, spawned)).code


def conduct(options: RunOptions, around: Surroundings) -> Outcome:
    """Run one worker to its end. Raises SandboxrunError for every failure of ours."""
    key, log = keys.worker_key(keys.check_type(options.type), keys.check_id(options.id)), around.log
    with (
        Audit(options.audit, worker=key, warn=lambda message: log.warning("audit", message)) as audit,
        contextlib.closing(_output_log(options, log)) as kept,
    ):

        def observe(level: str, event: str, message: str, fields: dict[str, object]) -> None:
            audit.logged(level, event, message, fields)
            if level != "debug":
                kept.write(level.encode(), _line(message, fields.get("hint", ())))

        log.observer = observe
        audit.record("run", "asked", redis=parse_url(options.redis_url).shown, reload=options.reload)
        try:
            outcome = _start(options, key, around, audit, kept)
        except ending.Signalled as signalled:
            log.debug("stop", f"ended by signal {signalled.number} before the worker began")
            outcome = Outcome(signalled.exit_code)
        except AlreadyRunningError:  # the log is that of the one that runs
            raise
        except SandboxrunError as error:
            kept.write(b"error", _line(str(error), error.hint))
            raise
        finally:
            log.observer = None
        kept.write(b"end", b"%d\n" % outcome.code)
        audit.record("end", "ended", exit_code=outcome.code)
        return outcome


def _line(message: str, hint: object = ()) -> bytes:
    lines = (message, shown_hint(tuple(hint)))  # type: ignore[arg-type]  # a field of a message
    return "\n".join(filter(None, lines)).encode("utf-8", "backslashreplace") + b"\n"


def _output_log(options: RunOptions, log: Log) -> OutputLog:
    path = Folders.of_user().log(options.type, options.id) if options.output_log else ""

    def warn(message: str) -> None:
        from threading import Thread

        # In a thread: who reads our standard error may stall, and what the worker prints must go on.
        Thread(target=log.warning, args=("log", message), daemon=True).start()

    return OutputLog(path, warn)


@record
class _Held:
    """What a run holds besides its plan."""

    around: Surroundings
    audit: Audit
    output_log: OutputLog
    folders: Folders


def _start(options: RunOptions, key: str, around: Surroundings, audit: Audit, kept: OutputLog) -> Outcome:
    for message in around.kernel.require(options.degraded, others=(REDIS_ACL, REDIS_PASSWORD)):
        around.log.warning("degraded", message)
    try:
        if not around.enter(key):
            return Outcome(0)
        return _run(options, _Held(around, audit, kept, Folders.of_user()))
    finally:
        around.leave()


def _run(options: RunOptions, held: _Held) -> Outcome:
    around, audit, log, folders = held.around, held.audit, held.around.log, held.folders
    preparation = Preparation(options, folders)
    forgone = around.kernel.forgone(options.degraded)
    plan = prepare(preparation, around.store, audit=audit, log=log, degraded=tuple(forgone))
    key_line = around.key_line(plan.worker)
    around.defer()
    child = around.child(preparation, plan)
    with scratch_folder(folders.scratch) as scratch, _admitted(preparation, plan, child, held) as login:
        around.check()
        timing.mark("Redis identity made")
        plan = replace(plan, degraded=(*plan.degraded, *login.degraded))
        policy = plan.policy_with(scratch)
        run_ = Run(plan.worker.key, child.pid, new_token(), plan.stands_on)
        log.debug("policy", f"read {policy.read}, write {policy.write}, net {policy.net.allow.get('net', ())}")
        child.check_supervision()
        brought = _brought(preparation)
        runplan.write_record(folders, plan, brought, child.pid)
        audit.record("grant", "allowed", **plan.given, **brought, degraded=plan.degraded)
        timing.mark("run recorded")
        confinement = Confinement(
            key=plan.worker.key,
            policy=policy,
            script=_script(preparation, plan),
            interpreter=plan.environment,
            scratch=scratch,
            env=runplan.environment(plan, login.env, scratch) | _data(preparation),
            kept=folders.filters,
            inspect=plan.inspect.plan if plan.inspect is not None else None,
            token=run_.token,
            clock=preparation.options.clock,
            seed=preparation.options.seed,
        )
        listener = child.confine(confinement, meanwhile=_import_supervisor)
        supervisor = around.supervisor(child, listener, confinement, held.output_log)
        timing.mark("supervisor made")
        try:
            return _live(plan, run_, supervisor, child, held, key_line)
        finally:
            supervisor.close()


def _import_supervisor() -> None:
    """What serves the worker; it brings threading along."""
    from sandboxrun.sandbox.supervisor import supervisor  # noqa: F401


def _admitted(preparation: Preparation, plan: RunPlan, child: Child, held: _Held) -> AbstractContextManager[Login]:
    assert preparation.ceiling is not None  # where there is a plan
    around, degraded = held.around, preparation.options.degraded
    return admitted(plan.worker, preparation.ceiling, around.store, degraded, around.log, pid=child.pid)


def _live(
    plan: RunPlan, run_: Run, supervisor: Supervisor, child: Child, held: _Held, key_line: bytes | None
) -> Outcome:
    around, store, log = held.around, held.around.store, held.around.log
    modulecache.close()
    supervisor.resolver.pin_denied()
    around.supervised(supervisor)
    losses: list[Loss] = []

    def lost(loss: Loss) -> None:
        losses.append(loss)
        supervisor.stop_gently(loss.reason)

    def begun() -> None:
        store.watch(run_, lost=lost, warn=lambda message: supervisor.warn("redis", message))
        around.begun(child, key_line)

    code = None
    try:
        store.claim(run_, version=plan.worker.version)
        timing.mark("pid claimed")
        log.info(
            "start",
            f"{run_.key} runs {plan.script.origin} as process {child.pid}",
            pid=child.pid,
            sha256=plan.script.sha256,
        )
        code = supervisor.serve(begun)
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
    reason = losses[0].reason if losses else supervisor.reason
    ended = code if lost_code is None else lost_code
    return Outcome(ended, reason, losses[0] if losses else None, supervisor.was_stuck)


def _brought(preparation: Preparation) -> dict[str, object]:
    """The files and packages of the script, for records; nothing for one without a block."""
    contents = preparation.config.asked.contents if preparation.config is not None else None
    if contents is None:
        return {}
    return {"files": len(contents.files), "packages": list(map(str, contents.packages)), "lock": contents.lock}


def trusted(address: Address) -> tuple[str, int] | None:
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


def _data(preparation: Preparation) -> dict[str, str]:
    """Where the worker's own data folder is, if it is granted something there."""
    ceiling = preparation.ceiling
    return {"SANDBOXRUN_DATA": ceiling.data} if ceiling is not None and ceiling.grants_data else {}


class _OwnProcess:
    """The Surroundings of `sandboxrun TYPE ID`: its standard streams are the worker's, and its signals end the run."""

    store: Store

    def __init__(self, options: RunOptions, log: Log, spawned: Spawned | None) -> None:
        self.log, self.kernel = log, features.probe()
        self._options, self._spawned = options, spawned
        self._child: Child | None = None
        self._notifier: Notifier | None = None

    def enter(self, key: str) -> bool:
        self._child = Child(key, self.kernel, self._spawned, warm=True)
        _raise_descriptor_limit()
        if self._options.standby is not None and not os.read(self._options.standby, 1):
            return False
        self.store = Store(self._options.redis_url)
        return True

    def child(self, preparation: Preparation, plan: RunPlan) -> Child:
        assert self._child is not None
        return self._child

    def key_line(self, worker: WorkerConfig) -> bytes | None:
        return _read_key(worker) if worker.has_secrets else None

    def defer(self) -> None:
        ending.defer()

    def check(self) -> None:
        ending.check()

    def supervisor(self, child: Child, listener: int, confinement: Confinement, kept: OutputLog) -> Supervisor:
        from sandboxrun.sandbox.supervisor.supervisor import Supervisor

        redis = trusted(self.store.address)
        return Supervisor(
            child, listener, confinement, trusted=redis, log=self.log, output_log=kept, unblock=self.store.unblock
        )

    def supervised(self, supervisor: Supervisor) -> None:
        supervisor.handle_signals()
        ending.check()

    def begun(self, child: Child, key_line: bytes | None) -> None:
        from threading import Thread

        Thread(target=_give_key, args=(child, key_line), daemon=True).start()
        if "NOTIFY_SOCKET" in os.environ:
            from sandboxrun.host import notify

            self._notifier = notify.follow(child, self._options.type, self._options.id)
        gc.freeze()  # all that a run has made so far stays until its end
        gc.enable()

    def leave(self) -> None:
        if self._notifier is not None:
            self._notifier.stopping()
        if hasattr(self, "store"):
            self.store.close()
        if self._child is not None:
            self._child.close()


def _raise_descriptor_limit() -> None:
    """Of ours, which hold a duplicate of each socket that hangs in connect(2). The child's comes with its plan."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, hard), hard))


def _read_key(worker: WorkerConfig) -> bytes:
    """The key's line from standard input, checked, as it came. Raises SecretError, ConfigError."""
    if sys.stdin is None or os.isatty(0):
        raise ConfigError(
            f"{worker.key} has secrets (encryptedJson), and standard input is a terminal, so there is no key",
            hint=_key_hint(worker),
        )
    line = b""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    while not line.endswith(b"\n") and len(line) < KEY_LINE_MAX_BYTES:
        if not poll.poll(KEY_SECONDS * 1000):
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
