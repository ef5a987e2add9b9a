"""sd_notify(3), heard by a real socket."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxrun.host.notify import VARIABLES, Notifier

SECONDS = 30


class Manager:
    """A service manager's socket."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(SECONDS)

    def hear(self) -> str:
        return self.socket.recv(4096).decode()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    if request.param == "path":
        path = f"/tmp/notify-{os.getpid()}-{threading.get_ident() % 10**6}"
        made = Manager(path, path)
    else:
        name = f"notify-{os.urandom(6).hex()}"
        made = Manager(f"@{name}", f"\0{name}")
    yield made
    made.socket.close()
    if request.param == "path":
        os.unlink(made.name)


def test_the_manager_hears_ready_status_and_stopping(manager):
    notifier = Notifier({"NOTIFY_SOCKET": manager.name})
    assert notifier.is_on and notifier.watchdog_seconds == 0
    notifier.ready("greeter 1 reads")
    assert manager.hear() == "READY=1\nSTATUS=greeter 1 reads"
    notifier.status("50 workers")
    notifier.status("50 workers")
    notifier.stopping()
    assert [manager.hear(), manager.hear()] == ["STATUS=50 workers", "STOPPING=1"]


def test_a_status_is_one_line_so_that_it_says_nothing_else(manager):
    notifier = Notifier({"NOTIFY_SOCKET": manager.name})
    notifier.status("a\nREADY=1\nMAINPID=1 \ud800" + "x" * 10_000)
    said = manager.hear()
    assert "\n" not in said and said.startswith("STATUS=a READY=1 MAINPID=1 \\ud800xxx") and len(said) < 600


def test_the_watchdog_is_fed_while_the_loop_turns(manager):
    healthy = threading.Event()
    healthy.set()
    notifier = Notifier({"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid())})
    assert notifier.watchdog_seconds == 0.02
    notifier.start_watchdog(healthy.is_set)
    assert [manager.hear() for _ in range(3)] == ["WATCHDOG=1"] * 3
    healthy.clear()
    manager.socket.settimeout(0.3)  # one that was on its way may come still
    assert "silence" in [_heard(manager) for _ in range(10)]
    healthy.set()
    manager.socket.settimeout(SECONDS)
    assert manager.hear() == "WATCHDOG=1"
    notifier.stopping()
    while manager.hear() != "STOPPING=1":
        pass


def _heard(manager: Manager) -> str:
    try:
        return manager.hear()
    except TimeoutError:
        return "silence"


def test_a_watchdog_for_another_process_is_not_ours(manager):
    notifier = Notifier({"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"})
    assert notifier.watchdog_seconds == 0


def test_no_child_inherits_the_variables():
    variables = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "2", "HOME": "/home/me"}
    Notifier(variables)
    assert variables == {"HOME": "/home/me"}
    assert len(VARIABLES) == 3


@pytest.mark.parametrize(
    "path", ["", "/", "@", "vsock:2:1234", "relative", "/" + "x" * 200, "/nowhere/at/all", "@\0", "/a\0b"]
)
def test_a_manager_that_cannot_be_told_is_no_error(path):
    notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "later"})
    notifier.ready()
    notifier.status("x")
    notifier.stopping()
    assert notifier.watchdog_seconds == 0


def test_a_manager_that_does_not_read_holds_nobody(tmp_path):
    name = f"notify-{os.urandom(6).hex()}"
    deaf = Manager(f"@{name}", f"\0{name}")
    notifier = Notifier({"NOTIFY_SOCKET": deaf.name})
    for number in range(2000):  # far more than its queue takes
        notifier.status(str(number))
    deaf.socket.close()
