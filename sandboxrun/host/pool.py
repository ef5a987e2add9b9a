"""Many workers in one process: a thread for each conducts its run, and what can be shared is.

Children are spawned ahead (spares.py). One watch and a few connections serve all at Redis. No standard stream, no signal and
no terminal is of any worker here.
"""

from __future__ import annotations

import contextlib
import resource
import threading
import time
from collections.abc import Callable, Mapping

from sandboxrun.config import keys
from sandboxrun.config.permissions import Kind
from sandboxrun.config.secrets import KEY_LINE_MAX_BYTES, parse_key_line
from sandboxrun.errors import ConfigError, SandboxError, SandboxrunError, SecretError
from sandboxrun.host.plan import Preparation
from sandboxrun.host.run import Outcome, conduct, trusted
from sandboxrun.host.runplan import RunOptions, RunPlan
from sandboxrun.log import LINE_MAX_CHARS, Log, escape
from sandboxrun.records import record, replace
from sandboxrun.redis.sharedstore import Connections, SharedStore
from sandboxrun.redis.sharedwatch import SharedWatch
from sandboxrun.redis.watch import Loss
from sandboxrun.sandbox.compile import features
from sandboxrun.sandbox.supervisor import cgroup
from sandboxrun.sandbox.supervisor.child import Child, Confinement
from sandboxrun.sandbox.supervisor.ending import Signalled
from sandboxrun.sandbox.supervisor.handlers.connect import PENDING_MAX
from sandboxrun.sandbox.supervisor.output import Messages, Shares
from sandboxrun.sandbox.supervisor.outputlog import OutputLog
from sandboxrun.sandbox.supervisor.spares import Spares
from sandboxrun.sandbox.supervisor.supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.config.worker import WorkerConfig
    from sandboxrun.health import Health
    from sandboxrun.sandbox.supervisor.zygote import Zygote

WORKERS_MAX = 400
PREPARATIONS_MAX = 4  # at once
PREPARATION_SECONDS = 2.0  # after which one waits for somebody else, a host that serves scripts, and counts no more
KILL_SECONDS = 10.0  # after SIGKILL
_SIGTERM = 15


@record
class Ended:
    """How a run ended. `reason`: as the operator was told, empty if the worker has ended by itself. `error`: it could not be
    started, or not be supervised; `code` is that error's then. `loss`: of its `pid`. `was_stuck`: as of Outcome."""

    code: int
    reason: str
    error: SandboxrunError | None
    seconds: float  # since it was ordered
    loss: Loss | None
    was_stuck: bool = False


class PoolEvents:
    """What becomes of a run. Called from any thread, and must not block. Messages are escaped for a terminal.

    `output`: each line that the worker prints is a message too, with the event "output" and the level "out" or "err".
    """

    output = False

    def said(self, running: Running, level: str, event: str, message: str, fields: dict[str, object]) -> None:
        """A message to the operator."""

    def started(self, running: Running) -> None:
        """Its `pid` is set, and its script begins."""

    def ended(self, running: Running, ended: Ended) -> None:
        """Last, and once."""


class Running:
    """One run of a pool."""

    def __init__(self, options: RunOptions) -> None:
        self.type, self.id = options.type, options.id
        self.key = keys.worker_key(keys.check_type(options.type), keys.check_id(options.id))
        self.state = "preparing"
        """Then "running", and "ending" from the first call of `stop` or the end of the process on."""
        self.since = time.time()
        """When it was ordered, and then when its script began."""
        self.pid: int | None = None
        self.plan: RunPlan | None = None
        self.thread: threading.Thread | None = None
        self.denials: Mapping[tuple[Kind, str], int] = {}
        """How often each kind and target was refused."""
        self.store: SharedStore | None = None
        """Where its `pid` is kept."""
        self._child: Child | None = None
        self._supervisor: Supervisor | None = None
        self._stopped, self._at_once, self._reason = False, False, ""
        self._lock = threading.Lock()

    def stop(self, reason: str = "", *, kill: bool = False) -> None:
        """End the run: SIGTERM, and after a while or with `kill` SIGKILL. From any thread; does not wait."""
        with self._lock:
            self._stopped, self._at_once, self._reason = True, self._at_once or kill, reason or self._reason
            supervisor, self.state = self._supervisor, "ending"
        if supervisor is not None:
            supervisor.signalled = True
            supervisor.stop(reason, at_once=True) if kill else supervisor.stop_gently(reason)

    def health(self) -> Health | None:
        """What the worker says of itself; None before it has begun, and after its end."""
        with self._lock:
            return self._child.health() if self._child is not None else None

    @property
    def reason(self) -> str:
        """Why it was stopped."""
        return self._reason

    def check(self) -> None:
        if self._stopped:
            raise Signalled(_SIGTERM)

    def supervised(self, child: Child | None, supervisor: Supervisor) -> None:
        with self._lock:
            self._child, self._supervisor, self.denials = child, supervisor, supervisor.denials
        self.check()

    def left(self) -> None:
        """Before the child's descriptors are closed, whose numbers others may get."""
        with self._lock:
            self._child = self._supervisor = None


