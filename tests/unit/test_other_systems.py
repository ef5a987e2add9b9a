"""On another system the command says that it needs Linux, before anything fails that is not there."""

from __future__ import annotations

import subprocess
import sys

import pytest

# What Python lacks on that system, as far as the command line could touch it.
LACKING = {
    "darwin": ("os.memfd_create", "os.pipe2", "os.O_DIRECT", "os.pidfd_open", "select.epoll", "os.O_PATH", "signal.pidfd_send_signal"),
    "win32": (
        "os.memfd_create", "os.pipe2", "os.O_DIRECT", "os.uname", "os.posix_spawn", "os.geteuid", "select.poll",
        "_signal.SIGCHLD", "_signal.SIGSTOP", "_signal.SIGQUIT", "_signal.SIGKILL", "_signal.SIGTRAP", "_signal.SIGSYS",
    ),
    "freebsd14": ("os.memfd_create", "os.O_DIRECT", "os.pidfd_open", "select.epoll"),
}  # fmt: skip
MISSING_MODULES = {"win32": ("fcntl", "pwd", "resource", "termios"), "darwin": (), "freebsd14": ()}
FAKE = """
import os, select, signal, sys, _signal
for name in {lacking!r}:
    module, _, attribute = name.partition(".")
    for where in (module, "posix" if module == "os" else module):
        if hasattr(sys.modules.get(where), attribute):
            delattr(sys.modules[where], attribute)
for name in {modules!r}:
    sys.modules[name] = None
sys.platform = {system!r}
sys.argv = ["sandboxrun", *{args!r}]
from sandboxrun.cli import main
main()
"""


def on(system: str, *args: str) -> subprocess.CompletedProcess[str]:
    code = FAKE.format(system=system, lacking=LACKING[system], modules=MISSING_MODULES[system], args=args)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "args", [("t", "1"), ("run", "t", "1"), ("check",), ("dev", "."), ("doctor",), ("t", "1", "--quiet")]
)
@pytest.mark.parametrize(("system", "name"), [("darwin", "macOS"), ("win32", "Windows"), ("freebsd14", "freebsd14")])
def test_a_command_that_confines_says_that_it_needs_linux(system: str, name: str, args: tuple[str, ...]) -> None:
    done = on(system, *args)
    assert (done.returncode, done.stdout) == (71, ""), done
    lines = done.stderr.splitlines()
    assert lines[0] == (
        f"error: sandboxrun needs Linux 6.2 or newer, and this is {name}: the kernel confines a worker by seccomp and "
        f"Landlock; run it in a virtual machine with Linux"
    )
    assert (
        lines[1:]
        == {
            "macOS": [
                "hint: brew install lima",
                "limactl start --tty=false --name=sandboxrun template://ubuntu-24.04",
                "limactl shell sandboxrun",
            ],
            "Windows": ["hint: wsl --install -d Ubuntu-24.04"],
            "freebsd14": [],
        }[name]
    )


@pytest.mark.parametrize("args", [("--version",), ("--help",), ("call", "--help"), ("encrypt", "--help")])
def test_what_needs_no_sandbox_goes_on(args: tuple[str, ...]) -> None:
    done = on("darwin", *args)
    assert done.returncode == 0 and "needs Linux" not in done.stderr, done
