"""The trapped system calls, each to the one who answers it, in a thread of its own.

O_NONBLOCK belongs to a worker as much as to us: a hostile thread that clears it at the right moment makes our
connect(2) wait. Then only the sandbox's own further calls wait, for nothing else is done in this thread.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Callable, Mapping

from sandboxrun.sandbox.supervisor.listener import Listener, Notification
from sandboxrun.sandbox.supervisor.target import Target

LOOK_SECONDS = 1.0  # between two looks for callers that are gone


class Proceed:
    """The answer that lets the kernel perform the call."""


PROCEED = Proceed()
# An errno, 0, PROCEED, or None if the answer follows later. OSError is an answer too.
Answer = int | Proceed | None
Handler = Callable[[Target, Notification], Answer]


class Calls:
    """Receives notifications and answers them. `failed` is called from its thread, once, if it cannot go on."""

    def __init__(self, listener_fd: int, *, pid: int, pidfd: int, failed: Callable[[str], None]) -> None:
        self.listener = Listener(listener_fd)
        # The child has confined itself. Without allowRun it never executes a program, so this stays its memory.
        self._worker = Target(pid, os.dup(pidfd))
        self._many = False
        self._handlers: dict[int, Handler] = {}
        self._failed = failed
        # Not in the epoll too: it would wake this thread on another CPU, whatever the listener's SYNC_WAKE_UP says, and
        # that is slower than all that is done here.
        self._poll = select.poll()
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._poll.register(self.listener.fileno(), select.POLLIN)
        self._poll.register(self._epoll.fileno(), select.POLLIN)
        self._waiting: Callable[[], float | None] = lambda: None
        self.ended: Callable[[], None] = lambda: None
        """Called when no further call is answered, by the thread that has answered them."""
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self, handlers: Mapping[int, Handler], *, many: bool, waiting: Callable[[], float | None]) -> None:
        """`many`: there may be more processes than the worker's. `waiting` is called now and then, and gives the time
        (time.monotonic) at which it wants to be called next at the latest."""
        self._handlers, self._many, self._waiting = dict(handlers), many, waiting
        self._thread.start()

    def stop(self) -> None:
        """The child has ended. A thread that hangs in one of its calls stays until that call is over."""
        self._stopping = True
        if self._thread.ident is None:
            self._close()

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back when `fd` can be written, from this thread. Raises OSError."""
        self._epoll.register(fd, select.EPOLLOUT)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        del self._callbacks[fd]
        self._epoll.unregister(fd)

    def _serve(self) -> None:
        listener, look = self.listener.fileno(), 0.0
        try:
            while not self._stopping:
                now = time.monotonic()
                if now >= look:
                    look = min(self._waiting() or now + LOOK_SECONDS, now + LOOK_SECONDS)
                for ready, _ in self._poll.poll(max(0.0, look - now) * 1000):
                    if ready == listener:
                        notification = self.listener.receive()
                        if notification is not None:
                            self._handle(notification)
                        continue
                    for fd, _ in self._epoll.poll(0):
                        if fd in self._callbacks:  # one before it may have ended its business
                            self._callbacks[fd]()
                            look = 0.0
        except Exception as error:
            self._failed(
                f"system calls cannot be supervised any more ({type(error).__name__}: {error}): ending the worker"
            )
        finally:
            self._close()

    def _close(self) -> None:
        """By the thread that uses these descriptors, because another file may get their numbers at once."""
        self.ended()
        self._epoll.close()
        self._worker.close()
        self.listener.close()

    def _handle(self, notification: Notification) -> None:
        """Answer one notification, now or later. Whatever goes wrong becomes an errno for the worker."""
        answer: Answer
        try:
            handler = self._handlers[notification.number]
            if self._many:
                target = Target.of_thread(notification.tid)
                try:
                    answer = handler(target, notification)
                finally:
                    target.close()
            else:
                answer = handler(self._worker, notification)
        except OSError as error:
            answer = error.errno or errno.EACCES
        except Exception:  # a number without a handler, a value out of range, memory that ran out
            answer = errno.EINVAL
        if isinstance(answer, int):
            self.listener.respond(notification.id, answer)
        elif answer is not None:
            self.listener.proceed(notification.id)