class Pool:
    """Starts workers, and ends all of them. Use one at a time in a process."""

    def __init__(self, log: Log, *, spares: int = 2, redis_url: str, zygote: Zygote | None = None) -> None:
        """`log`: for what concerns no single worker. `redis_url`: of all workers. `zygote`: for those that may share memory;
        whoever has made it closes it.

        Call it early: the children that are spawned now inherit what this process has. Raises UsageError.
        """
        self.log, self.zygote = log, zygote
        cgroup.set_up(*([zygote.pid] if zygote is not None and zygote.pid is not None else []))
        self.connects_max = _raise_descriptor_limit()
        self.kernel = features.probe()
        self.connections = Connections(redis_url)
        self.watch = SharedWatch(
            redis_url, warn=lambda message: log.warning("redis", message), tick=self.connections.close_idle
        )
        self.messages, self.slots = Messages(), _Slots()
        self.spares = Spares(spares)
        self._running: set[Running] = set()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def redis_is_up(self) -> bool:
        """Whether Redis answers, as far as the watch of the workers knows."""
        return not self.watch.is_away

    def start(self, options: RunOptions, *, key_line: bytes | None = None, on: PoolEvents) -> Running:
        """Start a worker, and return at once. `key_line`: for its secrets. Raises ConfigError, SandboxError."""
        running = Running(options)
        options = replace(options, redis_url=self.connections.url, interactive=False, wait=False, standby=None)
        with self._lock:
            if self._closed:
                raise SandboxError(f"{running.key} is not started: this process ends")
            self._running.add(running)
        around = _Worker(self, running, options, key_line, on)
        running.thread = threading.Thread(target=self._run, args=(around, on), name=running.key, daemon=True)
        try:
            running.thread.start()
        except RuntimeError as error:  # the user's or the system's threads are used up
            self._forget(running)
            raise SandboxError(f"no thread can be started for {running.key}") from error
        return running

    def close(self, seconds: float) -> None:
        """End all workers, within so many seconds by SIGTERM, then by SIGKILL."""
        with self._lock:
            self._closed = True
            left = list(self._running)
        for running in left:
            running.stop()
        for kill, patience in ((False, seconds), (True, KILL_SECONDS)):
            deadline = time.monotonic() + patience
            left = [running for running in left if running.thread is not None and running.thread.is_alive()]
            for running in left:
                if kill:
                    running.stop(kill=True)
            for running in left:
                if running.thread is not None:
                    running.thread.join(max(0.0, deadline - time.monotonic()))
        self.watch.close()
        self.connections.close_idle(0)
        self.spares.close()
        self.messages.close()

    def _forget(self, running: Running) -> None:
        with self._lock:
            self._running.discard(running)

    def _run(self, around: _Worker, on: PoolEvents) -> None:
        running, begun = around.running, time.monotonic()
        error: SandboxrunError | None = None
        try:
            outcome = conduct(around.options, around)
        except SandboxrunError as raised:
            error = raised
        except Exception as raised:
            error = SandboxrunError(f"a defect of sandboxrun: {type(raised).__name__}: {raised}")
            error.__cause__ = raised
        if error is not None:
            outcome = Outcome(error.exit_code, str(error))
        running.state = "ending"
        self._forget(running)
        reason = outcome.reason or running.reason
        seconds = time.monotonic() - begun
        on.ended(running, Ended(outcome.code, reason, error, seconds, outcome.loss, outcome.was_stuck))


