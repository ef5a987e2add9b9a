"""The features of the kernel that the boundary needs: each is tried, not read from a version, and named if it is missing.

A hardened or patched kernel, or a container around it, can lack a feature of its version, or have a later one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Container, Iterable

from sandboxrun.enums import Enum
from sandboxrun.errors import ConfigError, SandboxError
from sandboxrun.records import record
from sandboxrun.sandbox.compile import landlock
from sandboxrun.sandbox.compile.landlock import Access
from sandboxrun.sandbox.syscalls import pidfd_getfd, syscall

_NR_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SECCOMP_GET_ACTION_AVAIL, _SECCOMP_GET_NOTIF_SIZES = 2, 3
_RET_KILL_PROCESS, _RET_USER_NOTIF = 0x80000000, 0x7FC00000
_NOTIF_SIZES = (80, 24, 64)  # struct seccomp_notif, seccomp_notif_resp, seccomp_data: what listener.py reads and writes


class Need(Enum):
    """What it means when a feature is missing. The value is how `sandboxrun check` says it."""

    ALWAYS = "needed"
    DEGRADABLE = "needed, unless --allow-degraded names it"
    SECOND_WALL = "a second wall: the filter holds this alone without it"


class Feature(Enum):
    """A name for `--allow-degraded`, the Linux version that brought it, what it is for, and whether it is needed."""

    ARCHITECTURE = ("architecture", "", "a system call table that is known: x86-64 or aarch64", Need.ALWAYS)
    SECCOMP_NOTIFY = ("seccomp-notify", "5.5", "the supervisor decides each connect", Need.ALWAYS)
    SECCOMP_KILL = ("seccomp-kill", "4.14", "foreign system call tables end the process", Need.ALWAYS)
    PIDFD_GETFD = ("pidfd-getfd", "5.6", "the supervisor connects the worker's own socket", Need.ALWAYS)
    LANDLOCK = ("landlock", "5.13", "files", Need.ALWAYS)
    LANDLOCK_TRUNCATE = ("landlock-truncate", "6.2", "files that are only read cannot be emptied", Need.DEGRADABLE)
    LANDLOCK_REFER = ("landlock-refer", "5.19", "files can be moved between granted folders", Need.SECOND_WALL)
    LANDLOCK_TCP = ("landlock-tcp", "6.7", "no TCP in the worker itself", Need.SECOND_WALL)
    LANDLOCK_IOCTL = ("landlock-ioctl", "6.10", "no commands to devices", Need.SECOND_WALL)
    LANDLOCK_SCOPE = ("landlock-scope", "6.12", "signals and abstract sockets stay inside", Need.SECOND_WALL)

    def __init__(self, label: str, kernel: str, what: str, need: Need) -> None:
        self.label, self.kernel, self.what, self.need = label, kernel, what, need

    @property
    def hint(self) -> str:
        if self is Feature.LANDLOCK:
            return "with landlock among the modules of the lsm= boot parameter (cat /sys/kernel/security/lsm)"
        if self is Feature.PIDFD_GETFD:
            return "and a container must allow pidfd_getfd"
        return ""


@record
class Features:
    """Those that this kernel has."""

    available: frozenset[Feature]

    def __contains__(self, feature: Feature) -> bool:
        return feature in self.available

    def missing(self) -> list[Feature]:
        return [feature for feature in Feature if feature not in self.available]

    def forgone(self, degraded: Container[str]) -> list[str]:
        """The names among these that are missing here."""
        return [feature.label for feature in self.missing() if feature.label in degraded]

    def landlock_bits(self) -> dict[str, int]:
        """All that this kernel's Landlock can deny, for the child's ruleset."""
        fs = (
            landlock.BASIC
            | (Access.TRUNCATE if Feature.LANDLOCK_TRUNCATE in self else 0)
            | (Access.REFER if Feature.LANDLOCK_REFER in self else 0)
            | (Access.IOCTL_DEV if Feature.LANDLOCK_IOCTL in self else 0)
        )
        return {
            "fs": fs,
            "net": landlock.TCP if Feature.LANDLOCK_TCP in self else 0,
            "scoped": landlock.SCOPES if Feature.LANDLOCK_SCOPE in self else 0,
        }

    def require(self, degraded: Iterable[str] = (), *, others: Collection[str] = ()) -> list[str]:
        """Messages about the missing features that the operator does without.

        `degraded`: their names. `others`: names that are not of the kernel, and that the caller looks at. Raises SandboxError
        if another needed feature is missing, and ConfigError for a name that is none of these.
        """
        known = {feature.label: feature for feature in Feature}
        given = set()
        for name in degraded:
            if name in others:
                continue
            if name not in known or known[name].need is not Need.DEGRADABLE:
                names = ", ".join([*(f.label for f in Feature if f.need is Need.DEGRADABLE), *others])
                raise ConfigError(f"--allow-degraded has {name[:80]!r}: expected one of {names}")
            given.add(known[name])
        messages = []
        for feature in self.missing():
            if feature.need is Need.SECOND_WALL:
                continue
            if feature not in given:
                self._check_filter(feature)
                way = f"; or do without it: --allow-degraded={feature.label}" if feature.need is Need.DEGRADABLE else ""
                since = f"Linux {feature.kernel} or newer is needed" if feature.kernel else "another machine is needed"
                hint = f", {feature.hint}" if feature.hint else ""
                raise SandboxError(f"this kernel lacks {feature.label} ({feature.what}): {since}{hint}{way}")
            messages.append(f"degraded: without {feature.label}, {feature.what} does not hold")
        return messages

    def _check_filter(self, feature: Feature) -> None:
        """Raise SandboxError if the kernel has the feature, and a seccomp filter around this process denies it."""
        if feature is Feature.PIDFD_GETFD:
            from sandboxrun.sandbox import surroundings

            if surroundings.is_filtered() and _kernel_version() >= (5, 6):
                raise surroundings.refusal_here("pidfd_getfd")


def probe() -> Features:
    """Try each feature on this kernel, without effect on this process."""
    return Features(frozenset(feature for feature, there in _PROBES.items() if there()))


def _kernel_version() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2] if part.isdecimal())


def _action_available(action: int) -> bool:
    return _seccomp(_SECCOMP_GET_ACTION_AVAIL, bytearray(action.to_bytes(4, sys.byteorder)))


def _notify() -> bool:
    sizes = bytearray(2 * len(_NOTIF_SIZES))
    if not _action_available(_RET_USER_NOTIF) or not _seccomp(_SECCOMP_GET_NOTIF_SIZES, sizes):
        return False
    return bytes(sizes) == b"".join(size.to_bytes(2, sys.byteorder) for size in _NOTIF_SIZES)


def _seccomp(operation: int, argument: bytearray) -> bool:
    """Whether the kernel knows the operation; its answer is in `argument` then."""
    number = _NR_SECCOMP.get(os.uname().machine)
    if number is None:
        return False
    try:
        return syscall("seccomp", number, operation, 0, argument) == 0
    except OSError:
        return False


def _getfd() -> bool:
    try:
        pidfd = os.pidfd_open(os.getpid())
        try:
            os.close(pidfd_getfd(pidfd, pidfd))
            return True
        finally:
            os.close(pidfd)
    except OSError:
        return False


_PROBES: dict[Feature, Callable[[], bool]] = {
    Feature.ARCHITECTURE: lambda: os.uname().machine in _NR_SECCOMP,
    Feature.SECCOMP_NOTIFY: _notify,
    Feature.SECCOMP_KILL: lambda: _action_available(_RET_KILL_PROCESS),
    Feature.PIDFD_GETFD: _getfd,
    Feature.LANDLOCK: lambda: landlock.handles(fs=landlock.BASIC),
    Feature.LANDLOCK_TRUNCATE: lambda: landlock.handles(fs=Access.TRUNCATE),
    Feature.LANDLOCK_REFER: lambda: landlock.handles(fs=Access.REFER),
    Feature.LANDLOCK_TCP: lambda: landlock.handles(net=landlock.TCP),
    Feature.LANDLOCK_IOCTL: lambda: landlock.handles(fs=Access.IOCTL_DEV),
    Feature.LANDLOCK_SCOPE: lambda: landlock.handles(scoped=landlock.SCOPES),
}
