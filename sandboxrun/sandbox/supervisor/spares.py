"""Children that were spawned ahead, so that a run need not wait for its own: each waits for a plan, and knows of no worker.

One thread spawns all of them, and lives as long as they may: PDEATHSIG follows the thread that has spawned (prctl(2)).
"""

from __future__ import annotations

import threading
from collections import deque

from sandboxrun.config.keys import ID_MAX_CHARS, TYPE_MAX_CHARS
from sandboxrun.sandbox.supervisor.child import readable
from sandboxrun.sandbox.supervisor.spawn import Spawned

# In place of a key; the child writes its own over it, which is never longer, and has no space.
NAME = "spare".ljust(TYPE_MAX_CHARS + ID_MAX_CHARS + len("::h") + 1)
_CALM_SECONDS = 0.05
_AGAIN_SECONDS = 1.0  # after one could not be spawned


class Spares:
    """`take` one; `close` when no child of it lives any more."""

    def __init__(self, count: int) -> None:
        """`count`: how many wait while nobody has asked."""
        self._count, self._asking = count, 0
        self._ready: deque[Spawned | OSError] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._spawn, name="spares", daemon=True)
        self._thread.start()

    def take(self) -> Spawned:
        """The oldest one, or the next. Raises OSError if none can be spawned."""
        with self._changed:
            self._asking += 1
            self._changed.notify_all()
            try:
                while True:
                    self._changed.wait_for(lambda: self._ready or self._closed)
                    found = self._ready.popleft() if self._ready else OSError("this process ends")
                    if isinstance(found, OSError):
                        raise found
                    if not readable(found.pidfd, 0):
                        return found
                    found.end()
            finally:
                self._asking -= 1
                self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """How many wait for a plan."""
        return len(self._ready)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        while self._ready:
            found = self._ready.popleft()
            if not isinstance(found, OSError):
                found.end()

    def _spawn(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._ready) < self._count + self._asking)
                if not self._asking:
                    # The one that was taken last begins first: posix_spawn(3) keeps other threads waiting.
                    self._changed.wait_for(lambda: self._closed or self._asking, _CALM_SECONDS)
                if self._closed:
                    return
            try:
                made: Spawned | OSError = Spawned(NAME, warm=True)
            except OSError as error:
                made = error
            with self._changed:
                if not isinstance(made, OSError) or self._asking:
                    self._ready.append(made)
                    self._changed.notify_all()
                if isinstance(made, OSError):
                    self._changed.wait_for(lambda: self._closed, _AGAIN_SECONDS)
