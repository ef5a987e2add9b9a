"""The supervisor: resolves names, enforces limits, forwards signals and reaps the child.

This loop never waits for the worker's sockets, its memory or the operator's terminal, so that nothing a worker does can
keep its end from coming. What may wait has threads of its own: trapped calls, messages, what the worker prints.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # signal makes enums of all numbers at each start
import contextlib
import functools
import os
import select
import threading
import time
from collections.abc import Callable

from sandboxrun.config.limits import LIMITS
from sandboxrun.config.permissions import Denial, Kind
from sandboxrun.log import Log
from sandboxrun.sandbox.compile.grants import TRAPPED
from sandboxrun.sandbox.supervisor.cgroup import Cgroup, oom_kills
from sandboxrun.sandbox.supervisor.child import Child, Confinement, readable
from sandboxrun.sandbox.supervisor.dispatch import Calls, Handler
from sandboxrun.sandbox.supervisor.ending import to_catch
from sandboxrun.sandbox.supervisor.handlers.connect import PENDING_MAX, Connector
from sandboxrun.sandbox.supervisor.handlers.listen import Listening
from sandboxrun.sandbox.supervisor.handlers.metadata import Metadata
from sandboxrun.sandbox.supervisor.handlers.processes import Threads
from sandboxrun.sandbox.supervisor.output import Messages, Relay, Shares, limit_for
from sandboxrun.sandbox.supervisor.outputlog import OutputLog
from sandboxrun.sandbox.supervisor.resolver import Resolver
from sandboxrun.sandbox.supervisor.scratch import deleted_size, folder_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from sandboxrun.sandbox.supervisor.guard import Guard

GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL
HOUSEKEEPING_SECONDS = 1.0
LEFT_SECONDS = 5.0  # after SIGKILL, until processes that have not ended are named
DENIALS_SHOWN_MAX = 100  # different targets; a hostile worker cannot flood the operator's terminal
LIMIT = "because of its limit"
_LEFT_SHOWN = 10  # pids
_QUESTION_BYTES = 2048  # bootstrap.py writes no longer one


class Supervisor:
    """Serves one confined child until it ends. `stop` may be called from any thread or signal handler."""

    def __init__(
        self,
        child: Child,
        listener_fd: int,
        confinement: Confinement,
        *,
        trusted: tuple[str, int] | None,
        log: Log,
        output_log: OutputLog | None = None,
        shares: Shares | None = None,
        unblock: Callable[[int], None] | None = None,
    ) -> None:
        """`confinement`: the child's. `trusted`: see Resolver. `output_log`: where what the worker prints is kept. `shares`:
        if this process supervises others, too; else what the worker prints goes to its standard output and error.

        `unblock`: called after SIGTERM with the number at Redis that the worker gives its connection, to end a read that
        waits there. It must not block, and must trust no number.
        """
        self._unblock = unblock
        self._child, self._key, self._scratch = child, confinement.key, confinement.scratch
        self._policy = policy = confinement.policy
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake_lock = threading.RLock()  # a signal handler may wake, too
        self.denials: dict[tuple[Kind, str], int] = {}
        """How often each kind and target was refused; no more than DENIALS_SHOWN_MAX of them, and one."""
        self._warned: set[str] = set()
        self._stop_reason: str | None = None
        self.reason = ""
        """Why the worker was told to end, or what has killed it; empty if it has ended by itself."""
        self.was_stuck = False
        """Whether it was told to end because a handler stops its loop."""
        self._stops, self._at_once = 0, False
        self.signalled = False  # whether a signal has asked for the end
        self._kill_at: float | None = None
        self._killed_because = ""  # if SIGKILL was sent: completes "… was ended by SIGKILL"
        self._oom_kills: int | None = None  # of the machine, when the worker had run for a moment
        self._messages = shares.messages if shares is not None else Messages()
        self._log, self._owns_messages = log, shares is None
        self.resolver = Resolver(policy.net, trusted=trusted, denied=self._denied, wake=self._wake)
        self._calls = Calls(listener_fd, pid=child.pid, pidfd=child.pidfd, failed=self.stop)
        self._connector = Connector(
            self._calls,
            policy,
            resolver=self.resolver,
            denied=self._denied,
            pending_max=shares.connects_max if shares is not None else PENDING_MAX,
        )
        self._metadata = Metadata(self._calls, policy.write)
        self._calls.ended = self._end_calls
        self._relays = self._make_relays(output_log, shares)
        self._cgroup = Cgroup.make(child.pid, policy.limits)  # before there is a guard, which would be one too many
        self._guard = self._make_guard() if policy.execute else None
        self._poll.register(child.pidfd, select.POLLIN)  # no callback: `serve` ends
        for fd, callback in ((child.questions.fileno(), self._asked), (self._wake_read, self._woken)):
            self._poll.register(fd, select.POLLIN)
            self._callbacks[fd] = callback

    def _make_relays(self, output_log: OutputLog | None, shares: Shares | None) -> list[Relay]:
        limits = self._policy.limits
        targets = (1, 2) if shares is None else (None, None)
        kinds, names = (b"out", b"err"), ("standard output", "standard error")
        return [
            Relay(
                source,
                target,
                limit=limit_for(target, limits.output, LIMITS["output"].default),
                slowed=lambda: self._reached("output"),
                lost=functools.partial(self._output_lost, name),
                log=output_log,
                kind=kind,
                heard=shares.heard if shares is not None else None,
            )
            for source, target, kind, name in zip(self._child.output, targets, kinds, names, strict=True)
        ]

    def _make_guard(self) -> Guard:
        from sandboxrun.sandbox.supervisor.guard import Guard

        limits, child = self._policy.limits, self._child
        counted = self._cgroup is not None and self._cgroup.counts_tasks
        guard = Guard(child.pid, child.pidfd, limit=0 if counted else limits.threads)
        self._poll.register(guard.words, select.POLLIN)
        self._callbacks[guard.words.fileno()] = self._told_by_guard
        return guard

    def stop(self, reason: str = "", *, at_once: bool = False) -> None:
        """Ask the worker to end: SIGTERM, then after GRACE_SECONDS or a second call SIGKILL. `at_once`: SIGKILL."""
        self._stop_reason = reason or self._stop_reason
        self.reason = reason or self.reason
        self._at_once |= at_once
        self._stops += 1
        self._wake()

    def stop_gently(self, reason: str = "") -> None:
        """As `stop`, but a worker that is ending already is given its time."""
        if not self._stops:
            self.stop(reason)

    def warn(self, event: str, message: str) -> None:
        """A warning to the operator, from any thread; never blocks."""
        self._messages.put(self._log, lambda log: log.warning(event, message))

    def handle_signals(self) -> None:
        """Let signals that would end this process end the worker, a second one at once. Call from the main thread."""

        def received(number: int, _: FrameType | None) -> None:
            # SimpleQueue.put may be called from a signal handler.
            self._messages.put(self._log, lambda log: log.debug("stop", f"{_name(number)}: ending the worker"))
            self.signalled = True
            self.stop()

        for number in to_catch():
            signal.signal(number, received)

    def serve(self, gone: Callable[[], None] = lambda: None) -> int:
        """Until the child has ended; its exit code (128+n for signal n). `gone` is called once the child was told to go: for
        what may begin a moment later than the worker."""
        self._calls.start(self._handlers(), many=bool(self._policy.execute), waiting=self._connector.expire)
        self._child.go()
        gone()
        for relay in self._relays:
            relay.start()
        now = time.monotonic()
        housekeeping = now + HOUSEKEEPING_SECONDS
        end = now + self._policy.limits.time if self._policy.limits.time else None
        sigterms = 0
        while True:
            until = min(at for at in (housekeeping, end, self._kill_at) if at is not None)
            ready = [fd for fd, _ in self._poll.poll(max(0.0, until - time.monotonic()) * 1000)]
            if self._child.pidfd in ready:
                self._end_programs()  # before the worker is reaped: until then its number is no other group's
                return self._ended(self._child.wait())
            for fd in ready:
                self._callbacks[fd]()
            now = time.monotonic()
            if end is not None and now >= end:
                self.stop(self._policy.limits.reached("time", self._key))
                end = None
            if self._stops > sigterms:
                self._end_worker(again=sigterms > 0 or self._at_once, now=now)
                sigterms = self._stops
            if self._kill_at is not None and now >= self._kill_at:
                self._kill(f"because it had not ended {GRACE_SECONDS:.0f} s after SIGTERM")
                self._kill_at = None
            if now >= housekeeping:
                if self._oom_kills is None:
                    self._oom_kills = oom_kills()
                if self._guard is not None:
                    self._guard.reap_orphans()
                self._check_scratch()
                self._check_handler()
                housekeeping = now + HOUSEKEEPING_SECONDS

    def close(self) -> None:
        """End all processes of the sandbox, and write what they have printed."""
        if not self._child.is_reaped:
            self._end_programs()
        if self._guard is not None:
            self._guard.close()
        if self._cgroup is not None:
            self._cgroup.close()
        self._calls.stop()
        for relay in self._relays:
            relay.close()
        self._messages.flush()
        if self._owns_messages:
            self._messages.close()
        with self._wake_lock:  # a late thread must not write into another file's number
            os.close(self._wake_write)
            self._wake_write = -1
        os.close(self._wake_read)

    def _end_calls(self) -> None:
        self._connector.close()
        self._metadata.close()

    def _handlers(self) -> dict[int, Handler]:
        listening = Listening(self._calls, self._policy, denied=self._denied)
        threads = Threads(
            self._child.pid,
            limit=self._policy.limits.threads,
            many=bool(self._policy.execute),
            reached=lambda: self._reached("threads"),
        )
        handlers: dict[str, Handler] = {
            "connect": self._connector.connect,
            "bind": listening.bind,
            "listen": listening.listen,
            "clone": threads.clone,
            "chmod": self._metadata.chmod,
            "fchmod": self._metadata.fchmod,
            "fchmodat": self._metadata.fchmodat,
            "fchmodat2": self._metadata.fchmodat2,
            "utimensat": self._metadata.utimensat,
        }
        return {number: handlers[name] for name, number in TRAPPED[os.uname().machine].items()}

    def _ended(self, code: int) -> int:
        for name in self._cgroup.reached() if self._cgroup is not None else ():
            self._reached(name)
            self._killed_because = LIMIT if name == "memory" else self._killed_because
        if self._guard is not None and readable(self._guard.words.fileno(), 0):
            self._told_by_guard()  # why it has killed the worker
        number, cpu = self._child.ended_by, self._policy.limits.cpu
        if cpu and (
            number == signal.SIGXCPU
            or (number == signal.SIGKILL and not self._killed_because and self._child.cpu_seconds() >= cpu)
        ):  # it had handled SIGXCPU
            self._reached("cpu")
            self._killed_because = LIMIT
        if number and not (self._stops and number == signal.SIGTERM):
            from sandboxrun.sandbox.supervisor import killed

            grew = self._oom_kills is not None and oom_kills() > self._oom_kills
            because = self._killed_because if number in (signal.SIGKILL, signal.SIGXCPU) else ""
            message = killed.message(self._key, number, because=because, out_of_memory=grew)
            self.reason = self.reason or message
            self.warn("killed", message)
        return code

    def _end_programs(self) -> None:
        """Kill all that the worker has started, and wait until it has ended: the run is not over before.

        Only what the kernel cannot end yet, a process in a call to a network file system that hangs for instance, keeps
        this waiting; stopped once more, it is left behind.
        """
        if self._guard is None:
            return
        seconds, stops = LEFT_SECONDS, self._stops
        self._guard.kill()
        while left := self._guard.wait_until_gone(seconds):
            self._guard.reap_orphans()
            if seconds == LEFT_SECONDS:
                seconds, stops = HOUSEKEEPING_SECONDS, self._stops
                self.warn("left", f"{self._left(left)}; the run ends once they have, or if it is stopped again")
            elif self._stops > stops:
                self.warn("left", f"{self._left(left)}, and are left behind")
                return
        self._guard.reap_orphans()

    def _left(self, pids: list[int]) -> str:
        shown = ", ".join(map(str, pids[:_LEFT_SHOWN])) + (" …" if len(pids) > _LEFT_SHOWN else "")
        return f"processes that {self._key} has started were killed and have not ended ({shown})"

    def _told_by_guard(self) -> None:
        if self._guard is None:
            return
        words = self._guard.words.read(256)
        if not words:
            self._poll.unregister(self._guard.words)
            self.stop("the process that guards the worker's programs has ended: ending the worker")
        elif self._guard.ENDED in words:
            self._warned.add("threads")
            self._killed_because = LIMIT
            self.warn("limit", self._policy.limits.reached("threads", self._key) + ": ending the worker")
        else:
            self._reached("threads")

    def _reached(self, name: str) -> None:
        """Say, once, that a limit has been reached."""
        if name not in self._warned:
            self._warned.add(name)
            self.warn("limit", self._policy.limits.reached(name, self._key))

    def _output_lost(self, name: str, error: OSError) -> None:
        self.warn("output", f"{name} cannot be written ({error.strerror}): what the worker prints there is lost")

    def _end_worker(self, *, again: bool, now: float) -> None:
        if again:
            self._kill("because it was stopped once more before it had ended")
        else:
            self._child.signal(signal.SIGTERM)
            self._kill_at = now + GRACE_SECONDS
            client = self._child.health().client_id if self._unblock is not None else 0
            if client and self._unblock is not None:
                self._unblock(client)
        if self._stop_reason:
            self.warn("stop", self._stop_reason)
            self._stop_reason = None

    def _kill(self, because: str) -> None:
        self._killed_because = self._killed_because or because
        self._child.signal(signal.SIGKILL)

    def _asked(self) -> None:
        message = self._child.questions.read(_QUESTION_BYTES)
        if message is None:  # taken away: a worker can open its end for reading too (/proc/self/fd)
            return
        if not message:
            self._poll.unregister(self._child.questions)
            self._child.hang_up()
            return
        answer = self.resolver.question(message)
        if answer is not None:
            self._answer(answer)

    def _answer(self, answer: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):  # it has closed its end, or we have
            self._child.answers.write(answer)  # whole, or not at all if the worker does not read its answers

    def _woken(self) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            pass
        for answer in self.resolver.take_answers():
            self._answer(answer)

    def _wake(self) -> None:
        with self._wake_lock, contextlib.suppress(OSError):
            os.write(self._wake_write, b"\0")  # Full: it will wake anyway. Closed: there is nothing left to wake.

    def _denied(self, kind: Kind, target: str, by_deny: bool) -> None:
        count = self.denials.get((kind, target), 0)
        if not count and len(self.denials) > DENIALS_SHOWN_MAX:
            return
        self.denials[kind, target] = count + 1
        if count:
            return
        denial = Denial(kind, target, None if by_deny else target, self._key)
        last = len(self.denials) > DENIALS_SHOWN_MAX
        message = f"{DENIALS_SHOWN_MAX} different targets were refused; further ones are not shown" if last else None
        self._messages.put(self._log, lambda log: log.denied(denial, message=message))

    def _check_scratch(self) -> None:
        most = self._policy.limits.scratch
        if not most or self._kill_at is not None:
            return
        pids = self._guard.living() if self._guard is not None else [self._child.pid]
        if folder_size(self._scratch, most) + deleted_size(pids) > most:
            self.stop(self._policy.limits.reached("scratch", self._key) + ": ending the worker")

    def _check_handler(self) -> None:
        limit = self._policy.limits.handler
        if not limit or self._stops:
            return
        from sandboxrun.sandbox.supervisor.health import stuck

        if stuck(self._child.health(), limit, time.monotonic()):
            self.was_stuck = True
            self.stop(self._policy.limits.reached("handler", self._key) + ": ending the worker")


def _name(number: int) -> str:
    from signal import Signals

    try:
        return Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
