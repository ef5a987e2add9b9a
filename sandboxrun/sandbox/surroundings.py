"""What is around this process and may deny it system calls: a container's seccomp profile, or the filter of a systemd unit.

Imported only if a system call was denied, and by `sandboxrun check`.
"""

from __future__ import annotations

import os

from sandboxrun.errors import SandboxError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

KUBERNETES, PODMAN, DOCKER, CONTAINERD, LXC = "Kubernetes", "Podman", "Docker", "containerd", "LXC"
_MARKS = ((PODMAN, "run/.containerenv"), (DOCKER, ".dockerenv"))
# Parts of the paths of control groups and of the root's layers; a container with namespaces shows only the second.
_PARTS = (
    ("kubepods", KUBERNETES),
    ("libpod", PODMAN),
    ("/docker/", DOCKER),
    ("/docker-", DOCKER),
    ("/containerd/", CONTAINERD),
    ("/lxc", LXC),
)
_LOCALHOST = "seccompProfile: {type: Localhost, localhostProfile: seccomp.json}"  # seccomp in the docs of Kubernetes


def container(root: str = "/", environ: Mapping[str, str] = os.environ) -> str:
    """The engine of the container around this process, or ""."""
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return KUBERNETES
    for engine, mark in _MARKS:
        if os.path.exists(root + mark):
            return engine
    paths = _read(f"{root}proc/self/cgroup") + _root_mount(_read(f"{root}proc/self/mountinfo"))
    return next((engine for part, engine in _PARTS if part in paths), "")


def is_filtered() -> bool:
    """Whether this process runs under a seccomp filter, proc_pid_status(5)."""
    return "\nSeccomp:\t2" in _read("/proc/self/status")


def refusal(call: str, engine: str, *, is_unit: bool) -> SandboxError:
    """The error for a filter that denies a system call of this kernel. `engine`: container(). `is_unit`: of systemd."""
    if is_unit and not engine:
        return SandboxError(
            f"the SystemCallFilter= of this systemd unit denies {call}: add a line to its [Service] section",
            hint=f"SystemCallFilter={call}",
        )
    way = (
        f"put the profile of sandboxrun on each node, and write {_LOCALHOST} into the pod"
        if engine == KUBERNETES
        else "start it with --security-opt seccomp=seccomp.json, the profile of sandboxrun"
    )
    return SandboxError(
        f"the seccomp profile of this container denies {call}: {way}",
        hint="sandboxrun check --seccomp-profile >seccomp.json",
    )


def refusal_here(call: str) -> SandboxError:
    return refusal(call, container(), is_unit="INVOCATION_ID" in os.environ)  # systemd.exec(5)


def _root_mount(mounts: str) -> str:
    """The line of the root file system, proc_pid_mountinfo(5)."""
    return next((line for line in mounts.splitlines() if line.split()[4:5] == ["/"]), "")


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read(1 << 16)
    except OSError:
        return ""