class _Worker:
    """The Surroundings of one run."""

    def __init__(
        self, pool: Pool, running: Running, options: RunOptions, key_line: bytes | None, on: PoolEvents
    ) -> None:
        self.running, self.options = running, options
        self._pool, self._key_line, self._on = pool, key_line, on
        self.log: Log = _WorkerLog(running, on, debug=pool.log.debug_on)
        self.kernel = pool.kernel
        self.store = running.store = SharedStore(pool.connections, pool.watch)
        self._child: Child | None = None

    def enter(self, key: str) -> bool:
        self._pool.slots.acquire()
        self.check()
        return True

    def child(self, preparation: Preparation, plan: RunPlan) -> Child:
        self.running.plan = plan
        zygote, spawned = self._pool.zygote, None
        try:
            if zygote is not None and preparation.ceiling is not None and preparation.ceiling.shares_memory:
                spawned = zygote.fork(plan.worker.key)
            else:
                spawned = self._pool.spares.take()
        except OSError as error:
            raise SandboxError(f"no process can be started for {plan.worker.key}: {error.strerror or error}") from error
        self._child = Child(plan.worker.key, self.kernel, spawned)
        self.running.pid = self._child.pid
        return self._child

    def key_line(self, worker: WorkerConfig) -> bytes | None:
        if not worker.has_secrets:
            return None
        if self._key_line is None:
            raise ConfigError(f"{worker.key} has secrets (encryptedJson), and there is no key for them")
        line = self._key_line[:KEY_LINE_MAX_BYTES].partition(b"\n")[0] + b"\n"
        try:
            parse_key_line(line)
        except SecretError as error:
            raise SecretError(f"{worker.key}: {error}") from error
        return line

    def defer(self) -> None:
        self.check()

    def check(self) -> None:
        self.running.check()

    def supervisor(self, child: Child, listener: int, confinement: Confinement, kept: OutputLog) -> Supervisor:
        shares = Shares(self._pool.messages, connects_max=self._pool.connects_max, heard=self._heard())
        where = trusted(self.store.address)
        return Supervisor(
            child,
            listener,
            confinement,
            trusted=where,
            log=self.log,
            output_log=kept,
            shares=shares,
            unblock=self.store.unblock,
        )

    def supervised(self, supervisor: Supervisor) -> None:
        self.running.supervised(self._child, supervisor)

    def begun(self, child: Child, key_line: bytes | None) -> None:
        self._pool.slots.release()
        with contextlib.suppress(OSError):  # it was killed; a line is less than a pipe holds
            if key_line is not None:
                child.stdin.write(key_line)
            child.stdin.close()
        running = self.running
        running.since = time.time()
        if running.state == "preparing":
            running.state = "running"
        self._on.started(running)

    def leave(self) -> None:
        self._pool.slots.release()
        self.running.left()
        self.store.close()
        if self._child is not None:
            self._child.close()

    def _heard(self) -> Callable[[bytes, bytes], None] | None:
        if not self._on.output:
            return None
        rest = {b"out": b"", b"err": b""}

        def heard(kind: bytes, data: bytes) -> None:
            *lines, last = (rest[kind] + data).split(b"\n")
            if len(last) > LINE_MAX_CHARS:
                lines, last = [*lines, last], b""
            rest[kind] = last
            for line in lines:
                text = escape(line[: 4 * LINE_MAX_CHARS].decode("utf-8", "backslashreplace"))[:LINE_MAX_CHARS]
                self._on.said(self.running, kind.decode(), "output", text, {})

        return heard


class _WorkerLog(Log):
    """Messages about one worker: to its log and the audit log, by the observer, and to the events."""

    def __init__(self, running: Running, on: PoolEvents, *, debug: bool) -> None:
        super().__init__(debug=debug)
        self._running, self._on = running, on

    def _show(self, level: str, event: str, message: str, fields: dict[str, object], hint: tuple[str, ...]) -> None:
        self._on.said(self._running, level, event, escape(message)[:LINE_MAX_CHARS], fields)


class _Slots:
    """Which threads prepare a run now. One that waits for somebody else for long keeps no other waiting."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}  # by thread, time.monotonic
        self._changed = threading.Condition()

    def acquire(self) -> None:
        with self._changed:
            while (
                sum(since > time.monotonic() - PREPARATION_SECONDS for since in self._since.values())
                >= PREPARATIONS_MAX
            ):
                self._changed.wait(PREPARATION_SECONDS / 4)
            self._since[threading.get_ident()] = time.monotonic()

    def release(self) -> None:
        """Of the calling thread; nothing if it has none."""
        with self._changed:
            if self._since.pop(threading.get_ident(), None) is not None:
                self._changed.notify()


def _raise_descriptor_limit() -> int:
    """Of this process, as far as it may; the children's come with their plans. How many connects of one worker may hang."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return PENDING_MAX
    return max(8, min(PENDING_MAX, hard // 2 // WORKERS_MAX))
