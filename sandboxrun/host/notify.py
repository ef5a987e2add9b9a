"""What a service manager is told, by the protocol of sd_notify(3): datagrams of lines NAME=VALUE to $NOTIFY_SOCKET.

Without libsystemd, which is one call: see "Notes" of that manual page. Imported only if NOTIFY_SOCKET is set.
"""

from __future__ import annotations

import _thread
import os
import socket
import time

from sandboxrun.sandbox.supervisor.health import stuck

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandboxrun.sandbox.supervisor.child import Child

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
STATUS_MAX_CHARS = 500
PATH_MAX_BYTES = 107  # sockaddr_un(7)
LOOK_SECONDS, STATUS_SECONDS = 0.05, 10.0
SILENT_SECONDS = 5.0


class Notifier:
    """Tells the service manager. A manager that is gone or slow is no error: a service must not end for it."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        """Takes the variables of the protocol out of the environment, os.environ by default, so that no child has them."""
        variables: dict[str, str] = os.environ if environment is None else environment  # type: ignore[assignment]
        path, micros, pid = (variables.pop(name, "") for name in VARIABLES)
        self._address = _address(path)
        self._watchdog = _seconds(micros) if pid in ("", str(os.getpid())) else 0.0
        self._said = ""

    @property
    def is_on(self) -> bool:
        return self._address is not None

    @property
    def watchdog_seconds(self) -> float:
        """How long the service may be silent; 0 for ever."""
        return self._watchdog if self.is_on else 0.0

    def ready(self, status: str = "") -> None:
        self._send("READY=1", *self._status(status))

    def status(self, text: str) -> None:
        """One line for `systemctl status`. The same text is not sent twice."""
        self._send(*self._status(text))

    def stopping(self, status: str = "") -> None:
        self._watchdog = 0.0
        self._send("STOPPING=1", *self._status(status))

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def start_watchdog(self, healthy: Callable[[], bool]) -> None:
        """A thread that says WATCHDOG=1 twice in the time that the manager waits, while `healthy`; also before READY."""
        if self.watchdog_seconds:
            _thread.start_new_thread(self._go_on, (healthy,))

    def _go_on(self, healthy: Callable[[], bool]) -> None:
        while self._watchdog:
            if healthy():
                self.watchdog()
            time.sleep(self._watchdog / 2)

    def _status(self, text: str) -> tuple[str, ...]:
        line = " ".join(text.split())[:STATUS_MAX_CHARS]
        if not line or line == self._said:
            return ()
        self._said = line
        return (f"STATUS={line}",)

    def _send(self, *lines: str) -> None:
        if self._address is None or not lines:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as made:
                made.sendto("\n".join(lines).encode("utf-8", "backslashreplace"), self._address)
        except OSError:
            pass


def follow(child: Child, type_: str, id_: str) -> Notifier:
    """Tell what becomes of one worker, which was let go just now: in a thread, until it has ended.

    READY once its loop has read; of a script without the loop of sandboxrun.worker, which says nothing, after SILENT_SECONDS.
    The watchdog hears nothing while the loop has not turned for its time with a request in hand.
    """
    notifier = Notifier()
    limit = notifier.watchdog_seconds

    def is_well() -> bool:
        try:
            return not stuck(child.health(), limit, time.monotonic())
        except OSError:  # it has ended
            return False

    def go_on() -> None:
        begun = time.monotonic()
        try:
            while not (health := child.health()).ready:
                if not health.tick and time.monotonic() - begun >= SILENT_SECONDS:
                    break
                time.sleep(LOOK_SECONDS)
            notifier.ready(f"{type_} {id_} {'reads' if health.ready else 'runs'}")
            while True:
                time.sleep(STATUS_SECONDS)
                notifier.status(f"{type_} {id_} runs, {child.health().handled} requests handled")
        except OSError:  # it has ended
            pass

    if notifier.is_on:
        notifier.start_watchdog(is_well)
        _thread.start_new_thread(go_on, ())
    return notifier


def _address(path: str) -> bytes | None:
    """Of a socket by path, or of an abstract one, which begins with @; None for any other, as vsock:."""
    data = os.fsencode(path)
    if not 1 < len(data) <= PATH_MAX_BYTES or b"\0" in data or data[:1] not in (b"/", b"@"):
        return None
    return b"\0" + data[1:] if data[:1] == b"@" else data


def _seconds(micros: str) -> float:
    return int(micros) / 1e6 if micros.isascii() and micros.isdigit() and len(micros) < 16 else 0.0
