"""The supervisor's event loop: serve notifications and names, watch limits, forward signals, bury the child."""

from __future__ import annotations

import os
import select
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable
from types import FrameType

from sandboxrun.log import Log
from sandboxrun.permissions import denial
from sandboxrun.sandbox.connect import Connector
from sandboxrun.sandbox.launch import Child
from sandboxrun.sandbox.notify import Listener
from sandboxrun.sandbox.policy import SCRATCH_MAX_BYTES, SandboxPolicy
from sandboxrun.sandbox.resolver import Resolver

GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL
HOUSEKEEPING_SECONDS = 1.0
DENIALS_SHOWN_MAX = 100  # different targets; a hostile worker cannot flood the operator's terminal
_SCRATCH_ENTRIES_MAX = 20_000


class Supervisor:
    """Serves one confined child until it ends. `stop` may be called from any thread or signal handler."""

    def __init__(
        self,
        child: Child,
        listener_fd: int,
        policy: SandboxPolicy,
        *,
        key: str,
        scratch: str,
        trusted: Iterable[str],
        log: Log,
    ) -> None:
        self._child, self._key, self._scratch, self._log = child, key, scratch, log
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._denials: set[str] = set()
        self._stop_reason: str | None = None
        self._stops = 0
        self._kill_at: float | None = None
        self._listener = Listener(listener_fd)
        self.resolver = Resolver(policy.net, trusted=trusted, denied=self._denied, wake=self._wake)
        self._connector = Connector(
            self._listener,
            policy,
            pid=child.pid,
            pidfd=child.pidfd,
            names=self.resolver.names,
            denied=self._denied,
            watch=lambda sock, ready: self._register(sock, ready, selectors.EVENT_WRITE),
            unwatch=self._unregister,
        )
        self._register(self._listener, self._notified)
        self._register(child.pidfd, lambda: None)
        self._register(child.control, self._asked)
        self._register(self._wake_read, self._woken)

    def stop(self, reason: str = "") -> None:
        """Ask the worker to end: SIGTERM, then after GRACE_SECONDS or a second call SIGKILL."""
        self._stop_reason = reason or self._stop_reason
        self._stops += 1
        self._wake()

    def handle_signals(self, numbers: Iterable[int] = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)) -> None:
        """Let these signals end the worker instead of us. Call from the main thread."""

        def received(number: int, _: FrameType | None) -> None:
            self.stop()

        for number in numbers:
            signal.signal(number, received)

    def serve(self) -> int:
        """Until the child has ended; its exit code (128+n for signal n)."""
        self._child.go()
        housekeeping = time.monotonic() + HOUSEKEEPING_SECONDS
        sigterms = 0
        while True:
            ready = self._selector.select(self._timeout(housekeeping))
            if any(key.fd == self._child.pidfd for key, _ in ready):
                return self._child.wait()
            for key, _ in ready:
                # A callback before it may have ended this one's business.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()
            now = time.monotonic()
            if self._stops > sigterms:
                self._end_worker(again=sigterms > 0, now=now)
                sigterms = self._stops
            if self._kill_at is not None and now >= self._kill_at:
                self._child.signal(signal.SIGKILL)
                self._kill_at = None
            deadline = self._connector.next_deadline()
            if now >= housekeeping or (deadline is not None and now >= deadline):
                self._connector.expire()
            if now >= housekeeping:
                self._check_scratch()
                housekeeping = now + HOUSEKEEPING_SECONDS

    def close(self) -> None:
        self._connector.close()
        self._listener.close()
        self._selector.close()
        os.close(self._wake_read)
        write, self._wake_write = self._wake_write, -1  # a late thread must not write into another file's number
        os.close(write)

    def _timeout(self, housekeeping: float) -> float:
        times = [housekeeping, self._kill_at, self._connector.next_deadline()]
        return max(0.0, min(t for t in times if t is not None) - time.monotonic())

    def _end_worker(self, *, again: bool, now: float) -> None:
        if self._stop_reason:
            self._log.warning("stop", self._stop_reason)
            self._stop_reason = None
        self._child.signal(signal.SIGKILL if again else signal.SIGTERM)
        if not again:
            self._kill_at = now + GRACE_SECONDS

    def _notified(self) -> None:
        notification = self._listener.receive()
        if notification is not None:
            self._connector.handle(notification)

    def _asked(self) -> None:
        try:
            message = self._child.control.recv(2048)  # plain recv: descriptors sent along are dropped by the kernel
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message and _peer_closed(self._child.control):  # an empty packet reads the same
            self._unregister(self._child.control)
            return
        answer = self.resolver.question(message)
        if answer is not None:
            self._answer(answer)

    def _answer(self, answer: bytes) -> None:
        try:
            self._child.control.send(answer)
        except OSError:
            pass  # A worker that does not read its answers goes without.

    def _woken(self) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            pass
        for answer in self.resolver.take_answers():
            self._answer(answer)

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except OSError:
            pass  # Full: it will wake anyway. Closed: there is nothing left to wake.

    def _denied(self, target: str) -> None:
        if target in self._denials or len(self._denials) > DENIALS_SHOWN_MAX:
            return
        self._denials.add(target)
        if len(self._denials) > DENIALS_SHOWN_MAX:
            self._log.denied(f"{DENIALS_SHOWN_MAX} different targets were refused; further ones are not shown")
        else:
            self._log.denied(denial("net", target, self._key), kind="net", target=target)

    def _check_scratch(self) -> None:
        size = folder_size(self._scratch, SCRATCH_MAX_BYTES)
        if size > SCRATCH_MAX_BYTES and self._kill_at is None:
            self.stop(f"the worker's scratch folder holds more than {SCRATCH_MAX_BYTES >> 20} MiB: ending the worker")

    def _register(self, file: object, ready: Callable[[], None], events: int = selectors.EVENT_READ) -> None:
        self._selector.register(file, events, ready)  # type: ignore[arg-type]  # anything with fileno()

    def _unregister(self, file: socket.socket) -> None:
        self._selector.unregister(file)


def _peer_closed(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, 0)  # POLLHUP and POLLERR are always reported
    return bool(poll.poll(0))


def folder_size(folder: str, enough: int) -> int:
    """Bytes on disk below `folder`; stops counting past `enough`. Too many entries count as too many bytes.

    Approximate: a worker can write past the limit between two looks, by at most what the disk takes in that time.
    """
    total = entries = 0
    folders = [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as found:
                for entry in found:
                    entries += 1
                    stat = entry.stat(follow_symlinks=False)
                    total += stat.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    if total > enough or entries > _SCRATCH_ENTRIES_MAX:
                        return enough + 1
        except OSError:
            continue  # removed meanwhile
    return total
