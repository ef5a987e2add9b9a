"""Which operating system this is: the boundary is made of features of the Linux kernel.

Imports nothing that another system may lack, because it has to say so there.
"""

from __future__ import annotations

import sys

from sandboxrun.errors import SandboxError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_NAMES = {"darwin": "macOS", "win32": "Windows", "cygwin": "Windows", "ios": "iOS"}


def refusal() -> SandboxError:
    """The error of a command that confines a worker, for a system that is not Linux."""
    system = sys.platform
    name = _NAMES.get(system, system)
    hint: Callable[[], tuple[str, ...]] = {"macOS": _mac_hint, "Windows": _windows_hint}.get(name, tuple)
    return SandboxError(
        f"sandboxrun needs Linux 6.2 or newer, and this is {name}: the kernel confines a worker by seccomp and Landlock; "
        f"run it in a virtual machine with Linux",
        hint=hint(),
    )


def _mac_hint() -> tuple[str, ...]:
    return (
        "brew install lima",
        "limactl start --tty=false --name=sandboxrun template://ubuntu-24.04",
        "limactl shell sandboxrun",
    )


def _windows_hint() -> tuple[str, ...]:
    return ("wsl --install -d Ubuntu-24.04",)
